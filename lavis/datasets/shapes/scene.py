"""Scenes of coloured shapes: what is in a picture, before it is drawn or described.

A scene is a plain dict, so it can be stored beside a picture:

    {"objects": [{"shape", "color", "size", "texture", "x", "y", "r"}, …], "background": {…}}

x and y are the centre, r half the width, as fractions of the picture's side (x to the right, y down).
The background holds only numbers for drawing; no text ever mentions it.

What words mean, for the generators of captions and questions and for the judge alike:

- *size* is "small" or "large"; every large object is at least 1.4 times as wide as every small one.
- a *relation* between two objects holds if their centres differ by at least `MARGIN` (an eighth of the
  side) in that direction. Generators say less than that: they also want the direction to be the
  dominant one (`clearly`), so nobody is asked whether something up and to the right is "above".
- a *side* of the picture ("at the top", "on the left") is the half in which the centre lies; the middle
  is its inner quarter of the area. Generators call a side what lies `MARGIN` beyond the centre line, the
  middle what lies within `MARGIN` of both lines (`sides`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np

Obj = dict[str, Any]
Scene = dict[str, Any]

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "heart")
COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown")
NEW_COLORS = ("black", "cyan")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "dotted")
ATTRIBUTES = ("color", "shape", "size", "texture")
PLACES = ("left", "right", "above", "below")
SIDES = ("left", "right", "top", "bottom")
NEW_TEXTURES = ("checkered",)
ALL_COLORS = COLORS + NEW_COLORS
ALL_TEXTURES = TEXTURES + NEW_TEXTURES

MAX_OBJECTS = 5
MARGIN = 0.125
RADII = {"small": (0.12, 0.126, 0.132), "large": (0.19, 0.195, 0.205)}
FINE = ("star", "ring")  # too narrow, when small, for a texture to be told apart

# (colour, shape) pairs that occur in the split `unseen` only: one or two for each colour and each shape.
# 3 is coprime to 8, so the first diagonal meets every shape once; the second adds every other colour.
HELD_OUT = frozenset(
    [(c, SHAPES[(3 * i + 1) % 8]) for i, c in enumerate(COLORS)]
    + [(c, SHAPES[(3 * i + 6) % 8]) for i, c in enumerate(COLORS) if i % 2 == 0]
)

SPLITS = ("train", "val", "test", "unseen", "new_train", "new_test")

_OBJECT_COUNTS = np.cumsum([0.14, 0.24, 0.26, 0.2, 0.16])


class Purpose(IntEnum):
    """What a random stream is for. No two kinds of picture or text share one, so none changes another."""

    SCENE = 0
    CAPTIONS = 1
    QUESTIONS = 2
    RETRIEVAL_SCENE = 3
    RETRIEVAL_CAPTIONS = 4
    PAIR = 5
    ENTAILMENT = 6
    DIALOGUE_SCENE = 7
    DIALOGUE = 8
    CLIP = 9
    CLIP_CAPTIONS = 10
    CLIP_QUESTIONS = 11
    CLIP_DIALOGUE = 12
    OPTIONS = 13
    CLIP_OPTIONS = 14
    CLIP_RETRIEVAL = 15
    MATCHING = 16


def stream(seed: int, split: str, index: int, purpose: int = Purpose.SCENE) -> np.random.Generator:
    """The random stream of one picture; `purpose` keeps scene, captions and questions apart."""
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose])


def has_new_things(split: str) -> bool:
    """Whether a split shows the new colours and textures."""
    return split in ("new_train", "new_test")


def allowed_pairs(split: str) -> list[tuple[str, str]]:
    """The (colour, shape) pairs that objects of a split may have."""
    if split == "unseen":
        return [(c, s) for c in COLORS for s in SHAPES]
    colors = ALL_COLORS if has_new_things(split) else COLORS
    return [(c, s) for c in colors for s in SHAPES if (c, s) not in HELD_OUT]


ALLOWED_PAIRS = {split: allowed_pairs(split) for split in SPLITS}
_HELD_OUT = sorted(HELD_OUT)


def pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.random() * len(options))]


def shuffled(rng: np.random.Generator, items: Sequence[Any]) -> list[Any]:
    return [items[int(i)] for i in rng.permutation(len(items))]


def _draw_kind(rng: np.random.Generator, split: str, first: bool) -> tuple[str, str, str]:
    """Colour, shape and texture of an object; the first object always has what the split is about."""
    texture = pick(rng, TEXTURES) if rng.random() < 0.6 else "solid"
    special = first or rng.random() < 0.6
    if split == "unseen" and special:
        return (*pick(rng, _HELD_OUT), texture)
    if has_new_things(split) and special:
        if rng.random() < 0.35:
            texture = pick(rng, NEW_TEXTURES)
        else:
            return pick(rng, NEW_COLORS), pick(rng, SHAPES), texture
    return (*pick(rng, ALLOWED_PAIRS[split]), texture)


def _draw_objects(rng: np.random.Generator, split: str, count: int) -> list[Obj]:
    allowed = set(ALLOWED_PAIRS[split])
    objects: list[Obj] = []
    for position in range(count):
        color, shape, texture = _draw_kind(rng, split, position == 0)
        u = rng.random()
        if objects and u < 0.55:  # repeat something, so that there is something to count and compare
            other = pick(rng, objects)
            if u < 0.3:
                color, shape = other["color"], other["shape"]
            elif u < 0.43 and (other["color"], shape) in allowed:
                color = other["color"]
            elif (color, other["shape"]) in allowed:
                shape = other["shape"]
        room = sum(o["size"] == "large" for o in objects) < (2 if count < MAX_OBJECTS else 1)
        size = "large" if rng.random() < 0.55 and room else "small"
        if texture != "solid" and shape in FINE:
            size = "large"
        objects.append(
            {"shape": shape, "color": color, "size": size, "texture": texture, "r": pick(rng, RADII[size])}
        )
    return objects


def _place(rng: np.random.Generator, objects: list[Obj]) -> bool:
    """Give every object a free place; False if one found none."""
    placed: list[Obj] = []
    for obj in sorted(objects, key=lambda o: -o["r"]):
        r = obj["r"]
        free = (0.02 + r + rng.random((40, 2)) * (0.96 - 2 * r)).round(4).tolist()
        for x, y in free:
            if all(math.hypot(x - o["x"], y - o["y"]) >= 1.12 * (r + o["r"]) + 0.01 for o in placed):
                obj["x"], obj["y"] = x, y
                placed.append(obj)
                break
        else:
            return False
    return True


def _make_room(rng: np.random.Generator, objects: list[Obj]) -> bool:
    """Shrink one large object, so that the number of objects need not depend on luck; False: none may."""
    for obj in objects:
        if obj["size"] == "large" and (obj["texture"] == "solid" or obj["shape"] not in FINE):
            obj["size"], obj["r"] = "small", pick(rng, RADII["small"])
            return True
    return False


def arrange(rng: np.random.Generator, objects: list[Obj]) -> bool:
    """Give every object a place, shrinking large ones where there is no room; False if that is not enough."""
    while not _place(rng, objects):
        if not _make_room(rng, objects):
            return False
    return True


def draw_background(rng: np.random.Generator) -> dict[str, Any]:
    """The numbers that a ground is drawn from."""
    return {
        "level": round(float(0.72 + 0.2 * rng.random()), 3),
        "tint": [round(float(t), 3) for t in (rng.random(3) - 0.5) * 0.12],
        "gradient": [round(float(g), 3) for g in (rng.random(2) - 0.5) * 0.12],
        "noise": round(float(0.03 * rng.random()), 4),
        "lines": int(rng.random() * 4),
        "seed": int(rng.integers(2**31)),
    }


def draw_scene(rng: np.random.Generator, split: str, count: int) -> Scene:
    """A scene of `count` objects, such as the split may have."""
    objects = _draw_objects(rng, split, count)
    while not arrange(rng, objects):
        objects = _draw_objects(rng, split, count)
    return {"objects": objects, "background": draw_background(rng)}


def make_scene(seed: int, split: str, index: int) -> Scene:
    """The scene of picture `index`: a function of these three arguments alone."""
    rng = stream(seed, split, index)
    count = 1 + int(np.searchsorted(_OBJECT_COUNTS, rng.random()))
    return draw_scene(rng, split, count)


# ---------------------------------------------------------------------- meaning
def shift(relation: str, a: Obj, b: Obj) -> tuple[float, float]:
    """How far a lies from b along a relation's direction, and how far across it (fractions of the side)."""
    dx, dy = a["x"] - b["x"], a["y"] - b["y"]
    return {"left": (-dx, dy), "right": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]


