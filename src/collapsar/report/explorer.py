"""The explorer: one HTML page that solves the model while sliders move. No server, no network.

Its sources are in ``explorer/``: plain JavaScript modules, a style and a template. :func:`explorer_page` puts them into
one file, with the modules joined into a single inline module.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

# Each after the modules that it imports from.
MODULES = (
    *("linalg", "model", "price", "newton", "solve", "thresholds", "state", "presets", "dom", "strip"),
    *("geometry", "heatmap", "phase", "panels", "controls", "tour", "main"),
)

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.mjs";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?(function|const|let|class)\b)", re.MULTILINE)


def explorer_page() -> str:
    """The page as HTML: self-contained, the same text for the same sources.

    Its content security policy allows this one script and no connection.

    Raises:
        ValueError: a module imports from one that comes after it, or in a form that cannot be inlined.

    Example:
        >>> page = explorer_page()
        >>> "<script" in page, "http-equiv" in page, "import {" in page
        (True, True, False)
    """
    script = "\n" + "\n".join(_inlined(name, MODULES[:i]) for i, name in enumerate(MODULES))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _source("index.html")
    for name, text in (("script_hash", f"sha256-{digest}"), ("style", _source("page.css")), ("script", script[1:])):
        page = page.replace("{{ " + name + " }}", text)
    return page


def _inlined(name: str, before: tuple[str, ...]) -> str:
    """One module without imports and exports."""
    text = _source(f"{name}.mjs")
    missing = [other for other in _IMPORT.findall(text) if other not in before]
    text = _EXPORT.sub("", _IMPORT.sub("", text))
    if missing or re.search(r"^(import|export)\b", text, re.MULTILINE) or "</script" in text:
        raise ValueError(f"`{name}.mjs` cannot be inlined: it needs {missing or 'another form of import or export'}")
    return text


def _source(name: str) -> str:
    return files("collapsar.report").joinpath("explorer", name).read_text(encoding="utf-8")
