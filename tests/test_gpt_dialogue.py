"""GPT-2, its tokenizer, and VGD-GPT: equal to transformers, cached as uncached, a batch as single dialogues."""

from __future__ import annotations

import dataclasses
import hashlib
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lavis.models import load_model
from lavis.models.gpt_tokenizer import DIALOGUE_TOKENS, GPT2_MERGES, GPTTokenizer
from lavis.models.vgd_gpt import GPT2, GPTDialogue, GPTDialogueConfig
from lavis.nn import generation
from lavis.nn.gpt import GPT, Decoding, GPTConfig
from lavis.processors import load_processor

transformers = pytest.importorskip("transformers")

GPT_SIZES = GPTConfig(width=32, depth=3, heads=4, max_positions=200, dropout=0.0, attention_dropout=0.0)
CONFIG = GPTDialogueConfig(transformer=GPT_SIZES, len_tokenizer=300, len_video_ft=12)
GROWN = 7  # tokens that dialogues add
TEXTS = [
    "Hello world", " leading", "trailing ", "  two  spaces\tand a tab\n\nlines \r\n", "don't we'll I'M it's 'tis",
    "1234567890 3.14159 1e-5 2nd", "Zürich, naïve café; cafe\u0301", "日本語のテキスト 한국어 العربية", "🙂👩‍👩‍👧",
    "x_1 = y**2 + [z]; // $%^&", "", "is it pink?", "\u00a0no-break\u3000wide", "\x00\x7f control", "ﬁ ligature ½ ²",
]  # fmt: skip


# ---------------------------------------------------------------------------------------- tokenizer
@pytest.fixture(scope="module")
def tokenizer():
    return GPTTokenizer()


def test_vocabulary_is_the_published_one(tokenizer):
    published = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # of vocab.bpe
    assert hashlib.sha256(GPT2_MERGES.read_bytes()).hexdigest() == published
    assert len(tokenizer) == 50264
    pieces = sorted(tokenizer._inner.get_vocab().items(), key=lambda item: item[1])
    assert [i for _, i in pieces] == list(range(50264))
    # of encoder.json's 50,257 pieces, by id, a line each
    published = "e35a33a0b2250c932ffdafc4c3a3552aef0cc7af7a11e9ebfddf1d2a6517371f"
    assert hashlib.sha256("\n".join(p for p, _ in pieces[:50257]).encode()).hexdigest() == published
    assert [p for p, _ in pieces[50256:]] == ["<|endoftext|>", *DIALOGUE_TOKENS]


def test_tokenizer_equals_transformers(tokenizer):
    vocabulary = {p: i for p, i in tokenizer._inner.get_vocab().items() if i < 50257}
    lines = GPT2_MERGES.read_text(encoding="utf-8").split("\n")[1:50001]
    theirs = transformers.GPT2TokenizerFast(vocab=vocabulary, merges=[tuple(x.split(" ")) for x in lines])
    assert tokenizer.decode(tokenizer.encode("<eos> <|endoftext|>")) == "<eos> <|endoftext|>"
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False) == text


@given(st.text(max_size=40), st.sampled_from([264, 300, 1024]))
def test_texts_come_back_as_they_were(text, size):
    small = SMALL[size]
    ids = small.encode(text)
    assert small.decode(ids) == text
    assert all(0 <= i < 256 + size - 264 for i in ids)


SMALL = {size: GPTTokenizer(size=size) for size in (264, 300, 1024)}


def test_sizes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"70000 ids need 69736 merges.* has 50000"):
        GPTTokenizer(size=70000)
    with pytest.raises(ValueError, match="200 ids need -64 merges"):
        GPTTokenizer(size=200)
    (tmp_path / "merges.txt").write_text("#version\na b\na b\n")
    with pytest.raises(ValueError, match="repeated"):
        GPTTokenizer(tmp_path / "merges.txt", size=266)


# ------------------------------------------------------------------------------------------- peers
def peer(vocabulary: int = CONFIG.len_tokenizer, seed: int = 0):
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocabulary, n_positions=200, n_embd=32, n_layer=3, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    for p in model.parameters():
        p.data += 0.15 * torch.randn_like(p)
    return model


