"""The linear layer that decides."""

from __future__ import annotations

import torch
from torch import nn


class ExactLinear(nn.Linear):
    """A small layer that decides (a projection into the common space, a matching head): autocast does not round it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., in_features) -> (..., out_features)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))
