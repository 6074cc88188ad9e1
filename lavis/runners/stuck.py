"""A warning where training does not train: the loss after some steps is what it was, or what chance gives."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from lavis.common import dist
from lavis.runners.means import Means

logger = logging.getLogger(__name__)

_FIRST, _LAST = 10, 50  # steps whose means are compared
_MOVED = 0.97  # a loss above this share of what it is compared with has not moved


class StuckWatch:
    """Compares the mean loss of the steps before `after` with chance, or with that of the first steps.

    A model says what its losses are when it knows nothing (`chance_losses`): for contrast the logarithm of the number
    of candidates. Without that the first steps are the measure.

    Args:
        model: of the run. batch: samples of a batch on all ranks. lr: the peak rate, for the advice.

    Attributes:
        after: steps until the comparison; with fewer than 50 there is none.
    """

    def __init__(self, model: Any, batch: int, lr: float, after: int = 0) -> None:
        chance = getattr(model, "chance_losses", None)
        self.chances: dict[str, float] = chance(batch) if chance is not None else {}
        self.after, self.lr = after, lr
        self.first, self.last = Means(), Means()

    def add(self, step: int, losses: Mapping[str, torch.Tensor]) -> None:
        """Note the losses of a step, counted from 0; warn after the last one. Called by every rank."""
        if step >= self.after or self.after < _LAST:
            return
        if step < _FIRST:
            self.first.add(losses)
        if step >= max(self.after - _LAST, _FIRST):
            self.last.add(losses)
        if step == self.after - 1 and self.first.sums:  # none where a run was resumed later
            first, last = self.first.read(), self.last.read()
            problem = self.problem(first, last)
            if problem and dist.is_main():
                logger.warning("after %d steps %s", self.after, problem)

    def problem(self, first: Mapping[str, float], last: Mapping[str, float]) -> str:
        """What is wrong and what to try; "" where the loss has moved."""
        loss, before = last.get("loss", float("nan")), first.get("loss", float("nan"))
        parts = [name for name in last if name != "loss"] or ["loss"]
        known = self.chances and set(parts) <= set(self.chances)
        if known:
            chance = sum(self.chances[name] for name in parts)
            if loss < _MOVED * chance:
                return ""
            what = f"the loss is {loss:.2f}, no better than chance ({chance:.2f})"
        else:
            if loss < _MOVED * before:
                return ""
            what = f"the loss has not fallen: it was {before:.2f} and is {loss:.2f}"
        rates = f"--lr {3 * self.lr:.1g} or --lr {self.lr / 10:.1g} instead of {self.lr:.1g}"
        return (
            f"{what}. Try another rate ({rates}), more epochs, a larger --batch-size or another --model, and look "
            "whether the texts belong to their images (lavis browse)"
        )
