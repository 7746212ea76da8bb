"""How commands print and write: standard JSON, tables for people, pages, pictures, progress."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from collapsar.core.files import write_atomically
from collapsar.core.records import to_json
from collapsar.report.words import told

if TYPE_CHECKING:  # the commands that print none need not pay for their import
    from matplotlib.figure import Figure
    from rich.progress import Progress

# Seconds after which a command that says nothing says that it works, and from then on.
_FIRST, _AGAIN = 5.0, 30.0
_MOST_DECIMALS = 8  # of a table; smaller numbers are written with a power of ten

_NUMBER = re.compile(r"[≈≤≥]? ?[+−-]?\d|[–-]$")

RELU_WORDS = "For a head fed by a ReLU, as in most networks: --features nonnegative."


def console(*, stderr: bool = False) -> Console:
    """Where people read: names of classes are printed as they are, whatever markup they look like."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def plain_table(*columns: str, rows: Iterable[Sequence[str]] = (), folds: Sequence[int] = (0,)) -> Table:
    """A table that fits into 80 characters by folding these columns; numbers are never cut, and end on the right.

    Columns that say nothing of any row are left out.
    """
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown, cells = told(columns, list(rows))
    folds = [shown.index(columns[i]) for i in folds if columns[i] in shown]
    for i, name in enumerate(shown):
        numbers = all(_NUMBER.match(row[i]) for row in cells if i < len(row))
        side = "right" if numbers and i not in folds else "left"
        made.add_column(name, justify=side, no_wrap=i not in folds, overflow="fold")
    for row in cells:
        made.add_row(*row)
    return made


def in_step(rows: Sequence[Sequence[float]], digits: int = 5) -> list[list[str]]:
    """Numbers of one unit, all with the decimals that give the largest so many digits; "–" where there is none."""
    largest = max((abs(value) for row in rows for value in row if np.isfinite(value)), default=0.0)
    decimals = max(digits - 1 - int(np.floor(np.log10(largest))), 0) if largest > 0 else 0
    form = f".{decimals}f" if decimals < _MOST_DECIMALS else f".{digits}g"
    return [[f"{value:{form}}".replace("-", "−") if np.isfinite(value) else "–" for value in row] for row in rows]


def print_json(record: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(to_json(record), allow_nan=False))


def tell(record: Mapping[str, Any], words: Callable[[], None], *, as_json: bool) -> None:
    """What a command found: the record as JSON, or ``words`` for people."""
    if as_json:
        print_json(record)
    else:
        words()


@contextmanager
def taking_long(what: str) -> Iterator[None]:
    """Say on stderr what is computed once that takes more than a few seconds, and now and then after."""
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
