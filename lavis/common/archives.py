"""Archives from elsewhere (.zip, .tar, .tar.gz), unpacked so that nothing leaves the folder or fills the disk.

    unpack("train2014.zip", "coco/images")

An archive is read member by member into `<folder>/.lavis/<key>/`. Only when all of it has been read and
found sound do its files move to their places, so a hostile or damaged archive leaves nothing behind. A
journal counts the members that are done: an unpacking that was cut, even by kill -9, goes on from there.
A mark in `<folder>/.lavis` says that it was finished, and outlives the archive.

What is refused: absolute names and names with "..", links to anything outside the archive, devices, encrypted
members, and archives that unpack to far more than their size, the disk or `Limits` allow. Modes and owners are
not taken over. Symbolic links are made last, so nothing is ever written through one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lavis.common.files import write_json
from lavis.common.members import (
    CHUNK,
    STATE,
    ArchiveError,
    Member,
    UnsafeArchiveError,
    read_members,
    safe_parts,
)

_JOURNAL_EVERY = 256  # members, and so at most this many are read again
_ROOM_EVERY = 64 << 20  # bytes between looks at the free disk space
_UNJUDGED = 64 << 20  # bytes: less than this is no bomb, whatever the ratio

Progress = Callable[[int, int], None]  # bytes of the archive that are read, of how many


@dataclass(frozen=True)
class Limits:
    """How much an archive may unpack to.

    Args:
        entries: members, folders included.
        ratio: unpacked bytes per byte of the archive. Pictures and clips hardly shrink and text rarely
            below a twentieth; deflate's best is 1 : 1032, and that is what bombs are made of.
        size: unpacked bytes in all; None: what the disk has free.
    """

    entries: int = 5_000_000
    ratio: float = 200.0
    size: int | None = None


@dataclass(frozen=True)
class Unpacked:
    """What the mark of a finished unpacking says: the archive's identity, its files, and their bytes."""

    identity: str
    files: int
    size: int


def _mark(folder: Path, identity: str) -> Path:
    return folder / STATE / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"


def unpacked(folder: str | Path, identity: str) -> Unpacked | None:
    """The mark that `unpack` left in this folder for this archive; None if it has not finished."""
    content = _read_json(_mark(Path(folder), identity))
    try:
        return Unpacked(**content)
    except TypeError:
        return None


def begun(folder: str | Path, identity: str) -> bool:
    """Whether an unfinished unpacking of this archive lies in the folder."""
    return _mark(Path(folder), identity).with_suffix("").is_dir()


def forget(folder: str | Path, identity: str) -> None:
    """Remove the mark, so that the archive will be unpacked again over what is there."""
    _mark(Path(folder), identity).unlink(missing_ok=True)


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    identity: str | None = None,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Unpacked:
    """Unpack an archive into a folder, once.

    Args:
        archive: a .zip, .tar or .tar.gz file; which one is told from its content.
        folder: where its members go, made if missing; files of the same names are replaced.
        identity: what the mark is filed under, such as the archive's URL; by default its name and size.
        limits: see `Limits`.
        progress: called with the bytes of the archive read so far, and its size; may raise to stop.

    Returns:
        What was unpacked, now or by an earlier call.

    Raises:
        UnsafeArchiveError: it would write outside the folder or is a bomb; nothing was put in the folder.
        ArchiveError: it is damaged, encrypted, or no archive.
        OSError: the disk is full, or a folder stands where a file should go.
    """
    archive, folder = Path(archive), Path(folder)
    state = archive.stat()
    identity = identity or f"{archive.name}, {state.st_size} bytes"
    done = unpacked(folder, identity)
    if done is not None:
        return done
    mark = _mark(folder, identity)
    work = _Work(archive, mark.with_suffix(""), limits or Limits())
    work.read(progress)
    _merge(work.tree, folder)
    if hasattr(os, "sync"):
        os.sync()  # the mark must not outlive a power failure that the files did not
    done = Unpacked(identity, work.files, work.size)
    write_json(mark, asdict(done))
    shutil.rmtree(work.staging)
    return done


