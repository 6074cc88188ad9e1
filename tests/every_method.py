"""What a tiny model gives by every public method, for tests that compare two states of one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lavis.models.base import BaseModel
from tests.small import images, random_model

TEXTS = ["a red star", "two large blue squares above a ring", "a green heart", "one"]
ANSWERS = ["red", "a blue ring", "two", "no"]


def every_method_model(name: str) -> BaseModel:
    """A tiny model of a name; one that could also rank answers only has a decoder, too."""
    writes = name in ("blip_vis_dialogue", "blip_video_dialogue")
    return random_model(name, **({"answering": "generate"} if writes else {}))


def samples_of(model: Any) -> dict[str, Any]:
    """Two images, videos or pairs of images, with a text each and whatever else a method may ask for."""
    texts = {"text_input": TEXTS[:2], "caption": TEXTS[2:], "dialog": [[("is it red?", "yes")], []]}
    if not hasattr(model.config, "image_size"):  # it reads features of videos
        rng = torch.Generator().manual_seed(1)
        return {"video": [torch.randn(n, model.config.len_video_ft, generator=rng) for n in (4, 2)], **texts}
    size = model.config.image_size
    video = torch.randn(2, 3, 2, size, size, generator=torch.Generator().manual_seed(1))
    return {
        "image": images(2, size), "image0": images(2, size), "image1": images(2, size, seed=1), "video": video,
        **texts,
        "answer_options": [ANSWERS, ANSWERS], "gt_index": torch.tensor([0, 1]),
    }  # fmt: skip


def results(model: Any) -> dict[str, Any]:
    """What a model gives by each public method that it has: flat lists of tensors, arrays, numbers and strings."""
    samples, out = samples_of(model), {}
    if hasattr(model, "zero_shot_classifier"):
        model.classifier = model.zero_shot_classifier(ANSWERS)
    media = samples.get(getattr(model, "MEDIA", "image"))

    class Gallery(list):  # type: ignore[type-arg]
        dataset = type("D", (), {"text": TEXTS, "__len__": lambda self: 2})()

    batch = {getattr(model, "MEDIA", "image"): media}
    calls: dict[str, Callable[[], Any]] = {
        "generate": lambda: model.generate(samples, num_beams=3, return_scores=True),
        "predict": lambda: model.predict(samples),
        "extract_features": lambda: list(model.extract_features(samples).values()),
        "embed_images": lambda: model.embed_images(media),
        "embed_texts": lambda: model.embed_texts(TEXTS),
        "embed_pairs": lambda: model.embed_pairs(media, TEXTS[:2]),
        "match_texts": lambda: model.match_texts(media, TEXTS),
        "match_scores": lambda: model.match_scores(samples),
        "compute_sim_matrix": lambda: model.compute_sim_matrix(Gallery([batch]), {"k_test": 3}),
        "explain_text": lambda: model.explain_text(
            {key: value[:1] for key, value in samples.items()}, TEXTS[0]
        ),
    }
    if hasattr(model, "predict_answers"):
        ranks = {"answer_list": ANSWERS, "inference_method": "rank", "return_scores": True}
        if hasattr(model, "choose"):
            calls["generate answers"] = lambda: model.predict_answers(
                samples, inference_method="generate", return_scores=True
            )
            calls["rank"] = lambda: model.predict_answers(samples, num_ans_candidates=3, **ranks)
        else:
            names = [str(i) for i in range(model.config.num_classes)]
            calls["rank"] = lambda: model.predict_answers(samples, answer_list=names)
    for name, call in calls.items():
        if name not in ("generate answers", "rank") and getattr(model, name, None) is None:
            continue
        if (
            name == "compute_sim_matrix"
            and not hasattr(model, "itm_head")
            and not hasattr(model, "classifier")
        ):
            continue  # a feature extractor has no head to re-rank with
        found = call()
        out[name] = leaves(found)
        assert out[name], name
    return out


def leaves(value: Any) -> list[Any]:
    if hasattr(value, "__dataclass_fields__"):
        value = [getattr(value, field) for field in value.__dataclass_fields__]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for each in value for leaf in leaves(each)]
    return [] if value is None else [value]


def assert_same(found: dict[str, Any], wanted: dict[str, Any], tolerance: float = 2e-4) -> None:
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        assert len(found[name]) == len(each), name
        for a, b in zip(found[name], each, strict=True):
            if isinstance(b, (torch.Tensor, np.ndarray, float)):
                a, b = torch.as_tensor(a), torch.as_tensor(b)
                message = lambda said, name=name: f"{name}: {said}"  # noqa: E731
                torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=message)
            else:
                assert a == b, name
