"""What every model shares: configuration, presets, loading and saving, parameter groups, outputs."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from lavis.common.device import to_device
from lavis.common.files import write_text
from lavis.common.values import suggest
from lavis.models import checkpoints, vocabulary
from lavis.models.tokenizer import ASSETS, Tokenizer
from lavis.nn.finite import NonFiniteError, check_finite, explained
from lavis.nn.linear import Packing
from lavis.nn.outputs import Output as Output

log = logging.getLogger("lavis")

CONFIG_NAME = "config.json"
VOCABULARY_NAME = "vocab.txt"
OPEN_CLIP_CONFIG = "open_clip_config.json"
_LARGEST = 1 << 24  # number of anything in a config
_MEDIA_KEYS = ("image", "video", "image0", "video_fts")  # of samples
ORIGINS = PACKAGED, PUBLISHED, RANDOM = "packaged", "published", "random"  # of weights
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
BatchEncoder = Callable[[Mapping[str, Any]], dict[str, Any]]  # see `BaseModel.batch_encoder`


def inference(method: F) -> F:
    """Run without autograd and without dropout, whatever mode the model is in; the mode is put back.

    What comes out is finite, or a `NonFiniteError` names the input: the method's first argument, the samples.
    """

    @wraps(method)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        training = self.training
        if training:
            self.eval()
        try:
            samples = args[0] if args else kwargs.get("samples")
            with torch.no_grad(), finite_results(self, samples) as check:
                return check(method(self, *args, **kwargs))
        finally:
            if training:
                self.train()

    return wrapped  # type: ignore[return-value]


def own_step(loss: F) -> F:
    """Of a method that gives a training loss: in train mode, a call outside of a step is one, from `before_step` on.

    So a training loop that knows of neither, as those written for the original, trains with one batch per step.
    """

    @wraps(loss)
    def wrapped(self: BaseModel, *args: Any, **kwargs: Any) -> Any:
        if not self.training or self.optimizer_step is not None:
            return loss(self, *args, **kwargs)
        if hasattr(self, "unshard"):  # gathered for this call only: what moved would be lost
            raise RuntimeError(
                f"this {type(self).__name__} is spread over processes (FSDP); call before_step() before the first "
                "batch of a step of the optimizer, and after_step() after it"
            )
        self.before_step()
        try:
            out = loss(self, *args, **kwargs)
            self.after_step()
            return out
        finally:
            self.optimizer_step = None

    return wrapped  # type: ignore[return-value]


@contextmanager
def finite_results(model: nn.Module, samples: Any) -> Iterator[Callable[[T], T]]:
    """Gives a function that returns a result of the samples, or refuses it where it is not finite."""
    found = {}
    if isinstance(samples, Mapping):
        found = {key: samples[key] for key in _MEDIA_KEYS if samples.get(key) is not None}
    key = next(iter(found), "text_input")
    kind = "image" if key.startswith("image") else "video" if key.startswith("video") else "text"
    total = len(found[key]) if found and hasattr(found[key], "__len__") else None

    def check(result: T) -> T:
        if not torch.compiler.is_compiling():
            check_finite(result, total, kind)
        return result

    with explained(model, samples):
        try:
            yield check
        except NonFiniteError as e:
            if (
                total and e.total % total == 0
            ):  # of the rows of a batch, such as several questions about an image
                e.places = sorted({place // (e.total // total) for place in e.places})
                e.total, e.kind = total, kind
            raise


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
        default_for: where this preset is meant if nobody names a model: commands ("caption", "ask", "match",
            "classify", "features", "explain") and tasks of training on own data ("captioning", "vqa", "retrieval",
            "classification"). Of a task and a medium one packaged preset, which is used, and one published, which
            messages recommend.
        generation: options of `generate` that suit these weights better than its defaults; `lavis caption` uses them.
        download_gb: gigabytes of the file of `weights`; None: not known.
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


# -------------------------------------------------------------------------------------------- model


@dataclass
class Noted:
    """What a batch leaves for the end of its step, behind what those before it left.

    A chain and no list: a compiled loss would be compiled anew for each length.
    """

    value: Any = None
    before: Noted | None = None


@dataclass
class OptimizerStep:
    """A step of the optimizer that has begun.

    Attributes:
        progress: epochs of training that are over, with the part of the present one; None: the samples say it.
        alpha: the weight of the EMA's opinion that follows from it, on the device.
        last: what its batches so far have noted, see `BaseModel.note`.
        checked: whether `check_step` has looked at it.
    """

    progress: float | None = None
    alpha: torch.Tensor | None = None
    last: Noted = field(default_factory=Noted)
    checked: bool = False

    def noted(self) -> list[Any]:
        """What its batches noted, in their order."""
        found, here = [], self.last
        while here.before is not None:
            found.append(here.value)
            here = here.before
        return found[::-1]


class _Rows:
    """A class's rows of `lavis.models.zoo`, read when they are first asked for, because they need all families."""

    def __get__(self, model: object, model_class: type) -> dict[str, Preset]:
        from lavis.models.zoo import presets_of

        return presets_of(model_class)


