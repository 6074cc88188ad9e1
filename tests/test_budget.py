"""How long a run with `max_minutes` is; the clock is a made-up one that every reading moves."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest

from lavis.runners import checkpoint, evaluate, train
from lavis.runners.budget import Plan, plan
from lavis.runners.settings import Length, RunConfig
from lavis.runners.state import Progress
from lavis.runners.stopping import Stopping
from tests.ranks import on_ranks
from tests.toy_training import ToyData, ToyModel, ToyTask

KNOWN: dict[str, Any] = {
    "done": 10, "spent": 20.0, "step": 1.0, "validation": 5.0, "test": 10.0, "per_epoch": 100, "val_freq": 1,
    "most": None,
}  # fmt: skip


def seconds(fixed: Plan, known: dict[str, Any]) -> float:
    """What a run of that plan takes."""
    steps = fixed.iterations - known["done"]
    epochs = fixed.iterations // (known["per_epoch"] * fixed.val_freq)
    return known["spent"] + steps * known["step"] + (epochs + 1) * known["validation"] + known["test"]


@pytest.mark.parametrize("minutes", [1, 3, 10, 100])
@pytest.mark.parametrize(
    "changes", [{}, {"validation": 90.0}, {"step": 0.01}, {"per_epoch": 3}, {"validation": 0.0}]
)
def test_the_whole_run_fits_and_nearly_fills_its_time(minutes: float, changes: dict[str, Any]) -> None:
    known = KNOWN | changes
    fixed = plan(minutes, **known)
    limit = max(60 * minutes, known["spent"] + known["validation"] + known["test"] + known["validation"])
    assert seconds(fixed, known) <= limit
    if minutes >= 10:
        assert seconds(fixed, known) >= 0.8 * 60 * minutes
        assert (
            fixed.val_freq * known["per_epoch"] * known["step"] >= 3 * known["validation"]
        )  # it mostly trains


def test_no_more_steps_than_are_wanted_and_no_fewer_than_are_done() -> None:
    wanted = plan(100, **KNOWN | {"most": 300, "validation": 90.0})
    assert (wanted.iterations, wanted.val_freq) == (300, 1)  # all of it fits, as it was asked for
    assert plan(3, **KNOWN | {"most": 300}).iterations < 300
    assert plan(0.1, **KNOWN).iterations == 10


def test_the_clock_leaves_room_for_what_comes_after_training() -> None:
    stopping = Stopping(RunConfig(max_minutes=1))
    progress = Progress(iteration=5, seconds=50.0)
    assert stopping.after_update(progress).stop == ""
    progress.plan = Plan(1, 100, 1, reserved=15.0).state()
    assert stopping.after_update(progress).stop == "max_minutes"
    progress.seconds = 40.0
    assert stopping.after_update(progress).stop == ""


def test_a_length_that_is_fixed_keeps_the_epochs() -> None:
    run = RunConfig(max_minutes=1)
    assert Length.of(run, 7, 20) == Length(20, 7, 3)
    assert Length.of(RunConfig(max_minutes=1, max_epoch=9), 7, 20).per_epoch == Length.of(run, 7).per_epoch


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock takes a quarter of a second, whatever the machine does."""
    ticks = itertools.count()
    monkeypatch.setattr("lavis.runners.clock.time.perf_counter", lambda: 0.25 * next(ticks))


def settings(folder: Path, **keys: Any) -> dict[str, Any]:
    return {
        "model": ToyModel(), "task": ToyTask(), "output_dir": folder, "batch_size_train": 4, "device": "cpu",
        "datasets": {"train": ToyData(20, 1, training=True), "val": ToyData(6, 2), "test": ToyData(6, 3)},
        "lr_sched": "linear_warmup_cosine_per_step_lr", "log_freq": 1, "init_lr": 0.1, **keys,
    }  # fmt: skip


def rates(folder: Path) -> list[float]:
    from lavis.common.files import read_jsonl

    return [r["lr"] for r in read_jsonl(folder / "log.txt") if r["event"] == "step"]


