"""Tasks: settings, records in order whatever the batches, scores, result files; all rooms together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lavis.common.config import Config
from lavis.common.registry import registry
from lavis.runners import build, evaluate, train
from lavis.runners.data import EvalData
from lavis.tasks import CaptionTask, Task, VQATask, setup_task

CPU = torch.device("cpu")


class Items:
    """A data set of given samples; batches are dicts of lists, or whatever `collater` makes."""

    def __init__(self, samples: Sequence[dict[str, Any]], **extra: Any) -> None:
        self.samples = list(samples)
        for name, value in extra.items():
            setattr(self, name, value)

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: Any) -> dict[str, Any]:
        return self.samples[index]

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: [s[key] for s in samples] for key in samples[0]}


class Captioner(nn.Module):
    """Says the number it sees; `calls` are the arguments it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def generate(
        self, samples: Any, num_beams: int = 3, max_length: int = 30, min_length: int = 10, top_p: float = 0.9
    ) -> list[str]:
        self.calls.append(
            {"num_beams": num_beams, "max_length": max_length, "min_length": min_length, "top_p": top_p}
        )
        return [f"a picture of number {i}" for i in samples["image"]]


def ranks(world: int) -> list[SimpleNamespace]:
    """Stand-ins for `lavis.common.dist` on each of several ranks that run one after another."""
    box: list[Any] = []

    def gather(value: Any) -> list[Any]:
        box.append(value)
        return list(box)

    return [SimpleNamespace(rank=r, all_gather_objects=gather) for r in range(world)]


@pytest.mark.parametrize(("world", "batch"), [(1, 4), (2, 3), (3, 1), (5, 2), (11, 4)])
def test_records_are_in_order_on_any_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, world: int, batch: int
) -> None:
    data = Items([{"image": i, "image_id": f"p{i}"} for i in range(10)])
    task = CaptionTask()
    for fake in ranks(world):
        monkeypatch.setattr("lavis.runners.data.dist.rank", lambda fake=fake: fake.rank)
        monkeypatch.setattr("lavis.runners.data.dist.world_size", lambda: world)
        records = task.evaluate(Captioner(), EvalData(data, "val", batch, 0, CPU), fake)
    assert records == [{"image_id": f"p{i}", "caption": f"a picture of number {i}"} for i in range(10)]


