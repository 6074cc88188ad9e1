"""Recall equals the original's on its stored cases, and what recall is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis.metrics.retrieval import ranks_of_first_match, recall_percent, retrieval_scores
from tests.golden import REFERENCE

CASES = json.loads((REFERENCE / "metrics" / "retrieval.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c["philox_key"]))
def test_stored_cases(case):
    rng = np.random.Generator(np.random.Philox(key=case["philox_key"]))
    i2t = rng.standard_normal((20, 100), dtype=np.float32)
    t2i = rng.standard_normal((100, 20), dtype=np.float32)
    for j in range(100):
        i2t[j // 5, j] += np.float32(case["boost"])
        t2i[j, j // 5] += np.float32(case["boost"])
    if case["masked"]:
        i2t[rng.random((20, 100)) < 0.3] = -100.0
    txt2img = {j: j // 5 for j in range(100)}
    img2txt = {i: list(range(5 * i, 5 * i + 5)) for i in range(20)}
    found = retrieval_scores(i2t, t2i, img2txt, txt2img)
    for key, value in found.items():
        assert value == pytest.approx(case["metrics"][key], rel=1e-9), key


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_rank_is_the_number_of_better_candidates(seed, queries, candidates):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(queries * candidates).reshape(queries, candidates).astype(float)
    right = [sorted(rng.choice(candidates, rng.integers(1, candidates + 1), replace=False)) for _ in scores]
    for row, mine, rank in zip(scores, right, ranks_of_first_match(scores, right)):
        assert rank == (row > row[mine].max()).sum()
    assert recall_percent(ranks_of_first_match(scores, right), candidates) == 100.0


def ordered_ranks(scores, matches):
    """By sorting, which ties make arbitrary."""
    ranks = []
    for row, right in zip(scores, matches):
        place = np.empty(len(row), dtype=int)
        place[np.argsort(row)[::-1]] = np.arange(len(row))
        ranks.append(place[np.asarray(right)].min())
    return ranks


@given(st.integers(0, 10_000), st.integers(1, 600), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_counting_equals_sorting_where_there_are_no_ties(seed, queries, candidates):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(queries * candidates).reshape(queries, candidates).astype(np.float32)
    right = [rng.integers(0, candidates, rng.integers(1, 4)).tolist() for _ in scores]  # some twice
    assert ranks_of_first_match(scores, right).tolist() == ordered_ranks(scores, right)


def test_ties_count_against_the_query_and_right_candidates_do_not_compete():
    assert ranks_of_first_match(np.zeros((2, 5)), [[0], [4]]).tolist() == [4, 4]
    scores = np.array([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert ranks_of_first_match(scores, [[1, 2]]).tolist() == [1]
    assert ranks_of_first_match(scores, [[1, 2, 3]]).tolist() == [0]
    with pytest.raises(ValueError, match="scores of query 0 are not finite"):
        ranks_of_first_match(np.array([[np.nan, 1.0]]), [[1]])


def test_nothing_to_find_is_an_error():
    with pytest.raises(ValueError, match="query 1 has no right candidate"):
        ranks_of_first_match(np.zeros((2, 2)), [[0], []])
    with pytest.raises(ValueError, match="candidates 0 to 2, and scores have 2"):
        ranks_of_first_match(np.zeros((2, 2)), [[0], [2]])
