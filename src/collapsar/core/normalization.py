"""The normalisation between backbone and head: the length of the features is given, or set by a gain that decays.

    min over W, H, b   loss(W'H + b) + (1/2) sum_k lambda_k ||w_k||^2 + (lambda_b / 2)||b||^2

per sample (LayerNorm, RMSNorm, cosine head)   ||h|| = norm for every sample,
per batch (BatchNorm)                           mean ||h||^2 = norm^2.

With a decayed gain the length is free, at the price of (lambda_gain / 2) norm^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.checks import must_be_positive
from collapsar.core.loss import class_vector
from collapsar.core.records import JsonValue
from collapsar.core.types import Vector

if TYPE_CHECKING:
    from collapsar.core.problem import Problem

COSINE_SCALE = 16.0
"""By what a cosine head usually multiplies its features of unit length."""

GATHERS = (
    "when each feature has a decayed gain, the gain gathers in few features, where length costs less than in any model "
    "here; with a fixed gain the optimum is known"
)
"""Why no optimum is known where a norm over each sample has a gain that is decayed."""

Over = Literal["sample", "batch"]


def norm_length(norm: str, width: int) -> float:
    """Length of ``width`` features behind a norm without a gain; for a ``"cosine"`` head its usual scale."""
    return COSINE_SCALE if norm == "cosine" else math.sqrt(width)


@dataclass(frozen=True, eq=False)
class Normalization(JsonValue):
    """How features are normalised and what the head's weight costs.

    Attributes:
        lambda_w: > 0, penalty of the head's weight: a number, or shape (K,), one per class (row of the head).
        norm: > 0, the length of the features; None where the gain is decayed.
        lambda_gain: > 0, penalty of the norm's gain; None where the length is given.
        over: ``"sample"``: every feature has this length; ``"batch"``: its square is the mean of their squared lengths.

    Raises:
        ValueError: A value is out of range, or not exactly one of ``norm`` and ``lambda_gain`` is given.

    Example:
        >>> Normalization(0.5, norm=2.0).price
        0.125
    """

    lambda_w: float | Vector
    norm: float | None = None
    lambda_gain: float | None = None
    over: Over = "sample"

    def __init__(
        self,
        lambda_w: float | ArrayLike,
        norm: float | None = None,
        lambda_gain: float | None = None,
        over: Over = "sample",
    ) -> None:
        if over not in get_args(Over):
            raise ValueError(f'`over` must be "sample" (LayerNorm) or "batch" (BatchNorm), got {over!r}')
        if (norm is None) == (lambda_gain is None):
            raise ValueError("give `norm` (the length of the features) or `lambda_gain` (a decayed gain), not both")
        if isinstance(lambda_w, int | float | np.number):
            must_be_positive(lambda_w=lambda_w)
            weight = float(lambda_w)
        else:
            weight = class_vector("lambda_w", lambda_w, positive=True)
        must_be_positive(**({"lambda_gain": lambda_gain} if norm is None else {"norm": norm}))
        object.__setattr__(self, "lambda_w", weight)
        object.__setattr__(self, "norm", None if norm is None else float(norm))
        object.__setattr__(self, "lambda_gain", None if lambda_gain is None else float(lambda_gain))
        object.__setattr__(self, "over", over)

    @property
    def level(self) -> float:
        """The penalty of the weight, its mean over classes where it differs."""
        return float(np.mean(self.lambda_w))

    @property
    def row_scales(self) -> Vector | float:
        """sqrt(level / lambda_k): a row penalty is a scale of its logit (theory.md, section on CDT)."""
        return np.sqrt(self.level / self.lambda_w) if isinstance(self.lambda_w, np.ndarray) else 1.0

    @property
    def price(self) -> float:
        """lambda_w / norm^2: the penalty of the weight for features of unit length."""
        if self.norm is None:
            raise ValueError("no `norm` is given, because the gain is decayed; use `lambda_gain`")
        return self.level / self.norm**2

    @property
    def lambda_z(self) -> float:
        """sqrt(lambda_w) / norm, or sqrt(lambda_w lambda_gain): what :class:`Problem` calls ``lambda_z``."""
        return float(np.sqrt(self.level * self.lambda_gain if self.lambda_gain is not None else self.price))

    def check(self, lambda_z: float, lambda_b: float, num_classes: int, features: str) -> None:
        """Check that a problem's other fields agree.

        Raises:
            ValueError: ``lambda_z`` differs from this one's, or a penalty per class does not fit the classes or bias.
        """
        if lambda_z != self.lambda_z:
            raise ValueError(
                f"`lambda_z` follows from normalised features: {self.lambda_z!r}; change `lambda_w` or `norm`"
            )
        if not isinstance(self.lambda_w, np.ndarray):
            return
        if self.lambda_w.size != num_classes:
            raise ValueError(
                f"`lambda_w` must be a number or one per class: got {self.lambda_w.size} for {num_classes} classes"
            )
        if features == "nonnegative" and 0 < lambda_b < np.inf:
            raise ValueError(
                "`lambda_w` per class with nonnegative features needs a free bias or none (`lambda_b` 0 or inf), got "
                f"{lambda_b:g}; give one `lambda_w`"
            )

    def __str__(self) -> str:
        """In one line: "lambda_w 0.5, norm 11.3 per sample"."""
        weight = f"{self.level:.4g}" + (" on average" if isinstance(self.lambda_w, np.ndarray) else "")
        length = f"norm {self.norm:.4g}" if self.norm is not None else f"lambda_gain {self.lambda_gain:.4g}"
        return f"lambda_w {weight}, {length} per {self.over}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` wrote."""
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; ``norm`` replaces ``lambda_gain``, and the reverse."""
        for given, other in (("norm", "lambda_gain"), ("lambda_gain", "norm")):
            if changes.get(given) is not None:
                changes.setdefault(other, None)
        return replace(self, **changes)


def normalization_of(problem: Problem) -> Normalization:
    """The normalisation of a problem that has one."""
    how = problem.normalization
    assert how is not None
    return how


def own_penalties(problem: Problem) -> Vector:
    """Per class, shape (K,), the penalty to which thresholds apply: lambda_z, or the row's ``lambda_w``."""
    how = problem.normalization
    return np.broadcast_to(np.asarray(problem.lambda_z if how is None else how.lambda_w), (problem.num_classes,))


def strengthened(problem: Problem, factor: float) -> Problem:
    """The problem at ``factor`` times that penalty.

    Example:
        >>> from collapsar.core.problem import Problem
        >>> strengthened(Problem.from_normalized([5, 5], lambda_w=2.0, norm=4.0), 3.0).normalization.lambda_w
        6.0
    """
    how = problem.normalization
    if how is None:
        return problem.replace(lambda_z=factor * problem.lambda_z)
    return problem.replace(lambda_w=factor * how.lambda_w)
