"""What models ask of the samples that they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch


def require(samples: Mapping[str, Any], keys: Iterable[str], what: str) -> None:
    """Refuse samples that lack a key, or hold None there, with a ValueError; `what`: what the keys hold."""
    missing = [key for key in keys if samples.get(key) is None]
    if missing:
        there = ", ".join(samples) or "nothing"
        raise ValueError(f"samples need {', '.join(missing)}: {what}; they have {there}")


def checked_batch(media: Any, name: str, shape: str) -> torch.Tensor:
    """Pictures or clips that a model was given as samples[name].

    Raises:
        ValueError: they are no tensor, there are none, or they are whole numbers: levels from 0 to 255 are not what a
            model takes.
    """
    if isinstance(media, torch.Tensor) and media.numel() and not media.is_floating_point():
        raise ValueError(
            f"samples[{name!r}] is a tensor of {str(media.dtype).removeprefix('torch.')}, so it holds no "
            f"normalised values; it must be a tensor {shape} of floating-point numbers: give the Pillow image to the "
            "processor that load_model_and_preprocess returns"
        )
    # len() would fix the size of a batch in torch.export
    if isinstance(media, torch.Tensor) and media.ndim and media.shape[0] > 0:
        return media
    found = "an empty batch" if isinstance(media, torch.Tensor) else f"of type {type(media).__name__}"
    raise ValueError(
        f"samples[{name!r}] is {found}; it must be a tensor {shape} of one or more, as the processor that "
        "load_model_and_preprocess returns and unsqueeze(0) make it"
    )
