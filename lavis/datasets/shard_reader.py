"""Reading shards: which archives a pattern names, where their samples lie, and the bytes of a sample.

Each archive is read through once; what was found is kept in the cache. After that a sample is one read at a known
place, by any number of threads and processes at once. `shards.py` has the data set, `shard_writer.py` writes them.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import logging
import os
import re
import tarfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lavis.common import hub
from lavis.common.files import PICTURES, write_bytes
from lavis.common.images import UnreadableMediaError
from lavis.datasets.tables import PackedRecords, Record, read_records

logger = logging.getLogger(__name__)

IMAGES = tuple(suffix.removeprefix(".") for suffix in PICTURES)  # the first of them that a sample has is read
TEXTS = ("json", "txt")
_LAYOUT = 2  # of what is kept in the cache; another one is read anew
_MOST_OPEN = 128  # archives that a process keeps open
# What is no part of a sample: folders of macOS and of old programs that unpacked extended headers as files.
_DEBRIS = re.compile(r"(^|/)(__MACOSX|PaxHeaders?(\.[^/]*)?)(/|$)")

Stamp = tuple[int, int, int]  # what tells an archive from one that took its place: inode, size, time


def stamp_of(path: Path) -> Stamp:
    """See `Stamp`."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


# ------------------------------------------------------------------------------------- which archives
def expand(pattern: str) -> list[Path]:
    """The archives that a pattern names, in order.

    Raises:
        FileNotFoundError: none is there, or one that the pattern names by its number is missing.
    """
    found: list[Path] = []
    missing: list[Path] = []
    for name in _braces(pattern):
        path = hub.under_cache_root(name)
        if path.is_dir():
            found += sorted(path.glob("*.tar"))
        elif any(c in name for c in "*?["):
            found += sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor or "."))))
        else:
            (found if path.is_file() else missing).append(path)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FileNotFoundError(
            f"{pattern}: {len(missing)} archives are missing: {', '.join(map(str, missing[:3]))}{more}"
        )
    if not found:
        raise FileNotFoundError(
            f"{pattern} names no archive (.tar) under {hub.under_cache_root('.').absolute()}"
        )
    return found


