"""Evaluation gives the same records and metrics on one, two and three ranks, which the samples can't be shared out
evenly to; and ends with an error when a rank is killed."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lavis.runners import evaluate
from tests.ranks import free_port, on_ranks
from tests.test_heads_run import CLIPS, PLAIN

ROOT = Path(__file__).parent.parent

# model, its keys, data set, its options, task, settings of the run, the metric that must be there
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], str, dict[str, Any], str]] = {
    "captions": ("blip_caption", {}, "shapes_caption", {}, "captioning", {"max_len": 8, "min_len": 2}, "CIDEr"),
    "answers ranked": (
        "blip_vqa", {}, "shapes_vqa", {}, "vqa", {"inference_method": "rank", "num_ans_candidates": 5},
        "accuracy_percent",
    ),
    "answers written, by picture": (
        "blip_vqa", {}, "shapes_vqa", {"questions_per_image": 6}, "vqa", {"inference_method": "generate"},
        "accuracy_percent",
    ),
    "pictures and texts": ("blip_retrieval", {}, "shapes_retrieval", {}, "retrieval", {"k_test": 3}, "r_mean"),
    "pictures and texts, ALBEF": ("albef_retrieval", {}, "shapes_retrieval", {}, "retrieval", {"k_test": 3}, "r_mean"),
    "clips and texts": ("alpro_retrieval", {}, "shapes_video_retrieval", {}, "retrieval", {"k_test": 3}, "r_mean"),
    "pictures and texts, CLIP": ("clip", {}, "shapes_retrieval", {}, "retrieval", {}, "r_mean"),
    "two pictures": ("blip_nlvr", {}, "shapes_nlvr", {}, "multimodal_classification", {}, "accuracy_percent"),
    "entailment": (
        "albef_classification", {"num_classes": 3}, "shapes_entailment", {}, "multimodal_classification", {},
        "accuracy_percent",
    ),
    "clips and questions": ("alpro_qa", {}, "shapes_video_qa", {}, "multimodal_classification", {}, "accuracy_percent"),
    "dialogues": (
        "blip_vis_dialogue", {}, "shapes_dialogue", {"options": 4, "rounds": 3}, "dialogue", {}, "mrr_percent",
    ),
}  # fmt: skip


def settings(case: str, folder: Path) -> dict[str, Any]:
    model, keys, data, options, task, run, _ = CASES[case]
    return {
        "model": {"arch": model, "model_type": "tiny", "weights": "none", **keys},
        "datasets": {data: {"n_test": 7, "vis_processor": CLIPS if "video" in data else PLAIN, **options}},
        "run": {
            "task": task, "batch_size_eval": 2, "test_splits": ["test"], "output_dir": str(folder), "job_id": "job",
            "seed": 3, **run,
        },
    }  # fmt: skip


def same(ours: Any, theirs: Any) -> bool:
    """Equal, numbers up to rounding."""
    if isinstance(ours, float):
        return math.isclose(ours, theirs, rel_tol=1e-4, abs_tol=1e-4)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(v, theirs[k]) for k, v in ours.items())
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("case", CASES)
def test_as_many_ranks_as_you_like(case: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone = evaluate(settings(case, tmp_path / "1"))["test"]
    assert CASES[case][-1] in alone
    written = min((tmp_path / "1/job/result").glob("test*.json"))
    records = json.loads(written.read_text())
    assert records
    for ranks in (2, 3):
        work = functools.partial(evaluate, settings(case, tmp_path / str(ranks)))
        for metrics in on_ranks(ranks, lambda _, work=work: work()["test"]):  # type: ignore[misc]
            assert same(metrics, alone)  # every rank knows them
        found = json.loads((tmp_path / str(ranks) / "job/result" / written.name).read_text())
        assert same(found, records)


def _running(folder: Path) -> list[int]:
    """Process numbers of the ranks of a run, by the folder that their command lines name."""
    numbers = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(folder) in " ".join(command) and "torch.distributed.run" not in command:
            numbers.append(int(entry.name))
    return numbers


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the ranks in /proc")
def test_a_rank_that_is_killed_in_evaluation_ends_the_run(tmp_path: Path) -> None:
    """By the kernel for its memory, for instance: nothing can be said by that rank, so the others must not wait."""
    recipe = tmp_path / "recipe.yaml"
    config = settings("captions", tmp_path / "runs")
    config["datasets"]["shapes_caption"]["n_test"] = 5_000
    recipe.write_text(json.dumps(config))
    process = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=3", "--master_addr=127.0.0.1",
            f"--master_port={free_port()}", "-m", "lavis", "evaluate", str(recipe),
        ],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "runs/job/config.yaml").is_file() or len(_running(recipe)) < 3:
            assert process.poll() is None and time.monotonic() < deadline, (
                process.stdout and process.stdout.read()
            )
            time.sleep(0.2)
        time.sleep(3)  # into the batches
        assert process.poll() is None
        os.kill(max(_running(recipe)), signal.SIGKILL)
        out, _ = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "SIGKILL" in out or "Signal 9" in out, out[-2000:]
    assert not _running(recipe)
