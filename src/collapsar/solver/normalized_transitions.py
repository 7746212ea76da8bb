"""Where classes merge when features are normalised, as values of lambda_w.

Per sample a cluster keeps its classes apart iff tau delta (1 - eps) q > sqrt(y), y the multiplier of its spheres at the
optimum with its contrast held at zero: one root per cluster, one held solve per value. Per batch the states are those
of the program with a feature penalty at lambda_z = a ||Z M^(1/2)||_*, so a transition at lambda_z is one at
lambda_w = lambda_z norm^2 sum(m) / ||Z M^(1/2)||_*, which takes one solve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from collapsar.core.normalization import normalization_of
from collapsar.core.problem import Problem
from collapsar.core.thresholds import Thresholds
from collapsar.core.types import Vector
from collapsar.solver.certificate import penalty
from collapsar.solver.nonnegative_spheres import fewest, held_equal, minimise_nonnegative_spheres
from collapsar.solver.normalized import FEW, awake
from collapsar.solver.normalized_certificate import (
    NonnegativeSpheres,
    collapsed,
    normalized_quotient,
    row_scales,
    scaled_quotient,
)
from collapsar.solver.solve import solve_quotient
from collapsar.solver.sphere_directions import PATIENCE, settle_directions
from collapsar.solver.sphere_newton import newton_step
from collapsar.solver.spheres import NormalizedQuotient, SpherePoint, Spheres, sphere_point, sphere_start
from collapsar.solver.status import Settings
from collapsar.solver.symmetry import Quotient, quotient

_WEAKEST, _STRONGEST = 1e-9, 1e3  # range of lambda_w / norm^2 looked at; beyond it the loss hardly feels the head
_NOTHING = 1e-5  # logits that the optimum at Z = 0 itself may have, by the root of its gap
_STRONG = 50.0  # from here down one can tell that a cluster is merged without holding it
_SWEEP = 0.75  # nats of the penalty between the optima that say which clusters are merged
_BEYOND = 1e-7  # of log(y / strength^2): past the threshold, and not only by rounding
_ROUNDING = 1e-2  # nats below the strongest penalty
_ROOT, _EXACT = 1e-8, 1e-11  # the same at points the root is extrapolated from, for many clusters and for a few
_FLAT = 1e-9  # accuracy without a bias, where everything is in proportion to 1/c
_ACCURACY = 1e-6  # of the multipliers, relative to the step to the root
_DOUBT = 1e3  # times that accuracy: the multiplier of a small class is known less well, and its sign is checked again
_SLACK = 1e-3  # of the bracket, in nats: next to the root the sweep does not know the sign for a small class
_IDLE = 3  # steps that bring it no nearer: rounding
_STEPS = 300
_FREE = Settings(1e-9, 300, None, throw=False)


def transitions(problem: Problem, plain: Callable[[Problem], Thresholds]) -> Thresholds:
    """Every transition of a problem with normalised features as a value of lambda_w.

    Args:
        problem: with a normalization.
        plain: the thresholds of a problem with a feature penalty, which is what decides per batch.
    """
    how = normalization_of(problem)
    complete = np.inf
    if how.over == "sample":
        merge, complete = merge_per_sample(problem)
        bound = vanish = np.full(merge.size, complete if np.isfinite(complete) else np.nan)
        exact = np.ones(merge.size, dtype=bool)
    else:
        own = plain(plain_problem(problem))
        merge, vanish, bound = (merge_per_batch(problem, level) for level in (own.merge, own.vanish, own.vanish_bound))
        exact = own.exact
        if isinstance(how.lambda_w, np.ndarray) and 0 < problem.lambda_b < np.inf:
            # merging does not depend on the bias; the rest does, and its price then differs from logit to logit
            bound = vanish = np.full_like(vanish, np.nan)
            exact, complete = np.zeros_like(exact), np.nan
        elif how.lambda_gain is not None:
            complete = float(own.complete**2 * problem.mass.sum() / how.lambda_gain)
    return Thresholds(merge, vanish, complete, complete, exact, bound)


def merge_per_sample(problem: Problem) -> tuple[Vector, float]:
    """``lambda_w`` at which each class merges, NaN if it never does; and that at which Z = 0, inf for a given length.

    Raises:
        ArithmeticError: a held optimum did not settle.
    """
    how, q = normalization_of(problem), quotient(problem)
    n = normalized_quotient(problem, q, price=1.0)
    gain = how.lambda_gain
    branch = _nonnegative_branch if problem.features == "nonnegative" else _signed_branch
    merge = np.full(q.num_clusters, np.nan)
    if q.num_clusters > 1:  # if balanced, the contrast is all there is
        for j, price, weight in _merge_prices(n, branch):
            merge[j] = price * how.norm**2 if how.norm else price**2 * weight / (gain or np.nan)
    complete = np.inf
    if gain is not None:
        complete = collapsed(n)[1] ** 2 / gain
        if q.num_clusters == 1:
            merge[:] = complete
    own = row_scales(problem, q) ** -2.0  # a row's own lambda_w, over their mean
    return (merge * own)[q.labels], float(complete)


Start = Spheres | NonnegativeSpheres | None


class _Held(NamedTuple):
    """An optimum at one price: the multipliers y, ||W||^2, and what the next one may start from."""

    y: Vector
    weight: float
    start: Start


Branch = Callable[[NormalizedQuotient, "int | None", Start, float], _Held]


def _merge_prices(n: NormalizedQuotient, branch: Branch) -> Iterator[tuple[int, float, float]]:
    """The clusters that merge somewhere, the price at which their contrast dies, and ||W||^2 there.

    One downward sweep over prices says between which two each cluster merges; the root of
    y_j = (tau delta (1 - eps) q_j)^2 along the optima that hold its classes equal is found from there. Far up the
    sweep says nothing, as the loss hardly feels W; there only the held optimum at the strongest price counts.
    """
    q = n.q
    strength = q.temperatures * q.scales * (1 - q.smoothing) * q.share

    def excess_at(log_c: float, j: int | None, start: Start, accuracy: float) -> tuple[Vector, _Held]:
        found = branch(replace(n, price=float(np.exp(log_c))), j, start, accuracy)
        return np.log(found.y / strength**2), found

    # without a bias everything is in proportion to 1/c from here up
    log_c = float(np.log(_STRONG))
    top = float(np.log(_STRONGEST)) if n.has_bias else log_c
    rough = _BEYOND if n.has_bias else _FLAT
    at = excess_at(log_c, None, None, rough)[1]
    known: dict[int, list[tuple[float, float]]] = {}
    starts: dict[int, Start] = {}
    lows: dict[int, float] = {}
    for j in map(int, np.flatnonzero(q.sizes > 1)):  # a cluster that is apart at the strongest penalty never merges
        excess, found = excess_at(top, j, at.start, rough)
        if excess[j] > _BEYOND:
            known[j], starts[j] = [(top, float(excess[j]))], found.start
    merged = np.isin(np.arange(q.num_clusters), list(known))
    while merged.any() and log_c > np.log(_WEAKEST):
        excess, at = excess_at(log_c, None, at.start, rough)
        merged &= excess > _BEYOND
        for j in map(int, np.flatnonzero(merged)):
            known[j].append((log_c, float(excess[j])))
            starts[j] = at.start
        lows |= {int(j): log_c for j in np.flatnonzero(~merged) if int(j) not in lows}
        log_c -= _SWEEP
    for j, start in starts.items():
        found = _Held(strength, np.nan, start)

        def own_excess(log_c: float, accuracy: float, j: int = j) -> float:
            nonlocal found
            excess, found = excess_at(log_c, j, found.start, accuracy)
            return float(excess[j])

        root = _root_below(own_excess, known[j][-3:], lows.get(j, log_c), _EXACT if q.num_clusters <= FEW else _ROOT)
        if root < top - _ROUNDING:  # otherwise it was rounding that said so
            yield j, float(np.exp(root)), found.weight


def _root_below(
    excess: Callable[[float, float], float], points: list[tuple[float, float]], low: float, enough: float
) -> float:
    """The root of an increasing function below points where it is positive, the last of them the nearest.

    By inverse interpolation through the last three points. ``excess`` takes the accuracy wanted of it, and its last
    evaluation is next to the root.
    """
    low, high = low - _SLACK, points[-1][0] + _SLACK
    for _ in range(_STEPS):
        x, f = points[-1]
        new = x - f if len(points) == 1 else _at_zero(points[-3:])
        new = new if low <= new <= high else 0.5 * (low + high)
        wanted = max(_ACCURACY * min(abs(f), abs(new - x)), 0.1 * enough)
        value = excess(new, wanted)
        if abs(value) < _DOUBT * wanted:
            value = excess(new, 0.1 * enough)
        points = [*points, (new, value)]
        rounding = 0.5 * abs(f) <= abs(value) <= 10 * enough
        if abs(value) <= enough or abs(new - x) <= enough or rounding:
            last = _at_zero(points[-3:])  # far better than the last point
            return last if abs(last - new) <= 10 * abs(new - x) else new
        low, high = (new, high) if value < 0 else (low, new)
    raise ArithmeticError("the threshold did not settle; counts may differ by too much")


def _at_zero(points: list[tuple[float, float]]) -> float:
    """X at f = 0 by Neville's scheme, NaN if two values of f are equal."""
    f, x = [value for _, value in points], [x for x, _ in points]
    for k in range(1, len(x)):
        for i in range(len(x) - k):
            apart = f[i + k] - f[i]
            x[i] = (f[i + k] * x[i] - f[i] * x[i + 1]) / apart if apart != 0 else np.nan
    return x[0]


