"""Means of losses over steps and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lavis.common import dist


class Means:
    """Means of named losses, summed on the device so that no step waits for a number."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, torch.Tensor] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            finite = torch.isfinite(value)  # fp16 runs skip a step whose loss overflows
            value = torch.where(finite, value, torch.zeros_like(value))
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts[name] + finite if name in self.counts else finite.long()

    def read(self) -> dict[str, float]:
        """Means over steps and ranks; nan for a name that never was finite. Called on every rank."""
        names = sorted(self.sums)
        if not names:
            return {}
        sums = torch.stack([self.sums[n].float() for n in names])
        counts = torch.stack([self.counts[n].float() for n in names])
        pair = dist.mean_over_ranks(torch.stack([sums, counts])).cpu()
        return dict(zip(names, (pair[0] / pair[1]).tolist()))

    def state(self) -> dict[str, Any]:
        return {
            "sums": {k: v.cpu() for k, v in self.sums.items()},
            "counts": {k: v.cpu() for k, v in self.counts.items()},
        }

    def load(self, states: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        """Go on from what `state` gave on every rank, which may be another number of ranks than now."""
        ranks = dist.world_size()
        if len(states) == ranks:
            mine = states[dist.rank()]
            self.sums = {k: v.to(device) for k, v in mine["sums"].items()}
            self.counts = {k: v.to(device) for k, v in mine["counts"].items()}
            return
        # every rank takes an equal part of the sums; each adds one loss an iteration, so that the weight of what is
        # over grows or shrinks with the number of ranks
        for own, kind in ((self.sums, "sums"), (self.counts, "counts")):
            own.clear()
            for name in sorted({name for state in states for name in state[kind]}):
                total = sum(state[kind][name].to(device).float() for state in states if name in state[kind])
                own[name] = torch.as_tensor(total, device=device) / len(states)
