"""Shards: pictures with texts in tar archives, in WebDataset's layout.

**Description.** Tar archives in which the files of a sample share their name up to the first dot: `000001.jpg`
(or .png, .webp, …), and `000001.json` (an object with `caption`, or a list of captions) or `000001.txt`; where both are
there and the JSON holds no caption, the text. What macOS puts between them (`._000001.jpg`) is passed over. Such
archives are how collections of millions of images are stored; `lavis download --shards` writes them, too. `shards` is
for archives of your own.

**Source.** Your own.

**Splits.** train.

**Task.** Pre-training, captioning.

**Metrics.** Those of the task.

**Files.** `shards` names them: a path, with `{000..099}` for numbers, `{a,b}` for choices and `*` for any letters, or
a folder. Relative ones lie under the cache root. Each archive is read through once, to know where its samples begin;
what was found is kept under `indexes` in the cache root. After that any sample can be read on its own, so shuffling,
ranks, workers, mixing with other data sets and continuing a run are exact, as they are for files in folders. Archives
must not be compressed.

**Licence.** Your own.

**Known faults.** An archive that was cut off gives the samples before the cut, and a warning.

**Responsible use.** Your own responsibility.

**References.** Aizman et al., "High Performance I/O For Large Scale Deep Learning" (2019), for the layout:
https://github.com/webdataset/webdataset
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from lavis.common.images import open_image
from lavis.common.registry import registry
from lavis.datasets.base import Plan
from lavis.datasets.captioning import CaptionDataset, CaptionOptions
from lavis.datasets.shard_reader import ShardRecords, expand


@dataclass(frozen=True)
class ShardOptions(CaptionOptions):
    """See `CaptionOptions` and the module's docstring.

    Args:
        shards: the archives.
    """

    shards: str | None = None


class ShardDataset(CaptionDataset):
    """Pictures with captions in archives; see the module's docstring."""

    Options: ClassVar[type] = ShardOptions
    default_shards: ClassVar[str | None] = None
    records: ShardRecords

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        return ("train",)

    @classmethod
    def load(cls, split: str, plan: Plan) -> ShardDataset:
        pattern = plan.options.shards or cls.default_shards
        if pattern is None:
            raise ValueError(
                f"{plan.name}.shards is missing; name the archives, for example /data/{{000..099}}.tar"
            )
        return cls(ShardRecords(expand(pattern)), split, options=plan.options)

    def _index_records(self) -> None:
        # every sample is a picture of its own: nothing to number, and nothing to read for it
        self._items = None
        self._picture_number = range(len(self.records))

    def picture(self, record: Mapping[str, Any]) -> Image.Image:
        where = str(record["image"])
        return open_image(self.records.read(where), name=where, plain=self.plain_images)


@registry.register_dataset("shards")
class OwnShards(ShardDataset):
    """Archives of one's own."""

    name = "shards"
    plain_images = False