def _braces(pattern: str) -> Iterator[str]:
    """`a{00..02}` as a00, a01, a02; `{x,y}` as x, y."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = []
    for i, part in enumerate(parts):
        span = re.fullmatch(r"(\d+)\.\.(\d+)", part) if i % 2 else None
        if span:
            first, last = span.groups()
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(",") if i % 2 else [part])
    return ("".join(each) for each in itertools.product(*choices))


# ------------------------------------------------------------------------------------- what is in one
# Of each sample: place and size (bytes) of its picture, then of its text.
Index = np.ndarray  # (N, 4) int64, and a fifth column: 1 for JSON, 0 for plain text


def index_of(path: Path) -> Index:
    """Where an archive's samples begin, (N, 5); read once and kept in the cache.

    Raises:
        ValueError: it is compressed, or no tar archive.
    """
    _, size, time = stamp_of(path)
    key = f"{path.absolute()}|{size}|{time}|{_LAYOUT}"
    kept = hub.cache_root() / "indexes" / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    if kept.is_file():
        index: Index = np.load(kept, allow_pickle=False)
        return index
    index = scan(path)
    buffer = io.BytesIO()
    np.save(buffer, index, allow_pickle=False)
    write_bytes(kept, buffer.getvalue())
    return index


def scan(path: Path) -> Index:
    """Read an archive's headers; samples without an image or without a text are left out.

    What macOS puts between the members (`._0.jpg`) is passed over. Where a sample has both texts and its JSON holds no
    caption, the plain one is taken.
    """
    rows: list[tuple[int, ...]] = []
    parts: dict[str, tuple[int, int]] = {}
    name, left_out = None, 0

    def close() -> int:
        picture = next((parts[s] for s in IMAGES if s in parts), None)
        text = next((s for s in TEXTS if s in parts), None)
        if text == "json" and "txt" in parts and not _has_caption(read_part(path, *parts["json"])):
            text = "txt"  # the JSON is about other things
        if picture is None or text is None:
            return int(bool(parts))
        rows.append((*picture, *parts[text], int(text == "json")))
        return 0

    end = path.stat().st_size
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                if not member.isfile() or member.offset_data + member.size > end:
                    continue
                folder, _, file = member.name.rpartition("/")
                if file.startswith(".") or _DEBRIS.search(folder):
                    continue  # `._0.jpg`, `.DS_Store`: without a name up to the first dot
                stem, _, suffix = file.partition(".")
                if f"{folder}/{stem}" != name:
                    left_out += close()
                    name, parts = f"{folder}/{stem}", {}
                parts[suffix.lower()] = (member.offset_data, member.size)
    except tarfile.ReadError as e:
        if not rows and not parts:
            raise ValueError(
                f"{path} is no tar archive that can be read at any place ({e}); compressed ones have to be unpacked"
            ) from e
        logger.warning("%s is cut off (%s); the %d samples before are used", path, e, len(rows))
    left_out += close()
    if left_out:
        logger.warning("%s: %d samples without an image or without a text are left out", path, left_out)
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


class ShardRecords(Sequence[Record]):
    """The samples of archives as records: `image` (where it lies), `caption`, `image_id`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.stamps = {path: stamp_of(path) for path in self.paths}  # before they are read
        indexes = [index_of(path) for path in self.paths]
        self.table = np.concatenate(indexes)  # (N, 5)
        self.ends = np.cumsum([len(index) for index in indexes])

    def __len__(self) -> int:
        return len(self.table)

    def row(self, number: int) -> tuple[Path, int, int, int, int, int]:
        """The archive of a sample, and its row of the index."""
        if not 0 <= number < len(self):
            raise IndexError(f"there are {len(self)} samples; there is no sample {number}")
        path = self.paths[int(np.searchsorted(self.ends, number, side="right"))]
        start, size, text_start, text_size, is_json = (int(n) for n in self.table[number])
        return path, start, size, text_start, text_size, is_json

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        path, start, size, text_start, text_size, is_json = self.row(int(number))
        text = read_part(path, text_start, text_size, self.stamps[path]).decode("utf-8-sig", errors="replace")
        return {
            "image": f"{path}@{start}+{size}",
            "caption": captions_of(text, bool(is_json), path, text_start),
            "image_id": int(number),
        }

    def read(self, image: str) -> bytes:
        """The content of an image, as a record's `image` names it."""
        where, _, place = image.rpartition("@")
        start, _, size = place.partition("+")
        path = Path(where)
        return read_part(path, int(start), int(size), self.stamps[path])


def captions_of(text: str, is_json: bool, path: Path, place: int) -> list[str]:
    """The captions in a sample's text; of one that is nothing but a list only the first two, as in the original."""
    if not is_json:
        return [text.strip()]
    try:
        content = json.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as e:  # numbers of thousands of digits, and lists in lists in lists, too
        reason = e.msg if isinstance(e, json.JSONDecodeError) else e
        raise UnreadableMediaError(f"{path}, byte {place}: not valid JSON ({reason})", path) from e
    found = content.get("caption") if isinstance(content, Mapping) else content
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found or not all(isinstance(c, str) for c in found):
        raise UnreadableMediaError(f"{path}, byte {place}: there is no caption in {text[:60]!r}", path)
    return found if isinstance(content, Mapping) else found[:2]


def _has_caption(text: bytes) -> bool:
    try:
        found = captions_of(text.decode("utf-8-sig", errors="replace"), True, Path(), 0)
    except UnreadableMediaError:
        return False
    return any(caption.strip() for caption in found)


@functools.lru_cache(maxsize=_MOST_OPEN)
def _opened(path: Path, stamp: Stamp) -> BinaryIO:
    return path.open("rb")


