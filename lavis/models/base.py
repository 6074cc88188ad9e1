"""What every model shares: presets, loading and saving, use, training steps, parameter groups, outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from lavis.models import checkpoints, loading, saving
from lavis.models.configs import Preset as Preset
from lavis.models.folders import RANDOM, locate
from lavis.models.loading import PartSettings
from lavis.models.parts import Base, Part, Sources, Taken
from lavis.nn import cpu
from lavis.nn.finite import NonFiniteError, check_finite, explained
from lavis.nn.lora import LoraConfig, adapted_layers, merge_lora
from lavis.nn.outputs import Output as Output

_MEDIA_KEYS = ("image", "video", "image0", "video_fts")  # of samples
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
BatchEncoder = Callable[[Mapping[str, Any]], dict[str, Any]]  # see `BaseModel.batch_encoder`


def prepared(method: F) -> F:
    """On a CPU, run with the model's fast layers (`nn.cpu`), unless it is training."""

    @wraps(method)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            cpu.prepare(self)
        return method(self, *args, **kwargs)

    return wrapped  # type: ignore[return-value]


def inference(method: F) -> F:
    """Run without autograd and without dropout, whatever mode the model is in; the mode is put back. On a CPU its
    layers are fast ones (`nn.cpu`).

    What comes out is finite, or a `NonFiniteError` names the input: the method's first argument, the samples.
    """

    @wraps(method)
    def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        training = self.training
        if training:
            self.eval()
        cpu.prepare(self)
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
    # for files of parts, with the part's own names; of several kinds, told apart by their markers
    PART_RULES: ClassVar[Mapping[str, tuple[checkpoints.Rules, ...]]] = {}

    IMAGE_BLOCKS: ClassVar[str] = "visual_encoder.blocks"  # of the image encoder, for layer-wise decay
    registered_name: ClassVar[str]
    config: Any = None  # a frozen dataclass; None in classes of the original's form
    tokenizer: Any = None  # of models that read text
    model_type: str | None = None
    origin: str = RANDOM  # of the weights: PACKAGED, PUBLISHED or RANDOM; training does not change it
    optimizer_step: OptimizerStep | None = None  # between `before_step` and `after_step`
    # where the weights come from, see `lavis.models.parts`
    parts: Mapping[str, Part] = {}
    weights_from: Base | None = None  # what was loaded last, beside the parts
    fresh_entries: Sequence[str] = ()  # that it did not hold
    taken: Mapping[str, Taken] = {}  # parts that are as their sources gave them; "": what adapters belong to
    lora: LoraConfig | None = None  # its adapters
    lora_trained: Sequence[str] = ()  # parameters that are trained beside them

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

    # ------------------------------------------------------------------------------ weights
    @classmethod
    def complete(cls, config: Any, state: checkpoints.StateDict) -> Any:
        """The config with what a preset leaves open read from a file's entries (a number of classes)."""
        return config

    @classmethod
    def with_parts(cls, config: Any, sources: Sources) -> Any:
        """The config with what a class reads of its parts' folders, such as the sizes of a language model.

        Args:
            sources: `sources.path(part)` is a local file or folder, fetched if need be. A config that has the sizes
                already, as that of a folder of ours, needs none.
        """
        return config

    @classmethod
    def adapt(cls, config: Any, path: Path) -> Any:
        """The config for a file or folder, with what its config.json tells and its tensors' shapes don't.

        Raises:
            ValueError: the model of that folder is another one.
        """
        return config

    @classmethod
    def type_of(cls, path: Path) -> str | None:
        """The model type that a folder of others is of, as far as that can be told; None: it can't."""
        return None

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
    def rules_for(cls, state: checkpoints.StateDict, own: checkpoints.Rules | None) -> checkpoints.Rules:
        """By which rules a file's entries are read: a foreign kind's, else the given ones, else the class's."""
        foreign = next((r for r in cls.FOREIGN_RULES if r.marker in state), None)
        untuned = cls.UNTUNED_RULES
        if foreign or own or untuned is None or untuned.marker not in state:
            return foreign or own or cls.RULES
        return untuned

    @classmethod
    def from_file(
        cls,
        config: Any,
        path: Path,
        rules: checkpoints.Rules | None = None,
        name: str | None = None,
        activation: str | None = None,
        parts: PartSettings | None = None,
    ) -> BaseModel:
        """A model of a config with the weights of a file (or of a folder's file), strictly.

        Args:
            rules: for the class's own kind of file; other kinds are told by their entries.
            name: what messages call the file.
            activation: "gelu" or "quick_gelu", of a class that has both; None: what stands beside the weights.
            parts: where entries come from that the file may lack; None: it has to hold all.
        """
        return loading.from_file(cls, config, path, rules, name, activation, parts)

    @classmethod
    def from_pretrained(cls, model_type: str, for_training: bool = True, parts: Any = None) -> BaseModel:
        """The model of a preset with its finished weights (downloaded once if they are not there).

        Without `for_training`, state that only training uses (EMA copies, queues) is left out. `parts`: see
        `lavis.models.load_model`.
        """
        if model_type in cls.PRETRAINED_MODEL_CONFIG_DICT:
            from omegaconf import OmegaConf

            model: BaseModel = cls.from_config(OmegaConf.load(cls.default_config_path(model_type)).model)
            model.model_type = model_type
            return model
        cfg: dict[str, Any] = {"model_type": model_type}
        if not for_training and hasattr(cls.preset(model_type).config, "for_training"):
            cfg["for_training"] = False
        return cls.from_config(cfg if parts is None else {**cfg, "parts": parts})

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
                own; `parts` replaces sources, formats or freezing of the preset's parts, see
                `lavis.models.parts.Part`; `lora` trains adapters of the weights alone, see
                `lavis.nn.lora.LoraConfig`; every other key replaces one of the preset's config.

        Raises:
            ValueError: an unknown key, weights that do not fit, or keys that do not go together.
            FileNotFoundError, OSError: weights that are not there or cannot be downloaded.
        """
        return loading.from_config(cls, cfg)

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

    def load_file(self, path: Path, rules: checkpoints.Rules | None = None, name: str | None = None) -> None:
        """Load a file's weights (or a folder's), strictly. The file's kind is seen from its entries."""
        loading.load_file(self, path, rules, name)

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

    @classmethod
    def from_folder(cls, folder: Path, for_training: bool = True, parts: Any = None) -> BaseModel:
        """The model that `save_pretrained` wrote; `parts`: see `lavis.models.load_model`."""
        return loading.from_folder(cls, folder, for_training, parts)

    def save_pretrained(
        self,
        folder: str | Path,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        whole: bool = False,
    ) -> None:
        """Write config.json, model.safetensors and the vocabulary, from which `load_model` restores this model.

        Frozen parts are left out as long as they are what their sources gave; of a model with adapters, whose weights
        were loaded, only what was trained is written, to adapter.safetensors. config.json then says where the rest
        lies, and its SHA-256. Of a class in the original's form only the weights are written, for `load_checkpoint`.

        Args:
            state_dict: the entries, where the model itself does not hold them whole.
            whole: leave nothing out.
        """
        saving.save(self, Path(folder), dict(self.state_dict() if state_dict is None else state_dict), whole)

    def save_beside(self, folder: Path, left_out: Collection[str]) -> dict[str, Any]:
        """Write what a folder has to hold beside the weights.

        Args:
            left_out: parts that the folder only refers to.

        Returns:
            entries of the config that are others in the folder.
        """
        return {}

    def save_transformers(self, folder: Path) -> list[str]:
        """Write a folder that the class of transformers for this model loads; gives the entries that it has no place
        for.

        Raises:
            ValueError: there is no such class.
        """
        raise ValueError(f"{self.registered_name} can't be written as a folder of transformers")

    def official_state(self) -> checkpoints.StateDict:
        """The entries with the names and shapes that official files have."""
        return {
            key: tensor.detach().reshape(()) if key in checkpoints.SCALARS else tensor.detach()
            for key, tensor in self.state_dict().items()
        }

    def add_lora(self, config: LoraConfig, trained: Sequence[str] | None = None) -> BaseModel:
        """Train low-rank adapters of the weights, which are frozen from now on; see `lavis.nn.lora`.

        Args:
            trained: parameters that are trained beside them; None: those that the weights' file did not hold, such as
                a new head.
        """
        loading.adapt(self, config, trained)
        return self

    def merge_lora(self) -> BaseModel:
        """Add the adapters, if there are any, to the weights and take them away; results stay, time is saved."""
        merge_lora(self)
        self.lora, self.lora_trained = None, ()
        self.taken = {name: taken for name, taken in self.taken.items() if name}
        return self

    def train(self, mode: bool = True) -> BaseModel:
        """As of every module; frozen parts stay in evaluation mode, adapters in them aside."""
        super().train(mode)
        for name, part in self.parts.items():
            if part.frozen and mode:
                module = self.get_submodule(name).eval()
                for layer in adapted_layers(module).values():
                    layer.training = mode
        return self

    # ------------------------------------------------------------------------------ use
    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def preprocess_config(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The processors of this model's preset, for its own image size."""
        if self.model_type in self.PRETRAINED_MODEL_CONFIG_DICT:
            from omegaconf import OmegaConf

            found = loading.plain(OmegaConf.load(self.default_config_path(str(self.model_type))))  # type: ignore[arg-type]
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
