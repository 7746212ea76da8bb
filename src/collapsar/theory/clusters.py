"""Columns per cluster and the bias that balances them: the basis of the threshold formulas.

Classes of one cluster share one column of the optimum up to the order of its entries. A column of cluster j is stored
as J + 1 numbers: one for each cluster of logits (for the own cluster: the siblings) and, last, the own class;
``multiplicity`` says how often each occurs. Every array may have leading axes: many problems of J clusters at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from collapsar.core.clusters import NUMBERS, PER_CLUSTER, ClusteredProblem, alike
from collapsar.core.problem import Problem
from collapsar.core.types import Matrix, Vector

NEWTON_STEPS = 200
# Newton's method squares its error: after a step this short, the next would be at the last digit of float64.
LAST_STEP = 1e-8
# A ridge in proportion to the gradient keeps Newton's method away from saturated predictions and fades at the root.
DAMPING = 0.1


@dataclass(frozen=True)
class Clusters(ClusteredProblem):
    """J clusters of indistinguishable classes; vectors have shape (..., J), column arrays (..., J + 1, J)."""

    @classmethod
    def stacked(cls, clusters: Sequence[Clusters]) -> Clusters:
        """Problems with the same number of clusters, side by side on a first axis."""
        return cls(np.empty(0, dtype=np.intp), **{n: np.array([getattr(c, n) for c in clusters]) for n in NUMBERS})

    def taken(self, which: NDArray[np.bool_] | int) -> Clusters:
        """Some of several problems, or one of them by itself."""
        return Clusters(self.labels, **{n: getattr(self, n)[which] for n in NUMBERS})

    def ordered(self, turn: NDArray[np.intp]) -> Clusters:
        """The clusters of several problems in another order, shape (B, J)."""
        arrays = {n: np.take_along_axis(getattr(self, n), turn, axis=-1) for n in PER_CLUSTER}
        return Clusters(self.labels, **arrays, smoothing=self.smoothing, lambda_b=self.lambda_b)

    def joined(self) -> Clusters:
        """Every problem as one cluster, where all its clusters are alike."""
        alone = {n: getattr(self, n)[..., :1] for n in PER_CLUSTER}
        alone["sizes"] = self.sizes.sum(axis=-1, keepdims=True)
        return Clusters(self.labels, **alone, smoothing=self.smoothing, lambda_b=self.lambda_b)

    @cached_property
    def num_classes(self) -> Vector:
        """K, shape (..., 1)."""
        return self.sizes.sum(axis=-1, keepdims=True)

    @cached_property
    def eps(self) -> Vector:
        """``smoothing`` as an array that broadcasts with vectors, shape (..., 1)."""
        return np.asarray(self.smoothing, dtype=np.float64)[..., None]

    @cached_property
    def bias_price(self) -> Vector:
        """``lambda_b`` as an array that broadcasts with vectors, shape (..., 1)."""
        return np.asarray(self.lambda_b, dtype=np.float64)[..., None]

    @cached_property
    def one_temperature(self) -> bool:
        """Whether all temperatures of each problem are equal."""
        return bool(np.all(self.temperatures == self.temperatures[..., :1]))

    @cached_property
    def price(self) -> Vector:
        """``bias_price`` where there is a bias, else 0."""
        return np.where(self.bias_price < np.inf, self.bias_price, 0.0)

    @cached_property
    def pin(self) -> Matrix:
        """A form of unit trace along sizes/delta, shape (..., J, J)."""
        shift = self.sizes / self.scales
        return shift[..., :, None] * (shift / np.sum(shift**2, axis=-1, keepdims=True))[..., None, :]

    @cached_property
    def multiplicity(self) -> Matrix:
        """How many logits each entry of a column represents."""
        return self.rows(self.sizes, np.ones_like(self.sizes)) - np.eye(self.num_clusters + 1, self.num_clusters)

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """Which entries of a column represent any logit."""
        return self.multiplicity > 0

    @cached_property
    def scale(self) -> Matrix:
        """The scale delta of each entry's logit."""
        return self.rows(self.scales, self.scales)

    @cached_property
    def target(self) -> Matrix:
        """Y: the (smoothed) one-hot columns."""
        rest = self.eps / self.num_classes + np.zeros_like(self.sizes)
        return self.rows(rest, 1 - self.eps + rest)

    @cached_property
    def contrast(self) -> Matrix:
        """Scaled logits of a unit of within-cluster contrast: 1 - 1/k for the own class, -1/k for each sibling."""
        share, own = 1 / self.sizes, np.arange(self.num_clusters)
        column = self.rows(np.zeros_like(share), 1 - share)
        column[..., own, own] = -share
        return (self.temperatures * self.scales)[..., None, :] * column

    @cached_property
    def strength(self) -> Vector:
        """The strength s = tau q / sqrt(m): a column of the residual is s delta o (y - p)."""
        return self.temperatures * self.share / np.sqrt(self.mass)

    @cached_property
    def _by_column(self) -> tuple[Matrix, Matrix, Matrix]:
        """The factor of (y - p) in R, y, and how often each occurs, with one column's entries side by side."""
        arrays = self.strength[..., None, :] * self.scale, self.target, self.multiplicity
        pull, target, often = (np.ascontiguousarray(each.swapaxes(-1, -2)) for each in arrays)
        return pull, target, often

    @staticmethod
    def rows(logit: Vector, own: Vector) -> Matrix:
        """Columns from one number per logit's cluster and one for the own class of each."""
        leading = (
            logit.shape[:-1] if logit.shape == own.shape else np.broadcast_shapes(logit.shape[:-1], own.shape[:-1])
        )
        column = np.empty((*leading, logit.shape[-1] + 1, own.shape[-1]))
        column[..., :-1, :] = logit[..., None]
        column[..., -1, :] = own
        return column

    def paired(self, cross: Matrix, square: Vector) -> Matrix:
        """A form over classes (``cross`` off its diagonal, ``square`` on it) on the 1_j / sqrt(k_j)."""
        root, own = np.sqrt(self.sizes), np.arange(self.num_clusters)
        total = root[..., :, None] * root[..., None, :] * cross
        total[..., own, own] = square + (self.sizes - 1) * cross[..., own, own]
        return total

    def gathered(self, entries: Matrix) -> Matrix:
        """Sum over all logits of a cluster, (J + 1, J) to (J, J): the own class joins its siblings."""
        own = np.arange(self.num_clusters)
        total = self.multiplicity[..., :-1, :] * entries[..., :-1, :]
        total[..., own, own] += entries[..., -1, :]
        return total

    def pooled(self, entries: Matrix, weight: Vector) -> Vector:
        """Per cluster of logits the weighted sum over all columns, as ``gathered(entries) @ weight``."""
        weighted = entries * weight[..., None, :]
        return (self.multiplicity[..., :-1, :] * weighted[..., :-1, :]).sum(axis=-1) + weighted[..., -1, :]

    def logits(self, b: Vector) -> Matrix:
        """The scaled logits where Z = 0: tau delta o b + iota."""
        u = self.scales * b
        return self.temperatures[..., None, :] * self.rows(u, u) + self.rows(self.offsets, self.offsets)

    def column_norms(self, P: Matrix) -> Vector:
        """||r_k|| = s ||delta o (y_k - p_k)||, shape (..., J)."""
        return self.strength * np.sqrt(np.sum(self.multiplicity * (self.scale * (self.target - P)) ** 2, axis=-2))

    def residual_gram(self, P: Matrix) -> tuple[Matrix, Vector]:
        """R'R of the residual R = diag(delta)(Y - P)diag(tau o q)M^(-1/2), shapes (..., J, J) and (..., J).

        Returns:
            The product of two different classes' columns per pair of clusters (0 for the own cluster of a
            single class), and the squared norm of one column.
        """
        pull, target, often = self._by_column
        R = pull * (target - P.swapaxes(-1, -2))
        rest, own = R[..., :-1], R[..., -1]
        # logit by logit: every entry as if it were a sibling, then the two own places of the pair are corrected
        excess = (own - np.einsum("...kk->...k", rest))[..., None, :] * rest
        even = np.sqrt(self.sizes)[..., None, :] * rest  # times itself, a symmetric product costs half
        cross = even @ even.swapaxes(-1, -2)
        cross += excess
        cross += excess.swapaxes(-1, -2)
        diagonal = np.einsum("...kk->...k", cross)
        diagonal *= self.sizes > 1
        return cross, np.vecdot(often * R, R)


