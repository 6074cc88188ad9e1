"""Image files: which are opened, and how their pixels become RGB.

Every file that holds an image goes through `open_image`: your own data, commands, uploads, shards, thumbnails,
downloads. Pixels are what a person would see in a viewer:

- 16 bits per channel become 8 (65535 is white); 32-bit and float images are scaled by their own range.
- What is transparent is composed on white.
- The EXIF orientation is obeyed.
- Of an animation the first frame is taken.

What decoders raise for damaged files, whatever it is, becomes `UnreadableMediaError`. Formats come from a list, which
holds none that starts another program (Pillow runs Ghostscript for an EPS file, whatever its name).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lavis.common.files import IMAGE_FORMATS

MOST_PIXELS = (
    178_956_970  # width times height of an image that is decoded, 512 MiB as RGB; Pillow's own limit
)
MOST_PIXELS_VARIABLE = "LAVIS_MAX_PIXELS"  # of the environment: another limit

ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
# TIFF tags
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339


class UnreadableMediaError(OSError):
    """An image or a video is there and cannot be decoded. `path`: its file. `reason`: why, without the path."""

    def __init__(self, message: str, path: str | Path = "", reason: str = "") -> None:
        super().__init__(message)
        self.path, self.reason = str(path), reason or message


class MissingMediaError(UnreadableMediaError, FileNotFoundError):
    """There is no such image or video. `path`: where it should be."""


class UnknownFormatError(UnreadableMediaError):
    """It is in no format that is decoded."""


class TooManyPixelsError(UnreadableMediaError):
    """It is larger than what is decoded."""


# ------------------------------------------------------------------------------------- files
def check_file(path: Path, advice: str = "", what: str = "image") -> None:
    """Refuse what is no plain file: opening a pipe would wait for ever.

    Args:
        path: the file. advice: what to do when it is missing, for the message. what: how messages call it.

    Raises:
        MissingMediaError: there is nothing.
        UnreadableMediaError: it is a folder, a pipe, a socket or a device, or may not be looked at.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as e:
        message = f"there is no {what} {path}" + (f"; {advice}" if advice else "")
        raise MissingMediaError(message, path) from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in its name
        raise UnreadableMediaError(f"the {what} {str(path)!r} cannot be read ({e})", path) from e
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no plain file")
        raise UnreadableMediaError(f"the {what} {path} cannot be read: it is {kind}, not a file", path)


def most_pixels() -> int:
    """The limit of an image's width times height: `MOST_PIXELS`, or what the environment says.

    Raises:
        ValueError: the environment says no whole number.
    """
    given = os.environ.get(MOST_PIXELS_VARIABLE)
    if not given:
        return MOST_PIXELS
    if not (given.isascii() and given.isdigit() and int(given)):
        raise ValueError(
            f"{MOST_PIXELS_VARIABLE} is {given!r}; a number of pixels, such as {MOST_PIXELS}, was expected"
        )
    limit = int(given)
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # Pillow's check comes first
    return limit


def _known(formats: Sequence[str] | None) -> list[str]:
    """Those of some formats that this Pillow reads: AVIF came late."""
    Image.init()
    return [name for name in (IMAGE_FORMATS if formats is None else formats) if name in Image.OPEN]


@contextlib.contextmanager
def opened(
    source: str | Path | bytes,
    name: str | Path | None = None,
    *,
    advice: str = "",
    formats: Sequence[str] | None = None,
    limit: int | None = None,
    side: int | None = None,
) -> Iterator[Image.Image]:
    """An image whose header was read, for a block that decodes it with `to_rgb` or looks at its size.

    Args:
        source: a file's path, or its content.
        name: what to call it in messages; None: its path.
        advice: what to do when it is missing, for the message.
        formats: Pillow's names of those to try; None: `IMAGE_FORMATS`.
        limit: of width times height, in pixels; None: `most_pixels`.
        side: what is needed of the longer side, in pixels: a larger JPEG may be decoded smaller, which is faster.

    Raises:
        MissingMediaError: there is no such file.
        UnreadableMediaError: the block, or reading the header, raised what decoders raise; a format that is not in
            the list; more pixels than the limit.
        ValueError: the environment names no limit.
    """
    path = None if isinstance(source, bytes) else Path(source)
    name = name if name is not None else path if path is not None else "that was given"
    most = most_pixels() if limit is None else limit
    if path is not None:
        check_file(path, advice)
    try:
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=_known(formats)
        ) as image:
            if side is not None:
                image.draft("RGB", (2 * side, 2 * side))
            if image.width * image.height > most:
                raise _too_many(image.width * image.height, most, name)
            yield image
    except UnreadableMediaError:
        raise
    except Image.DecompressionBombError as e:
        told = re.search(r"\((\d+) pixels\)", str(e))
        raise _too_many(int(told[1]) if told else 0, most, name) from e
    except UnidentifiedImageError as e:  # Pillow's own message names an object in memory
        raise _undecodable(name, "it has no known format", UnknownFormatError) from e
    except MemoryError as e:
        raise _undecodable(name, "there is not enough memory") from e
    except Exception as e:  # a decoder may raise anything when it meets a damaged file
        raise _undecodable(name, " ".join(str(e).split()) or type(e).__name__) from e


def _too_many(pixels: int, limit: int, name: str | Path) -> UnreadableMediaError:
    size = f"{pixels / 1e6:.0f} megapixels" if pixels else "too many pixels"
    reason = f"it has {size}, at most {limit / 1e6:.4g} are decoded"
    message = (
        f"the image {name} cannot be decoded: {reason}. Make it smaller if it is yours and no decompression bomb, "
        f"or set {MOST_PIXELS_VARIABLE} to more pixels"
    )
    return TooManyPixelsError(message, name, reason)


