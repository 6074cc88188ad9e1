"""Classification of pictures with texts (entailment, NLVR2, video questions) or of pictures alone (zero-shot)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from lavis.common.registry import registry
from lavis.datasets.tables import as_number
from lavis.metrics.bootstrap import Contributions, mean_of
from lavis.metrics.finite import refuse_not_finite
from lavis.models.zero_shot import LABEL_PROMPT
from lavis.tasks.base import Case, Record, Task, as_list, say_left_out, units_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassificationSettings:
    """Keys of `run` for classification.

    Args:
        prompt: what a model that ranks the names of classes reads before them, where a sample has no prompt of its own;
            "{}" is the place of its text. Empty: the model's own, else the text, else a question for what is there.
        segments: in how many parts such a model reads the names; it changes no result.
    """

    prompt: str = ""
    segments: int = 1


@registry.register_task("multimodal_classification")
class ClassificationTask(Task):
    """Records {"instance_id", "prediction", "target", "confidence"}, numbers of the model's classes, and their names
    "class" and "target_class" where they are known; best by accuracy.

    Classes go by their names: a model that knows them is trained and scored by them, whatever the order in which a data
    set has them.
    """

    Config: ClassVar[type] = ClassificationSettings
    LEGACY_KEYS: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("max_len", "min_len", "length_penalty", "num_beams", "inference_method"),
        "classes are not written, but compared",
    )
    id_key = "instance_id"
    primary = ("accuracy_percent", "max")

    def __init__(self, settings: Any = None, **keys: Any) -> None:
        super().__init__(settings, **keys)
        # for each class of the data at hand its place among the model's; None: the same
        self._training_places: list[int] | None = None
        self._places: list[int] | None = None
        self._names: list[str] = []  # of the model's classes

    # ------------------------------------------------------------------ whose classes
    def before_training(self, model: nn.Module, dataset: Any, **unused: Any) -> None:
        """Let the model know the names of the classes, or find the data's among those that it has learnt.

        Raises:
            ValueError: it doesn't know one of them, or training sets have different ones.
        """
        super().before_training(model, dataset)
        datasets = [
            d for splits in dataset.values() for d in splits.values() if getattr(d, "training", False)
        ]
        lists = [class_names(d) for d in datasets]
        if not hasattr(model, "name_classes") or not lists or not lists[0]:
            return
        if any(names != lists[0] for names in lists):
            raise ValueError(f"the training sets have different classes: {' and '.join(map(repr, datasets))}")
        if model.classnames is None and len(lists[0]) == model.config.num_classes:
            model.name_classes(lists[0])
        self._training_places = self._compared(model, datasets[0])

    def batch_encoder(self, model: nn.Module) -> Callable[[Mapping[str, Any]], Mapping[str, Any]] | None:
        """Labels of the data set become the model's, then texts become tokens."""
        encoder = super().batch_encoder(model)
        if self._training_places is None:
            return encoder
        key = getattr(model, "LABELS", "label")
        return functools.partial(_with_moved_labels, key, self._training_places, encoder)

    def before_evaluation(self, model: nn.Module, dataset: Any, **unused: Any) -> None:
        """Find the data set's classes among the model's, or let a zero-shot model read their names.

        Raises:
            ValueError: the model does not know one of the classes, or, where it knows no names, tells another number
                of them apart.
        """
        self._places = self._compared(model, dataset)
        self._names = list(getattr(model, "classnames", None) or class_names(dataset))
        super().before_evaluation(model, dataset)

    def _compared(self, model: Any, dataset: Any) -> list[int] | None:
        """The place of each of a data set's classes among the model's, and last that of what is none of either; None
        where they are the same, or unknown."""
        theirs, ours = class_names(dataset), getattr(model, "classnames", None)
        if ours is None or not theirs:
            head = getattr(getattr(model, "config", None), "num_classes", None)
            there = len(getattr(dataset, "classnames", None) or ())
            if there and head and there != head:
                raise ValueError(
                    f"the model tells {head} classes apart, and {dataset!r} has {there}; give the list that it was "
                    "trained with (of own data: answer_list)"
                )
            if there and head:
                logger.warning(
                    "the model's weights don't name its %d classes; those of %r are taken for them in order: %s",
                    head, dataset, ", ".join(theirs[:5]) + (", …" if len(theirs) > 5 else ""),
                )  # fmt: skip
            return None
        unknown = [name for name in theirs if name not in ours]
        if unknown:
            raise ValueError(
                f"{_where(dataset, unknown[0])}the model does not know the class {unknown[0]!r}"
                + (f" (nor {len(unknown) - 1} more of {dataset!r})" if len(unknown) > 1 else "")
                + f"; it was trained to tell apart: {', '.join(ours[:20])}{', …' if len(ours) > 20 else ''}"
            )
        places = [ours.index(name) for name in theirs]
        return None if places == list(range(len(ours))) else [*places, len(ours)]

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        """
        Raises:
            ValueError: the model's scores are not finite.
        """
        out = model.predict(samples) if hasattr(model, "predict") else self._ranked(model, samples)  # type: ignore[operator]
        logits = torch.as_tensor(out["predictions"]).float()  # (R, C)
        ids = as_list(samples["instance_id"])
        confidence, best = logits.softmax(dim=1).max(dim=1)
        sure = confidence.tolist()
        if not np.isfinite(sure).all():  # of a row with a score that isn't finite
            refuse_not_finite(logits.cpu().numpy(), "the scores of sample", ids)
        targets = out.get("targets")
        labels: list[Any] = [None] * len(best) if targets is None else as_list(_moved(targets, self._places))
        records: list[Record] = []
        for i, p, t, c in zip(ids, best.tolist(), labels, sure, strict=True):
            known = t is not None and t >= 0  # -1 stands for a class that isn't known
            record = {
                "instance_id": i,
                "prediction": p,
                "target": t if known else None,
                "confidence": round(c, 6),
            }
            if p < len(self._names):
                record["class"] = self._names[p]
                if known:
                    record["target_class"] = self._names[t] if t < len(self._names) else None
            records.append(record)
        return records

    def _ranked(self, model: Any, samples: Mapping[str, Any]) -> dict[str, Any]:
        """Log-probabilities of the classes' names, by a model that ranks texts, and the labels' numbers."""
        if not hasattr(model, "predict_class"):
            raise ValueError(
                f"{type(model).__name__} neither tells classes apart nor ranks the names of classes"
            )
        if not self._names:
            raise ValueError("the data set does not name its classes, so there is nothing to rank")
        prompts = samples.get("prompt") or self.settings.prompt or model.prompt
        texts = samples.get("text_input")
        if not prompts:
            prompts = "{}" if texts is not None and any(texts) else LABEL_PROMPT
        if isinstance(prompts, str):
            prompts = [prompts] * len(samples["instance_id"])
        # where a prompt has no place for the sample's text, it comes after it
        prompts = [p if "{}" in p or texts is None else f"{p} {{}}" for p in prompts]
        asked = {**samples, "prompt": prompts}
        _, scores = model.predict_class(asked, self._names, self.settings.segments, return_scores=True)
        labels = samples.get("label")
        places = {name: number for number, name in enumerate(self._names)}
        targets = None if labels is None else torch.tensor([places.get(x, x) for x in as_list(labels)])
        return {"predictions": scores, "targets": targets}

    def score(self, records: Sequence[Record], dataset: Any) -> dict[str, float]:
        """accuracy_percent, and agg_metrics, the same as the original's fraction."""
        known = [r for r in records if r["target"] is not None]
        if not known:
            return {}
        say_left_out(len(records) - len(known), len(records), "samples", "label")
        right = sum(r["prediction"] == r["target"] for r in known) / len(known)
        return {"accuracy_percent": 100.0 * right, "agg_metrics": right}

    def cases(self, rows: Sequence[Record], dataset: Any) -> list[Case]:
        """Classes by their names, with the model's confidence."""
        names = class_names(dataset)

        def name(number: int) -> str:
            return names[number] if 0 <= number < len(names) else f"class {number}"

        out = []
        for r in rows:
            place = as_number(str(r["instance_id"]))
            if not isinstance(place, int) or not 0 <= place < len(dataset.records):
                continue
            sure = f" ({100 * r['confidence']:.0f} %)" if r.get("confidence") is not None else ""
            known = r.get("target") is not None
            out.append(
                Case(
                    place=place,
                    prediction=str(r.get("class") or name(int(r["prediction"]))) + sure,
                    truth=(str(r.get("target_class") or name(int(r["target"]))),) if known else (),
                    verdict=float(r["prediction"] == r["target"]) if known else None,
                )
            )
        return out

    def contributions(self, records: Sequence[Record], dataset: Any) -> Contributions | None:
        cases = [c for c in self.cases(self.rows(records), dataset) if c.verdict is not None]
        right = np.array([c.verdict for c in cases], dtype=np.float64)
        metrics = {"accuracy_percent": mean_of(100 * right), "agg_metrics": mean_of(right)}
        return Contributions(metrics, units_of((c.place for c in cases), dataset))


