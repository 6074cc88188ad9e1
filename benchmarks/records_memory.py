"""Memory of a million annotation records in a training's loader: once, or once per worker?

    python benchmarks/records_memory.py            # about 3 minutes, 5 GiB
    python benchmarks/records_memory.py --records 100000

Writes a file of captions in COCO's layout, reads it as the data sets do, starts loader workers by fork and by spawn
and lets each read every record once, in random order. Beside it, the same records as a list of dicts. Measured is
the proportional set size (a page that n processes share counts 1/n in each) of all processes together, less that
of the same processes without records. Writes benchmarks/results/records_memory.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

WORKERS = 4


class Reading:
    """A data set that reads a record for every item."""

    def __init__(self, records: Any) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> int:
        return len(self.records[index]["caption"])


def proportional(process: int) -> float:
    """MiB of a process, shared pages counted in part."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {process} has no Pss")


def write_captions(folder: Path, count: int) -> Path:
    path = folder / "captions.json"
    with path.open("w") as f:
        f.write("[")
        for i in range(count):
            record = {
                "image": f"train2014/COCO_train2014_{i // 5:012d}.jpg",
                "caption": f"A photograph, number {i}, of a person who stands beside a bicycle in the street.",
                "image_id": f"coco_{i // 5}",
            }
            f.write(("," if i else "") + json.dumps(record))
        f.write("]")
    return path


def measure(kind: str, start: str, path: Path) -> dict[str, float]:
    """In a process of its own: MiB in this process before workers, and of all when each has read its part."""
    import torch
    from torch.utils.data import DataLoader

    from lavis.datasets.tables import read_records

    if kind == "none":
        records: Any = [{"caption": "x"}] * 1000
    else:
        records = read_records(path)
        if kind == "list":
            records = list(records)
    data = Reading(records)
    order = torch.randperm(len(data)).tolist()
    loader = DataLoader(
        data,  # type: ignore[arg-type]
        batch_size=1000,
        sampler=order,
        num_workers=WORKERS,
        multiprocessing_context=start,
        persistent_workers=True,
    )
    alone = proportional(os.getpid())
    for _ in loader:
        pass
    everyone = [os.getpid(), *(p.pid for p in multiprocessing.active_children())]
    return {"alone": alone, "together": sum(proportional(p) for p in everyone if p)}


def main() -> None:
    from benchmarks.common import machine, write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        kind, start, path = arguments.measure
        print(json.dumps(measure(kind, start, Path(path))))
        return
    results: dict[str, Any] = {"machine": machine(), "records": arguments.records, "workers": WORKERS}
    with tempfile.TemporaryDirectory() as folder:
        path = write_captions(Path(folder), arguments.records)
        results["file, MiB"] = round(path.stat().st_size / 2**20)
        for start in ("fork", "spawn"):
            found = {}
            for kind in ("none", "packed", "list"):
                command = [sys.executable, __file__, "--measure", kind, start, str(path)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[kind] = json.loads(done.stdout.splitlines()[-1])
                print(start, kind, found[kind], flush=True)
            results[f"{start}, MiB of all processes beyond those without records"] = {
                name: round(found[kind]["together"] - found["none"]["together"])
                for kind, name in (("packed", "PackedRecords"), ("list", "list of dicts"))
            }
    print(results)
    if arguments.records == 1_000_000:
        write("records_memory", results)


if __name__ == "__main__":
    main()
