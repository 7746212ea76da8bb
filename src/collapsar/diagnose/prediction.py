"""What theory predicts for a trained network's counts and penalties, and how far the network is from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from collapsar.advise.outlook import edges
from collapsar.core.known import KnownTraining
from collapsar.core.normalization import own_penalties
from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.record_types import ModelRecord
from collapsar.core.records import to_json
from collapsar.core.states import ClassState
from collapsar.core.thresholds import Thresholds
from collapsar.core.types import Matrix, Vector
from collapsar.diagnose.agreement import EffectivePenalties, bias_price
from collapsar.diagnose.fit import Fit, both, fit_beside
from collapsar.diagnose.measurement import MAX_TABLE, Measurement
from collapsar.diagnose.model_choice import Choice, NormalizedFit
from collapsar.metrics.separation import MeasuredState, class_separation
from collapsar.solver import Solution
from collapsar.theory import thresholds

Source = Literal["as trained", "effective"]
"""Whether a penalty is that of the training, as known, or was read from the network."""

# Classes of one cluster are equally far from all others: this many of them represent the rest.
_STAND_FOR = 3


@dataclass(frozen=True, eq=False)
class Prediction:
    """What theory predicts for these counts and penalties.

    Attributes:
        problem: whose optimum it is; if rows have several penalties, their scales are in its loss.
        features: the feature model.
        lambda_z: the penalty of the mean predictions, ``Problem.lambda_z``.
        lambda_b: the penalty of the bias.
        source: whether the penalty is that of the training, as known, or was read from the network.
        states: state of each class at the exact optimum.
        seen: the states that the measuring rule finds in the optimum's Z: what a perfect network would show.
        groups: the classes that the same rule finds merged with one another.
        lengths: shape (K,), lengths of the optimum's mean predictions by the same rule, relative to the longest.
        merge: shape (K,), ``price`` above which the class merges; NaN if it does not.
        vanish: shape (K,), ``price`` above which it vanishes.
        complete: ``price`` above which nothing is left; NaN if something always is.
        edge: shape (K,), ``price`` above which the class has no predictions of its own: the first of the two, or for
            one alone in its size (signed features), which has no transition, where it loses its own direction.
        Z: shape (K, K), the optimum's mean predictions; None for too many classes for a K x K table.
        b: shape (K,).
        gap: relative duality gap of the optimum.
        unit: the unit of ``price`` and the thresholds: "lambda_w" for normalised features (the rows' mean).
        price: the network's own; ``lambda_z`` unless features are normalised.
    """

    problem: Problem
    features: FeatureModel
    lambda_z: float
    lambda_b: float
    source: Source
    states: tuple[ClassState, ...]
    seen: tuple[MeasuredState, ...]
    groups: tuple[tuple[int, ...], ...]
    lengths: Vector
    merge: Vector
    vanish: Vector
    complete: float
    edge: Vector
    Z: Matrix | None
    b: Vector
    gap: float
    unit: Literal["lambda_z", "lambda_w"]
    price: float


def by_rows(m: Measurement, known: KnownTraining) -> Measurement:
    """The same network in units in which its rows cost the same: w_k / delta_k, with delta_k scales of the loss.

    Valid for a bias that is free or absent; with a penalised one, or with one penalty for all rows, it is ``m``.
    """
    scales = known.row_scales
    if scales is None or (m.bias is not None and known.lambda_b):
        return m
    own = np.ones_like(scales) if m.loss_form.scales is None else m.loss_form.scales
    return replace(
        m,
        weight=m.weight / scales[:, None],
        bias=None if m.bias is None else m.bias / scales,
        weight_gradient=m.weight_gradient * scales[:, None],
        bias_gradient=m.bias_gradient * scales,
        loss_form=replace(m.loss_form, scales=own * scales),
    )


def priced(
    m: Measurement, known: KnownTraining, effective: EffectivePenalties | None, features: FeatureModel
) -> dict[Source, Problem]:
    """The problem of penalised features at every known penalty: that of the training, that read from the network."""
    lambda_b = bias_price(m, known.lambda_b, 0.0 if effective is None else effective.lambda_b)
    read = None if effective is None or not 0 < effective.lambda_z < math.inf else effective.lambda_z
    prices: dict[Source, float | None] = {"as trained": known.lambda_z, "effective": read}
    return {
        source: Problem(m.class_counts, lambda_z, lambda_b, m.loss_form, m.feature_mass, features)
        for source, lambda_z in prices.items()
        if lambda_z is not None
    }


def compared(
    m: Measurement,
    problems: Mapping[Source, Problem],
    effective: EffectivePenalties | None,
    optimum: Callable[[Problem], Solution],
) -> tuple[Fit, Source]:
    """Distances at the effective penalties; at those of the training if nothing is alive to read them from."""
    Z = m.Z if m.small else m.predictions
    if effective is not None and "effective" in problems:
        split = (effective.lambda_w, effective.lambda_h)
        return fit_beside(both(problems["effective"], optimum), Z, m.b, m.weight, m.class_means, split), "effective"
    return fit_beside(both(problems["as trained"], optimum), Z, m.b), "as trained"


def predicted(
    m: Measurement,
    known: KnownTraining,
    problems: Mapping[Source, Problem],
    optimum: Callable[[Problem], Solution],
) -> Prediction:
    """Theory at the penalties of the training if they are known, otherwise at the effective ones."""
    source, problem = next(iter(problems.items()))
    rows = known.row_scales if m.loss_form != known.loss else None  # as ``by_rows`` has it
    found = prediction_of(optimum(problem), thresholds(problem), source, rows)
    return found if m.small else replace(found, Z=None)


def prediction_of(
    solution: Solution,
    t: Thresholds,
    source: Source = "as trained",
    rows: Vector | None = None,
) -> Prediction:
    """What an optimum and its thresholds predict for a network.

    Args:
        solution: the optimum.
        t: thresholds of its problem.
        source: where the penalty comes from.
        rows: shape (K,), the factors of the optimum's logits, the same for classes of a cluster; 1 by default.
    """
    problem, how = solution.problem, solution.problem.normalization
    scale = np.ones(problem.num_classes) if rows is None else rows
    price = problem.lambda_z if how is None else how.level
    # classes that come to share a direction lose their own at ``t.vanish`` and vanish later
    last = np.where(t.exact | np.isnan(t.vanish), t.vanish, t.vanish_bound)
    relative = price / own_penalties(problem)  # exactly 1 if there is one penalty: thresholds stay unchanged
    merge, alone, vanish = (levels * relative for levels in (t.merge, t.vanish, last))
    edge = np.fmin(merge, alone)
    if how is None and problem.features == "signed":
        edge = np.fmin(edge, edges(problem))
    seen, groups, lengths = as_measured(solution, rows)
    return Prediction(
        problem=problem,
        features=problem.features,
        lambda_z=problem.lambda_z,
        lambda_b=problem.lambda_b,
        source=source,
        states=solution.class_states,
        seen=seen,
        groups=groups,
        lengths=lengths,
        merge=merge,
        vanish=vanish,
        complete=float(t.complete) if np.isfinite(t.complete) else math.nan,
        edge=edge,
        Z=scale[:, None] * solution.Z if problem.num_classes <= MAX_TABLE else None,
        b=scale * solution.b,
        gap=solution.certificate.relative_gap,
        unit="lambda_z" if how is None else "lambda_w",
        price=price,
    )


def model_record(choice: Choice, fit: NormalizedFit | None) -> ModelRecord:
    """The model chosen, and how far the network is from it, as JSON-able values."""
    record: ModelRecord = {
        "name": choice.name,
        "sentence": choice.sentence,
        "problem": None if choice.problem is None else choice.problem.to_dict(),
        "distance": None,
    }
    if fit is not None:
        record["distance"], record["away"], record["norm"] = map(to_json, (fit.distance, fit.away, fit.norm))
        record["gap"] = to_json(fit.solution.certificate.relative_gap)
        record["merge"] = None if fit.thresholds is None else to_json(fit.thresholds.merge)
    return record


def as_measured(
    solution: Solution, rows: Vector | None = None
) -> tuple[tuple[ClassState, ...], tuple[tuple[int, ...], ...], Vector]:
    """What ``class_separation`` of the evidence finds at an optimum, without its K x K table.

    A column is its cluster's plus alpha (e_k - 1/k), so it has coordinates in J + K orthonormal directions. All
    classes of a cluster are equally far from each other and from any other class: three of them represent all.

    Args:
        solution: the optimum.
        rows: shape (K,), the factors of its logits, the same for classes of a cluster; 1 by default.

    Returns:
        State of each class, the groups of classes that have merged, or vanished, with each other, and the relative
        lengths of the columns.

    Example:
        >>> from collapsar import Problem, solve
        >>> s = solve(Problem("500x5,100x5", lambda_z=0.0037, lambda_b=0.02))
        >>> as_measured(s)[1]
        ((5, 6, 7, 8, 9),)
    """
    q, problem = solution.quotient, solution.problem
    C, alpha, sizes = solution.blocks.C, solution.blocks.alpha, q.sizes
    members = np.split(np.argsort(q.labels, kind="stable"), np.cumsum(sizes.astype(int))[:-1])
    if rows is not None:
        scale = rows[[part[0] for part in members]]
        C, alpha = scale[:, None] * C, scale * alpha
    if problem.features == "signed":  # as in ``class_evidence``
        share = np.bincount(q.labels, weights=problem.class_counts / problem.num_samples)
        C = C - (C @ share)[:, None]
    C = C - sizes @ C / q.num_classes
    standing = [part[:_STAND_FOR] for part in members]
    cluster = np.repeat(np.arange(sizes.size), [len(part) for part in standing])
    own = np.zeros((cluster.size, cluster.size))
    for j, part in enumerate(standing):
        inside = np.flatnonzero(cluster == j)
        r = len(part)
        # the root of I - 11'/k on r of k coordinates
        root = np.eye(r) - (1 - math.sqrt(max(1 - r / sizes[j], 0.0))) / r
        own[np.ix_(inside, inside)] = alpha[j] * root if sizes[j] > 1 else 0.0
    points = np.vstack([np.sqrt(sizes)[:, None] * C[:, cluster], own])
    found = class_separation(np.vstack([points, -points]) / math.sqrt(2))  # of the same lengths, and centred
    classes = np.concatenate(standing)
    states, lengths = np.empty(q.num_classes, dtype=object), np.zeros(q.num_classes)
    for j, part in enumerate(members):
        here = np.flatnonzero(cluster == j)
        lengths[part] = found.relative_norms[here[-1]]
        states[part] = found.states[here[-1]]
        states[standing[j]] = [found.states[i] for i in here]
    groups = []
    for group in found.groups:
        chosen = cluster[list(group)]
        whole = [j for j in np.unique(chosen) if np.sum(chosen == j) == len(standing[j])]
        rest = classes[[i for i in group if cluster[i] not in whole]].tolist()
        groups.append(tuple(sorted([*rest, *(k for j in whole for k in members[j].tolist())])))
    return tuple(states.tolist()), tuple(sorted(groups)), lengths
