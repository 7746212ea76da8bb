"""Checks of arguments, with one sentence for each kind of mistake."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

STORED_TURNED = "; transpose a head stored (d, K), as Keras stores kernels: weight.T"
"""End of a message where the sizes would fit the transpose."""


def must_be(kind: type, problem: object) -> None:
    """Refuse class counts, or anything else, where a problem is expected.

    Raises:
        ValueError: ``problem`` is not of this kind.
    """
    if not isinstance(problem, kind):
        got = repr(problem)
        raise ValueError(  # noqa: TRY004 - one error type at the door
            f"`problem` must be a collapsar.{kind.__name__}, with counts and penalties, got "
            f"{got if len(got) <= 80 else type(problem).__name__}"
        )


def number(name: str, value: object) -> float:
    """The value as a Python float.

    Raises:
        ValueError: it is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ValueError(f"`{name}` must be a number, got {value!r}")  # noqa: TRY004 - one error type at the door
    return float(value)


def must_be_positive(**arguments: object) -> None:
    """Refuse numbers that are not finite and > 0.

    Raises:
        ValueError: one is not; the message has its name.
    """
    for name, value in arguments.items():
        if not 0 < number(name, value) < inf:
            raise ValueError(f"`{name}` must be finite and > 0, got {value!r}")


def bias_price(lambda_b: object) -> float:
    """The penalty of a bias as a number.

    Raises:
        ValueError: it is negative or NaN.
    """
    price = number("lambda_b", lambda_b)
    if not price >= 0:
        raise ValueError(f"`lambda_b` must be >= 0 (inf: no bias, 0: free bias), got {lambda_b!r}")
    return price


def flat_bias(bias: Any) -> Any:
    """A bias, array or tensor, stored as a column (K, 1) or a row (1, K), as shape (K,); any other is unchanged."""
    return bias.ravel() if bias.ndim == 2 and 1 in bias.shape else bias
