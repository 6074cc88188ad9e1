"""`lavis train` and `lavis evaluate`, and the same as the scripts train.py and evaluate.py."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from lavis.cli import common, own_data
from lavis.cli import options as common_options

Recipes = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE...]",
        help="A packaged recipe, <family>/<task>_<data>, or YAML files, later ones over earlier ones.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "--options",
        metavar="KEY=VALUE...",
        help="Keys to change, such as run.max_epoch=5; --options takes several at once.",
    ),
]
Task = Annotated[
    str | None, typer.Option(help="captioning, vqa, retrieval or classification, for data of your own.")
]
Data = Annotated[str | None, typer.Option(help="Your table (JSONL, JSON, CSV, TSV); see `lavis card own`.")]
Images = Annotated[str | None, typer.Option(help="The folder that the table's pictures or clips lie in.")]
Model = Annotated[str | None, typer.Option(help="<name>/<type> or the folder of a checkpoint to start from.")]
Parts = common_options.Parts
Out = Annotated[str | None, typer.Option(help="The folder for runs (default: output).")]
Device = Annotated[str | None, common.DEVICE]
Precision = Annotated[str | None, common.PRECISION]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples at a time, per process.")]


def register(app: typer.Typer) -> None:
    app.command("train")(train)
    app.command("evaluate")(evaluate)


def train(
    recipe: Recipes = None,
    options: Options = None,
    task: Task = None,
    data: Data = None,
    images: Images = None,
    val: Annotated[str | None, typer.Option(help="A table to validate on (default: 5% held out).")] = None,
    test: Annotated[str | None, typer.Option(help="A table to test on at the end.")] = None,
    model: Model = None,
    part: Parts = None,
    out: Out = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Minutes of the whole run, validation included; it is as long as fits."),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="The peak learning rate (own data: 3e-4 for packaged weights, 1e-5 for published, 1e-3 for random)."
        ),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = None,
    precision: Precision = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the latest run of this recipe in the output folder, if there is one."
        ),
    ] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-changed", metavar="KEY", help="With --resume: a key that may differ. Repeatable."
        ),
    ] = None,
) -> None:
    """Train from a recipe, or on data of your own without one.

    \b
    Examples:
      lavis train my_recipe.yaml --options run.max_iters=500 run.batch_size_train=16
      lavis train my_recipe.yaml --out runs/ --resume
      lavis train --task captioning --data train.jsonl --images photos/ --epochs 5
      lavis train --task vqa --data qa.csv --val val.csv --model NAME/TYPE --minutes 60
      lavis train --task classification --data labels.csv --images photos/
      torchrun --nproc_per_node=8 -m lavis train my_recipe.yaml
    """
    from lavis.common.config import parse_options

    keys: dict[str, Any] = {
        "run.output_dir": out, "run.device": device, "run.precision": precision, "run.init_lr": lr,
        "run.max_minutes": minutes, "run.batch_size_train": batch_size, "run.max_epoch": epochs,
        "run.resume_ckpt_path": "auto" if resume else None, "run.allow_changed": allow_changed or None,
    }  # fmt: skip
    keys = {k: v for k, v in keys.items() if v is not None} | _parts(part)
    notes: list[str] = []
    if data is None:
        _refuse_without_data({"--task": task, "--images": images, "--val": val, "--test": test})
        if epochs is not None:  # in place of a length in iterations
            keys.update({"run.max_iters": None, "run.iters_per_inner_epoch": None})
        content = None
    else:
        files = _at_home({"train": data, "val": val, "test": test, "images": images})
        content = own_data.recipe(task, files, model, notes)
        # with --minutes the run is as long as the time allows
        if minutes is None and "run.max_iters" not in parse_options(list(options or [])):
            keys.setdefault("run.max_epoch", own_data.EPOCHS)
    config = _config(recipe, content, options, keys, model)
    _train(config if content is None else own_data.fitted(config, notes), notes)


def evaluate(
    recipe: Recipes = None,
    options: Options = None,
    task: Task = None,
    data: Data = None,
    images: Images = None,
    model: Model = None,
    part: Parts = None,
    out: Out = None,
    batch_size: BatchSize = None,
    device: Device = None,
    precision: Precision = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Also write a page per split: metrics with intervals, curves, right and wrong cases.",
        ),
    ] = False,
) -> None:
    """Evaluate a model on the test splits of a recipe, or on data of your own. Prints the metrics as JSON.

    The predictions are written to the folder result of the run. A table without captions or answers is
    predicted and not scored.

    \b
    Examples:
      lavis evaluate my_recipe.yaml --model output/20260101_120000/checkpoint_best
      lavis evaluate my_recipe.yaml --options run.test_splits=[test] run.batch_size_eval=64
      lavis evaluate --task captioning --data test.jsonl --images photos/ --model NAME/TYPE
      lavis evaluate my_recipe.yaml --report
    """
    keys: dict[str, Any] = {
        "run.output_dir": out, "run.device": device, "run.precision": precision,
        "run.batch_size_eval": batch_size,
    }  # fmt: skip
    keys = {k: v for k, v in keys.items() if v is not None} | _parts(part) | {"run.evaluate": True}
    if report:
        keys["run.report"] = True
    notes: list[str] = []
    content = None
    if data is None:
        _refuse_without_data({"--task": task, "--images": images})
    else:
        files = _at_home({"data": data, "images": images})
        split = own_data.part_to_evaluate(str(files["data"]))
        content = own_data.recipe(task, {split: files["data"], "images": files["images"]}, model, notes)
        content["run"].update(test_splits=[split], valid_splits=[])
    _evaluate(_config(recipe, content, options, keys, model), notes)


# ---------------------------------------------------------------- configurations
def _parts(given: list[str] | None) -> dict[str, Any]:
    """The values of --part as keys of a recipe."""
    parts = common.read_parts(given) or {}
    return {f"model.parts.{name}.{key}": value for name, each in parts.items() for key, value in each.items()}


def _refuse_without_data(given: dict[str, Any]) -> None:
    stray = [name for name, value in given.items() if value is not None]
    if stray:
        raise ValueError(
            f"{' and '.join(stray)} belong to data of your own: add --data <table>, or give a recipe's name "
            "and change it with --options"
        )


def _at_home(paths: dict[str, str | None]) -> dict[str, str | None]:
    """Paths with ~ as the home folder: a shell leaves --data=~/x as it is."""
    from lavis.common.config import home

    return {name: None if path is None else home(path) for name, path in paths.items()}


def _config(
    recipe: Sequence[str] | None,
    content: dict[str, Any] | None,
    options: Sequence[str] | None,
    keys: dict[str, Any],
    model: str | None,
) -> Any:
    """The configuration of recipes or of `content`, the flags' keys over it, the options over all."""
    from lavis.common.config import Config, parse_options, recipe_names

    layers = dict(keys)
    if content is None and model is not None:
        section = own_data.model_section(model)
        if keys.get("run.evaluate"):  # a recipe for training may say to start from others, or from none
            section = {"weights": "finetuned", "pretrained": None, "init": None, **section}
        layers.update({f"model.{k}": v for k, v in section.items()})
    layers.update(parse_options(list(options or [])))
    if content is not None:
        if recipe:
            raise ValueError(f"give a recipe ({' '.join(recipe)}) or --data, not both")
        return Config.from_dict(content, layers)
    if not recipe:
        raise ValueError(
            f"which recipe? Give a YAML file or one of: {', '.join(recipe_names())}. "
            "For data of your own: --task captioning --data train.jsonl --images <folder>"
        )
    return Config.load(list(recipe), layers)


