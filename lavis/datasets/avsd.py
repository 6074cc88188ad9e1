"""AVSD: dialogues of ten questions and answers about a video of everyday actions at home.

**Description.** One person has seen a video of Charades and answers; the other has seen three frames of it, asks ten
questions, and sums the video up at the end. A caption, the script that Charades' actors followed, comes first.

**Source.** https://video-dialog.com

**Splits.** Those of the seventh Dialog System Technology Challenge (DSTC7):

| split | dialogues |
| --- | --- |
| train | 7,659 |
| val | 1,787 |
| test | 1,710 |

Training has every round, evaluation the last one of each dialogue, as in the original (with `whole_dialogues`, all).

**Task.** Dialogue: write the answer.

**Metrics.** BLEU-1 to 4, METEOR, ROUGE-L, CIDEr. The files have one reference per answer; the challenge's six
references of test are not in them.

**Files.** Annotation files are downloaded on first use to `avsd/annotations` under the cache root. What is seen has to
be fetched by hand: features of a network, arrays (time steps, width) in `avsd/features/<kind>/<video>.npy`, kinds
`i3d_rgb`, `i3d_flow`, `vggish` (processor `gpt_video_ft`, model `gpt_dialogue`); or, with the option `videos`, a
folder of Charades' videos, `<video>.mp4`, for processors of frames (model `blip_video_dialogue`).

**Licence.** Annotations: not stated in the files. Charades is licensed for non-commercial use.

**Known faults.** Caption and summary are given to the model and often contain the answer, so text alone goes far. In
the original library training saw the first ten dialogues only.

**Responsible use.** The actors agreed to be filmed for research. Questions ask, and answers guess, who people are.

**References.** Alamri et al., "Audio Visual Scene-Aware Dialog" (CVPR 2019). Videos: Sigurdsson et al., "Hollywood in
Homes: Crowdsourcing Data Collection for Activity Understanding" (ECCV 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from lavis.common import hub
from lavis.common.hub import GS
from lavis.common.registry import registry
from lavis.datasets.base import MissingMediaError, Plan, Record, locate
from lavis.datasets.collate import Sample
from lavis.datasets.dialogue import DialogueOptions
from lavis.datasets.sources import ByHand, Source
from lavis.datasets.tables import PackedRecords, read_json
from lavis.datasets.video import VideoDialogueDataset


@dataclass(frozen=True)
class AVSDOptions(DialogueOptions):
    """See `DialogueOptions`.

    Args:
        videos: the folder of the videos, relative to the cache root, for models that see frames; None: samples
            have features.
        use_summary: the summary follows the caption.
    """

    videos: str | None = None
    use_summary: bool = True


def _file(split: str) -> Source:
    return Source(f"avsd/annotations/{split}.json", f"{GS}datasets/avsd_dstc7_{split}.json")


@registry.register_dataset("avsd_dialogue")
class AVSDDialogue(VideoDialogueDataset):
    """Records: `image_id` (the video's name), `caption`, `summary`, `dialog`, and with `videos` also `video`, its file.

    Features have as many time steps as the video is long: a batch's `video` is a list of arrays (time steps, width).
    """

    name = "avsd_dialogue"
    data_type: ClassVar[str] = "features"
    media = "avsd/features"
    downloads = (
        ByHand(
            "https://github.com/hudaAlamri/DSTC7-Audio-Visual-Scene-Aware-Dialog-AVSD-Challenge",
            "fetch the features of I3D (rgb and flow) and VGGish, one array per video, into the folders i3d_rgb, "
            "i3d_flow and vggish",
            "avsd/features",
        ),
    )
    Options: ClassVar[type] = AVSDOptions
    sources: ClassVar[Mapping[str, Source]] = {s: _file(s) for s in ("train", "val", "test")}

    @classmethod
    def load(cls, split: str, plan: Plan) -> AVSDDialogue:
        path = locate(plan.sources[split][0], f"{plan.name}/{split}")
        dialogues = read_dialogues(path)
        if plan.options.videos is not None:
            plan = replace(plan, vis_root=hub.under_cache_root(plan.options.videos))
            dialogues = [{**dialogue, "video": f"{dialogue['image_id']}.mp4"} for dialogue in dialogues]
        return cls(
            PackedRecords(dialogues),
            split,
            vis_root=plan.vis_root,
            options=plan.options,
            annotation_paths=[path],
        )

    def asked(self, rounds: int) -> range:
        """In evaluation the last one."""
        return range(rounds) if self.training else range(max(0, rounds - 1), rounds)

    def clip(self, record: Mapping[str, Any]) -> Path | np.ndarray:
        """The path of the video, or, of features, the place that `gpt_video_ft` takes: folder/name."""
        return super().clip(record) if "video" in record else self._media_path(str(record["image_id"]))

    def image(self, record: Mapping[str, Any], rng: np.random.Generator) -> Any:
        try:
            return super().image(record, rng)
        except MissingMediaError:
            raise
        except FileNotFoundError as e:  # of features
            raise MissingMediaError(str(e), e.filename or self._media_path(str(record["image_id"]))) from e

    def make_sample(self, index: int, rng: np.random.Generator) -> Sample:
        sample = super().make_sample(index, rng)
        place = index if self.options.whole_dialogues else self._round_at(index)[0]
        summary = self.records[place].get("summary")
        if self.options.use_summary and summary:
            sample["caption"] = " ".join(
                text for text in (sample["caption"], self.text(summary, rng)) if text
            )
        return sample

    def collater(self, samples: Sequence[Mapping[str, Any] | None]) -> Sample:
        """Samples to a batch; features of different lengths stay a list."""
        kept = [dict(s) for s in samples if s is not None]
        features = [s["video"] for s in kept]
        if not all(isinstance(f, torch.Tensor) and f.ndim == 2 for f in features):
            return super().collater(kept)
        for sample in kept:
            del sample["video"]
        return super().collater(kept) | {"video": features}


def read_dialogues(path: Path) -> list[Record]:
    """The dialogues of a file {"dialogs": [{image_id, caption, summary, dialog: [{question, answer}]}]}.

    Raises:
        ValueError: another layout; the message names the first dialogue that is not right.
    """
    content = read_json(path)
    dialogues = content.get("dialogs") if isinstance(content, dict) else None
    if not isinstance(dialogues, list):
        raise ValueError(f"{path} should hold a JSON object with a list `dialogs`")
    for number, dialogue in enumerate(dialogues, 1):
        needed = {"image_id", "caption", "dialog"}
        if not (isinstance(dialogue, dict) and needed <= dialogue.keys()) or not all(
            isinstance(turn, dict) and "question" in turn for turn in dialogue["dialog"]
        ):
            raise ValueError(
                f"{path}, dialogue {number}: it should have image_id, caption and dialog, whose rounds have question "
                f"and answer; it is {str(dialogue)[:80]}"
            )
    return dialogues
