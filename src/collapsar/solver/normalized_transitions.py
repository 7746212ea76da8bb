"""Where classes merge when features are normalised, as values of lambda_w.

Per sample a cluster keeps its classes apart iff tau delta (1 - eps) q > sqrt(y), y the multiplier of its spheres at the
optimum with its contrast held at zero: one root per cluster, each value one held solve. Per batch the states are those
of the program with a feature penalty at lambda_z = a ||Z M^(1/2)||_*, so a transition at lambda_z is one at
lambda_w = lambda_z norm^2 sum(m) / ||Z M^(1/2)||_*, one solve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from collapsar.core.problem import Loss, Problem
from collapsar.core.types import Vector
from collapsar.solver.certificate import penalty
from collapsar.solver.normalized_certificate import normalized_quotient, row_scales, scaled_quotient
from collapsar.solver.solve import Settings, solve_quotient
from collapsar.solver.spheres import NormalizedQuotient, SpherePoint, Spheres, newton_step, sphere_point, sphere_start
from collapsar.solver.symmetry import Quotient, quotient

__all__ = ["merge_per_batch", "merge_per_sample", "plain_problem", "transitions", "weight_penalty_per_batch"]


_WEAKEST, _STRONGEST = 1e-9, 1e5  # of lambda_w / norm^2 that are looked at; beyond, the head is 0 to every digit shown
_SETTLED = 1e-22  # decrement at which a held optimum is taken
_STEPS = 300


class PlainTransitions(Protocol):
    """What is used of the transitions of a problem with a feature penalty, values of lambda_z."""

    @property
    def merge(self) -> Vector: ...
    @property
    def vanish(self) -> Vector: ...
    @property
    def complete(self) -> float: ...
    @property
    def exact(self) -> NDArray[np.bool_]: ...


def transitions(problem: Problem, plain: Callable[[Problem], PlainTransitions]) -> dict[str, Any]:
    """Every transition of a problem with normalised features as a value of lambda_w: the fields of ``Thresholds``.

    Args:
        problem: with a normalization.
        plain: the thresholds of a problem with a feature penalty, which is what decides per batch.
    """
    how = problem.normalization
    assert how is not None
    complete = np.inf
    if how.over == "sample":
        merge, complete = merge_per_sample(problem)
        vanish = np.full(merge.size, complete if np.isfinite(complete) else np.nan)
        exact = np.ones(merge.size, dtype=bool)
    else:
        own = plain(plain_problem(problem))
        merge, vanish, exact = merge_per_batch(problem, own.merge), merge_per_batch(problem, own.vanish), own.exact
        if isinstance(how.lambda_w, np.ndarray) and 0 < problem.lambda_b < np.inf:
            # merging does not depend on the bias; the rest does, and its price then differs from logit to logit
            vanish, exact, complete = np.full_like(vanish, np.nan), np.zeros_like(exact), np.nan
        elif how.lambda_gain is not None:
            complete = float(own.complete**2 * problem.mass.sum() / how.lambda_gain)
    for array in (merge, vanish, exact):
        array.setflags(write=False)
    return {"merge": merge, "vanish": vanish, "complete": complete, "complete_bound": complete, "exact": exact}


def merge_per_sample(problem: Problem) -> tuple[Vector, float]:
    """``lambda_w`` at which each class merges, NaN where it never does; and where Z = 0, inf for a given length.

    Raises:
        ArithmeticError: a held optimum did not settle.
    """
    how, q = problem.normalization, quotient(problem)
    assert how is not None
    n = normalized_quotient(problem, q, price=1.0)
    gain = how.lambda_gain
    strengths = n.q.temperatures * n.q.scales * (1 - n.q.smoothing) * n.q.share
    merge = np.full(q.num_clusters, np.nan)
    for j in np.flatnonzero((q.sizes > 1) & (q.num_clusters > 1)):  # balanced, the contrast is all there is
        price, p = _merge_price(n, int(j), float(strengths[j]))
        if np.isfinite(price):
            merge[j] = price * how.norm**2 if how.norm else price**2 * p.x.weight_norm() / (gain or np.nan)
    complete = np.inf
    if gain is not None:  # as lambda_w grows, c ||W|| tends to the dual norm of the residual at Z = 0
        limit = _settled(replace(n, price=_STRONGEST), None)
        complete = (_STRONGEST**2 * limit.x.weight_norm()) / gain
        if q.num_clusters == 1:
            merge[:] = complete
    own = row_scales(problem, q) ** -2.0  # a row's own lambda_w, over their mean
    return (merge * own)[q.labels], float(complete)


def _merge_price(n: NormalizedQuotient, j: int, strength: float) -> tuple[float, SpherePoint]:
    """The price c at which cluster j's contrast dies, and the optimum there; NaN where it never dies."""
    from scipy.optimize import brentq

    last: SpherePoint | None = None

    def excess(log_c: float) -> float:
        nonlocal last
        c = float(np.exp(log_c))
        last = _settled(replace(n, price=c), j, None if last is None else last.x)
        return float(np.log(max(c * last.nu[j], 1e-300) / strength**2))

    high = float(np.log(_STRONGEST))
    if not excess(high) > 1e-7:
        assert last is not None
        return np.nan, last
    low = high
    while excess(low) > 0 and low > np.log(_WEAKEST):
        high, low = low, low - 3.0
    found: Any = brentq(excess, low, high, xtol=1e-13)
    root = float(found)
    excess(root)
    assert last is not None
    return float(np.exp(root)), last


