"""The dual of the signed program in its own unknown, Q = R / lambda_Z: the probabilities and logits that Q stands for.

Q = [P's residual] / lambda_Z is affine in the probabilities, so Q gives P, whose logarithms give the logits and X(Q) =
Z M^(1/2) on the clusters, which is minus the gradient of the dual's objective in Q. At the optimum Q'X is symmetric and
positive semidefinite, and Q an isometry where X lives. Columns of P sum to one iff Q'u = 0, u ~ sqrt(k) / delta.
Within a cluster the residual is known beforehand: lambda_Z while the classes are apart, and whatever makes their
probabilities equal once they merge (theory section 3).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Matrix, Vector
from collapsar.solver.symmetry import Blocks, Quotient, grid


class DualModel(NamedTuple):
    """What a problem's steps need. Probabilities are flat: J^2 of other classes, then those of the J own classes.

    Attributes:
        base: the probabilities are base - slope * (entries of Q); 1 where a class has no sibling.
        slope: see ``base``.
        to_x: X is to_x * log p, the own classes' part added to the diagonal.
        shift: what logit offsets add to X, flat; None without offsets.
        bias: X loses Q @ bias = sqrt(k) b g', where lambda_b sqrt(k) b = lambda_Z Q g; (J, J), None if b has no price.
        bias_root: bias = bias_root bias_root', (J,).
        fixed: the direction in which Q is 0, (J,), if the bias is free.
        root: sqrt(k), (J,).
        u: sqrt(k) / delta, (J,): the null vector of Q'.
        g: sqrt(k m), (J,).
    """

    base: Vector
    slope: Vector
    to_x: Vector
    shift: Vector | None
    bias: Matrix | None
    bias_root: Vector
    fixed: Vector | None
    root: Vector
    u: Vector
    g: Vector

    def probabilities(self, Q: Matrix) -> Vector:
        """p(Q), some of which may be negative."""
        return self.base - self.slope * Q.ravel()[_layout(len(Q))]

    def logits(self, p: Vector) -> Matrix:
        """X(p) with the bias still in it, up to a multiple of u in each column, which Q'X does not see."""
        J = self.bias_root.size
        x = self.to_x * np.log(p)
        X = x[: J * J]
        X[:: J + 1] += x[J * J :]
        if self.shift is not None:
            X += self.shift
        return X.reshape(J, J)

    def gradient(self, Q: Matrix, p: Vector) -> Matrix:
        """X(Q) without the bias, up to a multiple of u in each column."""
        X = self.logits(p)
        if self.bias is not None:
            X -= Q.dot(self.bias)
        return X

    def curvature(self, p: Vector) -> Matrix:
        """-dX/dQ, entry by entry and without the bias: X moves by -curvature * dQ."""
        J = self.bias_root.size
        bend = self.to_x * self.slope / p
        weight = bend[: J * J]
        weight[:: J + 1] += bend[J * J :]
        return weight.reshape(J, J)

    def blocks(self, q: Quotient, Q: Matrix, p: Vector) -> Blocks:
        """The point with these probabilities, its bias, and columns that sum to zero against 1/delta."""
        J, k = q.sizes.size, q.sizes
        row, column, _ = grid(J)
        root, u, g = self.root, self.u, self.g
        X = self.logits(p)
        surplus = u.dot(X) / u.dot(u)
        if q.lambda_b == 0:
            b = (X - np.multiply.outer(u, surplus)).dot(g) / (root * g.dot(g))  # X g = 0 without it
        elif q.lambda_b < math.inf:
            b = Q.dot(g) / root * (q.lambda_z / q.lambda_b)
            b -= (root * u).dot(b) / u.dot(u) * (u / root)  # a low price of b magnifies rounding in Q'u = 0
        else:
            b = np.zeros(J)
        C = (X.ravel() - u[row] * surplus[column]) / (root[row] * g[column]) - b[row]
        other, own = p[: J * J : J + 1], p[J * J :]
        # merged or alone: no contrast
        apart = (k > 1) & (q.share * q.temperatures * q.scales * (1 - q.smoothing) > q.lambda_z * np.sqrt(q.mass))
        alpha = np.log(own / other) / (q.temperatures * q.scales) * apart
        return Blocks(alpha, C.reshape(J, J), b)


def dual_model(q: Quotient) -> DualModel:
    """The maps of a problem of J clusters, ``features == "signed"``, all logits' biases at one price."""
    J, k, apart = q.sizes.size, q.sizes, 1 - q.smoothing
    row, column, _ = grid(J)
    root, root_m = np.sqrt(k), np.sqrt(q.mass)
    u, g = root / q.scales, root * root_m
    # P = Y - lambda_Z diag(1/delta) Q diag(sqrt(m) / (tau q)), per class instead of per cluster
    slope = (q.lambda_z / (root * q.scales))[row] * (root_m / (root * q.temperatures * q.share))[column]
    own_slope = slope[:: J + 1].copy()
    # inside a cluster p_own - p_other = 1 - eps less the residual, which is such that it is 0 where classes merge
    share_within = np.minimum(own_slope, apart / k)
    base = np.full(J * J + J, q.smoothing / q.labels.size)
    base[: J * J : J + 1] += share_within
    base[J * J :] += apart - share_within * (k - 1)
    alone = k == 1
    base[: J * J : J + 1][alone] = 1.0
    slope[:: J + 1][alone] = 0.0
    to_x = u[row] * (g / q.temperatures)[column]
    own_to_x = to_x[:: J + 1] / k
    shift = -to_x * q.offsets[row] if np.count_nonzero(q.offsets) else None
    to_x[:: J + 1] -= own_to_x
    pull = math.sqrt(q.lambda_z / q.lambda_b) * g if 0 < q.lambda_b < math.inf else None
    return DualModel(
        base,
        np.concatenate([slope, own_slope]),
        np.concatenate([to_x, own_to_x]),
        shift,
        None if pull is None else (pull[row] * pull[column]).reshape(J, J),
        g if pull is None else pull,
        None if q.lambda_b else g / math.sqrt(g.dot(g)),
        root,
        u,
        g,
    )


@lru_cache(maxsize=128)
def _layout(J: int) -> NDArray[np.intp]:
    """Where Q.ravel() has the entry of each probability: all of Q, then its diagonal for the own classes."""
    return np.concatenate([np.arange(J * J), np.arange(0, J * J, J + 1)])
