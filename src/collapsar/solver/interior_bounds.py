"""Bounds from interior points on the program with features >= 0: a relaxation below, features along directions above.

Both begin near the optimum, where descent ended: :mod:`.interior` has the method and the two sets of overlaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, eye_array

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms
from collapsar.solver.certificate import balance_bias
from collapsar.solver.interior import At, Part, Space, interior_point, symmetric, total
from collapsar.solver.objective import Columns, predict, residual
from collapsar.solver.overlap_model import OverlapPoint
from collapsar.solver.symmetry import Blocks, Quotient, centred
from collapsar.solver.witness import Witness, coordinates, sides

_AWAY = 3e-2  # how far from the boundary a start is moved, in units of the features' sizes
_MU = 1e-3  # complementarity of a start, in squares of a typical feature
_MIXED = 0.3  # what a start is moved towards, off the diagonal
_SMALLEST = 1e-3  # relative to a typical squared feature: the yardstick for classes that vanish
_NEW = 1e-3  # weight of a new direction, relative to the mean
_NEW_MU = 1e-6  # complementarity where directions are added
_NOTHING = 1e-8  # relative to the largest weight


class Relaxation(NamedTuple):
    """The optimum over doubly nonnegative overlaps, in the parts of a cut cone.

    Attributes:
        blocks: the point.
        Q: the residual there over lambda_Z, with that of the contrasts as its last row, (J + 1, J).
        witness: what proves its value from below.
    """

    blocks: Blocks
    Q: Matrix
    witness: Witness


def relaxation(q: Quotient, atoms: Atoms, S: Columns, witness: Witness, enough: float) -> Relaxation | None:
    """The optimum of the relaxation, from features near the program's.

    Args:
        q: J clusters, at most sixty or so.
        atoms: the features to begin with, not all zero.
        S: the softmax there.
        witness: multipliers to begin with, and the cuts.
        enough: the gap that suffices, nats.

    Returns:
        The optimum; None if probabilities are so small that a residual does not tell them from zero.
    """
    space, J, lam2 = Space(q), q.num_clusters, q.lambda_z**2
    Q, (C, gamma) = residual(q, S).over(q.lambda_z), atoms.gram()
    here = OverlapPoint(q, space.model, Q, np.vstack([C - np.diag(gamma), gamma]), np.zeros(J, dtype=bool))
    if not np.all(here.p > 0):
        return None
    every, points = list(sides(witness.cuts)), []
    for side in every:
        known = witness.between[side] / lam2, witness.within[side] / lam2
        points.append(_beginning(space, coordinates(witness.cuts, side, J), here, len(every), known))
    points, Q = interior_point(points, Q, 2 * enough / q.lambda_z)
    blocks = _blocks(space, total(points), Q)
    between, within = np.zeros((len(every), J, J)), np.zeros((len(every), J))
    i, j = np.triu_indices(J, 1)
    several = space.several
    for N, nu, at in zip(between, within, points, strict=True):
        N[i, j] = N[j, i] = at.nu[: i.size] / 2
        nu[several] = at.nu[i.size : i.size + several.size] / (q.sizes[several] - 1)
    shape = (2,) * len(witness.cuts)
    multipliers = between.reshape(*shape, J, J) * lam2, within.reshape(*shape, J) * lam2
    return Relaxation(blocks, Q, Witness(predict(q, blocks)[0], *multipliers, witness.cuts))


def _beginning(space: Space, A: Matrix, here: OverlapPoint, num_parts: int, known: tuple[Matrix, Vector]) -> At:
    """A part's share of the overlaps, moved into its cone, with what is known of the multipliers N and nu."""
    part, C, gamma, (N, nu) = _cone(space, A), here.gram, here.D[-1], known
    J, c, back = len(C), here.contrasts, np.linalg.inv(A)
    typical = float(np.mean(C.diagonal()))
    square = np.maximum(C.diagonal(), _SMALLEST * typical)
    scale, mixed = np.sqrt(np.multiply.outer(square, square)), np.eye(J) + _MIXED
    seen = (A @ (scale * mixed) @ A.T).diagonal()  # squares in the part's own coordinates
    share = A @ (C / num_parts) @ A.T
    inner = np.maximum(share, 0.0) + _AWAY * np.sqrt(np.multiply.outer(seen, seen)) * mixed
    start = back @ inner @ back.T
    low = float(np.linalg.eigvalsh(start / scale)[0])
    if low < 0.1 * _AWAY:
        start += (0.1 * _AWAY - low) * back @ np.diag(seen) @ back.T
    room = np.minimum(0.1 * _AWAY * square, _MIXED * start.diagonal())
    x = space.vector(start, np.where(c > 0, np.clip(gamma / num_parts, room, start.diagonal() - room), 0.0))
    slope, held = -here.excess[:-1], A.T @ N @ A
    values, turn = np.linalg.eigh(symmetric((slope - held - np.diag(c * nu)) * scale))
    T = (turn * np.maximum(values, 0.0)) @ turn.T / scale
    contrast = np.maximum(-here.excess[-1] - T.diagonal() - held.diagonal(), 0.0)
    i, j = np.triu_indices(J, 1)
    multipliers = np.concatenate([2 * N[i, j], (c * nu)[space.several], contrast[space.several]])
    mu = _MU * typical
    return At(part, x, multipliers + mu / (part.rows @ x), symmetric(T + mu * np.linalg.inv(space.gram(x))))


