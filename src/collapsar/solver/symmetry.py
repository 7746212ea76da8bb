"""Classes that the problem cannot tell apart share one block: reduce by clusters, and lift back.

The optimum is block-structured over clusters (Hong & Ling, JMLR 25(192), 2024, Thm 2b): inside cluster j it is
alpha_j (I - J/k_j) plus a constant, between clusters it is constant. K classes in J clusters are J^2 + 2J unknowns
whatever K is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from collapsar.core.clusters import ClusteredProblem, alike
from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.types import Matrix, Vector


@dataclass(frozen=True)
class Quotient(ClusteredProblem):
    """A problem per cluster.

    Attributes:
        lambda_z: price of Z.
        features: "signed" or "nonnegative".
        bias_rows: factors of ``lambda_b`` per logit where they differ, None otherwise; signed features only.
    """

    smoothing: float
    lambda_b: float
    lambda_z: float
    features: FeatureModel
    bias_rows: Vector | None = None

    @property
    def bias_price(self) -> float | Vector:
        """Price of b, per logit where it differs."""
        return self.lambda_b if self.bias_rows is None else self.lambda_b * self.bias_rows

    @cached_property
    def bias_weight(self) -> Vector:
        """Shape (J,): curvature of the price of b, k lambda_b; 0 without a bias."""
        return self.sizes * (0.0 if self.lambda_b == np.inf else self.bias_price)

    def bias_cost(self, b: Vector) -> float:
        """(lambda_b / 2) ||b||^2 over all logits; 0 without a bias."""
        return 0.5 * float(self.bias_weight @ b**2)

    @cached_property
    def _shift(self) -> Vector:
        return (1 / self.scales) / np.sqrt(np.sum(self.scales**-2.0))

    def without_shift(self, b: Vector) -> Vector:
        """With a free bias the shift along 1/delta is flat: keep rounding from walking along it."""
        return b - self._shift.dot(b) * self._shift if self.lambda_b == 0 else b

    @property
    def num_classes(self) -> int:
        """K."""
        return self.labels.size

    @cached_property
    def sampled(self) -> Vector:
        """Shape (J,): share of the loss of all samples of a cluster, k q."""
        return self.sizes * self.share

    @cached_property
    def pull(self) -> Vector:
        """Shape (J,): tau q, how strongly the samples of one class pull at its logits."""
        return self.temperatures * self.share

    @cached_property
    def root_mass(self) -> Vector:
        """Shape (J,): sqrt(m)."""
        return np.sqrt(self.mass)

    @cached_property
    def row_factor(self) -> Matrix:
        """Shape (J, 1): sqrt(k) delta, what a row of Y - P is multiplied by in R."""
        return (np.sqrt(self.sizes) * self.scales)[:, None]

    @cached_property
    def column_factor(self) -> Vector:
        """Shape (J,): sqrt(k) tau q / sqrt(m), what a column of Y - P is multiplied by in R."""
        return np.sqrt(self.sizes) * self.pull / self.root_mass

    @cached_property
    def others(self) -> Matrix:
        """Shape (J, J): how many logits of cluster i are not the own class of a sample of cluster j, k_i - [i=j]."""
        return self.sizes[:, None] - np.eye(self.num_clusters)

    @cached_property
    def seen(self) -> NDArray[np.bool_]:
        """Shape (J, J): whether there are such logits."""
        return self.others > 0

    @cached_property
    def offset_differences(self) -> Matrix | float:
        """Shape (J, J): iota_i - iota_j; 0 where there are none."""
        return self.offsets[:, None] - self.offsets if np.ptp(self.offsets) else 0.0

    @cached_property
    def weight(self) -> Matrix:
        """Shape (J, J): sqrt(k_i k_j m_j), so that ``weight * C`` is S diag(sqrt m), the cluster part of Z M^(1/2)."""
        return np.sqrt(self.sizes[:, None] * (self.sizes * self.mass))


@lru_cache(maxsize=16)
def grid(J: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Vector]:
    """For a J x J matrix as a flat array: each entry's row, its column, and the identity."""
    entries = np.arange(J * J)
    return entries // J, entries % J, np.eye(J).ravel()


@dataclass(frozen=True)
class Blocks:
    """A block-structured point: Z = alpha_j (I - J/k_j) + C_jj inside cluster j, C_ij between; bias b_i.

    Attributes:
        alpha: shape (J,), within-cluster contrasts (meaningless for clusters of one class).
        C: shape (J, J), block means of Z, [logit cluster, class cluster].
        b: shape (J,), bias per cluster.
    """

    alpha: Vector
    C: Matrix
    b: Vector


def quotient(problem: Problem) -> Quotient:
    """The problem reduced by its clusters, in order of first appearance."""
    return Quotient.of(problem, *alike(problem), lambda_z=problem.lambda_z, features=problem.features)


def finer_quotient(problem: Problem, q: Quotient, labels: NDArray[np.intp]) -> Quotient | None:
    """The problem reduced by another one's clusters; None if those of ``q``, its own, are not unions of them."""
    if labels.size != q.labels.size:
        return None
    first = np.unique(labels, return_index=True)[1]
    if not np.array_equal(q.labels[first][labels], q.labels):
        return None
    return Quotient.of(problem, labels, first, lambda_z=problem.lambda_z, features=problem.features)


def trivial_quotient(problem: Problem) -> Quotient:
    """Every class a cluster of its own: the unreduced problem in the same form."""
    classes = np.arange(problem.num_classes)
    return Quotient.of(problem, classes, classes, lambda_z=problem.lambda_z, features=problem.features)


def lift(q: Quotient, blocks: Blocks) -> tuple[Matrix, Vector]:
    """Z of shape (K, K) [logit, class] and b of shape (K,)."""
    Z = blocks.C[np.ix_(q.labels, q.labels)]
    same = q.labels[:, None] == q.labels
    Z -= np.where(same, (blocks.alpha / q.sizes)[q.labels], 0.0)
    Z.flat[:: len(Z) + 1] += blocks.alpha[q.labels]
    return Z, blocks.b[q.labels]


def centred(q: Quotient, blocks: Blocks) -> Blocks:
    """The point moved along 1/delta, which changes no loss, to its least price: (1/delta)'Z = 0 and (1/delta)'b = 0.

    If logits have bias penalties of their own, it is the sum of b weighted by these that is 0.
    """
    weight = q.sizes / q.scales
    shift = 1 / q.scales / (weight @ (1 / q.scales))
    C = blocks.C - np.outer(shift, weight @ blocks.C)
    if q.bias_rows is None:
        return Blocks(blocks.alpha, C, blocks.b - (weight @ blocks.b) * shift)
    priced = weight * q.bias_rows
    return Blocks(blocks.alpha, C, blocks.b - (priced @ blocks.b) / (priced @ (1 / q.scales)) / q.scales)


def project(q: Quotient, Z: Matrix, b: Vector) -> Blocks:
    """The mean of (Z, b) over all permutations of classes inside clusters; never worse, by convexity."""
    J = q.num_clusters
    member = np.zeros((q.num_classes, J))
    member[np.arange(q.num_classes), q.labels] = 1.0
    C = member.T @ Z @ member / np.outer(q.sizes, q.sizes)
    own = np.bincount(q.labels, weights=np.diag(Z), minlength=J) / q.sizes
    # own = C_jj + alpha (1 - 1/k)
    alpha = np.where(q.sizes > 1, (own - np.diag(C)) / np.where(q.sizes > 1, 1 - 1 / q.sizes, 1.0), 0.0)
    return Blocks(alpha, C, np.bincount(q.labels, weights=b, minlength=J) / q.sizes)
