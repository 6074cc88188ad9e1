"""VQAv2: open questions about everyday photographs, ten people's answers to each.

**Description.** Questions by crowd workers about the photographs of MS-COCO, balanced so that every question has two
similar pictures with different answers. Ten answers each.

**Source.** https://visualqa.org

**Splits.** Those of the official data set, by COCO's pictures of 2014 and 2015:

| split | questions | pictures |
| --- | --- | --- |
| train | 443,757 | 82,783 |
| val | 214,354 | 40,504 |
| test | 447,793 | 81,434; answers are not public |

The original library trains on train and val, as the papers do for their figures on the test server; here `with_val:
true` asks for that, because figures on val mean nothing after it.

**Task.** Visual question answering, by choosing from the 3,128 answers that are frequent in training, or freely.

**Metrics.** The official accuracy in percent: an answer is right as far as three of the other nine people gave it.
Test: answers go to the server (https://eval.ai), in the file that evaluation writes.

**Files.** Annotation files are downloaded on first use to `coco/annotations` under the cache root. Pictures are
expected in `coco/images/{train2014,val2014,test2015}`: `lavis download coco_vqa`, 26 GB.

**Licence.** Annotations: CC BY 4.0. The photographs belong to their Flickr authors and have their own licences;
whether commercial use is allowed differs from picture to picture.

**Known faults.** Questions can often be guessed without the picture; answers are short; many are yes or no.

**Responsible use.** Photographs show people who were not asked, mostly in North America and Europe; answers carry the
annotators' assumptions about gender, age and occupation.

**References.** Goyal et al., "Making the V in VQA Matter" (CVPR 2017). Lin et al., "Microsoft COCO" (ECCV 2014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.base import Plan
from lavis.datasets.coco import images
from lavis.datasets.sources import Source
from lavis.datasets.vqa import VQADataset, VQAOptions


@dataclass(frozen=True)
class VQAv2Options(VQAOptions):
    """See `VQAOptions`.

    Args:
        with_val: train on the validation questions, too.
    """

    with_val: bool = False


def _file(name: str) -> Source:
    return Source(f"coco/annotations/{name}", f"{GS}LAVIS/datasets/vqav2/{name}")


_VAL = (
    _file("vqa_val_eval.json"),
    _file("answer_list.json"),
    _file("v2_OpenEnded_mscoco_val2014_questions.json"),
    _file("v2_mscoco_val2014_annotations.json"),
)


@registry.register_dataset("coco_vqa")
class VQAv2(VQADataset):
    """Records: `image`, `question`, `question_id`, in training `answer` (a list of ten)."""

    name = "coco_vqa"
    Options = VQAv2Options
    media = "coco/images"
    downloads = images({"train2014": ("train",), "val2014": ("train", "val"), "test2015": ("test",)})
    sources: ClassVar[Mapping[str, Sequence[Source]]] = {
        "train": (_file("vqa_train.json"), _file("vqa_val.json")),
        "val": _VAL,
        "test": (_file("vqa_test.json"), _file("answer_list.json")),
    }
    typed_sources: ClassVar[Mapping[str, Mapping[str, Sequence[Source]]]] = {"eval": {"val": _VAL}}

    @classmethod
    def load(cls, split: str, plan: Plan) -> VQADataset:
        if split == "train" and not plan.options.with_val:
            plan = replace(plan, sources={**plan.sources, "train": plan.sources["train"][:1]})
        return super().load(split, plan)
