"""A linear layer that takes the quickest product that a CPU has for its number of rows.

Same parameters and same result as `torch.nn.Linear`. What is quickest was measured on 2 cores each of two kinds of
processor (docs/log.md). On an AMD EPYC with AVX-512 PyTorch's own choice, MKL, uses half the width of the registers
and reads the weights anew for every row:

- one row, or 5 and more: oneDNN on the plain weights, up to 2 times as fast for few rows, 1.3 times for thousands;
- 2 to 4 rows, a matrix at least as tall as wide: (W xᵀ)ᵀ, up to 6 times as fast;
- weights that oneDNN has re-ordered once ("packed", see `Linear.pack`): up to twice as fast again.

On an Intel Xeon with AVX-512 MKL is the quickest for up to 4 rows and for many, as fast as memory lets it:

- 5 to 32 rows of a large matrix: oneDNN, about as fast to 1.8 times;
- packed weights, 4 to 64 rows: 2.5 times as fast for few rows of a large matrix, about as fast for many;
- many rows in bfloat16 without AMX: in float32, weights converted on the way, 1.2 to 1.6 times, because bfloat16's own
  instructions are the slower ones there; not a vocabulary's matrix, whose conversion takes longer than it saves.

All apply only without autograd, on a CPU. Where nothing was measured (other processors) MKL or what PyTorch has in its
place does all.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lavis.common.device import bfloat16_is_slow, cpu_maker

_TRANSPOSED_ROWS = range(2, 5)
_MANY_ROWS = 64  # of which the arithmetic, and not reading the weights, takes the time
_LARGE = 2 << 20  # numbers of a matrix that a core's own cache does not hold
_CONVERTIBLE = 6 << 20  # numbers whose float32 copy the allocator has at hand, see lavis.nn.slices


def gelu(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The exact (erf) GELU of what a linear layer gives, in the same pass where nobody else sees the latter."""
    if not is_bare(layer) or torch.is_grad_enabled():
        return F.gelu(layer(x))
    assert isinstance(layer, Linear)
    return layer.product(x, "gelu")


def is_bare(*layers: nn.Module) -> bool:
    """Whether layers compute nothing but their product, so that their weights may be read past their call.

    An adapter (LoRA) or a parametrization has another class, and a hook wants to see the call.
    """
    return all(
        type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks
        for layer in layers
    )


def _better_in_float32(x: torch.Tensor, rows: int, weight: torch.Tensor) -> bool:
    many = rows > _MANY_ROWS and weight.numel() <= _CONVERTIBLE
    return many and x.dtype == torch.bfloat16 and bfloat16_is_slow()


def _finish(x: torch.Tensor, then: str) -> torch.Tensor:
    return torch.ops.aten.gelu_(x) if then == "gelu" else x


def plain(x: torch.Tensor) -> bool:
    """Whether nothing but the numbers of a product on a CPU is asked for: no gradients, no graph, no autocast."""
    return not (
        x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
    )


def onednn(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str = "none"
) -> torch.Tensor:
    """oneDNN's product, of plain or packed weights, and `then` "gelu" of it."""
    # for "gelu" the last argument says which: "none" is the exact one
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none" if then == "gelu" else "")


class Packing(nn.Module):
    """A module that may keep its weights a second time in oneDNN's layout, for products without autograd."""

    _packed: torch.Tensor | None = None

    def _to_pack(self) -> torch.Tensor:
        """The weights (out_features, in_features)."""
        raise NotImplementedError

    def pack(self) -> None:
        """Keep the copy.

        Costs the weights' memory once more. `unpack`, `.train()` and `.to()` drop it; after a change of the weights
        in place, call `pack` again.
        """
        weight = self._to_pack().detach()
        if weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)

    def unpack(self) -> None:
        self._packed = None

    def packed_for(self, x: torch.Tensor) -> torch.Tensor | None:
        """The copy, if it is there and the quickest for `x` (of which `plain` is true)."""
        if self._packed is None or x.dtype != self._packed.dtype:
            return None
        rows = x.numel() // x.shape[-1]
        if x.dtype == torch.bfloat16:
            pays = not _better_in_float32(x, rows, self._packed)
        else:
            pays = 4 <= rows <= _MANY_ROWS or cpu_maker() != "Intel"
        return self._packed if pays else None

    def train(self, mode: bool = True) -> Packing:
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # .to(), .half(), .cuda()
        self.unpack()
        return super()._apply(fn, recurse)


class Linear(Packing, nn.Linear):
    """`torch.nn.Linear` with inference shortcuts; see the module's text and `pack`."""

    def _to_pack(self) -> torch.Tensor:
        return self.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # (..., in_features) -> (..., out_features)
        return self.product(input, "none")

    def product(self, input: torch.Tensor, then: str) -> torch.Tensor:
        """`forward`, and `then` "gelu" of it (without autograd only) or "none"."""
        rows = input.numel() // self.in_features
        if not rows or input.dtype != self.weight.dtype or not plain(input):
            return _finish(F.linear(input, self.weight, self.bias), then)  # or says what is wrong
        packed = self.packed_for(input)
        if packed is not None:
            return onednn(input, packed, self.bias, then)
        if _better_in_float32(input, rows, self.weight):
            bias = None if self.bias is None else self.bias.float()
            return _finish(F.linear(input.float(), self.weight.float(), bias), then).bfloat16()
        maker = cpu_maker() if input.dtype == torch.float32 else ""
        if maker == "AMD" and rows in _TRANSPOSED_ROWS and self.out_features >= self.in_features:
            return _finish(self._transposed(input, rows), then)
        if maker == "AMD" or (maker == "Intel" and 5 <= rows <= 32 and self.weight.numel() >= _LARGE):
            return onednn(input, self.weight, self.bias, then)
        return _finish(F.linear(input, self.weight, self.bias), then)

    def _transposed(self, input: torch.Tensor, rows: int) -> torch.Tensor:
        columns = input.reshape(rows, self.in_features).t()  # (in, rows)
        if self.bias is None:
            out = torch.mm(self.weight, columns)
        else:
            out = torch.addmm(self.bias.unsqueeze(1), self.weight, columns)
        # rows side by side again: attention's quick kernel refuses queries that lie otherwise
        return out.t().contiguous().view(*input.shape[:-1], self.out_features)


class ExactLinear(Linear):
    """A small layer that decides (a projection into the common space, a matching head): autocast does not round it."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))
