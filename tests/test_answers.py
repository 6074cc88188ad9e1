"""Answers to choose from, arguments and images that models are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lavis.common.registry import registry

ANSWERERS = {"blip_vqa": "image", "albef_vqa": "image", "blip_video_qa": "video"}


def _model(name: str) -> Any:
    torch.manual_seed(0)
    cls = registry.get_model_class(name)
    model_type = "tiny" if "tiny" in cls.PRESETS else "tiny_shapes"
    return cls.from_config({"model_type": model_type, "weights": "none"}).eval()


def _samples(name: str) -> dict[str, Any]:
    torch.manual_seed(1)
    shape = (1, 3, 64, 64) if ANSWERERS[name] == "image" else (1, 3, 2, 64, 64)
    return {ANSWERERS[name]: torch.randn(shape), "text_input": ["what is it?"]}


@pytest.mark.parametrize("name", sorted(ANSWERERS))
def test_answers_that_read_alike_are_one(name: str) -> None:
    model, samples = _model(name), _samples(name)
    answers = ["red", "blue", "green", "two"]
    once = model.predict_answers(
        samples, answer_list=answers, inference_method="rank", num_ans_candidates=4, return_scores=True
    )
    twins = ["red", "Red", "blue", "red ", "RED", "blue", "green", "two", "green"]
    again = model.predict_answers(
        samples, answer_list=twins, inference_method="rank", num_ans_candidates=4, return_scores=True
    )
    assert again.texts == once.texts
    assert again.scores == pytest.approx(once.scores, rel=1e-4)
    chosen = model.choose(samples, [["red", "Red", "blue", "red"]], return_scores=True)
    alone = model.choose(samples, [["red", "blue"]], return_scores=True)
    assert chosen.texts == alone.texts and chosen.scores == pytest.approx(alone.scores, rel=1e-4)


@pytest.mark.parametrize("name", sorted(ANSWERERS))
def test_unknown_arguments_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        _model(name).predict_answers(_samples(name), answer_list=["a", "b"], inference_method="rank", foo=2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize(
    ("name", "key"), [("blip_vqa", "image"), ("blip_video_qa", "video"), ("clip", "image")]
)
def test_levels_of_pixels_are_no_normalised_values(name: str, key: str, dtype: torch.dtype) -> None:
    model = _model(name)
    shape = (1, 3, 64, 64) if key == "image" else (1, 3, 2, 64, 64)
    media = torch.ones(shape, dtype=dtype)
    message = (
        rf"samples\['{key}'\] is a tensor of {str(dtype)[6:]}.*floating-point numbers: give the Pillow image"
    )
    with pytest.raises(ValueError, match=message):
        if name == "clip":
            model.encode_image(media)
        else:
            model.predict_answers({key: media, "text_input": ["a?"]}, inference_method="generate")
