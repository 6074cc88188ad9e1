"""BLIP's classifiers at full size equal the stored outputs of the original."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import golden

pytestmark = [pytest.mark.golden, pytest.mark.slow, pytest.mark.usefixtures("all_cores")]


def test_nlvr(tmp_path):
    name = "blip_nlvr.nlvr"
    model, stored, samples = golden.load(name, tmp_path), golden.outputs(name), golden.step_samples(name)
    swapped = {**samples, "image0": samples["image1"], "image1": samples["image0"]}
    for each, key in ((samples, "predictions"), (swapped, "predictions_images_swapped")):
        found = model.predict(each)
        golden.close(found["predictions"], stored[key])
        np.testing.assert_array_equal(found["targets"].numpy(), samples["label"].numpy())
    with torch.no_grad():
        out = model(samples)
    golden.close(out.loss, stored["loss"], rtol=2e-5, atol=2e-5)
    golden.close(out.logits, stored["predictions"])
    golden.close(out.intermediate_output.encoder_output.last_hidden_state[:, 0], stored["fusion_cls"])
    # the original stacks left pictures, then right ones; here a pair's two are side by side
    golden.close_digest(out.intermediate_output.image_embeds, stored, "image_embeds")


@pytest.mark.parametrize("same", [True, False], ids=["equal twins", "distinct twins"])
def test_classification(tmp_path, same):
    name = "blip_classification.base"
    model = golden.load(name, tmp_path, is_eval=False, momentum_same=same)
    assert model.config.num_classes == 3  # read from the file
    stored, samples = golden.outputs(name), golden.step_samples(name)
    if same:
        found = model.predict(samples)
        golden.close(found["predictions"], stored["predictions"])
        np.testing.assert_array_equal(found["targets"].numpy(), samples["label"].numpy())
    prefix = "" if same else "distinct_momentum/"
    stored = {k[len(prefix) :]: v for k, v in stored.items() if k.startswith(prefix)}
    with torch.no_grad():
        out = golden.train_step(model, samples)
    golden.close(out.loss, stored["loss"], rtol=2e-5, atol=2e-5)
    golden.close(out.logits, stored["logits"])
    golden.close(out.logits_m, stored["logits_m"])
    golden.close_digest(out.intermediate_output.image_embeds, stored, "image_embeds")
    golden.close(out.intermediate_output.encoder_output.last_hidden_state[:, 0], stored["fusion_cls"])
