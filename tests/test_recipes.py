"""Packaged recipes: those of the original with equal settings, all of them short and valid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lavis.common.config import RECIPES as FOLDER
from lavis.common.config import Config, recipe_names
from lavis.common.registry import registry
from lavis.datasets.builders import make_plan
from lavis.models.configs import override
from lavis.models.parts import overridden
from lavis.runners import preset_processors

ORIGINALS: dict[str, Any] = json.loads((Path(__file__).parent / "reference" / "recipes.json").read_text())
OURS = {
    "albef/eval/nlvr_eval.yaml": "albef/nlvr_eval",
    "albef/eval/ret_coco_eval.yaml": "albef/retrieval_coco_eval",
    "albef/eval/ret_flickr30k_eval.yaml": "albef/retrieval_flickr_eval",
    "albef/eval/snli_ve_eval.yaml": "albef/entailment_snli_ve_eval",
    "albef/eval/vqa_test.yaml": "albef/vqa_vqav2_test",
    "albef/eval/vqa_val.yaml": "albef/vqa_vqav2_eval",
    "albef/train/aokvqa_ft.yaml": "albef/vqa_aokvqa",
    "albef/train/nlvr_ft.yaml": "albef/nlvr",
    "albef/train/okvqa_ft.yaml": "albef/vqa_okvqa",
    "albef/train/pretrain.yaml": "albef/pretrain",
    "albef/train/ret_coco_ft.yaml": "albef/retrieval_coco",
    "albef/train/ret_flickr30k_ft.yaml": "albef/retrieval_flickr",
    "albef/train/snli_ve_ft.yaml": "albef/entailment_snli_ve",
    "albef/train/vqa_ft.yaml": "albef/vqa_vqav2",
    "blip/coco_cap_ft_iter.yaml": "blip/caption_coco_large_iters",
    "blip/eval/aokvqa_eval.yaml": "blip/vqa_aokvqa_eval",
    "blip/eval/caption_coco_eval.yaml": "blip/caption_coco_eval",
    "blip/eval/caption_coco_eval_large.yaml": "blip/caption_coco_large_eval",
    "blip/eval/nlvr_eval.yaml": "blip/nlvr_eval",
    "blip/eval/nocaps_eval.yaml": "blip/caption_nocaps_eval",
    "blip/eval/okvqa_eval.yaml": "blip/vqa_okvqa_eval",
    "blip/eval/ret_coco_eval.yaml": "blip/retrieval_coco_eval",
    "blip/eval/ret_flickr_eval.yaml": "blip/retrieval_flickr_eval",
    "blip/eval/vqav2_eval.yaml": "blip/vqa_vqav2_eval",
    "blip/train/aokvqa_ft.yaml": "blip/vqa_aokvqa",
    "blip/train/caption_coco_ft.yaml": "blip/caption_coco",
    "blip/train/caption_coco_large_ft.yaml": "blip/caption_coco_large",
    "blip/train/nlvr_ft.yaml": "blip/nlvr",
    "blip/train/okvqa_ft.yaml": "blip/vqa_okvqa",
    "blip/train/pretrain_14m.yaml": "blip/pretrain_14m",
    "blip/train/retrieval_coco_ft.yaml": "blip/retrieval_coco",
    "blip/train/retrieval_flickr_ft.yaml": "blip/retrieval_flickr",
    "blip/train/vqav2_ft.yaml": "blip/vqa_vqav2",
    "clip/exp_coco_ret_eval.yaml": "clip/retrieval_coco_eval",
    "clip/exp_flickr_ret_eval.yaml": "clip/retrieval_flickr_eval",
    "clip/exp_imnet_zs_eval.yaml": "clip/classification_imagenet_eval",
    "alpro/eval/didemo_ret_eval.yaml": "alpro/retrieval_didemo_eval",
    "alpro/eval/msrvtt_qa_eval.yaml": "alpro/qa_msrvtt_eval",
    "alpro/eval/msrvtt_ret_eval.yaml": "alpro/retrieval_msrvtt_eval",
    "alpro/eval/msvd_qa_eval.yaml": "alpro/qa_msvd_eval",
    "alpro/train/didemo_ret_ft.yaml": "alpro/retrieval_didemo",
    "alpro/train/msrvtt_qa_ft.yaml": "alpro/qa_msrvtt",
    "alpro/train/msrvtt_retrieval_ft.yaml": "alpro/retrieval_msrvtt",
    "alpro/train/msvd_qa_ft.yaml": "alpro/qa_msvd",
    "gpt/eval/dialogue_avsd_eval.yaml": "gpt/dialogue_avsd_eval",
    "gpt/train/dialogue_avsd_ft.yaml": "gpt/dialogue_avsd",
}
# keys of `run` that say where and on what to run; the original always computes in float32 where amp is not true
ELSEWHERE = {"output_dir", "device", "seed", "job_id", "resume_ckpt_path", "runner", "precision", "amp"}


def test_every_recipe_of_the_original_has_one_here():
    assert set(OURS) == set(ORIGINALS) and len(set(OURS.values())) == 46


@pytest.mark.parametrize("original", ORIGINALS)
def test_settings_are_those_of_the_original(original):
    theirs, ours = Config.from_dict(ORIGINALS[original]), Config.load(OURS[original])
    evaluates = theirs.run.evaluate
    assert model_of(ours) == model_of(theirs)
    assert list(ours.datasets) == list(theirs.datasets)
    for name in theirs.datasets:
        assert data_of(ours, name, evaluates) == data_of(theirs, name, evaluates)
    found, wanted = (
        {**dataclasses.asdict(c.run), **dataclasses.asdict(c.task_config)} for c in (ours, theirs)
    )
    ignored = ELSEWHERE | ({"batch_size_train", "train_splits"} if evaluates else set())
    if evaluates and wanted["test_splits"]:
        ignored |= {"valid_splits"}
    assert {k: v for k, v in found.items() if k not in ignored} == {
        k: v for k, v in wanted.items() if k not in ignored
    }
    assert ours.run.mixed_precision == "fp32" and theirs.run.mixed_precision in ("auto", "fp32")


def model_of(config: Config) -> Any:
    """Class, preset, weights and the resolved sizes."""
    section = dict(config.model)
    arch, model_type = section.pop("arch"), section.pop("model_type")
    section.pop("pretrained", None)
    parts = section.pop("parts", {})
    weights = section.pop("weights", "finetuned"), section.pop("init", None)
    preset = registry.get_model_class(arch).preset(model_type)
    kept = overridden(preset.parts, parts, "model.parts")
    return arch, model_type, weights, override(preset.config, section, "model"), kept


def data_of(config: Config, name: str, evaluates: bool) -> Any:
    """Type and processors of a data set, those of the model's preset included."""
    section = config.datasets[name]
    sides = ("eval",) if evaluates else ("train", "eval")
    processors = {}
    for key, defaults in preset_processors(config).items():
        given = {**defaults, **(section.get(key) or {})}
        processors[key] = {
            side: complete(given[side], defaults.get(side, {})) for side in sides if side in given
        }
    return section.get("type", "default"), processors


def complete(processor: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """A processor with its own defaults filled in."""
    cls = registry.get_processor_class(processor["name"])
    built = cls.from_config({k: v for k, v in processor.items() if k != "name"})
    return {"name": processor["name"], **{k: str(v) for k, v in vars(built).items() if not k.startswith("_")}}


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_are_short_and_valid(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ") and len(lines) <= 36
    config = Config.load(name)
    model_of(config)
    for data, section in config.datasets.items():
        make_plan(registry.get_dataset_class(data), data, section)


def test_most_recipes_are_under_25_lines():
    lengths = [len((FOLDER / f"{name}.yaml").read_text().splitlines()) for name in OURS.values()]
    assert sum(n < 25 for n in lengths) > 0.8 * len(lengths)


@pytest.mark.parametrize("original", ORIGINALS)
def test_the_originals_files_resolve_to_models_and_data(tmp_path, original):
    """As they are written, every key is understood by the rooms that it is for."""
    path = tmp_path / "recipe.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(ORIGINALS[original])))
    config = Config.load(path)
    model_of(config)
    for data, section in config.datasets.items():
        make_plan(registry.get_dataset_class(data), data, section)
        data_of(config, data, config.run.evaluate)
