"""ImageNet (ILSVRC 2012): photographs of one of a thousand kinds of things.

**Description.** Photographs from the web, each labelled with one synset of WordNet. Class names for zero-shot
classification are those that OpenAI published with CLIP.

**Source.** https://www.image-net.org

**Splits.**

| split | pictures |
| --- | --- |
| train | 1,281,167 |
| val | 50,000 |

**Task.** Zero-shot classification; training with labels.

**Metrics.** Accuracy in percent.

**Files.** A folder per synset, below `imagenet/{train,val}` under the cache root:
`val/n01440764/ILSVRC2012_val_00000293.JPEG`. The official archive of val has no such folders; sort its pictures into
them first. The classes are the names of the folders in alphabetical order, the order of the published names.

**Licence.** For non-commercial research and education only, to those who accept the terms of access.

**Known faults.** A few per cent of the labels of val are wrong, and many pictures show several of the classes (Beyer
et al., "Are we done with ImageNet?", 2020).

**Responsible use.** Pictures were collected by searching the web, without consent of the people in them; classes and
their names carry judgements (Yang et al., "Towards Fairer Datasets", 2020).

**References.** Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (IJCV 2015). Radford et al.,
"Learning Transferable Visual Models From Natural Language Supervision" (ICML 2021), for the class names.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lavis.common.registry import registry
from lavis.datasets.base import Dataset, Plan
from lavis.datasets.collate import Sample
from lavis.datasets.sources import ByHand
from lavis.datasets.tables import PackedRecords

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class FolderOptions:
    """
    Args:
        splits: the folders to read, those that are there by default.
    """

    splits: list[str] = field(default_factory=list)


class FolderDataset(Dataset):
    """Pictures in one folder per class: `<media>/<split>/<class>/…`. Samples: `image`, `label`, `image_id`,
    `instance_id`.

    Attributes:
        classes: the folders' names in alphabetical order; a label is a place in this list.
        classnames: the classes in words, for zero-shot classification.
    """

    Options: ClassVar[type] = FolderOptions
    all_splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    def __init__(self, records: Any, split: str, classes: list[str], **kwargs: Any) -> None:
        super().__init__(records, split, **kwargs)
        self.classes = classes

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        if plan.options.splits:
            return tuple(plan.options.splits)
        assert plan.vis_root is not None
        there = tuple(s for s in cls.all_splits if (plan.vis_root / s).is_dir())
        return there or cls.all_splits  # none: the error comes when one is loaded

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        """
        Raises:
            FileNotFoundError: the folder of the split is missing, or has no pictures in folders.
        """
        assert plan.vis_root is not None
        classes, records = scan(plan.vis_root, split)
        return cls(PackedRecords(records), split, classes, vis_root=plan.vis_root, options=plan.options)

    @property
    def classnames(self) -> list[str]:
        return list(self.classes)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        return {
            "image": self.image(record, rng),
            "label": record["label"],
            "image_id": record["image"],
            "instance_id": str(index),
        }


def scan(root: Path, split: str) -> tuple[list[str], list[dict[str, Any]]]:
    """The classes of `root/split` and its pictures as records, sorted by name."""
    folder = root / split
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}; it should hold one folder of pictures per class"
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    records = [
        {"image": f"{split}/{name}/{file}", "label": label}
        for label, name in enumerate(classes)
        for file in sorted(e.name for e in os.scandir(folder / name) if e.name.lower().endswith(SUFFIXES))
    ]
    if not records:
        raise FileNotFoundError(
            f"{folder} holds no pictures in folders; each class should be a folder of pictures"
        )
    return classes, records


@registry.register_dataset("imagenet")
class ImageNet(FolderDataset):
    """Records: `image` ("val/n01440764/ILSVRC2012_val_00000293.JPEG"), `label` (0 to 999)."""

    name = "imagenet"
    media = "imagenet"
    all_splits = ("train", "val")
    downloads = (
        ByHand(
            "https://www.image-net.org/download.php",
            "accept the terms, fetch the ILSVRC 2012 pictures, and put those of each synset into a folder of its name",
            "imagenet",
        ),
    )

    @functools.cached_property
    def _names(self) -> list[str]:
        from lavis.models.zero_shot import imagenet_classnames

        return imagenet_classnames()

    @property
    def classnames(self) -> list[str]:
        """
        Raises:
            ValueError: there are not a thousand folders, so the published names can't be assigned.
        """
        if len(self.classes) != len(self._names):
            raise ValueError(
                f"{self.name}/{self.split} has {len(self.classes)} folders of classes, but there are "
                f"{len(self._names)} class names; every class needs its folder, even an empty one"
            )
        return self._names
