"""Files and folders that are either complete or absent, whatever kills the process while they are written.

A file is written beside its place and renamed into it. A log is a file of JSON lines, of which only the
last can be torn. A folder is written beside its place, then swapped in by two renames; `existing_folder`
finishes a swap that was cut between them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any


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
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        part.chmod(default_mode())
        part.replace(path)
    except OSError as e:
        raise named(e, path) from e
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def named(error: OSError, path: Path) -> OSError:
    """The error with the file that it is about; the system does not name it where a disk is full."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, os.strerror(error.errno), str(path))


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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(dict(record), ensure_ascii=False).encode("utf-8") + b"\n"
    with path.open("ab+") as f:
        if f.seek(0, os.SEEK_END) > 0:
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                line = b"\n" + line
        f.write(line)


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


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def existing_folder(folder: str | Path) -> Path | None:
    """The folder that `replace_folder` keeps at this place, after finishing a swap that was cut short.

    Returns:
        The complete folder, or None if none was ever completed.
    """
    folder = Path(folder)
    new, old = _beside(folder, ".new"), _beside(folder, ".old")
    if folder.exists():
        return folder
    if old.exists():
        # `.old` appears only once `.new` is complete, so `.new` is the later of two complete folders
        (new if new.exists() else old).rename(folder)
        _sync_folder(folder.parent)
        return folder
    return None  # a lone `.new` is a first write that was cut: nothing complete exists


def replace_folder(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Write a whole folder and put it in place of an earlier one; at any moment one complete folder exists.

    Args:
        folder: the place.
        write: called with an empty folder to fill; whatever it raises leaves the earlier folder in place.

    Returns:
        The folder.
    """
    folder = Path(folder)
    existing_folder(folder)  # finish an earlier swap first: after this, `.new` and `.old` are rubbish
    new, old = _beside(folder, ".new"), _beside(folder, ".old")
    for rubbish in (new, old):
        if rubbish.exists():
            shutil.rmtree(rubbish)
    new.mkdir(parents=True)
    try:
        write(new)
        for path in sorted(new.rglob("*")):
            if path.is_file():
                with path.open("rb+") as f:
                    os.fsync(f.fileno())
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # such as half of the weights on a full disk
        raise
    _sync_folder(new)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    _sync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)
    return folder


# Suffixes; of clips in the order in which names without one are tried.
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
CLIPS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv", ".3gp", ".gif")
MEDIA = {"image": PICTURES, "video": CLIPS}  # by what a model sees


def is_clip(path: Path, sees: str) -> bool:
    """Whether a file is a clip, told by its suffix; what may be either (a GIF) or neither is what a model `sees`."""
    still, moves = (path.suffix.lower() in suffixes for suffixes in (PICTURES, CLIPS))
    return sees == "video" if still == moves else moves


def media_in(folder: Path, kind: str = "image") -> Iterator[Path]:
    """The pictures ("image") or clips ("video") of a folder, at any depth, told by their suffixes."""
    return (p for p in folder.rglob("*") if p.suffix.lower() in MEDIA[kind] and p.is_file())
