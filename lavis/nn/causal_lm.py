"""Language models of transformers behind the `Decoder` protocol of `nn.generation`.

A prompt is read once for each item, whatever is written or scored after it. What beams of an item have in common (the
prompt's keys and values) is never moved when they are reordered, and keys and values of new tokens are written into
room that was made for them, where transformers' own cache copies all of it at each step.

B items, R rows (beams, given texts) of them, P tokens of a prompt (embedded images among them), T tokens, D width of
the language model, H heads, Dh width of a head, V vocabulary.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch

AT_ONCE = 1 << 25  # numbers in the logits of given texts that are read at a time (128 MiB in float32)
CACHE_AT_ONCE = 1 << 29  # bytes of their prompts' keys and values
ROOM = 32  # tokens that a cache grows by at most


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Places of tokens among those that a mask (R, N) shows: padding, wherever it is, takes none."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


# ------------------------------------------------------------------------------------------ cache
@functools.cache
def _layer_with_room() -> type:
    from transformers.cache_utils import DynamicLayer

    class LayerWithRoom(DynamicLayer):
        """One layer's keys and values, (R, H, tokens, Dh) each, with room for more.

        What the first call brings is the prompt's, alike in all rows of an item.

        Args:
            most: tokens that may come after the prompt; None: unknown.
        """

        keys: Any
        values: Any
        prompt = 0  # tokens of it
        data: torch.Tensor | None = (
            None  # (2, R, H, tokens and room, Dh), of which `keys` and `values` are views
        )

        def __init__(self, most: int | None = None) -> None:
            super().__init__()
            self.most = most

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            new = key_states.shape[2]
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self.keys, self.values, self.prompt = key_states, value_states, new
                return self.keys, self.values
            start = self.keys.shape[2]
            end = start + new
            if self.data is None or self.data.shape[3] < end:
                left = ROOM if self.most is None else min(ROOM, self.prompt + self.most - end)
                self._grow(end + max(left, 0))
            assert self.data is not None
            self.data[0, :, :, start:end] = key_states
            self.data[1, :, :, start:end] = value_states
            self.keys, self.values = self.data[0, :, :, :end], self.data[1, :, :, :end]
            return self.keys, self.values

        def _grow(self, room: int) -> None:
            rows, heads, length, width = self.keys.shape
            self.data = self.keys.new_empty(2, rows, heads, room, width)
            self.data[0, :, :, :length] = self.keys
            self.data[1, :, :, :length] = self.values

        def reorder_cache(self, beam_idx: torch.Tensor) -> None:
            if len(beam_idx) != len(self.keys):
                self.keys, self.values = (x.index_select(0, beam_idx) for x in (self.keys, self.values))
                self.data = None
            elif self.data is not None:
                for part in self.data[:, :, :, self.prompt : self.keys.shape[2]]:  # (R, H, new tokens, Dh)
                    part.copy_(part.index_select(0, beam_idx))

        def for_rows(self, items: torch.Tensor) -> Any:
            """A plain layer for rows that go on from these items, one call long: what they share is copied once."""
            layer = DynamicLayer()
            layer.lazy_initialization(self.keys, self.values)
            layer.keys, layer.values = _of_items(self.keys, items), _of_items(self.values, items)
            return layer

    return LayerWithRoom


def _of_items(x: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Rows of x, (B, ...) -> (R, ...); a view where there is but one item."""
    return x.expand(len(items), *x.shape[1:]) if len(x) == 1 else x.index_select(0, items)


def _decoder_cache(config: Any, most: int | None) -> Any:
    """An empty cache; layers that see all tokens have room, others (sliding windows) are transformers' own."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache(config=config)
    kind = _layer_with_room()
    cache.layers = [kind(most) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _for_rows(cache: Any, items: torch.Tensor) -> Any:
    """A copy of a cache for rows (R,) that go on from these items."""
    forked = copy.copy(cache)
    forked.layers = []
    for layer in cache.layers:
        if not hasattr(layer, "for_rows"):
            other = copy.deepcopy(layer)
            other.reorder_cache(items)
        else:
            other = layer.for_rows(items)
        forked.layers.append(other)
    return forked


def _cache_name(model: Any) -> str:
    """What a model's `forward` calls its cache, which transformers has renamed."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


