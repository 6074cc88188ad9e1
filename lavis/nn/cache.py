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
    rows, number format (that of autocast, where it is on) and device it takes.

    Args:
        static: whether steps of a static shape will read it, see `WholeCache`: then what is not written is 0.
    """

    data: torch.Tensor  # (L, 2, R, H, max_length, Dh)

    def __init__(self, config: Sizes, max_length: int, static: bool = False) -> None:
        self.depth, self.max_length, self.length = config.depth, max_length, 0
        self.static = static

    def _room(self, like: torch.Tensor, rows: int, heads: int, width: int) -> torch.Tensor:
        shape = (self.depth, 2, rows, heads, self.max_length, width)
        return like.new_zeros(shape) if self.static else like.new_empty(shape)

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values (R, H, t, Dh); give all so far as views."""
        if layer == 0 and not self.length:
            rows, heads, _, width = k.shape
            self.data = self._room(k, rows, heads, width)
        end = self.length + k.shape[2]
        self.data[layer, 0, :, :, self.length : end] = k
        self.data[layer, 1, :, :, self.length : end] = v
        return self.data[layer, 0, :, :, :end], self.data[layer, 1, :, :, :end]

    def select(self, index: torch.Tensor) -> None:
        """Make row r a copy of the old row index[r]; the number of rows may change."""
        used = self.data[:, :, :, :, : self.length]
        if index.shape[0] != self.data.shape[2]:
            _, _, _, heads, _, width = self.data.shape
            self.data = self._room(self.data, index.shape[0], heads, width)
            self.data[:, :, :, :, : self.length] = used.index_select(2, index)
        elif used.device.type == "cpu" and used.numel() * used.element_size() > _LARGE:
            for part in used.flatten(0, 1):  # (R, H, length, Dh): the copy between stays in a core's cache
                part.copy_(part.index_select(0, index))
        else:
            used.copy_(used.index_select(2, index))


class WholeCache:
    """A cache as a step of static shape sees it: all of its room, and the place of the new token as a tensor.

    Args:
        data: as in `Cache`. place: (1,), how many tokens have been read.
    """

    length = 0  # of what is read before: the step's mask says it

    def __init__(self, data: torch.Tensor, place: torch.Tensor) -> None:
        self.data, self.place = data, place

    @property
    def seen(self) -> torch.Tensor:
        """(1, max_length), True up to the new token."""
        return (torch.arange(self.data.shape[4], device=self.data.device) <= self.place)[None]

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new keys and values (R, H, 1, Dh); give the whole room."""
        keys, values = self.data[layer]
        return keys.index_copy_(2, self.place, k), values.index_copy_(2, self.place, v)
