"""BLIP-2's first stage against the original's outputs at small sizes."""

from __future__ import annotations

import pytest
import torch

from tests.golden import close
from tests.helpers import blip2_reference as reference
from tests.helpers.blip2_reference import INPUTS, images

TEXTS, SAME = INPUTS["texts"], INPUTS["same"]


@pytest.fixture(scope="module", params=["qformer", "clip_l"])
def golden(request, tmp_path_factory):
    described = reference.manifest(request.param)
    path = reference.write(described, tmp_path_factory.mktemp("blip2") / "model.pth")
    return reference.build(described, path), reference.outputs(request.param)


@pytest.fixture(scope="module")
def qformer(tmp_path_factory):
    described = reference.manifest("qformer")
    path = reference.write(described, tmp_path_factory.mktemp("blip2") / "model.pth")
    return (
        reference.build(described, path),
        reference.build(described, path, "blip2_image_text_matching"),
        reference.outputs("qformer"),
    )


def test_states_and_losses(golden):
    model, wanted = golden
    with torch.no_grad():
        close(model.encode_image(images()), wanted["ln_vision"])
        loss = model({"image": images(), "text_input": TEXTS})
    for name in ("loss_itc", "loss_itm", "loss_lm"):
        close(loss[name], wanted[name])
    multimodal = model.extract_features({"image": images(), "text_input": TEXTS})
    close(multimodal.multimodal_embeds, wanted["features/multimodal/multimodal_embeds"])


def test_features_of_one_kind(qformer):
    model, _, wanted = qformer
    samples = {"image": images(), "text_input": TEXTS}
    for mode in ("image", "text"):
        found = model.extract_features(samples, mode)
        for key in (f"{mode}_embeds", f"{mode}_embeds_proj"):
            close(found[key], wanted[f"features/{mode}/{key}"])


def test_contrast_with_image_ids(qformer):
    model, _, wanted = qformer
    samples = {
        "image": images(3),
        "text_input": [*TEXTS, SAME[0]],
        "image_id": torch.tensor(INPUTS["image_id"]),
    }
    with torch.no_grad():
        close(model(samples).loss_itc, wanted["with_image_id/loss_itc"])


def test_matching(qformer):
    _, model, wanted = qformer
    samples = {"image": images(), "text_input": SAME}
    with torch.no_grad():
        close(model(samples), wanted["itm"])
        close(model(samples, match_head="itc"), wanted["itc"])
        everything = model(samples, match_head="itc", all_pairs=True)
    close(everything.diagonal()[:, None], wanted["itc"])


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("beam3", {}),
        ("beam5", {"num_beams": 5, "max_length": 12, "min_length": 4}),
        ("greedy", {"num_beams": 1, "max_length": 14, "min_length": 2}),
    ],
)
def test_captions(qformer, case, options):
    model, _, wanted = qformer
    assert model.generate({"image": images()}, **options) == wanted[f"generate/{case}/texts"].tolist()
