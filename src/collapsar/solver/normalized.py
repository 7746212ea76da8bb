"""``solve`` for normalised features: on the spheres per sample, by the plain program per batch, each with its proof.

Per batch the optimum is that of the plain program at lambda_z = a ||Z M^(1/2)||_*, the root of one increasing function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from collapsar.core.normalization import normalization_of
from collapsar.core.problem import Problem
from collapsar.solver.certificate import Certificate, penalty
from collapsar.solver.nonnegative_spheres import minimise_nonnegative_spheres
from collapsar.solver.normalized_certificate import (
    NonnegativeSpheres,
    batch_price,
    certify_batch,
    certify_spheres,
    collapsed,
    normalized_quotient,
    scaled_quotient,
)
from collapsar.solver.objective import dual_entropy, target
from collapsar.solver.solution import SharedProof, shared_proof
from collapsar.solver.sphere_directions import PATIENCE, settle_directions
from collapsar.solver.sphere_newton import DENSE, newton_step
from collapsar.solver.spheres import NormalizedQuotient, SpherePoint, Spheres, sphere_point, sphere_start
from collapsar.solver.status import Result, Settings, Status
from collapsar.solver.symmetry import Blocks, Quotient

Solver = Callable[[Quotient, Blocks | None, Settings], Result]

_EASY = 1e-17  # decrement below which one more Newton step leaves only rounding
_SQUARED = 1e-10  # the same where a step is exact: what it leaves is this squared
FEW = 8  # clusters up to which no direction is worth dropping
_FREE_DIGITS = 24  # clusters up to which full accuracy of Z costs next to nothing
_CLOSED = 0.1  # of the tolerance: below it no better bound is looked for
_LEAP = 3.0  # nats by which one secant step may change the price
_AWAKE = 0.1  # contrast given to a merged cluster at a start, of its features' length
_EDGE = 1e-12  # of the gain at which everything collapses: rounding
_SADDLE = 1e-6  # decrement below which a point may be a saddle
_SHORTER = 1e-6  # multipliers below zero by more than this, relative to the largest, are not rounding
MERGED = 1e-3  # contrasts shorter than this are looked at: dead by the multipliers, they are set to zero


@dataclass(frozen=True, kw_only=True)
class NormalizedResult(Result):
    """A result with its factors where the features have equal length, None per batch."""

    spheres: Spheres | NonnegativeSpheres | None = None
    price: float = np.nan
    proof: SharedProof | None = None


def minimise_normalized(
    problem: Problem, q: Quotient, first: Spheres | NonnegativeSpheres | Blocks | None, how: Settings, plain: Solver
) -> NormalizedResult:
    """The optimum of a problem with normalised features, in units in which every row of W costs the same.

    Args:
        problem: with a normalization.
        q: its clusters.
        first: where to start: factors per sample, blocks per batch.
        how: tol, max_steps, progress.
        plain: the solver of the program with a feature penalty.
    """
    own = normalization_of(problem)
    if own.over == "batch":
        return _per_batch(problem, q, first if isinstance(first, Blocks) else None, how, plain)
    n = normalized_quotient(problem, q)
    if problem.features == "nonnegative":
        near = first if isinstance(first, NonnegativeSpheres) else None
        x, certificate, status, num_steps = minimise_nonnegative_spheres(n, how, near)
        return NormalizedResult(x.blocks(n.q), certificate, num_steps, status, spheres=x, price=n.price)
    start = first if isinstance(first, Spheres) else None
    collapsed = None if n.gain is None else _collapsed(n, n.gain, how)
    return _on_spheres(n, start, how) if collapsed is None else collapsed


def _on_spheres(n: NormalizedQuotient, start: Spheres | None, how: Settings) -> NormalizedResult:
    """Newton's method until the certificate closes; with many clusters, directions are dropped on the way."""
    p = sphere_point(n, sphere_start(n) if start is None else awake(n, start))
    radius, bound, idle, step = np.sqrt(4 * p.value), dual_entropy(n.q, target(n.q)), 0, 0
    times_added = turns = wakes = 0
    best: NormalizedResult | None = None
    # a smoothed target can be met exactly: then part of a feature lies where W sees nothing, which looks droppable
    many = n.q.num_clusters > FEW and not n.q.smoothing
    aim = max(10 * how.tol, 1e-13) if n.q.num_clusters > _FREE_DIGITS else _EASY
    aim = _SQUARED if n.q.num_clusters <= DENSE else aim
    for step in range(1, how.max_steps + 1):
        before = p
        p, radius, decrement = newton_step(p, radius)
        if many:
            p, wider = settle_directions(p, decrement, times_added)
            times_added += wider
            if wider and step < how.max_steps:
                radius = max(radius, 1e-3 * np.sqrt(p.value))
                continue
        # the weaker the head, the less of its price decides what small classes do
        ready = decrement <= aim * min(1.0, p.price * p.x.weight_norm() / max(p.value, 1e-300)) ** 0.5 or p is before
        ready |= step == how.max_steps
        if ready and start is not None and not many:  # what died at a nearby price has no slope to come back
            p, wider = settle_directions(p, decrement, PATIENCE)
            if wider and step < how.max_steps:
                continue
        if decrement <= _SADDLE and turns < PATIENCE and step < how.max_steps:
            shorter = _turned_out(n, p)
            if shorter is not None:
                p, radius, turns = shorter, max(radius, 1e-3 * np.sqrt(shorter.value)), turns + 1
                continue
        certificate = Certificate(p.value, bound)
        if ready:
            p, certificate = _merged(n, p, how.tol)
            bound = max(bound, certificate.dual)
            idle = 0 if best is None or certificate.gap < 0.5 * best.certificate.gap else idle + 1
            if best is None or certificate.gap <= best.certificate.gap:
                status = Status.OPTIMAL if certificate.relative_gap <= how.tol else Status.STALLED
                best = NormalizedResult(p.x.blocks(n.q), certificate, step, status, spheres=p.x, price=p.price)
        if how.progress is not None:
            how.progress(step, certificate)
        closed = best is not None and best.status is Status.OPTIMAL
        if ready and not closed and wakes < PATIENCE:  # at zero a contrast has no slope, whatever its multiplier says
            x = awake(n, p.x)
            if np.any(np.abs(x.u) > np.abs(p.x.u)):
                p, wakes = sphere_point(n, x), wakes + 1
                radius = max(radius, 1e-3 * np.sqrt(p.value))
                continue
        if closed or (best is not None and (p is before or idle > 8)):
            break
    assert best is not None  # the last step always certifies
    spent = best.status is not Status.OPTIMAL and step == how.max_steps
    return replace(best, status=Status.MAX_STEPS) if spent else best


