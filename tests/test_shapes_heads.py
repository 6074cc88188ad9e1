"""Shapes for the other heads: statements, hypotheses, dialogues and clips are judged by other code than
wrote them.

The oracles here read texts word by word; those of clips look at sampled moments instead of at the events.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis.common.registry import registry
from lavis.datasets.base import group_by
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes import (
    HELD_OUT,
    ceiling_percent,
    history_percent,
    judge_caption,
    render,
)
from lavis.datasets.shapes.asking import true_of_some
from lavis.datasets.shapes.entailment import HIDDEN, make_examples, verdict
from lavis.datasets.shapes.render import CARD
from lavis.datasets.shapes.scene import (
    MARGIN,
    MAX_OBJECTS,
    Purpose,
    make_scene,
    stream,
)
from tests.shapes_oracle import KIND, NUMBERS, SMALL, check_rounds, find, meanings, records, reply_to

NAMES = (
    "shapes_retrieval", "shapes_nlvr", "shapes_entailment", "shapes_dialogue", "shapes_video_caption",
    "shapes_video_qa", "shapes_video_retrieval", "shapes_video_dialogue",
)  # fmt: skip


# ---------------------------------------------------------------------- all of them
@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_seed_split_and_index(name: str) -> None:
    first, again = records(name, n_train=7)[:7], records(name)[:7]
    assert first == again  # neither the process's state nor the split's size matters
    assert records(name, seed=1)[:7] != first
    whole = load_dataset(name, **SMALL)
    copied = copy.deepcopy(whole["train"].records)  # as workers started by spawn get them
    assert copied[5] == whole["train"].records[5] and len(copied) == len(whole["train"].records)
    assert set(whole) == {"train", "val", "test"}
    with pytest.raises(IndexError, match="no record"):
        whole["test"].records[len(whole["test"].records)]


@pytest.mark.parametrize("name", NAMES)
def test_no_picture_is_in_two_splits(name: str) -> None:
    def scenes(split: str) -> set[str]:
        rows = records(name, split, n_train=40, n_val=40, n_test=40)
        return {str(s) for r in rows for s in r.get("scenes", [r.get("scene", r.get("clip"))])}

    train, val, test = (scenes(s) for s in ("train", "val", "test"))
    assert not train & val and not train & test and not val & test
    old = {str(make_scene(0, split, i)) for split in ("train", "val", "test") for i in range(40)}
    assert not old & (train | val | test)


def test_every_purpose_has_its_own_stream() -> None:
    assert len({p.value for p in Purpose}) == len(Purpose.__members__)
    draws = {stream(0, "train", 3, p).integers(2**62) for p in Purpose}
    assert len(draws) == len(Purpose)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_pairs_are_not_shown(name: str) -> None:
    for r in records(name):
        for scene in r.get("scenes", [r.get("scene", r.get("clip"))]):
            assert not {(o["color"], o["shape"]) for o in scene["objects"]} & HELD_OUT
            assert 1 <= len(scene["objects"]) <= MAX_OBJECTS or name == "shapes_entailment"


@pytest.mark.parametrize("name", NAMES)
def test_samples_and_batches(name: str) -> None:
    data = load_dataset(name, **SMALL, size=32)
    media = {"shapes_nlvr": ("image0", "image1")}.get(name, ("video",) if "video" in name else ("image",))

    def to_tensor(item: Any, rng: np.random.Generator) -> torch.Tensor:
        array = np.array(item)
        assert array.dtype == np.uint8 and array.shape == ((8, 32, 32, 3) if "video" in name else (32, 32, 3))
        return torch.from_numpy(array).movedim(-1, 0).float()  # (3, T, h, w) or (3, h, w)

    for split, dataset in data.items():
        raw = dataset[1]
        shapes = [np.asarray(raw[key]).shape for key in media]
        assert set(shapes) == {(8, 32, 32, 3)} if "video" in name else {(32, 32, 3)}
        dataset.set_processors(to_tensor, lambda text: text.upper())
        batch = dataset.collater([dataset[i] for i in range(4)])
        for key in media:
            assert batch[key].shape == ((4, 3, 8, 32, 32) if "video" in name else (4, 3, 32, 32))
        if "text_input" in batch:
            assert batch["text_input"] == [t.upper() for t in batch["text_input"]]
        assert split == "train" or len(batch["instance_id"]) == 4
        for key in ("label", "answers", "image_id", "gt_index", "round_id", "index"):
            assert key not in batch or (batch[key].dtype == torch.long and batch[key].shape == (4,))


def test_keys_are_those_of_the_paper() -> None:
    wanted = {
        "shapes_retrieval": {"image", "text_input", "image_id", "instance_id"},
        "shapes_nlvr": {"image0", "image1", "text_input", "label", "instance_id"},
        "shapes_entailment": {"image", "text_input", "label", "image_id", "instance_id"},
        "shapes_video_caption": {"video", "text_input", "image_id", "instance_id"},
        "shapes_video_retrieval": {"video", "text_input", "image_id", "instance_id"},
        "shapes_video_qa": {"video", "text_input", "answers", "question_id", "instance_id"},
    }
    for name, keys in wanted.items():
        assert set(load_dataset(name, **SMALL)["train"][0]) == keys, name
    assert set(load_dataset("shapes_retrieval", **SMALL)["val"][0]) == {
        "image", "index", "image_id", "instance_id",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name, option, message",
    [
        ("shapes_retrieval", {"size": 16}, "32 to 256"),
        ("shapes_retrieval", {"captions_per_image": 0}, "1 or more"),
        ("shapes_nlvr", {"n_val": 0}, "n_val is 0"),
        ("shapes_entailment", {"seed": -1}, "0 or more"),
        ("shapes_dialogue", {"rounds": 11}, "1 to 10"),
        ("shapes_dialogue", {"options": 1}, "2 to 100"),
        ("shapes_video_dialogue", {"options": 101}, "2 to 100"),
        ("shapes_video_caption", {"frames": 7}, "8 to 32"),
        ("shapes_video_qa", {"questions": 9}, "1 to 8"),
        ("shapes_video_qa", {"question": 2}, "Did you mean 'questions'"),
    ],
)
def test_bad_options_are_named(name: str, option: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **option)


def test_pictures_are_drawn_once_where_asked_to() -> None:
    for name in ("shapes_nlvr", "shapes_video_caption"):
        data = load_dataset(name, **SMALL, cache=True)["train"]
        key = "image0" if name == "shapes_nlvr" else "video"
        first = data.sample(2, np.random.default_rng(0))[key]
        again = data.sample(2, np.random.default_rng(0))[key]
        assert np.array_equal(first, again) and first is not again


def test_every_data_set_has_a_card_of_its_module() -> None:
    import sys

    for name in NAMES:
        card = sys.modules[registry.get_dataset_class(name).__module__].__doc__ or ""
        assert f"`{name}`" in card and all(
            f"**{h}" in card for h in ("Description", "Splits", "Task", "Metrics")
        )
        assert "{" not in card


# ---------------------------------------------------------------------- retrieval
def _counted(caption: str) -> int:
    """How many objects a caption names."""
    return sum(NUMBERS[w] for w in caption.split() if w in NUMBERS)


def test_captions_for_retrieval_are_true_and_name_everything() -> None:
    for r in records("shapes_retrieval", n_train=120):
        objects = r["scene"]["objects"]
        assert len(set(r["caption"])) == 5 and 3 <= len(objects) <= 5
        for caption in r["caption"]:
            assert judge_caption(caption, r["scene"]).true, caption
            assert _counted(caption) >= len(objects), caption
            phrases = re.split(r" and | above | below | to the left of | to the right of ", caption)
            told = {id(o) for phrase in phrases for o in find(phrase, objects)}
            assert len(told) == len(objects), caption


def test_a_gallery_is_nearly_determined() -> None:
    data = load_dataset("shapes_retrieval", n_test=150)["test"]
    gallery = [(r["caption"], r["scene"]) for r in data.records]
    assert ceiling_percent(gallery) > 99.0
    assert ceiling_percent(gallery[:1]) == 100.0
    assert ceiling_percent([gallery[0], gallery[0]]) == 0.0
    with pytest.raises(ValueError, match="leaves the grammar"):
        ceiling_percent([(["a dog"], gallery[0][1])])


def test_the_gallery_of_an_evaluation_split() -> None:
    for name, each in (("shapes_retrieval", 5), ("shapes_video_retrieval", 2)):
        data = load_dataset(name, **SMALL)["test"]
        data.set_processors(None, lambda text: "# " + text)
        assert len(data.image) == len(data) == 12 and len(data.text) == 12 * each
        assert sorted(t for texts in data.img2txt.values() for t in texts) == list(range(12 * each))
        for text, picture in data.txt2img.items():
            assert text in data.img2txt[picture]
            assert data.text[text].removeprefix("# ") in data.records[picture]["caption"]
        assert [data[i]["index"] for i in range(3)] == [0, 1, 2]


def test_several_captions_of_a_picture_share_its_number() -> None:
    data = load_dataset("shapes_retrieval", **SMALL, captions_per_image=3)["train"]
    batch = data.collater([data[4], data[9]])
    assert batch["image_id"].tolist() == [4, 9] and len(batch["text_input"]) == 6
    assert set(batch["text_input"][:3]) <= set(data.records[4]["caption"])


# ---------------------------------------------------------------------- pairs
def _pair_truth(sentence: str, scenes: list[dict[str, Any]]) -> bool:
    sides = {"left": scenes[0]["objects"], "right": scenes[1]["objects"]}
    both = [*sides["left"], *sides["right"]]
    if m := re.fullmatch(r"(both|neither|exactly one|at least one) pictures? contains? an? (.+)", sentence):
        having = sum(bool(find(m[2], objects)) for objects in sides.values())
        return {
            "both": having == 2,
            "neither": not having,
            "exactly one": having == 1,
            "at least one": having > 0,
        }[m[1]]
    if m := re.fullmatch(r"the (\w+) picture contains (more|fewer) (.+) than the (\w+) picture", sentence):
        this, that = (len(find(m[3], sides[m[i]])) for i in (1, 4))
        return this > that if m[2] == "more" else this < that
    if m := re.fullmatch(r"the two pictures contain the same number of (.+)", sentence):
        assert find(m[1], both)
        return len(find(m[1], sides["left"])) == len(find(m[1], sides["right"]))
    if m := re.fullmatch(r"there (?:is|are) (\w+) (.+) in all", sentence):
        return len(find(m[2], both)) == NUMBERS[m[1]]
    if m := re.fullmatch(r"every (.+) is (?:an? )?(\w+)", sentence):
        found = find(m[1], both)
        return bool(found) and all(o[KIND[m[2]]] == m[2] for o in found)
    if m := re.fullmatch(r"the (\w+) picture contains an? (.+) above an? (.+)", sentence):
        objects = sides[m[1]]
        gaps = [b["y"] - a["y"] for a in find(m[2], objects) for b in find(m[3], objects) if a is not b]
        assert all(gap <= 0 or gap >= MARGIN for gap in gaps)  # nothing in between to argue about
        return any(gap >= MARGIN for gap in gaps)
    m = re.fullmatch(r"the (\w+) picture contains (\w+) (.+)", sentence)
    assert m, sentence
    number = len(find(m[3], sides[m[1]]))
    return number >= 1 if m[2] in ("a", "an") else number == NUMBERS[m[2]]


def test_every_statement_about_two_pictures_is_labelled_rightly() -> None:
    kinds = Counter()
    for r in records("shapes_nlvr", n_train=600):
        assert _pair_truth(r["sentence"], r["scenes"]) == (r["label"] == "True"), r["sentence"]
        kinds[r["kind"]] += 1
    assert len(kinds) == 9 and min(kinds.values()) > 20


def test_the_text_alone_tells_nothing() -> None:
    rows = records("shapes_nlvr", n_train=200)[:]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["sentence"] == second["sentence"] and first["label"] != second["label"]
    assert 30 < sum(r["label"] == "True" for r in rows[::2]) < 70  # nor does the place in the list
    rows = records("shapes_entailment", n_train=201)[:]
    for group in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert len({r["sentence"] for r in group}) == 1 and len({r["label"] for r in group}) == 3


def test_flipping_pictures_flips_the_statement() -> None:
    data = load_dataset("shapes_nlvr", n_train=300)["train"]
    flips = 0
    for i, r in enumerate(data.records):
        flipped = data.flipped(r["sentence"])
        assert data.flipped(flipped) == r["sentence"]
        assert _pair_truth(flipped, r["scenes"][::-1]) == (r["label"] == "True"), flipped
        if i < 40:
            sample = data.sample(i, np.random.default_rng(i))
            left, right = (np.asarray(p) for p in data.pictures(r))
            turned = np.array_equal(np.asarray(sample["image0"]), right)
            assert np.array_equal(np.asarray(sample["image1"]), left if turned else right)
            assert sample["text_input"] == (flipped if turned else r["sentence"])
            flips += turned
    assert 8 < flips < 32
    still = load_dataset("shapes_nlvr", n_train=20, flip=False)["train"]
    assert [still[i]["text_input"] for i in range(20)] == [r["sentence"] for r in still.records]


# ---------------------------------------------------------------------- entailment
def _three_values(sentence: str, scene: dict[str, Any]) -> str:
    """By rules instead of by trying all worlds."""
    seen = {o["corner"]: o for o in scene["objects"]}
    covered = scene["card"]["corner"]

    def answer(low: bool, high: bool) -> str:
        return "entailment" if low else ("neutral" if high else "contradiction")

    corners = re.findall(r"(?:top|bottom) (?:left|right)", sentence)
    if m := re.fullmatch(r"there is an? (.+) in the (.+) corner", sentence):
        return (
            "neutral"
            if m[2] == covered
            else answer(bool(find(m[1], [seen[m[2]]] if m[2] in seen else [])), False)
        )
    if m := re.fullmatch(r"there (?:is|are) at (least|most) (\w+) (.+)", sentence):
        count, n = len(find(m[3], scene["objects"])), NUMBERS[m[2]]
        return answer(count >= n, count + 1 >= n) if m[1] == "least" else answer(count + 1 <= n, count <= n)
    if m := re.fullmatch(r"there are more (.+) than (.+)", sentence):
        more = len(find(m[1], scene["objects"])) - len(find(m[2], scene["objects"]))
        return answer(more - 1 > 0, more + 1 > 0)
    if m := re.fullmatch(r"the two objects (.+) have the same (\w+)", sentence):
        word = {
            "at the top": "top",
            "at the bottom": "bottom",
            "on the left": "left",
            "on the right": "right",
        }[m[1]]
        if word in covered:
            return "neutral"
        a, b = (o for corner, o in seen.items() if word in corner)
        return answer(a[m[2]] == b[m[2]], False)
    if m := re.fullmatch(r"the object in the .+ is larger than the object in the .+", sentence):
        sizes = [None if c == covered else seen[c]["size"] for c in corners]
        low = sizes == ["large", "small"]
        return answer(low, sizes[1] != "large" and sizes[0] != "small")
    m = re.fullmatch(r"the object in the (.+) corner is (?:an? )?(\w+)", sentence)
    assert m, sentence
    return "neutral" if m[1] == covered else answer(seen[m[1]][KIND[m[2]]] == m[2], False)


def test_every_hypothesis_is_labelled_rightly() -> None:
    kinds = Counter()
    for r in records("shapes_entailment", n_train=600):
        assert _three_values(r["sentence"], r["scene"]) == r["label"], (r["sentence"], r["label"])
        kinds[r["kind"]] += 1
    assert len(kinds) == 7 and min(kinds.values()) > 30


def test_labels_are_numbered_as_published() -> None:
    data = load_dataset("shapes_entailment", n_train=9)["train"]
    number = {"contradiction": 0, "neutral": 1, "entailment": 2}
    assert [data[i]["label"] for i in range(9)] == [number[r["label"]] for r in data.records]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_few_worlds_stand_for_all(index: int) -> None:
    """A verdict looks at one hidden object for each difference that matters; here all are tried."""
    scenes, hypotheses = make_examples(stream(9, "val", index, Purpose.ENTAILMENT), "val")
    assert len(HIDDEN) == 1 + 64 * 6 - 2 * 8 * 2
    for hypothesis, scene in itertools.product(hypotheses, scenes):
        seen = {o["corner"]: o for o in scene["objects"]}
        worlds = [seen if h is None else seen | {scene["card"]["corner"]: h} for h in HIDDEN]
        truths = {hypothesis.holds(world) for world in worlds}
        names = {(True,): "entailment", (False,): "contradiction", (False, True): "neutral"}
        assert names[tuple(sorted(truths))] == verdict(hypothesis, scene)


# ---------------------------------------------------------------------- several sentences a picture
@pytest.mark.parametrize(
    ("name", "key", "share"), [("shapes_nlvr", "images", 2), ("shapes_entailment", "image", 3)]
)
def test_a_picture_with_several_of_its_sentences(name: str, key: str, share: int) -> None:
    """Whole groups, and a last one that is cut short; the general grouping by picture finds the same."""
    number = 5 * share * 2 + share + 1
    data = load_dataset(name, n_train=number, sentences_per_image=4)["train"]
    rows = data.records[:]
    assert [list(item) for item in data._items] == list(group_by(str(row[key]) for row in rows))
    assert len(data) == 3 * share
    seen = Counter()
    for i in range(len(data)):
        sample = data.sample(i, np.random.default_rng(i))
        own = [rows[p] for p in data._items[i]]
        about = {r["sentence"]: data.LABELS[r["label"]] for r in own}
        if name == "shapes_nlvr":
            about |= {data.flipped(text): label for text, label in about.items()}
        assert len(sample["text_input"]) == len(sample["label"]) == 4
        assert [about[text] for text in sample["text_input"]] == sample["label"]
        seen[len(set(sample["text_input"]))] += 1
    assert seen[4] >= 2 * share  # each drawn once where there are enough
    batch = data.collater([data[i] for i in range(3)])
    assert len(batch["text_input"]) == 12 and batch["label"].shape == (12,)
    still = load_dataset(name, n_val=30, sentences_per_image=4)["val"]
    assert len(still) == 30 and isinstance(still[0]["text_input"], str)  # evaluation: one by one
    with pytest.raises(ValueError, match="sentences_per_image is 0"):
        load_dataset(name, sentences_per_image=0)


def test_the_card_covers_its_corner_and_nothing_else() -> None:
    for r in records("shapes_entailment"):
        card = r["scene"]["card"]
        picture = np.asarray(render(r["scene"], 96)).astype(int)
        low = [round((card[k] - card["half"]) * 96) + 4 for k in "yx"]
        high = [round((card[k] + card["half"]) * 96) - 4 for k in "yx"]
        assert (picture[low[0] : high[0], low[1] : high[1]] == CARD).all()
        for o in r["scene"]["objects"]:
            assert o["corner"] != card["corner"]
            reach = 1.1 * o["r"]  # outlines go a little beyond r
            gap = max(abs(o[k] - card[k]) for k in "xy") - card["half"]
            assert gap >= reach - 0.005 and all(reach <= o[k] <= 1 - reach for k in "xy")


# ---------------------------------------------------------------------- dialogues about pictures
@pytest.mark.parametrize("rounds", [5, 10])
def test_every_round_is_right_and_pronouns_mean_what_they_should(rounds: int) -> None:
    for r in records("shapes_dialogue", n_train=150, rounds=rounds, options=2):
        assert len({(t["question"], tuple(t["about"])) for t in r["dialog"]}) > rounds - 2
        assert len(r["dialog"]) == rounds
        check_rounds(r, r["scene"]["objects"], reply_to, meanings)


def test_much_of_a_dialogue_needs_its_history() -> None:
    share = history_percent(records("shapes_dialogue", n_train=400, options=2))
    assert 45 < share["needs_history"] < share["pronoun"] < 80
    alone = [{"dialog": [{"question": "is there a star?", "needs_history": False}]}]
    assert history_percent(alone) == {"needs_history": 0.0, "pronoun": 0.0}
    share = history_percent(records("shapes_video_dialogue", n_train=400, options=2))
    assert 45 < share["needs_history"] < share["pronoun"] < 80


def test_yes_is_as_frequent_as_no() -> None:
    for name in ("shapes_dialogue", "shapes_video_dialogue"):
        kinds: dict[str, Counter[str]] = {}
        for r in records(name, n_train=700, options=2):
            for t in r["dialog"]:
                kinds.setdefault(t["question_type"], Counter())[t["answer"]] += 1
        for kind, answers in kinds.items():
            if set(answers) == {"yes", "no"} and answers.total() > 100:
                assert abs(answers["yes"] - answers["no"]) < 0.2 * answers.total(), (name, kind, answers)


@pytest.mark.parametrize("name", ["shapes_dialogue", "shapes_video_dialogue"])
@pytest.mark.parametrize("count", [2, 20, 100])
def test_exactly_one_candidate_is_right(name: str, count: int) -> None:
    places = Counter()
    for r in records(name, options=count):
        for t in r["dialog"]:
            options = t["answer_options"]
            assert len(options) == len(set(options)) == count
            assert options[t["gt_index"]] == t["answer"]
            places[t["gt_index"] * 2 // count] += 1
            if name == "shapes_dialogue":
                kind = _kind(t["answer"])
                true = true_of_some(r["scene"]["objects"])
                assert not {o for o in options if _kind(o) != kind} & true, t
                if kind == "yes/no":  # "is there a star?" "1" would not quite be wrong
                    assert {"yes", "no"} <= set(options) and not any(o.isdigit() for o in options)
    assert min(places.values()) > 0.4 * places.total()


def _kind(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else KIND.get(answer, "object")


def test_rounds_and_whole_dialogues_are_the_same() -> None:
    rounds = load_dataset("shapes_dialogue", **SMALL, options=20)["val"]
    whole = load_dataset("shapes_dialogue", **SMALL, options=20, whole_dialogues=True)["val"]
    assert len(rounds) == 5 * len(whole)
    a = rounds.collater([rounds[i] for i in range(10)])
    b = whole.collater([whole[i] for i in range(2)])
    for key in ("dialog", "text_input", "answer", "answer_options"):
        assert a[key] == b[key], key
    assert torch.equal(a["gt_index"], b["gt_index"]) and torch.equal(a["round_id"], b["round_id"])
    assert b["round_id"].tolist() == [1, 2, 3, 4, 5] * 2 and b["image_id"].tolist() == [0, 1]
    assert [len(turns) for turns in a["dialog"]] == [0, 1, 2, 3, 4] * 2
    assert a["dialog"][3][:2] == a["dialog"][2] and a["dialog"][1] == [(a["text_input"][0], a["answer"][0])]
    assert len(b["image"]) == 2 and len(a["image"]) == 10 and len(a["answer_options"]) == 200


# Change only when a data set is changed on purpose; then say so in the change log.
DIGESTS = {
    "shapes_retrieval": "a014f3b26f5f149e",
    "shapes_nlvr": "8e05d6f359a775e6",
    "shapes_entailment": "0767953223621fd6",
    "shapes_dialogue": "3b4a68edefd3da72",
    "shapes_video_caption": "a092e3a23678ef49",
    "shapes_video_qa": "faad1c59b5096b8c",
    "shapes_video_retrieval": "5d17a5dfeae755ef",
    "shapes_video_dialogue": "4ac48e73b2559223",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_same_everywhere_and_always(name: str) -> None:
    rows = [load_dataset(name)[split].records[:20] for split in ("train", "val", "test")]
    assert hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16] == DIGESTS[name]
