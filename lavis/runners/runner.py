"""The one training loop: epochs or iterations, one process or many, fresh or resumed.

Words used here: an *iteration* is one batch on each rank; an *update* is one step of the optimizer, after
`accum_grad_iters` iterations; an *epoch* is one pass over the data, or `iters_per_inner_epoch` iterations
of a run that counts iterations (`max_iters`). Everything that decides the next number (weights, optimizer,
random streams, position, running sums) is in a checkpoint, so a run that was killed and resumed equals
one that was not.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lavis.common import device as devices
from lavis.common import dist, optims
from lavis.common.files import append_jsonl, read_jsonl
from lavis.common.logger import RunLog, plain, setup_logger, short
from lavis.common.registry import registry
from lavis.runners import checkpoint, folder
from lavis.runners.data import EvalData, Order, TrainLoader, mixing_ratios, shown
from lavis.runners.interrupt import CtrlC, Interrupted
from lavis.runners.means import Means
from lavis.runners.settings import RunConfig, check_training

logger = logging.getLogger(__name__)

# every rank computes the same buffers; the option that says so has another name in newer versions of torch
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers": False
}


@dataclass(frozen=True)
class Result:
    """What a training run gives back.

    Attributes:
        output_dir: its folder. history: the epoch and evaluation lines of log.txt.
        best: {"epoch", "split", "metric", "value"} of the best validation, or None.
        metrics: {split: metrics} of the final test. iterations: number done, earlier ones included.
        stopped: "finished", "max_minutes" or "patience".
        checkpoint_last, checkpoint_best: folders, None where not written.
    """

    output_dir: Path
    history: list[dict[str, Any]]
    best: dict[str, Any] | None
    metrics: dict[str, dict[str, float]]
    iterations: int
    stopped: str
    checkpoint_last: Path | None
    checkpoint_best: Path | None


@dataclass
class _Progress:
    """Where a run stands; saved in every checkpoint."""

    iteration: int = 0  # batches done on each rank
    closed: int = 0  # epochs that are over: trained, logged, validated
    best: dict[str, Any] | None = None
    validations_without_best: int = 0
    seconds: float = 0.0  # since the start, validations included, over all resumptions
    log_size: int = 0
    evaluate_size: int = 0


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
        self.config, self.task, self.datasets = cfg, task, datasets
        self.run: RunConfig = cfg.run
        self.device = devices.pick_device(self.run.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.precision = devices.pick_precision(self.device, self.run.mixed_precision)
        self.model = model.to(self.device)
        for split in self.run.evaluation_splits:
            self.dataset(split)
        self.progress = _Progress()
        self._job_id = job_id
        self._resume_from = folder.resume_source(self.run, job_id)
        self._folder: Path | None = None
        self._log: RunLog | None = None
        self._ctrl_c = CtrlC()

    @property
    def output_dir(self) -> Path:
        """The run's folder, made at the first look at it; every rank has to look."""
        if self._folder is None:
            self._folder = folder.claim(self.run, self._job_id, self._resume_from)
            registry.register_path("output_dir", str(self._folder))
            registry.register_path("result_dir", str(self._folder / "result"))
        return self._folder

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

    # ------------------------------------------------------------------ preparing
    def _prepare(self) -> None:
        run = self.run
        check_training(run)
        names, self._sets = self._training_sets()
        ratios = mixing_ratios(names, run.train_dataset_ratios)
        batch = run.batch_size_train * dist.world_size()
        self._order = Order([len(s) for s in self._sets], batch, run.seed, ratios)
        by_iterations = run.max_iters is not None and not (run.max_epoch and run.runner != "runner_iter")
        self.iters_per_epoch = self._order.batches_per_pass
        if by_iterations:
            assert run.max_iters is not None
            self.total = run.max_iters
            self.iters_per_epoch = min(run.iters_per_inner_epoch or self.iters_per_epoch, self.total)
            self.max_epoch = -(-self.total // self.iters_per_epoch)
        else:
            assert run.max_epoch is not None
            self.max_epoch = run.max_epoch
            self.total = self.max_epoch * self.iters_per_epoch
        self._loader = TrainLoader(self._sets, self._order, run.seed, run.num_workers, self.device)
        self.optimizer = optims.build_optimizer(
            self.model, run.init_lr, run.weight_decay, run.beta2, run.lr_layer_decay
        )
        self.schedule: optims.Scheduler = registry.get_lr_scheduler_class(run.lr_sched)(
            optimizer=self.optimizer,
            max_epoch=self.max_epoch,
            min_lr=run.min_lr,
            init_lr=run.init_lr,
            decay_rate=run.lr_decay_rate,
            warmup_start_lr=run.warmup_lr,
            warmup_steps=run.warmup_steps,
            iters_per_epoch=self.iters_per_epoch,
        )
        self.scaler = devices.grad_scaler(self.device, self.precision)
        self._window, self._epoch_means = Means(), Means()
        self._bad = torch.full((), -1, dtype=torch.long, device=self.device)
        self._seed()
        if self._resume_from is not None:
            self._restore(self._resume_from)
        if run.compile:
            self.model.compile()
        self._wrapped: nn.Module = self.model
        if dist.is_on():
            self._wrapped = DistributedDataParallel(
                self.model,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                **_OWN_BUFFERS,
                gradient_as_bucket_view=True,
                find_unused_parameters=run.find_unused_parameters
                or bool(getattr(self.model, "find_unused_parameters", False)),
            )

    def _seed(self) -> None:
        seed = self.run.seed + dist.rank()  # dropout differs between ranks
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _fingerprint(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint's position to mean the same."""
        return {
            "run.seed": self.run.seed,
            "samples of the training sets": [len(s) for s in self._sets],
            "samples per global batch": self._order.batch_size,
            "run.train_dataset_ratios": self.run.train_dataset_ratios,
            "iterations per epoch": self.iters_per_epoch,
            "run.accum_grad_iters": self.run.accum_grad_iters,
            "precision": self.precision,
        }

    # ------------------------------------------------------------------ saving and resuming
    def _save(self) -> None:
        """Write checkpoint_last; called by every rank."""
        self._check_finite()
        each = dist.all_gather_objects(
            {
                "random": checkpoint.random_state(self.device),
                "window": self._window.state(),
                "epoch": self._epoch_means.state(),
            }
        )
        if dist.is_main():
            assert self._log is not None
            self.progress.log_size = self._log.size()
            self.progress.evaluate_size = folder.size(self.output_dir / "evaluate.txt")
            state = {
                "progress": plain(asdict(self.progress)),
                "fingerprint": self._fingerprint(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ranks": each,
            }
            checkpoint.save(self.output_dir / checkpoint.LAST, self.model, state)
        dist.barrier()

    def _restore(self, source: Path) -> None:
        """Continue from a checkpoint folder.

        Raises:
            ValueError: the checkpoint belongs to another configuration, model or optimizer.
        """
        state = checkpoint.load_state(source)
        ours, theirs = self._fingerprint(), state["fingerprint"]
        differing = [f"{k} was {theirs.get(k)!r} and is {v!r}" for k, v in ours.items() if theirs.get(k) != v]
        if differing:
            raise ValueError(
                f"{source} cannot be continued with this configuration: {'; '.join(differing)}. "
                "Set them as they were, or start a new run from its weights with model.weights"
            )
        checkpoint.load_weights(self.model, source)
        self._load_optimizer(state["optimizer"], source)
        self.scaler.load_state_dict(state["scaler"])
        self.progress = _Progress(**state["progress"])
        if len(state["ranks"]) == dist.world_size():
            mine = state["ranks"][dist.rank()]
            checkpoint.set_random_state(mine["random"], self.device)
            self._window.load(mine["window"], self.device)
            self._epoch_means.load(mine["epoch"], self.device)
        else:
            logger.warning(
                "resuming on %d processes a run of %d: the samples are the same, dropout is not",
                dist.world_size(),
                len(state["ranks"]),
            )
        logger.info("resumed from %s at iteration %d of %d", source, self.progress.iteration, self.total)

    def _load_optimizer(self, state: dict[str, Any], source: Path) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        sizes = [len(g["params"]) for g in self.optimizer.param_groups]
        fits = [len(g["params"]) for g in state["param_groups"]] == sizes and all(
            i < len(parameters) and s["exp_avg"].shape == parameters[i].shape
            for i, s in state["state"].items()
        )
        if not fits:
            raise ValueError(
                f"{source}: the optimizer's state is for other parameters; use the model of that run, "
                "with the same parameters frozen"
            )
        # settings such as weight decay follow the configuration, as the schedule does; moments are restored
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})

    # ------------------------------------------------------------------ training
    def train(self) -> Result:
        """Train, validate, and test with the best weights.

        Returns:
            See `Result`.

        Raises:
            ValueError: the configuration cannot train, or a loss is not finite (naming step and samples).
            KeyboardInterrupt: Ctrl-C, after the state was saved.
        """
        setup_logger()
        self._prepare()
        self._open()
        stopped = "finished"
        with self._ctrl_c:
            while self.progress.closed < self.max_epoch:
                if self.run.patience and self.progress.validations_without_best >= self.run.patience:
                    stopped = "patience"
                    break
                stop = self._train_epoch(self.progress.closed)
                try:
                    if stop == "interrupt":
                        raise Interrupted
                    self._end_epoch(last=bool(stop))
                except Interrupted:
                    self._leave()
                if stop and self.progress.closed < self.max_epoch:
                    stopped = stop
                    break
            if stopped != "finished":
                logger.info("stopped early: %s", stopped)
            if self._ctrl_c.pressed and not dist.is_on():  # after the last step: only the test is left
                self._leave()
            if self.run.save_last:
                self._save()
        self._wrapped = self.model  # lets go of the process group that the wrapper holds
        best = checkpoint.find(self.output_dir / checkpoint.BEST) if self.progress.best else None
        metrics: dict[str, dict[str, float]] = {}
        if self.run.test_splits:
            if best is not None:
                dist.barrier()
                checkpoint.load_weights(self.model, best)
            metrics = self.evaluate(self.run.test_splits, epoch="best" if best is not None else "last")
        assert self._log is not None
        self._log.close()
        return Result(
            output_dir=self.output_dir,
            history=[r for r in read_jsonl(self.output_dir / "log.txt") if r.get("event") != "step"],
            best=self.progress.best,
            metrics=metrics,
            iterations=self.progress.iteration,
            stopped=stopped,
            checkpoint_last=checkpoint.find(self.output_dir / checkpoint.LAST),
            checkpoint_best=best,
        )

    def _open(self) -> None:
        """Make the run's folder, or bring the one of a resumed run to the state of its checkpoint."""
        out = self.output_dir
        if dist.is_main():
            folder.write_description(out, self.config, self.datasets, self.device, self.precision)
            if self._resume_from is not None:
                folder.adopt(self._resume_from.parent, out)
            # without a checkpoint the sizes are 0: what a run wrote that was killed before its first one
            folder.truncate(out / "log.txt", self.progress.log_size)
            folder.truncate(out / "evaluate.txt", self.progress.evaluate_size)
        dist.barrier()
        self._log = RunLog(out / "log.txt", out / "tensorboard" if self.run.tensorboard else None)
        self._clock = time.perf_counter()

    def _tick(self) -> float:
        """Count the time since the last call towards the run; returns the time."""
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        self._clock = now
        return now

    def _train_epoch(self, epoch: int) -> str:
        """Iterations up to the end of an epoch; "" there, or the reason to stop now."""
        run, progress = self.run, self.progress
        first = epoch * self.iters_per_epoch
        end = min(first + self.iters_per_epoch, self.total)
        size = end - first
        self.model.train()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        bar = None
        if shown():
            bar = tqdm(total=size, initial=progress.iteration - first, desc=f"epoch {epoch}")
        since = self._tick()  # start of the time that the next log line covers
        waited, done = 0.0, 0
        with (
            bar or contextlib.nullcontext(),
            contextlib.closing(self._loader.batches(progress.iteration, end)) as batches,
        ):
            while progress.iteration < end:
                i = progress.iteration - first
                before = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - before
                lr = self.schedule.step(cur_epoch=epoch, cur_step=i)
                # the last window of an epoch may be shorter; its mean is over the batches it has
                window = min(run.accum_grad_iters, size - i // run.accum_grad_iters * run.accum_grad_iters)
                update = (i + 1) % run.accum_grad_iters == 0 or i + 1 == size
                log_now = (progress.iteration + 1) % run.log_freq == 0
                if isinstance(batch, dict):
                    batch.update(epoch=epoch, iters=i, num_iters_per_epoch=self.iters_per_epoch)
                losses = self._backward(batch, window, update)
                self._epoch_means.add(losses)
                if update:
                    norm = self._update(parameters, measure=log_now or run.max_grad_norm is not None)
                    if norm is not None:
                        losses["grad_norm"] = norm
                self._window.add(losses)
                progress.iteration += 1
                done += 1
                if bar is not None:
                    bar.update()
                now = self._tick()
                if log_now:
                    self._check_finite()
                    seconds = max(now - since, 1e-9)
                    record = {
                        "event": "step",
                        "split": "train",
                        "epoch": epoch,
                        "step": progress.iteration,
                        "lr": lr,
                        **self._window.read(),
                        "samples_per_second": done * self._order.batch_size / seconds,
                        "data_wait_fraction": waited / seconds,
                    }
                    self._write(record, bar)
                    self._window = Means()
                    since, waited, done = now, 0.0, 0
                if not update:
                    continue
                stop = self._stop_reason()
                if stop:
                    return stop
                every = run.save_every_iters
                # the end of an epoch saves by itself, after validation
                if every and progress.iteration < end and progress.iteration % every < window:
                    self._save()
                    since += self._tick() - now
        return ""

    def _backward(self, batch: Any, window: int, update: bool) -> dict[str, torch.Tensor]:
        """Forward and backward of one batch; the losses, detached."""
        ddp = self._wrapped if isinstance(self._wrapped, DistributedDataParallel) else None
        with ddp.no_sync() if ddp is not None and not update else contextlib.nullcontext():
            with devices.autocast(self.device, self.precision):
                output = self.task.train_step(self._wrapped, batch)
            loss = output["loss"]
            self._note_nonfinite(loss)
            self.scaler.scale(loss / window).backward()
        names = [k for k in output.keys() if "loss" in k]  # noqa: SIM118  outputs are not dicts
        return {
            k: output[k].detach().float()
            for k in names
            if isinstance(output[k], torch.Tensor) and output[k].ndim == 0
        }

    def _update(self, parameters: list[nn.Parameter], measure: bool) -> torch.Tensor | None:
        """One step of the optimizer; the norm of the gradients before clipping, if measured."""
        norm = None
        if measure:
            self.scaler.unscale_(self.optimizer)
            if self.run.max_grad_norm is not None:
                norm = nn.utils.clip_grad_norm_(parameters, self.run.max_grad_norm)
            else:
                norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            norm = norm.detach().float()
            self._note_nonfinite(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    # ------------------------------------------------------------------ losses that are no numbers
    def _note_nonfinite(self, value: torch.Tensor) -> None:
        if self.scaler.is_enabled():
            return  # the scaler skips the step and lowers its factor
        here = torch.full_like(self._bad, self.progress.iteration)
        self._bad = torch.where((self._bad < 0) & ~torch.isfinite(value.detach()), here, self._bad)
        if self.device.type == "cpu":  # reading costs nothing; on a GPU it is read with the log
            self._check_finite(agree=False)

    def _check_finite(self, agree: bool = True) -> None:
        """Raise if a loss or gradient was not finite; always before anything is logged or saved."""
        bad = int(self._bad.item())
        if agree and dist.is_on():
            bad = max(dist.all_gather_objects(bad))  # one rank's fault ends the run on all
        if bad < 0:
            if self.scaler.is_enabled() and self.scaler.get_scale() < 2**-14:
                raise ValueError(
                    f"no finite gradient in fp16 at any scale, up to iteration {self.progress.iteration}; "
                    "use run.precision=bf16 or fp32, or a lower run.init_lr"
                )
            return
        keys = self._order.batch(bad)[:32]
        several = len(self._sets) > 1
        samples = ", ".join(f"{i} of set {which}" if several else str(i) for _, which, i in keys)
        raise ValueError(
            f"the loss or its gradient is not finite at iteration {bad} "
            f"(epoch {bad // self.iters_per_epoch}), counted from 0; the training samples of that batch "
            f"are {samples}. Look at them; else lower "
            "run.init_lr or set run.max_grad_norm=1. Nothing was saved after it"
        )

    # ------------------------------------------------------------------ the end of an epoch
    def _end_epoch(self, last: bool) -> None:
        """Log and validate; `last` when training ends here, perhaps within an epoch."""
        run, progress = self.run, self.progress
        epoch = progress.closed
        end = min((epoch + 1) * self.iters_per_epoch, self.total)
        over = progress.iteration >= end
        last = last or progress.iteration >= self.total
        self._check_finite()
        if over:
            record = {
                "event": "epoch",
                "split": "train",
                "epoch": epoch,
                "step": progress.iteration,
                "lr": self.schedule.lr(epoch, end - 1 - epoch * self.iters_per_epoch),
                **self._epoch_means.read(),
            }
            self._write(record)
        if run.valid_splits and (last or (epoch + 1) % run.val_freq == 0):
            self._validate(epoch)
        self._tick()
        if over:
            progress.closed += 1
            self._epoch_means = Means()
            due = run.save_freq > 0 and progress.closed % run.save_freq == 0
            if due and not (last and run.save_last):
                self._save()

    def _validate(self, epoch: int) -> None:
        run, progress = self.run, self.progress
        metrics = self.evaluate(run.valid_splits, epoch=epoch)
        if self.task.primary is None:
            return
        split = "val" if "val" in run.valid_splits else run.valid_splits[0]
        name, direction = self.task.primary
        if not metrics[split]:
            return  # nothing to compare with: the last weights are used
        if name not in metrics[split]:
            raise ValueError(
                f"{type(self.task).__name__}.primary is {name!r}, which is not among the metrics of {split}: "
                f"{', '.join(metrics[split])}"
            )
        value = metrics[split][name]
        sign = {"max": 1.0, "min": -1.0}[direction]
        old = progress.best["value"] if progress.best else -sign * math.inf
        if sign * value > sign * old:
            progress.best = {"epoch": epoch, "split": split, "metric": name, "value": value}
            progress.validations_without_best = 0
            if dist.is_main():
                checkpoint.save(self.output_dir / checkpoint.BEST, self.model, None)
            dist.barrier()
        else:
            progress.validations_without_best += 1

    # ------------------------------------------------------------------ evaluation
    def evaluate(
        self, splits: Sequence[str] | None = None, epoch: int | str = "best"
    ) -> dict[str, dict[str, float]]:
        """Predict and score splits; records go to result/, metrics to evaluate.txt.

        Args:
            splits: names; None takes `run.test_splits`, or `run.valid_splits` if there are none.
            epoch: label of the results.

        Returns:
            {split: metrics}, the same on every rank.

        Raises:
            ValueError: there is no split to evaluate.
        """
        setup_logger()
        splits = list(splits or self.run.test_splits or self.run.valid_splits)
        if not splits:
            raise ValueError("there is nothing to evaluate on: run.test_splits is empty, for example [test]")
        if self._log is None and self._resume_from is not None:  # evaluating without training first
            checkpoint.load_weights(self.model, self._resume_from)
        out = self.output_dir
        if dist.is_main() and self._log is None:
            folder.write_description(out, self.config, self.datasets, self.device, self.precision)
        training = self.model.training
        self.model.eval()
        try:
            # evaluating draws from streams of its own, so training is the same with and without it
            devices_used = [self.device] if self.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices_used):
                torch.manual_seed(self.run.seed)
                return {split: self._evaluate_split(split, epoch) for split in splits}
        finally:
            self.model.train(training)

    def _evaluate_split(self, split: str, epoch: int | str) -> dict[str, float]:
        run = self.run
        dataset = self.dataset(split)
        data = EvalData(dataset, split, run.batch_size_eval, run.num_workers, self.device, run.seed)
        started = time.perf_counter()
        data.label, data.before_batch = f"{split}, epoch {epoch}", self._before_evaluation_batch
        with torch.no_grad(), devices.autocast(self.device, self.precision):
            records = self.task.evaluate(self.model, data, dist)
        seconds = time.perf_counter() - started
        metrics: dict[str, float] = {}
        if dist.is_main():
            self.task.save(records, self.output_dir / "result" / self.task.result_name(split, epoch))
            metrics = {k: float(v) for k, v in self.task.score(records, dataset).items()}
        metrics = dist.broadcast_object(metrics)
        record = {"event": "eval", "split": split, "epoch": epoch, "step": self.progress.iteration, **metrics}
        if dist.is_main():
            append_jsonl(self.output_dir / "evaluate.txt", plain(record))
        speed = len(dataset) / max(seconds, 1e-9)
        if self._log is not None:
            self._write({**record, "samples_per_second": speed})
        else:
            logger.info(short(record))
        return metrics

    def _before_evaluation_batch(self) -> None:
        if self._ctrl_c.pressed and not dist.is_on():  # several ranks agree at their next update instead
            raise Interrupted

    # ------------------------------------------------------------------ stopping
    def _stop_reason(self) -> str:
        """ "", "interrupt" or "max_minutes"; the same on every rank."""
        minutes = self.run.max_minutes
        code = (
            2 if self._ctrl_c.pressed else int(minutes is not None and self.progress.seconds > minutes * 60)
        )
        if dist.is_on():
            # ranks notice at different steps; asking every tenth update keeps that cheap
            updates = -(-self.progress.iteration // self.run.accum_grad_iters)
            if updates % 10:
                return ""
            flag = torch.tensor(code, device=self.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            code = int(flag.item())
        return ("", "max_minutes", "interrupt")[code]

    def _leave(self) -> None:
        """After Ctrl-C: save, say how to go on, and raise KeyboardInterrupt."""
        self._save()
        logger.warning(
            "interrupted at iteration %d; continue with: --options run.resume_ckpt_path=%s",
            self.progress.iteration,
            self.output_dir,
        )
        raise KeyboardInterrupt

    def _write(self, record: dict[str, Any], bar: Any = None) -> None:
        assert self._log is not None
        self._log.write(record)
        if bar is not None:
            bar.set_postfix(loss=f"{record.get('loss', math.nan):.4f}", lr=f"{record['lr']:.2e}")
        else:
            # breakdowns such as question_type/count_percent are in the file
            logger.info(short({k: v for k, v in record.items() if k != "event" and "/" not in k}))


RunnerBase = RunnerIter = RunnerIters = Runner  # the paper's names; there is one loop
