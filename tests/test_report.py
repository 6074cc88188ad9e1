"""The training report: one page and one picture that need nothing else."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from lavis.runners.report import Case, write_report


def test_a_report_is_self_contained(tmp_path):
    pytest.importorskip("matplotlib")
    case = Case(
        Image.new("RGB", (64, 64), "red"),
        "a <blue> star",
        "a red square",
        "a red & large square",
        False,
        True,
    )
    page, picture = write_report(
        tmp_path / "out",
        "Title <1>",
        "An introduction.",
        {"captions wholly true (%)": (10.0, 90.5)},
        [{"event": "step", "step": s, "loss": 3.0 / s} for s in (1, 2, 3)]
        + [{"event": "epoch", "loss": 1.0}],
        [case] * 4,
    )
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text), "the page must not load anything"
    assert "a &lt;blue&gt; star" in text and "Title &lt;1&gt;" in text and "90.5" in text
    assert text.count("<li>") == 4
    with Image.open(picture) as drawn:
        assert drawn.size[0] >= 1000
