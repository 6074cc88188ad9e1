"""The loop: accumulation, clipping, best and patience, budgets, mixing, errors before training, files."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lavis.common import files
from lavis.common.config import Config
from lavis.common.files import append_jsonl, existing_folder, read_jsonl, replace_folder, write_json
from lavis.common.registry import registry
from lavis.datasets.captioning import CaptionDataset
from lavis.runners import build, checkpoint, evaluate, train
from lavis.runners import data as data_module
from lavis.runners.data import Order, Samples, TrainLoader, mixing_ratios, workers
from lavis.runners.skipped import Skipped
from tests.toy_training import ToyData, ToyModel, ToyTask, run


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    torch.set_num_threads(1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint_last" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------ results
def test_a_run_learns_and_leaves_everything_to_repeat_it(tmp_path: Path) -> None:
    result = run(output_dir=tmp_path, max_epoch=6)
    assert result.metrics["test"]["accuracy_percent"] > 60 and result.stopped == "finished"
    out = result.output_dir
    names = {p.name for p in out.iterdir()}
    assert names == {
        "config.yaml", "versions.json", "log.txt", "evaluate.txt", "result", "checkpoint_last",
        "checkpoint_best", ".lock",
    }  # fmt: skip
    assert Config.load(out / "config.yaml").run.max_epoch == 6
    lines = [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]
    steps = [r for r in lines if r["event"] == "step"]
    assert [r["step"] for r in steps] == list(range(3, 91, 3))
    assert {"lr", "loss", "grad_norm", "samples_per_second", "data_wait_fraction"} <= steps[0].keys()
    assert all(isinstance(v, float) for r in steps for v in (r["lr"], r["loss"], r["data_wait_fraction"]))
    assert steps[0]["loss_again"] == pytest.approx(2 * steps[0]["loss"], rel=1e-6)
    assert json.loads((out / "result" / "test_epochbest.json").read_text())[0].keys() == {"id", "class"}
    assert read_jsonl(out / "evaluate.txt")[-1]["split"] == "test"
    best = max(r["accuracy_percent"] for r in result.history if r["split"] == "val")
    assert result.best is not None and result.best["value"] == best


def test_the_same_configuration_gives_the_same_run_whatever_the_workers(tmp_path: Path) -> None:
    a = run(output_dir=tmp_path, num_workers=0)
    b = run(output_dir=tmp_path, num_workers=2)
    c = run(output_dir=tmp_path, seed=7)
    assert a.output_dir != b.output_dir  # two runs within one second keep apart
    assert same(weights(a.output_dir), weights(b.output_dir))
    assert not same(weights(a.output_dir), weights(c.output_dir))


@pytest.fixture(params=["spawn", "forkserver"])
def started(request: pytest.FixtureRequest) -> Any:
    """Processes are started, not forked."""
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(usual, force=True)


def test_workers_that_are_started_instead_of_forked(started: None, tmp_path: Path) -> None:
    """As on macOS and Windows, and from Python 3.14 on: data set and processors go to the other process."""
    options = {
        "datasets.shapes_video_qa.n_train": 8, "datasets.shapes_video_qa.cache": False, "run.max_iters": 2,
        "run.iters_per_inner_epoch": 2, "run.batch_size_train": 2, "run.valid_splits": [], "run.test_splits": [],
        "run.device": "cpu", "run.precision": "fp32", "run.output_dir": str(tmp_path),
    }  # fmt: skip
    a, b = (train("blip/video_qa_shapes", options={**options, "run.num_workers": n}) for n in (0, 2))
    assert same(weights(a.output_dir), weights(b.output_dir))


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    a = run(output_dir=tmp_path)
    b = run(output_dir=tmp_path, valid=False)
    assert same(weights(a.output_dir), weights(b.output_dir))
    assert b.best is None and b.checkpoint_best is None


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output_dir": tmp_path, "dropout": 0.0, "lr_sched": "constant_lr"}
    large = run(batch_size_train=12, **settings)
    small = run(batch_size_train=4, accum_grad_iters=3, **settings)
    a, b = weights(large.output_dir), weights(small.output_dir)
    for key in a:
        if key != "calls":
            torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6)


def test_leftover_batches_of_an_epoch_are_stepped_with_their_own_mean(tmp_path: Path) -> None:
    # 5 batches in windows of 4: the fifth is an update by itself, as large as one without accumulation
    alone = run(output_dir=tmp_path, n=20, max_epoch=1, dropout=0.0, accum_grad_iters=4)
    state = checkpoint.load_state(alone.output_dir / "checkpoint_last")
    assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {2}
    model = ToyModel(0.0)
    checkpoint.load_weights(model, alone.output_dir / "checkpoint_last")


class Counting(ToyModel):
    """Writes down where its steps begin and end, and what a step that is not over has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def before_step(self, progress: float) -> None:
        self.seen.append(progress)

    def forward(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        self.seen.append("batch")
        return super().forward(samples)

    def after_step(self) -> None:
        self.seen.append("end")


def test_a_models_step_is_the_optimizers_however_many_batches_it_has(tmp_path: Path) -> None:
    model = Counting()
    keys = {
        "output_dir": tmp_path,
        "max_epoch": 2,
        "batch_size_train": 4,
        "accum_grad_iters": 4,
        "init_lr": 1e-2,
    }
    train(
        model=model, datasets={"train": ToyData(24, 1, training=True)}, task=ToyTask(), device="cpu", **keys
    )
    four, two = ["batch"] * 4, ["batch"] * 2  # six batches in an epoch
    first = [0.0, *four, "end", 4 / 6, *two, "end"]
    assert model.seen == [*first, 1.0, *four, "end", 10 / 6, *two, "end"]


def test_the_gradient_norm_is_clipped_and_logged(tmp_path: Path) -> None:
    free = run(output_dir=tmp_path, max_epoch=1)
    clipped = run(output_dir=tmp_path, max_epoch=1, max_grad_norm=1e-3)
    assert not same(weights(free.output_dir), weights(clipped.output_dir))
    assert all(
        r["grad_norm"] > 1e-3 for r in read_jsonl(clipped.output_dir / "log.txt") if r["event"] == "step"
    )


def test_iterations_end_where_they_should(tmp_path: Path) -> None:
    result = run(
        output_dir=tmp_path, max_epoch=None, max_iters=22, iters_per_inner_epoch=8, runner="runner_iter"
    )
    assert result.iterations == 22
    epochs = [r for r in result.history if r["event"] == "epoch"]
    assert [r["step"] for r in epochs] == [8, 16, 22]


def test_loss_like_metrics_are_minimised(tmp_path: Path) -> None:
    class Falling(ToyTask):
        primary = ("error", "min")
        values = iter([-1.0, -3.0, -2.0])

        def score(self, records: Any, dataset: Any) -> dict[str, float]:
            return {"error": next(self.values)}

    data = {"train": ToyData(20, 1), "valid": ToyData(6, 2)}
    result = train(
        model=ToyModel(), datasets=data, task=Falling(), output_dir=tmp_path, max_epoch=3, batch_size_train=4,
        train_splits=["train"], valid_splits=["valid"], device="cpu",
    )  # fmt: skip
    assert result.best == {"epoch": 1, "split": "valid", "metric": "error", "value": -3.0}


def test_patience_and_budget_end_a_run_cleanly(tmp_path: Path) -> None:
    class Flat(ToyTask):
        def score(self, records: Any, dataset: Any) -> dict[str, float]:
            return {"accuracy_percent": 50.0}

    data = {"train": ToyData(20, 1), "val": ToyData(6, 2)}
    common: dict[str, Any] = {
        "datasets": data,
        "output_dir": tmp_path,
        "batch_size_train": 4,
        "device": "cpu",
    }
    result = train(model=ToyModel(), task=Flat(), max_epoch=9, patience=2, **common)
    assert (result.stopped, result.iterations) == ("patience", 15)
    result = train(model=ToyModel(), task=ToyTask(), max_epoch=9, max_minutes=1e-9, **common)
    assert (result.stopped, result.iterations) == ("max_minutes", 1)
    assert result.checkpoint_last is not None and result.history[-1]["split"] == "val"
    resumed = train(
        model=ToyModel(), task=ToyTask(), max_epoch=2, resume_ckpt_path=str(result.output_dir), **common
    )
    assert (resumed.stopped, resumed.iterations) == ("finished", 10)


def test_the_best_weights_are_tested(tmp_path: Path) -> None:
    class Odd(ToyTask):
        """Good in epoch 0 only: what is tested must be those weights."""

        seen: list[torch.Tensor] = []  # noqa: RUF012

        def before_evaluation(self, model: Any, dataset: Any) -> None:
            self.seen.append(model.head.weight.clone())

        def score(self, records: Any, dataset: Any) -> dict[str, float]:
            return {"accuracy_percent": 100.0 if len(self.seen) == 1 else 1.0}

    data = {"train": ToyData(20, 1), "val": ToyData(6, 2), "test": ToyData(6, 3)}
    task = Odd()
    train(
        model=ToyModel(),
        datasets=data,
        task=task,
        output_dir=tmp_path,
        max_epoch=3,
        device="cpu",
        batch_size_train=4,
    )
    assert torch.equal(task.seen[0], task.seen[3]) and not torch.equal(task.seen[0], task.seen[2])


def test_bf16_trains_and_keeps_weights_in_fp32(tmp_path: Path) -> None:
    result = run(output_dir=tmp_path, precision="bf16", max_epoch=5)
    assert all(v.dtype in (torch.float32, torch.int64) for v in weights(result.output_dir).values())
    losses = [r["loss"] for r in result.history if r["event"] == "epoch"]
    assert losses[-1] < losses[0]


def test_a_loss_scale_that_overflows_skips_steps_and_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16's scaler, on the CPU: the first steps overflow float32 and are skipped."""

    def scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=7)

    monkeypatch.setattr("lavis.common.device.grad_scaler", scaler)
    whole = run(output_dir=tmp_path, max_grad_norm=1.0)
    state = checkpoint.load_state(whole.output_dir / "checkpoint_last")
    taken = {int(s["step"]) for s in state["optimizer"]["state"].values()}
    assert len(taken) == 1 and 10 < taken.pop() < 30
    assert all(r["loss"] is not None for r in whole.history if r["event"] == "epoch")
    run(output_dir=tmp_path, max_grad_norm=1.0, max_minutes=1e-9, job_id="part")
    rest = run(output_dir=tmp_path, max_grad_norm=1.0, job_id="part", resume_ckpt_path="auto")
    assert same(weights(whole.output_dir), weights(rest.output_dir))


