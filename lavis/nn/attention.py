"""The one attention: parameter-free, over queries, keys and values that modules have projected.

B pictures, G texts per picture, T queries per text, N keys, H heads, Dh width of a head.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:  # (R, T, H·Dh) -> (R, H, T, Dh)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:  # (R, H, T, Dh) -> (R, T, H·Dh)
    return x.transpose(1, 2).flatten(2)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    heads: int,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention in which G groups of queries may share one set of keys.

    Item b's G groups are rows b·G … b·G+G-1 of `q`. They see the same keys and values, and queries
    do not see one another, so the groups are laid side by side as G·T queries of one item: a view,
    where repeating the memory G times would copy it (and project it) G times. Exact, not approximate.

    Args:
        q: projected queries (B·G, T, H·Dh).
        k, v: keys and values with heads split, (B, H, N, Dh).
        heads: H.
        mask: bool, True where a query may look, broadcastable to (B·G, H, T, N); with G > 1 it must
            not depend on the query: (B, 1, 1, N).
        dropout: probability of dropping an attention weight.

    Returns:
        (B·G, T, H·Dh).
    """
    rows, length, width = q.shape
    items = k.shape[0]
    if rows % items:
        raise ValueError(f"{rows} rows of queries cannot be shared out evenly among {items} memories")
    grouped = split_heads(q.reshape(items, (rows // items) * length, width), heads)  # (B, H, G·T, Dh)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        # The CPU's bfloat16 backward is 8 times as slow as its float32 one (docs/log.md).
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(
                grouped.float(), k.float(), v.float(), attn_mask=mask, dropout_p=dropout
            ).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, dropout_p=dropout)
    return merge_heads(out).reshape(rows, length, width)
