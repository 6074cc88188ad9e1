"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3): a causal pre-norm
transformer with learned positions.

R rows, T tokens, S tokens with those that a cache holds, D width, H heads, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lavis.nn.attention import Mask, triangle
from lavis.nn.cache import Cache
from lavis.nn.transformer import Block


@dataclass(frozen=True)
class GPTConfig:
    """Sizes; the defaults are those of GPT-2 small."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    max_positions: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    init_std: float = 0.02

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be shared out evenly among {self.heads} heads")


class GPT(nn.Module):
    """Embedded tokens in, states out; the words' embedding is the matrix of the LM head that a model adds."""

    def __init__(self, config: GPTConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(vocab_size, config.width)
        self.wpe = nn.Embedding(config.max_positions, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                4 * config.width,
                activation="gelu_tanh",
                eps=config.layer_norm_eps,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def reset_parameters(self) -> None:
        """GPT-2's starting weights: normal of `init_std`, what ends a residual branch smaller with the depth."""
        std = self.config.init_std
        for name, parameter in self.named_parameters():
            if name.endswith((".proj.weight", ".fc2.weight")):
                nn.init.normal_(parameter, std=std / (2 * self.config.depth) ** 0.5)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def embed(self, ids: torch.Tensor, types: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (R, T) without their positions: (R, T, D). Token types are tokens, too."""
        x = self.wte(ids)
        return x if types is None else x + self.wte(types)

    def forward(
        self, x: torch.Tensor, *, mask: torch.Tensor | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Run the layers.

        Args:
            x: (R, T, D) embeddings without positions; with a cache, only of the tokens that it does not hold yet.
            mask: (R, S) bool, True for tokens and False for padding, which may be anywhere: it takes no
                position and nothing looks at it. None if there is none.
            cache: keys and values so far; advanced by T.

        Returns:
            (R, T, D) normalised states. Those of padding mean nothing.

        Raises:
            ValueError: more tokens than positions.
        """
        start = 0 if cache is None else cache.length
        length = start + x.shape[1]
        self.check_length(length, mask)
        places = torch.arange(length, device=x.device)
        seen: Mask = "causal"
        if mask is None:
            positions = places[start:]
            if start:
                seen = triangle(x.shape[1], length, x.device)
        else:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, start:]  # (R, T)
            # padding sees itself: attention over nothing is not a number
            itself = places == places[start:, None]  # (T, S)
            seen = (triangle(x.shape[1], length, x.device) & mask[:, None, None, :]) | itself  # (R, 1, T, S)
        x = self.drop(x + self.wpe(positions))
        for index, block in enumerate(self.blocks):
            x = block(x, seen, cache, index)
        if cache is not None:
            cache.length = length
        return self.norm(x)

    def check_length(self, length: int, mask: torch.Tensor | None) -> None:
        """Refuse more tokens than there are positions: `length`, or fewer where the mask (R, length) says so."""
        most = self.config.max_positions
        if length > most:
            length = length if mask is None else int(mask.sum(dim=1).max())
        if length > most:
            raise ValueError(
                f"a sequence has {length} tokens (of video and text), the model has positions for {most}; shorten it"
            )


class Decoding:
    """Texts being written after a prompt; what `generation` drives.

    Args:
        transformer: the model.
        head: its LM head.
        prompt: (R, N, D) embeddings without positions, of at least one token in each row; read at once.
        mask: (R, N) bool, True for tokens and False for padding, wherever it is.
        kind: token type of what is written, or None.
        room: how many tokens may be written.
    """

    def __init__(
        self,
        transformer: GPT,
        head: nn.Linear,
        prompt: torch.Tensor,
        mask: torch.Tensor,
        kind: int | None,
        room: int,
    ) -> None:
        self.transformer, self.head, self.kind = transformer, head, kind
        rows, length = mask.shape
        self.mask = torch.cat([mask, mask.new_ones(rows, room)], dim=1)
        transformer.check_length(length + room, self.mask)
        self.cache = Cache(transformer.config, length + room)
        states = transformer(prompt, mask=mask, cache=self.cache)
        last = (torch.arange(length, device=mask.device) * mask).amax(dim=1)  # (R,)
        self._first: torch.Tensor | None = self._logits(states[torch.arange(rows, device=mask.device), last])

    def _logits(self, states: torch.Tensor) -> torch.Tensor:  # (R, D) -> (R, V)
        return self.head(states).float()

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read tokens (R, t), give float32 logits (R, V) of the token that follows.

        The first call's `ids` are the prompt's last tokens, which have been read.
        """
        if self._first is not None:
            logits, self._first = self._first, None
            return logits
        types = None if self.kind is None else torch.full_like(ids, self.kind)
        mask = self.mask[:, : self.cache.length + ids.shape[1]]
        states = self.transformer(self.transformer.embed(ids, types), mask=mask, cache=self.cache)
        return self._logits(states[:, -1])

    def select(self, index: torch.Tensor) -> None:
        """Row r goes on from the old row index[r]."""
        self.cache.select(index)
        self.mask = self.mask[index]