def test_data_sets_are_concatenated_or_mixed(tmp_path: Path) -> None:
    first, second = ToyData(24, 1), ToyData(40, 2)
    second.y = second.y * 0  # so that a batch tells where it is from
    seen: list[list[int]] = []

    class Looking(ToyTask):
        def train_step(self, model: Any, samples: Any) -> Any:
            seen.append(samples["y"].tolist())
            assert samples["num_iters_per_epoch"] == 16 and samples["epoch"] == 0
            assert samples["iters"] == len(seen) - 1
            return model(samples)

    common: dict[str, Any] = {
        "task": Looking(),
        "output_dir": tmp_path,
        "max_epoch": 1,
        "batch_size_train": 4,
    }
    data = {"a": {"train": first}, "b": {"train": second, "val": ToyData(5)}}
    result = train(model=ToyModel(), datasets=data, **common)
    assert result.iterations == 16 and sum(any(b) and 0 in b for b in seen) > 4
    seen.clear()
    train(model=ToyModel(), datasets=data, train_dataset_ratios={"a": 1, "b": 3}, **common)
    assert len(seen) == 16 and sum(not any(b) for b in seen) >= 8


def test_tensorboard_and_own_threads(tmp_path: Path) -> None:
    """Outside the main thread there are no signals; everything else is the same."""
    pytest.importorskip("tensorboard")
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.append(run(output_dir=tmp_path, tensorboard=True, max_epoch=1))
    )
    thread.start()
    thread.join()
    assert list((results[0].output_dir / "tensorboard").glob("events*"))


