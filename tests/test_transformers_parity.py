"""Tiny random models equal transformers' BLIP: values, gradients, generated texts."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from torch.nn.functional import normalize

from lavis.models.blip import BlipCaption, BlipConfig
from lavis.models.blip_matching import BlipFeatureExtractor, BlipITM, BlipMatchingConfig
from lavis.models.blip_vqa import BlipVQA
from lavis.models.checkpoints import TRANSFORMERS_BLIP, load_into
from lavis.nn.text import TextConfig
from lavis.nn.vit import ViTConfig
from tests.small import images

transformers = pytest.importorskip("transformers")

CONFIG = BlipConfig(
    image_size=64,
    vit=ViTConfig(width=64, depth=3, heads=4, patch_size=16),
    text=TextConfig(
        vocab_size=1602, width=64, depth=3, heads=4, hidden=96, max_positions=64, memory_width=64,
        dropout=0.0, attention_dropout=0.0,
    ),
    vocabulary="tiny",
    cover=True,
)  # fmt: skip


def peer(kind: str, tokenizer):
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": 1602, "hidden_size": 64, "encoder_hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64,
            "label_smoothing": 0.1, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            "projection_dim": 16,
            "bos_token_id": tokenizer.id("[DEC]"), "eos_token_id": tokenizer.sep_id,
            "sep_token_id": tokenizer.sep_id, "pad_token_id": tokenizer.pad_id,
        },
        vision_config={
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 64, "patch_size": 16, "layer_norm_eps": 1e-6, "attention_dropout": 0.0,
        },
        image_text_hidden_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.eval()


def ours(cls, theirs):
    config = dataclasses.replace(CONFIG, prompt="a picture of " if cls is BlipCaption else "")
    if cls is BlipITM:
        config = BlipMatchingConfig(**{**vars(config), "max_txt_len": 35, "embed_dim": 16})
    model = cls.build(config, empty=True)
    load_into(model, dict(theirs.state_dict()), TRANSFORMERS_BLIP, "transformers")
    return model.eval()


@pytest.fixture(scope="module")
def pair():
    tokenizer = BlipCaption.build(CONFIG, empty=True).tokenizer
    theirs = peer("BlipForConditionalGeneration", tokenizer)
    return ours(BlipCaption, theirs), theirs


def same_gradients(model, theirs):
    renamed = {}
    for key, parameter in theirs.named_parameters():
        for old, new in TRANSFORMERS_BLIP.rename:
            key = re.sub(old, new, key)
        renamed[key] = parameter.grad
    checked = 0
    # a key's bias has a gradient of 0 in exact arithmetic: what is left is the rounding of the others'
    largest = max(float(gradient.abs().max()) for gradient in renamed.values() if gradient is not None)
    rounding = torch.finfo(torch.float32).eps * max(largest, 1.0)
    for key, parameter in model.named_parameters():
        if renamed.get(key) is None:
            continue
        peak = renamed[key].abs().max()
        assert (parameter.grad - renamed[key]).abs().max() <= 2e-4 * peak + rounding, key
        checked += 1
    assert checked > 0.9 * len(renamed)


def test_caption_loss_logits_and_gradients(pair):
    model, theirs = pair
    image, texts = images(2), ["a picture of a red star", "a picture of two large blue squares"]
    tokens = model.tokenizer.batch(texts)
    tokens.ids[:, 0] = model.bos_id
    labels = tokens.ids.masked_fill(~tokens.mask, -100)
    labels[:, : model.prompt_length] = -100
    model.zero_grad()
    theirs.zero_grad()
    out = model({"image": image, "text_input": texts})
    out.loss.backward()
    vision = theirs.vision_model(pixel_values=image)[0]
    peer_out = theirs.text_decoder(
        input_ids=tokens.ids, attention_mask=tokens.mask.long(), encoder_hidden_states=vision, labels=labels,
        reduction="mean",
    )  # fmt: skip
    peer_out.loss.backward()
    torch.testing.assert_close(out.loss, peer_out.loss, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(
        out.intermediate_output.decoder_output.logits, peer_out.logits, rtol=1e-3, atol=1e-4
    )
    same_gradients(model, theirs)


def test_greedy_captions(pair):
    model, theirs = pair
    image = images(3)
    prompt = torch.tensor([[model.bos_id, *model.tokenizer.encode(model.prompt)[1:-1]]] * 3)
    vision = theirs.vision_model(pixel_values=image)[0]
    ids = theirs.text_decoder.generate(
        input_ids=prompt, encoder_hidden_states=vision, max_length=20, min_length=6, num_beams=1, do_sample=False,
        eos_token_id=model.tokenizer.sep_id, pad_token_id=model.tokenizer.pad_id,
    )  # fmt: skip
    wanted = [
        model.tokenizer.decode(row, skip_special_tokens=True)[len(model.prompt) :] for row in ids.tolist()
    ]
    assert model.generate({"image": image}, num_beams=1, max_length=20, min_length=6) == wanted


def test_beam_captions_with_one_length(pair):
    # transformers divides by the length without the prompt; with every text of one length that
    # cannot change the order.
    model, theirs = pair
    image = images(3)
    prompt = torch.tensor([[model.bos_id, *model.tokenizer.encode(model.prompt)[1:-1]]] * 3)
    vision = theirs.vision_model(pixel_values=image)[0].repeat_interleave(4, dim=0)
    arguments = {"num_beams": 4, "max_length": 14, "min_length": 14}
    ids = theirs.text_decoder.generate(
        input_ids=prompt, encoder_hidden_states=vision.view(3, 4, *vision.shape[1:])[:, 0], do_sample=False,
        eos_token_id=model.tokenizer.sep_id, pad_token_id=model.tokenizer.pad_id, **arguments,
    )  # fmt: skip
    wanted = [
        model.tokenizer.decode(row, skip_special_tokens=True)[len(model.prompt) :] for row in ids.tolist()
    ]
    assert model.generate({"image": image}, **arguments) == wanted


def test_vqa_loss_and_gradients():
    tokenizer = BlipVQA.build(dataclasses.replace(CONFIG, prompt=""), empty=True).tokenizer
    theirs = peer("BlipForQuestionAnswering", tokenizer)
    model = ours(BlipVQA, theirs)
    image = images(2)
    questions, answers = ["what color is the star", "what shape is the one"], ["red", "a circle"]
    weights = torch.tensor([0.6, 1.0])
    out = model(
        {
            "image": image,
            "text_input": questions,
            "answer": answers,
            "weight": weights,
            "n_answers": torch.tensor([1, 1]),
        }
    )
    out.loss.backward()
    q = tokenizer.batch(questions)
    assert q.mask.all(), "transformers ignores the question's mask; the questions here must be of one length"
    q.ids[:, 0] = model.enc_id
    a = tokenizer.batch(answers)
    a.ids[:, 0] = model.bos_id
    vision = theirs.vision_model(pixel_values=image)[0]
    states = theirs.text_encoder(
        input_ids=q.ids, attention_mask=q.mask.long(), encoder_hidden_states=vision, return_dict=True
    ).last_hidden_state
    each = theirs.text_decoder(
        input_ids=a.ids, attention_mask=a.mask.long(), encoder_hidden_states=states,
        encoder_attention_mask=q.mask.long(), labels=a.ids.masked_fill(~a.mask, -100), reduction="none",
    ).loss  # fmt: skip
    ((weights * each).sum() / 2).backward()
    torch.testing.assert_close(out.intermediate_output.decoder_output.loss, each, rtol=1e-4, atol=1e-4)
    same_gradients(model, theirs)


def test_matching_and_contrast_and_their_gradients(tmp_path):
    tokenizer = BlipITM.build(BlipMatchingConfig(**vars(CONFIG)), empty=True).tokenizer
    theirs = peer("BlipForImageTextRetrieval", tokenizer)
    model = ours(BlipITM, theirs)
    image = images(3)
    texts = ["a red star", "a picture of two large blue squares", "a ring above a circle"]
    tokens = tokenizer.batch(texts)
    assert not tokens.mask.all(), "both should mask padding"
    results = {}
    for head in ("itm", "itc"):
        ids = tokens.ids.clone()
        if head == "itm":
            ids[:, 0] = model.enc_id
        results[head] = model({"image": image, "text_input": texts}, match_head=head)
        wanted = theirs(
            input_ids=ids, attention_mask=tokens.mask.long(), pixel_values=image, use_itm_head=head == "itm"
        ).itm_score
        torch.testing.assert_close(results[head], wanted, rtol=1e-4, atol=1e-4)
        weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
        (results[head] * weights).sum().backward()
        (wanted * weights).sum().backward()
    same_gradients(model, theirs)
    theirs.save_pretrained(tmp_path)  # a folder as it is published
    again = BlipITM.from_file(model.config, tmp_path).eval()
    torch.testing.assert_close(
        again({"image": image, "text_input": texts}), results["itm"], rtol=1e-5, atol=1e-5
    )


def test_another_number_of_heads_is_refused(tmp_path):
    """The tensors' shapes do not tell it, so such weights would load and give other numbers."""
    model = BlipITM.build(BlipMatchingConfig(**{**vars(CONFIG), "embed_dim": 16, "prompt": ""}), empty=True)
    peer("BlipForImageTextRetrieval", model.tokenizer).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    description["text_config"]["num_attention_heads"] *= 2
    path.write_text(json.dumps(description))
    with pytest.raises(
        ValueError, match=r"text_config\.num_attention_heads is \d+, this model type's is \d+"
    ):
        BlipITM.from_file(model.config, tmp_path)


