"""Captions of clips: written by `make_clip_captions`, checked by `judge_clip_caption`.

A caption is one or more clauses, "a striped red star moves to the left", joined by words of time. What
words mean is said in clips.py, and further:

- "a red star" means some object that is a red star; different clauses are about different objects.
- "and then" and "before": the event on the left is over when that on the right begins; "after": the
  other way round; "while": both happen at once; "and": no order.
- There are no words for sizes, which change, nor for places.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lavis.datasets.shapes.clips import MOVES, Clip, happens_before, happens_with, moments
from lavis.datasets.shapes.judging import Judgement, own_percent, read_caption
from lavis.datasets.shapes.language import Phrase
from lavis.datasets.shapes.scene import Obj

VERBS = {
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "appear": "appears",
    "disappear": "disappears",
    "grow": "grows",
    "shrink": "shrinks",
    "stay": "stays still",
}
_MEANING = {verb: (event,) for event, verb in VERBS.items()} | {"moves": tuple(MOVES)}
_JOINTS = ("and then", "before", "after", "while", "and")


@dataclass(frozen=True)
class Clause:
    """Something that happens: a phrase and a verb of `VERBS` (or "moves")."""

    phrase: Phrase
    verb: str

    def text(self) -> str:
        return f"{self.phrase.text()} {self.verb}"

    def fitting(self, objects: Sequence[Obj]) -> list[Obj]:
        """The objects of which it is true."""
        return [o for o in self.phrase.matching(objects) if o["event"] in _MEANING[self.verb]]


# ---------------------------------------------------------------------- writing
def clause_for(obj: Obj, detail: bool = False) -> Clause:
    """What happens to an object, with its colour and shape; detail: with the texture, if it has one."""
    texture = obj["texture"] if detail and obj["texture"] != "solid" else None
    return Clause(Phrase("a", obj["shape"], obj["color"], texture=texture), VERBS[obj["event"]])


def tell(objects: Sequence[Obj], detail: bool = False) -> str:
    """The events of these objects in their order, then the objects to which nothing happens."""
    events = moments(objects)
    words = ""
    for before, obj in zip([None, *events], events):
        joint = "" if before is None else (" while " if happens_with(before, obj) else " and then ")
        words += joint + clause_for(obj, detail).text()
    still = [clause_for(o, detail).text() for o in objects if o["event"] == "stay"]
    return " and ".join([words, *still] if words else still)


def make_clip_captions(clip: Clip, rng: np.random.Generator, count: int = 3) -> list[str]:
    """Write different true captions of a clip.

    Args:
        clip: what happens.
        rng: the stream that words are chosen with.
        count: how many, up to 3.

    Returns:
        Captions of lower-case words. The first tells all events in their order, the others tell parts.
    """
    objects = [clip["objects"][int(i)] for i in rng.permutation(len(clip["objects"]))]
    events = moments(objects)

    def write(attempt: int) -> str:
        if attempt == 0:
            return tell(events)
        u = rng.random()
        if u < 0.3 and len(events) > 1:
            first, second = (events[i] for i in sorted(rng.permutation(len(events))[:2].tolist()))
            a, b = clause_for(first).text(), clause_for(second).text()
            if happens_with(first, second):
                return f"{b} while {a}"
            return f"{a} before {b}" if rng.random() < 0.5 else f"{b} after {a}"
        if u < 0.55:
            return clause_for(objects[int(rng.integers(len(objects)))], detail=True).text()
        some = rng.permutation(len(objects))[: int(rng.integers(1, len(objects) + 1))].tolist()
        return tell([objects[i] for i in some], detail=bool(rng.random() < 0.5))

    captions: list[str] = []
    attempt = 0
    while len(captions) < count:
        caption = write(attempt)
        attempt += 1
        if caption not in captions:
            captions.append(caption)
        if attempt > 60 * count:
            raise ValueError(f"a clip of {len(objects)} objects has no {count} different captions")
    return captions


def describe_clip(clip: Clip, rng: np.random.Generator) -> list[str]:
    """Write two different captions that each name all objects of a clip and what happens to them.

    The first tells the events in their order. The second begins with the end ("after"), where there are two
    events one after the other, or else names objects and events in another order ("and").
    """
    objects = [clip["objects"][int(i)] for i in rng.permutation(len(clip["objects"]))]
    events = moments(objects)
    first = tell(objects, detail=True)
    still = [clause_for(o, detail=True).text() for o in objects if o["event"] == "stay"]
    if len(events) == 2 and happens_before(*events):
        a, b = (clause_for(o, detail=True).text() for o in events)
        return [first, " and ".join([f"{b} after {a}", *still])]
    if len(events) == 2:
        a, b = (clause_for(o, detail=True).text() for o in events)
        return [first, " and ".join([*still, f"{b} while {a}"])]
    return [first, " and ".join([*still[::-1], *(clause_for(o, detail=True).text() for o in events[::-1])])]


# ---------------------------------------------------------------------- judging
def read_clip_caption(caption: str) -> tuple[list[Clause], list[str]] | None:
    """The clauses of a caption and the words between them, or None if it leaves the grammar."""
    text = " ".join(re.findall(r"[a-z0-9]+|[^\sa-z0-9.,]", caption.lower()))
    parts = re.split(rf" ({'|'.join(_JOINTS)}) ", text)
    clauses = [_read_clause(part) for part in parts[::2]]
    if any(clause is None for clause in clauses):
        return None
    return [c for c in clauses if c is not None], parts[1::2]


def _read_clause(text: str) -> Clause | None:
    for verb in _MEANING:
        if text.endswith(f" {verb}"):
            read = read_caption(text.removesuffix(f" {verb}")) or []
            if len(read) == 1 and read[0].relation is None and not read[0].predicate:
                phrase = read[0].subject
                if phrase.quantity == "a" and phrase.size is None:
                    return Clause(phrase, verb)
    return None


def _ordered(joint: str, a: Obj, b: Obj) -> bool:
    if joint in ("and then", "before"):
        return happens_before(a, b)
    if joint == "after":
        return happens_before(b, a)
    return joint == "and" or happens_with(a, b)


def judge_clip_caption(caption: str, clip: Clip) -> Judgement:
    """Check what a caption states of a clip: every object, event and order.

    Args:
        caption: any text; case and a final full stop don't matter.
        clip: what happens.

    Returns:
        A `Judgement`; `statements` has each clause with whether it holds on its own.
    """
    read = read_clip_caption(caption)
    if read is None:
        return Judgement(False, [], False)
    clauses, joints = read
    fitting = [clause.fitting(clip["objects"]) for clause in clauses]
    judged = [(c.text(), bool(f)) for c, f in zip(clauses, fitting, strict=True)]
    return Judgement(_can_be_told(fitting, joints), judged, True)


def _can_be_told(fitting: Sequence[Sequence[Obj]], joints: Sequence[str]) -> bool:
    """Whether different objects can be chosen for the clauses so that the order holds."""
    for chosen in itertools.product(*fitting):
        different = len({id(o) for o in chosen}) == len(chosen)
        if different and all(_ordered(j, chosen[i], chosen[i + 1]) for i, j in enumerate(joints)):
            return True
    return False


def clip_truth_percent(pairs: Iterable[tuple[str, Any]]) -> float:
    """The share of captions that are true of their clip, in percent; 0 for no pairs."""
    verdicts = [judge_clip_caption(caption, clip).true for caption, clip in pairs]
    return 100.0 * sum(verdicts) / len(verdicts) if verdicts else 0.0


def clip_ceiling_percent(pairs: Sequence[tuple[Sequence[str], Clip]]) -> float:
    """The share of captions that are true of their own clip and of no other, in percent.

    Args:
        pairs: the gallery: each clip's captions and the clip.

    Raises:
        ValueError: a caption that can't be read; it is named.
    """

    def test_of(caption: str) -> Callable[[Clip], bool]:
        read = read_clip_caption(caption)
        if read is None:
            raise ValueError(f"the caption {caption!r} leaves the grammar of clips")
        clauses, joints = read
        return lambda clip: _can_be_told([c.fitting(clip["objects"]) for c in clauses], joints)

    return own_percent(pairs, test_of)
