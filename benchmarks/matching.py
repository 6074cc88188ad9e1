"""How surely the packaged matching models tell true from false, of texts of every style.

    python benchmarks/matching.py [MODEL ...]

For each of 1,000 test drawings (or clips) a true text and the same with one thing changed, false by the scene
graph. Texts come in three styles: the captions of `shapes_caption`, those of `shapes_retrieval`, and short phrases
("a green square"). Writes benchmarks/results/matching.json; models that aren't measured keep their rows.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

MODELS = ("blip_retrieval/tiny_shapes", "albef_retrieval/tiny_shapes")
PAIRS = 1_000
DATA = {"caption": "shapes_caption", "retrieval": "shapes_retrieval", "short": "shapes_caption"}


def pairs(style: str, count: int = PAIRS) -> list[tuple[Any, str, str]]:
    """Drawings, each with a true and a false text of a style."""
    from lavis.datasets.builders import load_dataset
    from lavis.datasets.shapes.matching import false_statement, true_statement
    from lavis.datasets.shapes.scene import Purpose, stream

    data = load_dataset(DATA[style])["test"]
    found = []
    for i in range(count):
        record, rng = data.records[i], stream(1, "test", i, Purpose.MATCHING)
        false = None
        while false is None:
            true = true_statement(style, record["scene"], rng)
            false = false_statement(true, record["scene"], rng, "test")
        found.append((data.picture(record), true, false))
    return found


def area(true: Sequence[float], false: Sequence[float]) -> float:
    """Area under the ROC curve: the chance that a true text scores higher than a false one."""
    ordered = sorted([(value, 1) for value in true] + [(value, 0) for value in false])
    below, wins = 0.0, 0.0
    at = 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        trues = sum(kind for _, kind in ordered[at:end])
        falses = end - at - trues
        wins += trues * (below + falses / 2)
        below += falses
        at = end
    return wins / (len(true) * len(false))


def measured(spec: str) -> dict[str, Any]:
    """For each style the medians of what true and false texts get, the area under the curve, and the accuracy."""
    import torch

    from lavis.inference import load
    from lavis.models.fusion import TextStates

    loaded = load(spec, device="cpu")
    model: Any = loaded.model
    rows = {}
    for style in DATA:
        given, found = pairs(style), []
        for start in range(0, len(given), 50):
            part = given[start : start + 50]
            tokens = model.tokens([loaded.txt(text) for _, *texts in part for text in texts])
            with torch.no_grad():
                memory = model.memorize(model.encode_image(torch.stack([loaded.vis(p) for p, *_ in part])))
                states = model.encode_text(tokens) if model.FUSES_STATES else None
                logits = model.match_logits(TextStates(tokens, states), memory)  # (100, 2)
            found.append(logits.softmax(dim=1)[:, 1].unflatten(0, (-1, 2)))
        true, false = torch.cat(found).T.tolist()
        right = sum(t > 0.5 for t in true) + sum(f <= 0.5 for f in false)
        rows[style] = {
            "true, median": statistics.median(true),
            "false, median": statistics.median(false),
            "area under the curve": area(true, false),
            "accuracy_percent": 100 * right / (len(true) + len(false)),
        }
    return rows


def main(specs: Sequence[str]) -> None:
    from benchmarks.common import RESULTS, write

    path = RESULTS / "matching.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for spec in specs:
        results[spec] = measured(spec)
        print(spec, json.dumps(results[spec], indent=1))
    write("matching", {"pairs a style": PAIRS, **{spec: results[spec] for spec in MODELS if spec in results}})


if __name__ == "__main__":
    main(sys.argv[1:] or MODELS)
