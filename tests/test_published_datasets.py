"""The published data sets: their files as the original names them, their cards, and samples from annotation files in
each one's own layout, with the odd fields that real ones have."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lavis.common.registry import registry
from lavis.datasets.base import MissingMediaError
from lavis.datasets.builders import load_dataset, make_plan
from lavis.datasets.checking import check
from lavis.tasks.dialogue import DialogueTask
from lavis.tasks.vqa import AOKVQATask, GQATask, VQATask
from tests.small import random_model

REFERENCE = Path(__file__).parent / "reference" / "dataset_configs.json"
CONFIGS = json.loads(REFERENCE.read_text())

# Where we differ from the original on purpose: configuration -> {split: why}. A split that is None: all of them.
DIFFERENT = {
    "gqa/defaults.yaml": "val and test were A-OKVQA's; train was on a private machine",
    "nlvr/defaults.yaml": "test was dev",
    "snli_ve/defaults.yaml": "addresses on a private machine; the same files are public elsewhere",
    "conceptual_caption/defaults_3m.yaml": "an address on a private machine",
    "conceptual_caption/defaults_12m.yaml": "an address on a private machine",
    "visdial/defaults_dial.yaml": "an address on a private machine",
}
PICTURES = {
    "aok_vqa", "coco_caption", "coco_retrieval", "coco_vqa", "conceptual_caption_12m", "conceptual_caption_3m",
    "flickr30k", "flickr30k_caption", "gqa", "imagenet", "nlvr", "nocaps", "ok_vqa", "sbu_caption", "snli_ve",
    "vg_caption", "vg_vqa", "visdial",
}  # fmt: skip
TYPES = {
    "coco/eval_vqa.yaml": "eval",
    "gqa/balanced_val.yaml": "balanced_val",
    "gqa/balanced_testdev.yaml": "balanced_testdev",
}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


CASES = [(file, name) for file, config in CONFIGS.items() for name in config["datasets"] if name in PICTURES]


@pytest.mark.parametrize(("file", "name"), CASES)
def test_files_are_those_of_the_original(file, name):
    theirs = CONFIGS[file]["datasets"][name]["build_info"]
    plan = make_plan(registry.get_dataset_class(name), name, {"type": TYPES.get(file, "default")})
    wanted = {}
    for split, files in theirs.get("annotations", {}).items():
        md5s = as_list(files.get("md5"))
        wanted[split] = list(
            zip(as_list(files["storage"]), as_list(files["url"]), md5s * len(as_list(files["url"])))
        )
    found = {split: [(s.storage, s.url, s.md5) for s in sources] for split, sources in plan.sources.items()}
    if file in DIFFERENT:
        assert found != wanted, f"{file} differs no more: {DIFFERENT[file]}"
    else:
        assert found == wanted
    storage = theirs.get("images", {}).get("storage", "")
    if not storage.startswith("/export"):
        assert Path(registry.get_dataset_class(name).media) == Path(storage)


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_cards_are_complete(name):
    cls = registry.get_dataset_class(name)
    card = sys.modules[cls.__module__].__doc__ or ""
    for section in (
        "Description", "Source", "Splits", "Task", "Metrics", "Files", "Licence", "Known faults", "Responsible use",
        "References",
    ):  # fmt: skip
        assert re.search(rf"^\*\*{section}\.\*\*\s+\S", card, re.MULTILINE), section
    assert "http" in card.split("**Source.**")[1].split("\n\n")[0]
    assert cls.downloads, "how the pictures get there"
    commands = re.findall(r"`lavis download (\w+)", card)
    assert set(commands) <= set(registry.list_datasets())


# ------------------------------------------------------------------------------------ real layouts
@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    return tmp_path


def write(cache: Path, name: str, content: Any) -> None:
    path = cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def picture(cache: Path, name: str, color: tuple[int, int, int] = (200, 30, 30)) -> None:
    path = cache / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), color).save(path)


def test_coco_and_flickr(cache):
    rows = [
        {"caption": "A woman.", "image": "val2014/COCO_val2014_000000522418.jpg", "image_id": "coco_522418"},
        {"caption": "Naïve café ☕", "image": "val2014/COCO_val2014_000000522418.jpg", "image_id": "coco_522418"},
        {"caption": "A cat. ", "image": "train2014/COCO_train2014_000000000009.jpg", "image_id": "coco_9"},
    ]  # fmt: skip
    many = [
        {"image": r["image"], "caption": [f"{i} {j}" for j in range(5 + i)]} for i, r in enumerate(rows[1:])
    ]
    for r in rows:
        picture(cache, f"coco/images/{r['image']}")
    write(cache, "coco/annotations/coco_karpathy_train.json", rows)
    for split in ("val", "test"):
        write(cache, f"coco/annotations/coco_karpathy_{split}.json", many)
    data = load_dataset("coco_caption")
    assert [data["train"][i]["image_id"] for i in range(3)] == [0, 0, 1]
    assert data["train"][1]["text_input"] == "Naïve café ☕"
    assert data["val"][0]["image_id"] == 522418 and data["val"].references()[9] == many[1]["caption"]
    gallery = load_dataset("coco_retrieval")
    assert (
        gallery["val"].img2txt == {0: [0, 1, 2, 3, 4], 1: [5, 6, 7, 8, 9, 10]}
        and gallery["val"].txt2img[7] == 1
    )
    assert set(gallery["train"][0]) == {"image", "text_input", "image_id", "instance_id"}
    assert gallery["test"][1]["index"] == 1
    for split in ("train", "val", "test"):
        write(cache, f"flickr30k/annotations/{split}.json", many if split != "train" else rows)
    lacking = load_dataset("flickr30k")["val"]
    with pytest.raises(MissingMediaError, match="flickr30k/images"):
        lacking[0]


def vqa_files(cache: Path) -> None:
    image = "val2014/COCO_val2014_000000000042.jpg"
    picture(cache, f"coco/images/{image}")
    record = {"dataset": "vqa", "image": image, "question": "What is this?", "question_id": 42000}
    write(cache, "coco/annotations/vqa_train.json", [{**record, "answer": ["shoe"] * 7 + ["shoes"] * 3}])
    write(cache, "coco/annotations/vqa_val.json", [{**record, "question_id": 42001, "answer": ["dog"] * 10}])
    write(cache, "coco/annotations/vqa_val_eval.json", [record])
    write(cache, "coco/annotations/vqa_test.json", [{**record, "question_id": 7}])
    write(cache, "coco/annotations/answer_list.json", ["yes", "no", "shoe"])
    asked = {"question_id": 42000, "question": "What is this?", "image_id": 42}
    write(
        cache,
        "coco/annotations/v2_OpenEnded_mscoco_val2014_questions.json",
        {"info": {}, "questions": [asked]},
    )
    people = [
        {"answer": a, "answer_confidence": "yes", "answer_id": i}
        for i, a in enumerate(["shoe"] * 2 + ["boot"] * 8)
    ]
    truth = {"question_id": 42000, "answers": people, "question_type": "what is this", "answer_type": "other"}
    write(cache, "coco/annotations/v2_mscoco_val2014_annotations.json", {"annotations": [truth]})


def test_vqav2(cache):
    vqa_files(cache)
    data = load_dataset("coco_vqa")
    assert [len(data[s]) for s in ("train", "val", "test")] == [1, 1, 1]
    sample = data["train"][0]
    assert sample["answers"] == ["shoe", "shoes"] and sample["weights"] == pytest.approx([0.7, 0.3])
    assert data["val"].answer_list == ["yes", "no", "shoe"] and data["train"].answer_list == []
    scores = VQATask().score([{"question_id": 42000, "answer": "shoe"}], data["val"])
    assert scores["overall_percent"] == pytest.approx(
        60.0
    )  # 2 people: 1/3 for those two's turns, 2/3 for the others'
    assert scores["answer_type/other_percent"] == scores["overall_percent"]
    assert VQATask().score([{"question_id": 7, "answer": "shoe"}], data["test"]) == {}
    # validation questions are trained on only where that is asked for
    assert [r["question_id"] for r in load_dataset("coco_vqa", with_val=True)["train"].records] == [
        42000,
        42001,
    ]
    assert list(load_dataset("coco_vqa", type="eval")) == ["val"]


def test_aokvqa_and_okvqa(cache, tmp_path):
    image = "val2014/COCO_val2014_000000000042.jpg"
    picture(cache, f"coco/images/{image}")
    record = {
        "image": image,
        "question": "Why?",
        "question_id": "22MexNkBPpdZGX6sxbxVBH",
        "choices": ["a", "b", "c", "d"],
    }
    known = {"correct_choice_idx": 2, "direct_answers": ["fun"] * 2 + ["joy"] * 8, "rationales": ["…"] * 3}
    for split, rest in (("train", known), ("val", known), ("test", {})):
        write(
            cache,
            f"aokvqa/annotations/aokvqa_v1p0_{split}.json",
            [{**record, **rest, "difficult_direct_answer": False}],
        )
    write(cache, "aokvqa/annotations/specialized_vocab_train_lavis.json", {"fun": 3, "joy": 1})
    data = load_dataset("aok_vqa")
    assert data["train"][0]["weights"] == pytest.approx([0.2, 0.8])
    assert data["val"].answer_list == ["fun", "joy"]
    sample = data["val"][0]
    assert sample["correct_choice_idx"] == 2 and sample["direct_answers"] == known["direct_answers"]
    batch = data["test"].collater([data["test"][0], data["test"][0]])
    assert batch["choices"] == record["choices"] * 2 and batch["direct_answers"] == [None, None]
    task, records = AOKVQATask(), [{"question_id": record["question_id"], "answer": "fun"}]
    assert task.score(records, data["val"])["overall_percent"] == pytest.approx(200 / 3)
    assert task.score(records, data["test"]) == {}
    for choice, percent in (("c", 100.0), ("a", 0.0)):
        scores = task.score([{**records[0], "choice": choice}], data["val"])
        assert scores["multiple_choice_percent"] == percent and scores["overall_percent"] == pytest.approx(
            200 / 3
        )
    task.save(records, tmp_path / "test_vqa_result.json")
    written = json.loads((tmp_path / "test_vqa_result_leaderboard.json").read_text())
    assert written == {record["question_id"]: {"direct_answer": "fun", "multiple_choice": ""}}
    model = random_model("blip_vqa").eval()
    task = AOKVQATask()
    data["val"].set_processors(lambda picture: torch.rand(3, 64, 64), None)
    task.before_evaluation(model, data["val"])
    (found,) = task.predict(model, data["val"].collater([data["val"][0]]))
    assert found["choice"] in record["choices"] and found["answer"] in ("fun", "joy")
    task.save([found], tmp_path / "val.json")
    written = json.loads((tmp_path / "val_leaderboard.json").read_text())
    assert written == {
        record["question_id"]: {"direct_answer": found["answer"], "multiple_choice": found["choice"]}
    }

    write(
        cache,
        "okvqa/annotations/okvqa_train.json",
        [{"image": image, "question": "?", "answer": ["x"] * 10, "question_id": 1}],
    )
    write(cache, "okvqa/annotations/vqa_val_eval.json", [{"image": image, "question": "?", "question_id": 2}])
    write(cache, "okvqa/annotations/answer_list.json", ["x"])
    write(
        cache,
        "okvqa/annotations/OpenEnded_mscoco_val2014_questions.json",
        {"questions": [{"question_id": 2, "question": "?"}]},
    )
    people = [{"answer": "x", "raw_answer": "xs"}] * 10
    write(
        cache,
        "okvqa/annotations/mscoco_val2014_annotations.json",
        {"annotations": [{"question_id": 2, "answers": people}]},
    )
    ok = load_dataset("ok_vqa")
    assert set(ok) == {"train", "test"}
    assert VQATask().score([{"question_id": 2, "answer": "x"}], ok["test"])["overall_percent"] == 100


def test_gqa_and_visual_genome(cache, tmp_path):
    picture(cache, "gqa/images/n161313.jpg")
    record = {
        "image": "n161313.jpg",
        "question": "Is it overcast?",
        "question_id": "201307251",
        "answer": "no",
    }
    for name in ("train", "testdev", "val"):
        write(
            cache,
            f"gqa/annotations/{name}_balanced_questions.json",
            [{**record, "fullAnswer": "No, it is clear."}],
        )
    write(
        cache,
        "gqa/annotations/test_balanced_questions.json",
        [{k: v for k, v in record.items() if k != "answer"}],
    )
    data = load_dataset("gqa")
    assert data["train"][0]["answers"] == ["no"] and data["val"][0]["answer"] == "no"
    task, records = GQATask(), [{"question_id": "201307251", "answer": "No."}]
    assert task.score(records, data["val"])["accuracy_percent"] == 100
    assert task.score(records, data["test"]) == {}
    task.save(records, tmp_path / "x.json")
    assert json.loads((tmp_path / "x_leaderboard.json").read_text()) == [
        {"questionId": "201307251", "prediction": "No."}
    ]
    picture(cache, "vg/images/VG_100K/2.jpg")
    write(
        cache,
        "vg/annotations/vg_qa.json",
        [{"image": "VG_100K/2.jpg", "question": "Who?", "answer": "a man"}],
    )
    write(
        cache, "vg/annotations/vg_caption.json", [{"image": "VG_100K/2.jpg", "caption": "a man on a bench"}]
    )
    assert load_dataset("vg_vqa")["train"][0]["weights"] == [1.0]
    assert load_dataset("vg_caption")["train"][0]["text_input"] == "a man on a bench"


def test_nlvr2_and_snli_ve(cache):
    for name in ("train/34/a-0-img0.png", "train/34/a-0-img1.png"):
        picture(cache, f"nlvr/images/{name}")
    row = {
        "sentence": "One dog is left.",
        "label": "True",
        "images": ["train/34/a-0-img0.png", "train/34/a-0-img1.png"],
    }
    for name in ("train", "dev", "test"):
        more = {"sentence": "There is a cat.", "label": "False", "images": row["images"]}
        write(cache, f"nlvr/annotations/{name}.json", [row, more])
    assert load_dataset("nlvr")["test"][0]["label"] == 1
    together = load_dataset("nlvr", sentences_per_image=2)
    (pair,) = together["train"]
    assert sorted(zip(pair["label"], pair["text_input"])) in (
        [(0, "There is a cat."), (1, "One dog is left.")],
        [(0, "There is a cat."), (1, "One dog is right.")],  # the pictures have changed places
    )
    assert len(together["val"]) == 2
    picture(cache, "flickr30k/images/flickr30k-images/4705552913.jpg")
    for name in ("train", "dev", "test"):
        write(
            cache,
            f"snli/annotations/ve_{name}.json",
            [
                {"image": "4705552913", "sentence": "A man.", "label": "neutral"},
                {"image": "4705552913", "sentence": "A dog.", "label": "contradiction"},
            ],
        )
    (sample,) = load_dataset("snli_ve", sentences_per_image=2)["train"]
    assert sorted(zip(sample["label"], sample["text_input"])) == [(0, "A dog."), (1, "A man.")]
    data = load_dataset("snli_ve")
    assert data["val"][0]["label"] == 1 and data["val"][0]["image"].size == (20, 16)


def test_nocaps_sbu_and_conceptual_captions(cache):
    picture(cache, "nocaps/images/val/0013ea2087020901.jpg")
    for split in ("val", "test"):
        write(
            cache,
            f"nocaps/annotations/nocaps_{split}.json",
            [{"image": "val/0013ea2087020901.jpg", "img_id": 0}],
        )
    data = load_dataset("nocaps")
    assert data["val"][0]["image_id"] == 0 and data["val"].references() == {}
    truth = {
        "annotations": [
            {"image_id": 0, "id": 5, "caption": "A baby."},
            {"image_id": 0, "id": 6, "caption": "A child."},
        ]
    }
    write(cache, "captions.json", truth)
    scored = load_dataset("nocaps", captions=str(cache / "captions.json"))["val"]
    assert scored.references() == {0: ["A baby.", "A child."]}
    row = {"image": "0000/1.jpg", "caption": "Boats", "url": "http://example.org/1.jpg"}
    for place, name in (
        ("sbu_captions/annotations/sbu.json", "sbu_caption"),
        ("conceptual_caption/annotations/cc3m.json", "conceptual_caption_3m"),
        ("conceptual_caption/annotations/cc12m.json", "conceptual_caption_12m"),
    ):
        write(cache, place, [row])
        data = load_dataset(name)["train"]
        picture(Path(data.vis_root), row["image"])
        assert data[0]["text_input"] == "Boats" and data.records[0]["url"] == row["url"]


def visdial_file(answered: bool) -> dict[str, Any]:
    turns = [
        {"question": i % 3, "answer": i % 2, "answer_options": [0, 1, 2], "gt_index": i % 2}
        for i in range(10)
    ]
    if not answered:
        turns = [
            *({k: t[k] for k in ("question", "answer")} for t in turns[:2]),
            {"question": 2, "answer_options": [2, 1, 0]},
        ]
    dialogue = {"image_id": 378466, "caption": "a rocky sky", "dialog": turns}
    data = {
        "questions": ["is it a man", "what color", "how old"],
        "answers": ["yes", "no", "2"],
        "dialogs": [dialogue],
    }
    return {"version": "1.0", "split": "x", "data": data}


def test_visdial(cache):
    write(cache, "visdial/visdial_1.0_train.json", visdial_file(True))
    write(cache, "visdial/visdial_1.0_val.json", visdial_file(True))
    write(cache, "visdial/visdial_1.0_test.json", visdial_file(False))
    picture(cache, "visdial/val2014/COCO_val2014_000000378466.jpg")
    picture(cache, "visdial/VisualDialog_val2018/VisualDialog_val2018_000000378466.jpg")
    data = load_dataset("visdial")
    assert [len(data[s]) for s in ("train", "val", "test")] == [10, 10, 1]
    sample = data["val"][3]
    assert sample["dialog"] == [
        ("is it a man", "yes"),
        ("what color", "no"),
        ("how old", "yes"),
    ]  # all turns differ
    assert (
        sample["text_input"] == "is it a man"
        and sample["answer"] == "no"
        and sample["answer_options"] == ["yes", "no", "2"]
    )
    assert data["train"][0]["image"].size == (20, 16)
    assert data["test"].records[0]["dialog"][2].get("answer") is None
    records = [
        {"image_id": 378466, "round_id": i + 1, "ranks": [1, 2, 3], "rank": 1 + i % 2} for i in range(10)
    ]
    assert "ndcg_percent" not in DialogueTask().score(records, data["val"])
    found = check("visdial", splits=["val"])
    assert [(a.state, s.problem) for a in found.annotations[1:] for s in found.splits] == [("missing", "")]
    task = DialogueTask()
    assert task.ranks
    task.save(records, cache / "val.json")
    sent = json.loads((cache / "val_leaderboard.json").read_text())
    assert sent == [{key: r[key] for key in ("image_id", "round_id", "ranks")} for r in records]
    dense = [{"image_id": 378466, "round_id": 4, "gt_relevance": [0.0, 1.0, 0.5]}]
    write(cache, "visdial/visdial_1.0_val_dense_annotations.json", dense)
    metrics = DialogueTask().score(records, load_dataset("visdial")["val"])
    best = 1 + 0.5 / np.log2(3)
    assert metrics["ndcg_percent"] == pytest.approx(100 * (1 / np.log2(3)) / best)
    assert metrics["mrr_percent"] == pytest.approx(75) and metrics["mean_rank"] == 1.5
    write(cache, "visdial/visdial_1.0_val.json", [1])
    with pytest.raises(ValueError, match=r"visdial_1.0_val.json should hold data.dialogs"):
        load_dataset("visdial")


def test_imagenet(cache):
    with pytest.raises(FileNotFoundError, match="one folder of pictures per class"):
        load_dataset("imagenet")
    for name in ("n01443537/b.JPEG", "n01440764/c.JPEG", "n01440764/a.JPEG"):
        picture(cache, f"imagenet/val/{name}")
    (cache / "imagenet/val/n01440764/notes.txt").write_text("no picture")
    data = load_dataset("imagenet")["val"]
    assert [(data[i]["image_id"], data[i]["label"]) for i in range(len(data))] == [
        ("val/n01440764/a.JPEG", 0), ("val/n01440764/c.JPEG", 0), ("val/n01443537/b.JPEG", 1),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="2 folders of classes, but there are 1000"):
        data.classnames  # noqa: B018
    for i in range(998):
        (cache / f"imagenet/val/n9{i:07d}").mkdir()
    assert load_dataset("imagenet")["val"].classnames[:2] == ["tench", "goldfish"]


@pytest.mark.parametrize(("file", "name"), CASES)
def test_the_originals_configurations_build(cache, caplog, file, name):
    """Paths of its authors' machines are replaced, and said so."""
    section = {k: v for k, v in CONFIGS[file]["datasets"][name].items() if k != "dataset_card"}
    cls = registry.get_dataset_class(name)
    plan = make_plan(cls, name, section)
    if name == "imagenet":
        assert cls.split_names(plan) == ("val",)
    written = json.dumps(section)
    paths = [str(plan.vis_root), *(s.storage for sources in plan.sources.values() for s in sources)]
    assert not any("/export" in p for p in paths)
    assert ("original authors' machines" in caplog.text) == ("/export" in written)
    assert plan.vis_root is not None and plan.vis_root.is_relative_to(cache)


def test_check_finds_pictures_that_records_name_otherwise(cache):
    """SNLI-VE's records lack the suffix, VisDial's the folder."""
    picture(cache, "flickr30k/images/flickr30k-images/47.jpg")
    rows = [{"image": name, "sentence": "A man.", "label": "neutral"} for name in ("47", "48")]
    for name in ("train", "dev", "test"):
        write(cache, f"snli/annotations/ve_{name}.json", rows)
    found = check("snli_ve", splits=["val"]).splits[0]
    assert (found.media, found.missing, found.missing_names) == (2, 1, ["48.jpg"])
    write(cache, "visdial/visdial_1.0_val.json", visdial_file(True))
    write(cache, "visdial/visdial_1.0_val_dense_annotations.json", [])
    assert check("visdial", splits=["val"]).splits[0].missing == 1
    picture(cache, "visdial/VisualDialog_val2018/VisualDialog_val2018_000000378466.jpg")
    assert check("visdial", splits=["val"]).splits[0].missing == 0
