"""Files that visitors send: which are opened, and how large they may be.

Only files below the server's upload folder are opened, whatever path a request names. What a file is is read from its
first bytes, not from its name, and how much memory it takes from its header, before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from lavis.common.images import TooManyPixelsError, UnknownFormatError, UnreadableMediaError, open_image

IMAGES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

_CLIP_PIXELS = 4096 * 2304  # of a frame
_CLIP_FRAMES = 20_000  # 11 minutes at 30 a second


@dataclass(frozen=True)
class Limits:
    """What is taken from visitors.

    Attributes:
        folder: where the server puts uploads (and the examples it shows).
        megabytes: of a file.
        megapixels: of a picture, decoded.
    """

    folder: Path
    megabytes: float = 10
    megapixels: float = 40


def uploaded(value: Any, limits: Limits, label: str) -> Path:
    """The path of an uploaded file, as a request names it: {"path": ...}.

    Raises:
        ValueError: it names no file of the upload folder, or one that is too large.
    """
    named = value.get("path") if isinstance(value, Mapping) else None
    path = Path(named).resolve() if isinstance(named, str) and "\0" not in named else None
    if path is None or not path.is_relative_to(limits.folder.resolve()) or not path.is_file():
        raise ValueError(f"{label}: this is no file that was uploaded here; choose it again")
    size = path.stat().st_size / 1e6
    if size > limits.megabytes:
        raise ValueError(f"{label}: the file has {size:.1f} MB, at most {limits.megabytes:g} are taken")
    return path


def open_picture(value: Any, limits: Limits, label: str) -> Image.Image:
    """Decode an uploaded image, see `lavis.common.images.open_image`.

    Raises:
        ValueError: it is none, damaged, or too large.
    """
    path = uploaded(value, limits, label)
    limit = int(limits.megapixels * 1e6)
    try:
        return open_image(path, name="", formats=IMAGES, limit=limit)
    except TooManyPixelsError as e:
        raise ValueError(f"{label}: the image is too large: {e.reason}; make it smaller") from e
    except UnknownFormatError as e:
        raise ValueError(
            f"{label}: this is no picture that can be read; use one of {', '.join(IMAGES)}"
        ) from e
    except UnreadableMediaError as e:
        raise ValueError(f"{label}: the image is damaged ({e.reason})") from e


def checked_clip(value: Any, limits: Limits, label: str) -> Path:
    """The path of an uploaded clip that can be decoded.

    Playlists and other formats that make FFmpeg open further files are not taken.

    Raises:
        ValueError: it is none, damaged, or too large.
        ImportError: PyAV is not installed.
    """
    from lavis.datasets.clips import Clip

    path = uploaded(value, limits, label)
    with path.open("rb") as file:
        if not _is_clip(file.read(12)):
            raise ValueError(f"{label}: this is no clip that can be read; use MP4, MOV, WebM, MKV or AVI")
    try:
        with Clip(path) as clip:
            width, height = clip.size
            if width * height > _CLIP_PIXELS:
                raise ValueError(
                    f"{label}: frames of {width} x {height} pixels are too large; at most 4096 x 2304 are taken"
                )
            if len(clip) > _CLIP_FRAMES:
                raise ValueError(
                    f"{label}: {len(clip)} frames are too many; at most {_CLIP_FRAMES} are taken"
                )
    except UnreadableMediaError as e:
        reason = str(e).removeprefix(f"the clip {path} cannot be read: ").split(";")[0]
        raise ValueError(f"{label}: the clip cannot be read: {reason}") from e
    return path


def _is_clip(head: bytes) -> bool:
    """Whether a file begins as MP4 and QuickTime, Matroska and WebM, or AVI do."""
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
        or head[:4] == b"\x1a\x45\xdf\xa3"
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
    )
