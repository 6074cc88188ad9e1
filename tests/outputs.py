"""Comparing what a page says a block prints with what it prints.

- Lines are compared in order, all of them; a line `…` stands for any number of lines, `…` in a line for any part.
- Words and signs are equal; how they are spaced, and blank lines, don't matter.
- Whole numbers are equal (they are counts and shapes); others agree to two significant digits, `3.1e-05` too. A zero
  (`0.000`) stands for what is smaller than its last digit, and never for 0.001 or more.
- Times of day, dates, durations and the names of run folders (a time) are equal to any other. Of absolute paths a page
  shows the end: `…/drawings/0.png`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

REST = "…"
_MASKS = (
    (re.compile(r"\b\d{4}-\d\d-\d\d\b"), "DATE"),
    (re.compile(r"\b\d\d:\d\d(:\d\d)?\b(\.\d+)?"), "TIME"),
    (re.compile(r"(?<![\w.])20\d{9,12}\b"), "RUN"),
    (re.compile(r"(?<![\w.])\d+(\.\d+)?\s?(ms|s|min|h|seconds?|minutes?|hours?)\b"), "DURATION"),
)
_NUMBER = r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][-+]?\d+)?(?!\.?\w)"
_TOKEN = re.compile(rf"{_NUMBER}|\w+|\S")

T = TypeVar("T")


def difference(expected: str, got: str) -> str:
    """What to tell people where the output is not as expected: both. Empty where it is."""
    if _fits(_lines(expected), _lines(got), [REST], _same_line):
        return ""
    return f"expected:\n{_indented(expected)}\ngot:\n{_indented(got)}"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip().splitlines()) or "    (nothing)"


def _lines(text: str) -> list[list[str]]:
    """The tokens of each line that has any."""
    for pattern, name in _MASKS:
        text = pattern.sub(name, text)
    return [tokens for line in text.splitlines() if (tokens := _TOKEN.findall(line))]


def _fits(expected: Sequence[T], got: Sequence[T], rest: T, same: Callable[[T, T], bool]) -> bool:
    """Whether a sequence is another one in which `rest` stands for any number of items."""
    parts: list[list[T]] = [[]]
    for item in expected:
        if item == rest:
            parts.append([])
        else:
            parts[-1].append(item)

    def at(part: list[T], start: int) -> bool:
        return all(same(a, b) for a, b in zip(part, got[start:], strict=False))

    first, *middle = parts
    if len(got) < sum(map(len, parts)) or not at(first, 0):
        return False
    if not middle:
        return len(got) == len(first)
    place, end = len(first), len(got) - len(parts[-1])
    for part in middle[:-1]:  # the leftmost place of each leaves most to the next
        while place + len(part) <= end and not at(part, place):
            place += 1
        place += len(part)
    return place <= end and at(parts[-1], end)


def _same_line(expected: list[str], got: list[str]) -> bool:
    return _fits(expected, got, REST, _same_token)


def _same_token(expected: str, got: str) -> bool:
    if expected == got:
        return True
    if not (re.fullmatch(_NUMBER, expected) and re.fullmatch(_NUMBER, got)):
        return False
    if expected.lstrip("+-").replace(",", "").isdigit() and got.lstrip("+-").replace(",", "").isdigit():
        return int(expected.replace(",", "")) == int(got.replace(",", ""))
    a, b = (float(number.replace(",", "")) for number in (expected, got))
    if a == 0:
        decimals = len(expected.partition(".")[2])
        return abs(b) < min(1e-3, 10.0**-decimals)
    if b == 0:
        return False
    second = min(math.floor(math.log10(abs(a))), math.floor(math.log10(abs(b)))) - 1
    return abs(a - b) <= 0.5 * 10.0**second * (1 + 1e-9)
