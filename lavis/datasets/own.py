"""Your own data: a table of pictures or clips and texts plus their folder, without writing Python.

**Description.** One file per split (or one for all): JSONL, a JSON list, CSV or TSV, in UTF-8.

| column | captioning, retrieval | question answering | classification |
| --- | --- | --- | --- |
| `image` or `video` | path of the picture or clip, below the folder `images` | the same | the same |
| `text` or `caption` | a caption, or a list of captions | | optional: a text that is classified with the picture |
| `question` | | the question | |
| `answer` or `answers` | | the answer, or a list of several people's answers | |
| `label` | | | the class |
| `id` | | the question's id (a whole number or a word; default: its place) | |
| `image_id` | the picture's id (default: its place) | the same | the same |
| `split` | optional: train, val or test, when one file has all | the same | the same |

In CSV and TSV a list is written as JSON (`["a cat", "a black cat"]`), or as several rows.

**Options.** `train`, `val`, `test`: the files. `images`: the folder (default: where the file lies). `task`:
captioning, retrieval, vqa or classification (default: told from the columns; a table for captioning serves retrieval
too). `val_fraction`: the share of training pictures held out when no val file is given (default 0.05; 0 holds out
nothing); a picture is chosen by the hash of its path, so it stays where it is when data are added. `answer_list`: a
file with the answers or classes to choose from (default: those of the training part). `upright`: turn photographs as
their camera says (EXIF). Transparent images are seen on white; 16 bits, 32 bits and floats become 8 bits, see
`lavis.common.images`.

Before anything runs, every row is read and every picture looked for. Missing pictures of a training part are skipped
with a warning unless they are many, like unreadable ones (`on_error: raise` refuses them); those of other parts are
refused (`on_error: skip` leaves them out). A test part needs no captions, answers or labels: it is then predicted and
not scored.

**Task.** Captioning, retrieval, visual question answering, classification; of pictures or of clips.

**Metrics.** Those of the task.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lavis.common.images import open_image
from lavis.common.registry import registry, suggest
from lavis.datasets import own_table
from lavis.datasets.base import Dataset, Plan, Record, error_policy
from lavis.datasets.captioning import CaptionDataset, CaptionOptions
from lavis.datasets.collate import Sample
from lavis.datasets.own_table import SPLITS, TASKS, rows_of
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.tables import PackedRecords
from lavis.datasets.video import VideoCaptionDataset, VideoDataset, VideoRetrievalDataset, VideoVQADataset
from lavis.datasets.vqa import VQADataset, VQAOptions


@dataclass(frozen=True)
class OwnOptions(CaptionOptions, VQAOptions):
    """See the module's docstring, `CaptionOptions` and `VQAOptions`."""

    task: str | None = None
    train: str | None = None
    val: str | None = None
    test: str | None = None
    images: str | None = None
    val_fraction: float = 0.05
    answer_list: str | None = None
    upright: bool = True

    def __post_init__(self) -> None:
        CaptionOptions.__post_init__(self)
        VQAOptions.__post_init__(self)
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}.{suggest(self.task, TASKS)}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction is {self.val_fraction}; it should be at least 0 and below 1")
        if not (self.train or self.val or self.test):
            raise ValueError("name at least one file: train, val or test")


# ---------------------------------------------------------------------- one class per task
class _Own(Dataset):
    name = "own"
    Options: ClassVar[type] = OwnOptions


class _Upright(_Own):
    def picture(self, record: Any) -> Image.Image:
        path = self._media_path(str(record["image"]))
        return open_image(path, self._what_to_do(), upright=self.options.upright)


class OwnCaption(_Upright, CaptionDataset):
    """Own pictures with captions."""


class OwnRetrieval(_Upright, RetrievalDataset):
    """Own pictures and the captions that belong to them."""


class OwnVQA(_Upright, VQADataset):
    """Own pictures with questions."""


