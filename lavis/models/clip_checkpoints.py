"""CLIP's weights as others write them: another number of patches, transformers' names, its activation."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lavis.models.base import CONFIG_NAME, check_heads
from lavis.models.checkpoints import Rules
from lavis.nn.vit import interpolate_positions

if TYPE_CHECKING:
    from lavis.models.clip import ClipConfig

log = logging.getLogger("lavis")


def _resize(positions: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Position embeddings (1 + g·g, D) for another number of patches; anything else is left to be refused."""
    old, new = (math.isqrt(max(n - 1, 0)) for n in (positions.shape[0], shape[0]))
    if positions.ndim != 2 or old < 1 or old**2 + 1 != positions.shape[0]:
        return positions
    log.info("position embeddings are resized from %d x %d to %d x %d patches", old, old, new, new)
    return interpolate_positions(positions[None], shape[0])[0]


RESIZE = {"visual.positional_embedding": _resize, "visual.attnpool.positional_embedding": _resize}

# transformers' CLIPModel
TRANSFORMERS_CLIP = Rules(
    marker="vision_model.embeddings.class_embedding",
    rename=(
        (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
        (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
        (r"\.self_attn\.q_proj\.(weight|bias)$", r".attn.in_proj_\1#0"),
        (r"\.self_attn\.k_proj\.(weight|bias)$", r".attn.in_proj_\1#1"),
        (r"\.self_attn\.v_proj\.(weight|bias)$", r".attn.in_proj_\1#2"),
        (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
        (r"\.layer_norm(\d)\.", r".ln_\1."),
        (r"\.mlp\.fc1\.", ".mlp.c_fc."),
        (r"\.mlp\.fc2\.", ".mlp.c_proj."),
        (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
        (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
        (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
        (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),  # misspelt there
        (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
        (r"^visual_projection\.weight$", "visual.proj#T"),
        (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
        (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
        (r"^text_model\.final_layer_norm\.", "ln_final."),
        (r"^text_projection\.weight$", "text_projection#T"),
    ),
    drop=("*.position_ids",),
    resize=RESIZE,
)


def adapted(config: ClipConfig, folder: Path) -> ClipConfig:
    """The config with the activation that a transformers folder names; its tensors' shapes don't tell it.

    Raises:
        ValueError: the folder's model has another activation than CLIP's two, or another number of heads.
    """
    heads = {"vision_config": (config.vision.heads, 12), "text_config": (config.text.heads, 8)}
    theirs = check_heads(folder, heads)
    if not theirs:
        return config
    activations = {(theirs.get(section) or {}).get("hidden_act", "quick_gelu") for section in heads}
    if len(activations) != 1 or not activations <= {"quick_gelu", "gelu"}:
        raise ValueError(
            f"{folder / CONFIG_NAME}: hidden_act is {' and '.join(sorted(activations))}; CLIP has quick_gelu or gelu"
        )
    return dataclasses.replace(config, quick_gelu=activations == {"quick_gelu"})
