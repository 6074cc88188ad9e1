"""MSVD: short clips of one activity each, with about forty descriptions, for captions and questions.

**Description.** 1,970 clips from YouTube, chosen by crowd workers to show a single, unambiguous event, and described
in a sentence by others, about 40 times in English. MSVD-QA: 50,505 questions that a program made from these
sentences, with one word as the answer. `msvd_caption`, `msvd_qa`: the same clips.

**Source.** https://www.cs.utexas.edu/users/ml/clamp/videoDescription

**Splits.** The usual ones:

| split | clips | questions |
| --- | --- | --- |
| train | 1,200 | 30,933 |
| val | 100 | 6,415 |
| test | 670 | 13,157 |

**Task.** Video captioning; video question answering.

**Metrics.** BLEU-4, CIDEr, METEOR, ROUGE-L; accuracy in percent.

**Files.** Annotation files are downloaded on first use to `msvd/annotations` under the cache root. Clips (.avi) are
expected in `msvd/videos`, or in `msvd/YouTubeClips`, where the published archive has them: `lavis download
msvd_caption`. Answers of `msvd_qa` are classes, numbered by `qa_ans2label.json`; with the option `words` they are
words.

**Licence.** Not stated. The clips belong to their authors on YouTube; whether they may be used commercially is not
stated.

**Known faults.** Sentences have spelling mistakes. Questions were made by rules and are not always English. Answers
that training lacks have no class: their questions count as wrong in evaluation.

**Responsible use.** The clips show people who were not asked, and sentences guess their gender and what they do.

**References.** Chen and Dolan, "Collecting Highly Parallel Data for Paraphrase Evaluation" (ACL 2011). Questions: Xu et
al., "Video Question Answering via Gradually Refined Attention over Appearance and Motion" (ACM Multimedia 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.base import Dataset, Plan
from lavis.datasets.sources import Archive, Source
from lavis.datasets.video import InstructVideoQADataset, VideoCaptionDataset, VideoDataset, VideoQADataset

UNPACKED = "YouTubeClips"  # the archive's own folder


def _file(name: str, published: str | None = None) -> Source:
    return Source(f"msvd/annotations/{name}.json", f"{GS}LAVIS/datasets/msvd/{published or name}.json")


_CLASSES = _file("qa_ans2label", "train_ans2label")


class _MSVD(VideoDataset):
    """Finds the clips in either folder."""

    media = "msvd/videos"
    downloads = (
        Archive(f"https://www.cs.utexas.edu/users/ml/clamp/videoDescription/{UNPACKED}.tar", "msvd"),
    )

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        root = plan.vis_root
        if root is not None and not root.is_dir() and (root.parent / UNPACKED).is_dir():
            plan = replace(plan, vis_root=root.parent / UNPACKED)
        return super().load(split, plan)


@registry.register_dataset("msvd_caption")
@registry.register_dataset("msvd_cap")  # in the original's configuration file
class MSVDCaption(_MSVD, VideoCaptionDataset):
    """Records: `video` ("-4wsuPCjDBc_5_15.avi"), `caption`, `image_id`."""

    name = "msvd_caption"
    sources: ClassVar[Mapping[str, Source]] = {s: _file(f"cap_{s}") for s in ("train", "val", "test")}


@registry.register_dataset("msvd_qa")
class MSVDQA(_MSVD, VideoQADataset):
    """Records: `video`, `question`, `answer`, `question_id`."""

    name = "msvd_qa"
    sources: ClassVar[Mapping[str, tuple[Source, ...]]] = {
        s: (_file(f"qa_{s}"), _CLASSES) for s in ("train", "val", "test")
    }


@registry.register_dataset("msvd_qa_instruct")
class MSVDQAInstruct(InstructVideoQADataset, MSVDQA):
    """The same with words as answers, for models that write them."""

    name = "msvd_qa_instruct"
