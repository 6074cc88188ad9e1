"""How often a training step waits for the device: what it wants to know of tensors on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.small import images, random_model
from tests.test_blip_heads import STEP, TEXTS, dialogue, nlvr, videos
from tests.waits import host_waits


def pairs(**more: Any) -> dict[str, Any]:
    return {"image": images(4), "text_input": TEXTS[:4], "image_id": torch.arange(4), **STEP, **more}


def questions() -> dict[str, Any]:
    answers = ["yes", "no", "two", "red", "a"]
    return pairs(answer=answers, weight=torch.ones(5), n_answers=torch.tensor([1, 2, 1, 1]))


def clips() -> dict[str, Any]:
    return {**pairs(), "video": videos(4, frames=8)}


# model, config, samples, waits. Those of captions and of contrast alone never wait. Matching asks once, at the end of
# the step, whether there was a wrong text or image to draw for each; of strings, questions and dialogues read the
# loader's numbers of answers or places, which are on the host (see test_encoded_batches for batches of tokens).
STEPS = {
    "captions": ("blip_caption", {}, lambda: pairs(text_input=[f"a picture of {t}" for t in TEXTS[:4]]), 0),
    "written dialogue": ("blip_vis_dialogue", {"answering": "generate"}, dialogue, 0),
    "contrast": ("clip", {}, pairs, 0),
    "retrieval": ("blip_retrieval", {"queue_size": 8}, pairs, 1),
    "pre-training": ("blip_pretrain", {"queue_size": 8}, pairs, 1),
    "ALBEF, retrieval": ("albef_retrieval", {"queue_size": 8}, pairs, 1),
    "ALBEF, pre-training": ("albef_pretrain", {"queue_size": 8}, pairs, 1),
    "ALPRO, retrieval": ("alpro_retrieval", {}, clips, 1),
    "questions": ("blip_vqa", {}, questions, 1),
    "ALBEF, questions": ("albef_vqa", {}, questions, 1),
    "ranked dialogue": ("blip_vis_dialogue", {}, dialogue, 1),
    "classes": ("blip_nlvr", {}, nlvr, 1),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_training_step_waits_for_the_device_no_more_than_it_must(step):
    name, config, samples, most = STEPS[step]
    model, given = random_model(name, **config).train(), samples()
    with host_waits() as waits:
        model(given).loss.backward()
    assert len(waits) <= most, waits


def test_waits_are_counted():
    x = torch.arange(3.0)
    with host_waits() as waits:
        assert x[0].item() == 0 and x.tolist() and bool(x[1]) and int(x[2]) == 2
        x[x > 1].sum()
        x.masked_fill(x > 1, 0.0)
        x[x > 1] = 0.0  # a number is filled in without counting places
    assert waits == ["item", "tolist", "__bool__", "__int__", "index by a mask"]
