"""Two pictures of shapes and a statement about both: true or false?

**Description.** Statements compare, count and quantify over a left and a right picture of two to four
objects: "exactly one picture contains a striped star", "the left picture contains more circles than the
right picture", "there are three squares in all". Every statement comes twice, once with a pair of pictures
of which it is true and once with a pair of which it is false (as records 2k and 2k + 1, in random order),
so the text alone tells nothing: chance is 50 %, for every statement. Two pairs share five statements.
Nothing is downloaded.

**Names.** `shapes_nlvr`.

**Splits.** train, val, test: 60,000, 1,000 and 1,000 examples, half of them true.

**Task.** Classification into false (0) and true (1).

**Metrics.** Accuracy.

**What words mean.** "contains a star" means at least one, "contains two stars" exactly two, "more" and
"fewer" compare numbers, "in all" counts both pictures, "every star" wants at least one star in all. "a
star above a circle" is only stated where it is clear to the eye, one way or the other. Kinds of
statement: `KINDS`; a record's is its `kind`.

**License.** The same as this library's; there is no third-party material in it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from lavis.common.registry import registry
from lavis.datasets.base import Plan, Record
from lavis.datasets.nlvr import NLVRDataset, NLVROptions
from lavis.datasets.shapes.language import Phrase, Statement
from lavis.datasets.shapes.made import DrawnWithSentences, Made, MadeOptions
from lavis.datasets.shapes.render import render
from lavis.datasets.shapes.scene import (
    ALLOWED_PAIRS,
    FINE,
    RADII,
    SIZES,
    TEXTURES,
    Obj,
    Purpose,
    Scene,
    arrange,
    clearly,
    draw_background,
    pick,
    shift,
    shuffled,
    stream,
)

SENTENCES = 5  # that pictures share
_ATTEMPTS = 60  # pairs of pictures tried for one statement
_TRIES = 30  # sentences of a kind tried for given pictures
SIDES = ("left", "right")


@dataclass(frozen=True)
class PairStatement:
    """A statement about two pictures.

    Args:
        kind: one of `KINDS`.
        phrase: what it is about.
        number: of "total".
        side: the picture that "side" and "more" begin with, 0 (left) or 1.
        above: what `phrase` is above, for "side".
        value: an attribute and its value, for "every".
        fewer: "fewer" in place of "more".
    """

    kind: str
    phrase: Phrase
    number: int = 0
    side: int = 0
    above: Phrase | None = None
    value: tuple[str, str] = ("", "")
    fewer: bool = False

    def text(self) -> str:
        phrase = self.phrase.text()
        noun = self.phrase.plural()
        this, that = SIDES[self.side], SIDES[1 - self.side]
        if self.kind == "side":
            return f"the {this} picture contains {self._within().text()}"
        if self.kind == "more":
            word = "fewer" if self.fewer else "more"
            return f"the {this} picture contains {word} {noun} than the {that} picture"
        if self.kind == "same":
            return f"the two pictures contain the same number of {noun}"
        if self.kind == "total":
            verb = "is" if self.number == 1 else "are"
            return f"there {verb} {replace(self.phrase, quantity=self.number).text()} in all"
        if self.kind == "every":
            kind, value = self.value
            return f"every {phrase.split(' ', 1)[1]} is {f'a {value}' if kind == 'shape' else value}"
        subject = {
            "both": "both pictures contain",
            "neither": "neither picture contains",
            "one": "exactly one picture contains",
            "either": "at least one picture contains",
        }[self.kind]
        return f"{subject} {phrase}"

    def _within(self) -> Statement:
        return Statement(self.phrase, "above" if self.above else None, self.above)

    def holds(self, left: Scene, right: Scene) -> bool:
        """Whether it is true of the two pictures."""
        scenes = (left, right)
        counts = [len(self.phrase.matching(s["objects"])) for s in scenes]
        if self.kind == "side":
            return self._within().holds(scenes[self.side])
        if self.kind == "more":
            this, that = counts[self.side], counts[1 - self.side]
            return this < that if self.fewer else this > that
        if self.kind == "same":
            return counts[0] == counts[1]
        if self.kind == "total":
            return sum(counts) == self.number
        if self.kind == "every":
            found = self.phrase.matching([*left["objects"], *right["objects"]])
            return bool(found) and all(o[self.value[0]] == self.value[1] for o in found)
        having = sum(count > 0 for count in counts)
        return {"both": having == 2, "neither": having == 0, "one": having == 1, "either": having > 0}[
            self.kind
        ]

    def fair(self, left: Scene, right: Scene) -> bool:
        """Whether nobody could argue about it: no "above" that is neither clear nor clearly not so; things
        that are counted or quantified over are there."""
        if self.kind == "side" and self.above is not None:
            objects = (left, right)[self.side]["objects"]
            pairs = [
                (a, b)
                for a in self.phrase.matching(objects)
                for b in self.above.matching(objects)
                if a is not b
            ]
            return all(clearly("above", a, b) or shift("above", a, b)[0] <= 0 for a, b in pairs)
        if self.kind in ("same", "every"):
            return bool(self.phrase.matching([*left["objects"], *right["objects"]]))
        return True


# ---------------------------------------------------------------------- writing
Pair = tuple[str, str]


def _phrase(rng: np.random.Generator, palette: Sequence[Pair], plain: bool = False) -> Phrase:
    """Something that pictures of this palette may show; plain: by colour or shape alone."""
    color, shape = pick(rng, palette)
    u = rng.random()
    if plain or u < 0.45:
        return Phrase("a", shape=shape) if rng.random() < 0.6 else Phrase("a", color=color)
    if u < 0.75:
        return Phrase("a", shape=shape, color=color)
    if u < 0.9:
        return Phrase("a", shape=shape, texture=pick(rng, TEXTURES))
    return Phrase("a", shape=shape, size=pick(rng, SIZES))


def _side(rng: np.random.Generator, palette: Sequence[Pair]) -> PairStatement:
    phrase, side = _phrase(rng, palette), int(rng.integers(2))
    u = rng.random()
    if u < 0.4:
        return PairStatement("side", phrase, side=side)
    if u < 0.7:
        return PairStatement("side", replace(phrase, quantity=int(rng.integers(1, 4))), side=side)
    above = _phrase(rng, palette, plain=True)
    while above.shape is not None and above.shape == phrase.shape:  # "a star above a star" only confuses
        above = _phrase(rng, palette, plain=True)
    return PairStatement("side", phrase, side=side, above=above)


def _more(rng: np.random.Generator, palette: Sequence[Pair]) -> PairStatement:
    phrase = _phrase(rng, palette, plain=True)
    return PairStatement("more", phrase, side=int(rng.integers(2)), fewer=bool(rng.random() < 0.5))


def _total(rng: np.random.Generator, palette: Sequence[Pair]) -> PairStatement:
    return PairStatement("total", _phrase(rng, palette), number=int(rng.integers(1, 6)))


def _every(rng: np.random.Generator, palette: Sequence[Pair]) -> PairStatement:
    color, shape = pick(rng, palette)
    u = rng.random()
    if u < 0.4:
        return PairStatement("every", Phrase("a", shape=shape), value=("color", color))
    if u < 0.7:
        return PairStatement("every", Phrase("a", shape=shape), value=("size", pick(rng, SIZES)))
    return PairStatement("every", Phrase("a", color=color), value=("shape", shape))


def _exists(kind: str) -> Callable[[np.random.Generator, Sequence[Pair]], PairStatement]:
    return lambda rng, palette: PairStatement(kind, _phrase(rng, palette))


KINDS: dict[str, Callable[[np.random.Generator, Sequence[Pair]], PairStatement]] = {
    "both": _exists("both"),
    "neither": _exists("neither"),
    "one": _exists("one"),
    "either": _exists("either"),
    "side": _side,
    "more": _more,
    "same": lambda rng, palette: PairStatement("same", _phrase(rng, palette, plain=True)),
    "total": _total,
    "every": _every,
}


# ---------------------------------------------------------------------- drawing
def draw_palette(rng: np.random.Generator, split: str) -> list[Pair]:
    """Three to six (colour, shape) pairs of few colours and shapes, so that things recur."""
    allowed = ALLOWED_PAIRS[split]
    while True:
        colors = {pick(rng, allowed)[0] for _ in range(3)}
        shapes = {pick(rng, allowed)[1] for _ in range(3)}
        palette = [p for p in allowed if p[0] in colors and p[1] in shapes]
        if len(palette) >= 3:
            return palette


def draw_object(rng: np.random.Generator, palette: Sequence[Pair]) -> Obj:
    """An object without a place, of one of the palette's pairs."""
    color, shape = pick(rng, palette)
    texture = pick(rng, TEXTURES) if rng.random() < 0.6 else "solid"
    size = "large" if rng.random() < 0.4 or (texture != "solid" and shape in FINE) else "small"
    return {"shape": shape, "color": color, "size": size, "texture": texture, "r": pick(rng, RADII[size])}


