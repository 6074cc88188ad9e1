"""Data sets: samples, batches, the façade, COCO's format on disk, own tables, easy-VQA."""

from __future__ import annotations

import copy
import json
import multiprocessing
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lavis.common.registry import registry
from lavis.datasets.base import Dataset, draw, group_by, open_picture
from lavis.datasets.builders import build_datasets, dataset_zoo, load_dataset, load_dataset_config
from lavis.datasets.captioning import CaptionDataset
from lavis.datasets.collate import collate
from lavis.datasets.own_table import held_out
from lavis.datasets.shapes import export_coco
from lavis.datasets.tables import PackedRecords, read_records, read_table


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for the hub: a cache root of its own, and downloads that are only written down."""
    fetched: list[dict[str, Any]] = []

    def fetch(url: str, sha256: str | None = None, md5: str | None = None, to: Any = None) -> Path:
        fetched.append({"url": url, "md5": md5, "sha256": sha256})
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        Path(to).write_text('[{"image": "val2014/COCO_val2014_000000000007.jpg", "caption": ["A b. "]}]')
        return Path(to)

    monkeypatch.setattr("lavis.common.hub.cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr("lavis.common.hub.fetch", fetch)
    return types.SimpleNamespace(root=tmp_path / "cache", fetched=fetched)


SMALL = {"n_train": 12, "n_val": 5, "n_test": 4, "n_unseen": 3, "n_new_train": 3, "n_new_test": 2}
PROCESSORS = {
    "vis_processor": {
        "train": {"name": "blip_image_train", "image_size": 32},
        "eval": {"name": "blip_image_eval", "image_size": 32},
    },
    "text_processor": {
        "train": {"name": "blip_caption", "prompt": "a picture of "},
        "eval": {"name": "blip_caption"},
    },
}


# ---------------------------------------------------------------------- collate
def test_collate_by_kind() -> None:
    picture = Image.new("RGB", (2, 2))
    samples = [
        {"t": torch.ones(2), "a": np.zeros((1, 2), np.float32), "i": i, "f": 0.5, "s": "x", "p": picture,
         "text_input": ["q", "r"], "question_id": [i, -1], "flag": True, "mixed": 1 if i else "one"}
        for i in range(3)
    ]  # fmt: skip
    batch = collate([None, *samples, None])
    assert batch["t"].shape == (3, 2) and batch["a"].shape == (3, 1, 2)
    assert batch["i"].tolist() == [0, 1, 2] and batch["i"].dtype == torch.long
    assert batch["f"].dtype == torch.float32 and batch["flag"].dtype == torch.long
    assert batch["s"] == ["x"] * 3 and batch["p"] == [picture] * 3
    assert batch["text_input"] == ["q", "r"] * 3
    assert batch["question_id"].tolist() == [0, -1, 1, -1, 2, -1]
    assert batch["mixed"] == ["one", 1, 1]


def test_collate_answers() -> None:
    batch = collate([
        {"answers": ["a", "b"], "weights": [0.75, 0.25]}, {"answers": ["c"], "weights": [1.0]},
    ])  # fmt: skip
    assert batch["answer"] == ["a", "b", "c"] and batch["n_answers"].tolist() == [2, 1]
    assert batch["weight"].tolist() == [0.75, 0.25, 1.0] and set(batch) == {"answer", "weight", "n_answers"}
    grouped = collate([
        {"answers": [["a"], ["b", "c"]], "weights": [[1], [0.5, 0.5]]},
        {"answers": [["d"], ["e"]], "weights": [[1], [1]]},
    ])  # fmt: skip
    assert grouped["answer"] == list("abcde") and grouped["n_answers"].tolist() == [1, 2, 1, 1]
    assert collate([{"answers": ["a", "b"]}])["weight"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "samples, message",
    [
        ([], "nothing to collate"),
        ([None, None], "all of them are None"),
        ([{"a": 1}, {"a": 1, "b": 2}], "sample 1 of the batch has the key 'b', sample 0 has not"),
        ([{"a": 1, "b": 2}, {"a": 1}], "sample 0 of the batch has the key 'b', sample 1 has not"),
        ([{"a": torch.ones(2)}, {"a": torch.ones(3)}], "'a': tensors of different shapes"),
        ([{"a": ["x"]}, {"a": ["x", "y"]}], "'a': samples of one batch hold lists of different lengths"),
        ([{"a": ["x"]}, {"a": "x"}], "'a'"),
        ([{"answers": ["a"], "weights": [1, 2]}], "1 answers but 2 weights"),
        ([{"weights": [1]}], "no `answers`"),
    ],
)
def test_collate_names_what_is_wrong(samples: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(samples)


# ---------------------------------------------------------------------- the façade
def test_zoo() -> None:
    names = dataset_zoo.get_names()
    assert {"coco_caption", "easy_vqa", "own", "shapes_caption", "shapes_vqa"} <= set(names)
    assert names == sorted(names) and len(dataset_zoo) == len(names)
    assert dataset_zoo.dataset_zoo["coco_caption"] == ["default"] == dict(dataset_zoo)["coco_caption"]
    assert "coco_caption" in str(dataset_zoo)


@pytest.mark.parametrize(
    "name, cfg, message",
    [
        ("coco_captions", {}, "no dataset named 'coco_captions'.*'coco_caption'"),
        ("shapes_caption", {"sizes": 64}, "unknown key 'sizes'.*'size'"),
        ("shapes_caption", {"size": 4}, "shapes_caption: size is 4"),
        ("shapes_caption", {"size": "big"}, "shapes_caption: "),
        ("shapes_caption", {"seed": -1}, "seed"),
        ("shapes_caption", {"n_val": 0}, "n_val is 0"),
        ("shapes_vqa", {"questions": 13}, "questions is 13"),
        ("shapes_vqa", {"questions_per_image": 0}, "questions_per_image is 0"),
        ("shapes_caption", {"captions_per_image": 0}, "captions_per_image is 0"),
        ("shapes_caption", {"type": "large"}, "no type 'large'"),
        ("shapes_caption", {"data_type": "videos"}, "no data_type 'videos'"),
        ("shapes_caption", {"build_info": {"image": {}}}, "unknown key 'image'.*'images'"),
        ("shapes_caption", {"build_info": {"images": "x"}}, "storage"),
        ("shapes_caption", {"vis_processor": {"test": {}}}, "unknown key 'test'"),
        ("shapes_caption", {"vis_processor": {"train": {"image_size": 3}}}, "no `name`"),
        ("shapes_caption", {"vis_processor": {"train": {"name": "blip_image"}}}, "blip_image_"),
        (
            "shapes_caption",
            {"vis_processor": {"train": {"name": "clip_image_eval", "size": 3}}},
            "image_size",
        ),
        ("shapes_caption", {"vis_processor": "blip_image_eval"}, "vis_processor is 'blip_image_eval'"),
        ("shapes_caption", {"build_info": ["a"]}, "build_info is"),
        ("coco_caption", {"build_info": {"annotations": ["a"]}}, "annotations is"),
        ("shapes_caption", {"n_val": "six"}, "n_val is 'six'; expected whole number"),
        ("shapes_caption", {"on_error": True}, "on_error is True"),
        ("own", {"train": "x.csv", "task": "caption"}, "task is 'caption'.*'captioning'"),
        ("own", {}, "at least one file"),
        ("own", {"train": "x.csv", "val_fraction": 1.5}, "val_fraction"),
    ],
)
def test_configuration_errors(name: str, cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_datasets(name, cfg)


def test_splits_and_yaml(tmp_path: Path) -> None:
    built = build_datasets("shapes_caption", SMALL, ["val", "new_test"])
    assert list(built) == ["val", "new_test"] and len(built["val"]) == 5
    with pytest.raises(ValueError, match="no split 'validation'"):
        build_datasets("shapes_caption", SMALL, ["validation"])
    path = tmp_path / "d.yaml"
    path.write_text("datasets:\n  shapes_vqa:\n    n_train: 2\n    questions: 3\n")
    assert len(load_dataset("shapes_vqa", cfg_path=path)["train"]) == 6
    assert load_dataset_config(path) == {"n_train": 2, "questions": 3}
    with pytest.raises(ValueError, match=r"datasets\.shapes_caption"):
        load_dataset("shapes_caption", cfg_path=path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.yaml"):
        load_dataset("shapes_caption", cfg_path=tmp_path / "nothing.yaml")


# ---------------------------------------------------------------------- shapes as samples
def test_captions_raw_and_processed() -> None:
    raw = load_dataset("shapes_caption", **SMALL)
    assert list(raw) == ["train", "val", "test", "unseen", "new_train", "new_test"]
    assert [len(d) for d in raw.values()] == [12, 5, 4, 3, 3, 2]
    sample = raw["train"][3]
    assert isinstance(sample["image"], Image.Image) and sample["image"].size == (64, 64)
    assert sample["text_input"] in raw["train"].records[3]["caption"]
    assert (sample["image_id"], sample["instance_id"]) == (3, "3")
    assert raw["val"][1]["text_input"] == raw["val"].records[1]["caption"][0]
    assert raw["val"].references()[2] == raw["val"].records[2]["caption"]
    assert {raw["train"][0]["text_input"] for _ in range(40)} > {raw["train"][0]["text_input"]}

    data = build_datasets("shapes_caption", {**SMALL, **PROCESSORS})
    batch = data["train"].collater([data["train"][i] for i in range(4)])
    assert batch["image"].shape == (4, 3, 32, 32) and batch["image_id"].tolist() == [0, 1, 2, 3]
    assert all(t.startswith("a picture of ") for t in batch["text_input"])
    assert not data["val"][0]["text_input"].startswith("a picture of")
    perfect = {i: r["caption"][0] for i, r in enumerate(data["val"].records)}
    assert data["val"].extra_metrics(perfect) == {"truth_percent": 100.0}


def test_a_sample_is_a_function_of_index_and_stream() -> None:
    for name in ("shapes_caption", "shapes_vqa"):
        data = build_datasets(name, {**SMALL, **PROCESSORS, "cache": name == "shapes_vqa"})["train"]
        for seed in range(3):
            first, again = (data.sample(5, np.random.default_rng([seed, 1])) for _ in range(2))
            assert first["text_input"] == again["text_input"]
            assert torch.equal(first["image"], again["image"])
        assert not torch.equal(first["image"], data.sample(5, np.random.default_rng(9))["image"])
    with pytest.raises(IndexError, match="there is no sample"):
        data[len(data)]
    assert data[-1]["text_input"] == data[len(data) - 1]["text_input"]


def test_workers_give_the_same_as_none() -> None:
    data = build_datasets("shapes_caption", {**SMALL, **PROCESSORS})["val"]
    serial, parallel = (
        list(DataLoader(data, batch_size=2, num_workers=n, collate_fn=data.collater)) for n in (0, 2)
    )
    assert len(serial) == 3
    for a, b in zip(serial, parallel, strict=True):
        assert torch.equal(a["image"], b["image"]) and a["text_input"] == b["text_input"]


def test_grouped_captions() -> None:
    data = build_datasets("shapes_caption", {**SMALL, **PROCESSORS, "captions_per_image": 3})
    batch = data["train"].collater([data["train"][i] for i in range(4)])
    assert batch["image"].shape[0] == 4 and len(batch["text_input"]) == 12
    for i in range(4):
        texts = [t.removeprefix("a picture of ") for t in batch["text_input"][3 * i : 3 * i + 3]]
        assert len(set(texts)) == 3 and set(texts) <= set(data["train"].records[i]["caption"])
    assert isinstance(data["val"][0]["text_input"], str)


def test_questions_one_by_one_and_grouped() -> None:
    single = load_dataset("shapes_vqa", **SMALL)
    assert len(single["train"]) == 72 and len(single["val"]) == 30
    sample = single["train"][13]
    assert sample["answers"] == single["train"].records[13]["answers"] and sample["weights"] == [1.0]
    assert set(single["val"][7]) == {"image", "text_input", "question_id", "image_id", "instance_id"}
    assert single["val"][7]["question_id"] == 7 and single["val"][7]["image_id"] == 1
    truth = single["val"].ground_truth()
    assert truth[7]["question"] == single["val"][7]["text_input"] and len(truth) == 30
    assert set(truth[7]) == {"answers", "question", "question_type", "answer_type"}
    assert truth[7]["answers"][0] in single["val"].answer_list

    grouped = load_dataset("shapes_vqa", **SMALL, questions_per_image=4)
    assert len(grouped["train"]) == 12 and len(grouped["val"]) == 5
    batch = grouped["train"].collater([grouped["train"][i] for i in range(3)])
    assert len(batch["image"]) == 3 and len(batch["text_input"]) == 12
    assert batch["n_answers"].tolist() == [1] * 12 and len(batch["answer"]) == 12
    known = {(r["question"], r["answers"][0]) for r in grouped["train"].records}
    assert set(zip(batch["text_input"], batch["answer"], strict=True)) <= known
    assert len(set(batch["text_input"][:4])) == 4
    batch = grouped["val"].collater([grouped["val"][i] for i in range(5)])
    assert batch["question_id"].tolist() == list(range(30)) and batch["image_id"].tolist() == list(range(5))


# ---------------------------------------------------------------------- COCO
@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for split, dataset in build_datasets("shapes_caption", SMALL, ["train", "val", "test"]).items():
        suffix = ".jpg" if split == "val" else ".png"
        export_coco(dataset, tmp_path / "coco", suffix)  # type: ignore[arg-type]
    return tmp_path / "coco"


def _coco_cfg(coco: Path) -> dict:
    annotations = coco / "annotations"
    return {
        "build_info": {
            "annotations": {
                s: {"storage": str(annotations / f"coco_karpathy_{s}.json")} for s in ("train", "val", "test")
            },
            "images": {"storage": str(coco / "images")},
        }
    }


def test_coco_from_files(coco: Path) -> None:
    data = build_datasets("coco_caption", _coco_cfg(coco))
    shapes = build_datasets("shapes_caption", SMALL)
    assert list(data) == ["train", "val", "test"] and [len(d) for d in data.values()] == [60, 5, 4]
    sample = data["train"][7]
    assert sample["text_input"] == shapes["train"].records[1]["caption"][2]
    assert sample["image_id"] == 1 and sample["instance_id"] == "7"
    assert sample["image"].mode == "RGB"
    assert np.array_equal(np.asarray(sample["image"]), np.asarray(shapes["train"][1]["image"]))
    sample = data["test"][2]
    assert sample["image_id"] == 2 and sample["text_input"] == shapes["test"].records[2]["caption"][0]
    assert data["val"].references() == shapes["val"].references()
    batch = data["val"].collater([data["val"][i] for i in range(3)])
    assert batch["image_id"].tolist() == [0, 1, 2]
    grouped = build_datasets("coco_caption", {**_coco_cfg(coco), "captions_per_image": 2}, ["train"])["train"]
    assert len(grouped) == 12
    assert set(grouped[4]["text_input"]) <= set(shapes["train"].records[4]["caption"])
    assert len(grouped[4]["text_input"]) == 2


def test_coco_as_in_the_paper(hub: types.SimpleNamespace, coco: Path) -> None:
    data = load_dataset("coco_caption", vis_path=coco / "images")
    assert list(data) == ["train", "val", "test"]
    assert [f["url"].rsplit("/", 1)[1] for f in hub.fetched] == [
        f"coco_karpathy_{s}.json" for s in ("train", "val", "test")
    ]
    assert hub.fetched[0]["md5"] == "aa31ac474cf6250ebb81d18348a07ed8"
    assert (hub.root / "coco/annotations/coco_karpathy_test.json").is_file()
    load_dataset("coco_caption")
    assert len(hub.fetched) == 3  # the second time they are there
    with pytest.raises(FileNotFoundError, match=r"COCO_val2014_000000000007\.jpg.*vis_path"):
        data["test"][0]
    Image.new("L", (9, 6)).save(coco / "images" / "val2014" / "COCO_val2014_000000000007.jpg")
    sample = data["test"][0]
    assert sample["image"].size == (9, 6) and sample["image"].mode == "RGB"
    assert sample["image_id"] == 7 and sample["text_input"] == "A b. "


def test_broken_and_missing_files(hub: types.SimpleNamespace, coco: Path, tmp_path: Path) -> None:
    picture = coco / "images" / "test2014" / "COCO_test2014_000000000001.png"
    picture.write_bytes(picture.read_bytes()[:60])
    data = build_datasets("coco_caption", _coco_cfg(coco), ["test"])["test"]
    with pytest.raises(OSError, match=r"COCO_test2014_000000000001\.png cannot be decoded"):
        data[1]
    data.check()
    data.vis_root = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.check()
    cfg = {"build_info": {"annotations": {"train": {"storage": str(tmp_path / "no.json")}}}}
    with pytest.raises(FileNotFoundError, match=r"coco_caption/train.*no\.json"):
        build_datasets("coco_caption", cfg, ["train"])
    cfg = {"build_info": {"annotations": {"val": None, "test": {"url": str(coco / "x.json")}}}}
    with pytest.raises(FileNotFoundError, match=r"x\.json"):
        build_datasets("coco_caption", cfg, ["test"])
    with pytest.raises(ValueError, match="no split 'val'"):
        build_datasets("coco_caption", cfg, ["val"])
    for bad, message in (
        ({"train": "x"}, "mapping"),
        ({"train": {"path": "x"}}, "unknown key 'path'"),
        ({"extra": {"url": "x"}}, "storage is missing"),
        ({"train": {"storage": "x", "url": ["a", "b"]}}, "equally many"),
    ):
        with pytest.raises(ValueError, match=message):
            build_datasets("coco_caption", {"build_info": {"annotations": bad}})
    named = [{"image": "a/b.jpg", "caption": ["x"]}]
    path = tmp_path / "named.json"
    path.write_text(json.dumps(named))
    cfg = {"build_info": {"annotations": {"test": {"storage": str(path)}}}}
    with pytest.raises(ValueError, match=r"record 0.*COCO's number"):
        build_datasets("coco_caption", cfg, ["test"])["test"].references()


# ---------------------------------------------------------------------- own data
@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (8 + i, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def _write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


FORMS: list[tuple[str, str]] = [
    ("a.jsonl", '{"image": "0.png", "text": "Äpfel"}\n\n{"image": "1.png", "text": ["b", "c"]}\n'),
    ("a.json", '[{"image": "0.png", "caption": "Äpfel"}, {"image": "1.png", "caption": ["b", "c"]}]'),
    ("a.csv", 'image,text\r\n0.png,Äpfel\r\n\r\n1.png,"[""b"", ""c""]"\r\n'),
    ("a.tsv", "image\ttext\n0.png\tÄpfel\n1.png\tb\n1.png\tc\n"),
]


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("name, text", FORMS)
def test_own_captions_in_every_form(photos: Path, name: str, text: str, bom: bool) -> None:
    path = _write(photos.parent / name, text, "utf-8-sig" if bom else "utf-8")
    data = load_dataset("own", train=str(path), val=str(path), images=str(photos))
    assert list(data) == ["train", "val"]
    assert data["train"][0]["text_input"] == "Äpfel" and data["train"][0]["image"].size == (8, 8)
    assert data["train"][1]["text_input"] in ("b", "c")
    assert data["val"].references() == {0: ["Äpfel"], 1: ["b", "c"]} and len(data["val"]) == 2
    grouped = load_dataset("own", train=str(path), val_fraction=0, captions_per_image=2, vis_path=photos)
    assert sorted(grouped["train"][1]["text_input"]) == ["b", "c"] and list(grouped) == ["train"]
    assert grouped["train"][0]["text_input"] == ["Äpfel", "Äpfel"]


def test_own_held_out_by_picture(photos: Path) -> None:
    rows = "".join(f'{{"image": "{i % 6}.png", "text": "{i}"}}\n' for i in range(18))
    path = _write(photos / "all.jsonl", rows)
    data = load_dataset("own", train=path, val_fraction=0.3)
    seen = [{r["image"] for r in data[s].records} for s in ("train", "val")]
    assert seen[0] and seen[1] and not seen[0] & seen[1] and len(seen[0] | seen[1]) == 6
    again = load_dataset("own", train=path, val_fraction=0.3)
    assert again["val"].records == data["val"].records
    assert held_out(["a"], 0.5) == set() and held_out(["a", "b"], 0.0) == set()
    assert len(held_out(["a", "b"], 0.001)) == 1 == len(held_out(["a", "b"], 0.999))
    many = [f"{i}.jpg" for i in range(2000)]
    assert 60 < len(held_out(many, 0.05)) < 145
    assert held_out(many[:1000], 0.05) <= held_out(many, 0.05)  # growing data moves nothing


def test_own_column_split(photos: Path) -> None:
    table = "image,question,answer,split\n0.png,what?,red,train\n1.png,who?,blue,test\n2.png,how?,3,val\n"
    data = load_dataset("own", train=_write(photos / "s.csv", table))
    assert {s: len(d) for s, d in data.items()} == {"train": 1, "val": 1, "test": 1}
    with pytest.raises(ValueError, match=r"s2\.csv, line 2: split is 'dev'"):
        load_dataset("own", train=_write(photos / "s2.csv", "image,text,split\n0.png,a,dev\n"))


def test_own_questions(photos: Path) -> None:
    rows = [
        {
            "image": "0.png",
            "image_id": 9,
            "question": "What colour?",
            "answer": ["red", "red", "dark red"],
            "id": "q1",
        },
        {"image": "0.png", "image_id": 9, "question": "How many?", "answer": 2, "id": 7},
        {"image": "1.png", "question": "Is it red?", "answer": "yes", "image_id": 55, "id": "8"},
    ]
    path = _write(photos / "q.jsonl", "\n".join(json.dumps(r) for r in rows))
    data = load_dataset("own", train=str(path), val=str(path))
    assert data["train"][0]["answers"] == ["red", "dark red"]
    assert data["train"][0]["weights"] == pytest.approx([2 / 3, 1 / 3])
    assert data["val"].answer_list == ["red", "2", "dark red", "yes"]
    assert list(data["val"].ground_truth()) == ["q1", 7, 8]
    assert data["val"].ground_truth()[7]["answer_type"] == "number"
    assert data["val"][2]["image_id"] == 55
    grouped = load_dataset("own", val=str(path), questions_per_image=1, task="vqa")["val"]
    batch = grouped.collater([grouped[i] for i in range(2)])
    assert batch["question_id"] == ["q1", 7, 8, -1]
    assert batch["text_input"][2:] == ["Is it red?"] * 2
    listed = _write(photos / "answers.txt", "yes\nno\n\n")
    assert load_dataset("own", test=path, answer_list=str(listed))["test"].answer_list == ["yes", "no"]


def test_own_retrieval_and_classes(photos: Path) -> None:
    path = _write(photos / "r.csv", "image,text\n0.png,a\n0.png,b\n1.png,c\n")
    gallery = load_dataset("own", test=path, task="retrieval")["test"]
    assert (
        gallery.text == ["a", "b", "c"]
        and gallery.txt2img == {0: 0, 1: 0, 2: 1}
        and gallery.image == ["0.png", "1.png"]
    )
    rows = "image,label,text\n0.png,dog,\n1.png,cat,is it?\n2.png,cat,\n"
    path = _write(photos / "c.csv", rows)
    data = load_dataset(
        "own", train=path, val=path, test=_write(photos / "t.csv", "image,label\n3.png,\n4.png,\n")
    )
    assert data["train"].classnames == data["val"].classnames == ["cat", "dog"]
    assert [data["val"][i]["label"] for i in range(3)] == [1, 0, 0] and data["train"][1][
        "text_input"
    ] == "is it?"
    assert "label" not in data["test"][0] and data["test"][1]["instance_id"] == "1"
    other = _write(photos / "o.csv", "image,label\n0.png,dogg\n")
    with pytest.raises(ValueError, match=r"o\.csv, line 2: the class 'dogg' is not among the 2.*'dog'"):
        load_dataset("own", train=path, val=other)["val"][0]
    with pytest.raises(ValueError, match="columns image and video"):
        load_dataset("own", test=_write(photos / "b.csv", "image,video,text\n0.png,a.mp4,x\n"))


def test_own_clips(photos: Path) -> None:
    """A path is what a clip is until a processor reads it."""
    (photos / "a.mp4").write_bytes(b"")
    path = _write(photos / "v.jsonl", '{"video": "a.mp4", "text": ["x", "y"]}\n')
    data = load_dataset("own", test=path)["test"]
    assert data[0]["video"] == photos / "a.mp4" and data.references() == {0: ["x", "y"]}
    classes = load_dataset("own", train=_write(photos / "k.csv", "video,label\na.mp4,run\n"), val_fraction=0)[
        "train"
    ]
    assert (classes[0]["label"], classes[0]["answers"], classes[0]["video"]) == (0, 0, photos / "a.mp4")
    with pytest.raises(FileNotFoundError, match="1 of 1 clips are missing"):
        load_dataset("own", test=_write(photos / "m.csv", "video,text\nb.mp4,x\n"))


def test_own_test_split_may_lack_texts(photos: Path) -> None:
    path = _write(photos / "t.csv", "image,text\n0.png,\n1.png,a dog\n")
    data = load_dataset("own", test=path)["test"]
    assert data[0]["text_input"] == "" and data.references() == {0: [], 1: ["a dog"]}
    with pytest.raises(ValueError, match=r"t\.csv, line 2: there is no text \(or caption\)"):
        load_dataset("own", train=path, val_fraction=0)


def test_own_test_split_may_lack_the_column(photos: Path) -> None:
    path = _write(photos / "t.csv", "image,image_id\n0.png,7\n1.png,9\n")
    data = load_dataset("own", test=path)["test"]
    assert [data[i]["image_id"] for i in range(2)] == [7, 9] and data.references() == {7: [], 9: []}
    with pytest.raises(ValueError, match=r"needed are image \(or video\), text \(or caption\)"):
        load_dataset("own", train=path, val_fraction=0, task="captioning")
    with pytest.raises(ValueError, match=r"needed are image.*its first line should name the columns"):
        load_dataset("own", test=_write(photos / "h.csv", "0.png\n1.png\n"))


def test_own_turns_photographs(photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (20, 10)).save(photos / "r.jpg", exif=exif)
    path = _write(photos / "r.csv", "image,text\nr.jpg,a\n")
    assert load_dataset("own", test=path)["test"][0]["image"].size == (10, 20)
    assert load_dataset("own", test=path, upright=False)["test"][0]["image"].size == (20, 10)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("e.csv", "img,text\n0.png,a\n", r"e\.csv: found the columns img, text; needed are image .*for captioning"),
        ("e.csv", "image,question\n0.png,a\n", r"are image \(or video\), question, answer \(or answers\) for vqa$"),
        ("e.csv", "image,text\n0.png,a,b\n", r"line 2: 3 fields, but the header has 2"),
        ("e.csv", 'image,text\n0.png,"a\n', r"e\.csv, line 2: .*quote"),
        ("e.csv", "image,text\n,a\n", r"line 2: image is None"),
        ("e.csv", "image,text\n", "has no rows"),
        ("e.jsonl", '{"image": "0.png", "text": "a"}\n{"image": "1.png"\n', r"line 2: not valid JSON"),
        ("e.jsonl", '["0.png"]\n', r"line 1: should be a JSON object, not list"),
        ("e.jsonl", '{"image": "0.png", "text": {"a": 1}}\n', r"line 1: text is {'a': 1}"),
        ("e.jsonl", '{"image": "0.png", "text": ["a", ""]}\n', r"line 1: text holds ''"),
        ("e.json", '{"image": "0.png"}', "should hold a JSON list"),
        ("e.json", "[1]", "record 1: should be a JSON object"),
        ("e.json", "[{]", "line 1: not valid JSON"),
        ("e.txt", "image,text\n", "suffix should be one of"),
        ("e.jsonl", '{"image":"0.png","question":"a","answer":"b","id":1}\n'
         '{"image":"0.png","question":"c","answer":"b","id":1}\n', "line 2: the id 1 is already that of line 1"),
    ],
)  # fmt: skip
def test_own_errors_say_where(photos: Path, name: str, text: str, message: str) -> None:
    path = _write(photos / name, text)
    with pytest.raises(ValueError, match=message):
        load_dataset("own", train=path, val_fraction=0)


def test_own_missing_things(photos: Path) -> None:
    rows = "image,text\n" + "".join(f"x{i}.png,a\n" for i in range(7)) + "0.png,b\n"
    path = _write(photos / "m.csv", rows)
    with pytest.raises(FileNotFoundError) as e:
        load_dataset("own", train=path, val_fraction=0)
    assert "7 of 8 pictures are missing" in str(e.value) and "x0.png (line 2)" in str(e.value)
    assert "and 2 more" in str(e.value) and "x5.png" not in str(e.value)
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_dataset("own", train=path, images=str(photos / "none"))
    with pytest.raises(FileNotFoundError, match=r"no data file .*none\.csv"):
        load_dataset("own", train=photos / "none.csv")
    with pytest.raises(FileNotFoundError, match="answer_list"):
        table = _write(photos / "a.csv", "image,question,answer\n0.png,a,b\n")
        load_dataset("own", train=table, answer_list="none.txt")
    with pytest.raises(
        ValueError, match=r"found the columns image, text; needed are image \(or video\), question, answer"
    ):
        load_dataset("own", train=path, task="vqa")
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        read_table(_write(photos / "l.csv", "image,text\n0.png,Äpfel\n", "latin-1"))


def test_annotation_files(tmp_path: Path) -> None:
    lines = _write(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n')
    assert read_records(lines) == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match=r"b\.json, line 2"):
        read_records(_write(tmp_path / "b.json", '{"a": 1}\n{"a"\n'))


# ---------------------------------------------------------------------- easy-VQA
def test_easy_vqa() -> None:
    pytest.importorskip("easy_vqa")
    data = load_dataset("easy_vqa")
    sizes = {s: len(d) for s, d in data.items()}
    assert sizes["train"] + sizes["val"] == 38_575 and sizes["test"] == 9_673
    assert 0.03 < sizes["val"] / 38_575 < 0.07
    train, val = ({r["image_id"] for r in data[s].records} for s in ("train", "val"))
    assert not train & val and len(train | val) == 4_000
    assert len(data["test"].answer_list) == 13 == len(set(data["test"].answer_list))
    assert {r["answers"][0] for d in data.values() for r in d.records} <= set(data["test"].answer_list)
    sample = data["test"][0]
    assert sample["image"].size == (64, 64) and sample["text_input"] == "what is the red shape?"
    assert {r["question_type"] for r in data["val"].records} == {"color", "shape", "yes/no"}

    cfg = {"questions_per_image": 8, "text_processor": {"eval": {"name": "blip_question"}}}
    grouped = build_datasets("easy_vqa", {**cfg, "vis_processor": PROCESSORS["vis_processor"]})
    assert [len(d) for d in grouped.values()] == [len(train), len(val), 1_000]
    batch = grouped["train"].collater([grouped["train"][i] for i in range(2)])
    assert len(batch["text_input"]) == 16 and batch["image"].shape == (2, 3, 32, 32)
    batch = grouped["test"].collater([grouped["test"][i] for i in range(6)])
    ids = batch["question_id"].tolist()
    assert len(ids) == len(batch["text_input"]) and len(ids) % 6 == 0
    kept = [i for i in ids if i != -1]
    assert kept == list(range(len(kept))) and kept[-1] < len(ids)
    truth = grouped["test"].ground_truth()[0]
    assert truth == {
        "answers": ["triangle"],
        "question": "what is the red shape?",
        "question_type": "shape",
        "answer_type": "other",
    }


def test_easy_vqa_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install openlavis\[easy-vqa\]"):
        load_dataset("easy_vqa")


# ---------------------------------------------------------------------- base
def test_a_new_data_set_is_one_class(photos: Path) -> None:
    @registry.register_dataset("my")
    class My(CaptionDataset):
        name = "my"

        @classmethod
        def split_names(cls, plan: Any) -> tuple[str, ...]:
            return ("train",)

        @classmethod
        def load(cls, split: str, plan: Any) -> Dataset:
            records = [{"image": "0.png", "caption": "a"}, {"image": "0.png", "caption": "b"}]
            return cls(records, split, vis_root=plan.vis_root, options=plan.options)

    try:
        data = load_dataset("my", vis_path=photos, captions_per_image=2)["train"]
        assert len(data) == 1 and sorted(data[0]["text_input"]) == ["a", "b"]
        assert "my" in dataset_zoo.get_names() and "my/train: 1 samples" in repr(data)
        with pytest.raises(NotImplementedError):
            Dataset([{}], "train")[0]
    finally:
        registry.unregister("dataset", "my")


def test_any_callable_is_a_processor() -> None:
    data = load_dataset("shapes_caption", **SMALL)["train"]
    data.set_processors(lambda p: p.size, str.upper)
    sample = data[0]
    assert sample["image"] == (64, 64) and sample["text_input"].isupper()

    def noisy(text: str, rng: np.random.Generator) -> str:
        return text + str(rng.integers(10**9))

    data.set_processors(None, noisy)
    texts = {data.sample(0, np.random.default_rng(s))["text_input"] for s in (1, 1, 2)}
    assert len(texts) == 2


def test_helpers(tmp_path: Path) -> None:
    groups = group_by("abca")
    assert list(groups) == [[0, 3], [1], [2]] and groups[-1] == [2] and groups[:2] == [[0, 3], [1]]
    assert list(group_by(())) == []
    with pytest.raises(IndexError):
        groups[3]
    rng = np.random.default_rng(0)
    assert sorted(draw(rng, 5, 5)) == [0, 1, 2, 3, 4] and len(set(draw(rng, 9, 4))) == 4
    more = draw(rng, 3, 7)
    assert len(more) == 7 and set(more) == {0, 1, 2}
    assert draw(rng, 1, 1) == [0]
    text = _write(tmp_path / "x.jpg", "not a picture")
    with pytest.raises(OSError, match=r"x\.jpg cannot be decoded"):
        open_picture(text)


def test_the_room_imports_nothing_that_it_does_not_need() -> None:
    code = (
        "import sys; from lavis.datasets.builders import dataset_zoo; dataset_zoo.get_names();"
        "print('easy_vqa' in sys.modules, 'omegaconf' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert out == ["False", "False"]


def test_workers_started_by_spawn_get_a_copy(photos: Path) -> None:
    """As on macOS and Windows; processors included."""
    path = _write(photos / "w.csv", "image,text\n" + "".join(f"{i}.png,t{i}\n" for i in range(6)))
    processor = {"eval": {"name": "blip_image_eval", "image_size": 16}}
    data = build_datasets("own", {"val": str(path), "vis_processor": processor}, ["val"])["val"]
    loader = DataLoader(
        data, batch_size=3, num_workers=1, collate_fn=data.collater, multiprocessing_context="spawn"
    )
    batches = list(loader)
    assert [b["text_input"] for b in batches] == [["t0", "t1", "t2"], ["t3", "t4", "t5"]]
    assert torch.equal(batches[1]["image"], torch.stack([data[i]["image"] for i in range(3, 6)]))


def test_packed_records_are_those_that_were_packed() -> None:
    rows = [{"image": "ä.png", "caption": ["x", None], "n": i, "f": 0.1} for i in range(50)]
    packed = PackedRecords(rows)
    assert (
        packed == rows and packed[-1] == rows[-1] and packed[3:40:7] == rows[3:40:7] and list(packed) == rows
    )
    assert copy.deepcopy(packed) == packed and packed != rows[:-1]
    with pytest.raises(IndexError, match="no record 50"):
        packed[50]
    assert len(PackedRecords([])) == 0


def _third(records: PackedRecords, pipe: Any) -> None:
    pipe.send((records[2], type(records.bytes).__name__))


def test_workers_that_are_started_map_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All from one temporary file, which goes with the records."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    packed = PackedRecords([{"image": f"{i}.png"} for i in range(5)])
    context = multiprocessing.get_context("spawn")
    for _ in range(2):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_third, args=(packed, send))
        process.start()
        assert receive.recv() == ({"image": "2.png"}, "memmap")
        process.join(30)
    assert len(list(tmp_path.iterdir())) == 1
    del packed
    assert not list(tmp_path.iterdir())
