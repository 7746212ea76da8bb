"""The relaxation of features >= 0 to a doubly nonnegative H'H, in factors: the witness of a lower bound.

    min  loss(W'V + b) + (lambda_Z / 2)(||W||^2 + ||V||^2) + (lambda_b / 2)||b||^2     over C = V'V >= 0 entrywise

V itself may have any sign. Only C is bounded, which is convex in C, so with as many rows as C needs a local minimum is
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
from collapsar.solver.witness import Cut, Witness, diagonal, forms, pulled, quadratic

_ROUNDS = 12  # one or two are usual
_STEPS = 60  # of Newton's method in a round
_ITERATIONS = 300  # of conjugate gradients in a step
# sigma beside correlations: N is of order 1, so that one round already sets most signs right; a stiffer problem would
# take more conjugate gradients, and the exact multipliers need none.
_STIFFNESS, _STIFFER, _STIFFEST = 1.0, 2.0, 8.0
_LEAST = 0.03  # of a typical feature: classes that vanish are measured by it
_SMALL = 1e-3  # of a typical feature: a new row
_PAYS = 1e-12  # relative: an eigenvalue above lambda_Z^2
_DEAD = 1e-2  # of a new one: a contrast that has no slope any more
_AT_REST = 1e-14  # relative size of a gradient that is rounding
_HIDDEN = 1e-13  # relative decrease of the objective that rounding hides
_DAMPED = 10.0  # beside the relative size of the gradient, where the cone is cut
ROUNDED, SHARPEST = 1e-3, 1e-6  # mu beside correlations: the last one costs J mu^2 of the price
_SHARPER = 0.2  # from round to round
_SETTLED = 1e-4  # times mu: the relative size of a gradient that is small enough

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
        cuts: of the cone of features, as in the witness: all but b then begin with one axis for each, of length two,
            and C is the sum over all parts.
        mu: how round the multipliers are where they leave zero.
    """

    W: Matrix
    V: Matrix
    w: Vector
    v: Vector
    b: Vector
    N: Matrix
    nu: Vector
    cuts: tuple[Cut, ...] = ()
    mu: float = 0.0

    def blocks(self, q: Quotient) -> Blocks:
        """The point W'V with bias b."""
        J = q.num_clusters
        alpha = np.sum((self.w * self.v).reshape(-1, J), axis=0)
        return Blocks(alpha / np.sqrt(q.mass), self.W.reshape(-1, J).T @ self.V.reshape(-1, J) / q.weight, self.b)

    def witness(self, q: Quotient, S: Columns) -> Witness:
        """The multipliers, beside the softmax at the point."""
        return Witness(S, self.N * q.lambda_z**2, self.nu * q.lambda_z**2, self.cuts)


