"""Features >= 0 with as many directions as classes: the residual's columns are orthonormal where directions are shared.

With C = H'H how much the classes' features overlap, the program is the minimum over C of

    phi(C) = max over residuals lambda_Z Q of  dual objective(Q) + (lambda_Z / 2) tr C(I - Q'Q),    C >= 0,

convex and smooth. Where C is positive definite nothing but its zeros binds: (Q'Q)_ij = 0 where i and j overlap, <= 0
where they do not, and every column that lives has length one. The other half says what C is: the logits of Q are
X = QC, up to the bias. Both together are one system in (Q, C), solved by Newton's method with a primal-dual active
set for the zeros of C. The curvature W of the dual is diagonal in the entries of Q (:mod:`.dual_model`), so that given
the step of C that of Q is one solve with diag(W_i) + C for each row i, and a multiplier for columns of P that sum to
one. What is left is an equation for the overlaps alone, symmetric and positive semidefinite: conjugate gradients.

Clusters bring one number more each: a row r below Q, the residual between siblings, and a row gamma below the
overlaps S, their features' contrasts; C = S + diag(gamma), with what siblings share on the diagonal of S.
Nothing guards the iteration but the positivity of the probabilities: where directions are fewer than classes, or its
certificate does not close, descent on the factors (:mod:`.shared`) takes over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import get_lapack_funcs

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms, with_overlaps
from collapsar.solver.certificate import balance_bias, certify_blocks
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.dual_model import DualModel, dual_model
from collapsar.solver.objective import predict
from collapsar.solver.shared import SharedResult, certify_atoms
from collapsar.solver.status import Result, Status
from collapsar.solver.symmetry import Quotient, centred
from collapsar.solver.witness import witness_of

__all__ = ["minimise_overlaps"]

_potrf, _potri = get_lapack_funcs(("potrf", "potri"), dtype=np.float64)

_SOME = 200  # clusters up to which this is tried: J^3 numbers are kept

_BALANCING = 20  # rounds of the start's scaling
_FALL = 0.9  # a probability may lose as much in a step
_LAST = 2e-5  # relative: Newton's method squares the error
_FORCING = 0.1
_ROUNDING = 1e-8
_TINY = np.finfo(np.float64).tiny


def minimise_overlaps(q: Quotient, *, tol: float = 1e-9, max_steps: int = 12) -> Result | None:
    """The optimum for features >= 0, where they have as many directions as living classes.

    Args:
        q: J clusters, nonnegative features.
        tol: relative duality gap to reach.
        max_steps: Newton steps at most; five or six are usual.

    Returns:
        The point, a :class:`SharedResult` where classes share directions; None where its certificate stays open.

    Example:
        >>> from collapsar.core.problem import Problem
        >>> from collapsar.solver.symmetry import quotient
        >>> result = minimise_overlaps(quotient(Problem("500x5,20x5", 0.0018, 0.001, features="nonnegative")))
        >>> result.status.name, f"{result.certificate.primal:.6f}"
        ('OPTIMAL', '0.903299')
    """
    at, num_steps = _optimum(q, max_steps) if q.num_clusters <= _SOME else (None, 0)
    parts = None if at is None else with_overlaps(q, at.D[:-1], at.D[-1])
    if at is None or parts is None:
        return None
    own, common = parts
    atoms = Atoms((own + common) @ at.Q[:-1].T, own * at.Q[-1], own, common)
    blocks = atoms.blocks(q, at.bias())
    blocks = centred(q, blocks if q.lambda_b == math.inf else balance_bias(q, blocks))
    if np.count_nonzero(at.D) <= q.num_clusters and not _diagonal(at.D)[q.sizes > 1].any():  # the column form
        certificate, found = certify_blocks(q, blocks), None
    else:
        witness = witness_of(q, predict(q, blocks)[0], *atoms.gram())
        certificate = certify_atoms(q, atoms, blocks.b, witness, search=False)
        found = atoms, witness
    if not certificate.relative_gap <= tol:
        return None
    if found is None:
        return Result(blocks, certificate, num_steps, Status.OPTIMAL)
    atoms, witness = found
    return SharedResult(blocks, certificate, num_steps, Status.OPTIMAL, atoms.price(q), atoms=atoms, witness=witness)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what is not finite is left to the general algorithm
def _optimum(q: Quotient, max_steps: int) -> tuple[_Point | None, int]:
    """Newton's method, and its steps; None where it got stuck."""
    model = dual_model(q)
    at = _Point(q, model, *_start(q, model))
    if not bool((at.p > 0).all()):
        return None, 0
    for step in range(1, max_steps + 1):
        moves = _newton_step(at)
        if moves is None:
            break
        dQ, dD = moves
        new = _Point(q, model, at.Q + dQ, at.D + dD)
        rise = new.p / at.p - 1
        fall, most = -float(rise.min()), float(np.abs(rise).max())
        if not math.isfinite(most):
            break
        if fall > _FALL:
            new = _Point(q, model, at.Q + _FALL / fall * dQ, at.D + _FALL / fall * dD)
        elif most <= _LAST and np.abs(dD).max() <= _LAST * np.abs(at.D).max():
            return new, step
        at = new
    return None, max_steps


