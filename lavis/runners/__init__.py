"""Training and evaluation. In a notebook:

from lavis.runners import train
result = train("blip/caption_shapes", options=["run.max_epoch=1"])
result = train(model=model, datasets={"train": a, "val": b}, task="captioning", max_epoch=3)
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavis.common import moved

if TYPE_CHECKING:
    from torch import nn

    from lavis.common.config import Config
    from lavis.runners.runner import Result, Runner

logger = logging.getLogger(__name__)

_NAMES = ("Result", "RunConfig", "Runner", "RunnerBase", "RunnerIter", "RunnerIters")

__all__ = [*_NAMES, "build", "build_datasets", "evaluate", "train"]


def _own(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module("lavis.runners.runner"), name)
    raise AttributeError(f"module 'lavis.runners' has no attribute {name!r}")


__getattr__ = moved.names_of(__name__, _own)


Options = Sequence[str] | Mapping[str, Any] | None


def build_datasets(config: Config) -> dict[str, dict[str, Any]]:
    """The data sets of a configuration: of each one, the splits that `run` uses.

    Processors (train, eval) that a data set's section leaves out are those of the model's preset; one that it gives
    without a name is the preset's with other settings.

    Returns:
        {name: {split: data set}}.

    Raises:
        ValueError: there is no data set, a key is unknown, or no data set has a split that `run` names.
        FileNotFoundError: annotations or the folder of pictures are missing.
    """
    from lavis.common.registry import registry
    from lavis.datasets.builder_classes import BaseDatasetBuilder
    from lavis.datasets.builders import build_datasets as build_one
    from lavis.datasets.builders import make_plan

    run = config.run
    training = [] if run.evaluate else run.train_splits
    wanted = list(dict.fromkeys([*training, *run.evaluation_splits]))
    if not config.datasets:
        raise ValueError("section datasets is empty; name at least one data set")
    built: dict[str, dict[str, Any]] = {}
    found: set[str] = set()
    for name, section in config.datasets.items():
        section = dict(section)
        for key, sides in preset_processors(config).items():
            given = section.get(key) or {}
            if isinstance(given, Mapping):  # else the data set says what is wrong with it
                section[key] = {**sides, **{side: _over(sides.get(side), v) for side, v in given.items()}}
        dataset_class = registry.get_dataset_class(name)
        if issubclass(dataset_class, BaseDatasetBuilder):
            there = build_one(name, section)
            found.update(there)
            built[name] = {split: there[split] for split in wanted if split in there}
            continue
        known = dataset_class.split_names(make_plan(dataset_class, name, section))
        found.update(known)
        built[name] = build_one(name, section, [split for split in wanted if split in known])
        for dataset in built[name].values():
            dataset.check()
    for split in wanted:
        # a recipe may ask for val or test of data that have only the other one, as the original's of OK-VQA do
        usual = split in ("val", "test") and split not in training and found & set(run.evaluation_splits)
        if split not in found and not usual:
            raise ValueError(f"run names the split {split!r}; there are {', '.join(sorted(found))}")
    return built


def _over(preset: Mapping[str, Any] | None, given: Any) -> Any:
    """What a section says of a processor, over the preset's where it names none."""
    return {**preset, **given} if preset and isinstance(given, Mapping) and "name" not in given else given


def preset_processors(config: Config) -> dict[str, dict[str, Any]]:
    """`vis_processor` and `text_processor` of the model's preset, at the configured image size."""
    from lavis.common.registry import registry

    if "arch" not in config.model:
        return {}
    model_class = registry.get_model_class(config.model["arch"])
    if not hasattr(model_class, "preset") or config.model.get("model_type") not in model_class.PRESETS:
        return {}  # that a type is not known is said when the model is built
    preset = model_class.preset(config.model["model_type"])
    size = config.model.get("image_size", getattr(preset.config, "image_size", None))
    sized = {"image_size": size} if size else {}
    return {
        "vis_processor": {side: {**sized, **values} for side, values in preset.vis_processor.items()},
        "text_processor": {side: dict(values) for side, values in preset.text_processor.items()},
    }


def build(
    config: Config,
    *,
    model: nn.Module | None = None,
    datasets: Mapping[str, Any] | None = None,
    task: Any = None,
    job_id: str | None = None,
) -> Runner:
    """Task, data sets, model and runner of a configuration; whatever can be wrong is checked first.

    Args:
        config: from `Config.load`. model, datasets, task: objects to use instead of building them;
            datasets as {split: data set} or {name: {split: data set}}.
        job_id: name of the run's folder.

    Raises:
        ValueError, FileNotFoundError: as the parts do.
    """
    import torch

    from lavis.common import dist
    from lavis.common.registry import registry
    from lavis.models.folders import origin_of
    from lavis.runners.settings import check_training
    from lavis.tasks import setup_task

    run = config.run
    dist.init_from_env(backend="gloo" if run.device == "cpu" else None)
    if not run.evaluate:
        check_training(run)
    runner_class = registry.get_runner_class(run.runner)
    task = setup_task(config) if task is None else task
    if model is None and "arch" not in config.model:
        raise ValueError(f"model.arch is missing; known: {', '.join(registry.list_models())}")
    built = task.build_datasets(config) if datasets is None else by_name(datasets)
    if model is None:
        torch.manual_seed(run.seed)  # starting weights are part of what the seed decides
        model = task.build_model(_without_weights(config, built, job_id))
        source_of = getattr(type(model), "source_of", None)
        if source_of is not None:  # also where a run is continued, which brings its own weights
            model.origin = origin_of(source_of(config.model)[1])
    runner: Runner = runner_class(cfg=config, task=task, model=model, datasets=built, job_id=job_id)
    return runner


