"""``collapsar explore``: write the explorer and open it."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from collapsar.cli.app import app
from collapsar.cli.options import Json
from collapsar.cli.output import print_json
from collapsar.core.files import write_atomically

__all__ = ["explore"]


@app.command(
    epilog="""Examples:

    collapsar explore

    collapsar explore --output explorer.html --no-open"""
)
def explore(
    output: Annotated[Path, typer.Option("--output", help="Where to write the page.")] = Path("explorer.html"),
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    as_json: Json = False,
) -> None:
    """Write a page that solves the model while sliders move, and open it: one file, no network.

    Class counts, penalties and remedies are sliders; class means, thresholds, phase diagram and cures follow.
    """
    from collapsar.report.explorer import explorer_page

    page = write_atomically(output, explorer_page()).resolve()
    if as_json:
        print_json({"page": str(page), "bytes": page.stat().st_size})
    else:
        print(f"Explorer: {page.as_uri()}")
    if show and not webbrowser.open(page.as_uri()):
        print("No browser could be opened; open the page yourself.", file=sys.stderr)
