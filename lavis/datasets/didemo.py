"""DiDeMo: personal videos from Flickr with descriptions of their moments, for retrieval by paragraph.

**Description.** Unedited personal videos, cut to 30 seconds at most, in which crowd workers described single moments.
For retrieval, a video's descriptions are one paragraph, as usual (Liu et al. 2019).

**Source.** https://github.com/LisaAnne/LocalizingMoments

**Splits.** The official ones:

| split | videos |
| --- | --- |
| train | 8,395 |
| val | 1,065 |
| test | 1,004 |

How many of them the files used here hold is not stated.

**Task.** Video-text and text-video retrieval.

**Metrics.** Recall at 1, 5, 10 in percent.

**Files.** Annotation files are downloaded on first use to `didemo/annotations` under the cache root. Videos are
expected in `didemo/videos`: `lavis download didemo_retrieval`.

**Licence.** Annotations: not stated in the files. The videos are from YFCC100M, under their authors' Creative Commons
licences, of which some forbid commercial use.

**Known faults.** A paragraph joins descriptions of single moments, whose times are lost; sentences like "the camera
moves" fit many videos.

**Responsible use.** Private people and children are seen in private moments; their authors may have withdrawn videos
since.

**References.** Hendricks et al., "Localizing Moments in Video with Natural Language" (ICCV 2017). Paragraphs: Liu et
al., "Use What You Have: Video Retrieval Using Representations From Collaborative Experts" (BMVC 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.sources import Archive, Source
from lavis.datasets.video import VideoRetrievalDataset


def _file(split: str) -> Source:
    name = f"retrieval_{split}.json"
    return Source(f"didemo/annotations/{name}", f"{GS}LAVIS/datasets/didemo/{name}")


@registry.register_dataset("didemo_retrieval")
class DiDeMoRetrieval(VideoRetrievalDataset):
    """Records: `video`, `caption`."""

    name = "didemo_retrieval"
    media = "didemo/videos"
    downloads = (Archive(f"{GS}LAVIS/datasets/didemo/didemo_videos.tar.gz", "didemo"),)  # its folder: videos
    sources: ClassVar[Mapping[str, Source]] = {s: _file(s) for s in ("train", "val", "test")}
