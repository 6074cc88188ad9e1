"""The one text transformer: BERT layers that may also look at memories (BLIP's MED, section 3.1).

Encoder, encoder that attends to pictures, and causal decoder are the same layers with other masks.

R rows of text = B items x G groups, T tokens, N memory tokens, D width, H heads, Dh head width,
V vocabulary, L layers. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lavis.nn.attention import attend, split_heads
from lavis.nn.linear import Linear


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text transformer; the defaults are BERT base with BLIP's vocabulary."""

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    max_positions: int = 512
    memory_width: int = 768  # width of the states that cross-attention reads
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    init_std: float = 0.02


@dataclass
class Memory:
    """What every layer's cross-attention reads, projected once.

    `keys_values[i]` are layer i's keys and values, each (B, H, N, Dh); `mask` is (B, 1, 1, N), True
    where there is a token, or None if all are.
    """

    keys_values: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor | None

    def repeat(self, counts: torch.Tensor) -> Memory:
        """Item b's memory `counts[b]` times over, for groups of unequal size (copies)."""
        kv = [
            (k.repeat_interleave(counts, dim=0), v.repeat_interleave(counts, dim=0))
            for k, v in self.keys_values
        ]
        return Memory(kv, None if self.mask is None else self.mask.repeat_interleave(counts, dim=0))


class Cache:
    """Keys and values of the tokens read so far, preallocated for `max_length` tokens."""

    def __init__(self, config: TextConfig, rows: int, max_length: int, like: torch.Tensor) -> None:
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


class Embeddings(nn.Module):
    """Word plus position embedding, normalised. No token types, as in BLIP and ALBEF."""

    position_ids: torch.Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        # persistent because official checkpoints hold it
        self.register_buffer("position_ids", torch.arange(config.max_positions).unsqueeze(0))

    def forward(self, ids: torch.Tensor, start: int = 0) -> torch.Tensor:  # (R, T) -> (R, T, D)
        end = start + ids.shape[1]
        if end > self.position_embeddings.num_embeddings:
            raise ValueError(
                f"the text has {end} tokens, the model has positions for {self.position_embeddings.num_embeddings}; "
                "shorten it or set max_txt_len"
            )
        x = self.word_embeddings(ids) + self.position_embeddings.weight[start:end]
        return self.dropout(self.LayerNorm(x))


