"""The recipe of a run on data of one's own: which model it starts from, and defaults that suit fine-tuning.

The recipes in lavis/recipes keep the settings of the models that they reproduce; nothing here touches them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EPOCHS = 10
# Learning rates by what the weights were at bottom, whether the model was named or not; a checkpoint's folder says
# what its own training began with (`lavis.models.folders.origin_of`).
RATES = {"packaged": 3e-4, "published": 1e-5, "random": 1e-3}
WARMUP = 20  # steps, at most half a pass over the data
DEFAULTS: dict[str, Any] = {
    "lr_sched": "linear_warmup_cosine_per_step_lr",
    "warmup_lr": 0.0,
    "max_grad_norm": 1.0,
    "stuck_after": 200,
}
# Of contrast, for packaged weights: their own 0.007 suits what they were trained on and nothing else.
TEMPERATURE = 0.07
_TEXTS = 20_000  # rows whose texts are looked at for the choice of a vocabulary


def recipe(
    task: str | None, files: dict[str, str | None], model: str | None, notes: list[str]
) -> dict[str, Any]:
    """The sections of a run on a table of one's own.

    What the person should know is added to `notes`, which are printed once nothing is wrong.
    """
    from lavis.datasets.own_table import TASKS, media_of, task_of
    from lavis.datasets.tables import read_table

    if task is not None and task not in TASKS:
        raise ValueError(f"--task is {task!r}; expected {', '.join(TASKS)}")
    split, table = next((s, files[s]) for s in ("train", "val", "test") if files.get(s) is not None)
    assert table is not None
    columns = sorted({name for _, row in read_table(table) for name in row})
    found = task_of(table, columns, task, complete=split != "test")
    section: dict[str, Any] = {k: v for k, v in files.items() if v is not None}
    name = "multimodal_classification" if found == "classification" else found
    run: dict[str, Any] = {"task": name, "train_splits": ["train"], "valid_splits": ["val"]}
    if "test" in section:
        run["test_splits"] = ["test"]
    media = media_of(table, columns)
    if model is None:
        from lavis.inference.abilities import default, needed

        model, real = needed(found, media), default(found, media, "published")
        other = (
            f"; for {'photographs' if media == 'image' else 'real clips'} add --model {real}" if real else ""
        )
        notes.append(f"starting from the small packaged model {model} (64 px, made for drawings){other}")
    own = {"task": found, **section}
    chosen = model_section(model)
    if found == "vqa" and _only_writes(chosen["arch"]):
        run["inference_method"] = "generate"
    if found == "classification":
        if "weights" not in chosen:
            chosen |= _number_of_classes(chosen, own)
        elif split == "train":
            chosen |= _new_head(chosen, own, notes)
    return {"model": chosen, "datasets": {"own": own}, "run": run}


def _only_writes(arch: str) -> bool:
    """Whether answers are better written: of a language model, which a table gives no answers to choose from."""
    from lavis.common.registry import registry
    from lavis.inference.protocols import Prompted, lacking

    return not lacking(registry.get_model_class(arch), Prompted)


def _number_of_classes(model: dict[str, Any], own: dict[str, Any]) -> dict[str, int]:
    """`num_classes` for a head that is trained; nothing for models that compare with names of classes."""
    from lavis.common.registry import registry
    from lavis.datasets.builders import make_plan
    from lavis.datasets.own import OwnDataset, choices

    preset = registry.get_model_class(model["arch"]).preset(model["model_type"])
    if not hasattr(preset.config, "num_classes"):
        return {}
    return {"num_classes": len(choices(make_plan(OwnDataset, "own", own).options, "classification"))}


def _new_head(model: dict[str, Any], own: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """What a checkpoint's section `model` needs to be trained for the table's classes: nothing where it knows them all,
    else a fresh head, which is said."""
    from lavis.datasets.builders import make_plan
    from lavis.datasets.own import OwnDataset, choices

    if "num_classes" not in model:
        return {}
    wanted = choices(make_plan(OwnDataset, "own", own).options, "classification")
    names = model.get("classnames")
    if len(wanted) == model["num_classes"] if names is None else set(wanted) <= set(names):
        return {}
    there = (
        f"{model['num_classes']} classes without names"
        if names is None
        else f"the classes {', '.join(names)}"
    )
    notes.append(
        f"{model['weights']} tells {there} apart, and the table has others, so a new head is trained"
    )
    fresh = {"weights": "pretrained", "pretrained": model["weights"]}
    return {**fresh, "num_classes": len(wanted), "classnames": None}


def part_to_evaluate(table: str) -> str:
    """ "test", which may lack captions and answers; "val" where the table's column `split` knows no test."""
    from lavis.datasets.own_table import split_of
    from lavis.datasets.tables import read_table

    parts = [split_of(row) for _, row in read_table(table)]
    return "val" if "val" in parts and "test" not in parts else "test"


