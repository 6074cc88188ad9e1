"""COCO Captions: everyday photographs with five captions each, in Karpathy's split.

**Description.** 123,287 photographs of MS-COCO 2014, each with five (a few with more) captions written by people. The
training file has one record per caption (566,747), the others one per picture. `coco_caption` is for captioning,
`coco_retrieval` for retrieval: the same files.

**Source.** https://cocodataset.org; split: https://cs.stanford.edu/people/karpathy/deepimagesent

**Splits.** Karpathy's, the usual one: 30,504 pictures of the official validation set went to training.

| split | pictures |
| --- | --- |
| train | 113,287 |
| val | 5,000 |
| test | 5,000 |

**Task.** Captioning; image-text and text-image retrieval.

**Metrics.** BLEU-4, CIDEr, METEOR, ROUGE-L, SPICE against all references of a picture; recall at 1, 5, 10 in percent.

**Files.** Annotation files are downloaded on first use to `coco/annotations` under the cache root. Pictures are
expected in `coco/images/{train2014,val2014}`: `lavis download coco_caption`, 19 GB, or name your folder with
`vis_path`.

**Licence.** Annotations: CC BY 4.0. The photographs belong to their Flickr authors and have their own licences;
whether commercial use is allowed differs from picture to picture.

**Known faults.** Captions have spelling mistakes; a few pictures have six or seven; some captions of one picture
contradict each other. In retrieval many captions fit several pictures, of which only one counts.

**Responsible use.** Photographs show people who were not asked, mostly in North America and Europe; captions guess
gender, age and occupation.

**References.** Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server" (2015). Lin et al.,
"Microsoft COCO" (ECCV 2014). Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image
Descriptions" (CVPR 2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.sources import Archive, Source


def images(needed_by: Mapping[str, tuple[str, ...]]) -> tuple[Archive, ...]:
    """COCO's archives of pictures, {folder: the splits that need it}; each unpacks into a folder of its name."""
    address = "http://images.cocodataset.org/zips"
    return tuple(Archive(f"{address}/{name}.zip", "coco/images", by) for name, by in needed_by.items())


def _karpathy(split: str, md5: str) -> Source:
    name = f"coco_karpathy_{split}.json"
    return Source(f"coco/annotations/{name}", f"{GS}datasets/{name}", md5=md5)


# Karpathy's training split has pictures of both folders.
_PICTURES = images({"train2014": ("train",), "val2014": ("train", "val", "test")})
_SOURCES = {
    "train": _karpathy("train", "aa31ac474cf6250ebb81d18348a07ed8"),
    "val": _karpathy("val", "b273847456ef5580e33713b1f7de52a0"),
    "test": _karpathy("test", "3ff34b0ef2db02d01c37399f6a2a6cd1"),
}


@registry.register_dataset("coco_caption")
class CocoCaption(CaptionDataset):
    """Records: `image` ("val2014/COCO_val2014_000000522418.jpg"), `caption`, and `image_id` in training."""

    name = "coco_caption"
    media = "coco/images"
    downloads = _PICTURES
    sources: ClassVar[Mapping[str, Source]] = _SOURCES

    def evaluation_id(self, position: int) -> int:
        """COCO's number of the picture, the digits at the end of its file name."""
        stem = Path(self.records[position]["image"]).stem
        digits = stem.rpartition("_")[2]
        if not (digits.isascii() and digits.isdecimal()):
            raise ValueError(
                f"{self.name}/{self.split}, record {position}: the picture {stem!r} does not end in COCO's "
                "number, as in COCO_val2014_000000522418"
            )
        return int(digits)  # leading zeros only fill the name up

    def references(self) -> dict[Any, list[str]]:
        """As `CaptionDataset.references`.

        Raises:
            ValueError: two pictures have one number, as those of two folders can have in files that aren't COCO's.
        """
        found: dict[int, str] = {}
        for position, record in enumerate(self.records):
            name = self.image_id(position)
            if found.setdefault(name, record["image"]) != record["image"]:
                raise ValueError(
                    f"{self.name}/{self.split}, record {position}: the picture {record['image']!r} has the number of "
                    f"{found[name]!r}, {name}; for pictures of your own use the data set `own`"
                )
        return super().references()


@registry.register_dataset("coco_retrieval")
class CocoRetrieval(RetrievalDataset):
    """Records as of `coco_caption`."""

    name = "coco_retrieval"
    media = "coco/images"
    downloads = _PICTURES
    sources: ClassVar[Mapping[str, Source]] = _SOURCES
