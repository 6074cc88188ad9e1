"""One step of training: forward and backward of a few batches, and the update after them.

A model's `before_step` and `after_step` are called around them, and `check_step` before the update: once, however many
batches there are.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lavis.common import device as devices
from lavis.runners import parallel
from lavis.runners.finite import FiniteCheck
from lavis.runners.settings import RunConfig
from lavis.runners.state import TrainingState


class Step:
    """Turns batches into updates of the weights. Owns the model as it is called on several processes.

    Args:
        run, task: of the run. state: model, optimizer, scaler and position. finite: is shown every loss.
        device, precision: what the model computes on and in.
    """

    def __init__(
        self,
        run: RunConfig,
        task: Any,
        state: TrainingState,
        finite: FiniteCheck,
        device: torch.device,
        precision: str,
    ) -> None:
        self.task, self.state, self.finite = task, state, finite
        self.device, self.precision = device, precision
        self.max_grad_norm = run.max_grad_norm
        self.parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        self.model: Any = state.model
        self.wrapped = parallel.replicated(state.model, device, run.find_unused_parameters)

    def begin(self, progress: float) -> None:
        """Begin with the first batch of an update, at so many epochs of training, with the part of the present one."""
        if hasattr(self.model, "before_step"):
            self.model.before_step(progress)

    def backward(self, batch: Any, window: int, update: bool) -> dict[str, torch.Tensor]:
        """Forward and backward of one batch.

        Args:
            batch: on the device. window: batches whose mean the update takes.
            update: whether the update comes next; until then ranks need not exchange gradients.

        Returns:
            The losses, detached scalars.
        """
        ddp = self.wrapped if isinstance(self.wrapped, DistributedDataParallel) else None
        with ddp.no_sync() if ddp is not None and not update else contextlib.nullcontext():
            with devices.autocast(self.device, self.precision):
                output = self.task.train_step(self.wrapped, batch)
            if isinstance(output, tuple):  # the loss and a dict of its parts, as tasks of the original give
                loss, parts = output
                output = {**parts, "loss": loss}
            loss = output["loss"]
            self.finite.note(loss, self.state.progress.iteration)
            self.state.scaler.scale(loss / window).backward()
        names = [k for k in output.keys() if "loss" in k]  # noqa: SIM118  outputs are not dicts
        return {
            k: output[k].detach().float()
            for k in names
            if isinstance(output[k], torch.Tensor) and output[k].ndim == 0
        }

    def update(self, measure: bool) -> torch.Tensor | None:
        """One step of the optimizer; the norm of the gradients before clipping, if measured."""
        if hasattr(self.model, "check_step"):
            self.model.check_step()
        state, norm = self.state, None
        if measure or self.max_grad_norm is not None:
            state.scaler.unscale_(state.optimizer)
            if self.max_grad_norm is not None:
                norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
            else:
                norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
            norm = parallel.full(norm).detach().float()
            self.finite.note(norm, state.progress.iteration)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if hasattr(self.model, "after_step"):
            self.model.after_step()
        return norm

    def close(self) -> None:
        """Let go of the process group that the wrapper holds, and of a step that an error has cut short."""
        self.wrapped = self.model
        if getattr(self.model, "optimizer_step", None) is not None:
            self.model.optimizer_step = None
