"""The family of statements about two pictures (NLVR2): is the statement true or false?

Records: `images` (two paths below the media folder, left and right), `sentence`, `label` ("True" or
"False"). Samples: `image0`, `image1`, `text_input`, `label` (1: true, 0: false), `instance_id`.

In training the pictures change places half of the time, and "left" and "right" with them. With
`sentences_per_image` a training item is a pair of pictures; `text_input` and `label` are lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lavis.common.images import open_image
from lavis.common.values import suggest
from lavis.datasets.base import Grouping, Record
from lavis.datasets.collate import Sample

LABELS = {"False": 0, "True": 1}
_SIDES = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class SentenceOptions:
    """Settings of data sets of sentences to be judged.

    Args:
        sentences_per_image: None: an item is a sentence. G: a training item is a picture (or a pair), with G of
            its sentences drawn afresh each time (repeated only if there are fewer); it is encoded once for all.
    """

    sentences_per_image: int | None = None

    def __post_init__(self) -> None:
        if self.sentences_per_image is not None and self.sentences_per_image < 1:
            raise ValueError(f"sentences_per_image is {self.sentences_per_image}; it should be 1 or more")


@dataclass(frozen=True)
class NLVROptions(SentenceOptions):
    """See `SentenceOptions`.

    Args:
        flip: change the pictures' places in half of the training samples.
    """

    flip: bool = True


class SentenceDataset(Grouping):
    """One split of sentences that are right or wrong of pictures; a family says how those are shown."""

    Options: ClassVar[type] = SentenceOptions
    LABELS: ClassVar[Mapping[str, int]]

    @property
    def grouped(self) -> bool:
        return self.training and self.options.sentences_per_image is not None

    def show(self, record: Record, rng: np.random.Generator) -> tuple[Sample, Callable[[str], str]]:
        """The keys of a sample that hold the pictures, and what a sentence becomes where they are shown so."""
        raise NotImplementedError

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        if self._items is None:
            record = self.records[index]
            sample, told = self.show(record, rng)
            return sample | self._judged(record, told, rng, index) | {"instance_id": str(index)}
        chosen = self._drawn(index, rng, self.options.sentences_per_image)
        sample, told = self.show(self.records[chosen[0]], rng)
        judged = [self._judged(self.records[p], told, rng, p) for p in chosen]
        lists = {key: [j[key] for j in judged] for key in judged[0]}
        return sample | lists | {"instance_id": str(index)}

    def _judged(
        self, record: Record, told: Callable[[str], str], rng: np.random.Generator, index: int
    ) -> Sample:
        sentence = self.text(told(str(record["sentence"])), rng)
        return {"text_input": sentence, "label": label_of(record, self.LABELS, index)}


class NLVRDataset(SentenceDataset):
    """One split; see the module's docstring for records and samples."""

    Options: ClassVar[type] = NLVROptions
    LABELS = LABELS

    def pictured(self, record: Record) -> Hashable:
        """The files' names."""
        return tuple(record["images"])

    def pictures(self, record: Mapping[str, Any]) -> tuple[Image.Image, Image.Image]:
        """The record's left and right picture, RGB, as stored."""
        left, right = record["images"]
        return (
            open_image(self._media_path(str(left)), self._what_to_do(), plain=self.plain_images),
            open_image(self._media_path(str(right)), self._what_to_do(), plain=self.plain_images),
        )

    def flipped(self, sentence: str) -> str:
        """The statement that says the same of the pictures in each other's place."""
        return re.sub(r"\b(left|right)\b", lambda m: _SIDES[m[0]], sentence)

    def show(self, record: Record, rng: np.random.Generator) -> tuple[Sample, Callable[[str], str]]:
        """Both pictures, in training sometimes in each other's place."""
        pictures = self.pictures(record)
        told: Callable[[str], str] = str
        if self.training and self.options.flip and rng.random() < 0.5:
            pictures, told = pictures[::-1], self.flipped
        seen = [p if self._vis is None else self._vis(p, rng) for p in pictures]
        return {"image0": seen[0], "image1": seen[1]}, told


def label_of(record: Mapping[str, Any], labels: Mapping[str, int], index: int) -> int:
    """The number of a record's label.

    Raises:
        ValueError: it is not one of `labels`.
    """
    name = str(record["label"])
    if name not in labels:
        raise ValueError(f"record {index} has the label {record['label']!r}.{suggest(name, labels)}")
    return labels[name]
