"""A run is continued only as what it was: recipe, data and state; what may change is logged."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lavis.common import files, optims
from lavis.common.files import read_jsonl
from lavis.datasets.builders import load_dataset
from lavis.processors.base import BaseProcessor
from lavis.runners import checkpoint, train
from lavis.runners.provenance import data_hash
from tests.ranks import on_ranks
from tests.test_resume import assert_equal_runs
from tests.toy_training import ToyData, ToyModel, ToyTask, run

DESCRIPTION = ("config.yaml", "versions.json", "log.txt", "evaluate.txt", "checkpoint_last/recipe.json")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run "a" of one epoch."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished")
    run(output_dir=folder, job_id="a", max_epoch=1)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"


def resume(folder: Path, **keys: Any) -> Any:
    return run(**{"output_dir": folder, "job_id": "a", "max_epoch": 2, "resume_ckpt_path": "auto", **keys})


def contents(job: Path) -> list[bytes]:
    return [(job / name).read_bytes() for name in DESCRIPTION]


# ------------------------------------------------------------------------------------------ the recipe
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lr": 3e-2}, r"run\.init_lr was 0\.01 and is 0\.03"),
        ({"weight_decay": 0.5}, r"run\.weight_decay was 0\.05 and is 0\.5"),
        ({"lr_sched": "constant_lr"}, r"run\.lr_sched was 'linear_warmup_cosine_lr' and is 'constant_lr'"),
        ({"optimizer": "muon"}, r"run\.optimizer was 'adamw' and is 'muon'"),
        ({"seed": 7, "beta2": 0.9}, r"run\.seed was 42 and is 7; run\.beta2 was 0\.999 and is 0\.9"),
        ({"max_grad_norm": 1.0}, r"run\.max_grad_norm was None and is 1\.0"),
        ({"batch_size_train": 5}, "samples per global batch was 4 and is 5"),
        ({"accum_grad_iters": 2}, r"run\.accum_grad_iters was 1 and is 2"),
        ({"precision": "bf16"}, r"run\.precision was 'fp32' and is 'bf16'"),
        ({"n": 64}, r"data\.data\.train was \w+… \(a hash\) and is "),
    ],
)
def test_another_recipe_is_refused_by_each_key_and_nothing_is_touched(
    folder: Path, change: dict[str, Any], message: str
) -> None:
    before = contents(folder / "a")
    with pytest.raises(ValueError, match=message) as e:
        resume(folder, **change)
    assert "\n" not in str(e.value)
    assert contents(folder / "a") == before and not (folder / "a" / "history").exists()


def test_length_logging_saving_evaluation_and_workers_may_change_and_are_noted(folder: Path) -> None:
    job, free = (
        folder / "a",
        {"log_freq": 5, "save_freq": 2, "num_workers": 1, "batch_size_eval": 7, "max_minutes": 9},
    )
    before = (job / "config.yaml").read_text()
    result = resume(folder, **free)
    assert result.iterations == 30 and result.output_dir == job
    assert (job / "history" / "1" / "config.yaml").read_text() == before != (job / "config.yaml").read_text()
    (noted,) = read_jsonl(job / "history" / "resumed.jsonl")
    assert noted["step"] == 15 and noted["from"] == str(job / "checkpoint_last")
    assert noted["changed"].keys() == {"run.max_epoch", *(f"run.{key}" for key in free)}
    assert noted["changed"]["run.log_freq"] == {"was": 3, "is": 5}


def test_the_same_recipe_leaves_what_describes_the_run(folder: Path) -> None:
    before = contents(folder / "a")[:2]
    resume(folder, max_epoch=1)
    assert contents(folder / "a")[:2] == before and not (folder / "a" / "history").exists()


def test_named_keys_may_change_others_not(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.init_lr was 0\.01") as e:
        resume(folder, init_lr=2e-2, seed=7, allow_changed=["run.seed"])
    assert "run.seed" not in str(e.value)
    with pytest.raises(ValueError, match=r"'run\.init_rl'.*Did you mean 'run\.init_lr'"):
        resume(folder, init_lr=2e-2, allow_changed=["run.init_rl"])
    with pytest.raises(ValueError, match="samples per global batch was 4 and is 5"):
        resume(folder, batch_size_train=5, allow_changed=["run", "samples per global batch"])
    resume(folder, init_lr=2e-2, seed=7, allow_changed=["run.seed", "run.init_lr"])
    assert read_jsonl(folder / "a" / "history" / "resumed.jsonl")[-1]["changed"].keys() == {
        "run.init_lr", "run.seed", "run.max_epoch",
    }  # fmt: skip


class Shift(BaseProcessor):
    def __init__(self, by: float = 0.0) -> None:
        self.by = by


@pytest.mark.parametrize("what", ["records", "processor", "validation", "architecture"])
def test_other_data_processors_and_models_are_refused(tmp_path: Path, what: str) -> None:
    def resumed(changed: bool, **keys: Any) -> Any:
        data = {"train": ToyData(20, 1), "val": ToyData(6, 2)}
        for dataset in data.values():
            dataset.vis_processor = Shift(0.0)
        model: Any = ToyModel()
        if changed and what == "records":
            data["train"].records[3] = {"id": 3, "y": 99}
        elif changed and what == "validation":
            data["val"] = ToyData(6, 9)
        elif changed and what == "processor":
            data["train"].vis_processor = Shift(0.5)
        elif changed:
            model = type("OtherModel", (ToyModel,), {})()
        return train(
            model=model, datasets=data, task=ToyTask(), output_dir=tmp_path, job_id="a", batch_size_train=4,
            device="cpu", **keys,
        )  # fmt: skip

    resumed(False, max_epoch=1)
    key = {
        "records": r"data\.data\.train was", "validation": r"data\.data\.val was",
        "processor": r"data\.data\.train\.vis_processor was 'Shift\(by=0\.0\)' and is 'Shift\(by=0\.5\)'",
        "architecture": "architecture was 'ToyModel' and is 'OtherModel'",
    }[what]  # fmt: skip
    with pytest.raises(ValueError, match=key):
        resumed(True, max_epoch=2, resume_ckpt_path="auto")
    assert resumed(False, max_epoch=2, resume_ckpt_path="auto").iterations == 10


def test_without_a_name_the_latest_run_of_the_same_recipe_goes_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = run(output_dir=folder, job_id="b", max_epoch=1, init_lr=2e-2)
    assert resume(folder, job_id=None).output_dir == folder / "a"
    assert resume(folder, job_id=None, init_lr=2e-2).output_dir == other.output_dir
    new = resume(folder, job_id=None, init_lr=5e-2)
    assert new.output_dir.name not in ("a", "b") and new.iterations == 30
    assert (
        "run.init_lr was 0.02 and is 0.05" in caplog.text or "run.init_lr was 0.01 and is 0.05" in caplog.text
    )


def test_a_checkpoint_without_a_recipe_is_continued_on_demand_only(folder: Path) -> None:
    (folder / "a" / "checkpoint_last" / "recipe.json").unlink()
    with pytest.raises(ValueError, match=r"--allow-changed recipe\.json"):
        resume(folder)
    assert resume(folder, allow_changed=["recipe.json"]).iterations == 30


# ------------------------------------------------------------------------------------------ hashes
def pictures(folder: Path, count: int, size: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (size, size), (i, 0, 0)).save(folder / f"{i}.png")
    return folder


def test_hashes_of_folders_know_names_and_sizes(tmp_path: Path) -> None:
    def hashed(name: str) -> str | None:
        dataset = load_dataset("imagenet", vis_path=str(tmp_path / name), splits=["train"])["train"]
        assert len(dataset)
        return data_hash(dataset)

    for name, count in (("two", 2), ("many", 52), ("again", 2)):
        pictures(tmp_path / name / "train" / "cat", count)
    pictures(tmp_path / "larger" / "train" / "cat", 2, size=80)
    pictures(tmp_path / "dogs" / "train" / "dog", 2)
    assert hashed("two") == hashed("again")
    assert len({hashed(name) for name in ("two", "many", "larger", "dogs")}) == 4


def test_hashes_of_shards_know_names_and_sizes(tmp_path: Path) -> None:
    def shard(name: str, count: int) -> str | None:
        source = pictures(tmp_path / "source", count)
        path = tmp_path / name / "0.tar"
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for i in range(count):
                (source / f"{i}.txt").write_text("a")
                tar.add(source / f"{i}.png", f"{i}.png")
                tar.add(source / f"{i}.txt", f"{i}.txt")
        return data_hash(load_dataset("shards", shards=str(path))["train"])

    assert shard("a", 2) != shard("a", 52)


def test_hashes_of_tables_are_of_their_content(tmp_path: Path) -> None:
    pictures(tmp_path / "p", 2)

    def table(name: str, text: str) -> str | None:
        (tmp_path / name).write_text(json.dumps({"image": "0.png", "text": text}) + "\n")
        own = load_dataset("own", train=str(tmp_path / name), images=str(tmp_path / "p"), val_fraction=0)
        return data_hash(own["train"])

    first = table("a.jsonl", "one")
    assert table("b.jsonl", "one") == first and table("a.jsonl", "two") != first


# ------------------------------------------------------------------------------------------ the state
def change_state(folder: Path, change: Any) -> None:
    path = folder / "a" / "checkpoint_last" / "training_state.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


TAMPERED: dict[str, tuple[Any, str]] = {
    "no moments": (lambda s: s["optimizer"]["state"].clear(), "incomplete: it has moments of 0 parameters"),
    "one parameter's are gone": (lambda s: s["optimizer"]["state"].pop(0), "incomplete: it has moments of"),
    "a moment is gone": (
        lambda s: s["optimizer"]["state"][0].pop("exp_avg"),
        "parameter 0 has step, exp_avg_sq",
    ),
    "beyond the end": (
        lambda s: s["progress"].update(iteration=99, closed=6),
        "iteration 99, beyond the end",
    ),
    "a negative place": (lambda s: s["progress"].update(iteration=-4), "damaged"),
    "a place in no epoch": (lambda s: s["progress"].update(closed=7), "damaged"),
    "a place that is text": (lambda s: s["progress"].update(iteration="15"), "damaged"),
    "no progress": (lambda s: s.pop("progress"), "damaged"),
    "progress is a list": (lambda s: s.update(progress=[1]), "damaged"),
    "other progress": (lambda s: s["progress"].update(more=1), "damaged"),
    "no optimizer": (lambda s: s.pop("optimizer"), "damaged"),
    "optimizer is text": (lambda s: s.update(optimizer="adam"), "damaged"),
    "no ranks": (lambda s: s.pop("ranks"), "damaged"),
    "random state is short": (lambda s: s["ranks"][0]["random"].update(torch=torch.zeros(3)), "damaged"),
    "means are numbers": (lambda s: s["ranks"][0].update(epoch={"sums": 1, "counts": 2}), "damaged"),
    "skipped is a number": (lambda s: s.update(skipped=3), "damaged"),
    "another format": (lambda s: s.update(format=99), "no training state"),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_changed_training_state_is_one_line(folder: Path, kind: str) -> None:
    change, message = TAMPERED[kind]
    change_state(folder, change)
    before = contents(folder / "a")
    with pytest.raises(ValueError, match=message) as e:
        resume(folder)
    assert "\n" not in str(e.value) and "checkpoint_last" in str(e.value)
    assert contents(folder / "a") == before


def test_a_run_that_is_shorter_than_what_was_done_is_refused(folder: Path) -> None:
    resume(folder, max_epoch=3)
    with pytest.raises(ValueError, match="iteration 45, beyond the end of this run, which has 30"):
        resume(folder, max_epoch=2)


def test_a_run_that_ended_within_an_epoch_can_be_made_longer(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "max_epoch": None,
        "lr_sched": "constant_lr",
        "output_dir": tmp_path,
        "valid": False,
    }
    whole = run(max_iters=33, job_id="whole", **keys)
    for length in (4, 6, 17, 33):  # 15 iterations are a pass
        parts = run(max_iters=length, job_id="parts", resume_ckpt_path="auto", **keys)
        assert parts.iterations == length
    a, b = (load_file(r.output_dir / "checkpoint_last" / "model.safetensors") for r in (whole, parts))
    assert all(torch.equal(a[k], b[k]) for k in a)
    ends = [[r for r in result.history if r["event"] == "epoch"][-1] for result in (whole, parts)]
    assert ends[0]["loss"] == pytest.approx(ends[1]["loss"], rel=1e-6)


def test_on_another_number_of_ranks_with_the_same_global_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD, which does not make a rounding of a small gradient as large as a step, as Adam does."""

    def sgd(model: Any, init_lr: float, *rest: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=init_lr, momentum=0.9)

    monkeypatch.setattr(optims, "build_optimizer", sgd)
    keys: dict[str, Any] = {
        "output_dir": tmp_path, "n": 80, "dropout": 0.0, "max_epoch": None, "log_freq": 4, "lr_sched": "constant_lr",
    }  # fmt: skip
    whole = run(job_id="whole", batch_size_train=8, max_iters=30, **keys)
    keys |= {"job_id": "parts", "resume_ckpt_path": "auto"}
    run(batch_size_train=8, max_iters=13, **keys)
    on_ranks(2, lambda _: run(batch_size_train=4, max_iters=26, **keys) and None)
    run(batch_size_train=8, max_iters=30, **keys)
    a, b = (load_file(tmp_path / n / "checkpoint_last" / "model.safetensors") for n in ("whole", "parts"))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-5)
    epochs = [
        [
            r["loss"]
            for r in read_jsonl(tmp_path / n / "log.txt")
            if r["event"] == "epoch" and r["step"] % 10 == 0
        ]
        for n in ("whole", "parts")
    ]
    assert whole.iterations == 30 and epochs[0] == pytest.approx(epochs[1], rel=1e-4)


