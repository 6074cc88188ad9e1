"""Which model is meant, and that model with all that it needs: processors, device, precision."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lavis.common import device as devices
from lavis.common import elsewhere, memory
from lavis.common.files import is_clip, is_folder
from lavis.common.images import open_image
from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.models import BaseModel, load_model_and_preprocess
from lavis.models.folders import read_description
from lavis.nn import cpu
from lavis.processors.video import choose_frames

_VALUES = 1024  # of a tensor that a fingerprint looks at
UNKNOWN_ROOM = 1 << 32  # bytes of weights that are copied where nobody knows how much memory is left


@dataclass(frozen=True)
class Loaded:
    """A model ready for use.

    Attributes:
        spec: what it was asked for by: <name>/<type>, a folder, or a Hugging Face id.
        model: in evaluation mode, on its device.
        vis: a picture (or, of models of clips, a file, frames or pictures) to the model's tensor.
        txt: clean-up of a text, as the model's training texts were cleaned.
        precision: "fp32", "bf16" or "fp16", of the arithmetic.
        checkpoint: the weights that were asked for in place of the model's own.
        pointing: how often its heat maps find what a word names, in percent; None: not measured. See `Preset`.
        generation: options of `generate` that suit its weights; see `Preset`.
    """

    spec: str
    model: BaseModel
    vis: Callable[[Any], torch.Tensor]
    txt: Callable[[str], str]
    precision: str = "fp32"
    checkpoint: str | None = None
    pointing: float | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    def prepare(self, item: Any) -> torch.Tensor:
        """What the model takes of a picture or clip, or a tensor that is that already.

        To a model of clips a picture is a clip in which nothing moves. Can run in threads while the model computes.
        """
        if isinstance(item, torch.Tensor):
            return item
        return self.vis([item] if self.sees == "video" and isinstance(item, Image.Image) else item)

    def read(self, path: Path) -> torch.Tensor:
        """`prepare` of a file: an upright picture, or a clip.

        Raises:
            OSError: it can't be read.
            ValueError: it is a clip, and the model is for pictures.
            ImportError: it is a clip, and PyAV is not installed.
        """
        return self.prepare(path if self._is_clip(path) else open_image(path))

    def pictures(self, path: Path) -> list[Image.Image]:
        """What the model looks at in a file, to be shown: an upright picture, or evenly spread frames of a clip.

        Raises: as `read`.
        """
        if self._is_clip(path):
            return choose_frames(path, getattr(self.vis, "n_frms", None))
        return [open_image(path)]

    def _is_clip(self, path: Path) -> bool:
        clip = is_clip(path, self.sees)
        if clip and self.sees == "image":
            raise ValueError(
                f"{path} is a video, and {self.spec} is for images; choose a model of videos{_such_as(self.model)}"
            )
        return clip

    @property
    def pairs(self) -> bool:
        """Whether the model judges texts about two images, `image0` and `image1` of samples."""
        return bool(getattr(self.model, "PAIRS", False))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A fresh context in which the model computes in its precision."""
        return devices.autocast(self.model.device, self.precision)

    @property
    def sees(self) -> str:
        """ "image" or "video": the key of the model's samples."""
        return _media_of(type(self.model))

    @property
    def is_random(self) -> bool:
        """Whether the model has its random starting weights, so that its results mean nothing."""
        if self.checkpoint is not None or is_folder(self.spec) or self.model.model_type is None:
            return False
        if next(self.model.parameters(), None) is None:
            return False  # there is nothing to learn
        preset = self.model.preset(self.model.model_type)
        return preset.weights is None and preset.pretrained is None

    def settings(self) -> dict[str, Any]:
        """What decides this model's results beside the arguments of a call: its name, weights and processors."""
        return {
            "model": self.spec, "checkpoint": self.checkpoint, "fingerprint": self.fingerprint(),
            "processor": _named(self.vis), "text_processor": _named(self.txt),
        }  # fmt: skip

    def fingerprint(self) -> str:
        """Tells this model's weights from others: names, shapes and up to 1024 values of every tensor (hexadecimal).

        Features of models with different fingerprints don't go together.
        """
        digest = hashlib.sha256(self.model.registered_name.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            values = tensor.detach().flatten()
            some = values[:: max(1, len(values) // _VALUES)][:_VALUES].double().cpu().numpy()
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(some.astype("<f8").tobytes())
        return digest.hexdigest()


def _named(processor: Any) -> str:
    # what is no processor of ours may show its place in memory, which says nothing
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(processor))


def split_model(spec: str) -> tuple[str, str | None]:
    """`arch/type`, `arch`, a folder or a Hugging Face id as the first two arguments of `load_model`.

    Raises:
        ValueError: no such model; near names are suggested.
        OSError: an id that is not in the cache and can't be downloaded.
    """
    if is_folder(spec):
        return str(Path(spec).expanduser()), None
    arch, slash, model_type = spec.partition("/")
    known = registry.list_models()
    if arch in known:
        return arch, model_type or None
    if elsewhere.where(arch):
        raise ValueError(f"there is no model {spec!r}: {elsewhere.where(arch)}")
    near = suggest(arch, known)
    if slash and near.startswith(" Known:"):  # nothing near: it may be on the Hugging Face hub
        from lavis.common import hub

        folder = hub.fetch(spec)
        if folder.is_dir():
            return str(folder), None
    raise ValueError(
        f"there is no model {spec[:200]!r}; give <name>/<type> (see `lavis models`) or a checkpoint's folder.{near}"
    )


def sees(spec: str) -> str:
    """What a model is for, "image" or "video", told without loading it.

    Args and Raises: as `split_model`.
    """
    arch, _ = split_model(spec)
    if is_folder(arch):
        # transformers' folders don't name an arch and are of pictures; what is wrong with others is said on loading
        with contextlib.suppress(OSError, ValueError):
            arch = str(read_description(Path(arch))["arch"])
    return _media_of(registry.get_model_class(arch)) if arch in registry.list_models() else "image"


def _such_as(model: Any) -> str:
    """Models of videos with an ability of a model of images, for a message."""
    from lavis.inference.abilities import ABILITIES, examples

    own = [ability for ability in ABILITIES if isinstance(model, ability)]
    named = list(dict.fromkeys(spec for ability in own for spec in examples(ability, "video")[:2]))
    return f", such as {', '.join(named[:4])}" if named else ""


def _media_of(model_class: type) -> str:
    return str(getattr(model_class, "MEDIA", "image"))


def _has_room_twice(model: Any, device: torch.device) -> bool:
    """Whether a second copy of a model's weights leaves at least as much memory as it takes."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    left = memory.available(device)
    return size <= (UNKNOWN_ROOM if left is None else left // 2)


def load(
    spec: str,
    checkpoint: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    parts: Mapping[str, Any] | None = None,
) -> Loaded:
    """Load a model for use, not for training.

    Args:
        spec: "<name>/<type>", the folder of a checkpoint, or a Hugging Face id.
        checkpoint: weights to use instead of the model's own: a file, folder, URL or Hugging Face id.
        device, precision: see `lavis.common.device`.
        parts: where parts of the model come from and their number formats, see `lavis.models.load_model`.

    Raises:
        ValueError: no such model or part, weights that do not fit, an unknown device or precision.
        OSError: weights that are not there or can't be downloaded.
    """
    where = devices.pick_device(device)
    chosen = devices.pick_precision(where, precision)
    name, model_type = split_model(spec)
    model, pictures, texts = load_model_and_preprocess(
        name, model_type, is_eval=True, device=where, checkpoint=checkpoint, for_training=False, parts=parts
    )
    if isinstance(model, BaseModel):
        model.merge_lora()  # nothing is trained here
    if where.type == "cpu" and chosen == "fp32":
        cpu.prepare(model, pack=_has_room_twice(model, where))
    presets = getattr(type(model), "PRESETS", {})
    named, of_folder = presets.get(model_type), presets.get(getattr(model, "model_type", None))
    pointing = None if checkpoint or named is None else named.pointing
    generation = getattr(named or of_folder, "generation", {})
    return Loaded(spec, model, pictures["eval"], texts["eval"], chosen, checkpoint, pointing, generation)
