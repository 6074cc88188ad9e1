"""Plain layers: what makes them fast on a CPU changes no result, and is undone where it would be in the way."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lavis.common.registry import registry
from lavis.models import base
from lavis.nn import cpu
from lavis.nn.linear import ExactLinear
from lavis.nn.text import TextConfig, TextTransformer
from lavis.nn.transformer import Block, Blocks, Mlp
from lavis.nn.vit import VisionTransformer, ViTConfig
from tests.every_method import TEXTS, assert_same, every_method_model, results
from tests.small import images, random_model

TEXT = TextConfig(vocab_size=50, width=32, depth=3, heads=4, hidden=64, max_positions=40, memory_width=24)


@pytest.fixture
def fast_for_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny matrices and batches take the ways of large ones, as on an AMD."""
    monkeypatch.setattr(cpu, "cpu_maker", lambda: "AMD")
    monkeypatch.setattr(cpu, "_SMALL", 0)
    monkeypatch.setattr(cpu, "_SLICE", 1)


def fast_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) in cpu.FAST.values()]


# ------------------------------------------------------------------------------------ single layers


@pytest.mark.parametrize("maker", ["AMD", "Intel", ""])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 9, 24, 65])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_products_are_exact(monkeypatch, maker, rows, bias, dtype):
    monkeypatch.setattr(cpu, "cpu_maker", lambda: maker)  # every processor's choices on this one
    monkeypatch.setattr(cpu, "bfloat16_is_slow", lambda: maker == "Intel")
    monkeypatch.setattr(cpu, "_LARGE", 0)
    monkeypatch.setattr(cpu, "_SMALL", 0)
    torch.manual_seed(0)
    layer = nn.Linear(33, 47, bias=bias).to(dtype)
    x = torch.randn(rows, 1, 33, dtype=dtype)
    want = F.linear(x, layer.weight, layer.bias)
    wide = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    tolerance = {"rtol": 3e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    # a CPU without AVX-512 has no such product in bfloat16: packing then changes nothing
    can_pack = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for pack in (False, True):
        cpu.prepare(layer, pack)
        assert (layer.packed is not None) == (pack and can_pack)
        torch.testing.assert_close(layer(x), want, **tolerance)  # with autograd
        with torch.no_grad():
            for got, wanted in ((layer(x), want), (layer.product(x, "gelu"), F.gelu(wide).to(dtype))):
                assert got.is_contiguous() and got.dtype == dtype
                torch.testing.assert_close(got, wanted, **tolerance)
    assert type(cpu.undo(layer)) is nn.Linear and not hasattr(layer, "packed")


def test_wrong_inputs_are_refused_as_a_plain_layer_refuses_them(fast_for_small_ones):
    layer = cpu.prepare(nn.Linear(8, 8), pack=True)
    with torch.no_grad():
        for wrong in (torch.randn(3, 7), torch.randn(3, 8).double(), torch.randn(4, 2)):
            with pytest.raises(RuntimeError):
                layer(wrong)
        assert layer(torch.randn(8)).shape == (8,)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "gelu_tanh"])
def test_activations_are_the_same_and_leave_what_a_hook_has_seen(fast_for_small_ones, activation):
    torch.manual_seed(0)
    mlp, x, seen = Mlp(16, 32, activation), torch.randn(5, 16), []
    with torch.no_grad():
        wanted, inner = mlp(x), mlp.fc1(x)
        torch.testing.assert_close(cpu.prepare(mlp, pack=True)(x), wanted)
        mlp.fc1.register_forward_hook(lambda module, inputs, output: seen.append(output))
        torch.testing.assert_close(mlp(x), wanted)
        torch.testing.assert_close(seen, [inner])
        mlp.fc1 = nn.Sequential(mlp.fc1)  # as an adapter does
        torch.testing.assert_close(mlp(x), wanted)
        assert type(mlp.fc1[0]) is nn.Linear and len(seen) == 2


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_packed_self_attention_is_one_product_of_the_same_result(fast_for_small_ones, rows):
    torch.manual_seed(0)
    layer, x = TextTransformer(TEXT).encoder.layer[0].eval(), torch.randn(rows, 3, TEXT.width)
    projections, mask = layer.attention.self, torch.ones(3, 3, dtype=torch.bool).tril()
    with torch.no_grad():
        for only_first in (False, True):
            seen = mask[:1] if only_first else mask
            wanted = cpu.undo(layer).attention(x, seen, None, 0, only_first)
            cpu.prepare(layer, pack=True)
            assert projections.packed is not None and projections.query.packed is None
            torch.testing.assert_close(layer.attention(x, seen, None, 0, only_first), wanted)
    projections.query = nn.Sequential(cpu.undo(projections.query))  # as an adapter does
    cpu.prepare(layer, pack=True)
    assert projections.packed is None and projections.key.packed is not None


