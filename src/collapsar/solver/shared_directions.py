"""Directions h >= 0 that factors lack: those along which R is longer than lambda_Z, by projected power iteration."""

from __future__ import annotations

import numpy as np

from collapsar.core.types import Matrix
from collapsar.solver.atoms import Atoms
from collapsar.solver.objective import Columns, residual
from collapsar.solver.symmetry import Quotient

_STARTS, _NEAR_STARTS = 100, 200  # of the search, of any kind
_ASCENT = 300  # its steps
_SETTLED = 1e-7  # change of a unit direction from step to step: what it pays is then right to the square of that
_PAYS = 1e-8  # relative
_ALIKE, _NEARLY_ALIKE = 0.999, 0.99999  # cosines above which one of two directions will do
_LONG_ASCENT, _EXACT = 1000, 1e-10  # where digits of the objective hang on them
_NOTHING = 1e-12  # of a unit direction: rounding
_SMALL = 0.03  # size of a new direction, relative to the features that there are
_LEAST = 1e-2  # of the longest feature: what classes without one are taken to have


def ascent(
    q: Quotient, Q: Matrix, own: Matrix, common: Matrix, steps: int = _ASCENT, settled: float = _SETTLED
) -> tuple[Matrix, Matrix]:
    """Projected power iteration on ||Q h|| over unit h >= 0, from several h at once: one per row, in both of its parts.

    With m = own + common, Q'Q h has the part G m on the u_j, G = Q'Q there, and rho^2 own on the contrasts; what that
    makes of the one class and of all others of its cluster is cut off at zero.
    """
    gram, inner, contrasts = Q[:-1].T @ Q[:-1], Q[-1] ** 2, q.sizes - 1
    for _ in range(steps):
        mean, contrast = (own + common) @ gram, inner * own
        common = np.maximum(mean - contrast, 0.0)
        own = np.where(contrasts > 0, (np.maximum(mean + contrasts * contrast, 0.0) - common) / q.sizes, 0.0)
        length = np.sqrt(np.sum((own + common) ** 2, axis=1) + own**2 @ contrasts)[:, None]
        length = np.where(length > 0, length, 1.0)
        last, own, common = own + common, own / length, common / length
        if np.abs(own + common - last).max() <= settled:
            break
    return own, common


def missing_directions(q: Quotient, S: Columns, held: int | None = None) -> Atoms | None:
    """Atoms along unit directions that would pay, ||R h|| > lambda_Z; None if none would.

    At most J, the best first. The search begins at what all classes would share, at the smallest classes, at the pairs
    that pay most or nearly pay, and at mixtures of many and of few directions: a maximum on two classes among fifty
    is not reached from where all take part.

    Args:
        q: J clusters.
        S: the softmax at the point that lacks them; at the dual's own point, which is feasible, none would pay.
        held: a cluster whose classes have equal features.
    """
    Q, J, rng = residual(q, S).over(q.lambda_z), q.num_clusters, np.random.default_rng(0)
    mixed = rng.random((2, 2 * _STARTS, J))
    mixed[:, _STARTS:] *= rng.random((2, _STARTS, J)) < rng.random((2, _STARTS, 1))
    alone = np.eye(J)[np.argsort(q.mass)[:_STARTS]] + 1e-2
    own, common = _best_pairs(q, Q)
    own = np.vstack([np.zeros((1 + len(alone), J)), own, mixed[1] * (q.sizes > 1)])
    common = np.vstack([np.ones(J), alone, common, mixed[0]])
    own[:, np.arange(J) == held] = 0.0  # and stays so
    found = _longest(q, Q, *ascent(q, Q, own, common), 1 + _PAYS, _ALIKE).rows(slice(J))
    return found if len(found.own) else None


