"""Where classes merge, vanish and collapse: every transition as a value of lambda_z.

Signed features: Hong & Ling, JMLR 25(192), 2024, Thm 3 and Cor. 4, in the form that any remedy and any
number of clusters allow. Nonnegative features: the same program with H >= 0, in column form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from collapsar.core.problem import Problem
from collapsar.theory.clusters import Clusters, Response, balanced_bias, clusters_of, cross_entropy, softmax
from collapsar.theory.roots import root_between

__all__ = ["Thresholds", "merge_strength", "thresholds", "tilted"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# How far below its guess a root is looked for. A class without a root there is carried by the bias alone:
# its residual shrinks in proportion to lambda_z, so going further down changes nothing.
FLOOR = 1e-3
# The certificate of H >= 0 counts as closed when the bound of the dual norm exceeds lambda_z by no more than
# this.
CLOSED = 1e-9


@dataclass(frozen=True)
class Thresholds:
    """Transitions of one problem, as values of lambda_z: the lowest value from which on the new state holds.

    Attributes:
        merge: shape (K,). From here on the class and its like (same counts, same remedy) have equal columns.
            NaN for classes alone in their cluster and for nonnegative features, where classes vanish without
            merging first.
        vanish: shape (K,). From here on the column of the class is zero. NaN for a class whose column is
            zero at every lambda_z, which happens to a large class with nonnegative features when the bias
            alone carries it.
        complete: from here on Z = 0. For nonnegative features the value of the model with H >= 0 itself,
            which exceeds every ``vanish`` where dying classes would share a feature direction.
        complete_bound: Z = 0 is certain from here on. Equal to ``complete`` for signed features; for
            nonnegative ones finding ``complete`` is a copositive problem, and this is its relaxation, equal
            wherever it closes.
        exact: shape (K,), bool. True where ``vanish`` is certified to be the value of the model itself,
            always for signed features. False for nonnegative ones where the certificate stays open at the
            transition because classes would share a feature direction: the value is then that of the column
            form.
    """

    merge: Vector
    vanish: Vector
    complete: float
    complete_bound: float
    exact: NDArray[np.bool_]


def thresholds(problem: Problem) -> Thresholds:
    """Every transition of the problem; its own ``lambda_z`` is ignored.

    Signed features: merge is tau delta (1 - eps) q / sqrt(m), sqrt(n)/N for plain training (JMLR Cor. 4, any
    remedy). Above it the equal columns stay until the part of Z between clusters dies, for all classes at
    once: the largest lambda_z at which the residual's spectral norm on the cluster directions reaches it
    with that part held at zero (the root of JMLR (5.24) for two clusters).

    Nonnegative features, column form: class k vanishes where lambda_z reaches s_k ||delta o (y_k -
    softmax(u_k))||, s = tau q / sqrt(m), at the optimum that holds column k at zero; plain: (sqrt(n_k)/N)
    ||e_k - softmax(b)||.

    Args:
        problem: any counts, remedies and bias price.

    Returns:
        The thresholds, good to about 1e-11 relative.

    Raises:
        ArithmeticError: the bias could not be found; counts or remedies differ by too many orders of
        magnitude.

    Example:
        >>> t = thresholds(Problem("500x5,100x5", lambda_z=1.0, lambda_b=0.02))
        >>> [round(float(v), 6) for v in (t.merge[-1], t.vanish[-1], t.complete)]
        [0.003333, 0.003983, 0.007454]
        >>> t = thresholds(Problem("500x5,100x5", lambda_z=1.0, lambda_b=0.02, features="nonnegative"))
        >>> [round(float(v), 5) for v in (t.vanish[-1], t.complete)]
        [0.00329, 0.00675]
    """
    if problem.normalization is not None:
        raise ValueError("`problem` has normalised features: use `collapsar.thresholds`, which answers in lambda_w")
    c = clusters_of(problem)
    if problem.features == "signed":
        merge, vanish = _signed(c)
        complete = bound = float(vanish.max())
        exact = np.ones(c.sizes.size, dtype=bool)
    else:
        merge = np.full_like(c.sizes, np.nan)
        vanish, exact, complete, bound = _nonnegative(c)
    merge, vanish, exact = merge[c.labels], vanish[c.labels], exact[c.labels]
    for array in (merge, vanish, exact):
        array.setflags(write=False)
    return Thresholds(merge, vanish, complete, bound, exact)


def merge_strength(problem: Problem) -> Vector:
    """Tau delta (1 - eps) q / sqrt(m), shape (K,); plain: sqrt(n_k)/N.

    With signed features a class and its like merge exactly here. For a class alone in its cluster it is approximate:
    around here its predictions turn parallel to those of other classes, and the rank of Z falls.

    Example:
        >>> merge_strength(Problem("500x5,100x5", 1.0)).round(6)[[0, -1]].tolist()
        [0.007454, 0.003333]
    """
    loss = problem.temperatures * problem.scales * problem.loss_share / np.sqrt(problem.mass)
    return (1 - problem.loss.smoothing) * loss


# --- signed features


def _signed(c: Clusters) -> tuple[Vector, Vector]:
    """Values of merge and vanish per cluster.

    A column of Z is zero when its within-cluster contrast is (above ``merge``) and the cluster part S is
    zero on it. The left singular vectors of an alive S see every column of the residual, so S vanishes for
    all classes at once.
    """
    within = np.where(c.sizes > 1, c.scales * c.strength * (1 - c.smoothing), np.nan)
    return within, np.fmax(within, _cluster_part_vanishes(c, within))


def _cluster_part_vanishes(c: Clusters, within: Vector) -> float:
    """The largest lambda_z that the residual reaches on the cluster directions with S = 0 held."""
    if c.sizes.size == 1:
        return 0.0
    warm = balanced_bias(c, partial(_without_cluster_part, c, np.inf))
    at_zero = _between_norm(c, warm[1].P)
    top = float(np.fmax.reduce(within))
    if not at_zero < top:  # also where every class is alone
        return at_zero

    def excess(lambda_z: float) -> float:
        nonlocal warm
        warm = balanced_bias(c, partial(_without_cluster_part, c, lambda_z), warm)
        return _between_norm(c, warm[1].P) - lambda_z

    below = within[within < top]
    return _largest_root(excess, top, float(np.max(below, initial=at_zero)))


def _without_cluster_part(c: Clusters, lambda_z: float, b: Vector, start: Response | None) -> Response:
    """The best columns for a bias with S = 0 held: p_own - p_sibling = (1 - eps) - lambda_z / (s delta)."""
    del start  # the scalar equation needs no warm start
    u = c.logits(b)
    J = c.sizes.size
    apart = np.where(c.sizes > 1, 1 - c.smoothing - lambda_z / (c.scales * c.strength), -1.0)
    alive = apart > 0
    own = u[-1]
    foreign = np.where(np.eye(J, dtype=bool), -np.inf, np.log(c.sizes)[:, None] + u[:-1])
    rest = np.exp(np.minimum(np.logaddexp.reduce(foreign, axis=0) - own, 700.0))
    share = 1 / c.sizes
    x = np.ones(J)  # sibling's odds against the own class
    x[alive] = _sibling_odds(apart[alive], c.sizes[alive], rest[alive])
    alpha = -np.log(x) / (c.temperatures * c.scales)
    push = np.vstack([np.diag(-share), 1 - share]) * (c.temperatures * c.scales)
    u += push * alpha
    P, log_normaliser = softmax(c, u)
    price = lambda_z * float(np.sum(((c.sizes - 1) * np.sqrt(c.mass) * alpha)[alive])) if alive.any() else 0.0
    return Response(cross_entropy(c, u, log_normaliser) + price, P, P, np.where(alive, push, 0.0), alpha)


def _sibling_odds(apart: Vector, sizes: Vector, rest: Vector) -> Vector:
    """The root x in (0, 1) of (1 - x) = apart (1 + (k - 1) x + rest x^(1 - 1/k)).

    Left minus right is convex and falls, so Newton from a point where it is positive climbs to the root.
    """
    power = 1 - 1 / sizes
    slope = 1 + apart * (sizes - 1)
    half = (1 - apart) / 2
    x = np.minimum(half / slope, (half / (apart * rest)) ** (1 / power))
    for _ in range(100):
        pull = apart * rest * x**power
        step = (1 - apart - slope * x - pull) / (slope + power * pull / x)
        x = x + step
        if np.all(np.abs(step) <= 1e-15 * x):
            break
    return np.minimum(x, 1.0)


def _between_norm(c: Clusters, P: Matrix) -> float:
    """Spectral norm of the residual on the cluster directions 1_j / sqrt(k_j)."""
    R = c.strength * c.scales[:, None] * c.gathered(c.target - P)
    return float(np.linalg.norm(R * np.sqrt(c.sizes / c.sizes[:, None]), 2))


# --- nonnegative features, column form


def _nonnegative(c: Clusters) -> tuple[Vector, NDArray[np.bool_], float, float]:
    """Values of vanish and exact per cluster, complete and its bound.

    Class k's column is zero iff s ||delta o (y_k - p_k)|| <= lambda_z at the optimum that holds it at zero,
    p_k the softmax of the bias there. complete is the dual norm of the residual at Z = 0, of H >= 0 itself.
    """
    J = c.sizes.size
    rest = balanced_bias(c, partial(_columns, c, np.inf, np.zeros(J, dtype=bool)))
    at_rest = c.column_norms(rest[1].P)
    top = float(at_rest.max())
    complete, bound = _gauge_bounds(c, rest[1].P)
    if bound <= top * (1 + 1e-12):  # the column regime: the same number, to the last digit
        complete = bound = top
    vanish, exact = at_rest.copy(), np.full(J, bound <= top * (1 + CLOSED))
    warm = rest
    for j in np.argsort(-at_rest):  # downwards, so that each solution starts the next
        if at_rest[j] >= top:
            continue
        dead = np.arange(J) == j

        def excess(lambda_z: float, dead: NDArray[np.bool_] = dead, j: int = int(j)) -> float:
            nonlocal warm
            warm = balanced_bias(c, partial(_columns, c, lambda_z, dead), warm)
            return float(c.column_norms(warm[1].P)[j]) - lambda_z

        if c.lambda_b < np.inf:  # without bias the classes do not see each other
            vanish[j] = _largest_root(excess, top, float(at_rest[j]))
        value = float(vanish[j] if np.isfinite(vanish[j]) else FLOOR * at_rest[j])
        excess(value)
        exact[j] = _gauge_bounds(c, warm[1].P)[1] <= value * (1 + CLOSED)
    return vanish, exact, complete, bound


def _columns(c: Clusters, lambda_z: float, dead: NDArray[np.bool_], b: Vector, start: Response | None) -> Response:
    """The best columns for a bias: z_k = mu delta o (y_k - p_k) with ||r_k|| = lambda_z, or z_k = 0."""
    u = c.logits(b)
    P, log_normaliser = softmax(c, u)
    alive = ~dead & (c.column_norms(P) > lambda_z)
    mu = np.zeros(c.sizes.size)
    slope, tie = P.copy(), np.zeros_like(P)
    if np.any(alive):
        guess = None if start is None else np.where(start.amplitude[alive] > 0, start.amplitude[alive], 0.0)
        P[:, alive], mu[alive] = _alive_columns(c, lambda_z, alive, u[:, alive], P[:, alive], guess)
        curvature = c.temperatures * c.scale**2
        slope = P / (1 + mu * curvature * P)
        tie[:, alive] = (c.scale**2 * (c.target - P))[:, alive]
        u = u + mu * curvature * (c.target - P)
        log_normaliser = softmax(c, u)[1]
    length = mu * c.column_norms(P) / c.strength
    price = lambda_z * float(np.sum((c.sizes * np.sqrt(c.mass) * length)[alive])) if alive.any() else 0.0
    return Response(cross_entropy(c, u, log_normaliser) + price, P, slope, tie, mu)


def _alive_columns(
    c: Clusters, lambda_z: float, alive: NDArray[np.bool_], u: Matrix, P: Matrix, guess: Vector | None
) -> tuple[Matrix, Vector]:
    """Predictions and mu of the columns with ||r_k|| = lambda_z: Newton on 1/||r_k||, nearly linear in mu."""
    count, target = c.multiplicity[:, alive], c.target[:, alive]
    square = c.scale[:, alive] ** 2
    curvature = c.temperatures[alive] * square
    goal = c.strength[alive] / lambda_z
    mu = np.zeros(u.shape[1]) if guess is None else guess
    low, high = np.zeros_like(mu), np.full_like(mu, np.inf)
    for _ in range(100):
        P = tilted(u, mu * curvature, target, count, P)
        miss = square * (target - P)
        norm = np.sqrt(np.sum(count * miss * (target - P), axis=0))
        slope = count * P / (1 + mu * curvature * P)
        push = curvature * (target - P)
        push = push - np.sum(slope * push, axis=0) / slope.sum(axis=0)
        rate = np.sum(miss * slope * push, axis=0) / norm**3
        short = norm * goal > 1
        low, high = np.where(short, mu, low), np.where(short, high, mu)
        newton = mu + (goal - 1 / norm) / rate
        inside = (newton >= low) & (newton <= high)
        step = np.where(inside, newton, np.where(high < np.inf, 0.1 * high + 0.9 * low, 10 * mu + 1)) - mu
        home = np.abs(norm * goal - 1) <= 1e-14  # rounding may put Newton's point outside the bracket there
        settled = home | (np.abs(step) <= 1e-13 * mu)
        mu = np.where(home, mu, mu + step)
        if np.all(settled):
            break
    return tilted(u, mu * curvature, target, count, P), mu


def tilted(u: Matrix, kappa: Matrix, target: Matrix, count: Matrix, P: Matrix) -> Matrix:
    """The p with log p = u + kappa (target - p) - L, sum p = 1, by Wright's omega function."""
    from scipy.special import wrightomega

    bent = kappa > 0
    safe = np.where(bent, kappa, 1.0)
    base = u + kappa * target
    guess = np.where(count > 0, base - kappa * P, -np.inf)
    top = guess.max(axis=0)
    L = top + np.log(np.sum(count * np.exp(guess - top), axis=0))
    log_kappa, p = np.log(safe), P
    for _ in range(100):
        p = np.where(bent, wrightomega(log_kappa + base - L) / safe, np.exp(np.minimum(base - L, 700.0)))
        fall = np.sum(count * p / (1 + kappa * p), axis=0)
        step = (np.sum(count * p, axis=0) - 1) / fall  # the sum is convex in L: after one step Newton only climbs
        L = L + step
        if np.all(np.abs(step) <= 1e-15 * (1 + np.abs(L))):
            break
    return p


