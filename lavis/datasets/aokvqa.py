"""A-OKVQA: questions that need commonsense and world knowledge, with choices and reasons.

**Description.** Questions about photographs of MS-COCO that a look-up does not answer. Each has ten free ("direct")
answers, four choices of which one is right, and three reasons in words.

**Source.** https://allenai.org/project/a-okvqa

**Splits.**

| split | questions |
| --- | --- |
| train | 17,056 |
| val | 1,145 |
| test | 6,702; answers are not public |

**Task.** Visual question answering: direct answers, or one of four choices.

**Metrics.** Direct answers: percent, an answer being right as far as three people gave it. Test answers go to the
leaderboard, in the file that evaluation writes.

**Files.** Annotation files are downloaded on first use to `aokvqa/annotations` under the cache root; the list of
answers to choose from is among them. Pictures are COCO's, expected in `coco/images/{train2014,val2014,test2015}`:
`lavis download aok_vqa`.

**Licence.** Annotations: Apache-2.0, as the repository that publishes them. The photographs belong to their Flickr
authors and have their own licences.

**Known faults.** Difficult questions (`difficult_direct_answer`) have no answer that most people give; the official
figures leave them out of the direct-answer score of the test split, here they count.

**Responsible use.** What counts as common sense is that of the annotators; see also `coco_vqa`.

**References.** Schwenk et al., "A-OKVQA: A Benchmark for Visual Question Answering using World Knowledge" (ECCV
2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.coco import images
from lavis.datasets.collate import Sample
from lavis.datasets.sources import Source
from lavis.datasets.vqa import VQADataset


def _file(name: str, storage: str | None = None) -> Source:
    return Source(f"aokvqa/annotations/{storage or name}", f"{GS}LAVIS/datasets/aokvqa/{name}")


_ANSWERS = _file("specialized_vocab_train.json", "specialized_vocab_train_lavis.json")


@registry.register_dataset("aok_vqa")
class AOKVQA(VQADataset):
    """Records: `image`, `question`, `question_id`, `choices`, and where they are public `direct_answers` and
    `correct_choice_idx`. Evaluation samples hold these three, too."""

    name = "aok_vqa"
    answer_keys = ("direct_answers",)
    media = "coco/images"
    downloads = images({"train2014": ("train",), "val2014": ("train", "val"), "test2015": ("test",)})
    sources: ClassVar[Mapping[str, Source | Sequence[Source]]] = {
        "train": _file("aokvqa_v1p0_train.json"),
        "val": (_file("aokvqa_v1p0_val.json"), _ANSWERS),
        "test": (_file("aokvqa_v1p0_test.json"), _ANSWERS),
    }

    def _single(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super()._single(index, rng)
        if self.training:
            return sample
        record: Mapping[str, Any] = self.records[index]
        return sample | {key: record.get(key) for key in ("choices", "correct_choice_idx", "direct_answers")}

    def ground_truth(self) -> dict[Any, dict[str, Any]]:
        """As the family's; `choice` is the right one of the choices."""
        truth = super().ground_truth()
        for record in self.records if truth else ():
            if record.get("correct_choice_idx") is not None:
                truth[record["question_id"]]["choice"] = record["choices"][record["correct_choice_idx"]]
        return truth
