"""Visual Genome: photographs with descriptions of regions, and questions about them.

**Description.** 108,077 photographs from YFCC100M and MS-COCO. `vg_caption` has descriptions of regions as captions
of whole pictures, for pre-training; `vg_vqa` has questions with one answer each, which the papers add to VQAv2's in
training.

**Source.** https://homes.cs.washington.edu/~ranjay/visualgenome

**Splits.** train only.

**Task.** Pre-training; visual question answering.

**Metrics.** None of its own.

**Files.** Annotation files are downloaded on first use to `vg/annotations` under the cache root. Pictures are
expected in `vg/images/{VG_100K,VG_100K_2}`: `lavis download vg_caption`, 15 GB.

**Licence.** Annotations: CC BY 4.0. The photographs belong to their Flickr authors and have their own licences.

**Known faults.** About half of the pictures are COCO's, some of them in COCO's validation and test sets.

**Responsible use.** As for COCO: photographs show people who were not asked.

**References.** Krishna et al., "Visual Genome: Connecting Language and Vision Using Crowdsourced Dense Image
Annotations" (IJCV 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.sources import Archive, Source
from lavis.datasets.vqa import VQADataset

_PICTURES = tuple(
    Archive(f"https://cs.stanford.edu/people/rak248/VG_100K_2/{name}.zip", "vg/images")
    for name in ("images", "images2")
)


def _train(name: str) -> Mapping[str, Source]:
    return {"train": Source(f"vg/annotations/{name}", f"{GS}LAVIS/datasets/visual_genome/{name}")}


@registry.register_dataset("vg_caption")
class VisualGenomeCaption(CaptionDataset):
    """Records: `image`, `caption`."""

    name = "vg_caption"
    media = "vg/images"
    downloads = _PICTURES
    sources: ClassVar[Mapping[str, Source]] = _train("vg_caption.json")


@registry.register_dataset("vg_vqa")
class VisualGenomeVQA(VQADataset):
    """Records: `image`, `question`, `answer`."""

    name = "vg_vqa"
    media = "vg/images"
    downloads = _PICTURES
    sources: ClassVar[Mapping[str, Source]] = _train("vg_qa.json")
