"""Drawn pictures in the layouts of published data sets, for trying and testing what reads those."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from lavis.common.files import write_json
from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.datasets.base import Record
from lavis.datasets.captioning import as_list
from lavis.datasets.sources import Source
from lavis.datasets.visdial import PLACES

_COCO = {"train": "train2014", "val": "val2014", "test": "test2015"}


def export_pictures(dataset: Any, name: str, root: str | Path) -> list[Path]:
    """Write a split in the layout of a published data set of pictures, pictures included.

    Args:
        dataset: a split of `shapes_caption`, `shapes_retrieval`, `shapes_vqa`, `shapes_nlvr`, `shapes_entailment` or
            `shapes_dialogue`, whichever has what the other one needs.
        name: the other one: one of `LAYOUTS`.
        root: the cache root; everything goes where that data set looks for it.

    Returns:
        The annotation files, or the archive.

    Raises:
        ValueError: there is no such layout here.
    """
    if name not in LAYOUTS:
        raise ValueError(f"there is no layout of {name!r} for pictures.{suggest(name, LAYOUTS)}")
    return LAYOUTS[name](dataset, name, Path(root))


def _sources(name: str, split: str, root: Path) -> list[Path]:
    source = registry.get_dataset_class(name).sources[split]
    return [root / s.storage for s in ((source,) if isinstance(source, Source) else source)]


def _save(dataset: Any, record: Record, path: Path) -> None:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.picture(record).save(path, quality=95)


def _in_coco(dataset: Any, record: Record) -> str:
    folder = _COCO[dataset.split]
    return f"{folder}/COCO_{folder}_{record['image_id']:012d}.jpg"


def _flickr(dataset: Any, number: int) -> str:
    """A number of ten digits, another one in each split, as Flickr's are."""
    return f"{list(_COCO).index(dataset.split) + 1}{number:09d}"


def export_coco(dataset: Any, folder: str | Path, suffix: str = ".png") -> Path:
    """Write a split in the layout of COCO captions (Karpathy's split files), pictures included.

    Args:
        dataset: a split of `shapes_caption`.
        folder: gets `annotations/coco_karpathy_<split>.json` and `images/<split>2014/COCO_….png`.
        suffix: ".png" or ".jpg".

    Returns:
        The path of the annotation file. Training splits have one record per caption, others one per
        picture.
    """
    folder = Path(folder)
    year = f"{dataset.split}2014"
    (folder / "images" / year).mkdir(parents=True, exist_ok=True)
    rows: list[Record] = []
    for record in dataset.records:
        number = record["image_id"]
        name = f"{year}/COCO_{year}_{number:012d}{suffix}"
        dataset.picture(record).save(folder / "images" / name)
        if dataset.training:
            rows += [{"image": name, "caption": c, "image_id": f"coco_{number}"} for c in record["caption"]]
        else:
            rows.append({"image": name, "caption": record["caption"]})
    return write_json(folder / "annotations" / f"coco_karpathy_{dataset.split}.json", rows)


def _coco(dataset: Any, name: str, root: Path) -> list[Path]:
    return [export_coco(dataset, root / "coco", ".jpg")]


def _flickr30k(dataset: Any, name: str, root: Path) -> list[Path]:
    """A record per caption in training, else per picture."""
    rows: list[Record] = []
    for record in dataset.records:
        image = f"flickr30k-images/{_flickr(dataset, record['image_id'])}.jpg"
        _save(dataset, record, root / "flickr30k/images" / image)
        captions = as_list(record["caption"])
        if dataset.training:
            rows += [{"image": image, "caption": c, "image_id": record["image_id"]} for c in captions]
        else:
            rows.append({"image": image, "caption": captions})
    (path,) = _sources(name, dataset.split, root)
    return [write_json(path, rows)]


