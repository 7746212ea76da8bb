"""Columns per cluster and the bias that balances them: what the threshold formulas stand on.

Classes with equal (n, q, m, delta, tau, iota) form a cluster and share one column of the optimum up to the
order of its entries (Hong & Ling, JMLR 25(192), 2024, Thm 2b). A column of cluster j is stored as J + 1
numbers: one for each cluster of logits (for the own cluster: the siblings) and, last, the own class;
``multiplicity`` says how often each occurs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from collapsar.core.problem import Problem

__all__ = ["Clusters", "Response", "balanced_bias", "clusters_of", "softmax"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

NEWTON_STEPS = 200
# Newton squares its error: once a step is this short, the next would be at the last digit of float64.
LAST_STEP = 1e-8
# A ridge in proportion to the gradient keeps Newton off saturated predictions and dies out at the root.
DAMPING = 0.1


@dataclass(frozen=True)
class Clusters:
    """J clusters of indistinguishable classes; vectors have shape (J,), column arrays (J + 1, J).

    Attributes:
        labels: shape (K,), the cluster of each class.
        sizes: k, classes per cluster.
        share: q, loss share of one class.
        mass: m, feature mass of one class.
        scales: delta, per logit.
        temperatures: tau, per class of the sample.
        offsets: iota, per logit.
        smoothing: eps.
        lambda_b: price of the bias.
    """

    labels: NDArray[np.intp]
    sizes: Vector
    share: Vector
    mass: Vector
    scales: Vector
    temperatures: Vector
    offsets: Vector
    smoothing: float
    lambda_b: float

    @cached_property
    def multiplicity(self) -> Matrix:
        """How many logits each entry of a column stands for."""
        return self.rows(self.sizes, np.ones_like(self.sizes)) - np.eye(self.sizes.size + 1, self.sizes.size)

    @cached_property
    def scale(self) -> Matrix:
        """The scale delta of each entry's logit."""
        return self.rows(self.scales, self.scales)

    @cached_property
    def target(self) -> Matrix:
        """Y: the (smoothed) one-hot columns."""
        rest = self.smoothing / self.labels.size
        return self.rows(np.full_like(self.sizes, rest), np.full_like(self.sizes, 1 - self.smoothing + rest))

    @cached_property
    def strength(self) -> Vector:
        """The strength s = tau q / sqrt(m): a column of the residual is s delta o (y - p)."""
        return self.temperatures * self.share / np.sqrt(self.mass)

    @staticmethod
    def rows(logit: Vector, own: Vector) -> Matrix:
        """Column array from one number per logit's cluster and one for each own class."""
        return np.vstack([np.broadcast_to(logit[:, None], (logit.size, logit.size)), own])

    def paired(self, cross: Matrix, square: Vector) -> Matrix:
        """A form over classes (``cross`` off its diagonal, ``square`` on it) on the 1_j / sqrt(k_j)."""
        total = np.sqrt(np.outer(self.sizes, self.sizes)) * cross
        total[np.diag_indices(self.sizes.size)] = square + (self.sizes - 1) * np.diag(cross)
        return total

    def gathered(self, entries: Matrix) -> Matrix:
        """Sum over all logits of a cluster, (J + 1, J) to (J, J): the own class joins its siblings."""
        total = (self.multiplicity * entries)[:-1]
        total[np.diag_indices(self.sizes.size)] += entries[-1]
        return total

    def logits(self, b: Vector) -> Matrix:
        """The scaled logits where Z = 0: tau delta o b + iota."""
        u = self.scales * b
        return self.temperatures * self.rows(u, u) + self.rows(self.offsets, self.offsets)

    def column_norms(self, P: Matrix) -> Vector:
        """||r_k|| = s ||delta o (y_k - p_k)||, shape (J,)."""
        return self.strength * np.sqrt(np.sum(self.multiplicity * (self.scale * (self.target - P)) ** 2, axis=0))

    def residual_gram(self, P: Matrix) -> tuple[Matrix, Vector]:
        """R'R of the residual R = diag(delta)(Y - P)diag(tau o q)M^(-1/2), shapes (J, J) and (J,).

        Returns:
            The product of two different classes' columns per pair of clusters (0 for the own cluster of a
            single class), and the squared norm of one column.
        """
        R = self.strength * self.scale * (self.target - P)
        total = self.gathered(R**2)
        rest, own = R[:-1], R[-1]
        siblings = np.diag(rest)
        # logit by logit: every entry as if it were a sibling, then the two own places of the pair put right
        product = rest.T @ (self.sizes[:, None] * rest)
        excess = (own - siblings)[:, None] * rest
        cross = product + excess + excess.T
        cross[np.diag_indices(self.sizes.size)] *= self.sizes > 1
        return cross, total.sum(axis=0)


@dataclass(frozen=True)
class Response:
    """The columns that are best for one given bias.

    Attributes:
        value: the objective without the bias's price, minimised over the columns, nats.
        P: predictions, column array.
        slope: dP/d(logit) before normalisation, column array.
        tie: a second direction that the columns hold fixed, column array; 0 where there is none.
        amplitude: shape (J,), the column's own unknown: alpha for signed features, mu for nonnegative ones.
        stiffness: shape (J,): by how much less than rigidly the second direction is held; 0: rigidly.
    """

    value: float
    P: Matrix
    slope: Matrix
    tie: Matrix
    amplitude: Vector
    stiffness: Vector | float = 0.0


