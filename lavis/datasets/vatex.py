"""VATEX: ten-second clips of human activities with ten English descriptions each.

**Description.** Clips of the 600 activities of Kinetics-600, each described ten times in English and ten times in
Chinese by different crowd workers; the English sentences are used here.

**Source.** https://eric-xw.github.io/vatex-website

**Splits.**

| split | clips |
| --- | --- |
| train | 25,991 |
| val | 3,000 |
| test | 6,278, the private test split |

**Task.** Video captioning.

**Metrics.** BLEU-4, CIDEr, METEOR, ROUGE-L.

**Files.** Annotation files are downloaded on first use to `vatex/annotations` under the cache root; `test` is
`cap_private_test.json` there. Clips are expected in `vatex/videos`, named as in the records, with or without the
suffix; they have to be fetched by hand.

**Licence.** Annotations: CC BY 4.0, says the source. The clips belong to their authors on YouTube; whether they may be
used commercially is not stated.

**Known faults.** Part of the clips can no longer be had from YouTube, so figures of different years are of different
clips. References of the private test split are with its evaluation server. The original's configuration is filed
under `msvd_cap`, by mistake, and its clips under a path of its authors'.

**Responsible use.** The clips show people who were not asked, and sentences guess their gender and what they do.

**References.** Wang et al., "VaTeX: A Large-Scale, High-Quality Multilingual Dataset for Video-and-Language Research"
(ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.sources import ByHand, Source
from lavis.datasets.video import VideoCaptionDataset


def _file(name: str, published: str) -> Source:
    return Source(f"vatex/annotations/{name}.json", f"{GS}LAVIS/datasets/vatex/{published}.json")


@registry.register_dataset("vatex_caption")
class VATEXCaption(VideoCaptionDataset):
    """Records: `video`, `caption`; a clip's sentences may be a list, or records of their own."""

    name = "vatex_caption"
    media = "vatex/videos"
    downloads = (
        ByHand(
            "https://eric-xw.github.io/vatex-website/download.html",
            "get the clips by their YouTube numbers, cut as that page says, and put them into one folder",
            "vatex/videos",
        ),
    )
    sources: ClassVar[Mapping[str, Source]] = {
        "train": _file("cap_train", "cap_train"),
        "val": _file("cap_val", "cap_val"),
        "test": _file("cap_test", "cap_private_test"),
    }

    def evaluation_id(self, position: int) -> str:
        """The clip's name, as in the original."""
        return str(self.records[position]["video"])
