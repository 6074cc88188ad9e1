"""A model's configuration: presets, some values in place of others, and sizes that no file can have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lavis.common.values import suggest
from lavis.models import checkpoints
from lavis.models.parts import Part

_LARGEST = 1 << 24  # number of anything in a config
_DEPTHS = (
    "depth",
    "layers",
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
)  # the latter of transformers
T = TypeVar("T")


@dataclass(frozen=True)
class Preset:
    """One published or packaged set of weights of a class, and all that belongs to it.

    Attributes:
        config: the class's configuration.
        weights: where the finished weights are (URL, or a folder in the package); None: no weights,
            the model starts from random ones.
        pretrained: where the weights to fine-tune from are.
        pretrained_rules: how they are read, where other rules hold than the class's PRETRAINED_RULES.
        sha256: of `weights`; None where nobody has published one (then recorded at first use).
        vis_processor, text_processor: {"train" | "eval": {"name": ..., arguments}}.
        licence, commercial: of the weights; whether commercial use is allowed, None if not stated.
        note: one line for `lavis models`.
        pointing: of 100 drawings, in how many the map of the word that names an object peaks inside it
            (benchmarks/pointing.py); None: not measured.
        default_for: where this preset is meant if nobody names a model: commands ("caption", "ask", "match",
            "classify", "features", "explain") and tasks of training on own data ("captioning", "vqa", "retrieval",
            "classification"). Of a task and a medium one packaged preset, which is used, and one published, which
            messages recommend.
        generation: options of `generate` that suit these weights better than its defaults; `lavis caption` uses them.
        download_gb: gigabytes of the file of `weights`; None: not known.
        elsewhere: a Hugging Face id of the same weights (those of `weights`, else of `pretrained`) in a format that the
            class reads, taken when the first source says that they are gone.
        parts: modules whose weights come from files of their own where those of `weights` or `pretrained` do not hold
            them, by their names; see `lavis.models.parts`.
    """

    config: Any
    weights: str | None = None
    pretrained: str | None = None
    pretrained_rules: checkpoints.Rules | None = None
    sha256: str | None = None
    vis_processor: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    text_processor: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    licence: str = "not stated"
    commercial: bool | None = None
    note: str = ""
    pointing: float | None = None
    default_for: tuple[str, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict)
    download_gb: float | None = None
    elsewhere: str | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)


def override(config: T, values: Mapping[str, Any], where: str) -> T:
    """A copy of a (nested) config dataclass with some fields replaced.

    Raises:
        ValueError: an unknown key (with the nearest known one) or a value of another type.
    """
    fields = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"{where}.{key}: there is no such key.{suggest(key, fields)}")
        old = getattr(config, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}.{key} is {value!r}; a mapping of its own keys was expected")
            value = override(old, value, f"{where}.{key}")
        elif isinstance(old, bool) or isinstance(value, bool):
            if not isinstance(value, type(old)) and old is not None:
                raise ValueError(f"{where}.{key} is {value!r}; {type(old).__name__} was expected")
        elif isinstance(old, float) and isinstance(value, (int, float, str)):
            try:
                value = float(value)
            except ValueError:
                raise ValueError(f"{where}.{key} is {value!r}; a number was expected") from None
        elif (isinstance(old, tuple) and isinstance(value, (list, tuple))) or (
            old is None and isinstance(value, list)
        ):
            value = tuple(value)
        elif old is not None and not isinstance(value, type(old)):
            raise ValueError(f"{where}.{key} is {value!r}; {type(old).__name__} was expected")
        changes[key] = value
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def set_for_training(config: T, for_training: bool) -> T:
    """The config of the model with or without EMA copies and queues, where its class may have any."""
    if not hasattr(config, "for_training"):
        return config
    return dataclasses.replace(config, for_training=for_training)  # type: ignore[type-var]


def check_sizes(config: Mapping[str, Any], entries: int, path: Path, elsewhere: int = 0) -> None:
    """Refuse a config that no file of so many entries can be of, before a model of its sizes is built.

    Args:
        elsewhere: entries that other files may have.

    Raises:
        ValueError: more layers than entries, or a size beyond all models'.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_sizes(value, entries, path, elsewhere)
            continue
        most = entries + elsewhere if key in _DEPTHS else _LARGEST
        for number in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(number, int) and number > most:
                raise ValueError(f"{path}: {key} is {number}, but the file has {entries} entries")
