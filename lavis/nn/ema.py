"""Exponential moving averages (EMA) of modules, and the queue of their features (ALBEF paper, 3.2 and 3.3; MoCo).

The EMA of a module is a slow copy of it: never trained, moved towards it at each step of the optimizer. A queue holds
the features that it made of the last thousands of images and texts, as more negatives. Both are training state:
nothing that predicts needs them.

Q places in the queue, D width of a feature.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

NO_ID = -100  # in the queue of image ids: a place that holds no image yet


@dataclass(frozen=True)
class NewFeatures:
    """What a batch has for the queue, of all ranks: images and texts (W, D); ids (W,) of the images, or None."""

    images: torch.Tensor
    texts: torch.Tensor
    ids: torch.Tensor | None = None


def make_ema(module: nn.Module) -> nn.Module:
    """A copy that takes no gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def copy_weights(pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Make each EMA equal to its module; pairs are (module, EMA)."""
    for module, ema in pairs:
        for own, slow in zip(module.parameters(), ema.parameters(), strict=True):
            slow.copy_(own)


@torch.no_grad()
def update_ema(pairs: Iterable[tuple[nn.Module, nn.Module]], momentum: float) -> None:
    """EMA <- momentum x EMA + (1 - momentum) x module, for every parameter that is trained."""
    for module, ema in pairs:
        moving = [
            (s, o) for s, o in zip(ema.parameters(), module.parameters(), strict=True) if o.requires_grad
        ]
        if not moving:
            continue
        slow: list[torch.Tensor] = [s for s, _ in moving]
        own: list[torch.Tensor] = [o for _, o in moving]
        # in this order of operations, as those of the checkpoints were made
        torch._foreach_mul_(slow, momentum)
        torch._foreach_add_(slow, own, alpha=1 - momentum)


def empty_queue(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """A queue (D, Q) to start from: random directions of length 1."""
    return F.normalize(torch.randn(*shape), dim=0)


def add_queue(model: nn.Module, width: int, size: int, with_ids: bool) -> None:
    """Register a model's queues under the checkpoints' names.

    `image_queue` and `text_queue` (D, Q), `queue_ptr` (1,), the place that is written next, and, where
    several texts of one image are all right, `idx_queue` (1, Q) with the images' ids.
    """
    model.register_buffer("image_queue", empty_queue((width, size)))
    model.register_buffer("text_queue", empty_queue((width, size)))
    model.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    if with_ids:
        model.register_buffer("idx_queue", torch.full((1, size), NO_ID, dtype=torch.long))


@torch.no_grad()
def enqueue(model: Any, new: NewFeatures) -> None:
    """Write features over the oldest places of the queues that `add_queue` gave a model."""
    size, count = model.image_queue.shape[1], len(new.images)
    kept = slice(max(0, count - size), count)  # of more than the queue holds, the last ones
    places = (model.queue_ptr + torch.arange(count, device=new.images.device))[kept] % size
    model.image_queue[:, places] = new.images[kept].T.to(model.image_queue.dtype)
    model.text_queue[:, places] = new.texts[kept].T.to(model.text_queue.dtype)
    if new.ids is not None:
        model.idx_queue[:, places] = new.ids[kept]
    model.queue_ptr.copy_((model.queue_ptr + count) % size)
