"""What decides a run's next number, and how it gets into a checkpoint and back.

Weights, optimizer, loss scale, position, running means, random streams, unreadable samples: all of it is
here or reached from here, so a run that was killed and resumed equals one that was not. The files
themselves are the business of `checkpoint`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lavis.common import dist
from lavis.common.logger import plain
from lavis.runners import checkpoint
from lavis.runners.folder import RunFolder
from lavis.runners.means import Means
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
        skipped: the unreadable samples met so far.
        fingerprint: what has to be the same for a checkpoint's position to mean the same.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        device: torch.device,
        skipped: Skipped,
        fingerprint: dict[str, Any],
    ) -> None:
        self.model, self.optimizer, self.scaler, self.device = model, optimizer, scaler, device
        self.skipped, self.fingerprint = skipped, fingerprint
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
        if dist.is_main():
            self.progress.log_size, self.progress.evaluate_size = out.sizes()
            state = {
                "progress": plain(asdict(self.progress)),
                "fingerprint": self.fingerprint,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ranks": each,
                "skipped": self.skipped.state(),
            }
            checkpoint.save(out.path / checkpoint.LAST, self.model, state)
        dist.barrier()

    def restore(self, source: Path) -> None:
        """Continue from a checkpoint folder.

        Raises:
            ValueError: the checkpoint belongs to another configuration, model or optimizer.
        """
        state = checkpoint.load_state(source)
        ours, theirs = self.fingerprint, state["fingerprint"]
        differing = [f"{k} was {theirs.get(k)!r} and is {v!r}" for k, v in ours.items() if theirs.get(k) != v]
        if differing:
            raise ValueError(
                f"{source} cannot be continued with this configuration: {'; '.join(differing)}. "
                "Set them as they were, or start a new run from its weights with model.weights"
            )
        checkpoint.load_weights(self.model, source)
        self._load_optimizer(state["optimizer"], source)
        self.scaler.load_state_dict(state["scaler"])
        self.skipped.load(state.get("skipped"))
        self.progress = Progress(**state["progress"])
        if len(state["ranks"]) == dist.world_size():
            mine = state["ranks"][dist.rank()]
            checkpoint.set_random_state(mine["random"], self.device)
            self.window.load(mine["window"], self.device)
            self.epoch.load(mine["epoch"], self.device)
        else:
            logger.warning(
                "resuming on %d processes a run of %d: the samples are the same, dropout is not",
                dist.world_size(),
                len(state["ranks"]),
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
            raise ValueError(
                f"{source}: the optimizer's state is for other parameters; use the model of that run, "
                "and its run.optimizer, with the same parameters frozen"
            )
        # settings such as weight decay follow the configuration, as the schedule does; moments are restored
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
