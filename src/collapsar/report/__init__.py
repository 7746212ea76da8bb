"""Pictures and pages drawn from records. Measures nothing, solves nothing, trains nothing.

A record is a plain dict of JSON values (numpy arrays are welcome); a number that is undefined is None or NaN.
Needs the ``report`` extra (matplotlib, jinja2), imported when a name is first used.

Example:
    >>> from collapsar.report import demo_figure, demo_page, png_bytes  # doctest: +SKIP
    >>> html = demo_page(record)  # doctest: +SKIP
    >>> picture = png_bytes(demo_figure(record))  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collapsar.report.audit import audit_figure, audit_page, row_lengths
    from collapsar.report.demonstration import demo_page
    from collapsar.report.diagnosis import class_lengths, diagnosis_figure, price_readings
    from collapsar.report.network_page import diagnosis_page, report_page
    from collapsar.report.plots import demo_figure, heatmap, nc1_curve, threshold_line
    from collapsar.report.style import png_bytes, styled, svg_string

__all__ = [
    "audit_figure",
    "audit_page",
    "class_lengths",
    "demo_figure",
    "demo_page",
    "diagnosis_figure",
    "diagnosis_page",
    "heatmap",
    "nc1_curve",
    "png_bytes",
    "price_readings",
    "report_page",
    "row_lengths",
    "styled",
    "svg_string",
    "threshold_line",
]

# Named as text, so that importing this package imports neither matplotlib nor jinja2.
_MODULES = {
    "audit": "audit_figure audit_page row_lengths",
    "diagnosis": "class_lengths diagnosis_figure price_readings",
    "demonstration": "demo_page",
    "plots": "demo_figure heatmap nc1_curve threshold_line",
    "network_page": "diagnosis_page report_page",
    "style": "png_bytes styled svg_string",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("matplotlib", "jinja2"):
            raise
        raise ModuleNotFoundError(
            f"collapsar.report needs {error.name}; install it: pip install 'collapsar[report]'", name=error.name
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
