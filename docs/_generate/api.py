"""The API reference: which names are public, by room. Their text is in their docstrings."""

from __future__ import annotations

import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from _generate.zoo import zoo

INDEX = """
# Python interface

The names on these pages are public: they keep their meaning between minor versions. Names that begin with an
underscore, and `lavis.nn` (the building blocks), are not.

`import lavis` imports no PyTorch and takes a few hundredths of a second; each name is imported when it is first
used. Shapes in docstrings: B batch (pictures), G texts per picture, R = B·G texts, T tokens, N image tokens, D
width, E width of a projected feature.

```{toctree}
:maxdepth: 1

%s
```
"""

ROOMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "models": (
        "Models: load, save, extend",
        (
            "lavis.models.load_model",
            "lavis.models.load_model_and_preprocess",
            "lavis.models.load_preprocess",
            "lavis.models.build_model",
            "lavis.models.ModelZoo",
            "lavis.models.base.BaseModel",
            "lavis.models.configs.Preset",
            "lavis.models.base.Output",
            "lavis.models.parts.Part",
            "lavis.models.parts.building",
            "lavis.models.parts.as_input_of",
            "lavis.nn.lora.LoraConfig",
            "lavis.nn.lora.add_lora",
            "lavis.nn.lora.merge_lora",
            "lavis.nn.lora.remove_lora",
        ),
    ),
    "model_outputs": (
        "What models return",
        (
            "lavis.models.outputs.LossOutput",
            "lavis.models.outputs.Features",
            "lavis.models.outputs.Texts",
            "lavis.models.outputs.IntermediateOutput",
            "lavis.models.outputs.DecoderOutput",
            "lavis.models.outputs.Similarity",
        ),
    ),
    "abilities": (
        "What a model can do",
        (
            "lavis.inference.protocols.Writes",
            "lavis.inference.protocols.Answers",
            "lavis.inference.protocols.AnswersFromList",
            "lavis.inference.protocols.Chats",
            "lavis.inference.protocols.EmbedsBoth",
            "lavis.inference.protocols.Matches",
            "lavis.inference.protocols.EmbedsPairs",
            "lavis.inference.protocols.EmbedsQueries",
            "lavis.inference.protocols.Explains",
            "lavis.inference.protocols.Classifies",
            "lavis.inference.abilities.abilities",
            "lavis.inference.abilities.models_with",
            "lavis.inference.abilities.require",
            "lavis.models.outputs.Matched",
            "lavis.inference.abilities.default",
            "lavis.inference.abilities.examples",
        ),
    ),
    "datasets": (
        "Data sets",
        (
            "lavis.datasets.builders.load_dataset",
            "lavis.datasets.builders.build_datasets",
            "lavis.datasets.builders.load_dataset_config",
            "lavis.datasets.builders.DatasetZoo",
            "lavis.datasets.base.Dataset",
            "lavis.datasets.captioning.CaptionDataset",
            "lavis.datasets.captioning.CaptionOptions",
            "lavis.datasets.vqa.VQADataset",
            "lavis.datasets.vqa.VQAOptions",
            "lavis.datasets.retrieval.RetrievalDataset",
            "lavis.datasets.sources.Source",
            "lavis.datasets.sources.Archive",
            "lavis.datasets.sources.Links",
            "lavis.datasets.collate.collate",
        ),
    ),
    "processors": ("Processors", ()),
    "tasks": (
        "Tasks",
        ("lavis.tasks.setup_task", "lavis.tasks.base.Task"),
    ),
    "metrics": (
        "Metrics",
        (
            "lavis.metrics.caption_scores",
            "lavis.metrics.caption_scores_each",
            "lavis.metrics.tokenize",
            "lavis.metrics.vqa_accuracy",
            "lavis.metrics.aokvqa_accuracy",
            "lavis.metrics.exact_match_percent",
            "lavis.metrics.meteor",
            "lavis.metrics.spice",
            "lavis.metrics.retrieval.retrieval_scores",
            "lavis.metrics.dialogue.dialogue_scores",
        ),
    ),
    "runners": (
        "Training and evaluation",
        (
            "lavis.runners.train",
            "lavis.runners.evaluate",
            "lavis.runners.build",
            "lavis.runners.build_datasets",
            "lavis.runners.Result",
            "lavis.runners.Runner",
            "lavis.runners.RunConfig",
            "lavis.common.parameters.ParameterRule",
            "lavis.common.parameters.layer_decay",
        ),
    ),
    "common": (
        "Registry, configuration, files, maps",
        (
            "lavis.common.registry.Registry",
            "lavis.common.config.Config",
            "lavis.common.config.parse_options",
            "lavis.common.config.find_recipe",
            "lavis.common.config.recipe_names",
            "lavis.common.hub.fetch",
            "lavis.common.hub.cache_root",
            "lavis.common.hub.is_offline",
            "lavis.common.hub.mirrored",
            "lavis.common.hub.place_of",
            "lavis.common.device.pick_device",
            "lavis.common.device.pick_precision",
            "lavis.common.device.autocast",
            "lavis.common.gradcam.attention_maps",
            "lavis.common.gradcam.gradcam",
            "lavis.common.gradcam.patch_grid",
            "lavis.common.gradcam.getAttMap",
        ),
    ),
}

