"""The family of visual entailment (SNLI-VE): does the picture prove the sentence, refute it, or neither?

Records: `image` (path below the media folder), `sentence`, `label` (a name of `LABELS`). Samples: `image`,
`text_input`, `label` (its number), `image_id`, `instance_id`. With `sentences_per_image` a training item is a
picture; `text_input` and `label` are lists.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lavis.datasets.base import Record
from lavis.datasets.collate import Sample
from lavis.datasets.nlvr import SentenceDataset

# The order of the classes in published checkpoints.
LABELS = {"contradiction": 0, "neutral": 1, "entailment": 2}


class EntailmentDataset(SentenceDataset):
    """One split; see the module's docstring for records and samples."""

    LABELS = LABELS

    def show(self, record: Record, rng: np.random.Generator) -> tuple[Sample, Callable[[str], str]]:
        """The picture and its `image_id`."""
        return {"image": self.image(record, rng), "image_id": record.get("image_id", record["image"])}, str
