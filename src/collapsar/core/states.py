"""The states of a class, and what safe means: the same words in every command, record and page.

At an optimum, and as measured in a trained network:

* **separated**: the class has predictions of its own;
* **merged**: its column of predictions is not zero, but does not tell it from other classes of its kind (those with the
  same number of samples and the same mitigation), or, in a network, from the classes it merged with;
* **vanished**: its column is zero, so its samples change no score.

In a trained network, whatever the state:

* **lost**: the class has samples and none of them is predicted as it (recall 0): merged with others, vanished, or
  *outvoted*, separated but always scored below another class;
* **dead**: its row of the head coincides with another class's, so no features can tell the two apart.

A class is **safe** with a margin when it is separated and stays so up to ``(1 + margin)`` times the regularization
strength. Its safety is the largest regularization strength at which it is separated over the present one: above 1
exactly for separated classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.types import Mask, Vector

ClassState = Literal["separated", "merged", "vanished"]
_ROUNDING = 8 * np.finfo(np.float64).eps
CLASS_STATES: tuple[ClassState, ...] = get_args(ClassState)


def worst(states: Iterable[ClassState]) -> ClassState:
    """The worst of several states.

    Example:
        >>> worst(["separated", "vanished", "merged"])
        'vanished'
    """
    return max(states, key=CLASS_STATES.index)


def past(strength: ArrayLike, threshold: ArrayLike) -> Mask:
    """Whether a regularization strength is at or past a threshold, up to rounding; never past NaN.

    Example:
        >>> past(0.1 + 0.2, [0.3, 0.31, np.nan]).tolist()
        [True, False, False]
    """
    return np.asarray(np.asarray(strength) >= np.asarray(threshold) * (1 - _ROUNDING))


def safety(threshold: ArrayLike, strength: float) -> Vector:
    """How many times stronger the regularization may become before a class is no longer separated.

    Args:
        threshold: the regularization strengths (lambda_z) above which classes are no longer separated.
        strength: the present strength.

    Example:
        >>> safety([0.006, 0.003], 0.004).tolist()
        [1.5, 0.75]
    """
    return np.asarray(threshold, dtype=np.float64) / strength
