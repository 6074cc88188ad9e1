"""BLIP captioning and VQA on tiny models: batches equal singles, groups equal copies, wrong input is explained."""

from __future__ import annotations

import dataclasses
import gzip
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis.models import load_model, model_zoo, presets
from lavis.models.blip import BlipCaption
from lavis.models.blip_vqa import BlipVQA
from lavis.nn.cpu import prepare
from tests import golden
from tests.small import images, random_model

CAPTIONER = random_model("blip_caption")
ANSWERER = random_model("blip_vqa")
QUESTIONS = ["what color is the star", "is there a red circle", "how many shapes are there in the picture"]
ANSWERS = ["red", "two", "yes", "no", "green circle", "three", "a large striped star"]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_beams": 1},
        {"num_beams": 4, "num_captions": 3},
        {"use_nucleus_sampling": True, "seed": [3, 0, 3, 7], "num_captions": 2},
        {"num_beams": 2, "repetition_penalty": 1.5, "max_length": 12, "min_length": 8},
    ],
)
def test_a_batch_gives_what_single_pictures_give(arguments):
    image = images(4)
    together = CAPTIONER.generate({"image": image}, **arguments)
    apart = []
    for i in range(4):
        own = {**arguments, **({"seed": arguments["seed"][i]} if "seed" in arguments else {})}
        apart += CAPTIONER.generate({"image": image[i : i + 1]}, **own)
    assert together == apart
    assert len(together) == 4 * arguments.get("num_captions", 1)


def test_one_seed_draws_for_every_image_of_a_batch_anew():
    image = images(1).expand(6, -1, -1, -1)
    sampling = {"use_nucleus_sampling": True, "min_length": 1}
    drawn = CAPTIONER.generate({"image": image}, seed=3, **sampling)
    assert len(set(drawn)) > 3
    assert drawn == CAPTIONER.generate({"image": image}, seed=3, **sampling)
    assert drawn[0] == CAPTIONER.generate({"image": image[:1]}, seed=3, **sampling)[0]
    assert set(CAPTIONER.generate({"image": image}, seed=[3] * 6, **sampling)) == {drawn[0]}
    with pytest.raises(ValueError, match="seed has 2 numbers for 6 inputs"):
        CAPTIONER.generate({"image": image}, seed=[1, 2], **sampling)


@pytest.mark.parametrize("method", ["rank", "generate"])
@pytest.mark.parametrize("candidates", [2, 128])
def test_answers_do_not_depend_on_the_batch(method, candidates):
    image = images(3)
    arguments = {
        "inference_method": method, "answer_list": ANSWERS, "num_ans_candidates": candidates, "return_scores": True,
    }  # fmt: skip
    together = ANSWERER.predict_answers({"image": image, "text_input": QUESTIONS}, **arguments)
    grouped = ANSWERER.predict_answers(
        {"image": image, "text_input": [q for q in QUESTIONS for _ in (0, 1)]}, **arguments
    )
    for i, question in enumerate(QUESTIONS):
        alone = ANSWERER.predict_answers({"image": image[i : i + 1], "text_input": question}, **arguments)
        assert alone.texts[0] == together.texts[i] == grouped.texts[2 * i] == grouped.texts[2 * i + 1]
        assert alone.logprobs[0] == pytest.approx(together.logprobs[i], rel=1e-4, abs=1e-4)
    assert together.texts != [together.texts[0]] * 3 or method == "rank"


def test_captions_of_a_picture_share_its_states():
    image, texts = (
        images(2),
        ["a picture of a red star", "a picture of two", "a picture of a blue", "a picture of"],
    )
    grouped, repeated = (
        CAPTIONER({"image": x, "text_input": texts}) for x in (image, image.repeat_interleave(2, dim=0))
    )
    torch.testing.assert_close(grouped.loss, repeated.loss)
    torch.testing.assert_close(
        grouped.intermediate_output.decoder_output.logits,
        repeated.intermediate_output.decoder_output.logits,
        rtol=1e-4,
        atol=1e-4,
    )