def _turned_out(n: NormalizedQuotient, p: SpherePoint) -> SpherePoint | None:
    """Features that would rather be shorter, turned towards a direction that W does not use; None if none gains.

    Multipliers below zero say which. From a start in the span of W no slope leads there: the point is a saddle.
    """
    x, q = p.x, n.q
    long = p.nu < -_SHORTER * np.max(np.abs(p.nu))
    if not long.any() or x.E.shape[0] < q.num_clusters:
        return None
    unused = np.linalg.svd(x.E)[0][:, -1:]  # rows of W sum to zero: of as many directions as clusters, one is free
    towards = unused * np.where(long, np.sqrt(q.sizes), 0.0)
    still = (0 * x.E, towards, 0 * x.v, 0 * x.u, 0 * x.b)
    tried = [sphere_point(n, x.moved(q, still, length)) for length in np.geomspace(1e-3, 1.0, 7)]
    best = min(tried, key=lambda one: one.value)
    return best if best.value < p.value else None


def awake(n: NormalizedQuotient, x: Spheres, held: int | None = None) -> Spheres:
    """A start in which contrasts are dead where their multipliers say so: at zero none has a slope to bring it back.

    Args:
        n: the program.
        x: factors, the optimum at a nearby price.
        held: a cluster whose contrast is zero whatever they say.
    """
    q = n.q
    short = (x.u**2 < MERGED * q.sizes) & (q.sizes > 1)
    hold = np.arange(q.num_clusters) == held
    if not (short | hold).any():
        return x
    p = sphere_point(n, x)
    dead = hold | (short & (p.R.within**2 < p.nu * p.price))
    u = np.where(dead, 0.0, np.where(short, _AWAKE * np.sqrt(q.sizes), x.u))
    v = np.where(dead, 0.0, np.where(short, p.R.within * u / p.price, x.v))
    F = x.F * np.sqrt((q.sizes - u**2) / np.maximum(np.sum(x.F**2, axis=0), np.finfo(np.float64).tiny))
    return Spheres(x.E, F, v, u, x.b)


