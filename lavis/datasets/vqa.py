"""The question-answering family: questions about pictures.

Records: `image`, `question`, `question_id`, `answers` (list of strings, repeated where several people
gave the same one; or a single `answer`), optionally `image_id`, `question_type`, `answer_type`.
Training samples have `image`, `text_input`, `answers`, `weights`; evaluation samples have `image`,
`text_input`, `question_id`, `image_id`, `instance_id`.

An evaluation split may name further annotation files after that of its records: the answers to choose from
(a JSON list, or an object whose keys they are), then the questions and the annotations in the layout of the VQA
evaluation server, whose answers are the ground truth. Test splits have neither answers nor annotations.

With `questions_per_image` an item is a picture. A training sample then holds G questions, an
evaluation sample all of them: `text_input` and `question_id` are lists, and a batch repeats a picture's
last question under the id -1 until all its pictures have equally many. Drop answers with id -1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lavis.datasets.base import Grouping, Plan, Record, locate
from lavis.datasets.collate import Sample
from lavis.datasets.tables import read_json, read_records

PADDING_ID = -1
ANSWER_KEYS = ("answers", "answer")


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


class VQADataset(Grouping):
    """One split of a question-answering data set; see the module's docstring."""

    Options: ClassVar[type] = VQAOptions

    def __init__(self, records: Sequence[Record], split: str, **kwargs: Any) -> None:
        self.answer_list: list[str] = list(kwargs.pop("answer_list", ()))
        super().__init__(records, split, **kwargs)

    answer_keys: ClassVar[tuple[str, ...]] = ANSWER_KEYS  # of a record
    # "own", "official" or "exact", see `VQATask.accuracy`; None: told by its numbers of answers
    answer_rule: ClassVar[str | None] = None

    @classmethod
    def load(cls, split: str, plan: Plan) -> VQADataset:
        """One split from its annotation files; see the module's docstring."""
        paths = [locate(source, f"{plan.name}/{split}") for source in plan.sources[split]]
        training = split in cls.train_splits
        return cls(
            read_records(*(paths if training else paths[:1])),
            split,
            vis_root=plan.vis_root,
            options=plan.options,
            annotation_paths=paths,
            answer_list=() if training or len(paths) < 2 else read_answers(paths[1]),
        )

    @property
    def grouped(self) -> bool:
        return self.options.questions_per_image is not None

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        if self._items is None:
            return self._single(index, rng)
        positions = self._items[index]
        sample: Sample = {"image": self.image(self.records[positions[0]], rng)}
        if self.training:
            chosen = self._drawn(index, rng, self.options.questions_per_image)
            weighted = [self.weights(self.records[p]) for p in chosen]
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
            weighted = self.weights(record)
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

    def weights(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Each different answer with the share of people who gave it, in order of first appearance."""
        answers = record_answers(record, self.answer_keys)
        return {answer: count / len(answers) for answer, count in Counter(answers).items()}

    def ground_truth(self) -> dict[Any, dict[str, Any]]:
        """What the metric needs, by question_id: answers, question, question_type, answer_type.

        Empty where answers are not public.
        """
        if not self.training and len(self.annotation_paths) > 3:
            return official_truth(*self.annotation_paths[2:4])
        if len(self.records) and not set(self.answer_keys) & set(self.records[0]):
            return {}
        return {
            r["question_id"]: {
                "answers": record_answers(r, self.answer_keys),
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


def read_answers(path: Path) -> list[str]:
    """The answers to choose from: a JSON list, or the keys of a JSON object."""
    found = read_json(path)
    if not isinstance(found, (list, dict)) or not all(isinstance(a, str) for a in found):
        raise ValueError(f"{path} should hold a JSON list of answers, or an object whose keys are answers")
    return list(found)


def official_truth(questions: Path, annotations: Path) -> dict[Any, dict[str, Any]]:
    """The ground truth in the files of the VQA evaluation server, as `VQADataset.ground_truth` gives it."""
    asked = {q["question_id"]: q["question"] for q in _entries(questions, "questions")}
    return {
        a["question_id"]: {
            "answers": [given["answer"] for given in a["answers"]],
            "question": asked.get(a["question_id"], ""),
            "question_type": a.get("question_type", ""),
            "answer_type": a.get("answer_type", ""),
        }
        for a in _entries(annotations, "annotations")
    }


def _entries(path: Path, key: str) -> list[Record]:
    found = read_json(path)
    if not isinstance(found, dict) or not isinstance(found.get(key), list):
        raise ValueError(f"{path} should be a JSON object with a list {key!r}, as the VQA server's files are")
    entries: list[Record] = found[key]
    return entries


def record_answers(record: Mapping[str, Any], keys: Sequence[str] = ANSWER_KEYS) -> list[str]:
    """The record's answers, under the first of the keys that it has, as a list of strings."""
    found = next((record[key] for key in keys if record.get(key) is not None), None)
    if found is None:
        raise ValueError(f"question {record.get('question_id')!r} has no {' or '.join(keys)}")
    return [found] if isinstance(found, str) else [str(a) for a in found]


def yes_no_number_other(answer: str) -> str:
    """VQA's answer type: "yes/no", "number" or "other"."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdigit() else "other"