@given(st.lists(st.integers(1, 3), min_size=4, max_size=4))
@settings(max_examples=10, deadline=None)
def test_vqa_loss_adds_up_over_questions_and_answers(counts):
    image = images(2)
    questions = [*QUESTIONS, "what is it"]
    answers = [ANSWERS[(i * 3 + j) % 7] for i, n in enumerate(counts) for j in range(n)]
    weights = torch.linspace(0.2, 1.0, len(answers))

    def loss(image, questions, answers, weights, counts):
        samples = {
            "image": image, "text_input": questions, "answer": answers, "weight": weights,
            "n_answers": torch.tensor(counts),
        }  # fmt: skip
        return ANSWERER(samples).loss

    with torch.no_grad():
        together = loss(image, questions, answers, weights, counts)
        total, done = 0.0, 0
        for i, n in enumerate(counts):
            part = slice(done, done + n)
            total += loss(image[i // 2 : i // 2 + 1], [questions[i]], answers[part], weights[part], [n])
            done += n
    torch.testing.assert_close(together, total / 4, rtol=1e-4, atol=1e-4)


def test_scores_are_the_models_log_probabilities():
    image = images(1)
    out = CAPTIONER.generate({"image": image}, num_beams=1, max_length=12, min_length=0, return_scores=True)
    seen = {}
    decode = CAPTIONER.tokenizer.decode
    CAPTIONER.tokenizer.decode = lambda ids, **how: seen.setdefault("ids", ids) and decode(ids, **how)
    try:
        beams = CAPTIONER.generate({"image": image}, max_length=12, min_length=0, return_scores=True)
    finally:
        del CAPTIONER.tokenizer.decode
    ids = torch.tensor([[i for i in seen["ids"] if i != CAPTIONER.tokenizer.pad_id]])
    with torch.no_grad():
        memory = CAPTIONER.text_decoder.project_memory(CAPTIONER.visual_encoder(image))
        logp = CAPTIONER.text_decoder(ids, memory=memory).log_softmax(-1)
    per_token = logp[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)[CAPTIONER.prompt_length - 1 :]
    assert beams.logprobs[0] == pytest.approx(float(per_token.sum()), rel=1e-4)
    assert beams.logprobs[0] >= out.logprobs[0] - 1e-3 or len(beams.texts[0]) != len(out.texts[0])
    with torch.no_grad():
        ranked = ANSWERER.predict_answers(
            {"image": image, "text_input": QUESTIONS[0]}, answer_list=ANSWERS, return_scores=True
        )
    assert 1 / len(ANSWERS) <= ranked.scores[0] <= 1


def test_new_token_limits_do_not_count_the_prompt():
    counted = CAPTIONER.generate({"image": images(2)}, max_length=4 + 6, min_length=4 + 6)
    new = CAPTIONER.generate({"image": images(2)}, max_new_tokens=6, min_new_tokens=6)
    assert counted == new


def test_inference_ignores_the_training_mode_and_restores_it():
    model = random_model("blip_caption", text=dataclasses.replace(presets.TINY_TEXT, dropout=0.5))
    wanted = model.generate({"image": images(2)})
    model.train()
    assert model.generate({"image": images(2)}) == wanted
    assert model.training and model.text_decoder.training


def test_packed_weights_give_the_same_captions():
    image = images(3)
    wanted = CAPTIONER.generate({"image": image})
    model = prepare(random_model("blip_caption"), pack=True)
    assert model.generate({"image": image}) == wanted
    model.train()
    assert all(getattr(m, "packed", None) is None for m in model.modules())


def test_outputs_answer_like_the_papers():
    samples = {"image": images(1), "text_input": ["a picture of a star"]}
    out = CAPTIONER(samples)
    assert out.keys() == ["intermediate_output", "loss", "loss_lm"]
    assert out["loss"] is out.loss and "sims" not in out and out.get("sims") is None
    with pytest.raises(KeyError, match="no 'loss_itc'"):
        out["loss_itc"]
    leaves, spec = torch.utils._pytree.tree_flatten(out)
    assert torch.utils._pytree.tree_unflatten(leaves, spec).loss is out.loss
    assert {k: v for k, v in out.items() if "loss" in k}.keys() == {"loss", "loss_lm"}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, "need 'image'.*they have nothing"),
        ({"image": torch.zeros(3, 64, 64)}, r"unsqueeze\(0\)"),
        ({"image": torch.zeros(1, 3, 32, 32)}, r"takes \(B, 3, 64, 64\)"),
    ],
)
def test_wrong_pictures_are_explained(samples, message):
    with pytest.raises(ValueError, match=message):
        CAPTIONER.generate(samples)


def test_wrong_texts_are_explained():
    with pytest.raises(ValueError, match="3 texts for 2 images"):
        CAPTIONER({"image": images(2), "text_input": ["a"] * 3})
    with pytest.raises(ValueError, match="needs answer_list"):
        ANSWERER.predict_answers({"image": images(1), "text_input": "what"})
    with pytest.raises(ValueError, match="'rank' or 'generate'"):
        ANSWERER.predict_answers({"image": images(1), "text_input": "what"}, inference_method="guess")
    with pytest.raises(ValueError, match="do not go together"):
        ANSWERER(
            {
                "image": images(1),
                "text_input": ["what"],
                "answer": ["a", "b"],
                "weight": torch.ones(2),
                "n_answers": [1],
            }
        )