@pytest.mark.parametrize("masked", [True, False])
def test_the_first_token_alone_is_the_first_of_all(masked):
    torch.manual_seed(0)
    attention, x = TextTransformer(TEXT).encoder.layer[0].attention.eval(), torch.randn(3, 7, TEXT.width)
    mask = (torch.arange(7) < torch.tensor([[7], [3], [5]]))[:, None, None, :] if masked else None
    with torch.no_grad():
        wanted = attention(x, mask, None, 0, False)[:, :1]
        calls = []
        handle = cpu.prepare(attention).self.key.register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(attention(x, mask, None, 0, True), wanted)
        assert calls  # who wants to see the call sees it
        handle.remove()
        torch.testing.assert_close(attention(x, mask, None, 0, True), wanted)
        assert len(calls) == 1


def test_padded_keys_change_nothing(monkeypatch):
    torch.manual_seed(0)
    model, ids = TextTransformer(TEXT).eval(), torch.randint(5, 50, (9, 11))
    mask = torch.arange(11) < torch.arange(3, 12)[:, None]
    with torch.no_grad():
        wanted, keys = model(ids, mask=mask), []
        attention = F.scaled_dot_product_attention
        monkeypatch.setattr(
            F, "scaled_dot_product_attention",
            lambda q, k, v, **how: keys.append(k.shape[2]) or attention(q, k, v, **how),
        )  # fmt: skip
        torch.testing.assert_close(cpu.prepare(model)(ids, mask=mask), wanted, rtol=1e-4, atol=1e-5)
    assert keys == [16] * TEXT.depth


@pytest.mark.parametrize("kind", ["vit", "clip", "causal"])
def test_a_large_batch_in_slices_is_the_same(monkeypatch, kind):
    torch.manual_seed(0)
    if kind == "vit":
        module = VisionTransformer(ViTConfig(width=32, depth=2, heads=2, patch_size=8), 32)
        blocks = module.blocks
    else:
        module = blocks = Blocks(Block(32, 2, 64, activation="quick_gelu") for _ in range(2))
    run = {
        "vit": getattr(module, "encode", None), "clip": module, "causal": lambda x: module(x, "causal"),
    }[kind]  # fmt: skip
    module.eval()
    x, sizes = torch.randn(7, 17, 32), []
    with torch.no_grad():
        whole = run(x)
        cpu.prepare(module)
        monkeypatch.setattr(cpu, "_SLICE", 3 * 17 * 128 * 4)
        plain = Blocks.forward
        monkeypatch.setattr(
            Blocks, "forward", lambda self, x, *more: sizes.append(len(x)) or plain(self, x, *more)
        )
        torch.testing.assert_close(run(x), whole)
        assert sizes == [3, 3, 1]
        # who looks on sees the whole batch
        seen: list[int] = []
        handle = blocks[1].register_forward_hook(lambda m, inputs, output: seen.append(len(output)))
        run(x)
        handle.remove()
        blocks[1].attn.kept = []
        run(x)
        assert [*seen, *map(len, blocks[1].attn.kept)] == [7, 7]


def test_layers_that_decide_stay_exact_when_they_are_fast(fast_for_small_ones):
    torch.manual_seed(0)
    layer, x = ExactLinear(16, 4), torch.randn(5, 16)
    wanted = layer(x).detach()
    assert isinstance(layer, nn.Linear) and isinstance(cpu.prepare(layer, pack=True), nn.Linear)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), wanted)


