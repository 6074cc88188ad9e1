"""Annotation files and tables: JSON, JSONL, CSV, TSV; every complaint names file and line."""

from __future__ import annotations

import codecs
import contextlib
import csv
import functools
import io
import json
import math
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
_UNSEEN = "\ufeff\u200b\u2060\u180e"  # blanks that str.strip leaves: byte-order mark, spaces of no width
_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
_DEEPEST = 64  # levels of lists and objects in a row of a table
_ENCODINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
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


def stripped(text: str) -> str:
    """The text without blanks at its ends: white space of Unicode, byte-order marks, spaces of no width."""
    while (shorter := text.strip().strip(_UNSEEN)) != text:
        text = shorter
    return text


def as_number(name: str) -> int | str:
    """An id that is written as whole numbers of 64 bits are as such. Any other, "007" too, stays as it is: ids are
    opaque."""
    return int(name) if _WHOLE.fullmatch(name) and len(name) < 19 else name


def refuse_strange_characters(where: str, text: str) -> None:
    """
    Raises:
        ValueError: the text holds a NUL, or half of a surrogate pair, which no file and no terminal takes.
    """
    if "\0" in text:
        raise ValueError(f"{where} holds a NUL character: {text[:40]!r}; take it out")
    if _SURROGATE.search(text):
        raise ValueError(
            f"{where} holds half of a surrogate pair: {text[:40]!a}; the text was cut within a character, or "
            "written with a wrong encoding"
        )


# ---------------------------------------------------------------------- JSON
def _unique(pairs: list[tuple[str, Any]]) -> Record:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} is given twice")
            seen.add(key)
    return row


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


# NaN and Infinity are how programs write a missing number; JSON itself has neither.
_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=lambda name: None)


def decode_json(text: str, place: int = 0) -> tuple[Any, int]:
    """The JSON value at a place of a text, and where it ends. NaN and Infinity are None.

    Raises:
        json.JSONDecodeError: it is not valid, or a key is there twice, a number is too long, lists lie too deep; then
            the error has a cause, and its place is the value's beginning.
    """
    try:
        return _DECODER.raw_decode(text, place)
    except json.JSONDecodeError:
        raise
    except RecursionError as e:
        raise json.JSONDecodeError("lists or objects are nested too deeply", text, place) from e
    except ValueError as e:
        twice = "twice" in str(e)
        raise json.JSONDecodeError(str(e) if twice else "a number has too many digits", text, place) from e


def _said(e: json.JSONDecodeError) -> str:
    return e.msg if e.__cause__ is not None else f"not valid JSON ({e.msg} at column {e.colno})"


def _depth(value: Any) -> int:
    """How deep lists and objects lie in one another, as far as that is of interest."""
    depth, layer = 0, [value]
    while layer and depth <= _DEEPEST:
        inner = [v for v in layer if isinstance(v, (list, dict))]
        layer = [w for v in inner for w in (v.values() if isinstance(v, dict) else v)]
        depth += bool(inner)
        if not inner:
            break
    return depth


def _refuse_strange_json(value: Any, text: str, start: int, end: int) -> None:
    """What a table's row may not hold; looked for only where the text gives reason to.

    Raises:
        json.JSONDecodeError: as `decode_json`, with a cause.
    """
    try:
        if text.count("[", start, end) + text.count("{", start, end) > _DEEPEST and _depth(value) > _DEEPEST:
            raise ValueError("lists or objects are nested too deeply")
        if text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0:
            refuse_strange_characters("it", json.dumps(value, ensure_ascii=False))
    except ValueError as e:
        raise json.JSONDecodeError(str(e), text, start) from e


def read_json(path: Path) -> Any:
    """The content of a JSON file. NaN and Infinity are None.

    Raises:
        ValueError: it is not valid JSON, or a key is given twice; the message names file and line.
    """
    return _parsed(path, read_text(path))


def _parsed(path: Path, text: str) -> Any:
    try:
        value, end = decode_json(text, _space(text, 0))
        if (end := _space(text, end)) != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value
    except json.JSONDecodeError as e:
        # of what is found within a value only the value's beginning is known, here the file's
        where = f"{path}, line {e.lineno}" if e.__cause__ is None else str(path)
        raise ValueError(f"{where}: {_said(e)}") from e


