"""Captions of scenes: written by `make_captions`, checked by `judge_caption`.

Both rest on two small structures, `Phrase` ("two large striped red stars") and `Statement` (a phrase
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

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lavis.datasets.shapes import scene as world
from lavis.datasets.shapes.scene import Obj, Scene, clearly, related, shuffled

NUMBERS = ("no", "one", "two", "three", "four", "five")
KINDS = ("size", "texture", "color")  # the order in which adjectives are written

PLURALS = {s: s + ("es" if s == "cross" else "s") for s in world.SHAPES} | {"object": "objects"}
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
                return (
                    all(world.lies(side, a) for side in self.place) if self.place else world.in_the_middle(a)
                )
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
    phrases: list[Phrase] = []
    texts: list[str] = []
    places = _chance(rng, placed)
    told: list[Obj] = []
    for obj in shuffled(rng, objects):
        if any(obj is o for o in told) or len(phrases) == most:
            continue
        kinds = ["shape", "color"] + [k for k in ("size", "texture") if _chance(rng, detail)]
        if obj["texture"] == "solid" and "texture" in kinds:
            kinds.remove("texture")  # "solid" is what one doesn't mention
        phrase = phrase_for(objects, obj, kinds)
        if any(p.shape == phrase.shape and p.color == phrase.color for p in phrases):
            continue
        place = world.sides(obj) if places and phrase.quantity == "a" else None
        phrases.append(phrase)
        texts.append(Statement(phrase, place=place).text())
        told.extend(phrase.matching(objects))
    return _lead(rng, phrases[0], " and ".join(texts))


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


# ---------------------------------------------------------------------- judging
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
        "a picture of", "a photo of", "an image of", "the picture shows", "the image shows", "it shows",
        "this is", "there is", "there are", "we see", "you can see",
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
             ["of" "the" ("picture"|"image"|"photo")]
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
                self.take("of", "the", w) for w in ("picture", "image", "photo")
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
