"""Captions of scenes: what they mean, and how they are written (`make_captions`); judging.py reads them.

All rests on two small structures, `Phrase` ("two large striped red stars") and `Statement` (a phrase
alone, or in a relation to another), and on one definition of what they mean:

- "a", "an" and a bare singular noun mean at least one; "the" means exactly one; "one", "two", … mean
  exactly so many; a bare plural means at least two; "no" means none.
- "an object" (or "a shape") fits everything, so "two red objects" counts everything red.
- In "A above B" the quantifiers apply in turn: some A (or each of the counted A) is above some B (or
  each of the counted B). A relation belongs to the noun right before it.
- "at the top", "at the top left", "on the left", "in the middle" say where in the picture the noun right
  before them lies.
- What relations, sides and sizes mean is said in scene.py: centres at least `MARGIN` apart; halves of
  the picture; large or small.

Generators state only what is clear to the eye; the judge accepts everything that is true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lavis.datasets.shapes import scene as world
from lavis.datasets.shapes.scene import Obj, Scene, clearly, related, shuffled

NUMBERS = ("no", "one", "two", "three", "four", "five")
KINDS = ("size", "texture", "color")  # the order in which adjectives are written

PLURALS = {s: s + ("es" if s == "cross" else "s") for s in world.SHAPES} | {"object": "objects"}


@dataclass(frozen=True)
class Phrase:
    """A noun phrase. quantity: "a", "the", "many" (a bare plural) or an exact number."""

    quantity: str | int = "a"
    shape: str | None = None
    color: str | None = None
    size: str | None = None
    texture: str | None = None

    def matching(self, objects: Iterable[Obj]) -> list[Obj]:
        """The objects that it describes, whatever their number."""
        named = (("shape", self.shape), ("color", self.color), ("size", self.size), ("texture", self.texture))
        wanted = [(kind, value) for kind, value in named if value is not None]
        return [o for o in objects if all(o[kind] == value for kind, value in wanted)]

    def satisfied(self, objects: Sequence[Obj], condition: Callable[[Obj], bool]) -> bool:
        """Whether there are as many as it says and they (one of them, for "a") meet the condition."""
        found = self.matching(objects)
        if self.quantity == "a":
            return any(condition(o) for o in found)
        if self.quantity == "the":
            right = len(found) == 1
        elif self.quantity == "many":
            right = len(found) >= 2
        else:
            right = len(found) == self.quantity
        return right and all(condition(o) for o in found)

    def says_something(self) -> bool:
        """False for "an object", which is true of every picture."""
        return self != Phrase("a")

    def text(self) -> str:
        words = [w for w in (self.size, self.texture, self.color) if w is not None]
        plural = self.quantity not in ("a", "the", 1)
        noun = self.shape or "object"
        words.append(PLURALS[noun] if plural else noun)
        if self.quantity == "a":
            words.insert(0, "an" if words[0][0] in "aeiou" else "a")
        elif isinstance(self.quantity, int):
            words.insert(0, NUMBERS[self.quantity])
        elif self.quantity == "the":
            words.insert(0, "the")
        return " ".join(words)

    def plural(self) -> str:
        """The same as a bare plural: "red stars"."""
        return replace(self, quantity="many").text()


@dataclass(frozen=True)
class Statement:
    """As in "There is A", "A above B", "A at the top", or "A is striped" (`predicate` adds attributes to A).

    place: sides of the picture; empty: its middle; None: it isn't said.
    """

    subject: Phrase
    relation: str | None = None
    other: Phrase | None = None
    predicate: tuple[tuple[str, str], ...] = ()
    place: tuple[str, ...] | None = None

    def holds(self, scene: Scene) -> bool:
        objects = scene["objects"]

        def condition(a: Obj) -> bool:
            if any(a[kind] != value for kind, value in self.predicate):
                return False
            if self.place is not None:
                return world.is_at(self.place, a)
            if self.relation is None or self.other is None:
                return True
            relation = self.relation
            return self.other.satisfied(objects, lambda b: b is not a and related(relation, a, b))

        return self.subject.satisfied(objects, condition)

    def text(self) -> str:
        words = self.subject.text()
        if self.relation is not None and self.other is not None:
            words += f" {RELATION_WORDS[self.relation]} {self.other.text()}"
        if self.predicate:
            words += " is " + " and ".join(value for _, value in self.predicate)
        if self.place is not None:
            words += " " + place_words(self.place)
        return words


def place_words(place: Sequence[str]) -> str:
    """As in "at the top left", "on the right", "in the middle"."""
    if not place:
        return "in the middle"
    return ("at the " if place[0] in ("top", "bottom") else "on the ") + " ".join(place)


RELATION_WORDS = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
    "larger": "larger than",
    "smaller": "smaller than",
}


# ---------------------------------------------------------------------- writing
def phrase_for(objects: Sequence[Obj], obj: Obj, kinds: Iterable[str]) -> Phrase:
    """A true phrase for an object by some of its attributes: "a red star", or "two red stars"."""
    named = {kind: obj[kind] for kind in kinds}
    count = sum(all(o[kind] == value for kind, value in named.items()) for o in objects)
    return Phrase("a" if count == 1 else count, **named)


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _lead(rng: np.random.Generator, phrase: Phrase, text: str) -> str:
    """Now and then "there is …"."""
    if not _chance(rng, 0.2):
        return text
    return ("there is " if phrase.quantity in ("a", 1) else "there are ") + text


def _list(
    rng: np.random.Generator, objects: list[Obj], detail: float, most: int, placed: float = 0.0
) -> str | None:
    """As in "two red circles and a large blue square": up to `most` groups of one colour and shape.

    With probability `placed` it says of each single object where it is: "a red circle at the top left".
    """
    groups: list[Statement] = []
    places = _chance(rng, placed)
    told: list[Obj] = []
    for obj in shuffled(rng, objects):
        if any(obj is o for o in told) or len(groups) == most:
            continue
        kinds = ["shape", "color"] + [k for k in ("size", "texture") if _chance(rng, detail)]
        if obj["texture"] == "solid" and "texture" in kinds:
            kinds.remove("texture")  # "solid" is what one doesn't mention
        phrase = phrase_for(objects, obj, kinds)
        if any(g.subject.shape == phrase.shape and g.subject.color == phrase.color for g in groups):
            continue
        place = world.sides(obj) if places and phrase.quantity == "a" else None
        groups.append(Statement(phrase, place=place))
        told.extend(phrase.matching(objects))
    return _lead(rng, groups[0].subject, " and ".join(g.text() for g in groups))


def _count(rng: np.random.Generator, objects: list[Obj]) -> str | None:
    """As in "three objects", "two large objects", "two circles"."""
    obj = objects[int(rng.integers(len(objects)))]
    kinds = [["shape"], ["color"], ["size"], [], ["texture"], ["size", "shape"]][int(rng.integers(6))]
    phrase = phrase_for(objects, obj, kinds)
    if phrase.quantity == "a":
        phrase = replace(phrase, quantity=1)
    return _lead(rng, phrase, phrase.text())


def _relation(rng: np.random.Generator, objects: list[Obj], relations: Sequence[str]) -> str | None:
    """As in "a red circle to the left of a blue square", "a blue square with a red circle above it"."""
    for relation in shuffled(rng, relations):
        for a in shuffled(rng, objects):
            for b in shuffled(rng, objects):
                if a is b or not clearly(relation, a, b):
                    continue
                if a["shape"] == b["shape"] and a["color"] == b["color"]:
                    continue  # "a red star above a red star" confuses more than it tells
                kinds = ("shape", "color")
                first, second = (replace(Phrase("a"), **{k: o[k] for k in kinds}) for o in (a, b))
                if relation not in ("larger", "smaller") and _chance(rng, 0.3):
                    word = RELATION_WORDS[world.OPPOSITE[relation]].removesuffix(" of")
                    end = f"{word} of it" if word.startswith("to") else f"{word} it"
                    return f"{first.text()} with {second.text()} {end}"
                return _lead(rng, first, Statement(first, relation, second).text())
    return None


def _detail(rng: np.random.Generator, objects: list[Obj]) -> str | None:
    """As in "a large striped red star", "a small solid blue ring on the right"."""
    obj = objects[int(rng.integers(len(objects)))]
    phrase = phrase_for(objects, obj, ("shape", "color", "size", "texture"))
    place = world.sides(obj) if phrase.quantity == "a" and _chance(rng, 0.5) else None
    return _lead(rng, phrase, Statement(phrase, place=place).text())


def make_captions(scene: Scene, rng: np.random.Generator, count: int = 5) -> list[str]:
    """Write different true captions of a scene.

    Args:
        scene: what is in the picture.
        rng: the stream that words are chosen with.
        count: how many; a scene of one object has at least ten.

    Returns:
        `count` different captions of lower-case words without punctuation. The first lists every
        colour-and-shape group (up to four), the second relates two objects where there is a clear
        relation; the others vary.
    """
    objects = scene["objects"]

    def write(which: int) -> str | None:
        if which == 0:
            return _list(rng, objects, detail=0.0, most=4)
        if which == 1:
            return _relation(rng, objects, world.PLACES)
        u = rng.random()
        if u < 0.4:
            return _list(rng, objects, detail=0.4, most=3, placed=0.6)
        if u < 0.6:
            return _relation(rng, objects, world.PLACES)
        if u < 0.7:
            return _relation(rng, objects, ("larger", "smaller"))
        return _count(rng, objects) if u < 0.85 else _detail(rng, objects)

    captions: list[str] = []
    which = 0
    while len(captions) < count:
        caption = write(which)
        which += 1
        if caption is not None and caption not in captions:
            captions.append(caption)
        if which > 40 * count:
            raise ValueError(f"a scene of {len(objects)} objects has no {count} different captions")
    return captions
