"""Picture processors: Pillow in, a normalised float tensor (3, h, w) out.

The evaluation processors give the numbers of torchvision's transforms on Pillow pictures, which is
what published checkpoints were trained and scored with. The training processors do the same operations
with the same ranges and probabilities, but draw from an explicit stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lavis.common.images import from_16_bit
from lavis.common.registry import registry
from lavis.processors.base import BaseProcessor
from lavis.processors.randaugment import RandAugment

# Statistics of CLIP's training pictures; BLIP, ALBEF and CLIP all use them.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

_RATIO = (3 / 4, 4 / 3)  # of width to height, of a random crop
_CROP_ATTEMPTS = 10


def to_picture(item: Any) -> Image.Image:
    """An RGB picture from a Pillow picture of any mode, or from a uint8 array (h, w, 3) or (h, w).

    Raises:
        TypeError: anything else.
        ValueError: an array of another shape or dtype, or an empty picture.
    """
    if isinstance(item, Image.Image):
        # Pillow clips 16 bits at 255; all other modes are as it converts them
        picture = from_16_bit(item) if item.mode.startswith("I;16") else item
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    elif isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or not (item.ndim == 2 or (item.ndim == 3 and item.shape[2] == 3)):
            raise ValueError(
                f"a picture as an array should be uint8 of shape (h, w, 3) or (h, w), "
                f"not {item.dtype} of shape {item.shape}"
            )
        picture = Image.fromarray(item).convert("RGB")
    else:
        raise TypeError(
            f"a picture should be a PIL.Image or a uint8 array (h, w, 3), not {type(item).__name__}; "
            "open files with lavis.common.images.open_image"
        )
    if 0 in picture.size:
        raise ValueError(f"the picture is empty: {picture.width} x {picture.height} pixels")
    return picture


def resize(picture: Image.Image, width: int, height: int, fast: bool) -> Image.Image:
    """Bicubic resizing with antialiasing, the same pixels with every version of Pillow.

    Rows and columns are resized one after the other, rounded in between, so their order can change a pixel by some
    levels. Columns come first where the height shrinks by more than twice what the width does, as in Pillow 13, with
    which the reference pictures were made; earlier versions always take rows first.

    Args:
        fast: use torch on uint8, about four times faster than Pillow and at most 2 of 255 away from it.
    """
    if picture.size == (width, height):
        return picture
    if not fast:
        if picture.height - height > 2 * max(0, picture.width - width):
            picture = picture.resize((picture.width, height), Image.Resampling.BICUBIC)
        return picture.resize((width, height), Image.Resampling.BICUBIC)
    # A channels-last view of the pixels: this layout is what makes torch's uint8 kernel fast.
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())


def random_crop_box(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Where a random resized crop is cut: (left, top, width, height), in pixels.

    An area share from `scale` and a side ratio from 3/4 to 4/3 (log-uniform) are drawn up to ten times
    until the crop fits; else the largest central crop within those ratios is taken.
    """
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return left, top, w, h
    w, h = width, height
    if width / height < _RATIO[0]:
        h = max(1, round(w / _RATIO[0]))
    elif width / height > _RATIO[1]:
        w = max(1, round(h * _RATIO[1]))
    return (width - w) // 2, (height - h) // 2, w, h


class ImageProcessor(BaseProcessor):
    """What all share: size, statistics, conversion to a tensor.

    Args:
        image_size: the result's side in pixels; None: `default_size`, that of the model family's training.
        mean, std: per channel; None: CLIP's.
        fast_resize: see `resize`; False equals the original to 1e-6.
    """

    default_size: ClassVar[int]

    def __init__(
        self,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        fast_resize: bool = False,
    ) -> None:
        size = self.default_size if image_size is None else image_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"image_size is {size!r}; it should be a number of pixels, 1 or more")
        self.image_size, self.fast_resize = size, fast_resize
        self.mean = _statistics("mean", mean, MEAN)
        self.std = _statistics("std", std, STD)
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every channel's should be above 0")

    def __call__(self, item: Any, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Process one picture.

        Args:
            item: a Pillow picture of any mode, or a uint8 array (h, w, 3).
            rng: the stream of a training processor; evaluation draws nothing.

        Returns:
            A float tensor (3, image_size, image_size).
        """
        picture = self.reshape(to_picture(item), np.random.default_rng() if rng is None else rng)
        return self.to_tensor(picture)

    def reshape(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """RGB picture in, RGB picture of the final size out."""
        raise NotImplementedError

    def to_tensor(self, picture: Image.Image) -> torch.Tensor:
        """Pixels from 0 … 255 to 0 … 1, then normalised per channel. (3, h, w)"""
        return self.normalize(pixels(picture))

    @property
    def normalize(self) -> Normalize:
        """The last of the steps."""
        return Normalize(self.mean, self.std)

    @property
    def transform(self) -> Transform:
        """The steps as one callable, `.transforms` a list of them, as in the original: the image's final size (and its
        random changes, drawn afresh), pixels of 0 … 1, normalisation."""
        return Transform([_Reshape(self), pixels, self.normalize])


def pixels(picture: Image.Image) -> torch.Tensor:
    """An RGB image's pixels (3, h, w), 0 … 1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)