def clusters_of(problem: Problem) -> Clusters:
    """The problem's classes grouped into clusters, in order of first appearance."""
    counts = problem.class_counts.astype(np.float64)
    keys = np.stack([counts, problem.loss_share, problem.mass, problem.scales, problem.temperatures, problem.offsets])
    _, first, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    order = np.argsort(first)
    labels = np.argsort(order)[inverse.ravel()]
    at = first[order]
    return Clusters(
        labels=labels,
        sizes=np.bincount(labels).astype(np.float64),
        share=problem.loss_share[at],
        mass=problem.mass[at],
        scales=problem.scales[at],
        temperatures=problem.temperatures[at],
        offsets=problem.offsets[at],
        smoothing=problem.loss.smoothing,
        lambda_b=problem.lambda_b,
    )


def softmax(c: Clusters, u: Matrix) -> tuple[Matrix, Vector]:
    """Predictions and log-normaliser of columns of logits."""
    top = np.max(u, axis=0, where=c.multiplicity > 0, initial=-np.inf)
    odds = np.where(c.multiplicity > 0, np.exp(np.minimum(u - top, 0.0)), 0.0)
    total = np.sum(c.multiplicity * odds, axis=0)
    return odds / total, top + np.log(total)


def cross_entropy(c: Clusters, u: Matrix, log_normaliser: Vector) -> float:
    """sum_k q_k [lse(u_k) - <y_k, u_k>], nats."""
    return float(np.sum(c.sizes * c.share * (log_normaliser - np.sum(c.multiplicity * c.target * u, axis=0))))


def balanced_bias(
    c: Clusters,
    respond: Callable[[Vector, Response | None], Response],
    start: tuple[Vector, Response] | None = None,
) -> tuple[Vector, Response]:
    """The root of sum_k q_k tau_k delta o (y_k - p_k) = lambda_b b, the columns following the bias.

    Newton on the objective minimised over the columns, which is convex in the bias.

    Args:
        c: the clusters.
        respond: the best columns for a bias, given an earlier answer to start from.
        start: a bias and its response, for a warm start.

    Returns:
        b of shape (J,) and its response. b is zero for ``lambda_b = inf`` and sums to zero over the classes
        (divided by delta) for ``lambda_b = 0``.

    Raises:
        ArithmeticError: Newton did not settle.
    """
    b = np.zeros_like(c.sizes) if start is None or c.lambda_b == np.inf else start[0]
    shift = 1 / c.scales / float((c.sizes / c.scales) @ (1 / c.scales))
    now = respond(b, None if start is None else start[1])
    if c.lambda_b == np.inf:
        return b, now
    for _ in range(NEWTON_STEPS):
        pull = c.sizes * c.share * c.temperatures
        miss = c.scales * (c.gathered(c.target - now.P) @ pull)
        gradient = c.sizes * c.lambda_b * b - miss
        ridge = DAMPING * np.max(np.abs(gradient)) * np.eye(b.size)
        step = -np.linalg.solve(_bias_hessian(c, now) + ridge, gradient)
        decrement = -float(gradient @ step)
        value = now.value + 0.5 * c.lambda_b * float(c.sizes @ b**2)
        length = 1.0
        while True:
            trial = b + length * step
            trial -= ((c.sizes / c.scales) @ trial) * shift  # to where the same loss costs least
            then = respond(trial, now)
            rise = then.value + 0.5 * c.lambda_b * float(c.sizes @ trial**2) - value
            # below 1e-11 nats rounding hides the decrease, and Newton is at home
            if decrement < 1e-11 or rise <= -1e-4 * length * decrement or length < 1e-9:
                break
            length /= 2
        b, now = trial, then
        if length == 1 and np.max(np.abs(step)) <= LAST_STEP * (1 + np.max(np.abs(b))):
            return b, now
    raise ArithmeticError("the bias did not settle; the problem may be scaled too badly for float64")


def _bias_hessian(c: Clusters, now: Response) -> Matrix:
    """Second derivative in b of the loss minimised over the columns.

    A column answers du with dp = slope o (du - dL 1 - dmu tie), dL and dmu such that sum dp = 0 and <tie,
    dp> = 0: a diagonal minus two rank-one terms per column.
    """
    slope = c.multiplicity * now.slope
    reach = c.temperatures * c.scale
    mean = slope.sum(axis=0)
    tie = now.tie - np.sum(slope * now.tie, axis=0) / mean
    spread = np.sum(slope * tie**2, axis=0) - now.stiffness
    tie = np.where(np.any(now.tie != 0, axis=0), tie, 0.0)
    weight = c.sizes * c.share
    first = c.gathered(now.slope * reach)
    second = c.gathered(now.slope * reach * tie)
    alone = c.gathered(now.slope * reach**2) @ weight
    hessian = np.diag(alone)
    hessian -= (first * (weight / mean)) @ first.T
    hessian -= (second * (weight / np.where(spread > 0, spread, 1.0))) @ second.T
    # only the price, if any, holds b along 1/delta, where the terms cancel and the optimum is 0: pin it at their scale
    shift = c.sizes / c.scales
    hessian += alone.sum() / (shift @ shift) * np.outer(shift, shift)
    return hessian + c.lambda_b * np.diag(c.sizes)
