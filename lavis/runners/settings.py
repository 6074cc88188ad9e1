"""What a run can be told: every key of the section `run` that is not a task's own, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PureWindowsPath
from typing import Any, Literal

from lavis.common.parameters import read_rules
from lavis.common.registry import registry

_LONGEST_NAME = 200  # bytes; file systems take 255, and names are made longer while files are written


@dataclass(frozen=True)
class RunConfig:
    """Every key of the section `run` that is not a task's own, with its default.

    Args:
        task: registered name. runner: "runner_base" or "runner_iter" (the same loop).
        seed: of weights, order, augmentation and dropout.
        device: auto, cpu, cuda, cuda:<number>, mps. precision: see `lavis.common.device`.
        amp: the original's switch: true is precision auto, false is fp32; null leaves it to `precision`.
        output_dir: folder of runs. job_id: name of this run's folder in it; null makes one from the time.
        evaluate: only evaluate, on test_splits.
        resume_ckpt_path: a run's folder or checkpoint to continue; "auto" continues the last checkpoint in
            output_dir/job_id (without a job_id: of the latest run of the same recipe in output_dir), or starts if
            there is none. allow_changed: keys, such as run.init_lr, that may differ from those of the run that is
            continued; length, logging, saving, evaluation, workers and device always may.
        max_epoch: epochs to train. max_iters: iterations to train, in place of epochs.
        iters_per_inner_epoch: with max_iters, iterations between validations (null: one pass over the data).
        init_lr, min_lr, warmup_lr, warmup_steps, lr_sched, lr_decay_rate: see `lavis.common.optims`;
            warmup_steps counts iterations. lr_layer_decay: factor of the learning rate from
            block to block of the image encoder, counted from its end; 1: the same for all.
        parameters: rules for parameters by their names, a list of {match: pattern} with freeze, lr_scale or
            weight_decay; see `lavis.common.parameters.ParameterRule`.
        optimizer: "adamw", or "muon", which learns in fewer steps from random weights (`optims.Muon`).
        weight_decay, beta2: of AdamW (Muon takes the weight decay too). accum_grad_iters: iterations per update.
        max_grad_norm: gradients are scaled down to this norm; null does not.
        batch_size_train, batch_size_eval: samples per process. num_workers: processes that prepare them; null:
            min(8, cores / ranks) from the command line, from Python 0 where processes can't be forked.
        log_freq: iterations between log lines. val_freq: epochs between validations (the last one always).
        save_freq: epochs between writes of checkpoint_last (0: only the end). save_last: write it at the end.
        save_every_iters: iterations between writes within an epoch. save_every_minutes: minutes after which
            checkpoint_last is written again, at the end of the step; null leaves it to the other keys.
        train_splits, valid_splits, test_splits: names of splits.
        train_dataset_ratios: {data set: ratio}, how often each gives a batch; null concatenates them.
        parallel: "ddp": each process has all of the model; "fsdp": its part of it, of the EMA and of the optimizer's
            state. The numbers are the same. Without effect on one process.
        compile: torch.compile the model. find_unused_parameters: for models that leave some out of a step
            when trained on several processes.
        tensorboard: also write events. report: also write report_<split>.html about each test split.
        max_minutes: time of the whole run, validations and test included (the test not where nothing is validated,
            from which its time could be told). The first steps and a validation are timed, and the number of steps
            fixed; not more than max_epoch or max_iters say.
        stuck_after: steps after which a loss that has not moved is warned of; null: never.
        patience: validations without a new best after which training ends.
    """

    task: str | None = None
    runner: str = "runner_base"
    seed: int = 42
    device: str = "auto"
    precision: Literal["auto", "fast", "fp32", "bf16", "fp16"] = "auto"
    amp: bool | None = None
    output_dir: str = "output"
    job_id: str | None = None
    evaluate: bool = False
    resume_ckpt_path: str | None = None
    allow_changed: list[str] = field(default_factory=list)
    max_epoch: int | None = None
    max_iters: int | None = None
    iters_per_inner_epoch: int | None = None
    init_lr: float = 1e-5
    min_lr: float = 0.0
    warmup_lr: float = -1.0
    warmup_steps: int = 0
    lr_sched: str = "linear_warmup_cosine_lr"
    lr_decay_rate: float | None = None
    lr_layer_decay: float = 1.0
    parameters: list[dict[str, Any]] = field(default_factory=list)
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 0.05
    beta2: float = 0.999
    accum_grad_iters: int = 1
    max_grad_norm: float | None = None
    batch_size_train: int = 16
    batch_size_eval: int = 32
    num_workers: int | None = None
    log_freq: int = 50
    val_freq: int = 1
    save_freq: int = 1
    save_last: bool = True
    save_every_iters: int | None = None
    save_every_minutes: float | None = 10
    train_splits: list[str] = field(default_factory=list)
    valid_splits: list[str] = field(default_factory=list)
    test_splits: list[str] = field(default_factory=list)
    train_dataset_ratios: dict[str, float] | None = None
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    find_unused_parameters: bool = False
    tensorboard: bool = False
    report: bool = False
    max_minutes: float | None = None
    stuck_after: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        at_least = {
            "seed": 0, "max_epoch": 1, "max_iters": 1, "iters_per_inner_epoch": 1, "warmup_steps": 0,
            "accum_grad_iters": 1, "batch_size_train": 1, "batch_size_eval": 1, "num_workers": 0,
            "log_freq": 1, "val_freq": 1, "save_every_iters": 1, "patience": 1, "stuck_after": 1,
            "init_lr": 0, "min_lr": 0, "weight_decay": 0,
        }  # fmt: skip
        for key, lowest in at_least.items():
            value = getattr(self, key)
            if value is not None and not lowest <= value < math.inf:
                raise ValueError(f"run.{key} is {value}; it must be {lowest} or more")
        for key in ("max_grad_norm", "max_minutes", "save_every_minutes"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"run.{key} is {value}; it must be above 0, or null for none")
        if self.job_id is not None:
            check_job_id(self.job_id)
        read_rules(self.parameters)
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"run.beta2 is {self.beta2}; it must lie between 0 and 1")

    @property
    def mixed_precision(self) -> str:
        """`precision`, or what the original's `amp` means when only that is given."""
        return "fp32" if self.amp is False and self.precision == "auto" else self.precision

    @property
    def evaluation_splits(self) -> list[str]:
        """Splits that a run with these settings evaluates on."""
        if self.evaluate:
            return list(dict.fromkeys(self.test_splits or self.valid_splits))
        return list(dict.fromkeys([*self.valid_splits, *self.test_splits]))