def config_like(config: GPTDialogueConfig) -> dict:
    return {"transformer": dataclasses.asdict(config.transformer), "len_tokenizer": config.len_tokenizer} | {
        "len_video_ft": config.len_video_ft
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2")
    peer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    torch.manual_seed(1)
    cfg = {
        "model_type": "tiny",
        "weights": "none",
        "init": {"transformer": str(folder)},
        **config_like(CONFIG),
    }
    model = GPTDialogue.from_config(cfg).eval()
    for layer in (model.video_ff, model.video_ff_out):
        for p in layer.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def theirs():
    return peer()


def samples(rows=(0, 1, 2), answers=True):
    """Dialogues of several lengths about videos of several lengths."""
    rng = torch.Generator().manual_seed(3)
    videos = [torch.randn(steps, 12, generator=rng) for steps in (4, 2, 5)]
    turns = [
        ("is it red?", "no"),
        ("what is it then?", "a blue star"),
        ("moves it?", "yes"),
        ("where?", "up"),
    ]
    out = {
        "video": [videos[i] for i in rows],
        "caption": [["a star", "a star and a long caption with many words", ""][i] for i in rows],
        "dialog": [[turns[:2], [], turns][i] for i in rows],
        "text_input": [
            ["is it big?", "what happens?", "and then, what happens after that?"][i] for i in rows
        ],
    }
    if answers:
        out["answer"] = [["yes", "nothing at all", "it goes away"][i] for i in rows]
    return out


def embedded(model, theirs, batch):
    video = model.video_ff(batch["video_fts"])
    words = torch.cat([video, theirs.transformer.wte(batch["input_ids"])], dim=1)
    positions = (batch["attn_mask"].long().cumsum(1) - 1).clamp(min=0)
    return {
        "inputs_embeds": words,
        "token_type_ids": batch["token_type_ids"],
        "attention_mask": batch["attn_mask"].long(),
        "position_ids": positions,
    }


def same_gradients(ours, theirs):
    checked = 0
    mine = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        if parameter.grad is None:
            continue
        for old, new in GPT2.rename:
            key = re.sub(old, new, key)
        name, _, mark = key.partition("#")
        wanted = parameter.grad.t() if mark == "T" else parameter.grad
        peak = wanted.abs().max()
        assert (mine[name].grad - wanted).abs().max() <= 2e-4 * peak + 1e-7, name
        checked += 1
    assert checked == len(mine)


# ------------------------------------------------------------------- equality with transformers
def test_logits_loss_and_gradients_equal_transformers(model, theirs):
    """On a padded batch; transformers is told the positions, the loss is written out as the original has it."""
    batch = model.prepare(samples(), answers=True)
    model.zero_grad()
    theirs.zero_grad()
    out = model(batch)
    out.loss.backward()
    video_ff_grad = model.video_ff.weight.grad.clone()
    hidden = theirs.transformer(**embedded(model, theirs, batch)).last_hidden_state
    logits = theirs.lm_head(hidden)
    real = batch["attn_mask"]
    torch.testing.assert_close(out.logits[real], logits[real], rtol=1e-4, atol=1e-4)
    lm = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-1)
    steps = batch["video_fts"].shape[1]
    errors = F.mse_loss(
        model.video_ff_out(hidden[:, : steps - 1]), batch["video_fts"][:, 1:], reduction="none"
    )
    video = errors[real[:, 1:steps]].mean()
    torch.testing.assert_close(out.loss_lm, lm, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss_video, video, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.loss, lm + video, rtol=1e-5, atol=1e-5)
    model.video_ff.zero_grad()
    (lm + video).backward()
    same_gradients(model.transformer, theirs)
    torch.testing.assert_close(model.video_ff.weight.grad, video_ff_grad, rtol=1e-3, atol=1e-5)


