"""Families of mitigations with one dial each, and the least turn of the dial that separates every class.

All except the penalty raise small classes to a common floor f: a class of n samples acts as if it had max(n, f).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, log, nan
from typing import Any

import numpy as np

from collapsar.advise.mitigations import Remedy, oversampling
from collapsar.advise.outlook import clearance
from collapsar.advise.search import least_level
from collapsar.core.counts import CheckedCounts
from collapsar.core.loss import Loss
from collapsar.core.normalization import strengthened
from collapsar.core.problem import Problem
from collapsar.core.types import Vector
from collapsar.solver import Solution, solve
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.solve import solve_near
from collapsar.solver.symmetry import quotient
from collapsar.theory.thresholds import complete_collapse, merge_strength, opposite

# The least level is found to half a percent; by the closed form of signed features, which is cheap, to ten digits.
FINE, EXACT = 1.005, 1 + 1e-10
# Penalties are lowered, and samples multiplied, by at most this factor: beyond it the advice would be absurd.
MOST = 1e4
# The states near a threshold are decided from the dual; this gap decides them to 0.1% of lambda_z.
SEARCH_TOL = 1e-7
# The dial is turned this much beyond the target, so that the optimum at the target itself is clear of the edge.
SLACK = 2e-3


Treat = Callable[[Problem, float], tuple[Vector, Problem]]


@dataclass(frozen=True)
class Treatment:
    """A mitigation at one setting.

    Attributes:
        family: the key of its family.
        level: the dial: the floor f in samples, or the factor by which lambda_z^2 (or lambda_w) is divided.
        factors: shape (K,), for each class: copies per sample, weight, temperature, scale, or samples in all; for
            the penalty the factor of the weight decay, the same for all.
        problem: the problem after it.
        target: the optimum at the target, where no class is lost; None: not solved.
    """

    family: str
    level: float
    factors: Vector
    problem: Problem
    target: Solution | None = None


@dataclass(frozen=True)
class Family:
    """One kind of mitigation, as a function of its dial.

    Attributes:
        name: its key.
        words: a description for users.
        treat: (problem, level) to the factors and the problem after it.
        highest: the largest level worth trying.
        whole: whether the level is a whole number of samples.
        like: a family that is the same program at the same level.
    """

    name: str
    words: str
    treat: Treat
    highest: Callable[[Problem], float]
    whole: bool = False
    like: str | None = None

    def at(self, problem: Problem, level: float) -> Treatment:
        """The mitigation at one level."""
        factors, treated = self.treat(problem, level)
        return Treatment(self.name, level, factors, treated)


def least_treatment(
    family: Family,
    problem: Problem,
    margin: float,
    slack: float = SLACK,
    like: Treatment | None = None,
) -> Treatment | None:
    """The least level at which no class is lost at ``(1 + margin)`` times the penalty; None if there is none.

    Args:
        family: which dial.
        problem: before the mitigation.
        margin: >= 0.
        slack: how much further to go, relative to lambda_z; 0 finds the threshold itself, where nothing can be
            certified.
        like: the least treatment of the family ``family.like``, which is the same program at the same level.

    Returns:
        The treatment, certified, within half a percent of the least. Signed features: found by the closed form, and
        raised if the optimum does not confirm it. Classes alone in their kind, and nonnegative features, whose classes
        may share directions: sought on certified optima around that cheap first guess, which is never far off.

    Example:
        >>> p = Problem("300x5,50x5", 0.005, 0.02)  # least_oversampling(5, 5, 300, 50, 0.005) is 2
        >>> float(least_treatment(FAMILIES["oversampling"], p, 0.0, slack=0.0).factors.max().round(6))
        2.0
    """
    shares = problem.features == "nonnegative" and problem.normalization is None and slack > 0
    low = _lowest(family, problem)
    if like is None or slack == 0:
        guess = _signed_level(family, problem, margin) if shares else None
        if guess is None:
            guess = _quick_level(family, problem, (1 + margin) * (1 + slack) - 1)
            approximate = slack > 0 and _is_approximate(problem)
            if not approximate and (guess is None or slack == 0):
                return None if guess is None else family.at(problem, guess)
            if guess is None:
                guess = low
            elif not approximate:  # less is not enough: if the optimum confirms the guess, it is the least
                low = guess / FINE**0.9
    else:
        guess = ceil(like.level / FINE)
        low = max(low, guess - 1.0)
    looks = _Looks(family, problem, margin)
    level = least_level(looks.clear, (low, family.highest(problem)), guess, FINE, whole=family.whole)
    if level is not None and level != looks.level:
        looks.clear(level)
    return None if level is None else replace(family.at(problem, level), target=looks.crossed)


@dataclass
class _Looks:
    """A dial, and the optima computed at its target: each starts from the one before."""

    family: Family
    problem: Problem
    margin: float
    last: Solution | None = None
    crossed: Solution | None = None  # the last at which no class is lost
    level: float = nan  # its level

    def clear(self, level: float) -> float:
        """The least clearance of any class, nats."""
        treated = strengthened(self.family.treat(self.problem, level)[1], 1 + self.margin)
        self.last = solve_near(treated, self.crossed or self.last, SEARCH_TOL)
        value = float(clearance(self.last).min())
        if value > 0:
            self.crossed, self.level = self.last, level
        return value


def _is_approximate(problem: Problem) -> bool:
    """Whether the quick look is only approximate: signed features, for a class alone in its kind."""
    closed = problem.features == "signed" and problem.normalization is None and not opposite(problem)
    return closed and bool((quotient(problem).sizes == 1).any())


def _signed_level(family: Family, problem: Problem, margin: float) -> float | None:
    """The least level for signed features, whose optima are cheap."""
    signed = problem.replace(features="signed")
    quick = _quick_level(family, signed, margin)
    found = None if quick is None else least_treatment(family, signed, margin)
    return quick if found is None else found.level


def _quick_level(family: Family, problem: Problem, margin: float) -> float | None:
    """The least level by :func:`has_crossed`: to the last digits by the closed form, otherwise to half a percent."""
    low, top = _lowest(family, problem), family.highest(problem)
    if not low < top:
        return None
    closed = problem.features == "signed" and problem.normalization is None
    last: list[Solution | None] = [None]

    def clear(level: float) -> float:
        value, last[0] = _quick_look(family.treat(problem, level)[1], margin, last[0])
        return value

    return least_level(clear, (low, top), low, EXACT if closed else FINE, whole=family.whole)


def _quick_look(problem: Problem, margin: float, near: Solution | None) -> tuple[float, Solution | None]:
    """A number, positive where no class is lost at ``(1 + margin)`` times the penalty, and the optimum behind it.

    Signed features: by the closed form. Nonnegative ones: by the column form, which costs a tenth of the optimum; where
    it separates every class, its certificate usually closes. Normalised features: by the optimum itself.
    """
    if problem.features == "signed" and problem.normalization is None:
        last = complete_collapse(problem) if opposite(problem) else float(merge_strength(problem).min())
        return log(last / ((1 + margin) * problem.lambda_z)), None
    edge = strengthened(problem, 1 + margin)
    if problem.normalization is not None:
        found = solve_near(edge, near, SEARCH_TOL)
    else:
        q = quotient(edge)
        result = minimise_nonnegative(
            q,
            near.blocks if near is not None and np.array_equal(near.quotient.labels, q.labels) else None,
            tol=SEARCH_TOL,
        )
        found = Solution(edge, result.blocks, result.certificate, result.status, result.num_steps, q)
    return float(clearance(found).min()), found


def has_crossed(problem: Problem, margin: float) -> bool:
    """Whether no class is lost at ``(1 + margin)`` times the problem's penalty, by a quick look.

    By the closed form for signed features, by the best column form for nonnegative ones: where that separates every
    class, its certificate usually closes.
    """
    return _quick_look(problem, margin, None)[0] > 0


def has_crossed_certified(problem: Problem, margin: float) -> bool:
    """The same by the optimum itself."""
    return bool(np.all(clearance(solve(strengthened(problem, 1 + margin), SEARCH_TOL, throw=False)) > 0))


def _lowest(family: Family, problem: Problem) -> float:
    return 1.0 if family.name == "penalty" else float(problem.class_counts.min())


def _lifting(remedy: Callable[[Any, Vector], Remedy], power: float = 1.0) -> Treat:
    """A mitigation by factors that raise small classes to a floor."""

    def treat(problem: Problem, floor: float) -> tuple[Vector, Problem]:
        factors = np.maximum(1.0, floor / problem.class_counts) ** power
        return factors, remedy(CheckedCounts(problem.class_counts), factors)(problem)

    return treat


def _by_root(part: str) -> Treat:
    """A part of the loss that uses the root of the lift: no other profile has a higher lowest threshold."""

    def remedy(_: Any, factors: Vector) -> Remedy:
        own: dict[str, Any] = {part: factors}
        return Remedy(part, "", Loss(**own))

    return _lifting(remedy, 0.5)


def _relieve(problem: Problem, level: float) -> tuple[Vector, Problem]:
    factor = np.full(problem.num_classes, 1 / level)
    return factor, strengthened(problem, 1 / level if problem.normalization is not None else level**-0.5)


def _collect(problem: Problem, floor: float) -> tuple[Vector, Problem]:
    counts = np.ceil(np.maximum(problem.class_counts, floor) - 1e-9).astype(np.int64)
    mass = None if problem.feature_mass is None else problem.mass * counts / problem.class_counts
    return counts.astype(np.float64), problem.replace(class_counts=CheckedCounts(counts), feature_mass=mass)


def _largest(problem: Problem) -> float:
    return float(problem.class_counts.max())


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family("penalty", "weaker penalty on the head or on the features", _relieve, lambda _: MOST),
        Family("weights", "class weights in the loss", _by_root("class_weights"), _largest),
        Family("temperatures", "label-dependent temperatures (LDT)", _by_root("temperatures"), _largest),
        Family("scales", "scales on the logits (CDT)", _by_root("scales"), _largest),
        Family("oversampling", "oversampling, every copy pays the feature penalty", _lifting(oversampling), _largest),
        Family(
            "oversampling-held",
            "oversampling, feature penalty a batch mean",
            _lifting(partial(oversampling, penalty="held")),
            _largest,
        ),
        Family(
            "more-samples",
            "more samples of the small classes",
            _collect,
            lambda p: 100 * _largest(p),
            whole=True,
            like="oversampling",
        ),
    )
}
