"""Captioning: a text per picture, scored against reference captions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch
from torch import nn

from lavis.common import moved
from lavis.common.registry import registry
from lavis.datasets.base import locate
from lavis.datasets.captioning import read_references
from lavis.datasets.sources import Source, is_of_another_machine
from lavis.metrics.bootstrap import Contributions, added, means_of
from lavis.nn.generation import GenerationOptions
from lavis.tasks.base import Case, Record, Task, as_list, by_text_id, places_of, say_left_out

logger = logging.getLogger(__name__)
__getattr__ = moved.names_of(__name__)


@dataclass(frozen=True)
class CaptionSettings:
    """Keys of `run` for captioning. Lengths count tokens, the prompt and the start token included.

    Args:
        num_beams: beams of the search. max_len, min_len: of a caption, in tokens.
        use_nucleus_sampling: sample instead of searching; then top_p, top_k and temperature matter.
        repetition_penalty: 1 is none. length_penalty: exponent of the length that scores are divided by. null: the
            model's own.
        prompt: what a model that reads one reads before it writes, where `model.prompt` is empty.
        annotation_file: references in COCO's layout, a file or URL, in place of the data set's own.
        img_ids: the only images that are captioned; none: all.
        report_metric: false writes captions without scoring them.
    """

    num_beams: int = 5
    max_len: int = 30
    min_len: int = 1
    use_nucleus_sampling: bool = GenerationOptions.use_nucleus_sampling
    top_p: float = GenerationOptions.top_p
    top_k: int = GenerationOptions.top_k
    temperature: float = GenerationOptions.temperature
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    prompt: str | None = None
    annotation_file: str | None = None
    img_ids: list[Any] = field(default_factory=list)
    report_metric: bool = True

    def __post_init__(self) -> None:
        GenerationOptions.of_run(self)


@registry.register_task("captioning")
class CaptionTask(Task):
    """Records {"image_id", "caption"}; best by CIDEr + Bleu_4."""

    Config: ClassVar[type] = CaptionSettings
    id_key: ClassVar[str] = "image_id"
    LEGACY_KEYS: ClassVar[Mapping[str, str]] = {
        "inference_method": "captions are always generated",
        "sample_id_key": "images go by image_id",
        "caption_key": "records have caption",
        "load_gt_from_file": "annotation_file says it",
    }
    settings: CaptionSettings

    def __init__(self, settings: Any = None, **keys: Any) -> None:
        super().__init__(settings, **keys)
        self.primary = ("agg_metrics", "max") if self.settings.report_metric else None
        self._wanted = {str(name) for name in self.settings.img_ids}
        self._given: dict[str, list[str]] | None = None  # references of `annotation_file`

    def before_evaluation(self, model: nn.Module, dataset: Any, **unused: Any) -> None:
        """Read `annotation_file`, and look for the images that are wanted.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it has another layout; none of the images is there; the model reads no prompt.
        """
        super().before_evaluation(model, dataset)
        if self.settings.prompt and not hasattr(model, "check_prompt"):
            raise ValueError(f"run.prompt: {type(model).__name__} reads no prompt; remove the key")
        if self.settings.prompt and model.prompt:
            logger.info("run.prompt has no effect: the model has its own, model.prompt: %r", model.prompt)
        if self._wanted and hasattr(dataset, "image_id"):
            there = {str(dataset.image_id(i)) for i in range(len(dataset.records))}
            lost = self._wanted - there
            if lost == self._wanted:
                raise ValueError(f"none of the {len(lost)} images of run.img_ids is in {dataset!r}")
            if lost:
                logger.warning(
                    "%d of %d images of run.img_ids are not in %r", len(lost), len(self._wanted), dataset
                )
        file = self.settings.annotation_file
        self._given = None
        if file is not None and self.settings.report_metric:
            where = "run.annotation_file"
            if not is_of_another_machine(where, file, f"the references of {dataset.name or dataset!r}"):
                self._given = by_text_id(read_references(_located(file, where)))

    def predict(self, model: nn.Module, samples: Mapping[str, Any]) -> Sequence[Record | None]:
        ids = as_list(samples["image_id"])
        places = [i for i, name in enumerate(ids) if not self._wanted or str(name) in self._wanted]
        records: list[Record | None] = [None] * len(ids)
        if not places:
            return records
        if len(places) < len(ids):
            samples = {key: _part(value, places, len(ids)) for key, value in samples.items()}
        if self.settings.prompt and not model.prompt and "prompt" not in samples:
            samples = {**samples, "prompt": self.settings.prompt}
        generate: Any = model.generate
        captions = generate(samples, **GenerationOptions.run_arguments(self.settings, generate))
        for place, caption in zip(places, captions, strict=True):
            records[place] = {"image_id": ids[place], "caption": caption}
        return records

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
        known = self._known(dataset)
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

    def _known(self, dataset: Any) -> Mapping[Any, Sequence[Any]]:
        """References by image as text."""
        if self._given is not None:
            return self._given
        return by_text_id(dataset.references()) if hasattr(dataset, "references") else {}

    def cases(self, rows: Sequence[Record], dataset: Any) -> list[Case]:
        """Verdicts where the data set can tell whether a caption is true (`truth_percent` of its `extra_metrics`),
        else the caption's CIDEr as score."""
        places = places_of(map(dataset.image_id, range(len(dataset.records))))
        rows = [r for r in rows if str(r["image_id"]) in places]
        references = _some(self._known(dataset))
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
        references = _some(self._known(dataset))
        if references:  # the others are not scored
            records = [r for r in records if str(r["image_id"]) in references]
        metrics = means_of(_extra_metrics(records, dataset))
        if references and records:
            from lavis.metrics.caption import caption_statistics

            predictions: dict[Any, str] = {str(r["image_id"]): r["caption"] for r in records}
            metrics |= caption_statistics(predictions, {k: references[k] for k in predictions})
            metrics["agg_metrics"] = added(metrics["CIDEr"], metrics["Bleu_4"])
        return Contributions(metrics, [str(r["image_id"]) for r in records])


def _located(file: str, what: str) -> Path:
    """A file, or one that is fetched from its URL into the cache."""
    name = PurePosixPath(file).name if "://" in file else str(Path(file).expanduser().absolute())
    return locate(
        Source(f"captions/{name}" if "://" in file else name, file if "://" in file else None), what
    )


def _part(value: Any, places: list[int], size: int) -> Any:
    """The rows of a batch's value, where it has one for each image."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == size:
        return value[places]
    return [value[i] for i in places] if isinstance(value, (list, tuple)) and len(value) == size else value


def _some(references: Mapping[Any, Sequence[Any]]) -> dict[str, list[str]]:
    """Those pictures that have any."""
    return {k: [str(t) for t in v] for k, v in references.items() if v}


def _extra_metrics(rows: Sequence[Record], dataset: Any) -> list[dict[str, float]]:
    """The data set's own metrics of each caption by itself."""
    if not hasattr(dataset, "extra_metrics"):
        return [{} for _ in rows]
    return [dataset.extra_metrics({r["image_id"]: r["caption"]}) for r in rows]