def related(relation: str, a: Obj, b: Obj) -> bool:
    """Whether a is left of / right of / above / below b, by at least `MARGIN`; or larger, smaller."""
    if relation in ("larger", "smaller"):
        order = SIZES.index(a["size"]) - SIZES.index(b["size"])
        return order > 0 if relation == "larger" else order < 0
    return shift(relation, a, b)[0] >= MARGIN


def clearly(relation: str, a: Obj, b: Obj) -> bool:
    """`related`, and the direction is the dominant one. What generators state and ask."""
    if not related(relation, a, b):
        return False
    if relation in ("larger", "smaller"):
        return True
    along, across = shift(relation, a, b)
    return along >= 1.2 * abs(across)


def is_at(place: Sequence[str], obj: Obj) -> bool:
    """Whether an object's centre is in every half that `place` names; in the picture's middle if it names none."""
    x, y = obj["x"], obj["y"]
    if not place:
        return abs(x - 0.5) < 0.25 and abs(y - 0.5) < 0.25
    halves = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
    return all(halves[side] for side in place)


def sides(obj: Obj) -> tuple[str, ...]:
    """The sides that an object is clearly on, top or bottom first; none: it is in the middle."""

    def side(value: float, low: str, high: str) -> list[str]:
        return [low] if value <= 0.5 - MARGIN else [high] if value >= 0.5 + MARGIN else []

    return (*side(obj["y"], "top", "bottom"), *side(obj["x"], "left", "right"))


OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above",
            "larger": "smaller", "smaller": "larger"}  # fmt: skip
