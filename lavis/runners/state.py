"""What decides a run's next number, and how it gets into a checkpoint and back.

Weights, optimizer, loss scale, position, running means, random streams, unreadable samples: all of it is
here or reached from here, so a run that was killed and resumed equals one that was not. The files
themselves are the business of `checkpoint`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lavis.common import dist
from lavis.common.logger import plain
from lavis.runners import checkpoint, parallel
from lavis.runners.budget import Plan
from lavis.runners.folder import RunFolder
from lavis.runners.means import Means
from lavis.runners.provenance import Recipe
from lavis.runners.settings import Length
from lavis.runners.skipped import Skipped

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; saved in every checkpoint.

    Attributes:
        iteration: batches done on each rank. closed: epochs that are over: trained, logged, validated.
        best: {"epoch", "split", "metric", "value"} of the best validation.
        validations_without_best: since then.
        seconds: since the start, validations included, over all resumptions.
        log_size, evaluate_size: bytes of log.txt and evaluate.txt.
        plan: what was fixed for `max_minutes`, see `lavis.runners.budget.Plan`.
    """

    iteration: int = 0
    closed: int = 0
    best: dict[str, Any] | None = None
    validations_without_best: int = 0
    seconds: float = 0.0
    log_size: int = 0
    evaluate_size: int = 0
    plan: dict[str, Any] | None = None

    def judge(self, epoch: int, split: str, metric: str, direction: str, value: float) -> bool:
        """Take note of a validation; whether it is the best so far."""
        sign = {"max": 1.0, "min": -1.0}[direction]
        old = self.best["value"] if self.best else -sign * math.inf
        if sign * value > sign * old:
            self.best = {"epoch": epoch, "split": split, "metric": metric, "value": value}
            self.validations_without_best = 0
            return True
        self.validations_without_best += 1
        return False


