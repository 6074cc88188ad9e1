"""CLIP's weights as others write them: another number of patches, transformers' names, its activation."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lavis.models import torchscript
from lavis.models.checkpoints import WEIGHTS_NAME, Rules, StateDict, read_json
from lavis.models.folders import CONFIG_NAME, OPEN_CLIP_CONFIG, check_heads
from lavis.nn.vit import interpolate_positions

if TYPE_CHECKING:
    from lavis.models.clip import ClipConfig

log = logging.getLogger("lavis")


def resize_positions(positions: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Position embeddings (1 + g·g, D), or with a dimension before, for another number of patches.

    Anything else is left to be refused.
    """
    table = positions[0] if positions.ndim == 3 and len(positions) == 1 else positions
    wanted = shape[-2] if len(shape) > 1 else 0
    old, new = (math.isqrt(max(n - 1, 0)) for n in (table.shape[0], wanted))
    if table.ndim != 2 or old < 1 or old**2 + 1 != table.shape[0]:
        return positions
    if old != new:
        log.info("position embeddings are resized from %d x %d to %d x %d patches", old, old, new, new)
    found = interpolate_positions(table[None], wanted)
    return found if len(shape) == 3 else found[0]


def reshaped(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return tensor.reshape(shape) if tensor.numel() == math.prod(shape) else tensor


RESIZE = {
    "visual.cls_token": reshaped,  # (D,) in official files
    "visual.pos_embed": resize_positions,  # (1 + g·g, D) there
    "visual.attnpool.positional_embedding": resize_positions,
}

# Official names, OpenAI's and OpenCLIP's, to ours and back.
_BLOCKS = (
    ("transformer.resblocks.", "transformer."),
    (".attn.in_proj_", ".attn.qkv."),
    (".attn.out_proj.", ".attn.proj."),
    (".ln_1.", ".norm1."),
    (".ln_2.", ".norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
_VISION = (
    ("visual.class_embedding", "visual.cls_token"),
    ("visual.positional_embedding", "visual.pos_embed"),
    ("visual.conv1.", "visual.patch_embed.proj."),
    ("visual.ln_pre.", "visual.norm_pre."),
    ("visual.ln_post.", "visual.norm."),
    ("visual.transformer.resblocks.", "visual.blocks."),
)
# OpenAI's archives hold three numbers that are no weights; OpenCLIP's models with a text tower of its own a prefix.
OFFICIAL = Rules(
    rename=(
        (r"^text\.(?=transformer\.|token_|positional_|ln_final\.|text_projection)", ""),
        *((re.escape(old), new) for old, new in _BLOCKS),
    ),
    drop=("input_resolution", "context_length", "vocab_size"),
    resize=RESIZE,
)
OFFICIAL_VIT = replace(
    OFFICIAL,
    marker="visual.class_embedding",
    rename=(*((f"^{re.escape(old)}", new) for old, new in _VISION), *OFFICIAL.rename),
)


def tower_names(prefix: str) -> tuple[tuple[str, str], ...]:
    """Renaming rules for CLIP's image transformer, official names to ours, whose entries begin with `prefix`."""
    outside = ((old.replace("visual.", prefix, 1), new.replace("visual.", prefix, 1)) for old, new in _VISION)
    inside = ((rf"^({re.escape(prefix)}.*){re.escape(old)}", rf"\1{new}") for old, new in _BLOCKS[1:])
    return (*((f"^{re.escape(old)}", new) for old, new in outside), *inside)


def official(state: StateDict) -> StateDict:
    """A model's entries under the official names, in the official shapes."""
    image_tower = _VISION if "visual.cls_token" in state else ()
    out: StateDict = {}
    for key, tensor in state.items():
        if key in ("visual.cls_token", "visual.pos_embed"):
            tensor = tensor.reshape(tensor.shape[-1:] if key.endswith("token") else tensor.shape[-2:])
        for old, new in image_tower:
            key = old + key.removeprefix(new) if key.startswith(new) else key
        key = re.sub(r"^transformer\.(?=\d)", "transformer.resblocks.", key)
        for old, new in _BLOCKS[1:]:
            key = key.replace(new, old)
        out[key] = tensor
    return out


# transformers' CLIPModel
TRANSFORMERS_CLIP = Rules(
    marker="vision_model.embeddings.class_embedding",
    rename=(
        (r"^vision_model\.encoder\.layers\.", "visual.blocks."),
        (r"^text_model\.encoder\.layers\.", "transformer."),
        (r"\.self_attn\.q_proj\.(weight|bias)$", r".attn.qkv.\1#0"),
        (r"\.self_attn\.k_proj\.(weight|bias)$", r".attn.qkv.\1#1"),
        (r"\.self_attn\.v_proj\.(weight|bias)$", r".attn.qkv.\1#2"),
        (r"\.self_attn\.out_proj\.", ".attn.proj."),
        (r"\.layer_norm(\d)\.", r".norm\1."),
        (r"^vision_model\.embeddings\.class_embedding$", "visual.cls_token"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "visual.patch_embed.proj."),
        (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.pos_embed"),
        (r"^vision_model\.pre_layrnorm\.", "visual.norm_pre."),  # misspelt there
        (r"^vision_model\.post_layernorm\.", "visual.norm."),
        (r"^visual_projection\.weight$", "visual.proj#T"),
        (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
        (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
        (r"^text_model\.final_layer_norm\.", "ln_final."),
        (r"^text_projection\.weight$", "text_projection#T"),
    ),
    drop=("*.position_ids",),
    resize=RESIZE,
)


ACTIVATIONS = ("quick_gelu", "gelu")


def adapted(config: ClipConfig, path: Path) -> ClipConfig:
    """The config with the activation that stands beside the weights; their shapes don't tell it.

    transformers' config.json and OpenCLIP's open_clip_config.json name it. OpenAI's archives have QuickGELU. Of other
    files it is not known: the config's is taken, and said.

    Raises:
        ValueError: the description is of a model with another activation than CLIP's two, or of other numbers of heads.
    """
    heads = {"vision_config": (config.vision.heads, 12), "text_config": (config.text.heads, 8)}
    theirs = check_heads(path, heads)
    if theirs:
        return _of_transformers(config, theirs, path)
    folder = path if path.is_dir() else path.parent
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return _of_open_clip(config, folder / OPEN_CLIP_CONFIG)
    beside = folder / CONFIG_NAME
    if beside.is_file() and (path.is_dir() or path.name == WEIGHTS_NAME):
        description = read_json(beside)  # of this library: from_folder reads the rest
        ours = description.get("config") if isinstance(description, dict) else None
        if isinstance(ours, dict) and isinstance(ours.get("quick_gelu"), bool):
            return dataclasses.replace(config, quick_gelu=ours["quick_gelu"])
    if path.is_file() and not torchscript.is_archive(path):
        log.warning(
            "%s does not say which activation its model has; %s is assumed. OpenAI's models have quick_gelu, "
            "OpenCLIP's gelu unless their names say quickgelu: say which with activation= (lavis convert "
            "--activation), or put its %s beside it",
            path,
            ACTIVATIONS[0] if config.quick_gelu else ACTIVATIONS[1],
            OPEN_CLIP_CONFIG,
        )
    return config


def _of_transformers(config: ClipConfig, theirs: dict[str, Any], path: Path) -> ClipConfig:
    sections = [theirs.get(name) for name in ("vision_config", "text_config")]
    activations = {
        str(section.get("hidden_act", "quick_gelu")) if isinstance(section, dict) else "quick_gelu"
        for section in sections
    }
    if len(activations) != 1 or not activations <= set(ACTIVATIONS):
        raise ValueError(
            f"{path}: hidden_act of its {CONFIG_NAME} is {' and '.join(sorted(activations))}; CLIP has quick_gelu or "
            "gelu"
        )
    return dataclasses.replace(config, quick_gelu=activations == {"quick_gelu"})


def _of_open_clip(config: ClipConfig, path: Path) -> ClipConfig:
    content = read_json(path)
    theirs = content.get("model_cfg", content) if isinstance(content, dict) else None
    vision = theirs.get("vision_cfg") if isinstance(theirs, dict) else None
    text = theirs.get("text_cfg") if isinstance(theirs, dict) else None
    if not isinstance(theirs, dict) or not isinstance(vision, dict) or not isinstance(text, dict):
        raise ValueError(f"{path} does not describe a model of OpenCLIP's: it has no vision_cfg and text_cfg")
    quick = theirs.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ValueError(f"{path}: quick_gelu is {quick!r}; true or false was expected")
    width, head = vision.get("width", 0), vision.get("head_width", 64)
    found = {"text_cfg.heads": (text.get("heads", 8), config.text.heads)}
    if (
        isinstance(width, int)
        and isinstance(head, int)
        and head > 0
        and isinstance(vision.get("layers"), int)
    ):
        found["vision_cfg.width / head_width"] = (width // head, config.vision.heads)
    for name, (number, ours) in found.items():
        if number != ours:
            raise ValueError(
                f"{path}: {name}, the number of heads, is {number}, this model type's is {ours}; choose another model "
                "type"
            )
    return dataclasses.replace(config, quick_gelu=quick)