def _without_weights(config: Config, datasets: Mapping[str, Any], job_id: str | None) -> Config:
    """The configuration to build a model from: a run that is continued brings its own weights."""
    from lavis.common import device as devices
    from lavis.common.registry import registry
    from lavis.runners.folder import resume_source
    from lavis.runners.provenance import Recipe, recipe_of

    def recipe() -> Recipe:
        precision = devices.pick_precision(devices.pick_device(config.run.device), config.run.mixed_precision)
        return recipe_of(config, datasets, precision, None)

    ours = hasattr(registry.get_model_class(config.model["arch"]), "preset")
    if config.model.get("lora") is not None:
        return config  # a run of adapters brings these alone
    if not ours or resume_source(config.run, job_id, recipe, config) is None:
        return config
    changed = copy.copy(config)
    sources = ("weights", "pretrained", "init")
    changed.model = {k: v for k, v in config.model.items() if k not in sources} | {"weights": "none"}
    return changed


def by_name(datasets: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{split: data set} as {"data": {split: data set}}; {name: {split: data set}} as it is."""
    if all(isinstance(v, Mapping) for v in datasets.values()):
        return {name: dict(splits) for name, splits in datasets.items()}
    return {"data": dict(datasets)}


def _configure(
    recipe: Any,
    model: Any,
    datasets: Mapping[str, Any] | None,
    task: Any,
    options: Options,
    run: Mapping[str, Any],
) -> tuple[Config, nn.Module | None, Any]:
    """The configuration of a call, the model if it is an object, and the task if it is one."""
    from lavis.common.config import Config, parse_options

    layers: dict[str, Any] = {f"run.{k}": v for k, v in run.items()}
    task_object = None
    if isinstance(task, str):
        layers["run.task"] = task
    elif task is not None:
        task_object = task
    if isinstance(model, str):
        model = {"arch": model}
    if isinstance(model, Mapping):
        layers.update({f"model.{k}": v for k, v in model.items()})
        model = None
    if datasets is not None:
        splits = {s for part in by_name(datasets).values() for s in part}
        for key, split in (("train_splits", "train"), ("valid_splits", "val"), ("test_splits", "test")):
            if recipe is None and split in splits:
                layers.setdefault(f"run.{key}", [split])
    layers.update(parse_options(options))
    if recipe is None:
        return Config.from_dict({}, layers), model, task_object
    if isinstance(recipe, Config):
        return Config.from_dict(recipe.to_dict(), layers), model, task_object
    if isinstance(recipe, Mapping):
        return Config.from_dict(recipe, layers), model, task_object
    return Config.load(recipe, layers), model, task_object


def train(
    recipe: str | Path | Sequence[str | Path] | Mapping[str, Any] | Config | None = None,
    *,
    model: nn.Module | str | Mapping[str, Any] | None = None,
    datasets: Mapping[str, Any] | None = None,
    task: Any = None,
    options: Options = None,
    **run: Any,
) -> Result:
    """Train a model.

    Args:
        recipe: name or path of a recipe, several, a mapping with its sections, or a `Config`. May be left
            out when model, datasets and task are given.
        model: a model instance, its arch, or keys of the section `model`.
        datasets: {split: data set} or {name: {split: data set}}, used as they are. Without a recipe the
            splits train, val and test are used where they exist.
        task: name or instance of a task.
        options: as on the command line, such as ["run.max_epoch=1"]; they win over everything else.
        **run: keys of the section `run`.

    Returns:
        `lavis.runners.Result`: history, best, metrics, paths.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the configuration, before training starts.
    """
    config, given, task = _configure(recipe, model, datasets, task, options, {"evaluate": False, **run})
    return build(config, model=given, datasets=datasets, task=task).train()


def evaluate(
    recipe: str | Path | Sequence[str | Path] | Mapping[str, Any] | Config | None = None,
    *,
    model: nn.Module | str | Mapping[str, Any] | None = None,
    datasets: Mapping[str, Any] | None = None,
    task: Any = None,
    options: Options = None,
    splits: Sequence[str] | None = None,
    **run: Any,
) -> dict[str, dict[str, float]]:
    """Evaluate a model; arguments as for `train`.

    Args:
        splits: what to evaluate on; None takes `run.test_splits`.

    Returns:
        {split: metrics}.
    """
    if splits is not None:
        run["test_splits"] = list(splits)
    config, given, task = _configure(recipe, model, datasets, task, options, {"evaluate": True, **run})
    return build(config, model=given, datasets=datasets, task=task).evaluate()
