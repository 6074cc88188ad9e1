"""Whether heat maps point at what a word names, on 1,000 test drawings with the packaged models.

    python benchmarks/pointing.py [MODEL ...]

A drawing of `shapes_caption` is explained by "a COLOUR SHAPE" (a model that answers is asked "is there a COLOUR
SHAPE?"), of the first of its objects that is alone in having both. Counted is in how many drawings the centre of
the patch at the map's peak lies inside the object's box: of the map of the shape's word, of the colour's, of all
words together. Chance: the share of patches whose centre does.

Then two such objects are named, "a COLOUR SHAPE and a COLOUR SHAPE" ("is there … and …?"), and the colour's and the
shape's map of each are added: in how many the peak lies inside the object that they name, and inside the other one.

Writes benchmarks/results/pointing.json; models that aren't measured keep their rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

MODELS = (
    "albef_retrieval/tiny_shapes", "blip_caption/tiny_shapes", "blip_retrieval/tiny_shapes", "blip_vqa/tiny_shapes",
)  # fmt: skip
DRAWINGS = 1_000


def drawings(count: int = DRAWINGS, objects: int = 1) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Drawings in which so many objects' colour and shape are theirs alone, and those objects."""
    from lavis.datasets.builders import load_dataset

    data = load_dataset("shapes_caption", n_test=4 * DRAWINGS)["test"]
    for record in data.records:
        kinds = [(o["color"], o["shape"]) for o in record["scene"]["objects"]]
        alone = [o for o, kind in zip(record["scene"]["objects"], kinds) if kinds.count(kind) == 1]
        if len(alone) >= objects:
            yield data.picture(record), alone[:objects]
            count -= 1
            if not count:
                return


def inside(side: int, obj: dict[str, Any]) -> np.ndarray:
    """The patches (side, side) whose centre lies in an object's box."""
    centres = (np.arange(side) + 0.5) / side
    across, down = np.abs(centres - obj["x"]) <= obj["r"], np.abs(centres - obj["y"]) <= obj["r"]
    return down[:, None] & across[None, :]


def measured(spec: str, count: int = DRAWINGS) -> dict[str, float]:
    """Shares in percent."""
    from lavis.inference import explain, load

    loaded = load(spec, device="cpu")
    asks = hasattr(loaded.model, "predict_answers")

    def maps(image: Any, objects: Sequence[dict[str, Any]]) -> tuple[list[str], Any]:
        text = " and ".join(f"a {o['color']} {o['shape']}" for o in objects)
        found = explain(loaded, image, f"is there {text}?" if asks else text, check=False)
        return [word.strip("?") for word in found.words], found

    hits, chances = [], []
    for image, (obj,) in drawings(count):
        words, found = maps(image, [obj])
        where = inside(found.whole.shape[-1], obj)
        heats = (found.maps[words.index(obj["shape"])], found.maps[words.index(obj["color"])], found.whole)
        hits.append([where.flat[int(heat.argmax())] for heat in heats])
        chances.append(where.mean())
    shape, color, whole = (100 * np.mean(hits, axis=0)).tolist()

    own, others = [], []
    for image, pair in drawings(count, objects=2):
        words, found = maps(image, pair)
        middle = words.index("and")
        for (first, last), obj, other in (((0, middle), *pair), ((middle, None), *pair[::-1])):
            at = [i for i in range(len(words))[first:last] if words[i] in (obj["color"], obj["shape"])]
            peak = int(found.maps[at].sum(axis=0).argmax())
            own.append(inside(found.whole.shape[-1], obj).flat[peak])
            others.append(inside(found.whole.shape[-1], other).flat[peak])
    return {
        "word of the shape": shape,
        "word of the colour": color,
        "all words": whole,
        "chance": 100 * float(np.mean(chances)),
        "of two, the one that is named": 100 * float(np.mean(own)),
        "of two, the other one": 100 * float(np.mean(others)),
    }


def main(specs: Sequence[str]) -> None:
    from benchmarks.common import RESULTS, write

    path = RESULTS / "pointing.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for spec in specs:
        results[spec] = measured(spec)
        print(spec, results[spec])
    write("pointing", {"drawings": DRAWINGS, **{spec: results[spec] for spec in MODELS if spec in results}})


if __name__ == "__main__":
    main(sys.argv[1:] or MODELS)
