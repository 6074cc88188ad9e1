"""Conceptual Captions (3M and 12M): pictures of the web with their alternative texts.

**Description.** `conceptual_caption_3m`: alternative texts of pictures, cleaned, with names replaced by what they
name. `conceptual_caption_12m`: four times as many, less cleaned, with names of persons replaced by <PERSON>.

**Source.** https://ai.google.com/research/ConceptualCaptions,
https://github.com/google-research-datasets/conceptual-12m

**Splits.** train only: 3,318,333 and 12,423,374 pictures when they were published; fewer can still be fetched.

**Task.** Pre-training.

**Metrics.** None of its own.

**Files.** `conceptual_caption/annotations/{cc3m,cc12m}.json` under the cache root: a JSON list, or a line each, of
objects with `image` (a path below the folder of pictures), `caption` and, to fetch the pictures, `url`. Google
publishes tables of captions and addresses; `lavis download` makes such a file and fetches the pictures to
`conceptual_caption/images` or `images_12m`; with `--shards` into shards there, which are read in place of files.

**Licence.** The tables "may be freely used for any purpose", with acknowledgement of Google. The pictures are the
web's, under whatever rights they have.

**Known faults.** A good part of the addresses is dead, so no two copies are alike; texts often do not describe what
is seen.

**Responsible use.** Collected from the web without consent; some pictures and texts are offensive, and stereotypes
are many (Birhane et al., "Multimodal datasets: misogyny, pornography, and malignant stereotypes", 2021).

**References.** Sharma et al., "Conceptual Captions" (ACL 2018). Changpinyo et al., "Conceptual 12M" (CVPR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lavis.common.registry import registry
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.sources import Links, Source


@registry.register_dataset("conceptual_caption_3m")
class ConceptualCaptions3M(CaptionDataset):
    """Records: `image`, `caption`, `url`."""

    name = "conceptual_caption_3m"
    media = "conceptual_caption/images"
    downloads = (
        Links(
            "conceptual_caption/images",
            table=Source("conceptual_caption/annotations/cc3m.tsv"),
            columns=("caption", "url"),
            how="accept the terms at https://ai.google.com/research/ConceptualCaptions/download and put the training "
            "table there",
        ),
    )
    sources: ClassVar[Mapping[str, Source]] = {"train": Source("conceptual_caption/annotations/cc3m.json")}


@registry.register_dataset("conceptual_caption_12m")
class ConceptualCaptions12M(CaptionDataset):
    """Records: `image`, `caption`, `url`."""

    name = "conceptual_caption_12m"
    media = "conceptual_caption/images_12m"
    downloads = (
        Links(
            "conceptual_caption/images_12m",
            table=Source(
                "conceptual_caption/annotations/cc12m.tsv",
                "https://storage.googleapis.com/conceptual_12m/cc12m.tsv",
            ),
            columns=("url", "caption"),
        ),
    )
    sources: ClassVar[Mapping[str, Source]] = {"train": Source("conceptual_caption/annotations/cc12m.json")}
