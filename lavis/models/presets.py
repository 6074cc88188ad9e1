"""What presets of several families have in common: addresses, licences, processors, small sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lavis.common.hub import GS as GS
from lavis.models.base import Preset
from lavis.models.tokenizer import ASSETS
from lavis.nn.text import TextConfig
from lavis.nn.vit import ViTConfig, interpolate_positions

OFFICIAL = "BSD-3-Clause (the official repository's; none is stated for the weights themselves)"

IMAGES = {"train": {"name": "blip_image_train"}, "eval": {"name": "blip_image_eval"}}
CAPTION = {"train": {"name": "blip_caption"}, "eval": {"name": "blip_caption"}}
QUESTIONS = {"train": {"name": "blip_question"}, "eval": {"name": "blip_question"}}

SMOOTHING = 0.1  # label smoothing of language-model losses, in training and when answers are ranked

# Position embeddings of a picture encoder and of its twin, for another image size.
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


def untrained(
    config: Any,
    vis_processor: Mapping[str, Mapping[str, Any]],
    text_processor: Mapping[str, Mapping[str, Any]] | None = None,
    note: str = "64 px",
) -> Preset:
    """A small model with random starting weights."""
    return Preset(
        config=config,
        vis_processor=vis_processor,
        text_processor=text_processor or {},
        licence="none needed: no weights",
        commercial=True,
        note=f"random starting weights, {note}; for tests and small data",
    )


def for_shapes(tiny: Preset, file: str, pointing: float | None = None, **config: Any) -> Preset:
    """A small model that starts from weights in the package, pre-trained on the embedded data.

    Args:
        tiny: its preset with random weights. file: the folder of the pre-trained weights among the assets.
        pointing: see `Preset`, where these weights make the finished model.
        config: fields that differ.
    """
    return replace(
        tiny,
        config=replace(tiny.config, **config),
        pretrained=str(ASSETS / file),
        licence="BSD-3-Clause",
        note="64 px; starts from packaged weights, pre-trained on drawn shapes",
        pointing=pointing,
    )


def with_defaults(presets: Mapping[str, Preset], **tasks: tuple[str, ...]) -> dict[str, Preset]:
    """The presets, those that are named with their `default_for`."""
    return {name: replace(preset, default_for=tasks.get(name, ())) for name, preset in presets.items()}