@dataclass(frozen=True)
class Response:
    """The columns that are best for one given bias.

    Attributes:
        value: the objective without the bias penalty, minimised over the columns, nats, a number per problem.
        P: predictions, column array.
        slope: dP/d(logit) before normalisation, column array.
        tie: a second direction that the columns hold fixed, column array; 0 where there is none.
        amplitude: shape (..., J), the column's own unknown: alpha for signed features, mu for nonnegative ones.
        stiffness: shape (..., J): how far the second direction may give way; 0: it is held rigidly.
    """

    value: float | Vector
    P: Matrix
    slope: Matrix
    tie: Matrix
    amplitude: Vector
    stiffness: Vector | float = 0.0


def clusters_of(problem: Problem) -> Clusters:
    """The problem's classes grouped into clusters, in order of first appearance."""
    return Clusters.of(problem, *alike(problem))


def softmax(c: Clusters, u: Matrix) -> tuple[Matrix, Vector]:
    """Predictions and log-normaliser of columns of logits."""
    top = np.max(u, axis=-2, where=c.seen, initial=-np.inf)
    odds = np.where(c.seen, np.exp(np.minimum(u - top[..., None, :], 0.0)), 0.0)
    total = (c.multiplicity * odds).sum(axis=-2)
    return odds / total[..., None, :], top + np.log(total)


