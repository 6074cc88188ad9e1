"""VisDial's ranking metrics: worked examples and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis.metrics.dialogue import answer_ranks, dialogue_scores, ndcg

SCORES = np.array([[0.1, 0.9, 0.5, 0.2], [0.4, 0.3, 0.2, 0.1]])


def test_a_worked_example():
    found = dialogue_scores(SCORES, [2, 3])  # ranks 2 and 4
    assert found["r1_percent"] == 0 and found["r5_percent"] == found["r10_percent"] == 100
    assert found["mrr_percent"] == pytest.approx(100 * (1 / 2 + 1 / 4) / 2)
    assert found["mean_rank"] == 3
    # two relevant ones: the best two candidates of each question count
    relevance = np.array([[0, 0.5, 1.0, 0], [0, 0, 0, 1.0]])
    first = (0.5 + 1.0 / np.log2(3)) / (1.0 + 0.5 / np.log2(3))
    assert ndcg(SCORES, relevance) == pytest.approx((first + 0) / 2)


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_bounds_and_what_is_best(seed):
    rng = np.random.default_rng(seed)
    relevance = rng.choice([0, 0, 0.4, 1.0], size=(5, 12))
    relevance[:, 3] = 0.7
    scores = rng.normal(size=(5, 12))
    assert 0 <= ndcg(scores, relevance) <= 1
    assert ndcg(relevance, relevance) == pytest.approx(1)
    right = rng.integers(0, 12, 5)
    ranks = answer_ranks(scores, right)
    assert ((ranks >= 1) & (ranks <= 12)).all()
    scores[np.arange(5), right] = 100
    assert dialogue_scores(scores, right)["mrr_percent"] == 100


def test_a_model_that_scores_all_alike_gets_the_worst_rank():
    assert answer_ranks(np.zeros((2, 9)), [0, 4]).tolist() == [9, 9]


def test_wrong_input():
    with pytest.raises(ValueError, match="no relevant candidate"):
        ndcg(SCORES, np.zeros((2, 4)))
    with pytest.raises(ValueError, match="shape"):
        ndcg(SCORES, np.zeros((2, 3)))
