"""``collapsar report`` and ``collapsar explore``: pages. torch and matplotlib are imported when they are needed."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from typer import Argument, Option

from collapsar.cli.options import DataDir, Json, Show, command
from collapsar.cli.output import tell
from collapsar.core.files import write_atomically
from collapsar.core.records import to_json
from collapsar.core.types import Record


@command(
    "collapsar report runs/first",
    "collapsar report runs/first runs/second --out comparison.html",
    "collapsar report runs/demo-digits --no-open",
    "collapsar report optimum.npz",
)
def report(
    runs: list[Path] = Argument(
        ...,
        metavar="RUN...",
        help="Folders of `collapsar train` or `collapsar demo`, JSON of `collapsar diagnose` or `collapsar solve`, "
        "other reports (page or record), files of features as `collapsar diagnose` takes them, or optima of "
        "`collapsar solve --out`.",
        show_default=False,
    ),
    out: Path = Option(Path("report.html"), help="Where to write the page."),
    data_dir: DataDir = None,
    show: Show = True,
    as_json: Json = False,
) -> None:
    """Write a page about trained networks, for any reader, and open it: self-contained, works offline.

    It shows which classes collapse and why, the class means beside the exact optimum, thresholds, curves, and what to
    change. Several runs are compared on one page. For an optimum it shows states, scores and angles, and how they
    change with the penalty.
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
    _tell_page({**record, "page": str(page)}, f"{report_finding(record)}\nReport", page, as_json=as_json, show=show)


@command("collapsar explore", "collapsar explore --out explorer.html --no-open")
def explore(
    out: Path = Option(Path("explorer.html"), help="Where to write the page."),
    output: Path | None = Option(None, hidden=True),  # the option's name in 0.1
    show: Show = True,
    as_json: Json = False,
) -> None:
    """Write a page that solves the model as you move its sliders, and open it: self-contained, works offline.

    Class counts, penalties and mitigations are sliders; class means, thresholds, phase diagram and advice follow.
    """
    from collapsar.report.explorer import explorer_page

    page = write_atomically(out if output is None else output, explorer_page()).resolve()
    _tell_page({"page": str(page), "bytes": page.stat().st_size}, "Explorer", page, as_json=as_json, show=show)


def _tell_page(record: Record, words: str, page: Path, *, as_json: bool, show: bool) -> None:
    """Say where the page is, and open it."""
    tell(record, lambda: print(f"{words}: {page.as_uri()}"), as_json=as_json)
    if show and not webbrowser.open(page.as_uri()):
        print("No browser could be opened; open the page yourself.", file=sys.stderr)
