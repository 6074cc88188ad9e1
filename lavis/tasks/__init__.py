"""Tasks: what a model is trained for and how it is scored. `setup_task(cfg)` builds the one of a recipe."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lavis.common import moved

if TYPE_CHECKING:
    from lavis.common.config import Config
    from lavis.tasks.base import Task

_LAZY = {
    "Task": "lavis.tasks.base",
    "CaptionTask": "lavis.tasks.captioning",
    "ClassificationTask": "lavis.tasks.classification",
    "DialogueTask": "lavis.tasks.dialogue",
    "PretrainTask": "lavis.tasks.pretraining",
    "RetrievalTask": "lavis.tasks.retrieval",
    "VQATask": "lavis.tasks.vqa",
}
_PAPER_NAMES = {
    "BaseTask": "Task",
    "ImageTextPretrainTask": "PretrainTask",
    "MultimodalClassificationTask": "ClassificationTask",
}

__all__ = [
    "CaptionTask",
    "ClassificationTask",
    "DialogueTask",
    "PretrainTask",
    "RetrievalTask",
    "Task",
    "VQATask",
    "setup_task",
]


def _own(name: str) -> Any:
    name = _PAPER_NAMES.get(name, name)
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lavis.tasks' has no attribute {name!r}")


__getattr__ = moved.names_of(__name__, _own)


def setup_task(cfg: Config) -> Task:
    """The task that `run.task` names.

    Raises:
        ValueError: no task is named, or there is none of that name.
    """
    from lavis.common.registry import registry

    if cfg.run.task is None:
        raise ValueError(f"run.task is missing; known tasks: {', '.join(registry.list_tasks())}")
    task_class = registry.get_task_class(cfg.run.task)
    if task_class.setup_task.__func__ is not task_class.setup.__func__:  # of the original's form
        found: Task = task_class.setup_task(cfg=cfg)
        return found
    task: Task = task_class.setup(cfg)
    return task
