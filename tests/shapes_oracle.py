"""Readers of the texts of shapes, word by word, for tests: they share no code with what wrote the texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes.scene import COLORS, MARGIN, SHAPES, SIZES, TEXTURES

Objects = list[dict[str, Any]]
Reader = Callable[[str, Objects, Objects], "tuple[str, Objects] | None"]
NUMBERS = {"no": 0, "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
KIND = {**dict.fromkeys(COLORS, "color"), **dict.fromkeys(SHAPES, "shape"), **dict.fromkeys(SIZES, "size"),
        **dict.fromkeys(TEXTURES, "texture")}  # fmt: skip
SMALL = {"n_train": 60, "n_val": 60, "n_test": 12}


def records(name: str, split: str = "train", **options: Any) -> Any:
    return load_dataset(name, **(SMALL | options))[split].records


def words(text: str) -> list[str]:
    """Words without plural endings."""
    out = []
    for w in re.findall(r"[a-z0-9]+", text):
        singular = "cross" if w == "crosses" else w.removesuffix("s")
        out.append(singular if singular in SHAPES or singular == "object" else w)
    return out


def find(text: str, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects that the adjectives and the noun of a phrase fit."""
    named = [w for w in words(text) if w in KIND]
    assert named or "object" in words(text), text
    return [o for o in objects if all(o[KIND[w]] == w for w in named)]


def the(text: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    found = find(text, objects)
    assert len(found) == 1, text
    return found[0]


# ---------------------------------------------------------------------- dialogues
ASKED = {
    r"what color is (.+)": "color",
    r"what shape is (.+)": "shape",
    r"is (.+) large or small": "size",
    r"is (.+) solid, striped or dotted": "texture",
}
SIDES = {"to the left of": ("x", -1), "to the right of": ("x", 1), "above": ("y", -1), "below": ("y", 1)}


def name_of(o: dict[str, Any]) -> str:
    return f"a {o['size']} {o['color']} {o['shape']}"


def reply_to(question: str, objects: Objects, focus: Objects) -> tuple[str, Objects] | None:
    """The answer and the new focus, from the words alone; None where "it" cannot be meant so."""
    q = question.removesuffix("?")
    yes_no = {True: "yes", False: "no"}
    for pattern, attribute in ASKED.items():
        if m := re.fullmatch(pattern, q):
            if m[1] == "it":
                return focus[0][attribute], focus
            pool = focus if m[1].endswith(" one") else objects
            found = find(m[1].replace(" one", " object"), pool)
            return (found[0][attribute], found) if len(found) == 1 else None
    if m := re.fullmatch(r"is there an? (.+)", q):
        found = find(m[1], objects)
        return yes_no[bool(found)], found if len(found) == 1 else []
    if m := re.fullmatch(r"how many (.+) are there", q):
        found = find(m[1], objects)
        return str(len(found)), found
    if m := re.fullmatch(r"how many of them are (\w+)", q):
        return str(sum(o[KIND[words(m[1])[0]]] == words(m[1])[0] for o in focus)), focus
    if m := re.fullmatch(r"are they all (\w+)", q):
        return yes_no[all(o[KIND[words(m[1])[0]]] == words(m[1])[0] for o in focus)], focus
    if m := re.fullmatch(r"how many other objects have the same (\w+)", q):
        return str(sum(o[m[1]] == focus[0][m[1]] for o in objects if o is not focus[0])), focus
    if m := re.fullmatch(rf"what is ({'|'.join(SIDES)}) it", q):
        axis, sign = SIDES[m[1]]
        across = "y" if axis == "x" else "x"
        side = [o for o in objects if sign * (o[axis] - focus[0][axis]) > 0]
        if not side:
            return "nothing", focus
        far = abs(side[0][axis] - focus[0][axis])
        clear = far >= MARGIN and far >= 1.2 * abs(side[0][across] - focus[0][across])
        return (name_of(side[0]), side) if len(side) == 1 and clear else None
    if m := re.fullmatch(rf"is it ({'|'.join(SIDES)}) the (.+)", q):
        axis, sign = SIDES[m[1]]
        across = "y" if axis == "x" else "x"
        found = find(m[2], objects)
        if len(found) != 1 or found[0] is focus[0]:
            return None
        far = sign * (focus[0][axis] - found[0][axis])
        clear = abs(far) >= MARGIN and abs(far) >= 1.2 * abs(focus[0][across] - found[0][across])
        return (yes_no[far > 0], focus) if clear else None
    m = re.fullmatch(r"is it (?:an? )?(\w+)", q)
    assert m, question
    return yes_no[focus[0][KIND[m[1]]] == m[1]], focus


def meanings(question: str, objects: Objects) -> list[Objects]:
    """What the pronoun of a question could mean; empty if it has none."""
    if re.search(r"\b(it|same)\b", question):
        return [[o] for o in objects]
    if re.search(r"\b(they|them|one)\b", question):
        groups = [
            [o for o in objects if o[k] == v] for k in ("color", "shape") for v in {o[k] for o in objects}
        ]
        return [g for g in [objects, *groups] if len(g) > 1]
    return []


def from_caption(caption: str, objects: Objects) -> Objects:
    found = find(caption, objects)
    assert len(found) == NUMBERS[caption.split()[0]], caption
    return found


def check_rounds(r: dict[str, Any], objects: Objects, reply: Reader, meanings_of: Any) -> None:
    focus = from_caption(r["caption"], objects)
    for turn in r["dialog"]:
        pronoun = meanings_of(turn["question"], objects)
        assert not pronoun or focus, turn["question"]
        if pronoun:
            assert (len(focus) == 1) == (len(pronoun[0]) == 1), turn["question"]
        answer, after = reply(turn["question"], objects, focus)
        assert answer == turn["answer"], (turn, r["caption"])
        assert [id(o) for o in after] == [id(objects[i]) for i in turn["about"]], turn
        others = [reply(turn["question"], objects, m) for m in pronoun]
        assert turn["needs_history"] == any(o is not None and o[0] != answer for o in others), turn
        focus = after
