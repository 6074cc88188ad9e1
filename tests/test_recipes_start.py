"""The original's 46 recipe files, as they are, start: data of their layouts are read, a model of their kind is trained
for an epoch or evaluated, results are written. Only sizes differ: two layers, few records, no weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes import export_clips
from lavis.datasets.shapes.layouts import export_pictures
from lavis.runners import evaluate, train
from tests.test_recipes import ORIGINALS
from tests.test_video_datasets import PUBLISHED

pytestmark = pytest.mark.slow

COUNTS = {"n_train": 6, "n_val": 2, "n_test": 2}
PICTURES = {
    "coco_caption": "shapes_caption",
    "coco_retrieval": "shapes_retrieval",
    "flickr30k": "shapes_retrieval",
    "coco_vqa": "shapes_vqa",
    "nlvr": "shapes_nlvr",
    "snli_ve": "shapes_entailment",
}
# a narrow layer or two of each encoder, whatever the recipe's own keys for them are
_THIN = {"width": 32, "heads": 2}
_TEXT = {**_THIN, "hidden": 32, "memory_width": 32}
SMALL: dict[str, dict[str, Any]] = {
    "albef": {"vit": {**_THIN, "depth": 1}, "text": {**_TEXT, "depth": 2, "cross_from": 1}},
    "blip": {"vit": {**_THIN, "depth": 1}, "text": {**_TEXT, "depth": 2}},
    "clip": {"vision": {**_THIN, "depth": 1}, "text": {**_THIN, "depth": 1}},
    "alpro": {"vit": {**_THIN, "depth": 1}, "text": {**_TEXT, "depth": 2, "cross_from": 2}, "fuse_from": 1},
    "gpt": {"transformer": {**_THIN, "depth": 1}},
}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with a few records of every data set that the recipes name."""
    root = tmp_path_factory.mktemp("cache")
    for name, shapes in PICTURES.items():
        for dataset in load_dataset(shapes, **COUNTS).values():
            if dataset.split in ("train", "val", "test"):
                export_pictures(dataset, name, root)
    for name in ("msrvtt_qa", "msvd_qa", "msrvtt_retrieval", "didemo_retrieval"):
        for dataset in load_dataset(PUBLISHED[name], **COUNTS).values():
            export_clips(dataset, name, root)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    for name in (
        "coco/images/val2014/COCO_val2014_000000000042.jpg", "vg/images/VG_100K/2.jpg", "nocaps/images/val/0.jpg",
        "sbu_captions/images/0/1.jpg", "conceptual_caption/images/0/1.jpg", "conceptual_caption/images_12m/0/1.jpg",
        "imagenet/val/n00000007/0.JPEG", "imagenet/val/n00000042/1.JPEG",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / name)
    for number in range(1000):  # every class has its folder
        (root / f"imagenet/val/n{number:08d}").mkdir(exist_ok=True)
    asked = {"image": "val2014/COCO_val2014_000000000042.jpg", "question": "why?"}
    for split in ("train", "val", "test"):
        known = {"direct_answers": ["fun"] * 10, "correct_choice_idx": 0} if split != "test" else {}
        record = {**asked, "choices": ["fun", "joy", "a", "b"], **known}
        rows = [{**record, "question_id": f"{split}{i}"} for i in range(4)]
        write(root / f"aokvqa/annotations/aokvqa_v1p0_{split}.json", rows)
    write(root / "aokvqa/annotations/specialized_vocab_train_lavis.json", {"fun": 3, "joy": 1})
    okvqa = root / "okvqa/annotations"
    write(okvqa / "okvqa_train.json", [{**asked, "answer": ["x"] * 10, "question_id": i} for i in range(4)])
    write(okvqa / "vqa_val_eval.json", [{**asked, "question_id": 2}])
    write(okvqa / "answer_list.json", ["x", "y"])
    write(
        okvqa / "OpenEnded_mscoco_val2014_questions.json",
        {"questions": [{"question_id": 2, "question": "why?"}]},
    )
    truth = {"question_id": 2, "answers": [{"answer": "x", "raw_answer": "xs"}] * 10}
    write(okvqa / "mscoco_val2014_annotations.json", {"annotations": [truth]})
    write(
        root / "vg/annotations/vg_qa.json",
        [{"image": "VG_100K/2.jpg", "question": "Who?", "answer": "a man"}] * 2,
    )
    write(root / "vg/annotations/vg_caption.json", [{"image": "VG_100K/2.jpg", "caption": "a man"}] * 2)
    for split in ("val", "test"):
        write(root / f"nocaps/annotations/nocaps_{split}.json", [{"image": "val/0.jpg", "img_id": 0}])
    for name in (
        "sbu_captions/annotations/sbu",
        "conceptual_caption/annotations/cc3m",
        "conceptual_caption/annotations/cc12m",
    ):
        write(
            root / f"{name}.json",
            [{"image": "0/1.jpg", "caption": "boats", "url": "http://example.org/1.jpg"}] * 2,
        )
    turns = [{"question": f"q{i} ?", "answer": f"a{i}"} for i in range(3)]
    for split in ("train", "val", "test"):
        dialogs = [
            {"image_id": f"V{i}", "caption": "he walks", "summary": "", "dialog": turns} for i in range(2)
        ]
        write(root / f"avsd/annotations/{split}.json", {"type": split, "dialogs": dialogs})
    for kind, width in (("i3d_rgb", 2048), ("i3d_flow", 2048), ("vggish", 128)):
        (root / "avsd/features" / kind).mkdir(parents=True)
        for i in range(2):
            np.save(root / f"avsd/features/{kind}/V{i}.npy", np.zeros((4, width), dtype=np.float32))
    return root


@pytest.mark.parametrize("original", ORIGINALS)
def test_the_originals_files_start(
    original: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(root))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    path = tmp_path / "recipe.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(ORIGINALS[original])))
    theirs = Config.load(path)
    run = {
        "device": "cpu", "num_workers": 0, "output_dir": str(tmp_path / "runs"), "job_id": "job", "batch_size_eval": 2,
        "batch_size_train": 4,
    }  # fmt: skip
    quick = {"num_beams": 1, "max_len": 6, "min_len": 1, "k_test": 2, "num_ans_candidates": 2}
    known = {field.name for field in dataclasses.fields(registry.get_task_class(theirs.run.task).Config)}
    run |= {key: value for key, value in quick.items() if key in known}
    overrides: dict[str, Any] = {"model.weights": "none", **{f"run.{k}": v for k, v in run.items()}}
    for part, value in SMALL[original.split("/")[0]].items():
        for key, size in value.items() if isinstance(value, dict) else [(None, value)]:
            overrides[f"model.{part}.{key}" if key else f"model.{part}"] = size
    if "pretrain" in original:
        overrides["model.queue_size"] = 8
    if not theirs.run.evaluate:
        overrides["run.max_iters" if theirs.run.max_iters else "run.max_epoch"] = 1
    options = [f"{key}={value}" for key, value in overrides.items()]
    if theirs.run.evaluate:
        metrics = evaluate(path, options=options)
        assert list(metrics) == (theirs.run.test_splits or ["test"])
        assert list((tmp_path / "runs/job/result").iterdir())
    else:
        result = train(path, options=options)
        assert result.stopped == "finished" and result.iterations >= 1
        assert np.isfinite(next(r for r in result.history if r["event"] == "epoch")["loss"])