def fitted(config: Any, notes: list[str]) -> Any:
    """The configuration for these data and these weights. What was asked for stays; what is chosen here is said.

    Chosen are the learning rate by the kind of weights, the temperature of packaged ones, and a vocabulary that has
    the texts' words. What cannot be had is left out: validation where no images are held out, and batches larger
    than the training part.
    """
    from lavis.common.config import Config
    from lavis.datasets.builders import make_plan
    from lavis.datasets.own import OwnDataset
    from lavis.datasets.own_table import rows_of

    options = make_plan(OwnDataset, "own", config.datasets["own"]).options
    rows = rows_of("train", options)[1]
    changes = _for_weights(config) | _for_texts(config, [row for _, row in rows], notes)
    changes |= {f"run.{k}": v for k, v in DEFAULTS.items() if f"run.{k}" not in config.sources}
    if config.sources["run.valid_splits"] == "config" and not rows_of("val", options)[1]:
        notes.append("no picture is held out, so there is no validation and no best checkpoint (--val FILE)")
        changes["run.valid_splits"] = []
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    largest = len(rows) // processes
    if "run.batch_size_train" not in config.sources and 0 < largest < config.run.batch_size_train:
        notes.append(f"there are few training samples, so a batch has only {largest} (--batch-size)")
        changes["run.batch_size_train"] = largest
    if "run.warmup_steps" not in config.sources:
        batch = changes.get("run.batch_size_train", config.run.batch_size_train)
        # not by the run's length, which may change when the run is resumed
        changes["run.warmup_steps"] = min(WARMUP, len(rows) // (batch * processes) // 2)
    return Config.from_dict(config.to_dict(), changes)


def _for_weights(config: Any) -> dict[str, Any]:
    """Rate and temperature by what the weights are."""
    from lavis.common.registry import registry
    from lavis.models.base import BaseModel
    from lavis.models.folders import origin_of

    model_class = registry.get_model_class(config.model["arch"])
    if not issubclass(model_class, BaseModel):  # a plug-in's own kind of model
        return {} if "run.init_lr" in config.sources else {"run.init_lr": RATES["random"]}
    origin = origin_of(model_class.source_of(config.model)[1])
    changes: dict[str, Any] = {}
    if "run.init_lr" not in config.sources:
        changes["run.init_lr"] = RATES[origin]
    has_temperature = model_class.set_temperature is not BaseModel.set_temperature
    if origin == "packaged" and has_temperature and "temperature" not in config.model:
        changes["model.temperature"] = TEMPERATURE
    return changes


def _for_texts(config: Any, rows: list[dict[str, Any]], notes: list[str]) -> dict[str, Any]:
    """BERT's full vocabulary in place of a small one that splits the texts' words."""
    from lavis.common.registry import registry
    from lavis.models.tokenizer import BERT_VOCABULARY, Tokenizer
    from lavis.models.vision_text import VOCABULARIES
    from lavis.models.vocabulary import TOO_MANY_SPLIT, share_of_split_words

    model_class = registry.get_model_class(config.model["arch"])
    if config.sources.get("model.vocabulary") == "options" or not hasattr(model_class, "preset"):
        return {}
    preset = model_class.preset(config.model["model_type"]).config
    if not config.model.get("cover", getattr(preset, "cover", False)):  # no small WordPiece vocabulary
        return {}
    small = config.model.get("vocabulary", preset.vocabulary)
    tokenizer = Tokenizer(VOCABULARIES.get(small, small), extra=model_class.EXTRA_TOKENS, cover=True)
    every = max(1, len(rows) // _TEXTS)
    share = share_of_split_words(_texts(rows[::every]), tokenizer)
    if share <= TOO_MANY_SPLIT:
        return {}
    full = Tokenizer(BERT_VOCABULARY, extra=model_class.EXTRA_TOKENS)
    notes.append(
        f"the model's vocabulary splits {100 * share:.0f} % of your words; it gets BERT's, {len(full):,} pieces "
        "(model.vocabulary=tiny keeps it)"
    )
    return {"model.vocabulary": "bert", "model.cover": False, "model.text.vocab_size": len(full)}


def _texts(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Captions, questions and answers of a table's rows."""
    from lavis.datasets.own_table import ANSWER, TEXT, texts_of

    for row in rows:
        for name in (*TEXT, "question", *ANSWER):
            with contextlib.suppress(ValueError):  # the data set says where a cell is wrong
                yield from texts_of("", name, row.get(name))


def model_section(spec: str) -> dict[str, Any]:
    """The section `model` for `<name>/<type>` or a folder; a folder's own config is written out."""
    from lavis.inference import split_model
    from lavis.models.folders import read_description

    name, model_type = split_model(spec)
    folder = Path(name).expanduser()
    if model_type is None and folder.is_dir():
        description = read_description(folder)
        config = dict(description["config"])
        if config.get("vocabulary") == "vocab.txt":
            config["vocabulary"] = str(folder / "vocab.txt")
        named = {"arch": description["arch"], "model_type": description.get("model_type")}
        return {**named, **config, "weights": str(folder)}
    if model_type is None:
        from lavis.common.registry import registry

        types = list(registry.get_model_class(name).PRESETS)
        if len(types) != 1:
            raise ValueError(f"--model {name}: choose a type: {', '.join(f'{name}/{t}' for t in types)}")
        model_type = types[0]
    return {"arch": name, "model_type": model_type}
