"""What a person is shown of a record: its texts, its pictures, frames of its clip.

Used by the browser, which also searches the texts, and by reports. Records of data sets that aren't known here
are shown by their keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis.common.files import is_clip
from lavis.common.images import open_image
from lavis.datasets.base import Dataset, Record
from lavis.datasets.clips import Clip
from lavis.datasets.vqa import ANSWER_KEYS

Text = tuple[str, str]  # what it is, and the text itself

# Keys that hold texts, in the order of showing, and what they are called.
_TEXTS = {
    "caption": "caption", "summary": "summary", "question": "question", "sentence": "sentence", "text": "text",
    "choices": "choice", "label": "label",
}  # fmt: skip
_ANSWERS = (*ANSWER_KEYS, "direct_answers")
# Keys that say where something is or how it was made, not what is in it.
_HIDDEN = frozenset(
    ["image", "images", "video", "clip", "scene", "scenes", "line", "image_id", "img_id", "question_id", "url",
     "instance_id", "relevance", "judged_round", "correct_choice_idx", "temporal", "kind", "question_type",
     "answer_type", "dialog", "dataset", "split", "id", "gt_index"]
)  # fmt: skip
_KNOWN = frozenset([*_TEXTS, *_ANSWERS, *_HIDDEN])


def answers_of(record: Mapping[str, Any]) -> Counter[str]:
    """A question's answers with how often each was given; empty where none is known."""
    for key in _ANSWERS:
        if record.get(key):
            found = record[key]
            break
    else:
        return Counter()
    values = [found] if isinstance(found, str) or not isinstance(found, Sequence) else found
    return Counter(str(v["answer"] if isinstance(v, Mapping) else v) for v in values)


def answer_of(record: Mapping[str, Any]) -> str:
    """The answer given most often, or the label; "" where neither is known."""
    counted = answers_of(record)
    if counted:
        return counted.most_common(1)[0][0]
    label = record.get("label")
    return "" if label is None else str(label)


def kind_of(record: Mapping[str, Any]) -> str:
    """The type of question or statement that a record names, "" for none."""
    for key in ("question_type", "kind", "answer_type"):
        if record.get(key):
            return str(record[key])
    return ""


def _strings(value: Any) -> list[str]:
    """A text, a number or a list of them as texts; [] for anything else."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    values = value if isinstance(value, (list, tuple)) else [value]
    plain = all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in values)
    return [str(v) for v in values if str(v).strip()] if plain else []


def rounds_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A dialogue's questions and answers; "" for answers that aren't public."""
    dialog = record.get("dialog") or ()
    return [(str(t.get("question", "")), str(t.get("answer", ""))) for t in dialog if isinstance(t, Mapping)]


def texts_of(record: Mapping[str, Any]) -> list[Text]:
    """All texts of a record, in order; answers that several people gave come once, with their number."""
    out: list[Text] = []
    for key, name in _TEXTS.items():
        if record.get(key) is not None:
            out += [(name, text) for text in _strings(record[key])]
        if key == "sentence" and (given := answers_of(record)):
            out += [
                ("answer", answer if count == 1 else f"{answer} (×{count})")
                for answer, count in given.most_common()
            ]
    for question, answer in rounds_of(record):
        out += [("question", question), ("answer", answer)] if answer else [("question", question)]
    for key, value in record.items():
        if key not in _KNOWN:
            out += [(key.replace("_", " "), text) for text in _strings(value)]
    return out


def pictures_of(dataset: Dataset, record: Record, frames: int = 4) -> list[Image.Image]:
    """A record's picture, both of a pair, or some frames of its clip, as stored or drawn.

    Args:
        dataset: the record's. frames: how many of a clip, evenly spaced.

    Raises:
        UnreadableMediaError: missing or damaged (`MissingMediaError`).
    """
    if hasattr(dataset, "pictures"):
        return list(dataset.pictures(record))
    if hasattr(dataset, "clip"):
        return [Image.fromarray(frame) for frame in clip_frames(dataset.clip(record), frames)]
    return [dataset.picture(record)]


def clip_frames(clip: Path | np.ndarray, count: int) -> np.ndarray:
    """Evenly spaced frames of a file or of an array, first and last included, (count, h, w, 3) uint8.

    Raises:
        UnreadableMediaError: the file is missing or damaged. ImportError: PyAV is not installed.
    """
    if isinstance(clip, np.ndarray):
        return clip[_spread(len(clip), count)]
    with Clip(clip) as opened:
        return opened.frames(_spread(len(opened), count))


def preview(path: Path, sees: str, side: int) -> Image.Image:
    """A file as one picture of at most `side` pixels: itself, or four frames of a clip in rows of two.

    Args:
        sees: "image" or "video", see `lavis.common.files.is_clip`.

    Raises:
        UnreadableMediaError: it is missing or damaged. ImportError: it is a clip, and PyAV is not installed.
    """
    if not is_clip(path, sees):
        picture = open_image(path)
        picture.thumbnail((side, side))
        return picture
    frames = [Image.fromarray(frame) for frame in clip_frames(path, 4)]
    for frame in frames:
        frame.thumbnail((side // 2, side // 2))
    width, height = frames[0].size
    sheet = Image.new("RGB", (2 * width, 2 * height), "#dddddd")
    for i, frame in enumerate(frames):
        sheet.paste(frame, (i % 2 * width, i // 2 * height))
    return sheet


def _spread(length: int, count: int) -> list[int]:
    return [int(n) for n in np.linspace(0, length - 1, min(count, length)).round()]
