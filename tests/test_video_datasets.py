"""Published data sets of clips: shapes as real video files in their layouts, read, trained on and evaluated."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lavis.common.registry import registry
from lavis.datasets.base import MissingMediaError, UnreadableMediaError
from lavis.datasets.builders import build_datasets, load_dataset
from lavis.datasets.checking import check
from lavis.datasets.clips import Clip
from lavis.datasets.shapes import export_clips
from lavis.datasets.video import VideoQADataset, VideoVQADataset
from lavis.models import load_model
from lavis.processors import load_processor
from lavis.runners import train

pytest.importorskip("av")

SIZES = {"n_train": 10, "n_val": 5, "n_test": 4}
PUBLISHED = {
    "msrvtt_caption": "shapes_video_caption",
    "msrvtt_qa": "shapes_video_qa",
    "msrvtt_retrieval": "shapes_video_retrieval",
    "msvd_caption": "shapes_video_caption",
    "msvd_qa": "shapes_video_qa",
    "didemo_retrieval": "shapes_video_retrieval",
    "vatex_caption": "shapes_video_caption",
    "avsd_dialogue": "shapes_video_dialogue",
}
ALIASES = {"msrvtt_cap": "msrvtt_caption", "msvd_cap": "msvd_caption"}
CLIPS = {p: {"name": "alpro_video_eval", "image_size": 64, "n_frms": 8} for p in ("train", "eval")}
TEXT = {p: {"name": "blip_caption"} for p in ("train", "eval")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with all of them."""
    root = tmp_path_factory.mktemp("cache")
    for name, shapes in PUBLISHED.items():
        options: dict[str, Any] = {"rounds": 3} if name == "avsd_dialogue" else {}
        for dataset in load_dataset(shapes, **SIZES, **options).values():
            export_clips(dataset, name, root, suffix=".avi" if name.startswith("msvd") else ".mp4")
    return root


@pytest.fixture
def cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVIS_CACHE", str(root))
    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    return root


def drawn(name: str, split: str, **options: Any) -> Any:
    return build_datasets(PUBLISHED[name], {**SIZES, **options}, [split])[split]


# --------------------------------------------------------------------------------- files on disk
def test_files_lie_where_the_original_has_them(cache):
    for path in (
        "msrvtt/annotations/cap_train.json", "msrvtt/annotations/qa_ans2label.json",
        "msrvtt/annotations/retrieval_test.json", "msrvtt/videos/train0.mp4", "msvd/annotations/qa_val.json",
        "msvd/videos/test3.avi", "didemo/annotations/retrieval_val.json", "didemo/videos/val4.mp4",
        "vatex/annotations/cap_test.json", "avsd/annotations/test.json", "avsd/videos/train9.mp4",
    ):  # fmt: skip
        assert (cache / path).is_file(), path