# modules that docstrings name; here is where such a name leads
MODULES = {
    "common": tuple(
        f"lavis.common.{m}"
        for m in ("registry", "config", "hub", "device", "dist", "optims", "gradcam", "files")
    ),
    "processors": ("lavis.processors", "lavis.processors.dialogue", "lavis.processors.video"),
    "datasets": ("lavis.datasets.builders", "lavis.datasets.base", "lavis.datasets.collate"),
    "models": ("lavis.models", "lavis.models.base", "lavis.models.parts", "lavis.nn.lora"),
    "metrics": ("lavis.metrics",),
    "tasks": ("lavis.tasks",),
    "runners": ("lavis.runners",),
    "inference": ("lavis.inference",),
}

OPENINGS = {
    "models": "The same functions answer to `lavis.load_model` and so on. `lavis.models.model_zoo` is the "
    "only `ModelZoo`.",
    "abilities": "Commands, the demo and the guides ask by these protocols and know no family of models: see "
    "[extend](../../guides/extend.md#a-model-for-every-command).",
    "datasets": "`lavis.datasets.builders.dataset_zoo` is the only `DatasetZoo`. Each data set's own options are "
    "on its "
    "[card](../datasets/index.md).",
    "processors": "A processor is made by its registered name, "
    '`load_processor("blip_image_eval", {"image_size": 384})`. Called with a random stream, '
    "`processor(item, rng=stream)`, it is a function of both.",
    "tasks": "Tasks are named in a recipe by `run.task`; their keys are on the page of [recipes](../recipes.md).",
    "metrics": "Pure functions of predictions and references, without PyTorch or a model.",
    "runners": "The keys of `run` are on the page of [recipes](../recipes.md).",
    "common": "`lavis.common.registry.registry` is the only `Registry`.",
}


def public() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Rooms to their titles and public names, those that are registered by name included."""
    from lavis.common.registry import registry

    rooms = dict(ROOMS)
    title, names = rooms["processors"]
    classes = {registry.get_processor_class(n) for n in registry.list_processors()}
    rooms["processors"] = (title, ("lavis.processors.load_processor", *sorted(map(_path, classes))))
    title, names = rooms["tasks"]
    tasks = {registry.get_task_class(n) for n in registry.list_tasks()}
    rooms["tasks"] = (title, (*names, *sorted(map(_path, tasks))))
    classes = {_path(cls) for cls in zoo().values()}
    rooms["model_classes"] = ("Model classes", tuple(sorted(classes)))
    if find_spec("lavis.inference") is not None:
        rooms["inference"] = _inference()
    return rooms


def _inference() -> tuple[str, tuple[str, ...]]:
    """What one does with a loaded model: everything that `lavis.inference` names."""
    module = import_module("lavis.inference")
    names = sorted(_path(getattr(module, n)) for n in module.__all__ if callable(getattr(module, n)))
    return "Inference: caption, match, search, explain", tuple(names)


def _path(obj: Any) -> str:
    return f"{obj.__module__}.{obj.__qualname__}"


def pages() -> dict[str, str]:
    rooms = public()
    out = {f"reference/api/{room}": _page(room, *rooms[room]) for room in rooms}
    order = ["models", "model_classes", "model_outputs", "inference", "abilities", "datasets", "processors", "tasks",
             "metrics", "runners", "common"]  # fmt: skip
    out["reference/api/index"] = INDEX % "\n".join(room for room in order if room in rooms)
    return out


def _page(room: str, title: str, names: tuple[str, ...]) -> str:
    parts = [f"# {title}\n"]
    if modules := MODULES.get(room):
        parts.append("```{eval-rst}\n" + "\n".join(f".. py:module:: {m}" for m in modules) + "\n```\n")
    if room in OPENINGS:
        parts.append(OPENINGS[room] + "\n")
    for name in names:
        module, _, attribute = name.rpartition(".")
        parts.append(f"```{{eval-rst}}\n{_directive(getattr(import_module(module), attribute), name)}\n```\n")
    return "\n".join(parts)


def _directive(obj: Any, name: str) -> str:
    if not inspect.isclass(obj):
        return f".. autofunction:: {name}"
    options = "   :members:\n   :show-inheritance:"
    return f".. autoclass:: {name}\n{options}"
