"""ALBEF at full size equals the stored outputs of the original."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lavis.nn.losses import IGNORE
from tests import golden
from tests.test_golden_matching import check_features

pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("all_cores")]
SLOW = pytest.mark.slow
TWINS = pytest.mark.parametrize("same", [True, False], ids=["equal twins", "distinct twins"])


def part(stored, same):
    """The stored outputs with equal twins, or with unrelated ones."""
    prefix = "" if same else "distinct_momentum/"
    return {key[len(prefix) :]: value for key, value in stored.items() if key.startswith(prefix)}


def test_features(tmp_path):
    name = "albef_feature_extractor.base"
    model = golden.load(name, tmp_path)
    check_features(name, model)
    ids = model.tokenizer.batch(golden.inputs(name)["text_input"]).ids
    np.testing.assert_array_equal(ids.numpy(), golden.outputs(name)["text_ids"])


@SLOW
@TWINS
def test_retrieval(tmp_path, same):
    name = "albef_retrieval.coco"
    model = golden.load(name, tmp_path, is_eval=False, momentum_same=same)
    if same:
        golden.check_scores(model, name)
    golden.check_alignment_step(model, name, "" if same else "distinct_momentum/")


def fixed_mask(ids, *, chance, mask_id, never, vocab_size):
    """The stored masking (see `mlm_mask` in inputs.json) in place of a random one."""
    assert (chance, never, vocab_size) == (0.15, (0, 101), 30522)
    rows, places = torch.meshgrid(*(torch.arange(n) for n in ids.shape), indexing="ij")
    chosen = ((places + rows) % 4 == 2) & (ids != never[0]) & (ids != never[1])
    read = torch.where(chosen & ((places // 4) % 3 != 2), mask_id, ids)
    labels = ids.masked_fill(~chosen, IGNORE)
    stored = golden.outputs("albef_pretrain.base")
    np.testing.assert_array_equal(read.numpy(), stored["mlm_input_ids"])
    np.testing.assert_array_equal(labels.numpy(), stored["mlm_labels"])
    return read, labels


@SLOW
@TWINS
def test_pretraining(tmp_path, same, monkeypatch):
    name = "albef_pretrain.base"
    monkeypatch.setattr("lavis.models.pair_losses.mask_tokens", fixed_mask)
    model = golden.load(name, tmp_path, is_eval=False, momentum_same=same)
    out = golden.check_alignment_step(model, name, "" if same else "distinct_momentum/")
    assert set(out.keys()) == {"sims", "intermediate_output", "loss", "loss_itc", "loss_itm", "loss_mlm"}


@SLOW
@TWINS
def test_classification(tmp_path, same):
    name = "albef_classification.ve"
    model = golden.load(name, tmp_path, is_eval=False, momentum_same=same)
    stored, samples = part(golden.outputs(name), same), golden.step_samples(name)
    if same:
        found = model.predict(samples)
        golden.close(found["predictions"], stored["predictions"])
        assert found["targets"].tolist() == samples["label"].tolist()
    with torch.no_grad():
        out = golden.train_step(model, samples)
    golden.close(out.loss, stored["loss"], rtol=2e-5, atol=2e-5)
    golden.close(out.logits, stored["logits"])
    golden.close(out.logits_m, stored["logits_m"])
    golden.close_digest(out.intermediate_output.image_embeds, stored, "image_embeds")
    golden.close(out.intermediate_output.encoder_output.last_hidden_state[:, 0], stored["fusion_cls"])


@SLOW
@TWINS
def test_nlvr(tmp_path, same):
    name = "albef_nlvr.nlvr"
    model = golden.load(name, tmp_path, is_eval=False, momentum_same=same)
    stored, samples = part(golden.outputs(name), same), golden.step_samples(name)
    if same:
        golden.close(model.predict(samples)["predictions"], stored["predictions"])
        swapped = {**samples, "image0": samples["image1"], "image1": samples["image0"]}
        golden.close(model.predict(swapped)["predictions"], stored["predictions_images_swapped"])
    with torch.no_grad():
        out = golden.train_step(model, samples)
    golden.close(out.loss, stored["loss"], rtol=2e-5, atol=2e-5)
    golden.close_digest(out.intermediate_output.image_embeds, stored, "image_embeds")
    golden.close(out.intermediate_output.encoder_output.last_hidden_state[:, 0], stored["fusion_cls"])


@SLOW
def test_vqa(tmp_path, monkeypatch):
    from lavis.models import answers

    name = "albef_vqa.vqav2"
    model, stored, case = (
        golden.load(name, tmp_path, is_eval=False),
        golden.outputs(name),
        golden.inputs(name),
    )
    samples = golden.step_samples(name)
    with torch.no_grad():
        out = golden.train_step(model, samples)
    inner = out.intermediate_output
    golden.close(out.loss, stored["loss"], rtol=2e-5, atol=2e-5)
    golden.close(inner.decoder_output.loss, stored["decoder_loss_each"], rtol=2e-5, atol=2e-5)
    golden.close_digest(inner.image_embeds, stored, "image_embeds")
    golden.close_digest(inner.encoder_output.last_hidden_state, stored, "question_states")
    golden.close(inner.encoder_output.last_hidden_state[:, 0], stored["question_states_cls"])
    golden.close_digest(inner.decoder_output.logits, stored, "decoder_logits")
    np.testing.assert_array_equal(inner.decoder_labels.numpy(), stored["decoder_labels"])

    seen = []
    losses = answers.generation.sequence_losses
    monkeypatch.setattr(
        answers.generation, "sequence_losses", lambda *a: seen.append((a[2], losses(*a))) or seen[-1][1]
    )
    first = []
    model.text_decoder.register_forward_hook(lambda module, args, logits: first.append(logits))
    for key, candidates in (("rank", 128), ("rank3", 3)):
        seen.clear()
        first.clear()
        found = model.predict_answers(
            {k: samples[k] for k in ("image", "text_input")},
            case["answer_list"],
            candidates,
            return_scores=True,
        )
        assert found.texts == stored[f"{key}/answers"].tolist()
        golden.close(first[0][:, 0, :2000], stored[f"{key}/first_token_logits"])
        expected = stored[f"{key}/losses_in_topk_order"]
        ids, each = seen[0]
        golden.close(each.view(expected.shape), expected, rtol=2e-5, atol=2e-5)
        wanted = model._answers([case["answer_list"][i] for i in stored[f"{key}/topk_ids"].flatten()])[0]
        np.testing.assert_array_equal(ids[:, : wanted.shape[1]].numpy(), wanted.numpy())
        np.testing.assert_allclose(-np.array(found.logprobs), expected.min(1), rtol=2e-5)
