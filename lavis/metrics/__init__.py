"""Scores of predictions: pure functions on records, without torch, Java or a model.

caption   BLEU, ROUGE-L and CIDEr of captions, as the official COCO evaluation computes them
vqa       VQAv2, A-OKVQA and exact-match accuracy, in percent
external  METEOR and SPICE, for those who have Java
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "caption_scores": "lavis.metrics.caption",
    "caption_scores_each": "lavis.metrics.caption",
    "meteor": "lavis.metrics.external",
    "spice": "lavis.metrics.external",
    "tokenize": "lavis.metrics.ptb",
    "aokvqa_accuracy": "lavis.metrics.vqa",
    "exact_match_percent": "lavis.metrics.vqa",
    "vqa_accuracy": "lavis.metrics.vqa",
}

__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'lavis.metrics' has no attribute {name!r}")