def _draw_scene(rng: np.random.Generator, palette: Sequence[Pair]) -> Scene:
    while True:
        objects = [draw_object(rng, palette) for _ in range(int(rng.integers(2, 5)))]
        if sum(o["size"] == "large" for o in objects) <= 2 and arrange(rng, objects):
            return {"objects": objects, "background": draw_background(rng)}


def with_more(
    first: Any,
    kinds: Mapping[str, Callable[[np.random.Generator, Sequence[Pair]], Any]],
    rng: np.random.Generator,
    palette: Sequence[Pair],
    tells_apart: Callable[[Any], bool],
) -> list[Any] | None:
    """`SENTENCES` different sentences that tell the same pictures apart, of kinds as mixed as the pictures allow.

    Args:
        first: one of them.
        kinds: how a sentence of a kind is drawn for a palette.
        rng, palette: what they are drawn from.
        tells_apart: whether a sentence is right of some pictures and wrong of others.

    Returns:
        The sentences, `first` first; None if the pictures don't allow as many.
    """
    found = {first.text(): first}
    for kind in shuffled(rng, list(kinds)) * 2:
        for _ in range(_TRIES):
            sentence = kinds[kind](rng, palette)
            if sentence.text() not in found and tells_apart(sentence):
                found[sentence.text()] = sentence
                break
        if len(found) == SENTENCES:
            return list(found.values())
    return None