class Projections(nn.Module):
    """Query, key and value projections of one attention."""

    def __init__(self, config: TextConfig, memory_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = Linear(config.width, config.width)
        self.key = Linear(memory_width, config.width)
        self.value = Linear(memory_width, config.width)

    def keys_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, memory width) -> two of (B, H, N, Dh)."""
        return split_heads(self.key(states), self.heads), split_heads(self.value(states), self.heads)


class Residual(nn.Module):
    """Linear, dropout, add, LayerNorm: the end of each of a layer's sub-layers."""

    def __init__(self, inputs: int, config: TextConfig) -> None:
        super().__init__()
        self.dense = Linear(inputs, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module):
    """Self- or cross-attention with its residual; the module names are the checkpoints'."""

    def __init__(self, config: TextConfig, memory_width: int) -> None:
        super().__init__()
        self.self = Projections(config, memory_width)
        self.output = Residual(config.width, config)
        self.weight_dropout = config.attention_dropout

    def forward(
        self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        dropout = self.weight_dropout if self.training else 0.0
        out = attend(self.self.query(x), k, v, heads=self.self.heads, mask=mask, dropout=dropout)
        return self.output(out, x)


class Intermediate(nn.Module):
    """The widening half of the feed-forward sub-layer, with the exact GELU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a memory, feed-forward; each post-norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.attention = Attention(config, config.width)
        self.crossattention = Attention(config, config.memory_width)
        self.intermediate = Intermediate(config)
        self.output = Residual(config.hidden, config)

    def forward(
        self,
        x: torch.Tensor,  # (R, T, D)
        mask: torch.Tensor | None,
        memory: tuple[torch.Tensor, torch.Tensor] | None,
        memory_mask: torch.Tensor | None,
        cache: Cache | None,
        index: int,
    ) -> torch.Tensor:
        k, v = self.attention.self.keys_values(x)
        if cache is not None:
            k, v = cache.append(index, k, v)
        x = self.attention(x, k, v, mask)
        if memory is not None:
            x = self.crossattention(x, *memory, memory_mask)
        return self.output(self.intermediate(x), x)

    def memory_keys_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What this layer's cross-attention reads of a memory (B, N, memory width)."""
        return self.crossattention.self.keys_values(states)


class Encoder(nn.Module):
    """The stack of layers (named `encoder.layer` in checkpoints)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.depth))


class TextTransformer(nn.Module):
    """Token ids in, states out."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def reset_parameters(self) -> None:
        """BERT's starting weights: normal of `init_std`, zero biases, unit LayerNorms."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def project_memory(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> Memory:
        """Every layer's keys and values of states (B, N, memory width); `mask` (B, N) is True for tokens."""
        kv = [layer.memory_keys_values(states) for layer in self.encoder.layer]  # type: ignore[operator]
        return Memory(kv, None if mask is None else mask[:, None, None, :])

    def forward(
        self,
        ids: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        memory: Memory | None = None,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Run the layers.

        Args:
            ids: (R, T) token ids; with a cache, only the tokens that it does not hold yet.
            mask: (R, T) bool, True for tokens and False for padding; None if there is none.
            memory: what to cross-attend to; R must be a multiple of its B. None skips cross-attention.
            causal: whether a token sees only itself and earlier ones.
            cache: keys and values so far; advanced by T.

        Returns:
            (R, T, D) states of the last layer.
        """
        start = 0 if cache is None else cache.length
        x = self.embeddings(ids, start)
        attention_mask = None if mask is None else mask[:, None, None, :]  # (R, 1, 1, T)
        length = ids.shape[1]
        if causal and length > 1:
            ones = torch.ones(length, start + length, dtype=torch.bool, device=ids.device)
            triangle = ones.tril(start)  # (T, start + T): token t sees places up to start + t
            attention_mask = triangle if attention_mask is None else attention_mask & triangle
        memory_mask = None if memory is None else memory.mask
        for i, layer in enumerate(self.encoder.layer):
            kv = None if memory is None else memory.keys_values[i]
            x = layer(x, attention_mask, kv, memory_mask, cache, i)
        if cache is not None:
            cache.length += length
        return x


class HeadTransform(nn.Module):
    """Dense, GELU, LayerNorm before the vocabulary projection."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """BERT's LM head. `bias` and `decoder.bias` are one parameter under the checkpoints' two names."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.transform = HeadTransform(config)
        self.decoder = Linear(config.width, config.vocab_size)
        self.bias = self.decoder.bias


class Head(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., D) -> (..., V)
        return self.predictions.decoder(self.predictions.transform(x))


class TextDecoder(nn.Module):
    """Causal text transformer with an LM head whose matrix is the word embedding."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.bert = TextTransformer(config)
        self.cls = Head(config)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the aliases one parameter again (after weights were assigned).

        Where a file's aliases differ, the later entry wins, as when the original copies them in turn.
        """
        predictions = self.cls.predictions
        self.bert.embeddings.word_embeddings.weight = predictions.decoder.weight
        predictions.bias = predictions.decoder.bias

    def reset_parameters(self) -> None:
        self.bert.reset_parameters()
        dense = self.cls.predictions.transform.dense
        nn.init.normal_(dense.weight, std=self.bert.config.init_std)
        nn.init.zeros_(dense.bias)
        nn.init.zeros_(self.cls.predictions.decoder.bias)

    def project_memory(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> Memory:
        return self.bert.project_memory(states, mask)

    def forward(
        self, ids: torch.Tensor, *, mask: torch.Tensor | None = None, memory: Memory | None = None
    ) -> torch.Tensor:
        """Logits (R, T, V) of the token after each place."""
        return self.cls(self.bert(ids, mask=mask, memory=memory, causal=True))

    def begin(self, memory: Memory | None, rows: int, max_length: int) -> Decoding:
        """Start decoding `rows` texts of at most `max_length` tokens, prompt included."""
        return Decoding(self, memory, rows, max_length)


class Decoding:
    """Texts being decoded: the decoder, its memory and its cache. What `generation` drives."""

    def __init__(self, decoder: TextDecoder, memory: Memory | None, rows: int, max_length: int) -> None:
        self.decoder = decoder
        self.memory = memory
        like = decoder.bert.embeddings.word_embeddings.weight
        self.cache = Cache(decoder.bert.config, rows, max_length, like.detach())

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read tokens (R, t), give float32 logits (R, V) of the token that follows."""
        states = self.decoder.bert(ids, memory=self.memory, causal=True, cache=self.cache)
        return self.decoder.cls(states[:, -1]).float()

    def select(self, index: torch.Tensor) -> None:
        """Row r goes on from the old row index[r]; the rows of an item must stay together."""
        self.cache.select(index)
