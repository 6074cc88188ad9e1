"""Clips: scenes in which things move, appear, disappear, grow or shrink.

A clip is a plain dict, as a scene is; its objects say besides what happens to them:

    {"objects": [{"shape", "color", "texture", "x", "y", "r", "event", "start", "end"}, …],
     "background": {…}}

`event` is one of `EVENTS` or "stay". Time runs from 0 (first frame) to 1 (last); the event takes place
between `start` and `end`. x, y, r hold before it, and `state` gives them at any time. What words mean:

- Everything has one event at most. *moves to the left* (right, up, down): by `STEP` of the side.
- *appears*, *disappears*: halfway between start and end. *grows*, *shrinks*: from the small to the
  large radius or back; so size is not a lasting attribute, and texts about clips don't use it for one.
- A happens *before* B, B *after* A: A's end is not after B's start. *while*: they happen between the
  same times.
- Objects never touch, and no two have the same colour and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lavis.datasets.shapes.render import render_frames
from lavis.datasets.shapes.scene import (
    ALLOWED_PAIRS,
    FINE,
    RADII,
    TEXTURES,
    Obj,
    Purpose,
    Scene,
    draw_background,
    pick,
    stream,
)

Clip = dict[str, Any]

MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
EVENTS = (*MOVES, "appear", "disappear", "grow", "shrink")
STEP = 0.3
SMALL, LARGE = RADII["small"][1], RADII["large"][1]
_GAP = 1 / 7  # of the clip's time, between events: of eight frames or more, one shows both at rest
_LOOKS = np.linspace(0, 1, 13)  # times at which objects must not touch


def state(obj: Obj, time: float) -> tuple[float, float, float] | None:
    """Where an object is: (x, y, r) at a time from 0 to 1; None while it can't be seen."""
    event, x, y, r = obj["event"], obj["x"], obj["y"], obj["r"]
    if event == "stay":
        return x, y, r
    if event in ("appear", "disappear"):
        late = time >= (obj["start"] + obj["end"]) / 2
        return (x, y, r) if late == (event == "appear") else None
    done = min(1.0, max(0.0, (time - obj["start"]) / (obj["end"] - obj["start"])))
    if event in MOVES:
        dx, dy = MOVES[event]
        return x + dx * STEP * done, y + dy * STEP * done, r
    change = (LARGE - SMALL) * done
    return x, y, r + (change if event == "grow" else -change)


def scene_at(clip: Clip, time: float) -> Scene:
    """What can be seen at a time from 0 to 1, as a scene that can be drawn."""
    objects = []
    for obj in clip["objects"]:
        seen = state(obj, time)
        if seen is not None:
            x, y, r = seen
            objects.append(obj | {"x": x, "y": y, "r": round(r, 3)})
    return {"objects": objects, "background": clip["background"]}


def render_clip(clip: Clip, frames: int = 8, size: int = 64) -> np.ndarray:
    """Draw a clip.

    Args:
        clip: what happens.
        frames: how many frames, evenly spaced from its first moment to its last; 8 or more show every event.
        size: the side in pixels, 32 to 256.

    Returns:
        An array (frames, size, size, 3) of uint8, RGB.
    """
    return render_frames([scene_at(clip, i / max(1, frames - 1)) for i in range(frames)], size)


def happens_before(a: Obj, b: Obj) -> bool:
    """Whether a's event is over when b's begins."""
    return "stay" not in (a["event"], b["event"]) and bool(a["end"] <= b["start"])


def happens_with(a: Obj, b: Obj) -> bool:
    """Whether the events take place between the same times."""
    return "stay" not in (a["event"], b["event"]) and (a["start"], a["end"]) == (b["start"], b["end"])


# ---------------------------------------------------------------------- making
def _draw_objects(rng: np.random.Generator, split: str, count: int) -> list[Obj]:
    """Objects of different (colour, shape), which often share one of the two."""
    objects: list[Obj] = []
    while len(objects) < count:
        color, shape = pick(rng, ALLOWED_PAIRS[split])
        if objects and rng.random() < 0.5:
            other = pick(rng, objects)
            color, shape = (other["color"], shape) if rng.random() < 0.5 else (color, other["shape"])
        taken = [(o["color"], o["shape"]) for o in objects]
        if (color, shape) in taken or (color, shape) not in ALLOWED_PAIRS[split]:
            continue
        texture = pick(rng, TEXTURES) if rng.random() < 0.4 and shape not in FINE else "solid"
        objects.append({"shape": shape, "color": color, "texture": texture, "r": SMALL})
    return objects


