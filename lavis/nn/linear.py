"""A linear layer that takes the quickest float32 product that a CPU has for its number of rows.

Same parameters and same result as `torch.nn.Linear`. Measured on 2 cores of an AMD EPYC with AVX-512
(docs/log.md), where PyTorch's own choice, MKL, uses only half the width of the registers:

- one row, or 5 and more: oneDNN on the plain weights, up to 2 times as fast for few rows, about as fast for
  some hundreds, 1.3 times for thousands;
- 2 to 4 rows, a matrix at least as tall as wide: (W xᵀ)ᵀ, up to 6 times as fast, because the
  row-major kernel re-reads the weights for every row;
- weights that oneDNN has re-ordered once ("packed", see `pack`): up to twice as fast again.

All apply only without autograd, on a CPU. Where nothing was measured (other processors) only the
second is used.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

_TRANSPOSED_ROWS = range(2, 5)


@functools.cache
def _onednn_is_quicker() -> bool:
    """Whether this is a processor on which oneDNN's float32 product was seen to beat MKL's."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    info = Path("/proc/cpuinfo")
    name = info.read_text() if info.is_file() else platform.processor()
    return "AuthenticAMD" in name


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """`torch.nn.Linear` with inference shortcuts; see the module's text and `pack`."""

    _packed: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., in_features) -> (..., out_features)
        if (
            input.device.type != "cpu"
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or torch.is_autocast_enabled("cpu")
        ):
            return F.linear(input, self.weight, self.bias)
        if self._packed is not None and input.dtype == self._packed.dtype:
            return _onednn(input, self._packed, self.bias)
        if input.dtype == torch.float32 == self.weight.dtype:
            rows = input.numel() // self.in_features
            if rows in _TRANSPOSED_ROWS and self.out_features >= self.in_features:
                return self._transposed(input, rows)
            if rows and _onednn_is_quicker():
                return _onednn(input, self.weight, self.bias)
        return F.linear(input, self.weight, self.bias)

    def _transposed(self, input: torch.Tensor, rows: int) -> torch.Tensor:
        columns = input.reshape(rows, self.in_features).t()  # (in, rows)
        if self.bias is None:
            out = torch.mm(self.weight, columns)
        else:
            out = torch.addmm(self.bias.unsqueeze(1), self.weight, columns)
        return out.t().reshape(*input.shape[:-1], self.out_features)

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


class ExactLinear(Linear):
    """A small layer that decides (a projection into the common space, a matching head): autocast does not round it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))
