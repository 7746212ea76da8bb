"""What the commands print: standard JSON, or tables for people."""

from __future__ import annotations

import json
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import collapsar as cs
from collapsar.app.theory_records import exact_vanish, near_merge, solution_groups
from collapsar.core.files import write_atomically
from collapsar.core.normalization import own_penalties
from collapsar.core.records import to_json
from collapsar.core.types import Mask, Vector
from collapsar.report.advice import class_words
from collapsar.report.words import problem_words, standard_finding

if TYPE_CHECKING:  # the commands that print none need not pay for their import
    from matplotlib.figure import Figure
    from rich.progress import Progress

    from collapsar.theory.thresholds import Thresholds

__all__ = [
    "RELU_WORDS",
    "bars",
    "plain_table",
    "print_demo",
    "print_json",
    "print_solution",
    "print_thresholds",
    "print_training",
    "show_page",
    "write_picture",
]


def plain_table(*columns: str, folds: Sequence[int] = (0,)) -> Table:
    """A table that fits into 80 characters by folding these columns; numbers are never cut."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, name in enumerate(columns):
        made.add_column(name, no_wrap=i not in folds, overflow="fold")
    return made


def write_picture(path: Path, figure: Figure, name: str, label: str, dpi: int = 200) -> None:
    """The figure in the format that the path's ending names."""
    from collapsar.report.style import picture_bytes

    write_atomically(path, picture_bytes(figure, path.suffix.lower(), name, label, dpi))


def show_page(page: Path) -> None:
    """Open a page in a browser."""
    if not webbrowser.open(page.resolve().as_uri()):
        print("No browser could be opened; open the page yourself.", file=sys.stderr)


