"""Time BLEU, ROUGE-L and CIDEr of 5,000 captions with 5 references each: this library and pycocoevalcap.

    python benchmarks/caption_metrics.py [--captions 5000] [--repeats 5]

Both start from untokenized text. pycocoevalcap tokenizes with a Java program; without Java its time is left
out. The captions are generated from a fixed seed. Each repetition runs in a fresh process, so that no cache
is warm. Writes benchmarks/results/caption_metrics.json and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
RESULT = Path(__file__).parent / "results" / "caption_metrics.json"
_TEXT = """
man woman person people dog cat horse street table room kitchen bus train field ball bench building
sign water beach plate food pizza tennis baseball skateboard snow group red white black large small
young standing sitting holding riding playing walking looking parked filled covered top front side
next two three several city road tree grass hand phone computer desk bed sky plane kite wave bear
bird sheep cow
"""
WORDS = _TEXT.split()
SMALL_WORDS = ["a", "a", "a", "the", "of", "on", "in", "with", "and", "to", "at", "is", "near", "his"]


def make_captions(number: int, references: int) -> tuple[dict[int, str], dict[int, list[str]]]:
    """Captions of 7 to 15 words; references share about half of their words with the prediction."""
    rng = random.Random(0)

    def sentence(source: list[str]) -> list[str]:
        return [
            rng.choice(source)
            if source and rng.random() < 0.5
            else rng.choice(rng.choice([WORDS, SMALL_WORDS]))
            for _ in range(rng.randint(6, 14))
        ]

    def written(words: list[str]) -> str:
        # a last word of one letter would be read with the next caption's first by the Java program
        text = " ".join([*words, rng.choice(WORDS)]).capitalize()
        return text + rng.choice(["", "", ".", ".", " . ", "!"])

    predictions, truth = {}, {}
    for i in range(number):
        words = sentence([])
        predictions[i] = " ".join([*words, rng.choice(WORDS)])
        truth[i] = [written(sentence(words)) for _ in range(references)]
    return predictions, truth


def timed(times: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        value = call()
    times[name] = time.perf_counter() - start
    return value


def ours(
    predictions: dict[int, str], truth: dict[int, list[str]]
) -> tuple[dict[str, float], dict[str, float]]:
    from lavis.metrics.bleu import bleu
    from lavis.metrics.caption import aligned
    from lavis.metrics.cider import cider
    from lavis.metrics.rouge import rouge_l

    times: dict[str, float] = {}
    _, p, r = timed(times, "tokenizer", lambda: aligned(predictions, truth))
    total, _ = timed(times, "BLEU", lambda: bleu(p, r))
    scores = {f"Bleu_{n + 1}": float(v) for n, v in enumerate(total)}
    scores["ROUGE_L"] = timed(times, "ROUGE_L", lambda: rouge_l(p, r))[0]
    scores["CIDEr"] = timed(times, "CIDEr", lambda: cider(p, r))[0]
    return times, scores


def theirs(
    predictions: dict[int, str], truth: dict[int, list[str]]
) -> tuple[dict[str, float], dict[str, float]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    times: dict[str, float] = {}

    def tokenize() -> tuple[Any, Any]:
        tokenizer = PTBTokenizer()
        return (
            tokenizer.tokenize({i: [{"caption": c}] for i, c in predictions.items()}),
            tokenizer.tokenize({i: [{"caption": c} for c in r] for i, r in truth.items()}),
        )

    p, r = timed(times, "tokenizer", tokenize)
    total, _ = timed(times, "BLEU", lambda: Bleu(4).compute_score(r, p))
    scores = {f"Bleu_{n + 1}": float(v) for n, v in enumerate(total)}
    scores["ROUGE_L"] = float(timed(times, "ROUGE_L", lambda: Rouge().compute_score(r, p))[0])
    scores["CIDEr"] = float(timed(times, "CIDEr", lambda: Cider().compute_score(r, p))[0])
    return times, scores


def measure(side: str, captions: int, references: int, repeats: int) -> dict[str, Any]:
    """Repeat one side in fresh processes; median, minimum and maximum in seconds."""
    runs = []
    for _ in range(repeats):
        command = [sys.executable, __file__, "--side", side, "--captions", str(captions)]
        command += ["--references", str(references)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    parts = {
        name: {
            "median_s": statistics.median(r["times"][name] for r in runs),
            "min_s": min(r["times"][name] for r in runs),
            "max_s": max(r["times"][name] for r in runs),
        }
        for name in runs[0]["times"]
    }
    totals = [sum(r["times"].values()) for r in runs]
    parts["total"] = {"median_s": statistics.median(totals), "min_s": min(totals), "max_s": max(totals)}
    return {"seconds": parts, "scores": runs[0]["scores"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--references", type=int, default=5, help="per caption")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", choices=["lavis", "pycocoevalcap"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side = ours if args.side == "lavis" else theirs
        times, scores = side(*make_captions(args.captions, args.references))
        print(json.dumps({"times": times, "scores": scores}))
        return
    sides = ["lavis"] + (["pycocoevalcap"] if shutil.which("java") else [])
    result: dict[str, Any] = {
        "captions": args.captions,
        "references_per_caption": args.references,
        "repeats": args.repeats,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **{side: measure(side, args.captions, args.references, args.repeats) for side in sides},
    }
    if len(sides) == 2:
        a, b = (result[s]["scores"] for s in sides)
        result["largest_difference_of_scores"] = max(abs(a[k] - b[k]) for k in a)
        result["times_faster"] = (
            result["pycocoevalcap"]["seconds"]["total"]["median_s"]
            / result["lavis"]["seconds"]["total"]["median_s"]
        )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{args.captions} captions, {args.references} references each, seconds: median (min to max)")
    print(f"{'':12}" + "".join(f"{s:>26}" for s in sides))
    for name in result["lavis"]["seconds"]:
        cells = [result[s]["seconds"][name] for s in sides]
        print(
            f"{name:12}"
            + "".join(
                f"{c['median_s']:10.2f} ({c['min_s']:.2f} to {c['max_s']:.2f})".rjust(26) for c in cells
            )
        )
    if len(sides) == 2:
        print(f"scores differ by at most {result['largest_difference_of_scores']:.1e}")


if __name__ == "__main__":
    main()
