"""BLEU of captions, equal to the official COCO caption evaluation.

Papineni et al., "BLEU: a Method for Automatic Evaluation of Machine Translation", 2002; against several
references, with the length of the closest one (of two equally close, the shorter).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lavis.metrics.bootstrap import Statistic
from lavis.metrics.ngrams import Captions, encode, ngrams

Floats = NDArray[np.float64]

# The official code adds these to counts, so that a caption without a match of length n scores about
# 1e-8 instead of 0 and an empty one divides by something.
_SMALL, _TINY = 1e-9, 1e-15


def _closest_lengths(captions: Captions) -> Floats:
    """(P,) for each prediction the length of its closest reference."""
    p = captions.predictions
    lengths, items = captions.lengths, captions.items[p:]
    references = lengths[p:]
    distance = np.abs(references - lengths[items])
    order = np.lexsort((references, distance, items))
    first = np.unique(items[order], return_index=True)[1]
    return references[order][first].astype(np.float64)


def _fold(correct: Floats, guess: Floats, length: Floats, closest: Floats) -> Floats:
    """BLEU-1 … BLEU-n from counts; `correct` and `guess` are (n, …), the lengths (…)."""
    n = len(correct)
    precision = (correct + _TINY) / (guess + _SMALL)
    order = np.arange(1, n + 1).reshape(n, *[1] * (precision.ndim - 1))
    bleu = np.cumprod(precision, axis=0) ** (1.0 / order)
    ratio = (length + _TINY) / (closest + _SMALL)
    return bleu * np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))


def bleu_counts(
    predictions: Sequence[str], references: Sequence[Sequence[str]], longest: int = 4
) -> tuple[Floats, Floats, Floats, Floats]:
    """What BLEU is made of: matches (longest, P), n-grams (longest, P), lengths (P,), closest lengths (P,).

    Args, Raises: as `bleu`.
    """
    captions = encode(predictions, references)
    p = captions.predictions
    length = captions.lengths[:p].astype(np.float64)
    guess = np.maximum(0.0, length - np.arange(longest)[:, None])  # (n, P)
    correct = np.zeros((longest, p))
    for n, grams in enumerate(ngrams(captions, longest)):
        key = captions.items[grams.caption] * grams.kinds + grams.gram
        ours = grams.caption < p
        # the most that any reference of the item has of each n-gram
        order = np.argsort(key[~ours], kind="stable")
        keys, first = np.unique(key[~ours][order], return_index=True)
        if len(keys) == 0:
            continue
        most = np.maximum.reduceat(grams.count[~ours][order], first)
        place = np.minimum(np.searchsorted(keys, key[ours]), len(keys) - 1)
        allowed = np.where(keys[place] == key[ours], most[place], 0)
        matched = np.minimum(grams.count[ours], allowed)
        correct[n] = np.bincount(grams.caption[ours], weights=matched, minlength=p)
    return correct, guess, length, _closest_lengths(captions)


def bleu(
    predictions: Sequence[str], references: Sequence[Sequence[str]], longest: int = 4
) -> tuple[Floats, Floats]:
    """BLEU-1 … BLEU-`longest`.

    Args:
        predictions: P tokenized captions (`lavis.metrics.ptb.tokenize`).
        references: P sequences of one or more tokenized captions.
        longest: longest n-gram.

    Returns:
        (longest,) scores of the whole, from summed counts, and (longest, P) scores of each item. Fractions.

    Raises:
        ValueError: the numbers of items differ, there is none, or an item has no reference.
    """
    correct, guess, length, closest = bleu_counts(predictions, references, longest)
    total = _fold(correct.sum(1), guess.sum(1), length.sum(), closest.sum())
    return total, _fold(correct, guess, length, closest)


def bleu_statistics(
    predictions: Sequence[str], references: Sequence[Sequence[str]], longest: int = 4
) -> list[Statistic]:
    """BLEU-1 … BLEU-`longest` as functions of sums over items, for resampling; arguments as `bleu`."""
    correct, guess, length, closest = bleu_counts(predictions, references, longest)
    parts = np.concatenate([correct, guess, [length], [closest]]).T  # (P, 2n + 2)

    def fold(n: int, sums: Floats) -> Floats:
        columns = np.moveaxis(sums, -1, 0)
        scores = _fold(columns[:longest], columns[longest : 2 * longest], columns[-2], columns[-1])
        return np.asarray(scores[n])

    return [Statistic(parts, functools.partial(fold, n)) for n in range(longest)]
