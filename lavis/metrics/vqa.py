"""Accuracy of answers: VQAv2's official measure, A-OKVQA's, and plain equality. All in percent.

The official VQA measure compares an answer with the other nine of ten annotators, leaving out each in turn;
three who agree make it right. Its normalisation is mirrored with its quirks: only predictions get numbers,
articles and contractions treated; the annotators' answers get punctuation treated, and only where they are
not all equal; "none" is 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

_ENOUGH = 3  # annotators who must agree


def _words(text: str) -> list[str]:
    return text.split()


# The table of the VQA evaluation code (github.com/GT-Vision-Lab/VQA, BSD-2-Clause): data, its oddities kept.
# Left: as found in an answer. Regular entries, where the right side without its apostrophes is the left one:
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in _words(
        """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's
    how'd how'll how's I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've
    o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
    something'd something'll that's there'd there're there's they'd they'll they're they've 'twas wasn't
    we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've
    why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
    )
}
# double contractions, of which one apostrophe or the other is missing
for _word in _words(
    """couldn't've hadn't've he'd've it'd've mightn't've shouldn't've someone'd've something'd've
    there'd've they'd've who'd've wouldn't've you'd've somebody'd've we'd've she'd've I'd've"""
):
    _first, _, _last = _word.rpartition("'")
    _CONTRACTIONS[_first.replace("'", "") + "'" + _last] = _word
    _CONTRACTIONS[_first + _last] = _word
_CONTRACTIONS.update(
    {
        "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "somebody'd": "somebodyd",
        "yall'll": "y'all'll", "y'allll": "y'all'll", "yall'd've": "y'all'd've", "y'alld've": "y'all'd've",
        "y'all'dve": "y'all'd've",
    }
)  # fmt: skip

_NUMBERS = {w: str(i) for i, w in enumerate(_words("zero one two three four five six seven eight nine ten"))}
_NUMBERS["none"] = "0"
_ARTICLES = frozenset(["a", "an", "the"])
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_COMMA = re.compile(r"\d,\d")
# The official pattern means to spare decimal points; its look-behind is misspelt, so "3." loses its point
# and "3.5" keeps it only for the digit that follows. Its flag argument lands in the place of a count.
_POINT = re.compile(r"\.(?!\d)")
_POINT_COUNT = int(re.UNICODE)


def strip_punctuation(answer: str) -> str:
    """The official treatment of punctuation, which the annotators' answers get as well.

    A mark beside a space goes, another becomes a space; with a comma between digits all marks go.
    """
    joined = _NUMBER_COMMA.search(answer) is not None
    out = answer
    for mark in _MARKS:
        if mark in answer:
            beside_space = joined or f"{mark} " in answer or f" {mark}" in answer
            out = out.replace(mark, "" if beside_space else " ")
    return _POINT.sub("", out, count=_POINT_COUNT)


def normalize_answer(answer: str) -> str:
    """A predicted answer as the official evaluation compares it."""
    words = strip_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join([_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES])


