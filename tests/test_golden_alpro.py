"""ALPRO at full size equals the stored outputs of the original, through the public loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests import golden

pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("all_cores")]
SLOW = pytest.mark.slow


def check_states(inner, stored) -> None:
    for key, states in (
        ("video_embeds", inner.video_embeds),
        ("text_embeds", inner.text_embeds),
        ("fusion", inner.encoder_output.last_hidden_state),
    ):
        golden.close_digest(states, stored, key)
        if f"{key}_cls" in stored:
            golden.close(states[:, 0], stored[f"{key}_cls"])


def test_retrieval(tmp_path):
    name = "alpro_retrieval.msrvtt"
    model, stored, case = golden.load(name, tmp_path), golden.outputs(name), golden.inputs(name)
    samples = golden.step_samples(name)
    assert model.config.max_txt_len == case["max_txt_len"]
    found = model.compute_sim_matrix(
        golden.Gallery(samples["video"], case["sim_texts"], key="video"), {"k_test": case["k_test"]}
    )
    for key, scores in zip(("score_v2t", "score_t2v"), found):
        np.testing.assert_array_equal(scores == -100, stored[key] == -100)
        np.testing.assert_allclose(scores, stored[key], rtol=2e-5, atol=2e-5)
    with torch.no_grad():
        out = golden.train_step(model, samples)
    assert out.keys() == ["intermediate_output", "loss", "loss_vtc", "loss_vtm"]
    for key in ("loss", "loss_vtc", "loss_vtm"):
        golden.close(out[key], stored[key], rtol=2e-5, atol=2e-5)
    check_states(out.intermediate_output, stored)
    golden.close(out.intermediate_output.vtm_logits, stored["vtm_logits"])
    assert out.intermediate_output.vtm_labels.tolist() == [1, 1, 0, 0, 0, 0]


@SLOW
@pytest.mark.parametrize("name", ["alpro_qa.msrvtt", "alpro_qa.msvd"])
def test_question_answering(tmp_path, name):
    model, stored, case = golden.load(name, tmp_path), golden.outputs(name), golden.inputs(name)
    assert model.config.max_txt_len == case["max_txt_len"]
    samples = golden.step_samples(name)
    with torch.no_grad():
        out = model(samples)
    golden.close(out.loss, stored["loss"], rtol=2e-5, atol=2e-5)
    golden.close(out.logits, stored["logits"])
    check_states(out.intermediate_output, stored)
    predicted = model.predict(samples)
    golden.close(predicted["predictions"], stored["logits"])
    assert predicted["targets"].tolist() == case["answers"]
