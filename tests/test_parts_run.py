"""Training runs of a model with frozen parts, and of adapters (LoRA): checkpoints hold what was trained; a run that is
resumed, or trained on several processes, is the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lavis.models import load_model
from lavis.nn.lora import is_adapter
from lavis.runners import checkpoint, evaluate
from tests.ranks import on_ranks
from tests.two_parts import NAME, Pictures, Sorting, registered, run, write_tower

LORA = {"rank": 2, "targets": ["query", "blocks.0"], "dropout": 0.1}


@pytest.fixture
def files(tmp_path: Path) -> Any:
    with registered(tmp_path) as folder:
        yield folder


def equal(a: Path, b: Path) -> None:
    names = sorted(path.name for path in a.glob("*.safetensors"))
    assert names == sorted(path.name for path in b.glob("*.safetensors"))
    for name in names:
        ours, theirs = load_file(a / name), load_file(b / name)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), key


@pytest.mark.parametrize("model", [{}, {"lora": LORA}])
def test_a_run_that_is_resumed_is_the_same_and_its_checkpoints_are_small(
    files: Path, model: dict[str, Any]
) -> None:
    keys: dict[str, Any] = {"output_dir": files / "out", "valid_splits": ["val"]}
    through = run(model, job_id="through", **keys)
    run(model, job_id="broken", **{**keys, "max_epoch": 1})
    broken = run(model, job_id="broken", resume_ckpt_path="auto", **keys)
    for kind in ("checkpoint_last", "checkpoint_best"):
        one, other = getattr(through, kind), getattr(broken, kind)
        equal(one, other)
        (file,) = one.glob("*.safetensors")
        assert file.name == ("adapter.safetensors" if model else "model.safetensors")
        kept = load_file(file).keys()
        if model:
            assert all(map(is_adapter, kept))
        else:
            assert {key.partition(".")[0] for key in kept} == {"connector", "query", "head"}
        description = json.loads((one / "config.json").read_text())
        assert all(part["sha256"] for part in description["parts"].values())
    # the best checkpoint is what was evaluated
    best = load_model(str(through.checkpoint_best))
    found = evaluate(
        model=best, datasets={"val": Pictures(20, 2)}, task=Sorting(), splits=["val"], device="cpu",
        output_dir=files / "out",
    )  # fmt: skip
    assert through.best is not None and found["val"]["accuracy_percent"] == through.best["value"]
    weights = {"arch": NAME, "model_type": "base", "weights": str(through.checkpoint_best)}
    again = evaluate(
        model=weights, datasets={"val": Pictures(20, 2)}, task=Sorting(), splits=["val"], device="cpu",
        output_dir=files / "out",
    )  # fmt: skip
    assert again["val"] == found["val"]


def test_a_run_does_not_go_on_with_another_part(files: Path) -> None:
    run(job_id="a", output_dir=files / "out", max_epoch=1)
    write_tower(files / "tower.pth", seed=8)
    with pytest.raises(ValueError, match="with other weights as the part 'visual_encoder' than") as e:
        run(job_id="a", output_dir=files / "out", resume_ckpt_path="auto")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("model", [{}, {"lora": {**LORA, "dropout": 0.0}}])
def test_on_two_processes_checkpoints_are_the_same(files: Path, model: dict[str, Any]) -> None:
    keys: dict[str, Any] = {"output_dir": files / "out", "max_epoch": 1, "lr_sched": "constant_lr"}
    run(model, job_id="one", batch_size_train=8, **keys)
    for how in ("ddp", "fsdp"):
        on_ranks(2, lambda _, how=how: run(model, job_id=how, parallel=how, **keys) and None)
        one, two = (files / "out" / name / checkpoint.LAST for name in ("one", how))
        (file,) = one.glob("*.safetensors")
        ours, theirs = load_file(file), load_file(two / file.name)
        assert ours.keys() == theirs.keys() and len(list(two.glob("*.safetensors"))) == 1
        for key, tensor in ours.items():
            torch.testing.assert_close(theirs[key], tensor, atol=1e-5, rtol=0)
        assert (one / "config.json").read_text() == (two / "config.json").read_text()
        run(model, job_id=how, batch_size_train=8, resume_ckpt_path="auto", **{**keys, "max_epoch": 2})
