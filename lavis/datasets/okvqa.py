"""OK-VQA: questions about photographs that need knowledge from outside the picture.

**Description.** Questions by crowd workers about photographs of MS-COCO, chosen so that a picture alone does not
answer them (brands, history, cooking, sports, …). Five people's answers each, counted twice so that the official
accuracy applies.

**Source.** https://okvqa.allenai.org

**Splits.**

| split | questions |
| --- | --- |
| train | 9,009 |
| test | 5,046 |

**Task.** Visual question answering with outside knowledge.

**Metrics.** The official VQA accuracy in percent.

**Files.** Annotation files are downloaded on first use to `okvqa/annotations` under the cache root. Pictures are
COCO's of 2014, expected in `coco/images/{train2014,val2014}`: `lavis download ok_vqa`, 19 GB.

**Licence.** Annotations: not stated in the files. The photographs belong to their Flickr authors and have their own
licences.

**Known faults.** There is no validation split: choosing a checkpoint by the test split flatters it. Answers of the
annotators were stemmed in some releases (v1.1 corrects them); which release these files hold is not stated.

**Responsible use.** What counts as common knowledge is that of the annotators; see also `coco_vqa`.

**References.** Marino et al., "OK-VQA: A Visual Question Answering Benchmark Requiring External Knowledge" (CVPR
2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.coco import images
from lavis.datasets.sources import Source
from lavis.datasets.vqa import VQADataset


def _file(name: str, storage: str | None = None) -> Source:
    return Source(f"okvqa/annotations/{storage or name}", f"{GS}LAVIS/datasets/okvqa/{name}")


@registry.register_dataset("ok_vqa")
class OKVQA(VQADataset):
    """Records: `image`, `question`, `question_id`, in training `answer` (a list of ten)."""

    name = "ok_vqa"
    media = "coco/images"
    downloads = images({"train2014": ("train",), "val2014": ("test",)})
    sources: ClassVar[Mapping[str, Source | Sequence[Source]]] = {
        "train": _file("okvqa_train.json"),
        "test": (
            _file("okvqa_val_eval.json", "vqa_val_eval.json"),
            _file("okvqa_answer_list_train.json", "answer_list.json"),
            _file("OpenEnded_mscoco_val2014_questions.json"),
            _file("mscoco_val2014_annotations.json"),
        ),
    }
