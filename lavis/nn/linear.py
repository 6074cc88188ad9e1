"""A linear layer that is also quick for the few rows of a decoding step on a CPU.

Same parameters and same result as `torch.nn.Linear`. Measured on 2 cores (docs/log.md): for 2 to 5
rows a float32 product is 1.2 to 4 times as fast when computed as (W xᵀ)ᵀ, because the row-major
kernel re-reads the weights; from about 6 rows weights that oneDNN has re-ordered once ("packed")
are. Both apply only without autograd on a CPU.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

_TRANSPOSED_ROWS = range(2, 6)


class Linear(nn.Linear):
    """`torch.nn.Linear` with two inference shortcuts for skinny inputs; see `pack`."""

    _packed: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., in_features) -> (..., out_features)
        if torch.is_grad_enabled() or input.device.type != "cpu" or torch.compiler.is_compiling():
            return F.linear(input, self.weight, self.bias)
        if torch.is_autocast_enabled("cpu"):
            return F.linear(input, self.weight, self.bias)
        if self._packed is not None and input.dtype == self._packed.dtype:
            return torch.ops.mkldnn._linear_pointwise(input, self._packed, self.bias, "none", [], "")
        rows = input.numel() // self.in_features
        if rows in _TRANSPOSED_ROWS and input.dtype == torch.float32:
            columns = input.reshape(rows, self.in_features).t()  # (in, rows)
            if self.bias is None:
                out = torch.mm(self.weight, columns)
            else:
                out = torch.addmm(self.bias.unsqueeze(1), self.weight, columns)
            return out.t().reshape(*input.shape[:-1], self.out_features)
        return F.linear(input, self.weight, self.bias)

    def pack(self) -> None:
        """Keep a second copy of the weights in oneDNN's layout, used by `forward` without autograd.

        Costs the weights' memory once more. `unpack`, `.train()` and `.to()` drop the copy; after a
        change of the weights in place, call `pack` again.
        """
        if self.weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
            return
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), 16)

    def unpack(self) -> None:
        self._packed = None

    def train(self, mode: bool = True) -> Linear:
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # .to(), .half(), .cuda()
        self.unpack()
        return super()._apply(fn, recurse)
