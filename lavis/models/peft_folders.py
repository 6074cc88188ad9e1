"""Adapters that peft has written: adapter_config.json and adapter_model.safetensors, read as ours (`lavis.nn.lora`).

Plain LoRA of linear layers of a model of this library, whose names peft keeps after `base_model.model.`.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from lavis.models import checkpoints
from lavis.models.pickled import shown
from lavis.nn.lora import LoraConfig

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
_ENTRY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# what a folder may say beside plain LoRA, and without what it is that
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none", None), "use_dora": (False, None), "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None), "alpha_pattern": ({}, None), "modules_to_save": ([], None), "lora_bias": (False, None),
    "layer_replication": ([], None), "trainable_token_indices": ([], {}, None), "target_parameters": ([], None),
}  # fmt: skip


def is_of_peft(folder: Path) -> bool:
    """Whether peft wrote a folder."""
    return (folder / CONFIG_NAME).is_file()


def read(folder: Path) -> tuple[LoraConfig, checkpoints.StateDict]:
    """The adapters of a folder: their settings, and their entries under our names.

    Raises:
        ValueError: it is another kind of adapter than plain LoRA, or damaged.
        FileNotFoundError: it has no weights.
    """
    path = folder / CONFIG_NAME
    values = checkpoints.read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not describe adapters")
    for key, plain in _PLAIN.items():
        if values.get(key, plain[-1]) not in plain:
            raise ValueError(
                f"{path}: {key} is {shown(values.get(key))}; only plain LoRA can be read ({plain[0]})"
            )
    rank, alpha, dropout = values.get("r"), values.get("lora_alpha"), values.get("lora_dropout", 0.0)
    for key, value, kinds in (
        ("r", rank, int),
        ("lora_alpha", alpha, (int, float)),
        ("lora_dropout", dropout, (int, float)),
    ):
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{path}: {key} is {shown(value)}; a number was expected")
    assert isinstance(rank, int) and isinstance(alpha, (int, float))
    weights = next((folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has none of {', '.join(WEIGHTS_NAMES)}")
    state: checkpoints.StateDict = {}
    for key, tensor in checkpoints.read_state_dict(weights).items():
        found = _ENTRY.fullmatch(key)
        if found is None:
            raise ValueError(f"{weights}: the entry {shown(key)!r} is none of a linear layer's LoRA")
        state[f"{found[1]}.lora_{found[2].lower()}"] = tensor.float()
    try:
        scale = (
            math.sqrt(rank) if values.get("use_rslora") else 1.0
        )  # alpha / sqrt(rank) instead of alpha / rank
        names = sorted({key.rpartition(".")[0] for key in state})
        return LoraConfig(rank, alpha * scale, dropout, names), state
    except (ValueError, OverflowError) as e:
        raise ValueError(f"{path}: {shown(e)}") from e