@dataclass(frozen=True)
class Round:
    """One smooth problem: the augmented Lagrangian at given multipliers, over x = (W, V, w, v, b).

    Where the cone is cut, directions on the edge may be shared out between its parts in many ways, and many pairs have
    neither C nor N: at the kink of [N - sigma C]_+ Newton's method does not settle. It is rounded off there, to the M
    above zero with M - mu^2 / M = N - sigma C, which is a barrier in C.
    """

    q: Quotient
    N: Matrix
    nu: Vector
    size: Vector  # of the features of each class: C_ij / (size_i size_j) is like a correlation
    sigma: float
    cuts: tuple[Cut, ...] = ()
    mu: float = 0.0

    @cached_property
    def contrasts(self) -> Vector:
        """Within each cluster."""
        return self.q.sizes - 1

    @cached_property
    def pair(self) -> Matrix:
        """What C is measured by, in the coordinates of each part."""
        square = np.broadcast_to(self.size**2, self.nu.shape)
        size = np.sqrt(forms(square, self.squared))
        return size[..., :, None] * size[..., None, :]

    @cached_property
    def squared(self) -> list[Cut]:
        """The forms with the squares of their coefficients."""
        return [Cut(i, j, -(c**2)) for i, j, c in self.cuts]

    @cached_property
    def siblings(self) -> Vector:
        """The same for C between two classes of one cluster, of which (V'V)_jj - v_j^2 is k_j times as much."""
        return self.q.sizes * self.size**2

    def pack(self, *parts: Matrix) -> Vector:
        """The unknowns as one vector."""
        return np.concatenate([part.ravel() for part in parts])

    def unpack(self, x: Vector) -> Relaxed:
        """The inverse of :meth:`pack`."""
        J, shape = self.q.num_clusters, self.nu.shape[:-1]
        rows = x.size - J - 2 * self.nu.size
        W, V = x[:rows].reshape(2, *shape, -1, J)
        w, v = x[rows:-J].reshape(2, *shape, J)
        return Relaxed(W, V, w, v, x[-J:], self.N, self.nu, self.cuts, self.mu)

    def multipliers(self, V: Matrix, v: Vector) -> tuple[Matrix, Vector]:
        """[N - sigma C]_+ between clusters and within."""
        U = forms(V, self.cuts)
        C = np.swapaxes(U, -1, -2) @ U
        M = self.rounded(self.N - self.sigma * C / self.pair)
        M *= 1 - np.eye(self.q.num_clusters)
        own = np.sum(V**2, axis=-2) - v**2
        within = self.rounded(self.nu - self.sigma * own / self.siblings)
        return M, np.where(self.contrasts > 0, within, 0.0)

    def rounded(self, t: Matrix) -> Matrix:
        """M with M - mu^2 / M = t."""
        if not self.mu:
            return np.maximum(t, 0.0)
        s = np.hypot(t, 2 * self.mu)
        return np.where(t > 0, (t + s) / 2, 2 * self.mu**2 / np.where(t > 0, 1.0, s - t))

    def potential(self, M: Matrix) -> Matrix:
        """Twice the integral of M over t."""
        return M**2 + 2 * self.mu**2 * np.log(np.where(M > 0, M, 1.0))

    def slope(self, M: Matrix) -> Matrix:
        """The derivative of M in t."""
        return np.where(M > 0, M**2 / np.maximum(M**2 + self.mu**2, np.finfo(np.float64).tiny), 0.0)

    def objective(self, x: Vector) -> tuple[float, Vector]:
        """Value and gradient."""
        q, c, lam = self.q, self.contrasts, self.q.lambda_z
        at = self.unpack(x)
        W, V, w, v, b = at.W, at.V, at.w, at.v, at.b
        P, loss = predict(q, at.blocks(q))
        R, (M, inside) = residual(q, P), self.multipliers(V, v)
        value = loss + 0.5 * lam * float(np.sum(W**2) + np.sum(V**2) + np.sum((w**2 + v**2) @ c))
        value += (
            0.25
            * lam
            / self.sigma
            * float(np.sum(self.pair * self.potential(M)) + np.sum(self.potential(inside) @ (c * self.siblings)))
        )
        held, inner = quadratic(M, self.cuts) + diagonal(c * inside), c * R.within
        bias = np.zeros(q.num_clusters)
        if q.lambda_b < np.inf:
            value += 0.5 * q.lambda_b * float(q.sizes @ b**2)
            bias = q.sizes * (q.lambda_b * b - R.bias)
        slopes = (
            lam * W - V @ R.between.T,
            lam * (V - V @ held) - W @ R.between,
            lam * c * w - v * inner,
            lam * c * (1 + inside) * v - w * inner,
        )
        return value, self.pack(*slopes, bias)

    def hessian(self, x: Vector) -> tuple[Callable[[Vector], Vector], Vector]:
        """The Hessian as a product, and a diagonal near its own, above 0."""
        q, c, lam = self.q, self.contrasts, self.q.lambda_z
        at = self.unpack(x)
        W, V, w, v = at.W, at.V, at.w, at.v
        P, _ = predict(q, at.blocks(q))
        R, loss = residual(q, P), loss_hessian(q, P)
        M, inside = self.multipliers(V, v)
        held, inner, width = quadratic(M, self.cuts) + diagonal(c * inside), c * R.within, np.sqrt(c)
        stiff = self.slope(M) * self.sigma / self.pair
        stiff_inside = self.slope(inside) * self.sigma * c / self.siblings
        price = q.lambda_b * q.sizes if q.lambda_b < np.inf else np.zeros_like(c)

        def apply(d: Vector) -> Vector:
            change = self.unpack(d)
            dW, dV, dw, dv, db = change.W, change.V, change.w, change.v, change.b
            dX = flat(dW).T @ flat(V) + flat(W).T @ flat(dV)
            gX, gy, gb = loss.apply(dX, width * np.sum(flat(dw * v + w * dv), axis=0), db)
            across = Ut @ forms(dV, self.cuts)
            # the multipliers give way where C is held
            give = stiff * (across + np.swapaxes(across, -1, -2))
            within = 2 * stiff_inside * (np.sum(V * dV, axis=-2) - v * dv)
            bent = width * gy
            return self.pack(
                lam * dW - dV @ R.between.T + V @ gX.T,
                lam * (dV - dV @ held + pulled(U @ give, self.cuts) + V * within[..., None, :])
                - dW @ R.between
                + W @ gX,
                lam * c * dw - dv * inner + v * bent,
                lam * (c * (1 + inside) * dv - v * within) - dw * inner + w * bent,
                gb + price * db if q.lambda_b < np.inf else np.zeros_like(db),
            )

        def flat(x: Matrix) -> Matrix:
            return x.reshape(-1, q.num_clusters)

        U = forms(V, self.cuts)
        Ut = np.swapaxes(U, -1, -2)
        square, bent = V**2, c * loss.within_diagonal
        near = self.pack(
            lam + square @ loss.diagonal.T,
            lam * (1 + pulled(U**2 @ stiff, self.squared) + 2 * stiff_inside[..., None, :] * square)
            + W**2 @ loss.diagonal,
            lam * c + v**2 * bent,
            lam * (c + 2 * stiff_inside * v**2) + w**2 * bent,
            loss.bias_diagonal + price,
        )
        return apply, np.where(near > 0, near, 1.0)


