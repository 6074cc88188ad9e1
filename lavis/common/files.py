"""Files and folders that are either complete or absent, whatever kills the process while they are written.

A file is written beside its place and renamed into it. A log is a file of JSON lines, of which only the
last can be torn. A folder is written beside its place under a name of its own, then swapped in by two renames;
`existing_folder` finishes a swap that was cut between them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def _sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable (a no-op where folders cannot be opened, as on Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_NO_PATH = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


def existing(text: str | Path) -> Path | None:
    """The file or folder that a text names, "~" expanded; None where there is none.

    Also of a text that can be no path at all, such as a sentence that is too long for one, or has a NUL in it.

    Raises:
        OSError: it can't be told, such as in a folder that may not be read.
    """
    try:
        path = Path(text).expanduser()
        path.stat()
    except OSError as e:
        if e.errno in _NO_PATH:
            return None
        raise
    except (ValueError, RuntimeError):  # a NUL, half of a pair of surrogates; a user who is not there
        return None
    return path


def is_file(text: str | Path) -> bool:
    """Whether a text names a file; see `existing`."""
    path = existing(text)
    return path is not None and path.is_file()


def is_folder(text: str | Path) -> bool:
    """Whether a text names a folder; see `existing`."""
    path = existing(text)
    return path is not None and path.is_dir()


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Add the path to an OSError that names none: a full disk is noticed by a write, which knows only a number."""
    try:
        yield
    except OSError as e:
        if e.filename is not None or e.errno is None:
            raise
        raise OSError(e.errno, e.strerror, str(path)) from e


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file atomically: readers see the old content or the new one, never a part.

    Args:
        path: target; its folder is made if missing.
        data: the whole content.

    Returns:
        The path written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a hidden temporary name in the same folder: os.replace is atomic only inside one file system
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with naming(path), os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        part.chmod(default_mode())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def default_mode() -> int:
    # mkstemp makes private files; results are meant to be read by whoever may read the folder
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file atomically; see `write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> Path:
    """Write a value as JSON atomically; see `write_bytes`.

    Raises:
        TypeError: the value holds something that JSON has no form for.
    """
    return write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def to_line(row: Mapping[str, Any]) -> str:
    """A row as one line of JSON, readable, with escapes only where a file's name is no UTF-8."""
    line = json.dumps(dict(row), ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(dict(row))
    return line


def printable(text: str) -> str:
    """The text with escapes for what is no UTF-8 (in names of files), so that it can be printed."""
    return text.encode(errors="backslashreplace").decode()


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object as one line.

    If a kill has left a torn last line, the new line starts on its own line, so only the torn one is lost.
    A line for which the disk has no room is not begun.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(dict(record), ensure_ascii=False).encode("utf-8") + b"\n"
    with (
        naming(path),
        path.open("ab+", buffering=0) as f,
    ):  # unbuffered: nothing is left to be written by close
        size = f.seek(0, os.SEEK_END)
        if size > 0:
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                line = b"\n" + line
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[f.write(rest) :]
        except OSError:
            f.truncate(size)
            raise


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; lines that a kill left torn (no valid JSON) are left out.

    Returns:
        The records in order; an empty list if the file does not exist.

    Raises:
        ValueError: a line is valid JSON but no object.
    """
    path = Path(path)
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors: a torn line
            continue
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, found {line[:60]!r}")
        records.append(record)
    return records


@contextlib.contextmanager
def locked(path: str | Path, busy: str = "", on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock file, so that one process at a time works on what it guards; a crash frees it.

    Args:
        path: the lock file, for example `<folder>/.lock`; its folder is made if missing. The file stays.
        busy: what to say when another process holds it, without waiting. "" waits for it instead.
        on_wait: called once before waiting.

    Raises:
        OSError: another process, or another holder in this one, has it, and `busy` says not to wait.
    """
    import filelock  # only commands that write need it

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if busy:
            raise OSError(busy) from None
        if on_wait is not None:
            on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


_DAY = 24 * 3600
_HOST = re.sub(r"[^\w-]", "-", socket.gethostname()) or "host"
_MARK = r"\.[\w-]+-\d+-[0-9a-f]{8}"  # host, process, a random number
_active: set[str] = set()  # marks of the folders that this process is writing


def _swaps(folder: Path) -> dict[str, tuple[Path, Path]]:
    """What writes of a folder have left beside it: {mark: (its `.new`, its `.old`)}; either may be absent.

    The empty mark is that of earlier versions.
    """
    pattern = re.compile(rf"{re.escape(folder.name)}({_MARK})?\.(?:new|old)")
    if not folder.parent.is_dir():
        return {}
    marks = {m[1] or "" for entry in os.scandir(folder.parent) if (m := pattern.fullmatch(entry.name))}
    return {mark: _beside(folder, mark) for mark in marks}


def _beside(folder: Path, mark: str) -> tuple[Path, Path]:
    return folder.with_name(f"{folder.name}{mark}.new"), folder.with_name(f"{folder.name}{mark}.old")


def _is_alive(mark: str, places: tuple[Path, Path]) -> bool:
    """Whether the process that writes under this mark is still at it; of other machines, whether it may be."""
    if mark in _active:
        return True
    if not mark:
        return False
    host, number, _ = mark[1:].rsplit("-", 2)
    pid = int(number)
    if host == _HOST and os.name != "nt":  # on Windows, kill(pid, 0) ends a process
        if pid == os.getpid():
            return False  # a process of that number before this one
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True
    ages = [time.time() - place.stat().st_mtime for place in places if place.exists()]
    return bool(ages) and min(ages) < _DAY


def existing_folder(folder: str | Path) -> Path | None:
    """The folder that `replace_folder` keeps at this place, after finishing a swap that was cut short.

    Returns:
        The complete folder, or None if none was ever completed.
    """
    folder = Path(folder)
    for wait in range(50):
        if folder.exists():
            return folder
        # `.old` appears only once `.new` is complete, so `.new` is the later of two complete folders
        cut = {mark: places for mark, places in _swaps(folder).items() if places[1].exists()}
        if not cut:
            return folder if folder.exists() else None  # a lone `.new` is a first write that was cut
        if wait < 40 and any(_is_alive(mark, places) for mark, places in cut.items()):
            time.sleep(0.05)  # its writer is between the two renames
            continue
        with contextlib.suppress(FileNotFoundError):  # another process finishes it, too
            new, old = max(cut.values(), key=lambda p: (p[0].exists(), p[1].stat().st_mtime))
            (new if new.exists() else old).rename(folder)
            _sync_folder(folder.parent)
    return folder if folder.exists() else None


def replace_folder(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Write a whole folder and put it in place of an earlier one; at any moment one complete folder exists.

    Several processes may do so at once: each writes under a name of its own, and the last one's folder stays.
    What killed ones have left is removed.

    Args:
        folder: the place.
        write: called with an empty folder to fill; whatever it raises leaves the earlier folder in place, and
            nothing beside it.

    Returns:
        The folder.
    """
    folder = Path(folder)
    existing_folder(folder)  # finish an earlier swap first: after this, what the dead have left is rubbish
    for mark, places in _swaps(folder).items():
        if mark and not _is_alive(mark, places):
            for rubbish in places:
                if rubbish.exists():
                    shutil.rmtree(rubbish, ignore_errors=True)
    mark = f".{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    new, old = _beside(folder, mark)
    _active.add(mark)
    try:
        new.mkdir(parents=True)
        write(new)
        for path in sorted(new.rglob("*")):
            if path.is_file():
                with naming(path), path.open("rb+") as f:
                    os.fsync(f.fileno())
        _sync_folder(new)
        _swap(folder, new, old)
    finally:
        _active.discard(mark)
        if new.exists():
            shutil.rmtree(new, ignore_errors=True)
    if old.exists():
        shutil.rmtree(old)
    return folder


def _swap(folder: Path, new: Path, old: Path) -> None:
    while True:
        with contextlib.suppress(
            FileNotFoundError
        ):  # there is none, or another process is between its renames
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            if old.exists():  # another process was faster: its folder is the earlier one now
                shutil.rmtree(old)
        else:
            break
    _sync_folder(folder.parent)


# The formats that images are opened in (Pillow's names), with the suffixes of their files. None starts another program.
IMAGE_FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif",),
    "QOI": (".qoi",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
}
# Suffixes; of clips in the order in which names without one are tried.
PICTURES = tuple(suffix for suffixes in IMAGE_FORMATS.values() for suffix in suffixes)
CLIPS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv", ".3gp", ".gif")
MEDIA = {"image": PICTURES, "video": CLIPS}  # by what a model sees


def is_clip(path: Path, sees: str) -> bool:
    """Whether a file is a clip, told by its suffix; what may be either (a GIF) or neither is what a model `sees`."""
    still, moves = (path.suffix.lower() in suffixes for suffixes in (PICTURES, CLIPS))
    return sees == "video" if still == moves else moves


def is_debris(name: str) -> bool:
    """Whether a file or folder is what macOS leaves beside others (`._photo.jpg`, `__MACOSX`): no image, whatever its
    suffix."""
    return name.startswith("._") or name == "__MACOSX"


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder, at any depth, what macOS leaves behind left out.

    Links to folders are followed. Each folder is read once, under its own name where it lies below `folder` itself,
    so links in a circle end. Folders that can't be read are left out with a warning.
    """
    seen: set[tuple[int, int]] = set()
    linked = [str(folder)]  # links come after all that lies there itself
    while linked:
        waiting = [linked.pop(0)]
        while waiting:
            place = waiting.pop()
            try:
                stamp = Path(place).stat()
                if (stamp.st_dev, stamp.st_ino) in seen:
                    continue
                seen.add((stamp.st_dev, stamp.st_ino))
                with os.scandir(place) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError as e:
                logger.warning(
                    "the folder %s cannot be read (%s); it is left out", printable(place), e.strerror
                )
                continue
            for entry in entries:
                if is_debris(entry.name):
                    continue
                try:
                    if entry.is_dir():
                        (linked if entry.is_symlink() else waiting).append(entry.path)
                    elif entry.is_file():
                        yield Path(entry.path)
                except OSError:  # a link to itself
                    continue


def media_in(folder: Path, kind: str = "image") -> Iterator[Path]:
    """The images ("image") or videos ("video") of a folder, told by their suffixes; see `files_below`."""
    return (p for p in files_below(folder) if p.suffix.lower() in MEDIA[kind])
