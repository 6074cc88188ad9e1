"""Models: how to list them, load them, and get the processors that go with them (paper, section 4.2)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lavis.common import moved
from lavis.common.registry import registry
from lavis.models import blip2_folders, folders, peft_folders, sizes
from lavis.models.base import BaseModel, Output
from lavis.models.configs import Preset, set_for_training
from lavis.models.loading import PartSettings, put_adapters
from lavis.models.parts import Base, Part, portable

__all__ = [
    "BaseModel",
    "Output",
    "Part",
    "Preset",
    "build_model",
    "load_model",
    "load_model_and_preprocess",
    "load_preprocess",
    "model_zoo",
]

log = logging.getLogger("lavis")
Processors = dict[str, Any]


def _own(name: str) -> Any:
    """A registered class by its name, as in `from lavis.models import BlipCaption`."""
    if name[:1].isupper():
        for registered in registry.list_models():
            cls = registry.get_model_class(registered)
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module 'lavis.models' has no attribute {name!r}")


__getattr__ = moved.names_of(__name__, _own)


def load_model(
    name: str,
    model_type: str | None = None,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    for_training: bool = True,
    activation: str | None = None,
    parts: Mapping[str, Any] | None = None,
) -> BaseModel:
    """Load a model.

    Args:
        name: a registered name (`model_zoo` lists them), or a folder that `save_pretrained` or a
            training run wrote, or one of transformers' with BLIP-2 or InstructBLIP.
        model_type: one of the name's types; may be left out for a folder, or where there is one only.
        is_eval: whether to return it in evaluation mode. `generate`, `predict_answers` and the like never use
            dropout, in either mode.
        device: "cpu", "cuda", "mps", "auto", …
        checkpoint: weights to use instead of the preset's: a folder, a `.safetensors` or official
            `.pth` file, a URL, a Hugging Face id, a folder of transformers or OpenCLIP. Then nothing else is
            downloaded, but for what such a folder refers to. Of a folder of peft's adapters the weights are the
            preset's.
        activation: "gelu" or "quick_gelu", of a checkpoint for CLIP beside which nothing says it (OpenCLIP's files
            alone).
        for_training: whether to keep what only the training loss needs (momentum copies, queues). Without it a model
            of a family that has them takes about half the memory, and can't compute its training loss.
        parts: of a model whose weights come from several files, {part: source}, or {part: {"source": …, "dtype": …,
            "frozen": …}} with some of these keys; see `lavis.models.parts.Part`.

    Raises:
        ValueError: an unknown name or type (with the nearest known ones), weights that do not fit.
        FileNotFoundError, OSError: weights that are not there or cannot be downloaded.
    """
    from lavis.common.device import pick_device

    place = pick_device(device)
    with sizes.going_to(place):
        model = _load(name, model_type, checkpoint, for_training, activation, parts)
    if is_eval:
        model.eval()
    return model.to(place)


def _load(
    name: str,
    model_type: str | None,
    checkpoint: str | Path | None,
    for_training: bool,
    activation: str | None,
    parts: Mapping[str, Any] | None,
) -> BaseModel:
    if model_type is None and _is_folder(name):
        checkpoint, name = (Path(name) if checkpoint is None else checkpoint), _arch(Path(name))
    cls = registry.get_model_class(name)
    if checkpoint is not None:
        path = folders.locate(str(checkpoint))
        if path.is_dir() and peft_folders.is_of_peft(path):
            model = cls.from_pretrained(_one_type(cls, model_type), for_training=for_training, parts=parts)
            put_adapters(model, path)
        elif path.is_dir() and not folders.is_foreign(path):
            if activation is not None:
                raise ValueError(f"{path} says which activation its model has; leave activation out")
            arch = _arch(path)
            if registry.get_model_class(arch) is not cls:
                raise ValueError(f"{path} holds a {arch}, not a {name}")
            model = cls.from_folder(path, for_training=for_training, parts=parts)
        else:
            model_type = _one_type(cls, model_type or cls.type_of(path))
            preset = cls.preset(model_type)
            config = set_for_training(preset.config, for_training)
            settings = PartSettings(preset.parts, parts, "parts")
            model = cls.from_file(config, path, activation=activation, parts=settings)
            model.model_type, model.weights_from = model_type, Base(portable(str(checkpoint)))
    elif activation is not None:
        raise ValueError("activation is of a checkpoint; name one with checkpoint")
    else:
        model = cls.from_pretrained(_one_type(cls, model_type), for_training=for_training, parts=parts)
    return model


def load_preprocess(config: Mapping[str, Any]) -> tuple[Processors, Processors]:
    """Processors of a `preprocess` mapping: (pictures', texts'), each {"train": …, "eval": …}.

    A part that is not described passes its input on unchanged.
    """
    from lavis.processors import load_processor

    def build(section: Mapping[str, Any] | None) -> Processors:
        out = {}
        for phase in ("train", "eval"):
            cfg = dict((section or {}).get(phase) or {"name": "base_processor"})
            out[phase] = load_processor(cfg.pop("name", "base_processor"), cfg)
        return out

    return build(config.get("vis_processor")), build(config.get("text_processor"))


def load_model_and_preprocess(
    name: str,
    model_type: str | None = None,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    checkpoint: str | Path | None = None,
    for_training: bool = True,
    parts: Mapping[str, Any] | None = None,
) -> tuple[BaseModel, Processors, Processors]:
    """`load_model`, and the processors of its pictures and texts: (model, vis_processors, txt_processors)."""
    model = load_model(name, model_type, is_eval, device, checkpoint, for_training=for_training, parts=parts)
    vis, txt = load_preprocess(model.preprocess_config())
    return model, vis, txt


def build_model(cfg: Mapping[str, Any]) -> BaseModel:
    """A model of a recipe's `model` section; see `BaseModel.from_config`."""
    if "arch" not in cfg:
        raise ValueError(f"model.arch is missing; known: {', '.join(registry.list_models())}")
    cls = registry.get_model_class(str(cfg["arch"]))
    model_type = cfg.get("model_type")
    if model_type in getattr(cls, "PRETRAINED_MODEL_CONFIG_DICT", {}):
        from omegaconf import OmegaConf

        # over the class's own file
        own = OmegaConf.load(cls.default_config_path(model_type))
        cfg = OmegaConf.merge(own.model, dict(cfg))  # type: ignore[assignment]
    model: BaseModel = cls.from_config(cfg)
    return model


