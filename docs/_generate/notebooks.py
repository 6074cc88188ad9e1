"""The example notebooks as pages: their text and code. Their outputs are not stored; run them to see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent.parent / "examples" / "notebooks"
# from the first that a reader needs to the last
ORDER = ("captioning", "visual_question_answering", "features", "search", "gradcam", "zero_shot_classification",
         "fine_tuning", "blip2")  # fmt: skip

INTRODUCTION = """
# Notebooks

Eight short notebooks, in `examples/notebooks` of the repository. They run offline in well under a minute each
on a CPU (fine-tuning about two, BLIP-2 about three), on the small packaged models and on drawings that the library
makes itself. Each has one line to change for your own pictures and another model. A test of this library runs them all.

```bash
pip install jupyterlab
jupyter lab examples/notebooks
```

"""


def found() -> dict[str, dict[str, Any]]:
    """Name to content of every notebook, in reading order."""
    names = [p.stem for p in FOLDER.glob("*.ipynb")]
    names.sort(key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n))
    return {n: json.loads((FOLDER / f"{n}.ipynb").read_text(encoding="utf-8")) for n in names}


def pages() -> dict[str, str]:
    out = {f"notebooks/{name}": page(name, content) for name, content in found().items()}
    lines = [f"- [{title(content)}]({name}.md)" for name, content in found().items()]
    entries = "\n".join(found())
    out["notebooks/index"] = (
        INTRODUCTION + "\n".join(lines) + f"\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    )
    return out


def title(content: dict[str, Any]) -> str:
    """The heading that a notebook begins with."""
    return str("".join(content["cells"][0]["source"]).splitlines()[0].lstrip("# "))


def page(name: str, content: dict[str, Any]) -> str:
    """A notebook as Markdown."""
    parts = []
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            magic = source.lstrip().startswith(("!", "%"))
            parts.append(f"```{'text' if magic else 'python'}\n{source}\n```")
    parts.insert(1, f"*This page is the notebook `examples/notebooks/{name}.ipynb`.*")
    return "\n\n".join(parts) + "\n"
