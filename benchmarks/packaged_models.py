"""What the packaged small models can do, on the test splits, beside what needs no picture.

    python benchmarks/packaged_models.py

Writes benchmarks/results/packaged_models.json.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))


def question_only(train: Any, test: Any) -> float:
    """Accuracy (%) of answering every question with its most frequent training answer, pictures unseen."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for record in train.records:
        counts[record["question"]][record["answers"][0]] += 1
        overall[record["answers"][0]] += 1
    right = 0
    for record in test.records:
        known = counts.get(record["question"]) or overall
        right += known.most_common(1)[0][0] == record["answers"][0]
    return 100 * right / len(test.records)


def main() -> None:
    from benchmarks.common import write
    from lavis.datasets.builders import load_dataset
    from lavis.runners import evaluate

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        shapes = evaluate(
            "blip/caption_shapes",
            model={"model_type": "tiny_shapes", "weights": "finetuned"},
            splits=["test", "unseen"],
            output_dir=folder,
        )
        results["blip_caption/tiny_shapes on shapes_caption"] = shapes
        results["blip_vqa/tiny_easy_vqa on easy_vqa"] = evaluate(
            "blip/vqa_easy_vqa",
            model={"model_type": "tiny_easy_vqa", "weights": "finetuned"},
            splits=["test"],
            output_dir=folder,
        )
    easy = load_dataset("easy_vqa")
    results["question only on easy_vqa, accuracy_percent"] = question_only(easy["train"], easy["test"])
    for name, row in results.items():
        print(name, row)
    write("packaged_models", results)


if __name__ == "__main__":
    main()