def _moved(labels: Any, places: list[int] | None) -> Any:
    """Labels of the data set as the model's; -1, not known, stays."""
    if places is None:
        return labels
    labels = torch.as_tensor(labels)
    table = torch.tensor(places, device=labels.device)
    return torch.where(labels < 0, labels, table[labels.clamp(0, len(places) - 1)])


def _with_moved_labels(
    key: str,
    places: list[int],
    encoder: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None,
    samples: Mapping[str, Any],
) -> Mapping[str, Any]:
    """A batch with labels that are the model's, and encoded, where there is an encoder."""
    if key in samples:
        samples = {**samples, key: _moved(samples[key], places)}
    return samples if encoder is None else encoder(samples)


def _where(dataset: Any, name: str) -> str:
    """The file and line that has a class, where records know it."""
    for record in dataset.records:
        if "line" not in record:
            break
        if record.get("label") == name:
            return f"{dataset.annotation_paths[0]}, line {record['line']}: "
    return ""


def class_names(dataset: Any) -> list[str]:
    """The names of a data set's classes by their numbers; [] where it has none."""
    named, labels = getattr(dataset, "classnames", None), getattr(dataset, "LABELS", None)
    if labels and not named:
        return sorted(labels, key=labels.__getitem__)
    return list(named or getattr(dataset, "answer_list", None) or ())
