"""Which packaged or published model is meant where a user names none: a column of the presets, `Preset.default_for`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lavis.inference.protocols import models_with


def default(task: str, sees: str = "image", origin: str = "packaged") -> str | None:
    """The preset whose `default_for` names a task, as <name>/<type>.

    Args:
        task: see `Preset.default_for`.
        sees: "image" or "video", what the model is for.
        origin: "packaged": what is used; "published": what messages recommend for photographs and real videos.

    Returns:
        None where there is none; of several the one whose name comes first.
    """
    from lavis.models.base import origin_of

    for spec, preset in _rows(sees):
        if task in preset.default_for and origin_of(preset.weights or preset.pretrained) == origin:
            return spec
    return None


def needed(task: str, sees: str = "image") -> str:
    """The packaged default of a task that has one.

    Raises:
        ValueError: no preset is a default for it.
    """
    spec = default(task, sees)
    if spec is None:
        raise ValueError(f"no packaged model is for {task} of {sees}s; name one with --model")
    return spec


def examples(ability: type, sees: str = "image") -> list[str]:
    """A preset of each class of models that has an ability: defaults first, then one of each other class by name."""
    first: list[str] = []
    rest: dict[str, tuple[str, bool]] = {}  # name to spec, and whether it has weights
    for spec, preset in _rows(sees, ability):
        if preset.default_for:
            first.append(spec)
        else:
            trained, name = bool(preset.weights or preset.pretrained), spec.partition("/")[0]
            if name not in rest or (trained and not rest[name][1]):
                rest[name] = (spec, trained)
    known = {spec.partition("/")[0] for spec in first}
    return first + [spec for name, (spec, _) in rest.items() if name not in known]


def _rows(sees: str, ability: type = object) -> Iterator[tuple[str, Any]]:
    """<name>/<type> and preset of all models, by name."""
    for name, model_class in models_with(ability, sees).items():
        for model_type, preset in getattr(model_class, "PRESETS", {}).items():
            yield f"{name}/{model_type}", preset
