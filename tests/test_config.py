"""Recipes: precedence, typing, errors that name the place, the paper's forms, the original's recipes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lavis.common.config import Config, find_recipe, parse_options, recipe_names
from lavis.runners import RunConfig
from lavis.tasks.captioning import CaptionSettings

RECIPES: dict[str, Any] = json.loads((Path(__file__).parent / "reference" / "recipes.json").read_text())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_originals_recipes_load_and_come_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(RECIPES[name])))
    original, config = RECIPES[name], Config.load(path)
    assert config.model["arch"] == original["model"]["arch"]
    assert config.datasets == original["datasets"]
    written = config.to_dict()["run"]
    for key, value in original["run"].items():
        if key in ("world_size", "dist_url", "distributed", "use_dist_eval_sampler"):
            assert key not in written
        elif isinstance(value, str) and value[0].isdigit():
            assert isinstance(written[key], (int, float)) and written[key] == float(value)
        else:
            assert written[key] == value
    assert Config.from_dict(config.to_dict()).to_dict() == config.to_dict()
    path.write_text(config.to_yaml())
    assert Config.load(path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({}, {}),
        ({"load_finetuned": False}, {"weights": "pretrained"}),
        ({"load_finetuned": True}, {"weights": "finetuned"}),
        ({"load_pretrained": False}, {"weights": "none"}),
        ({"load_finetuned": False, "load_pretrained": False}, {"weights": "none"}),
        ({"finetuned": "a.pth"}, {"weights": "a.pth"}),
        (
            {"load_finetuned": "false", "pretrained": "b.pth"},
            {"weights": "pretrained", "pretrained": "b.pth"},
        ),
        ({"load_finetuned": True, "finetuned": "a.pth", "pretrained": "b.pth"}, {"weights": "a.pth"}),
        ({"load_pretrained": False, "pretrained": "b.pth"}, {"weights": "none"}),
        ({"weights": "pretrained", "pretrained": "b.pth"}, {"weights": "pretrained", "pretrained": "b.pth"}),
        ({"weights": "mine", "load_finetuned": False}, {"weights": "mine"}),
        ({"vit_grad_ckpt": True, "vit_ckpt_layer": 4}, {"grad_checkpointing": 4}),
        ({"vit_grad_ckpt": False, "vit_ckpt_layer": 4}, {"grad_checkpointing": 0}),
        ({"med_config_path": "configs/models/med_config.json", "image_size": 480}, {"image_size": 480}),
    ],
)
def test_the_originals_model_keys_become_ours(section: dict, expected: dict) -> None:
    assert Config.from_dict({"model": section}).model == expected


def test_later_layers_win_and_lists_are_replaced(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("run: {task: captioning, max_epoch: 2, num_beams: 4, test_splits: [val, test]}\n")
    second.write_text(
        'run: {max_epoch: 3, test_splits: [val]}\nmodel: {arch: x, image_size: "${run.max_epoch}"}\n'
    )
    config = Config.load([first, second], ["run.num_beams=7", "model.deep.key", "1e-3"])
    assert config.run == RunConfig(task="captioning", max_epoch=3, test_splits=["val"])
    assert config.task_config == CaptionSettings(num_beams=7)
    assert config.model == {"arch": "x", "image_size": 3, "deep": {"key": 1e-3}}
    assert config.sources["run.max_epoch"] == str(second) and config.sources["run.num_beams"] == "options"


def test_every_form_of_options() -> None:
    parsed = parse_options(
        ["run.a=2e-5", "run.b", "3", "run.c=[val, test]", "run.d='two words'", "run.e=null", "run.f", "x=y"]
    )
    assert parsed == {
        "run.a": 2e-5, "run.b": 3, "run.c": ["val", "test"], "run.d": "two words",
        "run.e": None, "run.f": "x=y",
    }  # fmt: skip
    assert parse_options({"run.a": 1}) == {"run.a": 1} and parse_options(None) == {}


@pytest.mark.parametrize("bad", [["run.a"], ["run.a=[1"], ["=3"], ["run a=3"], ["run.a=1", "b c"]])
def test_malformed_options_are_refused(bad: list[str]) -> None:
    with pytest.raises(ValueError, match="option"):
        parse_options(bad)


@given(st.dictionaries(st.sampled_from(["run.x", "model.y.z", "datasets.d"]), st.integers() | st.booleans()))
def test_pairs_and_equals_forms_agree(options: dict[str, Any]) -> None:
    def text(v: Any) -> str:
        return str(v).lower()

    equals = [f"{k}={text(v)}" for k, v in options.items()]
    pairs = [part for k, v in options.items() for part in (k, text(v))]
    assert parse_options(equals) == parse_options(pairs) == options


def failure(content: dict[str, Any], options: Any = None) -> str:
    with pytest.raises(ValueError) as e:
        Config.from_dict(content, options)
    return str(e.value)


def test_unknown_keys_name_the_place_and_a_near_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("run: {task: captioning, max_epohc: 3}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: run\.max_epohc .*'max_epoch'"):
        Config.load(path)
    assert "num_beams" in failure({"run": {"task": "captioning", "num_beam": 3}})
    assert "run.num_beams" in failure({"run": {"num_beams": 3}})  # no task, so no keys of one
    assert "run.max_epoch" in failure({}, ["max_epoch=3"])
    assert "'datasets'" in failure({"dataset": {}})
    assert "'captioning'" in failure({"run": {"task": "caption"}})
    assert "model.image_size" in failure({"model": {"image_size": 1}, "run": {"image_size": 1}})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("max_epoch", "many", "whole number"),
        ("max_epoch", 2.5, "whole number"),
        ("init_lr", "fast", "number"),
        ("init_lr", True, "number"),
        ("evaluate", "maybe", "true or false"),
        ("train_dataset_ratios", [1], "mapping"),
        ("precision", "fp8", "bf16"),
        ("batch_size_train", 0, "1 or more"),
        ("max_grad_norm", 0, "above 0"),
        ("beta2", 1.0, "between 0 and 1"),
        ("init_lr", float("nan"), "0 or more"),
        ("num_beams", 0, "1 or more"),
        ("min_len", 31, "max_len"),
    ],
)
def test_wrong_values_name_key_value_and_what_is_right(key: str, value: Any, expected: str) -> None:
    message = failure({"run": {"task": "captioning", key: value}})
    assert f"run.{key}" in message and str(value) in message and expected in message


def test_values_take_the_type_of_their_key() -> None:
    run = Config.from_dict(
        {"run": {"max_iters": "2e4", "init_lr": "2e-5", "min_lr": 0, "train_splits": "train", "job_id": 2024}}
    ).run
    assert (run.max_iters, run.init_lr, run.min_lr) == (20000, 2e-5, 0.0)
    assert (run.train_splits, run.job_id) == (["train"], "2024")
    assert isinstance(run.max_iters, int) and isinstance(run.min_lr, float)


def test_amp_is_a_precision() -> None:
    def precision(**run: Any) -> str:
        return Config.from_dict({"run": run}).run.mixed_precision

    assert precision() == "auto" and precision(amp=True) == "auto" and precision(amp=False) == "fp32"
    assert precision(amp=False, precision="bf16") == "bf16"


@pytest.mark.parametrize("text", ["", "run: [1]\n", "- a\n", "run: {a: 1\n", "run: {seed: 1, seed: 2}\n"])
def test_broken_files_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        Config.load(path)


def test_recipes_are_found_by_name() -> None:
    with pytest.raises(FileNotFoundError, match="no recipe"):
        find_recipe("blip/no_such_recipe")
    with pytest.raises(FileNotFoundError, match=r"--options run\.max_iters=5$"):
        find_recipe("run.max_iters=5")
    with pytest.raises(FileNotFoundError, match=r"of that name\. Known: "):
        find_recipe("lr=1e-4/mine.yaml")
    for name in recipe_names():
        assert find_recipe(name).is_file() and Config.load(name).run.task is not None


def test_the_papers_interface(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {arch: blip_caption}\ndatasets: {coco_caption: }\nrun: {task: captioning}\n")
    cfg = Config(SimpleNamespace(cfg_path=path, options=["run.seed", "7"]))
    assert cfg.run_cfg.seed == 7 and cfg.run_cfg.get("no_such_key", 3) == 3
    assert cfg.model_cfg.arch == "blip_caption" and "coco_caption" in cfg.datasets_cfg
    cfg.pretty_print()
    assert "seed: 7" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------ doors
ENVIRONMENT = [
    "${oc.env:LAVIS_TEST_SECRET}",
    "a ${oc.env:LAVIS_TEST_SECRET} b",
    "${oc.env:LAVIS_TEST_SECRET,none}",
    "${oc.decode:${oc.env:LAVIS_TEST_SECRET}}",
    "${oc.create:{a: '${oc.env:LAVIS_TEST_SECRET}'}}",
    "${oc.select:run.seed,'${oc.env:LAVIS_TEST_SECRET}'}",
    "${oc.${model.x}:LAVIS_TEST_SECRET}",
    "${${model.x}:LAVIS_TEST_SECRET}",
    "${ oc.env : LAVIS_TEST_SECRET }",
    "\\${oc.env:LAVIS_TEST_SECRET}",
    "${env:LAVIS_TEST_SECRET}",
    "${oc.dict.values:run}",
]


@pytest.mark.parametrize("text", ENVIRONMENT)
@pytest.mark.parametrize("place", ["model.prompt", "run.job_id", "datasets.own.list"])
def test_no_recipe_reads_the_environment(
    text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAVIS_TEST_SECRET", "hunter2")
    section, *keys = place.split(".")
    value: Any = [text] if keys[-1] == "list" else text
    for key in reversed(keys):
        value = {key: value}
    content = {"model": {"x": "env"}, section: value}
    if section == "model":
        content["model"] = {"x": "oc.env", **value}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(content))
    for make in (lambda: Config.load(path), lambda: Config.from_dict(content)):
        with pytest.raises(ValueError, match=place.replace(".", r"\.")) as e:
            make()
        assert "hunter2" not in str(e.value)
    with pytest.raises(ValueError, match="may only name another key"):
        Config.from_dict({}, {"run.job_id": text})


def test_custom_resolvers_are_not_called() -> None:
    OmegaConf.register_new_resolver("lavis_test_resolver", lambda: 1 / 0)
    try:
        with pytest.raises(ValueError, match="may only name another key"):
            Config.from_dict({"model": {"x": "${lavis_test_resolver:}"}})
    finally:
        OmegaConf.clear_resolver("lavis_test_resolver")


def test_references_to_keys_still_work() -> None:
    content = {
        "model": {"arch": "x", "image_size": 32, "which": "image_size", "deep": "${model.${model.which}}"},
        "datasets": {"own": {"near": "${.far}", "far": 3, "list": ["${run.seed}"]}},
        "run": {"seed": 5},
    }
    config = Config.from_dict(content)
    assert config.model["deep"] == 32 and config.datasets["own"] == {"near": 3, "far": 3, "list": [5]}


def test_the_home_folder_is_found_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/somebody")
    config = Config.from_dict(
        {
            "model": {"weights": "~/w.pth", "prompt": "about ~5 words", "other": "~ a text"},
            "datasets": {"own": {"train": "~/t.jsonl", "build_info": {"images": {"storage": ["~/i", "~"]}}}},
        },
        {"run.output_dir": "~/runs", "run.resume_ckpt_path": "~/runs/a", "model.init": "~no_such_user_/x"},
    )
    assert (
        config.run.output_dir == "/users/somebody/runs"
        and config.run.resume_ckpt_path == "/users/somebody/runs/a"
    )
    assert config.model == {
        "weights": "/users/somebody/w.pth", "prompt": "about ~5 words", "other": "~ a text", "init": "~no_such_user_/x",
    }  # fmt: skip
    own = config.datasets["own"]
    assert own["train"] == "/users/somebody/t.jsonl"
    assert own["build_info"]["images"]["storage"] == ["/users/somebody/i", "/users/somebody"]


@pytest.mark.parametrize(
    "name",
    [
        "../x", "../../x", "..", ".", "", " ", "/tmp/x", "a/b", "a\\b", "..\\x", "C:", "C:x", "C:\\x", "a\0b", "a\nb",
        "x" * 256, "é" * 120,
    ],
)  # fmt: skip
def test_a_jobs_name_is_one_folders(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.job_id is"):
        Config.from_dict({"run": {"job_id": name, "output_dir": str(tmp_path)}})
    assert RunConfig(job_id="2026-11-30 12:00 é lr=1e-4").job_id