def near_directions(q: Quotient, S: Columns, atoms: Atoms, pays: float, rng: np.random.Generator) -> Atoms:
    """Directions that pay, or nearly do, reached from those of an optimum nearby.

    Where many mixtures of directions are nearly as long as lambda_Z, missing ones are found from mixtures of three
    that are there, and from what the overlaps of all say.

    Args:
        q: J clusters.
        S: the softmax.
        atoms: the features that are there.
        pays: ||R h|| over lambda_Z, less one, above which a direction counts.
        rng: random numbers for the search.

    Returns:
        Atoms along them, with features of length one.
    """
    Q, J = residual(q, S).over(q.lambda_z), q.num_clusters
    size = np.sum(atoms.mean**2, axis=1)
    largest = np.argsort(-size)[:_NEAR_STARTS]
    few = rng.choice(len(size), size=(2 * _NEAR_STARTS, 3))
    share = rng.random((2 * _NEAR_STARTS, 3, 1)) / np.sqrt(np.maximum(size, np.finfo(np.float64).tiny))[few][:, :, None]
    values, turn = np.linalg.eigh(atoms.gram()[0])
    alike = np.maximum(rng.normal(size=(2 * _NEAR_STARTS, J)) @ (turn * np.sqrt(np.maximum(values, 0.0))).T, 0.0)
    part = rng.random((2 * _NEAR_STARTS, J)) * (q.sizes > 1)
    mixed = rng.random((2, 2 * _NEAR_STARTS, J)) * (
        rng.random((2 * _NEAR_STARTS, J)) < rng.random((2 * _NEAR_STARTS, 1))
    )
    own, common = _best_pairs(q, Q)
    starts = (
        (atoms.own[largest], atoms.common[largest]),
        (np.sum(share * atoms.own[few], axis=1), np.sum(share * atoms.common[few], axis=1)),
        (part * alike, (1 - part) * alike),
        (mixed[1] * (q.sizes > 1), mixed[0]),
        (own, common),
    )
    own, common = (np.vstack([start[k] for start in starts]) for k in (0, 1))
    some = (own + common).any(axis=1)
    own, common = ascent(q, Q, own[some], common[some], _LONG_ASCENT, _EXACT)
    own, common = (np.where(part > _NOTHING, part, 0.0) for part in (own, common))
    return _longest(q, Q, own, common, 1 + pays, _NEARLY_ALIKE)


def _longest(q: Quotient, Q: Matrix, own: Matrix, common: Matrix, least: float, alike: float) -> Atoms:
    """The unit directions with ||Q h|| > least, the longest first, no two with a cosine of ``alike``."""
    atoms = Atoms.along(own, common, Q)
    length, unit = atoms.norms(q)[0], np.hstack([atoms.mean, own * np.sqrt(q.sizes - 1)])
    found: list[int] = []
    for i in np.argsort(-length, kind="stable"):
        if length[i] > least and np.max(unit[found] @ unit[i], initial=0.0) < alike:
            found.append(int(i))
    return atoms.rows(found)


def _best_pairs(q: Quotient, Q: Matrix) -> tuple[Matrix, Matrix]:
    """Directions on two clusters, on one class or on all of either, with the longest Q h: own and common parts."""
    J, root, cluster = q.num_clusters, np.sqrt(q.sizes), np.tile(np.arange(q.num_clusters), 2)
    ones = np.append(np.ones(J), root)  # u_j of every cluster, then its e_j, which is the same where it has one class
    gram = np.tile(Q[:-1].T @ Q[:-1], (2, 2)) / np.outer(ones, ones)
    square = np.diag(gram) + np.append(np.zeros(J), Q[-1] ** 2 * (1 - 1 / q.sizes))
    double = np.append(np.zeros(J, dtype=bool), q.sizes == 1)
    i, j = np.nonzero((np.triu(gram, 1) > 0) & (cluster[:, None] != cluster) & ~(double[:, None] | double))
    half = (square[i] - square[j]) / 2
    far = np.hypot(half, gram[i, j])  # the larger eigenvalue of a 2 x 2 block is its diagonal's mean plus this
    best = np.argsort(-far - (square[i] + square[j]) / 2)[:_STARTS]
    h, row = np.zeros((best.size, 2 * J)), np.arange(best.size)
    for place, part in ((i, far + half), (j, far - half)):
        h[row, place[best]] = np.sqrt(np.maximum(part[best], 0.0))
    return h[:, J:] / root, h[:, :J]


def with_directions(atoms: Atoms, missing: Atoms) -> Atoms:
    """The atoms and the missing ones, made small relative to the features that their classes have."""
    feature = np.linalg.norm(atoms.mean, axis=0)
    feature = np.maximum(feature, _LEAST * (float(np.max(feature)) or 1.0))
    size = _SMALL * (missing.mean @ feature)[:, None]
    return atoms.joined(missing.scaled(size, size))