def test_a_single_dialogue_equals_the_original(model, theirs):
    """Without padding: default positions, and the mean over all of the video."""
    batch = model.prepare(samples([2]), answers=True)
    arguments = embedded(model, theirs, batch)
    del arguments["position_ids"]
    with torch.no_grad():
        out = model(batch)
        hidden = theirs.transformer(**arguments).last_hidden_state
        logits = theirs.lm_head(hidden)
        lm = F.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], ignore_index=-1)
        steps = batch["video_fts"].shape[1]
        video = F.mse_loss(model.video_ff_out(hidden[:, :steps])[:, :-1], batch["video_fts"][:, 1:])
    torch.testing.assert_close(out.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.loss, lm + video, rtol=1e-5, atol=1e-5)


def test_greedy_ids_equal_transformers(model, theirs):
    """Of GPT-2 itself, without video and types, on prompts with padding before them."""
    torch.manual_seed(4)
    ids = torch.randint(1, 290, (4, 7))
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[1, :3] = mask[3, :1] = False
    wanted = theirs.generate(
        ids, attention_mask=mask.long(), do_sample=False, num_beams=1, max_new_tokens=12, eos_token_id=5,
        pad_token_id=0,
    )[:, 7:]  # fmt: skip
    with torch.no_grad():
        prompt = model.transformer.embed(ids)
        decoding = Decoding(model.transformer, model.lm_head, prompt, mask, None, 12)
        options = generation.GenerationOptions(num_beams=1, max_length=13, min_length=1)
        found = generation.generate(decoding, ids[:, -1:], options, end=5, pad=0).ids[:, 1:]
    assert torch.equal(found, wanted)


def plain_search(model, theirs, batch, beams, most, least):
    """Beam search for one dialogue, with transformers' model, all of the sequence read at every step."""
    end, kind = model.tokenizer.eos_id, model.tokenizer.id("<speaker2>")

    def following(written):
        given = embedded(model, theirs, batch)
        n = len(written)
        if n:
            words = theirs.transformer.wte(torch.tensor([written]))
            given["inputs_embeds"] = torch.cat([given["inputs_embeds"], words], dim=1)
            types = torch.full((1, n), kind)
            given["token_type_ids"] = torch.cat([given["token_type_ids"], types], dim=1)
        del given["attention_mask"], given["position_ids"]
        logprobs = theirs.lm_head(theirs.transformer(**given).last_hidden_state[0, -1]).log_softmax(-1)
        if n < least:
            logprobs[end] = -torch.inf
        return logprobs

    running, finished = [(0.0, [])], []
    for length in range(most):
        grown = [
            (total + float(p), [*written, token])
            for total, written in running
            for token, p in enumerate(following(written).tolist())
        ]
        grown = sorted(grown, key=lambda item: item[0], reverse=True)[: 2 * beams]
        finished += [(t / (length + 1), w[:-1]) for t, w in grown[:beams] if w[-1] == end]
        finished = sorted(finished, reverse=True)[:beams]
        running = [(t, w) for t, w in grown if w[-1] != end][:beams]
        if len(finished) == beams and finished[-1][0] >= grown[0][0] / (length + 1):
            break
    else:
        finished += [(t / (most + 1), w) for t, w in running]
    return max(finished)


@pytest.mark.parametrize(("beams", "least"), [(1, 0), (3, 0), (5, 4)])
def test_beams_equal_a_plain_search(model, theirs, beams, least):
    given = samples(answers=False)
    if beams == 1:
        wanted = []
        for i in range(3):
            batch = model.prepare(samples([i], answers=False), answers=False)
            with torch.no_grad():
                wanted.append(
                    model.tokenizer.decode(
                        plain_search(model, theirs, batch, 1, 7, least)[1], skip_special_tokens=True
                    )
                )
        assert model.generate(given, num_beams=1, max_length=7, min_length=least) == wanted
        return
    found = model.generate(given, num_beams=beams, max_length=7, min_length=least, return_scores=True)
    for i in range(3):
        batch = model.prepare(samples([i], answers=False), answers=False)
        with torch.no_grad():
            score, written = plain_search(model, theirs, batch, beams, 7, least)
        assert found.texts[i] == model.tokenizer.decode(written, skip_special_tokens=True)
        assert found.scores[i] == pytest.approx(score, abs=1e-4)


