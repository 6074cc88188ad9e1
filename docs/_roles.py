"""Docstrings of this library write `names` in single backticks; this makes them links where there is a page."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole

_NAME = re.compile(r"[A-Za-z_][\w.]*(\(\))?")


def _name(
    role: str, rawtext: str, text: str, lineno: int, inliner: Any, options: Any = None, content: Any = ()
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    raw = rawtext.strip("`").replace("\x00", "\\")
    if _NAME.fullmatch(raw) and raw.startswith("lavis."):
        return PyXRefRole()("py:obj", f":py:obj:`{raw}`", raw, lineno, inliner, {}, [])
    return [nodes.literal(rawtext, raw)], []


def setup(app: Sphinx) -> None:
    """Register the role."""
    app.add_role("name", _name)