def test_files_come_from_the_original_addresses():
    """The reference's table of configurations, as far as these data sets go."""
    published = "https://storage.googleapis.com/sfr-vision-language-research/"
    expected = {
        ("msrvtt_caption", "val", 0): "LAVIS/datasets/msrvtt/cap_val.json",
        ("msrvtt_qa", "test", 0): "LAVIS/datasets/msrvtt/qa_test.json",
        ("msrvtt_qa", "test", 1): "LAVIS/datasets/msrvtt/train_ans2label.json",
        ("msrvtt_retrieval", "train", 0): "LAVIS/datasets/msrvtt/retrieval_train.json",
        ("msvd_caption", "train", 0): "LAVIS/datasets/msvd/cap_train.json",
        ("msvd_qa", "val", 1): "LAVIS/datasets/msvd/train_ans2label.json",
        ("didemo_retrieval", "test", 0): "LAVIS/datasets/didemo/retrieval_test.json",
        ("vatex_caption", "test", 0): "LAVIS/datasets/vatex/cap_private_test.json",
        ("avsd_dialogue", "train", 0): "datasets/avsd_dstc7_train.json",
    }
    for (name, split, which), path in expected.items():
        given = registry.get_dataset_class(name).sources[split]
        source = given[which] if isinstance(given, tuple) else given
        assert source.url == published + path
    for name in PUBLISHED:
        assert set(registry.get_dataset_class(name).sources) == {"train", "val", "test"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_data_set_has_its_card(name):
    card = sys.modules[registry.get_dataset_class(name).__module__].__doc__ or ""
    for heading in (
        "Description", "Source", "Splits", "Task", "Metrics", "Files", "Licence", "Known faults", "Responsible use",
        "References",
    ):  # fmt: skip
        assert card.count(f"**{heading}.**") == 1, heading
    assert registry.get_dataset_class(name).downloads


def test_the_configurations_names_are_known(cache):
    for alias, name in ALIASES.items():
        assert registry.get_dataset_class(alias) is registry.get_dataset_class(name)
        assert len(load_dataset(alias)["val"]) == len(load_dataset(name)["val"]) == 5


# ------------------------------------------------------------------------------------- samples
@pytest.mark.parametrize("name", ["msrvtt_caption", "msvd_caption", "vatex_caption"])
def test_captions(cache, name):
    data, original = load_dataset(name), drawn(name, "train")
    assert [len(data[s]) for s in ("train", "val", "test")] == [30, 5, 4]
    sample = data["train"][7]
    assert set(sample) == {"video", "text_input", "image_id", "instance_id"}
    assert sample["text_input"] == original.records[2]["caption"][1] and sample["image_id"] == 2
    assert (
        isinstance(sample["video"], Path) and sample["video"].parent == cache / name.split("_")[0] / "videos"
    )
    shown = Clip(sample["video"]).frames(range(8)).astype(int)
    assert np.abs(shown - original[2]["video"]).mean() < 12  # encoded, with half of the colours
    val = data["val"]
    assert set(val[3]) == set(sample) and val[3]["instance_id"] == "3"
    identity = "val3.mp4" if name == "vatex_caption" else 3
    assert val[3]["image_id"] == identity
    assert val.references()[identity] == drawn(name, "val").records[3]["caption"]
    grouped = build_datasets(name, {"captions_per_image": 2}, ["train"])["train"]
    assert len(grouped) == 10 and len(grouped[4]["text_input"]) == 2


def test_a_clip_with_several_records_is_evaluated_once(cache, tmp_path):
    rows = [{"video": f"val{i // 2}.mp4", "caption": f"c{i}"} for i in range(6)]
    (tmp_path / "val.json").write_text(json.dumps(rows))
    section = {"build_info": {"annotations": {"val": {"storage": str(tmp_path / "val.json")}}}}
    for name in ("vatex_caption", "msrvtt_caption"):
        val = build_datasets(name, section, ["val"])["val"]
        assert len(val) == 3
        assert list(val.references().values()) == [["c0", "c1"], ["c2", "c3"], ["c4", "c5"]]
        assert len({val[i]["image_id"] for i in range(3)}) == 3


@pytest.mark.parametrize("name", ["msrvtt_retrieval", "didemo_retrieval"])
def test_retrieval(cache, name):
    data, original = load_dataset(name), drawn(name, "test")
    each = 2 if name == "msrvtt_retrieval" else 1
    assert len(data["train"]) == each * 10
    assert set(data["train"][3]) == {"video", "text_input", "image_id", "instance_id"}
    # without image_id in the records, texts of one clip are each other's positives, and no others
    assert [data["train"][i]["image_id"] for i in range(4)] == [i // each for i in range(4)]
    test = data["test"]
    assert set(test[2]) == {"video", "index", "image_id", "instance_id"} and test[2]["index"] == 2
    assert test.image == [f"test{i}.mp4" for i in range(4)] and len(test.text) == each * 4
    assert test.txt2img[each * 3] == 3 and test.img2txt[1] == list(range(each, 2 * each))
    assert test.text[0].startswith(original.records[0]["caption"][0])
    assert [test[i]["image_id"] for i in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["msrvtt_qa", "msvd_qa"])
def test_questions_answered_by_classes(cache, name):
    data, original = load_dataset(name), drawn(name, "val")
    val = data["val"]
    assert isinstance(val, VideoQADataset) and val.answer_list == original.answer_list and len(val) == 20
    for i in (0, 7):
        assert set(val[i]) == {"video", "text_input", "answers", "question_id", "instance_id"}
        assert (
            val[i]["answers"] == original[i]["answers"] and val[i]["text_input"] == original[i]["text_input"]
        )
    assert val.name == name and len(val.annotation_paths) == 2


def test_questions_whose_answer_is_no_class(cache, tmp_path, caplog):
    """They are wrong in evaluation and not learnt from; classes may come from a file of one's own."""
    few = {"yes": 1, "no": 0}
    (tmp_path / "few.json").write_text(json.dumps(few))
    section = {"build_info": {"annotations": {"ans2label": {"storage": str(tmp_path / "few.json")}}}}
    with caplog.at_level("INFO", logger="lavis"):
        data = build_datasets("msrvtt_qa", section)
    assert list(data) == ["train", "val", "test"]
    answers = [r["answer"] for r in drawn("msrvtt_qa", "val").records]
    assert [data["val"][i]["answers"] for i in range(20)] == [few.get(a, 2) for a in answers]
    assert {r["answer"] for r in data["train"].records} == {"yes", "no"}
    assert "of 40 questions have an answer that is no class" in caplog.text
    for bad, message in (
        ('{"a": 0, "b": 2}', "0 to 1, each once"),
        ("[1]", "JSON object"),
        ("{", "not valid JSON"),
    ):
        (tmp_path / "few.json").write_text(bad)
        with pytest.raises(ValueError, match=message):
            build_datasets("msrvtt_qa", section, ["val"])


def test_questions_answered_by_words(cache):
    data = load_dataset("msrvtt_qa", words=True, questions_per_image=2)
    assert isinstance(data["train"], VideoVQADataset) and len(data["train"]) == 10 and len(data["val"]) == 5
    batch = data["train"].collater([data["train"][0], data["train"][1]])
    assert len(batch["text_input"]) == 4 and batch["n_answers"].tolist() == [1] * 4
    assert data["val"].name == "msrvtt_qa" and set(data["val"][0]["question_id"]) == {0, 1, 2, 3}
    assert data["val"].answer_list == load_dataset("msrvtt_qa")["val"].answer_list
    classes = load_dataset("msrvtt_qa", questions_per_image=2)
    assert len(classes["train"]) == 10 and len(classes["train"][0]["answers"]) == 2
    assert isinstance(classes["val"][0]["answers"], int)


def test_a_name_may_lack_its_suffix(cache, tmp_path):
    rows = [{"video": "val1", "caption": "a"}, {"video": "nothing", "caption": "b"}]
    (tmp_path / "val.json").write_text(json.dumps(rows))
    section = {
        "build_info": {"annotations": {"val": {"storage": str(tmp_path / "val.json")}}},
        "vis_processor": CLIPS,
    }
    for name, suffix in (("msrvtt_caption", ".mp4"), ("msvd_caption", ".avi")):
        val = build_datasets(name, section, ["val"])["val"]
        assert val.clip(val.records[0]).name == f"val1{suffix}"
        assert val[0]["video"].shape == (3, 8, 64, 64)
        with pytest.raises(
            MissingMediaError, match=r"no clip .*nothing; the clips of 'ms\w+' are expected under .*vis_path"
        ):
            val[1]


def test_the_archive_of_msvd_may_lie_as_it_was_unpacked(cache, tmp_path, monkeypatch):
    (tmp_path / "msvd").mkdir()
    (tmp_path / "msvd" / "YouTubeClips").symlink_to(cache / "msvd" / "videos")
    (tmp_path / "msvd" / "annotations").symlink_to(cache / "msvd" / "annotations")
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    for name in ("msvd_caption", "msvd_qa"):
        val = load_dataset(name)["val"]
        assert (
            val[0]["video"] == tmp_path / "msvd" / "YouTubeClips" / "val0.avi" and val[0]["video"].is_file()
        )
        val.check()


# ------------------------------------------------------------------------------------- dialogues
def test_dialogues_about_clips(cache):
    data = load_dataset("avsd_dialogue", videos="avsd/videos")
    assert [len(d) for d in data.values()] == [30, 5, 4]  # all rounds; the last of each
    original = drawn("avsd_dialogue", "train", rounds=3)
    for i in (0, 4):
        sample, wanted = data["train"][i], original[i]
        assert sample["video"] == cache / f"avsd/videos/train{i // 3}.mp4"
        for key in ("caption", "dialog", "text_input", "answer", "round_id"):
            assert sample[key] == wanted[key], key
        assert "answer_options" not in sample and sample["image_id"] == f"train{i // 3}"
    assert data["val"][2]["round_id"] == 3 and len(data["val"][2]["dialog"]) == 2
    section = {
        "videos": "avsd/videos",
        "vis_processor": CLIPS,
        "text_processor": TEXT,
        "whole_dialogues": True,
    }
    train_ = build_datasets("avsd_dialogue", section, ["train"])["train"]
    batch = train_.collater([train_[0], train_[1]])
    assert batch["video"].shape == (2, 3, 8, 64, 64) and len(batch["text_input"]) == 6
    model = load_model("blip_video_dialogue", "tiny")
    assert math.isfinite(float(model(batch).loss.detach()))
    assert len(model.generate(batch, max_length=4)) == 6


def features(root: Path, names: list[str]) -> None:
    """Arrays of different lengths, widths 5, 4 and 3."""
    rng = np.random.default_rng(0)
    for kind, width in (("i3d_rgb", 5), ("i3d_flow", 4), ("vggish", 3)):
        (root / "avsd/features" / kind).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(names):
            array = rng.normal(size=(4 + i % 3 + (kind == "vggish"), width)).astype(np.float32)
            np.save(root / "avsd/features" / kind / f"{name}.npy", array)


def test_dialogues_about_features(tmp_path, monkeypatch):
    turns = [{"question": f"q{i} ?", "answer": f"a{i}"} for i in range(4)]
    dialogs = [
        {
            "image_id": f"V{i}",
            "caption": "someone walks",
            "summary": "S. " if i else None,
            "dialog": turns[: 4 - i],
        }
        for i in range(3)
    ]
    for split in ("train", "val", "test"):
        path = tmp_path / f"avsd/annotations/{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"type": "train", "dialogs": dialogs}))
    features(tmp_path, ["V0", "V1", "V2"])
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))
    section = {
        "vis_processor": {p: {"name": "gpt_video_ft"} for p in ("train", "eval")},
        "text_processor": {p: {"name": "gpt_dialogue"} for p in ("train", "eval")},
    }
    data = build_datasets("avsd_dialogue", section)
    train_ = data["train"]
    assert len(train_) == 9 and len(data["val"]) == 3 and train_.vis_root == tmp_path / "avsd/features"
    sample = train_[4]  # first of the second dialogue
    assert sample["caption"] == "someone walks S." and train_[0]["caption"] == "someone walks"
    assert sample["dialog"] == [] and sample["text_input"] == "q0 ?" and sample["answer"] == "a0"
    plain = build_datasets("avsd_dialogue", {**section, "use_summary": False}, ["train"])["train"]
    assert plain[4]["caption"] == "someone walks"
    assert train_[3]["dialog"] == [(f"q{i} ?", f"a{i}") for i in range(3)]
    batch = train_.collater([train_[i] for i in (0, 4, 7)])
    assert [v.shape for v in batch["video"]] == [(4, 12), (5, 12), (6, 12)]
    config = {"len_video_ft": 12, "model_type": "tiny", "weights": "none"}
    model = registry.get_model_class("gpt_dialogue").from_config(config)
    assert math.isfinite(float(model(batch).loss.detach()))
    batch = data["val"].collater([data["val"][i] for i in range(3)])
    assert len(model.generate(batch, max_length=4, min_length=0)) == 3
    assert load_dataset("avsd_dialogue")["val"][1]["video"] == tmp_path / "avsd/features/V1"
    run = {
        "task": "dialogue", "inference_method": "generate", "max_iters": 2, "batch_size_train": 3, "num_beams": 1,
        "batch_size_eval": 2, "init_lr": 1e-4, "valid_splits": ["val"], "output_dir": str(tmp_path / "run"),
        "train_splits": ["train"], "job_id": "job",
    }  # fmt: skip
    config = {"arch": "gpt_dialogue", **config}
    result = train({"model": config, "datasets": {"avsd_dialogue": section}, "run": run})
    assert result.iterations == 2 and (tmp_path / "run/job/result").is_dir()
    (tmp_path / "avsd/features/vggish/V1.npy").unlink()
    with pytest.raises(MissingMediaError, match=r"vggish.V1\.npy.*avsd_dialogue.*expected under"):
        train_[4]
    for bad in ('{"dialogs": [{"image_id": 1}]}', "[]", '{"dialogs": 3}', '{"dialogs": [3]}'):
        (tmp_path / "avsd/annotations/val.json").write_text(bad)
        with pytest.raises(ValueError, match=r"val\.json.*should"):
            build_datasets("avsd_dialogue", section, ["val"])


