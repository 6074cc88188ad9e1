"""The file of `--out`: the rows of many inputs. A command that was interrupted goes on writing it.

    captions.jsonl              the rows, in the order of the inputs
    .captions.jsonl.progress    JSON lines: the command's settings, then one line per input whose rows are there
    .captions.jsonl.lock        held while a command writes

The rows of a batch are on the disk before the lines that count them, so what a kill can leave is an end of the file
that is not counted; it is cut off, and its inputs are done again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, Protocol

from lavis.common.files import append_jsonl, existing, locked, naming, read_jsonl, to_line, write_bytes

_COPIED = 1 << 20  # bytes at a time
Rows = Sequence[tuple[Path, str]]  # of each input, its lines


class Target(Protocol):
    """What rows are written to."""

    def todo(self, paths: Sequence[Path]) -> list[Path]:
        """The inputs that are to be done."""
        ...

    def write(self, rows: Rows) -> None:
        """Write the rows of a batch, durably."""
        ...

    def finish(self, paths: Sequence[Path]) -> None:
        """All inputs have been gone through."""
        ...


@dataclass(frozen=True)
class _Done:
    """Where an input's rows lie in the file, and the size and time of change that the input had."""

    start: int
    end: int
    stamp: tuple[int, int] | None


class Results:
    """A file of rows that is being written; see `results`."""

    def __init__(self, out: Path, file: RawIOBase, done: dict[Path, _Done], end: int) -> None:
        self._out, self._file, self._done, self._end = out, file, done, end
        self._stamps: dict[Path, tuple[int, int] | None] = {}

    def todo(self, paths: Sequence[Path]) -> list[Path]:
        """Inputs without rows, and those that have changed since."""
        # taken before they are read: what changes meanwhile is seen the next time
        self._stamps = {path: _stamp(path) for path in paths}
        return [p for p in paths if p not in self._done or self._done[p].stamp != self._stamps[p]]

    def write(self, rows: Rows) -> None:
        content, end = b"", self._end
        added: dict[Path, _Done] = {}
        for path, lines in rows:
            data = lines.encode()
            content += data
            added[path] = _Done(end, end + len(data), self._stamps[path])
            end += len(data)
        with _progress_of(self._out).open("ab", buffering=0) as progress:
            before = progress.tell()
            try:
                with naming(self._out):
                    _write_all(self._file, content)
                    os.fsync(self._file.fileno())
                    _write_all(progress, "".join(_line(p, d) + "\n" for p, d in added.items()).encode())
            except OSError:
                # such as a full disk: what is counted stays, and no torn line
                with contextlib.suppress(OSError):
                    progress.truncate(before)
                    self._file.truncate(self._end)
                raise
        self._end = end
        self._done |= added

    def finish(self, paths: Sequence[Path]) -> None:
        """Put the rows in the order of the inputs, without those of changed ones, if they are not that already."""
        others = self._done.keys() - set(paths)
        order = [p for p in self._done if p in others] + [p for p in paths if p in self._done]
        at = 0
        for path in order:
            if self._done[path].start != at:
                break
            at = self._done[path].end
        if at != self._end:
            self._rewrite(order)
        append_jsonl(_progress_of(self._out), {"complete": self._end})

    def _rewrite(self, order: Sequence[Path]) -> None:
        progress, new = _progress_of(self._out), _hidden(self._out, ".new")
        settings = to_line(read_jsonl(progress)[0])
        at, moved = 0, {}
        try:
            with self._out.open("rb") as source, new.open("wb") as f:
                for path in order:
                    old = self._done[path]
                    source.seek(old.start)
                    left = old.end - old.start
                    while left:
                        piece = source.read(min(_COPIED, left))
                        left -= f.write(piece)
                    moved[path] = _Done(at, f.tell(), old.stamp)
                    at = f.tell()
                f.flush()
                os.fsync(f.fileno())
            # without its progress a file is never taken for one of another state
            progress.unlink()
            new.replace(self._out)
        finally:
            new.unlink(missing_ok=True)
        lines = [settings, *(_line(path, done) for path, done in moved.items())]
        write_bytes(progress, ("\n".join(lines) + "\n").encode())
        self._done, self._end = moved, at


