"""Scores of captions: BLEU, ROUGE-L and CIDEr with the official tokenization, no Java."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lavis.metrics.bleu import bleu, bleu_statistics
from lavis.metrics.bootstrap import Statistic, mean_of
from lavis.metrics.cider import cider
from lavis.metrics.ptb import tokenize
from lavis.metrics.rouge import rouge_l


def _some(ids: Sequence[object]) -> str:
    shown = ", ".join(repr(i) for i in ids[:5])
    return f"{shown} and {len(ids) - 5} more" if len(ids) > 5 else shown


def aligned(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], tokenized: bool = False
) -> tuple[list[Hashable], list[str], list[list[str]]]:
    """Ids, tokenized predictions and tokenized references in one order.

    Raises:
        ValueError: the ids differ, there is none, or a value is of another type.
    """
    unanswered = [i for i in references if i not in predictions]
    unknown = [i for i in predictions if i not in references]
    if unanswered or unknown:
        problems = []
        if unanswered:
            problems.append(f"{len(unanswered)} without a prediction: {_some(unanswered)}")
        if unknown:
            problems.append(f"{len(unknown)} without references: {_some(unknown)}")
        text_ids = {str(i) for i in unknown}
        hint = ""
        if unanswered and any(str(i) in text_ids for i in unanswered):
            hint = " (some ids are text on one side and numbers on the other)"
        raise ValueError(f"predictions and references must have the same ids; {'; '.join(problems)}{hint}")
    if not references:
        raise ValueError("there is no caption to score; expected at least one prediction with references")
    ids = list(references)
    for i in ids:
        if not isinstance(predictions[i], str):
            raise ValueError(f"the prediction for {i!r} is {predictions[i]!r}; expected one caption as text")
        if isinstance(references[i], str) or len(references[i]) == 0:
            raise ValueError(f"the references for {i!r} are {references[i]!r}; expected a list of captions")
    if tokenized:
        return ids, [predictions[i] for i in ids], [list(references[i]) for i in ids]
    return ids, [tokenize(predictions[i]) for i in ids], [[tokenize(r) for r in references[i]] for i in ids]


def _all(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], tokenized: bool
) -> tuple[list[Hashable], dict[str, tuple[float, NDArray[np.float64]]]]:
    ids, ours, theirs = aligned(predictions, references, tokenized)
    total, each = bleu(ours, theirs)
    scores = {f"Bleu_{n + 1}": (float(total[n]), each[n]) for n in range(len(total))}
    scores["ROUGE_L"] = rouge_l(ours, theirs)
    scores["CIDEr"] = cider(ours, theirs)
    return ids, scores


def caption_scores(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], tokenized: bool = False
) -> dict[str, float]:
    """Scores of a set of captions, equal to those of the official COCO evaluation.

    Args:
        predictions: one caption per id.
        references: one or more captions per id, for the same ids.
        tokenized: the captions are tokenized already (lower case, no punctuation, single spaces).

    Returns:
        Bleu_1 … Bleu_4 and ROUGE_L as fractions from 0 to 1, CIDEr on its own scale from 0 to 10. Papers
        print all of them times 100: CIDEr 1.333 is their 133.3.

    Raises:
        ValueError: the ids differ (the missing ones are named), or there is nothing to score.
    """
    return {name: total for name, (total, _) in _all(predictions, references, tokenized)[1].items()}


def caption_scores_each(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], tokenized: bool = False
) -> dict[Hashable, dict[str, float]]:
    """The same scores for each caption; arguments and errors as in `caption_scores`.

    Returns:
        Id to scores. CIDEr of one caption depends on the references of all.
    """
    ids, scores = _all(predictions, references, tokenized)
    return {i: {name: float(each[k]) for name, (_, each) in scores.items()} for k, i in enumerate(ids)}


def caption_statistics(
    predictions: Mapping[Hashable, str], references: Mapping[Hashable, Sequence[str]], tokenized: bool = False
) -> dict[str, Statistic]:
    """The same scores as functions of sums over captions, in the order of `references`, for resampling.

    Arguments and errors as in `caption_scores`. CIDEr is here the mean of captions whose weights of words are those
    of the whole set, so a resample doesn't weigh words anew.
    """
    _, ours, theirs = aligned(predictions, references, tokenized)
    out = {f"Bleu_{n + 1}": s for n, s in enumerate(bleu_statistics(ours, theirs))}
    return out | {"ROUGE_L": mean_of(rouge_l(ours, theirs)[1]), "CIDEr": mean_of(cider(ours, theirs)[1])}
