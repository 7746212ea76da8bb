"""Families of remedies with one dial each, and the least turn of the dial that brings every class across.

All but the penalty raise small classes to a common floor f: a class of n samples acts as if it had max(n, f).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, exp, inf, isfinite, log, nan

import numpy as np

from collapsar.advise.mitigations import Remedy, oversampling
from collapsar.advise.outlook import clearance
from collapsar.core.normalization import strengthened
from collapsar.core.problem import Loss, Problem
from collapsar.core.types import Vector
from collapsar.solver import Solution, solve
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.solve import solve_near
from collapsar.solver.symmetry import quotient
from collapsar.theory.thresholds import merge_strength

__all__ = [
    "FAMILIES",
    "Family",
    "Treatment",
    "has_crossed",
    "has_crossed_certified",
    "least_level",
    "least_treatment",
]


# The least level is found to half a percent; by the closed form of signed features, which costs nothing, to ten digits.
FINE, EXACT = 1.005, 1e-10
# Nats that a class gains per unit of the logarithm of a level, roughly: for the second look of a search.
_SLOPE = 2.5
_REACH = 0.15
# Steps that nothing guides: levels that help may end again (more samples at one penalty: all classes are lost).
_STRIDE = 0.2
# Levels from the lowest to the highest that are tried where the highest does not do; the best lies beside the best.
SCAN = 9
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
        target: the optimum at the target, without a lost class; None: not solved.
    """

    family: str
    level: float
    factors: Vector
    problem: Problem
    target: Solution | None = None


@dataclass(frozen=True)
class Family:
    """One kind of remedy, as a function of its dial.

    Attributes:
        name: its key.
        words: for people.
        treat: (problem, level) to the factors and the problem after it.
        highest: the largest level worth trying.
        whole: whether the level counts samples, which are whole.
        like: the family that is the same program at the same level.
    """

    name: str
    words: str
    treat: Callable[[Problem, float], tuple[Vector, Problem]]
    highest: Callable[[Problem], float]
    whole: bool = False
    like: str | None = None

    def at(self, problem: Problem, level: float) -> Treatment:
        """The remedy at one level."""
        factors, treated = self.treat(problem, level)
        return Treatment(self.name, level, factors, treated)


