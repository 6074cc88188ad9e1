"""The index of one split: its records and their words, in one SQLite file under the cache root.

A million records take well under a minute once; afterwards the annotation file need not be read again. The file holds
the records compressed in blocks, a table of ids, answers and files, and a full-text index. It is written beside its
place and renamed, so an interrupted build leaves nothing that could be taken for an index; while it is built it needs
some tens of megabytes beyond what the data set needs itself.

It belongs to the content that it was made from: another size, time or checksum of an annotation file, and it is made
anew. Records that are drawn are not kept, only their words.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
import threading
import time
import urllib.parse
import weakref
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lavis
from lavis.app.browser.words import Query, searchable
from lavis.common import hub
from lavis.common.files import default_mode
from lavis.datasets.base import Dataset, Plan, Record
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.shown import answer_of, kind_of, texts_of
from lavis.datasets.tables import PackedRecords

FORMAT = 1
BLOCK = 64  # records compressed together
_BATCH = 4096  # records written together
_STALE = 3600.0  # seconds after which the rest of an interrupted build is removed
_KEPT = ("answer_list", "classnames", "classes")  # attributes of a data set that its classes need
_LONGEST = 100  # words; longer texts are counted together

Progress = Callable[[Iterable[Any], int], Iterable[Any]]  # wraps an iteration, given its length


# ---------------------------------------------------------------------------------------- what it belongs to
@dataclass(frozen=True)
class Stamp:
    """A file or folder that records come from, and what it was like."""

    path: str
    size: int
    modified_ns: int
    sha256: str  # "" of folders

    @classmethod
    def of(cls, path: Path) -> Stamp:
        state = path.stat()
        if path.is_dir():
            return cls(str(path), 0, state.st_mtime_ns, "")
        return cls(str(path), state.st_size, state.st_mtime_ns, hub.digest(path, "sha256"))

    def holds(self) -> bool:
        """Whether it is still like that: by size and time, else by content."""
        path = Path(self.path)
        try:
            state = path.stat()
        except OSError:
            return False
        size = 0 if path.is_dir() else state.st_size
        if (size, state.st_mtime_ns) == (self.size, self.modified_ns):
            return True
        return bool(self.sha256) and size == self.size and hub.digest(path, "sha256") == self.sha256


def _stamps(dataset: Dataset) -> list[Stamp]:
    paths = list(dataset.annotation_paths) or list(getattr(dataset.records, "paths", ()))
    if not paths and dataset.vis_root is not None and hasattr(dataset, "classes"):  # a folder per class
        folder = dataset.vis_root / dataset.split
        paths = [folder, *sorted(p for p in folder.iterdir() if p.is_dir())]
    return [Stamp.of(Path(p).absolute()) for p in paths]


def is_drawn(dataset: Dataset) -> bool:
    """Whether a split has no files at all: its records are made when they are looked at, always the same."""
    made = not isinstance(dataset.records, (list, PackedRecords)) and not getattr(
        dataset.records, "paths", ()
    )
    return dataset.vis_root is None and made and not dataset.annotation_paths


def place_of(cls: type[Dataset], plan: Plan, split: str) -> Path:
    """Where the index of a split lies."""
    files = [
        f"{hub.under_cache_root(s.storage).absolute()} {hub.under_cache_root(s.storage).is_file()}"
        for s in plan.sources.get(split, ())
    ]
    parts = (
        FORMAT,
        lavis.__version__,
        cls.__module__,
        cls.__qualname__,
        plan.type,
        split,
        plan.options,
        plan.vis_root,
    )
    key = hashlib.sha256(
        repr((parts, files, str(Path.cwd()) if plan.name == "own" else "")).encode()
    ).hexdigest()[:16]
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{plan.name}-{split}")[:80]
    return hub.cache_root() / "indexes" / "browse" / f"{safe}-{key}.sqlite"


# ---------------------------------------------------------------------------------------- opening
def existing_index(cls: type[Dataset], plan: Plan, split: str) -> Index | None:
    """The index of a split if there is one and its content is still the same."""
    path = place_of(cls, plan, split)
    if path.is_file():
        with contextlib.suppress(sqlite3.DatabaseError, KeyError, ValueError):  # damaged: made anew
            index = Index(path)
            if not index.meta["volatile"] and all(Stamp(**s).holds() for s in index.meta["stamps"]):
                return index
    return None


class _Connection:
    """A thread's connection, closed when the thread or the index is gone."""

    def __init__(self, address: str) -> None:
        self.database = sqlite3.connect(address, uri=True, check_same_thread=False)
        weakref.finalize(self, self.database.close)


