"""What a run was made with: its recipe, flat, kept beside each checkpoint, so that only the same run is continued.

A recipe is every setting of the configuration by its dotted key, the hashes of the data, the processors, the
model's architecture, and how many samples make up a batch. A run that is resumed may be longer, and log, save,
evaluate and load in another way (`is_free`); other changes are refused unless `run.allow_changed` names them,
and some, without which the position in the data has no meaning, cannot be allowed (`_FIXED`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lavis.common import dist
from lavis.common.files import write_json
from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.runners.data import Order, mixing_ratios
from lavis.runners.settings import Length, RunConfig

NAME = "recipe.json"

Recipe = dict[str, Any]
Changes = dict[str, tuple[Any, Any]]  # key -> value before, value now

# keys of `run` that may change when a run is continued: how long it is …
_LENGTH = ("max_epoch", "max_iters", "max_minutes", "patience")
# … and what does not touch its weights
_AROUND = (
    "log_freq", "tensorboard", "report", "save_freq", "save_last", "save_every_iters", "save_every_minutes",
    "num_workers", "stuck_after", "device", "parallel", "find_unused_parameters", "batch_size_eval", "val_freq",
    "valid_splits", "test_splits",
)  # fmt: skip
# of which nothing need be said
_PLACE = ("output_dir", "job_id", "resume_ckpt_path", "allow_changed", "evaluate")
# replaced by what they come to: `run.precision`, SAMPLES_PER_BATCH, the run's class
_RESOLVED = ("batch_size_train", "precision", "amp", "runner")

BATCH = "samples per global batch"
SAMPLES = "samples of the training sets"
EPOCH = "iterations per epoch"
_FIXED = (
    BATCH, SAMPLES, EPOCH, "run.train_splits", "run.train_dataset_ratios", "run.accum_grad_iters", "run.optimizer",
)  # fmt: skip
# compared where both runs have them: an evaluation split may come or go
_WHERE_BOTH = ("data.", "architecture")


# ------------------------------------------------------------------------------------------ the recipe
def recipe_of(
    config: Any, datasets: Mapping[str, Mapping[str, Any]], precision: str, model: nn.Module | None
) -> Recipe:
    """The recipe of a run that trains.

    Args:
        config: of the run. datasets: {name: {split: data set}}.
        precision: in which the model computes. model: None before there is one.

    Raises:
        ValueError: the settings cannot train, see `Order`.
    """
    run: RunConfig = config.run
    settings = dataclasses.asdict(run)
    if config.task_config is not None:
        settings |= dataclasses.asdict(config.task_config)
    for key in _RESOLVED:
        settings.pop(key, None)
    names = [n for n, splits in datasets.items() for s in run.train_splits if s in splits]
    sizes = [len(splits[s]) for splits in datasets.values() for s in run.train_splits if s in splits]
    batch = run.batch_size_train * dist.world_size()
    order = Order(sizes, batch, run.seed, mixing_ratios(names, run.train_dataset_ratios))
    recipe: Recipe = {
        "run.runner": registry.get_runner_class(run.runner).__name__,
        "run.precision": precision,
        BATCH: batch,
        SAMPLES: sizes,
        EPOCH: Length.of(run, order.batches_per_pass).per_epoch,
        **_flat(settings, "run"),
        **_flat(config.model, "model"),
        **_flat(config.datasets, "datasets"),
    }
    for name, splits in datasets.items():
        for split, dataset in splits.items():
            recipe[f"data.{name}.{split}"] = data_hash(dataset)
            for kind in ("vis_processor", "text_processor"):
                recipe[f"data.{name}.{split}.{kind}"] = _described(getattr(dataset, kind, None))
    if model is not None:
        recipe["architecture"] = type(model).__name__
        architecture = getattr(model, "config", None)
        if dataclasses.is_dataclass(architecture) and not isinstance(architecture, type):
            values = dataclasses.asdict(architecture)
            for key in ("vocabulary", "grad_checkpointing"):  # a path, which moves with its folder; memory
                values.pop(key, None)
            recipe |= _flat(values, "architecture")
    plain: Recipe = json.loads(json.dumps(recipe, default=str))  # as it comes back from a file
    return plain


def _flat(value: Any, key: str) -> Recipe:
    if isinstance(value, Mapping) and value:
        return {k: v for name, part in value.items() for k, v in _flat(part, f"{key}.{name}").items()}
    return {} if isinstance(value, Mapping) else {key: value}


def _described(processor: Any) -> str | None:
    if processor is None:
        return None
    text = repr(processor)
    if re.search(r" at 0x[0-9a-f]+", text):  # an address says nothing about the next process
        text = getattr(processor, "__qualname__", type(processor).__qualname__)
    return text


# ------------------------------------------------------------------------------------------ hashes of data
def data_hash(dataset: Any) -> str | None:
    """SHA-256 of what a data set was read from, None for a data set that does not tell.

    Of its annotation files; else of the names and sizes of its shards, or of the media in its folder; else of
    its records, if they are a list; else, where records are made and not read, of the settings that they are
    made from.
    """
    digest = hashlib.sha256()
    paths = list(getattr(dataset, "annotation_paths", ()))
    records = getattr(dataset, "records", None)
    shards = list(getattr(records, "paths", ()))
    folder = getattr(dataset, "vis_root", None)
    if paths:
        for path in paths:
            digest.update(_file_hash(*_stamp(Path(path))).encode())
    elif shards:
        _add_names(digest, map(Path, shards))
    elif isinstance(records, list):
        for record in records:
            digest.update(json.dumps(record, sort_keys=True, default=str).encode())
    elif folder is not None and records is not None and hasattr(dataset, "media_names"):
        for record in records:
            digest.update(json.dumps(record, sort_keys=True, default=str).encode())
        names = {name for record in records for name in dataset.media_names(record)}
        _add_names(digest, (Path(folder, name) for name in names))
    elif hasattr(dataset, "options"):
        digest.update(repr((dataset.options, getattr(dataset, "split", None))).encode())
    else:
        return None
    return digest.hexdigest()


def _add_names(digest: Any, paths: Iterable[Path]) -> None:
    """Add names and sizes, sorted; of paths below a folder that may move, the last two parts."""
    rows = sorted(("/".join(p.parts[-2:]), p.stat().st_size if p.exists() else -1) for p in paths)
    for name, size in rows:
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))


def _stamp(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=256)
def _file_hash(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------ comparing
def is_free(key: str, config: Any) -> bool:
    """Whether a key may change when a run is continued."""
    own = () if config.task_config is None else [f.name for f in dataclasses.fields(config.task_config)]
    name = key.removeprefix("run.").split(".")[0]
    if key.startswith("run."):
        return name in (*_LENGTH, *_AROUND, *_PLACE, *own)  # a task's own keys say how to evaluate
    return key == "model.grad_checkpointing"


def changes(old: Recipe, new: Recipe) -> Changes:
    """The keys whose values differ. A key of `run` that the older recipe does not know had its default."""
    defaults = _flat(dataclasses.asdict(RunConfig()), "run")
    out: Changes = {}
    for key in [*old, *(k for k in new if k not in old)]:
        if key.startswith(_WHERE_BOTH) and not (key in old and key in new):
            continue
        before, now = (r.get(key, defaults.get(key)) for r in (old, new))
        if before != now:
            out[key] = before, now
    return out


def _covers(allowed: str, key: str) -> bool:
    return key == allowed or key.startswith(f"{allowed}.")


def refused(found: Changes, config: Any) -> Changes:
    """Those of the changes that neither are free nor allowed."""
    allowed = config.run.allow_changed
    return {
        k: v
        for k, v in found.items()
        if not is_free(k, config) and (k in _FIXED or not any(_covers(a, k) for a in allowed))
    }


def check(old: Recipe | None, new: Recipe, config: Any, source: Path) -> Changes:
    """Refuse to continue another run.

    Args:
        old: the recipe of the checkpoint, None if it has none. new: of this run. config: of this run.
        source: the checkpoint, for the message.

    Returns:
        What has changed and may.

    Raises:
        ValueError: something else has changed, or `run.allow_changed` names no key.
    """
    if old is None:
        if NAME in config.run.allow_changed:
            return {}
        raise ValueError(
            f"{source} has no {NAME}, so it is not known whether it belongs to this recipe (it was written by an "
            f"earlier version, or is incomplete); --allow-changed {NAME} continues it all the same"
        )
    for name in config.run.allow_changed:
        if name != NAME and not any(_covers(name, key) for key in [*old, *new]):
            raise ValueError(
                f"run.allow_changed names {name!r}, which is no key.{suggest(name, [*old, *new])}"
            )
    found = changes(old, new)
    wrong = refused(found, config)
    if wrong:
        ways = []
        if any(k not in _FIXED for k in wrong):
            ways.append("allow it with --allow-changed KEY (run.allow_changed)")
        ways.append(f"start a new run from its weights with model.weights={source}")
        fixed = [k for k in wrong if k in _FIXED]
        note = f". Without the same {' and '.join(fixed)} its position has no meaning" if fixed else ""
        raise ValueError(
            f"{source} is of another run: {told(wrong)}{note}. Set it as it was, {' or '.join(ways)}"
        )
    return {k: v for k, v in found.items() if k.removeprefix("run.") not in _PLACE}


def told(found: Changes) -> str:
    """Changes in words."""
    return "; ".join(f"{key} was {_short(old)} and is {_short(new)}" for key, (old, new) in found.items())


def _short(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"{value[:12]}… (a hash)"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


# ------------------------------------------------------------------------------------------ files
def write(folder: Path, recipe: Recipe) -> None:
    write_json(folder / NAME, recipe)


def read(folder: Path) -> Recipe | None:
    """The recipe of a checkpoint, None if it has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        recipe = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged ({e}); resume from another checkpoint") from e
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping; resume from another checkpoint")
    return recipe


def latest(candidates: Sequence[Path], new: Recipe, config: Any) -> tuple[Path | None, str]:
    """The latest checkpoint of this recipe, and, where there is none, what is different in the latest of all."""
    said = ""
    for candidate in sorted(candidates, key=lambda c: c.stat().st_mtime, reverse=True):
        try:
            old = read(candidate)
        except ValueError:
            continue
        if old is not None:
            wrong = refused(changes(old, new), config)
            if not wrong:
                return candidate, ""
            said = said or f"{candidate.parent}: {told(wrong)}"
    return None, said
