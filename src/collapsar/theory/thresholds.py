"""Where classes merge, vanish and collapse: every transition as a value of lambda_z.

Signed features: Hong & Ling, JMLR 25(192), 2024, Thm 3 and Cor. 4, in the form that any mitigation and any
number of clusters allow. Nonnegative features: the same program with H >= 0, in column form.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.threads import one_thread_below
from collapsar.core.thresholds import Thresholds
from collapsar.core.types import Matrix, Vector
from collapsar.theory.clusters import Clusters, Response, balanced_bias, clusters_of, cross_entropy, softmax
from collapsar.theory.column_form import resting_bias
from collapsar.theory.column_path import Vanishing, column_thresholds
from collapsar.theory.roots import largest_roots

# Number of clusters from which singular values of a dense matrix cost more than importing scipy.sparse.
MANY = 200
# Vectors between restarts of Lanczos: counts that differ by 1e-4 of their size need 800 products; with scipy's default
# of 20, twice as many.
LANCZOS = 40


def thresholds(problem: Problem) -> Thresholds:
    """Every transition of the problem; its own ``lambda_z`` is ignored.

    Signed features: merge is tau delta (1 - eps) q / sqrt(m), which is sqrt(n)/N without a mitigation (JMLR Cor. 4).
    Above it the equal columns remain until the part of Z between clusters vanishes, for all classes at once: at the
    largest lambda_z that the residual's spectral norm on the cluster directions reaches with that part held at
    zero (the root of JMLR (5.24) for two clusters).

    Nonnegative features, column form: class k vanishes where lambda_z reaches s_k ||delta o (y_k - softmax(u_k))||,
    s = tau q / sqrt(m), at the optimum that holds column k at zero; without a mitigation (sqrt(n_k)/N)
    ||e_k - softmax(b)||.

    Args:
        problem: any counts, mitigations and bias penalty.

    Returns:
        The thresholds, accurate to about 1e-11 relative.

    Raises:
        ArithmeticError: the bias could not be found; counts or mitigations differ by too many orders of
        magnitude.

    Example:
        >>> t = thresholds(Problem("500x5,100x5", lambda_z=1.0, lambda_b=0.02))
        >>> [round(float(v), 6) for v in (t.merge[-1], t.vanish[-1], t.complete)]
        [0.003333, 0.003983, 0.007454]
        >>> t = thresholds(Problem("500x5,100x5", lambda_z=1.0, lambda_b=0.02, features="nonnegative"))
        >>> [round(float(v), 5) for v in (t.vanish[-1], t.complete)]
        [0.00329, 0.00675]
    """
    return thresholds_of_many([problem])[0]


def thresholds_of_many(problems: Sequence[Problem]) -> list[Thresholds]:
    """The :func:`thresholds` of each problem, those with the same number of kinds of classes side by side.

    Raises:
        ArithmeticError: as :func:`thresholds`.

    Example:
        >>> both = thresholds_of_many([Problem("500x5,100x5", 1.0, price) for price in (0.02, 0.01)])
        >>> [round(float(t.vanish[-1]), 6) for t in both]
        [0.003983, 0.004002]
    """
    for problem in problems:
        if problem.normalization is not None:
            raise ValueError("`problem` has normalised features: use `collapsar.thresholds`, whose values are lambda_w")
    groups: dict[tuple[FeatureModel, int], list[int]] = {}
    clusters = [clusters_of(problem) for problem in problems]
    for i, (problem, c) in enumerate(zip(problems, clusters, strict=True)):
        groups.setdefault((problem.features, c.num_clusters), []).append(i)
    results: dict[int, Thresholds] = {}
    for (features, _), members in groups.items():
        together = Clusters.stacked([clusters[i] for i in members])
        with one_thread_below(together.num_clusters):
            merge, found = cluster_thresholds(together, features)
        for row, i in enumerate(members):
            labels = clusters[i].labels
            results[i] = Thresholds(
                merge[row][labels],
                found.vanish[row][labels],
                float(found.complete[row]),
                float(found.complete_bound[row]),
                found.exact[row][labels],
                found.vanish_bound[row][labels],
            )
    return [results[i] for i in range(len(problems))]


def cluster_thresholds(c: Clusters, features: FeatureModel) -> tuple[Vector, Vanishing]:
    """Merge, shape (B, J), and the other transitions of B problems of J different clusters each."""
    if features == "nonnegative":
        return np.full_like(c.sizes, np.nan), column_thresholds(c)
    within = np.where(c.sizes > 1, _within_strength(c), np.nan)
    # A column of Z is zero if its within-cluster contrast is (above ``merge``) and the cluster part S is zero on it.
    # The left singular vectors of a nonzero S involve every residual column: S vanishes for all classes at once.
    vanish = np.fmax(within, _cluster_part_vanishes(c, within)[:, None])
    complete = vanish.max(axis=-1)
    return within, Vanishing(vanish, np.ones(vanish.shape, dtype=bool), vanish, complete, complete)


def merge_strength(problem: Problem) -> Vector:
    """Tau delta (1 - eps) q / sqrt(m), shape (K,); without a mitigation sqrt(n_k)/N.

    With signed features the classes of a cluster merge exactly here. For a class alone in its cluster it is
    approximate: near this value its predictions turn parallel to those of other classes, and the rank of Z falls.

    Example:
        >>> merge_strength(Problem("500x5,100x5", 1.0)).round(6)[[0, -1]].tolist()
        [0.007454, 0.003333]
    """
    loss = problem.temperatures * problem.scales * problem.loss_share / np.sqrt(problem.mass)
    return (1 - problem.loss.smoothing) * loss


def gradual_merge(problem: Problem, complete: float) -> Vector:
    """The lambda_z up to which classes alone in their clusters have their own directions, signed features, shape (K,).

    About ``merge_strength``, but at most ``complete``, where everything vanishes. For two classes it is exactly
    ``complete`` while their columns are :func:`opposite`.

    Example:
        >>> p = Problem([500, 1], 1.0)
        >>> gradual_merge(p, thresholds(p).complete).round(6).tolist(), merge_strength(p).round(6).tolist()
        ([0.031591, 0.031591], [0.044632, 0.001996])
    """
    return np.full(2, complete) if opposite(problem) else np.fmin(merge_strength(problem), complete)


def complete_collapse(problem: Problem) -> float:
    """The lambda_z above which Z = 0, signed features: ``thresholds(problem).complete`` without the other transitions.

    There the residual at the best bias for Z = 0 is not longer than lambda_z (theory section 3): inside clusters its
    length is :func:`merge_strength`, between them a spectral norm.

    Example:
        >>> p = Problem("500x5,100x5", 1.0, 0.02)
        >>> abs(complete_collapse(p) / thresholds(p).complete - 1) < 1e-12
        True
    """
    c = clusters_of(problem)
    with one_thread_below(c.num_clusters):
        between = float(_norm_at_rest(c, resting_bias(c))) if c.num_clusters > 1 else 0.0
    return max(between, float(np.max(np.where(c.sizes > 1, _within_strength(c), 0.0))))


def opposite(problem: Problem) -> bool:
    """Whether there are two classes and their columns are opposite until both vanish, signed features.

    With smoothed labels and offset logits a class may be predicted more strongly than its label requires: its column
    then lies on the other's side.
    """
    return problem.num_classes == 2 and not (problem.loss.smoothing and problem.loss.offsets is not None)


# --- signed features


def _within_strength(c: Clusters) -> Vector:
    """As :func:`merge_strength`, per cluster."""
    return c.scales * c.strength * (1 - c.eps)


def _cluster_part_vanishes(c: Clusters, within: Vector) -> Vector:
    """The largest lambda_z that the residual reaches on the cluster directions with S = 0 held, shape (B,)."""
    if c.num_clusters == 1:
        return np.zeros(c.sizes.shape[0])
    top = np.max(np.nan_to_num(within), axis=-1)
    warm = resting_bias(c)
    at_zero = _norm_at_rest(c, warm)
    inside = at_zero < top  # not where every class is alone
    if not inside.any():
        return at_zero
    some = c.taken(inside)
    known: list[tuple[Vector, Vector]] = []  # the last two lambda_z and biases: the next starts on their line

    def excess(lambda_z: Vector) -> Vector:
        respond = partial(_without_cluster_part, some, lambda_z)
        start = known[-1][1] if known else warm[inside]
        if len(known) == 2:
            (x0, b0), (x1, b1) = known
            apart = x1 != x0
            start = b1 + (np.where(apart, (lambda_z - x1) / np.where(apart, x1 - x0, 1.0), 0.0))[:, None] * (b1 - b0)
        b, at = balanced_bias(some, respond, (start, None))
        known[:] = [*known[-1:], (lambda_z, b)]
        return _between_norm(some, at.P) - lambda_z

    below = np.where(within < top[:, None], within, 0.0).max(axis=-1)
    at_zero[inside] = largest_roots(excess, top[inside], np.maximum(below, at_zero)[inside])
    return at_zero


def _without_cluster_part(c: Clusters, lambda_z: Vector, b: Vector, start: Response | None) -> Response:
    """The best columns for a bias with S = 0 held: p_own - p_sibling = (1 - eps) - lambda_z / (s delta)."""
    del start  # the scalar equation needs no warm start
    u, tau = c.logits(b), c.temperatures * c.scales
    apart = np.where(c.sizes > 1, 1 - c.eps - lambda_z[..., None] / (c.scales * c.strength), -1.0)
    alive = apart > 0
    own = u[..., -1, :]
    foreign = np.log(c.sizes)[..., None] + u[..., :-1, :]
    at = np.arange(c.num_clusters)
    foreign[..., at, at] = -np.inf
    rest = np.exp(np.minimum(np.logaddexp.reduce(foreign, axis=-2) - own, 700.0))
    x = np.ones_like(own)  # sibling's odds against the own class
    x[alive] = _sibling_odds(apart[alive], c.sizes[alive], rest[alive])
    alpha = -np.log(x) / tau
    u += c.contrast * alpha[..., None, :]
    P, log_normaliser = softmax(c, u)
    length = np.where(alive, (c.sizes - 1) * np.sqrt(c.mass) * alpha, 0.0).sum(axis=-1)
    price = np.where(length > 0, lambda_z, 0.0) * length
    held = np.where(alive[..., None, :], c.contrast, 0.0)
    return Response(cross_entropy(c, u, log_normaliser) + price, P, P, held, alpha)


def _sibling_odds(apart: Vector, sizes: Vector, rest: Vector) -> Vector:
    """The root x in (0, 1) of (1 - x) = apart (1 + (k - 1) x + rest x^(1 - 1/k)).

    Left minus right is convex and falls, so Newton's method from a point where it is positive climbs to the root.
    """
    power = 1 - 1 / sizes
    slope = 1 + apart * (sizes - 1)
    half = (1 - apart) / 2
    level, weight = 1 - apart, apart * rest
    x = np.minimum(half / slope, (half / weight) ** (1 / power))
    for _ in range(100):
        pull = weight * x**power
        step = (level - slope * x - pull) / (slope + power * pull / x)
        x = x + step
        if (np.abs(step) <= 1e-15 * x).all():
            break
    return np.minimum(x, 1.0)


def _norm_at_rest(c: Clusters, b: Vector) -> Vector:
    """The same where Z = 0; without a J x J matrix for many clusters at one temperature.

    At one temperature all columns of P are the same p, and the residual is diag(d) + x y'.
    """
    if not c.one_temperature:
        return _between_norm(c, softmax(c, c.logits(b))[0])
    u = c.temperatures * c.scales * b + c.offsets
    p = np.exp(u - u.max(axis=-1, keepdims=True))
    p /= np.sum(c.sizes * p, axis=-1, keepdims=True)
    root = np.sqrt(c.sizes)
    d, x, y = _within_strength(c), root * c.scales * (c.eps / c.num_classes - p), root * c.strength
    if c.num_clusters <= MANY:
        R = x[..., :, None] * y[..., None, :]
        np.einsum("...jj->...j", R)[...] += d
        return np.linalg.norm(R, 2, axis=(-2, -1))
    rows = (v.reshape(-1, c.num_clusters) for v in (d, x, y))
    return np.array([_rank_one_norm(*row) for row in zip(*rows, strict=True)]).reshape(b.shape[:-1])


def _rank_one_norm(d: Vector, x: Vector, y: Vector) -> float:
    """The spectral norm of R = diag(d) + x y': Lanczos on R'R, two sums over J per product."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    operator: Any = LinearOperator  # its stub lacks what the class does with a product

    def product(v: Vector) -> Vector:
        w = d * v + (y @ v) * x
        return d * w + (x @ w) * y

    square = operator((d.size, d.size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).normal(size=d.size)
    found = eigsh(square, 1, which="LA", v0=start, ncv=LANCZOS, tol=0, return_eigenvectors=False)
    return float(np.sqrt(found[0]))


def _between_norm(c: Clusters, P: Matrix) -> Vector:
    """Spectral norm of the residual on the cluster directions 1_j / sqrt(k_j)."""
    R = c.strength[..., None, :] * c.scales[..., None] * c.gathered(c.target - P)
    return np.linalg.norm(R * np.sqrt(c.sizes[..., None, :] / c.sizes[..., None]), 2, axis=(-2, -1))
