"""The dialogue family (VisDial, AVSD): a caption, then rounds of question and answer about one picture.

Records are dialogues: `image` (path below the media folder), `image_id`, `caption`, and `dialog`, a list of
rounds with `question`, `answer` and, where candidates are given, `answer_options` (a list of strings) and
`gt_index` (the place of the right one).

An item is a round; its sample holds everything before it, so each round can be trained and evaluated on
its own, discriminatively (choose among the options) or generatively (write the answer):

| key | what |
| --- | --- |
| `image` | the picture |
| `caption` | the caption |
| `dialog` | the rounds before this one: a list of (question, answer), empty in the first round |
| `text_input` | the question |
| `answer` | the right answer |
| `answer_options`, `gt_index` | the N candidates (flat list of B·N in a batch) and the right one's place |
| `image_id`, `round_id` | the dialogue's id and the round's number, from 1 |
| `instance_id` | the item's number |

With `whole_dialogues` an item is a dialogue, and everything from `dialog` to `round_id` but `image_id`
holds one entry per round, flat in a batch as texts always are: the picture is encoded once for its R rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lavis.datasets.base import Dataset
from lavis.datasets.collate import Sample

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class DialogueOptions:
    """Settings of every dialogue data set.

    Args:
        whole_dialogues: an item is a dialogue with all its rounds. The dialogues of a batch then need
            equally many.
    """

    whole_dialogues: bool = False


class DialogueDataset(Dataset):
    """One split of a dialogue data set; see the module's docstring for records and samples."""

    Options: ClassVar[type] = DialogueOptions

    @functools.cached_property
    def _rounds(self) -> list[tuple[int, int]]:
        return [(r, i) for r, record in enumerate(self.records) for i in self.asked(len(record["dialog"]))]

    def asked(self, rounds: int) -> range:
        """Which of a dialogue's rounds are items."""
        return range(rounds)

    @property
    def has_candidates(self) -> bool:
        """Whether answers can be chosen from given ones."""
        return any("answer_options" in turn for record in self.records[:1] for turn in record["dialog"])

    def _round_at(self, index: int) -> tuple[int, int]:
        """(record, round) of an item where items are rounds."""
        return self._rounds[index]

    def _count_rounds(self) -> int:
        return len(self._rounds)

    def __len__(self) -> int:
        return len(self.records) if self.options.whole_dialogues else self._count_rounds()

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        whole = self.options.whole_dialogues
        place, round_ = (index, 0) if whole else self._round_at(index)
        record = self.records[place]
        sample = {
            "image": self.image(record, rng),
            "caption": self.text(record["caption"], rng),
            "image_id": record.get("image_id", place),
            "instance_id": str(index),
        }
        turns = [(self.text(t["question"], rng), t.get("answer", "")) for t in record["dialog"]]
        if not whole:
            return sample | self._round(record, turns, round_)
        rounds = [self._round(record, turns, i) for i in range(len(turns))]
        return sample | {key: [r[key] for r in rounds] for key in rounds[0]}

    def _round(self, record: Mapping[str, Any], turns: Turns, number: int) -> Sample:
        turn = record["dialog"][number]
        out: Sample = {
            "dialog": list(turns[:number]),
            "text_input": turns[number][0],
            "round_id": number + 1,
        }
        # answers of test splits are not public
        return out | {key: turn[key] for key in ("answer", "answer_options", "gt_index") if key in turn}

    def collater(self, samples: Sequence[Mapping[str, Any] | None]) -> Sample:
        """Samples to a batch; `dialog` is a list with one list of turns per round."""
        kept = [dict(s) for s in samples if s is not None]
        dialogs = [s.pop("dialog") for s in kept]
        if self.options.whole_dialogues:
            dialogs = [turns for rounds in dialogs for turns in rounds]
        return super().collater(kept) | {"dialog": dialogs}


def as_text(caption: str, turns: Turns, question: str = "") -> str:
    """The caption, the rounds before and the question as one text, for models that read only one."""
    parts = [caption, *(f"{q} {a}" for q, a in turns), question]
    return ". ".join(part for part in parts if part)
