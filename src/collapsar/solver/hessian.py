"""Second derivative of the loss on the quotient, in coordinates in which the penalty is isotropic.

A direction is (X, y, b): X = weight * C is the cluster part of Z M^(1/2), y_j = sqrt(k_j - 1) alpha_j sqrt(m_j) the
Frobenius norm of the within-cluster part, b the bias per cluster. One product costs a few passes over J x J numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.objective import Columns
from collapsar.solver.symmetry import Quotient


@dataclass(frozen=True)
class LossHessian:
    """sum_k q_k tau_k^2 delta o (diag(p_k) - p_k p_k') o delta, ready to apply.

    Attributes:
        diagonal: shape (J, J), its diagonal in X.
        within_diagonal: shape (J,), its diagonal in y, 0 for single classes.
        bias_diagonal: shape (J,), its diagonal in b, without lambda_b.
        mass: shape (J, J), probability of all "other" logits of cluster i for a sample of cluster j.
        to_logit: shape (J, J), delta_i / weight_ij: logit of a unit of X.
        to_contrast: shape (J,), delta_j / (sqrt(k_j - 1) sqrt(m_j)): logit contrast of a unit of y.
        column_weight: shape (J,), k_j q_j tau_j^2.
        rest: shape (J,), 1 - 1/k.
        several: whether any cluster has several classes.
        q: the problem.
    """

    diagonal: Matrix
    within_diagonal: Vector
    bias_diagonal: Vector
    mass: Matrix
    to_logit: Matrix
    to_contrast: Vector
    column_weight: Vector
    rest: Vector
    several: bool
    q: Quotient

    def astype(self, dtype: Any) -> Self:
        """The same with its J x J arrays in another precision, for products in that precision."""
        return replace(self, mass=self.mass.astype(dtype, copy=False), to_logit=self.to_logit.astype(dtype, copy=False))

    def apply(self, X: Matrix, y: Vector, b: Vector) -> tuple[Matrix, Vector, Vector]:
        """The Hessian times one direction; ``y`` is not read if no cluster has several classes."""
        q, J = self.q, self.q.num_clusters
        d = self.to_logit * X
        d += (q.scales * b)[:, None]
        diagonal = d.ravel()[:: J + 1]  # a view, like the one below
        own = diagonal.copy()
        if self.several:
            contrast = self.to_contrast * y
            own += contrast * self.rest
            diagonal -= contrast / q.sizes
        d -= own  # logits against the own class's: losses near 0 keep their curvature
        g = self.mass * d
        g -= self.mass * np.add.reduce(g, axis=0)
        own = -np.add.reduce(g, axis=0)
        diagonal = g.ravel()[:: J + 1]
        out_y = np.zeros(J)
        if self.several:
            out_y = self.column_weight * self.to_contrast * (own * self.rest - diagonal / q.sizes)
        diagonal += own
        g *= self.column_weight
        out_b = q.scales * np.add.reduce(g, axis=1)
        g *= self.to_logit
        return g, out_y, out_b


def loss_hessian(q: Quotient, P: Columns) -> LossHessian:
    """The Hessian at the softmax P."""
    mass, own = q.others * P.other, 1 - P.miss
    siblings = mass.diagonal()
    column_weight = q.sizes * q.share * q.temperatures**2
    several = q.sizes > 1
    to_logit = q.scales[:, None] / q.weight
    to_contrast = np.where(several, q.scales / np.sqrt(np.maximum(q.sizes - 1, 1) * q.mass), 0.0)
    spread = mass * np.maximum(1 - mass, 0.0)
    # the cluster of the sample: own class and its siblings
    np.einsum("jj->j", spread)[:] = (siblings + own) * np.maximum(P.miss - siblings, 0.0)
    spread *= column_weight
    rest = 1 - 1 / q.sizes
    mean = own * rest - siblings / q.sizes
    variance = own * rest**2 + siblings / q.sizes**2 - mean**2
    return LossHessian(
        diagonal=to_logit**2 * spread,
        within_diagonal=column_weight * to_contrast**2 * variance,
        bias_diagonal=q.scales**2 * spread.sum(axis=1),
        mass=mass,
        to_logit=to_logit,
        to_contrast=to_contrast,
        column_weight=column_weight,
        rest=rest,
        several=bool(several.any()),
        q=q,
    )