def bars(unit: str) -> Progress:
    """Progress bars on stderr, for people only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} " + unit))
    log = Console(stderr=True, highlight=False)
    return Progress(*columns, TimeRemainingColumn(), console=log, disable=not sys.stderr.isatty())


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(to_json(value), allow_nan=False))


RELU_WORDS = "For a head fed by a ReLU, as in most networks: --features nonnegative."


def print_solution(s: cs.Solution, names: Sequence[str] | None = None) -> None:
    """One row per cluster, then the certificate."""
    p = s.problem
    table = plain_table("classes", "samples", "state", "own logit", "sibling", "bias", "||z||")
    for row in solution_groups(s):
        numbers = (row[key] for key in ("own", "sibling", "bias", "length"))
        table.add_row(
            class_words(row, names),
            str(row["samples"]),
            row["state"],
            *("-" if np.isnan(value) else f"{value:.5g}" for value in numbers),
        )
    console = Console(highlight=False)
    console.print(problem_words(p))
    if p.features == "signed" and p.normalization is None:
        console.print(RELU_WORDS)
    console.print(table)
    console.print(
        f"objective {s.certificate.primal:.12g}, at most {s.certificate.gap:.2g} above the optimum "
        f"(certified); rank of Z {s.rank}; {s.num_steps} steps"
    )


def print_thresholds(
    problem: cs.Problem, t: Thresholds, here: cs.Solution | None, names: Sequence[str] | None = None
) -> None:
    """One row per kind of class, and the state at the optimum ``here``."""
    from collapsar.theory.clusters import clusters_of  # with scipy: the commands that need none do not wait for it

    normalised, signed = problem.normalization is not None, problem.features == "signed"
    unit, none = ("lambda_w", "never") if normalised else ("lambda_z", "always")
    near, exact = near_merge(problem, t), exact_vanish(t, here)
    merge_column = [f"merge at {unit}"] if signed else []
    labels = clusters_of(problem).labels
    alone = np.bincount(labels)[labels] == 1
    state_column = [] if here is None else [f"state at {own_penalties(problem).mean():g}"]
    table = plain_table("classes", "samples", *merge_column, f"vanish at {unit}", *state_column)
    states = None if here is None else here.class_states
    kinds: dict[tuple[str, ...], list[int]] = {}
    for k, samples in enumerate(problem.class_counts):
        merge = f"≈ {near[k]:.3g}" if not np.isnan(near[k]) else _level(t.merge[k], "gradual" if alone[k] else none)
        vanish = _level(t.vanish[k], none, exact=bool(exact[k]))
        row = (str(samples), *([merge] if merge_column else []), vanish, *([] if states is None else [states[k]]))
        kinds.setdefault(row, []).append(k)
    for row, members in kinds.items():
        table.add_row(class_words({"classes": members}, names), *row)
    console = Console(highlight=False)
    console.print(problem_words(problem, lambda_z=here is not None))
    if signed and not normalised:
        console.print(RELU_WORDS)
    console.print(table)
    if np.isfinite(t.complete):
        console.print(f"everything collapses (Z = 0) from {unit} = {t.complete:.6g}")
    for sentence in _normalised_notes(t, alone) if normalised and signed else _notes(problem, t, near, exact):
        console.print(sentence)


def _level(value: float, none: str, *, exact: bool = True) -> str:
    return none if np.isnan(value) else f"{value:.6g}" if exact else f"≈ {value:.3g}"


def _normalised_notes(t: Thresholds, alone: Mask) -> list[str]:
    notes = []
    if alone.any():
        notes.append(
            "gradual: a class without another of as many samples has no threshold; its scores approach those of others "
            "as the decay grows, and its state at a given --lambda-w comes from the certified optimum."
        )
    if np.isnan(t.merge[~alone]).any():
        notes.append("never: at no decay of the head do these classes get equal features.")
    return notes


def _notes(problem: cs.Problem, t: Thresholds, near: Vector, exact: Mask) -> list[str]:
    notes = []
    if not np.isnan(near).all():
        notes.append(
            "≈ approximate: a class without another of as many samples merges with none; around this value its "
            "predictions turn parallel to those of other classes."
        )
    if problem.features == "signed" and np.ptp(t.vanish) <= 1e-9 * t.complete:
        notes.append("With signed features all columns vanish together here, not one after another.")
    if not exact.all():
        notes.append(
            "≈ approximate: here classes would share a feature direction, which these formulas leave out. The state "
            "at a given --lambda-z comes from the certified optimum."
        )
    if np.isnan(t.vanish).any():
        notes.append("always: the bias alone carries the class; its column is zero at every lambda_z.")
    return notes


def print_demo(record: dict[str, Any], page: Path) -> None:
    """The table of the demo, what it found, and where the report lies."""
    small = record["clusters"][1]
    counts = record["class_counts"]
    t = record["thresholds"]["nonnegative"]
    console = Console(highlight=False)
    console.print(
        f"{record['data']}: {len(counts)} classes, {max(counts)} images in each large one, {min(counts)} in each small."
        f" Theory: small classes vanish from lambda_z = {t['vanish'][small[0]]:.5g}, all from {t['complete']:.5g}."
    )
    columns = ("lambda_z", "theory", "measured", "Z off", "b off", "NC1", "train", "small test")
    table = plain_table(*columns)
    agree = 0
    for run in record["runs"]:
        predicted, measured = (_common([run[which]["states"][k] for k in small]) for which in ("predicted", "measured"))
        agree += predicted == measured
        accuracy = run["accuracy"]
        table.add_row(
            f"{run['lambda_z']:.5g}",
            predicted,
            measured,
            _percent(run["distance"]["Z"]),
            _percent(run["distance"]["b"]),
            _number(run["measured"]["nc1_uniform"]),
            _percent(accuracy["train"]),
            _percent(accuracy["test_minority"]),
        )
    console.print(table)
    console.print(
        f"Theory and network agree on the state of the small classes at {agree} of {len(record['runs'])} penalties. "
        "Z off, b off: relative distance of the network's mean predictions and bias to the exact optimum (- where that "
        "is zero). train, small test: accuracy on the training images, and on the small classes' test images. A class "
        "has vanished when its images move no score, so that the network cannot tell it from others."
    )
    if finding := standard_finding(record):
        console.print(f"As people train: {finding}")
    console.print(f"Report: {page.resolve().as_uri()}", soft_wrap=True)


def print_training(record: dict[str, Any], out: Path) -> None:
    """What one training run ended in, beside the theory."""
    console = Console(highlight=False)
    table = plain_table("class", "samples", "theory", "measured", "||z|| relative")
    classes = zip(
        record["config"]["class_counts"],
        record["predicted"]["states"],
        record["measured"]["states"],
        record["measured"]["relative_norm"],
        strict=True,
    )
    for k, (n, predicted, measured, norm) in enumerate(classes):
        table.add_row(str(k), str(n), predicted, measured, _number(norm))
    console.print(table)
    d, a = record["distance"], record["accuracy"]
    console.print(
        f"{record['epochs']} epochs in {record['seconds']:.0f} s; relative distance to the optimum of the nonnegative "
        f"model: Z {_percent(d['Z'])}, bias {_percent(d['b'])}; of the signed model: Z {_percent(d['Z_signed'])}. "
        f"Head stationary to {_number(record['stationarity'])}. "
        f"Test accuracy: balanced {_percent(a['test_balanced'])}, smallest classes {_percent(a['test_minority'])}."
    )
    console.print(f"Records: {out.resolve()}", soft_wrap=True)


def _common(states: list[str]) -> str:
    return states[0] if len(set(states)) == 1 else "mixed"


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{100 * value:.1f}%"
