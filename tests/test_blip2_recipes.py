"""The original's configurations of BLIP-2 and InstructBLIP with language models: by name, and as they are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lavis.cli.runs import script
from lavis.common.config import Config, read_layers, recipe_names
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset, make_plan
from lavis.datasets.nocaps import OUT_OF_DOMAIN
from lavis.datasets.shapes import export_clips
from lavis.datasets.shapes.layouts import export_pictures
from lavis.runners import evaluate
from tests.helpers import blip2_reference as reference
from tests.test_recipes import data_of, model_of
from tests.test_recipes_start import write
from tests.test_video_datasets import PUBLISHED

RECIPES: dict[str, Any] = json.loads((reference.REFERENCE / "recipes.json").read_text())
OURS = {
    "blip2/eval/caption_coco_opt2.7b_eval.yaml": "blip2/caption_coco_opt2.7b_eval",
    "blip2/eval/caption_coco_opt6.7b_eval.yaml": "blip2/caption_coco_opt6.7b_eval",
    "blip2/eval/caption_nocaps_out_domain_flant5xl_eval.yaml": "blip2/caption_nocaps_out_domain_flant5xl_eval",
    "blip2/eval/caption_nocaps_out_domain_flant5xxl_eval.yaml": "blip2/caption_nocaps_out_domain_flant5xxl_eval",
    "blip2/eval/gqa_zeroshot_flant5xl_eval.yaml": "blip2/vqa_gqa_flant5xl_eval",
    "blip2/eval/okvqa_zeroshot_flant5xl_eval.yaml": "blip2/vqa_okvqa_flant5xl_eval",
    "blip2/eval/vqav2_zeroshot_flant5xl_eval.yaml": "blip2/vqa_vqav2_flant5xl_eval",
    "blip2/eval/vqav2_zeroshot_opt_eval.yaml": "blip2/vqa_vqav2_opt2.7b_eval",
    "blip2/train/caption_coco_ft.yaml": "blip2/caption_coco",
    "blip2/train/pretrain_stage2.yaml": "blip2/pretrain_stage2",
    **{name: name.removesuffix(".yaml") for name in RECIPES if name.startswith("instructblip/")},
}
# of `run`, what decides no number of an evaluation
ELSEWHERE = {
    "output_dir", "device", "seed", "job_id", "resume_ckpt_path", "runner", "amp", "num_workers", "batch_size_eval",
    "test_splits", "valid_splits",
}  # fmt: skip
TRAINING = {
    "init_lr", "min_lr", "warmup_lr", "warmup_steps", "max_epoch", "batch_size_train", "save_freq", "train_splits"
}  # fmt: skip
PRIVATE = "/export/"
EVALUATIONS = [name for name, recipe in RECIPES.items() if name in OURS and recipe["run"]["evaluate"]]


def test_every_configuration_is_there() -> None:
    assert len(OURS) == len(set(OURS.values())) == 56 and len(EVALUATIONS) == 54
    others = {name for name in RECIPES if name.startswith(("blip2/", "instructblip/"))} - set(OURS)
    assert len(others) == 4  # of retrieval and of the first stage
    assert set(OURS.values()) <= set(recipe_names())


@pytest.mark.parametrize("original", OURS)
def test_settings_are_those_of_the_original(original: str) -> None:
    theirs, ours = Config.from_dict(RECIPES[original]), Config.load(OURS[original])
    evaluates = theirs.run.evaluate
    assert model_of(ours) == model_of(theirs)
    assert list(ours.datasets) == list(theirs.datasets)
    for name in theirs.datasets:
        assert data_of(ours, name, evaluates) == data_of(theirs, name, evaluates)
    found, wanted = (
        {**dataclasses.asdict(c.run), **dataclasses.asdict(c.task_config)} for c in (ours, theirs)
    )
    assert ours.run.evaluation_splits == theirs.run.evaluation_splits
    assert ours.run.mixed_precision == theirs.run.mixed_precision
    if theirs.run.task == "captioning":
        if "nocaps" in original:  # 1,413 numbers, which are the data set's option here
            assert ours.datasets["nocaps"]["domain"] == "out"
            assert json.loads(OUT_OF_DOMAIN.read_text()) == wanted.pop("img_ids")
            found.pop("img_ids")
        elif "msvd" in original:
            assert (
                len(wanted.pop("img_ids")) == 669 and found.pop("img_ids") == []
            )  # of 670: all of the split
        if (wanted["annotation_file"] or "").startswith(PRIVATE):
            assert wanted.pop("annotation_file") and found.pop("annotation_file") is None
        wanted.pop("prompt"), found.pop("prompt")  # the original's task reads none: model.prompt is meant
    for key in ("ques_files", "anno_files"):
        if key in wanted:
            assert all(path.startswith(PRIVATE) for path in wanted.pop(key).values()) and found.pop(key) == {}
    ignored = ELSEWHERE | (TRAINING if evaluates else set())
    assert {k: v for k, v in found.items() if k not in ignored} == {
        k: v for k, v in wanted.items() if k not in ignored
    }


@pytest.mark.parametrize("original", OURS)
def test_their_files_resolve_to_models_and_data(tmp_path: Path, original: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(RECIPES[original])))
    config = Config.load(path)
    model_of(config)
    for data, section in config.datasets.items():
        make_plan(registry.get_dataset_class(data), data, section)
        data_of(config, data, config.run.evaluate)


def test_a_recipe_goes_over_another(tmp_path: Path) -> None:
    name = "instructblip/caption_vatex_vicuna13b_eval"
    assert [Path(file).stem for file, _ in read_layers(name)] == [
        "caption_vatex_flant5xl_eval", "caption_vatex_vicuna13b_eval"
    ]  # fmt: skip
    config = Config.load(name)
    assert config.model["prompt"] == "describe the video" and config.task_config.length_penalty == 0
    assert config.task_config.max_len == 80 and list(config.datasets) == ["vatex_caption"]
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {own}\nrun: {{ seed: 1 }}")
    with pytest.raises(ValueError, match="goes over itself"):
        Config.load(own)
    own.write_text("base: [a]\n")
    with pytest.raises(ValueError, match="base is"):
        Config.load(own)
    own.write_text("base: blip2/no_such\n")
    with pytest.raises(FileNotFoundError, match="no_such"):
        Config.load(own)


# ------------------------------------------------------------------------------------------ they run
KINDS = {f"blip2_{kind}": kind for kind in ("opt", "t5", "t5_instruct", "vicuna_instruct")}
COUNTS = {"n_train": 4, "n_val": 3, "n_test": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with a few records of every data set that the configurations name, in its published layout."""
    root = tmp_path_factory.mktemp("cache")
    pictures = {"coco_caption": "shapes_caption", "coco_vqa": "shapes_vqa", "snli_ve": "shapes_entailment"}
    for name, shapes in pictures.items():
        for dataset in load_dataset(shapes, **COUNTS).values():
            if dataset.split in ("train", "val", "test"):
                export_pictures(dataset, name, root)
    for name in ("msrvtt_qa", "msvd_qa", "msrvtt_caption", "msvd_caption", "vatex_caption"):
        for dataset in load_dataset(PUBLISHED[name], **COUNTS).values():
            export_clips(dataset, name, root)
    image = next(iter((root / "coco/images").rglob("*.jpg")))
    for place in (
        "nocaps/images/val/0.jpg",
        "nocaps/images/val/2.jpg",
        "gqa/images/1.jpg",
        "coco/images/val2014/1.jpg",
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(image.read_bytes())
    for split in ("val", "test"):
        write(
            root / f"nocaps/annotations/nocaps_{split}.json",
            [{"image": "val/0.jpg", "img_id": 0}, {"image": "val/2.jpg", "img_id": 2}],
        )
    references = {"annotations": [{"image_id": i, "caption": f"a red dog {i}"} for i in (0, 2)]}
    write(root / "captions/nocaps_val_4500_captions.json", references)
    for split in ("train", "testdev", "test"):
        record = {"image": "1.jpg", "question": "Is it red?", "question_id": "7", "answer": "yes"}
        write(root / f"gqa/annotations/{split}_balanced_questions.json", [record])
    okvqa = root / "okvqa/annotations"
    write(okvqa / "vqa_val_eval.json", [{"image": "val2014/1.jpg", "question": "why?", "question_id": 2}])
    write(okvqa / "answer_list.json", ["x", "y"])
    write(
        okvqa / "OpenEnded_mscoco_val2014_questions.json",
        {"questions": [{"question_id": 2, "question": "why?"}]},
    )
    truth = {"question_id": 2, "answers": [{"answer": "x", "raw_answer": "xs"}] * 10}
    write(okvqa / "mscoco_val2014_annotations.json", {"annotations": [truth]})
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keys of a recipe's section `model` that name a small model of an arch."""
    made: dict[str, dict[str, Any]] = {}

    def keys(arch: str) -> dict[str, Any]:
        if arch not in made:
            described = reference.manifest(KINDS[arch])
            folder = tmp_path_factory.mktemp(arch)
            language = reference.write_language_model(described, folder / "language")
            made[arch] = {
                "weights": str(reference.write(described, folder / "model.pth")),
                "parts": {reference.LANGUAGES[described["tokenizer"]]: str(language)},
                **reference.sizes_of(described),
            }
        return made[arch]

    return keys


def changes(config: Config, models: Any, folder: Path) -> dict[str, Any]:
    """Sizes, folders and lengths of a quick run."""
    run: dict[str, Any] = {
        "device": "cpu", "num_workers": 0, "precision": "fp32", "amp": None, "output_dir": str(folder / "runs"),
        "job_id": "job", "batch_size_eval": 2,
    }  # fmt: skip
    if config.run.task != "multimodal_classification":
        run |= {"num_beams": 2, "max_len": 6, "min_len": 1}
    out = {f"model.{key}": value for key, value in models(config.model["arch"]).items()}
    if config.model.get("apply_lemmatizer"):
        out["model.apply_lemmatizer"] = False  # spaCy need not be here
    for name, section in config.datasets.items():
        out[f"datasets.{name}.vis_processor.eval"] = {**section["vis_processor"]["eval"], "image_size": 56}
    return out | {f"run.{key}": value for key, value in run.items()}


@pytest.fixture
def offline(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_CACHE", str(root))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")


QUICK = {
    "blip2/eval/caption_coco_opt2.7b_eval.yaml", "blip2/eval/gqa_zeroshot_flant5xl_eval.yaml",
    "blip2/eval/okvqa_zeroshot_flant5xl_eval.yaml", "blip2/eval/vqav2_zeroshot_opt_eval.yaml",
    "instructblip/caption_nocaps_out_domain_vicuna7b_eval.yaml", "instructblip/caption_msvd_flant5xl_eval.yaml",
    "instructblip/classification_snlive_flant5xl.yaml", "instructblip/qa_msvd_vicuna7b_eval.yaml",
}  # fmt: skip


@pytest.mark.parametrize(
    "original", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in EVALUATIONS]
)
def test_they_run_by_name_and_as_they_are(
    original: str, root: Path, models: Any, tmp_path: Path, offline: None, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(json.dumps(RECIPES[original]))
    if "msvd_caption" in content["datasets"]:  # whose names are those of real files
        split = load_dataset("msvd_caption")["test"]
        content["run"]["img_ids"] = [split.image_id(0), split.image_id(1), "nobody.avi"]
    path = tmp_path / "recipe.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    theirs = Config.load(path)
    results = {}
    for kind, recipe in (("as they are", path), ("by name", OURS[original])):
        folder = tmp_path / kind
        metrics = evaluate(recipe, options=changes(Config.load(recipe), models, folder))
        assert list(metrics) == theirs.run.evaluation_splits
        (found,) = [f for f in (folder / "runs/job/result").glob("*.json") if "leaderboard" not in f.name]
        results[kind] = metrics, json.loads(found.read_text())
    (metrics, rows), (again, all_rows) = results["as they are"], results["by name"]
    (scores,) = metrics.values()
    assert rows and scores and all(torch.isfinite(torch.tensor(v)) for v in scores.values())
    if "msvd_caption" in content["datasets"]:
        assert len(rows) == 2 and len(all_rows) == 3 and all(row in all_rows for row in rows)
        assert "1 of 3 images of run.img_ids" in caplog.text
    else:
        assert rows == all_rows and metrics == again
    said = [key for key in ("run.annotation_file", "run.anno_files", "run.ques_files") if key in caplog.text]
    if (content["run"].get("annotation_file") or "").startswith(PRIVATE):
        assert said == ["run.annotation_file"] and "references of" in caplog.text
    if "nocaps" in original:
        assert [row["image_id"] for row in rows] == [2]


def test_the_script_takes_their_files(
    root: Path, models: Any, tmp_path: Path, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python evaluate.py --cfg-path that.yaml`."""
    original = "blip2/eval/vqav2_zeroshot_flant5xl_eval.yaml"
    path = tmp_path / "that.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(RECIPES[original])))
    options = [f"{k}={json.dumps(v)}" for k, v in changes(Config.load(path), models, tmp_path).items()]
    assert script("evaluate", ["--cfg-path", str(path), "--options", *options]) == 0
    assert "overall_percent" in json.loads(capsys.readouterr().out)["val"]
