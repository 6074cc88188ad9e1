"""Annotation files and tables: JSON, JSONL, CSV, TSV; every complaint names file and line."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import multiprocessing
import os
import re
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

Record = dict[str, Any]
_WHITE = re.compile(r"[ \t\n\r]*")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")


class PackedRecords(Sequence[Record]):
    """Records as JSON in one array of bytes, parsed when asked for.

    A list of a million dicts grows to its full size again in each of a loader's workers, because reading a Python
    object writes its reference count; this array stays shared. Workers that are started instead of forked read it
    from a temporary file, which is gone when the records are.
    """

    _file: Path | None = None

    def __init__(self, records: Iterable[Record]) -> None:
        whole, ends = bytearray(), array("q")
        for record in records:
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            whole += text.encode(
                "utf-8", "surrogatepass"
            )  # JSON can hold halves of pairs, and json.loads takes them
            ends.append(len(whole))
        self.bytes = np.frombuffer(bytes(whole), dtype=np.uint8)
        self.ends = np.frombuffer(ends, dtype=np.int64)  # where each record ends

    def __reduce__(self) -> Any:
        starting = multiprocessing.context.get_spawning_popen() is not None
        if not starting or not len(self.bytes):
            return _restored, (self.bytes, self.ends)
        if self._file is None:
            handle, name = tempfile.mkstemp(prefix="lavis-records-")
            with os.fdopen(handle, "wb") as f:
                f.write(self.bytes.data)
            self._file = Path(name)
            weakref.finalize(self, _remove, self._file, os.getpid())
        return _restored, (self._file, self.ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"there are {n} records; there is no record {index}")
        index %= n
        start = self.ends[index - 1] if index else 0
        record: Record = json.loads(self.bytes[start : self.ends[index]].tobytes())
        return record

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedRecords):
            return np.array_equal(self.ends, other.ends) and np.array_equal(self.bytes, other.bytes)
        return isinstance(other, list) and list(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self)} records, {self.bytes.nbytes / 2**20:.1f} MiB>"


def _restored(content: np.ndarray | Path, ends: np.ndarray) -> PackedRecords:
    records = PackedRecords(())
    if isinstance(content, Path):
        content = np.memmap(content, dtype=np.uint8, mode="r")
    records.bytes, records.ends = content, ends
    return records


def _remove(path: Path, process: int) -> None:
    if os.getpid() != process:
        return  # a forked worker let its copy go; others still read the file
    # a system that keeps files which are being read cleans its temporary folder itself
    with contextlib.suppress(OSError):
        path.unlink()


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not valid JSON; the message names file and line.
    """
    return _parsed(path, _decoded(path))


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}, line {e.lineno}: not valid JSON ({e.msg})") from e


def read_records(*paths: Path) -> PackedRecords:
    """Read annotation files, one after another: each a JSON list of objects, or one JSON object per line.

    Raises:
        ValueError: a file is neither; the message names file and line.
    """
    return PackedRecords(row for path in paths for row in _rows_of(path))


def _rows_of(path: Path) -> Iterator[Record]:
    text = _decoded(path)
    rows = _json_rows if text.lstrip().startswith("[") else _json_lines
    for _, row in rows(path, text):
        yield row


def read_table(path: str | Path) -> list[tuple[int, Record]]:
    """Read a table.

    Args:
        path: a .jsonl, .json, .csv or .tsv file in UTF-8 (a byte-order mark, CRLF and blank lines are fine).

    Returns:
        (line number, row) pairs; in a JSON list the number is the row's place, from 1. Empty cells of CSV
        and TSV are None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, encoding or syntax; the message names file and line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no data file {path}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: the suffix should be one of {', '.join(SUFFIXES)}, not {path.suffix!r}")
    stamp = path.stat()
    numbers, rows = _read_table(path, (stamp.st_mtime_ns, stamp.st_size))
    return list(zip(numbers, rows, strict=True))


@functools.lru_cache(maxsize=4)  # splits are built one by one, often from the same file
def _read_table(path: Path, stamp: tuple[int, int]) -> tuple[array[int], PackedRecords]:
    text = _decoded(path)
    kind = path.suffix.lower()
    if kind == ".json":
        rows = _json_rows(path, text)
    elif kind in (".csv", ".tsv"):
        rows = _separated_rows(path, text, "\t" if kind == ".tsv" else ",")
    else:
        rows = _json_lines(path, text)
    numbers = array("q")

    def numbered() -> Iterator[Record]:
        for number, row in rows:
            numbers.append(number)
            yield row

    packed = PackedRecords(numbered())
    if not numbers:
        raise ValueError(f"{path} has no rows")
    return numbers, packed


def _decoded(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({e.reason}); save the file as UTF-8") from e


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    # Not splitlines: JSON strings may hold other line separators of Unicode.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise ValueError(
                f"{path}, line {number}: not valid JSON ({e.msg} at column {e.colno}); each line should be "
                "one JSON object"
            ) from e
        yield number, _row(f"{path}, line {number}", row)


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    start = _space(text, 0)
    if text[start : start + 1] != "[":
        rows = _parsed(path, text)
        raise ValueError(f"{path} should hold a JSON list of objects, not {type(rows).__name__}")
    try:
        for number, row in enumerate(_elements(text, start + 1), 1):
            yield number, _row(f"{path}, record {number}", row)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}, line {e.lineno}: not valid JSON ({e.msg})") from e


def _elements(text: str, place: int) -> Iterator[Any]:
    """The elements of a JSON list, one by one: a million of them at once would take a gigabyte."""
    decode = json.JSONDecoder().raw_decode
    place = _space(text, place)
    if text[place : place + 1] != "]":
        while True:
            element, place = decode(text, place)
            yield element
            place = _space(text, place)
            if text[place : place + 1] != ",":
                break
            place = _space(text, place + 1)
    if text[place : place + 1] != "]":
        raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
    end = _space(text, place + 1)
    if end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _space(text: str, place: int) -> int:
    """The place of the next character that is no white space."""
    match = _WHITE.match(text, place)
    assert match is not None
    return match.end()


def _row(where: str, row: Any) -> Record:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: should be a JSON object, not {type(row).__name__} {str(row)[:40]!r}")
    return row


def _separated_rows(path: Path, text: str, separator: str) -> Iterator[tuple[int, Record]]:
    # newline="": csv handles CRLF itself, and quoted fields may hold newlines.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as e:
            raise ValueError(f"{path}, line {reader.line_num}: {e}; is a quote open or misplaced?") from e
        if fields is None:
            return
        if not any(f.strip() for f in fields):
            continue
        if not header:
            header = [f.strip() for f in fields]
            continue
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has {len(header)} "
                f"({', '.join(header)}); put texts that contain the separator in double quotes"
            )
        yield reader.line_num, {k: v if v.strip() else None for k, v in zip(header, fields)}
