"""In bfloat16, as `--precision bf16` and `run.precision: bf16` compute, full-size models are within 2 % of the peak of
the original's float32 outputs, and decide alike wherever float32 decides by more than that."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from lavis.common.device import autocast
from lavis.models.reranking import NOT_SCORED
from tests import golden
from tests.reference import recipe

pytestmark = [pytest.mark.golden, pytest.mark.slow, pytest.mark.usefixtures("all_cores")]
SHARE = 2e-2  # of the largest absolute value


@pytest.fixture(autouse=True)
def bf16():
    with torch.no_grad(), autocast(torch.device("cpu"), "bf16"):
        yield


def near(actual: torch.Tensor, expected: np.ndarray, peak: float | None = None) -> None:
    assert torch.is_autocast_enabled("cpu")
    found = actual.float().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=SHARE * (peak or np.abs(expected).max()))


def check(found: Mapping[str, torch.Tensor], stored: Mapping[str, np.ndarray]) -> None:
    """Compare each tensor with what is stored of it: all, its class token, or samples of it."""
    for key, value in found.items():
        assert {key, f"{key}_cls", f"{key}/sample"} & stored.keys(), key
        if key in stored:
            near(value, stored[key])
        if f"{key}_cls" in stored:
            near(value[:, 0], stored[f"{key}_cls"])
        if f"{key}/sample" in stored:
            shape, _, sample = recipe.digest(value.float())
            np.testing.assert_array_equal(shape, stored[f"{key}/shape"])
            near(torch.as_tensor(sample), stored[f"{key}/sample"], peak=stored[f"{key}/stats"][3])


def decide_alike(found: torch.Tensor, expected: np.ndarray) -> int:
    """Each row's largest value is where it is in float32, if that is clear there; the number of clear rows."""
    ordered = np.sort(expected, axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > SHARE * np.abs(expected).max()
    np.testing.assert_array_equal(
        found.float().numpy().argmax(-1)[clear], expected.argmax(-1)[clear], err_msg="decisions differ"
    )
    return int(clear.sum())


@pytest.mark.parametrize("name", ["blip_feature_extractor.base", "albef_feature_extractor.base"])
def test_features(tmp_path, name):
    model, samples = golden.load(name, tmp_path), golden.step_samples(name)
    for mode in ("image", "text", "multimodal"):
        features = model.extract_features(samples, mode=mode)
        check({f"{mode}/{key}": value for key, value in features.items()}, golden.outputs(name))


def test_clip(tmp_path):
    name = "clip.ViT-B-32"
    model, stored, samples = golden.load(name, tmp_path), golden.outputs(name), golden.step_samples(name)
    samples["text_input"] = samples["text_input"][:4]  # the original cuts off the end of the last one
    found = model.extract_features(samples)
    check({key: found[key] for key in ("image_embeds", "image_embeds_proj")}, stored)
    for key in ("text_embeds", "text_embeds_proj"):
        near(found[key], stored[key][:4])
    cosines = found.image_embeds_proj @ found.text_embeds_proj.T
    near(model.logit_scale.exp() * cosines, stored["logits_per_image"][:, :4])


def test_captions(tmp_path):
    """Token by token after what float32 wrote: beams are decided by margins far below what bfloat16 resolves."""
    name = "blip_caption.base_coco"
    model, stored, samples = golden.load(name, tmp_path), golden.outputs(name), golden.step_samples(name)
    out = model(samples)
    inner = out.intermediate_output
    check(
        {"loss": out.loss, "image_embeds": inner.image_embeds, "logits": inner.decoder_output.logits}, stored
    )
    near(inner.decoder_output.logits[:, 4, :2000], stored["logits_last"])

    ids = torch.from_numpy(stored["generate/greedy/ids"])

    def following() -> torch.Tensor:
        memory = model.text_decoder.project_memory(model.forward_encoder(samples))
        return model.text_decoder(ids, mask=ids != model.tokenizer.pad_id, memory=memory)

    with torch.autocast("cpu", enabled=False):
        expected = following()
    found = following()
    near(found, expected.numpy())
    assert decide_alike(found, expected.numpy()) > ids.numel() // 2


@pytest.mark.parametrize("name", ["blip_vqa.vqav2", "albef_vqa.vqav2"])
def test_questions(tmp_path, name):
    model, stored, case = (
        golden.load(name, tmp_path, is_eval=False),
        golden.outputs(name),
        golden.inputs(name),
    )
    samples = golden.step_samples(name)
    out = golden.train_step(model, samples)
    inner = out.intermediate_output
    found = {
        "loss": out.loss,
        "decoder_loss_each": inner.decoder_output.loss,
        "image_embeds": inner.image_embeds,
        "question_states": inner.encoder_output.last_hidden_state,
        "decoder_logits": inner.decoder_output.logits,
    }
    check(found, stored)
    ranked = model.predict_answers(
        {key: samples[key] for key in ("image", "text_input")},
        answer_list=case["answer_list"],
        inference_method="rank",
        return_scores=True,
    )
    losses = stored["rank/losses_in_topk_order"]
    near(-torch.tensor(ranked.logprobs), losses.min(1))
    second = np.sort(losses, axis=1)[:, 1]
    clear = second - losses.min(1) > SHARE * losses.max()
    assert [a for a, c in zip(ranked.texts, clear) if c] == stored["rank/answers"][clear].tolist()


def test_matching(tmp_path):
    name = "blip_image_text_matching.base"
    model, stored, case = golden.load(name, tmp_path), golden.outputs(name), golden.inputs(name)
    samples = golden.step_samples(name)
    itm = model(samples)
    swapped = model({**samples, "text_input": case["text_input_swapped"]})
    check({"itm": itm, "itc": model(samples, match_head="itc"), "itm_swapped": swapped}, stored)
    assert decide_alike(itm, stored["itm"]) == decide_alike(swapped, stored["itm_swapped"]) == 2


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("blip_retrieval.coco", ("score_i2t", "score_t2i")),
        ("albef_retrieval.coco", ("score_i2t", "score_t2i")),
        ("alpro_retrieval.msrvtt", ("score_v2t", "score_t2v")),
    ],
)
def test_retrieval(tmp_path, name, keys):
    model, stored, case = golden.load(name, tmp_path), golden.outputs(name), golden.inputs(name)
    samples = golden.step_samples(name)
    media = "video" if "video" in samples else "image"
    gallery = golden.Gallery(samples[media], case["sim_texts"], key=media)
    found = model.compute_sim_matrix(gallery, {"k_test": case["k_test"]})
    wanted = [stored[key] for key in keys]
    peak = max(np.abs(scores[scores != NOT_SCORED]).max() for scores in wanted)
    for scores, expected in zip(found, wanted):
        assert scores.dtype == np.float32
        both = (scores != NOT_SCORED) & (expected != NOT_SCORED)  # close calls decide what is re-ranked
        assert both.sum() >= (expected != NOT_SCORED).sum() / 2
        near(torch.from_numpy(scores[both]), expected[both], peak)


@pytest.mark.parametrize(
    "name",
    [
        "blip_nlvr.nlvr",
        "albef_nlvr.nlvr",
        "blip_classification.base",
        "albef_classification.ve",
        "alpro_qa.msrvtt",
    ],
)
def test_classes(tmp_path, name):
    model, stored, samples = golden.load(name, tmp_path), golden.outputs(name), golden.step_samples(name)
    key = "logits" if name.startswith("alpro") else "predictions"
    found = {key: model.predict(samples)["predictions"]}
    if "nlvr" in name:
        swapped = {**samples, "image0": samples["image1"], "image1": samples["image0"]}
        found[f"{key}_images_swapped"] = model.predict(swapped)["predictions"]
    check(found, stored)
    assert sum(decide_alike(value, stored[k]) for k, value in found.items()) > 0