def _gauge_bounds(c: Clusters, P: Matrix) -> tuple[float, float]:
    """The largest ||Rh|| over unit h >= 0 for the residual at P: the best found, and an upper bound.

    The bound is sqrt(lambda_max([R'R]_+)), [.]_+ the entrywise positive part.

    One class alone, and projected power steps from the bound's eigenvector, from equal weights and from
    single
    clusters: h of equal weight inside clusters whose columns make an acute angle, one class of each other
    cluster.
    """
    cross, square = c.residual_gram(P)
    upper, vectors = np.linalg.eigh(c.paired(np.maximum(cross, 0.0), square))
    best = float(square.max())
    if best < upper[-1] * (1 - 1e-12):
        used = np.where(np.diag(cross) > 0, c.sizes, 1.0)  # classes of each cluster that take part
        form = np.sqrt(np.outer(used, used)) * cross
        form[np.diag_indices(used.size)] = square + (used - 1) * np.diag(cross)
        H = np.hstack([np.abs(vectors), np.ones((used.size, 1)), np.eye(used.size)[:, square < best] + 1e-3])
        for _ in range(300):
            H = np.maximum(form @ H, 0.0)
            H /= np.linalg.norm(H, axis=0)
        best = max(best, float(np.max(np.sum(H * (form @ H), axis=0))))
    return float(np.sqrt(best)), float(np.sqrt(upper[-1]))


def _largest_root(excess: Callable[[float], float], top: float, guess: float) -> float:
    """The largest root below ``top``, where ``excess`` is negative: walk down to a sign change, then Brent.

    NaN where there is none above FLOOR * guess.
    """
    high, low, factor = top, min(guess, top * (1 - 1e-9)), 0.9
    while (value := excess(low)) < 0:
        factor *= factor
        high, low = low, min(value + low, factor * low)
        if low < FLOOR * guess:
            return float("nan")
    if value == 0:
        return low
    return high if excess(high) >= 0 else root_between(excess, low, high)  # it is ``top`` itself, to rounding
