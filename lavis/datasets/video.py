"""The video families: captions, questions, retrieval and dialogues about clips.

Records are those of the picture family with `video` (path below the media folder) in place of `image`, and
samples have the key `video` in place of `image`.

A video processor is given what `clip` returns: the path of a file, of which it decodes the frames that it
chooses (`lavis.datasets.clips`), or, from data sets that hold their frames, an array (T, h, w, 3) of uint8, RGB.
Without a processor the sample holds that very value. `video` may lack the file's suffix.

Questions are answered by classes in `VideoQADataset`: `answers` is the number of the answer in
`answer_list`, and the length of that list for an answer that is not in it, which is right for no class. Published
classes come as a file {answer: class}, the second of a split's `sources`. In `VideoVQADataset` they are
answered by words, as questions about pictures are, for models that write or rank answers.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lavis.common.files import CLIPS
from lavis.datasets.base import Dataset, Grouping, MissingMediaError, Plan, Record, locate
from lavis.datasets.captioning import CaptionDataset, as_list
from lavis.datasets.collate import Sample
from lavis.datasets.dialogue import DialogueDataset
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.sources import Source
from lavis.datasets.tables import PackedRecords, read_json, read_records
from lavis.datasets.vqa import VQADataset, VQAOptions, record_answers

logger = logging.getLogger(__name__)

CLASSES = "ans2label"  # of a recipe's annotation files, the one of the classes


class VideoDataset(Dataset):
    """What all of them share; comes before the family among the bases."""

    data_type: ClassVar[str] = "videos"

    def clip(self, record: Mapping[str, Any]) -> Path | np.ndarray:
        """The record's clip before the video processor; see the module's docstring."""
        path = self._media_path(str(record["video"]))
        if path.is_file():
            return path
        named = (path.with_name(path.name + suffix) for suffix in CLIPS)
        return next((file for file in named if file.is_file()), path)

    def media_names(self, record: Mapping[str, Any]) -> list[str]:
        if not isinstance(record.get("video"), str):
            return super().media_names(record)
        place, clip = self._media_path(record["video"]), self.clip(record)
        suffix = clip.name.removeprefix(place.name) if isinstance(clip, Path) else ""
        return [record["video"] + suffix]

    def picture(self, record: Mapping[str, Any]) -> Any:
        return self.clip(record)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        with self._advised():
            sample = super().make_sample(index, rng)
        return {"video" if key == "image" else key: value for key, value in sample.items()}

    @contextlib.contextmanager
    def _advised(self) -> Iterator[None]:
        """Say where clips are expected, when one is missing."""
        try:
            yield
        except MissingMediaError as e:
            raise MissingMediaError(f"{e}; {self._what_to_do()}", e.path) from e


class VideoCaptionDataset(VideoDataset, CaptionDataset):
    """Clips with captions; in evaluation a clip is one record, even where its file has one for each caption."""

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        built = super().load(split, plan)
        assert isinstance(built, VideoCaptionDataset)
        if not built.training and len(set(built._picture_number)) < len(built):
            first: dict[int, Record] = {}
            for number, record in zip(built._picture_number, built.records):
                one = first.setdefault(number, {**record, "caption": []})
                one["caption"] += as_list(record.get("caption", ()))  # a test split may have none
            built.records = PackedRecords(first.values())
            built._index_records()
        return built


class VideoRetrievalDataset(VideoDataset, RetrievalDataset):
    """Clips and the captions that belong to them; `image` lists the gallery's clips."""

    @property
    def image(self) -> list[str]:  # type: ignore[override]
        """The gallery's clips (paths as in the records), by index."""
        return [str(record["video"]) for record in self.records]


class VideoDialogueDataset(VideoDataset, DialogueDataset):
    """Dialogues about clips."""


class VideoVQADataset(VideoDataset, VQADataset):
    """Questions about clips with words as answers."""


@dataclass(frozen=True)
class VideoQAOptions(VQAOptions):
    """Settings of published questions about clips, beside those of `VQAOptions`; classes are grouped in training only.

    Args:
        words: answers are words, for models that write or rank them, instead of classes.
    """

    words: bool = False


