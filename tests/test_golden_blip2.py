"""BLIP-2's first stage at full size (ViT-g, 1.17 billion parameters) against the stored outputs of the original."""

from __future__ import annotations

import pytest
import torch

from tests import golden
from tests.golden import close, close_digest

NAME = "blip2_feature_extractor.pretrain"
pytestmark = [pytest.mark.slow, pytest.mark.golden]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return golden.load(NAME, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def samples():
    return {"image": golden.images(NAME), "text_input": golden.inputs(NAME)["text_input"]}


def test_features(model, samples):
    wanted = golden.outputs(NAME)
    with torch.no_grad():
        states = model.visual_encoder(samples["image"])
        close_digest(states, wanted, "vit_embeds")
        close(states[:, 0], wanted["vit_embeds_cls"])
        close_digest(model.encode_image(samples["image"]), wanted, "ln_vision")
    for mode in ("image", "text", "multimodal"):
        found = model.extract_features(samples, mode)
        for key in (f"{mode}_embeds", f"{mode}_embeds_proj"):
            if f"{mode}/{key}/shape" in wanted:
                close_digest(found[key], wanted, f"{mode}/{key}")
                close(found[key][:, 0], wanted[f"{mode}/{key}_first"])


def test_losses_and_captions(model, samples):
    wanted = golden.outputs(NAME)
    with torch.no_grad():
        out = model(samples)
    for name in ("loss", "loss_itc", "loss_itm", "loss_lm"):
        close(out[name], wanted[name])
    options = golden.inputs(NAME)["generate"]
    assert model.generate(samples, **options) == wanted["generate/captions"].tolist()
