"""``collapsar audit``. torch, onnx, matplotlib and jinja2 are imported when they are needed, not before."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray
from typer import Argument, Option

from collapsar.cli.options import BEHIND_A_NORM, ClassNames, Html, Json, Prices, command, names_in
from collapsar.cli.output import console, plain_table, refuse, tell
from collapsar.core.counts import label_counts
from collapsar.core.files import write_atomically
from collapsar.core.label_files import whole_numbers
from collapsar.core.record_types import AuditRecord
from collapsar.diagnose.head_audit import AuditOptions
from collapsar.report.class_rows import DEAD_COLUMNS, dead_rows

_MOST_ROWS = 40


@dataclass(frozen=True)
class AuditPrices(Prices):
    """The penalties."""

    lambda_b: float | None = Option(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, help="Penalty of the head's bias; 0: free bias, the default if the head has one; inf: no bias."
    )


@dataclass(frozen=True)
class Scope:
    """What is known about the features, and how hard to search."""

    nonnegative: bool = Option(False, "--nonnegative", help="Features come out of a ReLU: none is below zero.")
    norm: float | None = Option(None, help="Features come out of a normalisation: all are of this length.")
    tolerance: float = Option(0.01, help="Rows coincide if no farther apart than this share of the longest row.")
    largest_reach: float = Option(
        AuditOptions.largest_reach,
        help="Largest number of multiplications to spend on finding features that make each class the answer.",
    )

    def options(self, prices: AuditPrices) -> AuditOptions:
        """The options of the audit."""
        norm, lambda_w = self.norm, prices.lambda_w
        if self.nonnegative and norm is not None:
            raise ValueError("give either --nonnegative or --norm")
        if norm is not None and not 0 < norm < np.inf:
            raise ValueError(f"`--norm` must be finite and > 0, the length of all features; got {norm}")
        normalised = norm is not None and lambda_w is not None
        priced = any(p is not None for p in (prices.lambda_z, prices.lambda_h, None if normalised else lambda_w))
        return AuditOptions(
            self.tolerance,
            norm if norm is not None else "nonnegative" if self.nonnegative else "free",
            lambda_z=prices.price(BEHIND_A_NORM) if priced else None,
            lambda_w=lambda_w if normalised else None,
            lambda_b=prices.lambda_b,
            largest_reach=self.largest_reach,
            progress=lambda text: typer.echo(text, err=True),
        )


@command(
    "collapsar audit model.onnx --class-names characters.txt",
    "collapsar audit model.safetensors --head fc --counts counts.txt --html audit.html",
    "collapsar audit Llama-3.2-1B --json",
)
def audit(
    *,
    source: Path = Argument(
        ...,
        metavar="SOURCE",
        help="The model: .npz, .npy, .safetensors (or the index of its shards), .pt, .onnx, or a folder with one.",
        show_default=False,
    ),
    head: str | None = Option(None, help="Name of the head's weight or layer, if it is not clear."),
    class_names: ClassNames = None,
    counts: Path | None = Option(
        None,
        help="Training samples of each class: a number per line, .npy, 500x5,100x5, or anything solve takes as COUNTS.",
    ),
    features: Path | None = Option(
        None,
        help="A file with features (N, d) and labels (N,), as for diagnose, for the recall of dead classes.",
    ),
    scope: Scope,
    prices: AuditPrices,
    max_dead: int | None = Option(None, min=0, help="Exit with 1 if more classes are dead."),
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Say which classes of any trained classifier are dead, from its head alone.

    Classes are dead if their rows coincide with others, have shrunk to the mean, are still as initialised, or cannot be
    the answer whatever the features. With --max-dead it is a gate for CI.
    """
    from collapsar.diagnose.feature_files import read_samples
    from collapsar.diagnose.head_audit import audit as run
    from collapsar.diagnose.head_files import read_head

    options = scope.options(prices)
    given = None if class_names is None else names_in(class_names)
    found = read_head(source, head, _classes(given, counts))
    names = found.class_names if given is None else given
    samples = (None, None) if features is None else read_samples(features, len(found.weight), names)
    result = run(
        found.weight,
        found.bias,
        class_names=names,
        class_counts=found.class_counts if counts is None else _samples(counts, names, len(found.weight)),
        features=samples[0],
        labels=samples[1],
        options=options,
    )
    record: AuditRecord = {
        **result.to_dict(), "source": source.name, "tensor": found.name, "why": found.reason
    }  # fmt: skip
    if html is not None:
        from collapsar.report import audit_page

        write_atomically(html, audit_page(record))
    tell(record, lambda: _print(record, f"{found.name} {found.weight.shape}: {found.reason}"), as_json=as_json)
    dead = int(result.dead.sum())
    if max_dead is not None and dead > max_dead:
        refuse([f"{dead} {'class is' if dead == 1 else 'classes are'} dead, more than {max_dead}"])


def _classes(names: Sequence[str] | None, counts: Path | None) -> int | None:
    """How many classes there are, by their names or else by their counts; None where neither tells."""
    if names is not None or counts is None:
        return None if names is None else len(names)
    with contextlib.suppress(ValueError, OSError, EOFError):
        return label_counts(str(counts)).counts.size
    return None


def _samples(path: Path, names: Sequence[str] | None, num_classes: int) -> NDArray[np.int64]:
    """Samples of every class of a head: a number for each, possibly 0, or anything that ``label_counts`` reads."""
    if path.is_file() and path.suffix != ".npz":
        with contextlib.suppress(ValueError, EOFError):
            array = path.suffix == ".npy"
            found = np.load(path, allow_pickle=False) if array else whole_numbers(path.read_text("utf-8").split())
            counts = np.array(found)
            if counts.shape == (num_classes,):
                return counts
    read = label_counts(str(path))
    if read.names is None:
        return read.counts
    places = {str(k): k for k in range(num_classes)} | {name: k for k, name in enumerate(names or ())}
    counts = np.zeros(num_classes, dtype=np.int64)
    for name, count in zip(read.names, read.counts, strict=True):
        if name not in places or list(names or ()).count(name) > 1:
            raise ValueError(
                f"`--counts` {path}: {name!r} is not the name of one of the {num_classes} classes; give --class-names"
            )
        counts[places[name]] = count
    return counts


def _print(record: AuditRecord, origin: str) -> None:
    """The sentence, the findings, and a row per dead class."""
    shown, rows = console(), dead_rows(record)
    shown.print(record["summary"], style="bold", soft_wrap=True)
    shown.print(f"Head: {origin}.", soft_wrap=True)
    for sentence in (*record["words"], *record["notes"]):
        shown.print(f"- {sentence}", soft_wrap=True)
    if rows:
        shown.print(plain_table(*DEAD_COLUMNS, rows=rows[:_MOST_ROWS]))
    if len(rows) > _MOST_ROWS:
        shown.print(f"... and {len(rows) - _MOST_ROWS} more dead classes; --json has them all")
