"""A run's folder: `<output_dir>/<job_id>/` with config.yaml, versions.json, log.txt, evaluate.txt, result/
and the checkpoints. Which folder a run gets, what describes it, and what a resumed run finds there.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lavis
from lavis.common import dist
from lavis.common.files import append_jsonl, locked, write_json, write_text
from lavis.common.logger import RunLog, plain, short
from lavis.runners import checkpoint, provenance
from lavis.runners.provenance import Recipe, data_hash

if TYPE_CHECKING:
    from lavis.runners.settings import RunConfig

logger = logging.getLogger(__name__)

LOCK = ".lock"


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


def resume_source(
    run: RunConfig, job_id: str | None, recipe: Callable[[], Recipe], config: Any
) -> Path | None:
    """The checkpoint folder to continue from, or None to start afresh.

    Args:
        run: its settings. job_id: overrides `run.job_id`.
        recipe: gives this run's recipe; asked for where the latest run of the same recipe is looked for.
        config: of the run.

    Raises:
        FileNotFoundError: `run.resume_ckpt_path` names no checkpoint folder.
    """
    if run.resume_ckpt_path is None:
        return None
    job_id = job_id or run.job_id
    automatic = run.resume_ckpt_path == "auto"
    new = recipe() if automatic and job_id is None and not run.evaluate else None
    # one rank looks: finding may finish a swap of folders
    found = dist.from_main(lambda: _find(run, job_id, new, config))
    if found is None and not automatic:
        raise FileNotFoundError(
            f"run.resume_ckpt_path: {run.resume_ckpt_path!r} is no run's folder and no checkpoint folder "
            f"(one with model.safetensors and {checkpoint.STATE_NAME}); "
            "to start a new run from a file of weights, set model.weights to it"
        )
    return found


def _find(run: RunConfig, job_id: str | None, recipe: Recipe | None, config: Any) -> Path | None:
    if run.resume_ckpt_path is not None and run.resume_ckpt_path != "auto":
        return checkpoint.find(run.resume_ckpt_path)
    root = Path(run.output_dir)
    if job_id is not None:
        return checkpoint.find(root / job_id)
    jobs = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    candidates = [c for c in map(checkpoint.find, jobs) if c is not None and c.name == checkpoint.LAST]
    if recipe is None:
        return max(candidates, key=lambda c: c.stat().st_mtime, default=None)
    found, why = provenance.latest(candidates, recipe, config)
    if why:
        logger.warning("no run in %s has this recipe, so a new one is started (in %s)", root, why)
    return found


def claim(run: RunConfig, job_id: str | None, resume_from: Path | None) -> Path:
    """The folder of this run, made if missing.

    A resumed run keeps its folder unless another `job_id` is given. A new one gets the time as its name.

    Raises:
        ValueError: the named folder holds another run that is not to be continued, or cannot be made.
    """
    return dist.from_main(lambda: _claim(run, job_id, resume_from))


def target(run: RunConfig, job_id: str | None, resume_from: Path | None) -> Path | None:
    """The folder that `claim` will give; None for a new one with the time as its name."""
    job_id = job_id or run.job_id
    if job_id is not None:
        return Path(run.output_dir) / job_id
    return None if resume_from is None else resume_from.parent


def _claim(run: RunConfig, job_id: str | None, resume_from: Path | None) -> Path:
    chosen = target(run, job_id, resume_from)
    if chosen is not None and (chosen / "log.txt").exists():
        own = resume_from is not None and resume_from.parent.resolve() == chosen.resolve()
        fresh = resume_from is None and (run.evaluate or run.resume_ckpt_path == "auto")
        if not own and not fresh:
            raise ValueError(
                f"{chosen} already holds another run; continue that one with run.resume_ckpt_path=auto, "
                "or choose another run.job_id"
            )
    try:
        if chosen is None:
            return _new_folder(Path(run.output_dir))
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ValueError(
            f"run.output_dir is {run.output_dir!r}: no folder can be made there ({e.strerror})"
        ) from e
    return chosen


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a run's folder, on all ranks together: two processes in it would mix their checkpoints.

    Raises:
        OSError: another process has it.
    """
    busy = f"another process is at work in the run's folder {path}; wait for its end, or choose another run.job_id"
    with contextlib.ExitStack() as stack:

        def lock() -> None:
            for wait in range(10):
                try:
                    stack.enter_context(locked(path / LOCK, busy=busy))
                except OSError:
                    if wait == 9:
                        raise
                    time.sleep(0.1)  # one that was killed a moment ago may still be on its way out
                else:
                    return

        dist.from_main(lock)
        yield


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


def write_description(
    folder: Path,
    config: Any,
    datasets: Mapping[str, Mapping[str, Any]],
    device: torch.device,
    precision: str,
    changed: bool = True,
) -> None:
    """Write config.yaml, from which the run can be repeated, and versions.json.

    Args:
        folder: of the run. config, datasets, device, precision: of the run.
        changed: whether a run that is continued here differs from what is described; then, or with other versions,
            the earlier files are moved to history/<number>. Otherwise they stay as they are.
    """
    hashes = {n: {s: data_hash(d) for s, d in splits.items()} for n, splits in datasets.items()}
    now = {**versions(device, precision), "data_sha256": hashes}
    described = copy.copy(config)
    described.run = dataclasses.replace(config.run, allow_changed=[])  # for this time only
    files, text = [folder / "config.yaml", folder / "versions.json"], described.to_yaml()
    if all(f.is_file() for f in files):
        same = _read(files[1]) == now
        if same and (not changed or files[0].read_text(encoding="utf-8") == text):
            return
        number = 1
        while (kept := folder / "history" / str(number)).exists():
            number += 1
        kept.mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, kept / file.name)
    write_text(files[0], text)
    write_json(files[1], now)


def note_changes(folder: Path, source: Path, step: int, found: provenance.Changes) -> None:
    """Add to history/resumed.jsonl that a run went on with other settings, from which step of which checkpoint."""
    changed = {key: {"was": old, "is": new} for key, (old, new) in found.items()}
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    record = {"time": now, "from": str(source), "step": step, "changed": changed}
    append_jsonl(folder / "history" / "resumed.jsonl", record)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


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
