"""What several commands share: which model is meant, which pictures, which answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import typer

DEVICE = typer.Option(help="auto, cpu, cuda, cuda:<number> or mps.")
PRECISION = typer.Option(help="auto, fp32, bf16 or fp16.")
PICTURES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"])


def note(message: str) -> None:
    """One line for the person at the terminal; never in the results. Of several processes one says it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"lavis: {message}", file=sys.stderr, flush=True)


def split_model(spec: str) -> tuple[str, str | None]:
    """`arch/type`, `arch`, a folder or a Hugging Face id as the first two arguments of `load_model`.

    Raises:
        ValueError: no such model; near names are suggested.
    """
    from lavis.common.registry import registry, suggest

    if Path(spec).expanduser().is_dir():
        return str(Path(spec).expanduser()), None
    arch, slash, model_type = spec.partition("/")
    known = registry.list_models()
    if arch in known:
        return arch, model_type or None
    near = suggest(arch, known)
    if slash and near.startswith(" Known:"):  # nothing near: it may be on the Hugging Face hub
        from lavis.common import hub

        folder = hub.fetch(spec)
        if folder.is_dir():
            return str(folder), None
    raise ValueError(
        f"there is no model {spec!r}; give <name>/<type> (see `lavis models`) or a checkpoint's folder.{near}"
    )


def load(spec: str, checkpoint: str | None, device: str, precision: str) -> tuple[Any, Any, Any, Any]:
    """(model in evaluation mode, picture processor, text processor, autocast context)."""
    from lavis.common import device as devices
    from lavis.models import load_model_and_preprocess

    where = devices.pick_device(device)
    chosen = devices.pick_precision(where, precision)
    name, model_type = split_model(spec)
    model, pictures, texts = load_model_and_preprocess(
        name, model_type, is_eval=True, device=where, checkpoint=checkpoint
    )
    if where.type == "cpu" and chosen == "fp32":
        model.pack_weights()
    return model, pictures["eval"], texts["eval"], devices.autocast(where, chosen)


def _matching(pattern: Path) -> list[Path]:
    """Files that fit a pattern such as photos/**/*.jpg, sorted."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    return sorted(p for p in Path(*parts[:first]).glob("/".join(parts[first:])) if p.is_file())


def find_pictures(paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Pictures of files, folders (searched to any depth) and patterns, in order, each once.

    Returns:
        The pictures, and one message per path that gave none.
    """
    found: dict[Path, None] = {}
    problems = []
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            if not inside:
                problems.append(
                    f"{text}: no pictures in this folder (looked for {', '.join(sorted(PICTURES))})"
                )
        elif path.exists():
            inside = [path]
        elif any(c in text for c in "*?["):
            inside = _matching(path)
            if not inside:
                problems.append(f"{text}: no file matches this pattern")
        else:
            inside = []
            problems.append(f"{text}: there is no such file or folder")
        found.update(dict.fromkeys(inside))
    return list(found), problems


def read_answers(text: str | None) -> list[str] | None:
    """`a,b,c`, or a file with one answer per line or a JSON list.

    Raises:
        ValueError: there is no answer in it.
        FileNotFoundError: it looks like a file and there is none.
    """
    if text is None:
        return None
    path = Path(text).expanduser()
    if path.is_file():
        content = path.read_text(encoding="utf-8-sig")
        answers = json.loads(content) if path.suffix == ".json" else content.splitlines()
        if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
            raise ValueError(f'{path}: expected a JSON list of answers, such as ["yes", "no"]')
    elif path.suffix in (".json", ".txt") and "," not in text:
        raise FileNotFoundError(f"--answers: there is no file {text}")
    else:
        answers = text.split(",")
    answers = [a.strip() for a in answers if a.strip()]
    if not answers:
        raise ValueError(
            f"--answers {text!r}: there is no answer in it; give a,b,c or a file with one per line"
        )
    return list(dict.fromkeys(answers))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, as wide as the terminal (or 160 columns into a file)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else 160
    out = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        out.add_row(*row)
    Console(width=width, highlight=False, markup=False).print(out)
