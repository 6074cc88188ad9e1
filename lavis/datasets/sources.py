"""Where a data set's files come from: annotation files, and the ways to its pictures or clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One annotation file.

    Args:
        storage: where it lies, relative to the cache root, or an absolute path.
        url: where it is published (or a local path), None when it can't be fetched.
        md5, sha256: checksums of the published file, in hex.
    """

    storage: str
    url: str | None = None
    md5: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Archive:
    """A published archive of pictures or clips: .zip, .tar, .tar.gz or .tgz.

    Args:
        url: where it is published.
        to: the folder that it is unpacked into, relative to the cache root.
        splits: which splits need it; none: all.
        size: bytes, as far as known.
        md5, sha256: checksums in hex, as far as published.
    """

    url: str
    to: str
    splits: Sequence[str] = ()
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Links:
    """Pictures that are fetched one by one, from the addresses in the records.

    Args:
        to: the folder that they go to, relative to the cache root.
        url_key: the records' key of the address.
        splits: which splits need them; none: all.
    """

    to: str
    url_key: str = "url"
    splits: Sequence[str] = ()


@dataclass(frozen=True)
class ByHand:
    """Media that no program can fetch: behind a login or a form, or no longer published.

    Args:
        page: where to ask.
        steps: what to do there, and where the files belong, in a sentence or two.
        to: the folder where they belong, relative to the cache root.
        splits: which splits need them; none: all.
    """

    page: str
    steps: str
    to: str
    splits: Sequence[str] = ()


Download = Archive | Links | ByHand
