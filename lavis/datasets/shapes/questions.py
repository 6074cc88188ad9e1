"""Questions about scenes with exactly one right answer each.

Every kind of question refuses (returns None) where the answer could be argued about: "the star" needs
exactly one star, relations must be clear to the eye (`clearly` in scene.py), comparisons must not be
even. Yes and no are drawn before the objects they are about, so neither is the better guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lavis.datasets.shapes import scene as world
from lavis.datasets.shapes.language import PLURALS, RELATION_WORDS, Phrase, phrase_for
from lavis.datasets.shapes.scene import Obj, Scene, clearly, shuffled

# Every answer to every question of every split.
ANSWERS = (
    "yes", "no", *(str(n) for n in range(world.MAX_OBJECTS + 1)), *world.ALL_COLORS, *world.SHAPES
)  # fmt: skip

Question = tuple[str, str]
Pair = tuple[str, str]


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _the(objects: Sequence[Obj], obj: Obj, choices: Sequence[Sequence[str]]) -> str | None:
    """The first of several descriptions that fits this object alone: "the red star"."""
    for kinds in choices:
        if phrase_for(objects, obj, kinds).quantity == "a":
            return Phrase("the", **{k: obj[k] for k in kinds}).text()
    return None


_NAMES = (("shape",), ("color", "shape"), ("size", "shape"))


def ask_color(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "what color is the star?" """
    obj = _pick(rng, objects)
    name = _the(objects, obj, (("shape",), ("size", "shape"), ("texture", "shape")))
    return None if name is None else (f"what color is {name}?", obj["color"])


