"""Where in an image each word of a text has its evidence, by every model that `Explains`, and pictures of it.

W words, P images (one, two of a pair, a video's frames), g x g patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from lavis.common.gradcam import getAttMap
from lavis.inference.abilities import models_with, require
from lavis.inference.loading import Loaded
from lavis.inference.protocols import Explains, Writes
from lavis.inference.sheet import Tile, contact_sheet
from lavis.models.base import finite_results
from lavis.models.outputs import Explanation as Explanation

LEAST_POINTING = 60.0  # percent; maps of packaged models that point more rarely are refused
_OVERLAY_SIDE = 768  # pixels; a finer overlay of 24 x 24 patches shows nothing more
_COLUMNS = 6  # of a sheet of pairs; a video's frames are one row, however many
_SIDE = 224  # pixels of a picture on a sheet; half of it for those of a clip


def explain(
    loaded: Loaded, picture: Any, text: str | None = None, layer: int | None = None, check: bool = True
) -> Explanation:
    """Heat maps of a text's words over an image, a pair of them, or a video.

    Args:
        loaded: the model, one that `Explains`.
        picture: what `Loaded.prepare` takes, a Pillow image or a video; for a model of pairs the left and the right
            image.
        text: the text, the caption (None: the model's own, where it `Writes`), or the question.
        layer: of the model, to look at, from 0; None: one that is known to show places well. Where layers read left
            and right images in turn, it stands for itself and its neighbour.
        check: refuse a packaged model whose maps are known to point elsewhere; only where no layer is chosen.

    Raises:
        ValueError: a model that can't explain, or whose maps point elsewhere; no text where one is needed; no such
            layer; one image where two are needed.
    """
    model = require(loaded, Explains)  # type: ignore[type-abstract]
    if not (text or "").strip() and not isinstance(model, Writes):
        raise ValueError(f"{loaded.spec} needs a text to explain")
    if check and layer is None and loaded.pointing is not None and loaded.pointing < LEAST_POINTING:
        raise ValueError(
            f"the maps of {loaded.spec} are misleading: a word's map peaks inside the object that it names in only "
            f"{loaded.pointing:.0f} of 100 drawings; choose {' or '.join(well_pointing())}, or a layer to look at"
        )
    samples = _samples(loaded, picture)
    with loaded.autocast(), finite_results(loaded.model, samples):
        return model.explain_text(samples, None if text is None else loaded.txt(text), layer)


def well_pointing() -> list[str]:
    """The presets whose maps were measured to find what a word names, the best first."""
    found = {
        f"{name}/{model_type}": preset.pointing
        for name, model_class in models_with(Explains).items()
        for model_type, preset in model_class.PRESETS.items()
        if preset.pointing is not None and preset.pointing >= LEAST_POINTING
    }
    return sorted(found, key=lambda spec: -found[spec])


def overlay(picture: Image.Image, heat: np.ndarray, top: float | None = None) -> Image.Image:
    """A heat map (g, g) laid over a picture, blue to red; at most 768 pixels wide and high.

    Args:
        top: what is all red, where several maps are to be compared; None: the map's own greatest value.
    """
    shown = picture.convert("RGB")
    shown.thumbnail((_OVERLAY_SIDE, _OVERLAY_SIDE))
    over = getAttMap(np.asarray(shown, dtype=np.float32) / 255, heat, top=top)
    return Image.fromarray((over * 255).round().astype(np.uint8))


def explanation_sheet(
    pictures: Image.Image | Sequence[Image.Image],
    explanation: Explanation,
    words: Sequence[int] | None = None,
) -> Image.Image:
    """A picture with the map of the whole text, then one for each word (or those at the places `words`).

    Args:
        pictures: of a pair or clip both, or its frames: each word has a row of them, and its maps have one range.
            Maps beyond the last of them, which are of padding, are left out.
    """
    several = not isinstance(pictures, Image.Image)
    given = [pictures] if isinstance(pictures, Image.Image) else pictures
    side = _SIDE if len(given) <= 2 else _SIDE // 2
    shown = [_enlarged(p.convert("RGB"), 2 * side) for p in given]
    places = range(len(explanation.words)) if words is None else words
    rows = [("(all words)", explanation.whole)] if words is None else []
    rows += [(explanation.words[i], explanation.maps[i]) for i in places]
    tiles = [
        Tile(overlay(below, heat, heats.max()), [word if i == 0 else ""])
        for word, heats in rows
        for i, (below, heat) in enumerate(zip(shown, heats.reshape(-1, *heats.shape[-2:])))
    ]
    together = min(len(rows), max(1, _COLUMNS // len(shown)))  # words in a row of the sheet
    columns = len(shown) * together if several else None
    return contact_sheet(tiles, columns=columns, side=side)


def _enlarged(picture: Image.Image, side: int) -> Image.Image:
    """With its longer side at least `side` pixels, so that a map over it is smooth."""
    scale = side / max(picture.size)
    if scale <= 1:
        return picture
    kind = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.BICUBIC
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), kind)


# ------------------------------------------------------------------------------------------ parts


def _samples(loaded: Loaded, picture: Any) -> dict[str, torch.Tensor]:
    """What the model takes: "image" (1, 3, h, w), "video" (1, 3, P, h, w), or "image0" and "image1"."""
    device = loaded.model.device
    if not loaded.pairs:
        return {loaded.sees: loaded.prepare(picture)[None].to(device)}
    if not isinstance(picture, Sequence) or len(picture) != 2:
        raise ValueError(f"{loaded.spec} judges statements about two images; give the left and the right one")
    return {f"image{i}": loaded.prepare(each)[None].to(device) for i, each in enumerate(picture)}
