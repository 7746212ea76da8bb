"""Families of remedies with one dial each, and the least turn of the dial that brings every class across.

All but the penalty raise small classes to a common floor f: a class of n samples acts as if it had max(n, f).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from collapsar.advise.mitigations import Remedy, oversampling
from collapsar.advise.outlook import edges, told_apart
from collapsar.core.normalization import strengthened
from collapsar.core.problem import Loss, Problem
from collapsar.solver import Solution, solve
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.symmetry import quotient

__all__ = ["FAMILIES", "Family", "Treatment", "has_crossed", "has_crossed_certified", "least_treatment"]

Vector = NDArray[np.float64]

# How finely the dial is searched: signed features have a closed form; for nonnegative ones every look is a solve.
STEPS = {"signed": 40, "nonnegative": 11}
SCAN = {"signed": 65, "nonnegative": 9}
# A level that the optimum does not confirm is raised by this factor, by its square and so on.
FINE = 1.005
# Penalties are lowered, and samples multiplied, by at most this factor: beyond it the advice would be absurd.
MOST = 1e4
# The states near a threshold are decided from the dual; this gap settles them to 0.1% of lambda_z.
SEARCH_TOL = 1e-7
# The dial is turned this much further than the target, so that the optimum at the target itself is clear of the edge.
SLACK = 2e-3


@dataclass(frozen=True)
class Treatment:
    """A remedy at one setting.

    Attributes:
        family: the key of its family.
        level: the dial: the floor f in samples, or the factor by which lambda_z^2 (or lambda_w) is divided.
        factors: shape (K,), what each class gets: copies per sample, weight, temperature, scale, samples in all; for
            the penalty the factor of the weight decay, the same for all.
        problem: the problem after it.
        certified: whether the optimum at the target was solved and has every class apart.
    """

    family: str
    level: float
    factors: Vector
    problem: Problem
    certified: bool = False


@dataclass(frozen=True)
class Family:
    """One kind of remedy, as a function of its dial.

    Attributes:
        name: its key.
        words: for people.
        treat: (problem, level) to the factors and the problem after it.
        highest: the largest level worth trying.
    """

    name: str
    words: str
    treat: Callable[[Problem, float], tuple[Vector, Problem]]
    highest: Callable[[Problem], float]

    def at(self, problem: Problem, level: float) -> Treatment:
        """The remedy at one level."""
        factors, treated = self.treat(problem, level)
        return Treatment(self.name, level, factors, treated)


def least_treatment(family: Family, problem: Problem, margin: float, slack: float = SLACK) -> Treatment | None:
    """The least level at which every class is told apart at ``(1 + margin)`` times the penalty; None: none does.

    Args:
        family: which dial.
        problem: before the remedy.
        margin: >= 0.
        slack: how much further to go, relative to lambda_z; 0 finds the threshold itself, where nothing can be
            certified.

    Returns:
        The treatment, certified. Signed features: found by the closed form, and raised where the optimum does not
        confirm it. Nonnegative ones, whose classes may share directions: sought on certified optima around the level
        for signed features, which costs nothing and is never far. To within half a percent of the least.

    Example:
        >>> p = Problem("300x5,50x5", 0.005, 0.02)  # least_oversampling(5, 5, 300, 50, 0.005) is 2
        >>> float(least_treatment(FAMILIES["oversampling"], p, 0.0, slack=0.0).factors.max().round(6))
        2.0
    """
    shares = problem.features == "nonnegative" and problem.normalization is None and slack > 0
    guess = _search(family, problem.replace(features="signed"), margin) if shares else None
    if guess is not None:
        return _climbed(family, problem, margin, _lowest(family, problem), guess.level)
    found = _search(family, problem, (1 + margin) * (1 + slack) - 1)
    if found is None or slack == 0:
        return found
    if has_crossed_certified(found.problem, margin):
        return replace(found, certified=True)
    return _climbed(family, problem, margin, found.level, np.inf)


def _climbed(family: Family, problem: Problem, margin: float, low: float, guess: float) -> Treatment | None:
    """The least level above ``low``, which did not do, for which the optimum does; None: none does."""
    high, top = np.inf, family.highest(problem)

    def crossed(level: float) -> bool:
        return has_crossed_certified(family.treat(problem, level)[1], margin)

    if low < guess <= top:
        low, high = (low, guess) if crossed(guess) else (guess, high)
    step, downwards = FINE, high < np.inf
    while high > low * step:
        near = high / step if downwards else min(low * step, top)
        done = crossed(near)
        low, high = (low, near) if done else (near, high)
        if done != downwards:
            break
        if low == top:
            return None
        step = step**2
    while high > low * FINE:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if crossed(middle) else (middle, high)
    return replace(family.at(problem, high), certified=True)


def _search(family: Family, problem: Problem, margin: float) -> Treatment | None:
    """Bisection on the logarithm of the level."""
    low, high = _lowest(family, problem), family.highest(problem)
    if not low < high:
        return None

    def crossed(level: float) -> bool:
        return has_crossed(family.treat(problem, level)[1], margin)

    effort = "signed" if _is_closed(problem) else "nonnegative"
    steps = STEPS[effort]
    near = None if effort == "signed" or problem.normalization is not None else _near(family, problem, margin)
    if near is not None and crossed(near[1]) and not crossed(near[0]):
        low, high = near
        steps -= 4  # a range of 2 instead of some 100
    elif not crossed(high):
        # too much oversampling dilutes the loss share of everybody: the best may lie inside
        grid = np.geomspace(low, high, SCAN[effort])[1:-1]
        found = next((float(level) for level in grid if crossed(float(level))), None)
        if found is None:
            return None
        high = found
    for _ in range(steps):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if crossed(middle) else (middle, high)
    return family.at(problem, high)


def _near(family: Family, problem: Problem, margin: float) -> tuple[float, float] | None:
    """Levels around the one for signed features, which costs nothing and is never far."""
    guess = _search(family, problem.replace(features="signed"), margin)
    if guess is None:
        return None
    low, high = guess.level / 1.15, min(guess.level * 1.6, family.highest(problem))
    return (low, high) if _lowest(family, problem) < low < high else None


def _is_closed(problem: Problem) -> bool:
    """Whether every threshold that counts has a closed form."""
    return problem.features == "signed" and problem.normalization is None


def has_crossed(problem: Problem, margin: float) -> bool:
    """Whether every class is told apart at ``(1 + margin)`` times the problem's penalty, in the quick way.

    Signed features: by the closed form. Nonnegative ones: by the optimum in column form, which costs a tenth of the
    optimum; where it has every class apart, its certificate usually closes. Normalised features: by the optimum itself.
    """
    if problem.normalization is not None:
        return has_crossed_certified(problem, margin)
    edge = strengthened(problem, 1 + margin)
    if problem.features == "signed":
        return bool(np.all(edges(edge, np.zeros(edge.num_classes)) > edge.lambda_z))
    q = quotient(edge)
    found = minimise_nonnegative(q, tol=SEARCH_TOL)
    solution = Solution(edge, found.blocks, found.certificate, found.status, found.num_steps, q, None)
    return bool(np.all(told_apart(solution)))


def has_crossed_certified(problem: Problem, margin: float) -> bool:
    """The same by the optimum itself."""
    edge = strengthened(problem, 1 + margin)
    return bool(np.all(told_apart(solve(edge, SEARCH_TOL, throw=False))))


def _lowest(family: Family, problem: Problem) -> float:
    return 1.0 if family.name == "penalty" else float(problem.class_counts.min())


def _lift(problem: Problem, floor: float, power: float = 1.0) -> Vector:
    return np.maximum(1.0, floor / problem.class_counts) ** power


def _oversample(problem: Problem, floor: float) -> tuple[Vector, Problem]:
    s = _lift(problem, floor)
    return s, oversampling(problem.class_counts, s)(problem)


def _oversample_held(problem: Problem, floor: float) -> tuple[Vector, Problem]:
    s = _lift(problem, floor)
    return s, oversampling(problem.class_counts, s, penalty="held")(problem)


def _weigh(problem: Problem, floor: float) -> tuple[Vector, Problem]:
    w = _lift(problem, floor, 0.5)  # the root: no other profile of weights has a higher lowest threshold
    return w, Remedy("weights", "", Loss(class_weights=w))(problem)


def _heat(problem: Problem, floor: float) -> tuple[Vector, Problem]:
    tau = _lift(problem, floor, 0.5)
    return tau, Remedy("temperatures", "", Loss(temperatures=tau))(problem)


def _scale(problem: Problem, floor: float) -> tuple[Vector, Problem]:
    delta = _lift(problem, floor, 0.5)
    return delta, Remedy("scales", "", Loss(scales=delta))(problem)


def _relieve(problem: Problem, level: float) -> tuple[Vector, Problem]:
    factor = np.full(problem.num_classes, 1 / level)
    return factor, strengthened(problem, 1 / level if problem.normalization is not None else level**-0.5)


def _collect(problem: Problem, floor: float) -> tuple[Vector, Problem]:
    counts = np.ceil(np.maximum(problem.class_counts, floor) - 1e-9).astype(np.int64)
    mass = None if problem.feature_mass is None else problem.mass * counts / problem.class_counts
    return counts.astype(np.float64), problem.replace(class_counts=counts, feature_mass=mass)


def _largest(problem: Problem) -> float:
    return float(problem.class_counts.max())


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("penalty", "weaker penalty on the head or on the features", _relieve, lambda _: MOST),
        Family("weights", "class weights in the loss", _weigh, _largest),
        Family("temperatures", "label-dependent temperatures (LDT)", _heat, _largest),
        Family("scales", "scales on the logits (CDT)", _scale, _largest),
        Family("oversampling", "oversampling, every copy pays the feature penalty", _oversample, _largest),
        Family("oversampling-held", "oversampling, feature penalty a batch mean", _oversample_held, _largest),
        Family("more-samples", "more samples of the small classes", _collect, lambda p: 100 * _largest(p)),
    )
}
