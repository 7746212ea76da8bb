"""The column form of nonnegative features at one lambda_z: the best columns for a bias, and bounds of their residual.

With H >= 0 and a direction of its own for every class, z_k = mu_k delta o (y_k - p_k) with ||r_k|| = lambda_z, or
z_k = 0 where ||r_k|| is smaller.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Matrix, Vector
from collapsar.theory.clusters import Clusters, Response, balanced_bias, cross_entropy, softmax

NEWTON_STEPS = 100
# Newton's method squares its error.
LAST_STEP = 1e-9
# By how much rounding may change a sum of predictions that is 1.
SUM_ROUNDING = 4e-15


def without_columns(c: Clusters, b: Vector, start: Response | None = None) -> Response:
    """The response where Z = 0 and only the bias is left, for any number of problems."""
    del start
    u = c.logits(b)
    P, log_normaliser = softmax(c, u)
    return Response(cross_entropy(c, u, log_normaliser), P, P, np.zeros_like(P), np.zeros_like(c.sizes))


def resting(c: Clusters) -> tuple[Vector, Matrix]:
    """The best bias where Z = 0, and the predictions (column arrays), for any number of problems.

    Raises:
        ArithmeticError: Newton's method did not converge.
    """
    b = resting_bias(c)
    return b, softmax(c, c.logits(b))[0]


def resting_bias(c: Clusters) -> Vector:
    """The best bias where Z = 0, shape (..., J), for any number of problems.

    If all temperatures are equal, every column is the same softmax p, and tau delta (y - p) = lambda_b b logit by
    logit, y the mean target: mu (x - iota + L) + e^x = y for x = log p and mu = lambda_b / (tau delta)^2. Newton's
    method on x and L, whose matrix is diagonal except for one row and column, starts at the free bias, x = log y.

    Raises:
        ArithmeticError: Newton's method did not converge.
    """
    if not c.one_temperature:
        return balanced_bias(c, partial(without_columns, c))[0]
    aim = (1 - c.eps) * c.share + c.eps / c.num_classes
    mu = c.price / (c.temperatures * c.scales) ** 2
    x, L = np.log(aim), np.zeros_like(c.num_classes)
    for _ in range(NEWTON_STEPS):
        p = np.exp(x)
        total, off = mu + p, mu * (x - c.offsets + L) + p - aim
        held = c.sizes * p / total
        missing = 1 - (c.sizes * p - held * off).sum(axis=-1, keepdims=True)
        pinned = (held * mu).sum(axis=-1, keepdims=True)
        dL = -missing / np.where(pinned > 0, pinned, np.inf)  # a free bias has no use for L
        dx = -(off + mu * dL) / total
        if dx.max() > 1:
            dx = np.where(dx > 1, 1 + np.log(np.maximum(dx, 1.0)), dx)
        x, L = x + dx, L + dL
        if np.abs(dx).max() <= LAST_STEP:
            break
    else:
        raise ArithmeticError("the bias did not converge; the problem may be scaled too badly for float64")
    along = c.sizes / c.scales
    b = (x - c.offsets + L) / (c.temperatures * c.scales)
    b -= np.sum(along * b, axis=-1, keepdims=True) / np.sum(along / c.scales, axis=-1, keepdims=True) / c.scales
    return np.where(c.bias_price < np.inf, b, 0.0)


def columns(c: Clusters, lambda_z: float, dead: NDArray[np.bool_], b: Vector, start: Response | None) -> Response:
    """The best columns for a bias: z_k = mu delta o (y_k - p_k) with ||r_k|| = lambda_z, or z_k = 0."""
    u = c.logits(b)
    P, log_normaliser = softmax(c, u)
    alive = ~dead & (c.column_norms(P) > lambda_z)
    mu = np.zeros(c.sizes.size)
    slope, tie = P.copy(), np.zeros_like(P)
    if np.any(alive):
        guess = None if start is None else np.where(start.amplitude[alive] > 0, start.amplitude[alive], 0.0)
        P[:, alive], mu[alive] = alive_columns(c, lambda_z, alive, u[:, alive], P[:, alive], guess)
        curvature = c.temperatures * c.scale**2
        slope = P / (1 + mu * curvature * P)
        tie[:, alive] = (c.scale**2 * (c.target - P))[:, alive]
        u = u + mu * curvature * (c.target - P)
        log_normaliser = softmax(c, u)[1]
    length = mu * c.column_norms(P) / c.strength
    price = lambda_z * float(np.sum((c.sizes * np.sqrt(c.mass) * length)[alive])) if alive.any() else 0.0
    return Response(cross_entropy(c, u, log_normaliser) + price, P, slope, tie, mu)


def alive_columns(
    c: Clusters, lambda_z: float, alive: NDArray[np.bool_], u: Matrix, P: Matrix, guess: Vector | None
) -> tuple[Matrix, Vector]:
    """Predictions and mu of the columns with ||r_k|| = lambda_z: Newton's method on 1/||r_k||, nearly linear in mu."""
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
        excess = np.sum(count * p, axis=0) - 1
        if np.all(np.abs(excess) <= SUM_ROUNDING):
            break
        L = L + excess / np.sum(count * p / (1 + kappa * p), axis=0)  # convex in L: after one step Newton only climbs
    return p


