"""A model spread over two processes (FSDP2) trains as one that both have (DDP), and leaves the same checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lavis.models.presets import TINY_TEXT
from lavis.runners import checkpoint, parallel
from tests.ranks import on_ranks
from tests.small import images, random_model
from tests.toy_training import ToyModel, run

CPU = torch.device("cpu")
TEXTS = [
    "a red circle",
    "two large striped blue stars above a ring",
    "a cat",
    "three green hearts and a cross",
]
STEPS = 20


def batch(step: int, rank: int, ranks: int) -> dict[str, Any]:
    """A rank's share of four images with their texts."""
    mine = slice(4 // ranks * rank, 4 // ranks * (rank + 1))
    ids = torch.arange(4) + 4 * step
    return {"image": images(4, seed=step)[mine], "text_input": TEXTS[mine], "image_id": ids[mine]}


def train(rank: int, ranks: int, name: str, how: str, **config: Any) -> Any:
    """Losses and final entries of a few steps of SGD; in between one rank predicts more than the other."""
    torch.set_num_threads(1)
    model: Any = random_model(name, spread=0.02, seed=rank if how == "fsdp" else 0, **config).train()
    if how == "fsdp":
        parallel.shard(model, CPU)  # all begin as rank 0's
        spread = [p for p in model.parameters() if isinstance(p, DTensor)]
        assert len(spread) == len(list(model.parameters()))
        assert sum(p.to_local().numel() for p in spread) < 0.6 * sum(p.numel() for p in spread)
        assert isinstance(model.visual_encoder.blocks[0], FSDPModule)
    wrapped = parallel.replicated(model, CPU, find_unused=False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    torch.manual_seed(5 + rank)
    losses = []
    for step in range(STEPS):
        model.before_step(step / 10)
        loss = wrapped(batch(step, rank, ranks)).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        if step == 7:
            model.eval()
            with torch.no_grad(), parallel.whole(model):
                for _ in range(rank + 1):
                    model.visual_encoder(images(1))
            model.train()
    state: Any = parallel.full_state(model) if how == "fsdp" else model.state_dict()
    if how == "fsdp" and model.has_ema:
        with pytest.raises(RuntimeError, match="call before_step"):  # or what moves would be lost
            wrapped({**batch(0, rank, ranks), "epoch": 0, "iters": 0, "num_iters_per_epoch": 1})
    return losses, {key: value.detach().numpy().copy() for key, value in state.items()}


def close(found: Any, wanted: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found[0], wanted[0], rtol=tolerance)
    assert found[1].keys() == wanted[1].keys()
    for key, value in wanted[1].items():
        np.testing.assert_allclose(found[1][key], value, rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", ["blip_caption", "blip_retrieval", "albef_pretrain"])
def test_spread_over_two_ranks_as_on_both(name: str) -> None:
    spread, both = (
        on_ranks(2, functools.partial(train, ranks=2, name=name, how=how))[0] for how in ("fsdp", "ddp")
    )
    close(spread, both, 1e-5)
    start = random_model(name, spread=0.02).state_dict()
    assert any(np.abs(value - start[key].numpy()).max() > 1e-3 for key, value in both[1].items())


def test_spread_over_two_ranks_as_one_alone() -> None:
    """Without dropout, and without negatives of the own rank, two processes are one with the whole batch."""
    name, text = "blip_caption", dataclasses.replace(TINY_TEXT, dropout=0.0, attention_dropout=0.0)
    spread = on_ranks(2, functools.partial(train, ranks=2, name=name, how="fsdp", text=text))[0]
    alone = train(0, 1, name, "alone", text=text)
    close(
        (spread[0][:0], spread[1]), (alone[0][:0], alone[1]), 1e-5
    )  # a rank's loss is that of its own texts


# --------------------------------------------------------------------------------------------- runs


def on_two(**keys: Any) -> None:
    on_ranks(2, lambda _: run(batch_size_train=4, **keys) and None)


def test_a_run_validates_saves_and_goes_on_in_either_way(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "output_dir": tmp_path, "dropout": 0.0, "n": 80, "max_epoch": None, "lr_sched": "constant_lr",
        "max_grad_norm": 0.5,        "parameters": [{"match": r"ln\..*", "freeze": True}], "num_workers": 0,
    }  # fmt: skip
    on_two(job_id="ddp", max_iters=20, **keys)
    on_two(job_id="fsdp", parallel="fsdp", max_iters=20, **keys)
    # begun spread, continued on one process, then spread again
    on_two(job_id="mixed", parallel="fsdp", max_iters=10, **keys)
    run(job_id="mixed", batch_size_train=8, max_iters=15, resume_ckpt_path="auto", **keys)
    on_two(job_id="mixed", parallel="fsdp", max_iters=20, resume_ckpt_path="auto", **keys)
    states, models = {}, {}
    for name in ("ddp", "fsdp", "mixed"):
        for kind in (checkpoint.LAST, checkpoint.BEST):
            models[name, kind] = ToyModel()
            checkpoint.load_weights(models[name, kind], tmp_path / name / kind)
        states[name] = checkpoint.load_state(tmp_path / name / checkpoint.LAST)["optimizer"]["state"]
    for name in ("fsdp", "mixed"):
        for key, value in models["ddp", checkpoint.LAST].state_dict().items():
            if key != "calls":
                torch.testing.assert_close(
                    models[name, checkpoint.LAST].state_dict()[key], value, atol=1e-5, rtol=0
                )
        assert states[name].keys() == states["ddp"].keys()
        for i, moments in states["ddp"].items():
            for key, value in moments.items():
                torch.testing.assert_close(states[name][i][key], value, atol=1e-5, rtol=0)
    lines = [(tmp_path / name / "evaluate.txt").read_text() for name in ("ddp", "fsdp")]
    scores = [[json.loads(line)["accuracy_percent"] for line in text.splitlines()] for text in lines]
    assert scores[0] == scores[1] and len(scores[0]) > 1


@pytest.mark.parametrize(
    ("keys", "message"), [({"optimizer": "muon"}, "adamw"), ({"compile": True}, "run.compile")]
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"run\.parallel is fsdp.*{message}"):
        run(output_dir=tmp_path / "out", parallel="fsdp", **keys)
    assert not (tmp_path / "out").exists()


def test_on_one_process_nothing_is_spread(tmp_path: Path) -> None:
    model = ToyModel()
    parallel.shard(model, CPU)
    assert not isinstance(model, FSDPModule) and parallel.full_state(model) is None
    with parallel.whole(model):
        assert model.logits(torch.zeros(1, 8)).shape == (1, 4)
