"""The families for retrieval, pairs, entailment, dialogue and clips, with records and files of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis.datasets.collate import collate
from lavis.datasets.dialogue import DialogueDataset, DialogueOptions, as_text
from lavis.datasets.entailment import EntailmentDataset
from lavis.datasets.nlvr import NLVRDataset
from lavis.datasets.retrieval import RetrievalDataset
from lavis.datasets.video import (
    VideoCaptionDataset,
    VideoDialogueDataset,
    VideoQADataset,
    VideoRetrievalDataset,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{i}.png")
    return tmp_path


def top(picture: Any) -> tuple[int, ...]:
    return tuple(np.asarray(picture)[0, 0].tolist())


def test_retrieval_with_one_record_per_caption(folder: Path) -> None:
    rows = [
        {"image": "0.png", "caption": "a", "image_id": "x"},
        {"image": "1.png", "caption": "b", "image_id": "y"},
        {"image": "0.png", "caption": "c", "image_id": "x"},
    ]
    train = RetrievalDataset(rows, "train", vis_root=folder)
    assert [train[i]["image_id"] for i in range(3)] == [0, 1, 0]  # texts 0 and 2 are each other's positives
    assert [train[i]["text_input"] for i in range(3)] == ["a", "b", "c"]
    rows = [{"image": "0.png", "caption": ["a", "c"]}, {"image": "1.png", "caption": "b"}]
    test = RetrievalDataset(rows, "test", vis_root=folder, text_processor=str.upper)
    assert test.text == ["A", "C", "B"] and test.image == ["0.png", "1.png"]
    assert test.img2txt == {0: [0, 1], 1: [2]} and test.txt2img == {0: 0, 1: 0, 2: 1}
    batch = test.collater([test[0], test[1]])
    assert batch["index"].tolist() == [0, 1] and "text_input" not in batch
    clips = VideoRetrievalDataset([{"video": "a.mp4", "caption": "a"}], "test", vis_root=folder)
    assert clips.image == ["a.mp4"] and clips[0]["video"] == folder / "a.mp4"


def test_two_pictures_change_places_with_left_and_right(folder: Path) -> None:
    row = {"images": ["0.png", "1.png"], "sentence": "the left dog, left of it a leftover", "label": "True"}
    train = NLVRDataset([row], "train", vis_root=folder)
    assert train.flipped(row["sentence"]) == "the right dog, right of it a leftover"
    seen = set()
    for seed in range(20):
        sample = train.sample(0, np.random.default_rng(seed))
        seen.add((top(sample["image0"]), sample["text_input"]))
        assert sample["label"] == 1
    assert seen == {((255, 0, 0), row["sentence"]), ((0, 128, 0), train.flipped(row["sentence"]))}
    val = NLVRDataset([row], "val", vis_root=folder)
    assert {val.sample(0, np.random.default_rng(s))["text_input"] for s in range(10)} == {row["sentence"]}
    with pytest.raises(ValueError, match=r"record 0 has the label 'Treu'. Did you mean 'True'"):
        NLVRDataset([row | {"label": "Treu"}], "val", vis_root=folder)[0]
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        NLVRDataset([row | {"images": ["0.png", "missing.png"]}], "val", vis_root=folder)[0]


def test_entailment_has_three_labels(folder: Path) -> None:
    rows = [
        {"image": "0.png", "sentence": "s", "label": n} for n in ("contradiction", "neutral", "entailment")
    ]
    data = EntailmentDataset(rows, "val", vis_root=folder)
    assert data.collater([data[i] for i in range(3)])["label"].tolist() == [0, 1, 2]
    assert data[0]["image_id"] == "0.png"
    with pytest.raises(ValueError, match="label '-'"):
        EntailmentDataset([rows[0] | {"label": "-"}], "val", vis_root=folder)[0]


def _dialogues() -> list[dict[str, Any]]:
    turns = [
        {"question": "Is it red?", "answer": "yes", "answer_options": ["no", "yes"], "gt_index": 1},
        {"question": "Is it big?", "answer": "no", "answer_options": ["no", "yes"], "gt_index": 0},
    ]
    return [
        {"image": "0.png", "image_id": 7, "caption": "A dot", "dialog": turns},
        {"image": "1.png", "image_id": 8, "caption": "A spot", "dialog": turns[:1]},
    ]


def test_every_round_of_a_dialogue_is_itself(folder: Path) -> None:
    data = DialogueDataset(_dialogues(), "train", vis_root=folder, text_processor=str.lower)
    assert len(data) == 3
    batch = data.collater([data[i] for i in range(3)])
    assert batch["text_input"] == ["is it red?", "is it big?", "is it red?"]
    assert batch["answer"] == ["yes", "no", "yes"] and batch["gt_index"].tolist() == [1, 0, 1]
    assert batch["dialog"] == [[], [("is it red?", "yes")], []]
    assert batch["round_id"].tolist() == [1, 2, 1] and batch["image_id"].tolist() == [7, 7, 8]
    assert batch["caption"] == ["a dot", "a dot", "a spot"]
    assert as_text("a dot", batch["dialog"][1], "is it big?") == "a dot. is it red? yes. is it big?"
    assert as_text("", []) == ""


def test_whole_dialogues_need_equally_many_rounds(folder: Path) -> None:
    options = DialogueOptions(whole_dialogues=True)
    data = DialogueDataset(_dialogues(), "val", vis_root=folder, options=options)
    assert len(data) == 2 and data[0]["answer_options"] == [["no", "yes"]] * 2
    assert data.collater([data[0]])["answer_options"] == ["no", "yes"] * 2
    with pytest.raises(ValueError, match="different lengths"):
        data.collater([data[0], data[1]])


def test_dialogues_without_candidates(folder: Path) -> None:
    rows = [r | {"dialog": [{"question": "q", "answer": "a"}]} for r in _dialogues()]
    assert "answer_options" not in DialogueDataset(rows, "val", vis_root=folder)[0]
    rows = [{"video": r["image"], "caption": r["caption"], "dialog": r["dialog"]} for r in rows]
    sample = VideoDialogueDataset(rows, "val", vis_root=folder)[1]
    assert sample["video"] == folder / "1.png" and sample["image_id"] == 1 and "image" not in sample


def test_a_video_processor_is_given_the_path(folder: Path) -> None:
    rows = [{"video": "a.mp4", "caption": ["moves", "runs"], "image_id": 3}]

    def read(path: Path) -> torch.Tensor:
        assert path == folder / "a.mp4"
        return torch.zeros(3, 8, 4, 4)

    data = VideoCaptionDataset(rows, "val", vis_root=folder, vis_processor=read)
    batch = data.collater([data[0], data[0]])
    assert batch["video"].shape == (2, 3, 8, 4, 4) and batch["image_id"].tolist() == [3, 3]


def test_answers_of_videos_are_classes_and_the_unknown_has_its_own() -> None:
    rows = [
        {"video": "a.mp4", "question": "q", "question_id": i, "answer": a}
        for i, a in enumerate(("no", "maybe"))
    ]
    data = VideoQADataset(rows, "train", answer_list=["yes", "no"])
    assert data.ans2label == {"yes": 0, "no": 1} and data.data_type == "videos"
    assert data.collater([data[0], data[1]])["answers"].tolist() == [1, 2]


def test_classes_and_words_are_collated_apart() -> None:
    assert collate([{"answers": 0}, {"answers": 3}])["answers"].tolist() == [0, 3]
    assert collate([{"answers": ["a"]}, {"answers": ["b", "c"]}])["n_answers"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="no `answers`"):
        collate([{"weights": [1.0]}])
