"""What every model shares: configuration, presets, loading and saving, parameter groups, outputs."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn
from torch.utils import _pytree

from lavis.common.registry import suggest
from lavis.models import checkpoints
from lavis.models.tokenizer import ASSETS, Tokenizer
from lavis.nn.linear import Packing

log = logging.getLogger("lavis")

CONFIG_NAME = "config.json"
VOCABULARY_NAME = "vocab.txt"
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def inference(method: F) -> F:
    """Run without autograd and without dropout, whatever mode the model is in; the mode is put back."""

    @wraps(method)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        training = self.training
        if training:
            self.eval()
        try:
            with torch.no_grad():
                return method(self, *args, **kwargs)
        finally:
            if training:
                self.train()

    return wrapped  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------ outputs


class Output:
    """Base of frozen output dataclasses: attributes, `out["loss"]`, `.keys()` of the fields that are set."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _pytree.register_pytree_node(
            cls,
            lambda out: ([getattr(out, n) for n in out.__dataclass_fields__], type(out)),
            lambda values, kind: kind(*values),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def keys(self) -> list[str]:
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(f"{type(self).__name__} has no {key!r}; it has {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def items(self) -> list[tuple[str, Any]]:
        return [(k, getattr(self, k)) for k in self.keys()]

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key) if key in self.keys() else default

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


# ------------------------------------------------------------------------------------------ presets


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
        elif isinstance(old, tuple) and isinstance(value, (list, tuple)):
            value = tuple(value)
        elif old is not None and not isinstance(value, type(old)):
            raise ValueError(f"{where}.{key} is {value!r}; {type(old).__name__} was expected")
        changes[key] = value
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def set_for_training(config: T, for_training: bool) -> T:
    """The config of the model with or without twins and queues, where its class may have any."""
    if not hasattr(config, "for_training"):
        return config
    return dataclasses.replace(config, for_training=for_training)  # type: ignore[type-var]


# -------------------------------------------------------------------------------------------- model


