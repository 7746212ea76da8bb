"""The Newton system of the factored nuclear-norm program, with its gauge eliminated.

At X = U V' = A diag(sigma) B', U = A sigma^(1/2), V = B sigma^(1/2), the factors' share of the second derivative,
lambda(||dU||^2 + ||dV||^2) - 2 <R, dU dV'>, minimised over all (dU, dV) that give the same dX = A M B', is diagonal in
(M_ij + M_ji)/sqrt 2 and (M_ij - M_ji)/sqrt 2 with weights

    even:  1 / (sigma_j / (lambda - rho_i) + sigma_i / (lambda - rho_j)),    odd: the same with lambda + rho,

rho = diag(A'RB). Neither vanishes, except that even = 0 where both singular values live: there only the loss curves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.hessian import LossHessian, loss_hessian
from collapsar.solver.objective import Columns, Residual, predict, residual
from collapsar.solver.symmetry import Blocks, Quotient, centred

_TINY = 1e-300
_SMALL = 64  # up to this many clusters float64 costs nothing extra


@dataclass(frozen=True)
class Point:
    """X = weight * C, (J, J); y_j = sqrt(k_j - 1) alpha_j sqrt(m_j), (J,); b, (J,); and what follows from them.

    ``smooth`` is the loss plus the penalty of the bias, P the softmax, R its residual.
    """

    X: Matrix
    y: Vector
    b: Vector
    smooth: float
    P: Columns
    R: Residual

    def blocks(self, q: Quotient) -> Blocks:
        """The same point as blocks of Z."""
        return centred(q, Blocks(self.y / _contrast_norm(q), self.X / q.weight, self.b))


@dataclass(frozen=True)
class Basis:
    """A, B orthogonal (J, J); sigma (J,) decreasing with ``rank`` positive values: X = A diag(sigma) B'."""

    A: Matrix
    sigma: Vector
    B: Matrix
    rank: int


@dataclass(frozen=True)
class Direction:
    """A step (M in the basis, y, b); along it the model changes by slope t + curvature t^2 / 2."""

    M: Matrix
    y: Vector
    b: Vector
    slope: float
    curvature: float
    norm: float


@dataclass(frozen=True)
class NewtonSystem:
    """Gradient, second derivative and preconditioner at a point.

    Attributes:
        q: the problem.
        x: the point.
        basis: its X.
        rho: diag(A'RB), shape (J,).
        gradient: flat, M (or dX = A M B') then y then b, float64.
        entries: whether the unknown is dX, in which the loss is diagonal, instead of M, in which the factors are.
        unit: a typical curvature; the products below are in this unit, within reach of float32.
        A, B, even, odd, pair, loss: what a product needs, in the precision of the conjugate gradients.
        y_weight: the factors' weight of y, shape (J,).
        y_inverse: the preconditioner on y, shape (J,), 0 where it is dead.
        bias_inverse: the preconditioner on b, shape (J,).
    """

    q: Quotient
    x: Point
    basis: Basis
    rho: Vector
    gradient: Vector
    entries: bool
    unit: float
    A: Matrix
    B: Matrix
    even: Matrix
    odd: Matrix
    pair: tuple[Matrix, Matrix]
    loss: LossHessian
    y_weight: Vector
    y_inverse: Vector
    bias_inverse: Vector

    @property
    def decrement(self) -> float:
        """<g, P^-1 g>: about twice what a Newton step gains."""
        return float(self.gradient @ self._precondition(self.gradient)) / self.unit

    def solve(self, radius: float, forcing: float, enough: float = 0.0) -> Direction:
        """The truncated Newton step, which may stop where about ``enough`` is left to gain."""
        size = np.sqrt(self.unit)
        step = truncated_newton(
            self._apply,
            self._precondition,
            (self.gradient / self.unit).astype(self.A.dtype),
            radius=radius / size,
            forcing=forcing,
            enough=enough / self.unit,
        )
        M, y, b = self._split(step.v.astype(np.float64))
        if self.entries:
            M = self.basis.A.T @ M @ self.basis.B
        M[self.basis.rank :, self.basis.rank :] = 0.0
        return Direction(M, y, b, self.unit * step.slope, self.unit * step.curvature, size * step.norm)

    def _split(self, v: Vector) -> tuple[Matrix, Vector, Vector]:
        J = self.q.num_clusters
        return v[: J * J].reshape(J, J), v[J * J : J * J + J], v[J * J + J :]

    def _apply(self, v: Vector) -> Vector:
        E, y, b = self._split(v)
        r, A, B = self.basis.rank, self.A, self.B
        # dX has no part between dead directions, and nor has the gradient
        if self.entries:
            M = A.T @ E @ B
            gX, gy, gb = self.loss.apply(E - (A[:, r:] @ M[r:, r:]) @ B[:, r:].T, y, b)
            M = self._factors(M)
            M[r:, r:] = -(A[:, r:].T @ gX) @ B[:, r:]
            gX += A @ M @ B.T
        else:
            gX, gy, gb = self.loss.apply(A @ E @ B.T, y, b)
            gX = A.T @ gX @ B + self._factors(E)
            gX[r:, r:] = 0.0
        if self.loss.several:
            gy = np.where(self.x.y > 0, gy + self.y_weight * y, 0.0)
        gb = gb + self.q.bias_weight * b if self.q.lambda_b < np.inf else np.zeros_like(gb)
        product = self._joined(gX, gy, gb)
        product *= 1 / self.unit
        return product

    def _factors(self, M: Matrix) -> Matrix:
        return self.even * (M + M.T) + self.odd * (M - M.T)

    def _joined(self, M: Matrix, y: Vector, b: Vector) -> Vector:
        joined = np.empty(M.size + y.size + b.size, M.dtype)
        joined[: M.size], joined[M.size : M.size + y.size], joined[M.size + y.size :] = M.ravel(), y, b
        return joined

    def _precondition(self, v: Vector) -> Vector:
        M, y, b = self._split(v)
        same, swap = self.pair
        if self.q.lambda_b == np.inf:
            b = np.zeros_like(b)
        else:
            b = self.unit * self.q.without_shift(self.q.without_shift(b) * self.bias_inverse)
        return self._joined(same * M + swap * M.T, y * self.y_inverse if self.loss.several else y, b)


