"""The example notebooks: stored without outputs, the same everywhere, and they run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
NAMES = {
    "captioning",
    "visual_question_answering",
    "features",
    "search",
    "gradcam",
    "zero_shot_classification",
    "fine_tuning",
    "blip2",
}


def test_all_are_there():
    assert {p.stem for p in NOTEBOOKS} == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_form(path):
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    assert text == json.dumps(content, indent=1, ensure_ascii=False) + "\n", (
        "not in the form that git diffs well"
    )
    assert content["nbformat"] == 4
    assert set(content["metadata"]) == {"kernelspec", "language_info"}
    cells = content["cells"]
    assert 10 <= len(cells) <= 20
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    assert sum(c["cell_type"] == "markdown" for c in cells) >= 5
    assert len({c["id"] for c in cells}) == len(cells)
    for cell in cells:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "outputs must be stripped"
    source = "\n".join("".join(c["source"]) for c in cells)
    assert not re.search(r"(?<![\w.])/(home|work|Users|root|tmp)/|[A-Z]:\\\\", source), "an absolute path"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_offline(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("LAVIS_OFFLINE", "1")
    monkeypatch.setenv("LAVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    assert outputs, "a notebook that shows nothing"
    assert not [o for o in outputs if o.output_type == "error"]
