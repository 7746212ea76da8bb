"""Any rank: the residual is lambda_Z times a contraction, found by Newton's method on the dual.

The dual of the signed program is a smooth concave function of Q = R / lambda_Z on the unit ball of the spectral norm,
with gradient X (:mod:`.dual_model`). So Q is optimal iff it is the projection of N = Q + tX onto that ball, for any
t > 0; with N = A diag(nu) B' the projection cuts the singular values at 1, and those above 1 are the directions that
live. Newton's method on this equation (semismooth: Qi & Sun 1993) moves Q by A(asked + Y)B', where asked is what the
projection asks for and Y solves

    Y_ij (e_i + e_j) / (t |c_i -+ c_j|) + [A'(W o A(Y + asked)B')B]_ij = asked_ij / t,      c = min(nu, 1), e = nu - c,

with - for the symmetric and + for the skew part of each pair; W is the curvature of the loss's conjugate, diagonal in
the entries, with the bias's part beside it. Between two directions that live only the skew part moves, between two dead
ones everything moves freely. A step costs one SVD and a few products of J x J matrices, and no step needs to know the
rank: the first projection usually has it. If probabilities fall below zero in a step, their logarithms take it instead;
if that leads nowhere, as with a bias that costs next to nothing, a second try from the start goes as far as they
stay positive. Nothing else guards it: if the certificate does not close, the general algorithm takes over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.special import wrightomega

from collapsar.core.types import Matrix, Vector
from collapsar.solver.certificate import GAP_FLOOR
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.dual_model import DualModel, dual_model
from collapsar.solver.symmetry import Blocks, Quotient

(_gesdd,) = get_lapack_funcs(("gesdd",), dtype=np.float64)

Shortened = Callable[[Quotient, DualModel, tuple[Matrix, Vector], Matrix, Vector], tuple[Matrix, Vector]]
"""Takes Q, p, a step of Q and the fraction of p that it would change, and makes a shorter step."""

# Newton's method squares the error: once a step's decrement is _BEFORE_LAST of the objective, it is solved to _LAST,
# and until what should be dead of X is _LEFT of it: dead directions count to first order in the gap.
# What Q outside the ball gains, and X where it should be dead, count to first order; the step leaves their squares.
_BEFORE_LAST = 1e-10
_OUTSIDE = 1e-9
_NOISE = 1e-5
_LAST = 1e-20
_LEFT = 1e-12
_LOOSE = 0.1
_LENGTH = 2.0  # t, in units of the inverse of the dual's steepest curvature
_FLOOR = 0.01  # share of its probability without features that a class keeps at the start
_FALL = 0.9  # a probability may lose this share in a step; beyond it, its logarithm takes the step, as far as _FAR
_FAR = 2.0
_LOST = 1e4  # multiple of itself by which a probability would fall: too much for logarithms to help
_NORMALISER = 4  # Newton steps for the normaliser of a guess
_ROUNDING = 1e-13  # nats: scores of this size are zero


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # what is not finite is left to the general algorithm
def contraction_point(q: Quotient, max_steps: int = 24) -> tuple[Blocks, int] | None:
    """The point whose residual is the contraction that its own logits ask for.

    Args:
        q: J clusters, ``features == "signed"``, biases at one price.
        max_steps: Newton steps at most, half of them cut short.

    Returns:
        The point and the steps to it, or None if the method got stuck. Only a certificate can tell whether the
        point is the optimum.
    """
    if q.num_clusters == 1:
        return None
    model = dual_model(q)
    start = _start(q, model)
    if not min(start[1].tolist()) > 0:
        return None
    for shortened in (_in_logarithms, _inside):
        found = _newton(q, model, start, max_steps, shortened)
        if found is not None:
            return found
    return None


def _newton(
    q: Quotient, model: DualModel, start: tuple[Matrix, Vector], max_steps: int, shortened: Shortened
) -> tuple[Blocks, int] | None:
    """Newton's method from Q and p; a step that takes most of a probability away is cut short."""
    J, (Q, p), cut = q.num_clusters, start, 0
    frames = _complement(model.u), None if model.fixed is None else _complement(model.fixed)
    for step in range(1, max_steps + 1):
        system = _system(model, frames, Q, p)
        if system is None:
            return None
        loss = -float((q.sizes * q.share).dot(np.log(p[J * J :])))
        change, last = system.step(max(loss, GAP_FLOOR) / q.lambda_z)
        moved = model.probabilities(Q + change)
        ratio = moved / p - 1
        least = float(ratio.min())
        if least > -_FALL:
            Q, p = Q + change, moved
            if last:
                return _without_rounding(model.blocks(q, Q, p)), step
            continue
        cut += 1
        if not least > -_LOST or 2 * cut > max_steps:
            return None
        Q, p = shortened(q, model, (Q, p), change, ratio)
    return None


