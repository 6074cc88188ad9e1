"""Shapes: coloured shapes with exact ground truth, drawn on the fly.

**Description.** Pictures of one to five shapes (circle, square, triangle, star, cross, diamond, ring,
heart) in eight colours, two sizes and three textures (solid, striped, dotted) on a faintly cluttered
ground. Every record carries its scene graph, so captions and answers can be checked word by word
instead of only compared with references. Nothing is downloaded: a picture, its captions and its
questions are functions of (seed, split, index).

**Names.** `shapes_caption`: five captions per picture. `shapes_vqa`: six questions per picture (colour,
shape, count, existence, comparison, size, place, texture), one answer each, 26 answers in all.

**Splits.**

| split | pictures | what is special |
| --- | --- | --- |
| train, val, test | 20,000, 1,000, 1,000 | 52 of the 64 pairs of a colour and a shape |
| unseen | 1,000 | every picture has one of the 12 held-out pairs, whose colours and shapes were each seen |
| new_train, new_test | 2,000, 500 | every picture has a new colour (black, cyan) or texture (checkered) |

**Task.** Captioning, visual question answering, generalisation to unseen combinations, fine-tuning on
`new`.

**Metrics.** BLEU, CIDEr; accuracy; and `caption_truth_percent`, the share of captions of which every
stated colour, shape, count, size, texture and relation holds. Definitions: `scene.py` (sizes and
relations), `language.py` (what "a", "two" and "the" mean).

**License.** The same as this library's; there is no third-party material in it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image

from lavis.common.registry import registry
from lavis.datasets.base import Dataset, Plan, Record
from lavis.datasets.captioning import CaptionDataset, CaptionOptions
from lavis.datasets.shapes.language import Judgement, caption_truth_percent, judge_caption, make_captions
from lavis.datasets.shapes.questions import ANSWERS, make_questions
from lavis.datasets.shapes.render import MAX_SIZE, MIN_SIZE, render
from lavis.datasets.shapes.scene import HELD_OUT, SPLITS, make_scene, stream
from lavis.datasets.vqa import VQADataset, VQAOptions, yes_no_number_other

__all__ = [
    "ANSWERS", "HELD_OUT", "SPLITS", "Judgement", "ShapesCaption", "ShapesVQA", "caption_truth_percent",
    "export_coco", "judge_caption", "make_captions", "make_questions", "make_scene", "render",
]  # fmt: skip

CAPTIONS_PER_PICTURE = 5


@dataclass(frozen=True)
class _ShapesOptions:
    """Settings of both data sets.

    Args:
        size: the pictures' side in pixels, 32 to 256.
        seed: another seed, other pictures.
        n_train, n_val, n_test, n_unseen, n_new_train, n_new_test: pictures per split.
        cache: keep drawn pictures in memory (3·size² bytes each), so later epochs don't draw again.
            Each loader worker keeps its own.
    """

    size: int = 64
    seed: int = 0
    n_train: int = 20_000
    n_val: int = 1_000
    n_test: int = 1_000
    n_unseen: int = 1_000
    n_new_train: int = 2_000
    n_new_test: int = 500
    cache: bool = False

    def __post_init__(self) -> None:
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f"size is {self.size}; it should be {MIN_SIZE} to {MAX_SIZE} pixels")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it should be 0 or more")
        for split in SPLITS:
            if self.pictures(split) < 1:
                raise ValueError(f"n_{split} is {self.pictures(split)}; it should be 1 or more")

    def pictures(self, split: str) -> int:
        """How many pictures a split has."""
        return int(getattr(self, f"n_{split}"))


@dataclass(frozen=True)
class ShapesCaptionOptions(CaptionOptions, _ShapesOptions):
    """See `_ShapesOptions` and `CaptionOptions`."""

    def __post_init__(self) -> None:
        CaptionOptions.__post_init__(self)
        _ShapesOptions.__post_init__(self)


@dataclass(frozen=True)
class ShapesVQAOptions(VQAOptions, _ShapesOptions):
    """See `_ShapesOptions` and `VQAOptions`; questions: how many are asked about a picture, 1 to 12."""

    questions: int = 6

    def __post_init__(self) -> None:
        VQAOptions.__post_init__(self)
        _ShapesOptions.__post_init__(self)
        if not 1 <= self.questions <= 12:
            raise ValueError(f"questions is {self.questions}; it should be 1 to 12")


class _Made(Sequence[Record]):
    """Records that are made when they are looked at; the last few thousand pictures are remembered."""

    def __init__(self, options: Any, split: str, kind: Literal["caption", "vqa"]) -> None:
        self.options, self.split, self.kind = options, split, kind
        self.per_picture = options.questions if kind == "vqa" else 1
        self._of_picture = functools.lru_cache(maxsize=32_768)(self._make)

    def __len__(self) -> int:
        return self.options.pictures(self.split) * self.per_picture

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} records; there is no record {index}")
        picture, which = divmod(int(index) % len(self), self.per_picture)
        return self._of_picture(picture)[which]

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> Any:  # the cache can't be pickled; workers started by spawn need this
        return _Made, (self.options, self.split, self.kind)

    def _make(self, picture: int) -> list[Record]:
        seed = self.options.seed
        scene = make_scene(seed, self.split, picture)
        shared = {"image": f"{self.split}/{picture:06d}.png", "image_id": picture, "scene": scene}
        if self.kind == "caption":
            captions = make_captions(scene, stream(seed, self.split, picture, 1), CAPTIONS_PER_PICTURE)
            return [shared | {"caption": captions}]
        rng = stream(seed, self.split, picture, 2)
        asked = make_questions(scene, rng, self.per_picture, self.split)
        return [
            shared
            | {
                "question": q["question"],
                "question_id": picture * self.per_picture + i,
                "answers": [q["answer"]],
                "question_type": q["question_type"],
                "answer_type": yes_no_number_other(q["answer"]),
            }
            for i, q in enumerate(asked)
        ]


class _ShapesPictures(Dataset):
    """What both share: splits without files, pictures that are drawn."""

    train_splits: ClassVar[tuple[str, ...]] = ("train", "new_train")
    _drawn: dict[int, Image.Image] | None = None

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        return SPLITS

    def picture(self, record: Mapping[str, Any]) -> Image.Image:
        if not self.options.cache:
            return render(record["scene"], self.options.size)
        if self._drawn is None:
            self._drawn = {}
        number = record["image_id"]
        if number not in self._drawn:
            self._drawn[number] = render(record["scene"], self.options.size)
        return self._drawn[number].copy()


@registry.register_dataset("shapes_caption")
class ShapesCaption(_ShapesPictures, CaptionDataset):
    """Captions of shapes; records also hold `scene`."""

    name = "shapes_caption"
    Options = ShapesCaptionOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesCaption:
        return cls(_Made(plan.options, split, "caption"), split, options=plan.options)

    def _index_records(self) -> None:
        self._items = None  # a record is a picture already

    def image_id(self, position: int) -> int:
        return position

    def extra_metrics(self, predictions: Mapping[Any, str]) -> dict[str, float]:
        """`truth_percent`: the share of captions that are true of their picture."""
        pairs = [(caption, self.records[int(i)]["scene"]) for i, caption in predictions.items()]
        return {"truth_percent": caption_truth_percent(pairs)}


@registry.register_dataset("shapes_vqa")
class ShapesVQA(_ShapesPictures, VQADataset):
    """Questions about shapes; records also hold `scene`."""

    name = "shapes_vqa"
    Options = ShapesVQAOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesVQA:
        records = _Made(plan.options, split, "vqa")
        return cls(records, split, options=plan.options, answer_list=ANSWERS)

    def _index_records(self) -> None:
        pictures, each = self.options.pictures(self.split), self.options.questions
        grouped = self.options.questions_per_image is not None
        self._items = [range(p * each, (p + 1) * each) for p in range(pictures)] if grouped else None


def export_coco(dataset: ShapesCaption, folder: str | Path, suffix: str = ".png") -> Path:
    """Write a split in the layout of COCO captions (Karpathy's split files), pictures included.

    Args:
        dataset: a split of `shapes_caption`.
        folder: gets `annotations/coco_karpathy_<split>.json` and `images/<split>2014/COCO_….png`.
        suffix: ".png" or ".jpg".

    Returns:
        The path of the annotation file. Training splits have one record per caption, others one per
        picture.
    """
    folder = Path(folder)
    year = f"{dataset.split}2014"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "images" / year).mkdir(parents=True, exist_ok=True)
    rows: list[Record] = []
    for record in dataset.records:
        number = record["image_id"]
        name = f"{year}/COCO_{year}_{number:012d}{suffix}"
        dataset.picture(record).save(folder / "images" / name)
        if dataset.training:
            rows += [{"image": name, "caption": c, "image_id": f"coco_{number}"} for c in record["caption"]]
        else:
            rows.append({"image": name, "caption": record["caption"]})
    path = folder / "annotations" / f"coco_karpathy_{dataset.split}.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path