# ------------------------------------------------------------------------------------------ alone in a folder
def test_a_second_process_is_refused_in_a_runs_folder(folder: Path) -> None:
    before = contents(folder / "a")
    with (
        files.locked(folder / "a" / ".lock"),
        pytest.raises(OSError, match=r"another process is at work in .*a; "),
    ):
        resume(folder)
    assert contents(folder / "a") == before
    with files.locked(folder / "new" / ".lock"), pytest.raises(OSError, match="another process is at work"):
        run(output_dir=folder, job_id="new", max_epoch=1)
    assert resume(folder).iterations == 30  # the lock is free again


def test_saving_by_the_clock(tmp_path: Path) -> None:
    """At the end of every step for a time below all steps'; what is saved is what a run resumes from."""
    saved: list[int] = []

    class Counting(ToyTask):
        def train_step(self, model: Any, samples: Any) -> Any:
            path = tmp_path / "a" / "checkpoint_last"
            if path.exists():
                saved.append(checkpoint.load_state(path)["progress"]["iteration"])
            return model(samples)

    data = {"train": ToyData(20, 1)}
    keys: dict[str, Any] = {"datasets": data, "output_dir": tmp_path, "batch_size_train": 4, "max_epoch": 2}
    train(model=ToyModel(), task=Counting(), job_id="a", save_every_minutes=1e-9, device="cpu", **keys)
    assert saved == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    train(model=ToyModel(), task=ToyTask(), job_id="b", device="cpu", **keys)
    assert_equal_runs(tmp_path / "a", tmp_path / "b", kinds=["checkpoint_last"])
