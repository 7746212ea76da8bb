"""How commands print and write: standard JSON, tables for people, pages, pictures, progress."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from collapsar.core.files import write_atomically
from collapsar.core.records import to_json
from collapsar.report.words import told

if TYPE_CHECKING:  # commands that print no figures need not pay for the import
    from matplotlib.figure import Figure
    from rich.progress import Progress

# Seconds after which a silent command reports that it is working, and between later reports.
_FIRST, _AGAIN = 5.0, 30.0
_MOST_DECIMALS = 8  # in a table; smaller numbers are written with a power of ten

_ENDLESS, _NARROWEST = 10_000, 8  # characters: width of a console that cuts nothing, and of a folded column

_NUMBER = re.compile(r"[≈≤≥]? ?[+−-]?\d|[–-]$")

RELU_WORDS = "For a head fed by a ReLU, as in most networks: --features nonnegative."


def console(*, stderr: bool = False) -> Console:
    """The console for people: class names are printed unchanged, even if they look like markup."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


@dataclass(frozen=True)
class PlainTable:
    """A table that fits into 80 characters by folding columns; numbers are never cut.

    If even that is too wide, each row is a list, with its values below its first cell, like pages on a phone.

    Attributes:
        columns: headings.
        rows: cells; a row may be short.
        folds: numbers of the columns that may be folded.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folds: Sequence[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._least_width(console) <= options.max_width:
            yield self._table()
            return
        yield ""
        for row in self.rows:
            yield Text(row[0], style="bold")
            for name, cell in zip(self.columns[1:], row[1:], strict=False):
                yield Text(f"  {name}  {cell}")
        yield ""

    def _table(self) -> Table:
        made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for i, name in enumerate(self.columns):
            numbers = all(_NUMBER.match(row[i]) for row in self.rows if i < len(row))
            side = "right" if numbers and i not in self.folds else "left"
            made.add_column(name, justify=side, no_wrap=i not in self.folds, overflow="fold")
        for row in self.rows:
            made.add_row(*row)
        return made

    def _least_width(self, console: Console) -> int:
        """The width of the table with its folding columns as narrow as is readable."""
        whole = Measurement.get(console, console.options.update(max_width=_ENDLESS), self._table()).maximum
        widest = [
            max(map(cell_len, (self.columns[i], *(row[i] for row in self.rows if i < len(row))))) for i in self.folds
        ]
        return whole - sum(max(width - _NARROWEST, 0) for width in widest)


def plain_table(*columns: str, rows: Iterable[Sequence[str]] = (), folds: Sequence[int] = (0,)) -> PlainTable:
    """A table for people, in which these columns may be folded; columns that are empty in every row are left out."""
    shown, cells = told(columns, list(rows))
    return PlainTable(shown, cells, [shown.index(columns[i]) for i in folds if columns[i] in shown])


def in_step(rows: Sequence[Sequence[float]], digits: int = 5) -> list[list[str]]:
    """Numbers of one unit, all with the decimals that give the largest this many digits; "–" for missing ones."""
    largest = max((abs(value) for row in rows for value in row if np.isfinite(value)), default=0.0)
    decimals = max(digits - 1 - int(np.floor(np.log10(largest))), 0) if largest > 0 else 0
    form = f".{decimals}f" if decimals < _MOST_DECIMALS else f".{digits}g"
    return [[f"{value:{form}}".replace("-", "−") if np.isfinite(value) else "–" for value in row] for row in rows]


def print_json(record: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(to_json(record), allow_nan=False))


def tell(record: Mapping[str, Any], words: Callable[[], None], *, as_json: bool) -> None:
    """Print what a command found: the record as JSON, or ``words`` for people."""
    if as_json:
        print_json(record)
    else:
        words()


@contextmanager
def taking_long(what: str) -> Iterator[None]:
    """Say on stderr what is being computed once it takes more than a few seconds, and now and then after that."""
    done, begun = threading.Event(), time.monotonic()

    def say() -> None:
        wait = _FIRST
        while not done.wait(wait):
            typer.echo(f"{what}: {time.monotonic() - begun:.0f} s so far", err=True)
            wait = _AGAIN

    saying = threading.Thread(target=say, daemon=True)
    saying.start()
    try:
        yield
    finally:
        done.set()
        saying.join()


def refuse(failures: Sequence[str]) -> None:
    """Say which gates failed and end with exit code 1; without any, go on."""
    for failure in failures:
        console(stderr=True).print(f"collapsar: {failure}", soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def write_picture(path: Path, figure: Figure, name: str, label: str, dpi: int = 200) -> None:
    """The figure in the format that the path's ending names."""
    from collapsar.report.style import picture_bytes

    write_atomically(path, picture_bytes(figure, path.suffix.lower(), name, label, dpi))


def bars(unit: str) -> Progress:
    """Progress bars on stderr, for people only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} " + unit))
    log = Console(stderr=True, highlight=False)
    return Progress(*columns, TimeRemainingColumn(), console=log, disable=not sys.stderr.isatty())
