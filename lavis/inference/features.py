"""Vectors of many pictures, clips or texts, written to files in shards; goes on where it was interrupted.

    features.json           what is in the folder: model, kind of vectors, shards, how many rows
    shard-00000.npy         vectors (rows, E); or .safetensors, or .parquet with the names as a column
    shard-00000.jsonl       one line per row: {"image"} or {"video"}, and {"text"}, as given
    shard-00000.json        written last: the shard is complete, and these are its checksums

A shard is a fixed stretch of the list of inputs, encoded in batches of fixed places, and written by one rank. So order
and content of the whole do not depend on the number of ranks, nor on interruptions. A shard that is there is kept if
its inputs (names, sizes, times) and its files' checksums are the same.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis.common import dist
from lavis.common.files import to_line, write_bytes, write_json
from lavis.datasets.tables import read_json
from lavis.inference.encoder import Encoder
from lavis.inference.reading import read_batches
from lavis.nn.finite import usable

MODES = ("image", "text", "multimodal")
FORMATS = ("npy", "safetensors", "parquet")
SUMMARY = "features.json"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Item:
    """What a vector is of: the file of a picture or clip, a text, or a text over one of them."""

    image: Path | None = None
    text: str | None = None
    video: Path | None = None

    @property
    def file(self) -> Path | None:
        return self.video if self.image is None else self.image

    def named(self) -> dict[str, str]:
        """As a line of the list."""
        fields = {"image": self.image, "video": self.video, "text": self.text}
        return {name: str(value) for name, value in fields.items() if value is not None}

    def stamp(self) -> list[Any]:
        """What tells that it has changed."""
        if self.file is None:
            return [self.text]
        try:
            stat = self.file.stat()
        except OSError:
            return [str(self.file), None, None, self.text]
        return [str(self.file), stat.st_size, stat.st_mtime_ns, self.text]


@dataclass
class Extraction:
    """What was done: rows in the folder, how many of them were there already, and (path, reason) of what could not be
    read or of which the model computed NaN; of all ranks together."""

    rows: int = 0
    kept: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def extract(
    encoder: Encoder,
    items: Sequence[Item],
    folder: str | Path,
    mode: str = "image",
    format: str = "npy",
    shard_size: int = 1024,
    batch_size: int = 16,
    half: bool = False,
    progress: Progress | None = None,
) -> Extraction:
    """Write the vectors of pictures or texts to a folder. All ranks must call this together.

    Args:
        items: with pictures (or clips, for a model of clips), texts or both, as the mode needs.
        mode: "image" (of clips, too) or "text": vectors of length 1 in the common space. "multimodal": states of texts
            that have read their pictures, the first token's.
        format: "npy", "safetensors" (one tensor "features") or "parquet" (columns image or video, text, features).
        shard_size: items of a shard; what an interruption can lose.
        half: store float16 instead of float32.
        progress: told (done, all) of this rank's items.

    Raises:
        ValueError: an unknown mode or format; the folder holds features of another model or kind.
        ImportError: "parquet", and pyarrow is not installed.
    """
    for name, value, choices in (("mode", mode, MODES), ("format", format, FORMATS)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be {', '.join(choices)}")
    if format == "parquet":
        _pyarrow()
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; it must be 1 or more")
    job = _Job(encoder, Path(folder).expanduser(), mode, format, batch_size, "float16" if half else "float32")
    return job.run(items, shard_size, progress)


@dataclass(frozen=True)
class _Job:
    encoder: Encoder
    folder: Path
    mode: str
    format: str
    batch_size: int
    dtype: str

    def run(self, items: Sequence[Item], shard_size: int, progress: Progress | None) -> Extraction:
        settings = {
            "model": self.encoder.loaded.spec, "checkpoint": self.encoder.loaded.checkpoint,
            "fingerprint": self.encoder.loaded.fingerprint(), "mode": self.mode, "format": self.format,
            "dtype": self.dtype, "shard_size": shard_size,
        }  # fmt: skip
        self._begin(settings)
        dist.barrier()
        starts = list(range(0, len(items), shard_size))
        mine = range(dist.rank(), len(starts), dist.world_size())
        total = sum(len(items[starts[n] : starts[n] + shard_size]) for n in mine)
        found: dict[int, dict[str, Any]] = {}
        done = kept = 0
        for number in mine:
            part = items[starts[number] : starts[number] + shard_size]
            there = self._complete(number, part)
            if there is not None:
                kept += there["rows"]
            else:
                there = self._write(number, part, _later(progress, done, total))
            found[number] = there
            done += len(part)
            if progress is not None:
                progress(done, total)
        everywhere = dist.all_gather_objects((found, kept))
        shards = {n: shard for each, _ in everywhere for n, shard in each.items()}
        result = Extraction(
            sum(s["rows"] for s in shards.values()),
            sum(k for _, k in everywhere),
            [tuple(f) for n in sorted(shards) for f in shards[n]["failed"]],
        )
        if dist.is_main():
            self._end(settings, [shards[n] for n in sorted(shards)], result)
        dist.barrier()
        return result

    # ------------------------------------------------------------------------------ the folder
    def _begin(self, settings: dict[str, Any]) -> None:
        """Refuse a folder of other features; say what this one is going to hold."""
        path = self.folder / SUMMARY
        if path.is_file():
            there = read_json(path)
            names = {"fingerprint": "model"}
            for key in ("mode", "format", "dtype", "shard_size", "fingerprint"):
                old = there.get(key) if isinstance(there, dict) else None
                if old != settings[key]:
                    what = names.get(key, key)
                    was, now = (there.get(what), settings[what]) if isinstance(there, dict) else (None, None)
                    hint = " with other weights" if was == now else ""
                    raise ValueError(
                        f"{self.folder} holds features of {what} {was!r}{hint}, not {now!r}; choose another folder, "
                        "or delete it"
                    )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} is not empty and holds no features; choose another folder")
        elif dist.is_main():
            write_json(path, {**settings, "complete": False})

    def _end(self, settings: dict[str, Any], shards: list[dict[str, Any]], result: Extraction) -> None:
        for path in self.folder.glob("shard-*"):  # of a longer list, earlier
            number = path.name.removeprefix("shard-").partition(".")[0]
            if number.isdigit() and int(number) >= len(shards):
                path.unlink()
        named = [{"file": s["file"], "list": s["list"], "rows": s["rows"]} for s in shards]
        width = next((s["width"] for s in shards if s["rows"]), 0)
        write_json(
            self.folder / SUMMARY,
            {
                **settings, "complete": True, "width": width, "rows": result.rows, "failed": len(result.failed),
                "shards": named,
            },
        )  # fmt: skip

    # ------------------------------------------------------------------------------ one shard
    def _names(self, number: int) -> tuple[Path, Path, Path]:
        """Its vectors, its list, and what says that it is complete."""
        start = f"shard-{number:05d}"
        return (
            self.folder / f"{start}.{self.format}",
            self.folder / f"{start}.jsonl",
            self.folder / f"{start}.json",
        )

    def _complete(self, number: int, part: Sequence[Item]) -> dict[str, Any] | None:
        """The description of a shard that is there, whole and of the same inputs."""
        vectors, names, seal = self._names(number)
        if not seal.is_file():
            return None
        there = read_json(seal)
        if not isinstance(there, dict) or there.get("inputs") != _digest_of(part):
            return None
        for path, key in ((vectors, "sha256"), (names, "list_sha256")):
            if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != there.get(key):
                return None
        return there

    def _write(
        self, number: int, part: Sequence[Item], progress: Callable[[int], None] | None
    ) -> dict[str, Any]:
        inputs = _digest_of(part)  # before reading: what changes meanwhile is seen the next time
        vectors, names, seal = self._names(number)
        seal.unlink(missing_ok=True)
        rows: list[np.ndarray] = []
        good: list[Item] = []
        failed: list[list[str]] = []
        for batch in self._batches(part):
            ready = [(item, picture) for item, picture in batch if not isinstance(picture, Exception)]
            failed += [[str(item.file), str(e)] for item, e in batch if isinstance(e, Exception)]
            found, used, bad = usable(self._encode, ready)
            failed += [[str(item.file), str(e)] for (item, _), e in bad]
            if found is not None:
                rows.append(found.numpy())
                good += [item for item, _ in used]
            if progress is not None:
                progress(len(good) + len(failed))
        table = np.concatenate(rows) if rows else np.zeros((0, self.encoder.width), dtype=np.float32)
        with np.errstate(over="ignore"):  # said below
            stored = table.astype(self.dtype)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"{vectors.name}: vectors hold NaN or infinity; states that float16 can't hold are stored as float32 "
                "(without --half)"
            )
        content = _packed(self.format, stored, good)
        lines = "".join(to_line(item.named()) + "\n" for item in good).encode()
        write_bytes(vectors, content)
        write_bytes(names, lines)
        shard = {
            "file": vectors.name, "list": names.name, "rows": len(good), "width": int(table.shape[1]),
            "inputs": inputs, "sha256": hashlib.sha256(content).hexdigest(),
            "list_sha256": hashlib.sha256(lines).hexdigest(), "failed": failed,
        }  # fmt: skip
        write_json(seal, shard)
        return shard

    def _batches(self, part: Sequence[Item]) -> Iterator[list[tuple[Item, Any]]]:
        """Items with their pictures, if they have any, or the error of reading them."""
        if self.mode == "text":
            for start in range(0, len(part), self.batch_size):
                yield [(item, None) for item in part[start : start + self.batch_size]]
            return
        paths = [item.file for item in part if item.file is not None]
        at = 0
        for batch in read_batches(paths, self.encoder.loaded.read, self.batch_size):
            yield [(part[at + i], picture) for i, (_, picture) in enumerate(batch)]
            at += len(batch)

    def _encode(self, ready: Sequence[tuple[Item, Any]]) -> torch.Tensor:
        items, pictures = [item for item, _ in ready], [picture for _, picture in ready]
        if self.mode == "image":
            return self.encoder.images(pictures)
        texts = [item.text or "" for item in items]
        return self.encoder.texts(texts) if self.mode == "text" else self.encoder.multimodal(pictures, texts)


def _later(progress: Progress | None, before: int, total: int) -> Callable[[int], None] | None:
    """Progress within a shard, told as progress of all."""
    if progress is None:
        return None
    return lambda done: progress(before + done, total)


def _digest_of(part: Sequence[Item]) -> str:
    return hashlib.sha256(json.dumps([item.stamp() for item in part]).encode()).hexdigest()


def _packed(format: str, table: np.ndarray, items: Sequence[Item]) -> bytes:
    if format == "safetensors":
        from safetensors.numpy import save

        return save({"features": np.ascontiguousarray(table)})
    out = io.BytesIO()
    if format == "npy":
        np.save(out, table, allow_pickle=False)
        return out.getvalue()
    pa, pq = _pyarrow()
    kind = pa.float16() if table.dtype == np.float16 else pa.float32()
    columns: dict[str, Any] = {
        key: pa.array(
            [item.named()[key].encode(errors="backslashreplace").decode() for item in items], pa.string()
        )
        for key in ("image", "video", "text")
        if items and key in items[0].named()
    }
    flat = pa.array(table.reshape(-1), kind)
    columns["features"] = pa.FixedSizeListArray.from_arrays(flat, table.shape[1])
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ImportError("Parquet files need pyarrow: pip install 'openlavis[parquet]'") from e
    return pyarrow, pyarrow.parquet