# ---------------------------------------------------------------------------- runs by the public runner
RUN = {
    "max_iters": 2, "batch_size_train": 4, "batch_size_eval": 3, "init_lr": 1e-4, "train_splits": ["train"],
    "valid_splits": ["val"], "test_splits": ["test"], "job_id": "job",
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name", "task", "metric"),
    [
        ("alpro_retrieval", "msrvtt_retrieval", "retrieval", "r_mean"),
        ("alpro_retrieval", "didemo_retrieval", "retrieval", "r_mean"),
        ("alpro_qa", "msrvtt_qa", "multimodal_classification", "accuracy_percent"),
        ("alpro_qa", "msvd_qa", "multimodal_classification", "accuracy_percent"),
    ],
)
def test_alpro_trains_and_is_evaluated(cache, tmp_path, model, name, task, metric):
    section = {"vis_processor": CLIPS, "text_processor": TEXT}
    config = {
        "model": {"arch": model, "model_type": "tiny", "weights": "none"},
        "datasets": {name: section},
        "run": {**RUN, "task": task, "output_dir": str(tmp_path)},
    }
    result = train(config)
    assert result.stopped == "finished" and result.iterations == 2
    assert math.isfinite(next(row for row in result.history if row["event"] == "epoch")["loss"])
    assert 0 <= result.metrics["test"][metric] <= 100
    written = min((tmp_path / "job" / "result").glob("test*.json"))
    assert json.loads(written.read_text())


