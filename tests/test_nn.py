"""Building blocks: shared memories equal repeated ones, caches change nothing, shortcuts are exact."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lavis.nn import cache, cpu, generation
from lavis.nn.attention import attend, attention_weights, merge_heads, split_heads, triangle
from lavis.nn.gpt import GPT, GPTConfig
from lavis.nn.language_model import TextDecoder
from lavis.nn.linear import ExactLinear
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import TextConfig, TextTransformer
from lavis.nn.transformer import Block, Blocks, DropPath
from lavis.nn.vit import VisionTransformer, ViTConfig, interpolate_positions
from tests.golden import REFERENCE

SMALL = TextConfig(vocab_size=50, width=32, depth=3, heads=4, hidden=64, max_positions=40, memory_width=24)


def decoder(seed: int = 0) -> TextDecoder:
    torch.manual_seed(seed)
    model = TextDecoder(SMALL)
    model.reset_parameters()
    for p in model.parameters():  # far from the start, so that every part matters
        p.data += 0.2 * torch.randn_like(p)
    return model.eval()


@pytest.mark.parametrize("groups", [1, 2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_memory_equals_repeated_memory(groups, masked):
    model = decoder()
    ids = torch.randint(5, 50, (3 * groups, 7))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 5:] = torch.arange(3 * groups)[:, None] % 2 == 0
    memory_mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])) if masked else None
    results = []
    for repeat in (False, True):
        states = torch.randn(3, 9, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        used, used_mask = states, memory_mask
        if repeat:
            used = states.repeat_interleave(groups, dim=0)
            used_mask = None if memory_mask is None else memory_mask.repeat_interleave(groups, dim=0)
        logits = model(ids, mask=mask, memory=model.project_memory(used, used_mask))
        model.zero_grad()
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        results.append((logits.detach(), states.grad, [p.grad.clone() for p in model.parameters()]))
    (a, ga, pa), (b, gb, pb) = results
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ga, gb, rtol=1e-3, atol=1e-4)
    for x, y in zip(pa, pb):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3)


def test_ragged_groups_equal_equal_ones():
    model = decoder()
    memory = model.project_memory(torch.randn(2, 6, 24), torch.arange(6) < torch.tensor([[6], [3]]))
    ids = torch.randint(5, 50, (4, 5))
    even = model(ids, memory=memory)
    copied = model(ids, memory=memory.select(torch.tensor([0, 0, 1, 1])))
    torch.testing.assert_close(even, copied, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be shared out evenly"):
        model(ids[:3], memory=memory)


@given(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_cached_equals_uncached(rows, pieces, seed):
    model = decoder()
    torch.manual_seed(seed)
    total = sum(pieces)
    ids = torch.randint(5, 50, (rows, total))
    memory = model.project_memory(torch.randn(rows, 6, 24))
    with torch.no_grad():
        whole = model(ids, memory=memory)
        decoding = model.begin(memory, total)
        done = 0
        for piece in pieces:
            last = decoding.step(ids[:, done : done + piece])
            done += piece
            torch.testing.assert_close(last, whole[:, done - 1], rtol=1e-4, atol=1e-4)


@given(st.integers(1, 60), st.integers(1, 10), st.integers(1, 2), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_attention_equals_its_formula_for_any_number_of_keys(keys, items, groups, causal, seed):
    rng = torch.Generator().manual_seed(seed)
    length = keys if groups == 1 else 3
    q = torch.randn(items * groups, length, 8, generator=rng)
    k, v = torch.randn(2, items, 2, keys, 4, generator=rng)
    mask = torch.rand(items, 1, 1, keys, generator=rng) < 0.7
    mask[..., 0] = True
    if causal and groups == 1:
        mask = mask & torch.ones(length, keys, dtype=torch.bool).tril()
    with torch.no_grad():
        found = attend(q, k, v, heads=2, mask=mask)
        weights = attention_weights(q, k, heads=2, mask=mask)
        wanted = merge_heads(weights @ v.repeat_interleave(groups, dim=0))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_causal_mask_is_the_triangle(dtype):
    q, k, v = torch.randn(3, 4, 7, 8, dtype=dtype)
    q, k, v = q, split_heads(k, 2), split_heads(v, 2)
    q.requires_grad_()
    seen = triangle(7, 7, q.device)
    assert torch.equal(seen, torch.ones(7, 7).tril().bool())
    assert torch.equal(triangle(2, 7, q.device), seen[5:])
    close = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    found, wanted = (attend(q, k, v, heads=2, mask=mask) for mask in ("causal", seen))
    torch.testing.assert_close(found, wanted, **close)
    gradients = [torch.autograd.grad(out.float().square().sum(), q)[0] for out in (found, wanted)]
    torch.testing.assert_close(*gradients, **close)
    weights = [attention_weights(q, k, heads=2, mask=mask) for mask in ("causal", seen)]
    assert torch.equal(*weights)
    with pytest.raises(ValueError, match="a text with itself"):
        attend(q, k[:2], v[:2], heads=2, mask="causal")


def test_texts_without_padding_need_no_mask(monkeypatch):
    calls, plain = [], F.scaled_dot_product_attention

    def watched(*args, **options):
        calls.append((options["attn_mask"], options["is_causal"]))
        return plain(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    model = decoder()
    with torch.no_grad():
        decoding = model.begin(None, 5)
        decoding.step(torch.randint(5, 50, (2, 3)))
        decoding.step(torch.randint(5, 50, (2, 1)))
        assert calls == [(None, True)] * 3 + [(None, False)] * 3
        calls.clear()
        Blocks(Block(32, 2, 64) for _ in range(2))(torch.randn(2, 5, 32), "causal")
        GPT(GPTConfig(width=16, depth=2, heads=2, max_positions=16), 20).eval()(torch.randn(2, 4, 16))
    assert calls == [(None, True)] * 4


@pytest.mark.parametrize("large", [0, 8 << 20])
def test_selecting_rows_goes_on_from_them(monkeypatch, large):
    monkeypatch.setattr(cache, "_LARGE", large)
    model = decoder()
    memory = model.project_memory(torch.randn(2, 6, 24))
    ids = torch.randint(5, 50, (2, 3))
    with torch.no_grad():
        decoding = model.begin(memory, 8)
        decoding.step(ids)
        decoding.select(torch.tensor([0, 0, 0, 1, 1, 1]))  # expand
        nxt = torch.randint(5, 50, (6, 1))
        decoding.step(nxt)
        decoding.select(torch.tensor([2, 0, 0, 4, 4, 3]))  # reorder
        last = torch.randint(5, 50, (6, 1))
        got = decoding.step(last)
        histories = torch.cat([ids[[0, 0, 0, 1, 1, 1]], nxt], 1)[[2, 0, 0, 4, 4, 3]]
        want = model(torch.cat([histories, last], 1), memory=memory)[:, -1]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_dropout_that_is_switched_on_alone_drops():
    torch.manual_seed(0)
    layer = TextTransformer(SMALL).encoder.layer[0].eval()
    cpu.prepare(layer).output.dropout.train()
    x, other = torch.randn(2, 3, 64), torch.randn(2, 3, 32)
    assert not torch.equal(layer.output(x, other), layer.output(x, other))


def test_layers_that_decide_are_not_rounded_by_autocast():
    torch.manual_seed(0)
    plain, exact, x = torch.nn.Linear(16, 4), ExactLinear(16, 4), torch.randn(5, 16)
    exact.load_state_dict(plain.state_dict())
    wanted = plain(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.equal(plain(x).float(), wanted)
        assert torch.equal(exact(x), wanted)
        rounded = exact(x.bfloat16())  # states that autocast has rounded, as float32 again
    assert torch.equal(rounded, plain(x.bfloat16().float()))
    assert exact.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_drop_path_keeps_the_mean_and_is_off_in_evaluation():
    torch.manual_seed(0)
    layer = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    out = layer.train()(x)
    torch.testing.assert_close(out.unique(), torch.tensor([0.0, 4 / 3]))
    assert (out == out[:, :1, :1]).all()  # a sample is dropped whole
    assert abs(float(out.mean()) - 1) < 0.05
    assert layer.eval()(x) is x


def test_activation_checkpointing_changes_no_gradient():
    grads = []
    for blocks in (0, 2):
        torch.manual_seed(0)
        vit = VisionTransformer(ViTConfig(width=32, depth=3, heads=2, patch_size=8), 32, blocks)
        vit.reset_parameters()
        vit.train()
        vit(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        grads.append([p.grad.clone() for p in vit.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_positions_start_where_rows_and_columns_can_be_read():
    vit = VisionTransformer(ViTConfig(width=32, depth=1, heads=2, patch_size=8, sincos=0.5), 64)
    vit.reset_parameters()
    positions = vit.pos_embed.detach()[0]
    assert not positions[0].any() and abs(float(positions[1:].square().mean()) ** 0.5 - 0.5) < 0.01
    places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    known = torch.cat([positions[1:], torch.ones(64, 1)], dim=1)
    read = known @ torch.linalg.lstsq(known, places, driver="gelsd").solution
    torch.testing.assert_close(read, places, atol=0.05, rtol=0)  # a linear layer finds row and column
    with pytest.raises(ValueError, match="multiple of 4"):
        VisionTransformer(ViTConfig(width=30, depth=1, heads=2, sincos=0.5), 64).reset_parameters()


@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 30), (24, 30), (24, 14)])
def test_positions_resize_as_the_original(old, new):
    from tests import golden
    from tests.reference import recipe

    with np.load(REFERENCE / "golden" / "loader_interpolation.npz") as stored:
        spec = {"shape": [1, old * old + 1, 768], "dtype": "float32"}
        out = interpolate_positions(recipe.make_tensor("visual_encoder.pos_embed", spec), new * new + 1)
        name = f"pos_embed_{old}_to_{new}"
        np.testing.assert_allclose(out[0, :, 0].numpy(), stored[f"{name}_dim0"], rtol=1e-5, atol=1e-6)
        golden.close_digest(out, dict(stored), name)


def test_smoothed_loss_per_text_adds_up():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6))
    labels[1, 4:] = IGNORE
    each = language_modelling_loss(logits, labels, smoothing=0.1, per_text=True)
    mean = language_modelling_loss(logits, labels, smoothing=0.1)
    torch.testing.assert_close(each.sum() / (labels[:, 1:] != IGNORE).sum(), mean)
    logp = logits[0, 0].log_softmax(0)
    alone = language_modelling_loss(logits[:1, :2], labels[:1, :2], smoothing=0.1, per_text=True)
    torch.testing.assert_close(alone[0], -(0.9 * logp[labels[0, 1]] + 0.1 * logp.mean()))


# ------------------------------------------------------------------------------- generation


class Table:
    """A decoder whose next-token logits depend on the last token only: everything can be checked."""

    def __init__(self, logits: torch.Tensor, rows: int) -> None:
        self.logits, self.rows = logits, rows

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        return self.logits[ids[:, -1]].clone()

    def select(self, index: torch.Tensor) -> None:
        pass


def options(**kwargs) -> generation.GenerationOptions:
    plain = {"max_length": 6, "min_length": 0, "num_beams": 1, "top_p": 1.0, "top_k": 0}
    return generation.GenerationOptions(**{**plain, **kwargs})


def written(decoder, prompt: torch.Tensor, **kwargs) -> generation.Decoded:
    return generation.generate(decoder, prompt, options(**kwargs), end=1, pad=0)


@given(st.integers(0, 10**6), st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_beam_search_with_many_beams_finds_the_best_text(seed, items):
    torch.manual_seed(seed)
    vocabulary, length = 4, 4
    table = torch.randn(vocabulary, vocabulary) * 2
    prompt = torch.full((items, 1), 2)
    out = written(Table(table, items), prompt, num_beams=40, max_length=length)
    logp = table.log_softmax(-1)
    best = -1e9
    texts = [([2], 0.0)]
    for _ in range(length - 1):
        grown = []
        for ids, total in texts:
            for token in range(vocabulary):
                value = total + float(logp[ids[-1], token])
                if token == 1:
                    best = max(best, value / len(ids))
                else:
                    grown.append(([*ids, token], value))
        texts = grown
    best = max([best, *(total / len(ids) for ids, total in texts)])
    np.testing.assert_allclose(out.scores.numpy(), [best] * items, rtol=1e-4)


def test_greedy_equals_one_step_at_a_time_and_stops_at_the_end():
    table = torch.tensor(
        [[0.0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 5, 1], [0, 0, 0, 0, 4], [0, 6, 0, 0, 0]]
    )
    out = written(Table(table, 1), torch.tensor([[2]]))
    assert out.ids.tolist() == [[2, 3, 4, 1]]
    late = written(Table(table, 1), torch.tensor([[2]]), min_length=5)
    assert 1 not in late.ids[0, :5].tolist()


def test_sampling_follows_seed_top_k_top_p_and_temperature():
    torch.manual_seed(3)
    table = torch.randn(12, 12)
    table[:, 1] = -50
    prompt = torch.full((4, 1), 2)
    once = written(Table(table, 4), prompt, use_nucleus_sampling=True, seed=5, num_captions=2)
    again = written(Table(table, 4), prompt, use_nucleus_sampling=True, seed=5, num_captions=2)
    single = written(Table(table, 1), prompt[:1], use_nucleus_sampling=True, seed=5, num_captions=2)
    assert torch.equal(once.ids, again.ids) and torch.equal(once.ids[:2], single.ids)
    greedy = written(Table(table, 4), prompt)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        out = written(Table(table, 4), prompt, use_nucleus_sampling=True, **narrow)
        assert torch.equal(out.ids, greedy.ids)
    torch.manual_seed(0)
    many = torch.full((4000, 1), 2)
    drawn = written(Table(table, 4000), many, use_nucleus_sampling=True, max_length=2).ids[:, 1]
    shares = torch.bincount(drawn, minlength=12) / 4000
    torch.testing.assert_close(shares, table[2].softmax(0), rtol=0, atol=0.03)
    nucleus = written(Table(table, 4000), many, use_nucleus_sampling=True, max_length=2, top_p=0.5).ids[:, 1]
    likely, order = table[2].softmax(0).sort(descending=True)
    kept = order[: int((likely.cumsum(0) < 0.5).sum()) + 1]
    assert set(nucleus.tolist()) == set(kept.tolist())


def test_repetition_penalty_makes_repeats_rarer():
    table = torch.zeros(6, 6)
    table[:, 3] = 1.0
    table[:, 1] = -9
    plain = written(Table(table, 1), torch.tensor([[2]]))
    assert plain.ids[0, 1:].tolist() == [3] * 5
    penal = written(Table(table, 1), torch.tensor([[2]]), repetition_penalty=100.0)
    assert penal.ids[0, 1:3].tolist() == [3, 3] or penal.ids[0].tolist().count(3) < 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"min_length": 9}, "least length"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
    ],
)
def test_impossible_options_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        options(**bad)


def test_prompt_longer_than_max_length_is_refused():
    with pytest.raises(ValueError, match="counts the prompt"):
        written(Table(torch.zeros(4, 4), 1), torch.full((1, 6), 2))


def test_too_long_a_text_is_refused():
    model = TextTransformer(dataclasses.replace(SMALL, max_positions=4))
    with pytest.raises(ValueError, match="5 tokens"):
        model(torch.zeros(1, 5, dtype=torch.long))