# ------------------------------------------------------------------------------------------ decoding
class Decoding:
    """Texts that are written or scored after prompts.

    Args:
        model: of transformers. cache: with the prompts, or empty. mask: (B, P) bool of the prompts, False is padding.
    """

    def __init__(self, model: Any, cache: Any, mask: torch.Tensor) -> None:
        self.model, self.cache, self.mask = model, cache, mask
        self.padded = not bool(mask.all())
        self.cache_name = _cache_name(model)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read tokens (R, t), give float32 logits (R, V) of the token that follows."""
        return self._read(ids, self.cache, self.mask, last=True)[:, -1].float()

    def select(self, index: torch.Tensor) -> None:
        """Row r goes on from the old row index[r], which is the same item's."""
        if len(index) != len(self.mask):
            self._spread(index)
        self._reorder(index)

    def log_probabilities(
        self, start: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, items: torch.Tensor
    ) -> torch.Tensor:
        """Of given texts after their prompts, none of which is read twice: (R,) sums over the texts' tokens.

        Args:
            start: (B, 1), what the first step reads. ids, mask: (R, T), padded on the right.
            items: (R,), whose prompt each text follows.
        """
        first = self.step(start).log_softmax(dim=-1)[items, ids[:, 0]]  # (R,)
        if ids.shape[1] == 1:
            return first
        rest = []
        rows = max(
            1,
            min(
                AT_ONCE // (self.model.config.vocab_size * (ids.shape[1] - 1)),
                CACHE_AT_ONCE // max(1, self._row_bytes()),
            ),
        )
        for some, real, item in zip(ids.split(rows), mask.split(rows), items.split(rows)):
            logits = self._read(some[:, :-1], self._cache_for(item), self.mask[item], last=False).float()
            logs = logits.log_softmax(dim=-1).gather(2, some[:, 1:, None])[:, :, 0]
            rest.append(logs.masked_fill(~real[:, 1:], 0.0).sum(dim=1))
        return first + torch.cat(rest)

    def _read(self, ids: torch.Tensor, cache: Any, mask: torch.Tensor, last: bool) -> torch.Tensor:
        """Logits (R, t or 1, V) after tokens (R, t), of the `last` only or of all; the cache grows."""
        raise NotImplementedError

    def _spread(self, index: torch.Tensor) -> None:
        """Rows of another number, see `select`: all but the cache."""
        self.mask = self.mask.index_select(0, index)

    def _reorder(self, index: torch.Tensor) -> None:
        self.cache.reorder_cache(index)

    def _caches(self) -> tuple[Any, ...]:
        """All that is kept of tokens."""
        return (self.cache,)

    def _row_bytes(self) -> int:
        """Of what the cache holds for one row."""
        kept = [getattr(layer, "keys", None) for cache in self._caches() for layer in cache.layers]
        return sum(2 * keys[0].numel() * keys.element_size() for keys in kept if keys is not None)

    def _cache_for(self, items: torch.Tensor) -> Any:
        """A copy of the cache for rows that go on from these items."""
        return _for_rows(self.cache, items)


class CausalDecoding(Decoding):
    """By a decoder-only language model, after embedded prompts.

    Args:
        model: a causal language model of transformers.
        prompt: (B, P, D) embeddings, read at once; a row's last place is a token.
        mask: (B, P) bool, True for tokens and False for padding.
        most: tokens that may be written; None: unknown.
    """

    def __init__(self, model: Any, prompt: torch.Tensor, mask: torch.Tensor, most: int | None = None) -> None:
        super().__init__(model, _decoder_cache(model.config, most), mask)
        self._first: torch.Tensor | None = self._call(
            inputs_embeds=prompt, mask=mask, cache=self.cache, last=True
        )

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """As of `Decoding`; the first call's `ids`, a start token for instance, stand for the prompt, which has been
        read."""
        if self._first is None:
            return super().step(ids)
        logits, self._first = self._first, None
        return logits[:, -1].float()

    def _call(self, mask: torch.Tensor, cache: Any, last: bool, **inputs: torch.Tensor) -> torch.Tensor:
        """Args: mask: (R, N) of all that has been read and of the inputs (R, t)."""
        new = next(iter(inputs.values())).shape[1]
        out = self.model(
            **inputs,
            **{self.cache_name: cache},
            attention_mask=mask.long() if self.padded else None,
            position_ids=positions(mask)[:, -new:],
            use_cache=True,
            logits_to_keep=int(last),
        )
        logits: torch.Tensor = out.logits
        return logits

    def _read(self, ids: torch.Tensor, cache: Any, mask: torch.Tensor, last: bool) -> torch.Tensor:
        seen = torch.cat([mask, mask.new_ones(ids.shape)], dim=1)
        if cache is self.cache:
            self.mask = seen
        return self._call(mask=seen, cache=cache, last=last, input_ids=ids)


class EncoderDecoding(Decoding):
    """By the decoder of an encoder-decoder language model, whose encoder reads embedded prompts.

    Args:
        model: a model of transformers with an encoder and a decoder, such as T5's.
        prompt: (B, P, D) embeddings. mask: (B, P) bool. most: as of `CausalDecoding`.
    """

    def __init__(self, model: Any, prompt: torch.Tensor, mask: torch.Tensor, most: int | None = None) -> None:
        from transformers.cache_utils import Cache, EncoderDecoderCache

        own = Cache(layer_class_to_replicate=functools.partial(_layer_with_room(), most))  # type: ignore[arg-type]
        crossing = Cache(layer_class_to_replicate=_layer_with_room())
        super().__init__(model, EncoderDecoderCache(own, crossing), mask)
        self.states = model.get_encoder()(inputs_embeds=prompt, attention_mask=self._seen(mask))

    def _seen(self, mask: torch.Tensor) -> torch.Tensor | None:
        return mask.long() if self.padded else None

    def _read(self, ids: torch.Tensor, cache: Any, mask: torch.Tensor, last: bool) -> torch.Tensor:
        states = copy.copy(self.states)
        if len(states.last_hidden_state) != len(ids):  # its keys and values are in the cache
            states.last_hidden_state = states.last_hidden_state[:1].expand(len(ids), -1, -1)
        out = self.model(
            encoder_outputs=states,
            attention_mask=self._seen(mask),
            decoder_input_ids=ids,
            **{self.cache_name: cache},
            use_cache=True,
        )
        logits: torch.Tensor = out.logits
        return logits[:, -1:] if last else logits

    def _reorder(self, index: torch.Tensor) -> None:
        # what is read of prompts is the same for all rows of an item
        rows = len(self.cache.cross_attention_cache.layers[0].keys)
        self.cache.self_attention_cache.reorder_cache(index)
        if len(index) != rows:
            self.cache.cross_attention_cache.reorder_cache(index)

    def _caches(self) -> tuple[Any, ...]:
        return self.cache.self_attention_cache, self.cache.cross_attention_cache

    def _cache_for(self, items: torch.Tensor) -> Any:
        return type(self.cache)(*(_for_rows(cache, items) for cache in self._caches()))