def _in_logarithms(
    q: Quotient, model: DualModel, at: tuple[Matrix, Vector], change: Matrix, ratio: Vector
) -> tuple[Matrix, Vector]:
    """Where probabilities fall, their logarithms take the step."""
    del change
    return _nearest(q, model, at[1] * np.where(ratio < 0, np.exp(np.clip(ratio, -_FAR, 0.0)), 1 + ratio))


def _inside(
    q: Quotient, model: DualModel, at: tuple[Matrix, Vector], change: Matrix, ratio: Vector
) -> tuple[Matrix, Vector]:
    """As much of the step as leaves every probability a tenth of its value."""
    del q
    Q = at[0] + _FALL / -float(ratio.min()) * change
    return Q, model.probabilities(Q)


def _without_rounding(point: Blocks) -> Blocks:
    """The point, with the column of a class exactly zero if nothing but rounding is left of it."""
    left = np.maximum(np.abs(point.alpha), np.abs(point.C).max(axis=0)) > _ROUNDING
    return Blocks(left * point.alpha, left * point.C, point.b)


class _System(NamedTuple):
    """The Newton system at a point, in the singular vectors of N.

    Attributes:
        A, B: orthogonal (J, J), the null directions of Q last.
        W: the curvature in the entries, (J, J).
        bias: B' times the root of the bias's part of the curvature, (J,); None if b has no price.
        rank: how many singular values of N exceed 1.
        free: whether the bias is free, so that the last column stays as it is.
        asked: what the projection of N asks for, (J, J).
        asked_t: the same divided by t.
        beyond: e / t, (J,).
        same, swap: what the projection adds to the curvature, of Y and of Y', (J, J).
        inverse, across: the inverse of the diagonal of both, for Y and Y', (J, J).
        low_rank: for the bias's part the inverse of its capacitance, and ``inverse`` and ``across`` times it; or None.
    """

    A: Matrix
    B: Matrix
    W: Matrix
    bias: Vector | None
    rank: int
    free: bool
    asked: Matrix
    asked_t: Matrix
    beyond: Vector
    same: Matrix
    swap: Matrix
    inverse: Matrix
    across: Matrix
    low_rank: tuple[Matrix, Matrix, Matrix] | None

    def step(self, unit: float) -> tuple[Matrix, bool]:
        """By how much Q should move, and whether that is all there is to do; the dual's objective is about ``unit``."""
        gradient = self._projected(self._curved(self.asked) - self.asked_t).ravel()
        decrement = float(gradient.dot(self._precondition(gradient))) / unit
        outside = float(self.beyond.dot(np.abs(self.asked.diagonal()))) / unit
        noise = math.sqrt(gradient.dot(gradient)) / unit
        last = decrement <= _BEFORE_LAST and outside <= _OUTSIDE and noise <= _NOISE
        forcing = min(_LOOSE, decrement**0.4)
        if last:
            forcing = min(math.sqrt(_LAST / max(decrement, 100 * _LAST)), _LEFT / max(noise, 1e4 * _LEFT))
        Y = truncated_newton(self._product, self._precondition, gradient, radius=math.inf, forcing=forcing).v
        return self.A.dot(Y.reshape(self.A.shape) + self.asked).dot(self.B.T), last

    def _projected(self, Y: Matrix) -> Matrix:
        r = self.rank
        live = Y[:r, :r]
        Y[:r, :r] = 0.5 * (live - live.T)
        Y[-1] = 0.0
        if self.free:
            Y[:, -1] = 0.0
        return Y

    def _curved(self, E: Matrix) -> Matrix:
        Y = self.A.T.dot(self.W * self.A.dot(E).dot(self.B.T)).dot(self.B)
        if self.bias is not None:
            Y += np.multiply.outer(E.dot(self.bias), self.bias)
        return Y

    def _product(self, v: Vector) -> Vector:
        E = v.reshape(self.A.shape)
        return (self._projected(self._curved(E)) + self.same * E + self.swap * E.T).ravel()

    def _precondition(self, v: Vector) -> Vector:
        """The inverse of all but what W has off its diagonal."""
        E = v.reshape(self.A.shape)
        Y = self.inverse * E + self.across * E.T
        if self.bias is not None and self.low_rank is not None:
            capacity, along, crossing = self.low_rank
            y = capacity.dot(Y.dot(self.bias))
            Y -= along * y[:, None] + crossing * y
        return Y.ravel()