# -------------------------------------------------------------------------------- prepare and undo


def test_changed_weights_are_not_multiplied_by_an_old_copy(fast_for_small_ones):
    torch.manual_seed(0)
    attention, x = TextTransformer(TEXT).encoder.layer[0].attention.eval(), torch.randn(2, 3, TEXT.width)
    cpu.prepare(attention, pack=True)
    other = {name: torch.randn_like(tensor) * 0.1 for name, tensor in attention.state_dict().items()}
    attention.load_state_dict(other)
    plain = copy.deepcopy(attention)
    assert not fast_layers(plain)
    with torch.no_grad():
        torch.testing.assert_close(attention(x, None, None, 0, False), plain(x, None, None, 0, False))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies_are_plain_and_compute_the_same(fast_for_small_ones, duplicate):
    model, samples = random_model("blip_caption"), {"image": images(2)}
    state = list(model.state_dict())
    wanted = model.generate(samples)
    assert fast_layers(cpu.prepare(model, pack=True)) and list(model.state_dict()) == state
    other = duplicate(model)
    assert not fast_layers(other) and not any("packed" in module.__dict__ for module in other.modules())
    assert fast_layers(model)
    assert other.generate(samples) == wanted == model.generate(samples)


@pytest.mark.parametrize(
    "change", [cpu.undo, nn.Module.train, lambda m: m.to(torch.float64), lambda m: nn.ModuleList(m.modules())]
)
def test_what_makes_layers_plain_again(change: Callable[[nn.Module], Any]):
    model = random_model("blip_caption")
    types = [type(module) for module in model.modules()]
    assert not fast_layers(model)
    model.generate({"image": images(1)})
    assert len(fast_layers(model)) > 30 and fast_layers(cpu.prepare(model, pack=True))
    change(model)
    assert [type(module) for module in model.modules()] == types
    assert not any("packed" in module.__dict__ for module in model.modules())


def test_a_model_that_is_asked_while_it_trains_is_plain_afterwards():
    model = random_model("blip_caption").train()
    model.generate({"image": images(1)})
    assert model.training and not fast_layers(model)


def test_gradients_flow_through_prepared_layers(fast_for_small_ones):
    model, samples = random_model("blip_caption"), {"image": images(2), "text_input": TEXTS[:2]}
    gradients = []
    for prepare in (False, True):
        model.zero_grad()
        if prepare:
            cpu.prepare(model, pack=True)
        model(samples).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 50
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_a_parametrized_layer_computes_with_its_parametrization(fast_for_small_ones):
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    layer, x = cpu.prepare(nn.Linear(8, 8, bias=False), pack=True), torch.randn(3, 8)
    with torch.no_grad():
        wanted = 2 * layer(x)
        nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
        torch.testing.assert_close(layer(x), wanted)
        torch.testing.assert_close(layer.train()(x), wanted)


# --------------------------------------------------------------- every model, every public method


# those that have a language model from elsewhere: test_blip2_language
SMALL = [name for name in registry.list_models() if "tiny" in registry.get_model_class(name).PRESETS]


@pytest.mark.parametrize("name", SMALL)
def test_prepared_models_give_the_results_of_plain_ones(fast_for_small_ones, monkeypatch, name):
    model = every_method_model(name)
    prepare = cpu.prepare
    with monkeypatch.context() as plain:
        plain.setattr(base.cpu, "prepare", lambda model, pack=False: model)
        wanted = results(model)
        assert not fast_layers(model)
    found = results(model)
    assert fast_layers(model)
    assert_same(found, wanted)
    prepare(model, pack=True)
    assert any(getattr(module, "packed", None) is not None for module in model.modules())
    assert_same(results(model), wanted)


def test_only_the_fast_layers_know_processors():
    root = Path(cpu.__file__).parents[1]
    known = {root / "nn" / "cpu.py", root / "common" / "device.py"}
    brands = re.compile(r"\b(AMD|EPYC|Intel|Xeon)\b")
    found = {path for path in root.rglob("*.py") if brands.search(path.read_text(encoding="utf-8"))}
    assert found == known
