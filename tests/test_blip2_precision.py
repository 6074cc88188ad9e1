"""BLIP-2 and InstructBLIP in bfloat16 and float16: finite, and near to float32."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lavis.models import build_model, load_model, model_zoo
from lavis.nn.finite import NonFiniteError
from tests.helpers import blip2_reference as reference
from tests.helpers.blip2_reference import LANGUAGES, images

pytest.importorskip("transformers")

KINDS = ["qformer", "clip_l", "opt", "t5", "t5_instruct", "vicuna_instruct"]
SAMPLES = {"text_input": ["is it red?", "what is in the field?"], "text_output": ["a red dog", "blue"]}
BOUNDS = {"bfloat16": 5e-2, "float16": 5e-3}  # of the loss, as a part of it, and of features' peak


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    made = {}

    def of(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = reference.write(reference.manifest(kind), folder / "model.pth")
        return made[kind]

    return of


def loaded(kind, checkpoint, dtype=None):
    """The model of a file; with a format its image encoder and language model are parts in that."""
    described = reference.manifest(kind)
    if dtype is None:
        return reference.build(described, checkpoint)
    parts = {"visual_encoder": {"dtype": dtype, "source": str(checkpoint)}}
    if "llm" in described:
        language = checkpoint.parent / "language"
        if not language.is_dir():
            reference.write_language_model(described, language)
        parts[LANGUAGES[described["tokenizer"]]] = {"dtype": dtype, "source": str(language)}
    name = described["names"][0]
    model_type = "pretrain_vitL" if kind == "clip_l" else model_zoo.model_zoo[name][0]
    own = {"arch": name, "model_type": model_type, "weights": str(checkpoint), "parts": parts}
    return build_model({**own, **reference.sizes_of(described)}).eval()


def results(model):
    """(loss, states that a language model or a retrieval reads), after writing something."""
    samples = {"image": images(), **SAMPLES}
    if hasattr(model, "words"):
        out = model.generate({"image": images(), "prompt": "a photo of"}, max_length=8, return_scores=True)
        features = model.prefix(images(), model.instruction(SAMPLES["text_input"]))
    else:
        out = model.generate(samples, max_length=8, min_length=2, return_scores=True)
        features = model.extract_features(samples, "image").image_embeds
    assert len(out.texts) == 2 and torch.as_tensor(out.logprobs).isfinite().all()
    with torch.no_grad():
        return model(samples).loss.float(), features.detach().float()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("how", ["parts", "whole", "autocast"])
def test_finite_and_near(files, kind, dtype, how):
    torch.manual_seed(0)
    wanted = results(loaded(kind, files(kind)))
    model = loaded(kind, files(kind), dtype if how == "parts" else None)
    if how == "whole":
        model = model.to(getattr(torch, dtype))
    with torch.autocast("cpu", getattr(torch, dtype), enabled=how == "autocast"):
        found = results(model)
    for one, exact in zip(found, wanted):
        assert one.isfinite().all()
        assert (one - exact).abs().max() <= BOUNDS[dtype] * exact.abs().max()


@pytest.mark.parametrize("kind", ["t5", "t5_instruct"])
def test_t5_in_float16_does_not_overflow(tmp_path, kind):
    """The end of its feed-forward layers does in float16; it stays in float32, as in transformers."""
    checkpoint = reference.write(reference.manifest(kind), tmp_path / "model.pth")
    reference.write_language_model(reference.manifest(kind), tmp_path / "language")
    weights = tmp_path / "language" / "model.safetensors"
    large = {k: t * (3e4 if ".wo." in k else 1.0) for k, t in load_file(weights).items()}
    save_file(large, weights)
    official = torch.load(checkpoint, weights_only=True)["model"]
    trained = {k: t for k, t in official.items() if not k.startswith("t5_model.")}
    torch.save({"model": trained}, checkpoint)
    wanted = results(loaded(kind, checkpoint))
    with contextlib.suppress(NonFiniteError):  # transformers clamps what overflows, which is no better
        loss = results(loaded(kind, checkpoint).half())[0]
        assert (loss - wanted[0]).abs() > 0.03 * wanted[0]
    model = loaded(kind, checkpoint, "float16")
    formats = {k.rpartition(".")[0].rpartition(".")[2]: p.dtype for k, p in model.t5_model.named_parameters()}
    assert formats.pop("wo") == torch.float32 and set(formats.values()) == {torch.float16}
    found = results(model)
    for one, exact in zip(found, wanted):
        assert one.isfinite().all()
        assert (one - exact).abs().max() <= 2e-2 * exact.abs().max()
    # left out, its digest is that of what is read again
    model.t5_model.requires_grad_(False)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["parts"]["t5_model"]["sha256"]
    again = load_model(str(tmp_path / "saved"), is_eval=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
