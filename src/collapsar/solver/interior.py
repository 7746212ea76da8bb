"""An interior-point method over overlaps, for sets of them that have a barrier.

With W and b eliminated, the program for features >= 0 is the minimum of a smooth convex function phi(C) of the overlaps
C = H'H (:mod:`.overlaps`), whose gradient is (lambda_Z / 2)(I - Q'Q) at the residual lambda_Z Q that solves X(Q) = QC.
Two sets of C on either side of the program's have barriers:

    doubly nonnegative C, or a sum of such in the coordinates of a cut cone's parts (:mod:`.witness`): a lower bound;
    sums of l_i h_i h_i' along given directions h_i >= 0, l >= 0: features, an upper bound.

Either is a sum of parts C_g = F_g x_g with rows_g x_g >= 0, and C_g positive semidefinite where F_g = I. A step is
Newton's method on all conditions at once (Q, C and the multipliers of both), with the scaling of Nesterov and Todd for
the semidefinite ones and Mehrotra's predictor and corrector for the others. With up to 60 clusters the second
derivative of phi, of order J^2 / 2, is formed: from a point near the optimum ten to twenty steps reach 1e-11. What
starts there, and what the end of it says, is in :mod:`.interior_bounds`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, cho_factor, cho_solve, solve_triangular
from scipy.sparse import csr_array

from collapsar.core.types import Matrix, Vector
from collapsar.solver.dual_model import DualModel, dual_model
from collapsar.solver.overlap_model import OverlapPoint, Response, response
from collapsar.solver.symmetry import Quotient

_STEPS = 80  # ten to sixty are usual
_PATIENCE = 6  # steps that come no nearer: float64 allows no more
_OFF = 0.2  # share of what an unmet slope could cost: most overlaps meet it
_INSIDE = 0.95  # share of the step to the boundary that is taken
_POSITIVE = 0.9  # share of the step to where a probability is zero
_LEAST = 1e-3  # a step leaves at least this share of complementarity
_LONG = 0.3  # a predictor at least this long says something about the curvature
_SHORTEST = 1e-5  # share of a step that is still worth taking
_UNIT = 1e-15  # relative to a diagonal: rounding, raised tenfold until the Cholesky factor exists


@dataclass(frozen=True)
class Space:
    """Overlaps as one vector: S_ij for i <= j, then the contrasts gamma of the clusters of several classes."""

    q: Quotient

    @cached_property
    def several(self) -> NDArray[np.intp]:
        """The clusters of several classes."""
        return np.flatnonzero(self.q.sizes > 1)

    @cached_property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Row and column of every entry; for a contrast, its place on the diagonal."""
        i, j = np.triu_indices(self.q.num_clusters)
        return np.append(i, self.several), np.append(j, self.several)

    @cached_property
    def model(self) -> DualModel:
        """What a residual stands for."""
        return dual_model(self.q)

    @property
    def size(self) -> int:
        """How many overlaps there are."""
        return self.pairs[0].size

    @cached_property
    def half(self) -> Vector:
        """An entry off the diagonal stands for two, e_i e_j' + e_j e_i'."""
        i, j = self.pairs
        return np.where(i == j, 0.5, 1.0)

    def stacked(self, x: Vector) -> Matrix:
        """S with gamma as the last row, (J + 1, J)."""
        (i, j), J, between = self.pairs, self.q.num_clusters, self.size - self.several.size
        D = np.zeros((J + 1, J))
        D[i[:between], j[:between]] = D[j[:between], i[:between]] = x[:between]
        D[-1, self.several] = x[between:]
        return D

    def gram(self, x: Vector) -> Matrix:
        """C on the clusters."""
        D = self.stacked(x)
        return D[:-1] + np.diag(D[-1])

    def vector(self, C: Matrix, gamma: Vector) -> Vector:
        """The overlaps C, whose contrasts are gamma, as a vector."""
        (i, j), between = self.pairs, self.size - self.several.size
        return np.append((C - np.diag(gamma))[i[:between], j[:between]], gamma[self.several])

    def paired(self, M: Matrix, last: Vector | None = None) -> Vector:
        """<M, E_a> over all entries; for contrasts ``last`` instead, if given."""
        i, j = self.pairs
        out = 2 * self.half * M[i, j]
        if last is not None:
            out[self.size - self.several.size :] = last[self.several]
        return out

    def scaled(self, V: Matrix) -> Matrix:
        """<E_a, V E_b V>."""
        i, j = self.pairs
        product = V[np.ix_(i, i)] * V[np.ix_(j, j)] + V[np.ix_(i, j)] * V[np.ix_(j, i)]
        return product * np.multiply.outer(2 * self.half, self.half)

    def curvature(self, at: OverlapPoint, follow: Response) -> Matrix:
        """The second derivative of phi, in units of lambda_Z / 2: 2 <Q E_a, dQ> for the dQ that follows Q E_b.

        Row i of Q E_b has two entries, Q_ik at l and Q_il at k, so that all products are entries of one tensor.
        """
        (i, j), J, half, Q, c = self.pairs, self.q.num_clusters, self.half, at.Q[:-1], at.contrasts
        outer = (Q[:, :, None] * Q[:, None, :]).reshape(J, -1)
        tensor = (outer.T @ follow.inverse.reshape(J, -1)).ravel()  # [m, k, n, l]

        def entries(m: NDArray, k: NDArray, n: NDArray, at_l: NDArray) -> Matrix:
            return tensor[((m[:, None] * J + k) * J + n[:, None]) * J + at_l]

        H = entries(i, i, j, j) + entries(i, j, j, i) + entries(j, i, i, j) + entries(j, j, i, i)
        H *= np.multiply.outer(half, half)
        summed = np.tensordot(Q * follow.u[:, None], follow.inverse, axes=(0, 0))
        columns = (summed[i, :, j] + summed[j, :, i]) * half[:, None]  # u' dQ
        s, last = self.several, np.arange(self.size - self.several.size, self.size)
        own = (c * at.Q[-1])[s]  # what a contrast asks of r, which is eliminated
        bend = -(follow.mixed / follow.turn)[s] * own
        row = follow.inverse[s, s]
        across = bend[:, None] * (Q[s][:, i] * row[:, j] + Q[s][:, j] * row[:, i]) * half
        H[last] += across
        H[:, last] += across.T
        H[last, last] += bend**2 * row[np.arange(s.size), s]
        columns[last] += (follow.u[s] * bend)[:, None] * row
        H -= columns @ follow.multiplier @ columns.T
        H[last, last] += own**2 / follow.turn[s]
        return H + H.T


