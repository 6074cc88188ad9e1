"""Dialogues about pictures of shapes, with pronouns: "is it striped?", "how many of them are red?"

**Description.** A picture of three to five objects, a caption that names some of them, and rounds of
question and answer. Two thirds of the questions say "it", "they" or "them", and 54 % can't be answered
without the rounds before (`history_percent`, in `test` with seed 0). What a pronoun means is defined in
`asking.py`. Every round has candidates of which exactly one is right; the most frequent answer to a
question is right in 51 % of the rounds. Nothing is downloaded: picture, dialogue and candidates are
functions of (seed, split, index).

**Names.** `shapes_dialogue`.

**Splits.** train, val, test: 20,000, 1,000 and 1,000 dialogues.

**Options.** `rounds`: 1 to 10 (default 5). `options`: candidates per round, 2 to 100 (default 100, as
in VisDial).

**Task.** Visual dialogue: choose the answer among the candidates, or write it.

**Metrics.** Mean reciprocal rank, recall at 1, 5 and 10, mean rank; accuracy.

**Records.** `image`, `image_id`, `caption`, `scene` and `dialog`, a list of rounds: `question`,
`answer`, `answer_options`, `gt_index`, `question_type`, `needs_history` and `about`, the places in the
scene of the objects that the next pronoun would mean.

**License.** The same as this library's; there is no third-party material in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lavis.common.registry import registry
from lavis.datasets.base import Plan, Record
from lavis.datasets.dialogue import DialogueDataset, DialogueOptions
from lavis.datasets.shapes.asking import make_options, true_of_some
from lavis.datasets.shapes.made import DrawnDialogues, Made, MadeOptions
from lavis.datasets.shapes.scene import Purpose, draw_scene, stream
from lavis.datasets.shapes.talk import make_dialogue


@dataclass(frozen=True)
class RoundOptions:
    """How long dialogues are.

    Args:
        rounds: questions per dialogue, 1 to 10.
        options: candidates per question, 2 to 100.
    """

    rounds: int = 5
    options: int = 100

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= 10:
            raise ValueError(f"rounds is {self.rounds}; it should be 1 to 10")
        if not 2 <= self.options <= 100:
            raise ValueError(f"options is {self.options}; it should be 2 to 100")


@dataclass(frozen=True)
class ShapesDialogueOptions(DialogueOptions, RoundOptions, MadeOptions):
    """See `MadeOptions`, `RoundOptions` and `DialogueOptions`."""

    def __post_init__(self) -> None:
        RoundOptions.__post_init__(self)
        MadeOptions.__post_init__(self)


def _record(options: Any, split: str, number: int) -> list[Record]:
    rng = stream(options.seed, split, number, Purpose.DIALOGUE_SCENE)
    scene = draw_scene(rng, split, int(rng.integers(3, 6)))
    caption, rounds = make_dialogue(
        scene, stream(options.seed, split, number, Purpose.DIALOGUE), options.rounds, split
    )
    rng, true = stream(options.seed, split, number, Purpose.OPTIONS), true_of_some(scene["objects"])
    for turn in rounds:
        turn["answer_options"], turn["gt_index"] = make_options(turn["answer"], true, options.options, rng)
    image = f"dialogue/{split}/{number:06d}.png"
    return [{"image": image, "image_id": number, "caption": caption, "dialog": rounds, "scene": scene}]


@registry.register_dataset("shapes_dialogue")
class ShapesDialogue(DrawnDialogues, DialogueDataset):
    """Dialogues about pictures; records also hold `scene`."""

    name = "shapes_dialogue"
    Options = ShapesDialogueOptions

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShapesDialogue:
        records = Made(_record, plan.options, split, plan.options.count(split), keep=2_048)
        return cls(records, split, options=plan.options)
