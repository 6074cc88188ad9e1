"""Losses and gradients that are no numbers: noticed without waiting for the device, and named."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lavis.common import dist


class FiniteCheck:
    """Remembers the first iteration whose loss or gradient was not finite. Owns that number, on the device.

    With fp16's loss scale it only watches the scale: the scaler skips such steps and lowers it.

    Args:
        device: of the losses. scaler: of the run.
        describe: words for an iteration and its samples, for the message.
    """

    def __init__(
        self, device: torch.device, scaler: torch.amp.GradScaler, describe: Callable[[int], str]
    ) -> None:
        self.device, self.scaler, self.describe = device, scaler, describe
        self._first_bad = torch.full((), -1, dtype=torch.long, device=device)

    def note(self, value: torch.Tensor, iteration: int) -> None:
        """Look at a loss or a norm of gradients."""
        if self.scaler.is_enabled():
            return
        here = torch.full_like(self._first_bad, iteration)
        bad = (self._first_bad < 0) & ~torch.isfinite(value.detach())
        self._first_bad = torch.where(bad, here, self._first_bad)
        if self.device.type == "cpu":  # reading costs nothing; on a GPU it is read with the log
            self._raise(int(self._first_bad.item()))

    def check(self, iteration: int) -> None:
        """Raise on every rank if any rank's loss or gradient was not finite.

        Called before anything is logged or saved.

        Args:
            iteration: where the run stands.

        Raises:
            ValueError: naming the iteration and its samples.
        """
        bad = int(self._first_bad.item())
        if dist.is_on():
            bad = max(dist.all_gather_objects(bad))  # one rank's fault ends the run on all
        self._raise(bad)
        if self.scaler.is_enabled() and self.scaler.get_scale() < 2**-14:
            raise ValueError(
                f"no finite gradient in fp16 at any scale, up to iteration {iteration}; "
                "use run.precision=bf16 or fp32, or a lower run.init_lr"
            )

    def _raise(self, bad: int) -> None:
        if bad < 0:
            return
        raise ValueError(
            f"the loss or its gradient is not finite at {self.describe(bad)}. Look at them; else lower "
            "run.init_lr or set run.max_grad_norm=1. Nothing was saved after it"
        )