def read_part(path: Path, start: int, size: int, stamp: Stamp | None = None) -> bytes:
    """Bytes of an archive. Threads and forked processes may read the same one: none moves a place in it.

    Args:
        path: the archive. start, size: in bytes. stamp: of the archive that these are about; None: that which is there.

    Raises:
        UnreadableMediaError: it ends before, is gone, or another has taken its place.
    """
    try:
        there = stamp_of(path)
        if stamp is not None and there != stamp:
            raise UnreadableMediaError(
                f"{path} has changed since the places of its samples were read; load the data set again", path
            )
        if hasattr(os, "pread"):
            data = _read_at(_opened(path, there).fileno(), start, size)
        else:  # Windows
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
    except UnreadableMediaError:
        raise
    except OSError as e:
        raise UnreadableMediaError(f"{path} cannot be read ({e})", path) from e
    if len(data) < size:
        raise UnreadableMediaError(
            f"{path} ends in the middle of a sample, at byte {start + len(data)}", path
        )
    return data


def _read_at(file: int, start: int, size: int) -> bytes:
    data = os.pread(file, size, start)
    while len(data) < size and (more := os.pread(file, size - len(data), start + len(data))):
        data += more
    return data


# ------------------------------------------------------------------------------------- a list's images in shards
class Packed:
    """The images of a list, in shards as `lavis download --shards` writes them.

    Args:
        folder: theirs.
        annotation: a file whose records name samples by `key`; else the records are those that lie beside the shards.

    Attributes:
        records: one per sample, with `key`. lists: the files that they are from.

    Raises:
        ValueError: shards and lists don't fit together.
        FileNotFoundError: a shard has no list beside it, or there is no shard.
    """

    def __init__(self, folder: Path, annotation: Path | None = None) -> None:
        self.folder = folder
        self.paths = sorted(p for p in folder.glob("*.tar") if p.stem.isdigit())
        if not self.paths:
            raise FileNotFoundError(f"{folder} holds no shard yet; run the download again")
        self.stamps = [stamp_of(path) for path in self.paths]  # before they are read
        self.lists = [path.with_suffix(".jsonl") for path in self.paths]
        missing = [path for path in self.lists if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"there is no {missing[0]}, the list of the shard's samples")
        keys = array("q")
        ends = []

        def rows() -> Iterator[Record]:
            for beside in self.lists:
                for row in read_records(beside):
                    keys.append(int(row["key"]))
                    yield row
                ends.append(len(keys))

        self.records = PackedRecords(rows())
        self._keys, self._ends = np.array(keys, dtype=np.int64), np.array(ends)
        places = [index_of(path)[:, :2] for path in self.paths]
        for path, count, place in zip(self.paths, np.diff(self._ends, prepend=0), places):
            if len(place) != count:
                raise ValueError(
                    f"{path} holds {len(place)} samples, and the list beside it {count}; delete both and run the "
                    "download again"
                )
        self._places = np.concatenate(places)  # (N, 2): start and size in bytes
        if annotation is not None:
            self._take(annotation)

    def _take(self, annotation: Path) -> None:
        """Use an annotation file's records if they have keys."""
        records = read_records(annotation)
        if not len(records) or "key" not in records[0]:
            return
        keys = np.fromiter((int(r.get("key", -1)) for r in records), dtype=np.int64, count=len(records))
        lost = keys[~np.isin(keys, self._keys)]
        if len(lost):
            raise ValueError(
                f"{annotation}: {len(lost)} of its {len(records)} records have a key that is in no shard of "
                f"{self.folder} (the first: {lost[0]}); run the download again, or leave them out"
            )
        self.records, self.lists = records, [annotation]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, record: Mapping[str, Any]) -> tuple[bytes, str]:
        """The content of a record's image, and what to call it in messages.

        Raises:
            UnreadableMediaError: see `read_part`.
        """
        row = int(np.searchsorted(self._keys, int(record["key"])))
        shard = int(np.searchsorted(self._ends, row, side="right"))
        start, size = (int(n) for n in self._places[row])
        path = self.paths[shard]
        return read_part(path, start, size, self.stamps[shard]), f"{path}@{start}+{size}"


def is_packed(folder: Path) -> bool:
    """Whether a download wrote shards into a folder."""
    return (folder / "shards.json").is_file()
