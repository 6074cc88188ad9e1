"""A model, a data set and a task small enough to train in a test; run as a script, one training run.

    python -m tests.toy_training output_dir=… job_id=… max_epoch=3

The model has dropout, a buffer that training changes, and a tied weight: what a checkpoint may forget.
The data set augments at random, so a wrong stream shows.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lavis.runners import Result, train
from lavis.tasks.base import Task

WIDTH, CLASSES = 8, 4


class ToyModel(nn.Module):
    def __init__(self, dropout: float = 0.2, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(WIDTH, WIDTH)
            self.ln = nn.LayerNorm(WIDTH)
            self.second = nn.Linear(WIDTH, WIDTH, bias=False)
            self.tied = nn.Linear(WIDTH, WIDTH, bias=False)
            self.tied.weight = self.second.weight
            self.head = nn.Linear(WIDTH, CLASSES)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        x = self.ln(torch.tanh(self.first(x)))
        return self.head(self.tied(self.dropout(self.second(x))))

    def forward(self, samples: dict[str, Any]) -> dict[str, torch.Tensor]:
        self.calls += 1
        loss = nn.functional.cross_entropy(self.logits(samples["x"]), samples["y"])
        return {"loss": loss, "loss_again": loss * 2}


class ToyData:
    """Points around CLASSES centres; training samples are moved at random by their stream."""

    def __init__(
        self, n: int, seed: int = 0, training: bool = False, delay: float = 0.0, poison: Sequence[int] = ()
    ) -> None:
        rng = np.random.default_rng(seed)
        centres = np.random.default_rng(99).normal(size=(CLASSES, WIDTH))
        self.y = rng.integers(CLASSES, size=n)
        self.x = (centres[self.y] + 0.7 * rng.normal(size=(n, WIDTH))).astype(np.float32)
        self.x[list(poison)] = np.nan
        self.training, self.delay = training, delay
        self.records = [{"id": i, "y": int(y)} for i, y in enumerate(self.y)]

    def __len__(self) -> int:
        return len(self.y)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        time.sleep(self.delay)
        x = self.x[index]
        if self.training:
            x = x + 0.1 * rng.normal(size=WIDTH).astype(np.float32)
        return {"x": torch.from_numpy(np.asarray(x)), "y": int(self.y[index]), "id": index}

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "x": torch.stack([s["x"] for s in samples]),
            "y": torch.tensor([s["y"] for s in samples]),
            "id": [s["id"] for s in samples],
        }


class ToyTask(Task):
    primary = ("accuracy_percent", "max")

    def predict(self, model: nn.Module, samples: dict[str, Any]) -> list[dict[str, Any] | None]:
        best = model.logits(samples["x"]).argmax(-1).tolist()
        return [{"id": i, "class": c} for i, c in zip(samples["id"], best)]

    def score(self, records: Sequence[dict[str, Any]], dataset: Any) -> dict[str, float]:
        hits = [r["class"] == dataset.records[r["id"]]["y"] for r in records]
        return {"accuracy_percent": 100.0 * sum(hits) / len(hits)}


def run(
    dropout: float = 0.2, n: int = 60, delay: float = 0.0, poison: int = -1, valid: bool = True, **keys: Any
) -> Result:
    """One small training run; `keys` are those of the section run."""
    broken = [poison] if poison >= 0 else []
    datasets = {"train": ToyData(n, 1, training=True, delay=delay, poison=broken)}
    if valid:
        datasets["val"] = ToyData(31, 2)
        datasets["test"] = ToyData(21, 3)
    settings = {"max_epoch": 2, "batch_size_train": 4, "batch_size_eval": 5, "init_lr": 1e-2, "log_freq": 3}
    model = ToyModel(dropout)
    return train(model=model, datasets=datasets, task=ToyTask(), device="cpu", **{**settings, **keys})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start background jobs without it
    torch.set_num_threads(1)
    given = dict(token.split("=", 1) for token in sys.argv[1:])
    own = {"dropout": float, "n": int, "delay": float, "poison": int}
    result = run(**{k: own[k](v) if k in own else None if v == "null" else v for k, v in given.items()})
    print(result.stopped, result.iterations)
