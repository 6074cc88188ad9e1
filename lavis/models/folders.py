"""Folders of weights: what kind one is, what its config.json says, where its weights come from.

A folder that `save_pretrained` wrote has config.json and model.safetensors, or adapter.safetensors where it holds
adapters for other weights. It is incomplete where it refers to others for the rest, see `lavis.models.parts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis.models import checkpoints
from lavis.models.tokenizer import ASSETS
from lavis.nn.lora import merge_lora

if TYPE_CHECKING:
    from lavis.models.base import BaseModel

CONFIG_NAME = "config.json"
VOCABULARY_NAME = "vocab.txt"
ADAPTER_NAME = "adapter.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
ORIGINS = PACKAGED, PUBLISHED, RANDOM = "packaged", "published", "random"  # of weights


def is_incomplete(folder: Path) -> bool:
    """Whether a folder of this library leaves parts out, or holds adapters of other weights."""
    if not (folder / CONFIG_NAME).is_file() or is_foreign(folder):
        return False
    description = checkpoints.read_json(folder / CONFIG_NAME)
    if not isinstance(description, dict):
        return False
    parts = description.get("parts")
    left_out = isinstance(parts, dict) and any(
        isinstance(part, dict) and part.get("sha256") is not None for part in parts.values()
    )
    return left_out or description.get("lora") is not None


def load(folder: Path, for_training: bool = True, parts: Any = None) -> BaseModel:
    """The model of a folder of this library. Args and Raises: as `lavis.models.load_model`."""
    from lavis.common.registry import registry

    model_class = registry.get_model_class(str(read_description(folder)["arch"]))
    model: BaseModel = model_class.from_folder(folder, for_training, parts)
    return model


def completed(folder: Path) -> checkpoints.StateDict:
    """The entries of an incomplete folder's model, with adapters merged into the weights."""
    return dict(merge_lora(load(folder)).state_dict())


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
