"""Many problems of the same small number of clusters at once: the smooth part, its derivatives, and the lower bound.

The problems lie on the last axis of every array, so that numpy's inner loops run over them. A problem of J clusters is

    v     (J, J, B)    row c < J - 1, column j: S sqrt(m) in an orthonormal basis of the complement of its left null
                       vector sqrt(k) / delta; row J - 1: y_j = alpha_j sqrt(m_j (k_j - 1)), the within-cluster part
    beta  (J - 1, B)   the bias in the same basis

with ||Z M^(1/2)||_F = ||v||_F and ||b|| = ||beta||. The nuclear norm is ||v[:-1]||_* + sum_j sqrt(k_j - 1)|y_j|, the
column form sum_j sqrt(k_j)||v[:, j]||. For a sample of cluster j the logit of a class of cluster i exceeds its own by

    d_ij = <a_ij, zeta_j> + iota_i - iota_j,     zeta_j = v_j / sqrt(k_j m_j) + (beta, 0).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlog1py, xlogy

from collapsar.core.problem import FeatureModel
from collapsar.core.types import Array
from collapsar.solver.certificate import BALANCED, INSIDE


class Softmax(NamedTuple):
    """Predictions and loss.

    Attributes:
        miss: shape (J, B), 1 - (probability of the own class).
        other: shape (J, J, B), probability of one other class of cluster i for a sample of cluster j.
        loss: shape (B,), nats.
    """

    miss: Array
    other: Array
    loss: Array


@dataclass(frozen=True)
class BatchModel:
    """B problems of J clusters each. Every array has B on its last axis.

    Attributes:
        sizes: k, (J, B).
        others: k_i - [i=j], (J, J, B): how many logits of cluster i are not the own class of a sample of cluster j.
        basis: shape (J, J - 1, B), orthonormal columns, orthogonal to sqrt(k) / delta.
        slope: a, shape (J, J, J, B), [logit cluster, sample cluster, coordinate].
        shift: iota_i - iota_j, (J, J, B).
        share: k q, loss share of a cluster, (J, B).
        root: sqrt(k m), (J, B).
        delta: logit scales, (J, B).
        tau: temperatures, (J, B).
        smooth: eps / K, (B,).
        lambda_z: (B,).
        lambda_b: (B,), 0 where there is no bias.
        biased: whether there is a bias, (B,).
        features: the feature model, the same for all.
    """

    sizes: Array
    others: Array
    basis: Array
    slope: Array
    shift: Array
    share: Array
    root: Array
    delta: Array
    tau: Array
    smooth: Array
    lambda_z: Array
    lambda_b: Array
    biased: NDArray[np.bool_]
    features: FeatureModel

    @property
    def num_clusters(self) -> int:
        """J."""
        return self.sizes.shape[0]

    def take(self, which: NDArray[np.intp]) -> Self:
        """Some of the problems, in their order."""
        if which.size == self.lambda_z.size:
            return self
        names = [f.name for f in fields(self) if f.name != "features"]
        return replace(self, **{name: np.take(getattr(self, name), which, axis=-1) for name in names})

    def softmax(self, v: Array, beta: Array) -> Softmax:
        """Predictions at a point, from differences to the own logit, so that small losses keep their accuracy."""
        zeta = v / self.root
        zeta[:-1] += beta[:, None]
        d = np.einsum("ijcb,cjb->ijb", self.slope, zeta) + self.shift
        top = np.maximum(d.max(axis=0), 0.0)
        odds = np.exp(d - top)
        missed = np.einsum("ijb,ijb->jb", self.others, odds)
        own = np.exp(-top)
        total = own + missed
        lse = top + np.log1p(np.where(top == 0, missed, total - 1))
        loss = np.einsum("jb,jb->b", self.share, lse)
        if self.smooth.any():
            loss -= self.smooth * np.einsum("jb,ijb,ijb->b", self.share, self.others, d)
        return Softmax(missed / total, odds / total, loss)

    def bias_price(self, beta: Array) -> Array:
        """(lambda_b / 2) ||b||^2, shape (B,)."""
        return 0.5 * self.lambda_b * np.sum(beta**2, axis=0)

    def gradient(self, P: Softmax, beta: Array) -> tuple[Array, Array]:
        """Derivatives of loss and bias penalty in v and in beta."""
        push = np.einsum("ijb,ijb,ijcb->cjb", self.others, P.other - self.smooth, self.slope) * self.share
        bias = push[:-1].sum(axis=1) + self.lambda_b * beta
        return push / self.root, np.where(self.biased, bias, 0.0)

    def hessian(self, P: Softmax) -> Array:
        """Second derivative in (v, beta), shape (n, n, B), n = J^2 + J - 1; v[c, j] is coordinate c J + j."""
        J = self.num_clusters
        weight = self.others * P.other
        mean = np.einsum("ijb,ijcb->cjb", weight, self.slope)
        G = np.einsum("ijb,ijcb,ijdb->cdjb", weight, self.slope, self.slope)
        G -= mean[:, None] * mean
        G *= self.share
        H = np.zeros((J * J + J - 1, J * J + J - 1, self.lambda_z.size))
        tied = G / self.root
        local = tied / self.root
        for c in range(J):
            for d in range(J):
                for j in range(J):
                    H[c * J + j, d * J + j] = local[c, d, j]
                    if d < J - 1:
                        H[c * J + j, J * J + d] = H[J * J + d, c * J + j] = tied[c, d, j]
        H[J * J :, J * J :] = G[: J - 1, : J - 1].sum(axis=2)
        for c in range(J - 1):
            H[J * J + c, J * J + c] += self.lambda_b
        return H

    def dual_norm(self, R: Array) -> Array:
        """The norm of R dual to the penalty's, in the coordinates of v; an upper bound for nonnegative features."""
        J, width = self.num_clusters, np.sqrt(np.maximum(self.sizes - 1, 0.0))
        within = R[-1] / np.where(width > 0, width, np.inf)
        if self.features == "signed":
            return np.maximum(spectral_norm(R[:-1]), np.abs(within).max(axis=0))
        gram = np.einsum("cib,cjb->ijb", R[:-1], R[:-1])
        positive = np.maximum(gram, 0.0)
        for j in range(J):  # in cluster j: R'R is e off the diagonal and e + within^2 on it
            k = self.sizes[j]
            e = np.where(k > 1, (gram[j, j] - within[j] ** 2) / k, 0.0)
            split = e + within[j] ** 2 + (k - 1) * np.maximum(e, 0.0)
            positive[j, j] = np.where(k > 1, split, gram[j, j])
        return np.sqrt(_largest_eigenvalue(positive))


