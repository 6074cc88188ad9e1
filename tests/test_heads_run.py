"""Every head trains, is evaluated and resumes by the public runner on the embedded data."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from lavis.common.registry import registry
from lavis.runners import train
from tests.small import images, random_model

PLAIN = {
    "train": {"name": "blip_image_eval", "image_size": 64},
    "eval": {"name": "blip_image_eval", "image_size": 64},
}
CLIPS = {p: {"name": "alpro_video_eval", "image_size": 64, "n_frms": 8} for p in ("train", "eval")}
TEXT = {p: {"name": "blip_caption"} for p in ("train", "eval")}

# model, data set, its options, task, the metric that evaluation must give (None: nothing is evaluated)
HEADS = [
    ("blip_pretrain", "shapes_retrieval", {}, "image_text_pretrain", None),
    ("albef_pretrain", "shapes_retrieval", {}, "image_text_pretrain", None),
    ("blip_retrieval", "shapes_retrieval", {}, "retrieval", "r_mean"),
    ("albef_retrieval", "shapes_retrieval", {}, "retrieval", "r_mean"),
    ("blip2", "shapes_retrieval", {}, "image_text_pretrain", None),
    ("blip2", "shapes_retrieval", {}, "retrieval", "r_mean"),
    ("clip", "shapes_retrieval", {}, "retrieval", "r_mean"),
    ("alpro_retrieval", "shapes_video_retrieval", {}, "retrieval", "r_mean"),
    ("blip_nlvr", "shapes_nlvr", {}, "multimodal_classification", "accuracy_percent"),
    ("albef_nlvr", "shapes_nlvr", {}, "multimodal_classification", "accuracy_percent"),
    ("blip_classification", "shapes_entailment", {}, "multimodal_classification", "accuracy_percent"),
    ("albef_classification", "shapes_entailment", {}, "multimodal_classification", "accuracy_percent"),
    ("alpro_qa", "shapes_video_qa", {}, "multimodal_classification", "accuracy_percent"),
    ("albef_vqa", "shapes_vqa", {}, "vqa", "accuracy_percent"),
    ("blip_vis_dialogue", "shapes_dialogue", {}, "dialogue", "mrr_percent"),
]


def test_the_list_is_complete():
    """Heads that are trained are in the list; the others only predict, or are tested elsewhere."""
    elsewhere = {
        "blip_caption", "blip_vqa",  # tests of runner, packaged models and quickstart
        "blip_feature_extractor", "albef_feature_extractor", "alpro_feature_extractor", "clip_feature_extractor",
        "blip_image_text_matching",  # no training
        "blip_video_caption", "blip_video_qa", "blip_video_retrieval", "blip_video_dialogue",  # tests of their own
        "gpt_dialogue",  # likewise
        "blip2_feature_extractor", "blip2_image_text_matching", "blip2_opt", "blip2_t5",  # likewise
        "blip2_t5_instruct", "blip2_vicuna_instruct",
    }  # fmt: skip
    assert {name for name, *_ in HEADS} | elsewhere == set(registry.list_models())


@pytest.mark.parametrize(("name", "data", "options", "task", "metric"), HEADS, ids=lambda v: str(v)[:30])
def test_trains_and_evaluates(tmp_path, name, data, options, task, metric):
    section = {
        "n_train": 12, "n_val": 6, "n_test": 6, "text_processor": TEXT,
        "vis_processor": CLIPS if "video" in data else PLAIN, **options,
    }  # fmt: skip
    if data == "shapes_vqa":
        section.pop("text_processor")
    run = {
        "task": task, "max_iters": 3, "batch_size_train": 4, "batch_size_eval": 4, "init_lr": 1e-4,
        "train_splits": ["train"], "output_dir": str(tmp_path), "job_id": "job",
    }  # fmt: skip
    if metric is not None:
        run.update(valid_splits=["val"], test_splits=["test"])
    model = {"arch": name, "model_type": "tiny", "weights": "none"}
    if name == "albef_classification" or name == "blip_classification":
        model["num_classes"] = 3
    result = train({"model": model, "datasets": {data: section}, "run": run})
    assert result.stopped == "finished" and result.iterations == 3
    epoch = next(row for row in result.history if row["event"] == "epoch")
    assert math.isfinite(epoch["loss"])
    if metric is None:
        assert {k for k in epoch if k.startswith("loss_")} >= {"loss_itc", "loss_itm"}
        return
    assert metric in result.metrics["test"]
    written = min((tmp_path / "job" / "result").glob("test*.json"))
    assert json.loads(written.read_text())


# without one that reads features, and those that have no small weights of their own
ON_MEDIA = [
    name for name in registry.list_models()
    if name != "gpt_dialogue" and "tiny" in registry.get_model_class(name).PRESETS
]  # fmt: skip


@pytest.mark.parametrize("name", ON_MEDIA)
def test_what_is_no_batch_is_refused(name):
    model = random_model(name, **({"num_classes": 3} if name.endswith("_classification") else {}))
    keys = ("image0", "image1") if name.endswith("_nlvr") else (getattr(model, "MEDIA", "image"),)
    call = model.extract_features if name.endswith("feature_extractor") else model
    rest = {
        "image_id": [0, 1], "label": [0, 1], "answers": [0, 1], "answer": ["a", "b"], "n_answers": [1, 1],
        "weight": [1, 1], "epoch": 0, "iters": 0, "num_iters_per_epoch": 1,
    }  # fmt: skip
    good = images(2) if keys != ("video",) else images(2)[:, :, None].expand(-1, -1, 8, -1, -1)
    one_side = name.startswith("clip")  # of its samples will do
    wrong = [
        (Image.new("RGB", (64, 64)), "of type Image"),
        (good[:0], "an empty batch"),
        (None, "of type NoneType"),
    ]
    for media, found in wrong[:2] if one_side else wrong:
        said = rf"samples\['{keys[0]}'\] is {found}; it must be a tensor \(B, 3, "
        with pytest.raises(ValueError, match=said):
            call({**rest, **dict.fromkeys(keys, media), "text_input": ["a", "b"]})
    if not one_side:
        with pytest.raises(ValueError, match=r"samples need (text_input|caption): "):
            call({**rest, **dict.fromkeys(keys, good)})