def beginning(q: Quotient, atoms: Atoms, b: Vector, witness: Witness) -> Relaxed:
    """The point of features >= 0, with what a witness knows of the multipliers."""
    v = np.sqrt(np.sum(atoms.own**2, axis=0))
    w = np.sum(atoms.within * atoms.own, axis=0) / np.where(v > 0, v, 1.0)
    N, nu = witness.between / q.lambda_z**2, witness.within / q.lambda_z**2
    return Relaxed(atoms.between, atoms.mean, w, v, b, N, nu)


def relaxed(q: Quotient, at: Relaxed, tol: float) -> Iterator[Relaxed]:
    """Points of the method of multipliers, from one near the optimum; each better than before.

    Args:
        q: J clusters.
        at: where to start.
        tol: the relative gap to reach.

    Yields:
        The point after every round.
    """
    J = q.num_clusters
    gamma = np.sum(at.v.reshape(-1, J) ** 2, axis=0)
    size = np.sqrt(gamma + np.maximum(np.sum(at.V.reshape(-1, J) ** 2, axis=0) - gamma, 0.0) / q.sizes)  # of one class
    size = np.maximum(size, _LEAST * _typical(size))
    sigma = _STIFFNESS
    for _ in range(_ROUNDS):
        at = _with_rows(q, at)
        problem = Round(q, at.N, at.nu, size, sigma, at.cuts, at.mu)
        x = _minimised(problem, problem.pack(at.W, at.V, at.w, at.v, at.b), max(_AT_REST, 0.01 * tol, _SETTLED * at.mu))
        at = problem.unpack(x)
        N, nu = problem.multipliers(at.V, at.v)
        at = replace(at, N=N, nu=nu, mu=max(_SHARPER * at.mu, min(at.mu, SHARPEST)))
        yield at
        sigma = min(_STIFFER * sigma, _STIFFEST)


