"""The one text transformer: BERT layers that may also look at memories (BLIP's MED, section 3.1).

Encoder, encoder that attends to pictures, fusion encoder and causal decoder are the same layers with
other masks; which layers cross-attend, and to how many memories, is said by `TextConfig`.

R rows of text = B items x G groups, T tokens, N memory tokens, D width, H heads, Dh head width,
V vocabulary, L layers. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from lavis.nn import bert_calls
from lavis.nn.attention import Mask, Reader, split_heads, triangle
from lavis.nn.cache import Cache, WholeCache
from lavis.nn.outputs import EncoderOutput


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text transformer; the defaults are BERT base with BLIP's vocabulary.

    Attributes:
        cross_from: the first layer with cross-attention: 0 in BLIP, 6 in ALBEF, `depth` (none) in ALPRO,
            whose later layers fuse by self-attention.
        cross_every: 1: it and all later ones have it; 2: it and every second one (Q-Former).
        memories: how a layer reads two pictures (NLVR2). "one": there is one memory. "twin": two
            cross-attentions a layer, averaged in the first half of the layers, merged by a linear
            layer in the second (BLIP). "alternate": the cross-attending layers read memory 0 and 1 in
            turn, and two neighbours share their key and value projections (ALBEF).
        token_types: rows of the token-type embedding, of which all text uses row 0; 0: there is none.
    """

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
    cross_from: int = 0
    cross_every: int = 1
    memories: str = "one"
    token_types: int = 0

    # the names of transformers
    @property
    def hidden_size(self) -> int:
        return self.width

    @property
    def num_hidden_layers(self) -> int:
        return self.depth

    @property
    def num_attention_heads(self) -> int:
        return self.heads

    def __post_init__(self) -> None:
        if self.memories not in ("one", "twin", "alternate"):
            raise ValueError(f"text.memories is {self.memories!r}; it must be one, twin or alternate")


KeysValues = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Memory:
    """What every layer's cross-attention reads, projected once.

    `keys_values[i]` are layer i's (keys, values), each (B, H, N, Dh): none for a layer that doesn't
    cross-attend, two for a twin; `mask` is (B, 1, 1, N), True where there is a token, or None if all are.
    """

    keys_values: list[tuple[KeysValues, ...]]
    mask: torch.Tensor | None

    def __len__(self) -> int:
        """B"""
        return next(k.shape[0] for layer in self.keys_values for k, _ in layer)

    def part(self, items: slice) -> Memory:
        """The memory of some of the items (a view)."""
        kv = [tuple((k[items], v[items]) for k, v in layer) for layer in self.keys_values]
        return Memory(kv, None if self.mask is None else self.mask[items])

    def select(self, index: torch.Tensor) -> Memory:
        """The memory whose item i is this one's item index[i] (copies)."""
        kv = [
            tuple((k.index_select(0, index), v.index_select(0, index)) for k, v in layer)
            for layer in self.keys_values
        ]
        return Memory(kv, None if self.mask is None else self.mask.index_select(0, index))

    def contiguous(self) -> Memory:
        """The same with each head's keys and values side by side: a copy that pays when they are read many times."""
        kv = [tuple((k.contiguous(), v.contiguous()) for k, v in layer) for layer in self.keys_values]
        return Memory(kv, self.mask)


