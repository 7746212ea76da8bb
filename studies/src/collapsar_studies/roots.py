"""The root of a function of one variable, to the last digits of float64."""

from __future__ import annotations

from collections.abc import Callable

from scipy.optimize import root_scalar


def root_between(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function that changes sign between ``low`` and ``high``.

    Raises:
        ValueError: there is no change of sign.
    """
    return float(root_scalar(function, bracket=(low, high), method="brentq", xtol=1e-15, rtol=1e-14).root)
