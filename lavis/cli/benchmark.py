"""`lavis benchmark`: the tables of the paper, its figures beside those measured here."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from lavis.cli import common

_TABLES = Path(__file__).parents[1] / "recipes" / "paper_tables.json"
_SERVER = "scored by the evaluation server, from the file of answers"


@dataclass(frozen=True)
class Figure:
    """A number of the paper.

    Args:
        name: its column. paper: the number. key: our metric; "" if only a server or another program has it.
        scale: ours times this is in the paper's unit. split: the split that it is of.
    """

    name: str
    paper: float
    key: str = ""
    scale: float = 1.0
    split: str = "test"


@dataclass(frozen=True)
class Line:
    """One data set of a table: a recipe, and what it measures."""

    data: str
    recipe: str
    figures: tuple[Figure, ...]
    options: tuple[str, ...] = ()
    why_not: str = ""  # a reason for which it can never be run


@functools.cache
def tables() -> Mapping[int, tuple[str, tuple[Line, ...]]]:
    """{number: (title, lines)} of lavis/recipes/paper_tables.json, the figures of Li et al., "LAVIS: A Library for
    Language-Vision Intelligence" (2022), in the columns of its own results. Which
    models tables 5 and 6 are about was not checked against the paper."""
    found = {}
    for number, table in json.loads(_TABLES.read_text(encoding="utf-8")).items():
        lines = [
            Line(
                each["data"],
                each["recipe"],
                tuple(Figure(**figure) for figure in each["figures"]),
                tuple(each.get("options", ())),
                each.get("why_not", ""),
            )
            for each in table["lines"]
        ]
        found[int(number)] = (table["title"], tuple(lines))
    return found


@dataclass
class Outcome:
    """A line after its run: figures of ours by name (None where there is none), or why there are none."""

    line: Line
    ours: dict[str, float | None] = field(default_factory=dict)
    reason: str = ""


def register(app: typer.Typer) -> None:
    app.command("benchmark")(benchmark)


def benchmark(
    table: Annotated[
        int | None,
        typer.Option(
            min=3, max=7, help="The number of a table with figures of models, 3 to 7; default: all."
        ),
    ] = None,
    out: Annotated[str, typer.Option(help="The folder for runs.")] = "output/benchmark",
    device: Annotated[str | None, common.DEVICE] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at a time, per process.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which lines could be run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Measure the lines of the paper's tables whose data and weights are here, beside the paper's figures.

    Nothing is downloaded; a line that is left out says what it lacks (`lavis download`, and `load_model` once
    for weights, fetch it).

    \b
    Examples:
      lavis benchmark --table 4 --dry-run
      lavis benchmark --table 5 --device cuda
    """
    settings = {"run.output_dir": out, "run.device": device, "run.batch_size_eval": batch_size}
    options = [f"{key}={value}" for key, value in settings.items() if value is not None]
    results = []
    for number in [table] if table is not None else list(tables()):
        title, lines = tables()[number]
        outcomes = [run(line, options, dry_run) for line in lines]
        results.append({"table": number, "title": title, "lines": [asdict(o) for o in outcomes]})
        if not as_json:
            print(f"Table {number}: {title}")
            common.table(["Data", "Figure", "Paper", "Here", ""], _rows(outcomes))
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))


def run(line: Line, options: list[str], dry_run: bool = False) -> Outcome:
    """Evaluate a line, if all that it needs is there."""
    from lavis.runners import evaluate

    settings = [*line.options, *options]
    reason = line.why_not or lacking(line.recipe, settings)
    if reason or dry_run:
        return Outcome(line, reason=reason or "could be run")
    with _offline():
        metrics = evaluate(line.recipe, options=settings)
    ours: dict[str, float | None] = {}
    for figure in line.figures:
        value = metrics.get(figure.split, {}).get(figure.key)
        ours[figure.name] = None if value is None else value * figure.scale
    return Outcome(line, ours)


def lacking(recipe: str, options: list[str]) -> str:
    """What a recipe needs and is not here; "" if nothing."""
    from lavis.common import hub
    from lavis.common.config import Config
    from lavis.common.registry import registry
    from lavis.runners import build_datasets

    config = Config.load(recipe, options)
    preset = registry.get_model_class(config.model["arch"]).preset(config.model["model_type"])
    weights = config.model.get("weights", "finetuned")
    weights = preset.weights if weights == "finetuned" else weights
    if weights is None:
        return "no weights were published"
    if "://" in str(weights) and not hub.place_of(str(weights)).is_file():
        model = f"{config.model['arch']!r}, {config.model['model_type']!r}"
        return f"the weights are not here: load_model({model}) fetches them"
    if "://" not in str(weights) and not Path(str(weights)).exists():
        return f"there are no weights {weights}"
    try:
        with _offline():
            built = build_datasets(config)
            for splits in built.values():
                for dataset in splits.values():
                    dataset[0]
    except (OSError, ValueError, ImportError, IndexError) as e:
        return str(e).split(";")[0]
    return ""


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    before = os.environ.get("LAVIS_OFFLINE")
    os.environ["LAVIS_OFFLINE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LAVIS_OFFLINE"]
        else:
            os.environ["LAVIS_OFFLINE"] = before


def _rows(outcomes: list[Outcome]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for outcome in outcomes:
        for place, figure in enumerate(outcome.line.figures):
            ours = outcome.ours.get(figure.name)
            note = outcome.reason if place == 0 else ""
            if not outcome.reason and ours is None:
                note = _SERVER if not figure.key else "not measured here"
            rows.append(
                (
                    outcome.line.data if place == 0 else "",
                    figure.name,
                    f"{figure.paper:g}",
                    "" if ours is None else f"{ours:.4g}",
                    note,
                )
            )
    return rows