def _set_events(rng: np.random.Generator, objects: list[Obj]) -> None:
    """One to three events, one after the other or, now and then, two at once."""
    count = min(len(objects), 1 + int(np.searchsorted([0.2, 0.75], rng.random())))
    together = count > 1 and rng.random() < 0.3
    slots = count - 1 if together else count
    at = [*range(slots), int(rng.integers(slots))][:count] if together else list(range(slots))
    for place, obj in enumerate(objects):
        if place >= count:
            obj |= {"event": "stay", "start": 0.0, "end": 1.0}
            continue
        event = pick(rng, list(MOVES)) if rng.random() < 0.5 else pick(rng, EVENTS[4:])
        length = (1 - (slots - 1) * _GAP) / slots
        start = at[place] * (length + _GAP)
        obj |= {"event": event, "start": round(start, 6), "end": round(start + length, 6)}
        if event == "shrink":
            obj["r"] = LARGE
    for obj in objects:  # so that a size doesn't give away who grows or shrinks
        if obj["event"] not in ("grow", "shrink") and rng.random() < 0.25:
            obj["r"] = LARGE
    order = rng.permutation(len(objects))
    objects[:] = [objects[int(i)] for i in order]


def _room(obj: Obj) -> tuple[tuple[float, float], tuple[float, float]]:
    """The ranges of x and of y from which an object stays in the picture."""
    most = LARGE if obj["event"] in ("grow", "shrink") else obj["r"]
    low, high = 0.02 + most, 0.98 - most
    dx, dy = MOVES.get(obj["event"], (0, 0))
    x, y = ((low + STEP * (d < 0), high - STEP * (d > 0)) for d in (dx, dy))
    return x, y


def _way(obj: Obj) -> np.ndarray:
    """How far an object is from its first place, and its radius, at the times of `_LOOKS`: (3, times).
    Things that can't be seen keep their place."""
    done = np.clip((_LOOKS - obj["start"]) / (obj["end"] - obj["start"]), 0, 1)
    dx, dy = MOVES.get(obj["event"], (0, 0))
    change = {"grow": LARGE - SMALL, "shrink": SMALL - LARGE}.get(obj["event"], 0.0)
    return np.stack([dx * STEP * done, dy * STEP * done, obj["r"] + change * done])


def _place(rng: np.random.Generator, objects: list[Obj]) -> bool:
    """Give every object a place from which it never touches another; False if one found none."""
    paths: list[np.ndarray] = []
    for obj in objects:
        (x0, x1), (y0, y1) = _room(obj)
        u, v = rng.random((2, 60, 1))
        xs, ys, way = (x0 + u * (x1 - x0)).round(4), (y0 + v * (y1 - y0)).round(4), _way(obj)
        free = np.ones(len(xs), bool)
        for x, y, r in paths:  # (times,) each; the candidates are (60, times)
            distance = np.hypot(xs + way[0] - x, ys + way[1] - y)
            free &= (distance >= 1.08 * (way[2] + r)).all(axis=1)
        if not free.any():
            return False
        first = int(free.argmax())
        obj["x"], obj["y"] = float(xs[first, 0]), float(ys[first, 0])
        paths.append(np.stack([obj["x"] + way[0], obj["y"] + way[1], way[2]]))
    return True


def make_clip(seed: int, split: str, index: int) -> Clip:
    """The clip `index`: a function of these three arguments alone."""
    rng = stream(seed, split, index, Purpose.CLIP)
    while True:
        objects = _draw_objects(rng, split, int(rng.integers(2, 5)))
        _set_events(rng, objects)
        if any(_place(rng, objects) for _ in range(3)):
            return {"objects": objects, "background": draw_background(rng)}


def moments(objects: Sequence[Obj]) -> list[Obj]:
    """The objects to which something happens, in the order of their events."""
    return sorted((o for o in objects if o["event"] != "stay"), key=lambda o: o["start"])
