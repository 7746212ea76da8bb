"""How a solve ended, in words that say what to do about it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from collapsar.solver.certificate import Certificate
from collapsar.solver.symmetry import Blocks

Progress = Callable[[int, Certificate], None]
"""Called with the number of steps so far and the certificate of the current point; may raise to interrupt."""


class Settings(NamedTuple):
    """How to solve: the arguments of :func:`collapsar.solve` besides the problem."""

    tol: float
    max_steps: int
    progress: Progress | None
    throw: bool


class Status(enum.Enum):
    """The end of a solve; the value is the sentence for the user."""

    OPTIMAL = "the duality gap is within tol"
    MAX_STEPS = "max_steps was reached before the gap was within tol; raise max_steps, or tol if this gap will do"
    STALLED = (
        "float64 allows no further progress at this point; raise tol, or take the point with the reported gap; class "
        "weights or feature masses that span more than 20 orders of magnitude are beyond it: bring them closer together"
    )
    SHARED_DIRECTIONS = (
        "classes share a feature direction (weak bias penalty and strong imbalance) and the bound for that, which is "
        "not always tight, stays open; the gap says how much at most is lost: take the point, or raise tol"
    )


@dataclass(frozen=True)
class Result:
    """What an algorithm returns.

    Attributes:
        blocks: the point.
        certificate: the certificate at exactly this point.
        num_steps: steps taken.
        status: how it ended.
        penalty: price of Z (without lambda_Z) if the algorithm knows a better one than the column form's, or None.
    """

    blocks: Blocks
    certificate: Certificate
    num_steps: int
    status: Status
    penalty: float | None = None
