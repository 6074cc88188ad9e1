"""Captions of scenes, read and checked: `judge_caption`. What they mean is said in language.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lavis.datasets.shapes import scene as world
from lavis.datasets.shapes.language import NUMBERS, PLURALS, Phrase, Statement
from lavis.datasets.shapes.scene import Scene

_ADJECTIVES = (
    dict.fromkeys(world.SIZES, "size")
    | dict.fromkeys(world.ALL_TEXTURES, "texture")
    | dict.fromkeys(world.ALL_COLORS, "color")
    | {"big": "size", "little": "size", "gray": "color", "white": "color", "grey": "color"}
)
_SYNONYMS = {"big": "large", "little": "small"}
_NOUNS: dict[str, tuple[str | None, bool]] = (
    {s: (s, False) for s in world.SHAPES}
    | {PLURALS[s]: (s, True) for s in world.SHAPES}
    | {"object": (None, False), "objects": (None, True), "shape": (None, False), "shapes": (None, True)}
)


@dataclass(frozen=True)
class Judgement:
    """What became of a caption.

    Args:
        true: it could be read to the last word, says something, and all of it holds.
        statements: each statement with whether it holds; empty if the caption could not be read.
        parsed: whether it could be read.
    """

    true: bool
    statements: list[tuple[str, bool]]
    parsed: bool


class _UnreadableError(ValueError):
    """The caption leaves the grammar."""


_LEADS = [
    lead.split()
    for lead in (
        "a picture of", "a photo of", "an image of", "a drawing of", "the picture shows", "the image shows",
        "the drawing shows", "it shows", "this is", "there is", "there are", "we see", "you can see",
    )
]  # fmt: skip
_RELATIONS = [
    (words.split(), relation)
    for words, relation in (
        ("to the left of", "left"), ("on the left of", "left"), ("left of", "left"),
        ("to the right of", "right"), ("on the right of", "right"), ("right of", "right"),
        ("above", "above"), ("over", "above"), ("below", "below"), ("under", "below"),
        ("larger than", "larger"), ("bigger than", "larger"), ("smaller than", "smaller"),
    )
]  # fmt: skip
_SIDES = {side: side for side in world.SIDES} | {"upper": "top", "lower": "bottom"}


class _Reader:
    """Recursive descent over words:

    caption := clause ("and" clause)*        clause := lead* phrase tail*
    tail := ["that"] ["is"|"are"] (relation phrase | place) | ["that"] ("is"|"are") adjective ("and" adjective)*
            | "with" phrase [relation "it"]
    place := ("at"|"in"|"on") "the" (side+ ["corner"|"half"|"part"|"side"] | "middle"|"center"|"centre")
             ["of" "the" ("picture"|"image"|"photo"|"drawing")]
    """

    def __init__(self, words: list[str]) -> None:
        self.words, self.at = words, 0
        self.statements: list[Statement] = []

    def peek(self, ahead: int = 0) -> str:
        place = self.at + ahead
        return self.words[place] if place < len(self.words) else ""

    def take(self, *expected: str) -> bool:
        if self.words[self.at : self.at + len(expected)] == list(expected):
            self.at += len(expected)
            return True
        return False

    def caption(self) -> list[Statement]:
        while True:
            self.clause()
            if self.at == len(self.words):
                return self.statements
            if not self.take("and"):
                raise _UnreadableError(f"cannot read {self.peek()!r}")

    def clause(self) -> None:
        while any(self.take(*lead) for lead in _LEADS):
            pass
        subject = self.phrase()
        before = len(self.statements)
        while self.tail(subject):
            pass
        if len(self.statements) == before:
            self.statements.append(Statement(subject))

    def relation(self) -> str | None:
        for words, relation in _RELATIONS:
            if self.take(*words):
                return relation
        return None

    def place(self) -> tuple[str, ...] | None:
        start = self.at
        sides: list[str] = []
        if self.peek() in ("at", "in", "on") and self.peek(1) == "the":
            self.at += 2
            middle = self.peek() in ("middle", "center", "centre")
            if middle:
                self.at += 1
            while not middle and self.peek() in _SIDES:
                sides.append(_SIDES[self.peek()])
                self.at += 1
            if sides and self.peek() in ("corner", "half", "part", "side"):
                self.at += 1
            whole = self.peek() != "of" or any(
                self.take("of", "the", w) for w in ("picture", "image", "photo", "drawing")
            )
            if whole and (middle or sides):
                return tuple(sides)
        self.at = start
        return None

    def tail(self, subject: Phrase) -> bool:
        start = self.at
        if self.take("with"):
            other = self.phrase()
            relation = self.relation()
            if relation is None:
                self.statements += [Statement(subject), Statement(other)]
            elif self.take("it") or self.take("them"):
                self.statements.append(Statement(subject, world.OPPOSITE[relation], other))
            else:
                raise _UnreadableError(f"expected 'it', found {self.peek()!r}")
            return True
        self.take("that")
        is_verb = self.take("is") or self.take("are")
        place = self.place()
        if place is not None:
            self.statements.append(Statement(subject, place=place))
            return True
        relation = self.relation()
        if relation is not None:
            self.statements.append(Statement(subject, relation, self.phrase()))
            return True
        if is_verb:
            predicate = [self.adjective()]
            while self.peek() == "and" and self.peek(1) in _ADJECTIVES and self.peek(2) in ("", "and"):
                self.at += 1
                predicate.append(self.adjective())
            self.statements.append(Statement(subject, predicate=tuple(predicate)))
            return True
        self.at = start
        return False

    def adjective(self) -> tuple[str, str]:
        word = self.peek()
        if word not in _ADJECTIVES:
            raise _UnreadableError(f"expected an adjective, found {word!r}")
        self.at += 1
        return _ADJECTIVES[word], _SYNONYMS.get(word, word)

    def phrase(self) -> Phrase:
        quantity: str | int | None = None
        word = self.peek()
        if word in ("a", "an"):
            quantity = "a"
        elif word == "the":
            quantity = "the"
        elif word in NUMBERS:
            quantity = NUMBERS.index(word)
        elif word.isascii() and word.isdigit():
            quantity = int(word)
        if quantity is not None:
            self.at += 1
        attributes: dict[str, str] = {}
        while self.peek() in _ADJECTIVES:
            kind, value = self.adjective()
            if kind in attributes:
                raise _UnreadableError(f"two words for the {kind} of one object")
            attributes[kind] = value
        noun = self.peek()
        if noun not in _NOUNS:
            raise _UnreadableError(f"expected a shape, found {noun!r}")
        self.at += 1
        shape, plural = _NOUNS[noun]
        if quantity is None:
            quantity = "many" if plural else "a"
        elif plural and quantity in ("a", "the", 1):
            raise _UnreadableError(f"{word!r} with the plural {noun!r}")
        elif not plural and isinstance(quantity, int) and quantity > 1:
            raise _UnreadableError(f"{word!r} with the singular {noun!r}")
        return Phrase(quantity, shape=shape, **attributes)


def read_caption(caption: str) -> list[Statement] | None:
    """The statements of a caption, or None if it leaves the grammar or says nothing."""
    words = re.findall(r"[a-z0-9]+|[^\sa-z0-9.!?]", re.sub(r"[,;]", " and ", caption.lower()))
    words = [w for i, w in enumerate(words) if w != "and" or (i > 0 and words[i - 1] != "and")]
    try:
        statements = _Reader(words).caption()
    except _UnreadableError:
        return None
    if not any(s.subject.says_something() or s.text() != s.subject.text() for s in statements):
        return None
    return statements


def judge_caption(caption: str, scene: Scene) -> Judgement:
    """Check every colour, shape, count, size, texture, relation and place that a caption states.

    Args:
        caption: any text; case, commas and a final full stop don't matter.
        scene: what is in the picture.

    Returns:
        A `Judgement`. A caption that can't be read to its end, or says nothing ("", "an object"), isn't
        true. A caption need not be complete: "a red star" is true wherever there is a red star.
    """
    statements = read_caption(caption)
    if statements is None:
        return Judgement(False, [], False)
    judged = [(s.text(), s.holds(scene)) for s in statements]
    return Judgement(all(holds for _, holds in judged), judged, True)


def caption_truth_percent(pairs: Iterable[tuple[str, Scene]]) -> float:
    """The share of captions that are true of their scene, in percent; 0 for no pairs."""
    verdicts = [judge_caption(caption, scene).true for caption, scene in pairs]
    return 100.0 * sum(verdicts) / len(verdicts) if verdicts else 0.0


def own_percent(
    pairs: Sequence[tuple[Sequence[str], Any]], test_of: Callable[[str], Callable[[Any], bool]]
) -> float:
    """The share of texts of a gallery that are true of what they belong to and of nothing else, in percent.

    Args:
        pairs: each entry's texts, and its scene or clip.
        test_of: what tells whether a text is true of a scene or clip.
    """
    own = [
        [i for i, (_, scene) in enumerate(pairs) if true_of(scene)] == [place]
        for place, (texts, _) in enumerate(pairs)
        for true_of in map(test_of, texts)
    ]
    return 100.0 * sum(own) / len(own) if own else 0.0
