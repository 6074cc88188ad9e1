"""Pages that are written from the library itself, so that they cannot go stale.

`write(docs)` puts them below docs/reference and docs/notebooks (both ignored by git) before Sphinx reads the
sources. Each module here makes the pages of one subject: `pages()` gives {path below docs: text}.
"""

from __future__ import annotations

from pathlib import Path

from _generate import api, cards, cli, notebooks, runs, zoo

SUBJECTS = (cli, runs, zoo, cards, api, notebooks)


def pages() -> dict[str, str]:
    """All generated pages: path below docs, without suffix, to Markdown."""
    out: dict[str, str] = {}
    for subject in SUBJECTS:
        out.update(subject.pages())
    return out


def write(docs: Path) -> None:
    """Write the pages that changed, and remove those that are no longer made."""
    made = {docs / f"{name}.md": text for name, text in pages().items()}
    for folder in ("reference", "notebooks"):
        for path in (docs / folder).rglob("*.md"):
            if path not in made:
                path.unlink()
    for path, text in made.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
