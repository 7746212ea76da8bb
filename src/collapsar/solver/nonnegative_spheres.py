"""Nonnegative features of unit length: min loss + (c/2)||W||^2 + bias penalty over W, b, h_k >= 0, ||h_k|| = 1.

Convex in (Z, b) as for signed features, with H'H completely positive. For fixed multipliers y_k / c of ||h_k||^2 <= 1
the Lagrangian is the program with a feature penalty at masses y and lambda_Z = 1, less sum(y) / (2c): a witness (S, N)
of that program (:mod:`.witness`) proves

    D(S) - sum(y) / (2c)  <=  optimum     where     R'R + N <= diag(y),   N >= 0, zero on the diagonal.

Where every class owns a direction, H = I, the head is a ridge regression, y_k = ||r_k||^2, and N = -R'R closes the
bound iff no two columns of R are at an acute angle. Elsewhere classes share directions: the factors descend
(:mod:`.factored`) in the coordinates W sqrt(c), H diag(y / c)^(1/2), in which both have price one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from collapsar.core.types import Matrix, Vector
from collapsar.solver.atoms import Atoms, combined, own_directions, with_overlaps
from collapsar.solver.certificate import GAP_FLOOR, Certificate, balance_bias
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.factored import descend, newton
from collapsar.solver.hessian import loss_hessian
from collapsar.solver.normalized_certificate import NonnegativeSpheres, certify_nonnegative, nonnegative_point
from collapsar.solver.objective import Columns, predict, residual
from collapsar.solver.relaxed import beginning, relaxed
from collapsar.solver.shared import leaning
from collapsar.solver.shared_directions import missing_directions, with_directions
from collapsar.solver.spheres import NormalizedQuotient, sphere_start
from collapsar.solver.status import Settings, Status
from collapsar.solver.symmetry import Blocks

_ROUNDS = 8  # of descent, Newton's method and the bound: one or two are usual
_RIDGE_STEPS = 100  # a dozen are usual
_SETTLED = 1e-20  # relative decrement of Newton's method below which all is rounding
_SHORTEST = 1e-8  # the shortest of its steps
_CLOSED = 1e-12  # relative gap of a point continued from a nearby price, and
_AT_REST = 1e-10  # how far its head may be from what its features ask for, relative: Newton's method has ended


def minimise_nonnegative_spheres(
    n: NormalizedQuotient, how: Settings, near: NonnegativeSpheres | None = None
) -> tuple[NonnegativeSpheres, Certificate, Status, int]:
    """The optimum, whether classes share directions or not, with its certificate, status and number of steps.

    Args:
        n: the program.
        how: tol, max_steps, progress.
        near: the optimum at a price nearby, whose directions are tried before descent looks for them.

    Returns:
        The best point. Its status is ``SHARED_DIRECTIONS`` if the gap stays open: the relaxation behind the bound is
        not tight there, or float64 allows no better.
    """
    found = None if near is None else _continued(n, near)
    if found is None:
        x, step = ridge(n)
        best, certificate = x, certify_nonnegative(n, x)
    else:
        (best, certificate), step = found, 1
    if certificate.relative_gap <= how.tol:
        if how.progress is not None:
            how.progress(step, certificate)
        return best, certificate, Status.OPTIMAL, step
    x = _leaning(n, best)
    for round_ in range(min(_ROUNDS, how.max_steps)):
        step += 1
        x = _descended(n, x, how.tol)
        x, found = _tightened(n, x, how.tol)
        nearer = found.gap < 0.9 * certificate.gap
        if found.gap <= certificate.gap:
            best, certificate = x, found
        if how.progress is not None:
            how.progress(step, certificate)
        if certificate.relative_gap <= how.tol:
            break
        wider = _widened(n, x)
        if wider is None and round_ and not nearer:
            break
        x = x if wider is None else wider
    closed = certificate.relative_gap <= how.tol
    return best, certificate, Status.OPTIMAL if closed else Status.SHARED_DIRECTIONS, step


def _tightened(n: NormalizedQuotient, x: NonnegativeSpheres, tol: float) -> tuple[NonnegativeSpheres, Certificate]:
    """The point with a better witness if its own leaves the gap open: that of the relaxation at its multipliers."""
    q, best, certificate = n.lagrangian(x.y), x, certify_nonnegative(n, x)
    if certificate.relative_gap <= tol:
        return best, certificate
    for at in relaxed(q, beginning(q, _priced(n, x), x.b, x.witness), tol):
        blocks = at.blocks(q)
        S = predict(q, balance_bias(q, blocks))[0]
        other = replace(x, witness=at.witness(q, S))
        tighter = certify_nonnegative(n, other)
        settled = tighter.gap > 0.5 * certificate.gap
        if tighter.dual > certificate.dual:
            best, certificate = other, tighter
        if certificate.relative_gap <= tol or settled:
            break
    return best, certificate


def _widened(n: NormalizedQuotient, x: NonnegativeSpheres) -> NonnegativeSpheres | None:
    """The point with the directions it lacks added; None if it lacks none.

    They are sought at its own softmax: the witness's may be the relaxation's, which is feasible for the dual.
    """
    q = n.lagrangian(x.y)
    missing = missing_directions(q, predict(n.q, x.blocks(n.q))[0])
    return None if missing is None else _unit(n, with_directions(_priced(n, x), missing), x)


def held_equal(n: NormalizedQuotient, j: int, near: NonnegativeSpheres | None = None) -> NonnegativeSpheres:
    """The optimum with the features of cluster j's classes equal; ``near``: one at a price nearby, to start from."""
    found = None if near is None else _continued(n, _with_equal(n, near, j), j)
    if found is not None:
        return found[0]
    x = _with_equal(n, _leaning(n, ridge(n)[0]), j)
    for _ in range(2):  # from the multipliers of a ridge regression, and from its own
        x = _descended(n, x, 0.0, held=j)
    return x


