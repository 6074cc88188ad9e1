"""Predictions beside the truth: every task's records as they are saved, joined to the records that they are about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis.app.browser.collection import Filters, open_collection
from lavis.app.browser.predictions import find_results, load_predictions
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.tasks.base import Case

SETTINGS: dict[str, dict[str, int]] = {
    "shapes_caption": {"n_val": 8}, "shapes_vqa": {"n_val": 3}, "shapes_nlvr": {"n_val": 20},
    "shapes_dialogue": {"n_val": 3}, "shapes_retrieval": {"n_val": 6}, "shapes_video_qa": {"n_val": 3},
    "shapes_entailment": {"n_val": 9}, "shapes_video_caption": {"n_val": 3},
}  # fmt: skip


def perfect(name: str, data: Any) -> tuple[str, list[dict[str, Any]]]:
    """The task, and its records where everything is right."""
    records = list(data.records)
    if "caption" in name:
        return "captioning", [{"image_id": i, "caption": r["caption"][0]} for i, r in enumerate(records)]
    if name == "shapes_vqa":
        return "vqa", [{"question_id": r["question_id"], "answer": r["answers"][0]} for r in records]
    if name == "shapes_dialogue":
        rows = []
        for record in records:
            for i, turn in enumerate(record["dialog"]):
                ranks = [k + 2 for k in range(len(turn["answer_options"]))]
                ranks[turn["gt_index"]] = 1
                rows.append({"image_id": record["image_id"], "round_id": i + 1, "ranks": ranks, "rank": 1,
                             "gt_index": turn["gt_index"]})  # fmt: skip
        return "dialogue", rows
    if name == "shapes_retrieval":
        scores = np.zeros((len(data.image), len(data.text)))
        for picture, texts in data.img2txt.items():
            scores[picture, texts] = 1
        return "retrieval", [{"direction": "i2t", "scores": scores}, {"direction": "t2i", "scores": scores.T}]
    key = "answers" if name == "shapes_video_qa" else "label"
    labels = [data.make_sample(i, np.random.default_rng(0))[key] for i in range(len(data))]
    return "multimodal_classification", [
        {"instance_id": str(i), "prediction": label, "target": label, "confidence": 0.75}
        for i, label in enumerate(labels)
    ]  # fmt: skip


def spoilt(task: str, rows: list[dict[str, Any]]) -> None:
    """Make the first one wrong."""
    if task == "captioning":
        rows[0]["caption"] = "nine purple elephants"
    elif task == "vqa":
        rows[0]["answer"] = "nothing"
    elif task == "dialogue":
        rows[0]["rank"] = 2
    elif task == "retrieval":
        rows[0]["scores"] = -rows[0]["scores"]
    else:
        rows[0]["prediction"] = 1 - rows[0]["prediction"] if rows[0]["prediction"] < 2 else 0


@pytest.mark.parametrize("name", list(SETTINGS))
def test_every_tasks_results_are_joined_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    data = load_dataset(name, **SETTINGS[name])["val"]
    task_name, records = perfect(name, data)
    task = registry.get_task_class(task_name).setup({})
    path = tmp_path / "run" / "result" / "val_epochbest.json"
    task.save(records, path)
    found = load_predictions(path, data)
    assert (found.right[sorted(found.cases)] == 1).all() and len(found.cases) == len(data.records)
    spoilt(task_name, records)
    task.save(records, path)
    collection = open_collection(name, SETTINGS[name], splits=["val"], predictions=tmp_path / "run")
    split = collection.splits["val"]
    assert collection.first == "val" and split.predictions is not None
    wrong, right = split.find(Filters(verdict="wrong")), split.find(Filters(verdict="right"))
    assert 0 in wrong and len(wrong) + len(right) == len(split)
    assert len(wrong) == (1 if task_name != "retrieval" else len(split))
    from lavis.app.browser import listing, pages, record

    assert "✗ wrong" in record.record_page(collection, split, pages.Place(Filters()), 0, None)
    assert (
        "✓ right" in listing.records_page(collection, split, pages.Place(Filters()))
        or task_name == "retrieval"
    )


@settings(max_examples=25)
@given(st.data())
def test_the_verdicts_are_the_metric(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The mean of the cases' verdicts is the accuracy that the task scores, whatever was answered in whatever order."""
    split = load_dataset("shapes_vqa", n_val=4)["val"]
    answers = st.sampled_from(["yes", "no", "red", "2", "", "Two", "a star"])
    rows = [{"question_id": r["question_id"], "answer": data.draw(answers)} for r in split.records]
    rows = data.draw(st.permutations(rows))
    task = registry.get_task_class("vqa").setup({})
    metrics = task.score(rows, split)
    cases = task.cases(json.loads(json.dumps(rows)), split)
    assert 100 * np.mean([c.verdict for c in cases]) == pytest.approx(metrics["accuracy_percent"])
    assert [split.records[c.place]["question_id"] for c in cases] == [r["question_id"] for r in rows]


def test_partly_right_answers_and_answers_that_are_not_public() -> None:
    from lavis.datasets.vqa import VQADataset

    record = {"image": "a", "question": "what?", "question_id": 7, "answers": ["red"] * 2 + ["blue"] * 8}
    task = registry.get_task_class("vqa").setup({})
    case = task.cases([{"question_id": "7", "answer": "red"}], VQADataset([record], "val"))[0]
    assert 0 < (case.verdict or 0) < 1 and case.truth == ("blue (×8)", "red (×2)")
    del record["answers"]
    assert task.cases([{"question_id": 7, "answer": "red"}], VQADataset([record], "test"))[0] == Case(
        0, "red"
    )


def test_which_files_are_results(tmp_path: Path) -> None:
    result = tmp_path / "result"
    result.mkdir()
    for name in ("test_epoch1.json", "test_vqa_result.json", "test_vqa_result_leaderboard.json", "new_test_epoch1.json",
                 "other.json"):  # fmt: skip
        (result / name).write_text("[]")
    found = find_results(tmp_path, ["test", "new_test", "val"])
    assert {k: v.name for k, v in found.items()}.keys() == {"test", "new_test"}
    assert found["new_test"].name == "new_test_epoch1.json" and "leaderboard" not in found["test"].name
    assert find_results(result / "other.json", ["a", "b"], ["b"]) == {"b": result / "other.json"}
    with pytest.raises(ValueError, match="--split"):
        find_results(result / "other.json", ["a", "b"])
    with pytest.raises(FileNotFoundError, match="no predictions"):
        find_results(tmp_path, ["unknown"])
    with pytest.raises(FileNotFoundError, match="no such"):
        find_results(tmp_path / "nothing", ["test"])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "no JSON"), ('{"a": 1}', "JSON list"), ("[1]", "JSON list"), ('[{"x": 1}]', "none of the keys"),
        ('[{"question_id": 1}]', "lacks question_id or answer"),
        ('[{"question_id": 99999, "answer": "a"}]', "none of its 1"),
        ('[{"image_id": 1, "caption": "a"}]', "no predictions for"),
    ],
)  # fmt: skip
def test_files_that_hold_no_predictions(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "val.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=problem):
        load_predictions(path, load_dataset("shapes_vqa", n_val=2)["val"])
