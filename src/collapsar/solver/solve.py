"""The verb: ``solve`` a problem."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collapsar.core.checks import must_be, number
from collapsar.core.problem import Problem
from collapsar.core.threads import one_thread_below
from collapsar.solver.atoms import Atoms
from collapsar.solver.certificate import Certificate, as_free, balance_bias, certify_blocks, dual_norm
from collapsar.solver.contraction import contraction_point
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.objective import predict, residual
from collapsar.solver.overlaps import follow_overlaps, minimise_overlaps
from collapsar.solver.rotation import SOME, rotation_point
from collapsar.solver.shared import continued, minimise_shared
from collapsar.solver.signed import minimise_signed
from collapsar.solver.small_certificate import certify_small
from collapsar.solver.solution import NotConvergedError, Solution, shared_proof
from collapsar.solver.status import Progress, Result, Settings, Status
from collapsar.solver.symmetry import Blocks, Quotient, finer_quotient, quotient

_NEAR_REST = 1e-3  # logits, in nats, below which Z = 0 itself is looked at
_EDGE = 1e-12  # the dual norm at Z = 0, relative, and the gap there, in nats: rounding
_FEW = 40  # clusters up to which Newton's method on the overlaps takes no longer than the column form


def solve(
    problem: Problem,
    tol: float = 1e-9,
    *,
    max_steps: int = 300,
    start: Solution | None = None,
    progress: Progress | None = None,
    throw: bool = True,
) -> Solution:
    """The optimum of the unconstrained feature model, with a certificate.

    Args:
        problem: the convex program.
        tol: bound on the duality gap relative to max(|primal|, 2e-3). It is a promise about the objective; the error
            of Z or b is of the order of the square root of the gap that is left. With signed features and up to 128
            kinds of classes, one more Newton step is taken before the point is certified, so that at the default Z
            itself is good to nine digits, or six where a class stands at its threshold.
        max_steps: at most this many steps of the algorithm.
        start: the solution of a problem with the same clusters, to start from.
        progress: called with (step, certificate) at each step that has one, including the last; may raise to interrupt.
        throw: raise when ``tol`` is not reached; otherwise ``status`` says so.

    Returns:
        The solution, certified at exactly the returned point.

    Raises:
        NotConvergedError: the gap did not reach ``tol`` and ``throw`` is true; carries ``.solution``.
        ValueError: ``tol``, ``max_steps`` or ``start`` is out of range.

    Example:
        >>> s = solve(Problem("500x5,100x5", lambda_z=0.0045, lambda_b=0.02))
        >>> s.class_states[0], s.class_states[9], s.certificate.relative_gap <= 1e-9
        ('separated', 'vanished', True)
    """
    must_be(Problem, problem)
    how = checked_settings(tol, max_steps, progress, throw)
    q = quotient(problem)
    if start is not None and not np.array_equal(start.quotient.labels, q.labels):
        raise ValueError("`start` must solve a problem with the same clusters of classes; leave it out")
    return _solved(problem, q, start, how)


def _solved(problem: Problem, q: Quotient, start: Solution | None, how: Settings) -> Solution:
    if problem.normalization is not None:
        return solve_normalized(problem, q, start, how)
    if start is None:
        return solve_quotient(problem, q, None, how)
    return solve_quotient(problem, q, start.blocks, how, None if start.proof is None else start.proof.atoms)


def solve_near(problem: Problem, near: Solution | None, tol: float = 1e-9) -> Solution:
    """The optimum, started from a similar problem's if that has the same clusters; reports failure in ``status``.

    With nonnegative features, whose directions are expensive to find, also if its clusters are finer: they are kept.

    Args:
        problem: the convex program.
        near: any solution, or None.
        tol: as for :func:`solve`.
    """
    q = quotient(problem)
    if near is not None and problem.features == "nonnegative" and problem.normalization is None:
        q = finer_quotient(problem, q, near.quotient.labels) or q
    alike = near is not None and np.array_equal(near.quotient.labels, q.labels)
    return _solved(problem, q, near if alike else None, Settings(tol, 300, None, throw=False))


def checked_settings(tol: float, max_steps: int, progress: Progress | None, throw: bool) -> Settings:
    """The arguments of :func:`solve`, checked once for any number of problems.

    Raises:
        ValueError: ``tol`` or ``max_steps`` is not a number, or out of range.
    """
    if not 0 < number("tol", tol) < 1:
        raise ValueError(f"`tol` must be in (0, 1), got {tol!r}")
    if not number("max_steps", max_steps) >= 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps!r}")
    return Settings(tol, max_steps, progress, throw)


def solve_quotient(
    problem: Problem, q: Quotient, first: Blocks | None, how: Settings, atoms: Atoms | None = None
) -> Solution:
    """The solution of a problem whose quotient is known, started at ``first`` and its factors if they are known.

    Raises:
        NotConvergedError: as for :func:`solve`.
    """
    with one_thread_below(q.num_clusters):
        result = _minimise(q, first, how, atoms)
        solution = _solution(problem, q, result)
    if how.throw and result.status is not Status.OPTIMAL:
        raise NotConvergedError(solution)
    return solution


def solve_normalized(problem: Problem, q: Quotient, start: Solution | None, how: Settings) -> Solution:
    """The solution of a problem with normalised features.

    Raises:
        NotConvergedError: as for :func:`solve`.
    """
    from collapsar.solver.normalized_solution import normalized_solution

    with one_thread_below(q.num_clusters):
        solution = normalized_solution(problem, q, start, how, _minimise)
    if how.throw and solution.status is not Status.OPTIMAL:
        raise NotConvergedError(solution)
    return solution


def _minimise(q: Quotient, first: Blocks | None, how: Settings, atoms: Atoms | None = None) -> Result:
    """One algorithm after the other, until one closes the certificate."""
    free = as_free(q)
    if free is not q:
        result = _minimise(free, first, how, atoms)
        price = q.bias_cost(result.blocks.b)
        own = result.certificate
        return replace(result, certificate=Certificate(own.primal + price, own.dual))
    if first is not None and q.lambda_b == np.inf:
        first = Blocks(first.alpha, first.C, np.zeros_like(first.b))
    if q.features == "nonnegative":
        return _minimise_nonnegative(q, first, how, atoms)
    found = _from_dual(q, first, how) if q.num_clusters <= SOME and q.bias_rows is None else None
    if found is None:
        found = minimise_signed(q, first, tol=how.tol, max_steps=how.max_steps, progress=how.progress)
    return _resting(q, found)


def _resting(q: Quotient, result: Result) -> Result:
    """Z = 0 itself if that is the optimum: an iterate that only comes near it has logits within the gap."""
    near = result.blocks
    if not max(np.max(np.abs(near.C)), np.max(np.abs(near.alpha))) <= _NEAR_REST:
        return result
    rest = Blocks(np.zeros_like(near.alpha), np.zeros_like(near.C), near.b)
    rest = balance_bias(q, rest)
    if dual_norm(q, residual(q, predict(q, rest)[0])) > q.lambda_z * (1 + _EDGE):
        return result
    own = certify_blocks(q, rest)
    return replace(result, blocks=rest, certificate=own) if own.gap <= max(result.certificate.gap, _EDGE) else result


def _minimise_nonnegative(q: Quotient, first: Blocks | None, how: Settings, atoms: Atoms | None) -> Result:
    """With many clusters the column form first, whose cost grows slower, unless a near problem shared directions."""
    tol, max_steps, progress = how.tol, how.max_steps, how.progress
    result, few = None, q.num_clusters <= _FEW
    if few or atoms is not None:
        result = minimise_overlaps(q, tol=tol, max_steps=min(max_steps, 12))
    if result is None and atoms is not None and first is not None:
        result = continued(q, atoms, first.b, tol)
    if result is not None:
        return _reported(result, how)
    column = minimise_nonnegative(q, first, tol=tol, max_steps=max_steps, progress=progress)
    if column.status is not Status.SHARED_DIRECTIONS:
        return column if column.num_steps else _reported(column, how)
    if not few and atoms is None:
        result = minimise_overlaps(q, tol=tol, max_steps=min(max_steps, 12))
    result = result or follow_overlaps(q, tol=tol, max_steps=max_steps)
    if result is not None:
        return _reported(result, how)
    return minimise_shared(q, column.blocks, tol=tol, max_steps=max_steps, progress=progress)


def _reported(result: Result, how: Settings) -> Result:
    if how.progress is not None:
        how.progress(result.num_steps, result.certificate)
    return result


def _from_dual(q: Quotient, first: Blocks | None, how: Settings) -> Result | None:
    """The optimum by Newton's method on the dual, if its certificate closes; otherwise None."""
    for point in (
        lambda: rotation_point(q, min(how.max_steps, 12), first),
        lambda: contraction_point(q, min(how.max_steps, 24)),
    ):
        found = point()
        if found is not None:
            certificate = certify_small(q, found[0])
            if certificate.relative_gap <= how.tol:
                return _reported(Result(found[0], certificate, found[1], Status.OPTIMAL), how)
    return None


def _solution(problem: Problem, q: Quotient, result: Result) -> Solution:
    proof = shared_proof(result)
    return Solution(problem, result.blocks, result.certificate, result.status, result.num_steps, q, proof)