def _answers(truth: Mapping[str, Any], question_id: Hashable) -> list[str]:
    answers = truth.get("answers")
    if isinstance(answers, str) or not isinstance(answers, Sequence) or len(answers) == 0:
        raise ValueError(f"question {question_id!r}: 'answers' is {answers!r}; expected one or more answers")
    return [a["answer"] if isinstance(a, Mapping) else a for a in answers]


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of one answer, as a fraction.

    Args:
        prediction: the answer given.
        answers: those of the annotators, ten in VQAv2. With four or more this is the official formula. With
            fewer no answer could be fully right under it: then agreeing with all others is enough, and a
            single annotator's answer is simply compared.
    """
    ours = normalize_answer(prediction)
    if len(set(answers)) > 1:
        answers = [strip_punctuation(a) for a in answers]
    hits = [a == ours for a in answers]
    if len(hits) == 1:
        return float(hits[0])
    total = sum(hits)
    enough = min(_ENOUGH, len(hits) - 1)
    return sum(min(1.0, (total - hit) / enough) for hit in hits) / len(hits)


def _paired(
    records: Sequence[Mapping[str, Any]], ground_truth: Mapping[Hashable, Mapping[str, Any]]
) -> list[tuple[Hashable, str, Mapping[str, Any]]]:
    """(id, prediction, truth) of each record, after checking that each question is answered once."""
    out = []
    seen: set[Hashable] = set()
    for record in records:
        if "question_id" not in record or "answer" not in record:
            raise ValueError(f"record {dict(record)!r} lacks question_id or answer")
        question = record["question_id"]
        if question not in ground_truth:
            raise ValueError(f"question {question!r} is not among the {len(ground_truth)} ground truths")
        if question in seen:
            raise ValueError(f"question {question!r} is answered twice")
        seen.add(question)
        out.append((question, str(record["answer"]), ground_truth[question]))
    if not out:
        raise ValueError("there is no answer to score")
    if len(seen) < len(ground_truth):
        missing = [q for q in ground_truth if q not in seen]
        shown = ", ".join(repr(q) for q in missing[:5])
        raise ValueError(
            f"{len(missing)} of {len(ground_truth)} questions have no answer: {shown}"
            f"{' …' if len(missing) > 5 else ''}; leave them out of the ground truth to score the rest"
        )
    return out


def _percent(values: Sequence[float]) -> float:
    return 100.0 * sum(values) / len(values)


def _summary(name: str, scored: Sequence[tuple[float, Mapping[str, Any]]]) -> dict[str, float]:
    overall = _percent([s for s, _ in scored])
    out = {f"{name}_percent": overall, "agg_metrics": overall}
    for kind in ("answer_type", "question_type"):
        groups: dict[str, list[float]] = defaultdict(list)
        for score, truth in scored:
            if truth.get(kind):
                groups[str(truth[kind])].append(score)
        out.update({f"{kind}/{group}_percent": _percent(values) for group, values in sorted(groups.items())})
    return out


def vqa_accuracy(
    records: Sequence[Mapping[str, Any]], ground_truth: Mapping[Hashable, Mapping[str, Any]]
) -> dict[str, float]:
    """Official VQAv2 accuracy in percent.

    Args:
        records: {"question_id", "answer"}, one for each question of the ground truth.
        ground_truth: question id to {"answers", "question_type", "answer_type"}. Answers are text, or
            mappings with the text under "answer", ten in VQAv2; for fewer than four see `answer_accuracy`.
            The types may be missing.

    Returns:
        "overall_percent" (also under "agg_metrics"), "answer_type/<type>_percent" and
        "question_type/<type>_percent". The official program rounds them to two decimals.

    Raises:
        ValueError: a question is missing, unknown or answered twice, or has no true answer.
    """
    return _summary(
        "overall", [(answer_accuracy(p, _answers(t, q)), t) for q, p, t in _paired(records, ground_truth)]
    )


def aokvqa_accuracy(
    records: Sequence[Mapping[str, Any]], ground_truth: Mapping[Hashable, Mapping[str, Any]]
) -> dict[str, float]:
    """A-OKVQA's direct-answer accuracy in percent: three equal annotators make an answer right.

    Answers are compared as they are, without normalisation.

    Args, Raises: as `vqa_accuracy`; the answers are A-OKVQA's `direct_answers`.

    Returns:
        "overall_percent" (also under "agg_metrics") and, where there are types, one entry per type.
    """
    scored = []
    for question, prediction, truth in _paired(records, ground_truth):
        matches = sum(prediction == a for a in _answers(truth, question))
        scored.append((min(1.0, matches / _ENOUGH), truth))
    return _summary("overall", scored)


def own_accuracy(
    records: Sequence[Mapping[str, Any]], ground_truth: Mapping[Hashable, Mapping[str, Any]]
) -> dict[str, float]:
    """Accuracy in percent for data of one's own, where questions have any numbers of answers.

    An answer is right as far as three people gave it, or all of fewer: min(1, matches / min(3, answers)). Both sides
    are normalised, so a question counts the same whether one or several people agreed on its answer.

    Args, Raises: as `vqa_accuracy`.

    Returns:
        "accuracy_percent" (also under "agg_metrics") and, where there are types, one entry per type.
    """
    scored = []
    for question, prediction, truth in _paired(records, ground_truth):
        answers = [_comparable(a) for a in _answers(truth, question)]
        matches = answers.count(_comparable(prediction))
        scored.append((min(1.0, matches / min(_ENOUGH, len(answers))), truth))
    return _summary("accuracy", scored)


def _comparable(answer: str) -> str:
    """The normalised answer; itself where nothing is left, as of "a", which may name a choice."""
    return normalize_answer(answer) or answer.strip().lower()


def exact_match_percent(
    records: Sequence[Mapping[str, Any]], ground_truth: Mapping[Hashable, Mapping[str, Any]]
) -> dict[str, float]:
    """Percent of answers that equal a true one after normalisation of both: for data with one true answer.

    Args, Raises: as `vqa_accuracy`.

    Returns:
        "exact_match_percent" (also under "agg_metrics") and, where there are types, one entry per type.
    """
    scored = []
    for question, prediction, truth in _paired(records, ground_truth):
        right = {normalize_answer(a) for a in _answers(truth, question)}
        scored.append((float(normalize_answer(prediction) in right), truth))
    return _summary("exact_match", scored)