def ask_shape(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "what shape is the red object?" """
    obj = _pick(rng, objects)
    name = _the(objects, obj, (("color",), ("size", "color"), ("texture", "color"), ("size",)))
    return None if name is None else (f"what shape is {name}?", obj["shape"])


def ask_count(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "how many red circles are there?" The number is drawn first, from those on offer."""
    offers: dict[int, list[str]] = {}
    kinds = _pick(rng, (("shape",), ("color",), ("color", "shape"), ("size",), ()))
    wanted: list[dict[str, str]] = [{k: o[k] for k in kinds} for o in objects]
    others = [_pick(rng, pairs) for _ in range(4)]  # most of which are not there
    wanted += [{k: {"color": c, "shape": s}.get(k, "large") for k in kinds} for c, s in others]
    for attributes in wanted:
        phrase = Phrase("many", **attributes)
        offers.setdefault(len(phrase.matching(objects)), []).append(phrase.text())
    number = _pick(rng, sorted(offers))
    return f"how many {_pick(rng, sorted(set(offers[number])))} are there?", str(number)


def ask_existence(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "is there a red circle?" For "no", something that shares a colour or a shape with the scene."""
    present = {(o["color"], o["shape"]) for o in objects}
    if rng.random() < 0.5:
        color, shape = _pick(rng, sorted(present))
        answer = "yes"
    else:
        colors, shapes = {c for c, _ in present}, {s for _, s in present}
        both = [p for p in pairs if p not in present and p[0] in colors and p[1] in shapes]
        one = [p for p in pairs if p not in present and (p[0] in colors) != (p[1] in shapes)]
        color, shape = _pick(rng, both if both and rng.random() < 0.6 else one)
        answer = "no"
    kinds: dict[str, str] = {"color": color, "shape": shape}
    u = rng.random()
    if u < 0.2:  # by shape alone, or by colour alone
        shape = shape if answer == "yes" else _absent(rng, [s for _, s in pairs], {s for _, s in present})
        kinds = {"shape": shape}
    elif u < 0.4:
        color = color if answer == "yes" else _absent(rng, [c for c, _ in pairs], {c for c, _ in present})
        kinds = {"color": color}
    return f"is there {Phrase('a', **kinds).text()}?", answer


def _absent(rng: np.random.Generator, options: Sequence[str], present: set[str]) -> str:
    return _pick(rng, sorted(set(options) - present))


def ask_more(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "are there more circles than squares?", by shape or by colour; the counts differ."""
    kind = _pick(rng, ("shape", "color"))
    values = sorted({o[kind] for o in objects})
    options = sorted({c if kind == "color" else s for c, s in pairs})
    first = _pick(rng, values)
    second = _pick(rng, values) if len(values) > 1 and rng.random() < 0.7 else _pick(rng, options)
    counts = [sum(o[kind] == v for o in objects) for v in (first, second)]
    if counts[0] == counts[1]:
        return None
    more, fewer = (first, second) if counts[0] > counts[1] else (second, first)
    answer = "yes" if rng.random() < 0.5 else "no"
    asked = (more, fewer) if answer == "yes" else (fewer, more)
    nouns = [PLURALS[v] if kind == "shape" else f"{v} objects" for v in asked]
    return f"are there more {nouns[0]} than {nouns[1]}?", answer


def _ask_pair(objects: list[Obj], rng: np.random.Generator, relations: Sequence[str]) -> Question | None:
    """As in "is the star above the circle?" Asked of a pair that stands so, or the other way round."""
    for relation in shuffled(rng, relations):
        for a in shuffled(rng, objects):
            for b in shuffled(rng, objects):
                if a is b or not clearly(relation, a, b):
                    continue
                names = _the(objects, a, _NAMES[:2]), _the(objects, b, _NAMES[:2])
                if None in names:
                    continue
                answer = "yes" if rng.random() < 0.5 else "no"
                if answer == "no":
                    names = names[1], names[0]
                return f"is {names[0]} {RELATION_WORDS[relation]} {names[1]}?", answer
    return None


def ask_size(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "is the star larger than the circle?" """
    return _ask_pair(objects, rng, ("larger", "smaller"))


def ask_place(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "is the star to the left of the circle?" """
    return _ask_pair(objects, rng, world.PLACES)


def ask_neighbour(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "what shape is above the square?" Nothing else may lie on that side at all, however little."""
    for relation in shuffled(rng, world.PLACES):
        for b in shuffled(rng, objects):
            side = [a for a in objects if a is not b and world.shift(relation, a, b)[0] > 0]
            if len(side) != 1 or not clearly(relation, side[0], b):
                continue
            name = _the(objects, b, _NAMES[:2])
            if name is None:
                continue
            kind = _pick(rng, ("shape", "color"))
            noun = "shape" if kind == "shape" else "color"
            ending = "" if kind == "shape" else " the object"
            return f"what {noun} is{ending} {RELATION_WORDS[relation]} {name}?", side[0][kind]
    return None


def ask_texture(objects: list[Obj], rng: np.random.Generator, pairs: Sequence[Pair]) -> Question | None:
    """As in "is the star striped?" """
    obj = _pick(rng, objects)
    name = _the(objects, obj, _NAMES[:2])
    if name is None:
        return None
    answer = "yes" if rng.random() < 0.5 else "no"
    others = [t for t in world.TEXTURES if t != obj["texture"]]
    texture = obj["texture"] if answer == "yes" else _pick(rng, others)
    return f"is {name} {texture}?", answer


Asker = Callable[[list[Obj], np.random.Generator, Sequence[Pair]], "Question | None"]
QUESTION_TYPES: dict[str, Asker] = {
    "color": ask_color,
    "shape": ask_shape,
    "count": ask_count,
    "existence": ask_existence,
    "more": ask_more,
    "size": ask_size,
    "place": ask_place,
    "neighbour": ask_neighbour,
    "texture": ask_texture,
}


def make_questions(
    scene: Scene, rng: np.random.Generator, count: int, split: str = "train"
) -> list[dict[str, str]]:
    """Ask `count` different questions about a scene.

    Args:
        scene: what is in the picture.
        rng: the stream that questions are chosen with.
        count: how many questions, 1 to 12.
        split: decides which colours and shapes may be asked for: training splits never mention a
            combination that is held out.

    Returns:
        Dicts with `question`, `answer` and `question_type`, the types as mixed as the scene allows.
    """
    objects, pairs = scene["objects"], world.ALLOWED_PAIRS[split]
    asked: dict[str, dict[str, str]] = {}
    while len(asked) < count:
        for kind in shuffled(rng, list(QUESTION_TYPES)):
            found = QUESTION_TYPES[kind](objects, rng, pairs)
            if found is not None and found[0] not in asked and len(asked) < count:
                asked[found[0]] = {"question": found[0], "answer": found[1], "question_type": kind}
    return list(asked.values())
