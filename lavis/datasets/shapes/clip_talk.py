"""Dialogues about clips: the questions of `asking.py` and some about events.

"There is" means at some time of the clip. "it" is as in pictures; "that" means the event of the object
in focus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lavis.datasets.shapes.asking import PICTURE_ANSWERS, Ask, Focus, Reply
from lavis.datasets.shapes.clip_language import VERBS, clause_for
from lavis.datasets.shapes.clip_questions import named
from lavis.datasets.shapes.clips import Clip, happens_before, happens_with, moments
from lavis.datasets.shapes.language import Phrase
from lavis.datasets.shapes.scene import ALLOWED_PAIRS, Obj
from lavis.datasets.shapes.talk import Talk, hold

# All answers, by kind.
CLIP_TALK_ANSWERS: dict[str, tuple[str, ...]] = {
    "yes/no": PICTURE_ANSWERS["yes/no"],
    "number": PICTURE_ANSWERS["number"],
    "color": PICTURE_ANSWERS["color"],
    "shape": PICTURE_ANSWERS["shape"],
    "texture": PICTURE_ANSWERS["texture"],
    "event": tuple(f"it {verb}" for verb in VERBS.values()),
    "clause": (
        "nothing",
        *(
            clause_for({"shape": s, "color": c, "texture": "solid", "event": event}).text()
            for c, s in ALLOWED_PAIRS["train"]
            for event in VERBS
            if event != "stay"
        ),
    ),
}


@dataclass(frozen=True)
class Does(Ask):
    """As in "what does it do?" """

    pronoun: ClassVar[str] = "it"

    def text(self) -> str:
        return "what does it do?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        return f"it {VERBS[objects[focus[0]]['event']]}", focus


@dataclass(frozen=True)
class FirstEvent(Ask):
    """As in "what happens first?", where one event comes before all others."""

    last: bool

    def text(self) -> str:
        return f"what happens {'last' if self.last else 'first'}?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        events = moments(objects)
        obj = events[-1 if self.last else 0]
        others = [o for o in events if o is not obj]
        if not others or any(happens_with(o, obj) for o in others):
            return None
        return clause_for(obj).text(), _place(objects, obj)


@dataclass(frozen=True)
class NextEvent(Ask):
    """As in "what happens after that?": the only event that is next to that of the object in focus."""

    after: bool
    pronoun: ClassVar[str] = "it"

    def text(self) -> str:
        return f"what happens {'after' if self.after else 'before'} that?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        it = objects[focus[0]]
        if it["event"] == "stay":
            return None
        events = [o for o in objects if (happens_before(it, o) if self.after else happens_before(o, it))]
        if not events:
            return "nothing", focus
        if len(events) > 1:
            return None
        return clause_for(events[0]).text(), _place(objects, events[0])


@dataclass(frozen=True)
class Before(Ask):
    """As in "does that happen before the blue circle appears?" """

    phrase: Phrase
    verb: str
    after: bool
    pronoun: ClassVar[str] = "it"

    def text(self) -> str:
        return f"does that happen {'after' if self.after else 'before'} {self.phrase.text()} {self.verb}?"

    def reply(self, objects: Sequence[Obj], focus: Focus) -> Reply | None:
        it, (other,) = objects[focus[0]], self.phrase.matching(objects)
        if happens_before(it, other):
            return ("no" if self.after else "yes"), focus
        if happens_before(other, it):
            return ("yes" if self.after else "no"), focus
        return None


def _place(objects: Sequence[Obj], obj: Obj) -> Focus:
    return tuple(i for i, o in enumerate(objects) if o is obj)


class ClipTalk(Talk):
    """A dialogue about a clip while it is being made."""

    attributes = ("color", "shape", "texture")

    def __init__(self, clip: Clip, rng: np.random.Generator, pairs: Sequence[tuple[str, str]]) -> None:
        super().__init__(clip["objects"], rng, pairs)
        self.openers = [self.exists, self.count, self.which, self.first, self.first]
        self.about_one = [
            self.does, self.does, self.next, self.next, self.next, self.before, self.before, self.attribute,
            self.is_it, self.others,
        ]  # fmt: skip

    def first(self) -> Ask | None:
        return FirstEvent(last=bool(self.rng.random() < 0.5))

    def does(self) -> Ask | None:
        return None if (self.focus[0], "event") in self.told else Does()

    def next(self) -> Ask | None:
        """After and before in turn, mostly where something happens."""
        asks = [NextEvent(True), NextEvent(False)]
        replies = [ask.reply(self.objects, self.focus) for ask in asks]
        empty = self.rng.random() < 0.3
        fitting = [a for a, r in zip(asks, replies, strict=True) if r and (r[0] == "nothing") == empty]
        return self.pick(fitting) if fitting and (self.focus[0], "event") in self.told else None

    def before(self) -> Ask | None:
        if (self.focus[0], "event") not in self.told:
            return None
        other = self.pick(self.objects)
        it = self.objects[self.focus[0]]
        if not happens_before(it, other) and not happens_before(other, it):
            return None
        after = bool(self.rng.random() < 0.5)
        return Before(named(self.objects, other), VERBS[other["event"]], after)

    def _learn(self, ask: Ask, reply: Reply) -> None:
        super()._learn(ask, reply)
        if isinstance(ask, FirstEvent | NextEvent) and reply[0] != "nothing":
            self.told |= {(reply[1][0], k) for k in ("color", "shape", "event")}
        if isinstance(ask, Does):
            self.told.add((reply[1][0], "event"))
        if isinstance(ask, Before):
            self.told |= {(i, "event") for i, o in enumerate(self.objects) if ask.phrase.matching([o])}


def make_clip_dialogue(
    clip: Clip, rng: np.random.Generator, rounds: int, split: str = "train"
) -> tuple[str, list[dict[str, Any]]]:
    """Talk about a clip; see `talk.make_dialogue`."""
    return hold(ClipTalk(clip, rng, ALLOWED_PAIRS[split]), rounds)


def true_of_clip(objects: Sequence[Obj]) -> set[str]:
    """Every answer that is true of some object, whatever was asked."""
    values = {o[k] for o in objects for k in ("color", "shape", "texture")}
    events = {f"it {VERBS[o['event']]}" for o in objects}
    return values | events | {clause_for(o).text() for o in objects} | {"nothing"}