# ---------------------------------------------------------------- running
def _built(config: Any, notes: Sequence[str]) -> Any:
    """The runner, once nothing is found wrong, and the notes."""
    from lavis.runners import build

    runner = build(config)
    for text in notes:
        common.note(text)
    return runner


def _train(config: Any, notes: Sequence[str]) -> None:
    from lavis.common import dist

    result = _built(config, notes).train()
    if dist.is_main():
        summary = {
            "output_dir": str(result.output_dir),
            "iterations": result.iterations,
            "stopped": result.stopped,
            "best": result.best,
            "metrics": result.metrics,
            "checkpoint_best": result.checkpoint_best and str(result.checkpoint_best),
            "checkpoint_last": result.checkpoint_last and str(result.checkpoint_last),
        }
        print(json.dumps(summary, indent=2, ensure_ascii=False))


def _evaluate(config: Any, notes: Sequence[str]) -> None:
    from lavis.common import dist

    runner = _built(config, notes)
    metrics = runner.evaluate()
    if dist.is_main():
        if config.run.report:
            for split in metrics:
                common.note(f"report: {runner.output_dir / f'report_{split}.html'}")
        print(json.dumps(metrics, indent=2, ensure_ascii=False))


def script(kind: str, arguments: Sequence[str] | None = None) -> int:
    """`python train.py --cfg-path FILE --options key=value …`, as in the paper's repository.

    Args:
        kind: "train" or "evaluate".
        arguments: the command line; None takes `sys.argv`.

    Returns:
        The exit code.
    """
    from lavis.cli.main import main

    args = list(sys.argv[1:] if arguments is None else arguments)
    out: list[str] = []
    for item in args:
        if item.startswith("--cfg-path="):
            out.append(item.removeprefix("--cfg-path="))
        elif item != "--cfg-path":
            out.append(item)
    return main([kind, *out])
