"""The transitions of one problem: what theory, solver and phase diagrams call thresholds."""

from __future__ import annotations

from dataclasses import dataclass

from collapsar.core.types import Mask, Vector


@dataclass(frozen=True)
class Thresholds:
    """Transitions of one problem, as values of lambda_z: the lowest value above which the new state holds.

    Attributes:
        merge: shape (K,). Above it all classes of the same kind (same counts, same mitigation) have equal columns.
            NaN for classes alone in their cluster and for nonnegative features, where classes vanish without
            merging first.
        vanish: shape (K,). Above it the column of the class is zero. NaN for a class whose column is zero at every
            lambda_z examined, down to a thousandth of where classes vanish, which happens to a large class with
            nonnegative features when the bias alone predicts it well.
        complete: above it Z = 0. For nonnegative features the value of the model with H >= 0 itself,
            which exceeds every ``vanish`` where dying classes would share a feature direction.
        complete_bound: above it Z = 0 for certain. Equal to ``complete`` for signed features; for
            nonnegative ones finding ``complete`` is a copositive problem, and this is its relaxation, equal
            wherever it closes.
        exact: shape (K,), bool. True where ``vanish`` is certified to be the value of the model itself, always for
            signed features. False for nonnegative ones if, there or at a larger lambda_z, classes would share a
            feature direction: the value is then that of the column form, near which a small class loses its own
            direction; it vanishes later, with the classes it shares one with, mostly at ``vanish_bound``. A large
            class that the bias alone predicts well may vanish at half the value.
        vanish_bound: shape (K,). Above it the column of the class is zero for certain: ``vanish`` where that is
            exact, otherwise where classes begin to share a direction as lambda_z falls. Below it a class may vanish
            and come back; solve the problem to know.
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
