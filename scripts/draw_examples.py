"""Draw the pictures and clips that the web demo shows as examples and searches in.

    python scripts/draw_examples.py lavis/app/demo/examples

They are scenes of the embedded data (`shapes_retrieval`, `shapes_caption`, `shapes_video_retrieval`), test splits, that
no packaged model was trained on, drawn at 128 px without noise so that files are small. Clips need PyAV.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes import make_clip, make_scene, render, render_clip
from lavis.datasets.shapes.clip_language import describe_clip
from lavis.datasets.shapes.clip_layouts import write_clip
from lavis.datasets.shapes.clips import Clip
from lavis.datasets.shapes.scene import Scene

SEED = 0
SIDE = 128
GALLERY = 24
FIRST = 83  # a purple ring, a red triangle, a green square: the pages' texts speak of it
SINGLES = (("green", "square"), ("red", "circle"), ("yellow", "star"), ("purple", "heart"))
CLIPS = 3
FRAMES = 16


def drawings() -> Iterator[tuple[str, Image.Image]]:
    """Names and pictures."""
    for name, scene in scenes():
        yield name, render(scene, SIDE)


def scenes() -> Iterator[tuple[str, Scene]]:
    """Names and what is to be drawn: a gallery of scenes with several things, and a few with one."""
    records = load_dataset("shapes_retrieval")["test"].records
    for number, record in enumerate([records[FIRST], *(records[i] for i in range(GALLERY - 1))]):
        yield f"drawing_{number:02d}.png", _still(record["scene"])
    all_scenes = [_still(make_scene(SEED, "test", index)) for index in range(1000)]
    for number, (color, shape) in enumerate(SINGLES):
        scene = next(s for s in all_scenes if _shows(s, color, shape))
        yield f"single_{number}.png", scene


def clips() -> Iterator[tuple[str, Clip]]:
    """Names of clips, and what happens in them."""
    for number in range(CLIPS):
        yield f"clip_{number}.webm", _still(make_clip(SEED, "test", number))


def clip_sentences() -> list[str]:
    """A true sentence about each clip."""
    return [describe_clip(clip, np.random.default_rng(0))[0] for _, clip in clips()]


def _shows(scene: Scene, color: str, shape: str) -> bool:
    return [(o["color"], o["shape"]) for o in scene["objects"]] == [(color, shape)]


def _still(scene: Scene) -> Scene:
    """Without noise, which compresses badly and shows nothing."""
    return {**scene, "background": {**scene["background"], "noise": 0.0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in drawings():
        picture.save(folder / name, optimize=True)
    for name, clip in clips():
        write_clip(render_clip(clip, FRAMES, SIDE), folder / name)
    print("\n".join(clip_sentences()))
    size = sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".png", ".webm"))
    print(f"{folder}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
