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
stated colour, shape, count, size, texture, relation and place in the picture holds. Definitions:
`scene.py` (sizes, relations and places), `language.py` (what "a", "two" and "the" mean), `judging.py`
(how captions are read and checked).

**License.** The same as this library's; there is no third-party material in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lavis.common.registry import registry
from lavis.datasets.base import Plan, Record
from lavis.datasets.captioning import CaptionDataset, CaptionOptions
from lavis.datasets.shapes.clip_language import clip_ceiling_percent, clip_truth_percent, judge_clip_caption
from lavis.datasets.shapes.clip_layouts import export_clips
from lavis.datasets.shapes.clip_questions import CLIP_ANSWERS
from lavis.datasets.shapes.clips import make_clip, render_clip
from lavis.datasets.shapes.dialogue import ShapesDialogue
from lavis.datasets.shapes.entailment import ShapesEntailment
from lavis.datasets.shapes.judging import Judgement, caption_truth_percent, judge_caption
from lavis.datasets.shapes.language import make_captions
from lavis.datasets.shapes.layouts import export_coco, export_pictures
from lavis.datasets.shapes.made import Drawn, DrawnWithCaptions, DrawnWithQuestions, Made, MadeOptions
from lavis.datasets.shapes.matching import ShapesMatching
from lavis.datasets.shapes.pairs import ShapesNLVR
from lavis.datasets.shapes.questions import ANSWERS, make_questions
from lavis.datasets.shapes.render import render
from lavis.datasets.shapes.retrieval import ShapesRetrieval, ceiling_percent
from lavis.datasets.shapes.scene import HELD_OUT, SPLITS, Purpose, make_scene, stream
from lavis.datasets.shapes.talk import history_percent
from lavis.datasets.shapes.video import (
    ShapesVideoCaption,
    ShapesVideoDialogue,
    ShapesVideoQA,
    ShapesVideoRetrieval,
)
from lavis.datasets.vqa import VQADataset, VQAOptions, yes_no_number_other

__all__ = [
    "ANSWERS", "CLIP_ANSWERS", "HELD_OUT", "SPLITS", "Judgement", "ShapesCaption", "ShapesDialogue",
    "ShapesEntailment", "ShapesMatching", "ShapesNLVR", "ShapesRetrieval", "ShapesVQA", "ShapesVideoCaption",
    "ShapesVideoDialogue", "ShapesVideoQA", "ShapesVideoRetrieval", "caption_truth_percent",
    "ceiling_percent", "clip_ceiling_percent", "clip_truth_percent", "export_clips", "export_coco", "export_pictures",
    "history_percent", "judge_caption", "judge_clip_caption", "make_captions", "make_clip", "make_questions",
    "make_scene", "render", "render_clip",
]  # fmt: skip

CAPTIONS_PER_PICTURE = 5


@dataclass(frozen=True)
class _ShapesOptions(MadeOptions):
    """Settings of both data sets; see `MadeOptions`. n_unseen, n_new_train, n_new_test: pictures."""

    n_unseen: int = 1_000
    n_new_train: int = 2_000
    n_new_test: int = 500


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


def _caption_record(options: Any, split: str, picture: int) -> list[Record]:
    record = _picture_record(options, split, picture)
    rng = stream(options.seed, split, picture, Purpose.CAPTIONS)
    return [record | {"caption": make_captions(record["scene"], rng, CAPTIONS_PER_PICTURE)}]


def _question_records(options: Any, split: str, picture: int) -> list[Record]:
    record = _picture_record(options, split, picture)
    rng = stream(options.seed, split, picture, Purpose.QUESTIONS)
    asked = make_questions(record["scene"], rng, options.questions, split)
    return [
        record
        | {
            "question": q["question"],
            "question_id": picture * options.questions + i,
            "answers": [q["answer"]],
            "question_type": q["question_type"],
            "answer_type": yes_no_number_other(q["answer"]),
        }
        for i, q in enumerate(asked)
    ]


def _picture_record(options: Any, split: str, picture: int) -> Record:
    scene = make_scene(options.seed, split, picture)
    return {"image": f"{split}/{picture:06d}.png", "image_id": picture, "scene": scene}


class _ShapesPictures(Drawn):
    """What both share."""

    splits: ClassVar[tuple[str, ...]] = SPLITS
    train_splits: ClassVar[tuple[str, ...]] = ("train", "new_train")


@registry.register_dataset("shapes_caption")
class ShapesCaption(_ShapesPictures, DrawnWithCaptions, CaptionDataset):
    """Captions of shapes; records also hold `scene`."""

    name = "shapes_caption"
    Options = ShapesCaptionOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesCaption:
        records = Made(_caption_record, plan.options, split, plan.options.count(split))
        return cls(records, split, options=plan.options)

    def extra_metrics(self, predictions: Mapping[Any, str]) -> dict[str, float]:
        """`truth_percent`: the share of captions that are true of their picture."""
        pairs = [(caption, self.records[int(i)]["scene"]) for i, caption in predictions.items()]
        return {"truth_percent": caption_truth_percent(pairs)}


@registry.register_dataset("shapes_vqa")
class ShapesVQA(_ShapesPictures, DrawnWithQuestions, VQADataset):
    """Questions about shapes; records also hold `scene`."""

    name = "shapes_vqa"
    Options = ShapesVQAOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesVQA:
        each = plan.options.questions
        records = Made(_question_records, plan.options, split, plan.options.count(split) * each, each)
        return cls(records, split, options=plan.options, answer_list=ANSWERS)
