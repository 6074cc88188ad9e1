"""How texts are written: the search against a plain one, its waits for the device, and its options."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis.nn import generation
from lavis.nn.generation import GenerationOptions
from lavis.nn.gpt import GPT, Decoding, GPTConfig
from lavis.nn.language_model import TextDecoder
from lavis.nn.losses import IGNORE, language_modelling_loss
from lavis.nn.text import TextConfig
from lavis.tasks.captioning import CaptionSettings
from lavis.tasks.vqa import VQASettings
from tests.small import images, random_model
from tests.waits import host_waits

END, PAD = 1, 0


class Model:
    """A decoder whose logits depend on the first and the last two tokens of a row; `nan_at`: a call in which the second
    half of the rows are NaN."""

    def __init__(
        self, seed: int, vocabulary: int, end_bias: float = 0.0, ties: bool = False, nan_at: int = 0
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        tables = torch.randn(3, vocabulary, vocabulary, generator=random) * 2
        self.tables = tables.round() if ties else tables
        self.tables[0, :, END] += end_bias
        self.nan_at, self.calls, self.texts = nan_at, 0, torch.empty(0)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        self.texts = torch.cat([self.texts, ids], dim=1) if self.calls else ids
        self.calls += 1
        last, before, first = (self.texts[:, at] for at in (-1, max(-2, -self.texts.shape[1]), 0))
        logits = self.tables[0][last] + self.tables[1][before] + self.tables[2][first]
        if self.calls == self.nan_at:
            logits[len(logits) // 2 :] = torch.nan
        return logits

    def select(self, index: torch.Tensor) -> None:
        self.texts = self.texts[index]


def plain_beam_search(
    model: Model, prompt: torch.Tensor, options: GenerationOptions
) -> list[list[tuple[list[int], float, float]]]:
    """As transformers 4.26 does it, hypothesis by hypothesis: for each item (text, logprob, score), best first."""
    beams, start = options.num_beams, prompt.shape[1]
    rows = torch.arange(len(prompt)).repeat_interleave(beams)
    logits = model.step(prompt)
    model.select(rows)
    logits = logits[rows]
    texts = prompt[rows].tolist()
    sums = [[0.0] + [-1e9] * (beams - 1) for _ in prompt]
    owns = [list(row) for row in sums]
    finished: list[list[tuple[list[int], float, float]]] = [[] for _ in prompt]
    done = [False] * len(prompt)

    def add(item: int, text: list[int], total: float, own: float) -> None:
        score = total / len(text) ** options.length_penalty
        worst = min((f[2] for f in finished[item]), default=0.0)
        if len(finished[item]) >= beams and score <= worst:
            return
        finished[item].append((text, own, score))
        if len(finished[item]) > beams:
            places = range(len(finished[item]))
            del finished[item][min(places, key=lambda i: finished[item][i][2])]

    for length in range(start, options.max_length):
        own = logits.log_softmax(dim=-1)
        scores = own.clone()
        for row, text in enumerate(texts):
            for token in set(text):
                old = own[row, token]
                factor = options.repetition_penalty
                scores[row, token] = old * factor if old < 0 else old / factor
        if length < options.min_length:
            scores[:, END] = -torch.inf
        taken: list[tuple[int, int]] = []
        for b in range(len(prompt)):
            mine = slice(b * beams, (b + 1) * beams)
            total = (scores[mine] + torch.tensor(sums[b])[:, None]).flatten()
            total_own = (own[mine] + torch.tensor(owns[b])[:, None]).flatten()
            best = total.topk(2 * beams)
            if done[b] or best.values[0].isnan():
                if not done[b]:
                    finished[b] = []
                done[b] = True
                taken += [(b * beams, PAD)] * beams
                continue
            sums[b], owns[b] = [], []
            for rank, (value, place) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
                row, token = divmod(place, own.shape[1])
                row += b * beams
                if token == END:
                    if rank < beams:
                        add(b, texts[row], value, float(total_own[place]))
                elif len(sums[b]) < beams:
                    sums[b].append(value)
                    owns[b].append(float(total_own[place]))
                    taken.append((row, token))
            worst = min((f[2] for f in finished[b]), default=0.0)
            best_running = float(best.values[0]) / length**options.length_penalty
            done[b] = len(finished[b]) >= beams and worst >= best_running
        texts = [[*texts[row], token] for row, token in taken]
        if all(done) or length + 1 == options.max_length:
            break
        model.select(torch.tensor([row for row, _ in taken]))
        logits = model.step(torch.tensor([[token] for _, token in taken]))
    for b in range(len(prompt)):
        for k in range(beams * (not done[b])):
            add(b, texts[b * beams + k], sums[b][k], owns[b][k])
    return [sorted(f, key=lambda x: x[2], reverse=True)[: options.num_captions] for f in finished]


@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 4),
    beams=st.integers(2, 6),
    vocabulary=st.integers(4, 20),
    prompt=st.integers(1, 3),
    room=st.integers(1, 8),
    least=st.integers(0, 6),
    captions=st.integers(1, 3),
    repetition=st.sampled_from([1.0, 1.4, 0.7]),
    lengths=st.sampled_from([1.0, 0.0, 2.0, -1.0, 0.7]),
    end_bias=st.sampled_from([-3.0, 0.0, 3.0]),
    ties=st.booleans(),
    nan_at=st.sampled_from([0, 0, 0, 1, 3]),
)
@settings(max_examples=150, deadline=None)
def test_the_search_is_the_one_of_the_original_for_every_hypothesis(
    seed, items, beams, vocabulary, prompt, room, least, captions, repetition, lengths, end_bias, ties, nan_at
):
    options = GenerationOptions(
        num_beams=beams, max_length=prompt + room, min_length=min(least, prompt + room), length_penalty=lengths,
        repetition_penalty=repetition, num_captions=min(captions, beams),
    )  # fmt: skip
    begun = torch.randint(2, vocabulary, (items, prompt), generator=torch.Generator().manual_seed(seed))
    wanted = plain_beam_search(Model(seed, vocabulary, end_bias, ties, nan_at), begun, options)
    model = Model(seed, vocabulary, end_bias, ties, nan_at)
    found = generation.generate(model, begun, options, end=END, pad=PAD)
    each = options.num_captions
    assert len(found.ids) == items * each
    longest = 0
    for row, (ids, logprob, score) in enumerate(zip(found.ids.tolist(), found.logprobs, found.scores)):
        if not wanted[row // each]:  # NaN
            assert score.isnan() and logprob.isnan()
            continue
        text, own, value = wanted[row // each][row % each]
        if len(text) < options.max_length:
            text = [*text, END]
        longest = max(longest, len(text))
        assert ids == text + [PAD] * (found.ids.shape[1] - len(text))
        torch.testing.assert_close(logprob, torch.tensor(own), rtol=1e-6, atol=1e-6)
        assert score == torch.tensor(value)
    assert found.ids.shape[1] >= longest


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 4},
        {"num_beams": 4, "repetition_penalty": 1.5, "num_captions": 3},
        {"num_beams": 1},
        {"use_nucleus_sampling": True, "num_captions": 2, "seed": 1},
    ],
)
def test_a_step_waits_at_most_once(how):
    model, calls = Model(3, 50), []
    step = model.step

    def counted(ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(waits))
        return step(ids)

    model.step = counted  # type: ignore[method-assign]
    prompt = torch.full((16, 2), 5)
    options = GenerationOptions(max_length=20, min_length=15, **how)
    with host_waits() as waits:
        found = generation.generate(model, prompt, options, end=END, pad=PAD)
    assert len(calls) > 12
    assert all(after - before <= 1 for before, after in pairwise([*calls, len(waits)])), waits
    with host_waits() as waits:
        found.read(16)
    assert waits[0] == "cpu" and "item" not in waits  # one copy; what follows reads it on the host


def test_values_with_which_nothing_can_be_written_are_refused_where_they_come_from():
    for bad, message in (
        ({"num_beams": 0}, "num_beams is 0; it must be 1 or more"),
        ({"num_captions": 0}, "num_captions is 0"),
        ({"min_length": 31}, "min_length is 31 and max_length 30"),
        ({"top_k": -1}, "top_k is -1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            GenerationOptions(**bad)
    with pytest.raises(ValueError, match=r"run\.num_beams is 0; it must be 1 or more"):
        VQASettings(num_beams=0)
    with pytest.raises(ValueError, match=r"run\.min_len is 9 and max_len 5"):
        CaptionSettings(max_len=5, min_len=9)
    with pytest.raises(ValueError, match=r"run\.max_len is 0; it must be 1 or more"):
        VQASettings(max_len=0, min_len=0)
    short = GenerationOptions(max_new_tokens=3)  # its prompt decides
    assert short.lengths(7) == (10, 10)
    with pytest.raises(ValueError, match="min_length is 10 and max_length 7"):
        short.lengths(4)


def test_recipes_keys_become_options():
    found = GenerationOptions.of_run(CaptionSettings(num_beams=2, max_len=9, min_len=3, top_p=0.5))
    assert found == GenerationOptions(num_beams=2, max_length=9, min_length=3, top_p=0.5)
    found = GenerationOptions.of_run(VQASettings())
    assert (found.num_beams, found.max_length, found.min_length) == (3, 10, 1)


def test_a_model_is_given_what_it_takes():
    def original(samples: Any, use_nucleus_sampling=False, num_beams=3, max_length=30, min_length=10): ...

    def everything(samples: Any, **options: Any): ...

    plain = {"num_beams": 3, "max_length": 30, "min_length": 10}
    assert GenerationOptions().arguments(original) == plain
    assert GenerationOptions(top_k=3).arguments(everything) == {**plain, "top_k": 3}
    with pytest.raises(ValueError, match=r"top_k is 3, but .*original takes no such option"):
        GenerationOptions(top_k=3).arguments(original)


# ----------------------------------------------------------------------------------- the cache


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_cache_has_the_number_format_that_is_computed_in(precision):
    model = random_model("blip_caption")
    embeds = model.forward_encoder({"image": images(2)}).detach()
    ids = torch.randint(5, 50, (2, 5))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        memory = model.text_decoder.project_memory(embeds)
        decoding = model.text_decoder.begin(memory, 5)
        steps = [decoding.step(part) for part in (ids[:, :3], ids[:, 3:4], ids[:, 4:])]
        whole = model.text_decoder(ids, memory=memory).float()
    assert decoding.cache.data.dtype == precision
    # two orders of adding in bfloat16 differ by some of its steps
    close = {"rtol": 1e-4, "atol": 1e-4} if precision == torch.float32 else {"rtol": 0.03, "atol": 0.05}
    for place, logits in zip((2, 3, 4), steps):
        torch.testing.assert_close(logits, whole[:, place], **close)


def test_the_cache_of_dialogues_about_videos_has_it_too():
    config = GPTConfig(width=16, depth=2, heads=2, max_positions=16, dropout=0.0, attention_dropout=0.0)
    model, head = GPT(config, 20).eval(), torch.nn.Linear(16, 20, bias=False)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prompt, mask = torch.randn(2, 4, 16), torch.ones(2, 4, dtype=torch.bool)
        assert Decoding(model, head, prompt, mask, None, 3).cache.data.dtype == torch.bfloat16


# ----------------------------------------------------------------------------- texts that are given


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at_once", [1, 3 * 7 * 50, 10 * 7 * 50])
def test_scores_of_given_texts_do_not_depend_on_the_chunks(monkeypatch, at_once, masked):
    torch.manual_seed(0)
    config = TextConfig(
        vocab_size=50, width=32, depth=2, heads=4, hidden=64, max_positions=40, memory_width=24
    )
    decoder = TextDecoder(config).eval()
    items, each = 4, 6
    seen = torch.rand(items, 5) < 0.7
    seen[:, 0] = True
    ids = torch.randint(5, 50, (items * each, 9))
    mask = torch.arange(9) < torch.randint(2, 8, (items * each, 1))
    mask[0, :7] = True
    widths = []
    with torch.no_grad():
        memory = decoder.project_memory(torch.randn(items, 5, 24), seen if masked else None)
        whole = generation.sequence_losses(decoder, memory, ids, mask, 0.1)
        monkeypatch.setattr(generation, "LOGITS_AT_ONCE", at_once)
        decoder.cls.register_forward_hook(lambda module, inputs, out: widths.append(out.numel()))
        found = generation.sequence_losses(decoder, memory, ids, mask, 0.1)
        alone = [
            language_modelling_loss(
                decoder(ids[r : r + 1], mask=mask[r : r + 1], memory=memory.part(slice(r // each, r // each + 1))),
                ids[r : r + 1].masked_fill(~mask[r : r + 1], IGNORE), smoothing=0.1, per_text=True,
            )
            for r in range(items * each)
        ]  # fmt: skip
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-5)
    assert max(widths[: -items * each]) <= max(at_once, 7 * 50)  # one text is the least


# ------------------------------------------------------------------------- one compiled decoding step


@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"num_beams": 1}, {"use_nucleus_sampling": True, "seed": 3}]
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_compiled_step_writes_the_same_and_is_compiled_once(how, precision):
    model, given = random_model("blip_caption"), {"image": images(3)}
    how = {**how, "max_length": 14, "min_length": 9, "return_scores": True}
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        wanted = model.generate(given, **how)
        model.text_decoder.compile_step(backend=backend)
        found = model.generate(given, **how)
        again = model.generate(given, **how)
    assert len(graphs) == 1  # every step and both batches
    assert found.texts == wanted.texts == again.texts
    if precision == torch.float32:
        torch.testing.assert_close(found.logprobs, wanted.logprobs, rtol=1e-4, atol=1e-4)
