"""Retrieval with BLIP-2's first stage: scores of a gallery, fine-tuning, recipes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lavis.models import gallery, reranking
from lavis.nn.losses import similarities
from tests.golden import Gallery
from tests.helpers import blip2_reference as reference
from tests.helpers.blip2_reference import INPUTS, images
from tests.ranks import on_ranks
from tests.small import images as noise
from tests.small import random_model

TEXTS = ["a red star", "two large blue squares above a ring", "a green heart", "one"]


@pytest.mark.parametrize("name", ["blip2", "blip2_image_text_matching"])
def test_scores_equal_the_originals(tmp_path, name):
    described = reference.manifest("qformer")
    model = reference.build(described, reference.write(described, tmp_path / "model.pth"), name)
    wanted = reference.outputs("qformer")
    found = model.compute_sim_matrix(
        Gallery(images(), [*INPUTS["texts"], *INPUTS["same"]]), task_cfg={"k_test": 2}
    )
    for key, scores in zip(("score_i2t", "score_t2i"), found, strict=True):
        np.testing.assert_array_equal(scores == -100, wanted[key] == -100)
        np.testing.assert_allclose(scores, wanted[key], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("k_test", [1, 2, 16])
def test_scores_equal_the_plain_way(k_test):
    model = random_model("blip2_image_text_matching", max_txt_len=35)
    media, texts = noise(4, seed=3), [*TEXTS, "a very " + "very " * 60 + "long text", "a"]
    found = model.compute_sim_matrix(Gallery(media, texts), {"k_test": k_test})
    sims, fits = torch.zeros(4, len(texts)), torch.zeros(4, len(texts))
    for i in range(4):
        for t, text in enumerate(texts):
            one = {"image": media[i : i + 1], "text_input": [text]}
            with torch.no_grad():
                sims[i, t] = model(one, match_head="itc")
                fits[i, t] = model(one)[0, 1]
    for scores, plain, total in zip(found, (sims, sims.T), (sims + fits, (sims + fits).T), strict=True):
        chosen = torch.zeros_like(plain, dtype=torch.bool)
        chosen.scatter_(1, plain.topk(min(k_test, plain.shape[1]), dim=1).indices, True)
        expected = torch.where(chosen, total, torch.tensor(-100.0))
        np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_two_ranks_give_the_scores_of_one():
    model, loader = random_model("blip2"), Gallery(noise(5, seed=2), TEXTS)
    alone = model.compute_sim_matrix(loader, {"k_test": 2})
    for part in on_ranks(
        2, lambda rank: [m.tolist() for m in model.compute_sim_matrix(loader, {"k_test": 2})]
    ):
        for found, wanted in zip(part, alone, strict=True):
            np.testing.assert_array_equal(np.asarray(found, dtype=np.float32), wanted)


def test_candidates_of_several_images_are_matched_together(monkeypatch):
    """As on a GPU: some images have more candidates than others, one has none."""
    model = random_model("blip2")
    texts, _ = reranking.encode_texts(model, [f"{'very ' * (i % 5)}odd thing number {i}" for i in range(9)])
    which = [torch.tensor(w, dtype=torch.long) for w in ([3, 1, 8], list(range(9)), [], [6])]
    monkeypatch.setattr(reranking, "rows_at_once", lambda device: 6)
    with torch.no_grad():
        embeds = model.encode_image(noise(4))
        together = reranking.match_all(model, embeds, texts, which)
        for b, found in enumerate(together):
            (alone,) = reranking.match_all(model, embeds[b : b + 1], texts, which[b : b + 1])
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_products_of_several_vectors_are_the_largest_whatever_comes_at_once(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    vectors, texts = torch.randn(7, 3, 5, generator=rng), torch.randn(4, 5, generator=rng)
    wanted = torch.stack([(v @ texts.T).amax(dim=0) for v in vectors])
    torch.testing.assert_close(similarities(vectors, texts), wanted)
    for most in (1, 25, 10_000):
        monkeypatch.setattr(gallery, "PRODUCTS_AT_ONCE", most)
        torch.testing.assert_close(gallery.products(vectors, texts), wanted)
