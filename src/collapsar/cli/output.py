"""What the commands print: standard JSON, or tables for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import collapsar as cs


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(standard(value), allow_nan=False))


def standard(value: Any) -> Any:
    """Standard JSON: arrays as lists, NaN as null, infinity as "inf"."""
    if isinstance(value, dict):
        return {key: standard(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return standard(value.tolist())
    if isinstance(value, list | tuple):
        return [standard(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def solution_record(s: cs.Solution) -> dict[str, Any]:
    """Everything a solution says, for --json."""
    c = s.certificate
    return {
        "problem": s.problem.to_dict(),
        "status": s.status.name.lower(),
        "num_steps": s.num_steps,
        "primal": c.primal,
        "dual": c.dual,
        "gap": c.gap,
        "relative_gap": c.relative_gap,
        "rank": s.rank,
        "class_states": list(s.class_states),
        "clusters": s.quotient.labels,
        "Z": s.Z if s.problem.num_classes <= 1000 else None,  # a K x K matrix beyond that: use --out
        "b": s.b,
    }


def print_solution(s: cs.Solution) -> None:
    """One row per cluster, then the certificate."""
    p, q = s.problem, s.quotient
    table = Table("classes", "samples each", "state", "own logit", "sibling", "bias", "||z||")
    norms = s.column_norms
    for j in range(q.num_clusters):
        members = np.flatnonzero(q.labels == j)
        C, alpha, k = s.blocks.C[j, j], s.blocks.alpha[j], q.sizes[j]
        table.add_row(
            _classes(members),
            str(p.class_counts[members[0]]),
            s.class_states[members[0]],
            f"{C + alpha * (1 - 1 / k):.5g}",
            f"{C - alpha / k:.5g}" if k > 1 else "-",
            f"{s.blocks.b[j]:.5g}",
            f"{norms[members[0]]:.5g}",
        )
    console = Console()
    console.print(
        f"{p.num_classes} classes, {p.num_samples} samples, {p.features} features, "
        f"lambda_z {p.lambda_z:g}, lambda_b {p.lambda_b:g}",
        highlight=False,
    )
    console.print(table)
    console.print(
        f"objective {s.certificate.primal:.12g}, at most {s.certificate.gap:.2g} above the optimum "
        f"(certified); rank of Z {s.rank}; {s.num_steps} steps",
        highlight=False,
    )


def _classes(members: np.ndarray) -> str:
    """Compact names: "0-4", "3, 7"."""
    if members.size > 2 and np.all(np.diff(members) == 1):
        return f"{members[0]}-{members[-1]}"
    shown = ", ".join(str(k) for k in members[:6])
    return shown if members.size <= 6 else f"{shown}, ... ({members.size})"


def print_thresholds(problem: cs.Problem, t: cs.Thresholds, lambda_z: float | None) -> None:
    """One row per kind of class, and where ``lambda_z`` lies."""
    here = lambda_z is not None
    table = Table("classes", "samples each", "merge at lambda_z", "vanish at lambda_z", *(["here"] if here else []))
    keys = np.stack([problem.class_counts, t.merge, t.vanish, problem.loss_share])
    _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True, equal_nan=True)
    for j in np.argsort(first):
        k = first[j]
        row = [_classes(np.flatnonzero(inverse.ravel() == j)), str(problem.class_counts[k])]
        row += ["-" if np.isnan(x) else f"{x:.6g}" for x in (t.merge[k], t.vanish[k])]
        if lambda_z is not None:
            merged = lambda_z >= t.merge[k]
            row.append("vanished" if lambda_z >= t.vanish[k] else "merged" if merged else "separated")
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"everything collapses (Z = 0) from lambda_z = {t.complete:.6g}", highlight=False)


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