def _system(model: DualModel, frames: tuple[Matrix, Matrix | None], Q: Matrix, p: Vector) -> _System | None:
    """The Newton system at Q; None if it is not finite."""
    J, (left, right) = len(Q), frames
    W = model.curvature(p)
    t = _LENGTH / float(W.max())
    N = left.T.dot(Q + t * model.gradient(Q, p))
    if right is not None:
        N = N.dot(right)
    if not np.isfinite(N).all():
        return None
    U, nu, Vt, _ = _gesdd(N)
    A, B, nu = np.empty((J, J)), Vt.T, np.append(nu, 0.0)
    A[:, :-1], A[:, -1] = left.dot(U), model.u / math.sqrt(model.u.dot(model.u))
    if right is not None and model.fixed is not None:
        B = np.empty((J, J))
        B[:, :-1], B[:, -1] = right.dot(Vt.T), model.fixed
    c = np.minimum(nu, 1.0)
    e, r = (nu - c) / t, int(np.count_nonzero(nu > 1))
    asked = -A.T.dot(Q).dot(B)
    asked.ravel()[:: J + 1] += c
    both = e[:, None] + e
    odd = both / np.maximum(c[:, None] + c, 1e-300)
    even = both / np.maximum(np.abs(c[:, None] - c), 1e-12)
    same, swap = 0.5 * (even + odd), 0.5 * (even - odd)
    same[:r, :r], swap[:r, :r] = odd[:r, :r], 0.0  # only the skew part moves there
    first = (A * A).T.dot(W).dot(B * B) + same
    first[:r, :r] = 0.5 * (first[:r, :r] + first[:r, :r].T)
    determinant = first * first.T - swap * swap
    inverse, across = first.T / determinant, -swap / determinant
    inverse[:r, :r] *= 0.5
    across[:r, :r] = -inverse[:r, :r]
    inverse[-1], across[-1], across[:, -1] = 0.0, 0.0, 0.0
    bias = low_rank = None
    if model.bias is not None:
        bias = B.T.dot(model.bias_root)
        capacity = across * np.multiply.outer(bias, bias)
        capacity.ravel()[:: J + 1] += 1 + inverse.dot(bias * bias)
        low_rank = np.linalg.inv(capacity), inverse * bias, across * bias[:, None]
    free = right is not None
    return _System(A, B, W, bias, r, free, asked, asked / t, e, same, swap, inverse, across, low_rank)


def _start(q: Quotient, model: DualModel) -> tuple[Matrix, Vector]:
    """Predictions without features, whose residual is brought into the ball as far as probabilities stay positive."""
    J = q.num_clusters
    logits = q.offsets
    if q.lambda_b < math.inf:
        logits = logits + _bias_alone(q, q.share * q.temperatures * (1 - _ahead(q, model)))
    prior = np.exp(logits - logits.max())
    Q, p = _nearest(q, model, np.concatenate([np.repeat(prior, J), prior]))
    if not np.isfinite(Q).all():
        return Q, np.zeros_like(p)
    U, sigma, Vt, _ = _gesdd(Q)
    clipped = model.probabilities((U * np.minimum(sigma, 1.0)).dot(Vt))
    return _nearest(q, model, np.maximum(clipped, _FLOOR * p))


def _ahead(q: Quotient, model: DualModel) -> Vector:
    """By how much a class's own probability exceeds its siblings'; 0 if it has none."""
    J = q.num_clusters
    return np.where(q.sizes == 1, 0.0, model.base[J * J :] - model.base[: J * J : J + 1])


def _bias_alone(q: Quotient, share: Vector) -> Vector:
    """Logits of the best bias without features, up to a constant; a guess if temperatures differ."""
    share = share / q.sizes.dot(share)
    if q.lambda_b == 0:
        return np.log(share) - q.offsets
    # share - exp(x + offset - v) = price x for every class, with v such that probabilities sum to one: k'(price x) = 0
    price, v = q.lambda_b / q.scales**2, math.log(q.num_classes)
    weight = q.sizes * price
    x = np.zeros_like(share)
    for _ in range(_NORMALISER):
        omega = wrightomega(share / price + q.offsets - v - np.log(price))
        x = share / price - omega
        v -= float(weight.dot(x) / weight.dot(omega / (1 + omega)))
    return x


def _nearest(q: Quotient, model: DualModel, p: Vector) -> tuple[Matrix, Vector]:
    """Q and p whose columns sum to one, with probabilities of the other classes in the ratios of these."""
    J, k = q.num_clusters, q.sizes
    ahead = _ahead(q, model)
    other = p[: J * J].reshape(J, J).copy()
    diagonal = other.ravel()[:: J + 1]
    diagonal[k == 1] = p[J * J :][k == 1]
    other *= (1 - ahead) / k.dot(other)
    slope = model.slope[: J * J].reshape(J, J)
    Q = (model.base[: J * J].reshape(J, J) - other) / np.where(slope == 0, 1.0, slope)
    Q.ravel()[:: J + 1] = (model.base[J * J :] - diagonal - ahead) / model.slope[J * J :]
    return Q, model.probabilities(Q)


def _complement(v: Vector) -> Matrix:
    """An orthonormal basis of the complement of v, (J, J - 1): Householder's reflection."""
    w = v / math.sqrt(v.dot(v))
    w[-1] += math.copysign(1.0, w[-1])
    H = np.eye(w.size) - np.multiply.outer(w, w * (2 / w.dot(w)))
    return H[:, :-1]
