"""Scalar roots: one function, so that every formula here has the same accuracy."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

__all__ = ["root_between"]

# Relative; a few times the spacing of float64.
RTOL = 4e-15


def root_between(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function that changes sign between ``low`` and ``high``, to the last digits of float64.

    Chandrupatla's method (Adv. Eng. Software 28(3), 1997): inverse quadratic interpolation where three points allow
    it, else bisection. Written out because importing ``scipy.optimize`` takes longer than any formula here, and
    half of the time of ``collapsar thresholds``; the tests hold it against ``scipy.optimize.brentq``.

    Raises:
        ValueError: there is no change of sign.

    Example:
        >>> round(root_between(lambda x: x**2 - 2, 0.0, 2.0), 12)
        1.414213562373
    """
    a, b = float(high), float(low)  # b is the newest point, [a, b] holds the root, c is the point before
    fa, fb = float(function(a)), float(function(b))
    if not (fa <= 0 <= fb or fb <= 0 <= fa):
        raise ValueError(f"the function has no change of sign between {low:g} and {high:g}: {fb:g} and {fa:g}")
    step = 0.5
    while True:
        best, value = (a, fa) if abs(fa) < abs(fb) else (b, fb)
        width = abs(b - a)
        tolerance = RTOL * abs(best) / 2 + 5e-324
        if value == 0 or width <= 2 * tolerance:
            return best
        x = a + max(min(step, 1 - tolerance / width), tolerance / width) * (b - a)
        fx = float(function(x))
        if (fx > 0) == (fa > 0):
            c, fc = a, fa
        else:
            c, fc, b, fb = b, fb, a, fa
        a, fa = x, fx
        # Interpolate only where the inverse parabola through the three points is monotone between a and b.
        across, drop = (a - b) / (c - b), (fa - fb) / (fc - fb)
        step = 0.5
        if 1 - sqrt(1 - across) < drop < sqrt(across):
            step = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
