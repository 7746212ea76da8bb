"""``collapsar explore``: write the explorer and open it."""

from __future__ import annotations

from pathlib import Path

from typer import Option

from collapsar.cli.options import Json, Show, command
from collapsar.cli.output import print_json, show_page
from collapsar.core.files import write_atomically

__all__ = ["explore"]


@command(
    "collapsar explore",
    "collapsar explore --out explorer.html --no-open",
)
def explore(
    out: Path = Option(Path("explorer.html"), help="Where to write the page."),
    output: Path | None = Option(None, hidden=True),  # the option's name in 0.1
    show: Show = True,
    as_json: Json = False,
) -> None:
    """Write a page that solves the model as you move its sliders, and open it: self-contained, works offline.

    Class counts, penalties and remedies are sliders; class means, thresholds, phase diagram and advice follow.
    """
    from collapsar.report.explorer import explorer_page

    page = write_atomically(out if output is None else output, explorer_page()).resolve()
    if as_json:
        print_json({"page": str(page), "bytes": page.stat().st_size})
    else:
        print(f"Explorer: {page.as_uri()}")
    if show:
        show_page(page)
