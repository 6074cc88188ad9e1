"""Classification by writing: which of some labels a model would likeliest write about an image.

B images, L labels, P templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lavis.inference.abilities import require
from lavis.inference.loading import Loaded
from lavis.inference.protocols import Prompted, Ranks
from lavis.models.zero_shot import LABEL_PROMPT, Template, fill

TEMPLATES: tuple[Template, ...] = ("{}",)  # the label alone


class RankedLabels:
    """Labels as a model that `Ranks` writes them, to classify many images with.

    Args:
        loaded: the model.
        labels: L different names.
        templates: texts with "{}" where the name goes; of several, a label's log-probability is their mean.
        prompt: what the model reads before a label; None: `LABEL_PROMPT`.

    Attributes:
        labels: L names, in the order of the probabilities.

    Raises:
        ValueError: the model ranks no texts; no labels, or one twice; a prompt that it can't read.
    """

    def __init__(
        self,
        loaded: Loaded,
        labels: Sequence[str],
        templates: Sequence[Template] = TEMPLATES,
        prompt: str | None = None,
    ) -> None:
        self.model = require(loaded, Ranks)  # type: ignore[type-abstract]
        if isinstance(labels, str) or len(labels) == 0:
            raise ValueError("there are no labels to choose from; give a list of names")
        if len(set(labels)) != len(labels):
            twice = next(name for name in labels if list(labels).count(name) > 1)
            raise ValueError(f"the label {twice!r} is there twice")
        if prompt is not None:
            require(loaded, Prompted).check_prompt(prompt, 0)  # type: ignore[type-abstract]
        self.loaded, self.labels = loaded, list(labels)
        self.prompt = LABEL_PROMPT if prompt is None else prompt
        self._texts = [fill(t, name) for name in self.labels for t in templates]
        self._shape = (len(self.labels), len(templates))

    @torch.no_grad()
    def __call__(self, images: Sequence[Any]) -> torch.Tensor:
        """Probabilities (B, L) of labels among all of them, for images in one batch: softmax of log-probabilities."""
        media = torch.stack([self.loaded.prepare(image) for image in images]).to(self.loaded.model.device)
        samples = {self.loaded.sees: media, "prompt": self.prompt}
        with self.loaded.autocast():
            _, scores = self.model.predict_class(samples, self._texts, return_scores=True)
        return scores.float().unflatten(1, self._shape).mean(dim=2).softmax(dim=1)
