"""How texts read images: the three ways of BLIP, ALBEF and ALPRO, as plain parts that come before a network among its
bases.

Each says how a text is encoded alone (`encode_text`), what of images is kept to be read (`memorize`), and how texts go
on from there (`fuse`). Each takes `ema=True` for the EMA copies.

B images (or videos), G texts per image, R = B·G texts, T tokens, N image tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lavis.models.heat_maps import encoder_of
from lavis.models.tokenizer import Tokens
from lavis.nn.text import Memory, TextTransformer


@dataclass(frozen=True)
class TextStates:
    """Tokens, and their states (R, T, D) before they have seen an image, where fusing goes on from those."""

    tokens: Tokens
    states: torch.Tensor | None = None

    def select(self, index: torch.Tensor) -> TextStates:
        """The texts of some rows."""
        tokens = Tokens(self.tokens.ids[index], self.tokens.mask[index])
        return TextStates(tokens, None if self.states is None else self.states[index])


def interleaved(first: TextStates, second: TextStates) -> TextStates:
    """Rows first[0], second[0], first[1], second[1], …: two texts an image."""

    def weave(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([a, b], dim=1).flatten(0, 1)

    tokens = Tokens(weave(first.tokens.ids, second.tokens.ids), weave(first.tokens.mask, second.tokens.mask))
    if first.states is None or second.states is None:
        return TextStates(tokens)
    return TextStates(tokens, weave(first.states, second.states))


class _Fusion:
    """FUSES_STATES: whether `fuse` goes on from the states of `encode_text`, or reads the tokens anew."""

    FUSES_STATES = True

    config: Any
    part: Any

    def bert(self, ema: bool = False) -> TextTransformer:
        """The transformer that reads texts."""
        return encoder_of(self.part("text_encoder", ema))


class EarlyFusion(_Fusion):
    """Every layer cross-attends to the image, when a text begins with [ENC]; without an image none does (BLIP paper,
    section 3.1)."""

    FUSES_STATES = False

    enc_id: int

    def encode_text(self, tokens: Tokens, *, ema: bool = False) -> torch.Tensor:
        """Tokens (R, T) to states (R, T, D), no image seen."""
        return self.bert(ema)(tokens.ids, mask=tokens.mask)

    def memorize(self, image_embeds: torch.Tensor, *, ema: bool = False) -> Memory:
        """What `fuse` reads of image states (B, N, D)."""
        return self.bert(ema).project_memory(image_embeds)

    def begin(self, tokens: Tokens, states: torch.Tensor) -> torch.Tensor:
        """States (R, T, D) that `fuse` can go on from: the first layer's self-attention."""
        return self.bert().begin(self._reading(tokens), tokens.mask)

    def fuse(
        self, text: TextStates, memory: Memory, *, ema: bool = False, only_first: bool = False
    ) -> torch.Tensor:
        """States (R, T, D) after the texts have read the memory of B images, or (R, 1, D) with `only_first`; R is a
        multiple of B."""
        encoder, mask = self.bert(ema), text.tokens.mask
        if text.states is not None:
            return encoder.run(text.states, mask=mask, memory=memory, only_first=only_first, begun=True)
        return encoder(self._reading(text.tokens), mask=mask, memory=memory, only_first=only_first)

    def _reading(self, tokens: Tokens) -> torch.Tensor:
        """(R, T) with the token that stands before a text which reads an image."""
        ids = tokens.ids.clone()
        ids[:, 0] = self.enc_id
        return ids


class LateFusion(_Fusion):
    """The first layers read the text alone, the others go on from its states and cross-attend to the image (ALBEF
    paper, section 3.1)."""

    def encode_text(self, tokens: Tokens, *, ema: bool = False) -> torch.Tensor:
        """Tokens (R, T) to states (R, T, D), no image seen."""
        return self.bert(ema)(tokens.ids, mask=tokens.mask, last=self.config.text.cross_from)

    def memorize(self, image_embeds: torch.Tensor, *, ema: bool = False) -> Memory:
        """What `fuse` reads of image states (B, N, D)."""
        return self.bert(ema).project_memory(image_embeds)

    def begin(self, tokens: Tokens, states: torch.Tensor) -> torch.Tensor:
        """States (R, T, D) that `fuse` can go on from, of texts whose `encode_text` gave `states`."""
        return states

    def fuse(
        self, text: TextStates, memory: Memory, *, ema: bool = False, only_first: bool = False
    ) -> torch.Tensor:
        """States (R, T, D) after the texts have read the memory of B images, or (R, 1, D) with `only_first`; R is a
        multiple of B."""
        assert text.states is not None
        first, mask = self.config.text.cross_from, text.tokens.mask
        return self.bert(ema).run(text.states, mask=mask, memory=memory, first=first, only_first=only_first)


@dataclass(frozen=True)
class VideoStates:
    """States of videos (B, N, D) that texts are read beside."""

    states: torch.Tensor

    def select(self, index: torch.Tensor) -> VideoStates:
        """The videos of some rows."""
        return VideoStates(self.states.index_select(0, index))


class JointFusion(_Fusion):
    """The first layers read the text alone, the others its states and the video's side by side, by self-attention
    (ALPRO paper, section 3.1)."""

    def encode_text(self, tokens: Tokens, *, ema: bool = False) -> torch.Tensor:
        """Tokens (R, T) to states (R, T, D), no video seen."""
        return self.bert(ema)(tokens.ids, mask=tokens.mask, last=self.config.fuse_from)

    def memorize(self, video_embeds: torch.Tensor, *, ema: bool = False) -> VideoStates:
        """What `fuse` reads of video states (B, N, D)."""
        return VideoStates(video_embeds)

    def begin(self, tokens: Tokens, states: torch.Tensor) -> torch.Tensor:
        """States (R, T, D) that `fuse` can go on from, of texts whose `encode_text` gave `states`."""
        return states

    def fuse(
        self, text: TextStates, memory: VideoStates, *, ema: bool = False, only_first: bool = False
    ) -> torch.Tensor:
        """States (R, T + N, D) of texts and videos that have read each other, the text's first; or (R, 1, D)."""
        assert text.states is not None
        videos, rows = memory.states, text.states.shape[0]
        videos = videos[:, None].expand(-1, rows // videos.shape[0], -1, -1).flatten(0, 1)  # (R, N, D)
        mask = torch.cat([text.tokens.mask, text.tokens.mask.new_ones(videos.shape[:2])], dim=1)
        states = torch.cat([text.states, videos], dim=1)
        return self.bert(ema).run(states, mask=mask, first=self.config.fuse_from, only_first=only_first)