@dataclass(frozen=True)
class _Point:
    """A residual Q, with r as its last row, and overlaps D, S with gamma as its last row: both (J + 1, J)."""

    q: Quotient
    model: DualModel
    Q: Matrix
    D: Matrix

    @property
    def contrasts(self) -> Vector:
        return self.q.sizes - 1

    @cached_property
    def p(self) -> Matrix:
        """Probabilities of the other classes, and of the own one in the last row; 1 for siblings that do not exist."""
        return _target(self.q) - self.model.slope.reshape(self.Q.shape) * _spread(self.Q, self.contrasts)

    @cached_property
    def logits(self) -> Matrix:
        """X with the bias still in it, and its like between siblings."""
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
        """Q'Q - I, and what the lengths of the columns of single classes exceed one by, k times."""
        over = self.Q[:-1].T @ self.Q[:-1]
        _diagonal(over)[:] -= 1
        return np.vstack([over, _diagonal(over) + self.contrasts * (self.Q[-1] ** 2 - 1)])

    def bent(self, dQ: Matrix) -> Matrix:
        """By how much ``excess`` moves."""
        out = np.empty_like(dQ)
        Y = self.Q[:-1].T.dot(dQ[:-1])
        np.add(Y, Y.T, out=out[:-1])
        out[-1] = _diagonal(out) + (2 * self.contrasts * self.Q[-1]) * dQ[-1]
        return out

    def times(self, D: Matrix) -> Matrix:
        """QC, and its like between siblings, at other overlaps."""
        C, out = D[:-1].copy(), np.empty_like(D)
        _diagonal(C)[:] += D[-1]
        np.dot(self.Q[:-1], C, out=out[:-1])
        out[-1] = self.contrasts * self.Q[-1] * D[-1]
        return out

    def free(self) -> NDArray[np.bool_]:
        """The overlaps that are not 0: of two complementary numbers, a correlation and Q'Q, the larger tells."""
        k, c = self.q.sizes, self.contrasts
        s, slack = _diagonal(self.D), -_diagonal(self.excess)
        square = np.maximum(self.D[-1] + s / k, _TINY)  # of one class
        size = np.sqrt(square)
        several = k > 1
        # between siblings the complement is shared by all k - 1 of them
        own = s > slack * np.where(several, k / np.maximum(c, 1), 1.0) * square
        contrast = several & (self.D[-1] > -self.excess[-1] / np.maximum(c, 1) * square)
        alive = own | contrast
        free = (self.D[:-1] > -self.excess[:-1] * size[:, None] * size) & alive[:, None] & alive
        _diagonal(free)[:] = own
        return np.vstack([free, contrast])

    def bias(self) -> Vector:
        """b, (J,)."""
        q, model, Q = self.q, self.model, self.Q[:-1]
        if q.lambda_b == math.inf:
            return np.zeros(q.num_clusters)
        if model.fixed is None:
            return Q @ model.g / model.root * (q.lambda_z / q.lambda_b)
        # what of the logits the features do not explain
        return (self.logits[:-1] - Q @ self.gram) @ model.g / (model.root * (model.g @ model.g))


def _diagonal(x: NDArray) -> NDArray:
    """A view of the diagonal of the first J rows."""
    J = x.shape[1]
    return x.reshape(-1)[: J * J : J + 1]


def _target(q: Quotient) -> Matrix:
    """Y in the layout of the probabilities."""
    J = q.num_clusters
    Y = np.full((J + 1, J), q.smoothing / q.num_classes)
    Y[-1] += 1 - q.smoothing
    _diagonal(Y)[q.sizes == 1] = 1.0
    return Y


def _spread(Q: Matrix, contrasts: Vector) -> Matrix:
    """What of Q and r each probability feels."""
    out, own = Q.copy(), _diagonal(Q)
    _diagonal(out)[:] -= Q[-1]
    out[-1] = own + contrasts * Q[-1]
    return out


def _gathered(x: Matrix, contrasts: Vector) -> Matrix:
    """The transpose of :func:`_spread`."""
    out = x.copy()
    _diagonal(out)[:] += x[-1]
    out[-1] = contrasts * x[-1] - _diagonal(x)
    return out


