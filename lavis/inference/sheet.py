"""Pictures side by side with a few words below each, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_GROUND, _INK, _FRAME = (255, 255, 255), (32, 33, 36), (218, 220, 224)
_GAP, _LINE, _FONT_SIZE = 12, 17, 13
_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf")


@dataclass(frozen=True)
class Tile:
    """A picture and the lines below it; a line that is too long loses its middle."""

    picture: Image.Image
    lines: Sequence[str] = ()


def contact_sheet(tiles: Sequence[Tile], columns: int | None = None, side: int = 192) -> Image.Image:
    """Lay pictures out row by row.

    Args:
        tiles: one or more.
        columns: None: about as wide as high, 6 at most.
        side: the longest side of a picture on the sheet, in pixels; smaller ones are enlarged.

    Raises:
        ValueError: there is no tile.
    """
    if not tiles:
        raise ValueError("there is nothing to show on a sheet")
    columns = columns or min(len(tiles), 6, math.ceil(math.sqrt(len(tiles))) + 1)
    lines = max(len(tile.lines) for tile in tiles)
    width, height = side + _GAP, side + _GAP + lines * _LINE
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _GROUND)
    pen = ImageDraw.Draw(sheet)
    font = _font()
    for i, tile in enumerate(tiles):
        left, top = _GAP + i % columns * width, _GAP + i // columns * height
        picture = _fitted(tile.picture, side)
        x, y = left + (side - picture.width) // 2, top + (side - picture.height) // 2
        sheet.paste(picture, (x, y))
        pen.rectangle([x - 1, y - 1, x + picture.width, y + picture.height], outline=_FRAME)
        for number, line in enumerate(tile.lines):
            pen.text(
                (left, top + side + 3 + number * _LINE), _shortened(line, pen, font, side), _INK, font=font
            )
    return sheet


def _font() -> Font:
    """A font of the system with many scripts, else Pillow's own, which has Latin letters without accents."""
    for name in _FONTS:
        try:
            return ImageFont.truetype(name, _FONT_SIZE)
        except OSError:
            continue
    return ImageFont.load_default(_FONT_SIZE)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    kind = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(size, kind, reducing_gap=3.0 if scale < 1 else None)


def _shortened(text: str, pen: ImageDraw.ImageDraw, font: Font, room: int) -> str:
    text = "".join(c if c.isprintable() else "?" for c in text)
    if pen.textlength(text, font) <= room:
        return text
    kept = len(text)
    while kept > 2:
        kept -= 1
        head = kept // 3  # a file's name is at the end
        short = f"{text[:head]}…{text[len(text) - (kept - head) :]}"
        if pen.textlength(short, font) <= room:
            return short
    return "…"
