"""Inverse thresholds: the value of a parameter at which a class merges or vanishes.

For merging with signed features the equation can be solved by hand (Hong & Ling, JMLR 25(192), 2024, Cor. 4);
everything else goes through :func:`edge_of`, a scan and a bracketed root of
:func:`collapsar.theory.thresholds.thresholds`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import inf, sqrt
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.checks import must_be_positive
from collapsar.core.loss import Loss
from collapsar.core.normalization import own_penalties
from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.thresholds import Thresholds
from collapsar.theory.roots import root_between
from collapsar.theory.thresholds import thresholds

Transition = Literal["merge", "vanish", "complete"]

_CLOSED = 1e-9  # bounds this close count as one number
_FAR = 1e6  # a threshold this many times the penalty, or none, is far away


@dataclass(frozen=True)
class Edge:
    """Where a parameter puts a class at a transition.

    Attributes:
        value: the parameter there; None if the bracket contains no transition.
        bracket: the last interval searched: around ``value``, or the whole range if there is none.
        alive_below: whether the class is alive (apart, not vanished) at the low end of the bracket.
        note: the finding in words.
        exact: whether the thresholds used are exact; if not, with nonnegative features whose classes share a
            direction there or above, ``value`` is approximate: solve on both sides to be certain.
    """

    value: float | None
    bracket: tuple[float, float]
    alive_below: bool
    note: str
    exact: bool = True


def edge_of(
    problem_at: Callable[[float], Problem],
    class_index: int,
    bracket: tuple[float, float],
    transition: Transition = "merge",
    points: int = 25,
    find: Callable[[Problem], Thresholds] = thresholds,
) -> Edge:
    """The first value of a parameter, from the low end, at which a class passes a transition.

    Args:
        problem_at: the problem for a value, with the ``lambda_z`` (``lambda_w`` where normalised) to compare with.
        class_index: which class; -1 is the last.
        bracket: 0 < low < high, the range to search.
        transition: which threshold.
        points: how finely the range is scanned, in logarithm; two transitions closer than a step are both missed.
        find: computes thresholds; :func:`collapsar.thresholds` if features are normalised.

    Returns:
        The edge, accurate to about 1e-11 relative if ``exact``; if there is no transition its ``value`` is None and
        its ``note`` says so.

    Raises:
        ValueError: the bracket is not 0 < low < high, ``transition`` is unknown, or the class has no such
            transition at all (merging of a class alone in its cluster, or of nonnegative features).

    Example:
        >>> at = lambda n: fractional_problem([n] * 5 + [100] * 5, 0.005, 0.02, features="nonnegative")
        >>> round(edge_of(at, -1, (100, 2000), "vanish").value, 1)
        290.5
    """
    low, high = bracket
    if not 0 < low < high < inf:
        raise ValueError(f"`bracket` must be 0 < low < high, got {bracket!r}")

    @cache
    def looked(value: float) -> tuple[float, bool]:
        problem = problem_at(value)
        threshold, exact = _threshold(problem, class_index, transition, find)
        return float(min(np.nan_to_num(threshold, nan=0.0) / own_penalties(problem)[class_index], _FAR) - 1), exact

    grid = np.geomspace(low, high, points)
    left = float(grid[0])
    before, exact = looked(left)
    start, ever = before, not exact
    for right in (float(v) for v in grid[1:]):
        now, exact = looked(right)
        ever |= not exact
        if (now > 0) != (before > 0):
            value = root_between(lambda v: looked(v)[0], left, right)
            exact = looked(value)[1]
            change, about = "ends" if before > 0 else "begins", "" if exact else "about "
            note = f'class {class_index} crosses "{transition}" at {about}{value:.6g}: being alive {change} there'
            return Edge(value, (left, right), before > 0, note, exact)
        left, before = right, now
    state, about = "alive" if start > 0 else "past it", ", judged by an approximate threshold" if ever else ""
    note = f'no "{transition}" of class {class_index} between {low:g} and {high:g}: it is {state} throughout{about}'
    return Edge(None, (low, high), start > 0, note, not ever)


def fractional_problem(
    counts: ArrayLike,
    lambda_z: float,
    lambda_b: float = inf,
    loss: Loss | None = None,
    features: FeatureModel = "signed",
) -> Problem:
    """A problem on counts that need not be whole, so that a count can be varied continuously.

    One sample per class with weight and feature mass n is the same program as n samples.

    Args:
        counts: shape (K,), > 0.
        lambda_z: as for :class:`collapsar.Problem`.
        lambda_b: as for :class:`collapsar.Problem`.
        loss: mitigations; class weights multiply the counts.
        features: as for :class:`collapsar.Problem`.

    Raises:
        ValueError: a count is not positive and finite, or another argument is out of range.

    Example:
        >>> fractional_problem([2.5, 1.5], 0.1).loss_share
        array([0.625, 0.375])
    """
    n = np.asarray(counts, dtype=np.float64)
    loss = Loss() if loss is None else loss
    weights = n if loss.class_weights is None else n * loss.class_weights
    remedy = Loss(weights, loss.offsets, loss.scales, loss.temperatures, loss.smoothing)
    return Problem(np.ones(n.shape, dtype=np.int64), lambda_z, lambda_b, remedy, n, features)


# --- closed forms: signed features, no mitigation, two clusters


def critical_ratio(k_a: int, k_b: int, n_b: float, lambda_z: float) -> float | None:
    """The imbalance r = n_A / n_B above which the minority merges: (1/k_A)(1/(lambda_z sqrt(n_B)) - k_B).

    Args:
        k_a: majority classes.
        k_b: minority classes, >= 2.
        n_b: samples of a minority class.
        lambda_z: > 0.

    Returns:
        r; None if the minority is merged at every ratio.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> critical_ratio(5, 5, 100, 0.005)
        3.0
    """
    must_be_positive(k_a=k_a, k_b=k_b, n_b=n_b, lambda_z=lambda_z)
    r = (1 / (lambda_z * sqrt(n_b)) - k_b) / k_a
    return r if r > 0 else None


def critical_majority(k_a: int, k_b: int, n_b: float, lambda_z: float) -> float | None:
    """The n_A above which the minority merges; None if it is merged at every n_A.

    Example:
        >>> critical_majority(5, 5, 100, 0.005)
        300.0
    """
    r = critical_ratio(k_a, k_b, n_b, lambda_z)
    return None if r is None else r * n_b


def critical_minority(k_a: int, k_b: int, n_a: float, lambda_z: float) -> tuple[float, float] | None:
    """The range of n_B where B's classes stay apart; its ends solve sqrt(n_B) = lambda_z (k_A n_A + k_B n_B).

    Above the upper end B itself dilutes the loss share of each of its classes too much.

    Returns:
        Lower and upper end; None if B is merged at every n_B.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> [round(n, 6) for n in critical_minority(5, 5, 300, 0.005)]
        [100.0, 900.0]
    """
    must_be_positive(k_a=k_a, k_b=k_b, n_a=n_a, lambda_z=lambda_z)
    square = 1 - 4 * lambda_z**2 * k_a * k_b * n_a
    if square < 0:
        return None
    upper = (1 + sqrt(square)) / (2 * lambda_z * k_b)
    lower = k_a * n_a / (k_b * upper)  # the product of the roots, without cancellation
    return lower**2, upper**2


def least_oversampling(k_a: int, k_b: int, n_a: float, n_b: float, lambda_z: float) -> float | None:
    """The smallest factor s >= 1 that keeps B's classes apart, if copies pay the penalty too, so that s n_B is a count.

    s n_B >= lambda_z^2 (k_A n_A + s k_B n_B)^2 is :func:`critical_minority` with s n_B in place of n_B.

    Returns:
        s, not rounded; 1 if B is apart already; None if no factor helps.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> round(least_oversampling(5, 5, 300, 50, 0.005), 6)
        2.0
    """
    must_be_positive(n_b=n_b)
    ends = critical_minority(k_a, k_b, n_a, lambda_z)
    if ends is None or n_b > ends[1]:
        return None
    return max(1.0, ends[0] / n_b)


def best_oversampling(k_a: int, k_b: int, n_a: float, n_b: float) -> float:
    """The factor with the highest merge threshold sqrt(s n_B) / (k_A n_A + s k_B n_B): s = k_A n_A / (k_B n_B).

    Beyond it, more oversampling makes things worse.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> best_oversampling(5, 5, 500, 100)
        5.0
    """
    must_be_positive(k_a=k_a, k_b=k_b, n_a=n_a, n_b=n_b)
    return k_a * n_a / (k_b * n_b)


def largest_head_decay_factor(
    problem: Problem,
    class_index: int,
    transition: Transition = "merge",
    find: Callable[[Problem], Thresholds] = thresholds,
) -> float:
    """How many times the head's weight decay may grow before the class reaches a transition.

    lambda_z = sqrt(lambda_w lambda_h) grows with the root of the factor: c = (threshold / lambda_z)^2; for normalised
    features (``find=collapsar.thresholds``) c = threshold / lambda_w, inf for a class that never merges. The penalty
    of the bias is kept. Below 1 the class is past the transition, and this is the factor that brings it back. If the
    threshold is approximate (``exact`` is false there), so is the factor, and a warning says so.

    Raises:
        ValueError: ``transition`` is unknown or the class has no such transition.

    Example:
        >>> p = Problem("500x5,100x5", lambda_z=0.001, lambda_b=0.02)
        >>> round(largest_head_decay_factor(p, -1), 3)
        11.111
    """
    threshold, exact = _threshold(problem, class_index, transition, find)
    if np.isnan(threshold):
        raise ValueError(f"`transition`: class {class_index} has no {transition!r} transition")
    if not exact:
        warnings.warn(
            f"class {class_index}: the threshold for {transition!r}, about {threshold:.4g}, and so the factor are "
            "approximate, since classes share a direction of nonnegative features; call `solve` to be certain; above "
            "`thresholds(...).vanish_bound` the class is zero for certain",
            stacklevel=2,
        )
    ratio = float(threshold / own_penalties(problem)[class_index])
    return ratio**2 if problem.normalization is None else ratio


def _threshold(
    problem: Problem, class_index: int, transition: Transition, find: Callable[[Problem], Thresholds]
) -> tuple[float, bool]:
    """The lambda_z of one transition, NaN if the column is zero at every lambda_z, and whether it is exact."""
    if transition not in get_args(Transition):
        raise ValueError(f"`transition` must be one of {get_args(Transition)}, got {transition!r}")
    t = find(problem)
    if transition == "complete":
        value, exact = t.complete, t.complete >= t.complete_bound * (1 - _CLOSED)
    else:
        value = float(getattr(t, transition)[class_index])
        exact = transition == "merge" or bool(t.exact[class_index])
    if problem.normalization is not None and np.isnan(value):
        return inf, exact  # no penalty does it
    if transition == "merge" and np.isnan(value):
        raise ValueError(
            f"`transition`: class {class_index} never merges (alone in its cluster, or nonnegative features); "
            'ask for "vanish"'
        )
    return value, exact
