"""ROUGE-L of captions, equal to the official COCO caption evaluation.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004: the longest common subsequence with the
best reference for precision and the best for recall, which may be two different ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BETA = 1.2  # recall counts this much more than precision


def _common(masks: dict[str, int], length: int, tokens: list[str]) -> int:
    """Length of the longest common subsequence of a caption, as bit masks of its tokens' places, and another.

    One row of the dynamic program per token, all columns at once in one integer (Hyyrö, 2004): a column
    whose bit has become 0 is one where the row's length grows.
    """
    full = (1 << length) - 1
    row = full
    for token in tokens:
        matches = masks.get(token)
        if matches is not None:
            hit = row & matches
            row = (row + hit) | (row - hit)
    return length - (row & full).bit_count()


def rouge_l(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, NDArray[np.float64]]:
    """ROUGE-L.

    Args:
        predictions: P captions, tokens separated by single spaces (`lavis.metrics.ptb.tokenize`). As in the
            official code an empty caption counts as one empty token.
        references: P sequences of one or more such captions.

    Returns:
        The mean over items and (P,) the score of each. Fractions.

    Raises:
        ValueError: the numbers of items differ, there is none, or an item has no reference.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} items with references; "
            "expected the same number, one or more"
        )
    scores = []
    for place, (prediction, items) in enumerate(zip(predictions, references)):
        if not items or isinstance(items, str):
            raise ValueError(f"item {place} has no list of references; expected one or more")
        tokens = prediction.split(" ")
        masks: dict[str, int] = {}
        for i, token in enumerate(tokens):
            masks[token] = masks.get(token, 0) | (1 << i)
        precision = recall = 0.0
        for reference in items:
            other = reference.split(" ")
            common = _common(masks, len(tokens), other)
            precision = max(precision, common / len(tokens))
            recall = max(recall, common / len(other))
        if precision and recall:
            scores.append((1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision))
        else:
            scores.append(0.0)
    each = np.array(scores)
    return float(each.mean()), each
