"""Roots of functions of one variable, all to the same accuracy: scipy's for one, Chandrupatla's method for many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from collapsar.core.types import Vector

# How far below its guess a root is sought. A class without a root there is predicted well by the bias alone:
# its residual shrinks in proportion to lambda_z, so going further down changes nothing.
FLOOR = 1e-3
# Relative; a few times the spacing of float64.
RTOL = 4e-15


def root_between(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function that changes sign between ``low`` and ``high``, to the last digits of float64.

    It is scipy's brentq, imported here because the import takes longer than any formula that needs no such root.

    Raises:
        ValueError: there is no change of sign.

    Example:
        >>> round(root_between(lambda x: x**2 - 2, 0.0, 2.0), 12)
        1.414213562373
    """
    from scipy.optimize import brentq

    known = {end: float(function(end)) for end in (low, high)}  # brentq evaluates both ends again
    ends = known[low], known[high]
    if not min(ends) <= 0 <= max(ends):
        raise ValueError(
            f"the function has no change of sign between {low:g} and {high:g}: {ends[0]:g} and {ends[1]:g}"
        )
    rtol: Any = RTOL  # the stub expects numpy's float
    look = lambda x: known[x] if x in known else function(x)  # noqa: E731
    root: Any = brentq(look, low, high, xtol=5e-324, rtol=rtol, maxiter=5000)  # a root at 0 is bisected to 0
    return float(root)


def roots_between(
    function: Callable[[Vector], Vector],
    low: Vector,
    high: Vector,
    at_low: Vector | None = None,
    at_high: Vector | None = None,
) -> Vector:
    """Many roots at once, each between its own ``low`` and ``high``, to the last digits of float64.

    Chandrupatla's method (Adv. Eng. Software 28(3), 1997), starting along the chord: inverse quadratic interpolation
    where three points allow it, otherwise bisection. Written out because ``scipy.optimize`` takes longer to import
    than any formula here; the tests compare it with scipy's, :func:`root_between`. The values at the ends may be
    given. If, by rounding, there is no change of sign, an end is the root.

    Example:
        >>> roots_between(lambda x: x**2 - np.array([2.0, 9.0]), np.zeros(2), np.full(2, 4.0)).round(12)
        array([1.41421356, 3.        ])
    """
    b, a = (np.array(end) for end in np.broadcast_arrays(low, high))
    fa = function(a) if at_high is None else at_high
    fb = function(b) if at_low is None else at_low
    fa, fb = (
        np.where((np.sign(fa) * np.sign(fb) > 0) & (np.abs(f) <= np.abs(g)), 0.0, f) for f, g in ((fa, fb), (fb, fa))
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        step = fa / (fa - fb)  # first along the chord
    step = np.where(np.isfinite(step), step, 0.5)
    while True:
        nearer = np.abs(fa) < np.abs(fb)
        best, value = np.where(nearer, a, b), np.where(nearer, fa, fb)
        width = np.abs(b - a)
        tolerance = RTOL * np.abs(best) / 2 + 5e-324
        done = (value == 0) | (width <= 2 * tolerance)
        if done.all():
            return best
        least = np.minimum(tolerance / np.maximum(width, tolerance), 0.5)
        x = np.where(done, best, a + np.clip(step, least, 1 - least) * (b - a))
        fx = function(x)
        same = (fx > 0) == (fa > 0)
        c, fc = np.where(same, a, b), np.where(same, fa, fb)
        b, fb = np.where(done | same, b, a), np.where(done | same, fb, fa)
        a, fa = np.where(done, a, x), np.where(done, fa, fx)
        # interpolate only where the inverse parabola through the three points is monotone between a and b
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            across, drop = (a - b) / (c - b), (fa - fb) / (fc - fb)
            safe = (1 - np.sqrt(1 - across) < drop) & (drop < np.sqrt(across))
            inner = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        step = np.where(safe, inner, 0.5)


def largest_roots(excess: Callable[[Vector], Vector], top: Vector, guess: Vector) -> Vector:
    """The largest roots below ``top``, where ``excess`` is negative: walk down to a sign change, then interpolate.

    NaN where there is none above FLOOR * guess.

    Example:
        >>> largest_roots(lambda x: 2 - x, np.array([3.0]), np.array([1.0]))
        array([2.])
    """
    high, low, factor = top, np.minimum(guess, top * (1 - 1e-9)), 0.9
    value = excess(low)
    lost = np.zeros(low.shape, dtype=bool)
    while np.any(below := (value < 0) & ~lost):
        factor *= factor
        high, low = np.where(below, low, high), np.where(below, np.minimum(value + low, factor * low), low)
        lost |= below & (low < FLOOR * guess)
        value = excess(low)
    if lost.all():
        return np.full_like(low, np.nan)
    roots = roots_between(lambda x: np.where(lost, 0.0, excess(x)), low, high, np.where(lost, 0.0, value))
    return np.where(lost, np.nan, roots)
