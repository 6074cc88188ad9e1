"""Classification by a trained head: which of its own classes a picture is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lavis.inference.loading import Loaded
from lavis.models.classification import Classifier, some_names


def has_classes(loaded: Loaded) -> bool:
    """Whether a model has a head for classes of single pictures or clips."""
    return isinstance(loaded.model, Classifier) and loaded.model.registered_name.rpartition("_")[2] != "nlvr"


class TrainedClasses:
    """A classifier's head, to classify many pictures (or clips) with.

    Args:
        loaded: a model whose checkpoint names its classes.
        labels: those to choose from; None: all of them.

    Attributes:
        labels: L names, in the order of the probabilities.

    Raises:
        ValueError: the model does not name its classes, or doesn't know a label.
    """

    def __init__(self, loaded: Loaded, labels: Sequence[str] | None = None) -> None:
        assert isinstance(loaded.model, Classifier)
        self.loaded, self.model, known = loaded, loaded.model, loaded.model.classnames
        if known is None:
            raise ValueError(
                f"{loaded.spec} tells {self.model.config.num_classes} classes apart, but its weights don't name them; "
                "`lavis evaluate` scores them in the order of a table's classes, and training on a table names them"
            )
        unknown = [name for name in labels or () if name not in known]
        if unknown:
            raise ValueError(
                f"{loaded.spec} was not trained to tell {some_names(unknown)}; it knows {some_names(known)}. For "
                "labels that a model was never trained on choose one such as clip/ViT-B-32"
            )
        self.labels = list(dict.fromkeys(labels or known))
        self._places = [known.index(name) for name in self.labels]

    def __call__(self, pictures: Sequence[Any]) -> torch.Tensor:
        """Probability of each label among all of them, (B, L), for pictures in one batch."""
        batch = torch.stack([self.loaded.prepare(p) for p in pictures]).to(self.model.device)
        samples = {self.loaded.sees: batch, "text_input": [self.loaded.txt("")] * len(pictures)}
        with self.loaded.autocast():
            logits = self.model.predict(samples)["predictions"]
        assert logits is not None
        return logits.float()[:, self._places].softmax(dim=1)
