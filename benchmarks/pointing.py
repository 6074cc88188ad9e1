"""Whether heat maps point at what a word names, on 1,000 test drawings with the packaged models.

    python benchmarks/pointing.py [MODEL ...]

A drawing of `shapes_caption` is explained by "a COLOUR SHAPE" (a model that answers is asked "is there a COLOUR
SHAPE?"), of the first of its objects that is alone in having both. Counted is in how many drawings the centre of
the patch at the map's peak lies inside the object's box: of the map of the shape's word, of the colour's, of all
words together. Chance: the share of patches whose centre does. Writes benchmarks/results/pointing.json; models
that aren't measured keep their rows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

MODELS = ("albef_retrieval/tiny_shapes", "blip_caption/tiny_shapes", "blip_retrieval/tiny_shapes")
DRAWINGS = 1_000


def drawings(count: int = DRAWINGS) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Drawings in which an object's colour and shape are its alone, and that object."""
    from lavis.datasets.builders import load_dataset

    data = load_dataset("shapes_caption", n_test=2 * DRAWINGS)["test"]
    for record in data.records:
        kinds = [(o["color"], o["shape"]) for o in record["scene"]["objects"]]
        alone = [o for o, kind in zip(record["scene"]["objects"], kinds) if kinds.count(kind) == 1]
        if alone:
            yield data.picture(record), alone[0]
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
    hits, chances = [], []
    for picture, obj in drawings(count):
        text = f"a {obj['color']} {obj['shape']}"
        asks = hasattr(loaded.model, "predict_answers")
        found = explain(loaded, picture, f"is there {text}?" if asks else text, check=False)
        where = inside(found.whole.shape[-1], obj)
        hits.append(
            [where.flat[int(heat.argmax())] for heat in (found.maps[-1], found.maps[-2], found.whole)]
        )
        chances.append(where.mean())
    shape, color, whole = (100 * np.mean(hits, axis=0)).tolist()
    return {
        "word of the shape": shape,
        "word of the colour": color,
        "all words": whole,
        "chance": 100 * float(np.mean(chances)),
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
