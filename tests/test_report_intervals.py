"""Bootstrap intervals: what is known about them analytically, and that they are about the metrics that tasks score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.metrics.bleu import bleu
from lavis.metrics.bootstrap import Contributions, Statistic, intervals, mean_of, means_of
from lavis.metrics.caption import caption_scores, caption_statistics


@settings(max_examples=25)
@given(st.integers(200, 2000), st.floats(0.1, 0.9), st.integers(0, 5), st.sampled_from([0.9, 0.95, 0.99]))
def test_of_a_share_it_is_the_binomial_interval(n: int, share: float, seed: int, level: float) -> None:
    """The resampled number of right records is binomial, so its quantiles are known but for the drawing."""
    right = np.arange(n) < round(share * n)
    low, high = intervals(Contributions({"p": mean_of(right)}, range(n)), 2000, level, seed)["p"]
    p = right.mean()
    z = {0.9: 1.6449, 0.95: 1.9600, 0.99: 2.5758}[level]
    deviation = np.sqrt(p * (1 - p) / n)
    # a quantile of 2,000 draws is off by up to about 0.2 standard deviations in the far tail
    assert low == pytest.approx(p - z * deviation, abs=0.35 * deviation + 1 / n)
    assert high == pytest.approx(p + z * deviation, abs=0.35 * deviation + 1 / n)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        values = rng.random(150) < 0.7
        low, high = intervals(Contributions({"p": mean_of(values)}, range(150)), 400, 0.9, trial)["p"]
        hits += low <= 0.7 <= high
    assert 0.82 <= hits / 200 <= 0.96


def test_records_of_one_picture_are_drawn_together() -> None:
    """Ten equal records of each of 100 pictures say no more than one of each."""
    right = np.arange(100) % 2 == 0
    one = intervals(Contributions({"p": mean_of(right)}, range(100)))["p"]
    ten = intervals(
        Contributions({"p": mean_of(np.repeat(right, 10))}, np.repeat(np.arange(100), 10).tolist())
    )["p"]
    apart = intervals(Contributions({"p": mean_of(np.repeat(right, 10))}, range(1000)))["p"]
    assert ten == pytest.approx(one)
    assert apart[1] - apart[0] < 0.5 * (ten[1] - ten[0])


def test_the_seed_decides_and_the_order_of_records_does_not_matter_for_the_value() -> None:
    data = Contributions({"p": mean_of([0.0, 1.0, 1.0, 0.5] * 20)}, range(80))
    assert intervals(data, seed=3) == intervals(data, seed=3) != intervals(data, seed=4)


def test_groups_that_are_in_few_resamples() -> None:
    rows = [{"all": 1.0, "rare": 5.0}, *[{"all": 0.0}] * 50]
    found = intervals(Contributions(means_of(rows), range(51)))
    assert found["rare"] == (5.0, 5.0)  # where it is drawn, its mean is 5
    assert found["all"][0] == 0.0


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="no record"):
        intervals(Contributions({}, []))
    with pytest.raises(ValueError, match="level"):
        intervals(Contributions({"p": mean_of([1.0])}, [0]), level=95)


_WORDS = ["a", "red", "star", "and", "two", "blue", "circles", "on", "the", "left"]
_CAPTION = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(_CAPTION, st.lists(_CAPTION, min_size=1, max_size=3)), min_size=2, max_size=8),
    st.data(),
)
def test_bleu_of_a_resample_is_bleu_of_the_captions_drawn(
    items: list[tuple[str, list[str]]], data: st.DataObject
) -> None:
    predictions = {i: p for i, (p, _) in enumerate(items)}
    references = {i: r for i, (_, r) in enumerate(items)}
    statistics = caption_statistics(predictions, references)
    scores = caption_scores(predictions, references)
    for name, value in scores.items():
        assert statistics[name].value() == pytest.approx(value, rel=1e-9, abs=1e-12)
    drawn = data.draw(st.lists(st.sampled_from(range(len(items))), min_size=1, max_size=12))
    direct, _ = bleu([items[i][0] for i in drawn], [items[i][1] for i in drawn])
    for n in range(4):
        statistic: Statistic = statistics[f"Bleu_{n + 1}"]
        assert float(statistic.fold(statistic.parts[drawn].sum(axis=0))) == pytest.approx(direct[n], rel=1e-9)


# ---------------------------------------------------------------------------------------- tasks
def _records(name: str, data: Any, rng: np.random.Generator) -> tuple[str, list[dict[str, Any]]]:
    """A task's records with random answers."""
    records = list(data.records)
    if "caption" in name:
        other = [str(records[int(rng.integers(len(records)))]["caption"][0]) for _ in records]
        return "captioning", [{"image_id": i, "caption": c} for i, c in enumerate(other)]
    if name == "shapes_vqa":
        said = ["yes", "no", "red", "2"]
        return "vqa", [
            {"question_id": r["question_id"], "answer": said[int(rng.integers(4))]} for r in records
        ]
    if name == "shapes_retrieval":
        scores = rng.random((len(data.image), len(data.text)))
        return "retrieval", [
            {"direction": "i2t", "scores": scores},
            {"direction": "t2i", "scores": rng.random(scores.T.shape)},
        ]
    if name == "shapes_dialogue":
        return "dialogue", [
            {
                "image_id": r["image_id"],
                "round_id": i + 1,
                "ranks": (rng.permutation(len(t["answer_options"])) + 1).tolist(),
                "gt_index": t["gt_index"],
                "rank": int(rng.integers(1, 20)),
            }
            for r in records
            for i, t in enumerate(r["dialog"])
        ]
    return "multimodal_classification", [
        {"instance_id": str(i), "prediction": int(rng.integers(2)), "target": i % 2, "confidence": 0.5}
        for i in range(len(data))
    ]


