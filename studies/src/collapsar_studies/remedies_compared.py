"""Mitigations side by side: what each does to thresholds, margins and geometry of the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

import collapsar as cs
from collapsar.advise.mitigations import (
    Remedy,
    balanced_softmax,
    cdt,
    combined,
    effective_number_weights,
    head_decay,
    inverse_weights,
    label_smoothing,
    ldt,
    logit_adjustment,
    oversampling,
    plain_training,
    vs_loss,
)
from collapsar.advise.outlook import inference_margins
from collapsar.core.problem import FeatureModel
from collapsar.core.types import Matrix, Record


def standard_remedies(counts: ArrayLike) -> tuple[Remedy, ...]:
    """Plain training, every mitigation at a usual setting, and combinations.

    Example:
        >>> len(standard_remedies([500, 500, 100]))
        17
    """
    root = inverse_weights(counts, 0.5)
    softmax = balanced_softmax(counts)
    return (
        plain_training(),
        inverse_weights(counts),
        root,
        effective_number_weights(counts),
        oversampling(counts),
        oversampling(counts, penalty="held"),
        softmax,
        logit_adjustment(counts),
        logit_adjustment(counts, 2.0),
        cdt(counts),
        vs_loss(counts),
        ldt(counts),
        label_smoothing(),
        head_decay(),
        combined(root, softmax),
        combined(ldt(counts), softmax),
        combined(root, head_decay()),
    )


# --- the comparison


def compare_remedies(problem: cs.Problem, remedies: Sequence[Remedy] | None = None, tol: float = 1e-9) -> Record:
    """Optima, thresholds and geometry of one problem under several mitigations, for both feature models if both exist.

    Args:
        problem: counts and penalties; usually plain. Its feature model is ignored.
        remedies: :func:`standard_remedies` by default.
        tol: relative gap of the optima.

    Returns:
        A JSON-able record; NaN is what does not exist. Vectors have one entry per group of classes with equal counts,
        largest first. Thresholds are in units of the problem's own lambda_z (lambda_w where features are normalised),
        before the mitigation.

    Raises:
        ValueError: two mitigations share a name.

    Example:
        >>> record = compare_remedies(cs.Problem("500x5,100x5", 0.0036, 0.02))
        >>> [r["signed"]["states"][1] for r in record["remedies"][:3]]
        ['merged', 'separated', 'separated']
    """
    chosen = standard_remedies(problem.class_counts) if remedies is None else tuple(remedies)
    names = [r.name for r in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"`remedies` must have different names, got {names}")
    counts = np.unique(problem.class_counts)[::-1]
    groups = [np.flatnonzero(problem.class_counts == n) for n in counts]
    models: tuple[FeatureModel, ...] = get_args(FeatureModel)
    if problem.normalization is not None and problem.normalization.over == "sample":
        models = ("signed",)
    return {
        "problem": {k: v for k, v in problem.to_dict().items() if k != "features"},
        "groups": [{"samples": int(n), "classes": g.size} for n, g in zip(counts, groups, strict=True)],
        "remedies": [
            {
                "name": remedy.name,
                "words": remedy.words,
                "loss": remedy.loss.to_dict(),
                "mass_factor": None if remedy.mass_factor is None else remedy.mass_factor.tolist(),
                "head_decay": remedy.head_decay,
                **{model: asdict(_outcome(remedy, problem.replace(features=model), groups, tol)) for model in models},
            }
            for remedy in chosen
        ],
    }


@dataclass(frozen=True)
class _Outcome:
    """What one mitigation makes of one problem; lists have one entry per group of classes with equal counts."""

    lambda_z: float
    status: str
    converged: bool
    relative_gap: float
    thresholds: dict[str, list[float] | list[bool] | float]
    states: list[str]
    margins: list[float]
    contrasts: list[float]
    bias: list[float]
    norms: dict[str, list[float]]
    cosines: dict[str, list[list[float]]]


def _outcome(remedy: Remedy, problem: cs.Problem, groups: list[NDArray[np.intp]], tol: float) -> _Outcome:
    treated = remedy(problem)
    nominal = _level(problem) / _level(treated)
    t = cs.thresholds(treated)
    s = cs.solve(treated, tol, throw=False)
    first = [int(g[0]) for g in groups]
    Z = s.Z
    grams = {"Z": Z.T @ Z, "W": s.classifier_gram(), "H": s.feature_gram()}
    return _Outcome(
        lambda_z=treated.lambda_z,
        status=s.status.name.lower(),
        converged=s.status is cs.Status.OPTIMAL,
        relative_gap=s.certificate.relative_gap,
        thresholds={
            "merge": (nominal * t.merge[first]).tolist(),
            "vanish": (nominal * t.vanish[first]).tolist(),
            "complete": nominal * t.complete,
            "complete_bound": nominal * t.complete_bound,
            "exact": t.exact[first].tolist(),
        },
        states=[s.class_states[k] for k in first],
        margins=inference_margins(s)[first].tolist(),
        contrasts=[float(Z[g[0], g[0]] - Z[g[1], g[0]]) if g.size > 1 else float("nan") for g in groups],
        bias=s.b[first].tolist(),
        norms={name: np.sqrt(np.maximum(np.diag(G)[first], 0.0)).tolist() for name, G in grams.items()},
        cosines={name: _mean_cosines(G, groups).tolist() for name, G in grams.items()},
    )


def _level(problem: cs.Problem) -> float:
    """The penalty that thresholds are values of."""
    return problem.lambda_z if problem.normalization is None else problem.normalization.level


def _mean_cosines(gram: Matrix, groups: list[NDArray[np.intp]]) -> Matrix:
    """Mean cosine between different classes, per pair of groups; NaN where a vector is zero or there is no pair."""
    norm = np.sqrt(np.maximum(np.diag(gram), 0.0))
    # a vector this much shorter than the longest is zero to rounding
    unit = np.where(norm > 1e-9 * norm.max(), norm, np.nan) if norm.max() > 0 else np.full_like(norm, np.nan)
    cosines = gram / np.outer(unit, unit)
    np.fill_diagonal(cosines, 0.0)
    result = np.empty((len(groups), len(groups)))
    for i, a in enumerate(groups):
        for j, b in enumerate(groups):
            pairs = a.size * (b.size - (i == j))
            result[i, j] = cosines[np.ix_(a, b)].sum() / pairs if pairs else np.nan
    return result
