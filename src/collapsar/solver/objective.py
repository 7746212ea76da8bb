"""The smooth part of the program on the quotient: softmax, loss, residual.

A sample of cluster j sees J + 1 different logits: its own class, and for every cluster i the k_i - [i=j] other classes
of that cluster. All are written as differences from the own class, so that losses near 0 keep their relative accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import xlog1py, xlogy

from collapsar.core.types import Matrix, Vector
from collapsar.solver.symmetry import Blocks, Quotient


@dataclass(frozen=True)
class Columns:
    """Stochastic columns over the K classes, one per cluster of samples.

    Attributes:
        miss: shape (J,), 1 - (probability of the own class).
        other: shape (J, J), probability of one other class of cluster i for a sample of cluster j.
    """

    miss: Vector
    other: Matrix


@dataclass(frozen=True)
class Residual:
    """R = diag(delta)(Y - P)diag(tau o q)M^(-1/2) on the quotient, and the bias equation.

    Attributes:
        within: rho, shape (J,): R acts as rho_j I on the k_j - 1 within-cluster directions; 0 for single classes.
        between: shape (J, J): R on the cluster directions u_j = 1_j / sqrt(k_j).
        bias: shape (J,): sum_k q_k tau_k delta o (y_k - p_k), one entry per logit of cluster i.
    """

    within: Vector
    between: Matrix
    bias: Vector

    def over(self, price: float) -> Matrix:
        """Q = R / price as one array, (J + 1, J): ``between``, then ``within`` as the last row."""
        return np.vstack([self.between, self.within]) / price


def target(q: Quotient) -> Columns:
    """Y: the (smoothed) one-hot columns."""
    J, K = q.num_clusters, q.num_classes
    return Columns(np.full(J, q.smoothing * (K - 1) / K), np.full((J, J), q.smoothing / K))


def predict(q: Quotient, blocks: Blocks) -> tuple[Columns, float]:
    """P, the softmax of every column of the scaled logits u_k, and the loss sum_k q_k [lse(u_k) - <y_k, u_k>]."""
    d = logit_differences(q, blocks) + q.offset_differences
    top = np.maximum.reduce(d, axis=0, where=q.seen, initial=0.0)
    others = np.exp(np.minimum(d - top, 0.0))
    miss_weight, own_weight = np.add.reduce(q.others * others, axis=0), np.exp(-top)
    both = own_weight + miss_weight
    lse = top + np.log1p(np.where(top == 0, miss_weight, both - 1))  # lse(u) - u_own
    scale = 1 / both
    P = Columns(miss_weight * scale, others * scale)
    if q.smoothing:
        lse -= q.smoothing / q.num_classes * np.add.reduce(q.others * d, axis=0)
    return P, float(np.add.reduce(q.sampled * lse))


def logit_differences(q: Quotient, blocks: Blocks) -> Matrix:
    """u_i - u_own without offsets for every cluster i of logits and j of samples, shape (J, J); linear in the point."""
    u = q.scales[:, None] * (blocks.C + blocks.b[:, None])  # before temperature and offsets
    contrast = q.scales * blocks.alpha
    sibling = contrast / q.sizes
    # the own class has C_jj + alpha (1 - 1/k), its siblings C_jj - alpha / k: the difference is -alpha
    diagonal = diagonal_of(u)
    own = diagonal + contrast - sibling
    diagonal -= sibling
    u -= own
    u *= q.temperatures
    return u


def diagonal_of(square: Matrix) -> Vector:
    """A writable view of the diagonal of a contiguous matrix."""
    return square.ravel("K")[:: len(square) + 1]


def cross_entropy(q: Quotient, blocks: Blocks) -> float:
    """The loss alone, in nats."""
    return predict(q, blocks)[1]


def residual(q: Quotient, P: Columns) -> Residual:
    """R at stochastic columns P, from which the gradient in Z is -R M^(1/2)."""
    even = q.smoothing / q.num_classes
    miss, other = P.miss - even * (q.num_classes - 1), even - P.other  # Y off the own class; what is left there is miss
    r_own = q.scales * miss * q.pull / q.root_mass
    siblings = other.diagonal() * q.scales * q.pull / q.root_mass
    between = q.row_factor * other
    between *= q.column_factor
    diagonal_of(between)[:] = r_own + (q.sizes - 1) * siblings
    within = np.where(q.sizes > 1, r_own - siblings, 0.0)
    # of cluster j's classes, k_j - [i=j] see a logit of cluster i as "other"
    bias = q.scales * (miss * q.pull + (q.others.T * other) @ q.pull)
    return Residual(within, between, bias)


def dual_entropy(q: Quotient, S: Columns) -> float:
    """sum_k q_k [H(s_k) + <s_k - y_k, iota>], nats."""
    own = np.maximum(1 - S.miss, 0.0)  # at the edge of the simplex rounding may pass 0
    other = np.maximum(S.other, 0.0)
    entropy = -np.add.reduce(q.others * xlogy(other, other), axis=0) - xlog1py(own, -np.minimum(S.miss, 1.0))
    if isinstance(q.offset_differences, np.ndarray):
        even = q.smoothing / q.num_classes
        entropy += np.add.reduce(q.others * (S.other - even) * q.offset_differences, axis=0)
    return float(np.add.reduce(q.sampled * entropy))