def cross_entropy(c: Clusters, u: Matrix, log_normaliser: Vector) -> Vector:
    """sum_k q_k [lse(u_k) - <y_k, u_k>], nats, a number per problem."""
    own = (c.multiplicity * c.target * u).sum(axis=-2)
    return (c.sizes * c.share * (log_normaliser - own)).sum(axis=-1)


def balanced_bias(
    c: Clusters,
    respond: Callable[[Vector, Response | None], Response],
    start: tuple[Vector, Response | None] | None = None,
) -> tuple[Vector, Response]:
    """The root of sum_k q_k tau_k delta o (y_k - p_k) = lambda_b b, where the columns follow the bias.

    Newton's method on the objective minimised over the columns, which is convex in the bias. Each of several problems
    has its own step length, and those that have converged go on with steps that change nothing.

    Args:
        c: the clusters.
        respond: the best columns for a bias, given an earlier answer to start from.
        start: a bias, and its response if it is known, for a warm start.

    Returns:
        b of shape (..., J) and its response. b is zero for ``lambda_b = inf`` and sums to zero over the classes
        (divided by delta) for ``lambda_b = 0``.

    Raises:
        ArithmeticError: Newton's method did not converge.
    """
    biased = c.bias_price < np.inf
    price = c.price
    b = np.zeros_like(c.sizes) if start is None else start[0]
    now = respond(b, None if start is None else start[1])
    if not biased.any():
        return b, now
    pull = c.sizes * c.share * c.temperatures
    home = ~biased[..., 0]
    along = c.sizes / c.scales
    shift = 1 / c.scales / np.sum(along / c.scales, axis=-1, keepdims=True)
    unit, paid = np.eye(c.num_clusters), price * c.sizes
    for _ in range(NEWTON_STEPS):
        gradient = np.where(biased, c.sizes * price * b - c.scales * c.pooled(c.target - now.P, pull), 0.0)
        ridge = DAMPING * np.abs(gradient).max(axis=-1)[..., None, None] * unit
        try:
            step = -np.linalg.solve(bias_hessian(c, now) + ridge, gradient[..., None])[..., 0]
        except np.linalg.LinAlgError:
            break
        decrement = -(gradient * step).sum(axis=-1)
        value = now.value + 0.5 * (paid * b**2).sum(axis=-1)
        length: Vector = np.ones_like(decrement)
        while True:
            trial = b + length[..., None] * step
            trial -= (along * trial).sum(axis=-1, keepdims=True) * shift  # the same loss at the least penalty
            then = respond(trial, now)
            rise = then.value + 0.5 * (paid * trial**2).sum(axis=-1) - value
            # below 1e-11 nats rounding hides the decrease, and Newton's method has converged
            fine = (decrement < 1e-11) | (rise <= -1e-4 * length * decrement) | (length < 1e-9)
            if fine.all():
                break
            length = np.where(fine, length, length / 2)
        b, now = trial, then
        short = np.abs(step).max(axis=-1) <= LAST_STEP * (1 + np.abs(b).max(axis=-1))
        home = home | ((length == 1) & short)
        if home.all():
            return b, now
    raise ArithmeticError("the bias did not converge; the problem may be scaled too badly for float64")


def bias_hessian(c: Clusters, now: Response) -> Matrix:
    """Second derivative in b of the loss minimised over the columns.

    A column responds to du by dp = slope o (du - dL 1 - dmu tie), with dL and dmu such that sum dp = 0 and <tie,
    dp> = 0: a diagonal minus two rank-one terms per column.
    """
    slope = c.multiplicity * now.slope
    reach = c.temperatures[..., None, :] * c.scale
    mean = slope.sum(axis=-2)
    tie = now.tie - ((slope * now.tie).sum(axis=-2) / mean)[..., None, :]
    tie = np.where((now.tie != 0).any(axis=-2, keepdims=True), tie, 0.0)
    spread = (slope * tie**2).sum(axis=-2) - now.stiffness
    weight, reached = c.sizes * c.share, now.slope * reach
    first = c.gathered(reached)
    second = c.gathered(reached * tie)
    hessian = -(first * (weight / mean)[..., None, :]) @ first.swapaxes(-1, -2)
    hessian -= (second * (weight / np.where(spread > 0, spread, 1.0))[..., None, :]) @ second.swapaxes(-1, -2)
    return hessian + bias_curvature(c, c.pooled(now.slope * reach**2, weight))


def bias_curvature(c: Clusters, alone: Vector) -> Matrix:
    """The second derivative in b without the rank-one terms, shape (..., J, J).

    Along 1/delta, where the terms cancel and the optimum is 0, only the penalty, if any, fixes b: it is pinned there
    at the terms' own scale.
    """
    curvature = alone.sum(axis=-1)[..., None, None] * c.pin
    diagonal = np.einsum("...ii->...i", curvature)
    diagonal += alone + c.price * c.sizes
    return curvature
