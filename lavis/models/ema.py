"""EMA copies of a model's modules, which teach it: what of them belongs to a model. `lavis.nn.ema` moves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lavis.models.samples import require
from lavis.nn import ema as averages
from lavis.nn.losses import distillation_weight


class EmaCopies:
    """Of a model with EMA copies; before BaseModel among its bases.

    EMA: names of the modules that have a copy, kept as `<name>_m`; () where there are none.
    RAMP_EPOCHS: epochs over which the EMA's weight rises to `config.alpha`.
    """

    EMA: tuple[str, ...] = ()
    RAMP_EPOCHS = 2

    config: Any

    def make_ema(self) -> None:
        """Add the copies; to be called when the modules are there."""
        if self.config.for_training:
            for name in self.EMA:
                setattr(self, f"{name}_m", averages.make_ema(getattr(self, name)))

    @property
    def has_ema(self) -> bool:
        return bool(self.EMA) and hasattr(self, f"{self.EMA[0]}_m")

    def ema_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(module, EMA copy)"""
        if not self.has_ema:
            return []
        return [(getattr(self, name), getattr(self, f"{name}_m")) for name in self.EMA]

    def start_ema(self) -> None:
        """Make the copies equal to their modules."""
        averages.copy_weights(self.ema_pairs())

    def reset_parameters(self) -> None:
        """Starting weights: each part's own, and the copies'."""
        for child in self.children():  # type: ignore[attr-defined]
            reset = getattr(child, "reset_parameters", None)
            if reset is not None:
                reset()
        self.start_ema()

    def need_ema(self) -> None:
        """Refuse a loss that the EMA copies take part in, where there are none."""
        if not self.has_ema:
            raise ValueError(
                f"this {self.registered_name} was loaded for prediction, without its EMA copies, so its "  # type: ignore[attr-defined]
                "training loss can't be computed; load it with for_training=True"
            )

    def before_step(self, progress: float | None = None) -> None:
        super().before_step(progress)  # type: ignore[misc]
        averages.update_ema(self.ema_pairs(), self.config.momentum)
        if progress is not None and self.EMA:
            self.optimizer_step.alpha = self._alpha_at(progress)  # type: ignore[attr-defined]

    def part(self, name: str, ema: bool) -> Any:
        """A module, or its EMA copy."""
        return getattr(self, f"{name}_m" if ema else name)

    def alpha(self, samples: Mapping[str, Any]) -> torch.Tensor:
        """Weight of the EMA's opinion at this point of training (0 at the very start), a scalar on the device."""
        step = self.optimizer_step  # type: ignore[attr-defined]
        if step is not None and step.alpha is not None:
            return step.alpha
        require(
            samples,
            ("epoch", "iters", "num_iters_per_epoch"),
            "where training is, from which the weight of the EMA copies follows; the runner sets them",
        )
        each = int(samples["num_iters_per_epoch"])
        return self._alpha_at((int(samples["epoch"]) * each + int(samples["iters"])) / each)

    def _alpha_at(self, progress: float) -> torch.Tensor:
        weight = distillation_weight(self.config.alpha, progress, self.RAMP_EPOCHS)
        return torch.full((), weight, device=self.device)  # type: ignore[attr-defined]
