"""MSR-VTT: ten thousand short web videos with twenty descriptions each, for captions, questions and retrieval.

**Description.** 10,000 clips of 10 to 30 seconds from YouTube, found by 257 popular queries of a video search
engine, with about 20 sentences each by 1,327 crowd workers. MSRVTT-QA: 243,680 questions that a program made from
these sentences, with one word as the answer. `msrvtt_caption`, `msrvtt_qa`, `msrvtt_retrieval`: the same clips.

**Source.** https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language

**Splits.** The official ones; for retrieval, test is a gallery of 1,000 clips with one sentence each.

| split | clips | questions |
| --- | --- | --- |
| train | 6,513 | 158,581 |
| val | 497 | 12,278 |
| test | 2,990 | 72,821 |

How many clips `msrvtt_retrieval` has in train and val is not stated.

**Task.** Video captioning; video question answering; video-text and text-video retrieval.

**Metrics.** BLEU-4, CIDEr, METEOR, ROUGE-L; accuracy in percent; recall at 1, 5, 10 in percent.

**Files.** Annotation files are downloaded on first use to `msrvtt/annotations` under the cache root. Clips are
expected in `msrvtt/videos`, all in one folder, as `video0.mp4` … `video9999.mp4`; they have to be fetched by hand.
Answers of `msrvtt_qa` are classes, numbered by `qa_ans2label.json`; with the option `words` they are words.

**Licence.** Not stated in the files. The clips belong to their authors on YouTube; whether they may be used
commercially is not stated.

**Known faults.** Many of the videos are no longer on YouTube, and the original's links to the clips have expired.
Sentences have spelling mistakes, and some clips share their sentences. Questions were made by rules and are not always
English. Rare answers have no class: their questions are left out of training, and count as wrong in evaluation.

**Responsible use.** The clips show people who were not asked, and sentences guess their gender and what they do.

**References.** Xu et al., "MSR-VTT: A Large Video Description Dataset for Bridging Video and Language" (CVPR 2016).
Questions: Xu et al., "Video Question Answering via Gradually Refined Attention over Appearance and Motion" (ACM
Multimedia 2017). Gallery of 1,000: Yu et al., "A Joint Sequence Fusion Model for Video Question Answering and
Retrieval" (ECCV 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.sources import ByHand, Source
from lavis.datasets.video import (
    InstructVideoQADataset,
    VideoCaptionDataset,
    VideoQADataset,
    VideoRetrievalDataset,
)

CLIPS = ByHand(
    "https://www.microsoft.com/en-us/research/publication/"
    "msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language",
    "there is no lasting public archive; ask where that page says, and put all clips, video0.mp4 to video9999.mp4, "
    "into one folder",
    "msrvtt/videos",
)


def _file(name: str, published: str | None = None) -> Source:
    return Source(f"msrvtt/annotations/{name}.json", f"{GS}LAVIS/datasets/msrvtt/{published or name}.json")


_CLASSES = _file("qa_ans2label", "train_ans2label")


@registry.register_dataset("msrvtt_caption")
@registry.register_dataset("msrvtt_cap")  # in the original's configuration file
class MSRVTTCaption(VideoCaptionDataset):
    """Records: `video` ("video7010.mp4"), `caption`, `image_id`."""

    name = "msrvtt_caption"
    media = "msrvtt/videos"
    downloads = (CLIPS,)
    sources: ClassVar[Mapping[str, Source]] = {s: _file(f"cap_{s}") for s in ("train", "val", "test")}


@registry.register_dataset("msrvtt_qa")
class MSRVTTQA(VideoQADataset):
    """Records: `video`, `question`, `answer`, `question_id`."""

    name = "msrvtt_qa"
    media = "msrvtt/videos"
    downloads = (CLIPS,)
    sources: ClassVar[Mapping[str, tuple[Source, ...]]] = {
        s: (_file(f"qa_{s}"), _CLASSES) for s in ("train", "val", "test")
    }


@registry.register_dataset("msrvtt_qa_instruct")
class MSRVTTQAInstruct(InstructVideoQADataset, MSRVTTQA):
    """The same with words as answers, for models that write them."""

    name = "msrvtt_qa_instruct"


@registry.register_dataset("msrvtt_retrieval")
class MSRVTTRetrieval(VideoRetrievalDataset):
    """Records: `video`, `caption`."""

    name = "msrvtt_retrieval"
    media = "msrvtt/videos"
    downloads = (CLIPS,)
    sources: ClassVar[Mapping[str, Source]] = {s: _file(f"retrieval_{s}") for s in ("train", "val", "test")}