def test_features_of_a_folder_of_transformers(tmp_path):
    config = BlipMatchingConfig(**{**vars(CONFIG), "embed_dim": 16, "prompt": ""})
    theirs = peer("BlipForImageTextRetrieval", BlipITM.build(config, empty=True).tokenizer)
    theirs.save_pretrained(tmp_path)
    model = BlipFeatureExtractor.from_file(config, tmp_path).eval()
    samples = {"image": images(2), "text_input": ["a red star", "a picture of two large blue squares"]}
    tokens = model.tokenizer.batch(samples["text_input"])
    text = {"attention_mask": tokens.mask.long()}
    with torch.no_grad():
        states = theirs.vision_model(pixel_values=samples["image"])[0]
        alone = theirs.text_encoder(input_ids=tokens.ids, **text)[0]
        ids = tokens.ids.clone()
        ids[:, 0] = model.enc_id
        fused = theirs.text_encoder(input_ids=ids, encoder_hidden_states=states, **text)[0]
        wanted = {
            "image": (states, normalize(theirs.vision_proj(states), dim=-1)),
            "text": (alone, normalize(theirs.text_proj(alone), dim=-1)),
            "multimodal": (states, fused),
        }
    for mode, values in wanted.items():
        found = model.extract_features(samples, mode)
        for (name, value), peer_value in zip(found.items(), values, strict=True):
            if not name.startswith("image"):  # padding is anything
                value, peer_value = value[tokens.mask], peer_value[tokens.mask]
            torch.testing.assert_close(value, peer_value, rtol=1e-4, atol=1e-5)
    larger = BlipFeatureExtractor.from_file(dataclasses.replace(config, image_size=96), tmp_path)
    assert larger.visual_encoder.pos_embed.shape == (1, 37, 64)
