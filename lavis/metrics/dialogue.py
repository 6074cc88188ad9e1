"""Ranks of the right answer among candidates: VisDial's metrics (Das et al. 2017; NDCG from the 2018 challenge).

N questions, C candidates each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lavis.metrics.finite import refuse_not_finite


def answer_ranks(scores: np.ndarray, right: Sequence[int] | np.ndarray) -> np.ndarray:
    """The place of each right answer, 1 for the first; candidates of equal score count as better.

    Args:
        scores: (N, C), larger is better. right: (N,) the right candidate of each question.

    Raises:
        ValueError: a score is not finite.
    """
    scores = np.asarray(scores)
    refuse_not_finite(scores, "the scores of question")
    own = scores[np.arange(len(scores)), np.asarray(right)]
    return (scores >= own[:, None]).sum(axis=1)


def ndcg(scores: np.ndarray, relevance: np.ndarray) -> float:
    """Normalised discounted cumulative gain, 0 to 1, the mean over questions.

    Args:
        scores: (N, C). relevance: (N, C), 0 for a wrong candidate up to 1; as many of the best candidates count
            as a question has relevant ones.

    Raises:
        ValueError: a question without any relevant candidate, or a score that is not finite.
    """
    scores, relevance = np.asarray(scores, dtype=np.float64), np.asarray(relevance, dtype=np.float64)
    if scores.shape != relevance.shape:
        raise ValueError(f"scores have shape {scores.shape}, relevance {relevance.shape}")
    refuse_not_finite(scores, "the scores of question")
    total = 0.0
    for number, (row, worth) in enumerate(zip(scores, relevance)):
        count = int((worth > 0).sum())
        if not count:
            raise ValueError(f"question {number} has no relevant candidate; leave it out")
        discount = 1 / np.log2(np.arange(count) + 2)
        found = worth[np.argsort(-row, kind="stable")][:count] @ discount
        total += found / (np.sort(worth)[::-1][:count] @ discount)
    return total / len(scores)


def rank_scores(ranks: np.ndarray) -> dict[str, float]:
    """r1, r5, r10 and mrr (mean reciprocal rank) in percent, and mean_rank, of ranks that begin at 1."""
    out = {f"r{k}_percent": 100.0 * float((ranks <= k).mean()) for k in (1, 5, 10)}
    out["mrr_percent"] = 100.0 * float((1 / ranks).mean())
    out["mean_rank"] = float(ranks.mean())
    return out


def dialogue_scores(
    scores: np.ndarray, right: Sequence[int] | np.ndarray, relevance: np.ndarray | None = None
) -> dict[str, float]:
    """`rank_scores` of the right answers, and ndcg_percent with `relevance`."""
    out = rank_scores(answer_ranks(scores, right))
    if relevance is not None:
        out["ndcg_percent"] = 100.0 * ndcg(scores, relevance)
    return out