class Embeddings(nn.Module):
    """Word plus position embedding (plus token type 0, where the model has types), normalised."""

    position_ids: torch.Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_positions, config.width)
        if config.token_types:
            self.token_type_embeddings = nn.Embedding(config.token_types, config.width)
        self.has_types = config.token_types > 0
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        # persistent because official checkpoints hold it
        self.register_buffer("position_ids", torch.arange(config.max_positions).unsqueeze(0))

    def forward(self, input_ids: torch.Tensor, start: int = 0) -> torch.Tensor:  # (R, T) -> (R, T, D)
        ids = input_ids
        end = start + ids.shape[1]
        if end > self.position_ids.shape[1]:
            raise ValueError(
                f"the text has {end} tokens, the model has positions for {self.position_ids.shape[1]}; "
                "shorten it or set max_txt_len"
            )
        return self.at(ids, torch.arange(start, end, device=ids.device))

    def at(self, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Of tokens (R, T) that stand at places (T,): (R, T, D)."""
        places = places.unsqueeze(0)  # (1, T)
        x = self.word_embeddings(ids) + self.position_embeddings(places)
        if self.has_types:
            x = x + self.token_type_embeddings(torch.zeros_like(places))
        return self.dropout(self.LayerNorm(x))


class Projections(nn.Module):
    """Query, key and value projections of one attention."""

    def __init__(self, config: TextConfig, memory_width: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(memory_width, config.width)
        self.value = nn.Linear(memory_width, config.width)

    # the original's way to attention maps; ours is lavis.common.gradcam
    save_attention = False  # whether cross-attention keeps the weights of its last call, and their gradients
    attention_map: torch.Tensor | None = None

    def get_attention_map(self) -> torch.Tensor | None:
        """(R, H, T, N)"""
        return self.attention_map

    def get_attn_gradients(self) -> torch.Tensor | None:
        """(R, H, T, N), after `backward`."""
        return None if self.attention_map is None else self.attention_map.grad

    def keys_values(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, N, memory width) -> two of (B, H, N, Dh)."""
        return split_heads(self.key(states), self.heads), split_heads(self.value(states), self.heads)


class SelfProjections(Projections):
    """Those of self-attention, all of one input."""

    def forward(self, x: torch.Tensor, only_first: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(R, T, D) -> queries (R, T, D), or (R, 1, D) of the first token only; keys and values (R, H, T, Dh)."""
        return self.query(x[:, :1] if only_first else x), *self.keys_values(x)


class Residual(nn.Module):
    """Linear, dropout, add, LayerNorm: the end of each of a layer's sub-layers."""

    def __init__(self, inputs: int, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Attention(nn.Module, Reader):
    """Attention with its residual; the module names are the checkpoints'."""

    def __init__(self, config: TextConfig, projections: Projections) -> None:
        super().__init__()
        self.heads, self.weight_dropout = config.heads, config.attention_dropout
        self.self = projections
        self.output = Residual(config.width, config)


class SelfAttention(Attention):
    """A text's attention to itself."""

    self: SelfProjections

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config, SelfProjections(config, config.width))

    def forward(
        self,
        x: torch.Tensor,  # (R, T, D)
        mask: Mask,
        cache: Cache | WholeCache | None,
        index: int,
        only_first: bool,
    ) -> torch.Tensor:
        q, k, v = self.self(x, only_first)
        if cache is not None:
            k, v = cache.append(index, k, v)
        return self.output(self.read(q, k, v, mask), x[:, :1] if only_first else x)


class CrossAttention(Attention):
    """Cross-attention to one memory."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config, Projections(config, config.memory_width))

    def memory_keys_values(self, states: torch.Tensor, second: torch.Tensor | None) -> tuple[KeysValues, ...]:
        return (self.self.keys_values(states),)

    def look(
        self, x: torch.Tensor, memory: tuple[KeysValues, ...], mask: torch.Tensor | None
    ) -> torch.Tensor:
        ((k, v),) = memory
        q = self.self.query(x)
        if not self.self.save_attention or self.kept is not None:
            return self.output(self.read(q, k, v, mask), x)
        self.kept = []
        try:
            found = self.read(q, k, v, mask)
            self.self.attention_map = self.kept[-1]
        finally:
            self.kept = None
        if self.self.attention_map.requires_grad:
            self.self.attention_map.retain_grad()
        return self.output(found, x)


class TwinResidual(nn.Module):
    """The end of a twin cross-attention: two outputs averaged, or merged by a linear layer."""

    def __init__(self, config: TextConfig, merge: bool) -> None:
        super().__init__()
        self.dense0 = nn.Linear(config.width, config.width)
        self.dense1 = nn.Linear(config.width, config.width)
        if merge:
            self.merge_layer = nn.Linear(2 * config.width, config.width)
        self.merges = merge
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x0: torch.Tensor, x1: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        x0, x1 = self.dense0(x0), self.dense1(x1)
        x = self.merge_layer(torch.cat([x0, x1], dim=-1)) if self.merges else (x0 + x1) / 2
        return self.LayerNorm(self.dropout(x) + residual)


class TwinCrossAttention(nn.Module, Reader):
    """Two cross-attentions side by side, one per picture (BLIP paper, section 5.4 and figure 5b)."""

    READS = 2

    def __init__(self, config: TextConfig, merge: bool) -> None:
        super().__init__()
        self.heads, self.weight_dropout = config.heads, config.attention_dropout
        self.self0 = Projections(config, config.memory_width)
        self.self1 = Projections(config, config.memory_width)
        self.output = TwinResidual(config, merge)

    def memory_keys_values(self, states: torch.Tensor, second: torch.Tensor | None) -> tuple[KeysValues, ...]:
        assert second is not None
        return self.self0.keys_values(states), self.self1.keys_values(second)

    def look(
        self, x: torch.Tensor, memory: tuple[KeysValues, ...], mask: torch.Tensor | None
    ) -> torch.Tensor:
        (k0, v0), (k1, v1) = memory
        found0 = self.read(self.self0.query(x), k0, v0, mask)
        found1 = self.read(self.self1.query(x), k1, v1, mask)
        return self.output(found0, found1, x)


class Intermediate(nn.Module):
    """The widening half of the feed-forward sub-layer, with the exact GELU."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Self-attention, cross-attention where it has one and there is a memory, feed-forward; each post-norm."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        past = index - config.cross_from
        self.crosses = past >= 0 and past % config.cross_every == 0
        if self.crosses and config.memories == "twin":
            self.crossattention: nn.Module = TwinCrossAttention(config, merge=index >= config.depth // 2)
        elif self.crosses:
            self.crossattention = CrossAttention(config)
        self.intermediate = Intermediate(config)
        self.output = Residual(config.hidden, config)

    def forward(
        self,
        x: torch.Tensor,  # (R, T, D)
        mask: Mask,
        memory: tuple[KeysValues, ...],
        memory_mask: torch.Tensor | None,
        cache: Cache | WholeCache | None,
        index: int,
        only_first: bool = False,
    ) -> torch.Tensor:
        x = self.read_text(x, mask, cache, index, only_first)
        return self.read_memory(x, memory, memory_mask)

    def read_text(
        self,
        x: torch.Tensor,
        mask: Mask,
        cache: Cache | WholeCache | None = None,
        index: int = 0,
        only_first: bool = False,
    ) -> torch.Tensor:
        """The first of its sub-layers."""
        return self.attention(x, mask, cache, index, only_first)

    def read_memory(
        self, x: torch.Tensor, memory: tuple[KeysValues, ...], mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The others."""
        if memory:
            x = self.crossattention.look(x, memory, mask)  # type: ignore[operator]
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The stack of layers (named `encoder.layer` in checkpoints)."""

    def __init__(self, config: TextConfig, layer: type[Layer] = Layer) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layer(config, i) for i in range(config.depth))
        if config.memories == "alternate":
            for i in range(config.cross_from + 1, config.depth, 2):
                first, second = (self.layer[j].crossattention.self for j in (i - 1, i))  # type: ignore[union-attr]
                second.key, second.value = first.key, first.value  # type: ignore[union-attr]


class TextTransformer(nn.Module):
    """Token ids in, states out.

    Attributes:
        fusion_layer: the first layer that fuses text and image, where those before it read the text alone; else 0.
    """

    layer: ClassVar[type[Layer]] = Layer

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.fusion_layer = config.cross_from % config.depth
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, self.layer)

    def reset_parameters(self) -> None:
        """BERT's starting weights: normal of `init_std`, zero biases, unit LayerNorms."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def project_memory(
        self,
        states: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        second: torch.Tensor | None = None,
    ) -> Memory:
        """Every cross-attending layer's keys and values of a memory.

        Args:
            states: (B, N, memory width), or the first of two pictures.
            mask: (B, N), True for tokens.
            second: the second picture's states, where `config.memories` is not "one".
        """
        if (second is None) != (self.config.memories == "one"):
            raise ValueError(f"a text transformer of {self.config.memories!r} memories got the other number")
        kv: list[tuple[KeysValues, ...]] = []
        for i, layer in enumerate(self.encoder.layer):
            read = states
            if self.config.memories == "alternate" and (i - self.config.cross_from) % 2 == 1:
                assert second is not None
                read = second
            kv.append(layer.crossattention.memory_keys_values(read, second) if layer.crosses else ())  # type: ignore[operator, union-attr]
        return Memory(kv, None if mask is None else mask[:, None, None, :])

    def forward(
        self,
        ids: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
        memory: Memory | None = None,
        causal: bool = False,
        cache: Cache | WholeCache | None = None,
        last: int | None = None,
        only_first: bool = False,
        **as_bert: Any,
    ) -> torch.Tensor:
        """Embed tokens and run the layers.

        Args:
            ids: (R, T) token ids; with a cache, only the tokens that it does not hold yet.
            mask: (R, T) bool, True for tokens and False for padding; None if there is none.
            memory: what to cross-attend to; R must be a multiple of its B. None skips cross-attention.
            causal: whether a token sees only itself and earlier ones.
            cache: keys and values so far; advanced by T.
            last: run layers 0 … last - 1 only (ALBEF's text layers).
            only_first: the last layer computes the state of the first token alone, for heads that read no other.
            as_bert: arguments of transformers' BERT; then the call is `bert_calls.encode`.

        Returns:
            (R, T, D) states of the last layer that was run; (R, 1, D) with `only_first`.
        """
        if as_bert or ids is None:
            return bert_calls.encode(self, as_bert.pop("input_ids", ids), **as_bert)  # type: ignore[return-value]
        x = self.embeddings(ids, 0 if cache is None else cache.length)
        return self.run(
            x, mask=mask, memory=memory, causal=causal, cache=cache, last=last, only_first=only_first
        )

    def forward_text(self, tokenized_text: Any, **options: Any) -> EncoderOutput:
        """States of texts alone, of what a tokenizer gave; see `bert_calls`."""
        text = tokenized_text
        return bert_calls.encode(self, text.input_ids, text.attention_mask, mode="text", **options)

    def forward_automask(self, tokenized_text: Any, visual_embeds: Any, **options: Any) -> EncoderOutput:
        """States of texts over images' states (B, N, D), all of which are read; see `bert_calls`."""
        text = tokenized_text
        return bert_calls.encode(
            self, text.input_ids, text.attention_mask, encoder_hidden_states=visual_embeds, **options
        )

    @property
    def base_model(self) -> TextTransformer:
        """Itself, under transformers' name."""
        return self

    def begin(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What a text is before it has read a memory, where every layer does: the first layer's self-attention,
        (R, T) -> (R, T, D). `run` goes on from there with `begun`."""
        return self.encoder.layer[0].read_text(  # type: ignore[operator]
            self.embeddings(ids), None if mask is None else mask[:, None, None, :]
        )

    def run(
        self,
        x: torch.Tensor,
        *,
        mask: torch.Tensor | None = None,
        memory: Memory | None = None,
        causal: bool = False,
        cache: Cache | WholeCache | None = None,
        first: int = 0,
        last: int | None = None,
        only_first: bool = False,
        begun: bool = False,
    ) -> torch.Tensor:
        """Layers first … last - 1 over states (R, T, D); `begun`: see `begin`; the rest as in `forward`."""
        start = 0 if cache is None else cache.length
        attention_mask: Mask = None if mask is None else mask[:, None, None, :]  # (R, 1, 1, T)
        length = x.shape[1]
        if causal and length > 1:
            if mask is None and not start:
                attention_mask = "causal"
            else:
                seen = triangle(length, start + length, x.device)
                attention_mask = seen if mask is None else seen & mask[:, None, None, :]
        memory_mask = None if memory is None else memory.mask
        end = self.config.depth if last is None else last
        for i in range(first, end):
            kv = () if memory is None else memory.keys_values[i]
            alone = only_first and i == end - 1
            if begun and i == first:
                x = self.encoder.layer[i].read_memory(x[:, :1] if alone else x, kv, memory_mask)  # type: ignore[operator]
            else:
                x = self.encoder.layer[i](x, attention_mask, kv, memory_mask, cache, i, alone)
        if cache is not None:
            cache.length += length
        return x
