"""Names of the arrays and records that pass between the rooms."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Mask", "Matrix", "Record", "Vector", "must_be"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Array = NDArray[np.float64]
"""Of any shape."""
Mask = NDArray[np.bool_]
Record = dict[str, Any]
"""What is written as one JSON object."""


def must_be(kind: type, problem: object) -> None:
    """Refuse class counts, or what else is no problem, where a problem is wanted.

    Raises:
        ValueError: ``problem`` is not of this kind.
    """
    if not isinstance(problem, kind):
        got = repr(problem)
        raise ValueError(  # noqa: TRY004 - one error type at the door
            f"`problem` must be a collapsar.{kind.__name__}, with counts and penalties, got "
            f"{got if len(got) <= 80 else type(problem).__name__}"
        )
