"""The documentation site: Sphinx, Markdown by MyST, and reference pages written from the library itself.

`make docs` builds it into docs/_build/html. Nothing in the built pages is fetched from the network.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import _generate  # noqa: E402  found through the line above
import _roles  # noqa: E402

from lavis import __version__  # noqa: E402

project = "LAVIS"
author = "The LAVIS authors"
project_copyright = "The LAVIS authors, BSD-3-Clause"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_static"]
nitpicky = True
# Types in signatures: other projects' can't be looked up offline, and not every small class of ours has an entry.
# Names in texts (`py:obj`, and links of pages) must be found.
nitpick_ignore_regex = [("py:class", ".*"), ("py:.*", r"(?!lavis\.).*")]
suppress_warnings = ["ref.python"]  # one name in several classes, such as Options, in a signature

myst_enable_extensions = ["deflist", "colon_fence", "attrs_block"]
myst_heading_anchors = 3

default_role = "name"  # docstrings write `names` in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"LAVIS {release}"
html_static_path = ["_static"]
html_css_files = ["lavis.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "github-dark"


def setup(app):
    _roles.setup(app)
    # constants of classes (PRESETS, RULES, …) are for those who write a model
    app.connect("autodoc-skip-member", lambda app, what, name, obj, skip, options: skip or name.isupper())
    app.connect("builder-inited", lambda _: _generate.write(HERE))