def least_treatment(
    family: Family,
    problem: Problem,
    margin: float,
    slack: float = SLACK,
    near: Solution | None = None,
    like: Treatment | None = None,
) -> Treatment | None:
    """The least level at which no class is lost at ``(1 + margin)`` times the penalty; None: none does.

    Args:
        family: which dial.
        problem: before the remedy.
        margin: >= 0.
        slack: how much further to go, relative to lambda_z; 0 finds the threshold itself, where nothing can be
            certified.
        near: the optimum of a problem like it, to start from.
        like: the least treatment of the family ``family.like``, which at the same level is the same program.

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
    low = _lowest(family, problem)
    if like is None or slack == 0:
        guess = _signed_level(family, problem, margin) if shares else None
        if guess is None:
            guess = _quick_level(family, problem, (1 + margin) * (1 + slack) - 1)
            if guess is None or slack == 0:
                return None if guess is None else family.at(problem, guess)
            low = guess / FINE**0.9  # by the closed form not enough: if the optimum confirms the guess, it is the least
    else:
        guess = ceil(like.level / FINE)
        low = max(low, guess - 1.0)
    looks = _Looks(family, problem, margin, near)
    level = least_level(looks.clear, (low, family.highest(problem)), guess, FINE, whole=family.whole)
    if level is not None and level != looks.level:
        looks.clear(level)
    return None if level is None else replace(family.at(problem, level), target=looks.crossed)


@dataclass
class _Looks:
    """A dial, and the optima at its target that were looked at: each starts from the one before."""

    family: Family
    problem: Problem
    margin: float
    last: Solution | None = None
    crossed: Solution | None = None  # the last at which no class is lost,
    level: float = nan  # and its level

    def clear(self, level: float) -> float:
        """The least clearance of any class, nats."""
        treated = strengthened(self.family.treat(self.problem, level)[1], 1 + self.margin)
        self.last = solve_near(treated, self.crossed or self.last, SEARCH_TOL)
        value = float(clearance(self.last).min())
        if value > 0:
            self.crossed, self.level = self.last, level
        return value


def least_level(
    clear: Callable[[float], float], bounds: tuple[float, float], guess: float, fine: float, *, whole: bool = False
) -> float | None:
    """The least level at which ``clear`` is positive, to a factor of ``fine``; None: it is not up to the upper bound.

    Secants through the last two looks, over the logarithm of the level, each aimed a little beyond its root, so that
    it is the answer where the next secant says that the root is as near as ``fine``; steps that double where a secant
    says nothing, and halves of the bracket where looks do not shrink it. Where ``clear`` falls again without having
    been positive, its peak is looked at: levels that help may end.

    Args:
        clear: continuous in most places; its sign alone decides. -inf: too low, no telling by how much.
        bounds: the lowest level, where it is not positive, and the highest.
        guess: where to look first.
        fine: > 1.
        whole: whether only whole levels count.

    Example:
        >>> least_level(lambda level: level**2 - 2, (1.0, 4.0), 3.0, 1.001) / 2**0.5 < 1.001
        True
    """
    (low, top), high = bounds, inf
    if whole:
        guess, top = ceil(guess - 1e-9), ceil(top - 1e-9)
    looks: list[tuple[float, float]] = []
    brackets: list[float] = []
    level = min(max(guess, low), top)
    while True:
        looks.append((log(level), clear(level)))
        low, high = (low, level) if looks[-1][1] > 0 else (level, high)
        if high <= max(low * fine, low + whole) or (not whole and _is_least(looks, log(fine))):
            return high
        if low >= top or (high == inf and _falls(looks)):
            finite = sorted(look for look in looks if isfinite(look[1]))
            peak = _peak(clear, finite, log(bounds[0]), log(fine)) if finite else None
            if peak is None:
                return None
            low, high, looks = exp(peak[0][0]), exp(peak[1][0]), list(peak)
            if whole:
                low, high = round(low), ceil(high - 1e-9)
        brackets.append(log(high / low) if bounds[0] < low and high < inf else inf)
        level = exp(_next_look(looks, brackets, (log(low), log(high)), log(fine)))
        if whole:
            level = min(max(ceil(level - 1e-9), low + 1), high - 1)
        level = min(level, top)


def _falls(looks: list[tuple[float, float]]) -> bool:
    """Whether the looks fall with rising levels, three times in a row: what helps has ended."""
    last = looks[-4:]
    return len(last) == 4 and all(x < y and v > w for (x, v), (y, w) in pairwise(last))


def _is_least(looks: list[tuple[float, float]], tolerance: float) -> bool:
    """Whether the last look is positive, and the last two secants agree that the root is near."""
    if len(looks) < 3 or not all(isfinite(value) for _, value in looks[-3:]):
        return False
    (x0, v0), (x1, v1), (x, value) = looks[-3:]
    before, slope = (v1 - v0) / (x1 - x0), (value - v1) / (x - x1)
    return 0 < value <= 0.8 * tolerance * slope and 0.5 * before < slope < 2 * before


def _peak(
    clear: Callable[[float], float], seen: list[tuple[float, float]], floor: float, tolerance: float
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The look below the peak of a concave function, and a positive one at it; None: the peak is not positive.

    Args:
        clear: of the level.
        seen: logarithms of levels, rising, and what it is there: nowhere positive.
        floor: the lowest logarithm.
        tolerance: of the peak.
    """
    from scipy.optimize import minimize_scalar

    best = max(range(len(seen)), key=lambda i: seen[i][1])
    if seen[0][0] > floor:
        seen, best = [(floor, -inf), *seen], best + 1
    around = [i for i in (best - 1, best) if 0 <= i < len(seen) - 1 and _may_rise(seen, i)]
    if not around:
        return None
    low, high = seen[around[0]], seen[around[-1] + 1]
    found = minimize_scalar(
        lambda x: -clear(exp(x)), bounds=(low[0], high[0]), method="bounded", options={"xatol": tolerance}
    )
    return (low, (float(found.x), -float(found.fun))) if found.fun < 0 else None


def _may_rise(seen: list[tuple[float, float]], i: int) -> bool:
    """Whether a concave function, below the lines on either side, may be positive between look i and the next."""
    (x, v), (y, w) = seen[i : i + 2]
    rise = (v - seen[i - 1][1]) / (x - seen[i - 1][0]) if i and isfinite(v - seen[i - 1][1]) else inf
    fall = (seen[i + 2][1] - w) / (seen[i + 2][0] - y) if i + 2 < len(seen) else -inf
    if not isfinite(v) or rise == inf:
        return w - fall * (y - x) > 0
    if fall == -inf:
        return v + rise * (y - x) > 0
    meet = (w - v + rise * x - fall * y) / (rise - fall) if rise > fall else x
    return x < meet < y and v + rise * (meet - x) > 0


