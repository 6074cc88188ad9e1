"""Small random models and batches for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lavis.common.registry import registry
from lavis.models.base import BaseModel


def random_model(
    name: str, *, model_type: str = "tiny", seed: int = 0, spread: float = 0.1, **config: Any
) -> BaseModel:
    """A tiny model whose weights are far enough from their start that every part matters."""
    cls = registry.get_model_class(name)
    torch.manual_seed(seed)
    model = cls.build(dataclasses.replace(cls.PRESETS[model_type].config, **config))
    model.model_type = model_type
    for p in model.parameters():
        p.data += spread * torch.randn_like(p)
    return model.eval()


def images(count: int, size: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
