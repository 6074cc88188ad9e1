"""Pictures and clips as a web browser shows them: which file, thumbnails, clips that move.

A file is named by a record and a number, never by a path, and only files below the data set's folder are opened:
a record that points elsewhere is shown as a record whose picture is missing.
"""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lavis.common.files import CLIPS
from lavis.common.images import MissingMediaError, open_image
from lavis.datasets.base import Dataset, Record
from lavis.datasets.clips import Clip
from lavis.datasets.shown import clip_frames

SHOWN_AS_THEY_ARE = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif",
    ".bmp": "image/bmp",
}  # fmt: skip
PLAYED_AS_THEY_ARE = {
    ".mp4": "video/mp4", ".m4v": "video/mp4", ".webm": "video/webm", ".mov": "video/quicktime",
}  # fmt: skip
MOST_PIXELS = 60_000_000  # decoded at a time, of one picture; a larger one is not opened
THUMBNAIL, PREVIEW, MOVING = 320, 1400, 320  # pixels, longer side
FRAMES = 24  # of a clip that is made to move
_MILLISECONDS = 160  # a frame of it
_ELSEWHERE = "it lies outside the data set's folder and is not shown"
_AT_A_TIME = threading.BoundedSemaphore(2)  # pictures being decoded


@dataclass(frozen=True)
class Media:
    """One picture or clip of a record.

    Attributes:
        clip: whether it moves. name: as the record has it.
        path: its file; None for what is drawn or lies in an archive.
    """

    clip: bool
    name: str
    path: Path | None = None


def inside(root: Path, name: str) -> Path | None:
    """The path of a name below a folder; None if it would lead elsewhere.

    Links that lie in the folder may lead out of it: they were put there on purpose.
    """
    path = Path(os.path.normpath(root.absolute() / name))
    folder = Path(os.path.normpath(root.absolute()))
    return path if path != folder and path.is_relative_to(folder) and "\0" not in name else None


def media_of(dataset: Dataset, record: Record) -> list[Media]:
    """The pictures or clips of a record; paths of records that point outside the folder are None."""
    moving = hasattr(dataset, "clip")
    if dataset.vis_root is not None:
        names = dataset.media_names(record)
        if dataset.data_type == "features":
            names = [n for n in names if Path(n).suffix.lower() in CLIPS]
        return [Media(moving, name, inside(dataset.vis_root, name)) for name in names]
    if hasattr(dataset, "pictures"):
        return [Media(False, str(name)) for name in record.get("images", ("left", "right"))]
    return [Media(moving, str(record.get("video" if moving else "image", "")))]


def outside(dataset: Dataset, media: Media) -> bool:
    """Whether a record names a file that is none of the data set's."""
    return dataset.vis_root is not None and media.path is None


def problem(dataset: Dataset, media: Media) -> str:
    """Why a picture or clip cannot be shown, as far as its place tells; "" if nothing is known against it."""
    if outside(dataset, media):
        return f"{media.name}: {_ELSEWHERE}"
    if media.path is not None and not media.path.is_file():
        return f"{media.name} is not there"
    return ""


# ---------------------------------------------------------------------------------------- pictures
def picture(dataset: Dataset, record: Record, number: int, side: int) -> Image.Image:
    """A record's picture, or a frame from the middle of its clip, made smaller if its longer side exceeds `side`.

    Raises:
        UnreadableMediaError: missing, damaged, too large to be opened, or outside the folder.
        ImportError: a clip needs PyAV.
    """
    media = media_of(dataset, record)[number]
    if outside(dataset, media):
        raise MissingMediaError(f"{media.name}: {_ELSEWHERE}", media.name)
    with _AT_A_TIME:
        if media.clip:
            clip = dataset.clip(record) if media.path is None else media.path  # type: ignore[attr-defined]
            found = Image.fromarray(_middle(clip))
        elif media.path is not None and media.path.is_file():
            found = open_image(media.path, name=media.path.name, limit=MOST_PIXELS, side=side)
        elif hasattr(dataset, "pictures"):
            found = dataset.pictures(record)[number]
        else:
            found = dataset.picture(record)
        found.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return found


def _middle(clip: Path | np.ndarray) -> np.ndarray:
    if isinstance(clip, np.ndarray):
        frame: np.ndarray = clip[len(clip) // 2]
        return frame
    with Clip(clip) as opened:
        middle: np.ndarray = opened.frames([len(opened) // 2])[0]
        return middle


def encoded(image: Image.Image) -> tuple[bytes, str]:
    """A picture as (content, type): small ones exactly, others as JPEG."""
    out = io.BytesIO()
    if max(image.size) <= 128:
        image.save(out, "PNG")
        return out.getvalue(), "image/png"
    image.convert("RGB").save(out, "JPEG", quality=82)
    return out.getvalue(), "image/jpeg"


def moving(dataset: Dataset, record: Record, number: int) -> tuple[bytes, str]:
    """A clip as a picture that moves: what is drawn, and files that web browsers don't play.

    Raises:
        UnreadableMediaError, ImportError: as `picture`.
    """
    media = media_of(dataset, record)[number]
    if outside(dataset, media):
        raise MissingMediaError(f"{media.name}: {_ELSEWHERE}", media.name)
    with _AT_A_TIME:
        clip: Any = dataset.clip(record) if media.path is None else media.path  # type: ignore[attr-defined]
        frames = [Image.fromarray(frame) for frame in clip_frames(clip, FRAMES)]
        for frame in frames:
            frame.thumbnail((MOVING, MOVING))
        out = io.BytesIO()
        exact = max(frames[0].size) <= 128
        frames[0].save(
            out, "WEBP", save_all=True, append_images=frames[1:], duration=_MILLISECONDS, loop=0,
            lossless=exact, quality=75, method=2,
        )  # fmt: skip
    return out.getvalue(), "image/webp"


# ---------------------------------------------------------------------------------------- kept ones
class Kept:
    """Contents that were made lately, up to so many bytes; the least recently used go first.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int = 64 << 20) -> None:
        self.limit, self.size = limit, 0
        self._entries: OrderedDict[Any, tuple[bytes, str]] = OrderedDict()
        self._guard = threading.Lock()

    def get(self, key: Any, make: Callable[[], tuple[bytes, str]]) -> tuple[bytes, str]:
        """The content kept under a key, else what `make` gives; errors are not kept."""
        with self._guard:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        made = make()
        with self._guard:
            if key not in self._entries and len(made[0]) <= self.limit // 8:
                self._entries[key] = made
                self.size += len(made[0])
                while self.size > self.limit:
                    _, (content, _) = self._entries.popitem(last=False)
                    self.size -= len(content)
        return made