def _cone(space: Space, A: Matrix) -> Part:
    """C with A C A' >= 0, whose classes of one cluster overlap by no less than zero and no more than wholly."""
    (i, j), (k, m) = np.triu_indices(space.q.num_clusters, 1), space.pairs
    between, several = space.size - space.several.size, space.several.size
    pairs = np.where(k == m, A[i][:, k] * A[j][:, k], A[i][:, k] * A[j][:, m] + A[i][:, m] * A[j][:, k])
    ends = np.zeros((2 * several, space.size))
    ends[np.arange(several), np.flatnonzero((k == m)[:between])[space.several]] = 1.0
    ends[several + np.arange(several), between + np.arange(several)] = 1.0
    return Part(space, csr_array(np.vstack([pairs, ends])))


def best_weights(
    q: Quotient, own: Matrix, common: Matrix, weight: Vector, Q: Matrix, enough: float
) -> tuple[Atoms, Vector, Matrix]:
    """The best features along given directions.

    Args:
        q: J clusters, at most sixty or so.
        own: directions h >= 0 of any size, one per row: what they have on one class of each cluster.
        common: what they have on all classes.
        weight: the weights to begin with, 0 for new directions.
        Q: the residual to begin with over lambda_Z, (J + 1, J).
        enough: the gap that suffices, nats.

    Returns:
        The factors, without those whose weight is nearly zero, the bias, and the residual over lambda_Z.
    """
    space = Space(q)
    size = np.sqrt(np.sum((own + common) ** 2, axis=1) + own**2 @ (q.sizes - 1))[:, None]
    own, common = own / size, common / size
    mean, (i, j) = own + common, space.pairs
    onto = (mean[:, i] * mean[:, j]).T
    between = space.size - space.several.size
    onto[:between][i[:between] == j[:between]] -= (own**2).T
    onto[between:] = (own[:, space.several] ** 2).T
    typical = float(np.mean(weight))
    weight = np.maximum(weight, _NEW * typical)
    short = 1 - np.sum((mean @ Q[:-1].T) ** 2, axis=1) - (own * Q[-1]) ** 2 @ (q.sizes - 1)
    part = Part(space, csr_array(eye_array(weight.size)), onto)
    start = At(part, weight, np.maximum(short, 0.0) + _NEW_MU * typical / weight)
    (at,), Q = interior_point([start], Q, 2 * enough / q.lambda_z)
    keep = at.x > _NOTHING * np.max(at.x)
    root = np.sqrt(at.x[keep])[:, None]
    atoms = Atoms.along(root * own[keep], root * common[keep], Q)
    return atoms, _blocks(space, at.overlaps, Q).b, Q


def _blocks(space: Space, x: Vector, Q: Matrix) -> Blocks:
    """The point QC with its best bias."""
    q, D = space.q, space.stacked(x)
    at = OverlapPoint(q, space.model, Q, D, np.zeros(q.num_clusters, dtype=bool))
    blocks = Blocks(Q[-1] * D[-1] / np.sqrt(q.mass), (Q[:-1] @ at.gram) / q.weight, at.bias())
    return centred(q, balance_bias(q, blocks))
