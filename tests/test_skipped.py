"""Pictures that cannot be read: replaced in training, refused in evaluation, listed, and never too many."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lavis.common.files import read_jsonl
from lavis.datasets.base import Dataset, MissingMediaError, UnreadableMediaError, open_picture, too_many
from lavis.datasets.builders import build_datasets, load_dataset
from lavis.runners import Result, checkpoint, evaluate, train
from lavis.runners.data import Samples, stream
from lavis.runners.skipped import Skipped
from lavis.tasks import CaptionTask, VQATask
from tests.ranks import on_ranks
from tests.test_resume import assert_equal_runs
from tests.toy_training import WIDTH, ToyModel, ToyTask

N = 60
BROKEN = (3, 4, 17, 41)  # 3 and 4 are neighbours


class Pictures(Dataset):
    """A picture per record, its pixels with noise are the sample."""

    name = "pictures"

    def make_sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        pixels = np.asarray(self.picture(self.records[index]), dtype=np.float32)[0, :, 0] / 255
        return {"x": torch.from_numpy(pixels + rng.normal(size=WIDTH)).float(), "y": index % 4, "id": index}

    def collater(self, samples: Any) -> dict[str, Any]:
        batch = super().collater(samples)
        return {**batch, "id": batch["id"].tolist()}


def break_(path: Path, how: int) -> None:
    """Truncate a file, remove it, or put something else in its place."""
    if how % 3 == 0:
        path.write_bytes(path.read_bytes()[:-30])
    elif how % 3 == 1:
        path.unlink()
    else:
        path.write_text("<html>404</html>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(N):
        pixels = rng.integers(0, 255, (WIDTH, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.jpg", quality=95)
    for how, i in enumerate(BROKEN):
        break_(folder / f"{i:02}.jpg", how)
    return folder


def pictures(folder: Path, split: str = "train", n: int = N) -> Pictures:
    return Pictures([{"image": f"{i:02}.jpg", "y": i % 4} for i in range(n)], split, vis_root=folder)


def run(folder: Path, task: Any = None, data: Any = None, **keys: Any) -> Result:
    settings = {
        "output_dir": folder.parent / "runs", "max_epoch": 3, "batch_size_train": 4, "init_lr": 1e-2,
        "log_freq": 3, "device": "cpu",
    }  # fmt: skip
    torch.set_num_threads(1)
    data = {"train": pictures(folder) if data is None else data}
    return train(model=ToyModel(), datasets=data, task=task or ToyTask(), **{**settings, **keys})


def skipped_paths(result: Result) -> list[str]:
    lines = (result.output_dir / "skipped.txt").read_text().splitlines()
    return [Path(line.split("\t")[0]).name for line in lines]


def weights(result: Result) -> dict[str, torch.Tensor]:
    return load_file(result.output_dir / "checkpoint_last" / "model.safetensors")


# ------------------------------------------------------------------------------------------ samples
def test_an_unreadable_picture_is_named_whatever_is_wrong_with_it(folder: Path) -> None:
    for i in BROKEN:
        path = folder / f"{i:02}.jpg"
        with pytest.raises(UnreadableMediaError, match=f"{i:02}.jpg") as e:
            open_picture(path)
        assert e.value.path == str(path)
        assert isinstance(e.value, MissingMediaError) == isinstance(e.value, FileNotFoundError)
        assert isinstance(e.value, FileNotFoundError) == (not path.exists())


def test_the_next_readable_sample_takes_the_place_with_the_streams_of_its_place(folder: Path) -> None:
    data = pictures(folder)
    samples = Samples([data, data], seed=7)
    which, index, content, broken, _ = samples[(2, 1, 3)]
    expected = data.sample(5, stream(2, 7, 2, 1, 3))  # 2 is the kind of streams of training samples
    assert (which, index) == (1, 3) and torch.equal(content["x"], expected["x"]) and content["id"] == 5
    assert [b[:2] for b in broken] == [(1, 3), (1, 4)]
    assert samples[(2, 1, 5)][2]["id"] == 5 and not torch.equal(samples[(2, 1, 5)][2]["x"], content["x"])
    assert samples[(2, 1, N - 1)][3] == []


def test_the_search_goes_round_the_end(folder: Path) -> None:
    (folder / f"{N - 1}.jpg").unlink()
    assert Samples([pictures(folder)], seed=0)[(0, 0, N - 1)][2]["id"] == 0


@pytest.mark.parametrize(
    ("n", "limit"), [(1, 1), (2, 1), (3, 2), (8, 4), (100, 20), (2000, 21), (566_747, 5668)]
)
def test_too_many_is_more_than_one_percent_and_twenty_or_half(n: int, limit: int) -> None:
    assert too_many(n) == limit


# ------------------------------------------------------------------------------------------ training
def test_training_goes_on_and_lists_what_it_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="lavis")
    results = [run(folder, num_workers=workers) for workers in (0, 2)]
    for result in results:
        assert result.iterations == 45 and skipped_paths(result) == [f"{i:02}.jpg" for i in BROKEN]
        (event,) = [r for r in result.history if r["event"] == "skipped"]
        assert event["epoch"] == 0 and [Path(p).name for p in event["pictures"]] == skipped_paths(result)
        assert [r["skipped_samples"] for r in result.history if r["event"] == "epoch"] == [4, 4, 4]
    a, b = map(weights, results)
    assert all(torch.equal(a[k], b[k]) for k in a)
    said = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(said) == 2 and "epoch 0: 4 samples" in said[0] and str(folder / "17.jpg") in said[0]


def test_without_broken_pictures_nothing_is_said_and_no_list_written(folder: Path) -> None:
    data = pictures(folder)
    data.records = data.records[20:40]
    result = run(folder, data=data)
    assert not (result.output_dir / "skipped.txt").exists()
    assert {r["event"] for r in result.history} == {"epoch"}
    assert all("skipped_samples" not in r for r in result.history)


class Stumbling(ToyTask):
    """Dies at an iteration."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def train_step(self, model: Any, samples: Any) -> Any:
        self.at -= 1
        if self.at < 0:
            raise RuntimeError("power cut")
        return super().train_step(model, samples)


