"""Runs on a table of one's own: the defaults that are chosen for its texts and for the weights it starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from lavis.cli import own_data
from lavis.cli.main import main
from lavis.common.config import Config
from lavis.datasets.own_table import TASKS
from lavis.inference.abilities import default, needed
from lavis.models import build_model, load_model
from lavis.models.folders import origin_of
from lavis.tasks.retrieval import RetrievalTask

DRAWN = "a red square and a green circle"
REAL = "an elephant beside a kangaroo"
COLUMNS = {
    "captioning": {"text": DRAWN}, "retrieval": {"text": DRAWN}, "classification": {"label": "a"},
    "vqa": {"question": "what color is the square?", "answer": "red"},
}  # fmt: skip


def table(folder: Path, task: str, media: str = "image", count: int = 6, **cells: Any) -> str:
    path = folder / f"{task}_{media}.jsonl"
    rows = [{media: f"{i}.png", **COLUMNS[task], **cells} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def fitted(data: str, task: str, model: str | None = None, **options: Any) -> tuple[Config, list[str]]:
    """The configuration of `lavis train --task … --data …`, and what is said."""
    notes: list[str] = []
    content = own_data.recipe(task, {"train": data}, model, notes)
    keys = {"run.max_epoch": 1, **options}
    return own_data.fitted(Config.from_dict(content, keys), notes), notes


@pytest.mark.parametrize("media", ["image", "video"])
@pytest.mark.parametrize("task", TASKS)
def test_naming_the_default_model_changes_nothing(task: str, media: str, tmp_path: Path) -> None:
    data = table(tmp_path, task, media)
    small, real = needed(task, media), default(task, media, "published")
    unnamed, named = (fitted(data, task, model)[0] for model in (None, small))
    assert unnamed.to_dict() == named.to_dict()
    assert named.run.init_lr == 3e-4
    published = fitted(data, task, real)[0]
    assert published.run.init_lr == 1e-5 and "temperature" not in published.model
    for config in (named, published):
        assert config.run.max_grad_norm == 1 and config.run.lr_sched == "linear_warmup_cosine_per_step_lr"


def test_random_weights_have_a_rate_of_their_own(tmp_path: Path) -> None:
    data = table(tmp_path, "retrieval")
    assert fitted(data, "retrieval", "albef_retrieval/tiny")[0].run.init_lr == own_data.RATES["random"]
    config = fitted(data, "retrieval", "albef_retrieval/tiny_shapes", **{"model.weights": "none"})[0]
    assert config.run.init_lr == own_data.RATES["random"] and "temperature" not in config.model


def test_what_was_asked_for_stays(tmp_path: Path) -> None:
    data = table(tmp_path, "retrieval", text=REAL)
    asked = {
        "run.init_lr": 7e-5, "run.max_grad_norm": None, "run.lr_sched": "constant_lr", "run.warmup_steps": 3,
        "model.temperature": 0.2, "model.vocabulary": "tiny",
    }  # fmt: skip
    config = fitted(data, "retrieval", None, **asked)[0]
    run = config.run
    assert (run.init_lr, run.max_grad_norm, run.lr_sched, run.warmup_steps) == (7e-5, None, "constant_lr", 3)
    assert (config.model["temperature"], config.model["vocabulary"]) == (0.2, "tiny")
    assert build_model(config.model).temp.item() == pytest.approx(0.2)  # type: ignore[union-attr, operator]


def test_packaged_matchers_begin_at_the_temperature_of_a_new_one(tmp_path: Path) -> None:
    for model in ("blip_retrieval/tiny_shapes", "albef_retrieval/tiny_shapes"):
        config = fitted(table(tmp_path, "retrieval"), "retrieval", model)[0]
        assert build_model(config.model).temp.item() == pytest.approx(0.07)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("recipe", ["blip/retrieval_shapes", "albef/retrieval_shapes", "blip/retrieval_coco"])
def test_recipes_keep_their_own_settings(recipe: str) -> None:
    config = Config.load(recipe)
    assert "temperature" not in config.model and "vocabulary" not in config.model
    assert config.run.lr_sched == "linear_warmup_cosine_lr" and config.run.stuck_after is None


def test_a_temperature_that_there_is_none_of_is_refused() -> None:
    with pytest.raises(ValueError, match="blip_caption has no temperature"):
        build_model({"arch": "blip_caption", "model_type": "tiny", "temperature": 0.07})
    with pytest.raises(ValueError, match=r"must lie between 0\.001 and 0\.5"):
        build_model({"arch": "blip_retrieval", "model_type": "tiny", "temperature": 7.0})


def test_a_checkpoint_is_what_its_training_began_with(tmp_path: Path) -> None:
    data = table(tmp_path, "retrieval")
    for name, kind, rate in (("tiny_shapes", "packaged", 3e-4), ("tiny", "random", own_data.RATES["random"])):
        folder = tmp_path / name
        build_model({"arch": "albef_retrieval", "model_type": name}).save_pretrained(folder)
        assert origin_of(folder) == kind
        again = load_model(str(folder))
        assert again.origin == kind
        again.save_pretrained(tmp_path / "copy")  # saved again, it still knows
        assert origin_of(tmp_path / "copy") == kind
        assert fitted(data, "retrieval", str(folder))[0].run.init_lr == rate
        # written before folders said so
        described = json.loads((folder / "config.json").read_text())
        del described["origin"]
        (folder / "config.json").write_text(json.dumps(described))
        assert origin_of(folder) == kind
    described["model_type"] = "coco"
    (folder / "config.json").write_text(json.dumps(described))
    assert origin_of(folder) == "published" == origin_of("https://example.org/model.pth")


@pytest.mark.parametrize("model", ["albef_retrieval/tiny_shapes", "blip_retrieval/tiny_shapes"])
def test_texts_of_the_world_get_the_full_vocabulary(model: str, tmp_path: Path) -> None:
    config, notes = fitted(table(tmp_path, "retrieval", text=REAL), "retrieval", model)
    assert config.model["vocabulary"] == "bert"
    assert any("gets BERT's" in note and "model.vocabulary" in note for note in notes)
    assert len(build_model(config.model).tokenizer) > 30_000  # type: ignore[arg-type]
    drawn, notes = fitted(table(tmp_path, "retrieval"), "retrieval", model)
    assert "vocabulary" not in drawn.model and not any("BERT" in note for note in notes)


@pytest.mark.parametrize(
    ("task", "cells"),
    [
        ("captioning", {"text": [DRAWN, REAL]}),
        ("vqa", {"question": "is it an elephant?"}),
        ("vqa", {"answer": ["kangaroo", "an elephant"]}),
        ("classification", {"text": REAL}),
    ],
)
def test_captions_questions_and_answers_are_looked_at(
    task: str, cells: dict[str, Any], tmp_path: Path
) -> None:
    assert fitted(table(tmp_path, task, **cells), task)[0].model["vocabulary"] == "bert"


def test_a_checkpoint_with_the_full_vocabulary_keeps_it(tmp_path: Path) -> None:
    data = table(tmp_path, "retrieval", text=REAL)
    model = build_model(fitted(data, "retrieval")[0].model)
    model.save_pretrained(tmp_path / "run")
    config, notes = fitted(data, "retrieval", str(tmp_path / "run"))
    assert not any("BERT" in note for note in notes)
    again = build_model(config.model)
    assert again.tokenizer.pieces() == model.tokenizer.pieces()  # type: ignore[union-attr]


def test_a_resumed_run_equals_one_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the vocabulary and the temperature that were chosen for it."""
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 90, 200 - 30 * i)).save(tmp_path / f"{i}.png")
    data = table(tmp_path, "retrieval", text=REAL)
    call = [
        "train", "--task", "retrieval", "--data", data, "--images", str(tmp_path), "--out", str(tmp_path / "out"),
        "--epochs", "2", "--batch-size", "2", "--device", "cpu",
    ]  # fmt: skip
    assert main([*call, "--options", "run.job_id=whole"]) == 0
    own = RetrievalTask.train_step

    def stops(self: Any, model: Any, samples: Any) -> Any:
        if samples["epoch"] == 1:
            raise ValueError("the machine went away")
        return own(self, model, samples)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalTask, "train_step", stops)
        assert main([*call, "--options", "run.job_id=part"]) == 2
    assert main([*call, "--resume", "--options", "run.job_id=part"]) == 0
    whole, part = (tmp_path / "out" / job / "checkpoint_last" for job in ("whole", "part"))
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, part))
    assert one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)
    for name in ("config.json", "vocab.txt"):
        assert (whole / name).read_bytes() == (part / name).read_bytes()
    described = json.loads((part / "config.json").read_text())
    assert described["origin"] == "packaged" and described["config"]["text"]["vocab_size"] > 30_000


def test_a_length_in_iterations_takes_the_place_of_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        Image.new("RGB", (20, 20), (40 * i, 90, 200 - 30 * i)).save(tmp_path / f"{i}.png")
    call = [
        "train",
        "--task",
        "captioning",
        "--data",
        table(tmp_path, "captioning"),
        "--images",
        str(tmp_path),
    ]
    keys = ["run.max_iters=3", "run.valid_splits=[]", "run.save_last=false"]
    assert main([*call, "--out", str(tmp_path / "out"), "--batch-size", "2", "--options", *keys]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["iterations"] == 3
    assert "starting from the small packaged model" in captured.err
