"""Where a data set's files come from: annotation files, and the ways to its pictures or clips."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

THEIRS = "/export/"  # where the original authors' machines keep files
TRAINING_SIDE = 384  # pixels, the largest input that the recipes train with


@dataclass(frozen=True)
class Source:
    """One annotation file.

    Args:
        storage: where it lies, relative to the cache root, or an absolute path.
        url: where it is published (or a local path), None when it can't be fetched.
        md5, sha256: checksums of the published file, in hex.
        optional: whether its split can be read without it.
    """

    storage: str
    url: str | None = None
    md5: str | None = None
    sha256: str | None = None
    optional: bool = False


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
    """Pictures that are fetched one by one, from the addresses in the records or in a published table.

    Args:
        to: the folder that they go to, relative to the cache root.
        url_key: the records' key of the address.
        splits: which splits need them; none: all.
        side: pixels; larger pictures are stored with this shorter side. 0 stores all as they are, None those
            of evaluation splits, while those that only training reads get `TRAINING_SIDE`.
        table: the published table, for a data set whose annotation file is only made from what can still be
            fetched: .tsv, .csv, .jsonl or .json. Its `caption` and address go to the records of that file.
        columns: the table's columns, where its first line doesn't name them.
        how: how to come by the table, where its `Source` has no URL.
    """

    to: str
    url_key: str = "url"
    splits: Sequence[str] = ()
    side: int | None = None
    table: Source | None = None
    columns: Sequence[str] = ()
    how: str = ""


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


def is_of_another_machine(where: str, path: str, instead: str) -> bool:
    """Whether a path of the original's configurations is one of its authors' machines and not here; which is said.

    Args:
        where: the key that holds it. instead: what is used in its place.
    """
    foreign = path.startswith(THEIRS) and not Path(path).exists()
    if foreign:
        logger.warning("%s: %s is a path of the original authors' machines; %s is used", where, path, instead)
    return foreign


def shards_folder(links: Links, split: str, downloads: Sequence[Download], splits: Sequence[str]) -> str:
    """Where the shards of a split go, relative to the cache root: a folder of their own where several splits share one.

    Args:
        links: where the split's images come from. downloads, splits: of the data set.
    """
    if links.table is not None:
        return links.to
    others = (d for d in downloads if isinstance(d, Links) and d.to == links.to)
    sharing = {s for other in others for s in (other.splits or splits)}
    return f"{links.to}/{split}" if len(sharing) > 1 else links.to


def how_to_get(name: str, downloads: Sequence[Download], split: str | None = None) -> str:
    """What to do to get the pictures or clips of a split (None: of any), "" if nothing is known."""
    needed = [d for d in downloads if split is None or not d.splits or split in d.splits]
    ways = []
    if any(not isinstance(d, ByHand) for d in needed):
        ways.append(f"`lavis download {name}` fetches what is missing")
    ways += [f"to get them: {d.steps.rstrip('.')} ({d.page})" for d in needed if isinstance(d, ByHand)]
    return "; ".join(ways)
