"""Captions of images and videos, by every model that writes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from lavis.inference.abilities import require
from lavis.inference.loading import Loaded
from lavis.inference.protocols import Prompted, Writes
from lavis.models.outputs import Texts
from lavis.nn.generation import GenerationOptions


class Writer:
    """Writes captions.

    Args:
        loaded: the model, one that `Writes`.
        options: how. Those that the model's `generate` does not take are left out where they are the defaults.
        optional: names of options that are left out in any case where it does not take them.
        prompt: what the model reads before it writes, of one that is `Prompted`; None: its own.
        given: names of options that were asked for, which are passed also where they have their defaults: those of a
            model may be others.

    Raises:
        ValueError: the model does not write captions, or has no such option.
    """

    def __init__(
        self,
        loaded: Loaded,
        options: GenerationOptions,
        optional: Collection[str] = (),
        prompt: str | None = None,
        given: Collection[str] = (),
    ) -> None:
        self.model = require(loaded, Writes)  # type: ignore[type-abstract]
        self.loaded, self.num_captions = loaded, options.num_captions
        self.arguments = options.arguments(
            self.model.generate,
            lambda name: f"{loaded.spec} writes captions without the option {name}; leave it out",
            optional,
            given,
        )
        self.prompt = {} if prompt is None else {"prompt": prompt}
        if prompt is not None:
            require(loaded, Prompted).check_prompt(prompt, 0)  # type: ignore[type-abstract]

    @torch.no_grad()
    def __call__(self, media: torch.Tensor, **each: Any) -> Texts:
        """Caption a batch.

        Args:
            media: images (B, 3, h, w) or videos (B, 3, T, h, w), as `Loaded.prepare` makes them.
            each: options that are others for this batch (`seed`, one for each image).

        Returns:
            B·num_captions captions, those of an image next to one another, the best first.
        """
        with self.loaded.autocast():
            found = self.model.generate(
                {self.loaded.sees: media.to(self.loaded.model.device), **self.prompt},
                return_scores=True,
                **{**self.arguments, "num_captions": self.num_captions, **each},
            )
        assert isinstance(found, Texts)
        return found
