"""What a run is, in a few lines before it starts: at most 80 columns, the console's time included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_WIDTH = 80 - len("12:34:56 ")
_LABEL = 12


def model_name(model: Any, section: Mapping[str, Any]) -> str:
    """Its name and type, and what its weights start from."""
    name = getattr(model, "registered_name", type(model).__name__)
    kind = getattr(model, "model_type", None)
    vocabulary = getattr(model, "tokenizer", None)
    text = f"{name}/{kind}" if kind else name
    if "weights" in section:
        text += f" from {section['weights']}"
    return text if vocabulary is None else f"{text}, {len(vocabulary):,} tokens"


def data_name(name: str, dataset: Any) -> str:
    """A data set's name, and the file that it was read from."""
    paths = [str(path) for path in getattr(dataset, "annotation_paths", ())]
    return f"{name} ({', '.join(paths)})" if paths else name


def parameters(model: Any) -> str:
    """Their number, and how many of them are trained."""
    every = list(model.parameters())
    total, trained = sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)
    return f"{_short(total)}, {_short(trained)} of them trained"


def _short(number: int) -> str:
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"


def lines(entries: Mapping[str, str]) -> Iterator[str]:
    """A line for each entry; what is too long goes on below, or is cut where it has no blank."""
    for label, text in entries.items():
        rest, name = text, label
        while rest:
            room = _WIDTH - _LABEL
            end = len(rest) if len(rest) <= room else rest.rfind(" ", 0, room + 1)
            if end <= 0:  # a long path or name
                end = room
            yield f"{name:<{_LABEL}}{rest[:end].rstrip()}"
            rest, name = rest[end:].lstrip(), ""