class BaseModel(nn.Module):
    """A model with presets. Subclasses set `RULES`, those from outside also `PRESETS`, and build themselves from a
    config."""

    PRESETS: ClassVar[Mapping[str, Preset]] = _Rows()  # type: ignore[assignment]
    # of classes in the original's form: {model type: YAML file with the sections model and preprocess}
    PRETRAINED_MODEL_CONFIG_DICT: ClassVar[Mapping[str, str]] = {}
    # for files that hold this class's own weights, and for those it is fine-tuned from
    RULES: ClassVar[checkpoints.Rules] = checkpoints.Rules()
    PRETRAINED_RULES: ClassVar[checkpoints.Rules] = checkpoints.Rules()
    FOREIGN_RULES: ClassVar[tuple[checkpoints.Rules, ...]] = ()  # told apart by their markers
    # for files that it is fine-tuned from, where they have all that it needs; told by its marker
    UNTUNED_RULES: ClassVar[checkpoints.Rules | None] = None

    IMAGE_BLOCKS: ClassVar[str] = "visual_encoder.blocks"  # of the image encoder, for layer-wise decay
    registered_name: ClassVar[str]
    config: Any = None  # a frozen dataclass; None in classes of the original's form
    tokenizer: Any = None  # of models that read text
    model_type: str | None = None
    origin: str = RANDOM  # of the weights: PACKAGED, PUBLISHED or RANDOM; training does not change it
    optimizer_step: OptimizerStep | None = None  # between `before_step` and `after_step`

    # ------------------------------------------------------------------------------ construction
    @classmethod
    def types(cls) -> list[str]:
        """Its model types."""
        return [*cls.PRESETS, *cls.PRETRAINED_MODEL_CONFIG_DICT]

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
        cls,
        config: Any,
        path: Path,
        rules: checkpoints.Rules | None = None,
        name: str | None = None,
        activation: str | None = None,
    ) -> BaseModel:
        """A model of a config with the weights of a file (or of a folder's file), strictly.

        Args:
            rules: for the class's own kind of file; other kinds are told by their entries.
            name: what messages call the file.
            activation: "gelu" or "quick_gelu", of a class that has both; None: what stands beside the weights.
        """
        config = cls.adapt(config, path) if activation is None else cls.with_activation(config, activation)
        state = checkpoints.read_state_dict(path)
        rules = cls._rules(state, rules)
        state = rules.without_renewed(state)
        _check_sizes(dataclasses.asdict(config), len(state), path)
        model = cls.build(cls.complete(config, state), empty=not rules.fresh)
        state = model._in_own_vocabulary(state, path)
        checkpoints.load_into(model, state, rules, name or str(path))
        return model

    def _in_own_vocabulary(self, state: checkpoints.StateDict, path: Path) -> checkpoints.StateDict:
        """The entries of a folder that `save_pretrained` wrote, where this model has another vocabulary than it."""
        theirs = path / VOCABULARY_NAME
        if (
            not isinstance(self.tokenizer, Tokenizer)
            or not theirs.is_file()
            or not (path / CONFIG_NAME).is_file()
        ):
            return state
        if theirs.read_bytes() == self.tokenizer.vocabulary.read_bytes():
            return state
        cover = bool(read_description(path)["config"].get("cover", False))
        old = Tokenizer(theirs, extra=self.tokenizer.extra, cover=cover)
        return vocabulary.converted(state, old, self.tokenizer, str(path))

    @classmethod
    def adapt(cls, config: Any, path: Path) -> Any:
        """The config for a file or folder, with what its config.json tells and its tensors' shapes don't.

        Raises:
            ValueError: the model of that folder is another one.
        """
        return config

    @classmethod
    def with_activation(cls, config: Any, activation: str) -> Any:
        """The config with one of the two GELUs.

        Raises:
            ValueError: the class has no choice, or no such activation.
        """
        if not hasattr(config, "quick_gelu"):
            raise ValueError(
                f"activation is {activation!r}, but {cls.registered_name} has one activation only; leave it out"
            )
        if activation not in ("gelu", "quick_gelu"):
            raise ValueError(f"activation is {activation!r}; it must be gelu or quick_gelu")
        return dataclasses.replace(config, quick_gelu=activation == "quick_gelu")

    @classmethod
    def _rules(cls, state: checkpoints.StateDict, own: checkpoints.Rules | None) -> checkpoints.Rules:
        foreign = next((r for r in cls.FOREIGN_RULES if r.marker in state), None)
        untuned = cls.UNTUNED_RULES
        if foreign or own or untuned is None or untuned.marker not in state:
            return foreign or own or cls.RULES
        return untuned

    @classmethod
    def from_pretrained(cls, model_type: str, for_training: bool = True) -> BaseModel:
        """The model of a preset with its finished weights (downloaded once if they are not there).

        Without `for_training`, state that only training uses (EMA copies, queues) is left out.
        """
        if model_type in cls.PRETRAINED_MODEL_CONFIG_DICT:
            from omegaconf import OmegaConf

            model: BaseModel = cls.from_config(OmegaConf.load(cls.default_config_path(model_type)).model)
            model.model_type = model_type
            return model
        cfg: dict[str, Any] = {"model_type": model_type}
        if not for_training and hasattr(cls.preset(model_type).config, "for_training"):
            cfg["for_training"] = False
        return cls.from_config(cfg)

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> BaseModel:
        """A model from a recipe's `model` section, or from that of one of the original's model files.

        Args:
            cfg: `model_type` names the preset; `weights` says what to load: "finetuned" (the preset's
                own, the default; where it has none, "pretrained"), "pretrained" (what they were
                fine-tuned from), "none" (starting weights), or finished weights' path, URL or Hugging
                Face id; `pretrained`, with weights "pretrained", takes the place of the preset's: a
                path, URL or id; `init`, with weights "none", starts parts from other models' weights,
                see `start_from`; `temperature` starts a contrastive loss from it instead of from the weights'
                own; every other key replaces one of the preset's config.

        Raises:
            ValueError: an unknown key, weights that do not fit, or keys that do not go together.
            FileNotFoundError, OSError: weights that are not there or cannot be downloaded.
        """
        from lavis.common.config import translate_model

        cfg = translate_model({"arch": cls.registered_name, **_plain(cfg)})
        kind, source = cls.source_of(cfg)
        cfg.pop("arch", None)
        model_type = cfg.pop("model_type")
        preset = cls.preset(model_type)
        if kind == "file" and source == preset.weights:
            kind = "finetuned"  # whose checksum may be known
        init, pretrained = cfg.pop("init", None), cfg.pop("pretrained", None)
        weights, temperature = cfg.pop("weights", "finetuned"), cfg.pop("temperature", None)
        if pretrained and kind != "pretrained":
            raise ValueError(
                f"model.pretrained is {pretrained!r}, but model.weights is {weights!r}; to fine-tune from that file, "
                "set model.weights to pretrained"
            )
        config = override(preset.config, cfg, "model")
        if source is None:
            model = cls.build(config)
            model.start_from(init or {})
        elif init:
            raise ValueError(
                f"model.init is for starting weights; with model.weights {weights!r} it has no use"
            )
        else:
            rules = None
            if kind == "pretrained":
                rules = preset.pretrained_rules or cls.PRETRAINED_RULES
            sha256 = preset.sha256 if kind == "finetuned" else None
            model = cls.from_file(config, locate(source, sha256=sha256), rules, name=source)
        if temperature is not None:
            model.set_temperature(temperature)
        model.model_type, model.origin = model_type, origin_of(source)
        return model

    @classmethod
    def source_of(cls, cfg: Mapping[str, Any]) -> tuple[str, str | None]:
        """Where the weights of a recipe's `model` section come from.

        Returns:
            "finetuned" or "pretrained" (of the preset), "file" or "none"; and a path, URL or Hugging Face id, None
            for starting weights.

        Raises:
            ValueError: there is no model type, or no pre-trained weights of it are known.
        """
        model_type = cfg.get("model_type")
        if model_type is None:
            raise ValueError(
                f"model.model_type is missing; {cls.registered_name} has {', '.join(cls.PRESETS)}"
            )
        preset = cls.preset(model_type)
        weights, pretrained = cfg.get("weights", "finetuned"), cfg.get("pretrained")
        if weights == "finetuned" and not preset.weights and (pretrained or preset.pretrained):
            weights = "pretrained"
        if weights == "finetuned":
            return "finetuned" if preset.weights else "none", preset.weights
        if weights == "pretrained":
            source = pretrained or preset.pretrained or preset.weights
            if source is None:
                raise ValueError(
                    f"model.weights is 'pretrained', but {cls.registered_name} {model_type} knows none; "
                    "say with model.pretrained where they are, or set model.weights to none"
                )
            return "pretrained", source
        return ("none", None) if weights in ("none", None, False) else ("file", str(weights))

    def set_temperature(self, temperature: float) -> None:
        """Set what cosines are divided by in the contrastive loss.

        Raises:
            ValueError: the model has no such temperature.
        """
        raise ValueError(
            f"model.temperature: {self.registered_name} has no temperature of a contrastive loss"
        )

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

    def load_checkpoint(self, url_or_filename: str | Path) -> None:
        """Replace the weights by those of a folder, file, URL or Hugging Face id, strictly."""
        device = self.device
        self.load_file(locate(str(url_or_filename)))
        self.to(device)

    def load_from_pretrained(self, url_or_filename: str | Path, **unused: Any) -> None:
        """Take pre-trained weights to fine-tune from; what the file lacks, such as new heads, stays as it is."""
        device = self.device
        preset = self.preset(self.model_type) if self.model_type else None
        rules = (preset and preset.pretrained_rules) or self.PRETRAINED_RULES
        self.load_file(locate(str(url_or_filename)), rules)
        self.to(device)

    def load_checkpoint_from_config(self, cfg: Mapping[str, Any], **unused: Any) -> None:
        """Load what a section `model` of the original names: `finetuned`, or `pretrained` without `load_finetuned`."""
        if cfg.get("load_finetuned", True):
            if not cfg.get("finetuned"):
                raise ValueError("model.load_finetuned is true, but model.finetuned names no weights")
            self.load_checkpoint(cfg["finetuned"])
        elif cfg.get("load_pretrained", True):
            if not cfg.get("pretrained"):
                raise ValueError("model.load_pretrained is true, but model.pretrained names no weights")
            self.load_from_pretrained(cfg["pretrained"])

    def save_pretrained(
        self, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        """Write config.json, model.safetensors and the vocabulary, from which `load_model` restores this model.

        Of a class in the original's form only the weights, for `load_checkpoint`.

        Args:
            state_dict: the entries, where the model itself does not hold them whole.
        """
        state = dict(self.state_dict() if state_dict is None else state_dict)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.config is None:
            checkpoints.write_state_dict(state, folder / checkpoints.WEIGHTS_NAME)
            return
        config = dataclasses.asdict(self.config)
        if "vocabulary" in config:
            config["vocabulary"] = VOCABULARY_NAME
        description = {
            "arch": self.registered_name,
            "model_type": self.model_type,
            "origin": self.origin,
            "config": config,
        }
        checkpoints.write_state_dict(state, folder / checkpoints.WEIGHTS_NAME)
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
        if not isinstance(description["config"], dict):
            raise ValueError(f"{folder / CONFIG_NAME}: config is no mapping of names and values")
        config = override(
            cls.PRESETS[model_type].config, description["config"], f"{folder / CONFIG_NAME}: config"
        )
        if getattr(config, "vocabulary", None) == VOCABULARY_NAME:
            config = dataclasses.replace(config, vocabulary=str(folder / VOCABULARY_NAME))
        model = cls.from_file(set_for_training(config, for_training), folder)
        model.model_type, model.origin = model_type, origin_of(folder)
        return model

    # ------------------------------------------------------------------------------ use
    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def pack_weights(self, on: bool = True) -> BaseModel:
        """Keep (or drop) a second copy of the weights in the CPU's fastest layout, for generation.

        Decoding steps get faster for the memory of the weights once more. Undone by
        `.train()`, `.to(...)` and `pack_weights(False)`; without effect on other devices. Layers with hooks, and
        adapters put in the place of layers, are called as ever.
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
        if self.model_type in self.PRETRAINED_MODEL_CONFIG_DICT:
            from omegaconf import OmegaConf

            found = _plain(OmegaConf.load(self.default_config_path(str(self.model_type))))  # type: ignore[arg-type]
            return found.get("preprocess") or {}
        preset = self.preset(self.model_type) if self.model_type else None
        if preset is None:
            return {"vis_processor": {}, "text_processor": {}}
        return self._preprocessing(preset, self.config)

    @classmethod
    def _preprocessing(cls, preset: Preset, config: Any) -> dict[str, dict[str, dict[str, Any]]]:
        size = getattr(config, "image_size", None)
        vis = {
            phase: {**({"image_size": size} if size else {}), **cfg}
            for phase, cfg in preset.vis_processor.items()
        }
        return {
            "vis_processor": vis,
            "text_processor": {k: dict(v) for k, v in preset.text_processor.items()},
        }

    @classmethod
    def default_config_path(cls, model_type: str) -> str:
        """A YAML file with the sections `model` and `preprocess` of a model type, written to the cache.

        `from_config` and `load_preprocess` build from its sections what `load_model_and_preprocess` gives.

        Raises:
            ValueError: an unknown model type.
        """
        from omegaconf import OmegaConf

        from lavis.common import hub

        if model_type in cls.PRETRAINED_MODEL_CONFIG_DICT:
            given = Path(cls.PRETRAINED_MODEL_CONFIG_DICT[model_type]).expanduser()
            packaged = Path(__file__).parent.parent / given
            return str(given if given.exists() or not packaged.exists() else packaged)
        preset = cls.preset(model_type)
        values = {f.name: getattr(preset.config, f.name) for f in dataclasses.fields(preset.config)}
        model = {
            "arch": cls.registered_name,
            "model_type": model_type,
            "load_finetuned": preset.weights is not None,
            "load_pretrained": preset.pretrained is not None,
            "finetuned": preset.weights,
            "pretrained": preset.pretrained,
            **{k: v for k, v in values.items() if isinstance(v, (bool, int, float, str))},
        }
        content = {"model": model, "preprocess": cls._preprocessing(preset, preset.config)}
        path = Path(hub.cache_root()) / "configs" / f"{cls.registered_name}_{model_type}.yaml"
        text = OmegaConf.to_yaml(OmegaConf.create(content))
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
        return str(path)

    def before_training(self, dataset: Any = None, task_type: Any = None, **unused: Any) -> None:
        """Called with `dataset` and `task_type` before training; for classes that prepare something."""

    def before_evaluation(self, dataset: Any = None, task_type: Any = None, **unused: Any) -> None:
        """Called with `dataset` and `task_type` before a data set is evaluated; for classes that prepare something."""

    # ------------------------------------------------------------------------------ samples
    def batch_encoder(self) -> BatchEncoder | None:
        """What makes tokens of the texts in samples, for the processes that load data: it pickles without the weights.

        It gives the samples with `tokens`, {role: Tokens} of every text that the training loss reads, and with
        whatever else the loss needs to know of texts, as tensors. It refuses samples that the loss can't be computed
        of. None: the model reads strings (or no texts).
        """
        return None

    def encode_batch(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """The samples with tokens, see `batch_encoder`; where they were. Needs no weights.

        Raises:
            ValueError: something is missing, or does not go together.
        """
        encoder = self.batch_encoder()
        return dict(samples if encoder is None else encoder(samples))

    def encoded(self, samples: Mapping[str, Any]) -> Mapping[str, Any]:
        """Samples for the loss: a batch that the loader has encoded as it is, others encoded, on the model's device."""
        if "tokens" in samples:
            return samples
        moved: dict[str, Any] = to_device(self.encode_batch(samples), self.device)
        return moved

    # ------------------------------------------------------------------------------ training
    def before_step(self, progress: float | None = None) -> None:
        """Begin a step of the optimizer, before its first batch: temperatures are clamped, the EMA moves.

        What a loss only reads changes here and in `after_step`, not in `forward`: however many batches accumulate
        their gradients, it is one step. Whoever calls neither trains with one batch per step (`own_step`).

        Args:
            progress: epochs of training that are over, with the part of the present one (1.25); on it depends how
                much the EMA's opinion weighs. None: `epoch`, `iters`, `num_iters_per_epoch` of the samples say it.
        """
        self.optimizer_step = OptimizerStep(progress)

    def note(self, value: Any) -> None:
        """Leave something of a batch for `check_step` and `after_step`."""
        step = self.optimizer_step
        if step is not None:
            step.last = Noted(value, step.last)

    def check_step(self) -> None:
        """Before the optimizer moves the weights: refuse batches whose losses mean nothing.

        What has to be known on the host for that is asked here, once for all batches, and not in the loss.
        """
        if self.optimizer_step is not None:
            self.optimizer_step.checked = True

    def after_step(self) -> None:
        """End the step: the features of all its batches enter the queue."""
        self.optimizer_step = None

    def get_optimizer_params(self, weight_decay: float, lr_scale: float = 1) -> list[dict[str, Any]]:
        """Parameter groups: no decay for tensors of one dimension and names with bias, ln or bn.

        Args:
            lr_scale: not 1: the learning rate falls by this factor from block to block of the image encoder, see
                `lavis.common.parameters.layer_decay`; the groups then say it as their "lr_scale".

        Raises:
            ValueError: the model has no blocks (IMAGE_BLOCKS) for that.
        """
        from lavis.common import optims, parameters

        groups = optims.parameter_groups(self.named_parameters(), weight_decay)
        if lr_scale == 1:
            return groups
        try:
            rules = parameters.layer_decay(self, self.IMAGE_BLOCKS, lr_scale)
        except AttributeError:
            raise ValueError(
                f"run.lr_layer_decay is {lr_scale}, but {type(self).__name__} has no image encoder with blocks; use "
                "run.parameters with lr_scale"
            ) from None
        return parameters.grouped(groups, self, rules)

    def show_n_params(self, return_str: bool = True) -> str | int:
        """Number of parameters, as "123.4M" or as an integer."""
        total = sum(p.numel() for p in self.parameters())
        if not return_str:
            return total
        return f"{total / 1e6:.1f}M" if total >= 1e6 else f"{total / 1e3:.1f}K"


def _check_sizes(config: Mapping[str, Any], entries: int, path: Path) -> None:
    """Refuse a config that no file of so many entries can be of, before a model of its sizes is built.

    Raises:
        ValueError: more layers than entries, or a size beyond all models'.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_sizes(value, entries, path)
            continue
        most = entries if key in ("depth", "layers") else _LARGEST
        for number in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(number, int) and number > most:
                raise ValueError(f"{path}: {key} is {number}, but the file has {entries} entries")


def origin_of(source: str | Path | None) -> str:
    """What weights are at bottom: PACKAGED, PUBLISHED or RANDOM (trained from random ones too).

    Args:
        source: a path, URL or Hugging Face id; None: starting weights. A folder of this library is what the weights
            were that its training began with.
    """
    if source is None:
        return RANDOM
    folder = Path(source).expanduser()
    if folder.is_relative_to(ASSETS):
        return PACKAGED
    if not (folder / CONFIG_NAME).is_file() or is_foreign(folder):
        return PUBLISHED
    description = read_description(folder)
    if description.get("origin") in ORIGINS:
        return str(description["origin"])
    # written before folders said so: as the model type starts
    from lavis.common.registry import registry

    model_class = registry.get_model_class(description["arch"])
    preset = model_class.PRESETS.get(str(description.get("model_type")))
    return origin_of(preset.weights or preset.pretrained) if preset is not None else PUBLISHED


def _plain(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A section as plain values, of OmegaConf too."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg)
    return {str(key): value for key, value in values.items()}  # type: ignore[union-attr]


def read_description(folder: Path) -> dict[str, Any]:
    """config.json of a folder written by `save_pretrained`."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint folder: it has no {CONFIG_NAME}")
    description = checkpoints.read_json(path)
    if not isinstance(description, dict) or not {"arch", "config"} <= description.keys():
        raise ValueError(f"{path} does not describe a model of this library (it lacks 'arch' or 'config')")
    return description


