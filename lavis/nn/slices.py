"""Large batches a few items at a time, where that is quicker: on a CPU, without autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from lavis.nn.attention import Reader

# A larger tensor is fetched from the system and given back each time (glibc's limit is 32 MiB), page by page: 32
# pictures of 577 tokens through ViT-B took 18.1 s at once and 14.5 s by threes (docs/log.md).
_BYTES = 24 << 20


def in_slices(
    run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, blocks: nn.ModuleList
) -> torch.Tensor:
    """`run(x)`, whose items (the first dimension) don't depend on one another.

    Args:
        run: (B, N, D) -> (B, N, D).
        x: (B, N, D).
        blocks: what runs, with inner states about four times as wide as x. While something looks on there (an
            attention that keeps its weights, a hook), all items go at once.
    """
    items = max(_BYTES // (x.shape[1] * x.shape[2] * 4 * x.element_size()), 1)
    if (
        len(x) <= items
        or x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or any(_watched(module) for module in blocks.modules())
    ):
        return run(x)
    return torch.cat([run(part) for part in x.split(items)])


def _watched(module: nn.Module) -> bool:
    kept = isinstance(module, Reader) and module.kept is not None
    return kept or bool(module._forward_hooks or module._forward_pre_hooks)
