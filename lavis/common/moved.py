"""Module paths of the original library that have another name here: importing one says which.

Python asks the finder below last, when nothing else knows a module, so it costs nothing otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "lavis.tasks.base_task": "lavis.tasks.base",
    "lavis.models.base_model": "lavis.models.base",
    "lavis.models.blip_models.blip_caption": "lavis.models",
    "lavis.models.blip_models.blip_vqa": "lavis.models",
    "lavis.models.albef_models": "lavis.models",
    "lavis.models.alpro_models": "lavis.models",
    "lavis.models.clip_models": "lavis.models",
    "lavis.models.gpt_models": "lavis.models",
    "lavis.models.med": "lavis.nn.text",
    "lavis.models.vit": "lavis.nn.vit",
    "lavis.models.timesformer": "lavis.nn.timesformer",
    "lavis.processors.base_processor": "lavis.processors.base",
    "lavis.processors.alpro_processors": "lavis.processors",
    "lavis.processors.clip_processors": "lavis.processors",
    "lavis.processors.gpt_processors": "lavis.processors",
    "lavis.datasets.datasets": "lavis.datasets",
    "lavis.datasets.download_scripts": "lavis.datasets.download",
    "lavis.datasets.data_utils": "lavis.datasets.clips",
    "lavis.runners.runner_base": "lavis.runners",
    "lavis.runners.runner_iter": "lavis.runners",
    "lavis.common.dist_utils": "lavis.common.dist",
    "lavis.common.utils": "lavis.common.hub",
    "lavis.common.vqa_tools": "lavis.metrics",
}


class _Finder:
    """Finds nothing; of a path that moved it says where to."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if fullname in MOVED:
            # without `name`, or `from lavis.datasets import datasets` would swallow the message
            raise ModuleNotFoundError(
                f"there is no module {fullname}; what the original had there is in {MOVED[fullname]} "
                "(docs/moving.md lists all paths)"
            )


def install() -> None:
    """Let Python ask; called once, by `import lavis`."""
    sys.meta_path.append(_Finder)
