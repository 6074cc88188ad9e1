"""The browser's index: finds what a look at every record finds, belongs to its content, and survives interruptions."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lavis.app.browser import index as indexing
from lavis.app.browser.collection import Filters, Split, open_collection
from lavis.app.browser.media import picture
from lavis.app.browser.words import Query, Term, highlighted, words
from lavis.datasets import tables
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.tables import PackedRecords


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Plain(CaptionDataset):
    """Records with captions, without files."""

    name = "plain"


def opened(records: list[dict[str, Any]], path: Path) -> Split:
    dataset = Plain(PackedRecords(records), "val")
    return Split("val", indexing.build(dataset, path), dataset)


def coco(path: Path, captions: list[Any]) -> dict[str, Any]:
    """The section of a data set whose split val is a file of these captions."""
    rows = [{"image": f"val2014/COCO_val2014_{i:012d}.jpg", "caption": c} for i, c in enumerate(captions)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return {"build_info": {"annotations": {"train": None, "test": None, "val": {"storage": str(path)}}}}


# ---------------------------------------------------------------------------------------- searching
_LETTERS = st.sampled_from("abcABÄäéÉßñ日本語のかﬁ한국เ٣²Ⅷ́'\"*-_.,!\n\t \x00\ud800😀🇩") | st.characters()
_TEXT = st.text(_LETTERS, max_size=12)


def occurs(term: Term, text: list[str]) -> bool:
    """Whether words follow one another in a text."""
    n = len(term.words)
    *first, last = term.words
    return any(
        text[i : i + n - 1] == first
        and (text[i + n - 1].startswith(last) if term.prefix else text[i + n - 1] == last)
        for i in range(len(text) - n + 1)
    )


def fits(query: Query, texts: list[str]) -> bool:
    """What a query means, for one record: all that is wanted is in some text, nothing that is unwanted in any."""
    split = [words(t) for t in texts]
    wanted = all(any(occurs(term, t) for t in split) for term in query.wanted)
    return wanted and not any(occurs(term, t) for term in query.unwanted for t in split)


@settings(max_examples=60)
@given(st.data())
def test_a_search_finds_what_a_look_at_every_record_finds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(st.lists(_TEXT, max_size=3), min_size=1, max_size=8))
    split = opened([{"image": "x", "caption": t} for t in texts], tmp_path_factory.mktemp("i") / "i.sqlite")
    known = sorted({w for t in texts for text in t for w in words(text)})
    part = st.sampled_from(known) if known else st.just("x")
    term = st.one_of(
        part,
        part.map(lambda w: f"{w[:1]}*"),
        part.map(lambda w: f"-{w}"),
        st.lists(part, min_size=1, max_size=3).map(lambda ws: f'"{" ".join(ws)}"'),
        _TEXT,
    )
    for text in data.draw(
        st.lists(st.lists(term, min_size=1, max_size=3).map(" ".join), min_size=5, max_size=5)
    ):
        query = Query.parse(text)
        expected = [i for i, t in enumerate(texts) if fits(query, [c for c in t if c.strip()])]
        assert list(split.find(Filters(q=text))) == expected, text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("cafe", [0]), ("CAFÉ", [0]), ("grosses", [0]), ("猫", [1]), ("の猫", [1]), ("猫の", []), ("don't", [2]),
        ('"red car"', [3]), ('"car red"', []), ("red car", [3, 4]), ("car*", [3, 4, 5]), ("-a", [1, 3]),
        ("red -car", []), ("!!!", [0, 1, 2, 3, 4, 5]), ("", [0, 1, 2, 3, 4, 5]), ("straße", [5]), ("strasse", [5]),
        ('"', [0, 1, 2, 3, 4, 5]), ("NOT OR AND", []), ("a b) OR (c", []), ("ﬁne", [2]),
    ],
)  # fmt: skip
def test_what_a_search_means(tmp_path: Path, query: str, found: list[int]) -> None:
    captions = [
        ["a großes Café"], ["日本語の猫"], ["I don't know a thing, fine"], ["red car"],
        ["a red", "car ride"], ["a cart in the Straße"],
    ]  # fmt: skip
    split = opened([{"image": "x", "caption": c} for c in captions], tmp_path / "i.sqlite")
    assert list(split.find(Filters(q=query))) == found


def test_found_words_are_marked_and_texts_escaped() -> None:
    marked = highlighted('<b>Café</b> & cafés "x"', Query.parse("cafe"))
    assert marked == "&lt;b&gt;<mark>Café</mark>&lt;/b&gt; &amp; cafés &quot;x&quot;"
    assert highlighted("cafés", Query.parse("caf*")) == "<mark>cafés</mark>"


# ---------------------------------------------------------------------------------------- order, filters, jumping
def test_a_seed_orders_records_the_same_way_whatever_is_searched(tmp_path: Path) -> None:
    records = [{"image": "x", "caption": [f"{'even' if i % 2 == 0 else 'odd'} {i}"]} for i in range(200)]
    split = opened(records, tmp_path / "i.sqlite")
    order = list(split.find(Filters(shuffle="7")))
    assert sorted(order) == list(range(200)) != order
    assert order != list(split.find(Filters(shuffle="8")))
    assert list(split.find(Filters(q="even", shuffle="7"))) == [i for i in order if i % 2 == 0]


def test_answers_kinds_and_ids(tmp_path: Path) -> None:
    from lavis.datasets.vqa import VQADataset

    records = [
        {
            "image": f"{i // 2}.png", "question": f"question {i}", "question_id": 100 + i,
            "answers": ["yes", "yes", "no"] if i % 3 else ["no"], "question_type": "is" if i < 5 else "what",
        }
        for i in range(10)
    ]  # fmt: skip
    dataset = VQADataset(PackedRecords(records), "val", vis_root=tmp_path)
    split = Split("val", indexing.build(dataset, tmp_path / "i.sqlite"), dataset)
    assert list(split.find(Filters(answer="no"))) == [0, 3, 6, 9]
    assert list(split.find(Filters(answer="no", kind="is"))) == [0, 3]
    assert list(split.find(Filters(q='"question 3"', answer="no"))) == [3]
    assert split.index.meta["answers"] == [["yes", 6], ["no", 4]]
    assert split.jump("103") == 3 and split.jump("#3") == 3 and split.jump("3") == 3
    assert split.jump("#10") is None and split.jump("unknown") is None and split.jump("-1") is None
    assert split.index.about(4) == [4, 5]
    assert list(split.find(Filters(files="missing"))) == list(range(10))
    (tmp_path / "1.png").touch()
    split = Split("val", split.index, dataset)
    assert list(split.find(Filters(files="there"))) == [2, 3]
    assert split.files.wait().absent == 4


@pytest.mark.parametrize(
    "given", [{"files": "x"}, {"verdict": "maybe"}, {"shuffle": "-1"}, {"shuffle": "²"}, {"q": "a" * 501}]
)
def test_what_cannot_be_asked_for_is_said(given: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(given)).replace("q", "search")):
        Filters.of(given)


# ---------------------------------------------------------------------------------------- its life
def test_an_indexed_split_is_opened_without_reading_its_annotations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = [[f"caption {i}", "ü\ud800"] for i in range(300)]
    section = coco(tmp_path / "c.json", captions)
    first = open_collection("coco_caption", section)
    records = list(first.splits["val"].dataset.records)
    from lavis.datasets.coco import CocoCaption

    monkeypatch.setattr(CocoCaption, "load", lambda *_: pytest.fail("the annotation file was read"))
    again = open_collection("coco_caption", section).splits["val"]
    assert type(again.dataset) is CocoCaption and len(again) == 300
    assert list(again.dataset.records) == records == [
        {"image": f"val2014/COCO_val2014_{i:012d}.jpg", "caption": c} for i, c in enumerate(captions)
    ]  # fmt: skip
    assert again.jump("299") == 299
    assert again.dataset.media_names(again.record(5)) == ["val2014/COCO_val2014_000000000005.jpg"]


def test_it_is_made_anew_when_the_content_has_changed_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    section = coco(path, [["one"], ["two"]])
    file = open_collection("coco_caption", section).splits["val"].index.path
    made = file.stat().st_ino
    os.utime(path, (1, 1))  # touched, the content is the same
    assert open_collection("coco_caption", section).splits["val"].index.path.stat().st_ino == made
    section = coco(path, [["one"], ["six"]])
    split = open_collection("coco_caption", section).splits["val"]
    assert split.index.path == file and file.stat().st_ino != made
    assert list(split.find(Filters(q="six"))) == [1] and not len(split.find(Filters(q="two")))


def test_an_interrupted_build_leaves_nothing_and_the_earlier_index(tmp_path: Path) -> None:
    dataset = Plain(PackedRecords([{"image": "x", "caption": [f"old {i}"]} for i in range(10)]), "val")
    path = tmp_path / "deep" / "i.sqlite"
    indexing.build(dataset, path)

    def interrupted(records: Any, total: int) -> Any:
        for i, record in enumerate(records):
            if i == 5:
                raise KeyboardInterrupt
            yield record

    with pytest.raises(KeyboardInterrupt):
        indexing.build(dataset, path, interrupted)
    assert [p.name for p in path.parent.iterdir()] == ["i.sqlite"]
    assert indexing.Index(path).count == 10


def test_what_a_killed_build_left_is_removed_later(tmp_path: Path) -> None:
    dataset = Plain(PackedRecords([{"image": "x", "caption": ["a"]}]), "val")
    path = tmp_path / "i.sqlite"
    old, young = tmp_path / ".i.sqlite.aaa.part", tmp_path / ".i.sqlite.bbb.part"
    for file in (old, young):
        file.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    indexing.build(dataset, path)
    assert not old.exists() and young.exists()


@pytest.mark.parametrize("damage", ["cut", "other", "format"])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: str) -> None:
    section = coco(tmp_path / "c.json", [["one"], ["two"]])
    path = open_collection("coco_caption", section).splits["val"].index.path
    if damage == "format":
        connection = sqlite3.connect(path)
        connection.execute("UPDATE meta SET value = '0' WHERE key = 'format'")
        connection.commit()
        connection.close()
    else:
        path.write_bytes(path.read_bytes()[:1000] if damage == "cut" else b"something else")
    assert list(open_collection("coco_caption", section).splits["val"].find(Filters(q="two"))) == [1]


def test_drawn_records_are_not_kept_and_large_splits_do_not_keep_anybody_waiting() -> None:
    collection = open_collection("shapes_caption", {"n_train": 10_001, "n_val": 30, "n_test": 30, "n_unseen": 30,
                                                    "n_new_train": 30, "n_new_test": 30})  # fmt: skip
    assert "val" in collection.splits and "train" not in collection.splits
    pending = collection.pending["train"]
    assert pending.total == 10_001
    split = collection.splits["val"]
    assert split.index.records() is None and "scene" in split.record(3)
    collection.wait(300)
    assert not pending.failed and list(collection.splits)[:2] == ["train", "val"] and not collection.pending


def test_what_goes_on_in_the_background_can_be_stopped_and_leaves_nothing(cache: Path) -> None:
    options = {"n_train": 100_000, "n_val": 10, "n_test": 50_000}
    collection = open_collection("shapes_retrieval", options)
    assert list(collection.splits) == ["val"] and list(collection.pending) == ["train", "test"]
    collection.close()
    assert collection.indexer is not None and not collection.indexer.is_alive()
    assert [p.name.split("-")[1] for p in (cache / "indexes" / "browse").iterdir()] == ["val"]
    assert not collection.pending["train"].done, "the smaller one comes first"


def test_lengths_and_the_number_of_pictures(tmp_path: Path) -> None:
    split = opened(
        [{"image": "x", "caption": ["a b c", "a"]}, {"image": "y", "caption": ["b c"]}], tmp_path / "i"
    )
    assert split.index.meta["lengths"] == {"caption": {"3": 1, "1": 1, "2": 1}}
    assert split.index.meta["different"]["media"] == 2
    assert isinstance(split.find(Filters(q="a")), np.ndarray)


def test_a_split_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    section = coco(tmp_path / "c.json", [["one"]])
    (tmp_path / "broken.json").write_text("[{]")
    section["build_info"]["annotations"]["test"] = {"storage": str(tmp_path / "broken.json")}
    collection = open_collection("coco_caption", section)
    assert list(collection.splits) == ["val"] and "not valid JSON" in collection.problems["test"]
    with pytest.raises(ValueError, match="not valid JSON"):
        open_collection("coco_caption", section, splits=["test"])
    with pytest.raises(ValueError, match="no split 'vall'"):
        open_collection("coco_caption", section, splits=["vall"])


# ---------------------------------------------------------------------------------------- other kinds of data sets
def test_a_folder_per_class_is_looked_at_again_when_a_picture_is_added(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "val" / name / "1.png")
    split = open_collection("imagenet", vis_path=tmp_path).splits["val"]
    assert len(split) == 2 and split.dataset.classes == ["cat", "dog"]  # type: ignore[attr-defined]
    assert picture(split.dataset, split.record(1), 0, 100).size == (20, 20)
    made = split.index.path.stat().st_ino
    assert open_collection("imagenet", vis_path=tmp_path).splits["val"].index.path.stat().st_ino == made
    Image.new("RGB", (20, 20)).save(tmp_path / "val" / "dog" / "2.png")
    os.utime(tmp_path / "val" / "dog", (5, 5))
    assert len(open_collection("imagenet", vis_path=tmp_path).splits["val"]) == 3


def test_pictures_in_archives(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for i in range(3):
            content = io.BytesIO()
            Image.new("RGB", (10 + i, 10), "red").save(content, "PNG")
            for name, data in ((f"{i}.png", content.getvalue()), (f"{i}.txt", f"number {i}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    for _ in range(2):
        split = open_collection("shards", {"shards": str(tmp_path / "0.tar")}).splits["train"]
        assert list(split.find(Filters(q="number 2"))) == [2]
        assert picture(split.dataset, split.record(2), 0, 100).size == (12, 10)
    assert split.index.meta["stamps"] and not split.index.meta["kept"]


_DOCUMENT = '[{"a": 1, "b": [1, 2, {"c": "d,]"}]}, 3.5e3, "x\\"y", null, true ]\n'


@settings(max_examples=200)
@example([], len(_DOCUMENT))
@given(
    st.lists(st.tuples(st.integers(0, len(_DOCUMENT) - 1), st.sampled_from('[]{},:"1a \n')), max_size=4),
    st.integers(1, len(_DOCUMENT)),
)
def test_a_list_read_piece_by_piece_is_the_list_and_its_faults_are_the_same(
    changes: list[tuple[int, str]], length: int
) -> None:
    text = list(_DOCUMENT)
    for place, character in changes:
        text[max(place, 1)] = character
    document = "".join(text[:length])

    def read(how: Any) -> Any:
        try:
            return how()
        except json.JSONDecodeError as e:
            return e.msg, e.pos

    pieces = read(lambda: [element for element, _, _ in tables._elements(document, 1)])
    assert pieces == read(lambda: json.loads(document))