def _with_equal(n: NormalizedQuotient, x: NonnegativeSpheres, j: int) -> NonnegativeSpheres:
    """The point with the features of cluster j's classes at their mean."""
    own, within = x.atoms.own.copy(), x.atoms.within.copy()
    own[:, j] = within[:, j] = 0.0
    return _unit(n, _priced(n, replace(x, atoms=Atoms(x.atoms.between, within, own, x.atoms.mean - own))), x)


def _continued(
    n: NormalizedQuotient, near: NonnegativeSpheres, held: int | None = None
) -> tuple[NonnegativeSpheres, Certificate] | None:
    """The optimum by Newton's method from the one at a nearby price; None if it needs other directions.

    With a cluster's features held equal no better witness is looked for: it is enough that no direction is missing.
    """
    x = nonnegative_point(n, near.atoms, near.b)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # if the way is lost, the best point is kept
        atoms, b = newton(n.lagrangian(x.y), _priced(n, x), x.b, n.q.sizes * x.y / n.price, held)
    x = nonnegative_point(n, _unit(n, combined(n.q, atoms).alive(n.q), x).atoms, b)
    asked = _asked(n, x, x.atoms.own, x.atoms.common)
    if not float(np.max(np.abs(x.atoms.between - asked.between))) <= _AT_REST * float(np.max(np.abs(asked.between))):
        return None
    certificate = certify_nonnegative(n, x, held)
    if certificate.relative_gap <= _CLOSED:
        return x, certificate
    closed = held is not None and missing_directions(n.lagrangian(x.y), x.witness.S, held) is None
    return (x, certificate) if closed else None


def fewest(n: NormalizedQuotient, x: NonnegativeSpheres) -> NonnegativeSpheres:
    """The optimum with no more directions than its overlaps need, if these are found: Newton's method then ends."""
    C, gamma = x.atoms.gram()
    features = with_overlaps(n.q, C - np.diag(gamma), gamma)
    return x if features is None else replace(x, atoms=_asked(n, x, *features).alive(n.q))


def _asked(n: NormalizedQuotient, x: NonnegativeSpheres, own: Matrix, common: Matrix) -> Atoms:
    """The head that features ask for at the softmax of a point, which at the optimum is its own."""
    Q = residual(n.q, predict(n.q, x.blocks(n.q))[0]).over(n.price)
    return Atoms.along(own, common, Q)


def _leaning(n: NormalizedQuotient, x: NonnegativeSpheres) -> NonnegativeSpheres:
    q = n.lagrangian(x.y)
    atoms, b = leaning(q, x.blocks(n.q), x.witness.S)
    return _unit(n, atoms, replace(x, b=b))


def _priced(n: NormalizedQuotient, x: NonnegativeSpheres) -> Atoms:
    """The factors in the coordinates in which both have the price one."""
    return x.atoms.scaled(np.sqrt(n.price), np.sqrt(x.y / n.price))


