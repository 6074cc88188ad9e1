"""Regenerates the weights and inputs that the stored outputs of the original were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.reference import recipe

REFERENCE = Path(__file__).parent / "reference"


def manifest(name: str) -> dict[str, Any]:
    return recipe.load_manifest(REFERENCE / "manifests" / f"{name}.json.gz")


def state_dict(name: str, **kwargs: Any) -> dict[str, torch.Tensor]:
    return recipe.make_state_dict(manifest(name), **kwargs)


def write_official(name: str, path: Path) -> Path:
    """A .pth as the original publishes it: the state dict under "model"."""
    torch.save({"model": state_dict(name)}, path)
    return path


def outputs(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / "golden" / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def inputs(name: str) -> dict[str, Any]:
    return json.loads((REFERENCE / "golden" / "inputs.json").read_text())[name]


def images(name: str) -> torch.Tensor:
    case = inputs(name)
    return recipe.make_images(case["image_seed"], case["image_size"])


def close(actual: torch.Tensor, expected: np.ndarray, rtol: float = 1e-4, atol: float = 5e-5) -> None:
    np.testing.assert_allclose(actual.detach().float().numpy(), expected, rtol=rtol, atol=atol)


def close_digest(actual: torch.Tensor, stored: dict[str, np.ndarray], name: str) -> None:
    """Compare a big tensor with the stored shape, statistics and sample."""
    shape, stats, sample = recipe.digest(actual)
    np.testing.assert_array_equal(shape, stored[f"{name}/shape"])
    np.testing.assert_allclose(stats, stored[f"{name}/stats"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sample, stored[f"{name}/sample"], rtol=1e-4, atol=5e-5)