@dataclass(frozen=True)
class Part:
    """C_g = onto x with rows x >= 0; without ``onto`` x is C_g itself, and positive semidefinite.

    Attributes:
        space: the overlaps.
        rows: one inequality per row.
        onto: shape (P, n).
    """

    space: Space
    rows: csr_array
    onto: Matrix | None = None

    def reduced(self, slope: Vector) -> Vector:
        """A slope in the overlaps as one in x."""
        return slope if self.onto is None else self.onto.T @ slope

    @property
    def count(self) -> int:
        """The number of complementary pairs."""
        return len(self.rows.indptr) - 1 + (self.space.q.num_clusters if self.onto is None else 0)


@dataclass(frozen=True)
class At:
    """A point of a part, or a step: x, multipliers nu of its rows, and T of overlaps that are semidefinite."""

    part: Part
    x: Vector
    nu: Vector
    T: Matrix | None = None

    @property
    def overlaps(self) -> Vector:
        """C_g as a vector."""
        return self.x if self.part.onto is None else self.part.onto @ self.x

    @cached_property
    def gram(self) -> Matrix:
        """C_g on the clusters."""
        return self.part.space.gram(self.x)

    @cached_property
    def slack(self) -> Vector:
        """The slack of the rows."""
        return self.part.rows @ self.x

    @property
    def product(self) -> float:
        """What the pairs add up to: the part's share of the gap, in units of lambda_Z / 2."""
        value = float(self.nu @ self.slack)
        return value if self.T is None else value + float(np.sum(self.T * self.gram))

    @property
    def pull(self) -> Vector:
        """The pull of the multipliers against the slope."""
        value = self.part.rows.T @ self.nu
        return value if self.T is None else value + self.part.space.paired(self.T)

    def moved(self, step: At, length: float) -> At:
        """The point after a step."""
        T = None if self.T is None or step.T is None else self.T + length * step.T
        return At(self.part, self.x + length * step.x, self.nu + length * step.nu, T)

    def room(self, step: At) -> float:
        """How far the point and its multipliers may go."""
        room = min(ratio(self.slack, step.slack), ratio(self.nu, step.nu))
        if self.T is None or step.T is None:
            return room
        return min(room, largest_step(self.gram, step.gram), largest_step(self.T, step.T))

    @cached_property
    def inverses(self) -> tuple[Matrix, Matrix]:
        """C^-1, and V with V C V = T."""
        assert self.T is not None
        root = np.linalg.cholesky(self.gram)
        inverse = solve_triangular(root, np.eye(len(root)), lower=True)
        values, turn = np.linalg.eigh(symmetric(root.T @ self.T @ root))
        half = inverse.T @ turn
        return inverse.T @ inverse, (half * np.sqrt(np.maximum(values, 0.0))) @ half.T

    @property
    def matrix(self) -> Matrix:
        """The part's share of Newton's matrix."""
        rows = self.part.rows
        K = (rows.T * (self.nu / self.slack)).dot(rows).toarray()
        return K if self.T is None else K + self.part.space.scaled(self.inverses[1])

    def right(self, mu: float, ahead: At | None) -> Vector:
        """What a step is to meet besides the slope, with the predictor's second-order term."""
        value = self.part.rows.T @ self._complement(mu, ahead)
        return value if self.T is None else value + mu * self.part.space.paired(self.inverses[0])

    def step(self, dx: Vector, mu: float, ahead: At | None) -> At:
        """The step of the multipliers that goes with one of x."""
        dnu = self._complement(mu, ahead) - self.nu * (self.part.rows @ dx) / self.slack - self.nu
        if self.T is None:
            return At(self.part, dx, dnu)
        inverse, V = self.inverses
        return At(self.part, dx, dnu, symmetric(mu * inverse - self.T - V @ self.part.space.gram(dx) @ V))

    def _complement(self, mu: float, ahead: At | None) -> Vector:
        return (mu - (0.0 if ahead is None else ahead.slack * ahead.nu)) / self.slack


