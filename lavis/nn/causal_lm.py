"""Language models of transformers behind the `Decoder` protocol of `nn.generation`.

R rows, P tokens of a prompt (embedded images among them), T tokens, D width of the language model, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

AT_ONCE = 64  # given texts that are read at a time


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Places of tokens among those that a mask (R, N) shows: padding, wherever it is, takes none."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


class CausalDecoding:
    """Texts written after embedded prompts by a decoder-only language model.

    Args:
        model: a causal language model of transformers.
        prompt: (R, P, D) embeddings, read at once; a row's last place is a token.
        mask: (R, P) bool, True for tokens and False for padding.
    """

    def __init__(self, model: Any, prompt: torch.Tensor, mask: torch.Tensor) -> None:
        self.model, self.mask = model, mask
        out = model(
            inputs_embeds=prompt,
            attention_mask=mask.long(),
            position_ids=positions(mask),
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = out.past_key_values
        self._first: torch.Tensor | None = out.logits[:, -1].float()

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read tokens (R, t), give float32 logits (R, V) of the token that follows.

        The first call's `ids`, a start token for instance, stand for the prompt, which has been read.
        """
        if self._first is not None:
            logits, self._first = self._first, None
            return logits
        self.mask = torch.cat([self.mask, self.mask.new_ones(ids.shape)], dim=1)
        out = self.model(
            input_ids=ids,
            attention_mask=self.mask.long(),
            position_ids=positions(self.mask)[:, -ids.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()

    def select(self, index: torch.Tensor) -> None:
        """Row r goes on from the old row index[r]."""
        self.cache.reorder_cache(index)
        self.mask = self.mask[index]

    def log_probabilities(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of given texts (C, T) after the one prompt, which is not read again: (C,) sums over their tokens."""
        assert self._first is not None and len(self.mask) == 1
        first = self._first.log_softmax(dim=-1)[0, ids[:, 0]]  # (C,)
        found = []
        for some, real in zip(ids.split(AT_ONCE), mask.split(AT_ONCE)):
            if ids.shape[1] == 1:
                break
            cache = copy.deepcopy(self.cache)
            cache.batch_repeat_interleave(len(some))
            seen = torch.cat([self.mask.expand(len(some), -1), real], dim=1)
            logits = self.model(
                input_ids=some[:, :-1],
                attention_mask=seen[:, :-1].long(),
                position_ids=positions(seen)[:, self.mask.shape[1] : -1],
                past_key_values=cache,
                use_cache=True,
            ).logits
            found.append(_chosen(logits, some[:, 1:], real[:, 1:]))
        return first + torch.cat(found) if found else first


class EncoderDecoding:
    """Texts written by the decoder of an encoder-decoder language model, whose encoder has read embedded prompts.

    Args:
        model: a model of transformers with `encoder` and `decoder`, such as T5's.
        prompt: (R, P, D) embeddings. mask: (R, P) bool.
    """

    def __init__(self, model: Any, prompt: torch.Tensor, mask: torch.Tensor) -> None:
        self.model, self.mask = model, mask
        self.states = model.get_encoder()(inputs_embeds=prompt, attention_mask=mask.long())
        self.cache: Any = None

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read tokens (R, t), give float32 logits (R, V) of the token that follows."""
        out = self.model(
            encoder_outputs=self.states,
            attention_mask=self.mask.long(),
            decoder_input_ids=ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache = out.past_key_values
        return out.logits[:, -1].float()

    def select(self, index: torch.Tensor) -> None:
        """Row r goes on from the old row index[r]."""
        self.cache.reorder_cache(index)
        self.mask = self.mask[index]
        self.states.last_hidden_state = self.states.last_hidden_state[index]

    def log_probabilities(self, ids: torch.Tensor, mask: torch.Tensor, start: int) -> torch.Tensor:
        """Of given texts (C, T) about the one prompt, which is not read again: (C,) sums over their tokens.

        Args:
            start: the token that a text begins with, which `ids` don't hold.
        """
        assert len(self.mask) == 1
        read = torch.cat([ids.new_full((len(ids), 1), start), ids[:, :-1]], dim=1)
        found = []
        for some, before, real in zip(ids.split(AT_ONCE), read.split(AT_ONCE), mask.split(AT_ONCE)):
            states = copy.copy(self.states)
            states.last_hidden_state = states.last_hidden_state.expand(len(some), -1, -1)
            logits = self.model(
                encoder_outputs=states,
                attention_mask=self.mask.expand(len(some), -1).long(),
                decoder_input_ids=before,
                use_cache=False,
            ).logits
            found.append(_chosen(logits, some, real))
        return torch.cat(found)


def _chosen(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens (R, T) by logits (R, T, V), summed where the mask is True: (R,)."""
    logs = logits.float().log_softmax(dim=-1).gather(2, ids[:, :, None])[:, :, 0]
    return logs.masked_fill(~mask, 0.0).sum(dim=1)
