"""The embedded data set: captions are true, lies are caught, answers are right, splits are kept apart.

The judge is held against `_oracle`, an independent reading of the same language by regular expressions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes import (
    ANSWERS,
    HELD_OUT,
    SPLITS,
    caption_truth_percent,
    judge_caption,
    make_captions,
    make_questions,
    make_scene,
    render,
)
from lavis.datasets.shapes.scene import (
    ALL_COLORS,
    ALL_TEXTURES,
    COLORS,
    MARGIN,
    NEW_COLORS,
    NEW_TEXTURES,
    SHAPES,
    SIZES,
    stream,
)

NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
NOUN = "|".join([f"{s}(?:es|s)?" for s in SHAPES] + ["objects?"])
NP = re.compile(
    rf"(?P<q>{'|'.join(NUMBERS)}) (?:(?P<size>small|large) )?(?:(?P<texture>{'|'.join(ALL_TEXTURES)}) )?"
    rf"(?:(?P<color>{'|'.join(ALL_COLORS)}) )?(?P<noun>{NOUN})"
)
places = st.tuples(st.integers(0, 3), st.sampled_from(SPLITS), st.integers(0, 10_000))
fast = settings(max_examples=60, deadline=None)


def _singular(noun: str) -> str | None:
    noun = noun.removesuffix("s") if noun not in ("cross",) else noun
    return {"object": None, "crosse": "cross"}.get(noun, noun)


def _found(np_match: re.Match, objects: list[dict]) -> list[dict]:
    shape = _singular(np_match["noun"])
    wanted = {"shape": shape} | {k: np_match[k] for k in ("size", "texture", "color")}
    return [o for o in objects if all(v is None or o[k] == v for k, v in wanted.items())]


def _count_holds(m: re.Match, objects: list[dict]) -> bool:
    n = len(_found(m, objects))
    return n >= 1 if m["q"] in ("a", "an") else n == NUMBERS[m["q"]]


def _geometry(relation: str, a: dict, b: dict) -> bool:
    return {
        "to the left of": b["x"] - a["x"] >= MARGIN,
        "to the right of": a["x"] - b["x"] >= MARGIN,
        "above": b["y"] - a["y"] >= MARGIN,
        "below": a["y"] - b["y"] >= MARGIN,
        "larger than": a["size"] == "large" and b["size"] == "small",
        "smaller than": a["size"] == "small" and b["size"] == "large",
    }[relation]


def _in_place(words: str, o: dict) -> bool:
    x, y = o["x"], o["y"]
    if words == "in the middle":
        return 0.25 < x < 0.75 and 0.25 < y < 0.75
    halves = {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}
    return all(halves[word] for word in words.split()[2:])


def _clause_holds(text: str, objects: list[dict]) -> bool:
    thing, place = re.fullmatch(r"(.+?)( (?:in|at|on) the .+)?", text).groups()
    m = NP.fullmatch(thing)
    assert m, text
    if place is None:
        return _count_holds(m, objects)
    assert m["q"] in ("a", "an"), text
    return any(_in_place(place.strip(), o) for o in _found(m, objects))


def _oracle(caption: str, scene: dict) -> bool:
    """Truth of a caption that the generator could have written."""
    text = re.sub(r"^there (is|are) ", "", caption)
    text = re.sub(r"^(.+) with (.+) to the (left|right) of it$", r"\2 to the \3 of \1", text)
    text = re.sub(r"^(.+) with (.+) (above|below) it$", r"\2 \3 \1", text)
    objects = scene["objects"]
    for relation in ("to the left of", "to the right of", "above", "below", "larger than", "smaller than"):
        if f" {relation} " in text:
            a, b = (NP.fullmatch(part) for part in text.split(f" {relation} "))
            assert a and b and a["q"] in ("a", "an") and b["q"] in ("a", "an"), caption
            return any(_geometry(relation, x, y) for x in _found(a, objects) for y in _found(b, objects))
    return all(_clause_holds(part, objects) for part in text.split(" and "))


def _captions(place: tuple[int, str, int]) -> tuple[dict, list[str]]:
    scene = make_scene(*place)
    return scene, make_captions(scene, stream(*place, 1))


# ---------------------------------------------------------------------- captions
@fast
@given(places)
def test_every_caption_is_true(place: tuple[int, str, int]) -> None:
    scene, captions = _captions(place)
    assert len(set(captions)) == 5
    for caption in captions:
        assert _oracle(caption, scene), caption
        verdict = judge_caption(caption, scene)
        assert verdict.true and verdict.parsed and verdict.statements, caption
        assert re.fullmatch(r"[a-z]+( [a-z]+)*", caption)


SWAPS = [
    dict(zip(COLORS, (*COLORS[1:], COLORS[0]), strict=True)),
    dict(zip(SHAPES, (*SHAPES[1:], SHAPES[0]), strict=True)),
    {f"{s}s": f"{t}s" for s, t in (("circle", "square"), ("square", "star"), ("star", "heart"))},
    {"two": "three", "three": "four", "four": "two", "five": "four", "one": "two"},
    {"small": "large", "large": "small"},
    {"striped": "dotted", "dotted": "solid", "solid": "striped"},
    {"left": "right", "right": "left"},
    {"top": "bottom", "bottom": "top"},
    {"above": "below", "below": "above"},
    {"larger": "smaller", "smaller": "larger"},
]


@settings(max_examples=150, deadline=None)
@given(places, st.sampled_from(SWAPS), st.data())
def test_a_swapped_word_is_judged_as_it_deserves(
    place: tuple[int, str, int], swap: dict[str, str], data: st.DataObject
) -> None:
    scene, captions = _captions(place)
    words = data.draw(st.sampled_from(captions)).split()
    spots = [i for i, w in enumerate(words) if w in swap]
    assume(spots)
    spot = data.draw(st.sampled_from(spots))
    changed = " ".join([*words[:spot], swap[words[spot]], *words[spot + 1 :]])
    if swap.get("one") and words[spot] == "one":  # "one star" would become "two star"
        changed = re.sub(rf"two ((?:\w+ )*?)({'|'.join(SHAPES)}|object)\b(?!s)", r"two \1\2s", changed)
        changed = changed.replace("crosss", "crosses")
    changed = re.sub(r"\ba(?= [aeiou])", "an", re.sub(r"\ban(?= [^aeiou])", "a", changed))
    assert judge_caption(changed, scene).true == _oracle(changed, scene), changed


def test_swaps_produce_many_lies() -> None:
    lies = truths = 0
    for index in range(300):
        scene, captions = _captions((0, "train", index))
        for caption in captions:
            for swap in (SWAPS[0], SWAPS[1], SWAPS[6], SWAPS[7], SWAPS[8]):
                changed = " ".join(swap.get(w, w) for w in caption.split())
                if changed != caption and not judge_caption(changed, scene).true:
                    lies += 1
                elif changed != caption:
                    truths += 1
    assert lies > 20 * truths  # a few stay true by chance ("two objects" has no colour to swap)


SCENE = {
    "objects": [
        {"shape": "circle", "color": "red", "size": "large", "texture": "striped", "x": 0.2, "y": 0.2},
        {"shape": "circle", "color": "red", "size": "small", "texture": "solid", "x": 0.8, "y": 0.25},
        {"shape": "square", "color": "blue", "size": "small", "texture": "solid", "x": 0.25, "y": 0.8},
    ]
}


@pytest.mark.parametrize(
    "caption, true, parsed",
    [
        ("a red circle", True, True),
        ("red circle", True, True),
        ("A red circle.", True, True),
        ("two red circles and a blue square", True, True),
        ("two red circles, a blue square", True, True),
        ("two circles, and a square.", True, True),
        ("one red circle", False, True),
        ("three red circles", False, True),
        ("no green star", True, True),
        ("no red circles", False, True),
        ("red circles", True, True),
        ("blue squares", False, True),
        ("the blue square", True, True),
        ("the red circle", False, True),
        ("the large red circle is striped", True, True),
        ("the square is red", False, True),
        ("the square is blue and small", True, True),
        ("the square is above the striped circle", False, True),
        ("the square is below the striped circle", True, True),
        ("the square is below the small circle and the striped circle", True, True),
        ("two circles above a square", True, True),
        ("two circles to the left of a square", False, True),
        ("a circle to the left of a circle", True, True),
        ("a square left of a circle", True, True),
        ("a red circle with a blue square below it", True, True),
        ("a red circle with a blue square above it", False, True),
        ("a red circle with a blue square", True, True),
        ("a picture of two red circles", True, True),
        ("there are three objects", True, True),
        ("a circle larger than a square", True, True),
        ("a square that is smaller than a circle", True, True),
        ("a square larger than a circle", False, True),
        ("a circle bigger than a circle", True, True),
        ("two small shapes", True, True),
        ("a red circle at the top left", True, True),
        ("a red circle at the bottom", False, True),
        ("a square on the left", True, True),
        ("a square on the left of a circle", True, True),
        ("a square on the left of the picture", True, True),
        ("the square is in the lower left corner and small", False, False),
        ("the square is in the lower left corner and a circle in the upper right corner", True, True),
        ("a circle in the middle", False, True),
        ("two circles at the top", True, True),
        ("two circles on the right", False, True),
        ("an object at the top", True, True),
        ("an object at the", False, False),
        ("a square at the left bottom", True, True),
        ("a gray circle", False, True),
        ("", False, False),
        ("a", False, False),
        ("an object", False, False),
        ("a picture of", False, False),
        ("a red circle and", False, False),
        ("a red circle on a table", False, False),
        ("a red blue circle", False, False),
        ("a red", False, False),
        ("two red circle", False, False),
        ("a red circles", False, False),
        ("a red circle a red circle", False, False),
        ("a man riding a wave", False, False),
        ("a red circle above", False, False),
        ("a red circle 😀", False, False),
    ],
)
def test_judge_by_example(caption: str, true: bool, parsed: bool) -> None:
    verdict = judge_caption(caption, SCENE)
    assert (verdict.true, verdict.parsed) == (true, parsed), verdict


WORDS = re.findall(
    r"\S+",
    "a an the two red striped circle circles and to left of above is with it larger than , that at top",
)


@fast
@given(st.text(max_size=60), st.lists(st.sampled_from(WORDS)))
def test_judge_reads_anything(noise: str, words: list[str]) -> None:
    judge_caption(noise, SCENE)
    verdict = judge_caption(" ".join(words), SCENE)
    assert verdict.parsed == bool(verdict.statements)


def test_statements_and_percent() -> None:
    verdict = judge_caption("two red circles and a green star", SCENE)
    assert verdict.statements == [("two red circles", True), ("a green star", False)]
    assert caption_truth_percent([("a circle", SCENE), ("a star", SCENE)]) == 50.0
    assert caption_truth_percent([]) == 0.0


def test_words_are_few() -> None:
    words = set()
    for split in SPLITS:
        for index in range(300):
            scene, captions = _captions((0, split, index))
            words.update(w for c in captions for w in c.split())
            questions = make_questions(scene, stream(0, split, index, 2), 6, split)
            words.update(w for q in questions for w in q["question"].rstrip("?").split())
    assert 60 < len(words) < 150


# ---------------------------------------------------------------------- questions
def _only(text: str, objects: list[dict]) -> dict:
    m = NP.fullmatch("a " + text.removeprefix("the "))
    assert m, text
    found = _found(m, objects)
    assert len(found) == 1, text
    return found[0]


def _number(text: str, objects: list[dict]) -> int:
    m = NP.fullmatch("two " + text)
    assert m, text
    return len(_found(m, objects))


def _answer(question: str, objects: list[dict]) -> str:
    q = question.removesuffix("?")
    relations = "to the left of|to the right of|above|below|larger than|smaller than"
    yes_no = {True: "yes", False: "no"}
    if m := re.fullmatch(rf"what (shape|color) is(?: the object)? ({relations}) (the .+)", q):
        b = _only(m[3], objects)
        near = [a for a in objects if a is not b and _geometry(m[2], a, b)]
        assert len(near) == 1
        return near[0][m[1]]
    if m := re.fullmatch(r"what (shape|color) is (the .+)", q):
        return _only(m[2], objects)[m[1]]
    if m := re.fullmatch(r"how many (.+) are there", q):
        return str(_number(m[1], objects))
    if m := re.fullmatch(r"is there (an? .+)", q):
        return yes_no[bool(_found(NP.fullmatch(m[1]), objects))]
    if m := re.fullmatch(r"are there more (.+) than (.+)", q):
        counts = [_number(m[i], objects) for i in (1, 2)]
        assert counts[0] != counts[1]
        return yes_no[counts[0] > counts[1]]
    if m := re.fullmatch(rf"is (the .+?) ({relations}) (the .+)", q):
        a, b = _only(m[1], objects), _only(m[3], objects)
        forth, back = _geometry(m[2], a, b), _geometry(m[2], b, a)
        assert forth != back  # one of them holds, so neither answer is a matter of taste
        return yes_no[forth]
    m = re.fullmatch(rf"is (the .+) ({'|'.join(ALL_TEXTURES)})", q)
    assert m, question
    return yes_no[_only(m[1], objects)["texture"] == m[2]]


@fast
@given(places, st.integers(1, 12))
def test_every_answer_is_right(place: tuple[int, str, int], count: int) -> None:
    scene = make_scene(*place)
    asked = make_questions(scene, stream(*place, 2), count, place[1])
    assert len({q["question"] for q in asked}) == count
    for q in asked:
        assert q["answer"] == _answer(q["question"], scene["objects"]), q
        assert q["answer"] in ANSWERS


def test_questions_alone_tell_little() -> None:
    """A table from question to its most frequent answer, learnt on 12,000 questions, is nearly chance."""
    data = load_dataset("shapes_vqa", n_train=2000, n_test=500)
    by_question: dict[str, Counter] = {}
    by_type: dict[str, Counter] = {}
    for r in data["train"].records:
        by_question.setdefault(r["question"], Counter())[r["answers"][0]] += 1
        by_type.setdefault(r["question_type"], Counter())[r["answers"][0]] += 1
    assert set(by_type) == {
        "color", "shape", "count", "existence", "more", "size", "place", "neighbour", "texture",
    }  # fmt: skip
    for kind in ("existence", "more", "size", "place", "texture"):
        yes, no = by_type[kind]["yes"], by_type[kind]["no"]
        assert abs(yes - no) < 0.12 * (yes + no), kind
    assert by_type["count"].most_common(1)[0][1] < 0.35 * by_type["count"].total()
    right = total = 0
    for r in data["test"].records:
        guess = by_question.get(r["question"], by_type[r["question_type"]]).most_common(1)[0][0]
        right += guess == r["answers"][0]
        total += 1
    assert right / total < 0.47


# ---------------------------------------------------------------------- scenes and splits
@fast
@given(places)
def test_scenes_keep_their_splits_apart(place: tuple[int, str, int]) -> None:
    objects, split = make_scene(*place)["objects"], place[1]
    pairs = {(o["color"], o["shape"]) for o in objects}
    new = [o for o in objects if o["color"] in NEW_COLORS or o["texture"] in NEW_TEXTURES]
    assert bool(pairs & HELD_OUT) == (split == "unseen")
    assert bool(new) == split.startswith("new")
    assert 1 <= len(objects) <= 5
    for i, a in enumerate(objects):
        assert a["r"] <= a["x"] <= 1 - a["r"] and a["r"] <= a["y"] <= 1 - a["r"]
        assert a["size"] in SIZES and a["shape"] in SHAPES
        for b in objects[:i]:
            assert np.hypot(a["x"] - b["x"], a["y"] - b["y"]) > a["r"] + b["r"]
            if a["size"] != b["size"]:
                assert max(a["r"], b["r"]) >= 1.4 * min(a["r"], b["r"])


def test_training_text_never_names_a_held_out_pair() -> None:
    named = {f"{c} {s}" for c, s in HELD_OUT}
    data = load_dataset("shapes_vqa", n_train=400)
    texts = [r["question"] for r in data["train"].records]
    texts += [c for i in range(400) for c in _captions((0, "train", i))[1]]
    assert not any(n in text for text in texts for n in named)
    assert {c for c, _ in HELD_OUT} == set(COLORS) and {s for _, s in HELD_OUT} == set(SHAPES)
    assert len(HELD_OUT) == 12


def test_the_same_everywhere_and_always() -> None:
    first, again = (
        [load_dataset(name, n_train=20)["train"].records[:] for name in ("shapes_caption", "shapes_vqa")]
        for _ in range(2)
    )
    assert first == again
    digest = hashlib.sha256(json.dumps(first, sort_keys=True).encode()).hexdigest()
    # Changes only when the data set is changed on purpose; then say so in the change log.
    assert digest[:16] == "043115dc2203801a"
    picture = np.asarray(render(first[0][3]["scene"]))
    assert np.array_equal(picture, np.asarray(render(first[0][3]["scene"])))
    assert load_dataset("shapes_caption", n_train=20, seed=1)["train"].records[:] != first[0]


def test_pictures_show_what_the_scene_says() -> None:
    """The pixel at the centre of a solid object (other than a ring) has its colour."""
    from lavis.datasets.shapes.render import RGB

    seen = 0
    for index in range(60):
        scene = make_scene(0, "new_train" if index % 2 else "train", index)
        picture = np.asarray(render(scene, 96)).astype(int)
        assert picture.shape == (96, 96, 3)
        for o in scene["objects"]:
            if o["texture"] == "solid" and o["shape"] != "ring":
                pixel = picture[round(o["y"] * 96), round(o["x"] * 96)]
                nearest = min(ALL_COLORS, key=lambda c: np.abs(pixel - RGB[c]).sum())
                assert nearest == o["color"]
                seen += 1
    assert seen > 40
    for size in (32, 64, 128):
        assert render(make_scene(0, "train", 0), size).size == (size, size)
