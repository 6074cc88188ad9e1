"""n-grams of many captions at once, as numpy arrays of numbers; BLEU and CIDEr are sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Captions:
    """Predictions and references as token numbers. P predictions, R references in all, C = P + R captions.

    Captions 0 … P-1 are the predictions, the references follow in order.
    """

    tokens: Ints  # all captions end to end
    starts: Ints  # (C + 1,) where each caption begins
    items: Ints  # (C,) the item, 0 … P-1, that a caption belongs to
    vocabulary: int  # number of different tokens

    @property
    def lengths(self) -> Ints:
        return np.diff(self.starts)  # (C,) in tokens

    @property
    def predictions(self) -> int:
        return int(self.items[-1]) + 1


@dataclass(frozen=True)
class NGrams:
    """Each n-gram of each caption once. `gram` numbers the n-grams of one n; equal numbers, equal n-grams."""

    caption: Ints
    gram: Ints
    count: Ints
    kinds: int  # number of different n-grams


def encode(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Captions:
    """Number the tokens of captions.

    Args:
        predictions: P tokenized captions, tokens separated by white space.
        references: P sequences of one or more tokenized captions.

    Raises:
        ValueError: there is no item, the numbers of items differ, or an item has no reference.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} items with references; "
            "expected the same number, one or more"
        )
    lacking = [i for i, r in enumerate(references) if len(r) == 0 or isinstance(r, str)]
    if lacking:
        raise ValueError(
            f"item {lacking[0]} (one of {len(lacking)} such) has no list of references; expected one or more"
        )
    numbers: dict[str, int] = {}
    tokens: list[int] = []
    starts = [0]
    for caption in [*predictions, *(r for item in references for r in item)]:
        tokens.extend([numbers.setdefault(word, len(numbers)) for word in caption.split()])
        starts.append(len(tokens))
    owners = np.arange(len(predictions))
    return Captions(
        tokens=np.array(tokens, dtype=np.int64),
        starts=np.array(starts, dtype=np.int64),
        items=np.concatenate([owners, np.repeat(owners, [len(r) for r in references])]),
        vocabulary=len(numbers),
    )


def ngrams(captions: Captions, longest: int) -> list[NGrams]:
    """The n-grams of all captions for n = 1 … longest."""
    tokens, starts = captions.tokens, captions.starts
    owner = np.repeat(np.arange(len(starts) - 1), captions.lengths)  # caption of each token
    place = np.arange(len(tokens))
    room = starts[owner + 1] - place  # tokens from here to the end of the caption
    gram, kinds = tokens, max(captions.vocabulary, 1)
    out = []
    for n in range(1, longest + 1):
        if n > 1:  # an n-gram is the (n-1)-gram that starts here and the token behind it
            fits = room[place] >= n
            place = place[fits]
            pairs = gram[fits] * max(captions.vocabulary, 1) + tokens[place + n - 1]
            found, gram = np.unique(pairs, return_inverse=True)
            kinds = max(len(found), 1)
        keys, count = np.unique(owner[place] * kinds + gram, return_counts=True)
        out.append(NGrams(keys // kinds, keys % kinds, count, kinds))
    return out
