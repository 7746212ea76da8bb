"""Every transition of a problem, in the penalty that it has: lambda_z, or lambda_w where features are normalised."""

from __future__ import annotations

from collapsar.core.checks import must_be
from collapsar.core.problem import Problem
from collapsar.core.thresholds import Thresholds
from collapsar.theory.thresholds import thresholds as plain_thresholds


def thresholds(problem: Problem) -> Thresholds:
    """Where classes merge, vanish and everything collapses; the problem's own penalty is ignored.

    With a feature penalty these are values of lambda_z, see :func:`collapsar.theory.thresholds`. Where features are
    normalised they are values of ``lambda_w`` (of the class's own where rows differ), the norm or the gain's penalty
    held. Per sample nothing vanishes before a decayed gain takes everything to zero: ``vanish`` is NaN where the length
    is given, and ``merge`` is also where classes with nonnegative features come to share one direction. Per batch with
    a given length the largest classes never vanish either, and ``complete`` is inf.

    Args:
        problem: any counts, mitigations, bias penalty and normalisation.

    Returns:
        The thresholds. ``merge`` is NaN for classes alone in their cluster and where no penalty merges them.

    Raises:
        ArithmeticError: an optimum on the way could not be found.

    Example:
        >>> t = thresholds(Problem.from_normalized("100x5,20x5", lambda_w=1.0, norm=1.0, lambda_b=0.0))
        >>> round(float(t.merge[9]), 6), t.complete
        (0.066203, inf)
    """
    must_be(Problem, problem)
    if problem.normalization is None:
        return plain_thresholds(problem)
    from collapsar.solver.normalized_transitions import transitions

    return transitions(problem, plain_thresholds)
