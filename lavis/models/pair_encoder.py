"""Images with one text each, and statements about them, as a training batch of tensors.

B images (or videos), K statements per image, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lavis.models.samples import TextEncoder, media_of, require, texts_of
from lavis.models.tokenizer import Tokens

_TOGETHER = 4  # statements of an image that are matched at once


@dataclass(frozen=True)
class PairEncoder(TextEncoder):
    """`Alignment.batch_encoder`: `tokens["text"]` (B, T), filled up to `max_length`.

    Where the samples have `statements`, B·K texts, an image's next to one another and its `text_input` first, and
    `fits` (B, B·K) bool, whether they are true of the images: `tokens["statements"]`, a tuple of `Tokens`, each of a
    few statements of every image and padded to the longest of these, an image's from short to long; and
    `statement_order` (B, K), the places of an image's statements in that order. Either both are there or none.

    Attributes:
        by_id: whether `image_id` is needed, integers that say which texts share an image; becomes a tensor (B,).
    """

    pad: bool = True
    by_id: bool = False

    def __call__(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        encoded = dict(samples)
        if self.by_id:
            require(samples, ("image_id",), "integers that say which texts share an image")
            encoded["image_id"] = torch.as_tensor(samples["image_id"]).flatten()
        images = len(media_of(samples, self.media))
        texts = texts_of(samples, images)
        if len(texts) != images:
            raise ValueError(f"{len(texts)} texts for {images} images; this loss takes one per image")
        tokens: dict[str, Any] = {"text": self.tokens(texts)}
        if samples.get("statements") is not None:
            require(samples, ("fits",), "whether each statement is true of each picture")
            tokens["statements"], encoded["statement_order"] = self._statements(samples, images)
        return {**encoded, "tokens": tokens}

    def _statements(self, samples: Mapping[str, Any], images: int) -> tuple[tuple[Tokens, ...], torch.Tensor]:
        texts = texts_of(samples, images, "statements")
        ids = [self.tokenizer.encode(text, self.max_length) for text in texts]
        lengths = torch.tensor([len(row) for row in ids]).unflatten(0, (images, -1))  # (B, K)
        order = lengths.argsort(dim=1, stable=True)
        rows = order + lengths.shape[1] * torch.arange(images)[:, None]
        groups = [part.flatten().tolist() for part in rows.split(_TOGETHER, dim=1)]
        return tuple(self.tokenizer.pad([ids[row] for row in group]) for group in groups), order
