"""Drawn pictures in the layouts of published data sets, trained on and evaluated through those data sets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis.common.config import Config
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes.layouts import LAYOUTS, export_pictures
from lavis.runners import train

# data set, what it is made of, model, task, a metric of its evaluation, further keys of `model` and of `run`
CASES = [
    ("coco_caption", "shapes_caption", "blip_caption", "captioning", "CIDEr", {}, {"num_beams": 1, "max_len": 8}),
    ("coco_retrieval", "shapes_retrieval", "albef_retrieval", "retrieval", "r_mean", {}, {"k_test": 3}),
    ("flickr30k", "shapes_retrieval", "blip_retrieval", "retrieval", "r_mean", {}, {"k_test": 3}),
    ("coco_vqa", "shapes_vqa", "blip_vqa", "vqa", "overall_percent", {}, {"num_ans_candidates": 5}),
    ("nlvr", "shapes_nlvr", "albef_nlvr", "multimodal_classification", "accuracy_percent", {}, {}),
    ("snli_ve", "shapes_entailment", "blip_classification", "multimodal_classification", "accuracy_percent",
     {"num_classes": 3}, {}),
    ("visdial", "shapes_dialogue", "blip_vis_dialogue", "dialogue", "ndcg_percent", {"candidates": 3}, {}),
]  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    return tmp_path


def written(cache: Path, name: str, made_of: str, **options: Any) -> dict[str, Any]:
    """All splits of `name`, made of one of the embedded data sets."""
    splits = load_dataset(made_of, **{"n_train": 6, "n_val": 4, "n_test": 4, **options})
    for split in ("train", "val", "test"):
        export_pictures(splits[split], name, cache)
    return splits


@pytest.mark.parametrize(
    ("name", "made_of", "arch", "task", "metric", "model", "run"), CASES, ids=lambda v: str(v)[:20]
)
def test_trains_and_evaluates_through_the_real_builder(cache, name, made_of, arch, task, metric, model, run):
    written(cache, name, made_of)
    config = {
        "model": {"arch": arch, "model_type": "tiny", "weights": "none", **model},
        "datasets": {name: {}},
        "run": {
            "task": task, "max_iters": 2, "batch_size_train": 2, "batch_size_eval": 3, "init_lr": 1e-4,
            "train_splits": ["train"], "valid_splits": ["val"], "test_splits": ["test"],
            "output_dir": str(cache / "runs"), "job_id": "job", **run,
        },
    }  # fmt: skip
    result = train(config)
    assert result.iterations == 2
    assert math.isfinite(next(row for row in result.history if row["event"] == "epoch")["loss"])
    rows = [json.loads(line) for line in (cache / "runs/job/evaluate.txt").read_text().splitlines()]
    scored = next(row for row in rows if row.get("split") == "val")
    assert math.isfinite(scored[metric])
    answered = sorted((cache / "runs/job/result").glob("test*.json"))
    assert answered and json.loads(answered[0].read_text())
    if name in ("coco_vqa", "visdial"):  # whose test answers are not public
        assert result.metrics["test"] == {}


@pytest.mark.parametrize(("name", "made_of"), [(c[0], c[1]) for c in CASES])
def test_records_are_those_that_were_written(cache, name, made_of):
    source, found = written(cache, name, made_of), load_dataset(name)
    original, record = source["val"].records[1], found["val"].records[1]
    for key in ("question", "sentence", "label", "question_id"):
        assert record.get(key) == original.get(key)
    if "caption" in original and name != "visdial":
        assert record["caption"] == original["caption"]
    if name == "visdial":
        assert [t["answer"] for t in record["dialog"]] == [t["answer"] for t in original["dialog"]]
        assert record["dialog"][0]["answer_options"] == original["dialog"][0]["answer_options"]
    if name == "nlvr":
        ours, theirs = found["val"].pictures(record)[0], source["val"].pictures(original)[0]
    else:
        ours, theirs = found["val"].picture(record), source["val"].picture(original)
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    assert np.abs(difference).mean() < 12  # JPEG; another picture is at 40


def test_a_pair_of_data_sets_trains_together(cache):
    """As the recipes of VQAv2 with Visual Genome, and of pre-training, do."""
    written(cache, "coco_caption", "shapes_caption")
    splits = load_dataset("shapes_caption", n_train=5)
    export_pictures(splits["train"], "shards", cache)
    config = {
        "model": {"arch": "blip_pretrain", "model_type": "tiny", "weights": "none", "queue_size": 8},
        "datasets": {"coco_caption": {}, "shards": {"shards": "shards/*.tar"}},
        "run": {
            "task": "image_text_pretrain", "max_iters": 4, "batch_size_train": 4, "train_splits": ["train"],
            "output_dir": str(cache / "runs"), "init_lr": 1e-4,
        },
    }  # fmt: skip
    assert train(config).iterations == 4


def test_zero_shot_classes_in_folders(cache, monkeypatch):
    splits = load_dataset("shapes_caption", n_val=60)
    assert export_pictures(splits["val"], "imagenet", cache)
    data = load_dataset("imagenet")["val"]
    monkeypatch.setattr(
        type(data), "classnames", property(lambda self: [c[1:].replace("_", " ") for c in self.classes])
    )
    config = Config.load("clip/classification_imagenet_eval").to_dict()
    config["model"] = {"arch": "clip", "model_type": "tiny"}
    config["run"].update(output_dir=str(cache / "runs"), num_workers=0, device="cpu")
    from lavis.runners import evaluate

    metrics = evaluate(config)["val"]
    assert 0 <= metrics["accuracy_percent"] <= 100


def test_unknown_layouts_are_refused(cache):
    with pytest.raises(ValueError, match=r"no layout of 'coco_captions'.*coco_caption"):
        export_pictures(None, "coco_captions", cache)
    assert set(LAYOUTS) >= {case[0] for case in CASES}