def point(q: Quotient, X: Matrix, y: Vector, b: Vector) -> Point:
    """A point with its loss, softmax and residual."""
    P, loss = predict(q, Blocks(y / _contrast_norm(q), X / q.weight, b))
    return Point(X, y, b, loss + q.bias_cost(b), P, residual(q, P))


def _contrast_norm(q: Quotient) -> Vector:
    """sqrt(k - 1) sqrt(m): y of a unit contrast."""
    return np.sqrt(np.maximum(q.sizes - 1, 1.0) * q.mass)


def newton_system(q: Quotient, x: Point, basis: Basis) -> NewtonSystem:
    """The system at ``x``, whose X is ``basis``.

    The preconditioner is diagonal either in the basis or in the entries of X. In the entries the loss is diagonal, and
    the factors nearly so, because the basis mixes classes of similar counts only: |X|_kk stands for sigma_k, and rho
    becomes its mean over the row of B. That halves the iterations, but not where directions are dead or dying.
    """
    A, B, r, sigma, lam = basis.A, basis.B, basis.rank, basis.sigma, q.lambda_z
    J = q.num_clusters
    loss = loss_hessian(q, x.P)
    G = -(A.T @ x.R.between @ B)
    rho = -np.diagonal(G)
    G[r:, r:] = 0.0
    live = np.arange(r)
    G[live, live] += lam
    even = _weights(sigma, np.maximum(lam - rho, 1e-15 * lam), r)
    odd = _weights(sigma, lam + np.clip(rho, 0.0, lam), r)
    # probabilities may underflow far from the optimum: no entry is trusted to be that flat
    diagonal = np.maximum(loss.diagonal, 1e-10 * float(loss.diagonal.max()) or 1.0)
    unit = float(diagonal.mean())
    entries = J - r <= 1
    if entries:
        size = np.einsum("ij,j,ij->i", B, sigma, B)
        size = np.maximum(size, 1e-12 * float(size.max()) or 1.0)
        mean_rho = B**2 @ rho
        even_entry = _weights(size, np.maximum(lam - mean_rho, 1e-15 * lam), J) / unit
        odd_entry = _weights(size, lam + np.clip(mean_rho, 0.0, lam), J) / unit
        pair = _pair_inverse(diagonal / unit, diagonal.T / unit, even_entry, odd_entry)
        G = A @ G @ B.T
    else:
        mean = (A * A).T @ (diagonal / unit) @ (B * B)
        mean = 0.5 * (mean + mean.T)
        pair = _pair_inverse(mean, mean, even / unit, odd / unit)
        for part in pair:
            part[r:, r:] = 0.0
    width = np.sqrt(np.maximum(q.sizes - 1, 0.0))
    alive = x.y > 0
    y_weight = np.where(alive, width * np.maximum(lam - x.R.within, 0.0) / np.where(alive, 2 * x.y, 1.0), 0.0) + _TINY
    gb = q.bias_weight * x.b - q.sizes * x.R.bias if q.lambda_b < np.inf else np.zeros(J)
    gradient = np.concatenate([G.ravel(), np.where(alive, width * (lam - x.R.within), 0.0), gb])
    # conjugate gradients need few digits but most of the time: beyond the cache, half the bytes take half as long
    work: Any = np.float32 if J > _SMALL else np.float64
    A, B, even, odd, same, swap = (part.astype(work, copy=False) for part in (A, B, even / 2, odd / 2, *pair))
    bias = loss.bias_diagonal + q.bias_weight
    return NewtonSystem(
        q,
        x,
        basis,
        rho,
        gradient,
        entries,
        unit,
        A,
        B,
        even,
        odd,
        (same, swap),
        loss.astype(work),
        y_weight,
        y_inverse=np.where(alive, unit / (loss.within_diagonal + y_weight), 0.0),
        bias_inverse=1 / np.where(bias > 0, bias, 1.0),
    )


