"""What is in an archive (.zip, .tar, .tar.gz), member by member, and which names are safe.

A damaged archive is an `ArchiveError` wherever the damage shows, also where Python's own modules take it for the
end. Nothing is written here; see `lavis.common.archives`.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

STATE = ".lavis"  # the folder of marks and of unfinished work; no member may have this name
CHUNK = 1 << 20  # bytes
_LONGEST_NAME = 255  # bytes of one part of a path, the limit of the usual file systems
_LONGEST_READ = 16 << 20  # bytes of one header; long names are far shorter, only bombs are longer
_LONGEST_TAIL = 64 << 20  # bytes after the end of a tar


class ArchiveError(OSError):
    """An archive that cannot be unpacked: damaged, or of another kind."""


class UnsafeArchiveError(ArchiveError):
    """An archive that must not be unpacked: it would write elsewhere, or fill the disk."""


@dataclass(frozen=True)
class Member:
    name: str
    kind: str  # file, folder, link (symbolic), twin (hard link), or what it is and is refused
    size: int = 0  # bytes unpacked
    target: str = ""  # of a link
    open: Callable[[], IO[bytes]] | None = None


class _Forward:
    """A stream that only goes on: a header that claims to be huge or points back is an error.

    `tarfile` reads a long name in one piece, whatever its length, and follows negative sizes backwards.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.last = b"\0"

    def tell(self) -> int:
        return int(self._stream.tell())

    def seek(self, position: int) -> int:
        if position < self.tell():
            raise tarfile.ReadError("a header points backwards")
        return int(self._stream.seek(position))

    def read(self, n: int = -1) -> bytes:
        if not 0 <= n <= _LONGEST_READ:
            raise UnsafeArchiveError(f"a header claims to be {n} bytes long")
        self.last = self._stream.read(n)
        return self.last


def _tar_members(archive: Path, raw: IO[bytes]) -> Iterator[Member]:
    zipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    stream = _Forward(gzip.GzipFile(fileobj=raw) if zipped else raw)
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        while (info := tar.next()) is not None:
            tar.members.clear()  # or a million headers stay in memory
            if info.isreg():
                yield Member(info.name, "file", info.size, open=lambda i=info: tar.extractfile(i))  # type: ignore[misc]
            elif info.isdir():
                yield Member(info.name, "folder")
            elif info.issym():
                yield Member(info.name, "link", target=info.linkname)
            elif info.islnk():
                yield Member(info.name, "twin", target=info.linkname)
            else:
                yield Member(info.name, "a device or pipe")
        if stream.last.strip(b"\0") or not stream.last:
            # tarfile takes a broken header for the end; the true end is a block of zeros
            raise tarfile.ReadError("it ends in the middle")
        trailing = 0
        while chunk := stream.read(CHUNK):  # to the end, where gzip's checksum is
            trailing += len(chunk)
            if trailing > _LONGEST_TAIL:
                raise UnsafeArchiveError(f"{archive} goes on after its end")


def _zip_members(archive: Path, raw: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as pack:
        for info in pack.infolist():
            if info.flag_bits & 1:
                raise ArchiveError(f"{archive}: {info.filename!r} is encrypted; unpack it with its password")
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir():
                yield Member(info.filename, "folder")
            elif kind == stat.S_IFLNK:
                if info.file_size > 4096:
                    raise UnsafeArchiveError(f"{archive}: the link {info.filename!r} has no sensible target")
                yield Member(info.filename, "link", target=os.fsdecode(pack.read(info)))
            elif kind not in (0, stat.S_IFREG):
                yield Member(info.filename, "a device or pipe")
            else:
                yield Member(info.filename, "file", info.file_size, open=lambda i=info: pack.open(i))  # type: ignore[misc]


@contextlib.contextmanager
def read_members(archive: Path) -> Iterator[tuple[Iterator[Member], IO[bytes]]]:
    """The members of an archive of either kind, and the file whose position tells how far one is."""
    with archive.open("rb") as raw:
        start = raw.read(512)
        raw.seek(0)
        try:
            if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                yield _zip_members(archive, raw), raw
            elif start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar" or archive.suffix == ".tar":
                yield _tar_members(archive, raw), raw
            else:
                raise ArchiveError(
                    f"{archive} is no .zip, .tar or .tar.gz archive: it begins with {start[:16]!r}"
                )
        except (
            tarfile.TarError,
            zipfile.BadZipFile,
            zlib.error,
            gzip.BadGzipFile,
            EOFError,
            struct.error,
        ) as e:
            raise ArchiveError(f"{archive} is damaged ({e}); delete it and fetch it again") from e
        except (NotImplementedError, UnicodeError) as e:
            raise ArchiveError(f"{archive} cannot be unpacked here ({e})") from e


# ---------------------------------------------------------------- names
def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a member's path below the folder; empty for the folder itself.

    Raises:
        ValueError: the name is absolute, has "..", or could not be a file's everywhere.
    """
    name = name.replace("\\", "/")  # as archives made under Windows have it
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise ValueError("its name is an absolute path")
    parts = tuple(part for part in PurePosixPath(name).parts if part != ".")
    for part in parts:
        if part == "..":
            raise ValueError("its name leaves the folder")
        if any(ord(c) < 32 for c in part):
            raise ValueError("its name has control characters")
        if len(os.fsencode(part)) > _LONGEST_NAME:
            raise ValueError(f"its name has a part of more than {_LONGEST_NAME} bytes")
    if parts and parts[0].lower() == STATE:
        raise ValueError(f"the name {STATE} is taken")
    return parts
