"""VisDial v1.0: dialogues of ten questions and answers about a photograph, with a hundred candidates for each answer.

**Description.** One person sees only a caption and asks; the other sees the photograph and answers. Each answer
stands among a hundred candidates: the right one, plausible, popular and random ones. Photographs are COCO's in train,
further ones from Flickr in val and test.

**Source.** https://visualdialog.org/data

**Splits.**

| split | dialogues | rounds of each |
| --- | --- | --- |
| train | 123,287 | 10 |
| val | 2,064 | 10 |
| test | 8,000 | 1 to 10, the last without its answer |

**Task.** Visual dialogue.

**Metrics.** Recall at 1, 5, 10, MRR (percent) and mean rank of the right answer; NDCG (percent) where several people
judged each candidate, which the file of dense annotations holds for one round of each dialogue of val. Test: ranks go
to the server (https://eval.ai), in the file that evaluation writes.

**Files.** `visdial/visdial_1.0_{train,val,test}.json` and `visdial_1.0_val_dense_annotations.json` under the cache
root, and pictures in `visdial/{train2014,val2014}` (COCO's) and `visdial/VisualDialog_{val,test}2018`; fetched by
hand.

**Licence.** Annotations: CC BY 4.0. The photographs belong to their Flickr authors and have their own licences.

**Known faults.** The right answer is not the only right one, so recall punishes good answers; the dense annotations
reward others than the answer that was given: the two metrics rank models differently. In the original library all
turns of a dialogue were the last one.

**Responsible use.** Photographs show people who were not asked; askers often want to know gender and age, and answers
guess.

**References.** Das et al., "Visual Dialog" (CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from lavis.common.images import open_image
from lavis.common.registry import registry
from lavis.datasets.base import Plan, locate
from lavis.datasets.dialogue import DialogueDataset
from lavis.datasets.sources import ByHand, Source
from lavis.datasets.tables import PackedRecords, Record, read_json

# Where a picture lies, by split: the folder of COCO or of VisDial, and the file's name.
PLACES = {
    "train": ("train2014/COCO_train2014_{:012d}.jpg", "val2014/COCO_val2014_{:012d}.jpg"),
    "val": ("VisualDialog_val2018/VisualDialog_val2018_{:012d}.jpg",),
    "test": ("VisualDialog_test2018/VisualDialog_test2018_{:012d}.jpg",),
}


@registry.register_dataset("visdial")
class VisDial(DialogueDataset):
    """Records: `image_id`, `caption`, `dialog` (rounds with `question`, `answer`, `answer_options`, `gt_index`,
    as far as they are public), where judged `relevance` (of the candidates of round `judged_round`, from 1)."""

    name = "visdial"
    media = "visdial"
    sources: ClassVar[Mapping[str, Source | tuple[Source, ...]]] = {
        "train": Source("visdial/visdial_1.0_train.json"),
        "val": (
            Source("visdial/visdial_1.0_val.json"),
            Source("visdial/visdial_1.0_val_dense_annotations.json", optional=True),
        ),
        "test": Source("visdial/visdial_1.0_test.json"),
    }
    downloads = (
        ByHand(
            "https://visualdialog.org/data",
            "fetch the dialogues, the dense annotations and the pictures of v1.0; pictures of train are COCO's of 2014",
            "visdial",
        ),
    )

    @classmethod
    def load(cls, split: str, plan: Plan) -> VisDial:
        first, *others = plan.sources[split]
        paths = [locate(first, f"{plan.name}/{split}")]
        # without the dense annotations everything but NDCG can be measured
        paths += [path for source in others for path in [_optional(source, plan, split)] if path is not None]
        return cls(
            PackedRecords(read_dialogues(*paths)),
            split,
            vis_root=plan.vis_root,
            options=plan.options,
            annotation_paths=paths,
        )

    def asked(self, rounds: int) -> range:
        """In the test split the last one."""
        return range(rounds - 1, rounds) if self.split == "test" else range(rounds)

    def relevance(self) -> dict[tuple[Any, int], list[float]]:
        """The share of judges who found each candidate right, by image_id and round."""
        return {
            (r["image_id"], r["judged_round"]): r["relevance"] for r in self.records if r.get("relevance")
        }

    def media_names(self, record: Mapping[str, Any]) -> list[str]:
        """The picture of a number, in the first folder that has it."""
        places = PLACES.get(self.split, PLACES["train"])
        names = [place.format(int(record["image_id"])) for place in places]
        return [next((name for name in names if self._media_path(name).is_file()), names[0])]

    def picture(self, record: Mapping[str, Any]) -> Image.Image:
        path = self._media_path(self.media_names(record)[0])
        return open_image(path, self._what_to_do(), plain=self.plain_images)


def _optional(source: Source, plan: Plan, split: str) -> Path | None:
    try:
        return locate(source, f"{plan.name}/{split}")
    except FileNotFoundError:
        return None


def read_dialogues(path: Path, dense: Path | None = None) -> list[Record]:
    """Dialogues of a file in VisDial's layout, with questions and answers in words.

    Args:
        path: the dialogues; questions, answers and candidates are places in its lists.
        dense: how many of the judges found a candidate right, for one round of each dialogue.

    Raises:
        ValueError: another layout.
    """
    content = read_json(path)
    try:
        data = content["data"]
        questions, answers, dialogues = data["questions"], data["answers"], data["dialogs"]
    except (KeyError, TypeError) as e:
        raise ValueError(
            f"{path} should hold data.dialogs, data.questions and data.answers, as VisDial v1.0"
        ) from e
    judged = {} if dense is None else {entry["image_id"]: entry for entry in read_json(dense)}
    records = []
    for dialogue in dialogues:
        record: Record = {"image_id": dialogue["image_id"], "caption": dialogue["caption"]}
        record["dialog"] = [_round(turn, questions, answers) for turn in dialogue["dialog"]]
        entry = judged.get(dialogue["image_id"])
        if entry is not None:
            relevance = entry.get("gt_relevance", entry.get("relevance"))
            record |= {"judged_round": entry["round_id"], "relevance": relevance}
        records.append(record)
    return records


def _round(turn: Mapping[str, Any], questions: list[str], answers: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"question": questions[turn["question"]]}
    if "answer" in turn:
        out["answer"] = answers[turn["answer"]]
    if "answer_options" in turn:
        out["answer_options"] = [answers[i] for i in turn["answer_options"]]
    if "gt_index" in turn:
        out["gt_index"] = turn["gt_index"]
    return out
