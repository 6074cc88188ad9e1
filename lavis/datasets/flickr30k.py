"""Flickr30k: photographs of people and animals doing things, with five captions each.

**Description.** Photographs from Flickr with five captions by crowd workers. `flickr30k` is for retrieval,
`flickr30k_caption` for captioning: the same files.

**Source.** https://shannon.cs.illinois.edu/DenotationGraph; split:
https://cs.stanford.edu/people/karpathy/deepimagesent

**Splits.** Karpathy's:

| split | pictures |
| --- | --- |
| train | 29,000 |
| val | 1,014 |
| test | 1,000 |

**Task.** Image-text and text-image retrieval; captioning.

**Metrics.** Recall at 1, 5, 10 in percent; for captions BLEU-4, CIDEr, METEOR, ROUGE-L, SPICE.

**Files.** Annotation files are downloaded on first use to `flickr30k/annotations` under the cache root. Pictures are
expected in `flickr30k/images/flickr30k-images`; they have to be asked for.

**Licence.** Pictures: Flickr's terms of use; the data set is given for non-commercial research and education.

**Known faults.** Captions that fit several pictures of the gallery count for one only; no annotation checksums are
published.

**Responsible use.** Photographs show people who were not asked; captions guess gender, age, ethnicity and relations
(van Miltenburg, "Stereotyping and Bias in the Flickr30K Dataset", 2016).

**References.** Young et al., "From image descriptions to visual denotations" (TACL 2014). Karpathy and Fei-Fei, "Deep
Visual-Semantic Alignments for Generating Image Descriptions" (CVPR 2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.sources import ByHand, Source

PICTURES = ByHand(
    "https://shannon.cs.illinois.edu/DenotationGraph",
    "ask for the pictures with that page's form; unpack flickr30k-images.tar.gz there, a folder of that name",
    "flickr30k/images",
)
_SOURCES = {
    split: Source(f"flickr30k/annotations/{split}.json", f"{GS}datasets/flickr30k_{split}.json")
    for split in ("train", "val", "test")
}


@registry.register_dataset("flickr30k")
class Flickr30k(RetrievalDataset):
    """Records: `image` ("flickr30k-images/1000092795.jpg"), `caption`, and `image_id` in training."""

    name = "flickr30k"
    media = "flickr30k/images"
    downloads = (PICTURES,)
    sources: ClassVar[Mapping[str, Source]] = _SOURCES


@registry.register_dataset("flickr30k_caption")
class Flickr30kCaption(CaptionDataset):
    """Records as of `flickr30k`."""

    name = "flickr30k_caption"
    media = "flickr30k/images"
    downloads = (PICTURES,)
    sources: ClassVar[Mapping[str, Source]] = _SOURCES