def lower_bound(model: BatchModel, P: Softmax) -> Array:
    """Lower bounds of the optima from predictions P: D(S_t) at S_t = Y + t(P - Y), t the largest feasible or 1.

    Args:
        model: B problems.
        P: predictions at any point.

    Returns:
        Shape (B,), nats; -inf where the bias is free and not balanced.
    """
    zero = np.zeros((model.num_clusters - 1, model.lambda_z.size))
    R, bias = model.gradient(P, zero)
    norm = model.dual_norm(R)
    limit = _simplex_limit(model, P)
    limit = np.minimum(limit, np.where(norm > 0, model.lambda_z / np.where(norm > 0, norm, 1.0) * INSIDE, np.inf))
    limit = np.where(np.isfinite(limit), limit, 1.0)
    square = np.sum(bias**2, axis=0)
    best = np.maximum(_dual(model, P, limit, square), _dual(model, P, np.minimum(limit, 1.0), square))
    unbalanced = model.biased & (model.lambda_b == 0) & ~(np.sqrt(square) <= BALANCED)
    return np.where(unbalanced, -np.inf, best)


def _dual(model: BatchModel, P: Softmax, t: Array, bias_square: Array) -> Array:
    """D(S_t); ``bias_square`` is the square of the bias equation's residual at t = 1."""
    rest = model.smooth * (model.sizes.sum(axis=0) - 1)
    miss = rest + t * (P.miss - rest)
    other = np.maximum(model.smooth + t * (P.other - model.smooth), 0.0)
    own = np.maximum(1 - miss, 0.0)
    entropy = -np.sum(model.others * xlogy(other, other), axis=0) - xlog1py(own, -np.minimum(miss, 1.0))
    entropy += np.sum(model.others * (other - model.smooth) * model.shift, axis=0)
    priced = model.lambda_b > 0
    price = np.where(priced, t**2 * bias_square / (2 * np.where(priced, model.lambda_b, 1.0)), 0.0)
    return np.sum(model.share * entropy, axis=0) - price


def _simplex_limit(model: BatchModel, P: Softmax) -> Array:
    """The largest t with S_t >= 0, shape (B,); inf if the ray never leaves the simplex."""
    rest = model.smooth * (model.sizes.sum(axis=0) - 1)
    fall, rise = model.smooth - P.other, P.miss - rest
    falls, rises = (model.others > 0) & (fall > 0), rise > 0
    first = np.where(falls, model.smooth / np.where(falls, fall, 1.0), np.inf).min(axis=(0, 1))
    second = np.where(rises, (1 - rest) / np.where(rises, rise, 1.0), np.inf).min(axis=0)
    return np.minimum(first, second)


def spectral_norm(X: Array) -> Array:
    """The spectral norms of the matrices (p, q, B), shape (B,)."""
    if X.shape[0] == 0:
        return np.zeros(X.shape[-1])
    if X.shape[0] == 1:
        return np.sqrt(np.sum(X[0] ** 2, axis=0))
    return np.linalg.norm(np.moveaxis(X, -1, 0), 2, axis=(1, 2))


def _largest_eigenvalue(G: Array) -> Array:
    """The largest eigenvalues of the symmetric positive semidefinite matrices (p, p, B), shape (B,)."""
    if G.shape[0] == 1:
        return G[0, 0]
    if G.shape[0] == 2:
        mean, half = (G[0, 0] + G[1, 1]) / 2, (G[0, 0] - G[1, 1]) / 2
        return mean + np.hypot(half, G[0, 1])
    return np.asarray(np.linalg.eigvalsh(np.moveaxis(G, -1, 0))[:, -1], dtype=np.float64)