# --------------------------------------------------------------------- constants and presets


@pytest.mark.parametrize(
    ("name", "cls", "model_type"),
    [
        ("blip_caption.base_coco", BlipCaption, "base_coco"),
        ("blip_caption.large_coco", BlipCaption, "large_coco"),
        ("blip_vqa.vqav2", BlipVQA, "vqav2"),
        ("blip_vqa.okvqa", BlipVQA, "okvqa"),
        ("blip_vqa.aokvqa", BlipVQA, "aokvqa"),
    ],
)
def test_presets_equal_the_official_ones(name, cls, model_type):
    with gzip.open(golden.REFERENCE / "manifests" / f"{name}.json.gz", "rt") as f:
        manifest = json.load(f)
    preset, yaml = cls.PRESETS[model_type], manifest["config"]["yaml_model_section"]
    resolved = manifest["config"]["resolved_by_class"]
    model = cls.build(preset.config, empty=True)
    entries = model.state_dict()
    assert set(entries) == set(manifest["state_dict"])
    for key, spec in manifest["state_dict"].items():
        assert list(entries[key].shape) == golden.model_shape(key, spec), key
    assert sum(p.numel() for p in model.parameters()) == manifest["num_parameters"]
    bert = resolved["bert_config"]
    text = preset.config.text
    assert (text.dropout, text.attention_dropout) == (
        bert["hidden_dropout_prob"], bert["attention_probs_dropout_prob"],
    )  # fmt: skip
    assert text.layer_norm_eps == bert["layer_norm_eps"] and text.init_std == bert["initializer_range"]
    assert preset.config.max_txt_len == resolved["max_txt_len"]
    assert preset.config.image_size == yaml["image_size"]
    large = yaml["vit_type"] == "large"
    assert preset.config.vit.drop_path == (0.1 if large else yaml.get("vit_drop_path_rate", 0))
    assert preset.weights == yaml["finetuned"] and preset.pretrained == yaml["pretrained"]
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            assert module.eps in (1e-6, 1e-12)
    assert model.visual_encoder.norm.eps == 1e-6
    assert model.text_decoder.bert.encoder.layer[0].output.LayerNorm.eps == 1e-12
    if cls is BlipCaption:
        assert (model.prompt, model.prompt_length) == (resolved["prompt"], resolved["prompt_length"])
    for kind in ("vis_processor", "text_processor"):
        for phase, cfg in manifest["config"]["preprocess"][kind].items():
            model.model_type = model_type
            ours = model.preprocess_config()[kind][phase]
            assert {"image_size": 384, **cfg} == ours if kind == "vis_processor" else cfg == ours


def test_smoothing_is_the_papers():
    assert presets.SMOOTHING == 0.1


def test_the_zoo_prints_as_the_papers():
    lines = str(model_zoo).split("\n")
    assert lines[0] == lines[2] == "=" * 50 and lines[1] == "Architectures                  Types"
    table = {line[:30].strip(): line[31:] for line in lines[3:]}
    assert table["blip_caption"].startswith("base_coco, large_coco")
    assert table["blip_vqa"].startswith("vqav2, okvqa, aokvqa")
    assert len(model_zoo) == sum(len(types) for _, types in model_zoo)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'blip_caption'"):
        load_model("blip_captions", "base_coco")
    with pytest.raises(ValueError, match="Did you mean 'base_coco'"):
        load_model("blip_caption", "base_cocoa")


@pytest.mark.parametrize("name", ["blip_vqa", "albef_vqa"])
def test_choosing_is_ranking_a_list_of_its_own_for_each_question(name):
    model = random_model(name).eval()
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    lists = [["red", "a blue star", "two"], ["no", "yes", "a striped heart above it"]]
    samples = {"image": picture, "text_input": ["what is it", "is it red"]}
    chosen = model.choose(samples, lists, return_scores=True)
    for i, own in enumerate(lists):
        one = {"image": picture[i : i + 1], "text_input": samples["text_input"][i : i + 1]}
        ranked = model._rank_answers(*model.forward_encoder(one)[:2], own, 3)
        assert ranked.texts == chosen.texts[i : i + 1]
        assert chosen.scores[i] == pytest.approx(ranked.scores[0], abs=1e-5)
    with pytest.raises(ValueError, match="1 lists of"):
        model.choose(samples, lists[:1])
