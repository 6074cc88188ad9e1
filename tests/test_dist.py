"""Several processes: the same records, the same training, and an end when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lavis.common import dist
from lavis.common.files import read_jsonl
from lavis.runners import checkpoint
from tests.ranks import free_port, on_ranks
from tests.toy_training import run

ROOT = Path(__file__).parent.parent
SETTINGS: dict[str, Any] = {
    "max_epoch": None, "max_iters": 20, "iters_per_inner_epoch": 10, "runner": "runner_iter", "dropout": 0.0,
    "n": 83, "log_freq": 5,
}  # fmt: skip


def torchrun(ranks: int, folder: Path, **keys: Any) -> tuple[int, str]:
    arguments = [f"{k}={v}" for k, v in {"output_dir": folder, "job_id": "job", **keys}.items()]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}",
            "--master_addr=127.0.0.1", f"--master_port={free_port()}", "-m", "tests.toy_training", *arguments,
        ],
        cwd=ROOT, text=True, capture_output=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_two_ranks_train_and_evaluate_as_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    one = run(output_dir=tmp_path / "one", job_id="job", batch_size_train=8, **SETTINGS).output_dir
    code, out = torchrun(2, tmp_path / "two", batch_size_train=4, **{**SETTINGS, "max_epoch": "null"})
    assert code == 0, out
    two = tmp_path / "two" / "job"
    a, b = (load_file(f / "checkpoint_last" / "model.safetensors") for f in (one, two))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-5)
    for record, other in zip(read_jsonl(one / "log.txt"), read_jsonl(two / "log.txt"), strict=True):
        for key in ("event", "split", "epoch", "step"):
            assert record.get(key) == other.get(key)
        for key in ("loss", "lr", "grad_norm", "accuracy_percent"):
            if key in record:
                assert record[key] == pytest.approx(other[key], rel=1e-4)
    for name in ("val_epoch0.json", "test_epochbest.json"):
        records = [json.loads((f / "result" / name).read_text()) for f in (one, two)]
        assert records[0] == records[1]
        assert [r["id"] for r in records[1]] == list(range(len(records[1])))
    # both ranks' random streams are there, and they differ
    state = checkpoint.load_state(two / "checkpoint_last")
    streams = [r["random"]["torch"] for r in state["ranks"]]
    assert len(streams) == 2 and not torch.equal(*streams)


def test_two_ranks_resume_bit_for_bit_with_accumulation_and_dropout(tmp_path: Path) -> None:
    keys = {"batch_size_train": 4, "accum_grad_iters": 2, "n": 176}  # 22 iterations, 11 updates an epoch
    on_ranks(2, lambda _: run(output_dir=tmp_path / "whole", job_id="job", **keys) and None)
    on_ranks(2, lambda _: run(output_dir=tmp_path / "parts", job_id="job", max_minutes=1e-9, **keys) and None)
    part = checkpoint.load_state(tmp_path / "parts" / "job" / "checkpoint_last")
    assert part["progress"]["iteration"] == 2  # within epoch 0: ranks agree at every update
    on_ranks(
        2,
        lambda _: run(output_dir=tmp_path / "parts", job_id="job", resume_ckpt_path="auto", **keys) and None,
    )
    last = Path("job") / "checkpoint_last" / "model.safetensors"
    a, b = (load_file(tmp_path / name / last) for name in ("whole", "parts"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_rank_that_fails_ends_the_run_with_its_message(tmp_path: Path) -> None:
    began = time.time()
    code, out = torchrun(2, tmp_path, poison=3, max_epoch=2, n=40)
    assert code != 0 and "not finite" in out
    assert time.time() - began < 60


def test_ranks_that_are_left_alone_say_so(tmp_path: Path) -> None:
    """Also where nothing watches over the processes, as torchrun does."""

    def work(rank: int) -> None:
        dist.barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(RuntimeError, match=f"rank {rank} of 3 can't reach the others"):
            dist.all_gather_objects(rank)
        (tmp_path / str(rank)).touch()
        raise SystemExit(1)

    began = time.time()
    with pytest.raises(AssertionError):
        on_ranks(3, work, seconds=60)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "2"]
    assert time.time() - began < 30


def test_without_processes_everything_is_free() -> None:
    assert not dist.is_on() and dist.is_main() and dist.rank() == 0 and dist.world_size() == 1
    assert not dist.init_from_env()
    assert dist.all_gather_objects({"a": 1}) == [{"a": 1}] and dist.broadcast_object("x") == "x"
    x = torch.ones(2, requires_grad=True)
    assert dist.all_gather_with_grad(x) is x and dist.mean_over_ranks(x) is x
    dist.barrier()
    dist.shutdown()