class BaseModel(nn.Module):
    """A model with presets. Subclasses set `PRESETS`, `RULES`, and build themselves from a config."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {}
    # for files that hold this class's own weights, and for those it is fine-tuned from
    RULES: ClassVar[checkpoints.Rules] = checkpoints.Rules()
    PRETRAINED_RULES: ClassVar[checkpoints.Rules] = checkpoints.Rules()
    FOREIGN_RULES: ClassVar[tuple[checkpoints.Rules, ...]] = ()  # told apart by their markers

    registered_name: ClassVar[str]
    config: Any
    tokenizer: Tokenizer | None = None  # of models that read text
    model_type: str | None = None

    # ------------------------------------------------------------------------------ construction
    @classmethod
    def preset(cls, model_type: str) -> Preset:
        """The preset of a name; an unknown one is an error that lists those there are."""
        if model_type not in cls.PRESETS:
            raise ValueError(
                f"{cls.registered_name} has no model type {model_type!r}.{suggest(model_type, cls.PRESETS)}"
            )
        return cls.PRESETS[model_type]

    @classmethod
    def build(cls, config: Any, *, empty: bool = False) -> BaseModel:
        """A model of a config, with starting weights, or empty (on the meta device) to be loaded into."""
        if empty:
            with torch.device("meta"):
                return cls(config)
        model = cls(config)
        model.reset_parameters()
        return model

    def reset_parameters(self) -> None:
        """Starting weights."""
        raise NotImplementedError(f"{type(self).__name__} must say how its weights start")

    @classmethod
    def complete(cls, config: Any, state: checkpoints.StateDict) -> Any:
        """The config with what a preset leaves open read from a file's entries (a number of classes)."""
        return config

    @classmethod
    def from_file(
        cls, config: Any, path: Path, rules: checkpoints.Rules | None = None, name: str | None = None
    ) -> BaseModel:
        """A model of a config with the weights of a file (or of a folder's file), strictly.

        Args:
            rules: for the class's own kind of file; other kinds are told by their entries.
            name: what messages call the file.
        """
        config = cls.adapt(config, path)
        state = checkpoints.read_state_dict(path)
        rules = cls._rules(state, rules)
        model = cls.build(cls.complete(config, state), empty=not rules.fresh)
        checkpoints.load_into(model, state, rules, name or str(path))
        return model

    @classmethod
    def adapt(cls, config: Any, path: Path) -> Any:
        """The config for a file or folder, with what its config.json tells and its tensors' shapes don't.

        Raises:
            ValueError: the model of that folder is another one.
        """
        return config

    @classmethod
    def _rules(cls, state: checkpoints.StateDict, own: checkpoints.Rules | None) -> checkpoints.Rules:
        return next((r for r in cls.FOREIGN_RULES if r.marker in state), None) or own or cls.RULES

    @classmethod
    def from_pretrained(cls, model_type: str, for_training: bool = True) -> BaseModel:
        """The model of a preset with its finished weights (downloaded once if they are not there).

        Without `for_training`, state that only training uses (momentum twins, queues) is left out.
        """
        cfg: dict[str, Any] = {"model_type": model_type}
        if not for_training and hasattr(cls.preset(model_type).config, "for_training"):
            cfg["for_training"] = False
        return cls.from_config(cfg)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> BaseModel:
        """A model from a recipe's `model` section.

        Args:
            cfg: `model_type` names the preset; `weights` says what to load: "finetuned" (the preset's
                own, the default; where it has none, "pretrained"), "pretrained" (what they were
                fine-tuned from), "none" (starting weights), or finished weights' path, URL or Hugging
                Face id; `pretrained`, with weights "pretrained", takes the place of the preset's: a
                path, URL or id; `init`, with weights "none", starts parts from other models' weights,
                see `start_from`; every other key replaces one of the preset's config.

        Raises:
            ValueError: an unknown key, weights that do not fit, or keys that do not go together.
            FileNotFoundError, OSError: weights that are not there or cannot be downloaded.
        """
        cfg = dict(cfg)
        cfg.pop("arch", None)
        model_type = cfg.pop("model_type", None)
        if model_type is None:
            raise ValueError(
                f"model.model_type is missing; {cls.registered_name} has {', '.join(cls.PRESETS)}"
            )
        preset = cls.preset(model_type)
        init, pretrained = cfg.pop("init", None), cfg.pop("pretrained", None)
        weights = cfg.pop("weights", "finetuned")
        if weights == "finetuned" and not preset.weights and (pretrained or preset.pretrained):
            weights = "pretrained"
        if pretrained and weights != "pretrained":
            raise ValueError(
                f"model.pretrained is {pretrained!r}, but model.weights is {weights!r}; to fine-tune from that file, "
                "set model.weights to pretrained"
            )
        config = override(preset.config, cfg, "model")
        source, rules, sha256 = weights, cls.RULES, None
        if weights == "finetuned":
            source, sha256 = preset.weights, preset.sha256
        elif weights == "pretrained":
            source = pretrained or preset.pretrained or preset.weights
            rules = preset.pretrained_rules or cls.PRETRAINED_RULES
            if source is None:
                raise ValueError(
                    f"model.weights is 'pretrained', but {cls.registered_name} {model_type} knows none; "
                    "say with model.pretrained where they are, or set model.weights to none"
                )
        elif weights in ("none", None, False):
            source = None
        if source is None:
            model = cls.build(config)
            model.start_from(init or {})
        elif init:
            raise ValueError(
                f"model.init is for starting weights; with model.weights {weights!r} it has no use"
            )
        else:
            model = cls.from_file(config, locate(source, sha256=sha256), rules, name=source)
        model.model_type = model_type
        return model

    def start_from(self, init: Mapping[str, str]) -> None:
        """Take other models' weights as starting weights.

        Args:
            init: {module: source}, see the class for what it can take.
        """
        if init:
            raise ValueError(f"model.init: {self.registered_name} can't start from other models' weights")

    # ------------------------------------------------------------------------------ weights
    def load_file(self, path: Path, rules: checkpoints.Rules | None = None, name: str | None = None) -> None:
        """Load a file's weights (or a folder's), strictly. The file's kind is seen from its entries."""
        config = self.adapt(self.config, path)
        state = checkpoints.read_state_dict(path)
        checkpoints.load_into(self, state, self._rules(state, rules), name or str(path))
        self.config = config

    def load_checkpoint(self, source: str | Path) -> None:
        """Replace the weights by those of a folder, file, URL or Hugging Face id, strictly."""
        device = self.device
        self.load_file(locate(str(source)))
        self.to(device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and the vocabulary, from which `load_model` restores this model."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = dataclasses.asdict(self.config)
        if "vocabulary" in config:
            config["vocabulary"] = VOCABULARY_NAME
        description = {"arch": self.registered_name, "model_type": self.model_type, "config": config}
        checkpoints.write_state_dict(self, folder / checkpoints.WEIGHTS_NAME)
        if self.tokenizer is not None:
            shutil.copyfile(self.tokenizer.vocabulary, folder / VOCABULARY_NAME)
        temporary = folder / (CONFIG_NAME + ".tmp")
        temporary.write_text(json.dumps(description, indent=1), encoding="utf-8")
        temporary.replace(folder / CONFIG_NAME)

    @classmethod
    def from_folder(cls, folder: Path, for_training: bool = True) -> BaseModel:
        """The model that `save_pretrained` wrote."""
        description = read_description(folder)
        model_type = str(description.get("model_type"))
        if model_type not in cls.PRESETS:
            raise ValueError(
                f"{folder / CONFIG_NAME}: {cls.registered_name} has no model type {model_type!r}."
                f"{suggest(model_type, cls.PRESETS)}"
            )
        config = override(
            cls.PRESETS[model_type].config, description["config"], f"{folder / CONFIG_NAME}: config"
        )
        if getattr(config, "vocabulary", None) == VOCABULARY_NAME:
            config = dataclasses.replace(config, vocabulary=str(folder / VOCABULARY_NAME))
        model = cls.from_file(set_for_training(config, for_training), folder)
        model.model_type = model_type
        return model

    # ------------------------------------------------------------------------------ use
    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def pack_weights(self, on: bool = True) -> BaseModel:
        """Keep (or drop) a second copy of the weights in the CPU's fastest layout, for generation.

        Decoding steps get faster for the memory of the weights once more. Undone by
        `.train()`, `.to(...)` and `pack_weights(False)`; without effect on other devices. Self-attention of
        texts then is one product, which passes by hooks on its query, key and value.
        """
        for module in reversed(list(self.modules())):  # parts before wholes, which may take their place
            if isinstance(module, Packing):
                if on:
                    module.pack()
                else:
                    module.unpack()
        return self

    def preprocess_config(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The processors of this model's preset, for its own image size."""
        preset = self.preset(self.model_type) if self.model_type else None
        if preset is None:
            return {"vis_processor": {}, "text_processor": {}}
        size = getattr(self.config, "image_size", None)
        vis = {
            phase: {**({"image_size": size} if size else {}), **cfg}
            for phase, cfg in preset.vis_processor.items()
        }
        return {
            "vis_processor": vis,
            "text_processor": {k: dict(v) for k, v in preset.text_processor.items()},
        }

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1) -> list[dict[str, Any]]:
        """Two parameter groups: no decay for tensors of one dimension and names with bias, ln or bn."""
        decay: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            free = parameter.ndim < 2 or any(part in name for part in ("bias", "ln", "bn"))
            (plain if free else decay).append(parameter)
        return [
            {"params": decay, "weight_decay": weight_decay, "lr_scale": lr_scale},
            {"params": plain, "weight_decay": 0.0, "lr_scale": lr_scale},
        ]

    def show_n_params(self, return_str: bool = True) -> str | int:
        """Number of parameters, as "123.4M" or as an integer."""
        total = sum(p.numel() for p in self.parameters())
        if not return_str:
            return total
        return f"{total / 1e6:.1f}M" if total >= 1e6 else f"{total / 1e3:.1f}K"


def read_description(folder: Path) -> dict[str, Any]:
    """config.json of a folder written by `save_pretrained`."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint folder: it has no {CONFIG_NAME}")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path} is damaged: {e}") from e
    if not isinstance(description, dict) or not {"arch", "config"} <= description.keys():
        raise ValueError(f"{path} does not describe a model of this library (it lacks 'arch' or 'config')")
    return description


def is_of_transformers(folder: Path) -> bool:
    """Whether transformers wrote a folder, so that its weights are read as a file's."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return False
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path} is damaged: {e}") from e
    return isinstance(description, dict) and "architectures" in description and "arch" not in description


def check_heads(folder: Path, heads: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Compare a transformers folder's numbers of attention heads with ours; shapes of tensors don't tell them.

    Args:
        folder: or a file, or another kind of folder; then there is nothing to compare.
        heads: {section of its config.json: (our number, what transformers takes where none is written)}.

    Returns:
        The folder's config.json, {} where it is not transformers'.

    Raises:
        ValueError: a number differs.
    """
    if not folder.is_dir() or not is_of_transformers(folder):
        return {}
    path = folder / CONFIG_NAME
    theirs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for section, (ours, default) in heads.items():
        number = (theirs.get(section) or {}).get("num_attention_heads", default)
        if number != ours:
            raise ValueError(
                f"{path}: {section}.num_attention_heads is {number}, this model type's is {ours}; "
                "choose another model type"
            )
    return theirs


def locate(source: str, sha256: str | None = None) -> Path:
    """A local folder or file for a path, a URL, a Hugging Face id, or a folder of packaged weights."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.is_relative_to(ASSETS):
        raise FileNotFoundError(
            f"the packaged weights {path.name} are not in this installation; reinstall openlavis"
        )
    from lavis.common import hub

    return hub.fetch(source, sha256=sha256)
