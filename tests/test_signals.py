"""SIGTERM and SIGUSR1 save and end a run as Ctrl-C does, whoever of its processes they reach."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.common.files import read_jsonl
from lavis.runners import checkpoint, train
from tests.ranks import on_ranks
from tests.test_resume import ROOT, SETTINGS, assert_equal_runs, log, start
from tests.toy_training import ToyData, ToyModel, ToyTask, run


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    torch.set_num_threads(1)


def iteration(job: Path) -> int:
    return int(checkpoint.load_state(job / "checkpoint_last")["progress"]["iteration"])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_to_all_processes_of_a_run_saves_the_step(tmp_path: Path, name: str) -> None:
    """As batch systems and torchrun send it: to the loader's workers too, and twice."""
    signum = getattr(signal, name)
    whole = run(output_dir=tmp_path / "whole", job_id="job", **SETTINGS)
    process = start(tmp_path / "stopped", delay=0.03)
    job = tmp_path / "stopped" / "job"
    while not log(job):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)
    os.killpg(process.pid, signum)
    os.killpg(process.pid, signum)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 128 + signum, out
    assert f"{name}: stopping after this step" in out and f"run.resume_ckpt_path={job}" in out
    assert "Traceback" not in out
    done = iteration(job)
    assert (3 <= done < 45 and done % 15 % 2 == 0) or done % 15 == 0
    run(output_dir=tmp_path / "stopped", resume_ckpt_path=str(job), **SETTINGS)
    assert_equal_runs(whole.output_dir, job)


class Signalled(ToyTask):
    """A rank gets a signal in a training step, or in the first batch of a validation."""

    def __init__(self, here: bool, step: int) -> None:
        super().__init__()
        self.here, self.step = here, step

    def train_step(self, model: Any, samples: Any) -> Any:
        if self.here and samples["iters"] == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return model(samples)

    def predict(self, model: Any, samples: Any) -> Any:
        if self.here and self.step < 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().predict(model, samples)


@pytest.mark.parametrize(("step", "expected"), [(6, 7), (-1, 10)])
def test_ranks_stop_together_at_the_step_in_which_one_got_a_signal(
    tmp_path: Path, step: int, expected: int
) -> None:
    keys: dict[str, Any] = {
        "datasets": {"train": ToyData(80, 1, training=True), "val": ToyData(33, 2)}, "output_dir": tmp_path,
        "job_id": "job", "batch_size_train": 4, "batch_size_eval": 4, "max_epoch": 2, "device": "cpu",
    }  # fmt: skip

    def work(rank: int) -> Any:
        try:
            train(model=ToyModel(), task=Signalled(rank == 1, step), **keys)
        except SystemExit as e:
            return e.code, str(e)
        return None

    codes = on_ranks(2, work)
    assert [code for code, _ in codes] == [128 + signal.SIGUSR1] * 2
    assert f"interrupted at iteration {expected}" in codes[0][1]
    assert iteration(tmp_path / "job") == expected
    on_ranks(2, lambda _: train(model=ToyModel(), task=ToyTask(), resume_ckpt_path="auto", **keys) and None)
    assert iteration(tmp_path / "job") == 20


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    run(output_dir=tmp_path, max_epoch=1)
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_the_command_exits_with_the_signals_number(tmp_path: Path) -> None:
    recipe = ["blip/caption_shapes", "--out", str(tmp_path), "--device", "cpu", "--options", "run.job_id=job"]
    options = [
        "run.max_iters=500",
        "run.log_freq=1",
        "run.batch_size_train=2",
        "datasets.shapes_caption.n_train=40",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "lavis", "train", *recipe, *options],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while not read_jsonl(tmp_path / "job" / "log.txt"):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 143, out
    assert "continue with: lavis train" in out and "Traceback" not in out
    assert iteration(tmp_path / "job") >= 1


def leave_without_a_word(folder: Path) -> None:
    """A run whose task raises while a loader's workers are at work."""

    class Failing(ToyTask):
        def train_step(self, model: Any, samples: Any) -> Any:
            raise KeyError("a bug")

    logging.disable(logging.CRITICAL)
    data = {"train": ToyData(400, 1, delay=0.01)}
    train(
        model=ToyModel(), datasets=data, task=Failing(), output_dir=folder, max_epoch=1, device="cpu", num_workers=2,
    )  # fmt: skip


def test_workers_that_ignore_signals_end_with_a_run_that_fails(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=leave_without_a_word, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 1
