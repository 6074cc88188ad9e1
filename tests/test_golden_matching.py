"""BLIP's contrast and matching heads at full size equal the stored outputs of the original."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lavis.models.blip_models.blip_image_text_matching import compute_gradcam
from tests import golden

pytestmark = [pytest.mark.golden, pytest.mark.slow, pytest.mark.usefixtures("all_cores")]


def check_features(name: str, model, modes=("image", "text", "multimodal")):
    stored, case = golden.outputs(name), golden.inputs(name)
    samples = {"image": golden.images(name), "text_input": case["text_input"]}
    for mode in modes:
        found = model.extract_features(samples, mode=mode)
        wanted = {k.split("/")[1].removesuffix("_cls") for k in stored if k.startswith(f"{mode}/")}
        assert set(found.keys()) == wanted
        for key, value in found.items():
            golden.close_digest(value, stored, f"{mode}/{key}")
            golden.close(value[:, 0], stored[f"{mode}/{key}_cls"])


def test_features(tmp_path):
    name = "blip_feature_extractor.base"
    model = golden.load(name, tmp_path)
    check_features(name, model)
    ids = model.tokenizer.batch(golden.inputs(name)["text_input"]).ids
    np.testing.assert_array_equal(ids.numpy(), golden.outputs(name)["text_ids"])


def test_matching(tmp_path):
    name = "blip_image_text_matching.base"
    model, stored, case = golden.load(name, tmp_path), golden.outputs(name), golden.inputs(name)
    samples = {"image": golden.images(name), "text_input": case["text_input"]}
    with torch.no_grad():
        golden.close(model(samples, match_head="itm"), stored["itm"])
        golden.close(model(samples, match_head="itc"), stored["itc"], rtol=2e-5, atol=2e-5)
        swapped = {**samples, "text_input": case["text_input_swapped"]}
        golden.close(model(swapped), stored["itm_swapped"])
    # both texts of both pictures at once, each picture projected once
    both = model.match_scores({**samples, "text_input": [*case["text_input"], *case["text_input_swapped"]]})
    itm = stored["itm"][0], stored["itm_swapped"][0]
    expected = [np.exp(x[1]) / np.exp(x).sum() for x in itm]
    np.testing.assert_allclose(both[0][:2].numpy(), expected, atol=1e-5)
    # made with the original's code, in the same way as the other stored outputs
    maps, logits = compute_gradcam(
        model, samples["image"], case["text_input"], model.tokenizer.batch(case["text_input"]), block_num=7
    )
    wanted = golden.outputs("gradcam")[f"{name}/7"]
    np.testing.assert_allclose(torch.stack(maps).numpy(), wanted, rtol=0, atol=2e-5 * wanted.max())
    golden.close(logits, stored["itm"])


@pytest.mark.parametrize("same", [True, False], ids=["equal twins", "distinct twins"])
def test_retrieval(tmp_path, same):
    name = "blip_retrieval.coco"
    model = golden.load(name, tmp_path, is_eval=False, momentum_same=same)
    if same:
        golden.check_scores(model, name)
    golden.check_alignment_step(model, name, "" if same else "distinct_momentum/")


@pytest.mark.parametrize("same", [True, False], ids=["equal twins", "distinct twins"])
def test_pretraining(tmp_path, same):
    name, prefix = "blip_pretrain.base", "" if same else "distinct_momentum/"
    model = golden.load(name, tmp_path, is_eval=False, momentum_same=same)
    out = golden.check_alignment_step(model, name, prefix)
    stored, inner = golden.outputs(name), out.intermediate_output
    np.testing.assert_array_equal(inner.decoder_labels.numpy(), stored[f"{prefix}decoder_labels"])
    golden.close_digest(
        inner.decoder_output.logits, {k[len(prefix) :]: v for k, v in stored.items()}, "decoder_logits"
    )