def _next_look(
    looks: list[tuple[float, float]], brackets: list[float], ends: tuple[float, float], tolerance: float
) -> float:
    """Where to look next, as the logarithm of the level."""
    (before, old), (x, value), (low, high) = looks[-2:][0], looks[-1], ends
    side, slope = 0.9 * tolerance, nan
    if len(looks) == 1:
        before, slope = x - side, _SLOPE if value <= 0 else nan
    elif isfinite(value - old):
        slope = (value - old) / (x - before)
    beyond = 0.4 * tolerance if value <= 0 else -0.4 * tolerance
    aim = _root(looks, slope) + beyond if slope > 0 and isfinite(value) else nan
    if brackets[-1] < inf:
        stale = len(brackets) > 2 and brackets[-1] > 0.5 * brackets[-3]
        aim = 0.5 * (low + high) if stale or not low < aim < high else aim
        return max(min(aim, high - side), low + side) if high - low > 2 * side else 0.5 * (low + high)
    # no bracket yet: outwards, at most ten times as far as the last step, fifteen percent at first
    outwards = 1 if high == inf else -1
    if len(looks) == 1 and outwards < 0:  # if that is too low, the bracket is closed
        return max(x - 0.95 * tolerance, 0.5 * (low + high))
    stride, ahead = abs(x - before), outwards * (aim - x)
    ahead = min(ahead, max(10 * stride, _REACH)) if ahead > 0 else min(2 * stride, _STRIDE)
    aim = x + outwards * max(ahead, side)
    return aim if aim > low else 0.5 * (low + high)


def _root(looks: list[tuple[float, float]], slope: float) -> float:
    """Where the last look's line meets zero, or where it bends little the parabola through three, level over value."""
    x, value = looks[-1]
    line = x - value / slope
    if len(looks) < 3:
        return line
    (x0, v0), (x1, v1) = looks[-3:-1]
    if not (isfinite(v0) and (v0 - v1) * (x0 - x1) > 0 and (v0 - value) * (x0 - x) > 0):
        return line
    bend = ((x - x1) / (value - v1) - (x1 - x0) / (v1 - v0)) / (value - v0)
    root = line + value * v1 * bend
    return root if abs(root - line) <= abs(line - x) else line


def _signed_level(family: Family, problem: Problem, margin: float) -> float | None:
    """The least level for signed features, whose optima cost next to nothing."""
    signed = problem.replace(features="signed")
    found = least_treatment(family, signed, margin)
    return _quick_level(family, signed, margin) if found is None else found.level


def _quick_level(family: Family, problem: Problem, margin: float) -> float | None:
    """The least level by :func:`has_crossed`: the closed form to the last digits, else to half a percent."""
    from scipy.optimize import root_scalar

    low, top = _lowest(family, problem), family.highest(problem)
    if not low < top:
        return None
    closed = problem.features == "signed" and problem.normalization is None
    last: list[Solution | None] = [None]

    def clear(level: float) -> float:
        value, last[0] = _quick_look(family.treat(problem, level)[1], margin, last[0])
        return value

    looks = [(log(low), clear(low))]
    if looks[0][1] > 0:
        return low
    if (at_top := clear(top)) > 0:
        looks.append((log(top), at_top))
    else:  # too much oversampling dilutes the loss share of everybody: the best may lie inside
        for x in np.linspace(log(low), log(top), SCAN)[1:-1].tolist():
            looks.append((x, clear(exp(x))))
            if looks[-1][1] > 0:
                break
        else:
            peak = _peak(clear, [*looks, (log(top), at_top)], log(low), 1e-3 if closed else log(FINE))
            if peak is None:
                return None
            looks = list(peak)
    (x, _), (y, _) = looks[-2:]
    if not closed:
        return least_level(clear, (exp(x), exp(y)), exp(0.5 * (x + y)), FINE, whole=family.whole)
    found = root_scalar(lambda x: clear(exp(x)), bracket=(x, y), xtol=0.1 * EXACT, method="brentq")
    root = exp(found.root) * (1 + EXACT)
    if not family.whole:
        return root
    whole = ceil(root - 1e-9)
    return whole if clear(whole) > 0 else whole + 1


def _quick_look(problem: Problem, margin: float, near: Solution | None) -> tuple[float, Solution | None]:
    """A number, positive where no class is lost at ``(1 + margin)`` times the penalty, and the optimum behind it.

    Signed features: by the closed form. Nonnegative ones: by the optimum in column form, which costs a tenth of the
    optimum; where it has every class apart, its certificate usually closes. Normalised features: by the optimum itself.
    """
    edge = strengthened(problem, 1 + margin)
    if problem.normalization is not None:
        found = solve_near(edge, near, SEARCH_TOL)
    elif problem.features == "signed":
        return float(np.log(merge_strength(edge) / edge.lambda_z).min()), None
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
    """Whether no class is lost at ``(1 + margin)`` times the problem's penalty, in the quick way.

    By the closed form for signed features, by the best column form for nonnegative ones: where that has every class
    apart, its certificate usually closes.
    """
    return _quick_look(problem, margin, None)[0] > 0


def has_crossed_certified(problem: Problem, margin: float) -> bool:
    """The same by the optimum itself."""
    return bool(np.all(clearance(solve(strengthened(problem, 1 + margin), SEARCH_TOL, throw=False)) > 0))


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