def gauge_bounds(c: Clusters, P: Matrix) -> tuple[Vector, Vector]:
    """The largest ||Rh|| over unit h >= 0 for the residual at P: the best found, and an upper bound.

    The bound is sqrt(lambda_max([R'R]_+)), with [.]_+ the entrywise positive part.

    Candidates are one class alone, and projected power steps from the bound's eigenvectors, from equal weights and
    from single clusters, with h of equal weight inside clusters whose columns make an acute angle and on one class of
    each other cluster.

    Args:
        c: one problem or several.
        P: predictions, column arrays.

    Returns:
        Two numbers per problem.
    """
    cross, square = c.residual_gram(P)
    upper, vectors = np.linalg.eigh(c.paired(np.maximum(cross, 0.0), square))
    top, best = upper[..., -1], square.max(axis=-1)
    if np.any(best < top * (1 - 1e-12)):
        own = np.arange(c.num_clusters)
        diagonal = cross[..., own, own]
        used = np.where(diagonal > 0, c.sizes, 1.0)  # classes of each cluster that take part
        form = np.sqrt(used[..., :, None] * used[..., None, :]) * cross
        form[..., own, own] = square + (used - 1) * diagonal
        ones, units = np.ones((*used.shape, 1)), np.broadcast_to(np.eye(own.size) + 1e-3, form.shape)
        H = np.concatenate([np.abs(vectors), ones, units], axis=-1)
        for _ in range(300):
            before, H = H, np.maximum(form @ H, 0.0)
            H /= np.maximum(np.sqrt(np.sum(H**2, axis=-2, keepdims=True)), 1e-300)
            if np.max(np.abs(H - before)) <= 1e-12:  # the value's error is the square of this
                break
        best = np.maximum(best, np.max(np.sum(H * (form @ H), axis=-2), axis=-1))
    return np.sqrt(best), np.sqrt(top)


def gauge_within(c: Clusters, cross: Matrix, square: Vector, value: Vector) -> NDArray[np.bool_]:
    """Whether the upper bound of :func:`gauge_bounds` is at most ``value``, a number per problem, from R'R.

    The largest eigenvalue of a matrix of nonnegative entries lies between the least and the largest (Mv)_i / v_i of any
    v > 0 (Collatz and Wielandt), which decides without eigenvalues wherever it is not a close call.
    """
    if cross.max() <= 0:
        return np.asarray(square.max(axis=-1) <= value**2)
    M = c.paired(np.maximum(cross, 0.0), square)
    v = np.ones((*square.shape, 1))
    for _ in range(3):
        v = M @ v + 1e-3 * square.max(axis=-1)[..., None, None] * v
    ratio = (M @ v / v)[..., 0]
    within = ratio.max(axis=-1) <= value**2
    if not np.all(within | (ratio.min(axis=-1) > value**2)):
        within = np.linalg.eigvalsh(M)[..., -1] <= value**2
    return np.asarray(within)
