"""BLIP-2 and InstructBLIP with language models against the original's outputs at small sizes."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from lavis.models import build_model, load_model
from lavis.models.languages import language_model
from tests.golden import close
from tests.helpers import blip2_reference as reference
from tests.helpers.blip2_reference import INPUTS, images
from tests.reference import recipe

PROMPTS, QUESTIONS, TEXTS, OUTS = (INPUTS[key] for key in ("prompts", "questions", "texts", "outs"))
ANSWER_SHORT = {"prompt": PROMPTS[1], "length_penalty": -1.0, "max_len": 6}
LONG = {"max_length": 9, "length_penalty": 4.0}
SHORT = {"max_length": 9, "length_penalty": -4.0}
CAPTIONS = {
    "default": {},
    "prompt": {"prompt": PROMPTS[0], "max_length": 12, "min_length": 3},
    "greedy": {"num_beams": 1, "max_length": 15},
    "three": {"num_captions": 3, "max_length": 12, "length_penalty": 0.0},
    "repetition": {"prompt": PROMPTS[0], "repetition_penalty": 1.5, "max_length": 12},
    "long": LONG,
    "short": SHORT,
}
INSTRUCTED = {
    "prompt": {"prompt": PROMPTS[0], "max_length": 20},
    "prompts": {"prompt": QUESTIONS, "max_length": 10, "repetition_penalty": 1.0},
    "greedy": {"prompt": PROMPTS[0], "num_beams": 1, "max_length": 15},
    "ocr": {"prompt": "read {} in this image", "ocr_tokens": INPUTS["ocr"], "max_length": 8},
    "three": {"prompt": PROMPTS[0], "num_captions": 3, "max_length": 12, "length_penalty": -1.0},
    "video": {"prompt": QUESTIONS, "max_length": 10},
    "long": {"prompt": QUESTIONS, **LONG},
    "short": {"prompt": QUESTIONS, **SHORT},
}
CASES = {
    "opt": CAPTIONS,
    "t5": {
        **CAPTIONS,
        "prompts": {"prompt": QUESTIONS, "max_length": 10},
        "repetition": {"repetition_penalty": 1.5, "max_length": 12},
        "three": {**CAPTIONS["three"], "length_penalty": -1.0},
    },
    "t5_instruct": INSTRUCTED,
    "vicuna_instruct": INSTRUCTED,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}

    def model(kind: str):
        if kind not in made:
            described = reference.manifest(kind)
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = reference.build(described, reference.write(described, folder / "model.pth"))
        return made[kind], reference.outputs(kind)

    return model


@pytest.mark.parametrize("kind", CASES)
def test_losses(models, kind):
    model, wanted = models(kind)
    if kind == "opt":
        samples = {"image": images(), "text_input": TEXTS}
    else:
        samples = {"image": images(), "text_input": QUESTIONS, "text_output": OUTS}
    with torch.no_grad():
        close(model(samples).loss, wanted["loss"])
        if kind == "opt":
            model.prompt = PROMPTS[0]
            texts = [f"{PROMPTS[0]} {text}" for text in TEXTS]
            close(model({"image": images(), "text_input": texts}).loss, wanted["loss_with_prompt"])
            model.prompt = ""


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in CASES.items() for case in cases])
def test_written_texts(models, kind, case):
    model, wanted = models(kind)
    options = dict(CASES[kind][case])
    samples = {key: options.pop(key) for key in ("prompt", "ocr_tokens") if key in options}
    media = recipe.make_video(INPUTS["seed"], INPUTS["frames"], 56) if case == "video" else images()
    found = model.generate({"image": media, **samples}, **options)
    assert found == wanted[f"generate/{case}/texts"].tolist()


@pytest.mark.parametrize(
    ("kind", "case"),
    [("opt", "plain"), ("opt", "prompt"), ("opt", "long"), ("t5", "plain"), ("t5", "prompt")],
)
def test_answers(models, kind, case):
    model, wanted = models(kind)
    options = {"plain": {}, "prompt": {"prompt": PROMPTS[1]}, "long": ANSWER_SHORT}[case]
    samples = {"image": images(), "text_input": QUESTIONS}
    found = model.predict_answers(samples, **options)
    assert found == wanted[f"answers/{case}/batch" if kind == "opt" else f"answers/{case}"].tolist()
    for i in range(2):
        alone = model.predict_answers(
            {"image": images()[i : i + 1], "text_input": QUESTIONS[i : i + 1]}, **options
        )
        assert alone == found[i : i + 1]


@pytest.mark.parametrize("kind", ["t5_instruct", "vicuna_instruct"])
def test_answers_of_instructed_models(models, kind):
    model, wanted = models(kind)
    samples = {"image": images(), "text_input": QUESTIONS}
    assert model.predict_answers(samples, prompt=PROMPTS[1]) == wanted["answers/prompt"].tolist()
    samples["choices"] = INPUTS["per"]
    prompt = "Question: {} Options: {}. Short answer:"
    assert model.predict_answers(samples, prompt=prompt) == wanted["answers/choices"].tolist()


CLASSES = {
    "shared": {},
    "segments": {},
    "own": {},
    "history": {"history": ["what is it? a dog.", "is it red? no."], "caption": ["a dog", "a tree"]},
}


@pytest.mark.parametrize("kind", ["t5_instruct", "vicuna_instruct"])
@pytest.mark.parametrize("case", CLASSES)
def test_ranked_candidates(models, kind, case):
    model, wanted = models(kind)
    samples = {"image": images(), "prompt": "{}", "text_input": QUESTIONS, **CLASSES[case]}
    candidates = INPUTS["per"] if case == "own" else INPUTS["cands"]
    segments = 2 if case == "segments" else 1
    ranks, scores = model.predict_class(samples, candidates, segments, return_scores=True)
    if case == "own":
        for i, row in enumerate(ranks):
            assert row.tolist() == wanted[f"classes/own/{i}"].tolist()
        return
    if kind == "t5_instruct" or case != "segments":  # the original divides by the widths of segments
        assert ranks.tolist() == wanted[f"classes/{case}"].tolist()
    if case == "shared":
        losses = torch.from_numpy(wanted["classes/shared/losses"])
        ratio = -scores / losses
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_the_language_model_is_found_and_asked_for(tmp_path, monkeypatch):
    described = reference.manifest("vicuna_instruct")
    checkpoint = reference.write(described, tmp_path / "model.pth")
    cfg = {
        "arch": "blip2_vicuna_instruct", "model_type": "vicuna7b", "weights": str(checkpoint),
        **reference.sizes_of(described),
    }  # fmt: skip
    monkeypatch.delenv("LAVIS_VICUNA", raising=False)
    with pytest.raises(ValueError, match=r"the part 'llm_model', and no source of it is named"):
        build_model(cfg)
    monkeypatch.setenv("LAVIS_VICUNA", str(reference.write_language_model(described, tmp_path / "vicuna")))
    model = build_model(cfg).eval()
    wanted = reference.outputs("vicuna_instruct")["generate/prompt/texts"].tolist()
    assert model.generate({"image": images(), "prompt": PROMPTS[0]}, max_length=20) == wanted
    monkeypatch.setenv("LAVIS_VICUNA", str(tmp_path / "missing"))
    named = build_model({**cfg, "llm_model": str(tmp_path / "vicuna")}).eval()
    assert named.generate({"image": images(), "prompt": PROMPTS[0]}, max_length=20) == wanted


def test_what_was_trained_lies_apart_from_tower_and_language_model(tmp_path):
    """As published: a trimmed file, eva_vit_g.pth and a folder of transformers."""
    described = reference.manifest("opt")
    state = reference.state_dict(described)
    tower = "visual_encoder."
    trimmed = {key: t for key, t in state.items() if not key.startswith((tower, "opt_model."))}
    torch.save({"model": trimmed}, tmp_path / "trimmed.pth")
    eva = {key.removeprefix(tower): t for key, t in state.items() if key.startswith(tower)}
    torch.save(
        eva | {"head.weight": torch.zeros(3, 64), "norm.weight": torch.zeros(64)}, tmp_path / "eva.pth"
    )
    cfg = {
        "arch": "blip2_opt", "model_type": "pretrain_opt2.7b", "weights": str(tmp_path / "trimmed.pth"),
        "opt_model": str(reference.write_language_model(described, tmp_path / "opt")),
        **reference.sizes_of(described),
    }  # fmt: skip
    with pytest.raises((ValueError, OSError), match="part 'visual_encoder'"):
        build_model({**cfg, "parts": {"visual_encoder": str(tmp_path / "missing.pth")}})
    model = build_model({**cfg, "parts": {"visual_encoder": str(tmp_path / "eva.pth")}}).eval()
    wanted = reference.outputs("opt")["generate/default/texts"].tolist()
    assert model.generate({"image": images()}) == wanted
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not any(name.startswith((tower, "opt_model.")) for name in trained)
    model.save_pretrained(tmp_path / "saved")
    assert {key.partition(".")[0] for key in entries_of(tmp_path / "saved")} == {
        "query_tokens", "ln_vision", "Qformer", "opt_proj"
    }  # fmt: skip
    again = load_model(str(tmp_path / "saved"), is_eval=True)
    assert again.generate({"image": images()}) == wanted


def entries_of(folder):
    with safe_open(folder / "model.safetensors", "pt") as f:
        return list(f.keys())


@pytest.mark.parametrize("kind", ["t5", "t5_instruct", "vicuna_instruct"])
@pytest.mark.parametrize("media", ["images", "videos"])
def test_questions_about_an_image_are_its_questions_alone(models, kind, media):
    model, _ = models(kind)
    seen = images() if media == "images" else recipe.make_video(INPUTS["seed"], INPUTS["frames"], 56)
    questions = [*QUESTIONS, *TEXTS]
    found = model.predict_answers({"image": seen, "text_input": questions})
    alone = [
        model.predict_answers({"image": seen[i // 2 : i // 2 + 1], "text_input": [question]})[0]
        for i, question in enumerate(questions)
    ]
    assert found == alone


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
def test_the_matrix_of_a_frozen_head_is_not_copied(rows):
    """PyTorch does so where the last of several states is read; of OPT-2.7b it has 257 MB in bfloat16."""
    model = (
        language_model({"model_type": "opt", **reference.manifest("opt")["llm"]}).eval().requires_grad_(False)
    )
    made = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                made.append((func, out.numel()))
            return out

    with Noting():
        model(inputs_embeds=torch.randn(rows, 7, 40), use_cache=True, logits_to_keep=1)
    views = (torch.ops.aten.t.default, torch.ops.aten.detach.default)
    matrix = model.lm_head.weight.numel()
    assert made and not [func for func, size in made if size >= matrix and func not in views]


def test_a_model_without_vicuna_says_so_before_anything_is_fetched(monkeypatch):
    monkeypatch.delenv("LAVIS_VICUNA", raising=False)
    monkeypatch.setattr("lavis.models.loading.locate", lambda *a, **k: pytest.fail("fetched"))
    with pytest.raises(
        ValueError, match=r"--part llm_model=FOLDER .* checkpoint='Salesforce/instructblip-vicuna-7b'"
    ):
        load_model("blip2_vicuna_instruct", "vicuna7b")


@pytest.mark.parametrize("kind", ["t5_instruct", "vicuna_instruct"])
@pytest.mark.parametrize("candidates", [[], [["a dog"], []]])
def test_nothing_to_rank_is_said(models, kind, candidates):
    model, _ = models(kind)
    with pytest.raises(ValueError, match="to rank"):
        model.predict_class({"image": images(), "prompt": "what is it?"}, candidates)


def test_an_empty_candidate_of_a_decoder_only_model_is_said(models):
    model, _ = models("vicuna_instruct")
    with pytest.raises(ValueError, match="a candidate is an empty text"):
        model.predict_class({"image": images(), "prompt": "what is it?"}, ["a dog", ""])