class _Response(NamedTuple):
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
        out, r = X.copy(), X[-1]
        Q = out[:-1]
        _diagonal(Q)[:] -= self.mixed / self.turn * r  # r is eliminated
        Q[:] = np.matmul(self.inverse, Q[:, :, None])[:, :, 0]
        Q -= self.u[:, None] * np.matmul(self.inverse, self.multiplier.dot(self.u.dot(Q)))
        out[-1] = (r - self.mixed * _diagonal(Q)) / self.turn
        return out

    def diagonal(self, at: _Point) -> Matrix:
        """About that of the equation for the overlaps."""
        out = np.empty_like(at.Q)
        first = (at.Q[:-1] ** 2).T @ np.diagonal(self.inverse, axis1=1, axis2=2)
        np.add(first, first.T, out=out[:-1])
        _diagonal(out)[:] *= 2
        out[-1] = _diagonal(out) + 2 * (at.contrasts * at.Q[-1]) ** 2 / self.turn
        return out


def _response(at: _Point) -> _Response | None:
    """None where W + C is not positive definite."""
    J, model, c = at.q.num_clusters, at.model, at.contrasts
    W = (model.to_x * model.slope).reshape(at.p.shape) / at.p
    own, sibling = W[-1], _diagonal(W).copy()
    mixed, turn = c * own - sibling, np.where(c > 0, c * c * own + sibling + c * at.D[-1], 1.0)
    _diagonal(W)[:] += own - mixed**2 / turn
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
    return _Response(inverse, u, multiplier + np.triu(multiplier, 1).T, mixed, turn)


def _newton_step(at: _Point) -> tuple[Matrix, Matrix] | None:
    """By how much Q and the overlaps should move; None where the equations cannot be solved."""
    model, X = at.model, at.logits
    if model.bias is not None:
        X = X.copy()
        X[:-1] -= at.Q[:-1].dot(model.bias)
    response, free = _response(at), at.free()
    if response is None:
        return None
    dD = np.where(free, 0.0, -at.D)
    dQ = response(X - at.times(at.D + dD))
    error = np.where(free, at.excess + at.bent(dQ), 0.0)
    inverse = np.where(free, 1 / response.diagonal(at), 0.0).ravel()

    def product(v: Vector) -> Vector:
        return np.where(free, at.bent(response(at.times(v.reshape(dD.shape)))), 0.0).ravel()

    forcing = min(_FORCING, max(float(np.abs(error).max()), _ROUNDING))
    found = truncated_newton(product, lambda v: inverse * v, -error.ravel(), radius=math.inf, forcing=forcing)
    step = found.v.reshape(dD.shape)
    return dQ - response(at.times(step)), dD + step


def _start(q: Quotient, model: DualModel) -> tuple[Matrix, Matrix]:
    """Errors in detailed balance, which no bias would change, as many as give columns of length one.

    Samples of class j are taken for class i in the number x_i x_j; without a bias, for all classes alike. A class that
    would have to be wrong more often than without features has none.
    """
    k, J, share = q.sizes, q.num_clusters, q.share * q.temperatures
    biased = q.lambda_b < math.inf
    total = float(k @ share)
    x = want = most = share / math.sqrt(total)
    taken = np.ones(J)
    for _ in range(_BALANCING if biased else 1):
        taken = x if biased else taken
        rest = k @ taken - taken
        felt = q.scales * taken
        want = q.lambda_z * np.sqrt(q.mass / (k @ felt**2 - felt**2 + (q.scales * rest) ** 2))
        most = share * (1 - share / total) / rest if biased else share / q.num_classes
        x = np.sqrt(x * np.minimum(want, most)) if biased else np.minimum(want, most)
    taken = x if biased else taken
    wrong = np.vstack([-np.multiply.outer(taken, x / share), x / share * (k @ taken - taken)])
    slope = model.slope.reshape(wrong.shape)
    spread = wrong / np.where(slope > 0, slope, 1.0)
    sibling = np.where(k > 1, _diagonal(spread), spread[-1])
    Q = spread.copy()
    Q[-1] = (spread[-1] - sibling) / k
    _diagonal(Q)[:] = sibling + Q[-1]
    D = np.zeros_like(Q)
    X = _Point(q, model, Q, D).logits
    if biased:
        b = (np.log(x) - q.offsets) / (q.scales * q.temperatures.mean())
        b -= (k / q.scales) @ b / ((k / q.scales) @ (1 / q.scales)) / q.scales
        X[:-1] -= np.multiply.outer(model.root * b, model.g)
    square = np.maximum(np.sum(Q * X, axis=0), 0.0) / k * (want <= most)
    _diagonal(D)[:] = np.where(k > 1, 0.0, square)
    D[-1] = np.where(k > 1, square, 0.0)
    return Q, D
