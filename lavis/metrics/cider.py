"""CIDEr of captions, equal to the official COCO caption evaluation (the variant CIDEr-D).

Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", 2015: the cosine of tf-idf vectors
of n-grams, averaged over n = 1 … 4 and over references, with clipped counts and a penalty for another
length. Document frequencies come from the references given, so a score belongs to its whole set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lavis.metrics.ngrams import encode, ngrams

_LONGEST = 4
_SIGMA = 6.0  # width of the length penalty, in bigrams
_SCALE = 10.0


def cider(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, NDArray[np.float64]]:
    """CIDEr-D.

    Args:
        predictions: P tokenized captions (`lavis.metrics.ptb.tokenize`).
        references: P sequences of one or more tokenized captions.

    Returns:
        The mean over items and (P,) the score of each, on the official scale from 0 to 10. With a single
        item every n-gram is in every document, so the score is 0.

    Raises:
        ValueError: the numbers of items differ, there is none, or an item has no reference.
    """
    captions = encode(predictions, references)
    p = captions.predictions
    items = captions.items
    owner = items[p:]  # (R,) item of each reference
    bigrams = np.maximum(captions.lengths - 1, 0).astype(np.float64)
    penalty = np.exp(-((bigrams[owner] - bigrams[p:]) ** 2) / (2 * _SIGMA**2))  # (R,)
    similarity = np.zeros(len(owner))
    for grams in ngrams(captions, _LONGEST):
        key = items[grams.caption] * grams.kinds + grams.gram
        ours = grams.caption < p
        found = np.sort(key[~ours])  # an n-gram counts once per item, however many references have it
        once = found[np.concatenate([[True], found[1:] != found[:-1]])] if len(found) else found
        documents = np.bincount(once % grams.kinds, minlength=grams.kinds)
        rarity = np.log(float(p)) - np.log(np.maximum(1.0, documents))
        weight = grams.count * rarity[grams.gram]
        norm = np.sqrt(np.bincount(grams.caption, weights=weight**2, minlength=len(items)))
        # for each n-gram of a reference: its weight in the prediction (keys of predictions are sorted)
        keys = key[ours]
        if len(keys) == 0:
            continue
        place = np.minimum(np.searchsorted(keys, key[~ours]), len(keys) - 1)
        in_prediction = np.where(keys[place] == key[~ours], weight[ours][place], 0.0)
        in_reference = weight[~ours]
        dot = np.bincount(
            grams.caption[~ours] - p,
            weights=np.minimum(in_prediction, in_reference) * in_reference,
            minlength=len(owner),
        )
        norms = norm[owner] * norm[p:]
        similarity += dot / np.where(norms > 0, norms, 1.0)  # where a norm is 0, the product is 0 too
    count = np.bincount(owner, minlength=p)
    each = np.bincount(owner, weights=similarity * penalty, minlength=p) / _LONGEST / count * _SCALE
    return float(each.mean()), each