def broken(cache: Path, tmp_path: Path, split: str, which: int) -> dict[str, Any]:
    """A section whose clips are copies, one of them cut off."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in (cache / "msrvtt/videos").iterdir():
        (folder / path.name).symlink_to(path)
    name = f"{split}{which}.mp4"
    (folder / name).unlink()
    (folder / name).write_bytes((cache / "msrvtt/videos" / name).read_bytes()[:600])
    return {
        "vis_processor": CLIPS, "text_processor": TEXT, "build_info": {"videos": {"storage": str(folder)}},
    }  # fmt: skip


def test_a_corrupt_clip_is_replaced_and_reported_in_training(cache, tmp_path):
    section = broken(cache, tmp_path, "train", 4)
    config = {
        "model": {"arch": "alpro_retrieval", "model_type": "tiny", "weights": "none"},
        "datasets": {"msrvtt_retrieval": section},
        "run": {
            **RUN,
            "task": "retrieval",
            "max_iters": 5,
            "output_dir": str(tmp_path / "run"),
            "test_splits": [],
        },
    }
    result = train(config)
    assert result.iterations == 5
    listed = (tmp_path / "run/job/skipped.txt").read_text()
    assert "train4.mp4" in listed and "cannot be read" in listed


def test_a_corrupt_clip_ends_an_evaluation(cache, tmp_path):
    section = broken(cache, tmp_path, "val", 2)
    val = build_datasets("msrvtt_retrieval", section, ["val"])["val"]
    assert val.on_error == "raise"
    with pytest.raises(UnreadableMediaError, match=r"val2\.mp4 cannot be read") as e:
        val[2]
    assert e.value.path.endswith("val2.mp4")
    config = {
        "model": {"arch": "alpro_retrieval", "model_type": "tiny", "weights": "none"},
        "datasets": {"msrvtt_retrieval": section},
        "run": {**RUN, "task": "retrieval", "output_dir": str(tmp_path / "run")},
    }
    with pytest.raises(OSError, match=r"val2\.mp4"):
        train(config)


def test_frames_of_a_training_sample_are_a_function_of_its_stream(cache):
    section = {"vis_processor": {"train": {"name": "alpro_video_train", "image_size": 32, "n_frms": 4}}}
    data = build_datasets("msrvtt_caption", section, ["train"])["train"]
    first, again, other = (data.sample(0, np.random.default_rng(s))["video"] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


# ------------------------------------------------------------------------------------- the writer
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".webm"])
def test_written_clips_have_the_drawn_frames(tmp_path, suffix):
    data = build_datasets("shapes_video_caption", {**SIZES, "n_val": 2, "frames": 12}, ["val"])["val"]
    export_clips(data, "msrvtt_caption", tmp_path, suffix)
    for i in range(2):
        with Clip(tmp_path / f"msrvtt/videos/val{i}{suffix}") as clip:
            assert len(clip) == 12
            error = np.abs(clip.frames(range(12)).astype(int) - data[i]["video"])
            assert error.mean() < 12
    out = load_processor("alpro_video_eval", {"image_size": 32, "n_frms": 4})(
        tmp_path / f"msrvtt/videos/val0{suffix}"
    )
    assert out.shape == (3, 4, 32, 32)


def test_wrong_requests_to_the_writer(tmp_path):
    data = build_datasets("shapes_video_caption", SIZES, ["val"])["val"]
    with pytest.raises(ValueError, match=r"suffix is '\.wmv'"):
        export_clips(data, "msrvtt_caption", tmp_path, ".wmv")
    with pytest.raises(ValueError, match="Did you mean 'msrvtt_caption'"):
        export_clips(data, "msrvtt_captions", tmp_path)


def test_a_deep_check_decodes_clips_to_their_end(cache, tmp_path, monkeypatch):
    root = tmp_path / "root"
    shutil.copytree(cache / "msrvtt", root / "msrvtt")
    monkeypatch.setenv("LAVIS_CACHE", str(root))
    whole = check("msrvtt_caption", splits=["val"], deep=True)
    assert [s.broken for s in whole.splits] == [0] and whole.splits[0].missing == 0
    clip = root / "msrvtt/videos/val1.mp4"
    data = bytearray(clip.read_bytes())
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(len(data) // 3)
    clip.write_bytes(data)
    assert not any(s.broken for s in check("msrvtt_caption", splits=["val"]).splits)
    (found,) = check("msrvtt_caption", splits=["val"], deep=True).splits
    assert found.broken == 1 and found.broken_names == [str(clip)]
