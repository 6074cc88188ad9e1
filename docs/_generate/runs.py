"""Recipes: every key of the section `run`, the keys of each task, and the recipes that come with the package."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from _generate.markdown import escaped, first_sentence, keys, table

INTRODUCTION = """
# Recipes and their keys

A recipe is a YAML file with three sections. What it doesn't name has its default, and a key that isn't known is
an error that suggests the nearest one.

```yaml
model: { arch: blip_caption, model_type: tiny_shapes }
datasets:
  own: { train: train.jsonl, images: pictures }
run:
  task: captioning
  max_epoch: 3
  init_lr: 1.0e-4
  train_splits: [train]
  valid_splits: [val]
```

`lavis train my.yaml` trains, `lavis evaluate my.yaml` evaluates on `run.test_splits`. Several files may be
given, later ones over earlier ones, and `--options run.max_epoch=5 model.image_size=96` over all. The resolved
recipe, with every default, is written to the run's folder as `config.yaml`; training from that file repeats the
run. A value may name another key (`${run.seed}`) and nothing else: `${oc.env:HOME}` is refused, since what it
gives would be written there. `~/` at the beginning of a path is the home folder.

- **`model`**: `arch` and `model_type` (see the [model zoo](models.md)), `weights` (`finetuned`, `pretrained`,
  `none`, or a path, URL or Hugging Face id), `pretrained` (with `weights: pretrained`: a file in place of the
  preset's), `init` (parts from other models), and any key of the model's config.
- **`datasets`**: names of [data sets](datasets/index.md) to their settings; see [below](#keys-of-a-data-set).
- **`run`**: what follows.

"""

DATASET_KEYS = """
## Keys of a data set

Each section below `datasets` may hold the data set's own options (they are on its [card](datasets/index.md)), and:

`type`
: Which choice of annotation files, where a data set has several; `default` otherwise.

`build_info`
: Other places for files: `build_info.annotations.SPLIT.storage` (one file or several), `.url`, `.md5`, `.sha256`;
  `build_info.images.storage` (of clips `build_info.videos.storage`), the folder of the pictures.

`vis_processor`, `text_processor`
: `{train: {name: …, …}, eval: {name: …, …}}`; what is left out is that of the model's preset.

`on_error` : `raise` or `skip`: what to do about pictures that can't be read. In training the default is `skip`:
the next readable sample takes the place, it is counted, and listed in `skipped.txt`. In evaluation it is
`raise`.

"""


def pages() -> dict[str, str]:
    from lavis.common.registry import registry
    from lavis.runners.settings import RunConfig

    parts = [INTRODUCTION, "(run-keys)=\n## Keys of `run`\n\n", keys(RunConfig)]
    for module in ("lavis.common.optims", "lavis.common.device"):
        text = inspect.cleandoc(import_module(module).__doc__ or "")
        parts.append(f"\nFrom {{py:mod}}`{module}`:\n\n```text\n{text}\n```\n")
    for name in registry.list_tasks():
        task = registry.get_task_class(name)
        parts.append(f"\n## Keys of `run` for `task: {name}`\n\n{escaped(first_sentence(task.__doc__))}\n\n")
        parts.append(keys(task.Config) or "None of its own.\n")
        primary = task().primary
        if primary is not None:
            size = {"max": "largest", "min": "smallest"}[primary[1]]
            parts.append(f"\nThe best checkpoint is the one with the {size} `{primary[0]}`.\n")
    parts += [DATASET_KEYS, _packaged()]
    return {"reference/recipes": "\n".join(parts)}


def _packaged() -> str:
    rows = []
    for name, content, comment in packaged():
        model = content.get("model", {})
        rows.append(
            (
                f"`{name}`",
                f"`{model.get('arch')}` / `{model.get('model_type')}`",
                ", ".join(f"`{d}`" for d in content.get("datasets", {})),
                escaped(comment),
            )
        )
    head = ("recipe", "model", "data", "what it is")
    return f"## Packaged recipes\n\nGo by name: `lavis train blip/caption_shapes`.\n\n{table(head, rows)}"


def packaged() -> list[tuple[str, dict[str, Any], str]]:
    """Every packaged recipe: its name, content and the comment at its top."""
    from lavis.common.config import find_recipe, read_layers, recipe_names

    out = []
    for name in recipe_names():
        path = find_recipe(name)
        comment = []
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            comment.append(line.lstrip("# ").rstrip())
        content: dict[str, Any] = {}
        for _, layer in read_layers(name):
            for section, values in layer.items():
                content[section] = {**content.get(section, {}), **(values or {})}
        out.append((name, content, " ".join(comment)))
    return out
