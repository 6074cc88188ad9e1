"""The self-attention cache of decoding, for any transformer of text.

L layers, R rows, H heads, Dh head width, t new tokens.
"""

from __future__ import annotations

from typing import Protocol

import torch

_LARGE = 8 << 20  # bytes


class Sizes(Protocol):
    """What a cache knows of a transformer."""

    @property
    def depth(self) -> int: ...


class Cache:
    """Keys and values of the tokens read so far, preallocated for `max_length` tokens with the first that come, whose
    rows, number format (that of autocast, where it is on) and device it takes."""

    data: torch.Tensor  # (L, 2, R, H, max_length, Dh)

    def __init__(self, config: Sizes, max_length: int) -> None:
        self.depth, self.max_length, self.length = config.depth, max_length, 0

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values (R, H, t, Dh); give all so far as views."""
        if layer == 0 and not self.length:
            rows, heads, _, width = k.shape
            self.data = k.new_empty(self.depth, 2, rows, heads, self.max_length, width)
        end = self.length + k.shape[2]
        self.data[layer, 0, :, :, self.length : end] = k
        self.data[layer, 1, :, :, self.length : end] = v
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]

    def select(self, index: torch.Tensor) -> None:
        """Make row r a copy of the old row index[r]; the number of rows may change."""
        used = self.data[:, :, :, :, : self.length]
        if index.shape[0] != self.data.shape[2]:
            old = self.data
            self.data = old.new_empty(*old.shape[:2], index.shape[0], *old.shape[3:])
            self.data[:, :, :, :, : self.length] = used.index_select(2, index)
        elif used.device.type == "cpu" and used.numel() * used.element_size() > _LARGE:
            for part in used.flatten(0, 1):  # (R, H, length, Dh): the copy between stays in a core's cache
                part.copy_(part.index_select(0, index))
        else:
            used.copy_(used.index_select(2, index))