class OwnClasses(_Upright):
    """Own pictures, with or without a text, and their classes. Samples: `image`, `text_input`, `label` (left out where
    a test part has none), `image_id`, `instance_id`.

    Attributes:
        classnames: the classes; a label is a place in this list.
    """

    def __init__(self, records: Sequence[Record], split: str, **kwargs: Any) -> None:
        self.classnames: list[str] = list(kwargs.pop("answer_list", ()))
        super().__init__(records, split, **kwargs)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        sample: Sample = {
            "image": self.image(record, rng),
            "text_input": self.text(record["text"], rng),
            "image_id": record["image_id"],
            "instance_id": str(index),
        }
        if record["label"] is None:
            return sample
        if record["label"] not in self.classnames:
            raise ValueError(
                f"{self.annotation_paths[0]}, line {record['line']}: the class {record['label']!r} is not among the "
                f"{len(self.classnames)} of the training part.{suggest(record['label'], self.classnames)}"
            )
        return sample | {"label": self.classnames.index(record["label"])}


class OwnVideoCaption(_Own, VideoCaptionDataset):
    """Own clips with captions."""


class OwnVideoRetrieval(_Own, VideoRetrievalDataset):
    """Own clips and the captions that belong to them."""


class OwnVideoVQA(_Own, VideoVQADataset):
    """Own clips with questions."""


class OwnVideoClasses(VideoDataset, OwnClasses):
    """Own clips and their classes. `answers` is the label again, under the name that video models look for."""

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super().make_sample(index, rng)
        return sample | {"answers": sample["label"]} if "label" in sample else sample


_KINDS: dict[tuple[str, str], type[Dataset]] = {
    ("captioning", "image"): OwnCaption,
    ("captioning", "video"): OwnVideoCaption,
    ("retrieval", "image"): OwnRetrieval,
    ("retrieval", "video"): OwnVideoRetrieval,
    ("vqa", "image"): OwnVQA,
    ("vqa", "video"): OwnVideoVQA,
    ("classification", "image"): OwnClasses,
    ("classification", "video"): OwnVideoClasses,
}


@registry.register_dataset("own")
class OwnDataset(_Own):
    """Builds one of the classes above; see the module's docstring."""

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if rows_of(s, plan.options)[1])

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        options: OwnOptions = plan.options
        path, rows = rows_of(split, options)
        columns = sorted({name for _, row in rows for name in row})
        complete = split != "test"
        task = own_table.task_of(path, columns, options.task, complete)
        records = [own_table.make_record(path, line, row, task, complete) for line, row in rows]
        folder = Path(options.images).expanduser() if options.images else plan.vis_root or path.parent
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}; name the pictures' folder with images")
        skip = error_policy(plan.on_error, split in cls.train_splits) == "skip"
        if plan.on_error != "show":  # the browser shows what is missing
            own_table.find_missing(records, folder, path, skip)
        if task in ("captioning", "retrieval") and split != "train":
            records = own_table.merge_by_picture(records)
        own_table.number(records, task, path)
        more: dict[str, Any] = (
            {} if task in ("captioning", "retrieval") else {"answer_list": choices(options, task)}
        )
        return _KINDS[task, own_table.media_of(path, columns)](
            PackedRecords(records), split, vis_root=folder, options=options, annotation_paths=[path], **more
        )


def choices(options: OwnOptions, task: str) -> list[str]:
    """The answers or classes to choose from: the given file's; else those of the training part, answers by frequency,
    classes in alphabetical order."""
    if options.answer_list is not None:
        path = Path(options.answer_list).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path} (answer_list)")
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".json":
            return own_table.texts_of(str(path), "the list", json.loads(text))
        return [line.strip() for line in text.splitlines() if line.strip()]
    # classes without a training part (zero-shot, or a finished model): those of the part at hand
    splits = SPLITS if task == "classification" else SPLITS[:1]
    path, rows = next((found for s in splits if (found := rows_of(s, options))[1]), (Path(), []))
    counts: Counter[str] = Counter()
    for line, row in rows:
        record = own_table.make_record(path, line, row, task, False)
        counts.update(record["answers"] if task == "vqa" else filter(None, [record["label"]]))
    if task == "classification":
        return sorted(counts)
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
