"""Captioning: a text per picture, scored against reference captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from lavis.common import moved
from lavis.common.registry import registry
from lavis.metrics.bootstrap import Contributions, added, means_of
from lavis.nn.generation import GenerationOptions
from lavis.tasks.base import Case, Record, Task, as_list, by_text_id, places_of, say_left_out

__getattr__ = moved.names_of(__name__)


@dataclass(frozen=True)
class CaptionSettings:
    """Keys of `run` for captioning. Lengths count tokens, the prompt and the start token included.

    Args:
        num_beams: beams of the search. max_len, min_len: of a caption, in tokens.
        use_nucleus_sampling: sample instead of searching; then top_p, top_k and temperature matter.
        repetition_penalty: 1 is none. length_penalty: exponent of the length that scores are divided by.
        report_metric: false writes captions without scoring them.
    """

    num_beams: int = 5
    max_len: int = 30
    min_len: int = 1
    use_nucleus_sampling: bool = GenerationOptions.use_nucleus_sampling
    top_p: float = GenerationOptions.top_p
    top_k: int = GenerationOptions.top_k
    temperature: float = GenerationOptions.temperature
    repetition_penalty: float = GenerationOptions.repetition_penalty
    length_penalty: float = GenerationOptions.length_penalty
    report_metric: bool = True

    def __post_init__(self) -> None:
        GenerationOptions.of_run(self)


@registry.register_task("captioning")
class CaptionTask(Task):
    """Records {"image_id", "caption"}; best by CIDEr + Bleu_4."""

    Config: ClassVar[type] = CaptionSettings
    id_key: ClassVar[str] = "image_id"
    settings: CaptionSettings

    def __init__(self, settings: Any = None, **keys: Any) -> None:
        super().__init__(settings, **keys)
        self.primary = ("agg_metrics", "max") if self.settings.report_metric else None

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        generate: Any = model.generate
        captions = generate(samples, **GenerationOptions.run_arguments(self.settings, generate))
        ids = as_list(samples["image_id"])
        return [{"image_id": i, "caption": c} for i, c in zip(ids, captions, strict=True)]

    def evaluate(self, model: nn.Module, data: Any, dist: Any = None) -> list[Record]:
        """One record per picture: where a data set has a picture several times, the first one counts."""
        records = super().evaluate(model, data) if dist is None else super().evaluate(model, data, dist)
        return list({str(r["image_id"]): r for r in reversed(records)}.values())[::-1]

    def score(self, records: Sequence[Record], dataset: Any) -> dict[str, float]:
        """Bleu_1 … Bleu_4, ROUGE_L, CIDEr (fractions; CIDEr up to 10), and the data set's own metrics.

        Pictures whose references are an empty list are left out, which is said.

        Raises:
            ValueError: the data set doesn't know a predicted picture.
        """
        if not self.settings.report_metric or not records:
            return {}
        metrics: dict[str, float] = {}
        known = by_text_id(dataset.references()) if hasattr(dataset, "references") else {}
        references = _some(known)
        if references:
            from lavis.metrics.caption import caption_scores

            predictions: dict[Any, str] = {str(r["image_id"]): r["caption"] for r in records}
            lacking = [i for i in predictions if i not in known]
            if lacking:
                raise ValueError(
                    f"{len(lacking)} of {len(predictions)} pictures have no reference captions, the first is "
                    f"{lacking[0]!r}; the data set must give references for every sample, or set "
                    "run.report_metric=false"
                )
            scored = {i: text for i, text in predictions.items() if i in references}
            say_left_out(len(predictions) - len(scored), len(predictions), "pictures", "reference captions")
            if scored:
                metrics.update(caption_scores(scored, {k: references[k] for k in scored}))
                metrics["agg_metrics"] = metrics["CIDEr"] + metrics["Bleu_4"]
        if hasattr(dataset, "extra_metrics"):
            metrics.update(dataset.extra_metrics({r["image_id"]: r["caption"] for r in records}))
        return metrics

    def cases(self, rows: Sequence[Record], dataset: Any) -> list[Case]:
        """Verdicts where the data set can tell whether a caption is true (`truth_percent` of its `extra_metrics`),
        else the caption's CIDEr as score."""
        places = places_of(map(dataset.image_id, range(len(dataset.records))))
        rows = [r for r in rows if str(r["image_id"]) in places]
        references = _references(dataset)
        verdicts = [m.get("truth_percent") for m in _extra_metrics(rows, dataset)]
        scores: dict[Any, dict[str, float]] = {}
        if all(v is None for v in verdicts) and rows:
            from lavis.metrics.caption import caption_scores_each

            known = {str(r["image_id"]): r["caption"] for r in rows if str(r["image_id"]) in references}
            if known:
                scores = caption_scores_each(known, {k: references[k] for k in known})  # type: ignore[arg-type]
        return [
            Case(
                place=places[str(r["image_id"])],
                prediction=r["caption"],
                truth=tuple(references.get(str(r["image_id"]), ())),
                verdict=None if v is None else v / 100,
                score=scores.get(str(r["image_id"]), {}).get("CIDEr"),
            )
            for r, v in zip(rows, verdicts, strict=True)
        ]

    def contributions(self, records: Sequence[Record], dataset: Any) -> Contributions | None:
        """BLEU from summed counts, the others as means over pictures."""
        references = _references(dataset)
        if references:  # the others are not scored
            records = [r for r in records if str(r["image_id"]) in references]
        metrics = means_of(_extra_metrics(records, dataset))
        if references and records:
            from lavis.metrics.caption import caption_statistics

            predictions: dict[Any, str] = {str(r["image_id"]): r["caption"] for r in records}
            metrics |= caption_statistics(predictions, {k: references[k] for k in predictions})
            metrics["agg_metrics"] = added(metrics["CIDEr"], metrics["Bleu_4"])
        return Contributions(metrics, [str(r["image_id"]) for r in records])


def _references(dataset: Any) -> dict[str, list[str]]:
    return _some(by_text_id(dataset.references()) if hasattr(dataset, "references") else {})


def _some(references: Mapping[Any, Sequence[Any]]) -> dict[str, list[str]]:
    """Those pictures that have any."""
    return {k: [str(t) for t in v] for k, v in references.items() if v}


def _extra_metrics(rows: Sequence[Record], dataset: Any) -> list[dict[str, float]]:
    """The data set's own metrics of each caption by itself."""
    if not hasattr(dataset, "extra_metrics"):
        return [{} for _ in rows]
    return [dataset.extra_metrics({r["image_id"]: r["caption"]}) for r in rows]
