"""Where a model looks: attention maps, Grad-CAM (Selvaraju et al. 2017; ALBEF paper, section 4), heat maps.

Works on any module that attends (`lavis.nn.attention.Reader`): cross-attention from words to patches, or
the self-attention of an image transformer. R texts, T tokens, H heads, N keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from lavis.nn.attention import Reader
from lavis.nn.finite import check_finite


@contextmanager
def kept_weights(modules: Sequence[Reader]) -> Iterator[list[list[torch.Tensor]]]:
    """While open, each module keeps the weights (R, H, T, N) of its calls, in order; one list a module."""
    for module in modules:
        if not isinstance(module, Reader):
            raise ValueError(
                f"{type(module).__name__} does not attend; give modules such as layer.crossattention"
            )
        module.kept = []
    try:
        yield [module.kept for module in modules if module.kept is not None]
    finally:
        for module in modules:
            module.kept = None


def attention_maps(modules: Sequence[Reader], run: Callable[[], Any]) -> list[torch.Tensor]:
    """Mean over heads of what each module weighs in its last call in `run()`: (R, T, N) each, rows summing to 1.

    A module that reads two pictures side by side (BLIP's NLVR2) gives (R, T, 2N), the left one's keys first; each
    half of a row sums to 1.
    """
    with torch.no_grad(), kept_weights(modules) as kept:
        run()
    return [torch.cat(weights, dim=-1).mean(dim=1) for weights in _last_calls(modules, kept)]


def gradcam(
    modules: Sequence[Reader], score: Callable[[], torch.Tensor]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Mean over heads of weight x positive gradient: the share of each key in a score.

    Args:
        modules: what to look at.
        score: runs the model and gives what is to be explained, larger meaning more so (its sum is
            differentiated, so rows must not depend on one another).

    Returns:
        maps, (R, T, N) a module (or (R, T, 2N), see `attention_maps`), not normalised; and what `score` returned.

    Raises:
        ValueError: the score does not depend on a module; score or maps are not finite.
    """
    with torch.enable_grad(), kept_weights(modules) as kept:
        value = score()
        weights = _last_calls(modules, kept)
        flat = [w for reads in weights for w in reads]
        gradients = torch.autograd.grad(value.sum(), flat, allow_unused=True)
    if any(gradient is None for gradient in gradients):
        raise ValueError("the score does not depend on one of the modules; choose a layer that it passes")
    found = [(w.detach() * g.clamp(min=0)).mean(dim=1) for w, g in zip(flat, gradients)]
    check_finite((value, found))
    shares = iter(found)
    return [torch.cat([next(shares) for _ in reads], dim=-1) for reads in weights], value.detach()


def _last_calls(modules: Sequence[Reader], kept: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """The weights of each module's last call, one tensor for each memory that it read."""
    if not all(kept):
        raise ValueError("one of the modules was not used in this run; choose a layer that attends")
    return [weights[-module.READS :] for module, weights in zip(modules, kept)]


def patch_grid(maps: torch.Tensor, first: int = 1) -> torch.Tensor:
    """Keys to a square grid of patches: (…, first + g·g) -> (…, g, g); `first` class tokens are left out."""
    patches = maps.shape[-1] - first
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"{patches} patches are no square; pass the grid of one picture")
    return maps[..., first:].unflatten(-1, (side, side))


def getAttMap(  # noqa: N802  the name is public
    img: Any, attMap: Any, blur: bool = True, overlap: bool = True, *, top: float | None = None
) -> np.ndarray:
    """A heat map over a picture (the original's function of this name).

    Args:
        img: (h, w, 3) floats from 0 to 1.
        attMap: (g, g), any range; it is stretched to 0 … 1.
        blur: smooth it with a Gaussian of 2 % of the picture's longer side.
        overlap: lay it over the picture, the stronger the more opaque; else the colours alone.
        top: the value at which colours end, for maps that are to be compared; None: the map's greatest.

    Returns:
        (h, w, 3) floats from 0 to 1.
    """
    picture = np.asarray(img, dtype=np.float32)
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(
            f"img has shape {picture.shape}; a picture (h, w, 3) with values from 0 to 1 was expected"
        )
    height, width = picture.shape[:2]
    values = np.asarray(attMap, dtype=np.float32)
    heat = Image.fromarray(_stretched(values))
    grown = np.asarray(heat.resize((width, height), Image.Resampling.BICUBIC))
    if blur:
        grown = _smoothed(grown, 0.02 * max(height, width))
    grown = _stretched(grown)
    if top is not None:
        grown = grown * min(1.0, float(values.max()) / top if top > 0 else 0.0)
    colours = _jet(grown)
    if not overlap:
        return colours
    share = grown[..., None] ** 0.7
    return (1 - share) * picture + share * colours


def _stretched(values: np.ndarray) -> np.ndarray:
    values = values - values.min()
    return values / values.max() if values.max() > 0 else values


def _smoothed(values: np.ndarray, sigma: float) -> np.ndarray:
    """Separable Gaussian, edges reflected."""
    radius = max(1, round(4 * sigma))
    steps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (steps / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        pad = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(values, pad, mode="symmetric")
        values = np.apply_along_axis(lambda line: np.convolve(line, kernel, mode="valid"), axis, padded)
    return values


def _jet(values: np.ndarray) -> np.ndarray:
    """Blue, cyan, yellow, red for 0 … 1: (h, w) -> (h, w, 3)."""
    x = 4 * values[..., None] - np.array([3.0, 2.0, 1.0])
    return np.clip(1.5 - np.abs(x), 0.0, 1.0).astype(np.float32)
