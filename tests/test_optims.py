"""Schedules against recorded learning rates; parameter groups; the device and precision policy."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lavis.common import device
from lavis.common.device import autocast, grad_scaler, pick_device, pick_precision, to_device
from lavis.common.optims import build_optimizer, hidden_matrices, orthogonalised, parameter_groups
from lavis.common.registry import registry
from tests.small import random_model

CASES = json.loads((Path(__file__).parent / "reference" / "lr_schedules.json").read_text())["cases"]


def optimizer(scale: float | None = None) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}, {"params": [nn.Parameter(torch.zeros(2))]}]
    if scale is not None:
        groups[1]["lr_scale"] = scale
    return torch.optim.SGD(groups, lr=1.0)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['scheduler']}-{c['args'].get('warmup_steps', 0)}")
def test_rates_equal_the_recorded_ones(case: dict) -> None:
    opt = optimizer()
    schedule = registry.get_lr_scheduler_class(case["scheduler"])(
        optimizer=opt, iters_per_epoch=7, **case["args"]
    )
    for epoch, step, lr in case["rows"]:
        schedule.step(cur_epoch=epoch, cur_step=step)
        assert opt.param_groups[0]["lr"] == pytest.approx(lr, rel=1e-9)


def test_a_groups_lr_scale_is_applied() -> None:
    opt = optimizer(scale=0.1)
    registry.get_lr_scheduler_class("constant_lr")(optimizer=opt, init_lr=2e-3).step(3, 5)
    assert [g["lr"] for g in opt.param_groups] == pytest.approx([2e-3, 2e-4])


def test_the_step_schedule_without_a_decay_rate_says_so() -> None:
    with pytest.raises(ValueError, match="lr_decay_rate"):
        registry.get_lr_scheduler_class("linear_warmup_step_lr")(
            optimizer=optimizer(), init_lr=1e-3, max_epoch=3
        )


def test_an_unknown_schedule_is_answered_with_a_near_one() -> None:
    with pytest.raises(ValueError, match="linear_warmup_cosine_lr"):
        registry.get_lr_scheduler_class("linear_warmup_cosin_lr")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.ln = nn.LayerNorm(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_decay_for_matrices_only_and_nothing_for_frozen_parameters() -> None:
    net = Net()
    decay, plain = parameter_groups(net.named_parameters(), 0.05)
    assert decay["params"] == [net.body.weight] and decay["weight_decay"] == 0.05
    assert len(plain["params"]) == 3 and plain["weight_decay"] == 0


def test_the_optimizer_takes_the_models_own_groups() -> None:
    net = Net()
    net.get_optimizer_params = lambda wd, scale: [  # type: ignore[assignment]
        {"params": iter([net.body.weight]), "weight_decay": wd, "lr_scale": scale}
    ]
    opt = build_optimizer(net, 1e-3, weight_decay=0.3, beta2=0.98, lr_layer_decay=0.5)
    (group,) = opt.param_groups
    assert (group["weight_decay"], group["lr_scale"], group["betas"]) == (0.3, 0.5, (0.9, 0.98))


def _small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.LayerNorm(20), nn.Linear(20, 6, bias=False), nn.Linear(6, 6))
    net.add_module("head", nn.Linear(6, 6))
    return net


def _steps(net: nn.Module, optimizers: list[torch.optim.Optimizer], steps: int = 4) -> None:
    data = torch.Generator().manual_seed(1)
    for _ in range(steps):
        net.zero_grad()
        x, y = torch.randn(2, 64, 6, generator=data)
        (net(x) - y).square().mean().backward()
        for each in optimizers:
            each.step()


def test_heads_and_embeddings_stay_with_adamw() -> None:
    model = random_model("blip_pretrain")
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for p in hidden_matrices(model)}
    assert {
        "visual_encoder.blocks.0.attn.qkv.weight",
        "text_encoder.encoder.layer.0.output.dense.weight",
    } <= hidden
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2 and p.requires_grad}
    assert any("itm_head" in n for n in matrices) and any("word_embeddings" in n for n in matrices)
    for name in hidden:
        assert not any(part in name for part in ("embeddings", "head", "predictions", "_m.")), name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with PyTorch 2.9")
def test_muon_moves_hidden_matrices_as_pytorchs_and_the_rest_as_adamw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # PyTorch orthogonalises in bfloat16; how well ours does is tested below
    monkeypatch.setattr(
        "torch.optim._muon._zeropower_via_newtonschulz", lambda matrix, *_: orthogonalised(matrix[None])[0]
    )
    ours, theirs = _small_net(), _small_net()
    _steps(ours, [build_optimizer(ours, 1e-2, 0.05, 0.98, name="muon")])
    inner = [theirs[i].weight for i in (0, 2, 3)]
    rest = [p for p in theirs.parameters() if not any(p is q for q in inner)]
    decayed = [{"params": [p], "weight_decay": 0.05 if p.ndim > 1 else 0.0} for p in rest]
    muon = torch.optim.Muon(inner, lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    _steps(theirs, [muon, torch.optim.AdamW(decayed, lr=1e-2, betas=(0.9, 0.98))])
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)
    assert not torch.allclose(ours[0].weight, _small_net()[0].weight, atol=1e-2)


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 30), (4, 30, 5)])
def test_orthogonalised_keeps_directions_and_evens_out_their_sizes(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = orthogonalised(matrices)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    sizes = (u.mT @ out @ vt.mT).diagonal(dim1=1, dim2=2)
    assert float(sizes.min()) > 0.5 and float(sizes.max()) < 1.3
    torch.testing.assert_close(u @ torch.diag_embed(sizes) @ vt, out, atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonalised(matrices[:1]), out[:1])
    assert not orthogonalised(torch.zeros(1, 4, 4)).any()


def test_an_optimizer_needs_something_to_optimise() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(Net().requires_grad_(False), 1e-3)


def test_device_and_precision_policy(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    assert pick_precision(cpu) == "fp32" and pick_precision(cpu, "bf16") == "bf16"
    for maker, instructions, fast in (
        ("AMD", {"avx512_bf16"}, "bf16"),
        ("AMD", set(), "fp32"),
        ("Intel", {"avx512_bf16"}, "fp32"),
        ("Intel", {"avx512_bf16", "amx_tile"}, "bf16"),
        ("", {"avx512_bf16"}, "fp32"),
    ):
        monkeypatch.setattr(device, "cpu_maker", lambda maker=maker: maker)
        monkeypatch.setattr(device, "_has", lambda name, there=instructions: name in there)
        assert pick_precision(cpu, "fast") == fast and pick_precision(cpu) == "fp32"
        assert device.bfloat16_is_slow() == (maker == "Intel" and fast == "fp32")
    with pytest.raises(ValueError, match="GPUs"):
        pick_precision(cpu, "fp16")
    with pytest.raises(ValueError, match="fp64"):
        pick_precision(cpu, "fp64")
    with pytest.raises(ValueError, match="toaster"):
        pick_device("toaster")
    if not torch.cuda.is_available():
        assert pick_device("cuda").type in ("cpu", "mps")
        assert "not available" in caplog.text
    assert not grad_scaler(cpu, "bf16").is_enabled()
    with autocast(cpu, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(cpu, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_only_tensors_are_moved() -> None:
    batch = {"x": torch.ones(1), "texts": ["a", "b"], "pairs": [(torch.ones(1), 2)], "none": None}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"].is_meta and moved["pairs"][0][0].is_meta
    assert moved["texts"] is batch["texts"] and moved["pairs"][0][1] == 2


# ------------------------------------------------------------------------------------------ every step
def rates(name: str, epochs: int, per_epoch: int, **keys: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = registry.get_lr_scheduler_class(name)(
        optimizer=optimizer, max_epoch=epochs, iters_per_epoch=per_epoch, **keys
    )
    return [schedule.step(cur_epoch=e, cur_step=i) for e in range(epochs) for i in range(per_epoch)]


def test_schedules_per_step_decay_within_one_epoch() -> None:
    got = rates(
        "linear_warmup_cosine_per_step_lr",
        1,
        10,
        init_lr=1.0,
        min_lr=0.2,
        warmup_steps=2,
        warmup_start_lr=0.0,
    )
    expected = [0.0, 0.5, *(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8))]
    assert got == pytest.approx(expected)
    got = rates("linear_warmup_linear_per_step_lr", 1, 10, init_lr=1.0, warmup_steps=2, warmup_start_lr=0.0)
    assert got == pytest.approx([0.0, 0.5, *(1 - k / 8 for k in range(8))])
    assert len(set(rates("linear_warmup_cosine_lr", 1, 10, init_lr=1.0))) == 1  # the original's


@pytest.mark.parametrize("name", ["linear_warmup_cosine_per_step_lr", "linear_warmup_linear_per_step_lr"])
def test_schedules_per_step_do_not_know_epochs(name: str) -> None:
    keys: dict[str, Any] = {"init_lr": 1.0, "min_lr": 0.1, "warmup_steps": 7, "warmup_start_lr": 0.01}
    whole = rates(name, 1, 20, **keys)
    assert rates(name, 4, 5, **keys) == pytest.approx(whole)  # the warm-up is longer than an epoch
    assert max(whole) == whole[7] == 1.0 and all(a > b for a, b in itertools.pairwise(whole[7:]))
    # the last epoch is shorter: 18 steps
    short = rates(name, 4, 5, total_steps=18, **keys)
    assert short[:18] == pytest.approx(rates(name, 1, 18, **keys)) and short[18] == pytest.approx(0.1)
    assert rates(name, 1, 5, **keys) == pytest.approx([0.01 + 0.99 * k / 7 for k in range(5)])
