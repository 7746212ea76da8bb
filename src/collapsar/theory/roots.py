"""Scalar roots: one wrapper, so that every formula here has the same accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["root_between"]

# Relative; a few times the smallest that Brent accepts.
RTOL: Any = 4e-15


def root_between(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function that changes sign between ``low`` and ``high``, to the last digits of float64.

    Raises:
        ValueError: there is no change of sign.

    Example:
        >>> round(root_between(lambda x: x**2 - 2, 0.0, 2.0), 12)
        1.414213562373
    """
    from scipy.optimize import brentq  # most of the time of an import, which not every caller needs

    root: Any = brentq(function, low, high, xtol=1e-300, rtol=RTOL, maxiter=500)
    return float(root)
