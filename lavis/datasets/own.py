"""Your own data: a table of pictures or clips and texts plus their folder, without writing Python.

**Description.** One file per split (or one for all): JSONL, a JSON list, CSV or TSV, in UTF-8.

| column | captioning, retrieval | question answering | classification |
| --- | --- | --- | --- |
| `image` or `video` | path of the picture or clip, below the folder `images` | the same | the same |
| `text` or `caption` | a caption, or a list of captions | | optional: a text that is classified with the picture |
| `question` | | the question | |
| `answer` or `answers` | | the answer, or a list of several people's answers | |
| `label` | | | the class |
| `id` or `question_id` | | the question's id (default: its place) | |
| `image_id` | the image's id (default: its place) | the same | the same |
| `split` | optional: train, val or test, when one file has all | the same | the same |

In CSV and TSV a list is written as JSON (`["a cat", "a black cat"]`), or as several rows: rows of one image
(captions), or of one image and question (answers), are one record.

**Cells.** Blanks at the ends of a cell don't count. An empty cell is missing, and so are `null`, `NaN` and `Infinity`
in JSON; `nan` in CSV is a text. Numbers, `true` and `false` are the texts that they are written as (2.0 is `2`).

**Ids.** An id is a text; one that is written as whole numbers are (`7`, not `07`) is a number. All rows of a file have
one, or none has; an image has one, and so has a question. Anything else is refused with its line.

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
not scored; where only some rows lack them, the others are scored, and it is said how many were left out. Texts that the
text processor cuts (after 50 words) are counted.

**Task.** Captioning, retrieval, visual question answering, classification; of pictures or of clips.

**Metrics.** Those of the task. Of answers `accuracy_percent`: an answer is right as far as three people gave it, or all
where fewer were asked: min(1, matches / min(3, answers)), both sides in VQA's official normalisation.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lavis.common.images import open_image
from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.datasets import own_table
from lavis.datasets.base import Dataset, Plan, Record, error_policy
from lavis.datasets.captioning import CaptionDataset, CaptionOptions
from lavis.datasets.collate import Sample
from lavis.datasets.own_table import SPLITS, TASKS, rows_of, whole_file
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.tables import PackedRecords, read_json, read_text, stripped
from lavis.datasets.video import VideoCaptionDataset, VideoDataset, VideoRetrievalDataset, VideoVQADataset
from lavis.datasets.vqa import VQADataset, VQAOptions

logger = logging.getLogger(__name__)

NO_LABEL = -1  # of a sample whose class isn't known


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

    def set_processors(
        self, vis_processor: Callable[..., Any] | None, text_processor: Callable[..., Any] | None
    ) -> None:
        super().set_processors(vis_processor, text_processor)
        self._say_what_is_cut(getattr(text_processor, "max_words", None))

    def _say_what_is_cut(self, most: int | None) -> None:
        """Count the texts of which a processor leaves only the first words: published data are meant to be cut."""
        if most is None:
            return
        texts = [t for record in self.records for t in own_table.read_texts(record)]
        longest = [n for n in (len(t.split()) for t in texts) if n > most]
        if longest:
            side = "train" if self.training else "eval"
            logger.warning(
                "%s/%s: %d of %d texts have more than %d words (up to %d) and are cut there; "
                "datasets.own.text_processor.%s.max_words sets another number, and a model reads model.max_txt_len "
                "tokens at most",
                self.name, self.split, len(longest), len(texts), most, max(longest), side,
            )  # fmt: skip


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

    answer_rule = "own"


class OwnClasses(_Upright):
    """Own pictures, with or without a text, and their classes. Samples: `image`, `text_input`, `label` (left out where
    a test part has none; -1 where it has others), `image_id`, `instance_id`.

    Attributes:
        classnames: the classes; a label is a place in this list.
    """

    def __init__(self, records: Sequence[Record], split: str, **kwargs: Any) -> None:
        self.classnames: list[str] = list(kwargs.pop("answer_list", ()))
        self._labelled = any(record["label"] is not None for record in records)
        super().__init__(records, split, **kwargs)

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        sample: Sample = {
            "image": self.image(record, rng),
            "text_input": self.text(record["text"], rng),
            "image_id": record["image_id"],
            "instance_id": str(index),
        }
        if not self._labelled:
            return sample
        if record["label"] is None:
            return sample | {"label": NO_LABEL}
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

    answer_rule = "own"


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
        own_table.check_ids(
            path, whole_file(path, rows), task
        )  # so that what is held out makes no difference
        records = own_table.merged(records, task, training=split in cls.train_splits)
        own_table.number(records, task)
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
        if path.suffix == ".json":
            listed = own_table.texts_of(str(path), "the list", read_json(path))
        else:
            lines = enumerate(read_text(path).split("\n"), 1)
            listed = [
                own_table.text_of(f"{path}, line {n}", "it", text) for n, text in lines if stripped(text)
            ]
        return list(dict.fromkeys(listed))
    # classes without a training part (zero-shot, or a finished model): those of the part at hand
    splits = SPLITS if task == "classification" else SPLITS[:1]
    path, rows = next((found for s in splits if (found := rows_of(s, options))[1]), (Path(), []))
    if task == "classification" and rows:
        rows = whole_file(path, rows)  # a class whose images are all held out is a class still
    counts: Counter[str] = Counter()
    for line, row in rows:
        record = own_table.make_record(path, line, row, task, False)
        counts.update(record["answers"] if task == "vqa" else filter(None, [record["label"]]))
    if task == "classification":
        return sorted(counts)
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
