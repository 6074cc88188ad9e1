"""The family of statements about two pictures (NLVR2): is the statement true or false?

Records: `images` (two paths below the media folder, left and right), `sentence`, `label` ("True" or
"False"). Samples: `image0`, `image1`, `text_input`, `label` (1: true, 0: false), `instance_id`.

In training the pictures change places half of the time, and "left" and "right" with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lavis.common.registry import suggest
from lavis.datasets.base import Dataset, open_picture
from lavis.datasets.collate import Sample

LABELS = {"False": 0, "True": 1}
_SIDES = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class NLVROptions:
    """Settings of every data set of this family.

    Args:
        flip: change the pictures' places in half of the training samples.
    """

    flip: bool = True


class NLVRDataset(Dataset):
    """One split; see the module's docstring for records and samples."""

    Options: ClassVar[type] = NLVROptions

    def pictures(self, record: Mapping[str, Any]) -> tuple[Image.Image, Image.Image]:
        """The record's left and right picture, RGB, as stored."""
        left, right = record["images"]
        return (
            open_picture(self._media_path(str(left)), self._what_to_do()),
            open_picture(self._media_path(str(right)), self._what_to_do()),
        )

    def flipped(self, sentence: str) -> str:
        """The statement that says the same of the pictures in each other's place."""
        return re.sub(r"\b(left|right)\b", lambda m: _SIDES[m[0]], sentence)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        sentence, pictures = str(record["sentence"]), self.pictures(record)
        if self.training and self.options.flip and rng.random() < 0.5:
            sentence, pictures = self.flipped(sentence), pictures[::-1]
        seen = [p if self._vis is None else self._vis(p, rng) for p in pictures]
        return {
            "image0": seen[0],
            "image1": seen[1],
            "text_input": self.text(sentence, rng),
            "label": label_of(record, LABELS, index),
            "instance_id": str(index),
        }


def label_of(record: Mapping[str, Any], labels: Mapping[str, int], index: int) -> int:
    """The number of a record's label.

    Raises:
        ValueError: it is not one of `labels`.
    """
    name = str(record["label"])
    if name not in labels:
        raise ValueError(f"record {index} has the label {record['label']!r}.{suggest(name, labels)}")
    return labels[name]
