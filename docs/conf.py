"""Sphinx configuration: `make docs` builds the site into docs/_build/html, with warnings as errors."""

from __future__ import annotations

from importlib.metadata import version as version_of

project = "Collapsar"
author = "The Collapsar authors"
project_copyright = "2026, The Collapsar authors"
release = version = version_of("collapsar")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
suppress_warnings = ["myst.header"]  # a page may begin its sections at any level

# Pages are read on the repository's site too, so links are plain relative ones; `#section` anchors need ids.
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
# "Shape (K,): ..." at the head of a property's docstring would link to an attribute of that name.
autodoc_default_options = {"exclude-members": "shape"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them

html_theme = "furo"
html_title = f"Collapsar {release}"
html_static_path = ["_static", "explorer.html"]  # the second beside the page of the same name, which links to it
html_css_files = ["dark.css"]
html_theme_options = {"source_repository": "", "navigation_with_keys": True}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _tidy(_app, _what, _name, _object, _options, lines: list[str]) -> None:
    """Docstrings write |x| for a magnitude, which reStructuredText would take for a substitution.

    And what Python writes of the fields of a named tuple says nothing.
    """
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    for i, line in enumerate(lines):
        if "|" in line and ">>>" not in line:
            parts = line.split("``")  # every second one is code
            lines[i] = "``".join(part if j % 2 else part.replace("|", r"\|") for j, part in enumerate(parts))


def setup(app) -> None:
    app.connect("autodoc-process-docstring", _tidy, priority=1)
