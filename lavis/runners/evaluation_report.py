"""One self-contained page about one evaluation: `lavis evaluate … --report` writes `report_<split>.html`.

Metrics with bootstrap intervals, the curves of the training if there was one, cases that are right and cases that are
wrong with their pictures, the configuration, the versions. It needs nothing but a web browser, and loads nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis.common.files import read_jsonl, write_text
from lavis.common.markup import Markup, escape, tag
from lavis.common.page import bar, facts, line_chart, number, table
from lavis.datasets.base import Dataset, UnreadableMediaError
from lavis.datasets.shown import pictures_of, rounds_of, texts_of
from lavis.metrics.bootstrap import intervals
from lavis.runners.report import data_url, loss_curve, report_page
from lavis.tasks.base import Case, Record, Task

logger = logging.getLogger(__name__)

RESAMPLES, LEVEL, SEED = 2000, 0.95, 0
SHOWN = 12  # cases of each kind
_LONGEST = 400  # characters of a text in a case
_GROUPS = 24  # metrics of groups (question_type/…) that are listed
_CONTEXT = ("question", "sentence", "text")  # texts that a prediction is about, not what it is compared with


@dataclass(frozen=True)
class Evaluation:
    """What a report is about.

    Attributes:
        task, dataset: of the evaluation. split: its name. label: of the weights, such as "best".
        records: predictions. metrics: their scores. seconds: that predicting took.
        config: the resolved configuration as YAML. model: what is evaluated, in a word.
        history: lines of log.txt, of this run or of the one that the weights are from.
        versions: names and values.
    """

    task: Task
    dataset: Any
    split: str
    label: str
    records: Sequence[Record]
    metrics: Mapping[str, float]
    seconds: float
    config: str
    model: str
    history: Sequence[Mapping[str, Any]]
    versions: Mapping[str, Any]


def write_evaluation_report(path: str | Path, evaluation: Evaluation) -> Path:
    """Write the page.

    Args:
        path: the file. evaluation: what it is about.

    Returns:
        The path.
    """
    return write_text(path, evaluation_page(evaluation))


def evaluation_page(e: Evaluation) -> str:
    """The page as HTML."""
    known = isinstance(e.dataset, Dataset)
    name = f"{e.dataset.name}, {e.split}" if known and e.dataset.name else e.split
    title = f"{e.model} on {name}"
    cases = e.task.cases(e.task.rows(e.records), e.dataset) if known else []
    weights = "random weights" if e.label == "none" else f"weights: {e.label}"
    lead = f"{len(cases) or len(e.records):,} predictions in {_duration(e.seconds)}; {weights}."
    body = [
        tag("h1", title),
        tag("p", lead, class_="lead"),
        tag("h2", "Metrics"),
        _metrics(e) if e.metrics else tag("p", "There is nothing to compare the predictions with."),
        _curves(e.history),
        _all_cases(cases, e.dataset),
        tag("h2", "Configuration"),
        tag("details", tag("summary", "all settings; a run can be repeated from them"), tag("pre", e.config)),
        tag("h2", "Versions"),
        facts({k: v for k, v in e.versions.items() if not isinstance(v, Mapping)}),
    ]
    return report_page(title, body)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.1f} seconds"


# ---------------------------------------------------------------------------------------- metrics


def metric_intervals(e: Evaluation) -> tuple[dict[str, tuple[float, float]], int]:
    """Intervals of those metrics that resampling reproduces, and the number of units."""
    if not isinstance(e.dataset, Dataset):
        return {}, 0
    contributions = e.task.contributions(e.records, e.dataset)
    if contributions is None or not len(contributions.units):
        return {}, 0
    same = {}
    for name, statistic in contributions.metrics.items():
        value = statistic.value()
        if name in e.metrics and math.isclose(value, e.metrics[name], rel_tol=1e-6, abs_tol=1e-9):
            same[name] = statistic
        elif name in e.metrics:
            logger.warning(
                "%s has no interval: it is %s, and the sum over its records gives %s",
                name, e.metrics[name], value,
            )  # fmt: skip
    if not same:
        return {}, 0
    kept = type(contributions)(same, contributions.units)
    return intervals(kept, RESAMPLES, LEVEL, SEED), len(set(contributions.units))


def _metrics(e: Evaluation) -> Markup:
    found, units = metric_intervals(e)
    main = {k: v for k, v in e.metrics.items() if "/" not in k}
    groups = {k: v for k, v in e.metrics.items() if "/" in k}
    primary = e.task.primary[0] if e.task.primary else ""
    parts = [_metric_table(main, found, primary)]
    if found:
        note = (
            f"Intervals: {100 * LEVEL:.0f} %, bootstrap over {units:,} pictures or clips with all their records "
            f"({RESAMPLES:,} resamples, seed {SEED}, percentiles). They tell how much the metrics would differ on "
            "other pictures of the same kind, not how much another training would."
        )
        if "CIDEr" in found:
            note += " CIDEr's weights of words are those of the whole split in every resample."
        parts.append(tag("p", note, class_="lead"))
    if groups:
        shown = dict(sorted(groups.items())[:_GROUPS])
        more = f", the first {_GROUPS} of {len(groups)}" if len(groups) > _GROUPS else ""
        inner = _metric_table(shown, found, "")
        parts.append(tag("details", tag("summary", f"by kind of question{more}"), inner))
    return escape(parts)


def _metric_table(
    metrics: Mapping[str, float], found: Mapping[str, tuple[float, float]], primary: str
) -> Markup:
    rows = []
    for name, value in metrics.items():
        low, high = found.get(name, (math.nan, math.nan))
        text = f"{number(low)} to {number(high)}" if name in found else "not known"
        percent = name.endswith("percent") or name.startswith(("txt_", "img_", "r_mean"))
        scale = 100.0 if percent else 1.0 if name.startswith(("Bleu", "ROUGE")) else 0.0
        drawn = bar(low / scale, high / scale) if scale and name in found else None
        label = tag("strong", name) if name == primary else name
        rows.append((label, number(value), text, drawn))
    return tag("div", table(["metric", "value", "interval", ""], rows, numeric=(1, 2)), class_="wide")


# ---------------------------------------------------------------------------------------- curves


def _curves(history: Sequence[Mapping[str, Any]]) -> list[Markup]:
    loss = loss_curve(history)
    if not loss:
        return []
    parts = [tag("h2", "Training"), line_chart(loss, "iterations", "training loss")]
    validations = [r for r in history if r.get("event") == "eval" and "step" in r]
    for name in _main_metrics(validations):
        points = [(r["step"], r[name]) for r in validations if isinstance(r.get(name), (int, float))]
        if len({x for x, _ in points}) > 1:
            parts.append(line_chart(points, "iterations", f"{name} ({validations[0].get('split')})"))
    return parts


def _main_metrics(validations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Up to two metrics worth a curve."""
    wanted = ("accuracy_percent", "overall_percent", "truth_percent", "CIDEr", "r_mean", "mrr_percent")
    there = {name for record in validations for name in record}
    return [name for name in wanted if name in there][:2]


