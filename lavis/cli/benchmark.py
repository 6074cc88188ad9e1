"""`lavis benchmark`: the tables of the paper, its figures beside those measured here."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated

import typer

from lavis.cli import common

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


def _recall(
    texts: tuple[float, ...], pictures: tuple[float, ...], names: str = "TR IR"
) -> tuple[Figure, ...]:
    of_texts, of_pictures = names.split()
    return tuple(
        Figure(f"{name} R@{k}", value, f"{side}_r{k}")
        for name, side, values in ((of_texts, "txt", texts), (of_pictures, "img", pictures))
        for k, value in zip((1, 5, 10), values)
    )


def _accuracy(**by_split: float) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"accuracy, {s}", value, "accuracy_percent", split=s) for s, value in by_split.items()
    )


def _captions(bleu: float, cider: float, spice: float, split: str) -> tuple[Figure, ...]:
    return (
        Figure("BLEU-4", bleu, "Bleu_4", 100, split),
        Figure("CIDEr", cider, "CIDEr", 100, split),
        Figure("SPICE", spice, "SPICE", 100, split),
    )


# Figures: Li et al., "LAVIS: A Library for Language-Vision Intelligence" (2022), the columns of its own results.
# That table 5 is CLIP's and 6 ALPRO's was not checked against the paper.
TABLES: Mapping[int, tuple[str, tuple[Line, ...]]] = {
    3: ("ALBEF", (
        Line("COCO", "albef/retrieval_coco_eval", _recall((77.6, 94.1, 97.2), (61.0, 84.5, 90.7))),
        Line("Flickr30k", "albef/retrieval_flickr_eval", _recall((95.8, 99.8, 100.0), (85.5, 97.4, 98.9))),
        Line("VQAv2", "albef/vqa_vqav2_test", (Figure("test-dev", 76.35), Figure("test-std", 76.54))),
        Line("SNLI-VE", "albef/entailment_snli_ve_eval", _accuracy(val=80.60, test=81.04)),
        Line("NLVR2", "albef/nlvr_eval", _accuracy(val=82.47, test=82.91)),
    )),
    4: ("BLIP", (
        Line("COCO", "blip/retrieval_coco_eval", _recall((82.0, 95.8, 98.1), (64.5, 86.0, 91.7))),
        Line("Flickr30k", "blip/retrieval_flickr_eval", _recall((96.9, 99.9, 100.0), (87.5, 97.6, 98.9))),
        Line("VQAv2", "blip/vqa_vqav2_eval", (Figure("test-dev", 78.23), Figure("test-std", 78.29)),
             ("run.test_splits=[test]", "datasets.coco_vqa.type=default")),
        Line("COCO captions", "blip/caption_coco_eval", _captions(39.7, 133.5, 23.7, "test")),
        Line("nocaps", "blip/caption_nocaps_eval", _captions(31.9, 109.1, 14.7, "val"), ("run.test_splits=[val]",)),
        Line("NLVR2", "blip/nlvr_eval", _accuracy(val=82.48, test=83.25)),
    )),
    5: ("CLIP ViT-L/14, 336 px, without training", (
        Line("COCO", "clip/retrieval_coco_eval", _recall((57.2, 80.5, 87.8), (36.5, 60.8, 71.0))),
        Line("Flickr30k", "clip/retrieval_flickr_eval", _recall((86.5, 98.0, 99.1), (67.0, 88.9, 93.3))),
        Line("ImageNet", "clip/classification_imagenet_eval", _accuracy(val=76.5)),
    )),
    6: ("ALPRO", (
        Line("MSRVTT", "alpro/retrieval_msrvtt_eval", _recall((33.2, 60.5, 71.7), (33.8, 61.4, 72.7), "TR VR")),
        Line("DiDeMo", "alpro/retrieval_didemo_eval", _recall((38.8, 66.4, 76.8), (36.6, 67.5, 77.9), "TR VR")),
        Line("MSRVTT-QA", "alpro/qa_msrvtt_eval", _accuracy(test=42.1)),
        Line("MSVD-QA", "alpro/qa_msvd_eval", _accuracy(test=46.0)),
    )),
    7: ("knowledge-based questions, and dialogue about videos", (
        Line("OK-VQA, ALBEF", "albef/vqa_okvqa", (Figure("test", 54.7, "overall_percent"),),
             why_not="no weights were published; train with this recipe"),
        Line("OK-VQA, BLIP", "blip/vqa_okvqa_eval", (Figure("test", 55.4, "overall_percent"),)),
        Line("A-OKVQA, ALBEF", "albef/vqa_aokvqa", (Figure("val", 54.5, "overall_percent", split="val"),),
             why_not="no weights were published; train with this recipe"),
        Line("A-OKVQA, BLIP", "blip/vqa_aokvqa_eval",
             (Figure("val", 56.2, "overall_percent", split="val"), Figure("test", 50.1))),
        Line("AVSD, VGD-GPT", "gpt/dialogue_avsd_eval",
             (Figure("BLEU-4", 0.465, "Bleu_4"), Figure("CIDEr", 1.315, "CIDEr")),
             why_not="no usable weights were published; train with gpt/dialogue_avsd"),
    )),
}  # fmt: skip


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
        typer.Option(min=3, max=7, help="3 ALBEF, 4 BLIP, 5 CLIP, 6 ALPRO, 7 the others; default: all."),
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
    for number in [table] if table is not None else list(TABLES):
        title, lines = TABLES[number]
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
    from pathlib import Path

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