def read_records(*paths: Path) -> PackedRecords:
    """Read annotation files, one after another: each a JSON list of objects, or one JSON object per line.

    Raises:
        ValueError: a file is neither; the message names file and line.
    """
    return PackedRecords(row for path in paths for row in _rows_of(path))


def _rows_of(path: Path) -> Iterator[Record]:
    text = read_text(path)
    rows = _json_rows if text.lstrip().startswith("[") else _json_lines
    for _, row in rows(path, text, False):
        yield row


def read_table(path: str | Path) -> list[tuple[int, Record]]:
    """Read a table.

    Args:
        path: a .jsonl, .json, .csv or .tsv file in UTF-8 (a byte-order mark, CRLF and blank lines are fine).

    Returns:
        (line number, row) pairs; in a JSON list the number is the row's place, from 1. Empty cells of CSV
        and TSV are None, and so are NaN and Infinity in JSON. Columns without a name are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, encoding or syntax, a column or key given twice; the message names file and line.
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
    text = read_text(path)
    kind = path.suffix.lower()
    if kind == ".json":
        rows = _json_rows(path, text, True)
    elif kind in (".csv", ".tsv"):
        rows = _separated_rows(path, text, "\t" if kind == ".tsv" else ",")
    else:
        rows = _json_lines(path, text, True)
    numbers = array("q")

    def numbered() -> Iterator[Record]:
        for number, row in rows:
            numbers.append(number)
            yield row

    packed = PackedRecords(numbered())
    if not numbers:
        raise ValueError(f"{path} has no rows")
    return numbers, packed


def read_text(path: Path) -> str:
    """The content of a file in UTF-8, without its byte-order mark.

    Raises:
        ValueError: another encoding, or NUL bytes; the message names file and line.
    """
    data = path.read_bytes()
    for mark, name in _ENCODINGS:
        if data.startswith(mark):
            raise ValueError(f"{path}, line 1: this is {name}, not UTF-8; save the file as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({e.reason}); save the file as UTF-8") from e
    at = text.find("\0")
    if at >= 0:
        line = text.count("\n", 0, at) + 1
        raise ValueError(
            f"{path}, line {line}: holds a NUL byte; it is damaged, or not UTF-8: save the file as UTF-8"
        )
    return text


def _json_lines(path: Path, text: str, strict: bool) -> Iterator[tuple[int, Record]]:
    # Not splitlines: JSON strings may hold other line separators of Unicode.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.lstrip("\ufeff")  # of files that were joined
        if not line.strip():
            continue
        try:
            row, end = decode_json(line, _space(line, 0))
            if _space(line, end) != len(line):
                raise json.JSONDecodeError("Extra data", line, end)
            if strict:
                _refuse_strange_json(row, line, 0, end)
        except json.JSONDecodeError as e:
            each = "" if e.__cause__ is not None else "; each line should be one JSON object"
            raise ValueError(f"{path}, line {number}: {_said(e)}{each}") from e
        yield number, _row(f"{path}, line {number}", row)


def _json_rows(path: Path, text: str, strict: bool) -> Iterator[tuple[int, Record]]:
    begin = _space(text, 0)
    if text[begin : begin + 1] != "[":
        rows = _parsed(path, text)
        raise ValueError(f"{path} should hold a JSON list of objects, not {type(rows).__name__}")
    try:
        for number, (row, start, end) in enumerate(_elements(text, begin + 1), 1):
            if strict:
                _refuse_strange_json(row, text, start, end)
            yield number, _row(f"{path}, record {number}", row)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}, line {e.lineno}: {_said(e)}") from e


def _elements(text: str, place: int) -> Iterator[tuple[Any, int, int]]:
    """The elements of a JSON list with where they begin and end, one by one: a million of them at once would take a
    gigabyte."""
    place = _space(text, place)
    if text[place : place + 1] != "]":
        while True:
            element, end = decode_json(text, place)
            yield element, place, end
            place = _space(text, end)
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
        if not any(map(stripped, fields)):
            continue
        if not header:
            header = [stripped(f) for f in fields]
            twice = next((name for name in header if name and header.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{path}, line {reader.line_num}: the column {twice!r} is given twice")
            continue
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {reader.line_num}: {len(fields)} fields, but the header has {len(header)} "
                f"({', '.join(header)}); put texts that contain the separator in double quotes"
            )
        yield reader.line_num, {k: v if stripped(v) else None for k, v in zip(header, fields) if k}