# ---------------------------------------------------------------------------------------- cases


def chosen(cases: Sequence[Case]) -> list[tuple[str, str, list[Case]]]:
    """What is shown: (headline, explanation, cases), drawn at random or, without verdicts, from both ends."""
    rng = np.random.default_rng(SEED)

    def some(of: list[Case]) -> list[Case]:
        places = sorted(rng.permutation(len(of))[:SHOWN].tolist())
        return [of[i] for i in places]

    judged = [c for c in cases if c.verdict is not None]
    if judged:
        wrong, right = ([c for c in judged if c.is_right is side] for side in (False, True))
        return [("Wrong", _share(wrong, judged), some(wrong)), ("Right", _share(right, judged), some(right))]
    ordered = sorted((c for c in cases if c.score is not None), key=lambda c: c.score or 0.0)
    if ordered:
        half = min(SHOWN, (len(ordered) + 1) // 2)
        return [
            ("Farthest from the references", "The lowest CIDEr; nobody has judged them", ordered[:half]),
            ("Closest to the references", "The highest CIDEr", ordered[half:][-half:][::-1]),
        ]
    return [("Predictions", "Drawn at random; nobody can tell whether they are right", some(list(cases)))]


def _share(part: Sequence[Case], whole: Sequence[Case]) -> str:
    drawn = f"; {SHOWN} of them, drawn at random" if len(part) > SHOWN else ""
    return f"{len(part):,} of {len(whole):,}{drawn}"


def _all_cases(cases: Sequence[Case], dataset: Any) -> list[Markup]:
    parts: list[Markup] = []
    for headline, explanation, some in chosen(cases) if cases else ():
        parts.append(tag("h2", headline))
        if not some:
            parts.append(tag("p", "None.", class_="muted"))
            continue
        parts.append(tag("p", f"{explanation}.", class_="lead"))
        parts.append(tag("ul", [_case(case, dataset) for case in some], class_="cases"))
    return parts


def _case(case: Case, dataset: Dataset) -> Markup:
    record = dataset.records[case.place]
    pictures = _pictures(dataset, record)
    if case.found is not None and case.found != case.place:
        pictures += _pictures(dataset, dataset.records[case.found])
    context = [(name, text) for name, text in texts_of(record) if name in _CONTEXT]
    if rounds_of(record):
        context = [("caption", str(record.get("caption", "")))]
    rows: list[Any] = [(tag("dt", name), tag("dd", _cut(text))) for name, text in context]
    if case.about:
        rows.append((tag("dt", "asked"), tag("dd", _cut(case.about))))
    kind = {True: "good", False: "bad", None: None}[case.is_right]
    mark = tag("span", f" {case.mark}", class_=kind) if case.mark else None
    rows.append((tag("dt", "predicted", mark), tag("dd", _cut(case.prediction) or "(empty)")))
    if case.truth:
        more = f" and {len(case.truth) - 5} more" if len(case.truth) > 5 else ""
        name = "truth" if len(case.truth) == 1 else "references"
        rows.append((tag("dt", name), tag("dd", _cut("; ".join(case.truth[:5])) + more)))
    rows.append((tag("dt", "record"), tag("dd", str(case.place))))
    many = "many" if len(pictures) > 1 else None
    return tag("li", tag("div", pictures, class_="pictures"), tag("dl", rows), class_=many)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _pictures(dataset: Dataset, record: Record) -> list[Markup]:
    try:
        found: list[Image.Image] = pictures_of(dataset, record)
    except (UnreadableMediaError, ImportError) as e:
        return [tag("div", str(e), class_="none")]
    return [tag("img", src=data_url(p), alt=f"picture {i + 1} of the record") for i, p in enumerate(found)]


# ---------------------------------------------------------------------------------------- gathering


@dataclass(frozen=True)
class Reporter:
    """Writes `report_<split>.html` into a run's folder, given what was evaluated.

    Attributes:
        config: of the run (`lavis.common.config.Config`). task: of the run. folder: its folder. label: of the weights.
        versions: names and values.
    """

    config: Any
    task: Task
    folder: Path
    label: str
    versions: Mapping[str, Any]

    def __call__(
        self,
        split: str,
        dataset: Any,
        records: Sequence[Record],
        metrics: Mapping[str, float],
        seconds: float,
    ) -> Path:
        """Write the report of a split; see `Evaluation`."""
        model = self.config.model
        name = "/".join(str(model[k]) for k in ("arch", "model_type") if model.get(k)) or "a model"
        evaluation = Evaluation(
            self.task, dataset, split, self.label, records, metrics, seconds, self.config.to_yaml(), name,
            history_of(self.folder, model.get("weights")), self.versions,
        )  # fmt: skip
        path = write_evaluation_report(self.folder / f"report_{split}.html", evaluation)
        logger.info("%s: the report is %s", split, path)
        return path


def history_of(folder: Path, weights: Any) -> list[dict[str, Any]]:
    """The log of the run in this folder; else of the run that a folder of weights lies in."""
    own = read_jsonl(folder / "log.txt")
    if any(r.get("event") == "step" for r in own):
        return own
    if isinstance(weights, str) and "://" not in weights:
        path = Path(weights).expanduser()
        return read_jsonl((path if path.is_dir() else path.parent).parent / "log.txt")
    return []
