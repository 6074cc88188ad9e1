"""The report of an evaluation: written by the command, self-contained, small, right about what it shows."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavis.cli.main import main
from lavis.common.page import line_chart, number, thinned, ticks
from lavis.common.registry import registry
from lavis.datasets.builders import load_dataset
from lavis.runners import evaluation_report
from lavis.runners.evaluation_report import Evaluation, evaluation_page, history_of


def evaluation(name: str, split: Any, task: Any, records: list[Any], **more: Any) -> Evaluation:
    given: dict[str, Any] = {
        "task": task, "dataset": split, "split": "val", "label": "best", "records": records,
        "metrics": task.score(records, split), "seconds": 3.0, "config": "run: {task: x}", "model": "a/b",
        "history": [], "versions": {"lavis": "1"}, **more,
    }  # fmt: skip
    return Evaluation(**given)


def self_contained(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "the page must not load anything"
    assert "default-src 'none'" in html.unescape(page) and "<script" not in page and "url(" not in page


def test_the_command_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "evaluate", "--task", "captioning", "--data", str(tmp_path / "t.jsonl"), "--images", str(tmp_path), "--report",
        "--model", "blip_caption/tiny_shapes", "--out", str(tmp_path / "out"), "--device", "cpu",
    ]  # fmt: skip
    data = load_dataset("shapes_caption", n_test=6)["test"]
    rows = []
    for i, record in enumerate(data.records):
        data.picture(record).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "text": ["<b>one</b>", *record["caption"][:2]]})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(command) == 0
    out = capsys.readouterr()
    (path,) = (tmp_path / "out").glob("*/report_test.html")
    assert str(path) in out.err
    metrics = json.loads(out.out)["test"]
    page = path.read_text(encoding="utf-8")
    self_contained(page)
    for name, value in metrics.items():
        assert name in page and number(value) in page
    assert "&lt;b&gt;one&lt;/b&gt;" in page and "<b>one" not in page
    assert "closest to the references" in page.lower() and page.count("<li>") == 6
    assert "blip_caption" in page and "num_beams" in page and "torch" in page
    assert len(page) < 400_000


def test_a_run_that_trained_shows_its_curves(tmp_path: Path) -> None:
    options = ["run.max_iters=6", "run.iters_per_inner_epoch=3", "run.log_freq=1", "run.batch_size_train=2",
               "run.test_splits=[test]", "datasets.shapes_caption.n_test=4", "datasets.shapes_caption.n_val=4",
               "run.val_freq=1", "run.precision=fp32", "run.num_beams=1", "run.max_len=8", "run.min_len=1",
               "run.report=true", f"run.output_dir={tmp_path}", "run.job_id=run", "run.device=cpu"]  # fmt: skip
    assert main(["train", "blip/caption_shapes", *[x for o in options for x in ("--option", o)]]) == 0
    page = (tmp_path / "run" / "report_test.html").read_text(encoding="utf-8")
    self_contained(page)
    assert page.count("<svg") > 1 and "training loss over iterations" in page
    assert not list((tmp_path / "run").glob("report_val*")), "validations have no report"
    checkpoint = tmp_path / "run" / "checkpoint_last"
    steps = [r for r in history_of(tmp_path / "elsewhere", str(checkpoint)) if r.get("event") == "step"]
    assert len(steps) == 6, "an evaluation of a run's weights shows the curves of that run"


@pytest.mark.parametrize(
    "name", ["shapes_vqa", "shapes_nlvr", "shapes_dialogue", "shapes_retrieval", "shapes_video_qa"]
)
def test_every_task_has_one(name: str) -> None:
    from tests.test_browser_predictions import SETTINGS, perfect, spoilt

    split = load_dataset(name, **SETTINGS[name])["val"]
    task_name, records = perfect(name, split)
    spoilt(task_name, records)
    task = registry.get_task_class(task_name).setup({})
    page = evaluation_page(evaluation(name, split, task, records))
    self_contained(page)
    assert ">Wrong<" in page and ">Right<" in page and 'class="bad"' in page and "data:image/" in page
    assert "bootstrap over" in page


def test_how_many_cases_and_which(monkeypatch: pytest.MonkeyPatch) -> None:
    split = load_dataset("shapes_vqa", n_val=30)["val"]
    task = registry.get_task_class("vqa").setup({})
    rows = [
        {"question_id": r["question_id"], "answer": r["answers"][0] if i % 3 else "none of them"}
        for i, r in enumerate(split.records)
    ]
    wrong, right = evaluation_report.chosen(task.cases(rows, split))
    assert wrong[0] == "Wrong" and len(wrong[2]) == len(right[2]) == evaluation_report.SHOWN
    assert wrong[1].startswith("60 of 180; 12 of them") and right[1].startswith("120 of 180")
    assert {c.place % 3 for c in wrong[2]} == {0} and 0 not in {c.place % 3 for c in right[2]}
    assert evaluation_report.chosen(task.cases(rows, split)) == [wrong, right], "the same cases each time"


def test_a_missing_picture_is_said_and_a_metric_that_cannot_be_resampled_has_no_interval(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lavis.datasets.vqa import VQADataset

    record = {"image": "gone.png", "question": "what?", "question_id": 1, "answers": ["red"]}
    split = VQADataset([record], "val", vis_root=tmp_path)
    split.extra_metrics = lambda predictions: {"odd": 1.0 + len(predictions) * 0.5}  # type: ignore[method-assign]
    task = registry.get_task_class("vqa").setup({})
    records = [{"question_id": 1, "answer": "red"}]
    e = evaluation("x", split, task, records)
    e.metrics["odd"] = 7.0  # type: ignore[index]
    page = evaluation_page(e)
    assert "there is no image" in page and "not known" in page
    assert "odd has no interval" in caplog.text


def test_data_sets_that_are_no_records_and_nothing_to_score() -> None:
    task = registry.get_task_class("captioning").setup({"report_metric": False})
    page = evaluation_page(evaluation("x", [1, 2], task, [{"image_id": 0, "caption": "a"}]))
    self_contained(page)
    assert "nothing to compare" in page


# ---------------------------------------------------------------------------------------- drawing
def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(0.12, 0.31) == pytest.approx([0.15, 0.2, 0.25, 0.3])
    assert ticks(3, 3) == [3]
    for low, high in ((-1e-9, 1e-9), (1e6, 1.1e6), (-3.7, 12)):
        found = ticks(low, high)
        assert 3 <= len(found) <= 11 and min(found) >= low - 1e-12 and max(found) <= high + 1e-12


def test_curves_are_thinned_and_take_what_is_no_number() -> None:
    points = [(float(i), math.sin(i / 100)) for i in range(10_000)]
    thin = thinned(points)
    assert len(thin) <= 300 and np.mean([y for _, y in thin]) == pytest.approx(
        np.mean([y for _, y in points]), abs=0.01
    )
    drawn = line_chart([(0, math.nan), (1, 2.0), (2, math.inf)], "x", "<y>")
    assert "nan" not in drawn and "inf" not in drawn and "&lt;y&gt;" in drawn
    assert "nothing to draw" in line_chart([], "x", "y")


@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="there is no chromium (apt-get install chromium)"
)
def test_it_fits_a_small_screen(tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    from tests.test_browser_predictions import SETTINGS, perfect, spoilt

    pages = []
    for name in ("shapes_retrieval", "shapes_dialogue", "shapes_video_caption"):
        split = load_dataset(name, **SETTINGS[name])["val"]
        task_name, records = perfect(name, split)
        spoilt(task_name, records)
        history = [{"event": "step", "step": i, "loss": 3 / (i + 1)} for i in range(50)]
        e = evaluation(name, split, registry.get_task_class(task_name).setup({}), records, history=history)
        pages.append(tmp_path / f"{name}.html")
        pages[-1].write_text(evaluation_page(e), encoding="utf-8")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (390, 1280):
            page = browser.new_page(viewport={"width": width, "height": 800})
            complaints: list[str] = []
            page.on("console", lambda m: complaints.append(m.text))  # noqa: B023
            for path in pages:
                page.goto(path.as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("Array.from(document.images).every(i => i.naturalWidth > 0)")
            assert not complaints
        browser.close()
