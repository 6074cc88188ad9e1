"""Searching an index of images with several vectors: how long, and how much the first search by the means misses.

    python benchmarks/index_queries.py [--images 20000]

Made-up vectors, 32 of 256 numbers an image: the sum of a direction that all images' vectors of a query share, one that
an image's vectors share, and noise of each vector; the three have lengths in the ratio that a row of the results names.
A text is one vector of an image with noise of its own, cosine 0.8. Given are seconds of `Index.nearest` (median of the
texts; files in the system's cache) where the first 256, 1024, 4096 or all images are ordered exactly, and which share
of the exact best 20 it finds.

Writes benchmarks/results/index_queries.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import machine, write

QUERIES, WIDTH, BEST, TEXTS = 32, 256, 20, 40
FIRST = (256, 1024, 4096)
RATIOS = ((1.0, 1.0, 1.0), (1.0, 0.5, 1.0), (0.0, 1.0, 1.0), (0.0, 0.0, 1.0))  # shared, of the image, noise


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def measured(images: int, ratio: tuple[float, ...], folder: Path) -> dict[str, Any]:
    from lavis.inference import Index
    from lavis.inference.index import VECTORS

    rng = np.random.default_rng(0)
    index = Index.create(folder / "index", "none")
    index.queries, index.width = QUERIES, WIDTH
    (index._place() / VECTORS).touch()
    index._describe()
    shared = unit(rng.standard_normal((1, QUERIES, WIDTH)))
    with index._entries() as db:
        db.execute("CREATE TEMP TABLE listed (path BLOB UNIQUE, size INTEGER, changed INTEGER)")
        paths = [folder / f"{i}.jpg" for i in range(images)]
        db.executemany("INSERT INTO listed VALUES (?, 0, 0)", [(os.fsencode(p),) for p in paths])
        for start in range(0, images, 500):
            count = min(500, images - start)
            own = unit(rng.standard_normal((count, 1, WIDTH)))
            noise = unit(rng.standard_normal((count, QUERIES, WIDTH)))
            vectors = unit(ratio[0] * shared + ratio[1] * own + ratio[2] * noise)
            index._append(db, paths[start : start + count], vectors)
    table = np.memmap(index._place() / VECTORS, "<f2", "r", shape=(images, QUERIES, WIDTH))
    chosen = table[np.sort(rng.choice(images, TEXTS, replace=False)), rng.integers(0, QUERIES, TEXTS)]
    texts = unit(0.8 * chosen.astype(np.float32) + 0.6 * unit(rng.standard_normal((TEXTS, WIDTH))))

    seconds: dict[str, list[float]] = {}
    found: dict[str, list[float]] = {}
    for text in texts:
        exact: set[Path] = set()
        for first in (images, *FIRST):  # the exact order first
            began = time.perf_counter()
            hits = {h.path for h in index.nearest(text, BEST, text=(text, 1.0), first=first)}
            name = "all" if first == images else str(first)
            seconds.setdefault(name, []).append(time.perf_counter() - began)
            exact = exact or hits
            found.setdefault(name, []).append(len(hits & exact) / BEST)
    return {
        "seconds": {name: round(statistics.median(each), 4) for name, each in seconds.items()},
        "found_percent": {name: round(100 * statistics.mean(each), 1) for name, each in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    images = parser.parse_args().images
    rows = {}
    for ratio in RATIOS:
        with tempfile.TemporaryDirectory() as folder:
            name = " : ".join(str(part) for part in ratio)
            rows[name] = measured(images, ratio, Path(folder))
            print(name, rows[name], flush=True)
    write("index_queries", {"images": images, "machine": machine(), "shared : image : noise": rows})


if __name__ == "__main__":
    main()
