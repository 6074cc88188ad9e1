"""A model, a data set and a task, each added in one file outside the package, work through the public runner."""

from __future__ import annotations

import sys
import textwrap

import pytest

from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.models import load_model, model_zoo
from lavis.runners import evaluate, train

MODEL = '''
"""A model that predicts how many bright pixels there are, from the mean colour."""
from dataclasses import dataclass
import torch
from torch import nn
from lavis.common.registry import registry
from lavis.models.base import BaseModel, Output, Preset

@dataclass(frozen=True)
class MeanConfig:
    width: int = 8

@dataclass(frozen=True)
class MeanOutput(Output):
    loss: torch.Tensor | None = None
    scores: torch.Tensor | None = None

@registry.register_model("added_mean")
class Mean(BaseModel):
    registered_name = "added_mean"
    PRESETS = {"base": Preset(config=MeanConfig())}

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(3, config.width), nn.ReLU(), nn.Linear(config.width, 1))

    def reset_parameters(self):
        pass

    def forward(self, samples):
        scores = self.layers(samples["image"].mean((2, 3))).squeeze(1)
        return MeanOutput(loss=(scores - samples["target"]).square().mean(), scores=scores)
'''

DATA = '''
"""Plain colours with their brightness.

**Description.** Sixteen flat pictures.
"""
import numpy as np
import torch
from lavis.common.registry import registry
from lavis.datasets.base import Dataset

@registry.register_dataset("added_colours")
class Colours(Dataset):
    name = "added_colours"

    @classmethod
    def split_names(cls, plan):
        return ("train", "val")

    @classmethod
    def load(cls, split, plan):
        return cls([{"value": i / 16} for i in range(16)], split)

    def make_sample(self, index, rng):
        value = self.records[index]["value"]
        return {"image": torch.full((3, 4, 4), value), "target": value, "image_id": index}
'''

TASK = '''
"""Regression: mean absolute error."""
from lavis.common.registry import registry
from lavis.tasks.base import Task

@registry.register_task("added_regression")
class Regression(Task):
    primary = ("absolute_error", "min")

    def predict(self, model, samples):
        scores = model(samples).scores.tolist()
        return [{"image_id": i, "score": s} for i, s in zip(samples["image_id"].tolist(), scores)]

    def score(self, records, dataset):
        errors = [abs(r["score"] - dataset.records[r["image_id"]]["value"]) for r in records]
        return {"absolute_error": sum(errors) / len(errors)}
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    for name, source in (("added_model", MODEL), ("added_data", DATA), ("added_task", TASK)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("added_model", "added_data", "added_task"):
        registry.import_module(name)
    yield tmp_path
    registry.unregister("model", "added_mean")
    registry.unregister("dataset", "added_colours")
    registry.unregister("task", "added_regression")
    for name in ("added_model", "added_data", "added_task"):
        sys.modules.pop(name, None)


def test_three_files_make_a_run(added):
    recipe = {
        "model": {"arch": "added_mean", "model_type": "base", "weights": "none"},
        "datasets": {"added_colours": {}},
        "run": {
            "task": "added_regression", "max_epoch": 30, "init_lr": 0.02, "batch_size_train": 4,
            "train_splits": ["train"], "valid_splits": ["val"], "output_dir": str(added / "out"), "device": "cpu",
            "lr_sched": "constant_lr",
        },
    }  # fmt: skip
    result = train(recipe)
    errors = [r["absolute_error"] for r in result.history if "absolute_error" in r]
    assert result.best["value"] == pytest.approx(min(errors))  # the smaller the better
    assert min(errors) < 0.5 * errors[0]
    again = load_model("added_mean", "base", checkpoint=result.checkpoint_best)
    metrics = evaluate(
        model=again, datasets={"val": load_dataset("added_colours")["val"]}, task="added_regression", splits=["val"],
        output_dir=str(added / "out"), device="cpu",
    )  # fmt: skip
    assert metrics["val"]["absolute_error"] == pytest.approx(result.best["value"], rel=1e-5)


def test_added_names_are_listed(added):
    assert "added_mean" in str(model_zoo)
    assert "added_colours" in registry.list_datasets()
    assert len(load_dataset("added_colours")["train"]) == 16


def test_a_module_that_is_not_there_is_explained():
    with pytest.raises(ValueError, match="no such module"):
        registry.import_module("no_such_module_anywhere")


def test_two_things_cannot_have_one_name(added):
    with pytest.raises(KeyError, match="already taken"):
        registry.register_model("added_mean")(type("Other", (), {}))