def test_evaluating_a_checkpoint(tmp_path: Path) -> None:
    result = run(output_dir=tmp_path, max_epoch=3)
    data = {"test": ToyData(21, 3)}
    again = evaluate(
        model=ToyModel(seed=5), datasets=data, task=ToyTask(), output_dir=tmp_path, device="cpu",
        resume_ckpt_path=str(result.output_dir / "checkpoint_best"),
    )  # fmt: skip
    assert again == result.metrics


# ------------------------------------------------------------------------------------------ errors
def test_a_loss_that_is_no_number_names_step_and_samples(tmp_path: Path) -> None:
    data = {"train": ToyData(40, 1, poison=[17])}
    with pytest.raises(ValueError, match=r"iteration \d+ \(epoch 0\).*\b17\b") as e:
        train(
            model=ToyModel(), datasets=data, task=ToyTask(), output_dir=tmp_path, max_epoch=1,
            batch_size_train=4, device="cpu", save_every_iters=1, job_id="bad",
        )  # fmt: skip
    iteration = int(str(e.value).split("iteration ")[1].split()[0])
    last = tmp_path / "bad" / "checkpoint_last"
    if iteration > 0:
        assert all(torch.isfinite(v.float()).all() for v in load_file(last / "model.safetensors").values())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_epoch": None}, "max_epoch"),
        ({"max_iters": 3}, "both set"),
        ({"train_splits": []}, "train_splits"),
        ({"train_splits": ["training"]}, "training"),
        ({"valid_splits": ["dev"]}, "dev"),
        ({"batch_size_train": 100}, "batch_size_train"),
        ({"lr_sched": "linear_warmup_step_lr"}, "lr_decay_rate"),
        ({"lr_sched": "linear"}, "linear_warmup"),
        ({"train_dataset_ratios": {"other": 1}}, "train_dataset_ratios"),
        ({"lr_layer_decay": 0.9}, "lr_layer_decay"),
        ({"runner": "runner_bass"}, "runner_base"),
        ({"precision": "fp16"}, "GPU"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(
    tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(output_dir=tmp_path / "out", **keys)
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(output_dir=tmp_path, job_id="mine", max_epoch=1)
    with pytest.raises(ValueError, match="resume_ckpt_path=auto"):
        run(output_dir=tmp_path, job_id="mine", max_epoch=1)


def test_a_recipe_without_its_parts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.task is missing"):
        build(Config.from_dict({"run": {"evaluate": True}}))
    with pytest.raises(ValueError, match=r"model\.arch is missing"):
        build(Config.from_dict({"run": {"evaluate": True, "task": "captioning"}}))


# ------------------------------------------------------------------------------------------ order
def test_a_pass_visits_every_sample_once_and_ranks_share_a_global_batch() -> None:
    order = Order([50, 31], 8, seed=3)
    assert order.batches_per_pass == 10
    keys = [k for b in range(10) for k in order.batch(b)]
    assert len(set(keys)) == 80 and {w for _, w, _ in keys} == {0, 1}
    assert all(i < (50, 31)[w] for _, w, i in keys)
    assert {k[1:] for k in keys} != {k[1:] for b in range(10, 20) for k in order.batch(b)}
    assert order.batch(13) == Order([50, 31], 8, seed=3).batch(13)


def test_ratios_decide_how_often_a_set_gives_a_batch() -> None:
    order = Order([40, 400], 8, seed=1, ratios=[3, 1])
    batches = [order.batch(b) for b in range(4 * order.batches_per_pass)]
    assert all(len({w for _, w, _ in b}) == 1 for b in batches)
    share = np.mean([b[0][1] == 0 for b in batches])
    assert abs(share - 0.75) < 0.1
    small = [b for b in batches if b[0][1] == 0]
    for i in range(0, 35, 5):  # five batches of 8 are one round through its 40 samples
        assert len({k for b in small[i : i + 5] for k in b}) == 40
    assert (
        len({k for b in batches for k in b}) == len(batches) * 8
    )  # a sample never meets the same stream twice


def test_ratios_name_every_set() -> None:
    assert mixing_ratios(["a", "b"], {"b": 1, "a": 2}) == [2.0, 1.0]
    for wrong in ({"a": 1}, {"a": 1, "b": 0}, {"a": 1, "b": 1, "c": 1}):
        with pytest.raises(ValueError, match="train_dataset_ratios"):
            mixing_ratios(["a", "b"], wrong)


def test_a_samples_stream_depends_on_seed_pass_and_index_alone() -> None:
    data = ToyData(10, training=True)

    def x(seed: int, key: tuple[int, int, int]) -> list[float]:
        return Samples([data, data], seed)[key][2]["x"].tolist()

    assert x(1, (0, 0, 3)) == x(1, (0, 0, 3))
    assert len({str(x(s, k)) for s in (1, 2) for k in [(0, 0, 3), (1, 0, 3), (0, 1, 3), (0, 0, 4)]}) == 8


# ------------------------------------------------------------------------------------------ other people's randomness
class Jitter:
    """A processor that takes no stream and draws from all global ones, as torchvision's and many others do."""

    def __call__(self, item: Any) -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]


class Keywords(Jitter):
    def __call__(self, item: Any, **more: Any) -> list[float]:
        return super().__call__(item)


class Jittered(CaptionDataset):
    name = "jittered"

    def make_sample(self, index: int, rng: np.random.Generator) -> Any:
        return {"image": self._vis(None, rng), "text_input": self._text(None, rng), "image_id": index}


class Plain(torch.utils.data.Dataset):
    """A data set of torch's kind, with draws of its own."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Jitter()(None), "text_input": Jitter()(None), "image_id": index}


def jittered(kind: str) -> Any:
    if kind == "data set":
        return Plain()
    processor = Keywords() if kind == "keywords" else Jitter()
    records = [{"image": str(i), "caption": "a"} for i in range(12)]
    return Jittered(records, "train", vis_processor=processor, text_processor=processor)


@pytest.mark.parametrize("kind", ["processor", "keywords", "data set"])
def test_a_processor_without_a_stream_depends_on_seed_pass_and_sample_alone(kind: str) -> None:
    samples = Samples([jittered(kind)], 3)

    def drawn(key: tuple[int, int, int], seed: int = 3) -> Any:
        content = Samples([jittered(kind)], seed)[key][2]
        return content["image"], content["text_input"]

    torch.manual_seed(0)
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    first = drawn((0, 0, 3))
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])
    assert (np.random.get_state()[1] == state[2]).all()
    assert first[0] != first[1]  # two calls within a sample go on
    random.random(), np.random.rand(), torch.rand(1)
    assert drawn((0, 0, 3)) == first == tuple(samples[0, 0, 3][2][k] for k in ("image", "text_input"))
    others = [drawn((1, 0, 3)), drawn((0, 0, 4)), drawn((0, 0, 3), seed=4)]
    numbers = [n for sample in [first, *others] for part in sample for n in part]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("kind", ["processor", "data set"])
def test_a_processor_without_a_stream_gives_the_same_whatever_the_workers(kind: str) -> None:
    def batches(workers: int, start: int = 0) -> list[Any]:
        data = jittered(kind)
        loader = TrainLoader(
            [data], Order([12], 4, seed=1), 1, workers, 6, torch.device("cpu"), Skipped([data])
        )
        out = [[str(b["image"]), str(b["text_input"])] for b in loader.batches(start, 6)]
        loader.close()
        return out

    one = batches(0)
    assert len({str(b) for b in one}) == 6
    assert batches(2) == one and batches(1, start=2) == one[2:]


@pytest.mark.parametrize(
    ("given", "samples", "method", "command", "shared", "expected"),
    [
        (3, 5, "spawn", False, 0, 3),
        (0, 10**6, "fork", True, 1 << 34, 0),
        (None, 10**6, "fork", False, 1 << 34, 8),
        (None, 10**6, "spawn", False, 1 << 34, 0),
        (None, 10**6, "spawn", True, 1 << 34, 8),
        (None, 10, "fork", True, 1 << 34, 0),
        (None, 10**6, "fork", True, 64 << 20, 0),
    ],
)
def test_processes_that_prepare_samples_are_as_many_as_the_machine_bears(
    monkeypatch: pytest.MonkeyPatch, given: int | None, samples: int, method: str, command: bool, shared: int,
    expected: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(data_module, "_cores", lambda: 48)
    monkeypatch.setattr(data_module.multiprocessing, "get_start_method", lambda: method)
    monkeypatch.setattr(data_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=shared))
    monkeypatch.setitem(registry._state, "command", command)
    assert workers(given, samples) == expected
    if given is None and expected:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
        assert workers(given, samples) == 6


# ------------------------------------------------------------------------------------------ files
def test_json_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_json(tmp_path / "a" / "x.json", {"é": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})

    def fail(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"é": 2})
    assert json.loads(path.read_text()) == {"é": 1} and [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_a_torn_last_line_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    for i in range(3):
        append_jsonl(path, {"i": i, "text": "ü"})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        ended = whole[:cut].count(b"\n")
        assert len(read_jsonl(path)) == ended + (
            whole[cut : cut + 1] == b"\n"
        )  # all but its newline is there
        append_jsonl(path, {"i": 9})
        assert read_jsonl(path)[-1] == {"i": 9}
    assert read_jsonl(tmp_path / "none") == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_a_complete_folder(tmp_path: Path) -> None:
    """Kill a process that replaces version 1 by 2 at every step; then write version 3 over what is left."""

    def write(version: int) -> Any:
        def fill(folder: Path) -> None:
            for name in "ab":
                (folder / name).write_text(str(version))

        return fill

    def killed_at(place: Path, moment: int) -> bool:
        pid = os.fork()
        if pid == 0:
            count = 0

            def counting(original: Any) -> Any:
                def step(*args: Any, **kwargs: Any) -> Any:
                    nonlocal count
                    if count == moment:
                        os.kill(os.getpid(), signal.SIGKILL)
                    count += 1
                    return original(*args, **kwargs)

                return step

            for owner, name in (
                (Path, "rename"),
                (Path, "write_text"),
                (Path, "mkdir"),
                (os, "unlink"),
                (os, "rmdir"),
            ):
                setattr(owner, name, counting(getattr(owner, name)))
            replace_folder(place, write(2))
            os._exit(0)
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

    moment = 0
    while True:
        place = tmp_path / str(moment) / "checkpoint"
        place.parent.mkdir()
        replace_folder(place, write(1))
        killed = killed_at(place, moment)
        for _ in range(2 if killed else 0):  # the second kill meets what the first one left
            killed_at(place, moment)
        found = existing_folder(place)
        assert found is not None
        versions = {(found / name).read_text() for name in "ab"}
        assert len(versions) == 1 and versions <= {"1", "2"}
        replace_folder(place, write(3))
        assert (place / "a").read_text() == "3" and [p.name for p in place.parent.iterdir()] == ["checkpoint"]
        if not killed:
            break
        moment += 1
    assert moment >= 8


def test_data_may_lack_one_of_val_and_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As OK-VQA does, whose recipes name both; other names that no data set has are errors."""
    data = {"train": ToyData(8, 1), "test": ToyData(4, 2)}
    settings = {
        "model": ToyModel(), "task": ToyTask(), "datasets": data, "max_epoch": 1, "batch_size_train": 4,
        "train_splits": ["train"],
    }  # fmt: skip
    result = train(output_dir=tmp_path, valid_splits=["val"], test_splits=["test"], **settings)
    assert list(result.metrics) == ["test"] and result.best is None
    assert "run.valid_splits names val, which no data set has" in caplog.text
    with pytest.raises(ValueError, match="'tset'"):
        train(output_dir=tmp_path, valid_splits=["tset"], test_splits=["test"], **settings)
    with pytest.raises(ValueError, match="'val'"):
        train(output_dir=tmp_path, valid_splits=["val"], test_splits=[], **settings)
