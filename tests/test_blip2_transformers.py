"""BLIP-2 and InstructBLIP against transformers' classes: tiny random weights, read from folders as it saves them."""

from __future__ import annotations

import random
import resource
import time
from dataclasses import replace

import pytest
import torch

from lavis.models import Part, blip2_language, load_model
from lavis.models.blip2_language import Blip2OPT
from lavis.models.checkpoints import load_into
from lavis.models.languages import KNOWN
from lavis.models.parts import settle
from lavis.models.tokenizer import Tokens
from lavis.nn.causal_lm import CausalDecoding
from tests.helpers.blip2_reference import images
from tests.reference import recipe

transformers = pytest.importorskip("transformers")
from tests.helpers import blip2_transformers as folders  # noqa: E402

WRITERS = [name for name in folders.KINDS if name != "blip2_image_text_matching"]
PROMPTS = ["what is it?", "is the dog in the field red or is it blue? answer:"]
TARGETS = ["a red dog", "blue"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    made = {}

    def of(name: str):
        if name not in made:
            theirs = folders.peer(name)
            folder = folders.save(theirs, name, tmp_path_factory.mktemp(name))
            made[name] = load_model(str(folder), is_eval=True), theirs
            assert made[name][0].registered_name == name
        return made[name]

    return of


def inputs(model, theirs, texts, side="left"):
    """What transformers' class takes of images and texts: padding is between the image and the text ("left") or at the
    end."""
    tokens = model._padded(model._rows(texts), side)
    image = torch.full((len(texts), folders.QUERIES), theirs.config.image_token_index)
    found = {
        "pixel_values": images(len(texts)),
        "input_ids": torch.cat([image, tokens.ids], dim=1),
        "attention_mask": torch.cat([torch.ones_like(image), tokens.mask.long()], dim=1),
    }
    if model.INSTRUCT:
        read = model.instruction(texts)
        found |= {"qformer_input_ids": read.ids, "qformer_attention_mask": read.mask.long()}
    return found


@torch.no_grad()
@pytest.mark.parametrize("name", folders.KINDS)
def test_states_of_images(pair, name):
    model, theirs = pair(name)
    states = theirs.vision_model(pixel_values=images())[0]
    torch.testing.assert_close(model.encode_image(images()), states, **CLOSE)
    if model.registered_name in WRITERS and model.INSTRUCT:
        read = model.instruction(PROMPTS)
        wanted = theirs.get_image_features(images(), read.ids, read.mask.long())
        assert not read.mask.all()
        torch.testing.assert_close(model.prefix(images(), read), wanted.pooler_output, **CLOSE)
        return
    wanted = theirs.qformer(theirs.query_tokens.expand(2, -1, -1), encoder_hidden_states=states)[0]
    memory = model.Qformer.bert.project_memory(model.encode_image(images()))
    torch.testing.assert_close(model.Qformer.bert(queries=model.query_tokens, memory=memory), wanted, **CLOSE)
    if name in WRITERS:
        torch.testing.assert_close(model.prefix(images()), theirs.language_projection(wanted), **CLOSE)


@torch.no_grad()
def test_matching(pair):
    model, theirs = pair("blip2_image_text_matching")
    texts = ["a dog", "two trees in a large green field"]
    tokens = model.tokens(texts)
    assert not tokens.mask.all()
    samples = {"image": images(), "text_input": texts}
    given = {"pixel_values": images(), "input_ids": tokens.ids, "attention_mask": tokens.mask.long()}
    wanted = theirs(**given, use_image_text_matching_head=True).logits_per_image
    torch.testing.assert_close(model(samples), wanted, **CLOSE)
    out = theirs(**given)
    torch.testing.assert_close(
        model(samples, match_head="itc", all_pairs=True), out.logits_per_image, **CLOSE
    )
    features = [model.extract_features(samples, mode) for mode in ("image", "text")]
    torch.testing.assert_close(features[0].image_embeds_proj, out.image_embeds, **CLOSE)
    torch.testing.assert_close(features[1].text_embeds_proj[:, 0], out.text_embeds, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["blip2_opt", "blip2_vicuna_instruct"])
def test_logits_and_loss_of_a_decoder(pair, name):
    model, theirs = pair(name)
    pairs = [f"{read} {written}" for read, written in zip(PROMPTS, TARGETS)]
    if name == "blip2_opt":
        rows = model._rows([text + "\n" for text in pairs])
        loss = model({"image": images(), "text_input": pairs}).loss
        silent = [0, 0]
    else:
        instructions = model._rows(PROMPTS)
        rows = [
            [*a, *b[1:], theirs.config.text_config.eos_token_id]
            for a, b in zip(instructions, model._rows(TARGETS))
        ]
        loss = model({"image": images(), "text_input": PROMPTS, "text_output": TARGETS}).loss
        silent = list(map(len, instructions))
    tokens = model._padded(rows)
    given = inputs(model, theirs, PROMPTS, "right")
    image = given["input_ids"][:, : folders.QUERIES]
    given["input_ids"] = torch.cat([image, tokens.ids], dim=1)
    given["attention_mask"] = torch.cat([torch.ones_like(image), tokens.mask.long()], dim=1)
    labels = tokens.ids.masked_fill(~tokens.mask, -100)
    for row, count in zip(labels, silent):
        row[:count] = -100
    labels = torch.cat([torch.full_like(image, -100), labels], dim=1)
    out = theirs(**given, labels=labels)
    instruction = model.instruction(PROMPTS)
    embeds, mask = model._embedded(model.prefix(images(), instruction), tokens)
    positions = blip2_language.positions(mask)
    logits = model.language(inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions).logits
    torch.testing.assert_close(logits[mask], out.logits[mask], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loss, out.loss, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["blip2_t5", "blip2_t5_instruct"])
def test_loss_of_an_encoder_decoder(pair, name):
    model, theirs = pair(name)
    samples = {"image": images(), "text_input": PROMPTS, "text_output": TARGETS}
    written = model._padded(model._rows(TARGETS))
    out = theirs(
        **inputs(model, theirs, PROMPTS, "right"), labels=written.ids.masked_fill(~written.mask, -100)
    )
    torch.testing.assert_close(model(samples).loss, out.loss, rtol=1e-5, atol=1e-5)


def scored(model, monkeypatch, samples, **options):
    """Ids that `generate` decodes, without starts and ends, and their log-probabilities."""
    start, end, _ = model.special_ids()
    with monkeypatch.context() as patch:
        patch.setattr(blip2_language, "texts_of_ids", lambda _, rows: [list(map(int, row)) for row in rows])
        out = model.generate(samples, repetition_penalty=1.0, return_scores=True, **options)
    return [cut(row, start, end) for row in out.texts], torch.as_tensor(out.logprobs)


def written_ids(model, monkeypatch, samples, **options):
    """The ids that `generate` decodes."""
    return scored(model, monkeypatch, samples, **options)[0]


def ids_of_theirs(model, theirs, given, **options):
    start, end, pad = model.special_ids()
    found = theirs.generate(**given, do_sample=False, eos_token_id=end, pad_token_id=pad, **options)
    if not model.ENCODES:  # they come after the prompt
        found = found[:, given["input_ids"].shape[1] :]
    return [cut(row, start if model.ENCODES else None, end) for row in found.tolist()]


def cut(row, start, end):
    """A text without its start, its end and what follows."""
    row = row if start is None else row[1:]
    return row[: row.index(end)] if end in row else row


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("beams", "penalty"), [(1, 1.0), (5, 0.0), (5, 1.0), (5, -1.0)])
def test_written_ids(pair, monkeypatch, name, beams, penalty):
    model, theirs = pair(name)
    # As in the original, lengths of a decoder-only model's texts count the start token, which transformers 5 leaves out
    # of a text's score: there, texts of different lengths are compared without a length penalty only.
    least = 2 if model.ENCODES or not penalty or beams == 1 else 9
    found, wanted = [], []
    for contrast in (1.0, 0.6, 0.2, -0.2):
        for text in PROMPTS:
            media = images(2) * contrast
            given = inputs(model, theirs, [text] * 2) | {"pixel_values": media}
            options = {"num_beams": beams, "max_new_tokens": 9, "length_penalty": penalty}
            wanted += ids_of_theirs(model, theirs, given, min_new_tokens=least, **options)
            samples = {"image": media, "prompt": text}
            found += written_ids(model, monkeypatch, samples, min_length=least + 1, **options)
    assert found == wanted
    assert len({tuple(row) for row in wanted}) > 4


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("seed", range(2))
def test_a_batch_of_prompts_of_unequal_length_is_its_single_prompts(pair, monkeypatch, name, beams, seed):
    model, _ = pair(name)
    chosen = random.Random(seed)
    words = [*"a dog in the field is red or blue what colour does it have".split(), "answer :", "?"]  # noqa: SIM905
    prompts = [" ".join(chosen.choices(words, k=k)) for k in chosen.sample(range(1, 15), 5)]
    media = torch.cat([images(3), images(2) * 0.5])
    options = {"num_beams": beams, "max_new_tokens": 8}
    texts, logprobs = scored(model, monkeypatch, {"image": media, "prompt": prompts}, **options)
    for i, prompt in enumerate(prompts):
        samples = {"image": media[i : i + 1], "prompt": prompt}
        own, alone = scored(model, monkeypatch, samples, **options)
        assert texts[i] == own[0]
        torch.testing.assert_close(logprobs[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_what_transformers_makes_of_a_ragged_batch(pair, monkeypatch):
    """Its processors pad as the folder's tokenizer says, on the right: a decoder-only model then goes on after padding,
    and its answer in a batch is another one. On the left it is what ours is."""
    model, theirs = pair("blip2_opt")
    options = {"num_beams": 1, "max_new_tokens": 9}
    alone = [ids_of_theirs(model, theirs, inputs(model, theirs, [text]), **options)[0] for text in PROMPTS]
    media = images(1).repeat(2, 1, 1, 1)
    batches = {
        side: ids_of_theirs(
            model, theirs, inputs(model, theirs, PROMPTS, side) | {"pixel_values": media}, **options
        )
        for side in ("left", "right")
    }
    samples = {"image": media, "prompt": PROMPTS}
    assert written_ids(model, monkeypatch, samples, min_length=0, **options) == batches["left"] == alone
    assert batches["right"][0] != alone[0] and batches["right"][1] == alone[1]


def shared_tensors(meta, seed: int = 0):
    """Random tensors for a model of transformers on the meta device: bfloat16, the Q-Former float32 as it is there."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for key, parameter in meta.named_parameters():
        exact = key.startswith(("qformer.", "query_tokens"))
        tensor = torch.empty(parameter.shape, dtype=torch.float32 if exact else torch.bfloat16)
        if tensor.ndim > 1:
            tensor.normal_(std=0.02, generator=generator)
        else:
            tensor.fill_(float(key.endswith("weight")))
        found[key] = tensor
    # words of different lengths, so that what is likely is far from what is not
    words = found["language_model.model.decoder.embed_tokens.weight"]
    words *= torch.empty(len(words), 1).normal_(std=0.7, generator=generator).exp().to(words.dtype)
    return found


@pytest.mark.slow
@torch.no_grad()
def test_full_size_in_bfloat16(capsys):
    """ViT-g and OPT-2.7b's shape, one set of tensors in both models."""
    before = peak_gb()
    description = dict(KNOWN["facebook/opt-2.7b"])
    configured = transformers.Blip2Config(text_config=description, image_token_index=50265)
    with torch.device("meta"):
        theirs = transformers.Blip2ForConditionalGeneration(configured)
    tensors = shared_tensors(theirs)
    tied = {"language_model.lm_head.weight": tensors["language_model.model.decoder.embed_tokens.weight"]}
    theirs.load_state_dict(tensors | tied, assign=True)
    theirs.eval()
    config = replace(Blip2OPT.preset("pretrain_opt2.7b").config, language=description)
    model = Blip2OPT.build(config, empty=True)
    half = Part(dtype="bfloat16", frozen=True)
    settle(model, {"visual_encoder": half, "opt_model": half})
    load_into(model, tensors | tied, Blip2OPT.FOREIGN_RULES[0], "transformers")
    model.eval()
    assert model.visual_encoder.blocks[38].mlp.fc1.weight.data_ptr() == (
        theirs.vision_model.encoder.layers[38].mlp.fc1.weight.data_ptr()
    )
    assert model.language.lm_head.weight.data_ptr() == theirs.language_model.lm_head.weight.data_ptr()
    media = recipe.make_images(3, 224, 1)
    ids = torch.tensor([[2, 102, 1345, 9, 10, 2335, 11, 5, 882, 35]])
    image = torch.full((1, 32), 50265)
    given = {"pixel_values": media, "input_ids": torch.cat([image, ids], dim=1)}
    ours, peer = [], []
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        prefix = model.prefix(media)
        embeds, mask = model._embedded(prefix, Tokens(ids, torch.ones_like(ids).bool()))
        first = CausalDecoding(model.language, embeds, mask).step(ids)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        out = theirs(**given, use_cache=True, logits_to_keep=1)
        peer.append(time.perf_counter() - start)
    states, features = model.encode_image(media), theirs.get_image_features(media).pooler_output
    for found, wanted in (
        (states, out.vision_outputs[0]),
        (prefix, features),
        (first, out.logits[:, -1]),
    ):
        error = (found.float() - wanted.float()).abs().max() / wanted.float().abs().max()
        with capsys.disabled():
            print(f"\nlargest difference {error:.2e} of the peak")
        assert error < 2e-2
    assert torch.equal(first.topk(5).indices, out.logits[:, -1].float().topk(5).indices)
    with capsys.disabled():
        print(
            f"image and prompt read in {ours[1]:.1f} s, by transformers in {peer[1]:.1f} s (first {ours[0]:.1f} and "
            f"{peer[0]:.1f} s); peak memory {peak_gb():.1f} GB, {before:.1f} before"
        )


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