def test_a_picture_that_occurs_twice_has_one_record() -> None:
    data = Items([{"image": i, "image_id": i // 2} for i in range(6)])
    records = CaptionTask().evaluate(Captioner(), EvalData(data, "val", 4, 0, CPU))
    assert [(r["image_id"], r["caption"][-1]) for r in records] == [(0, "0"), (1, "2"), (2, "4")]


def test_generation_arguments_are_those_that_were_set() -> None:
    model = Captioner()
    CaptionTask().predict(model, {"image": [1], "image_id": [1]})
    CaptionTask(num_beams=2, max_len=9, min_len=3, top_p=0.5).predict(model, {"image": [1], "image_id": [1]})
    assert model.calls == [
        {"num_beams": 5, "max_length": 30, "min_length": 1, "top_p": 0.9},
        {"num_beams": 2, "max_length": 9, "min_length": 3, "top_p": 0.5},
    ]
    with pytest.raises(ValueError, match=r"run\.temperature=0\.5: .*takes no temperature; remove the key"):
        CaptionTask(temperature=0.5).predict(model, {"image": [1], "image_id": [1]})


def test_captions_are_scored_against_the_data_sets_references(tmp_path: Path) -> None:
    texts = ["a red circle above a blue square", "two green stars", "a yellow cross left of a small ring"]
    data = Items([], references=lambda: {i: [t, "something else entirely"] for i, t in enumerate(texts)})
    task = CaptionTask()
    perfect = task.score([{"image_id": str(i), "caption": t} for i, t in enumerate(texts)], data)
    assert (
        perfect["Bleu_1"] == pytest.approx(1)
        and perfect["agg_metrics"] == perfect["CIDEr"] + perfect["Bleu_4"]
    )
    assert task.primary == ("agg_metrics", "max")
    with pytest.raises(ValueError, match="no reference captions"):
        task.score([{"image_id": 7, "caption": "x"}], data)
    quiet = CaptionTask(report_metric=False)
    assert quiet.score([{"image_id": 7, "caption": "x"}], data) == {} and quiet.primary is None
    assert task.score([{"image_id": 7, "caption": "x"}], Items([])) == {}
    extra = Items([], extra_metrics=lambda p: {"truth_percent": float(len(p))})
    assert task.score([{"image_id": 7, "caption": "x"}], extra) == {"truth_percent": 1.0}
    path = task.save(
        [{"image_id": "000007", "caption": "ü"}, {"image_id": "a7", "caption": "x"}], tmp_path / "r.json"
    )
    assert json.loads(path.read_text()) == [
        {"image_id": "000007", "caption": "ü"},
        {"image_id": "a7", "caption": "x"},
    ]
    assert task.result_name("test", "best") == "test_epochbest.json"


class Answerer(nn.Module):
    def predict_answers(
        self, samples: Any, answer_list: Any, inference_method: str, **keys: Any
    ) -> list[str]:
        assert keys == {"num_beams": 3, "max_len": 10, "min_len": 1, "num_ans_candidates": 128}
        questions = [q for item in samples["text_input"] for q in ([item] if isinstance(item, str) else item)]
        return [
            answer_list[len(q) % len(answer_list)] if inference_method == "rank" else q for q in questions
        ]


class Grouped(Items):
    """Pictures with several questions each, padded to equally many with the id -1."""

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        most = max(len(s["question_id"]) for s in samples)
        ids = [i for s in samples for i in s["question_id"] + [-1] * (most - len(s["question_id"]))]
        texts = [
            t
            for s in samples
            for t in s["text_input"] + [s["text_input"][-1]] * (most - len(s["text_input"]))
        ]
        return {"text_input": texts, "question_id": torch.tensor(ids)}


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_padding_questions_are_dropped_and_order_is_kept(batch: int) -> None:
    counts = [2, 1, 4, 3, 1, 2, 2]
    samples, n = [], 0
    for count in counts:
        samples.append(
            {"question_id": list(range(n, n + count)), "text_input": [f"q{i}" for i in range(n, n + count)]}
        )
        n += count
    task = VQATask(inference_method="generate")
    records = task.evaluate(Answerer(), EvalData(Grouped(samples), "val", batch, 0, CPU))
    assert records == [{"question_id": i, "answer": f"q{i}"} for i in range(n)]


def test_answers_are_ranked_from_the_data_sets_list() -> None:
    data = Items([{"question_id": i, "text_input": "?" * i} for i in range(4)], answer_list=["a", "b", "c"])
    records = VQATask().evaluate(Answerer(), EvalData(data, "val", 3, 0, CPU))
    assert [r["answer"] for r in records] == ["a", "b", "c", "a"]
    with pytest.raises(ValueError, match="answer_list"):
        VQATask().evaluate(Answerer(), EvalData(Items(data.samples), "val", 3, 0, CPU))


def test_answers_are_scored_by_what_the_data_set_has() -> None:
    def truth(*answers: str, kind: str = "what") -> dict[str, Any]:
        return {"answers": list(answers), "question_type": kind, "answer_type": "other"}

    records = [{"question_id": 1, "answer": "Red"}, {"question_id": 2, "answer": "two"}]
    single = VQATask().score(records, Items([], ground_truth=lambda: {"1": truth("red"), "2": truth("3")}))
    assert single["accuracy_percent"] == single["agg_metrics"] == 50.0
    ten = {1: truth(*["red"] * 3, *["blue"] * 7), 2: truth(*["2"] * 10, kind="how many")}
    several = VQATask().score(records, Items([], ground_truth=lambda: ten))
    assert several["overall_percent"] == several["agg_metrics"] == pytest.approx(95.0)
    with pytest.raises(ValueError, match="no ground truth"):
        VQATask().score(records, Items([], ground_truth=lambda: {1: truth("red")}))
    assert VQATask().score(records, Items([])) == {}
    assert VQATask().score(records, Items([], ground_truth=lambda: {1: truth(), 2: truth()})) == {}
    assert VQATask().result_name("test", 3) == "test_vqa_result.json"


def test_predict_must_give_equally_many_records_for_each_sample() -> None:
    class Odd(Task):
        def predict(self, model: Any, samples: Any) -> list[dict[str, Any] | None]:
            return [{"a": 1}]

    data = Items([{"x": i} for i in range(3)])
    with pytest.raises(ValueError, match="equally many"):
        Odd().evaluate(nn.Identity(), EvalData(data, "val", 3, 0, CPU))


def test_setup_task_follows_the_recipe() -> None:
    task = setup_task(Config.from_dict({"run": {"task": "captioning", "num_beams": "7"}}))
    assert isinstance(task, CaptionTask) and task.settings.num_beams == 7
    assert isinstance(VQATask.setup_task(None), VQATask)
    with pytest.raises(ValueError, match=r"run\.task"):
        setup_task(Config.from_dict({}))
    with pytest.raises(ValueError, match="Did you mean 'gqa'"):
        setup_task(Config.from_dict({"run": {"task": "gqqa"}}))
    with pytest.raises(ValueError, match="num_beams"):
        CaptionTask(num_beam=3)


def test_a_users_task_is_one_class(tmp_path: Path) -> None:
    from tests.toy_training import ToyData, ToyModel, ToyTask

    registry.register_task("toy_of_test")(ToyTask)
    try:
        result = train(
            {"run": {"task": "toy_of_test"}}, model=ToyModel(),
            datasets={"train": ToyData(20), "val": ToyData(9)}, output_dir=tmp_path, max_epoch=1,
            batch_size_train=4, train_splits=["train"], valid_splits=["val"],
        )  # fmt: skip
    finally:
        registry.unregister("task", "toy_of_test")
    assert result.best is not None and result.best["metric"] == "accuracy_percent"


# ------------------------------------------------------------------------------------------ all rooms
SHAPES = {"n_train": 24, "n_val": 6, "n_test": 5}
TINY: dict[str, Any] = {
    "captioning": {
        "model": {"arch": "blip_caption", "model_type": "tiny", "weights": "none"},
        "datasets": {"shapes_caption": {**SHAPES, "captions_per_image": 2}},
        "run": {"task": "captioning", "num_beams": 2, "max_len": 12, "min_len": 5},
    },
    "vqa": {
        "model": {"arch": "blip_vqa", "model_type": "tiny", "weights": "none"},
        "datasets": {"shapes_vqa": {**SHAPES, "questions_per_image": 3, "questions": 4}},
        "run": {"task": "vqa", "num_ans_candidates": 8},
    },
}


@pytest.mark.parametrize("kind", sorted(TINY))
def test_a_recipe_trains_evaluates_and_resumes(tmp_path: Path, kind: str) -> None:
    torch.set_num_threads(1)
    options = {
        "run.output_dir": tmp_path, "run.max_epoch": 2, "run.batch_size_train": 6, "run.init_lr": 3e-4,
        "run.log_freq": 2, "run.train_splits": ["train"], "run.valid_splits": ["val"],
        "run.test_splits": ["test"], "run.device": "cpu", "run.batch_size_eval": 4,
    }  # fmt: skip
    whole = train(TINY[kind], options=options)
    assert whole.best is not None and whole.best["metric"] == "agg_metrics"
    expected = {"captioning": {"CIDEr", "Bleu_4", "truth_percent"}, "vqa": {"accuracy_percent"}}[kind]
    assert expected <= whole.metrics["test"].keys()
    losses = [r["loss"] for r in whole.history if r["event"] == "epoch"]
    assert losses[1] < losses[0]
    # the best checkpoint is a model's checkpoint: a recipe can start from it
    recipe = {**TINY[kind], "model": {**TINY[kind]["model"], "weights": str(whole.checkpoint_best)}}
    again = evaluate(recipe, options={**options, "run.batch_size_eval": 3})
    assert again["test"] == pytest.approx(whole.metrics["test"])
    part = train(TINY[kind], options={**options, "run.max_minutes": 1e-9, "run.job_id": "part"})
    assert part.stopped == "max_minutes"
    rest = train(TINY[kind], options={**options, "run.resume_ckpt_path": str(part.output_dir)})
    a, b = (
        torch.load(r.output_dir / "checkpoint_last" / "training_state.pt")["optimizer"] for r in (whole, rest)
    )
    for i, state in a["state"].items():
        assert torch.equal(state["exp_avg"], b["state"][i]["exp_avg"])


def test_a_split_that_no_data_set_has_is_refused_before_the_model_is_built() -> None:
    config = Config.from_dict(TINY["captioning"], {"run.evaluate": True, "run.test_splits": ["tset"]})
    with pytest.raises(ValueError, match="tset"):
        build(config)
