"""The relaxation of features >= 0 to a doubly nonnegative H'H, in factors: the witness of a lower bound.

    min  loss(W'V + b) + (lambda_Z / 2)(||W||^2 + ||V||^2) + (lambda_b / 2)||b||^2     over C = V'V >= 0 entrywise

V may have any sign. Only C is constrained, which is convex in C, so with as many rows as C needs a local minimum is
global (Burer and Monteiro). The multipliers of C_ij >= 0 are the N_ij of :mod:`.witness`: at a stationary point
V (lambda_Z^2 I - R'R - N) = 0. They are found by the method of multipliers, N <- [N - sigma C]_+, each round being one
smooth problem for Newton's method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.hessian import loss_hessian
from collapsar.solver.objective import Columns, predict, residual
from collapsar.solver.symmetry import Blocks, Quotient
from collapsar.solver.witness import Witness

_ROUNDS = 12  # one or two are usual
_STEPS = 60  # of Newton's method in a round
_ITERATIONS = 300  # of conjugate gradients in a step
# sigma relative to correlations: N is of order 1, so one round already gets most signs right; a stiffer problem would
# take more conjugate gradients, and the exact multipliers need none.
_STIFFNESS, _STIFFER, _STIFFEST = 1.0, 2.0, 8.0
_LEAST = 0.03  # of a typical feature: classes that vanish are measured by it
_SMALL = 1e-3  # of a typical feature: a new row
_PAYS = 1e-12  # relative: an eigenvalue above lambda_Z^2
_DEAD = 1e-2  # of a new one: a contrast that has no slope any more
_AT_REST = 1e-14  # relative size of a gradient that is mere rounding
_HIDDEN = 1e-13  # relative decrease of the objective that rounding hides
_FRUITLESS = 3  # steps that come to nothing
_SHORTEST = 1e-6  # of a step that lowers the objective


@dataclass(frozen=True)
class Relaxed:
    """Factors of the relaxation and its multipliers.

    Attributes:
        W, V: shape (r, J), in the coordinates of Z M^(1/2).
        w, v: shape (J,), the same on the contrasts within each cluster; 0 for single classes.
        b: the bias, shape (J,).
        N: shape (J, J), symmetric, >= 0, zero diagonal, in units of lambda_Z^2.
        nu: shape (J,), between two classes of one cluster, in units of lambda_Z^2.
    """

    W: Matrix
    V: Matrix
    w: Vector
    v: Vector
    b: Vector
    N: Matrix
    nu: Vector

    def blocks(self, q: Quotient) -> Blocks:
        """The point W'V with bias b."""
        return Blocks(self.w * self.v / np.sqrt(q.mass), self.W.T @ self.V / q.weight, self.b)

    def witness(self, q: Quotient, S: Columns) -> Witness:
        """The multipliers, with the softmax at the point."""
        return Witness(S, self.N * q.lambda_z**2, self.nu * q.lambda_z**2)


