"""Data-set cards, from the docstrings of the data sets' modules, and an index by task."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from typing import Any

from _generate.markdown import escaped, first_sentence, keys, linked, table

INTRODUCTION = """
# Data sets

`lavis datasets` lists them, `lavis card NAME` prints a card, `lavis download NAME` fetches what is missing,
`lavis data check NAME` says what is damaged. In Python:

```python
from lavis.datasets.builders import load_dataset

data = load_dataset("shapes_caption")  # {split: data set}
print(len(data["test"]), data["test"][0]["text_input"])
```

Your own table of pictures and texts is the data set [`own`](own.md); the guide to [fine-tuning on your own
data](../../guides/fine-tune.md) uses it. Data sets whose names begin with `shapes` are drawn on the fly with
exact ground truth and need no files. Of the published ones, layouts and counts were taken from what their
publishers and the original library state; their files could not be downloaded where this was written.

"""


def datasets() -> dict[str, type]:
    """Registered name to class."""
    from lavis.common.registry import registry

    return {name: registry.get_dataset_class(name) for name in registry.list_datasets()}


def by_card() -> dict[str, list[str]]:
    """The modules whose docstrings are cards, to the names that they register."""
    out: dict[str, list[str]] = {}
    for name, cls in datasets().items():
        out.setdefault(cls.__module__, []).append(name)
    return out


def page_of(module: str) -> str:
    """The page of a module's card."""
    return module.removeprefix("lavis.datasets").strip(".").replace(".", "_") or "shapes"


def pages() -> dict[str, str]:
    out = {f"reference/datasets/{page_of(m)}": _card(m, names) for m, names in by_card().items()}
    entries = "\n".join(sorted(name.rsplit("/", 1)[1] for name in out))
    out["reference/datasets/index"] = (
        INTRODUCTION + _by_task() + f"\n```{{toctree}}\n:maxdepth: 1\n:hidden:\n\n{entries}\n```\n"
    )
    return out


def _by_task() -> str:
    groups: dict[str, list[tuple[str, str, str]]] = {task: [] for task, _ in tasks()}
    groups["Several tasks"] = []
    for name, cls in datasets().items():
        task = next((t for t, base in tasks() if issubclass(cls, base)), "Several tasks")
        doc = sys.modules[cls.__module__].__doc__
        groups[task].append(
            (f"[`{name}`]({page_of(cls.__module__)}.md)", _licence(doc), escaped(first_sentence(doc)))
        )
    parts = []
    for task, rows in groups.items():
        if rows:
            parts.append(f"## {task}\n\n" + table(("name", "licence", "what it is"), rows))
    return "\n".join(parts)


def tasks() -> list[tuple[str, type]]:
    """Tasks and the families of data sets that serve them; the first that fits counts."""
    from lavis.datasets.captioning import CaptionDataset
    from lavis.datasets.dialogue import DialogueDataset
    from lavis.datasets.entailment import EntailmentDataset
    from lavis.datasets.imagenet import FolderDataset
    from lavis.datasets.nlvr import NLVRDataset
    from lavis.datasets.retrieval import RetrievalDataset
    from lavis.datasets.shards import ShardDataset
    from lavis.datasets.video import (
        VideoCaptionDataset,
        VideoDialogueDataset,
        VideoQADataset,
        VideoRetrievalDataset,
    )
    from lavis.datasets.vqa import VQADataset

    return [
        ("Video captioning", VideoCaptionDataset),
        ("Video question answering", VideoQADataset),
        ("Video retrieval", VideoRetrievalDataset),
        ("Video dialogue", VideoDialogueDataset),
        ("Pictures and texts in shards, for pre-training", ShardDataset),
        ("Image-text retrieval", RetrievalDataset),
        ("Captioning and pre-training", CaptionDataset),
        ("Visual question answering", VQADataset),
        ("Visual dialogue", DialogueDataset),
        ("Statements about two pictures", NLVRDataset),
        ("Visual entailment", EntailmentDataset),
        ("Classification", FolderDataset),
    ]


def _licence(doc: str | None) -> str:
    found = re.search(r"\*\*Licen[cs]e\.?\*\*\s*(.+?)(?:\n\n|\Z)", doc or "", re.S)
    if found is None:
        return "see the card"
    sentence = re.split(r"(?<=[.;])\s", " ".join(found[1].split()))[0]
    return escaped(sentence.rstrip(";"))


def _card(module: str, names: list[str]) -> str:
    doc = inspect.cleandoc(sys.modules[module].__doc__ or "")
    title, rest = doc.split("\n\n", 1) if "\n\n" in doc else (doc, "")
    title = " ".join(title.split())
    short = title.split(":")[0].rstrip(".")
    if len(short) > 60:
        short = names[0]
    listed = ", ".join(f"`{n}`" for n in names)
    parts = [f"# {escaped(short)}\n\n{escaped(title)}\n\n**Load by** {listed}\n\n{linked(rest)}\n"]
    seen: dict[type, list[str]] = {}
    for name in names:
        seen.setdefault(datasets()[name].Options, []).append(name)  # type: ignore[attr-defined]
    for options, of in seen.items():
        if dataclasses.fields(options):
            which = "" if len(seen) == 1 else " of " + ", ".join(f"`{n}`" for n in of)
            parts.append(
                f"\n## Options{which}\n\nIn a recipe's section `datasets: {{{of[0]}: {{…}}}}`, or as arguments of "
                f"`load_dataset`.\n\n{keys(options, doc)}"
            )
    types = [(n, datasets()[n].types()) for n in names]  # type: ignore[attr-defined]
    for name, kinds in types:
        if len(kinds) > 1:
            parts.append(f"\n`{name}` has the types {', '.join(f'`{k}`' for k in kinds)} (the key `type`).\n")
    return "".join(parts)


def described_options() -> dict[str, Any]:
    """The options class of every data set."""
    return {name: cls.Options for name, cls in datasets().items()}  # type: ignore[attr-defined]
