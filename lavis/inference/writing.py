"""Captions of images and videos, by every model that writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lavis.common.arguments import accepted
from lavis.inference.loading import Loaded
from lavis.inference.protocols import Writes, require
from lavis.models.outputs import Texts

# what counts as not asked for, where a model's `generate` has no such option
DEFAULTS: Mapping[str, Any] = {
    "use_nucleus_sampling": False,
    "num_beams": 3,
    "top_p": 0.9,
    "temperature": 1.0,
    "repetition_penalty": 1.0,
    "seed": None,
    "max_new_tokens": None,
    "min_new_tokens": None,
}


class Writer:
    """Writes captions.

    Args:
        loaded: the model, one that `Writes`.
        num_captions: of each image.
        options: of the model's `generate`. Those that it does not take are left out where they have their value in
            DEFAULTS.
        optional: names of options that are left out in any case where it does not take them.

    Attributes:
        options: what `generate` is called with.

    Raises:
        ValueError: the model does not write captions, or has no such option.
    """

    def __init__(
        self, loaded: Loaded, num_captions: int = 1, optional: Sequence[str] = (), **options: Any
    ) -> None:
        self.model = require(loaded, Writes)  # type: ignore[type-abstract]
        self.loaded, self.num_captions = loaded, num_captions
        self.options = accepted(
            self.model.generate,
            options,
            {**DEFAULTS, **{name: options[name] for name in optional}},
            lambda name: f"{loaded.spec} writes captions without the option {name}; leave it out",
        )

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
                {self.loaded.sees: media.to(self.loaded.model.device)},
                num_captions=self.num_captions,
                return_scores=True,
                **{**self.options, **each},
            )
        assert isinstance(found, Texts)
        return found
