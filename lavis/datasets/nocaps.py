"""nocaps: captioning of photographs that show objects unknown to COCO's captions.

**Description.** Photographs of Open Images, each with ten captions, chosen so that many show classes of objects that
COCO Captions never names. There is nothing to train on: models are trained elsewhere.

**Source.** https://nocaps.org

**Splits.** Captions are public for val only, and not in the annotation files used here; both are scored by the
server.

| split | pictures |
| --- | --- |
| val | 4,500 |
| test | 10,600 |

**Task.** Captioning.

**Metrics.** CIDEr and SPICE, over all pictures and by domain (in, near, out of COCO's): the evaluation server's, from
the file that evaluation writes. With references given here (`captions: FILE`), BLEU-4, CIDEr and the others, too; with
`domain: out` of the 1,413 images of val that are out of COCO's domain.

**Files.** Annotation files are downloaded on first use to `nocaps/annotations` under the cache root. Pictures are
expected in `nocaps/images/{val,test}`.

**Licence.** Annotations: not stated in the files. Pictures: listed as CC BY 2.0 by Open Images, which does not vouch
for it.

**Known faults.** The domains (in, near, out) are not in the annotation files used here; the server knows them, and the
original's configurations list the images that are out.

**Responsible use.** As for other photographs of people from Flickr: nobody in them was asked.

**References.** Agrawal et al., "nocaps: novel object captioning at scale" (ICCV 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.base import Dataset, Plan
from lavis.datasets.captioning import CaptionDataset, CaptionOptions, read_references
from lavis.datasets.sources import ByHand, Source
from lavis.datasets.tables import PackedRecords, read_json

OUT_OF_DOMAIN = Path(__file__).parent / "nocaps_out_domain.json"  # numbers of images


@dataclass(frozen=True)
class NoCapsOptions(CaptionOptions):
    """See `CaptionOptions`.

    Args:
        captions: a file with references in COCO's layout (nocaps_val_4500_captions.json), for scores of val.
        domain: "out": only the images of val that show classes of objects of which COCO's captions name none, which
            the original's configurations list; null: all.
    """

    captions: str | None = None
    domain: Literal["out"] | None = None


@registry.register_dataset("nocaps")
class NoCaps(CaptionDataset):
    """Records: `image` ("val/0013ea2087020901.jpg"), `img_id`."""

    name = "nocaps"
    Options = NoCapsOptions
    media = "nocaps/images"
    train_splits = ()
    sources: ClassVar[Mapping[str, Source]] = {
        split: Source(f"nocaps/annotations/nocaps_{split}.json", f"{GS}datasets/nocaps_{split}.json")
        for split in ("val", "test")
    }
    downloads = (
        ByHand(
            "https://nocaps.org/download",
            "take the image information of val and test; fetch each coco_url into val/ or test/ under its file_name",
            "nocaps/images",
        ),
    )

    @classmethod
    def load(cls, split: str, plan: Plan) -> Dataset:
        built = super().load(split, plan)
        assert isinstance(built, NoCaps)
        if plan.options.domain is not None and split == "val":
            wanted = set(read_json(OUT_OF_DOMAIN))
            built.records = PackedRecords([r for r in built.records if int(r["img_id"]) in wanted])
            built._index_records()
        return built

    def evaluation_id(self, position: int) -> Any:
        """The server's number of the picture."""
        return self.records[position]["img_id"]

    def references(self) -> dict[Any, list[str]]:
        """The captions of `options.captions` by the server's number; empty without such a file."""
        if self.options.captions is None or self.split != "val":
            return {}
        return read_references(Path(self.options.captions).expanduser())