def test_the_schedule_decays_within_the_minutes(tmp_path: Path, made_up: None) -> None:
    result = train(**settings(tmp_path, max_minutes=1))
    assert result.stopped == "finished" and result.seconds <= 60
    state = checkpoint.load_state(result.output_dir / "checkpoint_last")
    assert state["progress"]["plan"]["iterations"] == result.iterations > 20
    lrs = rates(result.output_dir)
    assert len(lrs) == result.iterations and lrs[-1] < 0.01 * lrs[0] and lrs == sorted(lrs, reverse=True)


def test_a_resumed_run_goes_on_with_the_same_schedule(
    tmp_path: Path, made_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ToyTask.train_step

    def stops(self: Any, model: Any, samples: Any) -> Any:
        if samples["epoch"] == 4:
            raise RuntimeError("the machine went away")
        return own(self, model, samples)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="went away"):
        patch.setattr(ToyTask, "train_step", stops)
        train(**settings(tmp_path, max_minutes=1, job_id="run"))
    before = rates(tmp_path / "run")
    fixed = checkpoint.load_state(tmp_path / "run" / "checkpoint_last")["progress"]["plan"]
    result = train(**settings(tmp_path, max_minutes=1, job_id="run", resume_ckpt_path="auto"))
    assert result.iterations == fixed["iterations"]
    whole = rates(tmp_path / "run")
    assert whole[: len(before)] == before and len(whole) == result.iterations
    assert whole == sorted(whole, reverse=True) and whole[-1] < 0.01 * whole[0]


def test_a_length_that_was_asked_for_is_not_exceeded(tmp_path: Path, made_up: None) -> None:
    result = train(**settings(tmp_path, max_minutes=60, max_epoch=3))
    assert (result.stopped, result.iterations) == ("finished", 15)


def test_ranks_agree(tmp_path: Path) -> None:
    """Each has a clock of another speed."""

    def work(rank: int) -> list[float]:
        ticks = itertools.count()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lavis.runners.clock.time.perf_counter", lambda: (0.1 + rank) * next(ticks))
            result = train(**settings(tmp_path, max_minutes=0.5, job_id="ranks", batch_size_train=2))
        return [result.iterations, result.stopped == "finished"]

    first, second = on_ranks(2, work)
    assert first == second and first[0] > 12


def test_a_run_needs_some_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_minutes is set"):
        train(**settings(tmp_path))


def test_the_header_is_short_and_complete(
    tmp_path: Path, made_up: None, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("lavis").propagate = True
    with caplog.at_level(logging.INFO, logger="lavis.runners.runner"):
        train(**settings(tmp_path / ("long folder " * 12), max_epoch=1, job_id="run"))
    lines = [r.getMessage() for r in caplog.records if r.name == "lavis.runners.runner"]
    labels = [line.split(" ")[0] for line in lines if not line.startswith(" ")]
    assert labels == ["model", "parameters", "data", "records", "steps", "rate", "device", "folder"]
    assert max(map(len, lines)) <= 80 - len("12:34:56 ")
    text = "\n".join(lines)
    for part in (
        "ToyModel",
        "20 to train on, 6 in val, 6 in test",
        "5 of 4 samples, in 1 epochs",
        "0.1, ",
        "cpu, fp32",
    ):
        assert part in text


def test_an_evaluation_says_what_it_is(
    tmp_path: Path, made_up: None, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("lavis").propagate = True
    with caplog.at_level(logging.INFO, logger="lavis.runners.runner"):
        evaluate(**settings(tmp_path, max_epoch=1, job_id="run"))
    lines = [r.getMessage() for r in caplog.records if r.name == "lavis.runners.runner"]
    labels = [line.split(" ")[0] for line in lines if not line.startswith(" ")]
    assert labels == ["model", "data", "records", "device", "folder"]
    assert "6 in test" in "\n".join(lines)
