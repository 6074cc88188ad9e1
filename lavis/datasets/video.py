"""The video families: captions, questions, retrieval and dialogues about clips.

Records are those of the picture family with `video` (path below the media folder) in place of `image`, and
samples have the key `video` in place of `image`.

A video processor is given what `clip` returns: the path of a file, or, from data sets that hold their
frames, an array (T, h, w, 3) of uint8, RGB. Without a processor the sample holds that very value.

Questions are answered by classes in `VideoQADataset`: `answers` is the number of the answer in
`answer_list`, and the length of that list for an answer that is not in it. In `VideoVQADataset` they are
answered by words, as questions about pictures are, for models that write or rank answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lavis.datasets.base import Dataset, Record
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.collate import Sample
from lavis.datasets.dialogue import DialogueDataset
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.vqa import VQADataset, record_answers


class VideoDataset(Dataset):
    """What all of them share; comes before the family among the bases."""

    data_type: ClassVar[str] = "videos"

    def clip(self, record: Mapping[str, Any]) -> Path | np.ndarray:
        """The record's clip before the video processor; see the module's docstring."""
        return self._media_path(str(record["video"]))

    def picture(self, record: Mapping[str, Any]) -> Any:
        return self.clip(record)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super().make_sample(index, rng)
        return {"video" if key == "image" else key: value for key, value in sample.items()}


class VideoCaptionDataset(VideoDataset, CaptionDataset):
    """Clips with captions."""


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


class VideoQADataset(VideoDataset):
    """Questions about clips with classes as answers.

    Args:
        answer_list: the classes' names; others as `Dataset`.

    Attributes:
        ans2label: {answer: class}.
    """

    def __init__(self, records: Sequence[Record], split: str, **kwargs: Any) -> None:
        self.answer_list: list[str] = list(kwargs.pop("answer_list", ()))
        self.ans2label = {answer: label for label, answer in enumerate(self.answer_list)}
        super().__init__(records, split, **kwargs)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        answer = record_answers(record)[0]
        return {
            "video": Dataset.image(self, record, rng),
            "text_input": self.text(record["question"], rng),
            "answers": self.ans2label.get(answer, len(self.answer_list)),
            "question_id": record["question_id"],
            "instance_id": str(index),
        }
