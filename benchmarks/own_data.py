"""Retrieval trained on real data of one's own with nothing but the defaults: Debian's tuxpaint-stamps-default.

    apt-get install tuxpaint-stamps-default
    python benchmarks/own_data.py [--stamps /usr/share/tuxpaint/stamps] [--seeds 42 43 44] [-- FLAGS OF LAVIS TRAIN]

785 PNG files with a caption each (the first line of the .txt beside it), 549 / 118 / 118 by image, 204 steps of 16
(six epochs). Chance for the mean recall at 10 is 8.5 %. Writes benchmarks/results/own_data.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

STAMPS = Path("/usr/share/tuxpaint/stamps")
PARTS = {"train": 549, "val": 118, "test": 118}
EPOCHS = 6


def pairs(folder: Path) -> list[dict[str, str]]:
    """Every image that has a caption, with its path below the folder."""
    rows = []
    for image in sorted(folder.rglob("*.png")):
        text = image.with_suffix(".txt")
        caption = text.read_text(encoding="utf-8").split("\n")[0].strip() if text.is_file() else ""
        if caption:
            rows.append({"image": image.relative_to(folder).as_posix(), "text": caption})
    return rows


def write_tables(rows: list[dict[str, str]], seed: int, folder: Path) -> dict[str, Path]:
    """train.jsonl, val.jsonl and test.jsonl, each image in one of them; the rest of the images in none."""
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    tables, start = {}, 0
    for part, count in PARTS.items():
        tables[part] = folder / f"{part}.jsonl"
        lines = (json.dumps(row) + "\n" for row in rows[start : start + count])
        tables[part].write_text("".join(lines), encoding="utf-8")
        start += count
    return tables


def train(folder: Path, seed: int, flags: list[str]) -> dict[str, float]:
    """The metrics of the test part, in percent."""
    with tempfile.TemporaryDirectory() as out:
        tables = write_tables(pairs(folder), seed, Path(out))
        command = [
            sys.executable, "-m", "lavis", "train", "--task", "retrieval", "--data", str(tables["train"]),
            "--val", str(tables["val"]), "--test", str(tables["test"]), "--images", str(folder),
            "--epochs", str(EPOCHS), "--out", out, *flags, "--options", f"run.seed={seed}",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        metrics: dict[str, float] = json.loads(done.stdout)["metrics"]["test"]
    return metrics


def main() -> None:
    from benchmarks.common import write

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stamps", type=Path, default=STAMPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("flags", nargs="*", help="of lavis train, after --")
    args = parser.parse_args()
    if not args.stamps.is_dir():
        sys.exit(
            f"there is no folder {args.stamps}: apt-get install tuxpaint-stamps-default, or name one with --stamps"
        )
    runs: dict[str, Any] = {}
    for seed in args.seeds:
        metrics = train(args.stamps, seed, args.flags)
        runs[str(seed)] = {**metrics, "mean recall at 10": (metrics["txt_r10"] + metrics["img_r10"]) / 2}
        print(seed, runs[str(seed)], flush=True)
    mean = statistics.mean(run["mean recall at 10"] for run in runs.values())
    print(f"mean recall at 10 over {len(runs)} seeds: {mean:.1f} % (chance {100 * 10 / PARTS['test']:.1f} %)")
    if not args.flags:
        write("own_data", {"seeds": runs, "mean recall at 10": mean, "chance": 100 * 10 / PARTS["test"]})


if __name__ == "__main__":
    main()
