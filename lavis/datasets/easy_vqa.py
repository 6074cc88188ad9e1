"""easy-VQA: 5,000 tiny pictures of one shape with 48,000 simple questions, from a Python package.

**Description.** Each picture (64 x 64) shows one circle, rectangle or triangle in one of eight colours.
Questions ask for shape, colour or yes and no; there are 13 answers. 4,000 training pictures with
38,575 questions, 1,000 test pictures with 9,673. `val` is 5 % of the training pictures, chosen by their
number and taken out of `train`; `test` is the package's test set, untouched.

**Task.** Visual question answering.

**Metrics.** Accuracy: each question has one answer.

**Files.** They come with the package `easy-vqa`: `pip install openlavis[easy-vqa]`. Nothing else is
downloaded.

**License.** MIT.

**References.** Victor Zhou, easy-VQA, https://github.com/vzhou842/easy-VQA (2019).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

from lavis.common.registry import registry
from lavis.datasets.base import Plan, Record
from lavis.datasets.vqa import VQADataset, yes_no_number_other

_SPLITS = ("train", "val", "test")
_VAL_SHARE = 0.05
_COLORS = ("red", "green", "blue", "yellow", "black", "gray", "brown", "teal")


def data_folder() -> Path:
    """The package's data folder, found without importing the package.

    Raises:
        FileNotFoundError: the package, or its data, is not there.
    """
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "the data set 'easy_vqa' comes with the package easy-vqa, which is not installed; "
            "run: pip install openlavis[easy-vqa]"
        )
    folder = Path(spec.origin).parent / "data"
    if not (folder / "answers.txt").is_file():
        raise FileNotFoundError(f"the package easy-vqa has no data in {folder}; install version 1.0 of it")
    return folder


def is_val(picture: int) -> bool:
    """Whether a training picture belongs to `val`: the 5 % with the smallest hash of their number."""
    digest = hashlib.sha256(f"easy_vqa/{picture}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < _VAL_SHARE * 2**64


def question_type(answer: str) -> str:
    """What a question asks for, told from its answer: "color", "shape" or "yes/no"."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "color" if answer in _COLORS else "shape"


@registry.register_dataset("easy_vqa")
class EasyVQA(VQADataset):
    """Records have one answer each; `answer_list` has all 13."""

    name = "easy_vqa"

    @classmethod
    def split_names(cls, plan: Plan) -> tuple[str, ...]:
        return _SPLITS

    @classmethod
    def load(cls, split: str, plan: Plan) -> EasyVQA:
        folder = data_folder()
        answers = (folder / "answers.txt").read_text(encoding="utf-8").split()
        part = "test" if split == "test" else "train"
        path = folder / part / "questions.json"
        rows = json.loads(path.read_text(encoding="utf-8"))
        records: list[Record] = []
        for number, (question, answer, picture) in enumerate(rows):
            if part == "train" and is_val(picture) != (split == "val"):
                continue
            records.append(
                {
                    "image": f"{part}/images/{picture}.png",
                    "image_id": picture,
                    "question": question,
                    "question_id": number,
                    "answers": [answer],
                    "question_type": question_type(answer),
                    "answer_type": yes_no_number_other(answer),
                }
            )
        return cls(
            records,
            split,
            vis_root=folder,
            options=plan.options,
            annotation_paths=[path],
            answer_list=answers,
        )