def _unit(n: NormalizedQuotient, priced: Atoms, at: NonnegativeSpheres) -> NonnegativeSpheres:
    """The inverse, with features of unit length up to rounding."""
    return replace(at, atoms=priced.scaled(1 / np.sqrt(n.price), np.sqrt(n.q.sizes / priced.squares(n.q))))


def _descended(n: NormalizedQuotient, x: NonnegativeSpheres, tol: float, held: int | None = None) -> NonnegativeSpheres:
    q, squares = n.lagrangian(x.y), n.q.sizes * x.y / n.price
    near = descend(q, _priced(n, x), x.b, None, tol, squares, held)
    points = [
        nonnegative_point(n, _unit(n, combined(q, atoms), x).atoms, b)
        for atoms, b in (near, newton(q, *near, squares, held))
    ]
    return points[1] if held is not None else min(points, key=lambda x: certify_nonnegative(n, x).gap)


# --- own directions


@dataclass(frozen=True)
class _Ridge:
    """loss + (c/2)||Z||^2 + bias penalty: unknowns X = weight * C, the within-cluster part v, and b, as one vector."""

    n: NormalizedQuotient

    def split(self, x: Vector) -> tuple[Matrix, Vector, Vector]:
        J = self.n.q.num_clusters
        return x[: J * J].reshape(J, J), x[J * J : J * J + J], x[J * J + J :]

    def joined(self, X: Matrix, v: Vector, b: Vector) -> Vector:
        """One vector; a free bias without the shift that changes nothing."""
        return np.concatenate([X.ravel(), v, self.n.q.without_shift(b) if self.n.has_bias else np.zeros_like(b)])

    def blocks(self, x: Vector) -> Blocks:
        X, v, b = self.split(x)
        return Blocks(v / np.sqrt(np.maximum(self.n.q.sizes - 1, 1.0)), X / self.n.q.weight, b)

    def predicted(self, x: Vector) -> tuple[Columns, float]:
        """Softmax and objective."""
        P, loss = predict(self.n.q, self.blocks(x))
        X, v, b = self.split(x)
        return P, loss + 0.5 * self.n.price * float(np.sum(X**2) + v @ v) + self.n.q.bias_cost(b)

    def step(self, x: Vector, P: Columns) -> tuple[Vector, float]:
        """Newton's step and the slope along it."""
        q, c = self.n.q, self.n.price
        loss, R, (X, v, b) = loss_hessian(q, P), residual(q, P), self.split(x)
        pull = np.sqrt(q.sizes - 1) * R.within
        gradient = self.joined(c * X - R.between, c * v - pull, q.bias_weight * b - q.sizes * R.bias)
        bias = np.maximum(loss.bias_diagonal + q.bias_weight, np.finfo(np.float64).tiny)
        stiff = np.concatenate([(c + loss.diagonal).ravel(), c + loss.within_diagonal, bias])

        def curve(d: Vector) -> Vector:
            dX, dv, db = self.split(d)
            hX, hv, hb = loss.apply(dX, dv, db)
            return self.joined(hX + c * dX, hv + c * dv, hb + q.bias_weight * db)

        move = truncated_newton(
            curve, lambda d: self.joined(*self.split(d / stiff)), gradient, radius=np.inf, forcing=1e-3
        )
        return move.v, move.slope


def ridge(n: NormalizedQuotient) -> tuple[NonnegativeSpheres, int]:
    """The best point with H = I, and the number of Newton steps on its strictly convex problem."""
    at, start = _Ridge(n), sphere_start(n)
    simplex = start.blocks(n.q)
    x = at.joined(n.q.weight * simplex.C, start.v * start.u / np.sqrt(np.maximum(n.q.sizes - 1, 1.0)), simplex.b)
    (P, value), num_steps = at.predicted(x), 0
    for num_steps in range(1, _RIDGE_STEPS + 1):  # noqa: B007 - the count is returned
        move, slope = at.step(x, P)
        length, before = 1.0, value
        while length > _SHORTEST:
            P, value = at.predicted(x + length * move)
            if value <= before + 1e-4 * length * slope + 1e-15 * before:
                break
            length /= 2
        x = x + length * move
        if -slope <= _SETTLED * max(value, GAP_FLOOR):
            break
    return nonnegative_point(n, own_directions(n.q, at.blocks(x)), at.split(x)[2]), num_steps
