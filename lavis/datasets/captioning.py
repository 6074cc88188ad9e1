"""The captioning family: pictures with one or more captions.

Records: `image` (path below the media folder), `caption` (a string or a list of strings) and
`image_id`. Training samples have `image`, `text_input`, `image_id`, `instance_id`; evaluation samples
have the same keys, `text_input` being the first reference.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lavis.datasets.base import Dataset, Groups, Record, draw, numbered, picture_of
from lavis.datasets.collate import Sample
from lavis.datasets.tables import read_json


@dataclass(frozen=True)
class CaptionOptions:
    """Settings of every captioning data set.

    Args:
        captions_per_image: texts per picture in a training sample (G). With 1 an item is a record;
            with more it is a picture, and `text_input` a list of G of its captions, drawn afresh each
            time without repetition as far as there are enough. The image transformer then runs once
            for G captions.
    """

    captions_per_image: int = 1

    def __post_init__(self) -> None:
        if self.captions_per_image < 1:
            raise ValueError(f"captions_per_image is {self.captions_per_image}; it should be 1 or more")


def as_list(value: str | Sequence[str]) -> list[str]:
    """One caption or several, as a list."""
    return [value] if isinstance(value, str) else list(value)


def read_references(path: Path) -> dict[Any, list[str]]:
    """Captions by image from a file in COCO's layout.

    Raises:
        ValueError: it is none.
    """
    found = read_json(path)
    entries = found.get("annotations") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not all({"image_id", "caption"} <= set(entry) for entry in entries):
        raise ValueError(
            f"{path} should be a JSON object with a list 'annotations' of image_id and caption, as COCO's files are"
        )
    out: dict[Any, list[str]] = {}
    for entry in entries:
        out.setdefault(entry["image_id"], []).append(entry["caption"])
    return out


class CaptionDataset(Dataset):
    """One split of a captioning data set; see the module's docstring for records and samples."""

    Options: ClassVar[type] = CaptionOptions

    def __init__(self, records: Sequence[Record], split: str, **kwargs: Any) -> None:
        super().__init__(records, split, **kwargs)
        self._index_records()

    def _index_records(self) -> None:
        """Number the pictures in order of appearance, and group records by picture where asked to.

        Raises:
            ValueError: only some records have an `image_id`, so that our numbers could be another picture's.
        """
        lacking: list[int] = []

        def pictures() -> Iterator[Hashable]:
            for position, record in enumerate(self.records):
                if "image_id" not in record:
                    lacking.append(position)
                yield picture_of(record)

        self._picture_number: Sequence[int] = numbered(pictures())
        if lacking and len(lacking) < len(self.records):
            raise ValueError(
                f"{self.name}/{self.split}, record {lacking[0]}: there is no image_id, and other records have one; "
                "give every record one, or none"
            )
        grouped = self.training and self.options.captions_per_image > 1
        self._items = Groups(self._picture_number) if grouped else None

    def __len__(self) -> int:
        return len(self.records) if self._items is None else len(self._items)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        positions = [index] if self._items is None else self._items[index]
        record = self.records[positions[0]]
        image = self.image(record, rng)
        if self.training:
            captions = [c for p in positions for c in as_list(self.records[p]["caption"])]
            wanted = self.options.captions_per_image
            texts = [self.text(captions[i], rng) for i in draw(rng, len(captions), wanted)]
            text: Any = texts if wanted > 1 else texts[0]
        else:
            references = as_list(record.get("caption", ()))  # a test split may have none
            text = self.text(references[0] if references else "", rng)
        return {
            "image": image,
            "text_input": text,
            "image_id": self.image_id(positions[0]),
            "instance_id": str(index),
        }

    def image_id(self, position: int) -> Any:
        """The id that a sample carries: in training the picture's 0-based number, as in the paper."""
        return self._picture_number[position] if self.training else self.evaluation_id(position)

    def evaluation_id(self, position: int) -> Any:
        """The id that predictions and references of this record are filed under."""
        return self.records[position].get("image_id", self._picture_number[position])

    def references(self) -> dict[Any, list[str]]:
        """All captions of each picture, raw, by the `image_id` that samples carry."""
        out: dict[Any, list[str]] = {}
        for position, record in enumerate(self.records):
            out.setdefault(self.image_id(position), []).extend(as_list(record.get("caption", ())))
        return out
