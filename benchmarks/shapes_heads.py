"""What the small heads reach on the embedded data after fine-tuning, beside what needs no picture.

    python benchmarks/shapes_heads.py output/heads                       # every head: train, test, write
    python benchmarks/shapes_heads.py output/heads blip/vqa_shapes       # some of them
    python benchmarks/shapes_heads.py output/speed --speed               # only how long training takes here

A head that was interrupted goes on where it was, a finished one is only read. Writes
benchmarks/results/shapes_heads.json, one entry per recipe: the test figures, minutes of training, chance,
a baseline that reads the text alone, and the ceiling that the data allows. With --speed an entry
"<recipe>, speed": samples a second of a first and of a later pass, and the minutes that all iterations take at that.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

Pairs = Iterable[tuple[str, str]]  # a text and its answer or label


# ------------------------------------------------------------------------- what needs no picture
def same_question(train: Pairs, test: Pairs) -> float:
    """Accuracy (%) of answering every question with its most frequent training answer."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    overall: Counter[str] = Counter()
    for question, answer in train:
        counts[question][answer] += 1
        overall[answer] += 1
    right = [(counts.get(q) or overall).most_common(1)[0][0] == a for q, a in test]
    return 100 * sum(right) / len(right)


def bag_of_words(train: Pairs, test: Pairs) -> float:
    """Accuracy (%) of naive Bayes over words and pairs of neighbours, with add-one smoothing."""

    def features(text: str) -> set[str]:
        words = text.split()
        return {*words, *(" ".join(pair) for pair in pairwise(words))}

    labels: Counter[str] = Counter()
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for text, label in train:
        labels[label] += 1
        seen[label].update(features(text))
    right = []
    for text, label in test:
        words = features(text)
        score = {
            name: math.log(number) + sum(math.log((seen[name][w] + 1) / (number + 2)) for w in words)
            for name, number in labels.items()
        }
        right.append(max(score, key=score.__getitem__) == label)
    return 100 * sum(right) / len(right)


def most_frequent(_: Pairs, test: Pairs) -> float:
    """Share (%) of the most frequent answer."""
    answers = Counter(answer for _, answer in test)
    return 100 * answers.most_common(1)[0][1] / sum(answers.values())


def _questions(record: Mapping[str, Any]) -> Pairs:
    if "dialog" in record:
        return [(turn["question"], turn["answer"]) for turn in record["dialog"]]
    answer = record["answers"][0] if "answers" in record else record["answer"]
    return [(record["question"], answer)]


def _sentence(record: Mapping[str, Any]) -> Pairs:
    return [(record["sentence"], str(record["label"]))]


Reading = tuple[Callable[[Mapping[str, Any]], Pairs], Callable[[Pairs, Pairs], float]]
# How a data set's texts are read, and what answers them without a picture.
TEXT_ONLY: dict[str, Reading] = {
    "easy_vqa": (_questions, same_question),
    "vqa": (_questions, same_question),
    "video_qa": (_questions, same_question),
    "dialogue": (_questions, same_question),
    "video_dialogue": (_questions, same_question),
    "nlvr": (_sentence, bag_of_words),
    "entailment": (_sentence, bag_of_words),
}


def beside(dataset: str, options: Mapping[str, Any]) -> dict[str, float]:
    """Percent without pictures, and the ceiling, of a data set's test split; options: as in a recipe."""
    from lavis.datasets.builders import load_dataset
    from lavis.datasets.shapes.clip_language import clip_ceiling_percent
    from lavis.datasets.shapes.retrieval import ceiling_percent

    splits = load_dataset(dataset, **options)
    kind = dataset.removeprefix("shapes_")
    if kind in TEXT_ONLY:
        read, answer = TEXT_ONLY[kind]
        train, test = (
            [pair for record in splits[name].records for pair in read(record)] for name in ("train", "test")
        )
        return {
            "most frequent answer": most_frequent(train, test),
            "text alone": answer(train, test),
            "ceiling": 100.0,
        }
    records = splits["test"].records
    if kind in ("caption", "video_caption"):
        return {"ceiling of truth": 100.0}
    if kind == "retrieval":
        ceiling = ceiling_percent([(r["caption"], r["scene"]) for r in records])
    else:
        ceiling = clip_ceiling_percent([(r["caption"], r["clip"]) for r in records])
    return {"chance, recall at 1": 100 / len(records), "ceiling of recall at 1 for pictures": ceiling}


def ceiling_without_order(records: Iterable[Mapping[str, Any]], draws: int = 100) -> float:
    """Accuracy (%) that can't be passed by who sees a clip's frames without their order.

    Such a reader takes a clip for the same clip run backwards, and both are equally likely: where the question could
    have been asked about that one with another answer, half of the time is the best. Questions that `draws` attempts
    did not hit upon count as right, so the true bound may be a little lower.
    """
    import numpy as np

    from lavis.datasets.shapes.clip_questions import CLIP_QUESTION_TYPES

    rng, reached, number = np.random.default_rng(0), 0.0, 0
    for record in records:
        back = backwards(record["clip"])
        asked = (CLIP_QUESTION_TYPES[record["question_type"]](back, rng) for _ in range(draws))
        answers = {found[1] for found in asked if found is not None and found[0] == record["question"]}
        reached += 0.5 if answers - {record["answer"]} else 1.0
        number += 1
    return 100 * reached / number