UNKNOWN = 1_000_000  # epochs of a run that only its time limits, until it is known how many fit


def check_job_id(name: str) -> None:
    """Refuse a name that is no single folder's: it would leave the output folder.

    Raises:
        ValueError: it is empty, has separators or a drive, or no folder can have it.
    """
    ways_out = name in (".", "..") or any(c in name for c in "/\\") or PureWindowsPath(name).drive
    unusable = (
        not name.strip() or not name.isprintable() or len(name.encode(errors="replace")) > _LONGEST_NAME
    )
    if ways_out or unusable:
        raise ValueError(
            f"run.job_id is {name[:80]!r}; it should be the name of one folder in run.output_dir: not empty, "
            f"without / and \\, and of at most {_LONGEST_NAME} bytes"
        )


@dataclass(frozen=True)
class Length:
    """How long a run is, in iterations (batches on each rank).

    Attributes:
        iterations: in all. per_epoch: of an epoch; the last may be shorter, and an only one is if
            `max_iters` is. epochs: their number.
    """

    iterations: int
    per_epoch: int
    epochs: int

    @classmethod
    def of(cls, run: RunConfig, per_pass: int, fitting: int | None = None) -> Length:
        """What `max_epoch` or `max_iters` mean where a pass over the data has `per_pass` iterations.

        Args:
            fitting: iterations that fit into `max_minutes`, once they are known; they take the others' place.
        """
        iterations = run.max_iters if fitting is None else fitting
        if iterations is not None:
            per_epoch = per_pass  # however long the run is: it may go on later
            if run.max_iters is not None:
                per_epoch = run.iters_per_inner_epoch or per_pass
            return cls(iterations, per_epoch, -(-iterations // per_epoch))
        epochs = UNKNOWN if run.max_epoch is None else run.max_epoch  # until the time is measured
        return cls(epochs * per_pass, per_pass, epochs)

    def bounds(self, epoch: int) -> tuple[int, int]:
        """The first iteration of an epoch, and the one after its last."""
        first = epoch * self.per_epoch
        return first, min(first + self.per_epoch, self.iterations)


def check_training(run: RunConfig) -> None:
    """Refuse, before anything is built, a configuration that cannot train.

    Raises:
        ValueError: no length of the run, no training split, or an unusable schedule.
    """
    if run.max_epoch is None and run.max_iters is None and run.max_minutes is None:
        raise ValueError(
            "none of run.max_epoch, run.max_iters and run.max_minutes is set; a training run needs one of them"
        )
    if run.max_epoch is not None and run.max_iters is not None and run.runner != "runner_iter":
        raise ValueError("run.max_epoch and run.max_iters are both set; set one of them to null")
    if run.parallel == "fsdp" and (run.optimizer != "adamw" or run.compile):
        raise ValueError(
            "run.parallel is fsdp, which works with run.optimizer adamw and without run.compile; change these, or set "
            "run.parallel to ddp"
        )
    if not run.train_splits:
        raise ValueError("run.train_splits is empty; name the splits to train on, for example [train]")
    schedule = registry.get_lr_scheduler_class(run.lr_sched)  # unknown: the registry suggests a name
    if run.lr_decay_rate is None and getattr(schedule, "needs_decay_rate", False):
        raise ValueError(f"run.lr_sched is {run.lr_sched}, which needs run.lr_decay_rate, for example 0.9")
