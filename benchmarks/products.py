"""Products of few rows by four ways: which is the quickest decides the thresholds in `lavis/nn/cpu.py`.

    python benchmarks/products.py [--threads 1]

Microseconds of a product (median of 9 rounds, the ways in turns): "plain" is PyTorch's own choice, "transposed"
(W xᵀ)ᵀ, "onednn" oneDNN's product of plain weights, "packed" that of re-ordered ones. "cold": about 160 MB of weights
take turns, so that each product reads its own from memory, as in a large model; "warm": one matrix again and again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import by_processor, write
from lavis.nn import cpu

SHAPES = [(128, 128), (256, 256), (512, 512), (768, 768), (2304, 768), (3072, 768), (768, 3072), (30524, 768)]
ROWS = [1, 2, 3, 4, 5, 8, 16, 64, 128]
COLD = 40_000_000  # numbers
ROUNDS = 9


def microseconds(outputs: int, inputs: int, rows: int, copies: int) -> dict[str, float]:
    weights = [torch.randn(outputs, inputs) for _ in range(copies)]
    bias, x = torch.randn(outputs), torch.randn(rows, inputs)
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 16) for weight in weights]
    ways: dict[str, Callable[[int], torch.Tensor]] = {
        "plain": lambda i: F.linear(x, weights[i], bias),
        "transposed": lambda i: cpu._transposed(x, rows, weights[i], bias),
        "onednn": lambda i: cpu._onednn(x, weights[i], bias, "none"),
        "packed": lambda i: cpu._onednn(x, packed[i], bias, "none"),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    again = max(1, int(1e8 / (outputs * inputs * rows * copies)))
    for number in range(ROUNDS + 1):
        for way, run in ways.items():
            start = time.perf_counter()
            for _ in range(again):
                for i in range(copies):
                    run(i)
            if number:  # the first round warms up
                seconds[way].append((time.perf_counter() - start) / (again * copies))
    return {way: round(statistics.median(each) * 1e6, 1) for way, each in seconds.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    found = []
    for outputs, inputs in SHAPES:
        for rows in ROWS:
            for weights, copies in (("cold", max(1, COLD // (outputs * inputs))), ("warm", 1)):
                row = {"out": outputs, "in": inputs, "rows": rows, "weights": weights}
                found.append({**row, **microseconds(outputs, inputs, rows, copies)})
                print(found[-1], flush=True)
    write(by_processor("products"), {"threads": threads, "microseconds": found})


if __name__ == "__main__":
    main()