def total(points: Iterable[At]) -> Vector:
    """The overlaps of all parts."""
    return np.sum([at.overlaps for at in points], axis=0)


def interior_point(points: Sequence[At], Q: Matrix, enough: float) -> tuple[Sequence[At], Matrix]:
    """The optimum over the sum of some parts.

    Args:
        points: where the parts begin, strictly inside; all in one space, one with ``onto`` or any number without.
        Q: the residual over lambda_Z to begin with, shape (J + 1, J), all probabilities positive.
        enough: the gap that suffices, in units of lambda_Z / 2.

    Returns:
        The best points and the residual over lambda_Z there.
    """
    space, waited, best, nearest = points[0].part.space, 0, (points, Q), np.inf
    for _ in range(_STEPS):
        D = space.stacked(total(points))
        here = OverlapPoint(space.q, space.model, Q, D, np.zeros(space.q.num_clusters, dtype=bool))
        gap, follow = sum(at.product for at in points), response(here)
        if follow is None:
            break
        X = here.logits - here.times(D)
        if space.model.bias is not None:
            X[:-1] -= Q[:-1] @ space.model.bias
        towards = follow(X)
        over = here.excess + here.bent(towards)
        slope = -space.paired(over[:-1], over[-1])
        off = max(float(np.abs(at.part.reduced(slope) - at.pull).max()) for at in points)
        distance = gap + _OFF * off * float(np.sum(D[:-1].diagonal() + D[-1]))
        if distance < nearest:
            best, nearest, waited = (points, Q), distance, 0
        waited += 1
        if gap <= enough or waited > _PATIENCE:
            break
        try:
            steps, dQ, length = _step(points, here, follow, towards, slope)
        except np.linalg.LinAlgError:  # this is as far as float64 goes
            break
        if length < _SHORTEST:
            break
        points = [at.moved(step, length) for at, step in zip(points, steps, strict=True)]
        Q = Q + length * dQ
    return best


