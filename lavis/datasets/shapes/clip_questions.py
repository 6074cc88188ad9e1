"""Questions about clips, each with exactly one answer out of `CLIP_ANSWERS`.

A kind of question refuses (returns None) where the answer could be argued about. Yes and no, directions
and events are drawn before what they are about. `TEMPORAL` names the kinds that ask for a change, which
one frame doesn't show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lavis.datasets.shapes import scene as world
from lavis.datasets.shapes.clip_language import VERBS
from lavis.datasets.shapes.clips import EVENTS, MOVES, Clip, happens_before, scene_at
from lavis.datasets.shapes.language import Phrase, phrase_for
from lavis.datasets.shapes.scene import Obj, pick

_DOES = {"appear": "appears", "disappear": "disappears", "grow": "grows", "shrink": "shrinks"}
# Every answer to every question: the classes of `shapes_video_qa`, in this order.
CLIP_ANSWERS = (
    "yes", "no", *(str(n) for n in range(5)), *world.COLORS, *world.SHAPES,
    *MOVES, "moves", *_DOES.values(), "stays still",
)  # fmt: skip

Question = tuple[str, str]


def doing(obj: Obj) -> str:
    """What an object does, in one of the words "moves", "appears", …, "stays still"."""
    return _DOES.get(obj["event"], "moves" if obj["event"] in MOVES else "stays still")


def named(objects: Sequence[Obj], obj: Obj) -> Phrase:
    """ "the star", or "the red star" where there are several."""
    kinds = ("shape",) if phrase_for(objects, obj, ("shape",)).quantity == "a" else ("color", "shape")
    return Phrase("the", **{k: obj[k] for k in kinds})


def the(objects: Sequence[Obj], obj: Obj) -> str:
    """`named` in words."""
    return named(objects, obj).text()


def _does(obj: Obj) -> str:
    """Its verb after "does": "move to the left", "appear"."""
    first, *rest = VERBS[obj["event"]].split()
    return " ".join([first.removesuffix("s"), *rest])


def ask_direction(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "which way does the red star move?" """
    movers = [o for o in clip["objects"] if o["event"] in MOVES]
    if not movers:
        return None
    obj = pick(rng, movers)
    return f"which way does {the(clip['objects'], obj)} move?", obj["event"]


def ask_event(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "what does the star do?"; what it does is drawn first, from what happens in the clip."""
    does = pick(rng, sorted({doing(o) for o in clip["objects"]}))
    obj = pick(rng, [o for o in clip["objects"] if doing(o) == does])
    return f"what does {the(clip['objects'], obj)} do?", does


def ask_who(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "what shape moves to the left?", "what color is the object that grows?" """
    obj = pick(rng, clip["objects"])
    if sum(o["event"] == obj["event"] for o in clip["objects"]) > 1:
        return None
    if rng.random() < 0.5:
        return f"what shape {VERBS[obj['event']]}?", obj["shape"]
    return f"what color is the object that {VERBS[obj['event']]}?", obj["color"]


def ask_order(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "does the red star move up before the circle appears?" """
    objects = clip["objects"]
    pairs = [(a, b) for a in objects for b in objects if happens_before(a, b)]
    if not pairs:
        return None
    a, b = pick(rng, pairs)
    word, yes = pick(rng, ("before", "after")), bool(rng.random() < 0.5)
    if (word == "before") != yes:
        a, b = b, a
    return (
        f"does {the(objects, a)} {_does(a)} {word} {the(objects, b)} {VERBS[b['event']]}?",
        "yes" if yes else "no",
    )


def ask_first(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "what color is the first object to move?", of two or more that move one after the other."""
    kind = pick(rng, ("move", "appear", "disappear", "grow", "shrink"))
    verb = "moves" if kind == "move" else _DOES[kind]
    actors = [o for o in clip["objects"] if doing(o) == verb]
    last = bool(rng.random() < 0.5)
    for obj in actors:
        others = [o for o in actors if o is not obj]
        if others and all(happens_before(o, obj) if last else happens_before(obj, o) for o in others):
            attribute = pick(rng, ("color", "shape"))
            place = "last" if last else "first"
            return f"what {attribute} is the {place} object to {kind}?", obj[attribute]
    return None


def ask_how_many(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "how many objects move?"; the number is drawn first, from those on offer."""
    offers: dict[int, list[str]] = {}
    for verb in ("moves", *_DOES.values()):
        number = sum(doing(o) == verb for o in clip["objects"])
        offers.setdefault(number, []).append(verb.removesuffix("s"))
    number = pick(rng, sorted(offers))
    return f"how many objects {pick(rng, offers[number])}?", str(number)


def ask_whether(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "does the star move to the left?"; for no, something else that it might do."""
    obj = pick(rng, clip["objects"])
    if rng.random() < 0.5:
        event, answer = obj["event"], "yes"
    else:
        event, answer = pick(rng, [e for e in (*EVENTS, "stay") if e != obj["event"]]), "no"
    return f"does {the(clip['objects'], obj)} {_does(obj | {'event': event})}?", answer


def ask_color(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "what color is the star?" """
    obj = pick(rng, clip["objects"])
    name = the(clip["objects"], obj)
    return None if obj["color"] in name else (f"what color is {name}?", obj["color"])


def ask_count_at(clip: Clip, rng: np.random.Generator) -> Question | None:
    """As in "how many objects are there at the end?": one frame tells, if it is the right one."""
    start = rng.random() < 0.5
    number = len(scene_at(clip, 0.0 if start else 1.0)["objects"])
    return f"how many objects are there at the {'start' if start else 'end'}?", str(number)


Asker = Callable[[Clip, np.random.Generator], "Question | None"]
CLIP_QUESTION_TYPES: dict[str, Asker] = {
    "direction": ask_direction,
    "event": ask_event,
    "who": ask_who,
    "order": ask_order,
    "first": ask_first,
    "how_many": ask_how_many,
    "whether": ask_whether,
    "color": ask_color,
    "count_at": ask_count_at,
}
TEMPORAL = frozenset(CLIP_QUESTION_TYPES) - {"color", "count_at"}


def make_clip_questions(clip: Clip, rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Ask `count` different questions about a clip.

    Args:
        clip: what happens.
        rng: the stream that questions are chosen with.
        count: how many, 1 to 8.

    Returns:
        Dicts with `question`, `answer`, `question_type` and `temporal` (whether it asks for a change), the
        types as mixed as the clip allows.
    """
    asked: dict[str, dict[str, Any]] = {}
    while len(asked) < count:
        for place in rng.permutation(len(CLIP_QUESTION_TYPES)):
            kind = list(CLIP_QUESTION_TYPES)[int(place)]
            found = CLIP_QUESTION_TYPES[kind](clip, rng)
            if found is not None and found[0] not in asked and len(asked) < count:
                asked[found[0]] = {
                    "question": found[0],
                    "answer": found[1],
                    "question_type": kind,
                    "temporal": kind in TEMPORAL,
                }
    return list(asked.values())