@pytest.mark.parametrize(
    ("name", "section"),
    [
        ("shapes_caption", {"n_val": 20}), ("shapes_vqa", {"n_val": 10}), ("shapes_retrieval", {"n_val": 15}),
        ("shapes_dialogue", {"n_val": 6}), ("shapes_nlvr", {"n_val": 30}), ("shapes_entailment", {"n_val": 30}),
        ("shapes_video_caption", {"n_val": 5}),
    ],
)  # fmt: skip
def test_every_tasks_contributions_give_its_metrics(name: str, section: dict[str, int]) -> None:
    data = load_dataset(name, **section)["val"]
    task_name, records = _records(name, data, np.random.default_rng(0))
    task = registry.get_task_class(task_name).setup({})
    if hasattr(task, "before_evaluation") and task_name == "dialogue":
        task.before_evaluation(None, data)
    metrics = task.score(records, data)
    contributions = task.contributions(records, data)
    assert contributions is not None
    found = {n: s.value() for n, s in contributions.metrics.items()}
    assert found == pytest.approx(metrics) and metrics
    pictures = {str(r.get("image_id")) for r in data.records}
    assert len(set(map(str, contributions.units))) == len(pictures), "pictures are what is drawn"
    for n, (low, high) in intervals(contributions, resamples=200).items():
        assert low <= high and (low <= metrics[n] + 1e-9 or "Bleu" in n or "CIDEr" in n or n == "agg_metrics")


def test_written_dialogue_answers() -> None:
    data = load_dataset("shapes_dialogue", n_val=3)["val"]
    task = registry.get_task_class("dialogue").setup({"inference_method": "generate"})
    rows = [
        {
            "image_id": r["image_id"],
            "round_id": i + 1,
            "answer": t["answer"] if i else "nonsense",
            "reference": t["answer"],
        }
        for r in data.records
        for i, t in enumerate(r["dialog"])
    ]
    metrics, contributions = task.score(rows, data), task.contributions(rows, data)
    assert {n: s.value() for n, s in contributions.metrics.items()} == pytest.approx(metrics)
    assert [c.verdict for c in task.cases(rows, data)][:3] == [0.0, 1.0, 1.0]
