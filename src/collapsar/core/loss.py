"""The loss of the program: a cross-entropy with the usual mitigations of imbalance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.records import JsonValue
from collapsar.core.types import Vector


@dataclass(frozen=True, eq=False)
class Loss(JsonValue):
    """A cross-entropy and its mitigations. Every vector has one entry per class; None is the plain loss.

    Attributes:
        class_weights: w > 0, factor of each sample's loss before normalisation: q_k = w_k n_k / sum(w n).
        offsets: iota, added to the logits in the training loss only (logit adjustment: tau log prior).
        scales: delta > 0, one factor per logit (CDT; VS loss with ``offsets``).
        temperatures: tau > 0, one factor per class of the sample (LDT).
        smoothing: eps in [0, 1), the target of class k is (1 - eps) e_k + (eps / K) 1.

    Raises:
        ValueError: An entry is not finite, a weight, scale or temperature is not positive, or ``smoothing`` is
            outside [0, 1).

    Example:
        >>> Loss(smoothing=0.1).smoothing
        0.1
    """

    class_weights: Vector | None = None
    offsets: Vector | None = None
    scales: Vector | None = None
    temperatures: Vector | None = None
    smoothing: float = 0.0

    def __init__(
        self,
        class_weights: ArrayLike | None = None,
        offsets: ArrayLike | None = None,
        scales: ArrayLike | None = None,
        temperatures: ArrayLike | None = None,
        smoothing: float = 0.0,
    ) -> None:
        for name, value, positive in (
            ("class_weights", class_weights, True),
            ("offsets", offsets, False),
            ("scales", scales, True),
            ("temperatures", temperatures, True),
        ):
            object.__setattr__(self, name, None if value is None else class_vector(name, value, positive=positive))
        if not 0 <= smoothing < 1:
            raise ValueError(f"`smoothing` must be in [0, 1), got {smoothing!r}")
        object.__setattr__(self, "smoothing", float(smoothing))

    @property
    def is_plain(self) -> bool:
        """Whether this is the unmodified cross-entropy."""
        return self.smoothing == 0 and all(
            v is None for v in (self.class_weights, self.offsets, self.scales, self.temperatures)
        )


def class_vector(name: str, values: ArrayLike, *, positive: bool) -> Vector:
    """One finite number per class, shape (K,), read-only.

    Raises:
        ValueError: The values are not that, or not ``positive``; the message has ``name``.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be numbers, got {values!r}") from None
    if array.ndim != 1:
        raise ValueError(f"`{name}` must be one-dimensional, one entry per class, got shape {array.shape}")
    good = np.isfinite(array) & (array > 0) if positive else np.isfinite(array)
    if not good.all():
        k = int(np.argmin(good))
        raise ValueError(f"`{name}` must be finite{' and > 0' if positive else ''}, got {array[k]:g} for class {k}")
    return frozen_vector(array)


def frozen_vector(array: Vector) -> Vector:
    """The same array, read-only from now on."""
    array.setflags(write=False)
    return array
