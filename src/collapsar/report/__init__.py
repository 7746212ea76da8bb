"""Pictures and pages drawn from records. Measures nothing, solves nothing, trains nothing.

A record is a plain dict of JSON values (numpy arrays are welcome); a number that is undefined is None or NaN.
Needs the ``report`` extra (matplotlib, jinja2), imported when a name is first used.

Example:
    >>> from collapsar.report import audit_figure, demo_page, png_bytes  # doctest: +SKIP
    >>> html = demo_page(record)  # doctest: +SKIP
    >>> picture = png_bytes(audit_figure(audit))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collapsar._lazy import lazy_names

if TYPE_CHECKING:
    from collapsar.report.audit import audit_figure, audit_page
    from collapsar.report.demonstration import demo_page
    from collapsar.report.diagnosis import diagnosis_figure
    from collapsar.report.network_page import diagnosis_page, report_page
    from collapsar.report.style import png_bytes, styled, svg_string

__all__ = [
    "audit_figure",
    "audit_page",
    "demo_page",
    "diagnosis_figure",
    "diagnosis_page",
    "png_bytes",
    "report_page",
    "styled",
    "svg_string",
]

_find, __dir__ = lazy_names(
    __name__,
    {
        "collapsar.report.audit": "audit_figure audit_page",
        "collapsar.report.demonstration": "demo_page",
        "collapsar.report.diagnosis": "diagnosis_figure",
        "collapsar.report.network_page": "diagnosis_page report_page",
        "collapsar.report.style": "png_bytes styled svg_string",
    },
    left={
        "collapsar.report.audit": "row_lengths",
        "collapsar.report.diagnosis": "class_lengths price_readings",
        "collapsar.report.plots": "demo_figure heatmap nc1_curve",
        "collapsar.report.penalty_axis": "threshold_line",
    },
)


def __getattr__(name: str) -> Any:
    try:
        return _find(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("matplotlib", "jinja2"):
            raise
        raise ModuleNotFoundError(
            f"collapsar.report needs {error.name}; install it: pip install 'collapsar[report]'", name=error.name
        ) from error
