"""BLIP at full size equals the stored outputs of the original, through the public loader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lavis.models import load_model
from lavis.nn import cpu
from tests import golden

pytestmark = [pytest.mark.golden, pytest.mark.usefixtures("all_cores")]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    path = golden.write_official("blip_caption.base_coco", tmp_path_factory.mktemp("w") / "official.pth")
    model = load_model("blip_caption", "base_coco", is_eval=True, checkpoint=path)
    path.unlink()
    return model


def test_caption_loss_and_logits(captioner):
    stored = golden.outputs("blip_caption.base_coco")
    with torch.no_grad():
        out = captioner(golden.step_samples("blip_caption.base_coco"))
    assert out.keys() == ["intermediate_output", "loss", "loss_lm"]
    inner = out.intermediate_output
    golden.close(out.loss, stored["loss"], rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(inner.decoder_labels.numpy(), stored["labels"])
    golden.close_digest(inner.image_embeds, stored, "image_embeds")
    golden.close_digest(inner.decoder_output.logits, stored, "logits")
    golden.close(inner.decoder_output.logits[:, 4, :2000], stored["logits_last"])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("case", "packed"),
    [
        ("default", False),
        pytest.param("default", True, marks=SLOW),
        pytest.param("beam5", False, marks=SLOW),
        pytest.param("beam5", True, marks=SLOW),
        pytest.param("penalty", False, marks=SLOW),
        pytest.param("penalty", True, marks=SLOW),
        pytest.param("greedy", False, marks=SLOW),
        pytest.param("greedy", True, marks=SLOW),
    ],
)
def test_captions(captioner, case, packed, monkeypatch):
    stored, inputs = golden.outputs("blip_caption.base_coco"), golden.inputs("blip_caption.base_coco")
    seen = {}
    decode = captioner.tokenizer.decode
    monkeypatch.setattr(
        captioner.tokenizer, "decode", lambda ids, **how: seen.setdefault(tuple(ids), decode(ids, **how))
    )
    cpu.prepare(captioner, pack=packed)
    captions = captioner.generate(
        {"image": golden.images("blip_caption.base_coco")}, **inputs["generate"][case]
    )
    cpu.undo(captioner)
    assert captions == stored[f"generate/{case}/captions"].tolist()
    assert [list(ids) for ids in seen] == stored[f"generate/{case}/ids"].tolist()


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    path = golden.write_official("blip_vqa.vqav2", tmp_path_factory.mktemp("w") / "official.pth")
    model = load_model("blip_vqa", "vqav2", is_eval=True, checkpoint=path)
    path.unlink()
    return model


@SLOW
def test_vqa_loss(answerer):
    stored = golden.outputs("blip_vqa.vqav2")
    with torch.no_grad():
        out = answerer(golden.step_samples("blip_vqa.vqav2"))
    inner = out.intermediate_output
    golden.close(out.loss, stored["loss"], rtol=2e-5, atol=2e-5)
    golden.close(inner.decoder_output.loss, stored["decoder_loss_each"], rtol=2e-5, atol=2e-5)
    golden.close_digest(inner.image_embeds, stored, "image_embeds")
    golden.close_digest(inner.encoder_output.last_hidden_state, stored, "question_states")
    golden.close(inner.encoder_output.last_hidden_state[:, 0], stored["question_states_cls"])
    golden.close_digest(inner.decoder_output.logits, stored, "decoder_logits")
    np.testing.assert_array_equal(inner.decoder_labels.numpy(), stored["decoder_labels"])


@SLOW
@pytest.mark.parametrize(("case", "candidates"), [("rank", 128), ("rank3", 3)])
def test_vqa_rank(answerer, case, candidates, monkeypatch):
    from lavis.models import blip

    stored, inputs = golden.outputs("blip_vqa.vqav2"), golden.inputs("blip_vqa.vqav2")
    seen = []
    losses = blip.generation.sequence_losses
    monkeypatch.setattr(
        blip.generation, "sequence_losses", lambda *a: seen.append((a[2], losses(*a))) or seen[-1][1]
    )
    out = answerer.predict_answers(
        {"image": golden.images("blip_vqa.vqav2"), "text_input": inputs["text_input"]},
        inference_method="rank",
        answer_list=inputs["answer_list"],
        num_ans_candidates=candidates,
        return_scores=True,
    )
    assert out.texts == stored[f"{case}/answers"].tolist()
    expected = stored[f"{case}/losses_in_topk_order"]
    ids, each = seen[0]
    golden.close(each.view(expected.shape), expected, rtol=2e-5, atol=2e-5)
    wanted = answerer._answers([inputs["answer_list"][i] for i in stored[f"{case}/topk_ids"].flatten()])[0]
    np.testing.assert_array_equal(ids[:, 1].numpy(), wanted[:, 1].numpy())
    np.testing.assert_allclose(-np.array(out.logprobs), expected.min(1), rtol=2e-5)


@SLOW
@pytest.mark.parametrize("case", ["gen", "gen_short"])
def test_vqa_generate(answerer, case):
    # The original lets an answer depend on the padding of its question; only the longest question
    # of its batch is without. Ours must equal it there, alone and in the batch.
    stored, inputs = golden.outputs("blip_vqa.vqav2"), golden.inputs("blip_vqa.vqav2")
    image = golden.images("blip_vqa.vqav2")
    arguments = {"inference_method": "generate", **inputs["generate"][case]}
    both = answerer.predict_answers({"image": image, "text_input": inputs["text_input"]}, **arguments)
    alone = answerer.predict_answers({"image": image[1:], "text_input": inputs["text_input"][1]}, **arguments)
    assert both[1] == alone[0] == stored[f"{case}/answers"][1]
    first = answerer.predict_answers({"image": image[:1], "text_input": inputs["text_input"][0]}, **arguments)
    assert both[0] == first[0]
