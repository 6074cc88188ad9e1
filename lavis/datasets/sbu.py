"""SBU Captions: photographs of Flickr with their owners' captions.

**Description.** One million photographs whose captions seem to describe what is seen, chosen by rules.

**Source.** https://www.cs.rice.edu/~vo9/sbucaptions

**Splits.** train only: 1,000,000 pictures when they were published; fewer can still be fetched.

**Task.** Pre-training.

**Metrics.** None of its own.

**Files.** The annotation file (`image`, `caption`, `url`) is downloaded on first use to `sbu_captions/annotations`
under the cache root. Pictures are expected in `sbu_captions/images`: `lavis download sbu_caption` fetches them one by
one; with `--shards` into shards there, which are read in place of files, without those that are gone.

**Licence.** Not stated. The photographs belong to their Flickr authors and have their own licences.

**Known faults.** A part of the photographs has been taken down; captions tell what the owner knew, not only what is
seen.

**Responsible use.** Photographs show people who were not asked.

**References.** Ordonez et al., "Im2Text: Describing Images Using 1 Million Captioned Photographs" (NIPS 2011).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.sources import Links, Source


@registry.register_dataset("sbu_caption")
class SBUCaption(CaptionDataset):
    """Records: `image`, `caption`, `url`."""

    name = "sbu_caption"
    media = "sbu_captions/images"
    downloads = (Links("sbu_captions/images"),)
    sources: ClassVar[Mapping[str, Source]] = {
        "train": Source("sbu_captions/annotations/sbu.json", f"{GS}LAVIS/datasets/sbu/sbu.json")
    }
