"""Every public name of the original is there, or an import says what has become of it."""

from __future__ import annotations

import importlib
import json
import re

import pytest

from lavis.common import elsewhere, moved
from lavis.common.registry import registry
from tests.golden import REFERENCE

NAMES: dict[str, dict[str, str]] = json.loads((REFERENCE / "original_names.json").read_text())


def imported(dotted: str):
    """The object behind a dotted path, however much of it is a module."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise AssertionError(dotted)


@pytest.mark.parametrize("module", NAMES)
def test_every_name_of_a_module_is_there_or_says_what_to_use(module):
    """As `from module import name` does it."""
    for name in NAMES[module]:
        names = {}
        try:
            exec(f"from {module} import {name}", names)  # noqa: S102  what a program writes
        except ImportError as e:
            message = str(e)
            assert f"there is no {name} in {module}: " in message, message
            answer = message.split(": ", 1)[1]
            assert re.search(
                r"`lavis|has it|have it|lavis download|docs/|torch|requires_grad|counterparts", answer
            ), message
            for place in re.findall(r"`(lavis[\w.]+)`", answer):
                assert imported(place) is not None
        else:
            assert names[name] is not None


def test_every_row_of_the_table_points_to_something():
    for module, rows in moved.TABLE.items():
        for name, target in rows.items():
            if " " not in target:
                assert importlib.import_module(module)
                assert getattr(importlib.import_module(module), name) is not None, (module, name)
            for place in re.findall(r"`(lavis[\w.]+)`", target):
                assert imported(place) is not None, (module, name)


def test_names_point_to_the_same_thing():
    from lavis.common.dist_utils import get_rank, main_process
    from lavis.datasets.builders import COCOCapBuilder
    from lavis.datasets.builders.base_dataset_builder import BaseDatasetBuilder
    from lavis.models.base_model import BaseModel
    from lavis.models.blip_models.blip_caption import BlipCaption
    from lavis.models.blip_models.blip_outputs import BlipOutput
    from lavis.models.outputs import LossOutput
    from lavis.models.vit import VisionTransformerEncoder
    from lavis.runners.runner_base import RunnerBase

    assert get_rank() == 0 and main_process(lambda: 3)() == 3
    assert BlipCaption is registry.get_model_class("blip_caption") and issubclass(BlipCaption, BaseModel)
    assert BlipOutput is LossOutput
    assert issubclass(COCOCapBuilder, BaseDatasetBuilder)
    assert RunnerBase is registry.get_runner_class("runner_base")
    assert VisionTransformerEncoder.__name__ == "VisionTransformer"


def test_a_star_import_brings_what_is_there():
    names: dict[str, object] = {}
    exec("from lavis.common.utils import *", names)  # noqa: S102
    assert "now" in names and "is_url" in names and "download_url" not in names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("blip2_vicuna_xinstruct", "X-InstructBLIP"),
        ("pnp_vqa", "PNP-VQA"), ("img2prompt_vqa", "Img2LLM"), ("blip_diffusion", "BlipDiffusionPipeline"),
    ],
)  # fmt: skip
def test_a_family_that_is_not_here_says_where_it_is(name, expected):
    from lavis.common.config import Config
    from lavis.inference.loading import split_model
    from lavis.models import load_model

    for call in (
        lambda: load_model(name, "pretrain_opt2.7b"),
        lambda: split_model(f"{name}/base"),
        lambda: Config.from_dict(
            {"model": {"arch": name, "freeze_vit": True}, "env": {}, "run": {"unknown": 1}}
        ),
    ):
        with pytest.raises(ValueError, match=expected) as e:
            call()
        assert "Did you mean" not in str(e.value)


def test_modules_of_such_families_say_it_too():
    for module in (
        "pnp_vqa_models.pnp_vqa",
        "img2prompt_models",
        "blip_diffusion_models",
    ):
        with pytest.raises(ImportError, match=r"is not (here|in this version)"):
            importlib.import_module(f"lavis.models.{module}")


def test_families_that_are_here_are_not_said_to_be_elsewhere():
    for kind in ("model", "task", "dataset", "processor"):
        wrong = [name for name in registry.names(kind) if elsewhere.where(name)]
        assert not wrong
