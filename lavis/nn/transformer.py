"""The one pre-norm transformer block, and a stack of them: of image encoders, CLIP's text encoder, GPT.

R rows, T tokens, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lavis.nn.attention import Mask, Reader, split_heads
from lavis.nn.cache import Cache


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x·sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,  # the exact (erf) one
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class DropPath(nn.Module):
    """Stochastic depth per sample (Huang et al. 2016): zero a residual branch, scale the kept ones."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device, dtype=torch.float32) >= self.rate
        return x * keep.to(x.dtype) / (1.0 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Attention(nn.Module, Reader):
    """Multi-head self-attention with one product for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be shared out evenly among {heads} heads")
        self.heads, self.weight_dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: torch.Tensor, mask: Mask = None, cache: Cache | None = None, index: int = 0
    ) -> torch.Tensor:
        """(R, T, D) -> (R, T, D); with a cache, its layer `index` holds the keys and values of earlier tokens."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k, v = split_heads(k, self.heads), split_heads(v, self.heads)
        if cache is not None:
            k, v = cache.append(index, k, v)
        return self.proj(self.read(q, k, v, mask))


class Mlp(nn.Module):
    """Two linear layers with an activation between, one of `ACTIVATIONS`."""

    def __init__(self, width: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(ACTIVATIONS)}")
        self.activation = activation
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        width, heads: D, H. hidden: width of the feed-forward layer.
        activation: of the feed-forward layer, see `ACTIVATIONS`. eps: of the LayerNorms.
        drop_path: see `DropPath`. dropout: of what each residual branch adds.
        attention_dropout: of attention's weights.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        activation: str = "gelu",
        eps: float = 1e-6,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, attention_dropout)
        self.drop: nn.Module = nn.Dropout(dropout) if dropout else DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, x: torch.Tensor, *more: Any) -> torch.Tensor:
        """(R, T, D) -> (R, T, D); `more`: attention's mask, cache and index."""
        x = x + self.drop(self.attn(self.norm1(x), *more))
        return x + self.drop(self.mlp(self.norm2(x)))


class Blocks(nn.ModuleList):
    """A stack of blocks.

    Args:
        blocks: the blocks. checkpointed: how many of the last ones recompute their activations in the backward pass
            instead of keeping them (less memory, more time).
    """

    def __init__(self, blocks: Iterable[nn.Module], checkpointed: int = 0) -> None:
        super().__init__(blocks)
        self.checkpoint_from = len(self) - checkpointed

    def forward(self, x: torch.Tensor, *more: Any) -> torch.Tensor:
        """States (R, T, D) after all blocks, each of which is given `more`."""
        for index, block in enumerate(self):
            if index >= self.checkpoint_from and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, *more, use_reentrant=False)
            else:
                x = block(x, *more)
        return x
