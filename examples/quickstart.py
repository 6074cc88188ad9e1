"""The main job, end to end and offline: fine-tune a captioner on data it has not seen, and show what changed.

    python examples/quickstart.py            # `make quickstart` does this in an environment of its own
    python examples/quickstart.py --fresh    # start again instead of reusing what is there

The packaged BLIP captioner (1.9 million parameters) knows drawn shapes in eight colours and three
textures. It is fine-tuned for about two minutes on pictures with new colours (black, cyan) and a new
texture (checkered), evaluated before and after on pictures that training does not see, and the two are
laid side by side in a report.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from lavis.common.files import read_jsonl
from lavis.common.logger import setup_logger
from lavis.datasets.builders import load_dataset
from lavis.datasets.shapes import judge_caption
from lavis.runners import evaluate, train
from lavis.runners.report import Case, write_report

RECIPE = "blip/caption_shapes_new"
SPLIT = "new_test"
OUTPUT = Path("output")
BEFORE, AFTER = "quickstart_before", "quickstart"
SHOWN = {
    "truth_percent": "captions wholly true (%)",
    "CIDEr": "CIDEr",
    "Bleu_4": "BLEU-4",
    "ROUGE_L": "ROUGE-L",
}


def captions(job: str) -> dict[int, str]:
    """What a run's last evaluation wrote, by picture."""
    newest = max((OUTPUT / job / "result").glob(f"{SPLIT}_*.json"), key=lambda p: p.stat().st_mtime)
    return {row["image_id"]: row["caption"] for row in json.loads(newest.read_text(encoding="utf-8"))}


def metrics(job: str) -> dict[str, float]:
    """The metrics of a run's last evaluation."""
    rows = [r for r in read_jsonl(OUTPUT / job / "evaluate.txt") if r.get("split") == SPLIT]
    return rows[-1] if rows else {}


def step(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="start again instead of reusing what is there")
    fresh = parser.parse_args().fresh
    start = time.time()
    setup_logger()
    if fresh:
        for job in (BEFORE, AFTER):
            shutil.rmtree(OUTPUT / job, ignore_errors=True)
    where: dict[str, Any] = {"output_dir": str(OUTPUT)}

    step(1, f"evaluate the packaged captioner on {SPLIT}, which has colours and textures it never saw")
    if metrics(BEFORE):
        print("      already done, reused (--fresh starts again)")
    else:
        evaluate(RECIPE, job_id=BEFORE, **where)

    step(2, "fine-tune it for about two minutes on new_train, then evaluate again")
    if metrics(AFTER):
        print("      already done, reused (--fresh starts again)")
    else:
        train(RECIPE, job_id=AFTER, resume_ckpt_path="auto", **where)

    step(3, "caption held-out pictures and write the report")
    dataset = load_dataset("shapes_caption")[SPLIT]
    before, after = captions(BEFORE), captions(AFTER)
    cases = []
    for record in list(dataset.records)[:18]:
        number, scene = record["image_id"], record["scene"]
        cases.append(
            Case(
                image=dataset.picture(record),
                before=before[number],
                after=after[number],
                reference=record["caption"][0],
                before_right=judge_caption(before[number], scene).true,
                after_right=judge_caption(after[number], scene).true,
            )
        )
    old, new = metrics(BEFORE), metrics(AFTER)
    page, picture = write_report(
        OUTPUT / AFTER,
        "A captioner learns new colours and textures",
        "The packaged BLIP captioner, fine-tuned for about two minutes on a CPU with drawings in black, cyan and "
        "checkered, which it had never seen. All pictures below were held out. A caption counts as true only if "
        "every colour, shape, count, size, texture and relation in it holds.",
        {label: (old[key], new[key]) for key, label in SHOWN.items() if key in old and key in new},
        read_jsonl(OUTPUT / AFTER / "log.txt"),
        cases,
    )

    step(4, f"done in {time.time() - start:.0f} seconds")
    for key, label in SHOWN.items():
        if key in old and key in new:
            print(f"      {label:<28} {old[key]:8.3f} -> {new[key]:8.3f}")
    print(f"\nreport:  {page.resolve()}\npicture: {picture.resolve()}")
    print(
        f"caption your own drawings with it:  lavis caption --model {OUTPUT / AFTER / 'checkpoint_last'} PICTURE"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
