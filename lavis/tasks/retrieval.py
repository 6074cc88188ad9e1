"""Retrieval: which texts belong to a picture (or clip), and which pictures to a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lavis.common.registry import registry
from lavis.tasks.base import Record, Task


@dataclass(frozen=True)
class RetrievalSettings:
    """Keys of `run` for retrieval.

    Args:
        k_test: how many of the best by contrast are matched anew, on each side.
    """

    k_test: int = 128

    def __post_init__(self) -> None:
        if self.k_test < 1:
            raise ValueError(f"run.k_test is {self.k_test}; it must be 1 or more")


@registry.register_task("retrieval")
class RetrievalTask(Task):
    """Records: a row of scores for each picture and for each text; best by `r_mean`, both sides' mean recall.

    The original chose its best checkpoint by one side only.
    """

    Config: ClassVar[type] = RetrievalSettings
    primary = ("r_mean", "max")
    settings: RetrievalSettings

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        raise ValueError("retrieval compares a whole gallery; use evaluate")

    @torch.no_grad()
    def evaluate(self, model: nn.Module, data: Any, dist: Any = None) -> list[Record]:
        """Two records: scores of texts for pictures, "i2t" (P, T), and of pictures for texts, "t2i" (T, P)."""
        self.before_evaluation(model, data.dataset)
        i2t, t2i = model.compute_sim_matrix(data, task_cfg=self.settings)  # type: ignore[operator]
        return [{"direction": "i2t", "scores": i2t}, {"direction": "t2i", "scores": t2i}]

    def score(self, records: Sequence[Record], dataset: Any) -> dict[str, float]:
        """Recall at 1, 5 and 10 in percent, see `lavis.metrics.retrieval.retrieval_scores`."""
        from lavis.metrics.retrieval import retrieval_scores

        scores = {r["direction"]: r["scores"] for r in records}
        return retrieval_scores(scores["i2t"], scores["t2i"], dataset.img2txt, dataset.txt2img)

    def save(self, records: Sequence[Record], path: str | Path) -> Path:
        """The ten best of each query, with their scores."""
        rows = []
        for record in records:
            best = np.argsort(-record["scores"], axis=1, kind="stable")[:, :10]
            chosen = np.take_along_axis(record["scores"], best, axis=1)
            rows += [
                {"direction": record["direction"], "query": i, "best": b, "scores": s}
                for i, (b, s) in enumerate(zip(best.tolist(), chosen.tolist()))
            ]
        return super().save(rows, path)
