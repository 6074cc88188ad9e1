"""The data-set browser on a million records: the first index, opening, pages.

    python benchmarks/browser.py                    # about 3 minutes, 2 GiB of memory, 1 GiB of disk
    python benchmarks/browser.py --records 20000

Writes a file of captions in COCO's layout (five of a picture, as in its training split), indexes it, opens it again in
a new process, and asks a server for pages over HTTP as a web browser does: random pages, random pages of a shuffled
order, records, searches (one word of many records, two words, a phrase, the beginning of a word, a word without
another), each search for the first time. Pictures are not there, so this measures index and pages, not decoding.
Writes benchmarks/results/browser.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words(
    "man woman child dog cat horse bicycle motorcycle car bus train truck boat bench bird umbrella kite skateboard "
    "surfboard bottle cup fork bowl banana apple sandwich orange pizza cake chair couch bed table laptop phone book "
    "clock vase toothbrush elephant zebra giraffe sheep cow frisbee racket oven sink"
)
ADJECTIVES = _words(
    "red green blue black white brown yellow small large old young wooden empty wet shiny striped"
)
VERBS = _words("stands sits lies waits runs plays rests hides leans floats")
PLACES = _words("street field beach kitchen room garden park station road river forest market")
PAGES = 200  # of each kind


def write_captions(path: Path, count: int) -> None:
    """Captions of everyday things, five of a picture; a rare word in one of a thousand."""
    draw = random.Random(0)
    with path.open("w") as f:
        f.write("[")
        for i in range(count):
            thing, other = draw.choice(NAMES), draw.choice(NAMES)
            words = f"A {draw.choice(ADJECTIVES)} {thing} {draw.choice(VERBS)} near a {draw.choice(ADJECTIVES)} {other}"
            rare = f" number{draw.randrange(count // 1000 + 1)}" if draw.random() < 0.1 else ""
            record = {
                "caption": f"{words} in the {draw.choice(PLACES)}{rare}.",
                "image": f"train2014/COCO_train2014_{i // 5:012d}.jpg",
                "image_id": f"coco_{i // 5}",
            }
            f.write((", " if i else "") + json.dumps(record))
        f.write("]")


def options(path: Path) -> dict[str, Any]:
    return {"build_info": {"annotations": {"train": {"storage": str(path)}}}}


def index(path: Path) -> dict[str, float]:
    """In a process of its own: seconds of the first index, and the greatest memory."""
    from lavis.app.browser.collection import open_collection

    start, busy = time.perf_counter(), time.process_time()
    collection = open_collection("coco_caption", options(path), splits=["train"])
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    size = collection.splits["train"].index.path.stat().st_size
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds,
        "of them busy": busy,
        "MiB on disk": size / 2**20,
        "greatest memory, MiB": most,
    }


def serve(path: Path, records: int) -> dict[str, Any]:
    """In a process of its own: seconds to open, and milliseconds of pages."""
    start = time.perf_counter()
    from lavis.app.browser.collection import open_collection
    from lavis.app.browser.server import Server

    collection = open_collection("coco_caption", options(path), splits=["train"])
    server = Server(collection)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1])

    def page(address: str) -> float:
        began = time.perf_counter()
        connection.request("GET", address)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200 or b"</html>" not in content:
            raise RuntimeError(f"{address}: {answer.status}")
        return 1000 * (time.perf_counter() - began)

    page("/split/train/")
    opened, busy = time.perf_counter() - start, time.process_time()  # busy from the start of the process
    draw = random.Random(1)
    pages = -(-records // 24)
    two = [(a, n) for a in ADJECTIVES for n in NAMES]
    draw.shuffle(two)
    searches = {
        "one word": [*NAMES, *ADJECTIVES, *VERBS, *PLACES, "a", "near", "the"],
        "two words": [f"{a} {n}" for a, n in two[:PAGES]],
        "phrase": [f'"{a} {n}"' for a, n in two[PAGES : 2 * PAGES]],
        "beginning of a word": [f"{n[:length]}*" for n in NAMES for length in (2, 3)],
        "without a word": [f"{a} -{n}" for a, n in two[2 * PAGES : 3 * PAGES]],
        "rare word": [f"number{i}" for i in range(min(PAGES, records // 1000))],
    }
    addresses = {
        "random page": [f"/split/train/?page={draw.randint(1, pages)}" for _ in range(PAGES)],
        "random page, shuffled": [
            f"/split/train/?shuffle={draw.randrange(10)}&page={draw.randint(1, pages)}" for _ in range(PAGES)
        ],
        "record": [f"/split/train/{draw.randrange(records)}" for _ in range(PAGES)],
        **{
            f"search, {kind}": [f"/split/train/?{urllib.parse.urlencode({'q': q})}" for q in queries]
            for kind, queries in searches.items()
        },
    }
    measured: dict[str, Any] = {}
    for kind, some in addresses.items():
        each = sorted(page(address) for address in some)
        measured[kind] = {
            "pages": len(each),
            "median": round(statistics.median(each), 1),
            "95 %": round(each[int(0.95 * (len(each) - 1))], 1),
            "greatest": round(each[-1], 1),
        }
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "open, seconds": opened,
        "of them busy": busy,
        "milliseconds": measured,
        "greatest memory, MiB": most,
    }


def main() -> None:
    from benchmarks.common import write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        kind, path = arguments.step
        print(json.dumps(index(Path(path)) if kind == "index" else serve(Path(path), arguments.records)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "captions.json"
        write_captions(path, arguments.records)
        results: dict[str, Any] = {
            "records": arguments.records,
            "file, MiB": round(path.stat().st_size / 2**20),
            "load when started": os.getloadavg()[0],
        }
        for kind in ("index", "open and pages"):
            command = [
                sys.executable,
                __file__,
                "--records",
                str(arguments.records),
                "--step",
                kind.split()[0],
                str(path),
            ]
            environment = {**os.environ, "LAVIS_CACHE": folder}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            results[kind] = json.loads(done.stdout.splitlines()[-1])
            print(kind, json.dumps(results[kind], indent=1), flush=True)
    if arguments.records == 1_000_000:
        print(write("browser", results))


if __name__ == "__main__":
    main()