Pictures = tuple[Scene, Scene]


def make_examples(
    rng: np.random.Generator, split: str
) -> tuple[tuple[Pictures, Pictures], list[PairStatement]]:
    """Two pairs of pictures, and statements each of which is true of one pair and false of the other.

    Args:
        rng: the stream that everything is drawn from.
        split: decides which colours and shapes there are.

    Returns:
        Two of (left, right), in random order, and `SENTENCES` statements.
    """
    while True:
        palette = draw_palette(rng, split)
        first = KINDS[pick(rng, list(KINDS))](rng, palette)
        found: dict[bool, Pictures] = {}
        for _ in range(_ATTEMPTS):
            pair = _draw_scene(rng, palette), _draw_scene(rng, palette)
            if first.fair(*pair):
                found.setdefault(first.holds(*pair), pair)
            if len(found) == 2:
                break
        else:
            continue
        a, b = (found[truth] for truth in shuffled(rng, (True, False)))
        statements = with_more(first, KINDS, rng, palette, functools.partial(_tells_apart, a, b))
        if statements is not None:
            return (a, b), statements


def _tells_apart(a: Pictures, b: Pictures, statement: PairStatement) -> bool:
    return statement.holds(*a) != statement.holds(*b) and statement.fair(*a) and statement.fair(*b)


# ---------------------------------------------------------------------- the data set
@dataclass(frozen=True)
class ShapesNLVROptions(NLVROptions, MadeOptions):
    """See `MadeOptions` and `NLVROptions`."""

    n_train: int = 60_000

    def __post_init__(self) -> None:
        MadeOptions.__post_init__(self)
        NLVROptions.__post_init__(self)


def _records(options: Any, split: str, number: int) -> list[Record]:
    pairs, statements = make_examples(stream(options.seed, split, number, Purpose.PAIR), split)
    return [
        {
            "images": [f"nlvr/{split}/{2 * number + i:06d}-{side}.png" for side in SIDES],
            "image_id": 2 * number + i,
            "sentence": statement.text(),
            "label": str(statement.holds(*scenes)),
            "kind": statement.kind,
            "scenes": list(scenes),
        }
        for statement in statements
        for i, scenes in enumerate(pairs)
    ]


@registry.register_dataset("shapes_nlvr")
class ShapesNLVR(DrawnWithSentences, NLVRDataset):
    """Pairs of pictures with statements; records also hold `scenes` and `kind`."""

    name = "shapes_nlvr"
    Options = ShapesNLVROptions
    pictures_per_group, sentences_per_group = 2, SENTENCES

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesNLVR:
        each = 2 * SENTENCES
        records = Made(_records, plan.options, split, plan.options.count(split), each=each, keep=8_192)
        return cls(records, split, options=plan.options)

    def pictures(self, record: Mapping[str, Any]) -> tuple[Image.Image, Image.Image]:
        def draw(side: int) -> Image.Image:
            picture: Image.Image = self.drawn(
                (record["image_id"], side), lambda: render(record["scenes"][side], self.options.size)
            )
            return picture

        return draw(0), draw(1)

    def flipped(self, sentence: str) -> str:
        """ "left picture" becomes "right picture" and the other way round."""
        swap = {"left picture": "right picture", "right picture": "left picture"}
        return re.sub("|".join(swap), lambda m: swap[m[0]], sentence)
