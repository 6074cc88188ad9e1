"""Own tables: what a cell means, ids, texts that are cut, and how own answers and captions are scored."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lavis.datasets.base import Dataset
from lavis.datasets.builders import build_datasets, load_dataset
from lavis.datasets.tables import as_number, read_json, read_table, stripped
from lavis.metrics import vqa
from lavis.metrics.retrieval import retrieval_scores
from lavis.tasks.captioning import CaptionTask
from lavis.tasks.classification import ClassificationTask
from lavis.tasks.retrieval import RetrievalTask
from lavis.tasks.vqa import GQATask, VQATask


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def _table(folder: Path, rows: list[Any], name: str = "t.jsonl") -> Path:
    path = folder.parent / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def _own(folder: Path, rows: list[Any], split: str = "test", name: str = "t.jsonl", **options: Any) -> Any:
    options |= {split: str(_table(folder, rows, name)), "images": str(folder), "val_fraction": 0}
    return load_dataset("own", **options)[split]


# ---------------------------------------------------------------------- files
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"image,text,image\n0.png,a,1.png\n", r"t\.csv, line 1: the column 'image' is given twice"),
        ("t.csv", b"image,text,text \n0.png,a,b\n", "line 1: the column 'text' is given twice"),
        ("t.tsv", b"image\ttext\n0.png\ta\x00\n", r"t\.tsv, line 2: holds a NUL byte"),
        ("t.jsonl", b'{"image": "0.png"}\n{"text": "a", "text": "b"}\n', "line 2: the key 'text' is given twice"),
        ("t.json", b'[{"image": "0.png"},\n {"text": "a", "text": "b"}]', "line 2: the key 'text' is given twice"),
        ("t.json", b'[{"a": 1},\n {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "line 2: .*too deeply"),
        ("t.jsonl", b'\n{"a": ' + b"[" * 200 + b"]" * 200 + b"}\n", "line 2: lists or objects are nested too deeply"),
        ("t.jsonl", b'{"image_id": ' + b"7" * 5000 + b"}\n", "line 1: a number has too many digits"),
        ("t.jsonl", b'{"text": "a\\ud83d"}\n', r"line 1: it holds half of a surrogate pair"),
        ("t.json", b'[\n{"text": "a\\uDC00"}]', r"line 2: it holds half of a surrogate pair"),
        ("t.csv", "image,text\n0.png,a\n".encode("utf-16"), r"t\.csv, line 1: this is UTF-16, not UTF-8"),
        ("t.csv", "image,text\n0.png,a\n".encode("utf-16-le"), r"t\.csv, line 1: holds a NUL byte"),
        ("t.csv", "image,text\n0.png,Ä\n".encode("cp1252"), r"t\.csv, line 2: not UTF-8"),
        ("t.jsonl", b'{"image": "0.png"} {"image": "1.png"}\n', r"line 1: not valid JSON \(Extra data at column 19"),
    ],
)  # fmt: skip
def test_what_a_table_may_not_hold_is_refused_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as e:
        read_table(tmp_path / name)
    assert str(e.value).startswith(str(tmp_path / name)) and "\n" not in str(e.value)


def test_json_files_are_held_to_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, message in (
        ('{"a": 1,\n "a": 2}', r"a\.json: the key 'a' is given twice"),
        ("[" * 100_000, r"a\.json: lists or objects are nested too deeply"),
        ("[1,\n" + "9" * 5000 + "]", r"a\.json: a number has too many digits"),
        ("[1]\n2", r"a\.json, line 2: not valid JSON \(Extra data"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_json(path)
    path.write_text('[NaN, 1e999, -Infinity, 1.5, "NaN"]')
    assert read_json(path) == [None, None, None, 1.5, "NaN"]


def test_what_other_programs_write_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeff\ufeffimage,text,,\n0.png,nan,,\n1.png,\u00a0,,\n")  # two marks, empty columns
    assert read_table(path) == [(2, {"image": "0.png", "text": "nan"}), (3, {"image": "1.png", "text": None})]
    path.write_text(",image\n0,0.png\n")  # the numbers of rows
    assert read_table(path) == [(2, {"image": "0.png"})]
    path = tmp_path / "t.jsonl"
    path.write_text('\ufeff{"a": 1}\n\ufeff{"a": "\\ud83d\\ude00"}\n')  # files that were joined; a whole pair
    assert read_table(path) == [(1, {"a": 1}), (2, {"a": "😀"})]
    assert stripped("\u3000\ufeff a\u200b b \u2060\n") == "a\u200b b"


# ---------------------------------------------------------------------- cells
def test_no_number_is_a_missing_cell(photos: Path) -> None:
    for text in ("NaN", "Infinity", "-Infinity", "1e999", "null", '""', '" \\u3000"'):
        row = f'{{"image": "0.png", "caption": {text}}}'
        with pytest.raises(ValueError, match=r"t\.jsonl, line 1: there is no text \(or caption\)"):
            _own(photos, [row], "train")
        assert _own(photos, [row]).references() == {0: []}
    assert _own(photos, ["image,text", "0.png,nan"], "train", "t.csv")[0]["text_input"] == "nan"
    data = _own(photos, ['{"image": "0.png", "label": NaN}', {"image": "1.png", "label": "nan"}])
    assert data.classnames == ["nan"]


def test_blanks_make_no_classes_answers_or_captions(photos: Path) -> None:
    labels = ["cat", "cat ", "\u00a0cat", "cat\u3000", "\ufeffcat", "\tcat\u200b", "dog"]
    rows = [{"image": "0.png", "label": label} for label in labels]
    assert _own(photos, rows, "train").classnames == ["cat", "dog"]
    answers = [{"image": "0.png", "question": f"{i}?", "answer": [a, "red"]} for i, a in enumerate(labels)]
    data = _own(photos, answers, "train")
    assert set(load_dataset("own", train=str(photos.parent / "t.jsonl"), val=str(photos.parent / "t.jsonl"),
                            images=str(photos))["val"].answer_list) == {"red", "cat", "dog"}  # fmt: skip
    assert data[1]["answers"] == ["cat", "red"]
    listed = photos.parent / "list.txt"
    listed.write_text("yes\n no\u00a0\nyes \n\ufeff\n")
    assert _own(photos, answers, answer_list=str(listed)).answer_list == ["yes", "no"]
    listed = photos.parent / "list.json"
    listed.write_text('["yes", "no ", "yes"]')
    assert _own(photos, answers, answer_list=str(listed)).answer_list == ["yes", "no"]
    assert _own(photos, [{"image": " 0.png ", "caption": "a "}]).references() == {0: ["a"]}


def test_numbers_and_truth_values_are_the_texts_that_they_stand_for(photos: Path) -> None:
    values = [1, 1.0, "1", True, "true", False, 1.5]
    rows = [{"image": "0.png", "label": v} for v in values]
    assert _own(photos, rows, "train").classnames == ["1", "1.5", "false", "true"]
    rows = [{"image": "0.png", "question": f"{i}?", "answer": v} for i, v in enumerate(values)]
    given = [t["answers"] for t in _own(photos, rows).ground_truth().values()]
    assert given == [["1"], ["1"], ["1"], ["true"], ["true"], ["false"], ["1.5"]]
    for wrong in (["a"], {"a": 1}, []):
        with pytest.raises(ValueError, match=r"t\.jsonl, line 1: label holds"):
            _own(photos, [{"image": "0.png", "label": wrong}])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("x" * 300, "line 1: image is 'xxx.*of 300 bytes; a name in a path has at most 255"),
        ("ä" * 200 + ".png", "line 1: image .* of 404 bytes"),
        ("a/" * 3000 + "b.png", "line 1: image .* a path 4000"),
        ("0.png\0", "line 1: image holds a NUL character"),
        (7, "line 1: image is 7; it should be a text"),
        (None, "line 1: image is None"),
        ("none.png", r"none\.png \(line 1\)"),
    ],
)
def test_paths_that_no_file_can_have_are_refused_with_their_line(
    photos: Path, image: Any, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        _own(photos, [{"image": image, "caption": "a"}])


# ---------------------------------------------------------------------- ids
@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("0", 0), ("-3", -3), ("007", "007"), ("01827492", "01827492"), ("+7", "+7"), ("-0", "-0"),
     ("1_0", "1_0"), ("٣", "٣"), ("7 ", "7 "), ("1e3", "1e3"), ("", ""), ("9" * 30, "9" * 30)],
)  # fmt: skip
def test_only_what_numbers_are_written_as_is_a_number(text: str, expected: int | str) -> None:
    assert as_number(text) == expected and type(as_number(text)) is type(expected)


def test_result_files_keep_ids_apart(tmp_path: Path) -> None:
    names = ["01827492", "1827492", "q-7", "٣"]
    for task, key in ((VQATask(), "question_id"), (GQATask(), "question_id"), (CaptionTask(), "image_id"),
                      (ClassificationTask(), "instance_id")):  # fmt: skip
        path = task.save([{key: n, "answer": "x"} for n in names], tmp_path / "r.json")
        assert [r[key] for r in json.loads(path.read_text())] == ["01827492", 1827492, "q-7", "٣"]
    official = json.loads((tmp_path / "r.json").read_text())
    assert len({str(r["instance_id"]) for r in official}) == 4


def test_ids_are_opaque(photos: Path) -> None:
    names = ["01", 1, "é", "1e2", 10**30, -1, "a b "]
    rows = [
        {"image": "0.png", "question": f"{i}?", "answer": "a", "question_id": n} for i, n in enumerate(names)
    ]
    data = _own(photos, rows)
    assert [data[i]["question_id"] for i in range(7)] == ["01", 1, "é", "1e2", str(10**30), "-1", "a b"]
    assert list(data.ground_truth()) == [data[i]["question_id"] for i in range(7)]
    rows = [{"image": f"{i}.png", "caption": "a", "image_id": n} for i, n in enumerate(["01", "1", 2.0, "é"])]
    assert list(_own(photos, rows).references()) == ["01", 1, 2, "é"]


@pytest.mark.parametrize("same", [(1, "1"), (1, 1.0), ("1", "1.0 "[:1]), ("é", "é "), ("01", "01")])
@pytest.mark.parametrize("task", ["captioning", "retrieval", "classification", "vqa"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_one_id_on_two_images_is_refused(photos: Path, same: tuple[Any, Any], task: str, split: str) -> None:
    texts = {"captioning": {"caption": "a"}, "retrieval": {"caption": "a"}, "classification": {"label": "a"},
             "vqa": {"question": "q", "answer": "a"}}[task]  # fmt: skip
    rows = [{"image": f"{i}.png", "image_id": n, **texts} for i, n in enumerate(same)]
    with pytest.raises(ValueError, match=r"t\.jsonl, line 2: the image_id .* is already that of line 1"):
        _own(photos, rows, split, task=task)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "0.png", "caption": "a", "image_id": 1}, {"image": "1.png", "caption": "b"}],
         "line 2: there is no image_id, and line 1 has one"),
        ([{"image": "0.png", "caption": "a"}, '{"image": "1.png", "caption": "b", "image_id": 0}'],
         "line 1: there is no image_id, and line 2 has one"),
        (['{"image": "0.png", "caption": "a", "image_id": NaN}', {"image": "1.png", "caption": "b", "image_id": 0}],
         "line 1: there is no image_id"),
        ([{"image": "0.png", "caption": "a", "image_id": 1}, {"image": "./0.png", "caption": "b", "image_id": 2}],
         r"line 2: the image_id of 0\.png is 2, and 1 in line 1"),
        ([{"image": "0.png", "question": "q", "answer": "a", "id": 1},
          {"image": "1.png", "question": "q", "answer": "a"}], "line 2: there is no id, and line 1 has one"),
        ([{"image": f"{i}.png", "question": "q", "answer": "a", "question_id": "x"} for i in range(2)],
         "line 2: the id 'x' is already that of line 1, which is about another question"),
        ([{"image": "0.png", "question": "q", "answer": "a", "id": 1, "question_id": 2}],
         "line 1: id is 1 and question_id 2"),
        *(([{"image": "0.png", "caption": "a", "image_id": bad}], r"line 1: image_id is .*an id should be a text")
          for bad in ([1], {"a": 1}, True, False, [])),
        *(([{"image": "0.png", "question": "q", "answer": "a", "question_id": bad}], "line 1: .*an id should be")
          for bad in ([1], {"a": 1}, True)),
    ],
)  # fmt: skip
def test_ids_that_do_not_go_together_are_refused_with_their_line(
    photos: Path, rows: list[Any], message: str
) -> None:
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"t\.jsonl, " + message):
            _own(photos, rows, split)


def test_a_part_that_is_held_out_hides_no_id(photos: Path) -> None:
    path = _table(
        photos, [{"image": f"{i}.png", "caption": "a", "image_id": min(i, 2)} for i in range(4)], "h.jsonl"
    )
    for fraction in (0, 0.3, 0.6):
        with pytest.raises(ValueError, match=r"h\.jsonl, line 4: the image_id 2 is already that of line 3"):
            load_dataset("own", train=str(path), images=str(photos), val_fraction=fraction)


def test_rows_about_one_thing_are_one_record(photos: Path) -> None:
    given = (("0.png", "a"), ("1.png", "b"), ("./0.png", "c"))
    captions: list[dict[str, Any]] = [{"image": image, "caption": text} for image, text in given]
    assert _own(photos, captions).references() == {0: ["a", "c"], 1: ["b"]}
    assert _own(photos, captions, task="retrieval").img2txt == {0: [0, 1], 1: [2]}
    for row, name in zip(captions, ("x", "y", "x")):
        row["image_id"] = name
    assert _own(photos, captions).references() == {"x": ["a", "c"], "y": ["b"]}
    asked = [("0.png", "q", "red"), ("1.png", "q", "blue"), ("0.png", "q ", "green"), ("0.png", "other", "4")]
    rows = [{"image": i, "question": q, "answer": a} for i, q, a in asked]
    for split in ("train", "val", "test"):
        data = _own(photos, rows, split)
        assert [r["answers"] for r in data.records] == [["red", "green"], ["blue"], ["4"]]
        assert [r["question_id"] for r in data.records] == [0, 1, 2]
    for row, name in zip(rows, ("a", "b", "a", "c")):
        row["id"] = name
    assert [r["answers"] for r in _own(photos, rows).records] == [["red", "green"], ["blue"], ["4"]]
    rows[2]["id"] = "d"  # two questions, though they are asked alike
    assert [r["answers"] for r in _own(photos, rows).records] == [["red"], ["blue"], ["green"], ["4"]]


# ---------------------------------------------------------------------- texts that are cut
def _heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("lavis"), "propagate", True)
    caplog.set_level(logging.INFO, "lavis")
    return caplog


def test_texts_that_are_cut_are_counted_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = _heard(monkeypatch, caplog)
    long = " ".join(f"w{i}" for i in range(80))
    path = _table(
        photos, [{"image": "0.png", "caption": [long, "short"]}, {"image": "1.png", "caption": "b"}]
    )

    def built(**processor: Any) -> Dataset:
        cfg = {"train": str(path), "images": str(photos), "val_fraction": 0}
        cfg["text_processor"] = {"train": {"name": "blip_caption", **processor}}
        return build_datasets("own", cfg)["train"]

    built()
    assert [r.getMessage() for r in heard.records] == [
        "own/train: 1 of 3 texts have more than 50 words (up to 80) and are cut there; "
        "datasets.own.text_processor.train.max_words sets another number, and a model reads model.max_txt_len tokens "
        "at most"
    ]
    heard.clear()
    data = built(max_words=80)
    assert not heard.records
    assert max(len(data.sample(0, np.random.default_rng(i))["text_input"].split()) for i in range(9)) == 80


# ---------------------------------------------------------------------- scores
def _answered(data: Any, *answers: str) -> list[dict[str, Any]]:
    return [
        {"question_id": r["question_id"], "answer": a} for r, a in zip(data.records, answers, strict=True)
    ]


def test_a_right_answer_counts_the_same_however_many_gave_it(photos: Path) -> None:
    for given in ("Two", ["Two"], ["Two", "two."], ["Two"] * 3, ["2"] * 10):
        rows = [{"image": "0.png", "question": "colour?", "answer": "Green"},
                {"image": "1.png", "question": "how many?", "answer": given}]  # fmt: skip
        data = _own(photos, rows)
        metrics = VQATask().score(_answered(data, "green", "two"), data)
        assert (
            metrics["accuracy_percent"] == metrics["agg_metrics"] == 100 and "overall_percent" not in metrics
        )
        half = VQATask().score(_answered(data, "green", "three"), data)
        assert half["agg_metrics"] == 50
        each = VQATask().contributions(_answered(data, "green", "three"), data)
        assert each is not None and each.metrics["agg_metrics"].parts[:, 0].tolist() == [100, 0]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [(["red"], 100), (["Red", "blue"], 50), (["red", "red"], 100), (["red", "blue", "green"], 100 / 3),
     (["red"] * 2 + ["blue"] * 8, 200 / 3), (["red"] * 3 + ["blue"] * 7, 100), (["blue"], 0)],
)  # fmt: skip
def test_own_accuracy(answers: list[str], expected: float) -> None:
    score = vqa.own_accuracy([{"question_id": 1, "answer": "the red"}], {1: {"answers": answers}})
    assert score["accuracy_percent"] == score["agg_metrics"] == pytest.approx(expected)


def test_choices_named_by_letters_are_told_apart() -> None:
    truth = {i: {"answers": [a]} for i, a in enumerate(("A", "B", "an", "?"))}
    right = [{"question_id": i, "answer": a} for i, a in enumerate(("a", "b", "AN", "?"))]
    assert vqa.own_accuracy(right, truth)["agg_metrics"] == 100
    wrong = [{"question_id": i, "answer": a} for i, a in enumerate(("the", "a", "a", "!"))]
    assert vqa.own_accuracy(wrong, truth)["agg_metrics"] == 0


def test_rows_without_a_truth_are_left_out_and_counted(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = _heard(monkeypatch, caplog)
    rows = [{"image": "0.png", "question": "q", "answer": "a"}, {"image": "1.png", "question": "q"}]
    data = _own(photos, rows)
    assert VQATask().score(_answered(data, "b", "b"), data)["accuracy_percent"] == 0
    assert "1 of 2 questions have no answer" in heard.text
    assert [c.verdict for c in VQATask().cases(_answered(data, "a", "b"), data)] == [1, None]
    each = VQATask().contributions(_answered(data, "b", "b"), data)
    assert each is not None and len(each.units) == 1

    heard.clear()
    data = _own(photos, [{"image": "0.png", "caption": "a red square"}, {"image": "1.png"}])
    said = [{"image_id": i, "caption": "a red square"} for i in range(2)]
    assert CaptionTask().score(said, data)["Bleu_1"] == pytest.approx(1)
    assert "1 of 2 pictures have no reference captions" in heard.text
    assert CaptionTask().contributions(said, data).units == ["0"]  # type: ignore[union-attr]
    assert CaptionTask().score(said[1:], data) == {}

    heard.clear()
    data = _own(photos, [{"image": "0.png", "caption": "a"}, {"image": "1.png"}, {"image": "2.png", "caption": "b"}],
                task="retrieval")  # fmt: skip
    scores = np.array([[1.0, 0], [0.5, 0.5], [0, 1]])
    records = [{"direction": "i2t", "scores": scores}, {"direction": "t2i", "scores": scores.T}]
    metrics = RetrievalTask().score(records, data)
    assert metrics["txt_r1"] == metrics["img_r1"] == 100
    assert "1 of 3 pictures have no caption to look for" in heard.text
    each = RetrievalTask().contributions(records, data)
    assert each is not None and each.metrics["txt_r1"].fold(each.metrics["txt_r1"].parts.sum(0)) == 100
    rows = RetrievalTask().rows(records)
    assert [c.verdict for c in RetrievalTask().cases(rows, data)] == [1, None, 1, 1, 1]

    heard.clear()
    data = _own(
        photos, [{"image": "0.png", "label": "a"}, {"image": "1.png"}, {"image": "2.png", "label": "b"}]
    )
    assert [data[i]["label"] for i in range(3)] == [0, -1, 1]
    batch = data.collater([data[i] | {"image": 0} for i in range(3)])
    assert batch["label"].tolist() == [0, -1, 1]
    rows = [{"instance_id": str(i), "prediction": 0, "target": t} for i, t in enumerate((0, None, 1))]
    assert ClassificationTask().score(rows, data)["accuracy_percent"] == 50
    assert "1 of 3 samples have no label" in heard.text


def test_scores_that_are_no_numbers_are_refused_by_their_rows() -> None:
    same, one = {i: [i] for i in range(20)}, {i: i for i in range(20)}
    for value in (np.nan, np.inf, -np.inf):
        scores = np.eye(20)
        scores[7] = value
        with pytest.raises(ValueError, match="the scores of picture 7 are not finite"):
            retrieval_scores(scores, np.eye(20), same, one)
        with pytest.raises(ValueError, match="the scores of text 7 are not finite"):
            retrieval_scores(np.eye(20), scores, same, one)
        same_but_one = {**same, 0: []}
        with pytest.raises(ValueError, match="the scores of picture 7 are not finite"):
            retrieval_scores(scores, np.eye(20), same_but_one, one)
    scores[:, 3] = np.nan
    with pytest.raises(ValueError, match=r"picture 0, 1, 2, 3, 4 and 15 more .*20 of 20 rows"):
        retrieval_scores(scores, np.eye(20), same, one)


def test_retrieval_needs_texts(photos: Path) -> None:
    data = _own(photos, [{"image": "0.png"}, {"image": "1.png"}], task="retrieval")
    loader = type("Data", (), {"dataset": data})()
    with pytest.raises(ValueError, match="has no texts; retrieval needs captions"):
        RetrievalTask().evaluate(None, loader)  # type: ignore[arg-type]


def test_published_data_sets_refuse_ids_that_collide(tmp_path: Path) -> None:
    def coco(*records: dict[str, Any]) -> Any:
        (tmp_path / "a.json").write_text(json.dumps(records))
        annotations = {"test": {"storage": str(tmp_path / "a.json")}}
        return build_datasets("coco_caption", {"build_info": {"annotations": annotations}}, ["test"])["test"]

    assert coco({"image": "a/b_007.jpg", "caption": ["x"]}).references() == {7: ["x"]}
    twice = coco({"image": "a/b_007.jpg", "caption": ["x"]}, {"image": "c/d_7.jpg", "caption": ["y"]})
    with pytest.raises(
        ValueError, match=r"record 1: the picture 'c/d_7\.jpg' has the number of 'a/b_007\.jpg', 7"
    ):
        twice.references()
    with pytest.raises(ValueError, match="record 1: there is no image_id, and other records have one"):
        coco({"image": "a_1.jpg", "caption": "x", "image_id": 1}, {"image": "a_2.jpg", "caption": "y"})


def test_a_processor_without_a_name_is_the_models_with_other_settings(photos: Path) -> None:
    from lavis.common.config import Config
    from lavis.runners import build_datasets as build_for_run

    path = _table(photos, [{"image": "0.png", "caption": " ".join("w" * 80)}])
    own = {"train": str(path), "images": str(photos), "val_fraction": 0, "task": "captioning"}
    recipe = {
        "model": {"arch": "blip_caption", "model_type": "tiny_shapes"},
        "datasets": {"own": own},
        "run": {"task": "captioning", "train_splits": ["train"], "valid_splits": []},
    }
    changed = Config.from_dict(recipe, {"datasets.own.text_processor.train.max_words": 100})
    data = build_for_run(changed)["own"]["train"]
    assert (
        data.text_processor.max_words == 100 and type(data.text_processor).__name__ == "BlipCaptionProcessor"
    )
    assert len(data[0]["text_input"].split()) >= 80
