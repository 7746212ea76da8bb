"""A computable duality gap for any given point. Imports no algorithm.

For S with columns in the simplex and ||diag(delta)(Y - S)diag(tau o q)M^(-1/2)|| <= lambda_Z in the dual norm,

    D(S) = sum_k q_k [ H(s_k) + <s_k - y_k, iota> ] - ||sum_k q_k tau_k delta o (s_k - y_k)||^2 / (2 lambda_b)

is a lower bound of the optimum; S_t = Y + t(P - Y) costs one dual norm (Hong & Ling, JMLR 25(192), 2024, Lemma 8).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.problem import Problem
from collapsar.core.types import Matrix, Vector
from collapsar.solver.hessian import loss_hessian
from collapsar.solver.objective import Columns, Residual, dual_entropy, predict, residual, target
from collapsar.solver.symmetry import Blocks, Quotient, trivial_quotient

# `tol` is relative to max(|primal|, GAP_FLOOR): float64 cannot resolve an absolute gap much below 1e-15 (terms of the
# objective of order 1e-3 cancel), and a loss of 2e-3 nats is a classifier trained to the end.
GAP_FLOOR = 2e-3

# Dual points are kept this much inside the constraint, so that rounding in a norm cannot make the bound invalid.
INSIDE = 1 - 1e-13

# With a free bias the dual's equality constraint must hold; any residual of it multiplies the bias, of order 10.
BALANCED = 1e-14

# A proximal step may be this many times shorter than the steepest curvature asks for and still prove a good bound,
# because few entries are as steep.
_SHORT = 1e-2

# A bias of order 10 at this price, times lambda_Z, is invisible beside any objective that float64 resolves, while
# rounding errors in the dual's bias term, squared and divided by lambda_b, are not.
_ALMOST_FREE = 1e-13


@dataclass(frozen=True)
class Certificate:
    """Upper and lower bounds on the optimum of one problem.

    Attributes:
        primal: objective at the certified point, nats.
        dual: a lower bound of the optimum, nats.
    """

    primal: float
    dual: float

    @property
    def gap(self) -> float:
        """The point is at most primal - dual above the optimum, nats. Never below 0."""
        return max(self.primal - self.dual, 0.0)

    @property
    def relative_gap(self) -> float:
        """What ``tol`` bounds: gap / max(|primal|, 2e-3)."""
        return self.gap / max(abs(self.primal), GAP_FLOOR)


def certify(problem: Problem, Z: ArrayLike, b: ArrayLike | None = None) -> Certificate:
    """The duality gap at exactly this point, block-structured or not.

    With nonnegative features the primal prices Z column by column, sum_k sqrt(m_k)||z_k||, an upper bound of the gauge
    that is exact when every class has its own direction.

    Args:
        problem: K classes.
        Z: shape (K, K), [logit, class], finite.
        b: shape (K,), finite; zeros by default, and zero where ``lambda_b`` is inf.

    Returns:
        The certificate.

    Raises:
        ValueError: A shape disagrees, an entry is not finite, or there is a bias where ``lambda_b`` is inf.

    Example:
        >>> import numpy as np
        >>> c = certify(Problem([10, 10], lambda_z=1.0), np.zeros((2, 2)))
        >>> round(c.primal, 12) == round(float(np.log(2)), 12), c.gap < 1e-12
        (True, True)
    """
    K = problem.num_classes
    z = np.asarray(Z, dtype=np.float64)
    bias = np.zeros(K) if b is None else np.asarray(b, dtype=np.float64)
    for name, value, shape in (("Z", z, (K, K)), ("b", bias, (K,))):
        if value.shape != shape:
            raise ValueError(f"`{name}` must have shape {shape} for {K} classes, got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"`{name}` must be finite, got {value[~np.isfinite(value)].flat[0]}")
    if problem.lambda_b == np.inf and bias.any():
        raise ValueError("`b` must be zero where `lambda_b` is inf (no bias); give a finite `lambda_b`")
    q, point = trivial_quotient(problem), Blocks(np.zeros(K), z, bias)
    if problem.normalization is not None:
        from collapsar.solver.normalized_certificate import certify_normalized

        return certify_normalized(problem, q, point)
    return certify_blocks(q, point)


def certify_blocks(
    q: Quotient, blocks: Blocks, penalty_value: float | None = None, *, enough: float = 0.0
) -> Certificate:
    """The duality gap at a block-structured point.

    Args:
        q: J clusters.
        blocks: the point.
        penalty_value: the price of Z (without lambda_Z) if the caller knows a better one than :func:`penalty`,
            for example from factors with shared nonnegative features.
        enough: do not look for a better bound once the relative gap is this small.

    Returns:
        The certificate.
    """
    free = as_free(q)
    if free is not q:
        best = certify_blocks(free, blocks, penalty_value, enough=enough)
        return Certificate(best.primal + q.bias_cost(blocks.b), best.dual)
    P, loss = predict(q, blocks)
    price = penalty(q, blocks) if penalty_value is None else penalty_value
    best = Certificate(loss + q.lambda_z * price + q.bias_cost(blocks.b), -np.inf)
    if q.lambda_b > 0:
        best = Certificate(best.primal, best_dual(q, P, blocks))
    if q.lambda_b > 0 and q.features == "signed" and not best.relative_gap <= max(enough, 1e-13):
        best = Certificate(best.primal, max(best.dual, _dual_of_step(q, P, blocks)))
    if q.lambda_b < np.inf and not best.relative_gap <= max(enough, 1e-13):
        # with a free bias the dual's equality only holds at the best bias for this Z; otherwise it tightens the bound
        balanced = balance_bias(q, blocks)
        best = Certificate(best.primal, max(best.dual, best_dual(q, predict(q, balanced)[0], balanced)))
    return best


def as_free(q: Quotient) -> Quotient:
    """The problem with a free bias if the bias costs next to nothing, otherwise the problem itself.

    A price can only raise the optimum, so a lower bound of the free problem is one of the priced problem too.
    """
    return replace(q, lambda_b=0.0, bias_rows=None) if 0 < q.lambda_b <= _ALMOST_FREE * q.lambda_z else q


def penalty(q: Quotient, blocks: Blocks) -> float:
    """||Z M^(1/2)||_* for signed features, sum_k sqrt(m_k)||z_k||_2 (the column form) for nonnegative ones."""
    S = q.weight * blocks.C
    root = np.sqrt(q.mass)
    if q.features == "signed":
        nuclear = float(np.linalg.svd(S, compute_uv=False).sum())
        return nuclear + float(np.sum((q.sizes - 1) * root * np.abs(blocks.alpha)))
    # one column of cluster j: its share of S_j, and alpha_j (e_k - 1/k)
    contrast = root * blocks.alpha
    unit = max(float(np.max(np.abs(S))), float(np.max(np.abs(contrast)))) or 1.0  # squares of any logit stay finite
    squared = np.sum((S / unit) ** 2, axis=0) / q.sizes + (contrast / unit) ** 2 * (1 - 1 / q.sizes)
    return float(unit * np.sum(q.sizes * np.sqrt(squared)))


def dual_norm(q: Quotient, R: Residual) -> float:
    """The norm dual to the penalty's if features are signed (spectral), otherwise an upper bound of it.

    For features >= 0 it is max ||Rh|| over unit h >= 0, bounded by sqrt(lambda_max([R'R]_+)), positive part entrywise.
    """
    if q.features == "signed":
        return max(float(np.linalg.norm(R.between, 2)), float(np.max(np.abs(R.within), initial=0.0)))
    gram = R.between.T @ R.between
    diagonal = np.diag_indices_from(gram)
    # in cluster j: R'R has e_j off the diagonal and e_j + rho_j^2 on it, and u_j'R'R u_j = rho_j^2 + k_j e_j
    e = (gram[diagonal] - R.within**2) / q.sizes
    e = np.where(q.sizes > 1, e, 0.0)
    positive = np.maximum(gram, 0.0)
    positive[diagonal] = np.where(q.sizes > 1, e + R.within**2 + (q.sizes - 1) * np.maximum(e, 0.0), gram[diagonal])
    return float(np.sqrt(np.linalg.eigvalsh(positive)[-1]))


def balance_bias(q: Quotient, blocks: Blocks, max_steps: int = 60) -> Blocks:
    """The same Z with the best bias for it: the root of sum_k q_k tau_k delta o (y_k - p_k) = lambda_b b, by Newton.

    Args:
        q: J clusters; if ``lambda_b`` is inf, the point is returned as it is.
        blocks: the point; its bias is the start.
        max_steps: Newton steps at most; a handful is usual.

    Returns:
        The point with the new bias, good to rounding unless ``max_steps`` was too few.
    """
    if q.lambda_b == np.inf:
        return blocks
    b, shift = blocks.b, 1 / q.scales
    value = np.inf
    for _ in range(max_steps):
        P, loss = predict(q, Blocks(blocks.alpha, blocks.C, b))
        gradient = q.bias_weight * b - q.sizes * residual(q, P).bias
        hessian = _bias_hessian(q, P)
        if q.lambda_b == 0:  # the shift along 1/delta is free: pin it
            hessian = hessian + (np.trace(hessian) or 1.0) / (shift @ shift) * np.outer(shift, shift)  # 0 if J = 1
        step = -_solved(hessian, gradient)
        decrement = -float(gradient @ step)
        value = loss + q.bias_cost(b)
        length = min(1.0, 5 / max(float(np.max(np.abs(step))), 1e-300))  # beyond 5 nats the model is worthless
        while decrement > 1e-10 * max(value, GAP_FLOOR) and length > 1e-6:  # far away: Armijo
            trial = b + length * step
            loss = predict(q, Blocks(blocks.alpha, blocks.C, trial))[1]
            if loss + q.bias_cost(trial) <= value - 1e-4 * length * decrement:
                break
            length /= 2
        b = b + length * step
        if not decrement > 1e-30 * max(value, GAP_FLOOR):
            break
    return Blocks(blocks.alpha, blocks.C, b)


def _solved(hessian: Matrix, gradient: Vector) -> Vector:
    """Newton's step, or a gradient step of order one where predictions are saturated and the loss is flat."""
    try:
        step: Any = np.linalg.solve(hessian, gradient)
    except np.linalg.LinAlgError:
        ridge = 0.1 * float(np.max(np.abs(gradient))) + 1e-12 * float(np.trace(hessian))
        step = np.linalg.solve(hessian + (ridge or 1.0) * np.eye(gradient.size), gradient)
    return step


def _bias_hessian(q: Quotient, P: Columns) -> Matrix:
    """Second derivative of loss and bias penalty in b, (J, J), summed as a graph Laplacian so that nothing cancels."""
    diagonal = np.diag_indices(q.num_clusters)
    cluster = q.others * P.other  # probability of all logits of cluster i for a sample of cluster j
    cluster[diagonal] += 1 - P.miss
    edges = (cluster * (q.sizes * q.share * q.temperatures**2)) @ cluster.T
    edges[diagonal] = 0.0
    laplacian = -edges
    laplacian[diagonal] = edges.sum(axis=1)
    hessian = q.scales[:, None] * laplacian * q.scales
    hessian[diagonal] += q.bias_weight
    return hessian


def best_dual(q: Quotient, P: Columns, blocks: Blocks) -> float:
    """The best lower bound known from the softmax P: along the ray through P, and at P with its residual mended."""
    R = residual(q, P)
    if q.features == "nonnegative":
        return dual_on_ray(q, P, R, dual_norm(q, R))
    svd = np.linalg.svd(R.between)
    dual = dual_on_ray(q, P, R, max(float(svd[1][0]), float(np.max(np.abs(R.within), initial=0.0))))
    S = _columns(q, *_mended(q, P, R, svd, blocks))
    return dual if S is None else max(dual, dual_on_ray(q, *S, search=False))


def dual_along(q: Quotient, S: Columns, R: Residual, t: float) -> float:
    """D(S_t) at S_t = Y + t(S - Y), R the residual at S, whatever its norm."""
    Y = target(q)
    at = Columns(Y.miss + t * (S.miss - Y.miss), Y.other + t * (S.other - Y.other))
    bias = 0.0 if q.lambda_b in (0, np.inf) else 0.5 * float(q.sizes @ (R.bias**2 / q.bias_price))
    return dual_entropy(q, at) - t * t * bias


def dual_on_ray(q: Quotient, S: Columns, R: Residual, norm: float, *, search: bool = True) -> float:
    """The largest D(S_t) on the feasible part of the ray S_t = Y + t(S - Y), which may pass S.

    Args:
        q: J clusters.
        S: columns that sum to one; if the bias is free they must balance, or the bound is hardly better than Y's.
        R: the residual at S.
        norm: that of R, in a norm that bounds the one dual to the price of Z from above.
        search: look for the best t; otherwise take the largest feasible t <= 1, which is the best one near an optimum.

    Returns:
        A lower bound of the optimum, nats.
    """
    limit = _simplex_limit(target(q), S, q)
    if norm > 0:
        limit = min(limit, q.lambda_z / norm * INSIDE)
    off = float(np.sqrt(q.sizes @ R.bias**2)) if q.lambda_b == 0 else 0.0
    if off > 0:  # what breaks the dual's equality constraint grows along the ray
        limit = min(limit, BALANCED / off)

    if not search:
        return dual_along(q, S, R, min(limit, 1.0))
    at_limit = dual_along(q, S, R, limit)
    if at_limit >= dual_along(q, S, R, limit * (1 - 1e-6)):  # concave and still growing: the end of the ray is best
        return at_limit
    from scipy.optimize import minimize_scalar

    inner = minimize_scalar(
        lambda t: -dual_along(q, S, R, t), bounds=(0.0, limit), method="bounded", options={"xatol": 1e-10}
    )
    return max(at_limit, -float(inner.fun))


def _mended(
    q: Quotient, P: Columns, R: Residual, svd: tuple[Matrix, Vector, Matrix], blocks: Blocks
) -> tuple[Matrix, Vector]:
    """R with the singular values that are in use set to lambda_Z and the others clipped, between and within clusters.

    The ray loses the excess of the largest singular value over lambda_Z, of first order in the point's error. At the
    optimum R is lambda_Z times an isometry on the row space of Z, so setting just these singular values loses only the
    square of the error. Left at rho < lambda_Z, a direction in which Z is x > 0 costs x (lambda_Z - rho); moved by t it
    costs t^2/2h, with h the curvature of the loss: so it is moved by h x, at most to lambda_Z. R keeps its null vectors
    1/delta (left, columns sum to one) and, with a free bias, M^(1/2) 1, as long as their singular values, 0 up to
    rounding, are left alone.
    """
    A, sigma, Bt = svd
    X = q.weight * blocks.C
    curvature = loss_hessian(q, P)
    used = np.sum(A * (X @ Bt.T), axis=0)
    rise = np.sum(A**2 * (curvature.diagonal @ Bt.T**2), axis=0) * used
    rise[(sigma <= 0.5 * q.lambda_z) | (used <= 1e-9 * float(np.max(np.abs(used))))] = 0.0
    mended = np.minimum(sigma + rise, q.lambda_z * INSIDE)
    rise = curvature.within_diagonal * np.sqrt(q.mass) * np.maximum(blocks.alpha, 0.0)
    within = np.clip(R.within + rise, -q.lambda_z, q.lambda_z) * INSIDE
    return R.between + (A * (mended - sigma)) @ Bt, within


def _dual_of_step(q: Quotient, P: Columns, blocks: Blocks) -> float:
    """The bound that a proximal step of length s proves: R + X/s with its singular values clipped at lambda_Z.

    Its directions are those of X as much as those of R, which is better far from the optimum, where the two disagree.
    """
    R = residual(q, P)
    curvature = loss_hessian(q, P)
    stiff = _SHORT * max(float(curvature.diagonal.max()), float(curvature.within_diagonal.max()))
    A, sigma, Bt = np.linalg.svd(R.between + stiff * q.weight * blocks.C)
    between = (A * np.minimum(sigma, q.lambda_z * INSIDE)) @ Bt
    within = R.within + stiff * np.sqrt(q.mass) * blocks.alpha
    S = _columns(q, between, np.clip(within, -q.lambda_z, q.lambda_z) * INSIDE)
    return -np.inf if S is None else dual_on_ray(q, *S, search=False)


def _columns(q: Quotient, between: Matrix, within: Vector) -> tuple[Columns, Residual, float] | None:
    """Columns S with nearly this residual, of norm at most lambda_Z; their own residual and a bound on its norm.

    None if the bias is free and they do not balance.
    """
    # between_jj = r_own + (k - 1) r_sibling, within = r_own - r_sibling
    within = np.where(q.sizes > 1, within, 0.0)
    r_other = between / np.sqrt(np.outer(q.sizes, q.sizes))
    diagonal = np.diag_indices_from(between)
    r_other[diagonal] = (between[diagonal] - within) / q.sizes
    other = target(q).other - r_other * np.sqrt(q.mass) / (q.scales[:, None] * q.temperatures * q.share)
    other[diagonal] = np.where(q.sizes > 1, other[diagonal], 0.0)
    other = np.maximum(other, 0.0)  # tiny probabilities may have been moved past 0
    miss = np.sum(q.others * other, axis=0)
    S = Columns(np.minimum(miss, 1.0), other / np.maximum(miss, 1.0))
    actual = residual(q, S)
    if q.lambda_b == 0 and np.sqrt(q.sizes @ actual.bias**2) > BALANCED:
        return None
    # the parts act on orthogonal subspaces; from rounding alone this is 1e-14 of lambda_Z with fifty thousand classes
    off = max(float(np.linalg.norm(actual.between - between)), float(np.max(np.abs(actual.within - within))))
    return S, actual, q.lambda_z * INSIDE + off


def _simplex_limit(Y: Columns, P: Columns, q: Quotient) -> float:
    """The largest t with S_t >= 0; 1 if the ray never leaves the simplex (P = Y)."""
    fall = np.where(q.others > 0, Y.other - P.other, 0.0)
    rise = P.miss - Y.miss
    least = np.finfo(np.float64).tiny  # one divided by it is finite
    ends = [
        np.min(Y.other / np.maximum(fall, least), initial=np.inf, where=fall > 0),
        np.min((1 - Y.miss) / np.maximum(rise, least), initial=np.inf, where=rise > 0),
    ]
    limit = float(min(ends))
    return limit if np.isfinite(limit) else 1.0
