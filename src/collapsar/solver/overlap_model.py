"""A point of Newton's method on the overlaps (:mod:`.overlaps`): residual, overlaps, and how one follows the other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from collapsar.core.types import Matrix, Vector
from collapsar.solver.dual_model import DualModel
from collapsar.solver.symmetry import Quotient

_potrf, _potri = get_lapack_funcs(("potrf", "potri"), dtype=np.float64)

_LEAST = 1e-3  # of a typical squared feature: classes that vanish are measured by it


@dataclass(frozen=True)
class OverlapPoint:
    """A residual Q, with r as its last row, and overlaps D, which is S with gamma as its last row: both (J + 1, J).

    ``lost``, (J,), are the classes without a direction of their own, whose features lie among those of the others.
    """

    q: Quotient
    model: DualModel
    Q: Matrix
    D: Matrix
    lost: NDArray[np.bool_]

    @property
    def contrasts(self) -> Vector:
        """How many contrasts each cluster has, k - 1."""
        return self.q.sizes - 1

    @cached_property
    def p(self) -> Matrix:
        """Probabilities of the other classes, and of the own one in the last row; 1 for siblings that do not exist."""
        return _target(self.q) - self.model.slope.reshape(self.Q.shape) * _spread(self.Q, self.contrasts)

    @cached_property
    def logits(self) -> Matrix:
        """X with the bias still in it, and its counterpart between siblings."""
        model, J = self.model, self.q.num_clusters
        X = _gathered((model.to_x * np.log(self.p.ravel())).reshape(self.p.shape), self.contrasts)
        if model.shift is not None:
            X[:-1] += model.shift.reshape(J, J)
        return X

    @cached_property
    def gram(self) -> Matrix:
        """C, how much the features overlap on the clusters."""
        return self.D[:-1] + np.diag(self.D[-1])

    @cached_property
    def excess(self) -> Matrix:
        """Q'Q - I, and k times the excess over one of the lengths of single classes' columns."""
        over = self.Q[:-1].T @ self.Q[:-1]
        diagonal(over)[:] -= 1
        return np.vstack([over, diagonal(over) + self.contrasts * (self.Q[-1] ** 2 - 1)])

    def bent(self, dQ: Matrix) -> Matrix:
        """By how much ``excess`` moves."""
        out = np.empty_like(dQ)
        Y = self.Q[:-1].T.dot(dQ[:-1])
        np.add(Y, Y.T, out=out[:-1])
        out[-1] = diagonal(out) + (2 * self.contrasts * self.Q[-1]) * dQ[-1]
        return out

    def times(self, D: Matrix) -> Matrix:
        """QC, and its counterpart between siblings, at other overlaps."""
        C, out = D[:-1].copy(), np.empty_like(D)
        diagonal(C)[:] += D[-1]
        np.dot(self.Q[:-1], C, out=out[:-1])
        out[-1] = self.contrasts * self.Q[-1] * D[-1]
        return out

    @cached_property
    def leaning(self) -> Leaning | None:
        """The lost classes; None if every class has a direction of its own."""
        if not self.lost.any():
            return None
        has, lost = np.flatnonzero(~self.lost), np.flatnonzero(self.lost)
        places = Places.of(has, lost)
        gram = self.gram.reshape(-1)
        inverse = np.linalg.inv(gram[places.own])
        touch = (gram[places.lone] > 0) | np.eye(lost.size, dtype=bool)
        slack, turn = np.linalg.eigh(np.where(touch, -self.excess.reshape(-1)[places.lone], 0.0))
        slack = (turn * np.maximum(slack, 0.0)) @ turn.T
        V = inverse @ gram[places.mixed]
        return Leaning(has, lost, places, V, inverse.astype(np.float64), touch, slack)

    @cached_property
    def pull(self) -> Matrix:
        """By how much more overlap would pay, with what lost classes owe to the others: 0 where overlaps are free."""
        return self.excess if self.leaning is None else self.leaning.reduced(self.excess)

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """The overlaps that are not 0: of two complementary numbers, a correlation and ``pull``, the larger tells."""
        k, c, several, has = self.q.sizes, self.contrasts, self.q.sizes > 1, ~self.lost
        s = diagonal(self.D)
        square = np.maximum(self.D[-1] + s / k, 0.0)  # of one class
        square = np.maximum(square, _LEAST * np.mean(square))
        size = np.sqrt(square)
        # between siblings the complement is shared by all k - 1 of them
        contrast = has & several & (self.D[-1] > -self.pull[-1] / np.maximum(c, 1) * square)
        own = has & (~several | (s > -diagonal(self.pull) * k / np.maximum(c, 1) * square))
        free = (self.D[:-1] > -self.pull[:-1] * size[:, None] * size) & (has | has[:, None])
        diagonal(free)[:] = own
        return np.vstack([free, contrast])

    def bias(self) -> Vector:
        """b, (J,)."""
        q, model, Q = self.q, self.model, self.Q[:-1]
        if q.lambda_b == math.inf:
            return np.zeros(q.num_clusters)
        if model.fixed is None:
            return Q @ model.g / model.root * (q.lambda_z / q.lambda_b)
        # what the features do not explain of the logits
        return (self.logits[:-1] - Q @ self.gram) @ model.g / (model.root * (model.g @ model.g))


def diagonal(x: NDArray) -> NDArray:
    """A view of the diagonal of the first J rows."""
    J = x.shape[1]
    return x.reshape(-1)[: J * J : J + 1]


def _target(q: Quotient) -> Matrix:
    """Y in the layout of the probabilities."""
    J = q.num_clusters
    Y = np.full((J + 1, J), q.smoothing / q.num_classes)
    Y[-1] += 1 - q.smoothing
    diagonal(Y)[q.sizes == 1] = 1.0
    return Y


def _spread(Q: Matrix, contrasts: Vector) -> Matrix:
    """What each probability feels of Q and r."""
    out, own = Q.copy(), diagonal(Q)
    diagonal(out)[:] -= Q[-1]
    out[-1] = own + contrasts * Q[-1]
    return out


def _gathered(x: Matrix, contrasts: Vector) -> Matrix:
    """The transpose of :func:`_spread`."""
    out = x.copy()
    diagonal(out)[:] += x[-1]
    out[-1] = contrasts * x[-1] - diagonal(x)
    return out


class Places(NamedTuple):
    """Where overlaps stand in an array of J columns read row by row: faster to index than by row and column.

    Attributes:
        own, mixed, lone: between classes with a direction, between the two kinds, (r, h), between classes without one.
        felt: those that the overlaps between lost classes pull at: ``mixed``, its transpose, ``own``, and the last row.
    """

    own: NDArray[np.intp]
    mixed: NDArray[np.intp]
    lone: NDArray[np.intp]
    felt: NDArray[np.intp]

    @classmethod
    def of(cls, has: NDArray[np.intp], lost: NDArray[np.intp]) -> Places:
        """The places for the classes with and without a direction of their own."""
        J = has.size + lost.size
        row, other = has[:, None] * J, lost[:, None] * J
        own, mixed = row + has, row + lost
        felt = np.concatenate([mixed.ravel(), (other + has).T.ravel(), own.ravel(), J * J + has])
        return cls(own, mixed, other + lost, felt)


class Leaning(NamedTuple):
    """Classes whose features lie among those of others: C = [A, AV; V'A, V'AV], with a slack T where C is singular.

    Attributes:
        has, lost: the classes with and without a direction of their own, r and h of them.
        places: where their overlaps stand.
        V: (r, h).
        inverse: the inverse of A, (r, r).
        touch: whether two lost classes overlap, (h, h).
        slack: T between lost classes, by how much their columns are shorter than one, (h, h).
    """

    has: NDArray[np.intp]
    lost: NDArray[np.intp]
    places: Places
    V: Matrix
    inverse: Matrix
    touch: NDArray[np.bool_]
    slack: Matrix

    def _parts(self, D: Matrix) -> tuple[Matrix, Matrix]:
        flat = D.reshape(-1)
        A = flat[self.places.own]
        A.reshape(-1)[:: self.has.size + 1] += D[-1, self.has]
        return A, flat[self.places.mixed]

    def spread(self, D: Matrix) -> Matrix:
        """A change of the overlaps, with the change that follows for those between lost classes."""
        A, B = self._parts(D)
        out, C = D.copy(), B.T @ self.V
        out.reshape(-1)[self.places.lone] = C + C.T - self.V.T @ A @ self.V
        out[-1, self.lost] = 0.0
        return out

    def reduced(self, Y: Matrix) -> Matrix:
        """The transpose of :meth:`spread`."""
        owed = self.V @ np.where(self.touch, Y.reshape(-1)[self.places.lone], 0.0)
        return self._with(Y, owed, -owed @ self.V.T)

    def bend(self, D: Matrix) -> Matrix:
        """The curvature of the overlaps between lost classes, at their slack."""
        A, B = self._parts(D)
        bent = self.inverse @ (B - A @ self.V) @ self.slack
        back = bent @ self.V.T
        return self._with(np.zeros_like(D), bent, -back - back.T)

    def scale(self) -> Matrix:
        """An estimate of the diagonal of :meth:`bend`."""
        J = self.has.size + self.lost.size
        own, squares, slack = self.inverse.diagonal(), self.V**2, self.slack.diagonal()
        A = np.multiply.outer(own, squares @ slack)
        return self._with(np.zeros((J + 1, J)), np.multiply.outer(own, slack), A + A.T)

    def _with(self, Y: Matrix, B: Matrix, A: Matrix) -> Matrix:
        out, b = Y.copy(), B.ravel()
        out.reshape(-1)[self.places.felt] += np.concatenate([b, b, A.ravel(), A.diagonal()])
        return out


class Response(NamedTuple):
    """How Q follows what is asked of X: the inverse of W + C in every row, with columns of P that sum to one.

    Attributes:
        inverse: of W + C for each row of Q, shape (J, J, J), without what a free bias fixes.
        u: the null vector of Q', (J,).
        multiplier: the inverse of what a multiplier of u moves, (J, J).
        mixed, turn: curvature of the residual between siblings, with the diagonal of Q and alone, (J,).
    """

    inverse: NDArray[np.float64]
    u: Vector
    multiplier: Matrix
    mixed: Vector
    turn: Vector

    def __call__(self, X: Matrix) -> Matrix:
        """By how much Q and r move if X is to move by this."""
        out, r = X.copy(), X[-1]
        Q = out[:-1]
        diagonal(Q)[:] -= self.mixed / self.turn * r  # r is eliminated
        Q[:] = np.matmul(self.inverse, Q[:, :, None])[:, :, 0]
        Q -= self.u[:, None] * np.matmul(self.inverse, self.multiplier.dot(self.u.dot(Q)))
        out[-1] = (r - self.mixed * diagonal(Q)) / self.turn
        return out

    def scale(self, at: OverlapPoint) -> Matrix:
        """An estimate of the diagonal of the equation for the overlaps."""
        out = np.empty_like(at.Q)
        first = (at.Q[:-1] ** 2).T @ np.diagonal(self.inverse, axis1=1, axis2=2)
        np.add(first, first.T, out=out[:-1])
        diagonal(out)[:] *= 2
        out[-1] = diagonal(out) + 2 * (at.contrasts * at.Q[-1]) ** 2 / self.turn
        return out


def response(at: OverlapPoint) -> Response | None:
    """The response at a point; None if W + C is not positive definite."""
    J, model, c = at.q.num_clusters, at.model, at.contrasts
    W = (model.to_x * model.slope).reshape(at.p.shape) / at.p
    own, sibling = W[-1], diagonal(W).copy()
    mixed, turn = c * own - sibling, np.where(c > 0, c * c * own + sibling + c * at.D[-1], 1.0)
    diagonal(W)[:] += own - mixed**2 / turn
    inverse = np.empty((J, J, J))
    inverse[:] = at.gram if model.bias is None else at.gram + model.bias
    inverse.reshape(J, J * J)[:, :: J + 1] += W[:-1]
    for row in inverse:  # one by one: six times as fast as numpy.linalg.inv
        factor, info = _potrf(row.T, lower=1, overwrite_a=1)
        if info:
            return None
        _potri(factor, lower=1, overwrite_c=1)
    inverse = np.triu(inverse)
    inverse += np.triu(inverse, 1).transpose(0, 2, 1)
    capacity, g, u = 0.0, model.fixed, model.u
    if g is not None:
        along = inverse @ g
        inverse -= (along / (along @ g)[:, None])[:, :, None] * along[:, None, :]
        capacity = np.multiply.outer(g, g)
    moved = np.tensordot(u * u, inverse, 1) + capacity
    factor, info = _potrf(moved)
    if info:
        return None
    multiplier = np.triu(_potri(factor)[0])
    return Response(inverse, u, multiplier + np.triu(multiplier, 1).T, mixed, turn)
