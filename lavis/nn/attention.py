"""The one attention: parameter-free, over queries, keys and values that modules have projected.

B pictures, G texts per picture, T queries per text, N keys, H heads, Dh width of a head.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

# True where a query may look; "causal": at its own token and those before it, of as many keys; None: everywhere
Mask = torch.Tensor | Literal["causal"] | None


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:  # (R, T, H·Dh) -> (R, H, T, Dh)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: torch.Tensor) -> torch.Tensor:  # (R, H, T, Dh) -> (R, T, H·Dh)
    return x.transpose(1, 2).flatten(2)


def triangle(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """The mask (T, N) of T tokens, the last of N, each of which sees itself and those before it."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    heads: int,
    mask: Mask = None,
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
        mask: see `Mask`; bool, broadcastable to (B·G, H, T, N); with G > 1 it must not depend on the query:
            (B, 1, 1, N).
        dropout: probability of dropping an attention weight.

    Returns:
        (B·G, T, H·Dh).
    """
    rows, length, width = q.shape
    items = k.shape[0]
    if rows % items:
        raise ValueError(f"{rows} rows of queries cannot be shared out evenly among {items} memories")
    grouped = split_heads(q.reshape(items, (rows // items) * length, width), heads)  # (B, H, G·T, Dh)
    causal = isinstance(mask, str)  # the kernels then skip what is not looked at, and need no mask
    if causal and rows != items:
        raise ValueError(
            f"{rows} rows of queries for {items} of keys: a causal mask is of a text with itself"
        )
    seen = None if isinstance(mask, str) else mask
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        # the CPU's bfloat16 backward is 8 times as slow as its float32 one (docs/log.md)
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(
                grouped.float(), k.float(), v.float(), attn_mask=seen, dropout_p=dropout, is_causal=causal
            ).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(
            grouped, k, v, attn_mask=seen, dropout_p=dropout, is_causal=causal
        )
    return merge_heads(out).reshape(rows, length, width)


def attention_weights(q: torch.Tensor, k: torch.Tensor, *, heads: int, mask: Mask = None) -> torch.Tensor:
    """The weights that `attend` uses without showing them, for maps and Grad-CAM.

    Args:
        q: projected queries (B·G, T, H·Dh).
        k, heads, mask: as in `attend`.

    Returns:
        (B·G, H, T, N), each row summing to 1.
    """
    rows, items = q.shape[0], k.shape[0]
    queries = split_heads(q, heads).unflatten(0, (items, rows // items))  # (B, G, H, T, Dh)
    scores = queries @ k.unsqueeze(1).transpose(-1, -2) / queries.shape[-1] ** 0.5  # (B, G, H, T, N)
    scores = scores.flatten(0, 1)
    if isinstance(mask, str):
        mask = triangle(q.shape[1], k.shape[2], q.device)
    if mask is not None:
        if mask.ndim == 4 and mask.shape[0] == items != rows:
            mask = mask.repeat_interleave(rows // items, dim=0)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


class Reader:
    """Part of a module that attends: reading, and keeping the weights of each call for maps and Grad-CAM.

    The module sets `heads`, and `weight_dropout` if it has any. `kept` is None, and nothing is kept; a list
    there receives weights (R, H, T, N), see lavis.common.gradcam. `READS`: how many memories a call reads, each by
    a `read` of its own.
    """

    READS = 1

    heads: int
    training: bool
    weight_dropout: float = 0.0
    kept: list[torch.Tensor] | None = None

    def read(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Mask = None) -> torch.Tensor:
        """What projected queries (R, T, D) find in keys and values (B, H, N, Dh): (R, T, D)."""
        if self.kept is None:
            dropout = self.weight_dropout if self.training else 0.0
            return attend(q, k, v, heads=self.heads, mask=mask, dropout=dropout)
        weights = attention_weights(q, k, heads=self.heads, mask=mask)  # (R, H, T, N)
        if torch.is_grad_enabled() and not weights.requires_grad:
            weights.requires_grad_()  # of a model whose parameters are frozen
        self.kept.append(weights)
        values = v.repeat_interleave(weights.shape[0] // v.shape[0], dim=0)  # (R, H, N, Dh)
        return merge_heads(weights @ values)
