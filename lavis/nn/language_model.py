"""The text transformer with a language-modelling head: masked words, and decoding over memories.

R rows of text, T tokens, D width, V vocabulary. Parameter names are those of the official checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from lavis.nn import bert_calls
from lavis.nn.cache import Cache, WholeCache
from lavis.nn.text import Memory, TextConfig, TextTransformer


class HeadTransform(nn.Module):
    """Dense, GELU, LayerNorm before the vocabulary projection."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """BERT's LM head. `bias` and `decoder.bias` are one parameter under the checkpoints' two names."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.transform = HeadTransform(config)
        self.decoder = nn.Linear(config.width, config.vocab_size)
        self.bias = self.decoder.bias


class Head(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., D) -> (..., V)
        return self.predictions.decoder(self.predictions.transform(x))


class LanguageModel(nn.Module):
    """A text transformer with an LM head whose matrix is the word embedding."""

    transformer: ClassVar[type[TextTransformer]] = TextTransformer

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.bert = self.transformer(config)
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


class TextDecoder(LanguageModel):
    """Causal text transformer with its LM head.

    Attributes:
        compiled_step: see `compile_step`.
    """

    compiled_step: Callable[..., torch.Tensor] | None = None

    def compile_step(self, **options: Any) -> None:
        """Write texts with one compiled step of static shape from now on, where prompts are read as before.

        The first text of each number of rows and length compiles it; all others are quicker where launching kernels
        takes most of the time, as on a GPU.

        Args:
            options: of `torch.compile`, such as `mode="reduce-overhead"` or `backend`.
        """
        self.compiled_step = torch.compile(_step, fullgraph=True, dynamic=False, **options)

    def project_memory(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> Memory:
        return self.bert.project_memory(states, mask)

    def forward(
        self,
        ids: torch.Tensor | None = None,
        *,
        mask: torch.Tensor | None = None,
        memory: Memory | None = None,
        **as_bert: Any,
    ) -> torch.Tensor:
        """Logits (R, T, V) of the token after each place; with arguments of transformers' BERT `bert_calls.decode`."""
        if as_bert or ids is None:
            return bert_calls.decode(self, as_bert.pop("input_ids", ids), **as_bert)  # type: ignore[return-value]
        return self.cls(self.bert(ids, mask=mask, memory=memory, causal=True))

    def generate_from_encoder(
        self, tokenized_prompt: Any, visual_embeds: torch.Tensor, *args: Any, **options: Any
    ) -> torch.Tensor:
        """Ids of texts written about images; see `bert_calls.write`."""
        return bert_calls.write(self, tokenized_prompt, visual_embeds, *args, **options)

    def begin(self, memory: Memory | None, max_length: int) -> Decoding:
        """Start decoding texts of at most `max_length` tokens, prompt included."""
        return Decoding(self, memory, max_length)


def _step(
    decoder: TextDecoder, ids: torch.Tensor, place: torch.Tensor, data: torch.Tensor, memory: Memory | None
) -> torch.Tensor:
    """Logits (R, V) after the tokens (R, 1) at a place (1,), which are written into a cache's data."""
    cache = WholeCache(data, place)
    states = decoder.bert.run(
        decoder.bert.embeddings.at(ids, place), mask=cache.seen, memory=memory, cache=cache
    )
    return decoder.cls(states[:, -1]).float()


class Decoding:
    """Texts being decoded: the decoder, its memory and its cache. What `generation` drives."""

    def __init__(self, decoder: TextDecoder, memory: Memory | None, max_length: int) -> None:
        self.decoder = decoder
        self.memory = None if memory is None else memory.contiguous()
        self.cache = Cache(decoder.bert.config, max_length, static=decoder.compiled_step is not None)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read tokens (R, t), give float32 logits (R, V) of the token that follows."""
        compiled, place = self.decoder.compiled_step, self.cache.length
        if compiled is not None and place and ids.shape[1] == 1:
            self.cache.length += 1
            return compiled(
                self.decoder, ids, torch.full((1,), place, device=ids.device), self.cache.data, self.memory
            )
        states = self.decoder.bert(ids, memory=self.memory, causal=True, cache=self.cache)
        return self.decoder.cls(states[:, -1]).float()

    def select(self, index: torch.Tensor) -> None:
        """Row r goes on from the old row index[r]; the rows of an item must stay together."""
        self.cache.select(index)