class Index:
    """An index that is there; may be used by many threads.

    Attributes:
        count: records. meta: what is known about all of them (`statistics`, …).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        rows = self.rows("SELECT key, value FROM meta")
        self.meta: dict[str, Any] = {key: json.loads(value) for key, value in rows}
        if self.meta["format"] != FORMAT:
            raise ValueError(f"{path} has format {self.meta['format']}, expected {FORMAT}")
        self.count: int = self.meta["count"]

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """What a query gives."""
        if not hasattr(self._local, "connection"):
            # immutable: nobody writes to a finished index, so no locks are needed
            self._local.connection = _Connection(
                f"file:{urllib.parse.quote(str(self.path))}?mode=ro&immutable=1"
            )
        return self._local.connection.database.execute(sql, values).fetchall()

    def positions(self, query: Query, answer: str = "", kind: str = "") -> np.ndarray | None:
        """The records that fit, in order, (n,) int32; None: all of them."""
        parts: list[np.ndarray] = []
        wanted = " AND ".join(t.expression() for t in query.wanted)
        unwanted = " OR ".join(t.expression() for t in query.unwanted)
        if wanted:
            parts.append(self._matching(f"({wanted}) NOT ({unwanted})" if unwanted else wanted))
        elif unwanted:
            others = np.ones(self.count, dtype=bool)
            others[self._matching(unwanted)] = False
            parts.append(np.flatnonzero(others).astype(np.int32))
        for column, value in (("answer", answer), ("kind", kind)):
            if value:
                parts.append(self._numbers(f"SELECT position AS n FROM items WHERE {column} = ?", value))
        if not parts:
            return None
        found = parts[0]
        for part in parts[1:]:
            there = np.zeros(self.count, dtype=bool)
            there[part] = True
            found = found[there[found]]
        return np.sort(found)

    def _matching(self, expression: str) -> np.ndarray:
        return self._numbers("SELECT rowid AS n FROM texts WHERE texts MATCH ?", expression)

    def _numbers(self, sql: str, value: str) -> np.ndarray:
        """The column n of a query as numbers. As one text it comes four times as fast as row by row."""
        text = self.rows(f"SELECT group_concat(n) FROM ({sql})", (value,))[0][0]
        return np.fromstring(text or "", dtype=np.int32, sep=",")

    def items(self, positions: Sequence[int]) -> dict[int, tuple[str, str]]:
        """(id, kind) of some records."""
        marks = ",".join("?" * len(positions))
        found = self.rows(
            f"SELECT position, id, kind FROM items WHERE position IN ({marks})", list(positions)
        )
        return {position: (name, kind) for position, name, kind in found}

    def with_id(self, name: str) -> int | None:
        """The first record of an id."""
        found = self.rows("SELECT min(position) FROM items WHERE id = ?", (name,))
        return None if found[0][0] is None else int(found[0][0])

    def about(self, position: int, most: int = 50) -> list[int]:
        """The records about the same picture or clip."""
        sql = (
            "SELECT position FROM items WHERE media = (SELECT media FROM items WHERE position = ?) "
            "AND media != '' ORDER BY position LIMIT ?"
        )
        return [row[0] for row in self.rows(sql, (position, most))]

    def records(self) -> Sequence[Record] | None:
        """The records, read when they are asked for; None where they are not kept."""
        return KeptRecords(self) if self.meta["kept"] else None

    def block(self, number: int) -> list[Record]:
        """Records number·BLOCK to (number + 1)·BLOCK - 1."""
        content = self.rows("SELECT content FROM blocks WHERE number = ?", (number,))[0][0]
        return [json.loads(line) for line in zlib.decompress(content).split(b"\n")]

    def media(self) -> Iterator[tuple[int, str]]:
        """(position, names of pictures or clips, one a line) of all records, in order."""
        step = 50_000
        for start in range(0, self.count, step):
            sql = "SELECT position, media FROM items WHERE position >= ? AND position < ? ORDER BY position"
            yield from self.rows(sql, (start, start + step))


class KeptRecords(Sequence[Record]):
    """The records of an index as a sequence."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return self._index.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} records; there is no record {index}")
        number, place = divmod(int(index) % len(self), BLOCK)
        return self._index.block(number)[place]


