"""What a run is made of, and what it gives back.

Words used here: an *iteration* is one batch on each rank; an *update* is one step of the optimizer, after
`accum_grad_iters` iterations; an *epoch* is one pass over the data, or `iters_per_inner_epoch` iterations
of a run that counts iterations (`max_iters`).

Who owns what:

- `runner.Runner`: configuration, task, model, data sets, device and the run's folder; trains and evaluates.
- `loop.Training`: one call of `train` up to the final test: loader, schedule, the loop itself.
- `state.TrainingState`: all that decides the next number: optimizer, loss scale, position (`Progress`),
  running means (`means`), unreadable samples (`skipped`). What is saved and restored, by `checkpoint`.
- `step.Step`: forward, backward, update; the model as wrapped for several processes.
- `data`: which samples make up which batch, and the loaders. `finite`: losses that are no numbers.
- `evaluation.Evaluator`: predictions, metrics, result files; it keeps nothing.
- `stopping.Stopping`: signals, budget, patience. `clock.Clock`: time and speed.
- `folder.RunFolder`: log.txt, evaluate.txt, result/; which folder a run gets, and that it is alone in it.
- `provenance`: what a run was made with, and what of it may change when it is continued.
- `settings`: every key of the section `run`, and how long a run is (`Length`).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lavis.common import device as devices
from lavis.common import dist
from lavis.common.files import read_jsonl
from lavis.common.logger import setup_logger
from lavis.common.registry import registry
from lavis.runners import checkpoint, folder, header, provenance
from lavis.runners.evaluation import Evaluator
from lavis.runners.folder import RunFolder
from lavis.runners.loop import Training
from lavis.runners.provenance import Recipe
from lavis.runners.settings import RunConfig, check_job_id, check_training
from lavis.runners.state import Progress
from lavis.runners.stopping import Interrupted, Terminated

logger = logging.getLogger(__name__)

logger = logging.getLogger(__name__)

__all__ = ["Result", "RunConfig", "Runner", "RunnerBase", "RunnerIter", "RunnerIters"]


@dataclass(frozen=True)
class Result:
    """What a training run gives back.

    Attributes:
        output_dir: its folder. history: the lines of log.txt without those of steps.
        best: {"epoch", "split", "metric", "value"} of the best validation, or None.
        metrics: {split: metrics} of the final test. iterations: number done, earlier ones included.
        seconds: that training took, validations included, over all resumptions.
        stopped: "finished", "max_minutes", "patience", or "evaluated" where `run.evaluate` is true.
        checkpoint_last, checkpoint_best: folders, None where not written.
    """

    output_dir: Path
    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    metrics: dict[str, dict[str, float]]
    iterations: int
    seconds: float
    stopped: str
    checkpoint_last: Path | None
    checkpoint_best: Path | None


def _with_splits_of(config: Any, datasets: Mapping[str, Mapping[str, Any]]) -> Any:
    """The configuration without evaluation splits that no data set has."""
    there = {split for splits in datasets.values() for split in splits}
    changed: dict[str, Any] = {}
    for key in ("valid_splits", "test_splits"):
        named = getattr(config.run, key)
        kept = [split for split in named if split in there or split not in ("val", "test")]
        if kept != named:
            changed[key] = kept
            if key == "valid_splits" and config.run.evaluate:
                continue  # not asked for
            logger.warning(
                "run.%s names %s, which no data set has; it is left out",
                key,
                ", ".join(s for s in named if s not in there),
            )
    if not changed or not any(s in there for s in config.run.evaluation_splits):
        return config  # as it was named, so that the error can say so
    out = copy.copy(config)
    out.run = dataclasses.replace(config.run, **changed)
    return out


@registry.register_runner("runner_base")
@registry.register_runner("runner_iter")
class Runner:
    """Trains and evaluates one model on one task.

    Args:
        cfg: the configuration (`lavis.common.config.Config`). task: from `lavis.tasks.setup_task`.
        model: any `nn.Module` that the task can use. datasets: {name: {split: data set}}.
        job_id: name of the run's folder; overrides `run.job_id`.

    Raises:
        ValueError: splits or settings that do not fit; see `check_training`.
    """

    def __init__(
        self,
        cfg: Any,
        task: Any,
        model: nn.Module,
        datasets: Mapping[str, Mapping[str, Any]],
        job_id: str | None = None,
    ) -> None:
        cfg = _with_splits_of(cfg, datasets)
        self.config, self.task, self.datasets = cfg, task, datasets
        self.run: RunConfig = cfg.run
        self.device = devices.pick_device(self.run.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.precision = devices.pick_precision(self.device, self.run.mixed_precision)
        self.model = model.to(self.device)
        for split in self.run.evaluation_splits:
            self.dataset(split)
        self._evaluator = Evaluator(self.run, task, self.model, self.device, self.precision, self.dataset)
        self._progress: Progress | None = None  # of the training, once there was one
        if job_id is not None:
            check_job_id(job_id)
        self._job_id = job_id
        self._resume_from = folder.resume_source(self.run, job_id, self._recipe, cfg)
        self._out: RunFolder | None = None
        self._is_alone = False

    def _recipe(self) -> Recipe:
        return provenance.recipe_of(self.config, self.datasets, self.precision, self.model)

    @property
    def output_dir(self) -> Path:
        """The run's folder, made at the first look at it; every rank has to look."""
        return self._folder.path

    @property
    def _folder(self) -> RunFolder:
        if self._out is None:
            path = folder.claim(self.run, self._job_id, self._resume_from)
            registry.register_path("output_dir", str(path))
            registry.register_path("result_dir", str(path / "result"))
            self._out = RunFolder(path)
        return self._out

    def _describe(self, changed: bool = True, missing_only: bool = False) -> None:
        """Write what describes the run, once nothing is found wrong.

        Args:
            changed: see `folder.write_description`. missing_only: leave a description that is there.
        """
        path, parts = self.output_dir, (self.config, self.datasets, self.device, self.precision)

        def write() -> None:
            if not (missing_only and (path / "config.yaml").exists()):
                folder.write_description(path, *parts, changed)

        dist.from_main(write)

    @contextlib.contextmanager
    def _alone(self, path: Path) -> Iterator[None]:
        """Hold the run's folder, unless this runner does so already."""
        if self._is_alone:
            yield
            return
        with folder.alone(path):
            self._is_alone = True
            try:
                yield
            finally:
                self._is_alone = False

    # ------------------------------------------------------------------ data
    def dataset(self, split: str) -> Any:
        """The data set of a split to evaluate on.

        Raises:
            ValueError: no data set, or more than one, has this split.
        """
        having = [name for name, splits in self.datasets.items() if split in splits]
        if len(having) != 1:
            known = sorted({s for splits in self.datasets.values() for s in splits})
            problem = f"is in {' and '.join(having)}"
            if not having:
                problem = f"is in no data set (they have {', '.join(known)})"
            raise ValueError(f"split {split!r} {problem}; evaluation needs it in exactly one")
        return self.datasets[having[0]][split]

    def _training_sets(self) -> tuple[list[str], list[Any]]:
        pairs = [
            (name, splits[split])
            for name, splits in self.datasets.items()
            for split in self.run.train_splits
            if split in splits
        ]
        for split in self.run.train_splits:
            if not any(split in splits for splits in self.datasets.values()):
                raise ValueError(f"run.train_splits names {split!r}, which no data set has")
        return [name for name, _ in pairs], [dataset for _, dataset in pairs]

    # ------------------------------------------------------------------ training
    def train(self) -> Result:
        """Train, validate, and test with the best weights; with `run.evaluate`, as in the paper, only test.

        Returns:
            See `Result`.

        Raises:
            ValueError: the configuration cannot train, or a loss is not finite (naming step and samples).
            OSError: pictures cannot be read, and may not be skipped or are too many.
            KeyboardInterrupt: Ctrl-C, after the state was saved; the message says how to go on.
            SystemExit: the same at SIGTERM or SIGUSR1, with 128 + the signal's number as the exit code.
        """
        setup_logger()
        if self.run.evaluate:
            metrics = self.evaluate()
            return Result(self.output_dir, [], None, metrics, 0, 0.0, "evaluated", None, None)
        with contextlib.ExitStack() as held:
            there = folder.target(self.run, self._job_id, self._resume_from)
            if self._resume_from is not None and there == self._resume_from.parent:
                held.enter_context(self._alone(there))  # before its checkpoint is read
            return self._train(held)

    def _train(self, held: contextlib.ExitStack) -> Result:
        """Train, holding the run's folder from the moment when there is one."""
        names, sets = self._training_sets()
        check_training(self.run)
        recipe, source = self._recipe(), self._resume_from
        changes: provenance.Changes = {}
        if source is not None:
            checkpoint.state_file(source)
            changes = provenance.check(provenance.read(source), recipe, self.config, source)
        self.task.before_training(self.model, self.datasets)
        training = Training(
            self.run, self.task, self.model, names, sets, self.device, self.precision, self._evaluator, recipe, source,
        )  # fmt: skip
        self._progress = training.state.progress
        out = self._folder
        held.enter_context(self._alone(out.path))
        self._describe(changed=source is None or bool(changes))
        if source is not None:
            dist.from_main(lambda: folder.adopt(source.parent, out.path))
            if changes:
                logger.warning("continued with other settings: %s", provenance.told(changes))
                step = training.state.progress.iteration
                dist.from_main(lambda: folder.note_changes(out.path, source, step, changes))
        self._say(training, dict(zip(names, sets)))
        try:
            stopped = training.run_in(out)
        except Interrupted as e:
            message = self._how_to_go_on(training.state.progress.iteration)
            if e.signum == signal.SIGINT:
                raise KeyboardInterrupt(message) from None
            if dist.is_main():
                logger.warning(message)
            raise Terminated(message, e.signum) from None
        best = checkpoint.find(out.path / checkpoint.BEST) if self._progress.best else None
        metrics = {}
        if self.run.test_splits:
            if best is not None:
                dist.barrier()
                checkpoint.load_weights(self.model, best)
            metrics = self.evaluate(self.run.test_splits, "best" if best is not None else "last")
        out.close_log()
        return Result(
            output_dir=out.path,
            history=[r for r in read_jsonl(out.path / "log.txt") if r.get("event") != "step"],
            best=self._progress.best,
            metrics=metrics,
            iterations=self._progress.iteration,
            seconds=self._progress.seconds,
            stopped=stopped,
            checkpoint_last=checkpoint.find(out.path / checkpoint.LAST),
            checkpoint_best=best,
        )

    def _say(self, training: Training, sets: Mapping[str, Any]) -> None:
        """What the run is, to the console of rank 0."""
        run, length = self.run, training.length
        batch = training.order.batch_size
        if run.max_minutes is not None and self._progress is not None and not self._progress.plan:
            steps = f"as many of {batch} samples as fit into {run.max_minutes:g} minutes"
        else:
            steps = f"{length.iterations:,} of {batch} samples, in {length.epochs:,} epochs"
        records = sum(map(len, sets.values()))
        parts = [f"{records:,} to train on"]
        parts += [f"{len(self.dataset(s)):,} in {s}" for s in run.evaluation_splits]
        data = dict.fromkeys(header.data_name(name, dataset) for name, dataset in sets.items())
        self._say_header(
            {
                "parameters": header.parameters(self.model),
                "data": ", ".join(data),
                "records": ", ".join(parts),
                "steps": steps,
                "rate": f"{run.init_lr:g}, {run.lr_sched}",
            }
        )

    def _say_evaluation(self, splits: Sequence[str]) -> None:
        """What is evaluated, where no training came before that said it."""
        data = {
            header.data_name(name, having[split]): None
            for name, having in self.datasets.items()
            for split in splits
            if split in having
        }
        records = ", ".join(f"{len(self.dataset(split)):,} in {split}" for split in splits)
        self._say_header({"data": ", ".join(data), "records": records})

    def _say_header(self, entries: Mapping[str, str]) -> None:
        processes = f", {dist.world_size()} processes" if dist.is_on() else ""
        device = f"{self.device}, {self.precision}{processes}"
        model = header.model_name(self.model, self.config.model)
        for line in header.lines(
            {"model": model, **entries, "device": device, "folder": str(self._folder.path)}
        ):
            logger.info(line)

    def _how_to_go_on(self, iteration: int) -> str:
        done = f"interrupted at iteration {iteration}"
        resume = f"run.resume_ckpt_path={shlex.quote(str(self.output_dir))}"
        if "arch" not in self.config.model or not self.config.datasets:  # made of objects, not of a recipe
            return f"{done}; continue with {resume}"
        recipe = shlex.quote(str(self.output_dir / "config.yaml"))
        return f"{done}; continue with: lavis train {recipe} --options {resume}"

    # ------------------------------------------------------------------ evaluation
    def evaluate(
        self,
        splits: Sequence[str] | None = None,
        epoch: int | str = "best",
        *,
        cur_epoch: int | str | None = None,
        skip_reload: bool = False,
    ) -> dict[str, dict[str, float]]:
        """Predict and score splits; records go to result/, metrics to evaluate.txt.

        Args:
            splits: names; None takes `run.test_splits`, or `run.valid_splits` if there are none.
            epoch: label of the results; `cur_epoch` is the original's name for it.
            skip_reload: keep the weights that the model has where `run.resume_ckpt_path` names others.

        Returns:
            {split: metrics}, the same on every rank.

        Raises:
            ValueError: there is no split to evaluate.
            OSError: a picture cannot be read.
        """
        setup_logger()
        splits = list(splits or self.run.test_splits or self.run.valid_splits)
        if not splits:
            raise ValueError("there is nothing to evaluate on: run.test_splits is empty, for example [test]")
        epoch = epoch if cur_epoch is None else cur_epoch
        if self._progress is None and self._resume_from is not None and not skip_reload:  # no training first
            checkpoint.load_weights(self.model, self._resume_from)
        iteration = 0 if self._progress is None else self._progress.iteration
        out = self._folder
        with self._alone(out.path):
            if (
                self._progress is None
            ):  # evaluating a run in its own folder leaves what describes its training
                self._describe(missing_only=True)
                self._say_evaluation(splits)
            return self._evaluator(splits, epoch, iteration, out, report=self._reporter(epoch))

    def _reporter(self, epoch: int | str) -> Any:
        """What writes a report of each split, where `run.report` asks for it."""
        if not self.run.report:
            return None
        from lavis.runners.evaluation_report import Reporter

        # a model that was not trained here goes by the name of its weights
        label = (
            str(epoch) if self._progress is not None else str(self.config.model.get("weights") or "default")
        )
        versions = folder.versions(self.device, self.precision)
        return Reporter(self.config, self.task, self.output_dir, label, versions)


RunnerBase = RunnerIter = RunnerIters = Runner  # the paper's names; there is one loop
