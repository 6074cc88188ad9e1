"""Large batches a few items at a time, where that is quicker: on a CPU, without autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from lavis.nn.attention import Reader

# A larger tensor is fetched from the system and given back each time (glibc's limit is 32 MiB), page by page: 32
# pictures of 577 tokens through ViT-B took 18.1 s at once and 14.5 s by threes (docs/log.md).
_BYTES = 24 << 20


def in_slices(
    run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, hidden: int, readers: Iterable[Reader]
) -> torch.Tensor:
    """`run(x)`, whose items (the first dimension) don't depend on one another.

    Args:
        run: (B, N, D) -> (B, N, D).
        x: (B, N, D).
        hidden: width of the widest states inside.
        readers: the attentions inside; while one keeps its weights, all items go at once.
    """
    items = max(_BYTES // max(x.shape[1] * hidden * x.element_size(), 1), 1)
    if (
        x.shape[0] <= items
        or x.device.type != "cpu"
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or any(reader.kept is not None for reader in readers)
    ):
        return run(x)
    return torch.cat([run(part) for part in x.split(items)])