@pytest.mark.parametrize("at", [8, 20, 38])
def test_a_resumed_run_equals_one_that_was_not_interrupted(folder: Path, at: int) -> None:
    keys = {"num_workers": 1, "save_every_iters": 2, "job_id": "job"}
    whole = run(folder, output_dir=folder.parent / "whole", **keys)
    parts = {**keys, "output_dir": folder.parent / "parts"}
    with pytest.raises(RuntimeError, match="power cut"):
        run(folder, Stumbling(at), **parts)
    rest = run(folder, **parts, resume_ckpt_path="auto")
    assert_equal_runs(whole.output_dir, rest.output_dir, ("checkpoint_last",))
    assert skipped_paths(whole) == skipped_paths(rest)


def test_a_checkpoint_of_before_there_was_a_list_is_continued(folder: Path) -> None:
    first = run(folder, max_epoch=1, job_id="job")
    path = first.output_dir / "checkpoint_last" / checkpoint.STATE_NAME
    state = checkpoint.load_state(path.parent)
    assert len(state.pop("skipped")["listed"]) == 4
    torch.save(state, path)
    rest = run(folder, max_epoch=2, job_id="job", resume_ckpt_path="auto")
    assert rest.iterations == 30 and skipped_paths(rest) == skipped_paths(first)


