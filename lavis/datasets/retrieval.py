"""The retrieval family: pictures and the captions that belong to them.

Records: `image` (path below the media folder), `caption` (a string or a list of strings), optionally
`image_id`.

Training samples are those of captioning: `image`, `text_input`, `image_id` (the picture's 0-based number,
so captions of one picture can be told to be each other's positives) and `instance_id`.

An evaluation split is a gallery. Its samples are pictures: `image`, `index` (place in the gallery),
`image_id` and `instance_id`; its texts and what belongs to what are attributes of the data set.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lavis.datasets.base import Dataset, draw
from lavis.datasets.captioning import CaptionDataset, as_list
from lavis.datasets.collate import Sample


class RetrievalDataset(CaptionDataset):
    """One split of a retrieval data set; see the module's docstring for records and samples."""

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        positions = [index] if self._items is None else self._items[index]
        image = Dataset.image(self, self.records[positions[0]], rng)
        ids = {"image_id": self.image_id(positions[0]), "instance_id": str(index)}
        if not self.training:
            return {"image": image, "index": index, **ids}
        captions = [c for p in positions for c in as_list(self.records[p]["caption"])]
        wanted = self.options.captions_per_image
        texts = [Dataset.text(self, captions[i], rng) for i in draw(rng, len(captions), wanted)]
        return {"image": image, "text_input": texts if wanted > 1 else texts[0], **ids}

    # ------------------------------------------------------------------ the gallery
    @functools.cached_property
    def _captions(self) -> list[list[str]]:
        return [as_list(record["caption"]) for record in self.records]

    # `image` and `text` are the paper's names; they hide the methods that the family calls by their class.
    @property
    def image(self) -> list[str]:  # type: ignore[override]
        """The gallery's pictures (paths as in the records), by index."""
        return [str(record["image"]) for record in self.records]

    @property
    def text(self) -> list[Any]:  # type: ignore[override]
        """All captions of the gallery after the text processor, picture by picture."""
        rng = np.random.default_rng(0)
        return [Dataset.text(self, c, rng) for captions in self._captions for c in captions]

    @property
    def img2txt(self) -> dict[int, list[int]]:
        """The indices of each picture's captions in `text`, by the picture's index."""
        out: dict[int, list[int]] = {}
        count = 0
        for picture, captions in enumerate(self._captions):
            out[picture] = list(range(count, count + len(captions)))
            count += len(captions)
        return out

    @property
    def txt2img(self) -> dict[int, int]:
        """The index of the picture that each caption of `text` belongs to."""
        return {text: picture for picture, texts in self.img2txt.items() for text in texts}
