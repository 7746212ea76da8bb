"""The deep unconstrained feature model under cross-entropy: L decayed factors make collapse a jump.

L factors between the free features and the logits, every one decayed, cost a column
(L/2)(lambda_w^(L-1) lambda_h m_k)^(1/L) ||z_k||^(2/L) where classes own their directions; L = 2 is the
shallow model. Given the bias each class is a scalar problem in ||z_k||, not convex for L >= 3: zero is then
always a local minimum, the separated state disappears at a spinodal price, and the global minimum switches
before it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.types import Vector
from collapsar_studies.roots import root_between

# log mu (or log alpha) from, to, points: wide enough for prices over twelve decades, refined where it
# matters.
PATH = (-18.0, 30.0, 200)


@dataclass(frozen=True)
class DeepState:
    """One scalar problem q V(rho) + price rho^(2/L): its minima, and where they come and go.

    Attributes:
        price: what multiplies rho^(2/L).
        spinodal: from this price on there is no separated local minimum.
        switch: from this price on zero is the global minimum; equal to ``spinodal`` for L = 2, where nothing
            jumps.
        zero_is_minimum: whether rho = 0 is a local minimum (always for L >= 3).
        rho: the separated local minimum; NaN where there is none. Global iff ``price < switch``.
        gain: objective at zero minus objective at ``rho``, nats; NaN where there is none.
        barrier_rho: the maximum between zero and ``rho``; NaN where there is none.
        barrier: height of that maximum above zero, nats: what a network that starts near zero must climb.
    """

    price: float
    spinodal: float
    switch: float
    zero_is_minimum: bool
    rho: float
    gain: float
    barrier_rho: float
    barrier: float


def deep_price(depth: int, lambda_w: float, lambda_h: float, mass: float) -> float:
    """The price (L/2)(lambda_w^(L-1) lambda_h m)^(1/L) of ||z||^(2/L); lambda_z sqrt(m) for L = 2.

    Args:
        depth: L >= 2 factors, the features counted: L - 1 weight matrices.
        lambda_w: > 0, of every weight matrix.
        lambda_h: > 0, of the features.
        mass: > 0, feature mass of the class (n_k).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> round(deep_price(2, 0.01, 0.0001, 100), 12)
        0.01
    """
    for name, value in (("lambda_w", lambda_w), ("lambda_h", lambda_h), ("mass", mass)):
        if not 0 < value < inf:
            raise ValueError(f"`{name}` must be finite and > 0, got {value!r}")
    return _depth(depth) / 2 * (lambda_w ** (depth - 1) * lambda_h * mass) ** (1 / depth)


def deep_column(share: float, price: float, depth: int, bias: ArrayLike, class_index: int) -> DeepState:
    """All states of one class's column given the bias (column form: the class owns its feature direction).

    The column follows z = mu (e_k - p), the steepest way down the loss; rho = ||z||.

    Args:
        share: q_k, loss share of the class, n_k/N.
        price: from :func:`deep_price` with the class's mass.
        depth: L >= 2.
        bias: shape (K,), the head's bias.
        class_index: k.

    Returns:
        The state.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> s = deep_column(0.1, 0.02, 3, [0.0] * 10, 0)
        >>> s.zero_is_minimum, s.price < s.switch < s.spinodal, s.gain > 0
        (True, True, True)
    """
    b = np.asarray(bias, dtype=np.float64)
    if b.ndim != 1 or b.size < 2 or not np.isfinite(b).all():
        raise ValueError(f"`bias` must be at least two finite numbers, got {bias!r}")
    if not -b.size <= class_index < b.size:
        raise ValueError(f"`class_index` must name one of {b.size} classes, got {class_index!r}")
    _check(share, price)
    target = np.eye(b.size)[class_index]

    def path(s: float) -> tuple[float, float, float]:
        mu = np.exp(s)
        miss = target - _tilted(b, mu, target)
        norm = float(np.linalg.norm(miss))
        u = b + mu * miss
        loss = float(np.logaddexp.reduce(np.delete(u - u @ target, class_index % b.size)))
        return float(mu) * norm, norm, float(np.logaddexp(0.0, loss))

    at_zero = np.delete(b - b @ target, class_index % b.size)
    start = float(np.logaddexp(0.0, np.logaddexp.reduce(at_zero)))
    odds = np.exp(b - b.max())
    slope = float(np.linalg.norm(target - odds / odds.sum()))
    return _states(path, share, price, _depth(depth), start, slope)


def deep_within(classes: int, share: float, price: float, depth: int) -> DeepState:
    """The states of alpha in a cluster of k equal classes that see only each other, signed features, full rank.

    Z = alpha (I - J/k) has k - 1 equal singular values, and Schatten-2/L costs k - 1 times the price: the
    scalar problem k q log(1 + (k - 1) e^-alpha) + (k - 1) price alpha^(2/L). For L >= 3 solutions of lower
    rank can cost less; this is the symmetric family.

    Args:
        classes: k >= 2.
        share: q, loss share of one class.
        price: from :func:`deep_price`.
        depth: L >= 2.

    Returns:
        The state, rho = alpha, nats and price per singular value (the objective divided by k - 1).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> s = deep_within(10, 0.1, 0.02, 2)
        >>> round(s.switch, 6), round(s.rho, 3)
        (0.1, 3.714)
    """
    if not classes >= 2:
        raise ValueError(f"`classes` must be >= 2, got {classes!r}")
    _check(share, price)
    k = classes

    def path(s: float) -> tuple[float, float, float]:
        alpha = float(np.exp(s))
        odds = (k - 1) * np.exp(-alpha)
        return alpha, float(odds / (1 + odds)), float(np.log1p(odds))

    return _states(path, k * share / (k - 1), price, _depth(depth), float(np.log(k)), (k - 1) / k)


def _states(
    path: Callable[[float], tuple[float, float, float]],
    share: float,
    price: float,
    depth: int,
    start: float,
    slope: float,
) -> DeepState:
    """Minima of q V(rho) + price rho^(2/L) along a path s -> (rho, -dV/drho, V).

    Stationary where q (-V') rho^(1 - 2/L) = (2/L) price; that side rises to one peak and falls.
    """
    power = 2 / depth

    def pull(s: float) -> float:
        rho, g, _ = path(s)
        return share * g * rho ** (1 - power) / power

    def worth(s: float) -> float:  # the price at which this state is as good as zero
        rho, _, V = path(s)
        return share * (start - V) / rho**power

    def objective(s: float) -> tuple[float, float]:
        rho, _, V = path(s)
        return rho, share * V + price * rho**power

    grid = np.linspace(*PATH[:2], PATH[2])
    if depth == 2:  # the shallow model: one convex problem, the state grows from zero
        spinodal = switch = share * slope
        top = float(grid[0])
    else:
        rho, g, V = np.array([path(float(s)) for s in grid]).T
        top, spinodal = _peak(pull, grid, g * rho ** (1 - power))
        switch = _peak(worth, grid, (start - V) / rho**power)[1]
    rho = gain = barrier_rho = barrier = float("nan")
    if price < spinodal and pull(float(grid[-1])) < price:
        at_zero = share * start
        rho, value = objective(root_between(lambda s: pull(s) - price, top, float(grid[-1])))
        gain = at_zero - value
        if depth > 2:
            low = float(grid[0])
            while pull(low) > price:
                low -= 4
            barrier_rho, value = objective(root_between(lambda s: pull(s) - price, low, top))
            barrier = value - at_zero
    return DeepState(price, spinodal, switch, depth > 2 or price >= spinodal, rho, gain, barrier_rho, barrier)


def _peak(function: Callable[[float], float], grid: Vector, values: Vector) -> tuple[float, float]:
    """Place and height of a smooth maximum around the best grid point."""
    from scipy.optimize import minimize_scalar

    i = int(np.clip(np.argmax(values), 1, grid.size - 2))
    bounds, options = (float(grid[i - 1]), float(grid[i + 1])), {"xatol": 1e-10}
    found = minimize_scalar(lambda s: -function(float(s)), bounds=bounds, method="bounded", options=options)
    return float(found.x), function(float(found.x))


def _tilted(b: Vector, mu: float, target: Vector) -> Vector:
    """The p with log p = b + mu (target - p) - L and sum p = 1, by Wright's omega function."""
    from scipy.special import wrightomega

    base = b + mu * target + np.log(mu)

    def excess(L: float) -> float:
        return float(np.sum(wrightomega(base - L))) / mu - 1

    high = float(np.logaddexp.reduce(b + mu * target))
    # p >= (odds at p = 1 everywhere): the root lies at most mu below
    L = root_between(excess, high - mu - 1.0, high + 1e-9 * (1 + abs(high)))
    p = wrightomega(base - L) / mu
    return p / p.sum()


def _depth(depth: int) -> int:
    if not depth >= 2 or int(depth) != depth:
        raise ValueError(f"`depth` must be a whole number >= 2, got {depth!r}")
    return int(depth)


def _check(share: float, price: float) -> None:
    for name, value in (("share", share), ("price", price)):
        if not 0 < value < inf:
            raise ValueError(f"`{name}` must be finite and > 0, got {value!r}")
