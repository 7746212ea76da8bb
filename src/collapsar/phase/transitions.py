"""Every transition of a problem, as values of its penalty: lambda_z, or lambda_w for normalised features."""

from __future__ import annotations

from collapsar.core.checks import must_be
from collapsar.core.problem import Problem
from collapsar.core.thresholds import Thresholds
from collapsar.theory.thresholds import thresholds as plain_thresholds


def thresholds(problem: Problem) -> Thresholds:
    """Where classes merge, vanish and everything collapses; the problem's own penalty is ignored.

    With a feature penalty these are values of lambda_z, see :func:`collapsar.theory.thresholds`. For normalised
    features they are values of ``lambda_w`` (the class's own if rows differ), at fixed norm or penalty of the gain.
    Per sample nothing vanishes until a decayed gain takes everything to zero: ``vanish`` is NaN if the length is given,
    and ``merge`` is also where classes with nonnegative features come to share one direction. Per batch with a given
    length the largest classes never vanish either, and ``complete`` is inf.

    Args:
        problem: any counts, mitigations, bias penalty and normalisation.

    Returns:
        The thresholds. ``merge`` is NaN for classes alone in their cluster and those that no penalty merges.

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
