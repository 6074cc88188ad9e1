"""What the benchmarks share: interleaved timing, ratios with their spread, a description of the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores and versions, as far as the system tells."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    flags: set[str] = set()
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = set(line.split())
    versions = {}
    for package in ("torch", "transformers", "numpy", "pycocoevalcap", "openlavis"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "bf16_instructions": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "python": platform.python_version(),
        **versions,
    }


def interleaved(
    sides: Mapping[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each side, taken in turns so that a change of the machine's load meets all alike."""
    for _ in range(warmup):
        for run in sides.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """How many times as fast ours is: median of the rounds' ratios, and the least and greatest."""
    each = sorted(a / b for a, b in zip(theirs, ours))
    return {"median": statistics.median(each), "least": each[0], "greatest": each[-1]}


def by_processor(name: str) -> str:
    """A name for results of this kind of processor: speeds of two kinds don't mix."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)|processor|cpu", "", machine()["cpu"].lower()))
    return f"{name}.{'-'.join(words[:2])}"


def write(name: str, data: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **data}, indent=1) + "\n")
    return path


def run_parts(script: str, name: str, parts: Sequence[str], threads: int) -> None:
    """Run parts of a benchmark, each in a process of its own (`script --part PART`, whose last line is JSON), and write
    their results as those of this processor; parts that aren't run keep theirs."""
    name = by_processor(name)
    path = RESULTS / f"{name}.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    for part in parts:
        done = subprocess.run(
            [sys.executable, script, "--part", part], stdout=subprocess.PIPE, text=True, check=True
        )
        results[part] = json.loads(done.stdout.splitlines()[-1])
        print(part, json.dumps(results[part], indent=1))
        results.pop("machine", None)
        write(name, {"threads": threads, **results})
