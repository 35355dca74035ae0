"""Sphinx's settings. `sphinx-build -W -b html docs OUT` builds the pages without a network."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "maskedlinear"
author = "the maskedlinear contributors"
release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M).group(1)
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = False  # types of torch and JAX have no page here

html_theme = "furo"
html_title = f"maskedlinear {release}"
html_copy_source = False
html_extra_path = ["evidence/atlas.html"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say it, with shapes
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

_OUTSIDE_OF_CODE = re.compile(r"(`[^`\n]*`)")
_CLAUSE = re.compile(r"\bcontract,? (S\d+(?:(?:-|, )S\d+)*)")


def _to_rst(app, what, name, obj, options, lines):
    """Turn docstrings, which are Markdown, into the reStructuredText that autodoc reads."""
    in_example = False
    for number, line in enumerate(lines):
        if line.strip() == "Example:":
            in_example = True
        elif line.strip() and not line.startswith(" ") and what != "class":
            in_example = False
        if not in_example:
            lines[number] = "".join(_part(part) for part in _OUTSIDE_OF_CODE.split(line))


def _part(text):
    if text.startswith("`") and text.endswith("`") and len(text) > 2:
        return f"`{text}`\\ "
    text = re.sub(r"([*|])", r"\\\1", text)
    text = re.sub(r"(\w)_(?=\W|$)", r"\1\\_", text)
    return _CLAUSE.sub(lambda found: f"contract {_linked(found.group(1))}", text)


def _linked(clauses):
    return re.sub(r"S(\d+)", r":ref:`S\1 <s\1>`", clauses)


def setup(app):
    """Read docstrings as Markdown, before napoleon reads their sections."""
    app.connect("autodoc-process-docstring", _to_rst, priority=1)