def _settled(n: NormalizedQuotient, held: int | None, start: Spheres | None = None) -> SpherePoint:
    """The optimum with the contrast of one cluster held at zero."""
    x = sphere_start(n) if start is None else start
    short = (x.u**2 < 1e-3 * n.q.sizes) & (n.q.sizes > 1)
    u = np.where(short, 0.1 * np.sqrt(n.q.sizes), x.u)
    v = np.where(short, sphere_point(n, x).R.within * u / n.price, x.v)
    hold = np.arange(n.q.num_clusters) == held
    u, v = np.where(hold, 0.0, u), np.where(hold, 0.0, v)
    F = x.F * np.sqrt(np.maximum(n.q.sizes - u**2, 0.0) / np.maximum(np.sum(x.F**2, axis=0), 1e-300))
    p = sphere_point(n, Spheres(x.E, F, v, u, x.b))
    radius, previous = np.sqrt(4 * p.value), np.inf
    for _ in range(_STEPS):
        new, radius, decrement = newton_step(n, p, radius)
        if decrement <= _SETTLED or new is p or (decrement <= 1e-15 and not decrement < 0.5 * previous):
            return p
        p, previous = new, decrement
    raise ArithmeticError("an optimum on the way to the threshold did not settle; counts may differ by too much")


# --- per batch


def plain_problem(problem: Problem, lambda_z: float = 1.0) -> Problem:
    """The program with a feature penalty that has the same optima per batch, at another price."""
    how = problem.normalization
    assert how is not None
    loss = problem.loss
    if isinstance(how.lambda_w, np.ndarray):
        loss = _with_rows(problem)
    return Problem(problem.class_counts, lambda_z, problem.lambda_b, loss, problem.feature_mass, problem.features)


def _with_rows(problem: Problem) -> Loss:
    """The loss with row penalties taken into its scales."""
    how, loss = problem.normalization, problem.loss
    assert how is not None
    return Loss(
        loss.class_weights, loss.offsets, problem.scales * how.row_scales, loss.temperatures, smoothing=loss.smoothing
    )


def merge_per_batch(problem: Problem, plain: Vector) -> Vector:
    """``lambda_w`` of transitions known as lambda_z of :func:`plain_problem`, shape (K,), NaN where there is none."""
    q = quotient(problem)
    own = row_scales(problem, q)[q.labels] ** -2.0
    found: dict[float, float] = {}
    for value in plain[np.isfinite(plain)]:
        if float(value) not in found:
            found[float(value)] = weight_penalty_per_batch(problem, q, float(value))
    return np.array([found.get(float(value), np.nan) for value in plain]) * own


def weight_penalty_per_batch(problem: Problem, q: Quotient, lambda_z: float) -> float:
    """The ``lambda_w`` whose optimum is that of the plain program at ``lambda_z``; NaN where that is Z = 0."""
    how, mass = problem.normalization, float(problem.mass.sum())
    assert how is not None
    if how.lambda_gain is not None:
        return lambda_z**2 * mass / how.lambda_gain
    assert how.norm is not None
    own = replace(scaled_quotient(problem, q), lambda_z=lambda_z)
    nuclear = penalty(own, solve_quotient(problem, own, None, Settings(1e-12, 300, None, throw=False)).blocks)
    return lambda_z * how.norm**2 * mass / nuclear if nuclear > 1e-9 else np.nan
