"""Shards: pictures with texts in tar archives, in WebDataset's layout.

**Description.** Tar archives in which the files of a sample share their name up to the first dot: `000001.jpg`, and
`000001.json` (an object with `caption`, or a list of captions) or `000001.txt`. Such archives are how collections of
millions of pictures are stored; `lavis download` writes them, too. `shards` is for archives of your own.

**Source.** Your own.

**Splits.** train.

**Task.** Pre-training, captioning.

**Metrics.** Those of the task.

**Files.** `shards` names them: a path, with `{000..099}` for numbers, `{a,b}` for choices and `*` for any letters, or
a folder. Relative ones lie under the cache root. Each archive is read through once, to know where its samples begin;
what was found is kept under `indexes` in the cache root. After that any sample can be read on its own, so shuffling,
ranks, workers, mixing with other data sets and continuing a run are exact, as they are for files in folders. Archives
must not be compressed.

**Licence.** Your own.

**Known faults.** An archive that was cut off gives the samples before the cut, and a warning.

**Responsible use.** Your own responsibility.

**References.** Aizman et al., "High Performance I/O For Large Scale Deep Learning" (2019), for the layout:
https://github.com/webdataset/webdataset
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lavis.common import hub
from lavis.common.files import write_bytes
from lavis.common.registry import registry
from lavis.datasets.base import Plan, Record, UnreadableMediaError, decode_picture, under_cache_root
from lavis.datasets.captioning import CaptionDataset, CaptionOptions

logger = logging.getLogger(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("json", "txt")
_MOST_OPEN = 128  # archives that a process keeps open


@dataclass(frozen=True)
class ShardOptions(CaptionOptions):
    """See `CaptionOptions` and the module's docstring.

    Args:
        shards: the archives.
    """

    shards: str | None = None


# ------------------------------------------------------------------------------------- which archives
def expand(pattern: str) -> list[Path]:
    """The archives that a pattern names, in order.

    Raises:
        FileNotFoundError: none is there, or one that the pattern names by its number is missing.
    """
    found: list[Path] = []
    missing: list[Path] = []
    for name in _braces(pattern):
        path = under_cache_root(name)
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
        raise FileNotFoundError(f"{pattern} names no archive (.tar) under {under_cache_root('.').absolute()}")
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
    stamp = path.stat()
    key = f"{path.absolute()}|{stamp.st_size}|{stamp.st_mtime_ns}"
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
    """Read an archive's headers; samples without a picture or without a text are left out."""
    rows: list[tuple[int, ...]] = []
    parts: dict[str, tuple[int, int]] = {}
    name, left_out = None, 0

    def close() -> int:
        picture = next((parts[s] for s in PICTURES if s in parts), None)
        text = next((s for s in TEXTS if s in parts), None)
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
        logger.warning("%s: %d samples without a picture or without a text are left out", path, left_out)
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


class ShardRecords(Sequence[Record]):
    """The samples of archives as records: `image` (where it lies), `caption`, `image_id`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
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
        text = read_part(path, text_start, text_size).decode("utf-8", errors="replace")
        return {
            "image": f"{path}@{start}+{size}",
            "caption": captions_of(text, bool(is_json), path, text_start),
            "image_id": int(number),
        }


def captions_of(text: str, is_json: bool, path: Path, place: int) -> list[str]:
    """The captions in a sample's text; of one that is nothing but a list only the first two, as in the original."""
    if not is_json:
        return [text.strip()]
    try:
        content = json.loads(text)
    except json.JSONDecodeError as e:
        raise UnreadableMediaError(f"{path}, byte {place}: not valid JSON ({e.msg})", path) from e
    found = content.get("caption") if isinstance(content, Mapping) else content
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not found or not all(isinstance(c, str) for c in found):
        raise UnreadableMediaError(f"{path}, byte {place}: there is no caption in {text[:60]!r}", path)
    return found if isinstance(content, Mapping) else found[:2]


@functools.lru_cache(maxsize=_MOST_OPEN)
def _opened(path: Path, process: int) -> Any:  # a forked worker must not share the place in a file
    return path.open("rb")


def read_part(path: Path, start: int, size: int) -> bytes:
    """Bytes of an archive.

    Raises:
        UnreadableMediaError: it ends before.
    """
    file = _opened(path, os.getpid())
    file.seek(start)
    data: bytes = file.read(size)
    if len(data) < size:
        raise UnreadableMediaError(
            f"{path} ends in the middle of a sample, at byte {start + len(data)}", path
        )
    return data


class ShardDataset(CaptionDataset):
    """Pictures with captions in archives; see the module's docstring."""

    Options: ClassVar[type] = ShardOptions
    default_shards: ClassVar[str | None] = None

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        return ("train",)

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShardDataset:
        pattern = plan.options.shards or cls.default_shards
        if pattern is None:
            raise ValueError(
                f"{plan.name}.shards is missing; name the archives, for example /data/{{000..099}}.tar"
            )
        return cls(ShardRecords(expand(pattern)), split, options=plan.options)

    def _index_records(self) -> None:
        # every sample is a picture of its own: nothing to number, and nothing to read for it
        self._items = None
        self._picture_number = range(len(self.records))

    def picture(self, record: Mapping[str, Any]) -> Image.Image:
        where = str(record["image"])
        path, _, place = where.rpartition("@")
        start, _, size = place.partition("+")
        return decode_picture(read_part(Path(path), int(start), int(size)), where)


@registry.register_dataset("shards")
class OwnShards(ShardDataset):
    """Archives of one's own."""

    name = "shards"
