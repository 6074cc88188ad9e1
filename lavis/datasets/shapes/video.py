"""Clips of shapes that move, appear, disappear, grow and shrink, with captions, questions and dialogues.

**Description.** Clips of two to four objects; to one to three of them something happens, one after the
other or at once. Every record carries its `clip`, the scene with its events, so texts can be checked
word by word. Nothing is downloaded: clips and texts are functions of (seed, split, index). A raw
sample's `video` is an array (T, h, w, 3) of uint8, RGB; a video processor is given that array.

**Names.** All four show the same clips. `shapes_video_caption`: three captions per clip.
`shapes_video_qa`: four questions per clip; an answer is a class, its place in `answer_list` (33
answers). `shapes_video_retrieval`: two captions per clip, each naming all objects and events.
`shapes_video_dialogue`: a caption and rounds of question and answer with "it", "they" and "that", each
with candidates of which exactly one is right.

**Splits.** train, val, test: 20,000, 1,000 and 1,000 clips.

**Options.** `frames`: 8 to 32 (default 8), evenly spaced. `questions`: per clip, 1 to 8 (default 4);
`words`: answers are words, as in `shapes_vqa`, instead of classes.
`rounds`: 1 to 10 (default 5). `options`: candidates per round, 2 to 100 (default 100).

**Task.** Video captioning, question answering, retrieval, dialogue.

**Metrics.** BLEU, CIDEr and `clip_truth_percent`, the share of captions of which every object, event
and order holds; accuracy; recall at 1, 5 and 10; mean reciprocal rank.

**Figures**, for `test` with seed 0. 75 % of the questions ask for a change (`temporal` in a record), 18
% for a direction or an order. Where something is in the first frame tells its direction in 48 % of the
cases, chance being 25 %; what a question names and the first frame lacks will appear. The most frequent
answer to a question is right in 37 % of the questions, and in 46 % of the rounds of dialogues. 56 % of
the rounds need the rounds before (`history_percent`). 99.4 % of the captions for retrieval are true of
no other clip (`clip_ceiling_percent`).

**License.** The same as this library's; there is no third-party material in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lavis.common.registry import registry
from lavis.datasets.base import Dataset, Plan, Record
from lavis.datasets.captioning import CaptionOptions
from lavis.datasets.dialogue import DialogueOptions
from lavis.datasets.shapes.asking import make_options
from lavis.datasets.shapes.clip_language import clip_truth_percent, describe_clip, make_clip_captions
from lavis.datasets.shapes.clip_questions import CLIP_ANSWERS, make_clip_questions
from lavis.datasets.shapes.clip_talk import CLIP_TALK_ANSWERS, make_clip_dialogue, true_of_clip
from lavis.datasets.shapes.clips import make_clip, render_clip
from lavis.datasets.shapes.dialogue import RoundOptions
from lavis.datasets.shapes.made import (
    Drawn,
    DrawnDialogues,
    DrawnWithCaptions,
    DrawnWithQuestions,
    Made,
    MadeOptions,
)
from lavis.datasets.shapes.scene import Purpose, stream
from lavis.datasets.video import (
    VideoCaptionDataset,
    VideoDialogueDataset,
    VideoQADataset,
    VideoRetrievalDataset,
    VideoVQADataset,
)
from lavis.datasets.vqa import VQAOptions, yes_no_number_other


@dataclass(frozen=True)
class ClipOptions(MadeOptions):
    """See `MadeOptions`; frames: per clip, 8 to 32."""

    frames: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 8 <= self.frames <= 32:
            raise ValueError(f"frames is {self.frames}; it should be 8 to 32")


@dataclass(frozen=True)
class ClipCaptionOptions(CaptionOptions, ClipOptions):
    """See `ClipOptions` and `CaptionOptions`."""

    def __post_init__(self) -> None:
        CaptionOptions.__post_init__(self)
        ClipOptions.__post_init__(self)


@dataclass(frozen=True)
class ClipQAOptions(VQAOptions, ClipOptions):
    """See `ClipOptions` and `VQAOptions`.

    Args:
        questions: how many are asked about a clip, 1 to 8.
        words: answers are words, for models that write or rank them, instead of classes.
    """

    questions: int = 4
    words: bool = False

    def __post_init__(self) -> None:
        VQAOptions.__post_init__(self)
        ClipOptions.__post_init__(self)
        if not 1 <= self.questions <= 8:
            raise ValueError(f"questions is {self.questions}; it should be 1 to 8")


@dataclass(frozen=True)
class ClipDialogueOptions(DialogueOptions, RoundOptions, ClipOptions):
    """See `ClipOptions`, `RoundOptions` and `DialogueOptions`."""

    def __post_init__(self) -> None:
        RoundOptions.__post_init__(self)
        ClipOptions.__post_init__(self)


# ---------------------------------------------------------------------- records
def _clip_record(options: Any, split: str, number: int) -> Record:
    clip = make_clip(options.seed, split, number)
    return {"video": f"clips/{split}/{number:06d}.mp4", "image_id": number, "clip": clip}


def _caption_record(options: Any, split: str, number: int) -> list[Record]:
    record = _clip_record(options, split, number)
    rng = stream(options.seed, split, number, Purpose.CLIP_CAPTIONS)
    return [record | {"caption": make_clip_captions(record["clip"], rng)}]


def _retrieval_record(options: Any, split: str, number: int) -> list[Record]:
    record = _clip_record(options, split, number)
    rng = stream(options.seed, split, number, Purpose.CLIP_RETRIEVAL)
    return [record | {"caption": describe_clip(record["clip"], rng)}]


def _question_records(options: Any, split: str, number: int) -> list[Record]:
    record = _clip_record(options, split, number)
    rng = stream(options.seed, split, number, Purpose.CLIP_QUESTIONS)
    asked = make_clip_questions(record["clip"], rng, options.questions)
    return [
        record
        | q
        | {
            "question_id": number * options.questions + i,
            "answer_type": yes_no_number_other(q["answer"]),
        }
        for i, q in enumerate(asked)
    ]


def _dialogue_record(options: Any, split: str, number: int) -> list[Record]:
    record = _clip_record(options, split, number)
    rng = stream(options.seed, split, number, Purpose.CLIP_DIALOGUE)
    caption, rounds = make_clip_dialogue(record["clip"], rng, options.rounds, split)
    rng, true = (
        stream(options.seed, split, number, Purpose.CLIP_OPTIONS),
        true_of_clip(record["clip"]["objects"]),
    )
    for turn in rounds:
        turn["answer_options"], turn["gt_index"] = make_options(
            turn["answer"], true, options.options, rng, CLIP_TALK_ANSWERS
        )
    return [record | {"caption": caption, "dialog": rounds}]


# ---------------------------------------------------------------------- the data sets
class _Clips(Drawn):
    def clip(self, record: Mapping[str, Any]) -> np.ndarray:
        """The frames, (T, size, size, 3) uint8."""
        frames: np.ndarray = self.drawn(
            record["image_id"], lambda: render_clip(record["clip"], self.options.frames, self.options.size)
        )
        return frames

    def picture(self, record: Mapping[str, Any]) -> Any:
        return self.clip(record)


@registry.register_dataset("shapes_video_caption")
class ShapesVideoCaption(_Clips, DrawnWithCaptions, VideoCaptionDataset):
    """Captions of clips; records also hold `clip`."""

    name = "shapes_video_caption"
    Options = ClipCaptionOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesVideoCaption:
        records = Made(_caption_record, plan.options, split, plan.options.count(split))
        return cls(records, split, options=plan.options)

    def extra_metrics(self, predictions: Mapping[Any, str]) -> dict[str, float]:
        """`truth_percent`: the share of captions that are true of their clip."""
        pairs = [(caption, self.records[int(i)]["clip"]) for i, caption in predictions.items()]
        return {"truth_percent": clip_truth_percent(pairs)}


@registry.register_dataset("shapes_video_retrieval")
class ShapesVideoRetrieval(_Clips, DrawnWithCaptions, VideoRetrievalDataset):
    """Clips with captions that tell them apart; records also hold `clip`."""

    name = "shapes_video_retrieval"
    Options = ClipCaptionOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesVideoRetrieval:
        records = Made(_retrieval_record, plan.options, split, plan.options.count(split))
        return cls(records, split, options=plan.options)


@registry.register_dataset("shapes_video_qa")
class ShapesVideoQA(_Clips, DrawnWithQuestions, VideoQADataset):
    """Questions about clips; records also hold `clip`, `question_type` and `temporal`."""

    name = "shapes_video_qa"
    Options = ClipQAOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        each = plan.options.questions
        records = Made(_question_records, plan.options, split, plan.options.count(split) * each, each)
        kind = ShapesVideoVQA if plan.options.words else cls
        return kind(records, split, options=plan.options, answer_list=CLIP_ANSWERS)


class ShapesVideoVQA(_Clips, DrawnWithQuestions, VideoVQADataset):
    """What `shapes_video_qa` is with the option `words`."""

    name = "shapes_video_qa"
    Options = ClipQAOptions


@registry.register_dataset("shapes_video_dialogue")
class ShapesVideoDialogue(_Clips, DrawnDialogues, VideoDialogueDataset):
    """Dialogues about clips; records also hold `clip`."""

    name = "shapes_video_dialogue"
    Options = ClipDialogueOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesVideoDialogue:
        records = Made(_dialogue_record, plan.options, split, plan.options.count(split), keep=2_048)
        return cls(records, split, options=plan.options)
