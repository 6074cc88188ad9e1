"""How large models are, part by part: known without their weights; and whether they fit into memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lavis.common import memory
from lavis.models.configs import Preset, set_for_training
from lavis.models.languages import KNOWN
from lavis.models.parts import Part, exact_in

REST = "the rest"  # of a model, beside its parts
_device: ContextVar[torch.device] = ContextVar("where a model that is being loaded goes")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PartSize:
    """A part of a preset's model, or what is left beside its parts.

    Attributes:
        name: of the part, or REST. parameters: their number. bytes: of them in each number format.
        loaded: the format that it is kept in by default.
    """

    name: str
    parameters: int
    bytes: Mapping[str, int]
    loaded: str


def sizes_of(cls: Any, model_type: str) -> list[PartSize]:
    """The parts of a model type, and the rest last. Nothing is fetched, and no memory is taken.

    Raises:
        ImportError: a part is a language model, and transformers is not installed.
        ValueError: the model type leaves something open, such as a number of classes.
    """
    preset: Preset = cls.preset(model_type)
    config = set_for_training(preset.config, False)
    if getattr(config, "language", 0) is None:
        sources = [part.source or model_type for part in preset.parts.values()]
        known = next((KNOWN[source] for source in sources if source in KNOWN), None)
        if known is None:
            raise ValueError(f"the size of {cls.registered_name}/{model_type} depends on its language model")
        config = dataclasses.replace(config, language=dict(known))
    model = cls.build(config, empty=True)
    out = []
    for name, part in preset.parts.items():
        module = model.get_submodule(name)
        out.append(_size(name, dict(module.named_parameters()), module, part.dtype or "float32"))
    inside = tuple(f"{name}." for name in preset.parts)
    rest = {key: p for key, p in model.named_parameters() if not key.startswith(inside)}
    return [*out, _size(REST, rest, model, "float32")]


def _size(name: str, parameters: Mapping[str, nn.Parameter], module: nn.Module, loaded: str) -> PartSize:
    formats = {}
    for kind in ("float32", "bfloat16", "float16"):
        exact, width = exact_in(module, kind), getattr(torch, kind).itemsize
        formats[kind] = sum(
            p.numel() * (4 if exact.intersection(key.split(".")) else width) for key, p in parameters.items()
        )
    return PartSize(name, sum(p.numel() for p in parameters.values()), formats, loaded)


# ------------------------------------------------------------------------------------------ memory
@contextlib.contextmanager
def going_to(device: torch.device) -> Iterator[None]:
    """Inside, models that are loaded go to a device."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def check_fits(model: nn.Module, parts: Mapping[str, Part], held: int, where: str) -> None:
    """Refuse a model that can't fit into memory, before its weights are read.

    Args:
        model: in its number formats, weights that are to be loaded on the meta device.
        held: bytes of its weights that are in memory already.
        where: what it is loaded from, for messages.

    Raises:
        ValueError: it needs more than there is, with what would fit.
    """
    sizes = {name: _bytes(model.get_submodule(name)) for name in parts}
    whole = _bytes(model)
    device = _device.get(_CPU)
    needs = {_CPU: whole - _bytes(model, meta=False) - held}
    if device.type != "cpu":
        needs[device] = whole
    for place, needed in needs.items():
        free = memory.available(place)
        if free is None or needed <= free:
            continue
        rest = whole - sum(sizes.values())
        listed = ", ".join(f"{name} {memory.shown(size)}" for name, size in {**sizes, REST: rest}.items())
        raise ValueError(
            f"{where} does not fit into memory: its weights take {memory.shown(whole)} ({listed}), and "
            f"{memory.shown(max(free, 0))} are free on {place}.{_smaller(model, parts, sizes, whole)}"
        )


def _smaller(model: nn.Module, parts: Mapping[str, Part], sizes: Mapping[str, int], whole: int) -> str:
    """What to do about it."""
    large = [name for name in parts if next(model.get_submodule(name).parameters()).dtype == torch.float32]
    if not large:
        return ""
    size = whole - sum(sizes[name] // 2 for name in large)
    given = ", ".join(f"{name!r}: {{'dtype': 'bfloat16'}}" for name in large)
    command = " ".join(f"--part {name}=dtype=bfloat16" for name in large)
    return f" With parts={{{given}}} (in a command {command}) they take {memory.shown(size)}"


def _bytes(module: nn.Module, meta: bool | None = None) -> int:
    """Of parameters and buffers, each once; meta False: of those that are in memory."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values() if meta is None or t.is_meta is meta)