@dataclass(frozen=True)
class Normalize:
    """(3, h, w) minus the mean of each channel, divided by its standard deviation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        mean, std = (image.new_tensor(v).view(3, 1, 1) for v in (self.mean, self.std))
        return image.sub(mean).div_(std)


@dataclass(frozen=True)
class _Reshape:
    """A processor's first step as a callable of its own."""

    processor: ImageProcessor

    def __call__(self, item: Any) -> Image.Image:
        return self.processor.reshape(to_picture(item), np.random.default_rng())


@dataclass(frozen=True)
class Transform:
    """Steps one after another."""

    transforms: list[Callable[[Any], Any]]

    def __call__(self, item: Any) -> Any:
        for step in self.transforms:
            item = step(item)
        return item


def _statistics(name: str, values: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if values is None:
        return default
    if len(values) != 3:
        raise ValueError(f"{name} is {list(values)}; it should be three numbers, for red, green and blue")
    return tuple(float(v) for v in values)


class _CropProcessor(ImageProcessor):
    """Random resized crop, the first step of every training processor.

    Args:
        image_size, mean, std, fast_resize: as in every processor of pictures.
        min_scale, max_scale: the crop's share of the picture's area; min_scale None: `default_min_scale`.
    """

    default_min_scale: ClassVar[float] = 0.5

    def __init__(
        self,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_scale: float | None = None,
        max_scale: float = 1.0,
        fast_resize: bool = True,
    ) -> None:
        super().__init__(image_size, mean, std, fast_resize)
        self.min_scale = self.default_min_scale if min_scale is None else min_scale
        self.max_scale = max_scale
        if not 0 < self.min_scale <= max_scale:
            raise ValueError(
                f"min_scale is {self.min_scale} and max_scale {max_scale}; they are shares of the picture's "
                "area with 0 < min_scale <= max_scale"
            )

    def crop(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Cut a random box and resize it to the final size."""
        scale = (self.min_scale, self.max_scale)
        left, top, w, h = random_crop_box(picture.width, picture.height, scale, rng)
        box = picture.crop((left, top, left + w, top + h))
        return resize(box, self.image_size, self.image_size, self.fast_resize)


def _maybe_flip(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else picture


@registry.register_processor("blip_image_train")
class BlipImageTrainProcessor(_CropProcessor):
    """Random resized crop, horizontal flip with probability 0.5, RandAugment (2 operations, level 5).

    Args:
        image_size, mean, std, min_scale, max_scale, fast_resize: as in `_CropProcessor`.
        flip: False for data whose captions tell left from right.
        augment: False leaves RandAugment out.
    """

    default_size = 384

    def __init__(
        self,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_scale: float | None = None,
        max_scale: float = 1.0,
        fast_resize: bool = True,
        flip: bool = True,
        augment: bool = True,
    ) -> None:
        super().__init__(image_size, mean, std, min_scale, max_scale, fast_resize)
        self.flip, self.augment = flip, augment
        self._augmentation = RandAugment(2, 5)

    def reshape(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        picture = self.crop(picture, rng)
        if self.flip:
            picture = _maybe_flip(picture, rng)
        return self._augmentation(picture, rng) if self.augment else picture


@registry.register_processor("blip2_image_train")
class Blip2ImageTrainProcessor(_CropProcessor):
    """Random resized crop and horizontal flip; arguments as in `_CropProcessor`."""

    default_size = 364

    def reshape(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return _maybe_flip(self.crop(picture, rng), rng)


@registry.register_processor("clip_image_train")
class ClipImageTrainProcessor(_CropProcessor):
    """Random resized crop only; arguments as in `_CropProcessor`."""

    default_size, default_min_scale = 224, 0.9

    def reshape(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return self.crop(picture, rng)


@registry.register_processor("blip_image_eval")
class BlipImageEvalProcessor(ImageProcessor):
    """Resize to a square; the aspect ratio is not kept. Arguments as in `ImageProcessor`."""

    default_size = 384

    def reshape(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return resize(picture, self.image_size, self.image_size, self.fast_resize)


@registry.register_processor("clip_image_eval")
class ClipImageEvalProcessor(ImageProcessor):
    """Resize the short side, cut the central square; arguments as in `ImageProcessor`."""

    default_size = 224

    def reshape(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        size, (w, h) = self.image_size, picture.size
        # The long side is cut to whole pixels, not rounded: checkpoints saw it so.
        new_w, new_h = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
        picture = resize(picture, new_w, new_h, self.fast_resize)
        left, top = round((new_w - size) / 2), round((new_h - size) / 2)
        return picture.crop((left, top, left + size, top + size))
