"""The model zoo: every registered model and type, its weights, their licence, and what was checked."""

from __future__ import annotations

import contextlib
import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

from _generate.markdown import escaped, first_sentence, table

INTRODUCTION = """
# Model zoo

`lavis models` prints this list, `lavis models vqa` a part of it. A model is loaded by name and type,
`load_model("blip_caption", "tiny_shapes")`, in the command line as `blip_caption/tiny_shapes`.

**Where weights are.** *In the package*: nothing is downloaded. *Pre-trained, in the package*: features,
matching and retrieval work with them as they are, other heads are to be fine-tuned first. *To download*: on
first use, once, into the [cache](../install.md#files-and-settings). *Random*: the type is a size to train, not
a trained model.

**Licences.** The licence stands beside each file as its publisher states it. "Commercial use: not stated" means
that whoever published the weights did not say; that is not a yes. Data that the weights were trained on have
licences of their own, see the [data sets](datasets/index.md).

**What was checked.** Of each family the classes at full size, with generated weights in the official files'
layout, were compared with recorded outputs of the original library; the [results](../results/README.md) say
what, and how closely. The published checkpoints themselves could not be downloaded where this was written: that
they load, and the numbers that they reach, is untested. The packaged models are measured.

"""

NO_PEER = "The original has no such model and no weights were published: there is nothing to compare with."
ON_FRAMES = "The original has no such model: there is nothing to compare with. The picture model under it is compared."
# What was compared with what; docs/results/README.md has the tolerances.
CHECKED = {
    "albef": "Outputs, losses and predictions at full size equal the original's recorded ones.",
    "albef_feature_extractor": "Features of all modes at full size equal the original's recorded ones.",
    "alpro": "Losses, logits, states and scores at full size equal the original's recorded ones.",
    "alpro_feature_extractor": "The original has no such model. It uses the layers of `alpro_retrieval`, which "
    "equal the original's.",
    "blip": "Outputs, losses and predictions at full size equal the original's recorded ones.",
    "blip_caption": "Loss, states, logits and the captions of beam search and greedy decoding at full size equal the "
    "original's recorded ones; on tiny random weights, also those of transformers.",
    "blip_vis_dialogue": NO_PEER,
    "blip_video_dialogue": NO_PEER,
    "blip_video_caption": ON_FRAMES,
    "blip_video_qa": ON_FRAMES,
    "blip_video_retrieval": ON_FRAMES,
    "blip2": "Losses, features, matching, captions, answers and ranked candidates at small sizes equal the original's "
    "recorded ones; of the first stage also features, losses and captions at full size.",
    "clip": "Features, logits, loss, zero-shot classifier of ViT-B/32, ViT-B/16 and RN50 at full size equal the "
    "original's recorded ones; ViT-L/14 was not recorded. On tiny random weights also equal to transformers.",
    "gpt_dialogue": "The original's class does not run, so there is nothing of it to compare with; GPT-2 inside equals "
    "transformers' on tiny random weights.",
}  # fmt: skip


def checked(name: str) -> str:
    """What was compared for a registered model."""
    key = next(k for k in (name, name.split("_")[0]) if k in CHECKED)
    return CHECKED[key]


def zoo() -> dict[str, Any]:
    """Registered name to class."""
    from lavis.common.registry import registry

    return {name: registry.get_model_class(name) for name in registry.list_models()}


def pages() -> dict[str, str]:
    parts = [INTRODUCTION, "## All models\n\n"]
    rows = []
    for name, cls in zoo().items():
        types = ", ".join(f"`{t}`" for t in cls.PRESETS)
        rows.append(
            (f"[`{name}`](#model-{name.replace('_', '-')})", types, escaped(first_sentence(cls.__doc__)))
        )
    parts.append(table(("model", "types", "what it is"), rows))
    parts.append(
        "\nSizes are of the weights in float32 as a model for inference; a download may be larger, because official "
        "files also hold what only training uses.\n\n"
    )
    parts += [_section(name, cls) for name, cls in zoo().items()]
    parts.append(_published())
    return {"reference/models": "".join(parts)}


