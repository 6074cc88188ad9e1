"""Inputs of pages: what they are called and what may be in them.

Values come from a browser, or from whoever speaks to the server in its place, so each is checked here and nowhere
else. A check returns the value that a page's `run` gets or raises ValueError with a sentence for the visitor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lavis.app.demo.uploads import Limits, checked_clip, open_picture

TEXT_LENGTH = 500  # characters
LINES = 100
ROUNDS = 40  # of a conversation
ANSWER_LENGTH = 10_000  # characters


@dataclass(frozen=True)
class Field:
    """What all inputs have.

    Attributes:
        name: of the argument of `run`.
        label: what the visitor sees; messages begin with it.
        info: one line of help.
        more: whether it is folded away under "More settings".
    """

    name: str
    label: str
    info: str = ""
    more: bool = False

    def check(self, value: Any, limits: Limits) -> Any:
        """What `run` gets for a value as it comes from the browser."""
        raise NotImplementedError


@dataclass(frozen=True)
class PictureInput(Field):
    """A picture; `run` gets an RGB Pillow picture, or None where it is not required and there is none."""

    required: bool = True

    def check(self, value: Any, limits: Limits) -> Any:
        if value is None:
            if self.required:
                raise ValueError(f"{self.label}: choose a picture first, an example or one of your own")
            return None
        return open_picture(value, limits, self.label)


@dataclass(frozen=True)
class ClipInput(Field):
    """A short video; `run` gets the path of its file."""

    def check(self, value: Any, limits: Limits) -> Any:
        if value is None:
            raise ValueError(f"{self.label}: choose a clip first, an example or one of your own")
        return checked_clip(value, limits, self.label)


@dataclass(frozen=True)
class TextInput(Field):
    """A line of text; `run` gets it without spaces around it."""

    value: str = ""
    placeholder: str = ""
    required: bool = True

    def check(self, value: Any, limits: Limits) -> str:
        text = " ".join(_text(self.label, value).split())
        if len(text) > TEXT_LENGTH:
            raise ValueError(
                f"{self.label}: {len(text)} characters are too many; write at most {TEXT_LENGTH}"
            )
        if not text and self.required:
            raise ValueError(f"{self.label}: write something first")
        return text


@dataclass(frozen=True)
class LinesInput(Field):
    """Several texts, one a line; `run` gets a tuple of those that are not empty, each once."""

    value: str = ""
    placeholder: str = ""
    minimum: int = 1

    def check(self, value: Any, limits: Limits) -> tuple[str, ...]:
        given = (" ".join(line.split()) for line in _text(self.label, value).splitlines())
        lines = tuple(dict.fromkeys(line for line in given if line))
        if len(lines) < self.minimum:
            wanted = "a line" if self.minimum == 1 else f"{self.minimum} different lines"
            raise ValueError(f"{self.label}: write at least {wanted}")
        if len(lines) > LINES:
            raise ValueError(f"{self.label}: {len(lines)} lines are too many; write at most {LINES}")
        longest = max((len(line) for line in lines), default=0)
        if longest > TEXT_LENGTH:
            raise ValueError(
                f"{self.label}: a line of {longest} characters is too long; write at most {TEXT_LENGTH}"
            )
        return lines


@dataclass(frozen=True)
class HistoryInput(Field):
    """The rounds of a conversation so far, as the browser keeps them (`results.Rounds`); `run` gets a tuple of
    (question, answer)."""

    def check(self, value: Any, limits: Limits) -> tuple[tuple[str, str], ...]:
        try:
            rounds = json.loads(_text(self.label, value) or "[]")
        except ValueError as e:
            raise ValueError(f"{self.label}: this is no conversation; begin a new one") from e
        if not isinstance(rounds, list) or not all(_is_round(each) for each in rounds):
            raise ValueError(f"{self.label}: this is no conversation; begin a new one")
        if len(rounds) > ROUNDS:
            raise ValueError(f"{self.label}: {len(rounds)} rounds are too many; begin a new conversation")
        return tuple((question, answer) for question, answer in rounds)


def _is_round(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(text, str) for text in value)
        and len(value[0]) <= TEXT_LENGTH
        and len(value[1]) <= ANSWER_LENGTH
    )


@dataclass(frozen=True)
class ChoiceInput(Field):
    """One of a few words."""

    choices: Sequence[str] = ()

    def check(self, value: Any, limits: Limits) -> str:
        if value not in self.choices:
            raise ValueError(f"{self.label} is {_short(value)}; choose one of {', '.join(self.choices)}")
        return str(value)


@dataclass(frozen=True)
class NumberInput(Field):
    """A number on a slider; whole numbers where `step` is one."""

    value: float = 1
    minimum: float = 1
    maximum: float = 10
    step: float = 1

    def check(self, value: Any, limits: Limits) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if good and isinstance(self.step, int):
            good = value == int(value)
        if not good or not self.minimum <= value <= self.maximum:
            kind = "whole number" if isinstance(self.step, int) else "number"
            raise ValueError(
                f"{self.label} is {_short(value)}; give a {kind} from {self.minimum} to {self.maximum}"
            )
        return int(value) if isinstance(self.step, int) else float(value)


def _text(label: str, value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{label} is {_short(value)}; a text was expected")
    return value or ""


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
