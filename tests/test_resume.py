"""A run that was killed, interrupted or stopped and then resumed equals one that was not, bit for bit."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lavis.common.files import read_jsonl
from lavis.runners import checkpoint
from tests.toy_training import ToyModel, run

ROOT = Path(__file__).parent.parent
TIMES = ("samples_per_second", "data_wait_fraction")
SETTINGS: dict[str, Any] = {
    "max_epoch": 3, "save_every_iters": 4, "accum_grad_iters": 2, "num_workers": 2, "delay": 0.01,
    "log_freq": 3,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    torch.set_num_threads(1)


def start(folder: Path, **keys: Any) -> subprocess.Popen[str]:
    arguments = [f"{k}={v}" for k, v in {**SETTINGS, "output_dir": folder, "job_id": "job", **keys}.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.toy_training", *arguments],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def log(folder: Path, name: str = "log.txt") -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_jsonl(folder / name)]


def assert_equal_runs(
    a: Path, b: Path, kinds: Sequence[str] = ("checkpoint_last", "checkpoint_best")
) -> None:
    for kind in kinds:
        x, y = load_file(a / kind / "model.safetensors"), load_file(b / kind / "model.safetensors")
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), kind
    assert log(a) == log(b)
    assert log(a, "evaluate.txt") == log(b, "evaluate.txt")
    s, t = (checkpoint.load_state(f / "checkpoint_last") for f in (a, b))
    assert {**s["progress"], "seconds": 0, "log_size": 0} == {**t["progress"], "seconds": 0, "log_size": 0}
    for i, state in s["optimizer"]["state"].items():
        assert all(torch.equal(state[k], t["optimizer"]["state"][i][k]) for k in state)
    assert torch.equal(s["ranks"][0]["random"]["torch"], t["ranks"][0]["random"]["torch"])


def test_a_run_killed_at_random_moments_equals_one_that_was_not(tmp_path: Path) -> None:
    whole = run(output_dir=tmp_path / "whole", job_id="job", **SETTINGS)
    rng = random.Random(0)
    forked = multiprocessing.get_context(
        "fork"
    )  # as deadly as a new process, without importing torch each time
    keys = {**SETTINGS, "output_dir": tmp_path / "killed", "job_id": "job", "resume_ckpt_path": "auto"}
    kills = 0
    gone, held = os.pipe()  # every process of every attempt holds an end until it is gone
    while True:
        process = forked.Process(target=run, kwargs=keys)
        process.start()
        process.join(rng.uniform(0.05, 0.6) if kills < 10 else 120)
        if process.exitcode is None:
            process.kill()  # SIGKILL
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            break
    assert kills >= 3
    os.close(held)
    assert select.select([gone], [], [], 15)[0] and os.read(gone, 1) == b"", "a worker outlived its run"
    os.close(gone)
    assert_equal_runs(whole.output_dir, tmp_path / "killed" / "job")


def test_ctrl_c_saves_the_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    whole = run(output_dir=tmp_path / "whole", job_id="job", **SETTINGS)
    process = start(tmp_path / "stopped", delay=0.03)
    job = tmp_path / "stopped" / "job"
    while not log(job):
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130), out
    assert f"run.resume_ckpt_path={job}" in out
    iteration = checkpoint.load_state(job / "checkpoint_last")["progress"]["iteration"]
    assert (3 <= iteration < 45 and iteration % 15 % 2 == 0) or iteration % 15 == 0
    resumed = run(output_dir=tmp_path / "stopped", resume_ckpt_path=str(job), **SETTINGS)
    assert resumed.output_dir == job
    assert_equal_runs(whole.output_dir, job)


def test_a_finished_run_can_be_resumed_and_continued_elsewhere(tmp_path: Path) -> None:
    first = run(output_dir=tmp_path, job_id="a")
    again = run(output_dir=tmp_path, job_id="a", resume_ckpt_path="auto")
    assert again.history == first.history[:-1] + again.history[-1:] and again.metrics == first.metrics
    longer = run(output_dir=tmp_path, job_id="b", max_epoch=4, resume_ckpt_path=str(tmp_path / "a"))
    assert (
        longer.iterations == 60
        and log(longer.output_dir)[: len(log(first.output_dir)) - 1] == log(first.output_dir)[:-1]
    )
    assert longer.checkpoint_best is not None and longer.checkpoint_best.parent.name == "b"


def test_muon_resumes_and_is_not_mistaken_for_adamw(tmp_path: Path) -> None:
    keys = {"output_dir": tmp_path, "optimizer": "muon", "lr_sched": "constant_lr"}
    whole = run(**keys, job_id="whole", max_epoch=3)
    run(**keys, job_id="parts", max_epoch=1)
    parts = run(**keys, job_id="parts", max_epoch=3, resume_ckpt_path="auto")
    assert_equal_runs(whole.output_dir, parts.output_dir)
    with pytest.raises(ValueError, match=r"run\.optimizer"):
        run(
            **{**keys, "optimizer": "adamw"},
            job_id="other",
            max_epoch=4,
            resume_ckpt_path=str(parts.output_dir),
        )


def test_auto_without_a_name_takes_the_latest_run_and_starts_where_there_is_none(tmp_path: Path) -> None:
    first = run(output_dir=tmp_path, max_epoch=1, resume_ckpt_path="auto")
    second = run(output_dir=tmp_path, max_epoch=2, resume_ckpt_path="auto")
    assert second.output_dir == first.output_dir and second.iterations == 30


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 7}, "run.seed"), ({"batch_size_train": 5}, "global batch"), ({"n": 64}, "training sets")],
)
def test_another_configuration_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    run(output_dir=tmp_path, job_id="a", max_epoch=1)
    with pytest.raises(ValueError, match=message):
        run(**{"output_dir": tmp_path, "job_id": "a", "max_epoch": 2, "resume_ckpt_path": "auto", **change})


def test_missing_and_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(output_dir=tmp_path, resume_ckpt_path=str(tmp_path / "nowhere"))
    result = run(output_dir=tmp_path, max_epoch=1)
    with pytest.raises(FileNotFoundError, match=r"model\.weights"):
        run(output_dir=tmp_path, max_epoch=2, resume_ckpt_path=str(result.checkpoint_best))
    assert result.checkpoint_last is not None
    state = result.checkpoint_last / "training_state.pt"
    state.write_bytes(state.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"training_state\.pt is refused"):
        run(output_dir=tmp_path, max_epoch=2, resume_ckpt_path=str(result.output_dir))


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_training_state_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(output_dir=tmp_path, max_epoch=1)
    assert result.checkpoint_last is not None
    if zipped:
        torch.save({"format": 1, "progress": Bomb()}, result.checkpoint_last / "training_state.pt")
    else:
        data = pickle.dumps({"format": 1, "x": Bomb()}, protocol=2)
        (result.checkpoint_last / "training_state.pt").write_bytes(data)
    with pytest.raises(ValueError, match="Nothing of it was executed"):
        run(output_dir=tmp_path, max_epoch=2, resume_ckpt_path=str(result.output_dir))
    assert not (tmp_path / "exploded").exists()


# ------------------------------------------------------------------------------------------ weights
class Saves(ToyModel):
    """Its own format leaves the counter out and stores the head in half precision."""

    def save_pretrained(self, folder: Path) -> None:
        state = {k: v.clone() for k, v in self.state_dict().items() if k not in ("calls", "tied.weight")}
        state["head.weight"] = state["head.weight"].half()
        save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize("kind", [ToyModel, Saves])
def test_weights_come_back_bit_for_bit_whatever_the_model_writes(
    tmp_path: Path, kind: type[ToyModel]
) -> None:
    model, other = kind(seed=1), kind(seed=2)
    model.calls += 5
    checkpoint.save(tmp_path / "c", model, None)
    checkpoint.load_weights(other, tmp_path / "c")
    for (key, a), b in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(a, b), key
    assert other.tied.weight is other.second.weight


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c", ToyModel(), None)
    with pytest.raises(ValueError, match="does not fit Linear"):
        checkpoint.load_weights(nn.Linear(2, 2), tmp_path / "c")


def test_random_streams_come_back() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.normal()), random.gauss(0, 1)

    cpu = torch.device("cpu")
    draw()
    state = checkpoint.random_state(cpu)
    first = draw()
    draw()
    checkpoint.set_random_state(state, cpu)
    assert draw() == first
