"""BLIP-2's first stage against the original's outputs at small sizes."""

from __future__ import annotations

import pytest
import torch

from lavis.models import build_model
from lavis.nn.losses import similarities
from tests import small
from tests.golden import close
from tests.helpers import blip2_reference as reference
from tests.helpers.blip2_reference import INPUTS, images
from tests.small import random_model

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


def test_four_images_are_learnt_by_heart():
    torch.manual_seed(0)
    model = build_model({"arch": "blip2", "model_type": "tiny", "weights": "none"}).train()
    texts = ["a red circle", "two blue squares", "a small green star", "nothing"]
    samples = {"image": torch.randn(4, 3, 64, 64), "text_input": texts}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(150):
        loss = model(samples).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert model.generate(samples, min_length=2) == texts
    features = model.extract_features(samples, "image").image_embeds_proj
    vectors = model.extract_features(samples, "text").text_embeds_proj[:, 0]
    assert similarities(features, vectors).argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_a_batch_is_its_images_and_their_texts():
    model = random_model("blip2")
    samples = {
        "image": small.images(3),
        "text_input": ["a red star", "two", "a very small green circle on the left"],
    }
    whole = model.extract_features(samples).multimodal_embeds
    for i in range(3):
        alone = {"image": samples["image"][i : i + 1], "text_input": samples["text_input"][i]}
        torch.testing.assert_close(
            model.extract_features(alone).multimodal_embeds[0], whole[i], rtol=1e-3, atol=1e-4
        )
    matcher = random_model("blip2_image_text_matching")
    for head in ("itm", "itc"):
        together = matcher(samples, match_head=head)
        for i in range(3):
            alone = {"image": samples["image"][i : i + 1], "text_input": samples["text_input"][i]}
            torch.testing.assert_close(matcher(alone, match_head=head)[0], together[i], rtol=1e-3, atol=1e-4)


def test_a_training_step_compiles_in_one_graph():
    model = random_model("blip2").train()
    batch = model.encode_batch({"image": small.images(3), "text_input": ["a star", "two", "green"]})
    model.before_step(0.0)
    torch.manual_seed(0)
    wanted = model(batch).loss
    torch.manual_seed(0)
    found = torch.compile(model, fullgraph=True, backend="eager")(batch).loss
    torch.testing.assert_close(found, wanted)
