"""Pictures with something hidden: does the picture prove a sentence, refute it, or leave it open?

**Description.** A picture has four corners. A grey card covers one of them; in each of the others lies one
object, or nothing. Behind the card there may be any one object, or nothing. So a picture leaves several
worlds possible, and a sentence is

- *entailment* if it is true in all of them ("there are at least two stars", and two can be seen),
- *contradiction* if it is true in none ("the object in the top left corner is red", and it is blue),
- *neutral* if that depends on what the card hides ("there is a star in the top left corner", where the
  card lies; "there are at least two stars", and one can be seen).

Every sentence comes three times, once with a picture for each answer (records 3k to 3k + 2, in random
order), so the text alone tells nothing: chance is a third, for every sentence. Three pictures share five
sentences. Nothing is downloaded.

**Names.** `shapes_entailment`.

**Splits.** train, val, test: 60,000, 1,500 and 1,500 examples.

**Task.** Classification into contradiction (0), neutral (1) and entailment (2), as SNLI-VE.

**Metrics.** Accuracy.

**Records.** `image`, `image_id`, `sentence`, `label`, `kind` and `scene`, whose `objects` are those
that can be seen, each with its `corner`, and whose `card` says where the card lies. Nothing is drawn
behind it.

**License.** The same as this library's; there is no third-party material in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lavis.common.registry import registry
from lavis.datasets.base import Plan, Record
from lavis.datasets.entailment import EntailmentDataset
from lavis.datasets.nlvr import SentenceOptions
from lavis.datasets.shapes.language import NUMBERS, Phrase
from lavis.datasets.shapes.made import DrawnWithSentences, Made, MadeOptions
from lavis.datasets.shapes.pairs import SENTENCES, Pair, draw_object, draw_palette, with_more
from lavis.datasets.shapes.scene import (
    ATTRIBUTES,
    COLORS,
    FINE,
    SHAPES,
    SIZES,
    TEXTURES,
    Obj,
    Purpose,
    Scene,
    draw_background,
    pick,
    shuffled,
    stream,
)

CORNERS = {
    "top left": (0.26, 0.26),
    "top right": (0.74, 0.26),
    "bottom left": (0.26, 0.74),
    "bottom right": (0.74, 0.74),
}
ROWS = {
    "at the top": ("top left", "top right"),
    "at the bottom": ("bottom left", "bottom right"),
    "on the left": ("top left", "bottom left"),
    "on the right": ("top right", "bottom right"),
}
CARD_HALF = 0.22  # wider than the largest object, r = 0.205 and outlines up to 1.1 r with jitter 0
ANSWERS = ("contradiction", "neutral", "entailment")
_ATTEMPTS = 80

# What may lie behind a card, None for nothing: every object that a scene may have.
HIDDEN: tuple[Obj | None, ...] = (
    None,
    *(
        {"shape": shape, "color": color, "size": size, "texture": texture}
        for color in COLORS
        for shape in SHAPES
        for size in SIZES
        for texture in TEXTURES
        if not (shape in FINE and size == "small" and texture != "solid")
    ),
)


@dataclass(frozen=True)
class Hypothesis:
    """A sentence about all four corners.

    Args:
        kind: one of `KINDS`.
        corners: those that it names: one, or two for "larger" and "same".
        phrase: what it is about, for "at", "least", "most" and "more".
        number: of "least" and "most".
        other: what there is less of, for "more".
        value: an attribute and its value for "is"; an attribute and "" for "same".
    """

    kind: str
    corners: tuple[str, ...] = ()
    phrase: Phrase = Phrase()  # noqa: RUF009 (a frozen dataclass)
    number: int = 0
    other: Phrase = Phrase()  # noqa: RUF009
    value: tuple[str, str] = ("", "")

    def text(self) -> str:
        places = [f"the object in the {corner} corner" for corner in self.corners]
        if self.kind == "at":
            return f"there is {self.phrase.text()} in the {self.corners[0]} corner"
        if self.kind == "is":
            kind, value = self.value
            return f"{places[0]} is {f'a {value}' if kind == 'shape' else value}"
        if self.kind == "larger":
            return f"{places[0]} is larger than {places[1]}"
        if self.kind == "same":
            row = next(name for name, corners in ROWS.items() if corners == self.corners)
            return f"the two objects {row} have the same {self.value[0]}"
        if self.kind == "more":
            return f"there are more {self.phrase.plural()} than {self.other.plural()}"
        amount = f"at {self.kind} {NUMBERS[self.number]}"
        if self.number == 1:
            return f"there is {amount} {self.phrase.text().split(' ', 1)[1]}"
        return f"there are {amount} {self.phrase.plural()}"

    def holds(self, world: Mapping[str, Obj]) -> bool:
        """Whether it is true of a world: the object of each corner that has one. A sentence about "the
        object" of a corner with none is false."""
        objects = world.values()
        if self.kind in ("least", "most"):
            count = len(self.phrase.matching(objects))
            return count >= self.number if self.kind == "least" else count <= self.number
        if self.kind == "more":
            return len(self.phrase.matching(objects)) > len(self.other.matching(objects))
        found = [world[corner] for corner in self.corners if corner in world]
        if len(found) < len(self.corners):
            return False
        if self.kind == "at":
            return bool(self.phrase.matching(found))
        kind, value = self.value
        if self.kind == "is":
            return bool(found[0][kind] == value)
        if self.kind == "larger":
            return SIZES.index(found[0]["size"]) > SIZES.index(found[1]["size"])
        return bool(found[0][kind] == found[1][kind])

    def attributes(self) -> tuple[str, ...]:
        """The attributes of objects that its truth depends on."""
        if self.kind == "larger":
            return ("size",)
        named = {k for p in (self.phrase, self.other) for k in ATTRIBUTES if getattr(p, k) is not None}
        return tuple(k for k in ATTRIBUTES if k in named | {self.value[0]})