def reopened(cls: type[Dataset], plan: Plan, split: str, index: Index) -> Dataset:
    """The data set of an index, fit for showing records (`picture`, `clip`, `media_names`).

    Where records are kept it is not loaded again: its class is given the records, and what its constructor would
    otherwise gather from all of them is left out.
    """
    records = index.records()
    if records is None or index.meta.get("packed"):
        return cls.load(split, plan)
    kind = _class_of(cls, index.meta["class"])
    dataset = kind.__new__(kind)
    root = index.meta["vis_root"]
    Dataset.__init__(
        dataset,
        records,
        split,
        vis_root=None if root is None else Path(root),
        options=plan.options,
        annotation_paths=[Path(s["path"]) for s in index.meta["stamps"]],
    )
    dataset.name = plan.name  # type: ignore[misc]
    for name, value in index.meta["attributes"].items():
        setattr(dataset, name, value)
    return dataset


def _class_of(cls: type[Dataset], name: str) -> type[Dataset]:
    """The class of this name among those that are loaded: a registered class may load its split as another one."""
    stack: list[type[Dataset]] = [Dataset]
    while stack:
        kind = stack.pop()
        if f"{kind.__module__}:{kind.__qualname__}" == name:
            return kind
        stack += kind.__subclasses__()
    return cls


# ---------------------------------------------------------------------------------------- building
_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE items(position INTEGER PRIMARY KEY, id TEXT, answer TEXT, kind TEXT, media TEXT);
CREATE TABLE blocks(number INTEGER PRIMARY KEY, content BLOB);
CREATE VIRTUAL TABLE texts USING fts5(words, content='', columnsize=0, tokenize='ascii');
"""
_INDEXES = """
CREATE INDEX items_id ON items(id);
CREATE INDEX items_answer ON items(answer) WHERE answer != '';
CREATE INDEX items_kind ON items(kind) WHERE kind != '';
CREATE INDEX items_media ON items(media) WHERE media != '';
"""


def build(dataset: Dataset, path: Path, progress: Progress | None = None) -> Index:
    """Write the index of a split; whatever stops it leaves an earlier index as it was.

    Args:
        dataset: the loaded split. path: from `place_of`. progress: wraps the records while they are read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for rest in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):  # another process may be removing it, too
            if time.time() - rest.stat().st_mtime > _STALE:
                rest.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        connection = sqlite3.connect(part)
        try:
            _fill(connection, dataset, progress)
        finally:
            connection.close()
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        part.chmod(default_mode())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return Index(path)


