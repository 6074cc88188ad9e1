"""`lavis benchmark`: the paper's tables, with what is here measured and what is not here named."""

from __future__ import annotations

import json

import pytest

from lavis.cli import benchmark
from lavis.cli.benchmark import Figure, Line, lacking, tables
from lavis.cli.main import main
from lavis.common.config import Config
from lavis.common.registry import registry

LINES = [(number, line) for number, (_, lines) in tables().items() for line in lines]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path))


@pytest.mark.parametrize(("number", "line"), LINES, ids=lambda v: v if isinstance(v, int) else v.data)
def test_lines_name_recipes_that_measure_them(number, line):
    config = Config.load(line.recipe, list(line.options))
    assert {f.split for f in line.figures} <= set(config.run.evaluation_splits)
    family = {3: "albef", 4: "blip", 5: "clip", 6: "alpro"}.get(number)
    assert family is None or line.recipe.startswith(f"{family}/")
    assert len({f.name for f in line.figures}) == len(line.figures)
    known = {
        "retrieval": {f"{side}_r{k}" for side in ("txt", "img") for k in (1, 5, 10)},
        "multimodal_classification": {"accuracy_percent"},
        "captioning": {"Bleu_4", "CIDEr", "SPICE"},
        "dialogue": {"Bleu_4", "CIDEr"},
    }.get(config.run.task or "", {"overall_percent"})
    assert {f.key for f in line.figures if f.key} <= known


def test_what_is_lacking_is_named_and_nothing_is_fetched(capsys):
    assert main(["benchmark", "--table", "4", "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    assert table["title"] == "BLIP" and len(table["lines"]) == 6
    assert all("the weights are not here: load_model('blip_" in line["reason"] for line in table["lines"])
    assert all(not line["ours"] for line in table["lines"])
    assert main(["benchmark", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Table 7" in shown and "no weights were published; train with this recipe" in shown


def test_data_that_are_lacking_are_named(monkeypatch):
    cls = registry.get_model_class("blip_caption")
    local = {**cls.PRESETS, "base_coco": cls.PRESETS["tiny_shapes"]}
    monkeypatch.setattr(cls, "PRESETS", local)
    assert "coco_karpathy_test.json" in lacking("blip/caption_coco_eval", [])


def test_a_line_whose_parts_are_here_is_measured(monkeypatch, tmp_path, capsys):
    options = (
        "model.model_type=tiny_shapes", "model.weights=finetuned", "run.test_splits=[test]", "run.device=cpu",
        "datasets.shapes_caption.n_test=6",
    )  # fmt: skip
    figures = (
        Figure("true", 97.6, "truth_percent"),
        Figure("CIDEr", 315, "CIDEr", 100),
        Figure("server", 1.0),
    )
    line = Line("shapes", "blip/caption_shapes", figures, options)
    monkeypatch.setattr(benchmark, "tables", lambda: {3: ("made up", (line,))})
    assert main(["benchmark", "--table", "3", "--out", str(tmp_path / "runs"), "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)
    ours = table["lines"][0]["ours"]
    assert 50 <= ours["true"] <= 100 and ours["CIDEr"] > 100 and ours["server"] is None
    assert main(["benchmark", "--table", "3", "--out", str(tmp_path / "runs")]) == 0
    assert "scored by the evaluation server" in capsys.readouterr().out
