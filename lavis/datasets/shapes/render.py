"""Drawing a scene: antialiased sprites on a tinted, slightly cluttered ground.

An object's picture depends on a handful of discrete values only, so each sprite is drawn once, at four
times its size, and reused; a picture then costs a few pastes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lavis.datasets.shapes.scene import Obj, Scene

MIN_SIZE, MAX_SIZE = 32, 256
_OVERSAMPLE = 4

RGB = {
    "red": (214, 30, 36),
    "green": (38, 150, 52),
    "blue": (34, 76, 212),
    "yellow": (248, 214, 22),
    "orange": (250, 132, 10),
    "purple": (120, 40, 168),
    "pink": (250, 128, 190),
    "brown": (120, 70, 28),
    "black": (26, 26, 28),
    "cyan": (20, 196, 214),
}
_LIGHT = (252, 252, 248)
CARD, CARD_RIM = (128, 130, 134), (84, 86, 90)


def _circle_points(n: int, radius: float = 1.0) -> list[tuple[float, float]]:
    return [
        (radius * math.cos(2 * math.pi * i / n), radius * math.sin(2 * math.pi * i / n)) for i in range(n)
    ]


def _star_points() -> list[tuple[float, float]]:
    points = []
    for i in range(10):
        radius = 1.1 if i % 2 == 0 else 0.46
        angle = -math.pi / 2 + math.pi * i / 5
        points.append((radius * math.cos(angle), radius * math.sin(angle) + 0.06))
    return points


def _heart_points() -> list[tuple[float, float]]:
    points = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -(y + 2.5) / 15.5))
    return points


# Outlines in units of the object's radius, x to the right, y down.
_ARM = 0.36
_OUTLINES = {
    "circle": _circle_points(64, 0.98),
    "ring": _circle_points(64, 1.0),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -1.0), (1.0, 0.82), (-1.0, 0.82)],
    "star": _star_points(),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
    "diamond": [(0.0, -1.08), (0.74, 0.0), (0.0, 1.08), (-0.74, 0.0)],
    "heart": _heart_points(),
}  # fmt: skip


def _mask(shape: str, radius: float) -> Image.Image:
    """The shape's silhouette, oversampled. radius: in final pixels."""
    half = math.ceil(radius * 1.15) + 1
    side = 2 * half * _OVERSAMPLE
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    scale, middle = radius * _OVERSAMPLE, side / 2
    pen.polygon([(middle + x * scale, middle + y * scale) for x, y in _OUTLINES[shape]], fill=255)
    if shape == "ring":
        hole = 0.44 * scale
        pen.ellipse([middle - hole, middle - hole, middle + hole, middle + hole], fill=0)
    return mask


def _pattern(texture: str, side: int, unit: float) -> np.ndarray:
    """Where the light second colour goes: bool (side, side). unit: a final pixel at 64 px, oversampled."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) - (side - 1) / 2
    if texture == "striped":
        return np.floor(y / (2.0 * unit) + 0.5) % 2 == 1
    if texture == "checkered":
        return (np.floor(x / (3.0 * unit)) + np.floor(y / (3.0 * unit))) % 2 == 1
    if texture == "dotted":
        period = 5.0 * unit
        return np.hypot((x + period / 2) % period - period / 2, (y + period / 2) % period - period / 2) < (
            1.3 * unit
        )
    return np.zeros((side, side), bool)


@functools.lru_cache(maxsize=8192)
def _sprite(shape: str, color: str, texture: str, r: float, size: int) -> tuple[Image.Image, Image.Image]:
    """Colours and coverage (RGB, L) of one object; r as a fraction of the picture's side `size`."""
    mask = _mask(shape, r * size)
    unit = _OVERSAMPLE * size / 64
    base = np.array(RGB[color], np.float32)
    side = mask.size[0]
    paint = np.broadcast_to(base, (side, side, 3)).copy()
    paint[_pattern(texture, side, unit)] = _LIGHT
    # A darker rim keeps light textures and yellow apart from a light ground.
    inner = np.asarray(mask.filter(ImageFilter.MinFilter(2 * round(0.8 * unit) + 1))) > 0
    paint[~inner] = base * 0.62
    rgb = Image.fromarray(paint.astype(np.uint8)).reduce(_OVERSAMPLE)
    return rgb, mask.reduce(_OVERSAMPLE)


def _ground(scene: Scene, size: int) -> Image.Image:
    spec = scene["background"]
    rng = np.random.default_rng(spec["seed"])
    ramp = np.linspace(-1.0, 1.0, size, dtype=np.float32)
    level = spec["level"] + ramp[:, None] * spec["gradient"][0] + ramp[None, :] * spec["gradient"][1]
    level = level + spec["noise"] * rng.standard_normal((size, size), dtype=np.float32)
    rgb = (level[..., None] + np.array(spec["tint"], np.float32)) * 255.0
    ground = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    if spec["lines"]:
        pen = ImageDraw.Draw(ground)
        for _ in range(spec["lines"]):
            x0, y0, x1, y1, shade = rng.random(5)
            change = 24 if shade > 0.5 else -24
            tone = tuple(int(np.clip(255 * (spec["level"] + t) + change, 0, 255)) for t in spec["tint"])
            pen.line([x0 * size, y0 * size, x1 * size, y1 * size], fill=tone, width=max(1, size // 64))
    return ground


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draw a scene.

    Args:
        scene: see `lavis.datasets.shapes.scene`.
        size: the picture's side in pixels, 32 to 256.

    Returns:
        An RGB picture of (size, size).
    """
    picture = _ground(scene, size)
    _draw_objects(picture, scene["objects"], size)
    if "card" in scene:
        _draw_card(picture, scene["card"], size)
    return picture


def render_frames(scenes: Sequence[Scene], size: int = 64) -> np.ndarray:
    """Draw the moments of a clip on one ground, that of the first.

    Args:
        scenes: T of them.
        size: the side in pixels, 32 to 256.

    Returns:
        An array (T, size, size, 3) of uint8, RGB.
    """
    ground = _ground(scenes[0], size)
    frames = np.empty((len(scenes), size, size, 3), np.uint8)
    for frame, scene in zip(frames, scenes, strict=True):
        picture = ground.copy()
        _draw_objects(picture, scene["objects"], size)
        frame[:] = np.asarray(picture)
    return frames


def _draw_objects(picture: Image.Image, objects: Sequence[Obj], size: int) -> None:
    for obj in objects:
        rgb, alpha = _sprite(obj["shape"], obj["color"], obj["texture"], obj["r"], size)
        half = rgb.size[0] // 2
        picture.paste(rgb, (round(obj["x"] * size) - half, round(obj["y"] * size) - half), alpha)


def _draw_card(picture: Image.Image, card: Mapping[str, float], size: int) -> None:
    """A grey square with a darker rim."""
    left, top, right, bottom = (
        round((card[axis] + side * card["half"]) * size) for side in (-1, 1) for axis in ("x", "y")
    )
    pen = ImageDraw.Draw(picture)
    pen.rectangle([left, top, right - 1, bottom - 1], fill=CARD, outline=CARD_RIM, width=max(1, size // 32))
