"""The transitions of one problem: what theory, solver and phase diagrams call thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from collapsar.core.types import Mask, Vector


@dataclass(frozen=True)
class Thresholds:
    """Transitions of one problem, as values of lambda_z: the lowest value from which on the new state holds.

    Attributes:
        merge: shape (K,). From here on the class and its like (same counts, same mitigation) have equal columns.
            NaN for classes alone in their cluster and for nonnegative features, where classes vanish without
            merging first.
        vanish: shape (K,). From here on the column of the class is zero. NaN for a class whose column is
            zero at every lambda_z that is looked at, down to a thousandth of where classes vanish, which
            happens to a large class with nonnegative features when the bias alone carries it.
        complete: from here on Z = 0. For nonnegative features the value of the model with H >= 0 itself,
            which exceeds every ``vanish`` where dying classes would share a feature direction.
        complete_bound: Z = 0 is certain from here on. Equal to ``complete`` for signed features; for
            nonnegative ones finding ``complete`` is a copositive problem, and this is its relaxation, equal
            wherever it closes.
        exact: shape (K,), bool. True where ``vanish`` is certified to be the value of the model itself,
            always for signed features. False for nonnegative ones where, there or at a larger lambda_z, classes
            would share a feature direction: the value is then that of the column form, around which a small class
            loses the direction of its own; it vanishes later, with those that it shares with, mostly at
            ``vanish_bound``. A large class that the bias carries meanwhile may be gone at half of the value.
        vanish_bound: shape (K,). The column of the class is zero from here on for certain: ``vanish`` where that
            is exact, else where classes begin to share as lambda_z falls. Below it a class may vanish and come
            back, as the certified optimum says.
    """

    merge: Vector
    vanish: Vector
    complete: float
    complete_bound: float
    exact: Mask
    vanish_bound: Vector

    def __post_init__(self) -> None:
        for array in (self.merge, self.vanish, self.exact, self.vanish_bound):
            array.setflags(write=False)
