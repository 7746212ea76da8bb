"""Signed features: the nuclear-norm program on the quotient, by proximal and factored Newton steps in turn.

With X = S M^(1/2) = A diag(sigma) B' and R = -(gradient of the loss in X), an iteration is

1. a proximal-gradient step X <- prox_{s lambda_Z ||.||_*}(X + sR): one SVD, which says which singular values live
   (the rank) and gives bases A, B in which the dual R is diagonal on the dead part;
2. a Newton step for min f(UV') + (lambda_Z/2)(||U||^2 + ||V||^2), U V' = X, which is smooth and has no bad stationary
   points (Hong & Ling, JMLR 25(192), 2024, Thm 6), by conjugate gradients in a trust region (:mod:`.manifold`).

The duality gap of :mod:`.certificate` is the stopping rule.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collapsar.solver.certificate import GAP_FLOOR, Certificate, certify_blocks
from collapsar.solver.coarse import coarsened, interpolated
from collapsar.solver.conjugate_gradients import next_radius
from collapsar.solver.hessian import loss_hessian
from collapsar.solver.manifold import Basis, NewtonSystem, Point, newton_system, point, retract, straight
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.objective import dual_entropy, target
from collapsar.solver.rotation import rotation_point
from collapsar.solver.start import asymptotic_start
from collapsar.solver.status import Progress, Result, Status
from collapsar.solver.symmetry import Blocks, Quotient

_NOISE = 1e-15  # relative rounding of the objective

# certificates in a row that may fail to halve the gap, or to lower the objective by a thousandth of it, before the best
# one is returned: the primal may be nearly there while the dual is still poor
_PATIENCE = 4

_GOOD = 0.5  # a step this close to its model needs no second way to take it

# The gap is of second order, so a gap of 1e-9 leaves Z good to 1e-5 or so. Up to _DIGITS clusters the point therefore
# takes one more accurate Newton step before it is certified, from a decrement of _BEFORE_LAST, relative to the
# objective, towards _LAST: Z itself is then good to nine digits. Beyond, that step would double the time.
_DIGITS = 128
_BEFORE_LAST = 1e-10
_LAST = 1e-20

# Up to _ASYMPTOTIC clusters Newton's method starts at the asymptotic optimum, beyond that at a coarser problem's: a
# sixth of the clusters, but at least _FEWEST_GROUPS, if that is few enough for Newton's method on the dual's
# rotation (J(J - 1)/2 unknowns, densely); otherwise half, which costs an eighth of a step and leaves one or two.
_ASYMPTOTIC = 24
_FEWEST_GROUPS = 12
_ROTATE = 24
# All digits of a coarser problem are wanted, and more: what is flat there is flat here, where every product costs
# eight times as much. But none of its steps need be accurate: the next is cheap too.
_COARSE = 0.1
_LOOSE = 0.1
_LEFT = 0.1  # of the aim: what a Newton step may leave to be gained


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # no step is taken to where the objective is not finite
def minimise_signed(
    q: Quotient,
    start: Blocks | None = None,
    *,
    tol: float = 1e-9,
    max_steps: int = 300,
    progress: Progress | None = None,
    digits: bool = True,
) -> Result:
    """The optimum of the signed program on the quotient.

    Args:
        q: J clusters, ``features == "signed"``.
        start: a point to start from, for example the optimum of a neighbouring problem.
        tol: relative duality gap to reach, certified at the returned point.
        max_steps: at most this many iterations.
        progress: called at every step, with the best lower bound so far.
        digits: whether Z is to be as good as the objective.

    Returns:
        The best certified point, with status OPTIMAL, MAX_STEPS or STALLED.
    """
    first = _first_guess(q, tol) if start is None else start
    loose = 0.0 if digits else _LOOSE
    digits = digits and q.num_clusters <= _DIGITS
    width = np.sqrt(np.maximum(q.sizes - 1, 0.0))
    x = point(q, q.weight * first.C, width * np.sqrt(q.mass) * np.maximum(first.alpha, 0.0), first.b)
    value = x.smooth + q.lambda_z * (float(np.linalg.svd(x.X, compute_uv=False).sum()) + float(width @ x.y))
    radius, stretch, previous = np.inf, 1.0, np.inf
    near = aim = 0.5 * tol  # the gap is of the order of the decrement
    best: Result | None = None
    bound = dual_entropy(q, target(q))  # the residual of the targets themselves is 0: a bound, if a poor one
    step = idle = 0
    for step in range(1, max_steps + 1):
        before = value
        x, basis, value, stretch = _proximal_step(q, x, value, stretch)
        system = newton_system(q, x, basis)
        decrement = system.decrement / max(abs(value), GAP_FLOOR)
        still = decrement <= 1e-30 and before - value <= 2 * _NOISE * max(abs(value), GAP_FLOOR)
        last = still or step == max_steps
        certify = last or decrement <= aim or near >= decrement > 1e-2 * previous
        if digits and not last:  # the last step squares this, and what Z is off by is of the order of its root
            certify &= system.decrement <= _BEFORE_LAST * abs(value)
        previous = decrement
        if certify and digits and not still:
            forcing = min(0.1, np.sqrt(_LAST / max(decrement, 1e-300)))
            x, value, radius = _newton_step(system, value, forcing, radius)
        blocks = x.blocks(q)
        certificate = certify_blocks(q, blocks, enough=tol) if certify else Certificate(value, bound)
        if progress is not None:
            progress(step, certificate)
        if certify:
            bound = max(bound, certificate.dual)
            idle = 0 if best is None or _nearer(certificate, best.certificate) else idle + 1
            if best is None or certificate.gap < best.certificate.gap:
                status = Status.OPTIMAL if certificate.relative_gap <= tol else Status.STALLED
                best = Result(blocks, certificate, step, status)
            if best.status is Status.OPTIMAL or last or idle > _PATIENCE:
                break
            aim = 1e-3 * min(aim, decrement)
        if not (still or (certify and digits)):
            # superlinear: the residual is asked to fall with the decrement, but not below what the aim needs
            forcing = max(min(0.1, decrement**0.4), loose)
            enough = _LEFT * (min(aim, _BEFORE_LAST) if digits else aim) * max(abs(value), GAP_FLOOR)
            x, value, radius = _newton_step(system, value, forcing, radius, enough)
    assert best is not None  # the last step always certifies
    if best.status is Status.OPTIMAL or step < max_steps:
        return best
    return Result(best.blocks, best.certificate, step, Status.MAX_STEPS)


def _nearer(new: Certificate, best: Certificate) -> bool:
    return new.gap < 0.5 * best.gap or best.primal - new.primal > 1e-3 * best.gap


def _first_guess(q: Quotient, tol: float) -> Blocks:
    """Where to start: the asymptotic optimum, the column form's, or for many clusters that of a coarser problem."""
    J = q.num_clusters
    if J <= _ASYMPTOTIC:
        return asymptotic_start(q)
    groups = max(_FEWEST_GROUPS, J // 6)
    coarse = coarsened(q, groups if groups <= _ROTATE else J // 2)
    if coarse is not None:
        found = rotation_point(coarse) if coarse.num_clusters <= _ROTATE else None
        blocks = (
            minimise_signed(coarse, tol=_COARSE * tol, max_steps=50, digits=False).blocks if found is None else found[0]
        )
        return interpolated(q, coarse, blocks)
    # the columns separate, so this costs a few products, and with many classes the two optima are close
    return minimise_nonnegative(replace(q, features="nonnegative"), tol=1e-3, max_steps=20).blocks


def _proximal_step(q: Quotient, x: Point, value: float, stretch: float) -> tuple[Point, Basis, float, float]:
    """X <- prox(X + sR) and the same for y, s = ``stretch`` / steepest curvature: the longest that worked lately.

    Returns the point, its basis, its objective, and the ``stretch`` to try next.
    """
    hessian = loss_hessian(q, x.P)
    steepest = max(float(hessian.diagonal.max()), float(hessian.within_diagonal.max()), 1e-300)
    width = np.sqrt(np.maximum(q.sizes - 1, 0.0))
    while True:
        s = stretch / steepest
        moved = x.X + s * x.R.between
        if not np.isfinite(moved).all() and stretch > 1e-12:
            stretch /= 8
            continue
        A, sigma, Bt = np.linalg.svd(moved)
        sigma = np.maximum(sigma - s * q.lambda_z, 0.0)
        sigma[sigma < 1e-14 * sigma[0]] = 0.0
        y = np.maximum(x.y + s * width * (x.R.within - q.lambda_z), 0.0)
        new = point(q, (A * sigma) @ Bt, y, x.b)
        new_value = new.smooth + q.lambda_z * (float(sigma.sum()) + float(width @ y))
        if new_value <= value + _NOISE * max(abs(value), GAP_FLOOR) or stretch < 1e-12:
            return new, Basis(A, sigma, Bt.T, int(np.sum(sigma > 0))), new_value, min(2 * stretch, 1e3)
        stretch /= 8


def _newton_step(
    system: NewtonSystem, value: float, forcing: float, radius: float, enough: float = 0.0
) -> tuple[Point, float, float]:
    """One trust-region step along the truncated Newton direction, shortened until objective and model agree."""
    rounding = 1e-4 if system.A.dtype == np.float32 else 1e-6
    step = system.solve(radius, max(forcing, rounding), enough)
    noise = 10 * _NOISE * max(abs(value), GAP_FLOOR)
    length = 1.0
    while length > 1e-10:
        predicted = -(step.slope + 0.5 * length * step.curvature) * length
        new, new_value, agreement = system.x, np.inf, -np.inf
        for move in (retract, straight):
            trial, price = move(system, step, length)
            trial_value = trial.smooth + system.q.lambda_z * price
            if trial_value < new_value:
                new, new_value = trial, trial_value
                agreement = (value - new_value + noise) / (predicted + noise)
            if agreement > _GOOD:
                break
        if agreement > 1e-4:
            break
        length /= 2
    else:
        return system.x, value, np.inf  # the model is at fault, not the length: leave it to the proximal step
    return new, new_value, next_radius(radius, step.norm, length, agreement)
