"""What families and their rows in `lavis.models.zoo` have in common: processors, small sizes, position embeddings."""

from __future__ import annotations

from typing import Any

from lavis.common.hub import GS as GS
from lavis.nn.text import TextConfig
from lavis.nn.vit import ViTConfig, interpolate_positions

IMAGES = {"train": {"name": "blip_image_train"}, "eval": {"name": "blip_image_eval"}}
CAPTION = {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption"}}
QUESTIONS = {"train": {"name": "blip_question"}, "eval": {"name": "blip_question"}}

SMOOTHING = 0.1  # label smoothing of language-model losses, in training and when answers are ranked

# Position embeddings of a picture encoder and of its EMA, for another image size.
RESIZE = {
    name: lambda t, shape: interpolate_positions(t, shape[1])
    for name in ("visual_encoder.pos_embed", "visual_encoder_m.pos_embed")
}

# 1.9 million parameters as a captioner: for tests, for the embedded data, for a first try on own small data.
# Narrow layers start from larger weights than 0.02, or a picture's signal drowns for hundreds of steps; and from
# positions that can be read, or "left" is never learned (docs/log.md).
TINY_VIT = ViTConfig(width=128, depth=4, heads=4, patch_size=8, init_std=0.06, sincos=0.5)
TINY_TEXT = TextConfig(
    vocab_size=1602,
    width=128,
    depth=3,
    heads=4,
    hidden=512,
    max_positions=128,  # enough for a dialogue
    memory_width=128,
    dropout=0.0,
    attention_dropout=0.0,
    init_std=0.06,
)
# what every tiny config of a picture encoder and a text transformer sets
TINY: dict[str, Any] = {
    "image_size": 64,
    "vit": TINY_VIT,
    "text": TINY_TEXT,
    "vocabulary": "tiny",
    "cover": True,
}
