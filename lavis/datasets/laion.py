"""LAION: pictures of the web with their alternative texts, filtered by CLIP.

**Description.** `laion400M`: the 115 million pairs of LAION-400M's English texts with which BLIP was pre-trained,
with a second, synthetic caption each (CapFilt). `laion2B_multi`: the multilingual part of LAION-5B. Both as shards,
see `lavis card shards`.

**Source.** https://laion.ai

**Splits.** train only.

**Task.** Pre-training.

**Metrics.** None of its own.

**Files.** `laion400M/*.tar` and `laion2B_multi/*.tar` under the cache root, or where `shards` (in the original's
configurations `build_info.storage`) says. BLIP's captions for them were published as tables; the pictures have to be
fetched from the web. LAION took the tables of addresses down in December 2023 and published a cleaned version,
Re-LAION-5B, in 2024.

**Licence.** The tables: CC BY 4.0. The pictures are the web's, under whatever rights they have.

**Known faults.** A good part of the addresses is dead; texts often do not describe what is seen; duplicates are many.

**Responsible use.** The first versions held links to images of child sexual abuse (Thiel, "Identifying and
Eliminating CSAM in Generative ML Training Data and Models", 2023): use Re-LAION-5B. Pictures were collected without
consent; pornography, violence and slurs are in them (Birhane et al., "Multimodal datasets", 2021).

**References.** Schuhmann et al., "LAION-400M" (2021), "LAION-5B" (NeurIPS 2022). Li et al., "BLIP" (ICML 2022).
"""

from __future__ import annotations

from lavis.common.registry import registry
from lavis.datasets.shards import ShardDataset
from lavis.datasets.sources import ByHand

_STEPS = (
    "fetch the pictures of Re-LAION-5B that you are allowed to use and pack them as shards of jpg and json"
)


@registry.register_dataset("laion400M")
class Laion400M(ShardDataset):
    """Records: `image`, `caption` (two: the web's and a synthetic one)."""

    name = "laion400M"
    default_shards = "laion400M/*.tar"
    downloads = (ByHand("https://laion.ai/blog/relaion-5b", _STEPS, "laion400M"),)


@registry.register_dataset("laion2B_multi")
class Laion2BMulti(ShardDataset):
    """Records: `image`, `caption`."""

    name = "laion2B_multi"
    default_shards = "laion2B_multi/*.tar"
    downloads = (ByHand("https://laion.ai/blog/relaion-5b", _STEPS, "laion2B_multi"),)
