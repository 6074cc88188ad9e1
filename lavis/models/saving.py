"""How models are written: what was trained, and of the rest where it lies."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis.common.files import write_json
from lavis.models import checkpoints
from lavis.models.folders import ADAPTER_NAME, CONFIG_NAME, VOCABULARY_NAME
from lavis.models.parts import Base, Part, compared, entries_of, may_be_named, portable

if TYPE_CHECKING:
    from lavis.models.base import BaseModel

log = logging.getLogger("lavis")


def save(model: BaseModel, folder: Path, state: checkpoints.StateDict, whole: bool) -> None:
    """See `BaseModel.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    if model.config is None:
        checkpoints.write_state_dict(state, folder / checkpoints.WEIGHTS_NAME)
        return
    config = dataclasses.asdict(model.config)
    if "vocabulary" in config:
        config["vocabulary"] = VOCABULARY_NAME
    description: dict[str, Any] = {
        "arch": model.registered_name,
        "model_type": model.model_type,
        "origin": model.origin,
        "config": config,
    }
    parts = {name: replace(part, source=_named(part.source)) for name, part in model.parts.items()}
    base: Base | None = None
    left_out: set[str] = set()
    if not whole:
        parts, left_out = _without_parts(model, state, parts)
        base, unchanged = _without_base(model, state, left_out)
        left_out |= unchanged
    referred = [name for name, part in parts.items() if base is not None or part.sha256 is not None]
    config.update(model.save_beside(folder, referred))
    if parts:
        description["parts"] = {name: asdict(part) for name, part in parts.items()}
    if model.lora is not None:
        description |= {"lora": asdict(model.lora), "trained": list(model.lora_trained)}
        if base is not None:
            description["base"] = asdict(base)
    file, other = checkpoints.WEIGHTS_NAME, ADAPTER_NAME
    if base is not None:
        file, other = other, file
    (folder / other).unlink(missing_ok=True)
    checkpoints.write_state_dict({k: t for k, t in state.items() if k not in left_out}, folder / file)
    if model.tokenizer is not None:
        shutil.copyfile(model.tokenizer.vocabulary, folder / VOCABULARY_NAME)
    write_json(folder / CONFIG_NAME, description, indent=1)


def _named(source: str | None) -> str | None:
    """A source as a description names it; None where it may not."""
    source = None if source is None else portable(source)
    return source if source is None or may_be_named(source) else None


def _without_parts(
    model: BaseModel, state: Mapping[str, torch.Tensor], parts: Mapping[str, Part]
) -> tuple[dict[str, Part], set[str]]:
    """The parts as a description names them, with digests of those that are left out, and the latter's entries."""
    out, left_out = dict(parts), set()
    for name, part in parts.items():
        taken, entries = model.taken.get(name), entries_of(state, name)
        if taken is None or not part.frozen or part.source is None:
            continue
        if len(taken.unchanged(entries)) != len(entries):
            log.info("the part %s is not as its source gave it; it is saved with the rest", name)
            continue
        out[name] = replace(part, sha256=taken.digest_of(entries))
        left_out |= {f"{name}.{key}" for key in entries}
    return out, left_out


def _without_base(
    model: BaseModel, state: Mapping[str, torch.Tensor], left_out: set[str]
) -> tuple[Base | None, set[str]]:
    """Of a model with adapters, the weights that they belong to, and those of its entries that are as they were."""
    taken = model.taken.get("")
    if model.lora is None or taken is None or model.weights_from is None:
        return None, set()
    if not may_be_named(model.weights_from.source):
        return None, set()
    unchanged = taken.unchanged({key: tensor for key, tensor in state.items() if key not in left_out})
    sha256 = taken.digest_of({key: unchanged[key] for key in compared(unchanged)})
    return replace(model.weights_from, sha256=sha256), set(unchanged)