@dataclass(frozen=True)
class _Round:
    """One smooth problem: the augmented Lagrangian at given multipliers, over x = (W, V, w, v, b)."""

    q: Quotient
    N: Matrix
    nu: Vector
    size: Vector  # of the features of each class: C_ij / (size_i size_j) is like a correlation
    sigma: float

    @cached_property
    def contrasts(self) -> Vector:
        return self.q.sizes - 1

    @cached_property
    def pair(self) -> Matrix:
        return np.outer(self.size, self.size)

    @cached_property
    def siblings(self) -> Vector:
        """The same for C between two classes of one cluster: (V'V)_jj - v_j^2 is k_j times that C."""
        return self.q.sizes * self.size**2

    def pack(self, *parts: Matrix) -> Vector:
        return np.concatenate([part.ravel() for part in parts])

    def unpack(self, x: Vector) -> Relaxed:
        J = self.q.num_clusters
        W, V = x[: -3 * J].reshape(2, -1, J)
        w, v, b = x[-3 * J :].reshape(3, J)
        return Relaxed(W, V, w, v, b, self.N, self.nu)

    def multipliers(self, at: Relaxed) -> tuple[Matrix, Vector]:
        """[N - sigma C]_+ between clusters and within."""
        C = at.V.T @ at.V
        M = np.maximum(self.N - self.sigma * C / self.pair, 0.0)
        np.fill_diagonal(M, 0.0)
        within = np.maximum(self.nu - self.sigma * (np.diag(C) - at.v**2) / self.siblings, 0.0)
        return M, np.where(self.contrasts > 0, within, 0.0)

    def objective(self, x: Vector) -> tuple[float, Vector]:
        """Value and gradient."""
        q, c, lam = self.q, self.contrasts, self.q.lambda_z
        at = self.unpack(x)
        W, V, w, v, b = at.W, at.V, at.w, at.v, at.b
        P, loss = predict(q, at.blocks(q))
        R, (M, inside) = residual(q, P), self.multipliers(at)
        value = loss + 0.5 * lam * float(np.sum(W**2) + np.sum(V**2) + c @ (w**2 + v**2)) + q.bias_cost(b)
        value += 0.25 * lam / self.sigma * float(np.sum(self.pair * M**2) + c @ (self.siblings * inside**2))
        held, inner = M + np.diag(c * inside), c * R.within
        bias = np.zeros(q.num_clusters) if q.lambda_b == np.inf else q.sizes * (q.lambda_b * b - R.bias)
        slopes = (
            lam * W - V @ R.between.T,
            lam * (V - V @ held) - W @ R.between,
            lam * c * w - v * inner,
            lam * c * (1 + inside) * v - w * inner,
        )
        return value, self.pack(*slopes, bias)

    def hessian(self, x: Vector) -> tuple[Callable[[Vector], Vector], Vector]:
        """The Hessian as a product with a vector, and a positive approximation of its diagonal."""
        q, c, lam = self.q, self.contrasts, self.q.lambda_z
        at = self.unpack(x)
        W, V, w, v = at.W, at.V, at.w, at.v
        P, _ = predict(q, at.blocks(q))
        R, loss = residual(q, P), loss_hessian(q, P)
        M, inside = self.multipliers(at)
        held, inner, width = M + np.diag(c * inside), c * R.within, np.sqrt(c)
        stiff = np.where(M > 0, self.sigma / self.pair, 0.0)
        stiff_inside = np.where(inside > 0, self.sigma * c / self.siblings, 0.0)
        price = q.lambda_b * q.sizes if q.lambda_b < np.inf else np.zeros_like(c)

        def apply(d: Vector) -> Vector:
            change = self.unpack(d)
            dW, dV, dw, dv, db = change.W, change.V, change.w, change.v, change.b
            gX, gy, gb = loss.apply(dW.T @ V + W.T @ dV, width * (dw * v + w * dv), db)
            across = V.T @ dV
            # the multipliers give way where C is held
            give = stiff * (across + across.T)
            within = 2 * stiff_inside * (np.diag(across) - v * dv)
            give[on] = within
            bent = width * gy
            return self.pack(
                lam * dW - dV @ R.between.T + V @ gX.T,
                lam * (dV - dV @ held + V @ give) - dW @ R.between + W @ gX,
                lam * c * dw - dv * inner + v * bent,
                lam * (c * (1 + inside) * dv - v * within) - dw * inner + w * bent,
                gb + price * db if q.lambda_b < np.inf else np.zeros_like(db),
            )

        on = np.diag_indices_from(M)
        square, bent = V**2, c * loss.within_diagonal
        diagonal = self.pack(
            lam + square @ loss.diagonal.T,
            lam * (1 + square @ stiff + 2 * stiff_inside * square) + W**2 @ loss.diagonal,
            lam * c + v**2 * bent,
            lam * (c + 2 * stiff_inside * v**2) + w**2 * bent,
            loss.bias_diagonal + price,
        )
        return apply, np.where(diagonal > 0, diagonal, 1.0)


def beginning(q: Quotient, atoms: Atoms, b: Vector, witness: Witness) -> Relaxed:
    """The point with features >= 0, and what a witness knows of the multipliers."""
    v = np.sqrt(np.sum(atoms.own**2, axis=0))
    w = np.sum(atoms.within * atoms.own, axis=0) / np.where(v > 0, v, 1.0)
    return Relaxed(atoms.between, atoms.mean, w, v, b, witness.between / q.lambda_z**2, witness.within / q.lambda_z**2)


