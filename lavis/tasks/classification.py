"""Classification of pictures with texts (entailment, NLVR2, video questions) or of pictures alone (zero-shot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lavis.common.registry import registry
from lavis.metrics.bootstrap import Contributions, mean_of
from lavis.tasks.base import Case, Record, Task, as_list, units_of


@dataclass(frozen=True)
class ClassificationSettings:
    """Keys of `run` that the original's recipes name for classification; none has an effect here.

    They are of models that write the class as text.
    """

    max_len: int = 30
    min_len: int = 1
    length_penalty: float = -1.0
    segments: int = 1


@registry.register_task("multimodal_classification")
class ClassificationTask(Task):
    """Records {"instance_id", "prediction", "target", "confidence"}; best by accuracy."""

    Config: ClassVar[type] = ClassificationSettings
    id_key = "instance_id"
    primary = ("accuracy_percent", "max")

    def before_evaluation(self, model: nn.Module, dataset: Any, **unused: Any) -> None:
        """Let a zero-shot model read the names of the classes.

        Raises:
            ValueError: the model's head has another number of classes than the data set.
        """
        there = len(getattr(dataset, "classnames", None) or ())
        head = getattr(getattr(model, "config", None), "num_classes", None)
        if there and head and there != head:
            raise ValueError(
                f"the model tells {head} classes apart, and {dataset!r} has {there}; give the list that it was trained "
                "with (of own data: answer_list)"
            )
        super().before_evaluation(model, dataset)

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        out = model.predict(samples)  # type: ignore[operator]
        logits = torch.as_tensor(out["predictions"]).float()  # (R, C)
        confidence, best = logits.softmax(dim=1).max(dim=1)
        targets = out.get("targets")
        labels = [None] * len(best) if targets is None else as_list(targets)
        return [
            {"instance_id": i, "prediction": p, "target": t, "confidence": round(c, 6)}
            for i, p, t, c in zip(
                as_list(samples["instance_id"]), best.tolist(), labels, confidence.tolist(), strict=True
            )
        ]

    def score(self, records: Sequence[Record], dataset: Any) -> dict[str, float]:
        """accuracy_percent, and agg_metrics, the same as the original's fraction."""
        known = [r for r in records if r["target"] is not None]
        if not known:
            return {}
        right = sum(r["prediction"] == r["target"] for r in known) / len(known)
        return {"accuracy_percent": 100.0 * right, "agg_metrics": right}

    def cases(self, rows: Sequence[Record], dataset: Any) -> list[Case]:
        """Classes by their names, with the model's confidence."""
        names = class_names(dataset)

        def name(number: int) -> str:
            return names[number] if 0 <= number < len(names) else f"class {number}"

        out = []
        for r in rows:
            if not 0 <= int(r["instance_id"]) < len(dataset.records):
                continue
            sure = f" ({100 * r['confidence']:.0f} %)" if r.get("confidence") is not None else ""
            known = r.get("target") is not None
            out.append(
                Case(
                    place=int(r["instance_id"]),
                    prediction=name(int(r["prediction"])) + sure,
                    truth=(name(int(r["target"])),) if known else (),
                    verdict=float(r["prediction"] == r["target"]) if known else None,
                )
            )
        return out

    def contributions(self, records: Sequence[Record], dataset: Any) -> Contributions | None:
        cases = [c for c in self.cases(self.rows(records), dataset) if c.verdict is not None]
        right = np.array([c.verdict for c in cases], dtype=np.float64)
        metrics = {"accuracy_percent": mean_of(100 * right), "agg_metrics": mean_of(right)}
        return Contributions(metrics, units_of((c.place for c in cases), dataset))


def class_names(dataset: Any) -> list[str]:
    """The names of a data set's classes by their numbers; [] where it has none."""
    labels = getattr(dataset, "LABELS", None)
    if labels:
        return sorted(labels, key=labels.__getitem__)
    return list(getattr(dataset, "classnames", None) or getattr(dataset, "answer_list", None) or ())