class _Work:
    """One unpacking: what is done (`journal.json`), what is unpacked (`tree`), and the file in hand (`part`)."""

    def __init__(self, archive: Path, staging: Path, limits: Limits) -> None:
        self.archive, self.staging, self.limits = archive, staging, limits
        self.tree, self._journal = staging / "tree", staging / "journal.json"
        self.entries = self.files = self.size = 0
        self._folders: set[tuple[str, ...]] = set()
        self._links: list[tuple[tuple[str, ...], str]] = []
        self._looked = -_ROOM_EVERY
        state = archive.stat()
        self._packed = state.st_size
        self._version = [state.st_size, state.st_mtime_ns]

    def read(self, progress: Progress | None) -> None:
        """Read the archive into the tree, from where an earlier process was cut."""
        journal = _read_json(self._journal)
        if journal.get("archive") != self._version and self.staging.exists():
            shutil.rmtree(self.staging)  # of another version of the archive
            journal = {}
        if journal.get("complete"):
            self.files, self.size = int(journal["files"]), int(journal["size"])
            return
        self.tree.mkdir(parents=True, exist_ok=True)
        done = int(journal.get("done", 0))
        self._note(done)
        with read_members(self.archive) as (members, raw):
            for member in members:
                self._judge(member)
                # members that are done are judged again, and only not written again
                self._take(member, self.entries > done)
                if self.entries > done and self.entries % _JOURNAL_EVERY == 0:
                    self._note(self.entries)
                if progress is not None:
                    progress(raw.tell(), self._packed)
        self._make_links()
        self._note(self.entries, complete=True)

    def _note(self, done: int, complete: bool = False) -> None:
        totals = {"files": self.files, "size": self.size} if complete else {}
        write_json(self._journal, {"archive": self._version, "done": done, "complete": complete, **totals})

    def _judge(self, member: Member) -> None:
        """Count a member, and stop before it is written if it is too much."""
        self.entries += 1
        if self.entries > self.limits.entries:
            raise UnsafeArchiveError(f"{self.archive} has more than {self.limits.entries} entries")
        self._need(member, member.size)

    def _need(self, member: Member, size: int) -> None:
        where = f"{self.archive}, entry {self.entries} ({member.name!r})"
        if size < 0:
            raise ArchiveError(f"{where}: its size is {size}")
        self.size += size
        if self.limits.size is not None and self.size > self.limits.size:
            raise UnsafeArchiveError(f"{where}: it unpacks to more than {self.limits.size / 1e9:.2f} GB")
        if self.size > max(_UNJUDGED, self.limits.ratio * self._packed):
            raise UnsafeArchiveError(
                f"{where}: it unpacks to more than {self.limits.ratio:g} times its {self._packed} bytes, "
                "as bombs do; nothing was kept"
            )
        if self.size - self._looked >= _ROOM_EVERY:
            self._looked = self.size
            free = shutil.disk_usage(self.staging).free
            if size > free:
                raise OSError(
                    f"{where} needs {size / 1e9:.2f} GB and {self.staging} has {free / 1e9:.2f} GB free; "
                    "make room and run it again: it goes on from here"
                )

    def _take(self, member: Member, wanted: bool) -> None:
        try:
            parts = safe_parts(member.name)
            if member.kind == "link":
                self._links.append((parts, member.target))
            elif member.kind == "twin":
                self._twin(member, parts, wanted)
                self.files += 1
            elif member.kind == "folder":
                if wanted:
                    self._folder(parts)
            elif member.kind == "file":
                if wanted:
                    self._write(member, self._place(parts))
                self.files += 1
            else:
                raise ValueError(f"it is {member.kind}")
        except ValueError as e:
            raise UnsafeArchiveError(
                f"{self.archive}, entry {self.entries} ({member.name!r}): {e}; nothing of it was unpacked"
            ) from e

    def _folder(self, parts: tuple[str, ...]) -> Path:
        """A real folder of the tree, made if missing."""
        path = self.tree.joinpath(*parts)
        if parts not in self._folders:
            for i in range(len(parts)):
                step = self.tree.joinpath(*parts[: i + 1])
                if step.is_symlink() or (step.exists() and not step.is_dir()):
                    raise ValueError(f"{'/'.join(parts[: i + 1])!r} is no folder")
                step.mkdir(exist_ok=True)
            self._folders.add(parts)
        return path

    def _place(self, parts: tuple[str, ...]) -> Path:
        if not parts:
            raise ValueError("it has no name")
        place = self._folder(parts[:-1]) / parts[-1]
        if place.is_dir():
            raise ValueError("a folder has the same name")
        return place

    def _write(self, member: Member, place: Path) -> None:
        part, size = self.staging / "part", 0
        assert member.open is not None
        with member.open() as source, part.open("wb") as f:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > member.size:
                    break
                f.write(chunk)
        if size != member.size:
            raise ArchiveError(
                f"{self.archive} is damaged: {member.name!r} has not the {member.size} bytes that it should have"
            )
        part.replace(place)

    def _twin(self, member: Member, parts: tuple[str, ...], wanted: bool) -> None:
        """A hard link becomes a copy: not every file system has them, and an edit should not change two files."""
        place, original = self._place(parts), self.tree.joinpath(*safe_parts(member.target))
        if not original.is_file():
            raise ValueError(f"it is a link to {member.target!r}, which is no file of the archive before it")
        self._need(member, original.stat().st_size)
        if wanted:
            part = self.staging / "part"
            shutil.copyfile(original, part)
            part.replace(place)

    def _make_links(self) -> None:
        """Make the symbolic links whose targets are in the tree; links to links need several rounds."""
        waiting = self._links
        while waiting:
            later = [link for link in waiting if not self._make_link(*link)]
            if len(later) == len(waiting):
                parts, target = later[0]
                raise UnsafeArchiveError(
                    f"{self.archive}: {'/'.join(parts)!r} is a link to {target!r}, which is not in the archive; "
                    "nothing of it was unpacked"
                )
            waiting = later

    def _make_link(self, parts: tuple[str, ...], target: str) -> bool:
        """Whether the link could be made (or was, before this process)."""
        try:
            place = self._place(parts)
        except ValueError as e:
            raise UnsafeArchiveError(f"{self.archive}: the link {'/'.join(parts)!r}: {e}") from e
        if PurePosixPath(target).is_absolute() or "\\" in target or re.match(r"[A-Za-z]:", target):
            return False
        steps = list(parts[:-1])
        for step in PurePosixPath(target).parts:
            if step == "..":
                if not steps:
                    return False
                steps.pop()
                continue
            steps.append(step)
            # each folder on the way must be real, or ".." would mean something else to the system
            if self.tree.joinpath(*steps[:-1]).is_symlink():
                return False
        if not steps or not self.tree.joinpath(*steps).exists():
            return False
        if place.is_symlink():
            place.unlink()
        elif place.exists():
            raise UnsafeArchiveError(f"{self.archive}: {'/'.join(parts)!r} is a link and a file")
        place.symlink_to(target)
        return True


def _merge(source: Path, target: Path) -> None:
    """Move what is in one folder into another; what was moved before is no longer there to be moved."""
    target.mkdir(parents=True, exist_ok=True)
    with os.scandir(source) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        place = target / name
        if is_folder and place.is_dir():
            _merge(source / name, place)
        elif is_folder and place.exists():
            raise ArchiveError(f"{place} is a file, and the archive has a folder of that name; move it away")
        elif not is_folder and place.is_dir() and not place.is_symlink():
            raise ArchiveError(f"{place} is a folder, and the archive has a file of that name; move it away")
        else:
            (source / name).replace(place)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