def relaxed(q: Quotient, at: Relaxed, tol: float) -> Iterator[Relaxed]:
    """Points of the method of multipliers, from one near the optimum; each better than the last.

    Args:
        q: J clusters.
        at: where to start.
        tol: the relative gap to reach.

    Yields:
        The point after every round.
    """
    size = np.sqrt(at.v**2 + np.maximum(np.sum(at.V**2, axis=0) - at.v**2, 0.0) / q.sizes)  # of one class
    size = np.maximum(size, _LEAST * _typical(size))
    sigma = _STIFFNESS
    for _ in range(_ROUNDS):
        at = _with_rows(q, at)
        problem = _Round(q, at.N, at.nu, size, sigma)
        x = _minimised(problem, problem.pack(at.W, at.V, at.w, at.v, at.b), max(_AT_REST, 0.01 * tol))
        at = problem.unpack(x)
        N, nu = problem.multipliers(at)
        at = replace(at, N=N, nu=nu)
        yield at
        sigma = min(_STIFFER * sigma, _STIFFEST)


def _typical(V: Matrix) -> float:
    """The typical size of a column."""
    return float(np.linalg.norm(V)) / np.sqrt(V.shape[-1]) or 1.0


def _with_rows(q: Quotient, at: Relaxed) -> Relaxed:
    """The factors, with small rows along which the Lagrangian still falls, and small contrasts where these pay."""
    R = residual(q, predict(q, at.blocks(q))[0])
    small = np.where(R.within**2 / q.lambda_z**2 > 1 + at.nu + _PAYS, _SMALL * _typical(at.V), 0.0)
    born = np.abs(at.v) < _DEAD * small  # a live one has a slope
    v, w = np.where(born, small, at.v), np.where(born, small * R.within / q.lambda_z, at.w)
    values, vectors = np.linalg.eigh(R.between.T @ R.between / q.lambda_z**2 + at.N + np.diag((q.sizes - 1) * at.nu))
    rows = _SMALL * _typical(at.V) * vectors[:, values > 1 + _PAYS].T
    V, W = np.vstack([at.V, rows]), np.vstack([at.W, rows @ R.between.T / q.lambda_z])
    if len(V) > q.num_clusters:
        turn = np.linalg.svd(V, full_matrices=False)[0].T  # what lies outside V's columns is no part of V'V or W'V
        V, W = turn @ V, turn @ W
    return replace(at, V=V, W=W, v=v, w=w)


def _minimised(problem: _Round, x: Vector, rest: float) -> Vector:
    """Newton's method in a trust region, until rounding stops it."""
    value, gradient = problem.objective(x)
    apply, diagonal = problem.hessian(x)
    radius, fruitless = 0.1 * float(np.linalg.norm(x * np.sqrt(diagonal))), 0
    for _ in range(_STEPS):
        relative = float(np.linalg.norm(gradient)) / (problem.q.lambda_z * float(np.linalg.norm(x)))
        if relative <= rest or fruitless > _FRUITLESS:
            break
        step = truncated_newton(
            apply,
            partial(np.multiply, 1 / diagonal),
            gradient,
            radius=radius,
            forcing=min(0.1, np.sqrt(relative)),
            max_iterations=_ITERATIONS,
            indefinite=True,
        )
        hidden = -(step.slope + 0.5 * step.curvature) <= _HIDDEN * value
        length = 1.0
        while True:
            trial = x + length * step.v
            new_value, new_gradient = problem.objective(trial)
            fall, expected = value - new_value, -length * (step.slope + 0.5 * length * step.curvature)
            if hidden:  # by rounding: the gradient, in the metric of the step, tells
                fine = bool(new_gradient**2 @ (1 / diagonal) < gradient**2 @ (1 / diagonal))
                break
            fine = fall >= 1e-3 * expected
            if fine or length <= _SHORTEST:
                break
            length *= 0.3
        if not fine:
            radius, fruitless = min(length, 0.25) * step.norm, fruitless + 1
            continue
        if length < 1:
            radius = length * step.norm
        elif hidden or fall > 0.7 * expected:
            radius = max(radius, 3 * step.norm)
        x, value, gradient = trial, new_value, new_gradient
        apply, diagonal = problem.hessian(x)
    return x
