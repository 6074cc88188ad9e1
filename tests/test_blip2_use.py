"""BLIP-2's first stage in inference: vectors, matching, zero-shot classification, index, heat maps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lavis.inference import Encoder, load
from lavis.inference.zero_shot import classify
from lavis.models import reranking
from lavis.nn.losses import similarities
from tests.small import images, random_model

TEXTS = [
    "a red star",
    "two large blue squares above a ring",
    "a green heart",
    "one",
    "a very " + "very " * 50,
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    loaded = load("blip2_image_text_matching/tiny", device="cpu")
    for p in loaded.model.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return Encoder(loaded)


# ------------------------------------------------------------------------------------------ vectors
def test_vectors_are_those_of_extract_features():
    model, media = random_model("blip2"), images(3)
    wanted = model.extract_features({"image": media}, "image").image_embeds_proj
    torch.testing.assert_close(model.embed_queries(media), wanted)
    torch.testing.assert_close(model.embed_images(media), F.normalize(wanted.mean(dim=1), dim=-1))
    texts = model.extract_features({"text_input": TEXTS[:4]}, "text").text_embeds_proj[:, 0]
    torch.testing.assert_close(model.embed_texts(TEXTS[:4]), texts)
    pairs = model.extract_features({"image": media, "text_input": TEXTS[:3]}).multimodal_embeds
    torch.testing.assert_close(model.embed_pairs(media, TEXTS[:3]), pairs.mean(dim=1))


@pytest.mark.parametrize("together", [1, 4, 256])
def test_every_image_is_matched_with_every_text(monkeypatch, together):
    """In chunks of any size, as by `forward` of each pair alone."""
    monkeypatch.setattr(reranking, "PAIRS_AT_ONCE", together)
    model, media = random_model("blip2_image_text_matching"), images(3)
    found = model.match_texts(media, TEXTS)
    cosines = similarities(found.images, found.texts)
    for b in range(3):
        for t, text in enumerate(TEXTS):
            pair = {"image": media[b : b + 1], "text_input": text}
            with torch.no_grad():
                torch.testing.assert_close(found.logits[b, t], model(pair)[0], rtol=1e-3, atol=1e-4)
                cosine = model(pair, match_head="itc")[0, 0]
            torch.testing.assert_close(cosines[b, t], cosine, rtol=1e-3, atol=1e-4)


def test_an_image_is_encoded_once_for_all_texts(monkeypatch):
    model, seen = random_model("blip2"), []
    whole = model.visual_encoder.forward
    monkeypatch.setattr(model.visual_encoder, "forward", lambda x: (seen.append(len(x)), whole(x))[1])
    model.match_texts(images(3), [f"text number {i}" for i in range(300)])
    assert seen == [3]


# ------------------------------------------------------------------------------------------ commands' ways
def test_cosines_are_the_largest_of_the_queries(encoder):
    media = images(3)
    vectors, texts = encoder.all_vectors(media), encoder.texts(TEXTS)
    assert vectors.shape == (3, 8, 64) and encoder.queries == 8
    wanted = torch.einsum("bqe,ne->bnq", vectors, texts).amax(dim=2)
    _, cosines = encoder.match_all(media, TEXTS)
    torch.testing.assert_close(cosines, wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(similarities(vectors, texts), wanted)
    # the mean's cosine is another number
    assert (similarities(encoder.images(media), texts) - wanted).abs().max() > 1e-3
    assert encoder.all_vectors([]).shape == (0, 8, 64)


def test_classes_are_compared_by_the_largest_of_the_queries(encoder):
    media, labels = images(2), ["red star", "blue ring", "heart"]
    templates = ["a picture of a {}", "there is a {}"]
    found = classify(encoder, media, labels, templates)
    mean = torch.stack([encoder.texts([t.format(n) for t in templates]).mean(dim=0) for n in labels])
    cosines = torch.einsum("bqe,le->blq", encoder.all_vectors(media), F.normalize(mean, dim=-1)).amax(dim=2)
    torch.testing.assert_close(found, (encoder.scale * cosines).softmax(dim=1), rtol=1e-3, atol=1e-4)
    by_head = classify(encoder, media, labels, head="itm")
    torch.testing.assert_close(by_head.sum(dim=1), torch.ones(2))
