"""Pictures and texts in one space, and how well they match.

B pictures (or clips), n texts, E width of the space, G texts that are matched at once, D width of states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from lavis.inference.loading import Loaded
from lavis.models.alignment import TEMPERATURE, Alignment, TextStates
from lavis.models.clip import Clip
from lavis.models.tokenizer import Tokens
from lavis.nn.finite import check_finite, explained
from lavis.nn.losses import similarities

TEXTS_AT_ONCE = 256
PAIRS_AT_ONCE = 256  # of pictures and texts that are matched


class Encoder:
    """Any model with a common space of pictures and texts: CLIP, and BLIP's, ALBEF's and ALPRO's with projections.

    A picture is a Pillow picture or what `loaded.prepare` has made of one; models of clips take a clip (a file,
    frames) in its place.

    Attributes:
        loaded: the model.
        width: E.
        matches: whether there is a matching head (ITM), which reads picture and text together.
        scale: what cosines are multiplied with before a softmax: one over the learned temperature (one over 0.07 where
            the model has none).

    Its methods raise a `NonFiniteError` where the model computes NaN or infinity.

    Raises:
        ValueError: the model has no such space.
    """

    def __init__(self, loaded: Loaded) -> None:
        model = loaded.model
        if not isinstance(model, Alignment | Clip):
            raise ValueError(
                f"{loaded.spec} does not put pictures and texts into one space; choose a model that does, such as "
                "blip_feature_extractor/base, blip_image_text_matching/base, albef_retrieval/coco or clip/ViT-B-32"
            )
        self.loaded, self.model = loaded, model
        self.width = int(model.config.embed_dim)
        self.matches = isinstance(model, Alignment) and model.MATCHES
        if isinstance(model, Clip):
            self.scale = math.exp(float(model.logit_scale.detach()))
        else:
            self.scale = 1 / float(torch.as_tensor(getattr(model, "temp", TEMPERATURE)).detach())

    # ------------------------------------------------------------------------------ pictures
    def _batch(self, pictures: Sequence[Any]) -> torch.Tensor:
        return torch.stack([self.loaded.prepare(p) for p in pictures]).to(self.model.device)

    @torch.no_grad()
    def images(self, pictures: Sequence[Any]) -> torch.Tensor:
        """Vectors of pictures, all in one batch.

        Returns:
            (B, E) float32 on the CPU, rows of length 1.
        """
        if not len(pictures):
            return torch.zeros(0, self.width)
        batch = self._batch(pictures)
        with self.loaded.autocast(), explained(self.model, batch):
            return self._picture_vectors(self.model.encode_image(batch))

    def _picture_vectors(self, states: torch.Tensor) -> torch.Tensor:
        vectors = _unit(states if isinstance(self.model, Clip) else self.model.image_feature(states))
        check_finite(vectors, kind=self.loaded.sees)
        return vectors

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
            some = [cleaned[i] for i in rows]
            with self.loaded.autocast(), explained(self.model):
                if isinstance(self.model, Clip):
                    vectors = self.model.encode_text(some)
                else:
                    vectors = self.model.text_feature(self.model.encode_text(self._tokens(some)))
                out[rows] = _unit(vectors)
                check_finite(out[rows], kind="text")
        return out

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        if isinstance(texts, str):
            raise ValueError("texts is one string; give a list of texts")
        return [self.loaded.txt(text) for text in texts]

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        assert isinstance(self.model, Alignment)
        return self.model.tokens(texts, max_length=self.model.config.max_txt_len)

    # ------------------------------------------------------------------------------ matching
    def match(self, picture: Any, texts: Sequence[str]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Compare one picture with texts.

        Returns:
            (n,) probability that each text fits the picture by the matching head, None where there is no such head;
            and (n,) cosine of their vectors.
        """
        chances, cosines = self.match_all([picture], texts)
        return None if chances is None else chances[0], cosines[0]

    def match_all(
        self, pictures: Sequence[Any], texts: Sequence[str]
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Compare every picture with every text: `match` for a batch, (B, n) each."""
        if not self.matches:
            return None, similarities(self.images(pictures), self.texts(texts))
        logits, cosines = self.match_logits(pictures, texts)
        return logits.softmax(dim=-1)[..., 1], cosines

    @torch.no_grad()
    def match_logits(
        self, pictures: Sequence[Any], texts: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the matching head says of every picture with every text, each picture read once.

        Returns:
            (B, n, 2) log-odds of "does not fit" and "fits", and (B, n) cosines, float32 on the CPU.

        Raises:
            ValueError: there is no matching head.
        """
        model = self.model
        if not self.matches or not isinstance(model, Alignment):
            raise ValueError(
                f"{self.loaded.spec} has no matching head; choose a model that has, such as "
                "blip_image_text_matching/base or albef_retrieval/coco"
            )
        cleaned = self._cleaned(texts)
        batch = len(pictures)
        logits = torch.zeros(batch, len(cleaned), 2)
        if not batch or not cleaned:
            return logits, logits[..., 0]
        each = max(1, PAIRS_AT_ONCE // batch)
        vectors = torch.zeros(len(cleaned), self.width)
        media = self._batch(pictures)
        with self.loaded.autocast(), explained(model, media):
            image = model.encode_image(media)  # (B, N, D)
            memory, own = model.memorize(image), self._picture_vectors(image)
            order = sorted(range(len(cleaned)), key=lambda i: len(cleaned[i]))
            for start in range(0, len(order), each):
                columns = order[start : start + each]
                tokens = self._tokens([cleaned[i] for i in columns])  # (G, T)
                states = model.encode_text(tokens)
                vectors[columns] = _unit(model.text_feature(states))
                check_finite(vectors[columns], kind="text")
                text = TextStates(tokens, model.begin(tokens, states))
                rows = text.select(torch.arange(len(columns), device=model.device).repeat(batch))  # (B·G, T)
                found = model.match_logits(rows, memory, only_first=True).float().cpu()
                logits[:, columns] = found.unflatten(0, (batch, len(columns)))
            check_finite(logits, kind=self.loaded.sees)
        return logits, similarities(own, vectors)

    # ------------------------------------------------------------------------------ fused states
    @torch.no_grad()
    def multimodal(self, pictures: Sequence[Any], texts: Sequence[str]) -> torch.Tensor:
        """States of texts that have read their pictures, the first token's: of B pairs (B, D), float32 on the CPU.

        Raises:
            ValueError: the model never reads both together (CLIP), or there are not as many texts as pictures.
        """
        model = self.model
        if not isinstance(model, Alignment):
            raise ValueError(
                f"{self.loaded.spec} never reads picture and text together; choose one that does, such as "
                "blip_feature_extractor/base or albef_feature_extractor/base"
            )
        if len(texts) != len(pictures):
            raise ValueError(f"there are {len(texts)} texts for {len(pictures)} pictures; each needs one")
        media = self._batch(pictures)
        with self.loaded.autocast(), explained(model, media):
            memory = model.memorize(model.encode_image(media))
            tokens = self._tokens(self._cleaned(texts))
            text = TextStates(tokens, model.begin(tokens, model.encode_text(tokens)))
            found = model.fuse(text, memory, only_first=True)[:, 0].float().cpu()
            check_finite(found, kind=self.loaded.sees)
        return found


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return F.normalize(vectors.float(), dim=-1).cpu()
