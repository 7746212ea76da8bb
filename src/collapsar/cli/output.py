"""What the commands print: standard JSON, or tables for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import collapsar as cs
from collapsar.app.theory_records import exact_vanish, near_merge, problem_words, solution_groups
from collapsar.core.normalization import own_penalties
from collapsar.core.records import to_json
from collapsar.core.states import CLASS_STATES
from collapsar.core.types import Mask, Vector
from collapsar.report.advice import class_words
from collapsar.report.words import standard_finding

if TYPE_CHECKING:  # the commands that print none need not pay for its import
    from collapsar.theory.thresholds import Thresholds


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(to_json(value), allow_nan=False))


RELU_WORDS = "For a head fed by a ReLU, as in most networks: --features nonnegative."


def print_solution(s: cs.Solution, names: Sequence[str] | None = None) -> None:
    """One row per cluster, then the certificate."""
    p = s.problem
    table = _table("classes", "samples", "state", "own logit", "sibling", "bias", "||z||")
    for row in solution_groups(s):
        numbers = (row[key] for key in ("own", "sibling", "bias", "length"))
        table.add_row(
            _classes(row["classes"], names),
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


def _table(first: str, *columns: str) -> Table:
    """A table that fits into 80 characters by folding its first column; numbers are never cut."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _classes(members: Sequence[int], names: Sequence[str] | None = None) -> str:
    return class_words({"classes": members}, names)


def print_thresholds(
    problem: cs.Problem, t: Thresholds, here: cs.Solution | None, names: Sequence[str] | None = None
) -> None:
    """One row per kind of class, and the state at the optimum ``here``."""
    if problem.normalization is not None:
        _print_normalized_thresholds(problem, t, here, names)
        return
    signed, near = problem.features == "signed", near_merge(problem, t)
    merge_column = ["merge at lambda_z"] if signed else []
    table = _table("classes", "samples", *merge_column, "vanish at lambda_z")
    exact = exact_vanish(t, here)
    keys = np.nan_to_num(np.stack([problem.class_counts, t.merge, near, t.vanish, exact, problem.loss_share]), nan=-1.0)
    if here is not None:
        table.add_column(f"state at {problem.lambda_z:g}", no_wrap=True)
        keys = np.vstack([keys, np.array([CLASS_STATES.index(state) for state in here.class_states])])
    _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    for j in np.argsort(first):
        k = first[j]
        merge = f"{t.merge[k]:.6g}" if np.isnan(near[k]) else f"≈ {near[k]:.3g}"
        vanish = "always" if np.isnan(t.vanish[k]) else f"{t.vanish[k]:.6g}" if exact[k] else f"≈ {t.vanish[k]:.3g}"
        row = [_classes(np.flatnonzero(inverse.ravel() == j), names), str(problem.class_counts[k])]
        table.add_row(*row, *([merge] if signed else []), vanish, *([] if here is None else [here.class_states[k]]))
    console = Console(highlight=False)
    console.print(problem_words(problem, lambda_z=here is not None))
    if signed:
        console.print(RELU_WORDS)
    console.print(table)
    console.print(f"everything collapses (Z = 0) from lambda_z = {t.complete:.6g}")
    for sentence in _notes(problem, t, near, exact):
        console.print(sentence)


def _print_normalized_thresholds(
    problem: cs.Problem, t: Thresholds, here: cs.Solution | None, names: Sequence[str] | None
) -> None:
    """The same where features are normalised, in lambda_w; a class without a value never merges or vanishes."""
    table = _table("classes", "samples", "merge at lambda_w", "vanish at lambda_w")
    states = None if here is None else here.class_states
    if here is not None:
        table.add_column(f"state at {own_penalties(problem).mean():g}", no_wrap=True)
    exact = exact_vanish(t, here)
    rows: dict[tuple[str, ...], list[int]] = {}
    for k, n in enumerate(problem.class_counts):
        merge, vanish = ("never" if np.isnan(value) else f"{value:.6g}" for value in (t.merge[k], t.vanish[k]))
        vanish = vanish if exact[k] or vanish == "never" else f"≈ {vanish}"
        row = (str(n), merge, vanish, *([] if states is None else [states[k]]))
        rows.setdefault(row, []).append(k)
    for row, members in rows.items():
        table.add_row(_classes(np.array(members), names), *row)
    console = Console(highlight=False)
    console.print(problem_words(problem, lambda_z=here is not None))
    console.print(table)
    if np.isnan(t.merge).any() and problem.features == "signed":
        console.print("never: alone of its kind, or no decay of the head gives the class and its like equal features.")
    if np.isfinite(t.complete):
        console.print(f"everything collapses (Z = 0) from lambda_w = {t.complete:.6g}")


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
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
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
    table = Table("class", "samples", "theory", "measured", "||z|| relative")
    rows = zip(
        record["config"]["class_counts"],
        record["predicted"]["states"],
        record["measured"]["states"],
        record["measured"]["relative_norm"],
        strict=True,
    )
    for k, (n, predicted, measured, norm) in enumerate(rows):
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
