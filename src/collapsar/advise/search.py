"""The least level of a dial at which an expensive quantity (each look solves an optimum) becomes positive."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import ceil, exp, inf, isfinite, log, nan

Look = tuple[float, float]
"""The logarithm of a level, and the value there."""

# Nats that a class gains per unit of the logarithm of a level, roughly: for the second look of a search.
_SLOPE = 2.5
_REACH = 0.15
# Steps without guidance: high levels may stop helping (more samples at one penalty: all classes are lost).
_STRIDE = 0.2


def least_level(
    clear: Callable[[float], float], bounds: tuple[float, float], guess: float, fine: float, *, whole: bool = False
) -> float | None:
    """The least level at which ``clear`` is positive, to a factor of ``fine``; None: it is not up to the upper bound.

    It takes secants through the last two looks, over the logarithm of the level, each aimed a little beyond its root,
    so that this is the answer if the next secant says that the root is as near as ``fine``; doubling steps where a
    secant says nothing; and bisection where looks do not shrink the bracket. If ``clear`` falls again without having
    been positive, its peak is examined: high levels may stop helping.

    Args:
        clear: continuous in most places; only its sign decides. -inf: too low, by an unknown amount.
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
    looks: list[Look] = []
    brackets: list[float] = []
    level = min(max(guess, low), top)
    while True:
        looks.append((log(level), clear(level)))
        low, high = (low, level) if looks[-1][1] > 0 else (level, high)
        if high <= max(low * fine, low + whole) or (not whole and _is_least(looks, log(fine))):
            return high
        if low >= top or (high == inf and _falls(looks)):
            finite = sorted(look for look in looks if isfinite(look[1]))
            found = peak(clear, finite, log(bounds[0]), log(fine)) if finite else None
            if found is None:
                return None
            low, high, looks = exp(found[0][0]), exp(found[1][0]), list(found)
            if whole:
                low, high = round(low), ceil(high - 1e-9)
        brackets.append(log(high / low) if bounds[0] < low and high < inf else inf)
        level = exp(_next_look(looks, brackets, (log(low), log(high)), log(fine)))
        if whole:
            level = min(max(ceil(level - 1e-9), low + 1), high - 1)
        level = min(level, top)


def _falls(looks: list[Look]) -> bool:
    """Whether values fall with rising levels, three times in a row: higher levels no longer help."""
    last = looks[-4:]
    return len(last) == 4 and all(x < y and v > w for (x, v), (y, w) in pairwise(last))


def _is_least(looks: list[Look], tolerance: float) -> bool:
    """Whether the last look is positive, and the secants of the last three agree that the root is near.

    All three: where ``clear`` jumps, two of them cross the jump and agree with each other.
    """
    if len(looks) < 3 or not all(isfinite(value) for _, value in looks[-3:]):
        return False
    (x0, v0), (x1, v1), (x, value) = looks[-3:]
    slope = (value - v1) / (x - x1)
    others = (v1 - v0) / (x1 - x0), (value - v0) / (x - x0)
    return 0 < value <= 0.8 * tolerance * slope and all(0.5 * other < slope < 2 * other for other in others)


def peak(clear: Callable[[float], float], seen: list[Look], floor: float, tolerance: float) -> tuple[Look, Look] | None:
    """The look below the peak of a concave function, and a positive one at it; None if the peak is not positive.

    Args:
        clear: of the level.
        seen: logarithms of levels, rising, and the values there, none of them positive.
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


def _may_rise(seen: list[Look], i: int) -> bool:
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


def _next_look(looks: list[Look], brackets: list[float], ends: tuple[float, float], tolerance: float) -> float:
    """Where to look next, as the logarithm of the level."""
    (before, old), (x, value), (low, high) = looks[-2:][0], looks[-1], ends
    side, slope = 0.9 * tolerance, nan
    if len(looks) == 1:
        before, slope = x - side, _SLOPE if value <= 0 else nan
    elif isfinite(value - old):
        slope = (value - old) / (x - before)
    root = x - value / slope if slope > 0 and isfinite(value) else nan
    # beyond the root, unless a look below it is within the tolerance of the last
    aim = root - 0.4 * tolerance if value > 0 and x - root <= 0.6 * tolerance else root + 0.4 * tolerance
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