@functools.cache
def _differing(attributes: tuple[str, ...]) -> tuple[Obj | None, ...]:
    """Of everything that may be hidden, one of each kind that these attributes tell apart."""
    kinds = {None if o is None else tuple(o[k] for k in attributes): o for o in HIDDEN}
    return tuple(kinds.values())


def verdict(hypothesis: Hypothesis, scene: Scene) -> str:
    """What a picture says about a sentence, found by trying everything that the card may hide.

    Args:
        hypothesis: the sentence.
        scene: with `objects` (those to be seen, with their `corner`) and `card`.

    Returns:
        One of `ANSWERS`.
    """
    seen = {o["corner"]: o for o in scene["objects"]}
    truths = set()
    for hidden in _differing(hypothesis.attributes()):
        world = seen if hidden is None else seen | {scene["card"]["corner"]: hidden}
        truths.add(hypothesis.holds(world))
        if len(truths) == 2:
            return "neutral"
    return "entailment" if truths == {True} else "contradiction"


# ---------------------------------------------------------------------- writing
def _corner(rng: np.random.Generator) -> str:
    corner: str = pick(rng, list(CORNERS))
    return corner


def _phrase(rng: np.random.Generator, palette: Sequence[Pair], whole: float = 0.3) -> Phrase:
    """A shape, a colour or (with the chance `whole`) both."""
    color, shape = pick(rng, palette)
    if rng.random() < whole:
        return Phrase("a", shape=shape, color=color)
    return Phrase("a", shape=shape) if rng.random() < 0.5 else Phrase("a", color=color)


def _at(rng: np.random.Generator, palette: Sequence[Pair]) -> Hypothesis:
    return Hypothesis("at", (_corner(rng),), _phrase(rng, palette, whole=0.5))


def _is(rng: np.random.Generator, palette: Sequence[Pair]) -> Hypothesis:
    color, shape = pick(rng, palette)
    values = (
        ("color", color),
        ("shape", shape),
        ("size", pick(rng, SIZES)),
        ("texture", pick(rng, TEXTURES)),
    )
    return Hypothesis("is", (_corner(rng),), value=pick(rng, values))


def _least(rng: np.random.Generator, palette: Sequence[Pair]) -> Hypothesis:
    return Hypothesis("least", phrase=_phrase(rng, palette), number=int(rng.integers(2, 4)))


def _most(rng: np.random.Generator, palette: Sequence[Pair]) -> Hypothesis:
    return Hypothesis("most", phrase=_phrase(rng, palette), number=int(rng.integers(1, 3)))


def _more(rng: np.random.Generator, palette: Sequence[Pair]) -> Hypothesis:
    kind = pick(rng, ("shape", "color"))
    values = sorted({p[("color", "shape").index(kind)] for p in palette})
    if len(values) < 2:
        return _most(rng, palette)
    first, second = (values[int(i)] for i in rng.permutation(len(values))[:2])
    return Hypothesis("more", phrase=Phrase("a", **{kind: first}), other=Phrase("a", **{kind: second}))


def _larger(rng: np.random.Generator, palette: Sequence[Pair]) -> Hypothesis:
    first, second = (list(CORNERS)[int(i)] for i in rng.permutation(4)[:2])
    return Hypothesis("larger", (first, second))


