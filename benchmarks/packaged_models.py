"""What the packaged small models can do as they are, on the test splits, beside what needs no picture.

    python benchmarks/packaged_models.py

Writes benchmarks/results/packaged_models.json. What the other heads reach after fine-tuning: shapes_heads.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

# Recipe, its packaged model, the splits.
MODELS = (
    ("blip/caption_shapes", "tiny_shapes", ("test", "unseen")),
    ("blip/vqa_easy_vqa", "tiny_easy_vqa", ("test",)),
    ("blip/vqa_shapes", "tiny_shapes", ("test",)),
)
# Pre-trained models, without fine-tuning: the recipes that fine-tune them.
RETRIEVAL = ("blip/retrieval_shapes", "albef/retrieval_shapes", "alpro/retrieval_shapes")


def main() -> None:
    from benchmarks.common import write
    from benchmarks.shapes_heads import beside
    from lavis.common.config import Config
    from lavis.runners import evaluate

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for recipe, model_type, splits in MODELS:
            model = {"model_type": model_type, "weights": "finetuned"}
            results[recipe] = evaluate(recipe, model=model, splits=list(splits), output_dir=folder)
        for recipe in RETRIEVAL:
            results[recipe] = evaluate(recipe, splits=["test"], output_dir=folder)
    for recipe, row in results.items():
        row["beside it"] = beside(next(iter(Config.load(recipe).datasets)))
        print(recipe, row)
    write("packaged_models", results)


if __name__ == "__main__":
    main()
