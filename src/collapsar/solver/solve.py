"""The verbs: ``solve`` a problem, ``path`` over penalties."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import log
from typing import NamedTuple

import numpy as np

from collapsar.problem import Problem
from collapsar.solver.certificate import Certificate, as_free
from collapsar.solver.few import certify_few
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.rotation import FEW, rotation_point
from collapsar.solver.shared import SharedResult, minimise_shared
from collapsar.solver.signed import minimise_signed
from collapsar.solver.solution import NotConvergedError, SharedProof, Solution
from collapsar.solver.status import Progress, Result, Status
from collapsar.solver.symmetry import Blocks, Quotient, quotient

__all__ = ["path", "solve"]

# A line through two solutions is followed at most this many times their distance in log lambda_z: beyond, curvature
# has taken over, and the last solution is the better start.
_LONGEST_STEP = 2.0


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
        tol: bound of the duality gap relative to max(|primal|, 2e-3).
        max_steps: steps of the algorithm at most.
        start: the solution of a problem with the same clusters, to start from.
        progress: called with (step, certificate) at every certificate; may raise to interrupt.
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
    how = _checked(tol, max_steps, progress, throw)
    q = quotient(problem)
    if start is not None and not np.array_equal(start.quotient.labels, q.labels):
        raise ValueError("`start` must solve a problem with the same clusters of classes; leave it out")
    return _solved(problem, q, None if start is None else start.blocks, how)


class _Settings(NamedTuple):
    tol: float
    max_steps: int
    progress: Progress | None
    throw: bool


def _checked(tol: float, max_steps: int, progress: Progress | None, throw: bool) -> _Settings:
    if not 0 < tol < 1:
        raise ValueError(f"`tol` must be in (0, 1), got {tol!r}")
    if not max_steps >= 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps!r}")
    return _Settings(tol, max_steps, progress, throw)


def _solved(problem: Problem, q: Quotient, first: Blocks | None, how: _Settings) -> Solution:
    result = _minimise(q, first, how.tol, how.max_steps, how.progress)
    solution = _solution(problem, q, result)
    if how.throw and result.status is not Status.OPTIMAL:
        raise NotConvergedError(solution)
    return solution


def _minimise(q: Quotient, first: Blocks | None, tol: float, max_steps: int, progress: Progress | None) -> Result:
    """One algorithm after the other, until one closes the certificate."""
    free = as_free(q)
    if free is not q:
        result = _minimise(free, first, tol, max_steps, progress)
        price = 0.5 * q.lambda_b * float(q.sizes @ result.blocks.b**2)
        own = result.certificate
        return replace(result, certificate=Certificate(own.primal + price, own.dual))
    if q.features == "signed" and q.num_clusters <= FEW:
        result = _at_full_rank(q, tol, max_steps)
        if result is not None:
            if progress is not None:
                progress(result.num_steps, result.certificate)
            return result
    if first is not None and q.lambda_b == np.inf:
        first = Blocks(first.alpha, first.C, np.zeros_like(first.b))
    if q.features == "signed":
        return minimise_signed(q, first, tol=tol, max_steps=max_steps, progress=progress)
    result = minimise_nonnegative(q, first, tol=tol, max_steps=max_steps, progress=progress)
    if result.status is Status.SHARED_DIRECTIONS:
        result = minimise_shared(q, result.blocks, tol=tol, max_steps=max_steps, progress=progress)
    return result


def _at_full_rank(q: Quotient, tol: float, max_steps: int) -> Result | None:
    """The optimum of a few clusters that are all alive, some forty times faster than in general; None elsewhere."""
    found = rotation_point(q, min(max_steps, 12))
    if found is None:
        return None
    blocks, num_steps = found
    certificate = certify_few(q, blocks)
    return Result(blocks, certificate, num_steps, Status.OPTIMAL) if certificate.relative_gap <= tol else None


def _solution(problem: Problem, q: Quotient, result: Result) -> Solution:
    # where the column form came back as it was, its own certificate is as good and its directions are its own
    proof = None
    if isinstance(result, SharedResult) and result.penalty is not None:
        proof = SharedProof(result.atoms, result.witness)
    return Solution(problem, result.blocks, result.certificate, result.status, result.num_steps, q, proof)


def path(
    problem: Problem,
    lambdas: Iterable[float],
    tol: float = 1e-9,
    *,
    max_steps: int = 300,
    progress: Progress | None = None,
    throw: bool = True,
) -> list[Solution]:
    """Solutions over penalties, each started from the two before it and each certified.

    Args:
        problem: its own ``lambda_z`` is ignored.
        lambdas: values of lambda_z, in any order.
        tol: as for :func:`solve`.
        max_steps: as for :func:`solve`, per solution.
        progress: as for :func:`solve`.
        throw: as for :func:`solve`.

    Returns:
        One solution per value, in the order given.

    Raises:
        NotConvergedError: as for :func:`solve`.
        ValueError: a value is not finite or not positive.

    Example:
        >>> [s.class_states[9] for s in path(Problem("500x5,100x5", 1.0, 0.02), [0.003, 0.0036, 0.0045])]
        ['separated', 'merged', 'vanished']
    """
    values = [float(value) for value in lambdas]
    problems = [problem.replace(lambda_z=value) for value in values]
    how = _checked(tol, max_steps, progress, throw)
    solutions: dict[int, Solution] = {}
    for i in sorted(range(len(values)), key=lambda i: -values[i]):
        done = list(solutions.values())[-2:]
        solutions[i] = _solved(problems[i], quotient(problems[i]), _ahead(done, values[i]), how)
    return [solutions[i] for i in range(len(values))]


def _ahead(done: list[Solution], lambda_z: float) -> Blocks | None:
    """Where the line through the last two solutions, over log lambda_z, meets the next penalty."""
    if len(done) < 2 or done[0].problem.lambda_z == done[1].problem.lambda_z:
        return done[-1].blocks if done else None
    (old, far), (new, near) = ((s.blocks, log(s.problem.lambda_z)) for s in done)
    step = (log(lambda_z) - near) / (near - far)
    if not step <= _LONGEST_STEP:
        return new
    alpha, C, b = (y + step * (y - x) for x, y in ((old.alpha, new.alpha), (old.C, new.C), (old.b, new.b)))
    return Blocks(alpha, C, b)