def _section(name: str, cls: Any) -> str:
    from lavis.models.sizes import sizes_of
    from lavis.models.zoo import commercial

    rows, notes = [], []
    for model_type, preset in cls.PRESETS.items():
        count = parameters(cls, preset.config)
        if count is None and preset.parts:
            with contextlib.suppress(ImportError, ValueError):  # left open
                count = sum(size.parameters for size in sizes_of(cls, model_type))
        size = "" if count is None else f"{count * 4 / 2**20:,.0f} MiB"
        open_part = "language model" if hasattr(preset.config, "language") else "classes"
        number = f"depends on the {open_part}" if count is None else f"{count / 1e6:,.1f} million"
        words = {True: "yes", False: "no", None: "not stated"}
        rows.append(
            (
                f"`{model_type}`",
                number,
                size,
                where(preset),
                words[commercial(preset, model_type)],
                escaped(preset.note),
            )
        )
        notes.append(f"`{model_type}`\n: {_files(preset, model_type)}\n")
    head = ("type", "parameters", "float32", "weights", "commercial use", "what it is")
    return (
        f"(model-{name.replace('_', '-')})=\n## {name}\n\n{escaped(first_sentence(cls.__doc__))}\n"
        f"Class {{py:obj}}`{cls.__module__}.{cls.__qualname__}`.\n\n{table(head, rows)}\n"
        f"{_abilities(cls)}**Checked.** {checked(name)}\n\n" + "\n".join(notes) + "\n"
    )


def _abilities(cls: Any) -> str:
    from lavis.inference.abilities import abilities

    found = abilities(cls)
    return f"**Can** {'; '.join(found)}.\n\n" if found else ""


def where(preset: Any) -> str:
    """In one word or two, where a preset's weights are."""
    if preset.weights is None:
        if preset.pretrained is None:
            return "random"
        return "pre-trained, to download" if "://" in preset.pretrained else "pre-trained, in the package"
    return "to download" if "://" in preset.weights else "in the package"


def _files(preset: Any, model_type: str) -> str:
    from lavis.models.zoo import licence_of

    lines = [f"Licence of the weights: {escaped(preset.licence)}."]
    for label, source in (("Weights", preset.weights), ("To fine-tune from", preset.pretrained)):
        if source is None:
            continue
        place = f"<{source}>" if "://" in source else f"packaged as `{Path(source).name}`"
        lines.append(f"{label}: {place}.")
    for name, part in preset.parts.items():
        place = f"<{part.source}>" if "://" in str(part.source) else f"`{part.source or 'to be given'}`"
        frozen, licence = ", frozen" if part.frozen else "", licence_of(part, model_type)[0]
        lines.append(f"Part `{name}`: {place}{frozen}; licence: {escaped(licence)}.")
    if preset.elsewhere:
        lines.append(f"Where these are gone: `{preset.elsewhere}` on the Hugging Face hub.")
    if preset.sha256:
        lines.append(f"SHA-256 `{preset.sha256}`.")
    return " ".join(lines)


def parameters(cls: Any, config: Any) -> int | None:
    """How many parameters a model for inference has; None where a number of classes, or the language model, is left
    open."""
    from lavis.models.configs import set_for_training

    return _count(cls, set_for_training(config, False))


@cache
def _count(cls: Any, config: Any) -> int | None:
    if dataclasses.is_dataclass(config) and getattr(config, "num_classes", 1) in (0, None):
        return None
    if getattr(config, "language", "none") is None:
        return None
    return sum(p.numel() for p in cls.build(config, empty=True).parameters())


def _published() -> str:
    from lavis.cli.benchmark import tables

    out = [
        "(published-numbers)=\n## Published numbers\n\n"
        "Those of the paper of the original library (Li et al., *LAVIS: A Library for Language-Vision Intelligence*, "
        "2022), in percent unless the name says otherwise; AVSD's are fractions. **None of them was measured here**: "
        "neither the published weights nor the data could be downloaded. `lavis benchmark --table N` measures the "
        "lines of a table whose data and weights are on your machine, and prints your figures beside these. What was "
        "measured here is on the [results page](../results/README.md).\n\n"
    ]
    for number, (title, lines) in tables().items():
        rows = []
        for line in lines:
            figures = ", ".join(f"{f.name} {f.paper:g}" for f in line.figures)
            rows.append((escaped(line.data), escaped(figures), "not measured", f"`{line.recipe}`"))
        head = ("data", "published (paper, 2022)", "measured here", "recipe")
        out.append(f"### Table {number}: {escaped(title)}\n\n{table(head, rows)}\n")
    return "".join(out)
