"""COCO Captions: everyday photographs with five captions each, in Karpathy's split.

**Description.** 123,287 photographs of MS-COCO 2014, each with five (a few with more) captions written
by people. Karpathy's split, the usual one for captioning, moves 30,504 pictures of the official
validation set to training: 113,287 training, 5,000 validation, 5,000 test pictures. The training file
has one record per caption (566,747), the others one per picture.

**Task.** Captioning: describe the picture in a sentence.

**Metrics.** BLEU-4, CIDEr, METEOR, ROUGE-L, SPICE against all references of a picture.

**Files.** The annotation files are downloaded on first use to `coco/annotations` under the cache root.
The pictures (about 19 GB) are expected in `coco/images/{train2014,val2014}`; download train2014.zip and
val2014.zip from https://cocodataset.org/#download, or name your folder with `vis_path`.

**License.** Annotations: CC BY 4.0; the photographs belong to their Flickr authors and have their own.

**References.** Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server" (2015).
Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions" (2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lavis.common.registry import registry
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.sources import Source

_PUBLISHED = "https://storage.googleapis.com/sfr-vision-language-research/datasets"


def _karpathy(split: str, md5: str) -> Source:
    name = f"coco_karpathy_{split}.json"
    return Source(f"coco/annotations/{name}", f"{_PUBLISHED}/{name}", md5=md5)


@registry.register_dataset("coco_caption")
class CocoCaption(CaptionDataset):
    """Records: `image` ("val2014/COCO_val2014_000000522418.jpg"), `caption`, and `image_id` in training."""

    name = "coco_caption"
    media = "coco/images"
    sources: ClassVar[Mapping[str, Source]] = {
        "train": _karpathy("train", "aa31ac474cf6250ebb81d18348a07ed8"),
        "val": _karpathy("val", "b273847456ef5580e33713b1f7de52a0"),
        "test": _karpathy("test", "3ff34b0ef2db02d01c37399f6a2a6cd1"),
    }

    def evaluation_id(self, position: int) -> int:
        """COCO's number of the picture, the digits at the end of its file name."""
        stem = Path(self.records[position]["image"]).stem
        digits = stem.rpartition("_")[2]
        if not digits.isdigit():
            raise ValueError(
                f"{self.name}/{self.split}, record {position}: the picture {stem!r} does not end in COCO's "
                "number, as in COCO_val2014_000000522418"
            )
        return int(digits)
