"""Video processors: a clip in, as the path of its file or as frames, a normalised float tensor (3, T, h, w) out.

Of a file only the chosen frames are decoded (`lavis.datasets.clips`). Evaluation follows the original's version
1.0.2, with which the published figures were made: evenly spread frames, RGB. (Later ones mix up RGB and BGR.)
Frames are squeezed to squares, in training too, where the crop is drawn from the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from lavis.common.registry import registry
from lavis.common.values import suggest
from lavis.datasets.clips import Clip
from lavis.processors.image import ImageProcessor, _CropProcessor, random_crop_box, resize, to_picture
from lavis.processors.randaugment import OPERATIONS, RandAugment

METHODS = ("uniform", "random", "headtail")


def sample_indices(
    total: int, wanted: int | None, method: str = "uniform", rng: np.random.Generator | None = None
) -> np.ndarray:
    """Which frames of a clip to take.

    Args:
        total: frames that there are.
        wanted: frames to take; None: all.
        method: "uniform": evenly spread, from the first on; "random": any; "headtail": half of them anywhere in
            the first half of the clip, half anywhere in the second.
        rng: the stream for the latter two; None draws a fresh one.

    Returns:
        min(total, wanted) different indices, in order.

    Raises:
        ValueError: no frames, none wanted, or an unknown method.
    """
    if total < 1:
        raise ValueError("the clip is empty: it has no frames")
    if wanted is not None and wanted < 1:
        raise ValueError(f"the number of frames is {wanted}; it should be 1 or more")
    if method not in METHODS:
        raise ValueError(f"there is no way of sampling frames named {method!r}.{suggest(method, METHODS)}")
    count = total if wanted is None else min(wanted, total)
    if method == "uniform":
        # in floating point as the original does it; its rounding may give one index too many
        return np.arange(0, total, total / count).astype(np.int64)[:count]
    rng = np.random.default_rng() if rng is None else rng
    if method == "random":
        return np.sort(rng.choice(total, count, replace=False))
    middle = total // 2
    head = rng.choice(middle, count // 2, replace=False)
    tail = middle + rng.choice(total - middle, count - count // 2, replace=False)
    return np.concatenate([np.sort(head), np.sort(tail)])


def to_frames(item: Any) -> Sequence[Any]:
    """A clip's frames, each something that `to_picture` takes; those of a file are decoded when they are looked at.

    Raises:
        TypeError: neither a path, an array nor a list.
        ValueError: an array of another shape or dtype, or frames of several sizes.
        MissingMediaError, UnreadableMediaError: a path without a file, or of one that holds no sound clip.
        ImportError: a path, and PyAV is not installed.
    """
    if isinstance(item, str | Path):
        return Clip(item)
    if isinstance(item, Clip):
        return item
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8 or item.ndim != 4 or item.shape[3] != 3:
            raise ValueError(
                f"a clip as an array should be uint8 of shape (frames, h, w, 3), not {item.dtype} of shape {item.shape}"
            )
    elif not isinstance(item, list | tuple):
        raise TypeError(
            "a clip should be the path of a file, a uint8 array (frames, h, w, 3) or a list of pictures, "
            f"not {type(item).__name__}"
        )
    frames = list(item)
    sizes = {f.size if isinstance(f, Image.Image) else getattr(f, "shape", ())[1::-1] for f in frames}
    if len(sizes) > 1:
        raise ValueError(f"the frames of a clip have several sizes (width, height): {sorted(sizes)}")
    return frames


def choose_frames(
    item: Any, wanted: int | None, method: str = "uniform", rng: np.random.Generator | None = None
) -> list[Image.Image]:
    """A clip's frames, as `sample_indices` chooses them, as pictures.

    Args:
        item: see `to_frames`; a clip that is opened here, by its path, is closed here.
        wanted, method, rng: see `sample_indices`.
    """
    if isinstance(item, str | Path):
        with Clip(item) as clip:
            return choose_frames(clip, wanted, method, rng)
    frames = to_frames(item)
    indices = sample_indices(len(frames), wanted, method, rng)
    chosen = frames.frames(indices) if isinstance(frames, Clip) else [frames[i] for i in indices]
    return [to_picture(frame) for frame in chosen]


def _stretch(start: int, length: int, factor: float, full: int) -> tuple[int, int]:
    """A span of the square (begin, end) in a frame that is `full` pixels wide or high; never empty."""
    first = min(round(start * factor), full - 1)
    return first, max(first + 1, round((start + length) * factor))


class _VideoProcessor(ImageProcessor):
    """What both share: choosing frames, padding.

    `n_frms`: frames of the result; None: all there are. A clip that has fewer is filled up with its last frame.
    """

    method: ClassVar[str]
    default_size = 256
    n_frms: int | None

    def _set_frames(self, n_frms: int | None) -> None:
        if n_frms is not None and (isinstance(n_frms, bool) or not isinstance(n_frms, int) or n_frms < 1):
            raise ValueError(f"n_frms is {n_frms!r}; it should be a number of frames, 1 or more, or none")
        self.n_frms = n_frms

    def __call__(self, item: Any, rng: np.random.Generator | None = None) -> torch.Tensor:
        """Process one clip.

        Args:
            item: the path of its file, or its frames: a uint8 array (frames, h, w, 3), RGB, or a list of Pillow
                pictures of one size.
            rng: the stream of a training processor; evaluation draws nothing.

        Returns:
            A float tensor (3, n_frms, image_size, image_size).
        """
        rng = np.random.default_rng() if rng is None else rng
        chosen = choose_frames(item, self.n_frms, self.method, rng)
        clip = torch.stack([self.to_tensor(f) for f in self.transform_clip(chosen, rng)], dim=1)
        lacking = 0 if self.n_frms is None else self.n_frms - len(chosen)
        return torch.cat([clip, clip[:, -1:].expand(-1, lacking, -1, -1)], dim=1) if lacking else clip

    def transform_clip(self, frames: Sequence[Image.Image], rng: np.random.Generator) -> list[Image.Image]:
        """RGB pictures in, RGB pictures of the final size out, all treated alike."""
        raise NotImplementedError


@registry.register_processor("alpro_video_train")
class AlproVideoTrainProcessor(_VideoProcessor, _CropProcessor):
    """Frames from both halves of the clip, random resized crop, horizontal flip with probability 0.5, RandAugment (2
    different operations, level 5, always applied); the same for all frames.

    Args:
        image_size, mean, std, min_scale, max_scale, fast_resize: as in `_CropProcessor`.
        n_frms: frames of the result; None: all there are. A clip that has fewer is filled up with its last frame.
        flip: False for data whose texts tell left from right.
        augment: False leaves RandAugment out.
    """

    WITHOUT_EFFECT = ("full_video",)  # it is always the whole video
    method = "headtail"

    def __init__(
        self,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        min_scale: float | None = None,
        max_scale: float = 1.0,
        n_frms: int | None = None,
        fast_resize: bool = True,
        flip: bool = True,
        augment: bool = True,
    ) -> None:
        _CropProcessor.__init__(self, image_size, mean, std, min_scale, max_scale, fast_resize)
        self._set_frames(n_frms)
        self.flip, self.augment = flip, augment
        operations = [name for name in OPERATIONS if name != "AutoContrast"]
        self._augmentation = RandAugment(2, 5, operations, probability=1.0, repeat=False)

    def transform_clip(self, frames: Sequence[Image.Image], rng: np.random.Generator) -> list[Image.Image]:
        size = self.image_size
        left, top, w, h = random_crop_box(size, size, (self.min_scale, self.max_scale), rng)
        (x0, x1), (y0, y1) = (
            _stretch(start, length, full / size, full)
            for start, length, full in ((left, w, frames[0].width), (top, h, frames[0].height))
        )
        done = [resize(frame.crop((x0, y0, x1, y1)), size, size, self.fast_resize) for frame in frames]
        if self.flip and rng.random() < 0.5:
            done = [frame.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for frame in done]
        if self.augment:
            drawn = self._augmentation.draw(rng)
            done = [self._augmentation.apply(frame, drawn) for frame in done]
        return done


@registry.register_processor("alpro_video_eval")
class AlproVideoEvalProcessor(_VideoProcessor):
    """Evenly spread frames, resized to squares; the aspect ratio is not kept.

    Args:
        image_size, mean, std, fast_resize: as in `ImageProcessor`.
        n_frms: frames of the result; None: all there are. A clip that has fewer is filled up with its last frame.
    """

    WITHOUT_EFFECT = ("full_video", "min_scale", "max_scale")  # nothing is cut out
    method = "uniform"

    def __init__(
        self,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        n_frms: int | None = None,
        fast_resize: bool = False,
    ) -> None:
        super().__init__(image_size, mean, std, fast_resize)
        self._set_frames(n_frms)

    def transform_clip(self, frames: Sequence[Image.Image], rng: np.random.Generator) -> list[Image.Image]:
        return [resize(f, self.image_size, self.image_size, self.fast_resize) for f in frames]
