"""Predicting and scoring a split: records into result/, metrics into evaluate.txt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lavis.common import device as devices
from lavis.common import dist
from lavis.runners import parallel
from lavis.runners.data import EvalData
from lavis.runners.folder import RunFolder
from lavis.runners.settings import RunConfig

logger = logging.getLogger(__name__)


class Evaluator:
    """Evaluates a model on splits; keeps nothing from one call to the next.

    Args:
        run, task, model, device, precision: of the run.
        dataset: the data set of a split.
    """

    def __init__(
        self,
        run: RunConfig,
        task: Any,
        model: nn.Module,
        device: torch.device,
        precision: str,
        dataset: Callable[[str], Any],
    ) -> None:
        self.run, self.task, self.model = run, task, model
        self.device, self.precision, self.dataset = device, precision, dataset

    def __call__(
        self,
        splits: Sequence[str],
        epoch: int | str,
        iteration: int,
        out: RunFolder,
        before_batch: Callable[[], None] | None = None,
        report: Callable[..., Any] | None = None,
    ) -> dict[str, dict[str, float]]:
        """Evaluate; called by every rank.

        Args:
            splits: names. epoch, iteration: label the results. out: where they go.
            before_batch: called before every batch; what it raises ends the evaluation.
            report: called by rank 0 with split, data set, records, metrics and seconds (`evaluation_report.Reporter`).

        Returns:
            {split: metrics}, the same on every rank.
        """
        training = self.model.training
        self.model.eval()
        try:
            # evaluating draws from streams of its own, so training is the same with and without it
            devices_used = [self.device] if self.device.type == "cuda" else []
            with parallel.whole(self.model), torch.random.fork_rng(devices=devices_used):
                torch.manual_seed(self.run.seed)
                return {s: self._split(s, epoch, iteration, out, before_batch, report) for s in splits}
        finally:
            self.model.train(training)

    def _split(
        self,
        split: str,
        epoch: int | str,
        iteration: int,
        out: RunFolder,
        before_batch: Callable[[], None] | None,
        report: Callable[..., Any] | None,
    ) -> dict[str, float]:
        run = self.run
        dataset = self.dataset(split)
        data = EvalData(dataset, split, run.batch_size_eval, run.num_workers, self.device, run.seed)
        data.label, data.before_batch = f"{split}, epoch {epoch}", before_batch
        data.skipped.file = out.path / f"skipped_{split}.txt"
        started = time.perf_counter()
        with torch.no_grad(), devices.autocast(self.device, self.precision):
            records = self.task.evaluate(self.model, data, dist)
        seconds = time.perf_counter() - started
        data.skipped.agree()
        predictions = out.result(self.task.result_name(split, epoch))
        metrics: dict[str, float] = {}
        if dist.is_main():
            self.task.save(records, predictions)
            self.task.evaluated = dataset
            scores = self.task.after_evaluation(val_result=records, split_name=split, epoch=epoch) or {}
            metrics = {k: float(v) for k, v in scores.items()}
            if not metrics:
                logger.info("%s: nothing to score; the predictions are in %s", split, predictions)
            if report is not None:
                report(split, dataset, records, metrics, seconds)
            if data.skipped:
                data.skipped.write()
                logger.warning(
                    "%s: %d of %d samples cannot be read and are left out; they are listed in %s",
                    split,
                    len(data.skipped),
                    len(dataset),
                    data.skipped.file,
                )
        metrics = dist.broadcast_object(metrics)
        record = {"event": "eval", "split": split, "epoch": epoch, "step": iteration, **metrics}
        if data.skipped:
            record["skipped_samples"] = len(data.skipped)
        out.write_evaluation(record, len(dataset) / max(seconds, 1e-9))
        return metrics