class TrainingState:
    """Everything that a checkpoint holds; owns position and running means.

    Args:
        model, optimizer, scaler: of the run. device: where its random streams are.
        skipped: the unreadable samples met so far. length: of the run. recipe: is kept with each checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        skipped: Skipped,
        length: Length,
        recipe: Recipe,
    ) -> None:
        self.model, self.optimizer, self.scaler, self.device = model, optimizer, scaler, device
        self.skipped, self.length, self.recipe = skipped, length, recipe
        self.progress = Progress()
        self.window, self.epoch = Means(), Means()  # since the last log line; of the epoch

    def save(self, out: RunFolder) -> None:
        """Write checkpoint_last; called by every rank."""
        self.skipped.agree()
        each = dist.all_gather_objects(
            {
                "random": checkpoint.random_state(self.device),
                "window": self.window.state(),
                "epoch": self.epoch.state(),
            }
        )
        self.progress.log_size, self.progress.evaluate_size = out.sizes()
        optimizer = parallel.full(self.optimizer.state_dict())
        state = {
            "progress": plain(asdict(self.progress)),
            "optimizer": {**optimizer, "entries": len(optimizer["state"])},
            "scaler": self.scaler.state_dict(),
            "ranks": each,
            "skipped": self.skipped.state(),
        }
        checkpoint.save(out.path / checkpoint.LAST, self.model, state, self.recipe)

    def restore(self, source: Path) -> None:
        """Continue from a checkpoint folder, whose recipe was found to be this run's.

        Raises:
            ValueError: the checkpoint is beyond the end of the run, belongs to another model or optimizer, or is
                damaged.
        """
        state = checkpoint.load_state(source)
        checkpoint.load_weights(self.model, source)
        try:
            self.progress = self._position(state["progress"], source)
            self._load_optimizer(state["optimizer"], source)
            self.scaler.load_state_dict(state["scaler"])
            self.skipped.load(state.get("skipped"))
            self._load_ranks(state["ranks"])
        except _RefusedError as e:
            raise ValueError(str(e)) from None
        except Exception as e:  # of whatever kind: somebody has changed a file that was written whole
            reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            raise ValueError(
                f"{source / checkpoint.STATE_NAME} is damaged ({reason}); resume from another checkpoint, or start a "
                "new run from its weights with model.weights"
            ) from e

    def _position(self, saved: dict[str, Any], source: Path) -> Progress:
        progress, length = Progress(**saved), self.length
        if progress.plan is not None:
            fixed = Plan(**progress.plan)
            if fixed.minutes == self.recipe.get("run.max_minutes"):
                length = replace(length, iterations=fixed.iterations)
        numbers = (progress.iteration, progress.closed, progress.validations_without_best, progress.log_size)
        if any(type(n) is not int or n < 0 for n in (*numbers, progress.evaluate_size)):
            raise TypeError("progress holds something else than counts")
        if not 0 <= float(progress.seconds) < math.inf:
            raise ValueError("seconds are no time")
        if progress.best is not None:
            float(progress.best["value"])
        if not progress.closed - 1 < progress.iteration / length.per_epoch <= progress.closed + 1:
            raise ValueError(f"iteration {progress.iteration} is not in epoch {progress.closed}")
        if progress.iteration > length.iterations:
            raise _RefusedError(
                f"{source} is at iteration {progress.iteration}, beyond the end of this run, which has "
                f"{length.iterations}; make it longer with run.max_epoch or run.max_iters"
            )
        # the run was over within this epoch, and is longer now
        if progress.iteration < length.iterations and progress.closed * length.per_epoch > progress.iteration:
            progress.closed -= 1
        return progress

    def _load_ranks(self, ranks: list[dict[str, Any]]) -> None:
        self.window.load([r["window"] for r in ranks], self.device)
        self.epoch.load([r["epoch"] for r in ranks], self.device)
        if len(ranks) == dist.world_size():
            checkpoint.set_random_state(ranks[dist.rank()]["random"], self.device)
            return
        # other numbers than those of the start, which every rank has just been given
        words = (torch.initial_seed(), self.progress.iteration)
        checkpoint.seed_all(int(np.random.SeedSequence(words).generate_state(1)[0]))
        logger.warning(
            "resuming on %d processes a run of %d: the samples are the same, dropout is not",
            dist.world_size(),
            len(ranks),
        )

    def _load_optimizer(self, state: dict[str, Any], source: Path) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        sizes = [len(g["params"]) for g in self.optimizer.param_groups]
        fits = [len(g["params"]) for g in state["param_groups"]] == sizes and all(
            i < len(parameters) and moments.shape == parameters[i].shape
            for i, s in state["state"].items()
            for key, moments in s.items()
            if key != "step"
        )
        if not fits:
            raise _RefusedError(
                f"{source}: the optimizer's state is for other parameters; use the model of that run, "
                "and its run.optimizer, with the same parameters frozen"
            )
        self._refuse_gaps(state, source)
        # settings such as weight decay follow the configuration, as the schedule does; moments are restored
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {
            i: {
                key: value if key == "step" else parallel.part_like(value, parameters[i])
                for key, value in each.items()
            }
            for i, each in state["state"].items()
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _refuse_gaps(self, state: dict[str, Any], source: Path) -> None:
        """Refuse moments that are missing: a parameter without them would start anew, in silence.

        A parameter that no loss depends on has none, so that their number is kept beside them ("entries").
        """
        if not isinstance(self.optimizer, torch.optim.AdamW) or self.progress.iteration == 0:
            return
        counted = state.get("entries")
        there = len(state["state"])
        if there == 0 or (counted is not None and there != counted):
            raise _RefusedError(
                f"{source}: the optimizer's state is incomplete: it has moments of {there} parameters"
                + (f" of {counted}" if counted else "")
                + "; resume from another checkpoint, or start a new run from its weights with model.weights"
            )
        numbered = iter(range(sum(len(g["params"]) for g in self.optimizer.param_groups)))
        for group in self.optimizer.param_groups:
            keys = {"step", "momentum_buffer"} if group.get("muon") else {"step", "exp_avg", "exp_avg_sq"}
            for _, i in zip(group["params"], numbered):
                moments = state["state"].get(i)
                if moments is not None and set(moments) != keys:
                    has = ", ".join(map(str, moments)) or "none"
                    raise _RefusedError(
                        f"{source}: the optimizer's state is incomplete: parameter {i} has {has} of "
                        f"{', '.join(sorted(keys))}; resume from another checkpoint"
                    )


class _RefusedError(ValueError):
    """A checkpoint that is whole and does not fit."""
