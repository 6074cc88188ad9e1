"""NLVR2: is a statement true of two photographs?

**Description.** Statements by crowd workers about pairs of photographs from the web, true of some pairs and false of
others, with counting, comparing and relations.

**Source.** https://lil.nlp.cornell.edu/nlvr

**Splits.** In the file of pictures, `val` is dev and `test` is test-P:

| split | statements |
| --- | --- |
| train | 86,373 |
| val | 6,982 |
| test | 6,967 |

**Task.** Visual reasoning: true or false.

**Metrics.** Accuracy in percent.

**Files.** Annotation files are downloaded on first use to `nlvr/annotations` under the cache root. Pictures are
expected in `nlvr/images/{train,dev,test1}`; they have to be asked for.

**Licence.** Annotations: CC BY 4.0. The pictures are from the web, under whatever rights they have, and are given for
research.

**Known faults.** In the original library the test split was dev under another name; here it is the published test-P
file of the same folder, which nobody has given a checksum for. Many pictures are gone from the web.

**Responsible use.** Pictures were collected by searching the web, without consent of the people in them.

**References.** Suhr et al., "A Corpus for Reasoning About Natural Language Grounded in Photographs" (ACL 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.nlvr import NLVRDataset
from lavis.datasets.sources import ByHand, Source


@registry.register_dataset("nlvr")
class NLVR2(NLVRDataset):
    """Records: `images` (two), `sentence`, `label` ("True" or "False")."""

    name = "nlvr"
    media = "nlvr/images"
    downloads = (
        ByHand(
            "https://lil.nlp.cornell.edu/nlvr",
            "ask for the pictures with the form of that page; put its folders train, dev and test1 there",
            "nlvr/images",
        ),
    )
    sources: ClassVar[Mapping[str, Source]] = {
        split: Source(f"nlvr/annotations/{name}.json", f"{GS}LAVIS/datasets/nlvr/nlvr_{name}.json")
        for split, name in (("train", "train"), ("val", "dev"), ("test", "test"))
    }