def backwards(clip: Mapping[str, Any]) -> dict[str, Any]:
    """A drawn clip run backwards."""
    from lavis.datasets.shapes.clips import state

    opposite = {"left": "right", "up": "down", "appear": "disappear", "grow": "shrink"}
    opposite |= {b: a for a, b in opposite.items()}
    objects = []
    for obj in clip["objects"]:
        x, y, r = state(obj, 1.0) or (obj["x"], obj["y"], obj["r"])
        times = {k: 1 - obj[other] for k, other in (("start", "end"), ("end", "start")) if other in obj}
        event = opposite.get(obj["event"], obj["event"])
        objects.append({**obj, "x": x, "y": y, "r": r, "event": event, **times})
    return {**clip, "objects": objects}


# -------------------------------------------------------------------------------------- the table
RECIPES = (
    "blip/retrieval_shapes", "blip/vqa_shapes", "blip/nlvr_shapes", "blip/entailment_shapes",
    "blip/dialogue_shapes", "blip/dialogue_generate_shapes", "blip/video_caption_shapes",
    "blip/video_retrieval_shapes", "blip/video_qa_shapes", "blip/video_dialogue_shapes",
    "blip/video_dialogue_generate_shapes",
    "albef/retrieval_shapes", "albef/vqa_shapes", "albef/nlvr_shapes", "albef/entailment_shapes",
    "alpro/retrieval_shapes", "alpro/qa_shapes", "clip/retrieval_shapes", "gpt/dialogue_shapes",
)  # fmt: skip


def precision(run: str | Path) -> str:
    """In what a run computed: `precision: fast` depends on the CPU."""
    versions = json.loads((Path(run) / "versions.json").read_text())
    return str(versions["precision"])


def speed(recipe: str, output: Path, iterations: int = 80) -> dict[str, Any]:
    """Minutes of training by the speed of some iterations, evaluation left out.

    In the first pass over a data set pictures are drawn, later ones find them. So a run over a share of the data goes
    through it twice, and each pass of the recipe counts with its own speed.
    """
    import torch

    from benchmarks.common import machine
    from lavis.common.config import Config
    from lavis.datasets.builders import load_dataset
    from lavis.runners import train

    every = 20
    config = Config.load(recipe)
    batch, total = config.run.batch_size_train, config.run.max_iters
    name, options = next(iter(config.datasets.items()))
    data = load_dataset(name, **options)["train"]
    each = data.options.n_train // len(data)  # records of an item
    run = train(
        recipe,
        options=[
            "run.valid_splits=[]",
            "run.test_splits=[]",
            f"run.iters_per_inner_epoch={2 * iterations}",
            f"datasets.{name}.n_train={each * iterations * batch}",
        ],
        output_dir=str(output),
        job_id=recipe.replace("/", "_"),
        max_iters=2 * iterations,
        log_freq=every,
    )
    log = [json.loads(line) for line in (Path(run.output_dir) / "log.txt").read_text().splitlines()]
    windows = [e["samples_per_second"] for e in log if e["event"] == "step"]
    half = len(windows) // 2
    # the first window of each pass warms up, or is mixed
    first, later = statistics.median(windows[1:half]), statistics.median(windows[half + 1 :])
    drawing = min(total, math.ceil(len(data) / batch))
    return {
        "cpu": machine()["cpu"],
        "threads": torch.get_num_threads(),
        "precision": precision(run.output_dir),
        "samples_per_second": {"first pass": round(first, 1), "later": round(later, 1)},
        "minutes": round((drawing / first + (total - drawing) / later) * batch / 60, 1),
    }


def main() -> None:
    import torch

    from benchmarks.common import RESULTS, machine, write
    from lavis.common.config import Config
    from lavis.datasets.builders import load_dataset
    from lavis.runners import train

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_intermixed_args()  # --speed may stand before recipes
    path = RESULTS / "shapes_heads.json"

    def keep(name: str, entry: Mapping[str, Any]) -> None:
        print(name, entry)
        # read again, as others may have been written meanwhile
        results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        write("shapes_heads", results | {"machine": machine(), name: entry})

    for recipe in arguments.recipes:
        if arguments.speed:
            keep(f"{recipe}, speed", speed(recipe, arguments.output))
            continue
        config = Config.load(recipe)
        dataset, options = next(iter(config.datasets.items()))
        run = train(
            recipe,
            output_dir=str(arguments.output),
            job_id=recipe.replace("/", "_"),
            resume_ckpt_path="auto",
        )
        found = {
            "command": f"lavis train {recipe}",
            "seed": config.run.seed,
            "test": run.metrics["test"],
            "iterations": run.iterations,
            "minutes": round(run.seconds / 60, 1),
            "threads": torch.get_num_threads(),
            "precision": precision(run.output_dir),
            "cpu": machine()["cpu"],  # the file's `machine` is that of the last one
            "beside it": beside(dataset, options),
        }
        if recipe == "blip/video_qa_shapes":  # frames side by side, as in the paper
            found["beside it"]["ceiling without order"] = ceiling_without_order(
                load_dataset(dataset, **options)["test"].records
            )
        keep(recipe, found)


if __name__ == "__main__":
    main()
