"""`lavis models`, `datasets`, `card` and `env`: what there is, and what a bug report needs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lavis import __version__
from lavis.cli import common

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
_PACKAGES = (
    "torch", "numpy", "pillow", "tokenizers", "safetensors", "omegaconf", "huggingface_hub", "typer", "rich",
    "tqdm", "transformers", "pycocoevalcap", "tensorboard", "easy-vqa",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    app.command("models")(models)
    app.command("datasets")(datasets)
    app.command("card")(card)
    app.command("env")(env)


def models(
    name: Annotated[
        str | None, typer.Argument(help="Show only models whose <name>/<type> holds this.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List models, their types, where the weights are, and under which licence; with --json also what they can do.

    With a name, those whose weights come from several sources are shown part by part: parameters, memory, licences.

    \b
    Examples:
      lavis models
      lavis models NAME/TYPE
      lavis models vqa --json
    """
    from lavis.common.registry import registry
    from lavis.inference.abilities import abilities
    from lavis.models.zoo import commercial

    rows = []
    for arch in registry.list_models():
        model_class = registry.get_model_class(arch)
        for model_type, preset in model_class.PRESETS.items():
            if name is not None and name not in f"{arch}/{model_type}":
                continue
            row = {"model": f"{arch}/{model_type}", **_preset(preset), "can": abilities(model_class)}
            row["commercial"] = commercial(preset, model_type)
            rows.append(row)
            if name is not None and preset.parts:
                row["parts"] = _parts(model_class, model_type)
    if not rows:
        raise ValueError(f"no model's name holds {name!r}; known: {', '.join(registry.list_models())}")
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    words = {True: "yes", False: "no", None: "not stated"}
    common.table(
        ["Model", "Weights", "Licence", "Commercial use", "What it is"],
        [(r["model"], r["where"], r["licence"], words[r["commercial"]], r["note"]) for r in rows],
    )
    for row in rows:
        if row.get("parts"):
            _show_parts(row["model"], row["parts"])


def _parts(model_class: Any, model_type: str) -> list[dict[str, Any]]:
    """A model type's parts, and the rest: numbers of parameters, bytes in each format, licences."""
    from lavis.models.sizes import sizes_of
    from lavis.models.zoo import licence_of

    preset = model_class.preset(model_type)
    try:
        sizes = sizes_of(model_class, model_type)
    except (ImportError, ValueError) as e:  # its licences are known all the same
        common.note(f"{model_class.registered_name}/{model_type}: sizes are not known: {e}")
        sizes = []
    found: dict[str, dict[str, Any]] = {
        size.name: {"parameters": size.parameters, "bytes": dict(size.bytes), "format": size.loaded}
        for size in sizes
    }
    out = []
    for part, known in preset.parts.items():
        licence, allowed = licence_of(known, model_type)
        about = {"source": known.source, "frozen": known.frozen, "licence": licence, "commercial": allowed}
        out.append({"part": part, **about, **found.pop(part, {})})
    for part, numbers in found.items():
        source = preset.weights or preset.pretrained
        about = {
            "source": source,
            "frozen": False,
            "licence": preset.licence,
            "commercial": preset.commercial,
        }
        out.append({"part": part, **about, **numbers})
    return out


def _show_parts(model: str, parts: list[dict[str, Any]]) -> None:
    """The parts of a model as a table that fits into 80 columns."""
    from lavis.common.memory import shown

    def numbers(parts: list[dict[str, Any]]) -> tuple[str, str, str]:
        if not all("bytes" in part for part in parts):
            return "", "", ""
        count = sum(part["parameters"] for part in parts)
        sizes = (sum(part["bytes"][kind] for part in parts) for kind in ("float32", "bfloat16"))
        return f"{count / 1e6:,.0f} M", *map(shown, sizes)  # type: ignore[return-value]

    print(f"\n{model}")
    words = {True: "yes", False: "no", None: "not stated"}
    rows = [
        (p["part"], *numbers([p]), f"{p['licence']}; commercial use: {words[p['commercial']]}") for p in parts
    ]
    total = numbers(parts)
    if total[0]:
        loaded = shown(sum(part["bytes"][part["format"]] for part in parts))
        rows.append(("all", *total, f"loaded as it is: {loaded}"))
    common.table(["Part", "Parameters", "float32", "bfloat16", "Licence"], rows)


def _preset(preset: Any) -> dict[str, Any]:
    where = _where(preset.weights)
    if preset.weights is None and preset.pretrained is not None:
        where = f"pre-trained, {_where(preset.pretrained)}"
    return {
        "weights": preset.weights, "where": where, "licence": preset.licence, "commercial": preset.commercial,
        "note": preset.note,
    }  # fmt: skip


def _where(weights: str | None) -> str:
    if weights is None:
        return "none"
    if "://" in weights:
        from lavis.common import hub

        return "downloaded" if hub.place_of(weights).is_file() else "to download"
    return "packaged" if Path(weights).is_dir() else "not in this installation"


def datasets(as_json: AsJson = False) -> None:
    """List data sets.

    \b
    Example:
      lavis datasets
    """
    from lavis.common.registry import registry

    rows = []
    for name in registry.list_datasets():
        cls = registry.get_dataset_class(name)
        headline = cls.card().split("\n\n")[0].replace("\n", " ")
        rows.append({"name": name, "types": list(cls.types()), "description": headline})
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    common.table(
        ["Name", "Types", "What it is"],
        [(str(r["name"]), ", ".join(r["types"]), str(r["description"])) for r in rows],
    )


def card(name: Annotated[str, typer.Argument(metavar="NAME", help="The name of a data set.")]) -> None:
    """Print the card of a data set: what is in it, its splits, licence, metrics and options.

    \b
    Example:
      lavis card own
    """
    from lavis.common.registry import registry

    print(registry.get_dataset_class(name).card())


def env(as_json: AsJson = False) -> None:
    """Show versions, devices and settings: what a bug report needs.

    \b
    Example:
      lavis env
    """
    facts = _facts()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        print(f"{key:<{width}}  {value}")


def _facts() -> dict[str, Any]:
    import torch

    from lavis.common import hub

    facts: dict[str, Any] = {
        "lavis": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    facts["cpu"] = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            facts[f"cuda:{i}"] = (
                f"{device.name}, {device.total_memory / 1e9:.1f} GB, CUDA {torch.version.cuda}"
            )
    else:
        facts["cuda"] = "none"
    facts["mps"] = "yes" if torch.backends.mps.is_available() else "none"
    facts["java"] = shutil.which("java") or "none (only METEOR and SPICE need it)"
    facts["cache"] = str(hub.cache_root())
    facts["offline"] = "yes" if hub.is_offline() else "no"
    for name in ("LAVIS_MIRROR", "HF_ENDPOINT", "HF_HOME"):
        facts[name] = os.environ.get(name, "not set")
    return facts