def _merged(n: NormalizedQuotient, p: SpherePoint, tol: float) -> tuple[SpherePoint, Certificate]:
    """The point and its certificate; contrasts that only tend to zero are zero if that closes the certificate."""
    q, x, own = n.q, p.x, certify_spheres(n, p.x, enough=_CLOSED * tol)
    small = (x.u**2 < MERGED * q.sizes) & (q.sizes > 1)
    dead = small & (p.R.within**2 < p.nu * p.price * (1 - 1e-9))
    if not dead.any():
        return p, own
    F = x.F / np.where(dead, np.sqrt(np.sum(x.F**2, axis=0) / q.sizes), 1.0)
    new = sphere_point(n, Spheres(x.E, F, np.where(dead, 0.0, x.v), np.where(dead, 0.0, x.u), x.b))
    certificate = certify_spheres(n, new.x)
    closed = certificate.relative_gap <= min(tol, max(own.relative_gap, 1e-11))
    return (new, certificate) if closed else (p, own)


def _root(excess: Callable[[float], float], guess: float, tol: float) -> float:
    """The root of an increasing function of log x that is nearly linear with slope one, by secants."""
    low, high = -np.inf, np.inf
    t = float(np.log(guess))
    f = excess(float(np.exp(t)))
    slope = 1.0
    for _ in range(60):
        low, high = (t, high) if f < 0 else (low, t)
        if abs(f) <= tol:
            break
        new = t - float(np.clip(f / slope, -_LEAP, _LEAP))
        if not low < new < high:
            new = 0.5 * (low + high) if np.isfinite(low + high) else t - np.sign(f)
        value = excess(float(np.exp(new)))
        if new != t:
            slope = max(float((value - f) / (new - t)), 1e-6)
        t, f = new, value
    return float(np.exp(t))


def _per_batch(problem: Problem, q: Quotient, first: Blocks | None, how: Settings, plain: Solver) -> NormalizedResult:
    scaled = scaled_quotient(problem, q)
    if normalization_of(problem).lambda_gain is not None:
        lambda_z = problem.lambda_z / float(np.sqrt(problem.mass.sum()))
        result = plain(replace(scaled, lambda_z=lambda_z), first, how)
        own, proof = (result.blocks, result.certificate, result.num_steps, result.status), shared_proof(result)
        return NormalizedResult(*own, price=lambda_z, proof=proof)
    a, inner = batch_price(problem), how._replace(tol=0.1 * how.tol, progress=None)
    last: list[Result] = []
    steps = 0

    def excess(lambda_z: float) -> float:
        nonlocal steps
        result = plain(replace(scaled, lambda_z=lambda_z), last[-1].blocks if last else first, inner)
        steps += result.num_steps
        last.append(result)
        nuclear = penalty(scaled, result.blocks) if result.penalty is None else result.penalty
        return float(np.log(lambda_z / (a * nuclear))) if nuclear > 0 else 50.0

    complete = float(np.max(q.share * q.temperatures * scaled.scales / np.sqrt(q.mass)))
    # a mismatch of the two prices costs its square
    exact = 1e-12 if q.num_clusters <= _FREE_DIGITS else 0.01 * float(np.sqrt(how.tol))
    lambda_z = _root(excess, min(np.sqrt(a) * 1.5, 0.5 * complete), exact)
    blocks, proof, end = last[-1].blocks, shared_proof(last[-1]), last[-1].status
    certificate = certify_batch(problem, replace(scaled, lambda_z=lambda_z), blocks, proof)
    end = Status.STALLED if end is Status.OPTIMAL else end
    return _told(NormalizedResult(blocks, certificate, steps, end, price=lambda_z, proof=proof), how)


def _told(result: NormalizedResult, how: Settings) -> NormalizedResult:
    """The result, reported; optimal if its gap says so."""
    if how.progress is not None:
        how.progress(result.num_steps, result.certificate)
    return replace(result, status=Status.OPTIMAL) if result.certificate.relative_gap <= how.tol else result


def _collapsed(n: NormalizedQuotient, gain: float, how: Settings) -> NormalizedResult | None:
    """Z = 0 and the bias alone, if the certificate says that this is the optimum."""
    rest, least = collapsed(n)
    if least > gain * (1 + _EDGE):
        return None
    blank = sphere_start(n)
    x = Spheres(0 * blank.E, blank.F, 0 * blank.v, blank.u, rest.b)
    certificate = certify_spheres(n, x)
    if not certificate.relative_gap <= how.tol:
        return None
    return NormalizedResult(x.blocks(n.q), certificate, 1, Status.OPTIMAL, spheres=x, price=np.inf)