def _fill(connection: sqlite3.Connection, dataset: Dataset, progress: Progress | None) -> None:
    # a file that is not finished is thrown away, so nothing of it needs to survive a crash
    connection.executescript(
        "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;" + _TABLES
    )
    connection.execute("INSERT INTO texts(texts, rank) VALUES('hashsize', 33554432)")
    stamps = _stamps(dataset)
    drawn = is_drawn(dataset)
    kept = isinstance(dataset.records, (list, PackedRecords))
    lengths: dict[str, Counter[int]] = defaultdict(Counter)
    count = len(dataset.records)
    records: Iterable[tuple[bytes, Record]] = _each(dataset.records, kept)
    if progress is not None:
        records = progress(records, count)
    items: list[tuple[Any, ...]] = []
    texts: list[tuple[int, str]] = []
    lines: list[bytes] = []
    blocks: list[tuple[int, bytes]] = []

    def write() -> None:
        connection.executemany("INSERT INTO items VALUES(?, ?, ?, ?, ?)", items)
        connection.executemany("INSERT INTO texts(rowid, words) VALUES(?, ?)", texts)
        connection.executemany("INSERT INTO blocks VALUES(?, ?)", blocks)
        for batch in (items, texts, blocks):
            batch.clear()

    for position, (line, record) in enumerate(records):
        shown = texts_of(record)
        texts.append((position, searchable([text for _, text in shown])))
        for label, text in shown:
            lengths[label][min(text.count(" ") + 1, _LONGEST)] += 1
        names = "\n".join(dataset.media_names(record)) if dataset.vis_root is not None else _drawn_as(record)
        row = (id_of(dataset, record, position), answer_of(record), kind_of(record), names)
        items.append((position, *[_clean(text) for text in row]))
        if kept:
            lines.append(line)
            if len(lines) == BLOCK:
                blocks.append((position // BLOCK, zlib.compress(b"\n".join(lines), 1)))
                lines.clear()
        if len(items) == _BATCH:
            write()
    if lines:
        blocks.append((count // BLOCK, zlib.compress(b"\n".join(lines), 1)))
    write()
    connection.executescript(_INDEXES)
    meta = {
        "format": FORMAT,
        "count": count,
        "class": f"{type(dataset).__module__}:{type(dataset).__qualname__}",
        "vis_root": None if dataset.vis_root is None else str(dataset.vis_root),
        "packed": dataset.packed is not None,
        "kept": kept,
        "volatile": not stamps and not drawn,
        "stamps": [asdict(s) for s in stamps],
        "attributes": {k: list(vars(dataset)[k]) for k in _KEPT if vars(dataset).get(k)},
        "lengths": {label: dict(counter) for label, counter in lengths.items()},
        "answers": _top(connection, "answer"),
        "kinds": _top(connection, "kind"),
        "different": {
            column: connection.execute(f"SELECT count(DISTINCT {column}) FROM items WHERE {column} != ''").fetchone()[0]
            for column in ("answer", "kind", "media")
        },
    }  # fmt: skip
    connection.executemany("INSERT INTO meta VALUES(?, ?)", [(k, json.dumps(v)) for k, v in meta.items()])
    connection.commit()


def _each(records: Sequence[Record], kept: bool) -> Iterator[tuple[bytes, Record]]:
    """Records with their JSON, b"" for those that aren't kept."""
    packed = isinstance(records, PackedRecords)
    start = 0
    for position in range(len(records)):
        if packed:
            end = int(records.ends[position])  # type: ignore[attr-defined]
            line = records.bytes[start:end].tobytes()  # type: ignore[attr-defined]
            start = end
            yield line, json.loads(line)
        else:
            record = records[position]
            yield (json.dumps(record).encode() if kept else b""), record


def _top(connection: sqlite3.Connection, column: str, most: int = 60) -> list[tuple[str, int]]:
    sql = f"SELECT {column}, count(*) FROM items WHERE {column} != '' GROUP BY {column} ORDER BY 2 DESC, 1 LIMIT {most}"
    return [(name, count) for name, count in connection.execute(sql)]


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _drawn_as(record: Record) -> str:
    """What records about the same drawing have in common."""
    value: Any = record.get("image", record.get("video", record.get("images", "")))
    return value if isinstance(value, str) else "\n".join(map(str, value))


def id_of(dataset: Dataset, record: Record, position: int) -> str:
    """The id that people know a record by, and that predictions name."""
    if record.get("question_id") is not None:
        return str(record["question_id"])
    if isinstance(dataset, CaptionDataset) and not dataset.training:
        with contextlib.suppress(ValueError, KeyError):
            return str(dataset.image_id(position))
    return str(record.get("image_id", record.get("id", position)))
