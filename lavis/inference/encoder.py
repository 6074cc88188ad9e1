"""Images and texts in one space, and how well they match.

B images (or videos), n texts, E width of the space, Q vectors of an image, D width of states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from lavis.inference.abilities import require
from lavis.inference.loading import Loaded
from lavis.inference.protocols import EmbedsBoth, EmbedsPairs, EmbedsQueries, Matches
from lavis.nn.finite import check_finite, explained
from lavis.nn.losses import similarities

TEXTS_AT_ONCE = 256


class Encoder:
    """Any model with a common space of images and texts (`EmbedsBoth`), with or without a matching head (`Matches`).

    An image is a Pillow image or what `loaded.prepare` has made of one; models of videos take a video (a file,
    frames) in its place.

    Attributes:
        loaded: the model.
        width: E.
        queries: Q; None where an image has one vector.
        matches: whether there is a matching head (ITM), which reads image and text together.
        scale: what cosines are multiplied with before a softmax.

    Its methods raise a `NonFiniteError` where the model computes NaN or infinity.

    Raises:
        ValueError: the model has no such space.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.model = loaded, require(loaded, EmbedsBoth)  # type: ignore[type-abstract]
        self.width, self.scale = int(self.model.embed_dim), float(self.model.cosine_scale)
        self._several: Any = loaded.model if isinstance(loaded.model, EmbedsQueries) else None
        self.queries = None if self._several is None else int(self._several.num_queries)
        self.matches = isinstance(loaded.model, Matches)

    # ------------------------------------------------------------------------------ images
    def _batch(self, images: Sequence[Any]) -> torch.Tensor:
        return torch.stack([self.loaded.prepare(image) for image in images]).to(self.loaded.model.device)

    @torch.no_grad()
    def images(self, images: Sequence[Any]) -> torch.Tensor:
        """Vectors of images, one of each, all in one batch.

        Returns:
            (B, E) float32 on the CPU, rows of length 1.
        """
        if not len(images):
            return torch.zeros(0, self.width)
        batch = self._batch(images)
        with self.loaded.autocast(), explained(self.loaded.model, batch):
            return self._checked(self.model.embed_images(batch), self.loaded.sees)

    @torch.no_grad()
    def all_vectors(self, images: Sequence[Any]) -> torch.Tensor:
        """What texts are compared with: `images`, of a model with several vectors of an image all of them.

        Returns:
            (B, E) or (B, Q, E) float32 on the CPU, vectors of length 1.
        """
        if self.queries is None:
            return self.images(images)
        if not len(images):
            return torch.zeros(0, self.queries, self.width)
        batch = self._batch(images)
        with self.loaded.autocast(), explained(self.loaded.model, batch):
            return self._checked(self._several.embed_queries(batch), self.loaded.sees)

    # ------------------------------------------------------------------------------ texts
    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Vectors of any number of texts, texts of similar length in one batch.

        Texts are cleaned as the model's training texts were, and cut to the length that it was trained with.

        Returns:
            (n, E) float32 on the CPU, rows of length 1.
        """
        cleaned = self._cleaned(texts)
        out = torch.zeros(len(cleaned), self.width)
        order = sorted(range(len(cleaned)), key=lambda i: len(cleaned[i]))
        for start in range(0, len(order), TEXTS_AT_ONCE):
            rows = order[start : start + TEXTS_AT_ONCE]
            with self.loaded.autocast(), explained(self.loaded.model):
                out[rows] = self._checked(self.model.embed_texts([cleaned[i] for i in rows]), "text")
        return out

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        if isinstance(texts, str):
            raise ValueError("texts is one string; give a list of texts")
        return [self.loaded.txt(text) for text in texts]

    # ------------------------------------------------------------------------------ matching
    def match(self, image: Any, texts: Sequence[str]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Compare one image with texts.

        Returns:
            (n,) probability that each text fits the image by the matching head, None where there is no such head;
            and (n,) cosine of their vectors, of an image with several vectors the largest.
        """
        chances, cosines = self.match_all([image], texts)
        return None if chances is None else chances[0], cosines[0]

    def match_all(
        self, images: Sequence[Any], texts: Sequence[str]
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Compare every image with every text: `match` for a batch, (B, n) each."""
        if not self.matches:
            return None, similarities(self.all_vectors(images), self.texts(texts))
        logits, cosines = self.match_logits(images, texts)
        return logits.softmax(dim=-1)[..., 1], cosines

    @torch.no_grad()
    def match_logits(self, images: Sequence[Any], texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the matching head says of every image with every text, each image read once.

        Returns:
            (B, n, 2) log-odds of "does not fit" and "fits", and (B, n) cosines, float32 on the CPU.

        Raises:
            ValueError: there is no matching head.
        """
        model = require(self.loaded, Matches)  # type: ignore[type-abstract]
        cleaned = self._cleaned(texts)
        if not len(images) or not cleaned:
            return torch.zeros(len(images), len(cleaned), 2), torch.zeros(len(images), len(cleaned))
        media = self._batch(images)
        with self.loaded.autocast(), explained(self.loaded.model, media):
            found = model.match_texts(media, cleaned)
            own = self._checked(found.images, self.loaded.sees)
            vectors = self._checked(found.texts, "text")
            logits = found.logits.float().cpu()
            check_finite(logits, kind=self.loaded.sees)
        return logits, similarities(own, vectors)

    # ------------------------------------------------------------------------------ fused states
    @torch.no_grad()
    def multimodal(self, images: Sequence[Any], texts: Sequence[str]) -> torch.Tensor:
        """Vectors of texts that have read their images: of B pairs (B, D), float32 on the CPU.

        Raises:
            ValueError: the model never reads both together, or there are not as many texts as images.
        """
        model = require(self.loaded, EmbedsPairs)  # type: ignore[type-abstract]
        if len(texts) != len(images):
            raise ValueError(f"there are {len(texts)} texts for {len(images)} images; each needs one")
        media = self._batch(images)
        with self.loaded.autocast(), explained(self.loaded.model, media):
            found = model.embed_pairs(media, self._cleaned(texts)).float().cpu()
            check_finite(found, kind=self.loaded.sees)
        return found

    @staticmethod
    def _checked(vectors: torch.Tensor, kind: str) -> torch.Tensor:
        """Vectors of length 1, on the CPU in float32, all of them finite."""
        unit = F.normalize(vectors.float(), dim=-1).cpu()
        check_finite(unit, kind=kind)
        return unit
