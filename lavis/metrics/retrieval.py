"""Recall at K of retrieval, from scores. P pictures, T texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lavis.metrics.finite import refuse_not_finite

_ROWS = 256  # queries that are compared at once, which bounds the memory


def ranks_of_first_match(
    scores: np.ndarray, matches: Sequence[Sequence[int]], what: str = "query"
) -> np.ndarray:
    """The best place that a right candidate takes in each query's order, 0 for the first.

    It is the number of wrong candidates that are scored as high or higher: ties count against the query, so that a
    model that scores all alike finds nothing.

    Args:
        scores: (queries, candidates); larger is better.
        matches: the right candidates of each query; a query with none is an error. what: messages call a query so.

    Returns:
        (queries,) integers.

    Raises:
        ValueError: a query has no right candidate, or one that there is no score of, or a score is not finite.
    """
    if len(matches) != len(scores):
        raise ValueError(f"scores have {len(scores)} queries, matches {len(matches)}")
    refuse_not_finite(scores, f"the scores of {what}")
    counts = np.array([len(right) for right in matches], dtype=np.int64)
    if not counts.all():
        raise ValueError(f"{what} {int(np.argmin(counts))} has no right candidate; leave it out")
    if not len(counts):
        return np.empty(0, dtype=np.int64)
    width, wanted = scores.shape[1], np.concatenate(matches).astype(np.int64)
    if wanted.min() < 0 or wanted.max() >= width:
        raise ValueError(f"matches name candidates {wanted.min()} to {wanted.max()}, and scores have {width}")
    # each right pair once, as query x candidates + candidate
    pairs = np.unique(np.repeat(np.arange(len(counts)), counts) * width + wanted)
    queries, right = np.divmod(pairs, width)
    starts = np.searchsorted(queries, np.arange(len(counts)))
    own = scores[queries, right]
    best = np.maximum.reduceat(own, starts)  # (queries,)
    as_high = np.add.reduceat((own >= best[queries]).astype(np.int64), starts)
    ranks = -as_high
    for start in range(0, len(scores), _ROWS):
        rows = slice(start, start + _ROWS)
        ranks[rows] += np.count_nonzero(scores[rows] >= best[rows, None], axis=1)
    return ranks


def text_ranks(scores: np.ndarray, img2txt: Mapping[int, Sequence[int]]) -> np.ndarray:
    """The best place that a picture's own texts take among all, 0 for the first; -1 for pictures without a text.

    Args:
        scores: (P, T). img2txt: right texts of each picture.

    Raises:
        ValueError: a score is not finite, or no picture has a text.
    """
    queries = [i for i in range(len(scores)) if len(img2txt[i])]
    if not queries:
        raise ValueError("no picture has a text, so there is nothing to find")
    if len(queries) == len(scores):
        return ranks_of_first_match(scores, [img2txt[i] for i in queries], "picture")
    refuse_not_finite(scores, "the scores of picture")  # before their numbers change
    ranks = np.full(len(scores), -1, dtype=np.int64)
    ranks[queries] = ranks_of_first_match(scores[queries], [img2txt[i] for i in queries])
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
        scores_i2t: (P, T). scores_t2i: (T, P). img2txt: right texts of each picture; one with none is no query, but
            a wrong candidate for all texts. txt2img: of each text.

    Returns:
        txt_r1, txt_r5, txt_r10 and their mean (texts found by pictures); img_r1 … (pictures found by texts);
        r_mean, the mean of the two means. All in percent.

    Raises:
        ValueError: a score is not finite, or no picture has a text.
    """
    texts = text_ranks(scores_i2t, img2txt)
    pictures = ranks_of_first_match(
        scores_t2i, [np.atleast_1d(txt2img[i]).tolist() for i in range(len(scores_t2i))], "text"
    )
    out: dict[str, float] = {}
    for side, ranks in (("txt", texts[texts >= 0]), ("img", pictures)):
        for k in (1, 5, 10):
            out[f"{side}_r{k}"] = recall_percent(ranks, k)
        out[f"{side}_r_mean"] = sum(out[f"{side}_r{k}"] for k in (1, 5, 10)) / 3
    out["r_mean"] = (out["txt_r_mean"] + out["img_r_mean"]) / 2
    return out
