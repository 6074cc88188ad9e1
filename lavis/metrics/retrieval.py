"""Recall at K of retrieval, from scores. P pictures, T texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def ranks_of_first_match(scores: np.ndarray, matches: Sequence[Sequence[int]]) -> np.ndarray:
    """The best place that a right candidate takes in each query's order, 0 for the first.

    Args:
        scores: (queries, candidates); larger is better. Ties go to the later candidate, as in the original.
        matches: the right candidates of each query; a query with none is an error.

    Returns:
        (queries,) integers.
    """
    if len(matches) != len(scores):
        raise ValueError(f"scores have {len(scores)} queries, matches {len(matches)}")
    ranks = np.empty(len(scores), dtype=np.int64)
    for query, (row, right) in enumerate(zip(scores, matches)):
        if not len(right):
            raise ValueError(f"query {query} has no right candidate; leave it out")
        place = np.empty(len(row), dtype=np.int64)
        place[np.argsort(row)[::-1]] = np.arange(len(row))
        ranks[query] = place[np.asarray(right)].min()
    return ranks


def recall_percent(ranks: np.ndarray, k: int) -> float:
    """Share of queries with a right candidate among the first k, in percent."""
    return 100.0 * float(np.count_nonzero(ranks < k)) / len(ranks)


def retrieval_scores(
    scores_i2t: np.ndarray,
    scores_t2i: np.ndarray,
    img2txt: Mapping[int, Sequence[int]],
    txt2img: Mapping[int, int | Sequence[int]],
) -> dict[str, float]:
    """Recall of texts by pictures and of pictures by texts.

    Args:
        scores_i2t: (P, T). scores_t2i: (T, P). img2txt: right texts of each picture. txt2img: of each text.

    Returns:
        txt_r1, txt_r5, txt_r10 and their mean (texts found by pictures); img_r1 … (pictures found by texts);
        r_mean, the mean of the two means. All in percent.
    """
    texts = ranks_of_first_match(scores_i2t, [img2txt[i] for i in range(len(scores_i2t))])
    pictures = ranks_of_first_match(
        scores_t2i, [np.atleast_1d(txt2img[i]).tolist() for i in range(len(scores_t2i))]
    )
    out: dict[str, float] = {}
    for side, ranks in (("txt", texts), ("img", pictures)):
        for k in (1, 5, 10):
            out[f"{side}_r{k}"] = recall_percent(ranks, k)
        out[f"{side}_r_mean"] = sum(out[f"{side}_r{k}"] for k in (1, 5, 10)) / 3
    out["r_mean"] = (out["txt_r_mean"] + out["img_r_mean"]) / 2
    return out
