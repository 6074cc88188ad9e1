"""GQA: compositional questions about everyday scenes, made from scene graphs.

**Description.** Questions that a program wrote from the scene graphs of Visual Genome's photographs, one answer each;
the balanced sets used here are drawn so that answers cannot be guessed from the question's form.

**Source.** https://cs.stanford.edu/people/dorarad/gqa

**Splits.** Balanced questions; the type decides which of them `val` is:

| split | questions |
| --- | --- |
| train | 943,000 |
| val, type balanced_val | 132,062 |
| val, types default and balanced_testdev | 12,578 |
| test | 95,336; answers are not public |

**Task.** Visual question answering.

**Metrics.** Percent of answers that are equal after VQA's normalisation. Test answers go to the leaderboard, in the
file that evaluation writes.

**Files.** Annotation files are downloaded on first use to `gqa/annotations` under the cache root. Pictures are
expected in `gqa/images`: `lavis download gqa`, 20 GB.

**Licence.** CC BY 4.0 (annotations); the photographs are Visual Genome's, from Flickr, with licences of their own.

**Known faults.** In the original library the type default had A-OKVQA's files for val and test; here it is
balanced_testdev.

**Responsible use.** As for `coco_vqa`; scene graphs name what annotators noticed.

**References.** Hudson and Manning, "GQA: A New Dataset for Real-World Visual Reasoning and Compositional Question
Answering" (CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.collate import Sample
from lavis.datasets.sources import Archive, Source
from lavis.datasets.vqa import VQADataset


def _balanced(val: str) -> dict[str, Source]:
    names = {"train": "train", "val": val, "test": "test"}
    return {
        split: Source(
            f"gqa/annotations/{name}_balanced_questions.json",
            f"{GS}LAVIS/datasets/gqa/{name}_balanced_questions.json",
        )
        for split, name in names.items()
    }


@registry.register_dataset("gqa")
class GQA(VQADataset):
    """Records: `image`, `question`, `question_id`, `answer`. Evaluation samples hold `answer`, too."""

    name = "gqa"
    media = "gqa/images"
    downloads = (Archive("https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", "gqa"),)
    sources: ClassVar[Mapping[str, Source]] = _balanced("testdev")
    typed_sources: ClassVar[Mapping[str, Mapping[str, Source]]] = {
        "balanced_val": _balanced("val"),
        "balanced_testdev": _balanced("testdev"),
    }

    def _single(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super()._single(index, rng)
        record: Mapping[str, Any] = self.records[index]
        return sample if self.training else sample | {"answer": record.get("answer")}
