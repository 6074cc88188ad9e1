"""The self-attention cache of decoding, for any transformer of text.

L layers, R rows, H heads, Dh head width, t new tokens.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Sizes(Protocol):
    """What a cache knows of a transformer."""

    @property
    def width(self) -> int: ...

    @property
    def depth(self) -> int: ...

    @property
    def heads(self) -> int: ...


class Cache:
    """Keys and values of the tokens read so far, preallocated for `max_length` tokens."""

    def __init__(self, config: Sizes, rows: int, max_length: int, like: torch.Tensor) -> None:
        head_width = config.width // config.heads
        # (L, 2, R, H, max_length, Dh)
        self.data = like.new_empty(config.depth, 2, rows, config.heads, max_length, head_width)
        self.length = 0

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values (R, H, t, Dh); give all so far as views."""
        end = self.length + k.shape[2]
        self.data[layer, 0, :, :, self.length : end] = k
        self.data[layer, 1, :, :, self.length : end] = v
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]

    def select(self, index: torch.Tensor) -> None:
        """Make row r a copy of the old row index[r]; the number of rows may change."""
        used = self.data[:, :, :, :, : self.length]
        chosen = used.index_select(2, index)
        if index.shape[0] == self.data.shape[2]:
            used.copy_(chosen)
        else:
            old = self.data
            self.data = old.new_empty(*old.shape[:2], index.shape[0], *old.shape[3:])
            self.data[:, :, :, :, : self.length] = chosen