class VideoQADataset(VideoDataset, Grouping):
    """Questions about clips with classes as answers.

    Args:
        answer_list: the classes' names; others as `Dataset`.

    Attributes:
        ans2label: {answer: class}.
    """

    Options: ClassVar[type] = VideoQAOptions

    @classmethod
    def worded(cls) -> Any:
        """What it is with the option `words`."""
        return _Worded

    def __init__(self, records: Sequence[Record], split: str, **kwargs: Any) -> None:
        self.answer_list: list[str] = list(kwargs.pop("answer_list", ()))
        self.ans2label = {answer: label for label, answer in enumerate(self.answer_list)}
        super().__init__(records, split, **kwargs)

    @property
    def grouped(self) -> bool:
        return self.training and self.options.questions_per_image is not None

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        return tuple(split for split in plan.sources if split != CLASSES)

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        """One split from its two files, questions and classes; a recipe may name the latter under `ans2label`."""
        declared = cls.sources.get(split, ())
        classes = (
            plan.sources.get(CLASSES)
            or plan.sources[split][1:]
            or (() if isinstance(declared, Source) else declared[1:])
        )
        if not classes:
            raise ValueError(
                f"{plan.name}/{split} needs two annotation files, questions and {{answer: class}}; name the second as "
                f"{plan.name}.build_info.annotations.{CLASSES}.storage"
            )
        paths = [locate(s, f"{plan.name}/{split}") for s in (plan.sources[split][0], classes[0])]
        ans2label = read_classes(paths[1])
        kind = cls.worded() if plan.options.words else cls
        records: Sequence[Record] = read_records(paths[0])
        if kind is cls and split in cls.train_splits:
            records = _with_a_class(records, ans2label, f"{plan.name}/{split}")
        built = kind(
            records,
            split,
            vis_root=plan.vis_root,
            options=plan.options,
            annotation_paths=paths,
            answer_list=sorted(ans2label, key=ans2label.__getitem__),
        )
        built.name = plan.name  # type: ignore[misc]  # where answers are words, the class is another
        return built

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        if self._items is None:
            record = self.records[index]
            return self._clip(record, rng) | self._asked(record, rng) | {"instance_id": str(index)}
        chosen = self._drawn(index, rng, self.options.questions_per_image)
        sample = self._clip(self.records[chosen[0]], rng)
        asked = [self._asked(self.records[p], rng) for p in chosen]
        return sample | {key: [a[key] for a in asked] for key in asked[0]} | {"instance_id": str(index)}

    def _clip(self, record: Record, rng: np.random.Generator) -> Sample:
        with self._advised():
            return {"video": self.image(record, rng)}

    def _asked(self, record: Record, rng: np.random.Generator) -> Sample:
        answer = record_answers(record)[0]
        return {
            "text_input": self.text(record["question"], rng),
            "answers": self.ans2label.get(answer, len(self.answer_list)),
            "question_id": record["question_id"],
        }


class _Worded(VideoVQADataset):
    """What a `VideoQADataset` is with the option `words`."""

    Options: ClassVar[type] = VideoQAOptions


class _Instructed(_Worded):
    """Samples for models that write: `answer` and, in training, `text_output` are the answer's word."""

    def _single(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        sample: Sample = {
            "image": self.image(record, rng),
            "text_input": self.text(record["question"], rng),
            "question_id": record["question_id"],
            "instance_id": str(index),
        }
        if not set(self.answer_keys) & set(record):  # a test split may have none
            return sample
        answer = record_answers(record)[0]
        return sample | {"answer": answer, "text_output": answer}


class InstructVideoQADataset(VideoQADataset):
    """Questions about videos with words as answers, for models that write them."""

    @classmethod
    def worded(cls) -> Any:
        return _Instructed

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        return super().load(split, replace(plan, options=replace(plan.options, words=True)))


def read_classes(path: Path) -> dict[str, int]:
    """The content of a JSON file {answer: class}.

    Raises:
        ValueError: it is something else, or its classes aren't 0, 1, … in some order, each once.
    """
    classes = read_json(path)
    if not isinstance(classes, dict) or not all(type(label) is int for label in classes.values()):
        raise ValueError(f"{path} should hold a JSON object {{answer: class}}, classes being whole numbers")
    if sorted(classes.values()) != list(range(len(classes))):
        most = len(classes) - 1
        raise ValueError(f"{path}: the classes of {most + 1} answers should be 0 to {most}, each once")
    return classes


def _with_a_class(records: Sequence[Record], ans2label: Mapping[str, int], what: str) -> Sequence[Record]:
    """The records whose answer is a class: from the others nothing can be learnt."""
    kept = [r for r in records if record_answers(r)[0] in ans2label]
    if len(kept) == len(records):
        return records
    logger.info(
        "%s: %d of %d questions have an answer that is no class; they are left out",
        what, len(records) - len(kept), len(records),
    )  # fmt: skip
    return PackedRecords(kept)
