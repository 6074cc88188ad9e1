"""LAVIS: one interface to language-vision models, data sets, tasks and evaluation.

`import lavis` is cheap: it loads no torch and no submodule. Use `lavis.models`,
`lavis.datasets.builders`, `lavis.processors`, `lavis.tasks` and `lavis.runners`, or the
shortcuts listed in `__all__`, which are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lavis.common import moved

moved.install()

__version__ = "0.1.0"

_SHORTCUTS = {
    "load_model": "lavis.models",
    "load_model_and_preprocess": "lavis.models",
    "load_preprocess": "lavis.models",
    "model_zoo": "lavis.models",
    "load_dataset": "lavis.datasets.builders",
    "dataset_zoo": "lavis.datasets.builders",
    "load_processor": "lavis.processors",
    "train": "lavis.runners",
    "evaluate": "lavis.runners",
    "registry": "lavis.common.registry",
}
_ROOMS = ("common", "nn", "models", "processors", "datasets", "tasks", "metrics", "runners")

__all__ = ["__version__", *sorted(_SHORTCUTS)]


def _own(name: str) -> Any:
    if name in _SHORTCUTS:
        return getattr(import_module(_SHORTCUTS[name]), name)
    if name in _ROOMS:
        return import_module(f"lavis.{name}")
    raise AttributeError(f"module 'lavis' has no attribute {name!r}")


__getattr__ = moved.names_of(__name__, _own)


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