def _same(rng: np.random.Generator, palette: Sequence[Pair]) -> Hypothesis:
    return Hypothesis("same", ROWS[pick(rng, list(ROWS))], value=(pick(rng, ATTRIBUTES), ""))


KINDS: dict[str, Callable[[np.random.Generator, Sequence[Pair]], Hypothesis]] = {
    "at": _at,
    "is": _is,
    "least": _least,
    "most": _most,
    "more": _more,
    "larger": _larger,
    "same": _same,
}


# ---------------------------------------------------------------------- drawing
def _draw_scene(rng: np.random.Generator, palette: Sequence[Pair]) -> Scene:
    """A card in one corner; objects in most of the others."""
    covered = _corner(rng)
    objects: list[Obj] = []
    for corner, (x, y) in CORNERS.items():
        if corner == covered or rng.random() < 0.15:
            continue
        obj = draw_object(rng, palette)
        jitter = 0.04 if obj["size"] == "small" else 0.015
        dx, dy = ((rng.random(2) * 2 - 1) * jitter).round(4).tolist()
        objects.append(obj | {"corner": corner, "x": x + dx, "y": y + dy})
    x, y = CORNERS[covered]
    card = {"corner": covered, "x": x, "y": y, "half": CARD_HALF}
    return {"objects": objects, "card": card, "background": draw_background(rng)}


def make_examples(rng: np.random.Generator, split: str) -> tuple[list[Scene], list[Hypothesis]]:
    """Three pictures, and sentences that one of them proves, one refutes and one leaves open.

    Args:
        rng: the stream that everything is drawn from.
        split: decides which colours and shapes there are.

    Returns:
        The pictures' scenes, in random order, and `SENTENCES` sentences.
    """
    while True:
        palette = draw_palette(rng, split)
        first = KINDS[pick(rng, list(KINDS))](rng, palette)
        found: dict[str, Scene] = {}
        for _ in range(_ATTEMPTS):
            scene = _draw_scene(rng, palette)
            if _fair(first, scene):
                found.setdefault(verdict(first, scene), scene)
            if len(found) == len(ANSWERS):
                break
        else:
            continue
        scenes = [found[answer] for answer in shuffled(rng, ANSWERS)]
        hypotheses = with_more(first, KINDS, rng, palette, functools.partial(_tells_apart, scenes))
        if hypotheses is not None:
            return scenes, hypotheses


def _tells_apart(scenes: Sequence[Scene], hypothesis: Hypothesis) -> bool:
    return all(_fair(hypothesis, s) for s in scenes) and len({verdict(hypothesis, s) for s in scenes}) == 3


def _fair(hypothesis: Hypothesis, scene: Scene) -> bool:
    """Whether "the object in … corner" has an object, or the card, where it points; so nobody is asked
    about the colour of nothing."""
    if hypothesis.kind not in ("is", "larger", "same"):
        return True
    there = {o["corner"] for o in scene["objects"]} | {scene["card"]["corner"]}
    return there >= set(hypothesis.corners)


# ---------------------------------------------------------------------- the data set
@dataclass(frozen=True)
class ShapesEntailmentOptions(SentenceOptions, MadeOptions):
    """See `MadeOptions` and `SentenceOptions`."""

    n_train: int = 60_000
    n_val: int = 1_500
    n_test: int = 1_500

    def __post_init__(self) -> None:
        MadeOptions.__post_init__(self)
        SentenceOptions.__post_init__(self)


def _records(options: Any, split: str, number: int) -> list[Record]:
    scenes, hypotheses = make_examples(stream(options.seed, split, number, Purpose.ENTAILMENT), split)
    return [
        {
            "image": f"entailment/{split}/{3 * number + i:06d}.png",
            "image_id": 3 * number + i,
            "sentence": hypothesis.text(),
            "label": verdict(hypothesis, scene),
            "kind": hypothesis.kind,
            "scene": scene,
        }
        for hypothesis in hypotheses
        for i, scene in enumerate(scenes)
    ]


@registry.register_dataset("shapes_entailment")
class ShapesEntailment(DrawnWithSentences, EntailmentDataset):
    """Pictures with sentences; records also hold `scene` and `kind`."""

    name = "shapes_entailment"
    Options = ShapesEntailmentOptions
    pictures_per_group, sentences_per_group = len(ANSWERS), SENTENCES

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesEntailment:
        each = len(ANSWERS) * SENTENCES
        records = Made(_records, plan.options, split, plan.options.count(split), each=each, keep=8_192)
        return cls(records, split, options=plan.options)
