"""How many steps fit into `run.max_minutes`.

The first steps and one validation are timed. Then the number of steps is fixed, so that the schedule can decay over
them, and kept in every checkpoint, so that a resumed run goes on with the same schedule. The clock stays the hard
stop: see `lavis.runners.stopping`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

UNTIMED = 2  # the first steps, which warm up caches, workers and kernels
TIMED = 10
_KEPT = 0.97  # of the time; the rest is for saving, and for steps that take longer than the timed ones
_VALIDATING = 0.25  # share of an epoch's time above which it is validated less often


@dataclass(frozen=True)
class Plan:
    """What was fixed.

    Attributes:
        minutes: of the whole run. iterations: in all. val_freq: epochs between validations.
        reserved: seconds of the last validation and the test, which come when training is over.
    """

    minutes: float
    iterations: int
    val_freq: int
    reserved: float

    def __post_init__(self) -> None:
        if type(self.iterations) is not int or type(self.val_freq) is not int or self.val_freq < 1:
            raise TypeError("the plan holds something else than counts")
        if not (0 < float(self.minutes) < math.inf and 0 <= float(self.reserved) < math.inf):
            raise ValueError("the plan holds something else than times")

    def state(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    minutes: float,
    *,
    done: int,
    spent: float,
    step: float,
    validation: float,
    test: float,
    per_epoch: int,
    val_freq: int,
    most: int | None,
) -> Plan:
    """The steps for which there is time.

    Args:
        minutes: of the whole run. done: steps so far. spent: seconds so far.
        step, validation, test: seconds of a step, of one validation, and of the test at the end.
        per_epoch: steps of an epoch. val_freq: epochs between validations that are wanted.
        most: more steps are not wanted; None: as many as fit.

    Returns:
        at least the steps that are done.
    """
    reserved = validation + test
    left = _KEPT * 60 * minutes - spent - reserved
    epoch = per_epoch * max(step, 1e-6)
    val_freq = max(val_freq, math.ceil(validation / (_VALIDATING * epoch)))
    iterations = done + max(int(left / (max(step, 1e-6) + validation / (val_freq * per_epoch))), 0)
    if iterations <= val_freq * per_epoch:  # only the last validation, for which there is time already
        iterations = min(done + max(int(left / max(step, 1e-6)), 0), val_freq * per_epoch)
    if most is not None:
        iterations = min(iterations, most)
    return Plan(minutes, max(iterations, done, 1), val_freq, reserved)
