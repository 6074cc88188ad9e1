"""Pre-training: the model's own losses; there is nothing to predict."""

from __future__ import annotations

from typing import Any

from torch import nn

from lavis.common.registry import registry
from lavis.tasks.base import Record, Task


@registry.register_task("image_text_pretrain")
class PretrainTask(Task):
    """Trains on `loss`; every part of it (`loss_itc`, `loss_itm`, `loss_lm`, …) is logged by itself."""

    def evaluate(self, model: nn.Module, data: Any, dist: Any = None) -> list[Record]:
        raise ValueError("pre-training has no evaluation; leave run.valid_splits and run.test_splits empty")
