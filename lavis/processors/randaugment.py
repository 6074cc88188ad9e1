"""RandAugment as BLIP trains with it, in Pillow.

Source: Cubuk et al., "RandAugment" (2020); operations, ranges and probabilities are those of BLIP's
image pre-processing: N operations are drawn with replacement, each is applied with probability 0.5 at
magnitude M of 10. At M = 5 brightness and sharpness have the factor 1.0, that is, they do nothing.

The geometric operations of BLIP run in OpenCV. Here they use Pillow with the same matrices, the same
pixel-centre convention and bilinear interpolation; what differs: OpenCV rounds coordinates to 1/32
pixel, and blends the outermost row of pixels with the fill colour where Pillow repeats the edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from lavis.common import moved
from lavis.common.values import suggest

__getattr__ = moved.names_of(__name__)

MAX_LEVEL = 10
TRANSLATE_PIXELS = 10  # at the highest level
FILL = (128, 128, 128)

OPERATIONS = (
    "Identity",
    "AutoContrast",
    "Brightness",
    "Sharpness",
    "Equalize",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
)
_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def _warp(picture: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float) -> Image.Image:
    """Pixel (x, y) of the result is read at (a·x + b·y + c, d·x + e·y + f), pixel centres at integers."""
    # Pillow puts pixel centres at half-integers, hence the shift of c and f.
    c += 0.5 * (1.0 - a - b)
    f += 0.5 * (1.0 - d - e)
    return picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        (a, b, c, d, e, f),
        resample=Image.Resampling.BILINEAR,
        fillcolor=FILL,
    )


def _rotate(picture: Image.Image, degrees: float) -> Image.Image:
    """Counter-clockwise about (width / 2, height / 2) in pixel-index coordinates."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x0, y0 = picture.width / 2, picture.height / 2
    return _warp(
        picture, cos, -sin, x0 - cos * x0 + sin * y0, sin, cos, y0 - sin * x0 - cos * y0
    )  # the inverse of a rotation is its transpose


def apply(name: str, picture: Image.Image, level: float, sign: int = 1) -> Image.Image:
    """Apply one operation.

    Args:
        name: one of `OPERATIONS`.
        picture: RGB.
        level: magnitude, 0 to `MAX_LEVEL`.
        sign: 1 or -1, the direction of the geometric operations.

    Raises:
        ValueError: an unknown operation.
    """
    share = level / MAX_LEVEL
    if name == "Identity":
        return picture
    if name == "AutoContrast":
        return ImageOps.autocontrast(picture)
    if name == "Equalize":
        return ImageOps.equalize(picture)
    if name in ("Brightness", "Sharpness"):
        factor = share * 1.8 + 0.1
        if factor == 1.0:
            return picture
        return getattr(ImageEnhance, name)(picture).enhance(factor)
    shear, shift = sign * share * 0.3, sign * share * TRANSLATE_PIXELS
    if name == "ShearX":
        return _warp(picture, 1, -shear, 0, 0, 1, 0)
    if name == "ShearY":
        return _warp(picture, 1, 0, 0, -shear, 1, 0)
    if name == "TranslateX":
        return _warp(picture, 1, 0, shift, 0, 1, 0)
    if name == "TranslateY":
        return _warp(picture, 1, 0, 0, 0, 1, shift)
    if name == "Rotate":
        return _rotate(picture, sign * share * 30.0)
    raise ValueError(f"RandAugment has no operation {name!r}.{suggest(name, OPERATIONS)}")


class RandAugment:
    """Draw and apply operations.

    Args:
        count: operations drawn for a picture (N).
        level: their magnitude (M), 0 to 10.
        operations: names to draw from.
        probability: with which each drawn operation is applied.
        repeat: whether an operation may be drawn twice for a picture.
    """

    def __init__(
        self,
        count: int = 2,
        level: float = 5,
        operations: Sequence[str] = OPERATIONS,
        probability: float = 0.5,
        repeat: bool = True,
    ) -> None:
        for name in operations:
            if name not in OPERATIONS:
                raise ValueError(f"RandAugment has no operation {name!r}.{suggest(name, OPERATIONS)}")
        self.count, self.level = count, level
        self.operations, self.probability, self.repeat = tuple(operations), probability, repeat

    def draw(self, rng: np.random.Generator) -> list[tuple[str, int]]:
        """What is to be done to one picture, or to all frames of a clip: operations and their directions."""
        drawn = []
        if self.repeat:
            choices = rng.integers(len(self.operations), size=self.count)
        else:
            choices = rng.choice(len(self.operations), size=self.count, replace=False)
        for choice in choices:
            if rng.random() >= self.probability:
                continue
            name = self.operations[int(choice)]
            drawn.append((name, -1 if name in _SIGNED and rng.random() < 0.5 else 1))
        return drawn

    def apply(self, picture: Image.Image, drawn: Sequence[tuple[str, int]]) -> Image.Image:
        """Do what was drawn."""
        for name, sign in drawn:
            picture = apply(name, picture, self.level, sign)
        return picture

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Image.Image:
        return self.apply(picture, self.draw(rng))
