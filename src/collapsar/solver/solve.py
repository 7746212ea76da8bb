"""The verbs: ``solve`` a problem, ``path`` over penalties."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from collapsar.problem import Problem
from collapsar.solver.few import certify_few
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.rotation import FEW, rotation_point
from collapsar.solver.shared import SharedResult, minimise_shared
from collapsar.solver.signed import minimise_signed
from collapsar.solver.solution import NotConvergedError, SharedProof, Solution
from collapsar.solver.status import Progress, Result, Status
from collapsar.solver.symmetry import Blocks, Quotient, quotient

__all__ = ["path", "solve"]

# From this many clusters on the signed algorithm starts at the column form's optimum: its columns separate, so it costs
# a few products, and with many classes the two optima are close. On a long tail of 361 counts steps fall from 50 to 9.
_COLUMN_START = 24


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
    if not 0 < tol < 1:
        raise ValueError(f"`tol` must be in (0, 1), got {tol!r}")
    if not max_steps >= 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps!r}")
    q = quotient(problem)
    if problem.features == "signed" and q.sizes.size <= FEW:
        result = _at_full_rank(q, tol, max_steps)
        if result is not None:
            if progress is not None:
                progress(result.num_steps, result.certificate)
            return Solution(problem, result.blocks, result.certificate, result.status, result.num_steps, q)
    if start is not None and not np.array_equal(start.quotient.labels, q.labels):
        raise ValueError("`start` must solve a problem with the same clusters of classes; leave it out")
    first = None if start is None else start.blocks
    if first is not None and problem.lambda_b == np.inf:
        first = Blocks(first.alpha, first.C, np.zeros_like(first.b))
    if problem.features == "signed":
        if first is None and q.num_clusters > _COLUMN_START:
            first = minimise_nonnegative(replace(q, features="nonnegative"), tol=1e-3, max_steps=20).blocks
        result = minimise_signed(q, first, tol=tol, max_steps=max_steps, progress=progress)
    else:
        result = minimise_nonnegative(q, first, tol=tol, max_steps=max_steps, progress=progress)
        if result.status is Status.SHARED_DIRECTIONS:
            result = minimise_shared(q, result.blocks, tol=tol, max_steps=max_steps, progress=progress)
    solution = _solution(problem, q, result)
    if throw and result.status is not Status.OPTIMAL:
        raise NotConvergedError(solution)
    return solution


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
    """Solutions over penalties, each started from its neighbour and each certified.

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
    solutions: dict[int, Solution] = {}
    start: Solution | None = None
    for i in sorted(range(len(values)), key=lambda i: -values[i]):
        start = solutions[i] = solve(problems[i], tol, max_steps=max_steps, start=start, progress=progress, throw=throw)
    return [solutions[i] for i in range(len(values))]
