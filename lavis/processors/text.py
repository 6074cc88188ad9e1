"""Text clean-up of BLIP's captions and questions (BLIP, data/utils.py: pre_caption, pre_question).

The two differ in small ways that checkpoints were trained with, so both are kept to the letter: a
caption's punctuation becomes a space, a question's vanishes; a question keeps its inner spaces.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lavis.common.registry import registry
from lavis.processors.base import BaseProcessor

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


def _checked(text: Any, what: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{what} takes one text (str), not {type(text).__name__}")
    return text


def _first_words(text: str, count: int) -> str:
    """The first `count` pieces between single spaces; runs of spaces hold empty pieces, which count."""
    return " ".join(text.split(" ")[:count])


@registry.register_processor("blip_caption")
class BlipCaptionProcessor(BaseProcessor):
    """Lower-case a caption, drop punctuation, put a prompt before it.

    Args:
        prompt: put before every caption as it is, e.g. "a picture of ".
        max_words: the caption is cut after so many words.
    """

    def __init__(self, prompt: str = "", max_words: int = 50) -> None:
        self.prompt, self.max_words = prompt, max_words

    def __call__(self, item: str, rng: np.random.Generator | None = None) -> str:
        text = _PUNCTUATION.sub(" ", _checked(item, "blip_caption").lower())
        text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
        return self.prompt + _first_words(text, self.max_words)


@registry.register_processor("blip_question")
class BlipQuestionProcessor(BaseProcessor):
    """Lower-case a question and drop punctuation other than "?" and ",".

    Args:
        max_words: the question is cut after so many words.
    """

    def __init__(self, max_words: int = 50) -> None:
        self.max_words = max_words

    def __call__(self, item: str, rng: np.random.Generator | None = None) -> str:
        text = _PUNCTUATION.sub("", _checked(item, "blip_question").lower()).rstrip(" ")
        return _first_words(text, self.max_words)
