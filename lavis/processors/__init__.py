"""Processors: a picture or a clip to a tensor, a text to a cleaned text.

`load_processor(name, cfg)` gives one by its registered name; `.build(**settings)` makes another of the
same kind with other settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lavis.common import moved
from lavis.common.registry import registry
from lavis.processors.base import BaseProcessor
from lavis.processors.dialogue import (
    GPTDialogueProcessor,
    GPTFrameFeatureProcessor,
    GPTVideoFeatureProcessor,
)
from lavis.processors.image import (
    Blip2ImageTrainProcessor,
    BlipImageEvalProcessor,
    BlipImageTrainProcessor,
    ClipImageEvalProcessor,
    ClipImageTrainProcessor,
)
from lavis.processors.text import BlipCaptionProcessor, BlipQuestionProcessor
from lavis.processors.video import AlproVideoEvalProcessor, AlproVideoTrainProcessor

__getattr__ = moved.names_of(__name__)

__all__ = [
    "AlproVideoEvalProcessor",
    "AlproVideoTrainProcessor",
    "BaseProcessor",
    "Blip2ImageTrainProcessor",
    "BlipCaptionProcessor",
    "BlipImageEvalProcessor",
    "BlipImageTrainProcessor",
    "BlipQuestionProcessor",
    "ClipImageEvalProcessor",
    "ClipImageTrainProcessor",
    "GPTDialogueProcessor",
    "GPTFrameFeatureProcessor",
    "GPTVideoFeatureProcessor",
    "load_processor",
]


def load_processor(name: str, cfg: Mapping[str, Any] | None = None) -> BaseProcessor:
    """Make a processor.

    Args:
        name: its registered name, e.g. "blip_image_eval".
        cfg: its settings; what isn't named has its default.

    Raises:
        ValueError: unknown name or setting, with a suggestion.
    """
    processor: BaseProcessor = registry.get_processor_class(name).from_config(cfg)
    return processor
