"""The original's path of BLIP's processors, as its notebooks import them."""

from lavis.processors.image import BlipImageEvalProcessor, BlipImageTrainProcessor
from lavis.processors.text import BlipCaptionProcessor, BlipQuestionProcessor

__all__ = [
    "BlipCaptionProcessor",
    "BlipImageEvalProcessor",
    "BlipImageTrainProcessor",
    "BlipQuestionProcessor",
]