def _undecodable(
    name: str | Path, reason: str, kind: type[UnreadableMediaError] = UnreadableMediaError
) -> UnreadableMediaError:
    message = f"the image {name} cannot be decoded ({reason}); replace it or remove its record"
    return kind(message, name, reason)


def open_image(
    source: str | Path | bytes,
    advice: str = "",
    *,
    name: str | Path | None = None,
    upright: bool = True,
    plain: bool = False,
    formats: Sequence[str] | None = None,
    limit: int | None = None,
    side: int | None = None,
) -> Image.Image:
    """Decode an image file to RGB.

    Args:
        source: a file's path, or its content.
        advice: what to do when it is missing, for the message.
        name: what to call it in messages; None: its path.
        upright: turn it as its EXIF orientation says.
        plain: leave both to Pillow: no turning, no white behind what is transparent. Published data sets were read
            so when published numbers were made.
        formats, limit, side: as in `opened`.

    Raises:
        MissingMediaError: there is no such file; `advice` says what to do about it.
        UnreadableMediaError: it is there and can't be decoded.
    """
    with opened(source, name, advice=advice, formats=formats, limit=limit, side=side) as image:
        if plain:
            return image.convert("RGB")
        out = to_rgb(image)
        return turned(out, orientation_of(image)) if upright else out


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of a file as it is stored, from its header: nothing is decoded.

    Raises:
        MissingMediaError, UnreadableMediaError: as `open_image`.
    """
    with opened(path) as image:
        return image.size


# ------------------------------------------------------------------------------------- pixels
def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an image that was decoded, 1 to 8; 1 where it has none, or its EXIF is damaged.

    A TIFF is turned while it is decoded, and has none afterwards.
    """
    try:
        value = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 (damaged EXIF makes Pillow raise anything; the pixels may be whole)
        return 1
    return value if value in _TURNS else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image as an EXIF orientation asks for."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def from_16_bit(image: Image.Image, bits: int = 16) -> Image.Image:
    """A grey image of 16 bits ("I;16", or "I" with values from 0 to 65535) with 8 bits: divided by 257 and rounded.

    Args:
        bits: how many of them are used; white is the largest number of so many.
    """
    white = (1 << bits) - 1
    values = np.asarray(image).astype(np.int64).clip(0, white)
    return Image.fromarray(((values * 255 + white // 2) // white).astype(np.uint8))


def _by_own_range(image: Image.Image) -> Image.Image:
    """A grey image of integers or floats with 8 bits: its lowest value is black, its highest white.

    Infinite values are the lowest and the highest; what is no number is black. One value alone is black.
    """
    values = np.asarray(image)
    if image.mode == "I" and _tag(image, _BITS) == 32 and _tag(image, _SAMPLE_FORMAT) in (None, 1):
        values = values.view(np.uint32)  # which Pillow has no mode for
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    scaled = (np.clip(values, low, high) - low) * (255 / (high - low) if high > low else 0.0)
    return Image.fromarray(np.nan_to_num(scaled, nan=0.0).round().astype(np.uint8))


def _tag(image: Image.Image, tag: int) -> Any:
    """A tag of a TIFF, the first of several values; None where it is not there, or the image no TIFF."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) and value else value


def to_rgb(image: Image.Image) -> Image.Image:
    """The pixels of a file that was just opened, as in the module's docstring, without turning.

    Raises:
        whatever a decoder raises: call it inside of `opened`.
    """
    raw = _raw_mode(image)
    image.load()
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not wide and image.mode not in ("I", "F"):
        return _on_white(image, raw)
    # Pillow leaves the 12 bits of a TIFF as they are
    grey = from_16_bit(image, 12 if _tag(image, _BITS) == 12 else 16) if wide else _by_own_range(image)
    if _tag(image, _PHOTOMETRIC) == 0:  # white is zero: Pillow turns 8 bits around, no others
        grey = Image.fromarray(255 - np.asarray(grey))
    clear = image.info.get("transparency")
    if wide and isinstance(clear, int):
        grey.paste(255, mask=Image.fromarray(np.asarray(image) == clear))
    return grey.convert("RGB")


def _raw_mode(image: Image.Image) -> str:
    """How a PNG's samples are stored ("L;4": grey of 4 bits), "" for other formats; decoding forgets it."""
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if image.format == "PNG" and tiles else ""
    return args if isinstance(args, str) else ""


def _on_white(image: Image.Image, raw: str) -> Image.Image:
    """RGB, with white behind what is transparent."""
    clear = image.info.get("transparency")
    if image.mode in ("1", "L", "RGB") and clear is not None:
        out = image.convert("RGB")
        out.paste("white", mask=Image.fromarray(_has_colour(out, image.mode, raw, clear)))
        return out
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or clear is not None or palette.endswith("A"):
        whole = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    return image.convert("RGB")


def _has_colour(image: Image.Image, mode: str, raw: str, colour: Any) -> np.ndarray:
    """Where an RGB image has the colour that its file calls transparent, (h, w) bool.

    Args:
        image: RGB. mode, raw: of the file. colour: a number, or three; as wide as the file's samples.
    """
    samples = np.array(colour if isinstance(colour, tuple | list) else [colour])
    if mode == "1":
        samples = 255 * (samples != 0)
    samples = samples * {"L;2": 85, "L;4": 17}.get(raw, 1)
    if raw == "RGB;16B":
        samples = samples >> 8  # Pillow keeps the upper byte
    same: np.ndarray = (np.asarray(image) == samples).all(axis=2)
    return same