def _vqa(dataset: Any, name: str, root: Path) -> list[Path]:
    """VQAv2's: records without answers where there is evaluated, and the server's two files for val."""
    rows: list[Record] = []
    asked: list[Record] = []
    truths: list[Record] = []
    for record in dataset.records:
        image = _in_coco(dataset, record)
        _save(dataset, record, root / "coco/images" / image)
        ids = {"question_id": record["question_id"], "image_id": record["image_id"]}
        row = {
            "image": image,
            "question": record["question"],
            "question_id": record["question_id"],
            "dataset": "vqa",
        }
        people = [a for a in record["answers"] for _ in range(10 // len(record["answers"]))]
        rows.append({**row, "answer": people} if dataset.training else row)
        asked.append({**ids, "question": record["question"]})
        answers = [
            {"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(people)
        ]
        kinds = {
            "question_type": record.get("question_type", ""),
            "answer_type": record.get("answer_type", ""),
        }
        truths.append({**ids, **kinds, "answers": answers, "multiple_choice_answer": people[0]})
    contents = [rows, list(dataset.answer_list), {"questions": asked}, {"annotations": truths}]
    if dataset.training:
        contents = [rows, []]
    return [write_json(path, content) for path, content in zip(_sources(name, dataset.split, root), contents)]


def _nlvr(dataset: Any, name: str, root: Path) -> list[Path]:
    folder, rows = {"train": "train/0", "val": "dev", "test": "test1"}[dataset.split], []
    for number, record in enumerate(dataset.records):
        images = [f"{folder}/{dataset.split}-{number}-0-img{i}.png" for i in range(2)]
        for image, picture in zip(images, dataset.pictures(record)):
            (root / "nlvr/images" / image).parent.mkdir(parents=True, exist_ok=True)
            picture.save(root / "nlvr/images" / image)
        rows.append({"images": images, "sentence": record["sentence"], "label": str(record["label"])})
    (path,) = _sources(name, dataset.split, root)
    return [write_json(path, rows)]


def _entailment(dataset: Any, name: str, root: Path) -> list[Path]:
    rows = []
    for number, record in enumerate(dataset.records):
        image = _flickr(dataset, number)
        _save(dataset, record, root / f"flickr30k/images/flickr30k-images/{image}.jpg")
        rows.append({"image": image, "sentence": record["sentence"], "label": record["label"]})
    (path,) = _sources(name, dataset.split, root)
    return [write_json(path, rows)]


def _dialogues(dataset: Any, name: str, root: Path) -> list[Path]:
    """VisDial's: questions, answers and candidates are places in lists."""
    questions: dict[str, int] = {}
    answers: dict[str, int] = {}
    dialogues, judged = [], []
    for record in dataset.records:
        number = record["image_id"]
        _save(dataset, record, root / "visdial" / PLACES[dataset.split][0].format(number))
        turns = []
        for turn in record["dialog"]:
            options = [answers.setdefault(a, len(answers)) for a in turn["answer_options"]]
            row = {
                "question": questions.setdefault(turn["question"], len(questions)),
                "answer_options": options,
            }
            row |= {"answer": answers.setdefault(turn["answer"], len(answers)), "gt_index": turn["gt_index"]}
            turns.append(row)
        if dataset.split == "test":
            del turns[-1]["answer"], turns[-1]["gt_index"]
        dialogues.append({"image_id": number, "caption": record["caption"], "dialog": turns})
        first = record["dialog"][0]
        relevance = [float(i == first["gt_index"]) for i in range(len(first["answer_options"]))]
        judged.append({"image_id": number, "round_id": 1, "gt_relevance": relevance})
    data = {"questions": list(questions), "answers": list(answers), "dialogs": dialogues}
    contents = [{"version": "1.0", "split": dataset.split, "data": data}, judged]
    return [write_json(path, content) for path, content in zip(_sources(name, dataset.split, root), contents)]


def _folders(dataset: Any, name: str, root: Path) -> list[Path]:
    """ImageNet's: a folder per class, here per colour and shape of pictures with a single object."""
    written = []
    for record in dataset.records:
        objects = record["scene"]["objects"]
        if len(objects) != 1:
            continue
        place = f"n{objects[0]['color']}_{objects[0]['shape']}/{dataset.split}_{record['image_id']:08d}.JPEG"
        path = root / "imagenet" / dataset.split / place
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.picture(record).save(path, format="JPEG", quality=95)
        written.append(path)
    return written


def _archive(dataset: Any, name: str, root: Path) -> list[Path]:
    """One shard, `shards/<split>.tar`."""
    path = root / "shards" / f"{dataset.split}.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for record in dataset.records:
            picture: Image.Image = dataset.picture(record)
            buffer = io.BytesIO()
            picture.save(buffer, format="JPEG", quality=95)
            caption = json.dumps({"caption": as_list(record["caption"])[0]}).encode()
            for suffix, data in (("jpg", buffer.getvalue()), ("json", caption)):
                member = tarfile.TarInfo(f"{record['image_id']:09d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return [path]


LAYOUTS: dict[str, Callable[[Any, str, Path], list[Path]]] = {
    "coco_caption": _coco,
    "coco_retrieval": _coco,
    "flickr30k": _flickr30k,
    "flickr30k_caption": _flickr30k,
    "coco_vqa": _vqa,
    "nlvr": _nlvr,
    "snli_ve": _entailment,
    "visdial": _dialogues,
    "imagenet": _folders,
    "shards": _archive,
}
