"""Classification by a trained head: which of its own classes an image is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lavis.inference.abilities import default, require
from lavis.inference.loading import Loaded
from lavis.inference.protocols import Classifies
from lavis.models.classification import some_names
from lavis.nn.finite import check_finite


def has_classes(loaded: Loaded) -> bool:
    """Whether a model has a head for classes of single images or videos."""
    return isinstance(loaded.model, Classifies) and not loaded.pairs


class TrainedClasses:
    """A classifier's head, to classify many images (or videos) with.

    Args:
        loaded: a model whose checkpoint names its classes.
        labels: those to choose from; None: all of them.

    Attributes:
        labels: L names, in the order of the probabilities.

    Raises:
        ValueError: the model does not name its classes, or doesn't know a label.
    """

    def __init__(self, loaded: Loaded, labels: Sequence[str] | None = None) -> None:
        self.loaded, self.model = loaded, require(loaded, Classifies)  # type: ignore[type-abstract]
        known = self.model.classnames
        if known is None:
            raise ValueError(
                f"{loaded.spec} tells classes apart, but its weights don't name them; "
                "`lavis evaluate` scores them in the order of a table's classes, and training on a table names them"
            )
        unknown = [name for name in labels or () if name not in known]
        if unknown:
            other = default("classify", origin="published")
            raise ValueError(
                f"{loaded.spec} was not trained to tell {some_names(unknown)}; it knows {some_names(known)}. For "
                f"labels that a model was never trained on choose one such as {other}"
            )
        self.labels = list(dict.fromkeys(labels or known))
        self._places = [known.index(name) for name in self.labels]

    @torch.no_grad()
    def __call__(self, images: Sequence[Any]) -> torch.Tensor:
        """Probability of each label among all of them, (B, L), for images in one batch."""
        batch = torch.stack([self.loaded.prepare(image) for image in images]).to(self.loaded.model.device)
        samples = {self.loaded.sees: batch, "text_input": [self.loaded.txt("")] * len(images)}
        with self.loaded.autocast():
            logits = self.model.predict(samples)["predictions"]
        check_finite(logits, len(images), self.loaded.sees)
        return logits.float()[:, self._places].softmax(dim=1)
