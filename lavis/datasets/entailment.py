"""The family of visual entailment (SNLI-VE): does the picture prove the sentence, refute it, or neither?

Records: `image` (path below the media folder), `sentence`, `label` (a name of `LABELS`). Samples: `image`,
`text_input`, `label` (its number), `image_id`, `instance_id`.
"""

from __future__ import annotations

import numpy as np

from lavis.datasets.base import Dataset
from lavis.datasets.collate import Sample
from lavis.datasets.nlvr import label_of

# The order of the classes in published checkpoints.
LABELS = {"contradiction": 0, "neutral": 1, "entailment": 2}


class EntailmentDataset(Dataset):
    """One split; see the module's docstring for records and samples."""

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        record = self.records[index]
        return {
            "image": self.image(record, rng),
            "text_input": self.text(str(record["sentence"]), rng),
            "label": label_of(record, LABELS, index),
            "image_id": record.get("image_id", record["image"]),
            "instance_id": str(index),
        }