def test_two_ranks_know_what_one_knows(folder: Path) -> None:
    one = run(folder)
    keys = {"output_dir": folder.parent / "two", "job_id": "job", "batch_size_train": 2}
    on_ranks(2, lambda _: run(folder, **keys) and None)
    two = folder.parent / "two" / "job"
    assert (two / "skipped.txt").read_text() == (one.output_dir / "skipped.txt").read_text()
    events = [
        [r for r in read_jsonl(f / "log.txt") if r["event"] == "skipped"] for f in (one.output_dir, two)
    ]
    assert events[0] == events[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_broken_pictures_end_the_run(folder: Path, workers: int) -> None:
    for i in range(20, 36):
        break_(folder / f"{i:02}.jpg", i)
    with pytest.raises(OSError, match="20 of 60 samples of pictures/train cannot be read") as e:
        run(folder, num_workers=workers, job_id="job")
    listed = folder.parent / "runs" / "job" / "skipped.txt"
    assert str(folder) in str(e.value) and str(listed) in str(e.value)
    assert len(listed.read_text().splitlines()) == 20


def test_where_no_picture_is_readable_the_first_batch_says_where_they_should_be(folder: Path) -> None:
    nowhere = folder.parent / "elsewhere"
    nowhere.mkdir()
    for n in (N, 5):
        with pytest.raises(OSError, match="of pictures/train cannot be read") as e:
            run(folder, data=pictures(nowhere, n=n))
        assert f"expected under {nowhere}" in str(e.value) and "there is no image" in str(e.value)


def test_a_thousand_in_a_row_end_the_search() -> None:
    data = Pictures([{"image": "none.jpg"}] * 300_000, "train", vis_root="/nowhere")
    samples = Samples([data], seed=0)
    loaded = samples.collate([samples[(0, 0, 299_000)]])
    assert loaded.lost == 1 and loaded.batch is None and len(loaded.broken) == 1000
    with pytest.raises(OSError, match="1000 samples in a row of pictures/train"):
        Skipped([data]).add(loaded.broken, loaded.lost)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_can_be_told_to_raise(folder: Path, workers: int) -> None:
    data = pictures(folder)
    data.on_error = "raise"
    with pytest.raises(UnreadableMediaError) as e:
        run(folder, data=data, num_workers=workers)
    assert str(folder) in str(e.value) and "Traceback" not in str(e.value)


def test_a_mixture_of_data_sets_is_counted_by_data_set(folder: Path) -> None:
    other = pictures(folder, n=16)
    data = {"a": {"train": pictures(folder)}, "b": {"train": other}}
    torch.set_num_threads(1)
    result = train(
        model=ToyModel(), datasets=data, task=ToyTask(), output_dir=folder.parent / "runs", max_epoch=2,
        batch_size_train=4, device="cpu",
    )  # fmt: skip
    assert result.history[-1]["skipped_samples"] == 6  # two pictures are in both
    assert skipped_paths(result) == [f"{i:02}.jpg" for i in BROKEN]


# ------------------------------------------------------------------------------------------ evaluation
def evaluated(folder: Path, data: Dataset, task: Any = None, **keys: Any) -> dict[str, float]:
    return evaluate(
        model=ToyModel(), datasets={"test": data}, task=task or ToyTask(), output_dir=folder.parent / "runs",
        job_id="job", device="cpu", batch_size_eval=2, **keys,
    )["test"]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_refuses_unless_told_to_leave_out(folder: Path, workers: int) -> None:
    data = pictures(folder, "test")
    with pytest.raises(UnreadableMediaError, match=r"03\.jpg"):
        evaluated(folder, data, num_workers=workers)
    data.on_error = "skip"
    metrics = evaluated(folder, data, num_workers=workers)
    out = folder.parent / "runs" / "job"
    records = json.loads((out / "result" / "test_epochbest.json").read_text())
    assert [r["id"] for r in records] == [i for i in range(N) if i not in BROKEN]
    hits = [r["class"] == r["id"] % 4 for r in records]
    assert metrics == {"accuracy_percent": pytest.approx(100 * sum(hits) / len(hits))}
    assert read_jsonl(out / "evaluate.txt")[-1]["skipped_samples"] == 4
    assert len((out / "skipped_test.txt").read_text().splitlines()) == 4


def test_tasks_score_what_was_predicted(folder: Path) -> None:
    rows = [
        {"image": f"{i:02}.jpg", "caption": ["a cat"], "question": "?", "answers": ["yes"]} for i in range(6)
    ]
    table = folder / "t.jsonl"
    table.write_text("".join(json.dumps({**r, "text": r["caption"]}) + "\n" for r in rows))
    captions = load_dataset("own", test=table, task="captioning", on_error="skip")["test"]
    records = [{"image_id": i, "caption": "a cat"} for i in (0, 1, 2, 5)]
    assert CaptionTask().score(records, captions)["Bleu_1"] == pytest.approx(1)
    questions = load_dataset("own", test=table, task="vqa", on_error="skip")["test"]
    answers = [{"question_id": i, "answer": "yes"} for i in (0, 1, 2, 5)]
    assert VQATask().score(answers, questions)["accuracy_percent"] == 100


# ------------------------------------------------------------------------------------------ data sets
def test_a_recipe_sets_the_policy() -> None:
    sizes = {"n_train": 3, "n_val": 2}
    for given, expected in (
        (None, ("skip", "raise")),
        ("raise", ("raise", "raise")),
        ("skip", ("skip", "skip")),
    ):
        data = build_datasets("shapes_caption", {**sizes, "on_error": given}, ["train", "val"])
        assert (data["train"].on_error, data["val"].on_error) == expected
    with pytest.raises(ValueError, match="on_error is 'ignore'; it should be raise or skip"):
        build_datasets("shapes_caption", {**sizes, "on_error": "ignore"})


def test_own_data_warn_of_missing_pictures_and_refuse_many(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"image": f"{i:02}.jpg", "text": "a"} for i in range(8)]
    table = folder / "t.jsonl"
    table.write_text("".join(json.dumps(r) + "\n" for r in rows))  # 4 is missing, 3 only broken
    data = load_dataset("own", train=table, val_fraction=0)["train"]
    assert (
        len(data) == 8 and "1 of 8 pictures are missing" in caplog.text and "04.jpg (line 5)" in caplog.text
    )
    with pytest.raises(FileNotFoundError, match="on_error"):
        load_dataset("own", train=table, val_fraction=0, on_error="raise")
    with pytest.raises(FileNotFoundError, match=r"04\.jpg \(line 5\)"):
        load_dataset("own", test=table)
    assert len(load_dataset("own", test=table, on_error="skip")["test"]) == 8
    for i in (0, 1, 2):
        (folder / f"{i:02}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"4 of 8 .* too many to skip"):
        load_dataset("own", train=table, val_fraction=0)