def _step(
    points: Sequence[At], here: OverlapPoint, follow: Response, towards: Matrix, slope: Vector
) -> tuple[list[At], Matrix, float]:
    """The step of every part, that of Q, and how far to go."""
    space, onto, n = points[0].part.space, points[0].part.onto, len(points)
    gap, ends = sum(at.product for at in points), np.cumsum([at.x.size for at in points])[:-1]
    H, matrix = space.curvature(here, follow), np.asarray(block_diag(*(at.matrix for at in points)))
    matrix += np.tile(H, (n, n)) if onto is None else onto.T @ H @ onto
    solved = _solver(matrix)

    def direction(mu: float, ahead: Sequence[At] | None) -> tuple[list[At], Matrix]:
        known = [None] * n if ahead is None else ahead
        right = [at.right(mu, a) - at.part.reduced(slope) for at, a in zip(points, known, strict=True)]
        dx = np.split(solved(np.concatenate(right)), ends)
        steps = [at.step(d, mu, a) for at, d, a in zip(points, dx, known, strict=True)]
        return steps, towards - follow(here.times(space.stacked(total(steps))))

    def room(steps: Sequence[At], dQ: Matrix) -> tuple[float, float]:
        there = replace(here, Q=here.Q + dQ)
        inner = min(at.room(step) for at, step in zip(points, steps, strict=True))
        return inner, ratio(here.p.ravel(), (there.p - here.p).ravel())

    ahead, dQ = direction(0.0, None)
    length = min(1.0, *room(ahead, dQ))
    after = sum(at.moved(step, length).product for at, step in zip(points, ahead, strict=True))
    centre = float(np.clip((after / gap) ** 2, _LEAST, 1.0))
    mu = centre * gap / sum(at.part.count for at in points)
    steps, dQ = direction(mu, ahead if length > _LONG else None)
    inner, positive = room(steps, dQ)
    return steps, dQ, min(1.0, _INSIDE * inner, _POSITIVE * positive)


def _solver(matrix: Matrix) -> Callable[[Vector], Vector]:
    """The solution of a positive definite system, refined once.

    Raises:
        LinAlgError: the matrix is not positive definite, or not finite.
    """
    if not np.isfinite(matrix).all():
        raise np.linalg.LinAlgError("the matrix of the step is not finite")
    scale = 1 / np.sqrt(matrix.diagonal())
    unit, least = matrix * np.multiply.outer(scale, scale), _UNIT
    while True:
        try:
            factor = cho_factor(unit + least * np.eye(len(unit)))
            break
        except np.linalg.LinAlgError:
            least *= 10
            if least > 1:
                raise

    def solved(right: Vector) -> Vector:
        x = scale * cho_solve(factor, scale * right)
        return x + scale * cho_solve(factor, scale * (right - matrix @ x))

    return solved


def ratio(x: Vector, dx: Vector) -> float:
    """The largest a with x + a dx >= 0."""
    falls = dx < 0
    return float(np.min(-x[falls] / dx[falls], initial=np.inf))


def largest_step(X: Matrix, dX: Matrix) -> float:
    """The largest a with X + a dX positive semidefinite."""
    root = np.linalg.cholesky(X)
    half = solve_triangular(root, dX, lower=True)
    least = float(np.linalg.eigvalsh(symmetric(solve_triangular(root, half.T, lower=True)))[0])
    return -1 / least if least < 0 else np.inf


def symmetric(M: Matrix) -> Matrix:
    """M without the asymmetry that rounding has left."""
    return (M + M.T) / 2
