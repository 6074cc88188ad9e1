"""What beam search costs beside the model: the time of the host in a step, with a model that costs nothing.

    python benchmarks/beams.py

256 items with 5 beams, a vocabulary of 200, 30 steps, one thread. The time is that of the thread, so that other
programs on the machine don't count. Beside it stands what `log_softmax` and `topk` alone take of numbers of that shape,
which no search does without; on a GPU those are the device's. Writes benchmarks/results/beams.json.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

ITEMS, BEAMS, VOCABULARY, STEPS, ROUNDS = 256, 5, 200, 30, 15


class Free:
    """Logits that were drawn beforehand."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.calls = logits, 0  # (steps, rows, V)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.logits[self.calls - 1, : len(ids)]

    def select(self, index: torch.Tensor) -> None:
        pass


def milliseconds(work: Callable[[], Any], times: int) -> dict[str, float]:
    """Of the thread, for one of `times` equal parts of the work: least and median of the rounds."""
    each = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        work()
        each.append(1e3 * (time.thread_time() - start) / times)
    return {"least": round(min(each), 3), "median": round(statistics.median(each), 3)}


def main() -> None:
    from benchmarks.common import write
    from lavis.nn.generation import GenerationOptions, generate

    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(STEPS, ITEMS * BEAMS, VOCABULARY, generator=random)
    prompt = torch.full((ITEMS, 1), 2)
    options = GenerationOptions(num_beams=BEAMS, max_length=1 + STEPS, min_length=0)
    model = Free(logits)

    def search() -> None:
        model.calls = 0
        generate(model, prompt, options, end=1, pad=0)
        assert model.calls == STEPS

    def kernels() -> None:
        for step in logits:
            step.log_softmax(dim=-1).view(ITEMS, -1).topk(2 * BEAMS, dim=1)

    with torch.no_grad():
        found = {
            "items": ITEMS, "beams": BEAMS, "vocabulary": VOCABULARY, "steps": STEPS,
            "ms a step": milliseconds(search, STEPS),
            "ms a step, log_softmax and topk alone": milliseconds(kernels, STEPS),
        }  # fmt: skip
    print(found)
    write("beams", found)


if __name__ == "__main__":
    main()
