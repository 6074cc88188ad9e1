"""A run's folder: `<output_dir>/<job_id>/` with config.yaml, versions.json, log.txt, evaluate.txt, result/
and the checkpoints. Which folder a run gets, what describes it, and what a resumed run finds there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lavis
from lavis.common import dist
from lavis.common.files import append_jsonl, write_json
from lavis.common.logger import RunLog, plain, short
from lavis.runners import checkpoint

if TYPE_CHECKING:
    from lavis.runners.settings import RunConfig

logger = logging.getLogger(__name__)


class RunFolder:
    """What a run writes besides checkpoints. Owns log.txt while the run trains; only rank 0 writes.

    Args:
        path: the folder, as `claim` gave it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._log: RunLog | None = None

    def open_log(self, log_size: int, evaluate_size: int, tensorboard: bool) -> None:
        """Start writing log.txt; called by every rank.

        Args:
            log_size, evaluate_size: bytes that both files keep: what a checkpoint knew, 0 without one.
            tensorboard: whether to write its events too.
        """
        if dist.is_main():
            truncate(self.path / "log.txt", log_size)
            truncate(self.path / "evaluate.txt", evaluate_size)
        dist.barrier()
        self._log = RunLog(self.path / "log.txt", self.path / "tensorboard" if tensorboard else None)

    def close_log(self) -> None:
        """Let go of TensorBoard's file; log.txt can still be written to."""
        if self._log is not None:
            self._log.close()

    def sizes(self) -> tuple[int, int]:
        """Bytes of log.txt and evaluate.txt."""
        return size(self.path / "log.txt"), size(self.path / "evaluate.txt")

    def write(self, record: Mapping[str, Any], console: bool = True) -> None:
        """Add a line to log.txt and, unless a progress bar shows the same, to the console."""
        if self._log is not None:
            self._log.write(record)
        if console:
            # breakdowns such as question_type/count_percent are in the file
            logger.info(short({k: v for k, v in record.items() if k != "event" and "/" not in k}))

    def write_evaluation(self, record: Mapping[str, Any], speed: float) -> None:
        """Add a line to evaluate.txt and, with the speed, to log.txt and the console."""
        if dist.is_main():
            append_jsonl(self.path / "evaluate.txt", plain(record))
        self.write({**record, "samples_per_second": speed} if self._log is not None else record)

    def result(self, name: str) -> Path:
        """The path of a file of predictions."""
        return self.path / "result" / name


def resume_source(run: RunConfig, job_id: str | None) -> Path | None:
    """The checkpoint folder to continue from, or None to start afresh.

    Raises:
        FileNotFoundError: `run.resume_ckpt_path` names no checkpoint folder.
    """
    if run.resume_ckpt_path is None:
        return None
    found: Path | None = None
    if dist.is_main():  # one rank looks: finding may finish a swap of folders
        job_id = job_id or run.job_id
        if run.resume_ckpt_path != "auto":
            found = checkpoint.find(run.resume_ckpt_path)
        elif job_id is not None:
            found = checkpoint.find(Path(run.output_dir) / job_id)
        else:
            root = Path(run.output_dir)
            jobs = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
            candidates = [
                c for c in map(checkpoint.find, jobs) if c is not None and c.name == checkpoint.LAST
            ]
            found = max(candidates, key=lambda c: c.stat().st_mtime, default=None)
    found = dist.broadcast_object(found)
    if found is None and run.resume_ckpt_path != "auto":
        raise FileNotFoundError(
            f"run.resume_ckpt_path: {run.resume_ckpt_path!r} is no run's folder and no checkpoint folder "
            f"(one with model.safetensors and {checkpoint.STATE_NAME}); "
            "to start a new run from a file of weights, set model.weights to it"
        )
    return found


def claim(run: RunConfig, job_id: str | None, resume_from: Path | None) -> Path:
    """The folder of this run, made if missing.

    A resumed run keeps its folder unless another `job_id` is given. A new one gets the time as its name.

    Raises:
        ValueError: the named folder holds another run that is not to be continued, or cannot be made.
    """
    job_id = job_id or run.job_id
    root = Path(run.output_dir)
    chosen: Path | str = ""
    if dist.is_main():
        if job_id is not None:
            chosen = root / job_id
            own = resume_from is not None and resume_from.parent.resolve() == chosen.resolve()
            fresh = resume_from is None and (run.evaluate or run.resume_ckpt_path == "auto")
            if (chosen / "log.txt").exists() and not own and not fresh:
                chosen = (
                    f"{chosen} already holds another run; continue that one with run.resume_ckpt_path=auto, "
                    "or choose another run.job_id"
                )
        elif resume_from is not None:
            chosen = resume_from.parent
        try:
            if chosen == "":
                chosen = _new_folder(root)
            elif isinstance(chosen, Path):
                chosen.mkdir(parents=True, exist_ok=True)
        except OSError as e:  # a value, so that every rank hears of it
            chosen = f"run.output_dir is {run.output_dir!r}: no folder can be made there ({e.strerror})"
    chosen = dist.broadcast_object(chosen)
    if isinstance(chosen, str):
        raise ValueError(chosen)
    return chosen


def _new_folder(root: Path) -> Path:
    """A folder that no other run has, named by the second; mkdir decides between simultaneous starts."""
    name = time.strftime("%Y%m%d_%H%M%S")
    number = 1
    while True:
        path = root / (name if number == 1 else f"{name}_{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path


def adopt(old: Path, new: Path) -> None:
    """Take over logs and best weights when a run is continued in another folder."""
    if old.resolve() == new.resolve():
        return
    for name in ("log.txt", "evaluate.txt"):
        if (old / name).exists() and not (new / name).exists():
            shutil.copyfile(old / name, new / name)
    best = checkpoint.find(old / checkpoint.BEST)
    if best is not None and not (new / checkpoint.BEST).exists():
        shutil.copytree(best, new / checkpoint.BEST)


def size(path: Path) -> int:
    """Bytes in a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def truncate(path: Path, length: int) -> None:
    """Drop what a file holds after `length` bytes: a resumed run writes it again."""
    if size(path) > length:
        with path.open("rb+") as f:
            f.truncate(length)


def data_hash(dataset: Any) -> str | None:
    """SHA-256 of what a data set was read from, None for a data set that does not tell.

    Of its annotation files; else of its records, if they are a list; else, where records are made and not
    read, of the settings that they are made from.
    """
    digest = hashlib.sha256()
    paths = getattr(dataset, "annotation_paths", ())
    if paths:
        for path in paths:
            with Path(path).open("rb") as f:
                while block := f.read(1 << 20):
                    digest.update(block)
    elif isinstance(getattr(dataset, "records", None), list):
        for record in dataset.records:
            digest.update(json.dumps(record, sort_keys=True, default=str).encode())
    elif hasattr(dataset, "options"):
        digest.update(repr((dataset.options, getattr(dataset, "split", None))).encode())
    else:
        return None
    return digest.hexdigest()


def write_description(
    folder: Path, config: Any, datasets: Mapping[str, Mapping[str, Any]], device: torch.device, precision: str
) -> None:
    """Write config.yaml, from which the run can be repeated, and versions.json."""
    config.save(folder / "config.yaml")
    hashes = {n: {s: data_hash(d) for s, d in splits.items()} for n, splits in datasets.items()}
    write_json(folder / "versions.json", {**versions(device, precision), "data_sha256": hashes})


def versions(device: torch.device, precision: str) -> dict[str, Any]:
    """Versions and the machine, as far as they can change a number."""
    import numpy

    return {
        "lavis": lavis.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": precision,
        "processes": dist.world_size(),
    }