def _typical(V: Matrix) -> float:
    """The size of one column."""
    return float(np.linalg.norm(V)) / np.sqrt(V.shape[-1]) or 1.0


def _with_rows(q: Quotient, at: Relaxed) -> Relaxed:
    """The factors with small rows along which the Lagrangian still falls, and contrasts where it falls along these."""
    R = residual(q, predict(q, at.blocks(q))[0])
    small = np.where(R.within**2 / q.lambda_z**2 > 1 + at.nu + _PAYS, _SMALL * _typical(at.V), 0.0)
    born = np.abs(at.v) < _DEAD * small  # one that lives has a slope
    v, w = np.where(born, small, at.v), np.where(born, small * R.within / q.lambda_z, at.w)
    held = quadratic(at.N, at.cuts) + diagonal((q.sizes - 1) * at.nu)
    values, vectors = np.linalg.eigh(R.between.T @ R.between / q.lambda_z**2 + held)
    pays = values > 1 + _PAYS
    most = int(pays.sum(axis=-1).max())
    length = np.minimum(_SMALL, np.sqrt(np.maximum(values - 1, 0.0))) * pays  # as long as they will be, about
    rows = _typical(at.V) * np.swapaxes(vectors * length[..., None, :], -1, -2)
    rows = rows[..., q.num_clusters - most :, :]
    V = np.concatenate([at.V, rows], axis=-2)
    W = np.concatenate([at.W, rows @ R.between.T / q.lambda_z], axis=-2)
    W, V = turned(W, V)
    return replace(at, V=V, W=W, v=v, w=w)


def turned(W: Matrix, V: Matrix) -> tuple[Matrix, Matrix]:
    """The same W'V and V'V in no more rows than columns."""
    if V.shape[-2] > V.shape[-1]:
        # what lies outside of V's columns is no part of V'V or W'V
        turn = np.swapaxes(np.linalg.svd(V, full_matrices=False)[0], -1, -2)
        return turn @ W, turn @ V
    return W, V


def _minimised(problem: Round, x: Vector, rest: float) -> Vector:
    """Newton's method in a trust region, until rounding stops it."""
    value, gradient = problem.objective(x)
    apply, diagonal = problem.hessian(x)
    radius, fruitless = 0.1 * float(np.linalg.norm(x * np.sqrt(diagonal))), 0
    for _ in range(_STEPS):
        relative = float(np.linalg.norm(gradient)) / (problem.q.lambda_z * float(np.linalg.norm(x)))
        if relative <= rest or fruitless > _FRUITLESS:
            break
        # what lies in both parts may be shared out in many ways: steps along them stay short
        damping = (_DAMPED if problem.mu else 0.0) * relative * diagonal
        step = truncated_newton(
            lambda v, apply=apply, damping=damping: apply(v) + damping * v,
            partial(np.multiply, 1 / diagonal),
            gradient,
            radius=radius,
            forcing=min(0.1, np.sqrt(relative)),
            max_iterations=_ITERATIONS * len(problem.nu.shape),
            indefinite=True,
        )
        hidden = -(step.slope + 0.5 * step.curvature) <= _HIDDEN * value
        length = 1.0
        while True:
            trial = x + length * step.v
            new_value, new_gradient = problem.objective(trial)
            expected = -length * (step.slope + 0.5 * length * step.curvature)
            # what rounding hides in the values the slopes still tell, by the trapezoidal rule
            fall = -0.5 * length * float((gradient + new_gradient) @ step.v) if hidden else value - new_value
            fine = fall >= 1e-3 * expected
            if fine or length <= _SHORTEST:
                break
            length *= 0.3
        if not fine:
            radius, fruitless = min(length, 0.25) * step.norm, fruitless + 1
            continue
        if length < 1:
            radius = length * step.norm
        elif fall > 0.7 * expected:
            radius = max(radius, 3 * step.norm)
        x, value, gradient, fruitless = trial, new_value, new_gradient, 0
        apply, diagonal = problem.hessian(x)
    return x
