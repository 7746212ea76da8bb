"""``collapsar report``: one page for one network or several. torch and matplotlib are imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from collapsar.cli.options import DataDir, Json, Show, command
from collapsar.cli.output import print_json, show_page
from collapsar.core.files import write_atomically
from collapsar.core.records import to_json

__all__ = ["report"]

Runs = Annotated[
    list[Path],
    Argument(
        metavar="RUN...",
        help="Folders of `collapsar train` or `collapsar demo`, JSON of `collapsar diagnose --json` or of another "
        "report, files of features as `collapsar diagnose` takes them, or optima of `collapsar solve --out`.",
        show_default=False,
    ),
]


@command(
    "collapsar report runs/first",
    "collapsar report runs/first runs/second --out comparison.html",
    "collapsar report runs/demo-digits --no-open",
    "collapsar report optimum.npz",
)
def report(
    runs: Runs,
    out: Path = Option(Path("report.html"), help="Where to write the page."),
    data_dir: DataDir = None,
    show: Show = True,
    as_json: Json = False,
) -> None:
    """Write one page about trained networks, for any reader, and open it: self-contained, works offline.

    It shows which classes collapse and why, the class means beside the exact optimum, thresholds, curves, and what to
    change. Several runs are compared on one page. An optimum is shown with its states, scores, angles and the way
    there over the penalty.
    """
    for run in runs:  # before imports that take a second
        if not run.exists():
            raise ValueError(
                f"`sources` {run} does not exist; give the folder of a run, or a file of `collapsar diagnose`"
            )
    from collapsar.app.report_record import report_record
    from collapsar.report import report_page
    from collapsar.report.network_words import report_finding

    def say(name: str) -> None:
        if sys.stderr.isatty():
            print(f"measuring {name}", file=sys.stderr)

    record = to_json(report_record(runs, data_dir=data_dir, progress=say))
    page = write_atomically(out, report_page(record)).resolve()
    if as_json:
        print_json({**record, "page": str(page)})
    else:
        print(report_finding(record))
        print(f"Report: {page.as_uri()}")
    if show:
        show_page(page)
