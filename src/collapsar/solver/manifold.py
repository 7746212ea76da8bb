"""The Newton system of the factored nuclear-norm program, with its gauge eliminated.

At X = U V' = A diag(sigma) B', U = A sigma^(1/2), V = B sigma^(1/2), the factors' share of the second derivative,
lambda(||dU||^2 + ||dV||^2) - 2 <R, dU dV'>, minimised over all (dU, dV) that give the same dX = A M B', is diagonal in
(M_ij + M_ji)/sqrt 2 and (M_ij - M_ji)/sqrt 2 with weights

    even:  1 / (sigma_j / (lambda - rho_i) + sigma_i / (lambda - rho_j)),    odd: the same with lambda + rho,

rho = diag(A'RB). Both vanish nowhere but where both singular values live and even = 0: there the loss alone curves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.hessian import LossHessian, loss_hessian
from collapsar.solver.objective import Columns, Residual, predict, residual
from collapsar.solver.symmetry import Blocks, Quotient, centred

__all__ = ["Basis", "Direction", "NewtonSystem", "Point", "newton_system", "point", "retract"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_TINY = 1e-300


@dataclass(frozen=True)
class Point:
    """X = weight * C, (J, J); y_j = sqrt(k_j - 1) alpha_j sqrt(m_j), (J,); b, (J,); and what follows from them.

    ``smooth`` is the loss plus the price of the bias, P the softmax, R its residual.
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
    """Gradient, second derivative and preconditioner at a point. ``entries``: work on A M B' instead of on M."""

    q: Quotient
    x: Point
    basis: Basis
    loss: LossHessian
    rho: Vector
    even: Matrix
    odd: Matrix
    gradient: Vector
    y_weight: Vector
    pair: tuple[Matrix, Matrix]
    entries: bool

    @property
    def decrement(self) -> float:
        """<g, P^-1 g>: about twice what a Newton step gains."""
        return float(self.gradient @ self._precondition(self.gradient))

    def solve(self, radius: float, forcing: float) -> Direction:
        """The truncated Newton step."""
        step = truncated_newton(self._apply, self._precondition, self.gradient, radius=radius, forcing=forcing)
        M, y, b = self._split(step.v)
        if self.entries:
            M = self.basis.A.T @ M @ self.basis.B
        return Direction(M, y, b, step.slope, step.curvature, step.norm)

    def _split(self, v: Vector) -> tuple[Matrix, Vector, Vector]:
        J = self.q.num_clusters
        return v[: J * J].reshape(J, J), v[J * J : J * J + J], v[J * J + J :]

    def _apply(self, v: Vector) -> Vector:
        M, y, b = self._split(v)
        A, B = self.basis.A, self.basis.B
        if self.entries:
            gX, gy, gb = self.loss.apply(M, y, b)
            M = A.T @ M @ B
            out = self._tangent_entries(gX) + A @ self._factors(M) @ B.T
        else:
            gX, gy, gb = self.loss.apply(A @ M @ B.T, y, b)
            out = A.T @ gX @ B
            out += self._factors(M)
            out[self.basis.rank :, self.basis.rank :] = 0.0
        gy = np.where(self.x.y > 0, gy + self.y_weight * y, 0.0)
        gb = gb + self.q.lambda_b * self.q.sizes * b if self.q.lambda_b < np.inf else np.zeros_like(gb)
        return np.concatenate([out.ravel(), gy, gb])

    def _factors(self, M: Matrix) -> Matrix:
        return 0.5 * ((self.even + self.odd) * M + (self.even - self.odd) * M.T)

    def _tangent_entries(self, E: Matrix) -> Matrix:
        dead = slice(self.basis.rank, None)
        A, B = self.basis.A[:, dead], self.basis.B[:, dead]
        return E - A @ ((A.T @ E) @ B) @ B.T

    def _precondition(self, v: Vector) -> Vector:
        M, y, b = self._split(v)
        same, swap = self.pair
        out = same * M + swap * M.T
        if self.entries:
            out = self._tangent_entries(out)
        live = self.x.y > 0
        weight = np.where(live, self.loss.within_diagonal + self.y_weight + _TINY, 1.0)
        by = np.where(live, y / weight, 0.0)
        if self.q.lambda_b == np.inf:
            return np.concatenate([out.ravel(), by, np.zeros_like(b)])
        stiffness = self.loss.bias_diagonal + self.q.lambda_b * self.q.sizes
        bb = _without_shift(self.q, _without_shift(self.q, b) / np.where(stiffness > 0, stiffness, 1.0))
        return np.concatenate([out.ravel(), by, bb])


