"""Features that make a class the answer, or rivals that prove there are none: nonnegative least squares on few rivals.

If features of any length are allowed, h wins for class k if Δ_j·h + β_j > 0 for all rivals j, Δ_j = w_k − w_j and
β_j = b_k − b_j. With h = x / y that is homogeneous: the point of the hull of the (Δ_j, β_j) and (0, 1) that is nearest
to the origin is an (x, y) that leads each of them, or the origin itself, and then its weights p have p·Δ = 0 and
p·β <= 0: no features win. With features up to a length the shortest h that leads is a least-distance problem. Both are
nonnegative least squares (Lawson & Hanson, "Solving least squares problems", 1974, chapter 23). Rivals are added as
they get in the way, and those whose weight becomes zero are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Matrix, Vector

FeatureSpace = Literal["free", "nonnegative"] | float
"""The space of features to search: all, with no entry below zero, or (a number) of exactly this length."""

Certificate = tuple[NDArray[np.int64], Vector]

# A margin or a mismatch of rows smaller than this, relative to a usual logit at these features, is float32 rounding.
ROUNDING = 1e-6
# A class's own row is tried at this length, in units of one over a usual row: logits of a thousand nats.
_FAR = 1e3
_BLOCK_NUMBERS = 1 << 22
_ROUNDS, _NEW_RIVALS = 200, 128
# A multiplication in least squares takes this many times longer than in a product of matrices.
_SLOWER = 20


@dataclass(frozen=True, eq=False)
class Contest:
    """The rows of a head about their mean, its bias, the space of features, and the usual length of a row.

    Attributes:
        rows: shape (K, d).
        bias: shape (K,).
        space: the space of features to search.
        scale: > 0.
        nats: the usual size of a bias about their median, at most 1: the reference for rounding of the biases.
    """

    rows: Matrix
    bias: Vector
    space: FeatureSpace
    scale: float
    nats: float

    @property
    def first_length(self) -> float:
        """The length at which a class's own row is tried."""
        return _FAR / self.scale if isinstance(self.space, str) else float(self.space)

    def rounding(self, length: float) -> float:
        """The possible rounding of a lead at features of this length, in nats."""
        return ROUNDING * (self.nats + self.scale * length)

    def losing_margin(self, k: int, certificate: Certificate) -> float:
        """The lead of class k over the weighted mean of its rivals: not positive if no features win.

        It is the largest lead beyond rounding that any features can give it, in nats; inf if the rows do not match. For
        features of a given length it is the largest at that length or any shorter one.
        """
        rivals, p = certificate
        mismatch = self.rows[k] - p @ self.rows[rivals]
        ahead = float(self.bias[k] - p @ self.bias[rivals])
        if not isinstance(self.space, str):
            return ahead + self.space * float(np.linalg.norm(mismatch)) - self.rounding(self.space)
        if self.space == "nonnegative":
            mismatch = np.maximum(mismatch, 0)
        return ahead - ROUNDING * self.nats if np.linalg.norm(mismatch) <= ROUNDING * self.scale else np.inf


@dataclass
class Budget:
    """How many multiplications are left."""

    left: float

    def spend(self, multiplications: float) -> bool:
        """Spend them, if there are enough."""
        if multiplications > self.left:
            self.left = 0.0
            return False
        self.left -= multiplications
        return True


def unit(directions: Matrix, space: FeatureSpace) -> Matrix:
    """The directions at length one, projected to the space of features; zeros stay."""
    if space == "nonnegative":
        directions = np.maximum(directions, 0)
    norms = np.linalg.norm(directions, axis=1, keepdims=True)
    return directions / np.where(norms > 0, norms, 1)


def search(
    contest: Contest, classes: NDArray[np.int64], budget: Budget
) -> Iterator[list[tuple[int, Vector | None, Certificate | None]]]:
    """Settle classes, some at a time: each with features that win, or a certificate that none do.

    With a given length, the features are not longer than that. A class that is not yielded stays undecided.
    """
    step = max(1, _BLOCK_NUMBERS // len(contest.rows))
    for start in range(0, len(classes), step):
        yield list(_settled(contest, classes[start : start + step].tolist(), budget))


def _settled(
    contest: Contest, classes: list[int], budget: Budget
) -> Iterator[tuple[int, Vector | None, Certificate | None]]:
    """Rounds in which features that lead the rivals so far are tried on all classes, in one product for all open."""
    V, b = contest.rows, contest.bias
    H = contest.first_length * unit(V[classes], contest.space)
    active = {k: np.empty(0, dtype=np.int64) for k in classes}
    for turn in range(_ROUNDS):
        if not classes or not budget.spend(len(classes) * V.size):
            return
        logits = H @ V.T + b
        blocked = []
        for i, k in enumerate(classes):
            own = logits[i, k]
            logits[i, k] = -np.inf
            if own - logits[i].max() > contest.rounding(float(np.linalg.norm(H[i]))):
                yield k, H[i].copy(), None
                continue
            ahead = _in_the_way(logits[i], own if turn else -np.inf, active[k])
            active[k] = np.append(active[k], ahead)
            if len(ahead):
                blocked.append(k)
        classes, features = [], []
        for k in blocked:
            h, p = _least_squares(contest, k, active[k], budget)
            some = p > 0
            certificate = active[k][some], p[some] / (p.sum() or 1.0)
            if some.any() and contest.losing_margin(k, certificate) <= 0:
                yield k, None, certificate
            elif h is not None:
                classes.append(k)
                features.append(h)
                active[k] = active[k][some]
        H = np.array(features)


def _in_the_way(logits: Vector, own: float, known: NDArray[np.int64]) -> NDArray[np.int64]:
    """The highest-scoring classes among those that lead and are not yet known."""
    count = min(_NEW_RIVALS, len(logits) - 1)
    most = np.argpartition(-logits, count - 1)[:count]
    ahead = np.sort(most[logits[most] >= own])
    return ahead[(ahead[:, None] != known).all(axis=1)]


def _least_squares(contest: Contest, k: int, rivals: NDArray[np.int64], budget: Budget) -> tuple[Vector | None, Vector]:
    """Features that lead the rivals, None if there are none, and the weights of the rivals, not normalised."""
    from scipy.optimize import nnls

    D = (contest.rows[k] - contest.rows[rivals]) / contest.scale
    ahead = contest.bias[k] - contest.bias[rivals]
    m, d = D.shape
    if isinstance(contest.space, str):
        others = np.zeros((d + 2, 1 + d * (contest.space == "nonnegative")))
        others[d:, 0] = 1  # y is positive
        others[:d, 1:] = np.eye(d)[:, : others.shape[1] - 1]  # and no entry of x below zero
        system = np.hstack([np.vstack([D.T, ahead, np.ones(m)]), others])
    else:
        length = float(contest.space)
        system = np.vstack([contest.scale * length * D.T, contest.rounding(length) - ahead])
    target = np.zeros(len(system))
    target[-1] = 1
    try:
        weights = nnls(system, target, maxiter=10 * system.shape[1])[0]
    except RuntimeError:  # too many steps, because rows hardly differ
        return None, np.zeros(m)
    budget.spend(_SLOWER * system.size * int(np.count_nonzero(weights)))
    rest = system @ weights - target
    x, y = rest[:d], -rest[-1]
    if isinstance(contest.space, str):
        x, y = x / contest.scale, rest[-2]
        if contest.space == "nonnegative":
            x = np.maximum(x, 0)
    else:
        x = x * float(contest.space)
    return (x / y if y > 0 else None), weights[:m]
