"""SNLI-VE: does a photograph prove a sentence, refute it, or neither?

**Description.** Sentences of the Stanford Natural Language Inference corpus beside the Flickr30k photographs whose
captions were their premises.

**Source.** https://github.com/necla-ml/SNLI-VE

**Splits.**

| split | sentences | pictures |
| --- | --- | --- |
| train | 529,527 | 29,783 |
| val | 17,858 | 1,000 |
| test | 17,901 | 1,000 |

**Task.** Visual entailment: contradiction, neutral or entailment; of `snli_ve_instruct`, whose samples hold an
instruction, no, maybe or yes.

**Metrics.** Accuracy in percent.

**Files.** Annotation files are downloaded on first use to `snli/annotations` under the cache root. Pictures are
Flickr30k's, expected in `flickr30k/images/flickr30k-images`; they have to be asked for.

**Licence.** The sentences: CC BY-SA 4.0, as SNLI. Pictures: Flickr's terms; given for non-commercial research.

**Known faults.** Labels were made for captions, not for pictures: of the pairs labelled neutral many are wrong (Do et
al., "e-SNLI-VE", 2020).

**Responsible use.** SNLI's sentences carry stereotypes of gender, age and ethnicity (Rudinger et al., 2017).

**References.** Xie et al., "Visual Entailment: A Novel Task for Fine-Grained Image Understanding" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from lavis.common.images import open_image
from lavis.common.registry import registry
from lavis.datasets.base import Record
from lavis.datasets.collate import Sample
from lavis.datasets.entailment import EntailmentDataset
from lavis.datasets.flickr30k import PICTURES
from lavis.datasets.sources import Source

INSTRUCTION = "based on the given the image is {} true?"  # as the original words it
_PUBLISHED = "https://storage.googleapis.com/sfr-xinstructblip-data-research/data/snlive"


@registry.register_dataset("snli_ve")
class SNLIVE(EntailmentDataset):
    """Records: `image` (a Flickr number, without ".jpg"), `sentence`, `label`."""

    name = "snli_ve"
    media = "flickr30k/images/flickr30k-images"
    downloads = (PICTURES,)
    sources: ClassVar[Mapping[str, Source]] = {
        split: Source(f"snli/annotations/ve_{name}.json", f"{_PUBLISHED}/ve_{name}.json")
        for split, name in (("train", "train"), ("val", "dev"), ("test", "test"))
    }

    def media_names(self, record: Mapping[str, Any]) -> list[str]:
        name = str(record["image"])
        return [name if Path(name).suffix == ".jpg" else f"{name}.jpg"]

    def picture(self, record: Mapping[str, Any]) -> Image.Image:
        path = self._media_path(self.media_names(record)[0])
        return open_image(path, self._what_to_do(), plain=self.plain_images)


@registry.register_dataset("snli_ve_instruct")
class SNLIVEInstruct(SNLIVE):
    """The same for models that write: beside `text_input`, the sentence, samples hold `prompt`, in which "{}" is its
    place; `label`, `answer` and `text_output` are the word for its class."""

    name = "snli_ve_instruct"
    classnames = ("no", "maybe", "yes")  # in the order of LABELS

    def _judged(
        self, record: Record, told: Callable[[str], str], rng: np.random.Generator, index: int
    ) -> Sample:
        judged = super()._judged(record, told, rng, index)
        word = self.classnames[judged["label"]]
        said = dict.fromkeys(("label", "answer", "text_output"), word)
        return judged | said | {"prompt": self.text(INSTRUCTION, rng), "question_id": str(index)}
