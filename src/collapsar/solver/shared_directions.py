"""Directions h >= 0 that factors lack: those along which R is longer than lambda_Z, by projected power iteration."""

from __future__ import annotations

import numpy as np

from collapsar.core.types import Matrix
from collapsar.solver.atoms import Atoms
from collapsar.solver.objective import Columns, Residual, residual
from collapsar.solver.symmetry import Quotient

_STARTS = 100  # of the search, of any kind
_ASCENT = 300  # its steps
_SETTLED = 1e-7  # of a unit direction from step to step: what it pays is then right to the square of that
_PAYS = 1e-8  # relative
_SMALL = 0.03  # of the features that there are: a new direction's
_LEAST = 1e-2  # of the longest feature: those of classes that have none


def ascent(q: Quotient, R: Residual, own: Matrix, common: Matrix, steps: int = _ASCENT) -> tuple[Matrix, Matrix]:
    """Projected power iteration on ||R h|| over unit h >= 0, from several h at once: one a row, in both of its parts.

    With m = own + common, R'R h has the part G m on the u_j, G = R'R there, and rho^2 own on the contrasts; what that
    makes of the one class and of all others of its cluster is cut off at zero.
    """
    gram, inner, contrasts = R.between.T @ R.between, R.within**2, q.sizes - 1
    for _ in range(steps):
        mean, contrast = (own + common) @ gram, inner * own
        common = np.maximum(mean - contrast, 0.0)
        own = np.where(contrasts > 0, (np.maximum(mean + contrasts * contrast, 0.0) - common) / q.sizes, 0.0)
        length = np.sqrt(np.sum((own + common) ** 2, axis=1) + own**2 @ contrasts)[:, None]
        length = np.where(length > 0, length, 1.0)
        last, own, common = own + common, own / length, common / length
        if np.abs(own + common - last).max() <= _SETTLED:
            break
    return own, common


def missing_directions(q: Quotient, S: Columns, held: int | None = None) -> tuple[Matrix, Matrix, Residual] | None:
    """Directions that would pay, ||R h|| > lambda_Z, one a row in both of its parts, and the residual; None if none.

    At most J, the best first. The search begins at what all classes would share, at the smallest classes, at the pairs
    that pay most or nearly pay, and at mixtures of many and of few directions: a maximum of two classes among fifty is
    not met from where all take part.

    Args:
        q: J clusters.
        S: the softmax at the point that lacks them; at the dual's own point, which is feasible, none would pay.
        held: a cluster whose classes have equal features.
    """
    R, J, rng = residual(q, S), q.num_clusters, np.random.default_rng(0)
    mixed = rng.random((2, 2 * _STARTS, J))
    mixed[:, _STARTS:] *= rng.random((2, _STARTS, J)) < rng.random((2, _STARTS, 1))
    alone = np.eye(J)[np.argsort(q.mass)[:_STARTS]] + 1e-2
    own, common = _best_pairs(q, R)
    own = np.vstack([np.zeros((1 + len(alone), J)), own, mixed[1] * (q.sizes > 1)])
    common = np.vstack([np.ones(J), alone, common, mixed[0]])
    own[:, np.arange(J) == held] = 0.0  # and stays so
    own, common = ascent(q, R, own, common)
    image, inside = (own + common) @ R.between.T, own * R.within
    length = np.sqrt(np.sum(image**2, axis=1) + inside**2 @ (q.sizes - 1))
    unit = np.hstack([own + common, own * np.sqrt(q.sizes - 1)])
    found: list[int] = []
    for i in np.argsort(-length, kind="stable"):
        if length[i] > q.lambda_z * (1 + _PAYS) and all(unit[i] @ unit[other] < 0.999 for other in found):
            found.append(int(i))
    found = found[:J]
    return (own[found], common[found], R) if found else None


def _best_pairs(q: Quotient, R: Residual) -> tuple[Matrix, Matrix]:
    """Directions on two clusters, on one class or on all of either, with the longest R h: own and common parts."""
    J, root, cluster = q.num_clusters, np.sqrt(q.sizes), np.tile(np.arange(q.num_clusters), 2)
    ones = np.append(np.ones(J), root)  # u_j of every cluster, then its e_j, which is the same where it has one class
    gram = np.tile(R.between.T @ R.between, (2, 2)) / np.outer(ones, ones)
    square = np.diag(gram) + np.append(np.zeros(J), R.within**2 * (1 - 1 / q.sizes))
    double = np.append(np.zeros(J, dtype=bool), q.sizes == 1)
    i, j = np.nonzero((np.triu(gram, 1) > 0) & (cluster[:, None] != cluster) & ~(double[:, None] | double))
    half = (square[i] - square[j]) / 2
    far = np.hypot(half, gram[i, j])  # the larger eigenvalue of two by two is their mean and this
    best = np.argsort(-far - (square[i] + square[j]) / 2)[:_STARTS]
    h, row = np.zeros((best.size, 2 * J)), np.arange(best.size)
    for place, part in ((i, far + half), (j, far - half)):
        h[row, place[best]] = np.sqrt(np.maximum(part[best], 0.0))
    return h[:, J:] / root, h[:, :J]


def with_directions(q: Quotient, atoms: Atoms, missing: tuple[Matrix, Matrix, Residual]) -> Atoms:
    """The atoms, and along the missing directions ones that are small beside the features that their classes have."""
    own, common, R = missing
    feature = np.linalg.norm(atoms.mean, axis=0)
    feature = np.maximum(feature, _LEAST * (float(np.max(feature)) or 1.0))
    size = _SMALL * ((own + common) @ feature)[:, None]
    own, common = size * own, size * common
    parts = (
        (atoms.between, (own + common) @ R.between.T / q.lambda_z),
        (atoms.within, own * R.within / q.lambda_z),
        (atoms.own, own),
        (atoms.common, common),
    )
    return Atoms(*(np.vstack(part) for part in parts))