def _weights(sigma: Vector, slack: Vector, rank: int) -> Matrix:
    """1 / (sigma_j / slack_i + sigma_i / slack_j), 0 on the dead block."""
    ratio = sigma / slack[:, None]
    weights = 1 / np.maximum(ratio + ratio.T, _TINY)
    weights[rank:, rank:] = 0.0
    return weights


def _pair_inverse(first: Matrix, second: Matrix, even: Matrix, odd: Matrix) -> tuple[Matrix, Matrix]:
    """Inverse of diag(first, second) + the factors' weights on each pair (M_ij, M_ji): factors of M and of M'."""
    common, cross = 0.5 * (even + odd), 0.5 * (even - odd)
    determinant = first * second + common * (first + second) + even * odd  # a d - cross^2 without cancellation
    return (second + common) / determinant, -cross / determinant


def retract(system: NewtonSystem, step: Direction, length: float) -> tuple[Point, float]:
    """Move U = A sigma^(1/2), V = B sigma^(1/2) by the least change that gives ``step`` to first order.

    Returns the point and (||U||^2 + ||V||^2)/2 + sum_j sqrt(k_j - 1) y_j, an upper bound of the price of Z.
    """
    q, x, basis = system.q, system.x, system.basis
    r, lam = basis.rank, q.lambda_z
    sigma = basis.sigma[:r]
    root = np.sqrt(sigma)
    M = length * step.M
    # how dX is shared between U and V only matters where one side is dead: keep the slack away from 0 / 0 elsewhere
    slack = np.maximum(lam - system.rho, 1e-2 * lam)
    stiff = lam + np.clip(system.rho, 0.0, lam)
    even = (M + M.T)[:, :r] * root / (sigma + basis.sigma[:, None] * (slack[:, None] / slack[:r]))
    odd = (M - M.T)[:, :r] * root / (sigma + basis.sigma[:, None] * (stiff[:, None] / stiff[:r]))
    U, V = (even + odd) / 2, (even - odd) / 2
    live = np.arange(r)
    U[live, live] = V[live, live] = _grown(root, np.diagonal(M)[:r])
    y_root = np.sqrt(x.y)
    y = np.where(x.y > 0, _grown(np.where(x.y > 0, y_root, 1.0), length * step.y) ** 2, 0.0)
    width = np.sqrt(np.maximum(q.sizes - 1, 0.0))
    price = 0.5 * (float(np.sum(U**2)) + float(np.sum(V**2))) + float(width @ y)
    return point(q, (basis.A @ U) @ (basis.B @ V).T, y, x.b + length * step.b), price


def straight(system: NewtonSystem, step: Direction, length: float) -> tuple[Point, float]:
    """Move X itself by ``step``, for steps so long that dU dV' spoils a balance of Z and bias; with the price of Z."""
    q, x, basis = system.q, system.x, system.basis
    X = (basis.A * basis.sigma + length * basis.A @ step.M) @ basis.B.T
    y = np.maximum(x.y + length * step.y, 0.0)
    width = np.sqrt(np.maximum(q.sizes - 1, 0.0))
    if not np.isfinite(X).all():
        return x, np.inf
    price = float(np.linalg.svd(X, compute_uv=False).sum()) + float(width @ y)
    return point(q, X, y, x.b + length * step.b), price


def _grown(root: Vector, change: Vector) -> Vector:
    """The factor whose square is root^2 + change: exactly where it grows, to first order where it shrinks."""
    return np.where(change > 0, np.sqrt(root**2 + np.maximum(change, 0.0)), np.abs(root + change / (2 * root)))
