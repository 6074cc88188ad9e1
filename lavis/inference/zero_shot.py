"""Zero-shot classification: which of some labels fits a picture, with any model of a common space.

B pictures, L labels, P templates, E width of the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from lavis.inference.abilities import cannot
from lavis.inference.encoder import Encoder
from lavis.inference.protocols import Matches
from lavis.models.zero_shot import Template, fill
from lavis.nn.losses import similarities

TEMPLATES: tuple[Template, ...] = ("a picture of a {}",)
HEADS = ("itc", "itm")


class ZeroShot:
    """Labels made ready, to classify many pictures with.

    Args:
        encoder: the model.
        labels: L different names.
        templates: texts with "{}" where the name goes (or functions of it). A label is the mean of them.
        head: "itc" compares vectors (Radford et al. 2021, section 3.1.4), of an image with several vectors the one that
            fits a label best; "itm" asks the matching head about every
            image with every text: slower, and often better where labels differ in a detail.

    Raises:
        ValueError: no labels, a label twice, a template without "{}", no such head.
    """

    def __init__(
        self,
        encoder: Encoder,
        labels: Sequence[str],
        templates: Sequence[Template] = TEMPLATES,
        head: str = "itc",
    ) -> None:
        if isinstance(labels, str) or len(labels) == 0:
            raise ValueError("there are no labels to choose from; give a list of names")
        if len(set(labels)) != len(labels):
            twice = next(name for name in labels if list(labels).count(name) > 1)
            raise ValueError(f"the label {twice!r} is there twice")
        if isinstance(templates, str) or len(templates) == 0:
            raise ValueError('there is no template; give a list of texts such as "a picture of a {}"')
        if head not in HEADS:
            raise ValueError(f"head is {head!r}; it must be itc (vectors) or itm (the matching head)")
        if head == "itm" and not encoder.matches:
            raise ValueError(
                f"--head itm: {cannot(encoder.loaded.spec, encoder.loaded.model, Matches)}; or use --head itc"
            )
        self.encoder, self.labels, self.head = encoder, list(labels), head
        self._shape = (len(self.labels), len(templates))
        self._texts = [fill(t, name) for name in self.labels for t in templates]
        if head == "itc":
            each = encoder.texts(self._texts).unflatten(0, self._shape)  # (L, P, E)
            self._vectors = F.normalize(each.mean(dim=1), dim=-1)

    def __call__(self, pictures: Sequence[Any]) -> torch.Tensor:
        """Probability of each label among all of them, (B, L), for pictures in one batch."""
        if self.head == "itc":
            cosines = similarities(self.encoder.all_vectors(pictures), self._vectors)
            return (self.encoder.scale * cosines).softmax(dim=-1)
        logits, _ = self.encoder.match_logits(pictures, self._texts)
        odds = (logits[..., 1] - logits[..., 0]).unflatten(1, self._shape)  # (B, L, P)
        return odds.mean(dim=-1).softmax(dim=-1)


def classify(
    encoder: Encoder,
    pictures: Sequence[Any],
    labels: Sequence[str],
    templates: Sequence[Template] = TEMPLATES,
    head: str = "itc",
) -> torch.Tensor:
    """Probability of each label for each picture, (B, L); for many batches make a `ZeroShot` once."""
    return ZeroShot(encoder, labels, templates, head)(pictures)
