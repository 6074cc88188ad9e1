"""The question-answering family: questions about pictures.

Records: `image`, `question`, `question_id`, `answers` (list of strings, repeated where several people
gave the same one; or a single `answer`), optionally `image_id`, `question_type`, `answer_type`.
Training samples have `image`, `text_input`, `answers`, `weights`; evaluation samples have `image`,
`text_input`, `question_id`, `image_id`, `instance_id`.

With `questions_per_image` an item is a picture. A training sample then holds G questions, an
evaluation sample all of them: `text_input` and `question_id` are lists, and a batch repeats a picture's
last question under the id -1 until all its pictures have equally many. Drop answers with id -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lavis.datasets.base import Dataset, Record, draw, group_by
from lavis.datasets.collate import Sample

PADDING_ID = -1


@dataclass(frozen=True)
class VQAOptions:
    """Settings of every question-answering data set.

    Args:
        questions_per_image: None: an item is a question. G: an item is a picture, with G of its
            questions drawn afresh each time in training (repeated only if there are fewer), and all
            of its questions in evaluation.
    """

    questions_per_image: int | None = None

    def __post_init__(self) -> None:
        if self.questions_per_image is not None and self.questions_per_image < 1:
            raise ValueError(f"questions_per_image is {self.questions_per_image}; it should be 1 or more")


class VQADataset(Dataset):
    """One split of a question-answering data set; see the module's docstring."""

    Options: ClassVar[type] = VQAOptions

    def __init__(self, records: Sequence[Record], split: str, **kwargs: Any) -> None:
        self.answer_list: list[str] = list(kwargs.pop("answer_list", ()))
        super().__init__(records, split, **kwargs)
        self._index_records()

    def _index_records(self) -> None:
        grouped = self.options.questions_per_image is not None
        self._items: Sequence[Sequence[int]] | None = (
            group_by(r.get("image_id", r.get("image")) for r in self.records) if grouped else None
        )

    def __len__(self) -> int:
        return len(self.records) if self._items is None else len(self._items)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        if self._items is None:
            return self._single(index, rng)
        positions = self._items[index]
        sample: Sample = {"image": self.image(self.records[positions[0]], rng)}
        if self.training:
            chosen = [positions[i] for i in draw(rng, len(positions), self.options.questions_per_image)]
            weighted = [answer_weights(self.records[p]) for p in chosen]
            sample["text_input"] = [self.text(self.records[p]["question"], rng) for p in chosen]
            sample["answers"] = [list(w) for w in weighted]
            sample["weights"] = [list(w.values()) for w in weighted]
            return sample
        records = [self.records[p] for p in positions]
        return sample | {
            "text_input": [self.text(r["question"], rng) for r in records],
            "question_id": [r["question_id"] for r in records],
            "image_id": records[0].get("image_id", index),
            "instance_id": str(index),
        }

    def _single(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        sample: Sample = {
            "image": self.image(record, rng),
            "text_input": self.text(record["question"], rng),
        }
        if self.training:
            weighted = answer_weights(record)
            return sample | {"answers": list(weighted), "weights": list(weighted.values())}
        return sample | {
            "question_id": record["question_id"],
            "image_id": record.get("image_id", index),
            "instance_id": str(index),
        }

    def collater(self, samples: Sequence[Mapping[str, Any] | None]) -> Sample:
        """Samples to a batch; evaluation pictures get equally many questions (padding has the id -1)."""
        kept = [s for s in samples if s is not None]
        if self._items is not None and not self.training and kept:
            most = max(len(s["text_input"]) for s in kept)
            kept = [_padded(s, most) for s in kept]
        return super().collater(kept)

    def ground_truth(self) -> dict[Any, dict[str, Any]]:
        """What the metric needs, by question_id: answers, question, question_type, answer_type."""
        return {
            r["question_id"]: {
                "answers": record_answers(r),
                "question": r["question"],
                "question_type": r.get("question_type", ""),
                "answer_type": r.get("answer_type", ""),
            }
            for r in self.records
        }


def _padded(sample: Mapping[str, Any], length: int) -> Sample:
    missing = length - len(sample["text_input"])
    return dict(sample) | {
        "text_input": [*sample["text_input"], *[sample["text_input"][-1]] * missing],
        "question_id": [*sample["question_id"], *[PADDING_ID] * missing],
    }


def record_answers(record: Mapping[str, Any]) -> list[str]:
    """The record's answers, from `answers` or `answer`, as a list of strings."""
    found = record.get("answers", record.get("answer"))
    if found is None:
        raise ValueError(f"question {record.get('question_id')!r} has neither `answers` nor `answer`")
    return [found] if isinstance(found, str) else [str(a) for a in found]


def answer_weights(record: Mapping[str, Any]) -> dict[str, float]:
    """Each different answer with the share of people who gave it, in order of first appearance."""
    answers = record_answers(record)
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def yes_no_number_other(answer: str) -> str:
    """VQA's answer type: "yes/no", "number" or "other"."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else "other"
