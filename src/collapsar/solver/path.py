"""The optima over a list of penalties: side by side for few clusters, otherwise each started from the two before it."""

from __future__ import annotations

from collections.abc import Iterable
from math import log

import numpy as np

from collapsar.core.checks import must_be
from collapsar.core.clusters import PER_CLUSTER
from collapsar.core.normalization import normalization_of
from collapsar.core.problem import Problem
from collapsar.solver.batched import ProblemBatch, solve_batch
from collapsar.solver.certificate import Certificate
from collapsar.solver.solution import Solution
from collapsar.solver.solve import checked_settings, solve_normalized, solve_quotient
from collapsar.solver.status import Progress, Settings, Status
from collapsar.solver.symmetry import Blocks, quotient

# A line through two solutions is followed at most this many times their distance in log lambda_z: beyond it, curvature
# has taken over, and the last solution is the better start.
_LONGEST_STEP = 2.0

_FEW = 4  # clusters: the work per problem of a batch grows like J^6


def path(
    problem: Problem,
    lambdas: Iterable[float],
    tol: float = 1e-9,
    *,
    max_steps: int = 300,
    progress: Progress | None = None,
    throw: bool = True,
) -> list[Solution]:
    """Solutions over penalties, each certified: for few clusters all at once, otherwise each from the two before it.

    Args:
        problem: its own ``lambda_z`` is ignored; for normalised features its ``lambda_w``.
        lambdas: values of lambda_z, for normalised features of lambda_w, in any order. If each class has
            its own penalty, values of their mean, with their ratios kept.
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
    must_be(Problem, problem)
    how = checked_settings(tol, max_steps, progress, throw)
    if isinstance(lambdas, str) or not isinstance(lambdas, Iterable):
        raise ValueError(  # noqa: TRY004 - one error type at the door
            f"`lambdas` must be numbers, such as [0.001, 0.002], got {lambdas!r}"
        )
    if problem.normalization is not None:
        return _normalized(problem, [float(value) for value in lambdas], how)
    problems = [problem.replace(lambda_z=float(value)) for value in lambdas]
    solutions = _side_by_side(problems, how)
    one_by_one: list[Solution] = []
    for i in sorted(set(range(len(problems))) - solutions.keys(), key=lambda i: -problems[i].lambda_z):
        first = _ahead(one_by_one[-2:], problems[i].lambda_z)
        solutions[i] = solve_quotient(problems[i], quotient(problems[i]), first, how)
        one_by_one.append(solutions[i])
    return [solutions[i] for i in range(len(problems))]


def _normalized(problem: Problem, lambdas: list[float], how: Settings) -> list[Solution]:
    """Upwards, each started from the one before: out of a merged optimum no contrast comes back."""
    penalty = normalization_of(problem)
    relative = penalty.lambda_w / penalty.level  # exactly 1 for one number
    solutions: dict[int, Solution] = {}
    last: Solution | None = None
    for i in sorted(range(len(lambdas)), key=lambda i: lambdas[i]):
        one = problem.replace(lambda_w=lambdas[i] * relative)
        last = solutions[i] = solve_normalized(one, quotient(one), last, how)
    return [solutions[i] for i in range(len(lambdas))]


def _side_by_side(problems: list[Problem], how: Settings) -> dict[int, Solution]:
    """What a batch solves, by place in the list; nothing if one by one is faster."""
    if not problems:
        return {}
    q = quotient(problems[0])
    J, B = q.num_clusters, len(problems)
    # with signed features one solve is a few dozen operations on small arrays: a batch pays only for many problems
    if J > _FEW or B < 2 or (q.features == "signed" and B < 16 * (J - 1) ** 2):
        return {}
    batch = ProblemBatch(
        **{name: np.tile(getattr(q, name), (B, 1)) for name in PER_CLUSTER},
        smoothing=np.full(B, q.smoothing),
        lambda_z=np.array([p.lambda_z for p in problems]),
        lambda_b=np.full(B, q.lambda_b),
        features=q.features,
    )
    result = solve_batch(batch, how.tol, max_steps=how.max_steps)
    solutions: dict[int, Solution] = {}
    for i in np.flatnonzero(~result.one_by_one).tolist():
        certificate = Certificate(float(result.primal[i]), float(result.dual[i]))
        own, steps = quotient(problems[i]), int(result.num_steps[i])
        solutions[i] = Solution(problems[i], result.blocks(i), certificate, Status.OPTIMAL, steps, own)
        if how.progress is not None:
            how.progress(steps, certificate)
    return solutions


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