def test_as_many_beams_as_tokens_find_the_best_of_all_answers(model, theirs):
    """Two tokens at most: every answer is judged without a search."""
    size, end = CONFIG.len_tokenizer, model.tokenizer.eos_id
    batch = model.prepare(samples([1], answers=False), answers=False)
    found = model.generate(batch, num_beams=size, max_length=2, min_length=0, return_scores=True)
    with torch.no_grad():
        given = embedded(model, theirs, batch)
        del given["attention_mask"], given["position_ids"]
        first = theirs.lm_head(theirs.transformer(**given).last_hidden_state[0, -1]).log_softmax(-1)
        words = theirs.transformer.wte(torch.arange(size))[:, None]
        given["inputs_embeds"] = torch.cat([given["inputs_embeds"].expand(size, -1, -1), words], dim=1)
        types = given["token_type_ids"].expand(size, -1)
        given["token_type_ids"] = F.pad(types, (0, 1), value=model.tokenizer.id("<speaker2>"))
        second = theirs.lm_head(theirs.transformer(**given).last_hidden_state[:, -1]).log_softmax(-1)
    both = first[:, None] + second
    scores = both / 3
    scores[:, end] = both[:, end] / 2
    scores[end] = first[end]
    best = int(scores.argmax())
    assert found.scores[0] == pytest.approx(float(scores.max()), abs=1e-5)
    assert found.texts[0] == model.tokenizer.decode([best // size, best % size], skip_special_tokens=True)


# ------------------------------------------------------------------------------ caches and batches
def test_cached_equals_uncached(model):
    """Also after rows were exchanged, with padding before, between and after."""
    torch.manual_seed(5)
    x = torch.randn(3, 9, 32)
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[0, 3:5] = mask[1, :2] = mask[2, 6:] = False
    written = torch.randint(0, 290, (3, 4))
    order = torch.tensor([2, 0, 1, 1])
    with torch.no_grad():
        decoding = Decoding(model.transformer, model.lm_head, x, mask, 7, 6)
        found = [decoding.step(written[:, :1])[order]]
        decoding.select(order)
        found += [decoding.step(written[order, i : i + 1]) for i in range(2)]
        decoding.select(torch.tensor([1, 0, 3, 2]))
        order = order[torch.tensor([1, 0, 3, 2])]
        found += [decoding.step(written[order, 2:])]
        whole = torch.cat([x, model.transformer.embed(written, torch.full_like(written, 7))], dim=1)[order]
        seen = torch.cat([mask, torch.ones(3, 4, dtype=torch.bool)], dim=1)[order]
        states = model.transformer(whole, mask=seen)
        logits = model.lm_head(states)
    last = [4, 0, 0, 0]
    first = [torch.arange(9)[m].max() for m in mask]
    before = torch.tensor([2, 0, 1, 1])
    at_prompt = model.lm_head(model.transformer(x, mask=mask))
    for row, old in enumerate(before.tolist()):
        torch.testing.assert_close(found[0][row], at_prompt[old, first[old]], rtol=1e-4, atol=1e-5)
    for step in (1, 2):
        for row, old in enumerate(before.tolist()):
            place = order.tolist().index(old)
            torch.testing.assert_close(found[step][row], logits[place, 8 + step], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[3], logits[:, -1], rtol=1e-4, atol=1e-5)
    assert last[0] == written.shape[1]


def test_padding_changes_nothing(model):
    whole = model.prepare(samples(), answers=True)
    with torch.no_grad():
        out = model(whole)
        counts, losses = 0, 0.0
        for i in range(3):
            single = model.prepare(samples([i]), answers=True)
            alone = model(single)
            torch.testing.assert_close(
                out.logits[i][whole["attn_mask"][i]], alone.logits[0], rtol=1e-4, atol=1e-4
            )
            n = int((single["labels"] >= 0).sum())
            counts, losses = counts + n, losses + n * alone.loss_lm
        torch.testing.assert_close(out.loss_lm, losses / counts, rtol=1e-5, atol=1e-5)
        # what stands in padding does not matter
        other = {k: v.clone() for k, v in whole.items()}
        steps = other["video_fts"].shape[1]
        other["video_fts"][~whole["attn_mask"][:, :steps]] = 1e3
        other["input_ids"][~whole["attn_mask"][:, steps:]] = 9
        other["token_type_ids"][~whole["attn_mask"]] = 11
        again = model(other)
    torch.testing.assert_close(again.loss, out.loss, rtol=1e-6, atol=1e-6)
    real = whole["attn_mask"]
    torch.testing.assert_close(again.logits[real], out.logits[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "how", [{"num_beams": 1}, {"num_beams": 4}, {"use_nucleus_sampling": True, "seed": [3, 3, 4]}]
)
def test_answers_of_a_batch_are_those_of_single_dialogues(model, how):
    arguments = {"max_length": 9, "min_length": 2, **how}
    batch = model.generate(samples(answers=False), **arguments)
    for i in range(3):
        own = {**arguments, **({"seed": how["seed"][i]} if "seed" in how else {})}
        assert batch[i] == model.generate(samples([i], answers=False), **own)[0]
    # ids give the same, and answers in them are not read
    assert batch == model.generate(model.prepare(samples(), answers=True), **arguments)
    assert batch == model.generate(model.prepare(samples(), answers=False), **arguments)


@pytest.mark.parametrize("beams", [1, 3])
def test_lengths_of_answers(model, monkeypatch, beams):
    """Bounds count the answer's tokens, whatever the length of the question."""
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids, skip_special_tokens: ids)
    end, pad = model.tokenizer.eos_id, model.tokenizer.pad_id
    bias = torch.zeros(CONFIG.len_tokenizer)
    bias[end] = 1e3  # ends as soon as it may
    monkeypatch.setattr(Decoding, "_logits", lambda self, states: self.head(states) + bias)
    for row in model.generate(samples(), num_beams=beams, max_length=6, min_length=4):
        assert row.index(end, 1) == 5 and set(row[6:]) <= {pad}
    bias[end] = -1e3  # never ends
    for row in model.generate(samples(), num_beams=beams, max_length=6, min_length=4):
        assert len(row) == 7 and end not in row[1:]


def test_rounds_of_one_video_are_as_single_questions(model):
    given = samples([0])
    rounds = {
        **given,
        "caption": given["caption"],
        "text_input": ["is it big?", "what is it?"],
        "dialog": [[], [("is it big?", "no")]],
        "answer": ["no", "a star"],
    }
    repeated = {**rounds, "video": given["video"] * 2, "caption": given["caption"] * 2}
    one, two = (model.prepare(s, answers=True) for s in (rounds, repeated))
    assert all(torch.equal(one[key], two[key]) for key in two)
    with torch.no_grad():
        assert torch.equal(model(rounds).loss, model(two).loss)


def test_the_answer_depends_on_the_video(model):
    given = samples()
    other = {**given, "video": [v + 1 for v in given["video"]]}
    with torch.no_grad():
        assert (model(given).loss_lm - model(other).loss_lm).abs() > 1e-3


def test_dropout_only_in_training(model):
    config = dataclasses.replace(GPT_SIZES, dropout=0.5, attention_dropout=0.5)
    wet = GPTDialogue.build(dataclasses.replace(CONFIG, transformer=config))
    batch = wet.prepare(samples(), answers=True)
    with torch.no_grad():
        assert wet.train()(batch).loss_lm != wet(batch).loss_lm
        wet.eval()
        assert torch.equal(wet(batch).loss, wet(batch).loss)
    wet.train()
    assert wet.generate(batch, num_beams=1) == wet.generate(batch, num_beams=1) and wet.training


# ---------------------------------------------------------------------------------------- weights
def test_starting_from_gpt2_adds_tokens(tmp_path):
    """Files of GPT2Model have no prefix and hold causal masks, as the published one."""
    source = peer(CONFIG.len_tokenizer - GROWN, seed=8)
    state = {k.removeprefix("transformer."): v for k, v in source.transformer.state_dict().items()}
    state |= {f"h.{i}.attn.bias": torch.ones(1, 1, 200, 200) for i in range(3)}
    torch.save(state, tmp_path / "gpt2.bin")
    cfg = {"model_type": "tiny", "weights": "none", **config_like(CONFIG)}
    model = GPTDialogue.from_config({**cfg, "init": {"transformer": str(tmp_path / "gpt2.bin")}}).eval()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert 0 < model.lm_head.weight[-GROWN:].std() < 0.05
    ids = torch.randint(0, CONFIG.len_tokenizer - GROWN, (2, 11))
    with torch.no_grad():
        ours = model.lm_head(model.transformer(model.transformer.embed(ids)))
        torch.testing.assert_close(ours[..., :-GROWN], source(ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"model\.init\.video_ff: .* can start transformer"):
        GPTDialogue.from_config({**cfg, "init": {"video_ff": "gpt2"}})
    small = {
        **cfg,
        "len_tokenizer": CONFIG.len_tokenizer - 8,
        "init": {"transformer": str(tmp_path / "gpt2.bin")},
    }
    with pytest.raises(ValueError, match="of another shape"):
        GPTDialogue.from_config(small)


def test_a_checkpoint_of_the_original_loads(model, theirs, tmp_path):
    state = dict(theirs.state_dict())
    state |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 200, 200) for i in range(3)}
    state |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    state |= {k: v for k, v in model.state_dict().items() if k.startswith("video_")}
    torch.save({"model": state}, tmp_path / "checkpoint.pth")
    loaded = GPTDialogue.from_file(CONFIG, tmp_path / "checkpoint.pth").eval()
    with torch.no_grad():
        assert torch.equal(loaded(samples()).logits, model(samples()).logits)
    # GPT-2 alone is something to start from, not a model that answers
    theirs.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match=r"missing: video_ff\.weight"):
        GPTDialogue.from_file(CONFIG, tmp_path / "gpt2")


