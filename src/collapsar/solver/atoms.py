"""Features >= 0 as a sum of atoms, one for every orbit of directions under the permutations inside clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Matrix, Vector
from collapsar.solver.objective import Residual
from collapsar.solver.symmetry import Blocks, Quotient

_PARALLEL = 1e-12  # 1 - cosine of two directions that count as one
_TRACE = 1e-4  # relative
_NEGATIVE = 1e-9  # a correlation that is zero up to rounding
_NOTHING = 1e-11  # relative to a squared feature: rounding
_DEAD = 1e-10  # relative size of ||w|| ||h|| below which an atom counts as zero
_DENSE = 0.3  # fraction of the entries of random features that are not zero
_FITTING = 1500  # quasi-Newton steps: more of them gain little
_SMALLEST = 1e-4  # relative to the longest feature: the yardstick for classes that have none


@dataclass(frozen=True)
class Atoms:
    """r orbits w h'; every array has shape (r, J), in the coordinates of Z M^(1/2).

    Attributes:
        between: components of w along u_j.
        within: contrasts of w in cluster j, over sqrt(k_j - 1).
        own: x >= 0: h has x_j sqrt(k_j) on one class of cluster j; 0 for single classes.
        common: y >= 0: h has y_j / sqrt(k_j) on all classes of cluster j.
    """

    between: Matrix
    within: Matrix
    own: Matrix
    common: Matrix

    @classmethod
    def along(cls, own: Matrix, common: Matrix, Q: Matrix) -> Atoms:
        """Features with the W = H Q' that they call for, where Q is the residual over lambda_Z, (J + 1, J)."""
        return cls((own + common) @ Q[:-1].T, own * Q[-1], own, common)

    @property
    def parts(self) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """``between``, ``within``, ``own`` and ``common``."""
        return self.between, self.within, self.own, self.common

    def rows(self, keep: NDArray[Any] | list[int] | slice) -> Atoms:
        """Some of the atoms."""
        return Atoms(*(part[keep] for part in self.parts))

    def joined(self, other: Atoms) -> Atoms:
        """Both sets of atoms, one after the other."""
        return Atoms(*(np.vstack(pair) for pair in zip(self.parts, other.parts, strict=True)))

    def scaled(self, w: Vector | float, h: Vector | float) -> Atoms:
        """W times w and H times h, per cluster or, as columns, per atom."""
        return Atoms(w * self.between, w * self.within, h * self.own, h * self.common)

    @property
    def mean(self) -> Matrix:
        """Components of h along u_j."""
        return self.own + self.common

    def blocks(self, q: Quotient, b: Vector) -> Blocks:
        """The point sum_i w_i h_i' with bias b."""
        S, x = self.between.T @ self.mean, np.sum(self.within * self.own, axis=0)
        return Blocks(x / np.sqrt(q.mass), S / q.weight, b)

    def norms(self, q: Quotient) -> tuple[Vector, Vector]:
        """||w_i|| and ||h_i||, shape (r,)."""
        contrasts = q.sizes - 1
        w = np.sum(self.between**2, axis=1) + self.within**2 @ contrasts
        return np.sqrt(w), np.sqrt(np.sum(self.mean**2, axis=1) + self.own**2 @ contrasts)

    def weights(self, q: Quotient) -> Vector:
        """||h_i||^2, shape (r,)."""
        return self.norms(q)[1] ** 2

    def price(self, q: Quotient) -> float:
        """sum_i ||w_i|| ||h_i||, an upper bound of the gauge."""
        w, h = self.norms(q)
        return float(w @ h)

    def squares(self, q: Quotient) -> Vector:
        """The sum of squares of each cluster's features, shape (J,)."""
        return np.sum(self.mean**2, axis=0) + (q.sizes - 1) * np.sum(self.own**2, axis=0)

    def pull(self, q: Quotient, R: Residual) -> Vector:
        """Sum <h, R'w> per cluster, shape (J,): the multiplier of its features' squares, times the squares."""
        inner = (q.sizes - 1) * R.within
        return np.sum(self.mean * (self.between @ R.between) + inner * self.within * self.own, axis=0)

    def gram(self) -> tuple[Matrix, Vector]:
        """H'H between clusters, (J, J), and on the contrasts within each, (J,)."""
        return self.mean.T @ self.mean, np.sum(self.own**2, axis=0)

    def alive(self, q: Quotient) -> Atoms:
        """The atoms that are not zero."""
        w, h = self.norms(q)
        return self.rows(w * h > _DEAD * np.max(w * h, initial=0.0))


def own_directions(q: Quotient, blocks: Blocks) -> Atoms:
    """The point with one own direction per class, features of length one in the coordinates of Z M^(1/2)."""
    several = q.sizes > 1
    own = np.diag(several.astype(np.float64))
    within = np.diag(np.where(several, blocks.alpha * np.sqrt(q.mass), 0.0))
    return Atoms((q.weight * blocks.C).T, within, own, np.eye(q.num_clusters) - own)


