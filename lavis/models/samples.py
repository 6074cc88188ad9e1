"""What models ask of the samples that they are given, and texts as tokens.

B images (or videos), G texts per image, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lavis.models.tokenizer import Tokenizer, Tokens


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


def media_of(samples: Mapping[str, Any], key: str, device: torch.device | None = None) -> torch.Tensor:
    """Images (B, 3, h, w), or under "video" videos (B, 3, frames, h, w), on a device; None: where they are."""
    shape = "(B, 3, frames, h, w)" if key == "video" else "(B, 3, h, w)"
    if key not in samples:
        raise ValueError(f"samples need {key!r}, {shape}; they have {', '.join(samples) or 'nothing'}")
    media = checked_batch(samples[key], key, shape)
    return media if device is None else media.to(device, non_blocking=True)


def texts_of(samples: Mapping[str, Any], images: int, key: str = "text_input") -> list[str]:
    """The texts under a key, in a multiple of the number of images; one text serves all of them."""
    require(samples, (key,), "a text or a list of texts")
    texts = samples[key]
    texts = [texts] * images if isinstance(texts, str) else list(texts)
    if not texts or len(texts) % images:
        raise ValueError(
            f"there are {len(texts)} texts for {images} images; give one per image, or the same number "
            "for each, an image's texts next to one another"
        )
    return texts


@dataclass(frozen=True)
class TextEncoder:
    """Makes `tokens["text"]` of `text_input`, B·G texts; a model's `batch_encoder`.

    Attributes:
        media: the key of what the texts are about.
        max_length: tokens that a text is cut to; None: not cut.
        first: a token that every text begins with in place of the tokenizer's own.
        pad: whether texts are filled up to `max_length`, or to the longest.
    """

    tokenizer: Tokenizer
    media: str = "image"
    max_length: int | None = None
    first: int | None = None
    pad: bool = False

    def __call__(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        return {**samples, "tokens": {"text": self.read(samples)}}

    def read(self, samples: Mapping[str, Any]) -> Tokens:
        """Tokens (B·G, T) of the samples' texts."""
        return self.tokens(texts_of(samples, len(media_of(samples, self.media))))

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokens (n, T) of texts."""
        pad_to = self.max_length if self.pad else None
        tokens = self.tokenizer.batch(texts, max_length=self.max_length, pad_to=pad_to)
        if self.first is not None:
            tokens.ids[:, 0] = self.first
        return tokens
