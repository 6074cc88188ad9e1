"""Groups of parameters by patterns: freezing, rates, weight decay, layer-wise decay; in runs, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis.common.config import Config
from lavis.common.optims import build_optimizer
from lavis.common.parameters import Frozen, ParameterRule, check, layer_decay, read_rules
from lavis.runners import checkpoint, train
from tests.small import random_model
from tests.toy_training import ToyData, ToyModel, ToyTask, run


def settings_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """(lr_scale, weight_decay) of each trained parameter."""
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


# ------------------------------------------------------------------------------------------- rules


def test_the_first_rule_that_matches_decides_alone() -> None:
    model = ToyModel()
    rules = read_rules(
        [
            {"match": r"head\.bias", "weight_decay": 0.5},
            {"match": r"(head|first)\..*", "lr_scale": 0.1},
            {"match": r".*\.weight", "lr_scale": "3e-1", "weight_decay": 0.2},
        ]
    )
    check(model, rules)
    found = settings_of(model, build_optimizer(model, 1e-3, 0.05, rules=rules))
    assert found == {
        "head.bias": (1.0, 0.5), "head.weight": (0.1, 0.05), "first.weight": (0.1, 0.05), "first.bias": (0.1, 0.0),
        "ln.weight": (0.3, 0.2), "ln.bias": (1.0, 0.0), "second.weight": (0.3, 0.2),
    }  # fmt: skip


def test_a_tied_parameter_goes_by_any_of_its_names() -> None:
    model = ToyModel()
    found = settings_of(
        model, build_optimizer(model, 1e-3, rules=[ParameterRule(r"tied\.weight", lr_scale=0.5)])
    )
    assert found["second.weight"][0] == 0.5


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [{"match": "head", "freeze": True}],
            r"parameters\[0\].match 'head' matches no .* head\\\.\.\* matches 2",
        ),
        ([{"match": "heed.weight", "freeze": True}], "Similar: 'head.weight'"),
        ([{"match": "nothing", "lr_scale": 2}], "The model has first, head, ln, second"),
        (
            [{"match": ".*", "lr_scale": 2}, {"match": "head.*", "freeze": True}],
            r"\[1\].*no effect.*\[0\].*'\.\*'",
        ),
        ([{"match": "head.*", "freez": True}], r"parameters\[0\].freez is no known key.*'freeze'"),
        ([{"freeze": True}], r"parameters\[0\] has no match"),
        ([{"match": "head.*"}], r"parameters\[0\]: one of freeze, lr_scale and weight_decay"),
        ([{"match": "head.*", "freeze": True, "lr_scale": 0.5}], "freeze leaves nothing"),
        ([{"match": "head.*", "lr_scale": 0}], "above 0"),
        ([{"match": "head.*", "weight_decay": -1}], "0 or more"),
        ([{"match": "head(", "freeze": True}], "no regular expression"),
        ([{"match": ".*", "freeze": True}], "no trainable parameter"),
    ],
)
def test_rules_without_an_effect_or_a_meaning_are_refused(
    tmp_path: Path, rules: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(output_dir=tmp_path / "out", parameters=rules)
    assert not (tmp_path / "out").exists()


def test_similar_names_of_a_large_model() -> None:
    model = random_model("blip_retrieval")
    with pytest.raises(ValueError, match=r"Similar: .*visual_encoder\.blocks"):
        check(model, [ParameterRule(r"visual_encoder\.block\.0\..*", freeze=True)])


# ------------------------------------------------------------------------------------ layer-wise decay


@pytest.mark.parametrize(
    ("name", "encoder", "blocks", "first", "last"),
    [
        ("blip_retrieval", "visual_encoder.", "blocks", "patch_embed.proj.weight", "norm.bias"),
        ("alpro_retrieval", "visual_encoder.model.", "blocks", "time_embed", "norm.weight"),
        ("clip", "visual.", "blocks", "cls_token", "norm.weight"),
    ],
)
def test_rates_fall_from_the_last_block_to_the_embeddings(
    name: str, encoder: str, blocks: str, first: str, last: str
) -> None:
    model = random_model(name)
    depth = len(model.get_submodule(model.IMAGE_BLOCKS))
    scales = {
        k: v[0] for k, v in settings_of(model, build_optimizer(model, 1e-3, 0.05, lr_layer_decay=0.5)).items()
    }
    assert set(scales) == {k for k, p in model.named_parameters() if p.requires_grad}
    for key, scale in scales.items():
        if key.startswith(f"{encoder}{blocks}."):
            block = int(key.removeprefix(f"{encoder}{blocks}.").split(".")[0])
            assert scale == 0.5 ** (depth - block), key
        elif not key.startswith(encoder):
            assert scale == 1, key
    assert scales[encoder + first] == 0.5 ** (depth + 1) and scales[encoder + last] == 0.5
    if name == "clip":
        assert scales["visual.proj"] == 0.5 and scales["visual.norm_pre.weight"] == 0.5 ** (depth + 1)


def test_rules_go_on_from_layer_wise_decay_which_is_made_of_them() -> None:
    model = random_model("blip_retrieval")
    again = [*layer_decay(model, "visual_encoder.blocks", 0.5)]
    by_rules = settings_of(model, build_optimizer(model, 1e-3, rules=again))
    assert by_rules == settings_of(model, build_optimizer(model, 1e-3, lr_layer_decay=0.5))
    rules = [ParameterRule(r"visual_encoder\.blocks\.0\..*", lr_scale=0.1)]
    both = settings_of(model, build_optimizer(model, 1e-3, lr_layer_decay=0.5, rules=rules))
    key = "visual_encoder.blocks.0.attn.qkv.weight"
    assert both[key][0] == pytest.approx(0.1 * by_rules[key][0])
    with pytest.raises(ValueError, match="no image encoder with blocks"):
        build_optimizer(random_model("gpt_dialogue"), 1e-3, lr_layer_decay=0.5)


# --------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_frozen_stays_and_has_no_state_and_runs_go_on(tmp_path: Path, optimizer: str) -> None:
    keys: dict[str, Any] = {
        "output_dir": tmp_path, "optimizer": optimizer, "lr_sched": "constant_lr",
        "parameters": [{"match": r"(first|ln)\..*", "freeze": True}, {"match": r"second\..*", "lr_scale": 0.1}],
    }  # fmt: skip
    whole = run(job_id="whole", max_epoch=4, **keys)
    state = checkpoint.load_state(whole.output_dir / "checkpoint_last")
    assert (
        sum(len(g["params"]) for g in state["optimizer"]["param_groups"])
        == 3
        == len(state["optimizer"]["state"])
    )
    model = ToyModel()
    checkpoint.load_weights(model, whole.output_dir / "checkpoint_last")
    start = ToyModel().state_dict()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, start[key])}
    assert moved == {"second.weight", "tied.weight", "head.weight", "head.bias", "calls"}
    # resumed, it is the same run
    run(job_id="half", max_epoch=2, **keys)
    half = run(job_id="half", max_epoch=4, resume_ckpt_path=str(tmp_path / "half"), **keys)
    again = ToyModel()
    checkpoint.load_weights(again, half.output_dir / "checkpoint_last")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_a_model_is_left_as_it_was_given(tmp_path: Path) -> None:
    """After a run, and after one that was refused once the model was built."""
    model, rules = ToyModel(), [{"match": r"first\..*", "freeze": True}]
    keys: dict[str, Any] = {"task": ToyTask(), "device": "cpu", "batch_size_train": 4, "parameters": rules}
    data = {"train": ToyData(8, 1, training=True)}
    train(model=model, datasets=data, output_dir=tmp_path, job_id="a", max_epoch=1, **keys)
    assert all(p.requires_grad for p in model.parameters())
    keys |= {"resume_ckpt_path": str(tmp_path / "a"), "max_iters": 1}
    with pytest.raises(ValueError, match="beyond the end of this run"):
        train(model=model, datasets=data, output_dir=tmp_path, **keys)
    assert all(p.requires_grad for p in model.parameters())


def test_a_run_with_other_groups_is_not_continued(tmp_path: Path) -> None:
    rules = [{"match": r"first\..*", "freeze": True}]
    run(output_dir=tmp_path, job_id="a", max_epoch=1, parameters=rules)
    for other in ([], [{"match": r"first\..*", "lr_scale": 0.5}]):
        with pytest.raises(ValueError, match=r"run\.parameters"):
            run(output_dir=tmp_path, job_id="a", resume_ckpt_path=str(tmp_path / "a"), parameters=other)


def test_frozen_modules_are_in_evaluation_mode_while_the_rest_is_trained_and_free_afterwards(
    tmp_path: Path,
) -> None:
    model = random_model("albef_classification")
    frozen = Frozen(
        model, [ParameterRule(r"visual_encoder\..*", freeze=True), ParameterRule("x", freeze=True)]
    )
    model.train()
    frozen.hold()
    assert frozen.modules == [model.visual_encoder]
    modes = {name: module.training for name, module in model.named_modules()}
    assert all(
        training is not name.startswith("visual_encoder.") for name, training in modes.items() if "." in name
    )
    assert not any(p.requires_grad for p in model.visual_encoder.parameters())
    frozen.close()
    assert all(p.requires_grad for p in model.visual_encoder.parameters())
    assert not any(p.requires_grad for p in model.visual_encoder_m.parameters())


def test_dropout_of_a_frozen_module_is_off(tmp_path: Path) -> None:
    """Part of a loss that has no other randomness: with it frozen, two seeds of dropout give the same run."""

    class Dropping(ToyModel):
        def __init__(self) -> None:
            super().__init__(dropout=0.0)
            self.first = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))  # type: ignore[assignment]

    model = Dropping()
    frozen = Frozen(model, [ParameterRule(r"first\..*", freeze=True)])
    x = {"x": torch.randn(4, 8), "y": torch.arange(4)}
    for held in (True, False):
        model.train()
        if held:
            frozen.hold()
        a, b = model(x)["loss"], model(x)["loss"]
        assert bool(a == b) is held


def test_on_the_command_line_and_in_a_recipe(tmp_path: Path) -> None:
    option = (
        r"run.parameters=[{match: 'visual_encoder\..*', freeze: true}, {match: '.*bias', weight_decay: 0.1}]"
    )
    config = Config.load("blip/caption_shapes", options=[option])
    assert config.run.parameters == [
        {"match": r"visual_encoder\..*", "freeze": True}, {"match": ".*bias", "weight_decay": 0.1},
    ]  # fmt: skip
    again = Config.load(config.save(tmp_path / "recipe.yaml"))
    assert again.run == config.run
    with pytest.raises(ValueError, match=r"run\.parameters\[0\]\.freez"):
        Config.load("blip/caption_shapes", options=["run.parameters=[{match: 'a', freez: true}]"])
