"""The Q-Former (BLIP-2; Li et al. 2023, arXiv 2301.12597, section 3.1 and figure 2): BERT layers in which learned
queries read an image, and texts read the queries.

Queries and text share self-attention. Only queries cross-attend, in every second layer, and they have feed-forward
parts of their own. Queries stand before the text, without positions.

B images, Q queries, R rows of text, T tokens, D width. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lavis.nn import bert_calls
from lavis.nn.attention import Mask, triangle
from lavis.nn.cache import Cache
from lavis.nn.language_model import LanguageModel
from lavis.nn.outputs import DecoderOutput
from lavis.nn.text import Intermediate, KeysValues, Layer, Memory, Residual, TextConfig, TextTransformer


class Prefix:
    """Self-attention's keys and values of queries, for texts that come after them; gradients flow through it.

    The first call of a layer stores its keys and values (B, H, Q, Dh), the second puts them before a text's
    (R, H, T, Dh), R = B·G, whose G texts per image share them.
    """

    def __init__(self) -> None:
        self.layers: list[KeysValues] = []
        self.length = 0

    def append(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> KeysValues:
        if not self.length:
            self.layers.append((k, v))
            return k, v
        groups = len(k) // len(self.layers[layer][0])
        before = (part.repeat_interleave(groups, dim=0) for part in self.layers[layer])
        k, v = (torch.cat(parts, dim=2) for parts in zip(before, (k, v)))
        return k, v


class QueryLayer(Layer):
    """A BERT layer for queries, followed by text."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__(config, index)
        self.intermediate_query = Intermediate(config)
        self.output_query = Residual(config.hidden, config)

    def read(
        self,
        x: torch.Tensor,  # (R, Q + T, D)
        queries: int,
        mask: Mask,
        memory: Memory | None,
        cache: Cache | Prefix | None,
        index: int,
        only_queries: bool = False,
    ) -> torch.Tensor:
        x = self.attention(x, mask, cache, index, only_first=False)
        q, text = x[:, :queries], x[:, queries:]
        if queries:
            if memory is not None and memory.keys_values[index]:
                q = self.crossattention.look(q, memory.keys_values[index], memory.mask)  # type: ignore[operator]
            q = self.output_query(self.intermediate_query(q), q)
        if only_queries:
            return q
        if text.shape[1]:
            text = self.output(self.intermediate(text), text)
        return torch.cat([q, text], dim=1)


class QueryTransformer(TextTransformer):
    """Queries, text, or queries and text in, states out."""

    layer = QueryLayer

    def forward(  # type: ignore[override]
        self,
        ids: torch.Tensor | None = None,
        *,
        queries: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        memory: Memory | None = None,
        causal: bool = False,
        cache: Cache | Prefix | None = None,
        start: int = 0,
        only_queries: bool = False,
        **as_bert: Any,
    ) -> torch.Tensor:
        """Embed and run all layers.

        Args:
            ids: (R, T) tokens of a text, None for queries alone.
            queries: (R or 1, Q, D), None for a text alone.
            mask: (R, T) bool of the text, True for tokens; queries are all seen.
            memory: the images', which queries cross-attend to.
            causal: whether a token of the text sees only itself and earlier ones, beside what `cache` holds.
            cache: keys and values so far; advanced by what is read.
            start: place of the first of `ids` in its text.
            only_queries: leave the text's states out of the result.
            as_bert: arguments of the original's Q-Former; then the call is `bert_calls.read_queries`.

        Returns:
            (R, Q + T, D), or (R, Q, D).
        """
        if as_bert:
            return bert_calls.read_queries(self, as_bert.pop("input_ids", ids), **as_bert)  # type: ignore[return-value]
        parts = []
        if queries is not None:
            rows = len(ids) if ids is not None else len(memory) if memory is not None else len(queries)
            normed = self.embeddings.dropout(self.embeddings.LayerNorm(queries))
            parts.append(normed.expand(rows, -1, -1))
        if ids is not None:
            parts.append(self.embeddings(ids, start))
        x = torch.cat(parts, dim=1)
        count = 0 if queries is None else queries.shape[1]
        before = 0 if cache is None else cache.length
        seen = _mask(x, count, before, mask, causal)
        for index, layer in enumerate(self.encoder.layer):
            alone = only_queries and index == self.config.depth - 1
            x = layer.read(x, count, seen, memory, cache, index, alone)  # type: ignore[operator]
        if cache is not None:
            cache.length = before + x.shape[1]
        return x


def _mask(x: torch.Tensor, queries: int, before: int, mask: torch.Tensor | None, causal: bool) -> Mask:
    """(R or 1, 1, T or 1, N), True where a token may look, or None; `before`: tokens that a cache holds."""
    rows, length, _ = x.shape
    seen = None
    if mask is not None:
        always = mask.new_ones(rows, queries + before)
        seen = torch.cat([always, mask], dim=1)[:, None, None, :]  # (R, 1, 1, N)
    if not causal or length == 1:
        return seen
    order = triangle(length, before + length, x.device)
    return order if seen is None else order & seen


class QFormer(LanguageModel):
    """The transformer of queries and texts, with a head that writes."""

    bert: QueryTransformer
    transformer = QueryTransformer

    def forward(self, input_ids: torch.Tensor, **as_bert: Any) -> DecoderOutput | torch.Tensor:
        """What follows tokens of texts (R, T) that come after queries; see `bert_calls.write_after_queries`."""
        return bert_calls.write_after_queries(self, input_ids, **as_bert)

    def begin(self, queries: torch.Tensor, memory: Memory, rows: int, room: int) -> Decoding:
        """Start decoding `rows` texts of at most `room` tokens about the images of a memory."""
        return Decoding(self, queries, memory, rows, room)


class Decoding:
    """Texts being written after queries that have read images; what `generation` drives.

    Args:
        former: the model.
        queries: (1, Q, D). memory: of B images, a multiple of which `rows` is.
        room: tokens of a text.
    """

    def __init__(self, former: QFormer, queries: torch.Tensor, memory: Memory, rows: int, room: int) -> None:
        self.former, self.queries = former, queries.shape[1]
        self.cache = Cache(former.bert.config, self.queries + room)
        former.bert(queries=queries, memory=memory, cache=self.cache)
        groups = rows // len(memory)
        if groups > 1:
            self.select(torch.arange(len(memory), device=queries.device).repeat_interleave(groups))

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read tokens (R, t), give float32 logits (R, V) of the token that follows."""
        start = self.cache.length - self.queries
        states = self.former.bert(ids, causal=True, cache=self.cache, start=start)
        return self.former.cls(states[:, -1]).float()

    def select(self, index: torch.Tensor) -> None:
        """Row r goes on from the old row index[r]."""
        self.cache.select(index)


class QueryReader(nn.Module):
    """A Q-Former that only reads: images, and with `text` instructions, for a language model. It has no head; without
    `text` also none of the parts that texts pass through."""

    def __init__(self, config: TextConfig, text: bool) -> None:
        super().__init__()
        self.bert = QueryTransformer(config)
        if text:
            return
        self.bert.embeddings.word_embeddings = None  # type: ignore[assignment]
        self.bert.embeddings.position_embeddings = None  # type: ignore[assignment]
        for layer in self.bert.encoder.layer:
            layer.intermediate = layer.output = None  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        self.bert.reset_parameters()