def _signed_branch(n: NormalizedQuotient, held: int | None, start: Start, accuracy: float) -> _Held:
    p = _settled(n, held, start if isinstance(start, Spheres) else None, accuracy)
    return _Held(np.maximum(n.price * p.nu, np.finfo(np.float64).tiny), p.x.weight_norm(), p.x)


def _nonnegative_branch(n: NormalizedQuotient, held: int | None, start: Start, accuracy: float) -> _Held:
    del accuracy  # Newton's method ends at rounding
    near = start if isinstance(start, NonnegativeSpheres) else None
    x = minimise_nonnegative_spheres(n, _FREE, near)[0] if held is None else held_equal(n, held, near)
    return _Held(x.y, float(np.sum(x.atoms.norms(n.q)[0] ** 2)), fewest(n, x))


def _settled(n: NormalizedQuotient, held: int | None, start: Spheres | None, accuracy: float) -> SpherePoint:
    """The optimum with the contrast of one cluster held at zero, its multipliers to ``accuracy``, relative."""
    q = n.q
    p = sphere_point(n, awake(n, sphere_start(n) if start is None else start, held))
    many = q.num_clusters > FEW
    radius, least, idle, times_added = np.sqrt(4 * p.value), np.inf, 0, 0 if many else PATIENCE
    asleep = (p.x.u == 0) & (q.sizes > 1) & (np.arange(q.num_clusters) != held)
    for _ in range(_STEPS):
        new, radius, decrement = newton_step(p, radius)
        idle = 0 if decrement < 0.5 * least else idle + 1
        rounding = new is p or (decrement <= 1e-15 and idle > _IDLE)
        if rounding or decrement <= accuracy**2:
            if start is not None and not many:  # directions that died at a nearby price have no slope to come back
                p, wider = settle_directions(p, decrement, times_added)
                if wider:
                    least, idle = np.inf, 0
                    continue
            woken = asleep & (p.R.within**2 > p.nu * n.price * (1 + _BEYOND))
            return _settled(n, held, p.x, accuracy) if woken.any() else p
        p, least = new, min(least, decrement)
        if many:
            p, wider = settle_directions(p, decrement, times_added)
            times_added += wider
            radius = max(radius, 1e-3 * np.sqrt(p.value)) if wider else radius
    raise ArithmeticError("an optimum on the way to the threshold did not settle; counts may differ by too much")


# --- per batch


def plain_problem(problem: Problem, lambda_z: float = 1.0) -> Problem:
    """The program with a feature penalty that has the same optima per batch, at another price.

    Row penalties become scales of their logits.
    """
    how, loss = normalization_of(problem), problem.loss
    if isinstance(how.lambda_w, np.ndarray):
        loss = replace(loss, scales=problem.scales * how.row_scales)
    return Problem(problem.class_counts, lambda_z, problem.lambda_b, loss, problem.feature_mass, problem.features)


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
    """The ``lambda_w`` whose optimum is that of the plain program at ``lambda_z``; NaN if that is Z = 0."""
    how, mass = normalization_of(problem), float(problem.mass.sum())
    if how.lambda_gain is not None:
        return lambda_z**2 * mass / how.lambda_gain
    assert how.norm is not None
    own = replace(scaled_quotient(problem, q), lambda_z=lambda_z)
    nuclear = penalty(own, solve_quotient(problem, own, None, Settings(1e-12, 300, None, throw=False)).blocks)
    return lambda_z * how.norm**2 * mass / nuclear if nuclear > _NOTHING * np.sqrt(mass) else np.nan