def combined(q: Quotient, atoms: Atoms) -> Atoms:
    """The same point with one atom for every direction: atoms whose h are parallel are added up."""
    h = atoms.norms(q)[1]
    atoms, h = atoms.rows(h > 0), h[h > 0]
    if not h.size:
        return atoms
    unit = np.hstack([atoms.mean, atoms.own * np.sqrt(q.sizes - 1)]) / h[:, None]
    first = np.argmax(unit @ unit.T > 1 - _PARALLEL, axis=1)
    rows = np.unique(first)
    member = (first == rows[:, None]) * h  # w h' = (w |h|) (h / |h|)'
    size = np.linalg.norm(member, axis=1, keepdims=True)  # length of the sum's h, so that H'H stays the same
    share = size / h[rows, None]
    return Atoms(
        member @ atoms.between / size, member @ atoms.within / size, share * atoms.own[rows], share * atoms.common[rows]
    )


def pruned(atoms: Atoms) -> Atoms:
    """The atoms without those parts of h that are a mere trace of the largest."""
    least = _TRACE * np.max(atoms.mean, axis=1, initial=0.0, keepdims=True)
    own = np.where(atoms.own > least, atoms.own, 0.0)
    within = np.where(own > 0, atoms.within, 0.0)
    return Atoms(atoms.between, within, own, np.where(atoms.common > least, atoms.common, 0.0))


def with_overlaps(q: Quotient, S: Matrix, gamma: Vector) -> tuple[Matrix, Matrix] | None:
    """Features >= 0 with given overlaps, one per living class: the Cholesky factor, in an order that keeps it >= 0.

    A class's part is subtracted from the overlaps of the others as soon as that makes nothing negative. The classes
    that share least come first: those that overlap with such a class share more with each other.

    Args:
        q: J clusters.
        S: C = H'H between clusters, >= 0 but for rounding, shape (J, J), without ``gamma`` on its diagonal.
        gamma: H'H on the contrasts within each cluster, >= 0 but for rounding, shape (J,).

    Returns:
        The parts ``own`` and ``common`` of :class:`Atoms`; None if no such order was found.
    """
    own, common, left = np.zeros_like(S), np.zeros_like(S), np.flatnonzero(np.diag(S) + gamma > 0)
    # an overlap of 0 that Newton's method moves freely may end up below it by rounding
    S, gamma, single = np.maximum(S[np.ix_(left, left)], 0.0), np.maximum(gamma[left], 0.0), q.sizes[left] == 1
    first = S.diagonal() + gamma
    while True:
        keep = S.diagonal() + gamma > _NOTHING * first
        S, left, gamma, single, first = S[keep][:, keep], left[keep], gamma[keep], single[keep], first[keep]
        if not left.size:
            return own, common
        size = np.sqrt(S.diagonal() + gamma)
        least = -_NEGATIVE * np.multiply.outer(size, np.sqrt(first))
        for i in np.argsort(S.dot(1 / size) / size - single):
            row = S[i] / size[i]
            row[i] = 0.0
            after = S - np.multiply.outer(row, row)
            if np.all(after >= least):
                break
        else:
            return None
        j = left[i]
        own[j, j] = np.sqrt(gamma[i])
        common[j, left] = row
        common[j, j] = size[i] - own[j, j]
        S = np.maximum(after, 0.0)
        S[i] = S[:, i] = gamma[i] = 0.0


def near_overlaps(q: Quotient, S: Matrix, gamma: Vector) -> tuple[Matrix, Matrix]:
    """Features >= 0 whose overlaps are as near to given ones as least squares from random features can get.

    There are twice as many features as clusters: with only as many, least squares ended farther off.

    Args:
        q: J clusters.
        S: C between clusters, shape (J, J), without ``gamma`` on its diagonal; it need not be H'H for any H >= 0.
        gamma: C on the contrasts within each cluster, shape (J,).

    Returns:
        The parts ``own`` and ``common`` of :class:`Atoms`.
    """
    from scipy.optimize import minimize

    J, contrasts, several = q.num_clusters, q.sizes - 1, q.sizes > 1
    C, shape = S + np.diag(gamma), (2, 2 * q.num_clusters, q.num_clusters)
    size = np.sqrt(np.maximum(C.diagonal() + contrasts * gamma, 0.0))
    size = np.maximum(size, _SMALLEST * (float(np.max(size)) or 1.0))
    C, gamma = C / np.multiply.outer(size, size), gamma / size**2

    def misfit(x: Vector) -> tuple[float, Vector]:
        own, common = x.reshape(shape)
        mean = own + common
        between, within = mean.T @ mean - C, contrasts * (np.sum(own**2, axis=0) - gamma)
        slope = mean @ between
        value = float(np.sum(between**2) + np.sum(within**2)) / 4
        return value, np.concatenate([(slope + contrasts * within * own).ravel(), slope.ravel()])

    rng = np.random.default_rng(0)
    start = rng.random(shape) * (rng.random(shape) < _DENSE) / np.sqrt(J)
    start[0, :, ~several] = 0.0
    upper = np.full(shape, np.inf)
    upper[0, :, ~several] = 0.0
    found = minimize(
        misfit,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(np.zeros(start.size), upper.ravel(), strict=True)),
        options={"maxiter": _FITTING, "maxfun": 2 * _FITTING, "ftol": 0.0, "gtol": 1e-14, "maxcor": 30},
    )
    own, common = found.x.reshape(shape) * size
    return own, common
