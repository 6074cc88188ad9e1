"""The one training loop: epochs of iterations, with what happens between them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from lavis.common import device as devices
from lavis.common import dist, optims, parameters
from lavis.common.registry import registry
from lavis.runners import checkpoint, parallel
from lavis.runners.budget import TIMED, UNTIMED, Plan, plan
from lavis.runners.clock import Clock
from lavis.runners.data import Order, TrainLoader, mixing_ratios, shown
from lavis.runners.evaluation import Evaluator
from lavis.runners.finite import FiniteCheck
from lavis.runners.folder import RunFolder
from lavis.runners.means import Means
from lavis.runners.provenance import Recipe
from lavis.runners.settings import Length, RunConfig, check_training
from lavis.runners.skipped import Skipped
from lavis.runners.state import TrainingState
from lavis.runners.step import Step
from lavis.runners.stopping import Interrupted, Stopping
from lavis.runners.stuck import StuckWatch

logger = logging.getLogger(__name__)


class Training:
    """One call of `Runner.train`, up to the final test. Owns what exists only while a model is trained.

    Everything is built and checked before the run's folder is made; `run_in` then trains in it.

    Args:
        run, task, model, device, precision: of the run.
        names, sets: the training sets and their names. evaluator: validates.
        recipe: is saved with each checkpoint. resume_from: the checkpoint to continue, of the same recipe.

    Attributes:
        frozen: what `run.parameters` freezes.
        order, loader: which samples, and their batches. length: in iterations. schedule: the learning rate.
        state: all that decides the next number. step: forward, backward, update. finite: watches losses.
        stopping: reasons to end early.

    Raises:
        ValueError: settings, data and checkpoint that do not fit together.
    """

    def __init__(
        self,
        run: RunConfig,
        task: Any,
        model: nn.Module,
        names: Sequence[str],
        sets: Sequence[Any],
        device: torch.device,
        precision: str,
        evaluator: Evaluator,
        recipe: Recipe,
        resume_from: Path | None,
    ) -> None:
        check_training(run)
        self.run, self.task, self.model, self.sets, self.evaluator = run, task, model, sets, evaluator
        batch_size = run.batch_size_train * dist.world_size()
        ratios = mixing_ratios(names, run.train_dataset_ratios)
        self.order = Order([len(s) for s in sets], batch_size, run.seed, ratios)
        self.length = Length.of(run, self.order.batches_per_pass)
        self.val_freq = run.val_freq
        self.watch: StuckWatch | None = None
        skipped = Skipped(sets)
        encoder = getattr(task, "batch_encoder", None)
        self.loader = TrainLoader(
            sets,
            self.order,
            run.seed,
            run.num_workers,
            self.length.iterations,
            device,
            skipped,
            None if encoder is None else encoder(model),
        )
        rules = parameters.read_rules(run.parameters)
        parameters.check(model, rules)
        self.frozen = parameters.Frozen(model, rules)
        try:
            self._prepare(rules, device, precision, recipe, skipped, resume_from)
        except BaseException:  # the model is left as it was given
            self.frozen.close()
            raise

    def _prepare(
        self,
        rules: Sequence[parameters.ParameterRule],
        device: torch.device,
        precision: str,
        recipe: Recipe,
        skipped: Skipped,
        resume_from: Path | None,
    ) -> None:
        """Build what steps, and restore it from a checkpoint."""
        run, model = self.run, self.model
        if run.parallel == "fsdp":
            if precision == "fp16":  # whose loss scale would have to be agreed on
                raise ValueError(
                    "run.parallel is fsdp, which works in fp32 and bf16; set run.precision to one of them"
                )
            parallel.shard(model, device)
        rates = (run.init_lr, run.weight_decay, run.beta2, run.lr_layer_decay)
        optimizer = optims.build_optimizer(model, *rates, run.optimizer, precision, rules)
        self.schedule = self._make_schedule(optimizer)
        scaler = devices.grad_scaler(device, precision)
        self.state = TrainingState(model, optimizer, scaler, device, skipped, self.length, recipe)
        checkpoint.seed_all(run.seed + dist.rank())  # dropout differs between ranks
        if resume_from is not None:
            self.state.restore(resume_from)
            fixed = self.state.progress.plan
            if fixed is not None and fixed["minutes"] == run.max_minutes:
                self._follow(Plan(**fixed))
            done, total = self.state.progress.iteration, self.length.iterations
            logger.info("resumed from %s at iteration %d of %d", resume_from, done, total)
        if run.compile:
            model.compile()
        self.finite = FiniteCheck(device, scaler, self._describe)
        self.step = Step(run, self.task, self.state, self.finite, device, precision)
        self.stopping = Stopping(run)

    def _make_schedule(self, optimizer: torch.optim.Optimizer) -> optims.Scheduler:
        schedule: optims.Scheduler = registry.get_lr_scheduler_class(self.run.lr_sched)(
            optimizer=optimizer,
            max_epoch=self.length.epochs,
            min_lr=self.run.min_lr,
            init_lr=self.run.init_lr,
            decay_rate=self.run.lr_decay_rate,
            warmup_start_lr=self.run.warmup_lr,
            warmup_steps=self.run.warmup_steps,
            iters_per_epoch=self.length.per_epoch,
            total_steps=self.length.iterations,
        )
        return schedule

    def _watch(self) -> None:
        """Look out for a loss that does not move, at the end of short runs."""
        if self.run.stuck_after is not None:
            self.watch = self.watch or StuckWatch(self.model, self.order.batch_size, self.run.init_lr)
            self.watch.after = min(self.run.stuck_after, self.length.iterations)

    def run_in(self, out: RunFolder) -> str:
        """Train to the end, or until there is a reason to stop.

        Args:
            out: the run's folder; its files are brought to the state of the checkpoint, then continued.

        Returns:
            "finished", "max_minutes" or "patience".

        Raises:
            ValueError: a loss is not finite. OSError: pictures that cannot be read.
            Interrupted: a signal, after the state was saved.
        """
        progress = self.state.progress
        self.out = out
        out.open_log(progress.log_size, progress.evaluate_size, self.run.tensorboard)
        self.state.skipped.file = out.path / "skipped.txt"
        if dist.is_main():
            self.state.skipped.write()
        self.clock = Clock(progress, self.order.batch_size)
        self._watch()
        self.stopping.saved(progress)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.stopping.signals)
            for part in (self.loader, self.step, self.frozen):
                stack.enter_context(contextlib.closing(part))
            try:
                stopped = self._epochs()
                self.stopping.raise_if_interrupted()  # after the last step: only the test is left
            except Interrupted:
                self._save()
                raise
            if stopped != "finished":
                logger.info("stopped early: %s", stopped)
            if self.run.save_last:
                self._save()
        return stopped

    def _epochs(self) -> str:
        progress = self.state.progress
        stop = self._fit_into_time()
        if stop:
            if stop == "interrupt":
                self.stopping.raise_if_interrupted()
            self._end_epoch(last=True)
            return stop
        while progress.closed < self.length.epochs:
            if self.stopping.out_of_patience(progress):
                return "patience"
            stop = self._epoch(progress.closed)
            if stop == "interrupt":
                self.stopping.raise_if_interrupted()
            self._end_epoch(last=bool(stop))
            if stop and progress.closed < self.length.epochs:
                return stop
        return "finished"

    # ------------------------------------------------------------------ time
    def _fit_into_time(self) -> str:
        """With `max_minutes`, time a validation and the first steps, and fix the number of steps.

        Returns:
            "", or the reason to stop already.
        """
        run, progress = self.run, self.state.progress
        if run.max_minutes is None or (progress.plan and progress.plan["minutes"] == run.max_minutes):
            return ""
        progress.plan = None
        if progress.iteration >= self.length.bounds(progress.closed)[1]:  # interrupted before its validation
            self._end_epoch(last=False)
        if progress.closed >= self.length.epochs:
            return ""
        validation = test = 0.0
        if run.valid_splits:  # of a run without them the test's time is not known, and not counted
            self.clock.tick()
            before = progress.seconds
            self.evaluator(
                run.valid_splits, "start", progress.iteration, self.out, self.stopping.raise_if_interrupted
            )
            self.clock.tick()
            validation = progress.seconds - before
            per_sample = validation / max(self._samples(run.valid_splits), 1)
            test = per_sample * self._samples(run.test_splits)
        _, end = self.length.bounds(progress.closed)
        accumulated = run.accum_grad_iters
        begin = min(progress.iteration + UNTIMED * accumulated, max(end - 1, progress.iteration))
        until = min(begin + TIMED * accumulated, end)
        stop = self._epoch(progress.closed, until=begin)
        if stop:
            return stop
        self._check()  # waits for the device
        self.clock.tick()
        before, done = progress.seconds, progress.iteration
        stop = self._epoch(progress.closed, until=until)
        if stop:
            return stop
        self._check()
        self.clock.tick()
        limited = run.max_epoch is not None or run.max_iters is not None
        fixed = plan(
            run.max_minutes,
            done=progress.iteration,
            spent=progress.seconds,
            step=(progress.seconds - before) / max(progress.iteration - done, 1),
            validation=validation,
            test=test,
            per_epoch=self.length.per_epoch,
            val_freq=run.val_freq,
            most=self.length.iterations if limited else None,
        )
        fixed = dist.broadcast_object(fixed)  # clocks differ between ranks
        progress.plan = fixed.state()
        self._follow(fixed)
        logger.info(
            "%d steps fit into %g minutes: %.2g s a step, %.2g s a validation every %d epochs",
            fixed.iterations, fixed.minutes, (progress.seconds - before) / max(progress.iteration - done, 1),
            validation, fixed.val_freq,
        )  # fmt: skip
        return ""

    def _samples(self, splits: Sequence[str]) -> int:
        return sum(len(self.evaluator.dataset(split)) for split in splits)

    def _follow(self, fixed: Plan) -> None:
        """Take over a number of steps that was fixed."""
        self.length = Length.of(self.run, self.order.batches_per_pass, fixed.iterations)
        self.val_freq = fixed.val_freq
        self._watch()
        self.schedule = self._make_schedule(self.state.optimizer)

    # ------------------------------------------------------------------ an epoch
    def _epoch(self, epoch: int, until: int | None = None) -> str:
        """Iterations up to the end of an epoch, or up to `until`; "" there, or the reason to stop now."""
        run, progress, clock = self.run, self.state.progress, self.clock
        accumulated, every = run.accum_grad_iters, run.save_every_iters
        first, end = self.length.bounds(epoch)
        size = end - first
        end = end if until is None else min(end, until)
        self.model.train()
        self.frozen.hold()
        bar = None
        if shown():
            bar = tqdm(total=size, initial=progress.iteration - first, desc=f"epoch {epoch}")
        clock.restart()
        with (
            bar or contextlib.nullcontext(),
            contextlib.closing(self.loader.batches(progress.iteration, end)) as batches,
        ):
            while progress.iteration < end:
                i = progress.iteration - first
                with clock.waiting():
                    batch = next(batches)
                lr = self.schedule.step(cur_epoch=epoch, cur_step=i)
                # the last window of an epoch may be shorter; its mean is over the batches it has
                window = min(accumulated, size - i // accumulated * accumulated)
                update = (i + 1) % accumulated == 0 or i + 1 == size
                log_now = (progress.iteration + 1) % run.log_freq == 0
                if i % accumulated == 0:
                    self.step.begin((epoch * self.length.per_epoch + i) / self.length.per_epoch)
                if isinstance(batch, dict):
                    batch.update(epoch=epoch, iters=i, num_iters_per_epoch=self.length.per_epoch)
                losses = self.step.backward(batch, window, update)
                self.state.epoch.add(losses)
                if self.watch is not None:
                    self.watch.add(progress.iteration, losses)
                norm = self.step.update(measure=log_now) if update else None
                if norm is not None:
                    losses["grad_norm"] = norm
                self.state.window.add(losses)
                progress.iteration += 1
                if bar is not None:
                    bar.update()
                clock.tick()
                if log_now:
                    self._log_step(epoch, lr, bar)
                if not update:
                    continue
                stop, due = self.stopping.after_update(progress)
                if stop:
                    return stop
                # the end of an epoch saves by itself, after validation
                due = due or (every is not None and progress.iteration % every < window)
                if due and progress.iteration < end:
                    with clock.paused():
                        self._save()
        return ""

    def _log_step(self, epoch: int, lr: float, bar: Any) -> None:
        step = self.state.progress.iteration
        self._check()
        self.state.skipped.agree()
        means = self.state.window.read()
        record = {"event": "step", "split": "train", "epoch": epoch, "step": step, "lr": lr}
        self.out.write({**record, **means, **self.clock.pace()}, console=bar is None)
        if bar is not None:
            bar.set_postfix(loss=f"{means.get('loss', float('nan')):.4f}", lr=f"{lr:.2e}")
        self.state.window = Means()
        self.clock.restart()

    # ------------------------------------------------------------------ between epochs
    def _end_epoch(self, last: bool) -> None:
        """Log and validate; `last` when training ends here, perhaps within an epoch."""
        run, progress = self.run, self.state.progress
        epoch = progress.closed
        first, end = self.length.bounds(epoch)
        over = progress.iteration >= end
        last = last or progress.iteration >= self.length.iterations
        self._check()
        self._report_skipped(epoch)
        if over:
            record = {
                "event": "epoch",
                "split": "train",
                "epoch": epoch,
                "step": progress.iteration,
                "lr": self.schedule.lr(epoch, end - 1 - first),
                **self.state.epoch.read(),
            }
            if self.state.skipped:
                record["skipped_samples"] = len(self.state.skipped)
            self.out.write(record)
        if run.valid_splits and (last or (epoch + 1) % self.val_freq == 0):
            self._validate(epoch)
        self.clock.tick()
        if over:
            progress.closed += 1
            if (
                end == first + self.length.per_epoch
            ):  # else the run ends within an epoch, and may be made longer
                self.state.epoch = Means()
            due = run.save_freq > 0 and progress.closed % run.save_freq == 0
            if due and not (last and run.save_last):
                self._save()

    def _validate(self, epoch: int) -> None:
        splits, progress = self.run.valid_splits, self.state.progress
        metrics = self.evaluator(
            splits, epoch, progress.iteration, self.out, self.stopping.raise_if_interrupted
        )
        split = "val" if "val" in splits else splits[0]
        primary = self.task.primary or (("agg_metrics", "max") if "agg_metrics" in metrics[split] else None)
        if primary is None or not metrics[split]:
            return  # nothing to compare with: the last weights are used
        name, direction = primary
        if name not in metrics[split]:
            raise ValueError(
                f"{type(self.task).__name__}.primary is {name!r}, which is not among the metrics of {split}: "
                f"{', '.join(metrics[split])}"
            )
        if progress.judge(epoch, split, name, direction, metrics[split][name]):
            checkpoint.save(self.out.path / checkpoint.BEST, self.model, None)

    def _report_skipped(self, epoch: int) -> None:
        """List the unreadable pictures that are new: in log.txt, skipped.txt and on the console."""
        skipped = self.state.skipped
        skipped.agree()
        new = skipped.take_new()
        if not new:
            return
        step = self.state.progress.iteration
        record = {"event": "skipped", "split": "train", "epoch": epoch, "step": step, "pictures": new}
        self.out.write(record, console=False)
        more = f" and {len(new) - 5} more, see {skipped.file}" if len(new) > 5 else ""
        logger.warning(
            "epoch %d: %d samples so far were replaced because their pictures cannot be read; new: %s%s",
            epoch,
            len(skipped),
            ", ".join(new[:5]),
            more,
        )

    # ------------------------------------------------------------------ helpers
    def _check(self) -> None:
        """Before anything is logged or saved: refuse losses that are no numbers, on every rank."""
        self.finite.check(self.state.progress.iteration)

    def _save(self) -> None:
        self._check()
        self.state.save(self.out)
        self.stopping.saved(self.state.progress)

    def _describe(self, iteration: int) -> str:
        keys = self.order.batch(iteration)[:32]
        several = len(self.sets) > 1
        samples = ", ".join(f"{i} of set {which}" if several else str(i) for _, which, i in keys)
        return (
            f"iteration {iteration} (epoch {iteration // self.length.per_epoch}), counted from 0; "
            f"the training samples of that batch are {samples}"
        )