def point(q: Quotient, X: Matrix, y: Vector, b: Vector) -> Point:
    """A point with its loss, softmax and residual."""
    P, loss = predict(q, Blocks(y / _contrast_norm(q), X / q.weight, b))
    bias = 0.0 if q.lambda_b == np.inf else 0.5 * q.lambda_b * float(q.sizes @ b**2)
    return Point(X, y, b, loss + bias, P, residual(q, P))


def _contrast_norm(q: Quotient) -> Vector:
    """sqrt(k - 1) sqrt(m): y of a unit contrast."""
    return np.sqrt(np.maximum(q.sizes - 1, 1.0) * q.mass)


def newton_system(q: Quotient, x: Point, basis: Basis) -> NewtonSystem:
    """The system at ``x``, whose X is ``basis``."""
    A, B, r, sigma, lam = basis.A, basis.B, basis.rank, basis.sigma, q.lambda_z
    J = q.num_clusters
    loss = loss_hessian(q, x.P)
    R = A.T @ x.R.between @ B
    rho = np.diagonal(R).copy()
    G = -R
    G[r:, r:] = 0.0
    live = np.arange(r)
    G[live, live] += lam
    even = _weights(sigma, np.maximum(lam - rho, 1e-15 * lam), r)
    odd = _weights(sigma, lam + np.clip(rho, 0.0, lam), r)
    width = np.sqrt(np.maximum(q.sizes - 1, 0.0))
    alive = x.y > 0
    y_weight = np.where(alive, width * np.maximum(lam - x.R.within, 0.0) / np.where(alive, 2 * x.y, 1.0), 0.0)
    # probabilities may underflow far from the optimum: no entry is trusted to be that flat
    diagonal = np.maximum(loss.diagonal, 1e-10 * float(loss.diagonal.max()) or 1.0)
    # (J - r) dead directions are a small correction in the entries, where the loss is diagonal; otherwise the basis,
    # where the factors are diagonal, is the better place
    entries = J > 2 and J - r <= max(1, J // 20)
    if entries:
        size = np.einsum("ij,j,ij->i", B, sigma, B) + _TINY  # |X|_kk, in the role of sigma
        odd_entry = 2 * lam / (size[:, None] + size)
        pair = _pair_inverse(diagonal, diagonal.T, 0.0, odd_entry)
        G = A @ G @ B.T
    else:
        curvature = (A * A).T @ diagonal @ (B * B)
        mean = 0.5 * (curvature + curvature.T)
        pair = _pair_inverse(mean, mean, even, odd)
        for part in pair:
            part[r:, r:] = 0.0
    gb = q.sizes * q.lambda_b * x.b - q.sizes * x.R.bias if q.lambda_b < np.inf else np.zeros(J)
    gradient = np.concatenate([G.ravel(), np.where(alive, width * (lam - x.R.within), 0.0), gb])
    return NewtonSystem(q, x, basis, loss, rho, even, odd, gradient, y_weight, pair, entries)


def _without_shift(q: Quotient, b: Vector) -> Vector:
    """With a free bias the shift along 1/delta is flat: keep rounding from walking along it."""
    if q.lambda_b > 0:
        return b
    shift = 1 / q.scales
    return b - (shift @ b) / (shift @ shift) * shift


def _weights(sigma: Vector, slack: Vector, rank: int) -> Matrix:
    """1 / (sigma_j / slack_i + sigma_i / slack_j), 0 on the dead block."""
    ratio = sigma / slack[:, None]
    weights = 1 / np.maximum(ratio + ratio.T, _TINY)
    weights[rank:, rank:] = 0.0
    return weights


def _pair_inverse(first: Matrix, second: Matrix, even: Matrix | float, odd: Matrix) -> tuple[Matrix, Matrix]:
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


def _grown(root: Vector, change: Vector) -> Vector:
    """The factor whose square is root^2 + change: exactly where it grows, to first order where it shrinks."""
    return np.where(change > 0, np.sqrt(root**2 + np.maximum(change, 0.0)), np.abs(root + change / (2 * root)))
