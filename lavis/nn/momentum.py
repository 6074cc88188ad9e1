"""Momentum twins and the queue of their features (ALBEF paper, sections 3.2 and 3.3; MoCo).

A twin is a slow copy of a module: never trained, moved towards it after each step. A queue holds the
features that twins made of the last thousands of pictures and texts, as more negatives. Both are
training state: nothing that predicts needs them.

Q places in the queue, D width of a feature.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from lavis.common import dist

NO_ID = -100  # in the queue of picture ids: a place that holds no picture yet


def make_twin(module: nn.Module) -> nn.Module:
    """A copy that takes no gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def copy_weights(pairs: Iterable[tuple[nn.Module, nn.Module]]) -> None:
    """Make each twin equal to its module; pairs are (module, twin)."""
    for module, twin in pairs:
        for own, slow in zip(module.parameters(), twin.parameters(), strict=True):
            slow.copy_(own)


@torch.no_grad()
def update_twins(pairs: Iterable[tuple[nn.Module, nn.Module]], momentum: float) -> None:
    """twin <- momentum x twin + (1 - momentum) x module, for every parameter."""
    for module, twin in pairs:
        slow: list[torch.Tensor] = list(twin.parameters())
        own: list[torch.Tensor] = list(module.parameters())
        # in this order of operations, as the checkpoints' twins were made
        torch._foreach_mul_(slow, momentum)
        torch._foreach_add_(slow, own, alpha=1 - momentum)


def empty_queue(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
    """A queue (D, Q) to start from: random directions of length 1."""
    return F.normalize(torch.randn(*shape), dim=0)


def add_queue(model: nn.Module, width: int, size: int, with_ids: bool) -> None:
    """Register a model's queues under the checkpoints' names.

    `image_queue` and `text_queue` (D, Q), `queue_ptr` (1,), the place that is written next, and, where
    several texts of one picture are all right, `idx_queue` (1, Q) with the pictures' ids.
    """
    model.register_buffer("image_queue", empty_queue((width, size)))
    model.register_buffer("text_queue", empty_queue((width, size)))
    model.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
    if with_ids:
        model.register_buffer("idx_queue", torch.full((1, size), NO_ID, dtype=torch.long))


@torch.no_grad()
def enqueue(model: Any, images: torch.Tensor, texts: torch.Tensor, ids: torch.Tensor | None = None) -> None:
    """Write all ranks' features over the oldest places.

    Args:
        model: has the buffers of `add_queue`.
        images, texts: this rank's features (B, D). ids: its pictures' ids (B,), where the queue has ids.
    """
    images, texts = dist.all_gather(images), dist.all_gather(texts)
    size = model.image_queue.shape[1]
    count = len(images)
    kept = slice(max(0, count - size), count)  # of a batch larger than the queue, the last ones
    places = (model.queue_ptr + torch.arange(count, device=images.device))[kept] % size
    model.image_queue[:, places] = images[kept].T.to(model.image_queue.dtype)
    model.text_queue[:, places] = texts[kept].T.to(model.text_queue.dtype)
    if ids is not None:
        model.idx_queue[:, places] = dist.all_gather(ids)[kept]
    model.queue_ptr.copy_((model.queue_ptr + count) % size)