class ModelZoo:
    """All registered names and their types; prints as the paper's table."""

    @property
    def model_zoo(self) -> dict[str, list[str]]:
        found = {name: registry.get_model_class(name) for name in registry.list_models()}
        return {name: cls.types() if issubclass(cls, BaseModel) else [] for name, cls in found.items()}

    def preset(self, name: str, model_type: str) -> Preset:
        return registry.get_model_class(name).preset(model_type)

    def __str__(self) -> str:
        rows = [f"{name:<30} {', '.join(types)}" for name, types in self.model_zoo.items()]
        line = "=" * 50
        return "\n".join([line, f"{'Architectures':<30} Types", line, *rows])

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return iter(self.model_zoo.items())

    def __len__(self) -> int:
        return sum(len(types) for types in self.model_zoo.values())


model_zoo = ModelZoo()


def _is_folder(name: str) -> bool:
    return Path(name).is_dir()


def _arch(folder: Path) -> str:
    return blip2_folders.class_of(folder) or str(folders.read_description(folder)["arch"])


def _one_type(cls: type[BaseModel], model_type: str | None) -> str:
    if model_type is not None:
        return model_type
    if len(cls.types()) == 1:
        return cls.types()[0]
    raise ValueError(
        f"{cls.registered_name} has several types; choose model_type from {', '.join(cls.types())}"
    )
