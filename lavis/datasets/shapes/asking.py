"""Questions of a dialogue: what each kind says, what its answer is, and what "it" and "they" mean.

A dialogue has a focus: the object, or the group of objects, that the last round was about. "it" means the
one object in focus, "they" and "them" the group. A round is about

- the one object that the question names ("what color is the star?") or asks about ("is it striped?"),
- the object that the answer gives ("what is to the left of it?" "a small red star"),
- the objects that were counted ("how many circles are there?") or the one that was found ("is there a
  star?" "yes"), if there are any, and only one for "is there".

Otherwise there is no focus, and the next question has no pronoun. A question without pronoun never needs
the rounds before it; one with a pronoun needs them where another object, or group, would give another
answer (`needs_history`).

Answers come from a closed list, so that wrong ones can be offered beside the right one (`make_options`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lavis.datasets.shapes import scene as world
from lavis.datasets.shapes.language import PLURALS, RELATION_WORDS, Phrase
from lavis.datasets.shapes.scene import Obj, clearly, shift

Focus = tuple[int, ...]  # places of objects in the scene's list
Reply = tuple[str, Focus]  # the answer and what the round is about

_YES_NO = {True: "yes", False: "no"}
ATTRIBUTE_QUESTIONS = {
    "color": "what color is {}?",
    "shape": "what shape is {}?",
    "size": "is {} large or small?",
    "texture": "is {} solid, striped or dotted?",
}


def name_of(obj: Obj) -> str:
    """How an answer names an object: "a small red star"."""
    return Phrase("a", obj["shape"], obj["color"], obj["size"]).text()


def _places(objects: Sequence[Obj], phrase: Phrase) -> Focus:
    found = phrase.matching(objects)
    return tuple(i for i, o in enumerate(objects) if any(o is f for f in found))


@dataclass(frozen=True)
class Ask:
    """A question. `pronoun`: the word that needs a focus, "it" or "they", or ""."""

    pronoun: ClassVar[str] = ""

    def text(self) -> str:
        raise NotImplementedError

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        """The answer, and what the round is about; None where it could be argued about.

        Args:
            objects: everything in the picture.
            focus: what the pronoun means.
        """
        raise NotImplementedError


# ---------------------------------------------------------------------- without pronoun
@dataclass(frozen=True)
class Exists(Ask):
    """As in "is there a red star?" """

    phrase: Phrase

    def text(self) -> str:
        return f"is there {self.phrase.text()}?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        found = _places(objects, self.phrase)
        return _YES_NO[bool(found)], found if len(found) == 1 else ()


@dataclass(frozen=True)
class Count(Ask):
    """As in "how many stars are there?"; the phrase is a bare plural."""

    phrase: Phrase

    def text(self) -> str:
        return f"how many {self.phrase.text()} are there?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        found = _places(objects, self.phrase)
        return str(len(found)), found


@dataclass(frozen=True)
class Which(Ask):
    """As in "what color is the star?"; the phrase fits one object."""

    attribute: str
    phrase: Phrase

    def text(self) -> str:
        return ATTRIBUTE_QUESTIONS[self.attribute].format(self.phrase.text())

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        found = _places(objects, self.phrase)
        return (objects[found[0]][self.attribute], found) if len(found) == 1 else None


# ---------------------------------------------------------------------- about one object
@dataclass(frozen=True)
class Attribute(Ask):
    """As in "what color is it?" """

    attribute: str
    pronoun: ClassVar[str] = "it"

    def text(self) -> str:
        return ATTRIBUTE_QUESTIONS[self.attribute].format("it")

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        return objects[focus[0]][self.attribute], focus


@dataclass(frozen=True)
class Is(Ask):
    """As in "is it striped?", "is it a star?" """

    attribute: str
    value: str
    pronoun: ClassVar[str] = "it"

    def text(self) -> str:
        return f"is it {f'a {self.value}' if self.attribute == 'shape' else self.value}?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        return _YES_NO[objects[focus[0]][self.attribute] == self.value], focus


@dataclass(frozen=True)
class Beside(Ask):
    """As in "what is above it?": the only object on that side at all, or "nothing" where there is none."""

    relation: str
    pronoun: ClassVar[str] = "it"

    def text(self) -> str:
        return f"what is {RELATION_WORDS[self.relation]} it?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        it = objects[focus[0]]
        side = [i for i, o in enumerate(objects) if o is not it and shift(self.relation, o, it)[0] > 0]
        if not side:
            return "nothing", focus
        if len(side) > 1 or not clearly(self.relation, objects[side[0]], it):
            return None
        return name_of(objects[side[0]]), (side[0],)


@dataclass(frozen=True)
class Place(Ask):
    """As in "is it above the star?"; the phrase fits one other object."""

    relation: str
    phrase: Phrase
    pronoun: ClassVar[str] = "it"

    def text(self) -> str:
        return f"is it {RELATION_WORDS[self.relation]} {self.phrase.text()}?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        found = _places(objects, self.phrase)
        if len(found) != 1 or found == focus:
            return None
        it, other = objects[focus[0]], objects[found[0]]
        back = world.OPPOSITE[self.relation]
        if not clearly(self.relation, it, other) and not clearly(back, it, other):
            return None
        return _YES_NO[clearly(self.relation, it, other)], focus


@dataclass(frozen=True)
class Others(Ask):
    """As in "how many other objects have the same color?": the same as the one in focus."""

    attribute: str
    pronoun: ClassVar[str] = "it"

    def text(self) -> str:
        return f"how many other objects have the same {self.attribute}?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        value = objects[focus[0]][self.attribute]
        return str(sum(o[self.attribute] == value for o in objects) - 1), focus


# ---------------------------------------------------------------------- about a group
@dataclass(frozen=True)
class OfThem(Ask):
    """As in "how many of them are red?" """

    attribute: str
    value: str
    pronoun: ClassVar[str] = "they"

    def text(self) -> str:
        value = PLURALS[self.value] if self.attribute == "shape" else self.value
        return f"how many of them are {value}?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        return str(sum(objects[i][self.attribute] == self.value for i in focus)), focus


@dataclass(frozen=True)
class All(Ask):
    """As in "are they all striped?" """

    attribute: str
    value: str
    pronoun: ClassVar[str] = "they"

    def text(self) -> str:
        return f"are they all {PLURALS[self.value] if self.attribute == 'shape' else self.value}?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        return _YES_NO[all(objects[i][self.attribute] == self.value for i in focus)], focus


@dataclass(frozen=True)
class One(Ask):
    """As in "what color is the large one?": the only one in the group of which that holds."""

    attribute: str
    by: str
    value: str
    pronoun: ClassVar[str] = "they"

    def text(self) -> str:
        return ATTRIBUTE_QUESTIONS[self.attribute].format(f"the {self.value} one")

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        found = tuple(i for i in focus if objects[i][self.by] == self.value)
        return (objects[found[0]][self.attribute], found) if len(found) == 1 else None


# ---------------------------------------------------------------------- history
def needs_history(ask: Ask, objects: Sequence[Obj], focus: Focus) -> bool:
    """Whether another meaning of the pronoun would give another answer."""
    if not ask.pronoun:
        return False
    right = ask.reply(objects, focus)
    assert right is not None
    if ask.pronoun == "it":
        meanings: list[Focus] = [(i,) for i in range(len(objects))]
    else:
        meanings = [tuple(range(len(objects)))]
        for kind in ("shape", "color"):
            for value in {o[kind] for o in objects}:
                meanings.append(tuple(i for i, o in enumerate(objects) if o[kind] == value))
        meanings = [m for m in meanings if len(m) > 1]
    replies = [ask.reply(objects, m) for m in meanings]
    return any(r is not None and r[0] != right[0] for r in replies)


# ---------------------------------------------------------------------- answers
PICTURE_ANSWERS: dict[str, tuple[str, ...]] = {
    "yes/no": ("yes", "no"),
    "number": tuple(str(n) for n in range(world.MAX_OBJECTS + 1)),
    "color": world.COLORS,
    "shape": world.SHAPES,
    "size": world.SIZES,
    "texture": world.TEXTURES,
    "object": (
        "nothing",
        *(Phrase("a", s, c, size).text() for c, s in world.ALLOWED_PAIRS["train"] for size in world.SIZES),
    ),
}

Kinds = Mapping[str, Sequence[str]]


def true_of_some(objects: Sequence[Obj]) -> set[str]:
    """Every answer that is true of some object, whatever was asked."""
    values = {o[k] for o in objects for k in ATTRIBUTE_QUESTIONS}
    return values | {name_of(o) for o in objects} | {"nothing"}


def make_options(
    answer: str, true: set[str], count: int, rng: np.random.Generator, kinds: Kinds = PICTURE_ANSWERS
) -> tuple[list[str], int]:
    """Candidates of which exactly one is right.

    Args:
        answer: the right one.
        true: what is true of some object, and so might be defended as the answer to another question.
        count: how many candidates; fewer if there are not so many.
        rng: the stream that they are drawn from.
        kinds: all answers, by kind.

    Returns:
        The candidates in random order and the place of the right one. Up to half of them are other answers of
        its kind; those of other kinds are not among `true`.
    """
    kind = next(k for k, answers in kinds.items() if answer in answers)
    same = [a for a in kinds[kind] if a != answer]
    away = {"yes/no": "number", "number": "yes/no"}.get(kind)  # "is there a star?" "1" is not quite wrong
    others = [a for k, answers in kinds.items() if k not in (kind, away) for a in answers if a not in true]
    if len(same) > count // 2:
        same = [same[int(i)] for i in rng.permutation(len(same))]
        same, others = same[: count // 2], [*same[count // 2 :], *others]
    room = max(0, min(count - 1 - len(same), len(others)))
    options = [answer, *same[: count - 1], *(others[int(i)] for i in rng.permutation(len(others))[:room])]
    order = rng.permutation(len(options))
    return [options[int(i)] for i in order], int(np.flatnonzero(order == 0)[0])