def is_foreign(folder: Path) -> bool:
    """Whether others wrote a folder (transformers, OpenCLIP, or weights alone), so that it is read as a file is."""
    if not (folder / CONFIG_NAME).is_file():
        return checkpoints.weights_in(folder) is not None
    description = checkpoints.read_json(folder / CONFIG_NAME)
    return (
        isinstance(description, dict)
        and "arch" not in description
        and ("architectures" in description or (folder / OPEN_CLIP_CONFIG).is_file())
    )


def is_of_transformers(folder: Path) -> bool:
    """Whether transformers wrote a folder."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return False
    description = checkpoints.read_json(path)
    return isinstance(description, dict) and "architectures" in description and "arch" not in description


def check_heads(folder: Path, heads: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Compare a transformers folder's numbers of attention heads with ours; shapes of tensors don't tell them.

    Args:
        folder: or a file of it; of others there is nothing to compare.
        heads: {section of its config.json: (our number, what transformers takes where none is written)}.

    Returns:
        The folder's config.json, {} where it is not transformers'.

    Raises:
        ValueError: a number differs.
    """
    if folder.name in checkpoints.WEIGHTS_NAMES:
        folder = folder.parent  # a file of such a folder
    if not folder.is_dir() or not is_of_transformers(folder):
        return {}
    path = folder / CONFIG_NAME
    theirs: dict[str, Any] = checkpoints.read_json(path)
    for section, (ours, default) in heads.items():
        described = theirs.get(section)
        number = described.get("num_attention_heads", default) if isinstance(described, dict) else default
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
