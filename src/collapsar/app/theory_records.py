"""The ``--json`` output for an optimum and for thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import collapsar as cs
from collapsar.core.normalization import own_penalties
from collapsar.core.record_types import GroupRecord, SolutionRecord
from collapsar.core.sentences import names_of
from collapsar.core.states import past
from collapsar.core.types import Mask, Vector

if TYPE_CHECKING:  # commands that do not need it should not pay for the import
    from collapsar.core.thresholds import Thresholds

_LARGEST_Z = 1000  # largest K for a K x K matrix in JSON; beyond it use --out


def solution_record(s: cs.Solution, names: Sequence[str] | None = None) -> SolutionRecord:
    """All of a solution, for --json."""
    c = s.certificate
    return {
        "kind": "solution",
        "problem": s.problem.to_dict(),
        "class_names": list(names_of(names, s.problem.num_classes)),
        "status": s.status.name.lower(),
        "num_steps": s.num_steps,
        "primal": c.primal,
        "dual": c.dual,
        "gap": c.gap,
        "relative_gap": c.relative_gap,
        "rank": s.rank,
        "class_states": list(s.class_states),
        "clusters": s.quotient.labels.tolist(),
        "Z": s.Z if s.problem.num_classes <= _LARGEST_Z else None,
        "b": s.b.tolist(),
    }


def thresholds_record(
    problem: cs.Problem, t: Thresholds, near: Vector, exact: Mask, here: cs.Solution | None, names: Sequence[str] | None
) -> dict[str, Any]:
    """Every threshold, which of them are approximate, and the states of the optimum ``here``, for --json."""
    record: dict[str, Any] = {
        "problem": problem.to_dict(),
        "class_names": list(names_of(names, problem.num_classes)),
        "merge": t.merge,
        "merge_approximate": near,
        "vanish": t.vanish,
        "vanish_exact": exact,
        "vanish_bound": t.vanish_bound,
        "complete": t.complete,
        "complete_bound": t.complete_bound,
    }
    if here is None:
        del record["problem"]["lambda_z"]
        if problem.normalization is not None:
            del record["problem"]["normalization"]["lambda_w"]
        return record
    return {
        **record,
        "class_states": list(here.class_states),
        "status": here.status.name.lower(),
        "relative_gap": here.certificate.relative_gap,
    }


def solution_groups(s: cs.Solution) -> list[GroupRecord]:
    """A row for each cluster, the largest classes first: its classes, and what they have in common."""
    p, q, blocks, norms, states = s.problem, s.quotient, s.blocks, s.column_norms, s.class_states
    rows: list[GroupRecord] = []
    for j, size in enumerate(q.sizes):
        members = np.flatnonzero(q.labels == j)
        common, own = float(blocks.C[j, j]), float(blocks.alpha[j])
        rows.append(
            {
                "classes": members.tolist(),
                "samples": int(p.class_counts[members[0]]),
                "state": states[members[0]],
                "own": common + own * (1 - 1 / size),
                "sibling": common - own / size if size > 1 else np.nan,
                "bias": float(blocks.b[j]),
                "length": float(norms[members[0]]),
            }
        )
    return sorted(rows, key=lambda row: -row["samples"])


def near_merge(problem: cs.Problem, t: Thresholds) -> Vector:
    """Where the predictions of a class alone in its cluster turn parallel to others'; NaN for all other classes."""
    from collapsar.theory.thresholds import gradual_merge  # with scipy's roots, which --version need not wait for

    alone = np.isnan(t.merge) & (problem.features == "signed") & (problem.normalization is None)
    return np.where(alone, gradual_merge(problem, t.complete), np.nan)


def exact_vanish(t: Thresholds, here: cs.Solution | None) -> Mask:
    """Which values of ``vanish`` are exact; those that the certified optimum contradicts are not."""
    if here is None:
        return t.exact
    alive = np.array([state != "vanished" for state in here.class_states])
    return t.exact & (alive != past(own_penalties(here.problem), t.vanish))
