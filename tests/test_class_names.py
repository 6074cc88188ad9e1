"""Classifiers know their classes by name: in training, in checkpoints, in evaluation and in use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lavis.cli.main import main
from lavis.common.registry import registry
from lavis.models import load_model
from lavis.models.base import BaseModel
from lavis.runners import checkpoint as checkpoints
from lavis.tasks.classification import ClassificationTask

COLOURS = {"a": (200, 0, 0), "b": (0, 160, 0), "c": (0, 0, 220), "d": (120, 120, 120)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (64, 64), colour).save(folder / f"{name}.png")
    return folder


def _table(folder: Path, labels: str, name: str = "t.csv") -> Path:
    path = folder.parent / name
    path.write_text("image,label\n" + "".join(f"{label}.png,{label}\n" for label in labels))
    return path


def _run(photos: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = main([*arguments, "--images", str(photos), "--out", str(photos.parent / "runs")])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else None, err


def _tiny(**config: Any) -> BaseModel:
    torch.manual_seed(0)
    cls = registry.get_model_class("blip_classification")
    return cls.from_config({"model_type": "tiny", "weights": "none", "use_distill": False, **config})


class _Data:
    """A split with classes; `labels` are places among them."""

    annotation_paths = ("t.csv",)
    training = True

    def __init__(self, names: list[str], labels: list[int] | None = None) -> None:
        self.classnames, self.labels = names, labels or []
        self.records = [{"label": names[i], "line": n + 2} for n, i in enumerate(self.labels)]

    def __repr__(self) -> str:
        return "<data>"


class _Sure(torch.nn.Module):
    """A model whose logits are its input, with classes of its own."""

    LABELS = "label"

    def __init__(self, names: tuple[str, ...] | None, number: int = 3) -> None:
        super().__init__()
        self.classnames, self.config = names, SimpleNamespace(num_classes=number)
        self.seen: Any = None

    def predict(self, samples: Any) -> dict[str, Any]:
        return {"predictions": samples["logits"], "targets": samples.get("label")}

    def forward(self, samples: Any) -> Any:
        self.seen = samples["label"]
        return {"loss": torch.zeros(())}


def _batch(labels: list[int] | None, places: list[int]) -> dict[str, Any]:
    batch: dict[str, Any] = {
        "logits": torch.eye(3)[places] * 9,
        "instance_id": [str(i) for i in range(len(places))],
    }
    return batch if labels is None else batch | {"label": torch.tensor(labels)}


def test_predictions_are_compared_by_name() -> None:
    task, model = ClassificationTask(), _Sure(("a", "b", "c"))
    data = _Data(["c", "a"], [0, 1, 1])
    task.before_evaluation(model, data)
    rows = task.predict(
        model, _batch([0, 1, -1], [2, 1, 0])
    )  # c said of c, b said of a, a said of nobody knows
    assert [(r["class"], r.get("target_class"), r["target"]) for r in rows if r] == [
        ("c", "c", 2), ("b", "a", 0), ("a", None, None),
    ]  # fmt: skip
    assert task.score(rows, data)["accuracy_percent"] == 50  # type: ignore[arg-type]
    cases = ClassificationTask().cases(json.loads(json.dumps(rows)), data)  # by a task that has seen no model
    assert [(c.prediction.split()[0], c.truth, c.verdict) for c in cases] == [
        ("c", ("c",), 1), ("b", ("a",), 0), ("a", (), None),
    ]  # fmt: skip
    assert (
        task.cases(
            [{"instance_id": i, "prediction": 0, "target": None} for i in ("x", "07", "-1", "9")], data
        )
        == []
    )


def test_classes_are_learnt_by_name() -> None:
    task, model = ClassificationTask(), _Sure(("a", "b", "c"))
    model.name_classes = None  # type: ignore[assignment]  # has names, so it is not called
    task.before_training(model, {"own": {"train": _Data(["c", "a"])}})
    encode = task.batch_encoder(model)
    task.train_step(model, encode({"label": torch.tensor([0, 1, 1, 0])}))
    assert model.seen.tolist() == [2, 0, 0, 2]
    with pytest.raises(ValueError, match="the training sets have different classes"):
        task.before_training(model, {"a": {"train": _Data(["a", "b"])}, "b": {"train": _Data(["b", "a"])}})
    same = ClassificationTask()
    same.before_training(model, {"own": {"train": _Data(["a", "b", "c"])}})
    labels = torch.tensor([2, 1])
    encode = same.batch_encoder(model) or dict
    same.train_step(model, encode({"label": labels}))
    assert model.seen is labels


def test_classes_that_a_model_does_not_know_are_refused() -> None:
    task, data = ClassificationTask(), _Data(["b", "c", "d", "e"], [0, 1, 2])
    with pytest.raises(
        ValueError, match=r"^t\.csv, line 4: .* class 'd' \(nor 1 more .*tell apart: a, b, c$"
    ):
        task.before_evaluation(_Sure(("a", "b", "c")), data)
    with pytest.raises(ValueError, match="the model tells 3 classes apart, and <data> has 4"):
        task.before_evaluation(_Sure(None), data)


def test_names_that_are_unknown_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    monkeypatch.setattr(logging.getLogger("lavis"), "propagate", True)
    task, data = ClassificationTask(), _Data(["x", "y", "z"], [0])
    task.before_evaluation(_Sure(None), data)
    assert "don't name its 3 classes; those of <data> are taken for them in order: x, y, z" in caplog.text
    assert task.predict(_Sure(None), _batch([1], [1]))[0]["class"] == "y"  # type: ignore[index]


def test_logits_that_are_no_numbers_are_refused() -> None:
    batch = _batch([0, 1, 2], [0, 1, 2])
    for value in (float("nan"), float("inf"), -float("inf")):
        batch["logits"][1] = value
        with pytest.raises(ValueError, match="the scores of sample 1 are not finite"):
            ClassificationTask().predict(_Sure(None), batch)


def test_a_checkpoint_holds_the_names(tmp_path: Path) -> None:
    model = _tiny(num_classes=3)
    model.name_classes(["a", "b", "ü"])
    model.save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["config"]["classnames"] == ["a", "b", "ü"]
    recipe = {"model_type": "tiny", "weights": str(tmp_path / "m"), "use_distill": False}
    cls = type(model)
    for again in (
        load_model(str(tmp_path / "m")),
        load_model("blip_classification", "tiny", checkpoint=tmp_path / "m"),
        cls.from_config(recipe),
    ):
        assert again.classnames == ("a", "b", "ü")
    fresh = cls.from_config(
        {**recipe, "weights": "pretrained", "pretrained": recipe["weights"], "num_classes": 5}
    )
    assert fresh.classnames is None and fresh.cls_head[2].weight.shape[0] == 5
    torch.testing.assert_close(fresh.visual_encoder.state_dict(), model.visual_encoder.state_dict())
    with pytest.raises(ValueError, match="tells 3 classes apart, and 2 names are given"):
        model.name_classes(["a", "b"])


def test_weights_of_other_classes_are_not_taken(tmp_path: Path) -> None:
    there, here = _tiny(num_classes=3), _tiny(num_classes=3)
    there.name_classes("abc")
    there.save_pretrained(tmp_path / "m")
    checkpoints.load_weights(here, tmp_path / "m")
    assert here.classnames == ("a", "b", "c")
    for names in ("bcd", "cba"):
        here.name_classes(names)
        with pytest.raises(ValueError, match=f"with the classes a, b, c; here they are {', '.join(names)}"):
            checkpoints.load_weights(here, tmp_path / "m")
    here.config = replace(here.config, classnames=None)
    _tiny(num_classes=3).save_pretrained(tmp_path / "plain")
    checkpoints.load_weights(here, tmp_path / "plain")  # of before there were names
    assert here.classnames is None


def test_a_run_from_training_to_use(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--options", "run.valid_splits=[]", "datasets.own.val_fraction=0"]
    table = str(_table(photos, "abcabc"))
    code, summary, err = _run(
        photos,
        capsys,
        "train",
        "--data",
        table,
        "--epochs",
        "30",
        "--batch-size",
        "6",
        "--lr",
        "1e-3",
        *quick,
    )
    assert code == 0, err
    last = summary["checkpoint_last"]
    assert json.loads((Path(last) / "config.json").read_text())["config"]["classnames"] == ["a", "b", "c"]

    # any order, some of them: what is right stays right
    for labels in ("abc", "cab", "c", "bc"):
        code, metrics, err = _run(
            photos, capsys, "evaluate", "--data", str(_table(photos, labels)), "--model", last
        )
        assert code == 0 and metrics["test"]["accuracy_percent"] == 100, err
    order = photos.parent / "order.txt"
    order.write_text("c\nb\na\n")
    result = ["evaluate", "--data", str(_table(photos, "abc")), "--model", last]
    code, metrics, _ = _run(
        photos, capsys, *result, "--options", f"datasets.own.answer_list={order}", "run.job_id=named"
    )
    assert metrics["test"]["accuracy_percent"] == 100
    rows = json.loads(next((photos.parent / "runs/named/result").glob("test_*.json")).read_text())
    assert [(r["class"], r["target_class"]) for r in rows] == [(n, n) for n in "abc"]

    # as many, but others
    code, _, err = _run(photos, capsys, "evaluate", "--data", str(_table(photos, "bcd")), "--model", last)
    assert code == 2 and "t.csv, line 4: the model does not know the class 'd'" in err

    # use
    paths = [str(photos / f"{n}.png") for n in "abc"]
    assert main(["classify", *paths, "--model", last]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["label"] for r in rows] == ["a", "b", "c"] and sorted(rows[0]["labels"]) == ["a", "b", "c"]
    assert main(["classify", paths[0], "--model", last, "--labels", "c,b"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert sorted(row["labels"]) == ["b", "c"] and sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
    for more, message in (
        (["--labels", "a,dog"], "was not trained to tell dog; it knows a, b, c"),
        (["--template", "a {}"], "leave it out"),
    ):
        assert main(["classify", paths[0], "--model", last, *more]) == 2
        assert message in capsys.readouterr().err

    # fine-tuning goes on with classes that it knows, and begins a head for others
    start = ["train", "--model", last, "--epochs", "1", "--batch-size", "2", "--lr", "1e-9", *quick]
    code, summary, err = _run(photos, capsys, *start, "--data", str(_table(photos, "ca")))
    assert code == 0 and "new head" not in err
    stored = json.loads((Path(summary["checkpoint_last"]) / "config.json").read_text())["config"]
    assert stored["classnames"] == ["a", "b", "c"]
    code, metrics, _ = _run(
        photos, capsys, "evaluate", "--data", table, "--model", summary["checkpoint_last"]
    )
    assert metrics["test"]["accuracy_percent"] == 100
    for labels in ("bcd", "ad"):
        code, summary, err = _run(photos, capsys, *start, "--data", str(_table(photos, labels)))
        assert code == 0 and "tells the classes a, b, c apart, and the table has others" in err
        stored = json.loads((Path(summary["checkpoint_last"]) / "config.json").read_text())["config"]
        assert stored["classnames"] == list(labels) and stored["num_classes"] == len(labels)


def test_a_packaged_classifier_without_names_says_so(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _tiny(num_classes=3).save_pretrained(photos.parent / "m")
    assert main(["classify", str(photos / "a.png"), "--model", str(photos.parent / "m")]) == 2
    assert "its weights don't name them" in capsys.readouterr().err


def test_answers_that_a_video_model_was_trained_for_have_names(tmp_path: Path) -> None:
    from lavis.inference import load
    from lavis.inference.answering import Answerer

    torch.manual_seed(0)
    model = registry.get_model_class("alpro_qa").from_config(
        {"model_type": "tiny", "weights": "none", "num_classes": 3}
    )
    model.save_pretrained(tmp_path / "plain")
    model.name_classes(["run", "walk", "sit"])
    model.save_pretrained(tmp_path / "named")
    with pytest.raises(ValueError, match="knows 3 answers by number only"):
        Answerer(load(str(tmp_path / "plain")))
    loaded = load(str(tmp_path / "named"))
    clip = torch.randn(1, 3, 8, 64, 64)
    best = Answerer(loaded)(clip, ["what?"])
    others = [name for name in ("sit", "run", "walk") if name != best.texts[0]]
    second = Answerer(loaded, others)(clip, ["what?"])
    logits = loaded.model.predict({"video": clip, "text_input": [loaded.txt("what?")]})["predictions"][0]
    order = ["run", "walk", "sit"]
    assert best.texts[0] == order[int(logits.argmax())]
    assert second.texts[0] == max(others, key=lambda name: logits[order.index(name)])
    with pytest.raises(ValueError, match="was not trained to answer fly; it knows run, walk, sit"):
        Answerer(loaded, ["run", "fly"])
