"""Vectors of many pictures, clips or texts, written to files in shards; goes on where it was interrupted.

    features.json           what is in the folder: model, kind of vectors, shards, how many rows
    shard-00000.npy         vectors (rows, E), or (rows, Q, E) of mode "queries"; or .safetensors, or .parquet with the
                            names as a column
    shard-00000.jsonl       one line per row: {"image"} or {"video"}, and {"text"}, as given
    shard-00000.json        written last: the shard is complete, and these are its checksums

A shard is a fixed stretch of the list of inputs, encoded in batches of fixed places, and written by one rank. So order
and content of the whole do not depend on the number of ranks, nor on interruptions. A shard that is there is kept if
its inputs (names, sizes, times) and its files' checksums are the same. A folder is of one model and one list, which may
grow; vectors of inputs that are not in the list any more are only removed when that is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavis.common import dist
from lavis.common.files import locked, read_jsonl, to_line, write_bytes, write_json
from lavis.datasets.tables import read_json
from lavis.inference.abilities import require
from lavis.inference.encoder import Encoder
from lavis.inference.protocols import EmbedsQueries
from lavis.inference.reading import read_batches
from lavis.nn.finite import usable

MODES = ("image", "text", "multimodal", "queries")
FORMATS = ("npy", "safetensors", "parquet")
SUMMARY, LOCK = "features.json", ".lock"
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
    overwrite: bool = False,
) -> Extraction:
    """Write the vectors of pictures or texts to a folder. All ranks must call this together.

    Args:
        items: with pictures (or clips, for a model of clips), texts or both, as the mode needs.
        mode: "image" (of clips, too) or "text": vectors of length 1 in the common space. "multimodal": states of texts
            that have read their pictures, the first token's (of queries that have read both, their mean). "queries": of
            a model with Q vectors of an image all of them, of which "image" gives the mean.
        format: "npy", "safetensors" (one tensor "features") or "parquet" (columns image or video, text, features).
        shard_size: items of a shard; what an interruption can lose.
        half: store float16 instead of float32.
        progress: told (done, all) of this rank's items.
        overwrite: replace what the folder holds of another model, kind or list.

    Raises:
        ValueError: an unknown mode or format; the folder holds features of another model, kind or list.
        OSError: another process is writing to the folder.
        ImportError: "parquet", and pyarrow is not installed.
    """
    for name, value, choices in (("mode", mode, MODES), ("format", format, FORMATS)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be {', '.join(choices)}")
    if format == "parquet":
        _pyarrow()
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; it must be 1 or more")
    if mode == "queries":
        require(encoder.loaded, EmbedsQueries)  # type: ignore[type-abstract]
    job = _Job(encoder, Path(folder).expanduser(), mode, format, batch_size, "float16" if half else "float32")
    return job.run(items, shard_size, progress, overwrite)


@dataclass(frozen=True)
class _Job:
    encoder: Encoder
    folder: Path
    mode: str
    format: str
    batch_size: int
    dtype: str

    def run(
        self, items: Sequence[Item], shard_size: int, progress: Progress | None, overwrite: bool
    ) -> Extraction:
        settings = {
            **self.encoder.loaded.settings(), "mode": self.mode, "format": self.format, "dtype": self.dtype,
            "shard_size": shard_size,
        }  # fmt: skip

        def begin() -> None:
            self._check(settings, items, overwrite)  # before a lock file is put into a folder of others
            held.enter_context(
                locked(self.folder / LOCK, f"another process is writing features to {self.folder}; wait for it, or "
                       "choose another folder")
            )  # fmt: skip
            self._begin(settings, items, overwrite)

        with contextlib.ExitStack() as held:
            dist.from_main(begin)
            return self._run(settings, items, shard_size, progress)

    def _run(
        self, settings: dict[str, Any], items: Sequence[Item], shard_size: int, progress: Progress | None
    ) -> Extraction:
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
    def _check(self, settings: dict[str, Any], items: Sequence[Item], overwrite: bool) -> bool:
        """Whether the folder holds features of this model and kind.

        Raises:
            ValueError: it holds something else, or features of another model, kind or list that are to stay.
        """
        path = self.folder / SUMMARY
        if not path.is_file():
            temporary = (LOCK, f".{SUMMARY}.")  # of a beginning that was killed
            if self.folder.is_dir() and any(not p.name.startswith(temporary) for p in self.folder.iterdir()):
                raise ValueError(f"{self.folder} is not empty and holds no features; choose another folder")
            return False
        there = read_json(path)
        there = there if isinstance(there, dict) else {}
        what = self._other(there, settings)
        if what is None:
            if not overwrite:
                self._refuse_other_list(items)
            return True
        if not overwrite:
            raise ValueError(
                f"{self.folder} holds features of {what}; choose another folder, or replace them with --overwrite "
                "(in Python overwrite=True)"
            )
        return False

    @staticmethod
    def _other(there: dict[str, Any], settings: dict[str, Any]) -> str | None:
        """What is different in words, or None."""
        for key in ("mode", "format", "dtype", "shard_size", "fingerprint", "processor", "text_processor"):
            old = there.get(
                key, settings[key] if "processor" in key else None
            )  # earlier versions did not say
            if old != settings[key]:
                name = "model" if key == "fingerprint" else key.replace("_", " ")
                was, now = (there.get(name), settings[name]) if name == "model" else (old, settings[key])
                return f"{name} {was!r}{' with other weights' if was == now else ''}, not {now!r}"
        return None

    def _refuse_other_list(self, items: Sequence[Item]) -> None:
        """
        Raises:
            ValueError: there are vectors of what is not among these items.
        """
        wanted = {_name(item.named()) for item in items}
        total, lost = 0, []
        for path in sorted(self.folder.glob("shard-*.jsonl")):
            named = read_jsonl(path)
            total += len(named)
            lost += [row for row in named if _name(row) not in wanted]
        if lost:
            example = next(iter(lost[0].values()), "")
            raise ValueError(
                f"{self.folder} holds features of another list: {len(lost)} of the {total} inputs that it has, such as "
                f"{str(example)[:200]}, are not in this one; choose another folder, or remove them with --overwrite "
                "(in Python overwrite=True)"
            )

    def _begin(self, settings: dict[str, Any], items: Sequence[Item], overwrite: bool) -> None:
        """Say what the folder is going to hold."""
        if not self._check(settings, items, overwrite):
            (self.folder / SUMMARY).unlink(missing_ok=True)
            for path in self.folder.glob("shard-*"):
                path.unlink()
        for path in self.folder.glob(".*.part"):  # what a killed process was writing
            path.unlink()
        write_json(self.folder / SUMMARY, {**settings, "complete": False})

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
        try:
            there = read_json(seal)
        except ValueError:  # it was tampered with: the shard is written again
            return None
        if not isinstance(there, dict) or there.get("inputs") != _digest_of(part):
            return None
        if not all(isinstance(there.get(key), int) for key in ("rows", "width")):
            return None
        if there.get("file") != vectors.name or there.get("list") != names.name or "failed" not in there:
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
        several = (self.encoder.queries or 1,) if self.mode == "queries" else ()
        empty = np.zeros((0, *several, self.encoder.width), dtype=np.float32)
        table = np.concatenate(rows) if rows else empty
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
            "file": vectors.name, "list": names.name, "rows": len(good), "width": int(table.shape[-1]),
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
        if self.mode == "queries":
            return self.encoder.all_vectors(pictures)
        texts = [item.text or "" for item in items]
        return self.encoder.texts(texts) if self.mode == "text" else self.encoder.multimodal(pictures, texts)


def _later(progress: Progress | None, before: int, total: int) -> Callable[[int], None] | None:
    """Progress within a shard, told as progress of all."""
    if progress is None:
        return None
    return lambda done: progress(before + done, total)


def _name(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("image"), row.get("video"), row.get("text")


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
    for size in reversed(table.shape[1:]):  # of several vectors lists of lists
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    columns["features"] = flat
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise ImportError("Parquet files need pyarrow: pip install 'openlavis[parquet]'") from e
    return pyarrow, pyarrow.parquet