def test_saving_and_loading(model, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    loaded = load_model(str(tmp_path / "saved"), is_eval=True)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert loaded.tokenizer.vocabulary == tmp_path / "saved" / "vocab.txt"
    with torch.no_grad():
        assert torch.equal(loaded(samples()).logits, model(samples()).logits)
    assert loaded.generate(samples(), max_length=6) == model.generate(samples(), max_length=6)


@pytest.mark.slow
def test_base_reads_a_dialogue():
    model = load_model("gpt_dialogue", "base", is_eval=True)
    assert model.show_n_params(return_str=False) == 124_439_808 + 7 * 768 + (2 * 4224 * 768 + 768 + 4224)
    given = {**samples([0]), "video": torch.randn(1, 6, 4224)}
    with torch.no_grad():
        out = model(given)
    assert out.logits.shape[-1] == 50264 and bool(out.loss.isfinite())
    assert abs(float(out.loss_lm) - np.log(50264)) < 1


# ------------------------------------------------------------------------------------- processors
def test_the_sequence_of_a_dialogue():
    processor = load_processor("gpt_dialogue", {"len_tokenizer": 300})
    tokens = processor.tokenizer
    record = {
        "caption": "a star",
        "summary": "it moves",
        "dialog": [
            {"question": q, "answer": a} for q, a in (("a?", "b"), ("c?", "d"), ("e?", "f"), ("g?", "h"))
        ],
        "question": "why?",
        "answer": "so",
    }
    texts = ["a star it moves", "c?", "d", "e?", "f", "g?", "h", "why?", "so"]
    kinds = ["<cap>", *["<speaker1>", "<speaker2>"] * 4]
    pieces = [[*tokens.encode(t), tokens.id("<eos>")] for t in texts]
    out = processor(record)
    assert out["input_ids"].tolist() == [i for p in pieces for i in p]
    assert out["token_type_ids"].tolist() == [tokens.id(k) for k, p in zip(kinds, pieces) for _ in p]
    n = len(pieces[-1])
    assert out["labels"].tolist() == [-1] * (len(out["input_ids"]) - n) + pieces[-1]
    # pairs are rounds, too; what is to be answered has no answer
    pairs = {**record, "dialog": [(t["question"], t["answer"]) for t in record["dialog"]]}
    asked = processor({k: v for k, v in pairs.items() if k != "answer"})
    assert asked["input_ids"].tolist() == out["input_ids"].tolist()[:-n]
    assert set(asked["labels"].tolist()) == {-1}
    short = load_processor("gpt_dialogue", {"len_tokenizer": 300, "max_turns": 0, "use_caption": False})(
        record
    )
    wanted = [[tokens.id("<eos>")], pieces[-2], pieces[-1]]
    assert short["input_ids"].tolist() == [i for p in wanted for i in p]
    assert processor(" is it? ") == "is it?"


def test_batches_of_the_dialogue_processor():
    processor = load_processor("gpt_dialogue", {"len_tokenizer": 300})
    records = [
        {"question": "a?", "dialog": [], "answer": "b"},
        {"question": "c and d?", "dialog": [], "answer": "e"},
    ]
    rows = [processor(r) for r in records]
    batch = processor.collate(rows, [torch.ones(3, 2), torch.ones(1, 2)])
    lengths = [len(r["input_ids"]) for r in rows]
    assert batch["video_fts"].shape == (2, 3, 2)
    shown = [[True] * 3, [True, False, False]]
    assert batch["attn_mask"].tolist() == [
        [*shown[i], *[True] * n, *[False] * (max(lengths) - n)] for i, n in enumerate(lengths)
    ]
    assert batch["token_type_ids"][:, :3].eq(processor.tokenizer.id("<video>")).all()
    assert batch["labels"][:, :3].eq(-1).all()
    assert batch["labels"][0, -(max(lengths) - lengths[0]) :].eq(-1).all()
    assert torch.equal(processor.get_attention_mask(batch["input_ids"]), batch["attn_mask"][:, 3:])
    assert processor.padding([torch.ones(2), torch.ones(3)], 0.5).tolist() == [[1, 1, 0.5], [1, 1, 1]]


def test_features_of_files(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"i3d_rgb": rng.random((7, 4)), "i3d_flow": rng.random((6, 4)), "vggish": rng.random((8, 2))}
    for kind, array in arrays.items():
        (tmp_path / kind).mkdir()
        np.save(tmp_path / kind / "AB.CD.npy", array)
    processor = load_processor("gpt_video_ft")
    found = processor(tmp_path / "AB.CD")
    wanted = np.concatenate([a[:6] for a in arrays.values()], axis=1).astype(np.float32)
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), wanted)
    only = load_processor("gpt_video_ft", {"visual_ft": ["i3d_flow"], "audio_ft": []})
    assert np.array_equal(only(str(tmp_path / "AB.CD")).numpy(), arrays["i3d_flow"].astype(np.float32))
    with pytest.raises(FileNotFoundError, match=r"i3d_rgb.XY\.npy"):
        processor(tmp_path / "XY")
    with pytest.raises(TypeError, match="gpt_frame_ft"):
        processor(np.zeros((2, 4, 4, 3), np.uint8))
    np.save(tmp_path / "vggish" / "AB.CD.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"vggish.AB\.CD\.npy should hold numbers \(time steps, width\)"):
        processor(tmp_path / "AB.CD")
    (tmp_path / "vggish" / "AB.CD.npy").write_bytes(b"not an array")
    with pytest.raises(ValueError, match="damaged"):
        processor(tmp_path / "AB.CD")
    np.save(tmp_path / "vggish" / "AB.CD.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="damaged"):
        processor(tmp_path / "AB.CD")
    for bad in ({"visual_ft": "i3d_rgb"}, {"visual_ft": [], "audio_ft": []}):
        with pytest.raises(ValueError, match="visual_ft"):
            load_processor("gpt_video_ft", bad)


def test_features_of_frames():
    frames = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    found = load_processor("gpt_frame_ft", {"grid": 4})(frames)
    means = frames.reshape(6, 4, 8, 4, 8, 3).mean((2, 4)).reshape(6, -1) / 127.5 - 1
    assert found.shape == (6, 48) and np.abs(found.numpy() - means).max() <= 1 / 127.5
    some = load_processor("gpt_frame_ft", {"grid": 4, "n_frms": 3})(frames)
    assert torch.equal(some, found[::2])
    with pytest.raises(ValueError, match="grid is 0"):
        load_processor("gpt_frame_ft", {"grid": 0})


def test_processors_follow_the_model(model):
    text = model.preprocess_config()["text_processor"]["eval"]
    assert text == {
        "name": "gpt_dialogue", "max_turns": 3, "use_caption": True, "len_tokenizer": 300, "vocabulary": "gpt2",
    }  # fmt: skip
    assert "len_tokenizer" not in GPTDialogue.PRESETS["tiny"].text_processor["eval"]


# ------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": torch.zeros(3, 4, 11)}, r"shape \(4, 11\); this model reads features \(time steps, 12\)"),
        ({"video": torch.zeros(3, 3, 4, 8, 8)}, "this model reads features"),
        ({"video": torch.zeros(3, 0, 12)}, "at least one step"),
        ({"video": []}, "is empty"),
        ({"video": None}, "samples need 'video' or 'video_fts'"),
        ({"dialog": None}, "samples need dialog"),
        ({"answer": None}, "samples need answer"),
        ({"caption": None}, "samples need caption"),
        ({"dialog": [[], []]}, "there are 3 questions, but 2 entries of 'dialog'"),
        ({"answer": ["yes"]}, "there are 3 questions, but 1 entries of 'answer'"),
        ({"caption": ["one", "two"]}, "there are 3 questions, but 2 entries of 'caption'"),
        ({"text_input": ["a?", "b?"]}, "there are 2 questions for 3 videos"),
        ({"dialog": [[("a",)], [], []]}, "a round of a dialogue should be a question and an answer"),
        ({"caption": ["word " * 300, "", ""]}, r"a sequence has \d+ tokens .* has positions for 200"),
    ],
)
def test_bad_samples_are_refused(model, change, message):
    given = {k: v for k, v in {**samples(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        model(given)


def test_bad_ids_are_refused(model):
    batch = model.prepare(samples(), answers=True)
    with pytest.raises(ValueError, match="need labels, too"):
        model({k: v for k, v in batch.items() if k != "labels"})
    with pytest.raises(ValueError, match=r"'attn_mask' has shape \(3, \d+\); video and text make"):
        model({**batch, "attn_mask": batch["attn_mask"][:, 1:]})
    with pytest.raises(ValueError, match="raise it"):
        model.generate(samples(), max_length=0, min_length=0)
    with pytest.raises(ValueError, match="has positions for 200"):
        model.generate(samples(), max_length=190)
    with pytest.raises(ValueError, match="question, and the rounds"):
        model.processor({"question": "a?"})
    with pytest.raises(ValueError, match="max_turns is -1"):
        load_processor("gpt_dialogue", {"max_turns": -1})
    with pytest.raises(ValueError, match="width 30 cannot be shared"):
        GPTConfig(width=30, heads=4)


def test_positions_are_counted_without_padding():
    """A row with as many tokens as positions is read, however long its batch is."""
    config = dataclasses.replace(GPT_SIZES, max_positions=6)
    torch.manual_seed(0)
    gpt, head = GPT(config, 10), torch.nn.Linear(32, 10, bias=False)
    x = torch.randn(2, 9, 32)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 2:5] = mask[1, 6:] = False
    with torch.no_grad():
        states = gpt(x, mask=mask)
        alone = gpt(x[:1, [0, 1, 5, 6, 7, 8]])
        torch.testing.assert_close(states[:1, [0, 1, 5, 6, 7, 8]], alone, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match="has 7 tokens"):
            Decoding(gpt, head, x, mask, None, 1)
        with pytest.raises(ValueError, match="has 9 tokens"):
            gpt(x)