class Printed:
    """Standard output."""

    def todo(self, paths: Sequence[Path]) -> list[Path]:
        return list(paths)

    def write(self, rows: Rows) -> None:
        print("".join(lines for _, lines in rows), end="", flush=True)

    def finish(self, paths: Sequence[Path]) -> None:
        pass


class _Plain:
    """A pipe or a device, of which nothing is known."""

    def __init__(self, out: Path, file: RawIOBase) -> None:
        self._out, self._file = out, file

    def todo(self, paths: Sequence[Path]) -> list[Path]:
        return list(paths)

    def write(self, rows: Rows) -> None:
        with naming(self._out):
            _write_all(self._file, "".join(lines for _, lines in rows).encode())

    def finish(self, paths: Sequence[Path]) -> None:
        pass


@contextlib.contextmanager
def results(out: Path, settings: Mapping[str, Any], overwrite: bool = False) -> Iterator[Results | _Plain]:
    """Open a file for rows: a new one, or one that the same command with the same settings has begun.

    Args:
        out: the file; its folder is made.
        settings: what decides the rows beside the inputs.
        overwrite: begin anew whatever is there.

    Raises:
        ValueError: there is a file of other settings or of something else; it is not touched.
        OSError: another process is writing it, or it can't be written.
    """
    out = out.expanduser()
    found = existing(out)
    if found is not None and found.is_dir():
        raise IsADirectoryError(f"--out {out} is a folder; name a file")
    if found is not None and not found.is_file():
        with out.open("wb", buffering=0) as f:
            yield _Plain(out, f)
        return
    if out.is_symlink():
        out = out.resolve()
    settings = json.loads(to_line(settings))  # as they will be read again
    busy = f"{out} is being written by another process; wait for it, or name another file"
    with locked(_hidden(out, ".lock"), busy):
        done, end = ({}, 0) if overwrite else _begun(out, settings)
        lines = [to_line({"settings": settings}), *(_line(path, each) for path, each in done.items())]
        write_bytes(_progress_of(out), ("\n".join(lines) + "\n").encode())
        try:
            with out.open("r+b" if done else "wb", buffering=0) as file:
                if file.seek(0, os.SEEK_END) != end:  # torn by a kill
                    file.truncate(end)
                file.seek(end)
                yield Results(out, file, done, end)
        finally:
            if not done and out.is_file() and out.stat().st_size == 0:  # nothing came of it
                out.unlink()
                _progress_of(out).unlink(missing_ok=True)


def _begun(out: Path, settings: Mapping[str, Any]) -> tuple[dict[Path, _Done], int]:
    """What of a file is done, and where that ends.

    Raises:
        ValueError: it is not this command's.
    """
    size = out.stat().st_size if out.is_file() else 0
    if size == 0:
        return {}, 0
    instead = f"name another file with --out, or replace {out} with --overwrite"
    lines = read_jsonl(_progress_of(out))
    before = lines[0].get("settings") if lines else None
    if not isinstance(before, dict):
        raise ValueError(f"{out} is there already, and this command has not begun it; {instead}")
    if before != settings:
        keys = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
        what = ", ".join(
            f"{k} {_short(before.get(k))}, not {_short(settings.get(k))}" for k in keys if k != "fingerprint"
        )
        raise ValueError(f"{out} holds results of {what or 'other weights'}; {instead}")
    done: dict[Path, _Done] = {}
    at = 0
    for line in lines[1:]:
        if isinstance(line.get("input"), str) and isinstance(line.get("end"), int) and line["end"] >= at:
            stamp = line.get("stamp")
            done[Path(line["input"])] = _Done(at, line["end"], None if stamp is None else tuple(stamp))
            at = line["end"]
    complete = "complete" in lines[-1]
    if at > size or (complete and at != size) or not _ends_a_line(out, at):
        raise ValueError(f"{out} was changed by something else than this command; {instead}")
    return done, at


def _ends_a_line(out: Path, at: int) -> bool:
    if at == 0:
        return True
    with out.open("rb") as f:
        f.seek(at - 1)
        return f.read(1) == b"\n"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]} …"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _line(path: Path, done: _Done) -> str:
    return to_line({"input": str(path), "stamp": done.stamp, "end": done.end})


def _write_all(file: RawIOBase, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


def _hidden(out: Path, suffix: str) -> Path:
    return out.with_name(f".{out.name}{suffix}")


def _progress_of(out: Path) -> Path:
    return _hidden(out, ".progress")
