"""The duality gap of normalised features, at any point. Imports no algorithm.

Per sample, with unit features and c = lambda_w / norm^2, the objective is loss + (c/2) gamma(Z)^2 + bias penalty,

    gamma(Z) = min { ||W|| : W'H = Z, ||h_k|| <= 1 } = max { ||Z diag(mu)^(1/2)||_* : mu >= 0, sum mu = 1 },

whose dual norm is gamma*(R)^2 = min { sum y : diag(y) >= R'R }. For any S with columns in the simplex and any such y,

    D(S) = sum_k q_k [H(s_k) + <s_k - y_k, iota>] - sum(y) / (2c) - ||bias residual||^2 / (2 lambda_b)

is a lower bound: one eigenvalue problem per point. With features >= 0 it is one for any N >= 0, zero on the diagonal,
with diag(y) >= R'R + N (:mod:`.witness`). Factors bound gamma from above, weights mu from below. Per batch the penalty
is (a/2)||Z M^(1/2)||_*^2, a = lambda_w / (norm^2 sum m), and the bound is that of the program with
lambda_z = a ||Z M^(1/2)||_* (:mod:`.certificate`). With a decayed gain both norms enter linearly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from collapsar.core.normalization import normalization_of
from collapsar.core.problem import Problem
from collapsar.core.types import Vector
from collapsar.solver.atoms import Atoms, own_directions
from collapsar.solver.certificate import (
    BALANCED,
    Certificate,
    as_free,
    balance_bias,
    best_dual,
    certify_blocks,
    dual_along,
    penalty,
)
from collapsar.solver.objective import Columns, Residual, predict, residual
from collapsar.solver.spheres import NormalizedQuotient, Spheres, sphere_point
from collapsar.solver.symmetry import Blocks, Quotient
from collapsar.solver.witness import Witness, witness_of

if TYPE_CHECKING:
    from collapsar.solver.solution import SharedProof

_CLOSED = 1e-12  # relative gap at which no better bound is looked for
_SMALL = 1e-6  # multipliers below this share of the largest may be rounding
_TIGHT = 1e-12  # how close the two bounds of gamma are brought, relative
_ALIVE = 1e-12  # of the largest multiplier: none is taken to be less


def row_scales(problem: Problem, q: Quotient) -> Vector:
    """Per cluster, sqrt(mean lambda_w / lambda_w of its row): one where all rows cost the same."""
    how = normalization_of(problem)
    first = np.unique(q.labels, return_index=True)[1]
    return np.broadcast_to(np.asarray(how.row_scales, dtype=np.float64), (problem.num_classes,))[first]


def scaled_quotient(problem: Problem, q: Quotient) -> Quotient:
    """Rows of Z and b in units in which every row of W costs the same: a row penalty becomes a scale of its logit."""
    rows = row_scales(problem, q)
    priced = np.ptp(rows) > 0 and 0 < problem.lambda_b < np.inf
    return replace(q, scales=q.scales * rows, bias_rows=rows**2 if priced else None)


def normalized_quotient(problem: Problem, q: Quotient, price: float | None = None) -> NormalizedQuotient:
    """The per-sample program of a problem on its clusters; with a ``price``, that of a given length."""
    how, unit = normalization_of(problem), replace(as_free(scaled_quotient(problem, q)), mass=np.ones(q.num_clusters))
    if price is None and how.lambda_gain is not None:
        return NormalizedQuotient(unit, 1.0, problem.lambda_z)
    return NormalizedQuotient(unit, how.price if price is None else price)


def batch_price(problem: Problem) -> float:
    """The factor a = lambda_w / (norm^2 sum m) of the squared nuclear norm per batch."""
    how = normalization_of(problem)
    return how.price / float(problem.mass.sum())


# --- per sample


def certify_spheres(n: NormalizedQuotient, x: Spheres, *, enough: float = _CLOSED) -> Certificate:
    """The certificate of factors with unit features.

    Args:
        n: the program.
        x: the factors.
        enough: look for no better bound once the relative gap is this small.

    Returns:
        The objective of the factors, and the best bound known at their softmax.
    """
    q, p = n.q, sphere_point(n, x)
    primal, nu = p.value, np.maximum(p.nu, 0.0)
    best = Certificate(primal, _dual(n, p.P, p.R, _dominating(q, p.R, nu)))
    P, off = p.P, np.max(np.abs(q.bias_weight * x.b / q.sizes - p.R.bias)) if n.has_bias else 0.0
    if not best.relative_gap <= enough and off > BALANCED and q.bias_rows is None:
        # a free bias's equality holds at the best bias for this Z; a target that is met is not met there
        P = predict(q, balance_bias(q, x.blocks(q)))[0]
        R = residual(q, P)
        best = Certificate(primal, max(best.dual, _dual(n, P, R, _dominating(q, R, nu))))
    if not best.relative_gap <= enough:
        best = Certificate(primal, max(best.dual, _plain_dual(n, P, x.blocks(q), nu)))
    return best


def _plain_dual(n: NormalizedQuotient, P: Columns, blocks: Blocks, nu: Vector) -> float:
    """The bound by the program with a feature penalty whose masses are the multipliers: good to second order."""
    total = float(n.q.sizes @ nu)
    if not np.all(nu > 1e-12 * np.max(nu, initial=0.0)) or not total > 0:
        return -np.inf
    if n.gain is not None:
        return best_dual(n.lagrangian(nu * (n.gain**2 / total)), P, blocks)
    return best_dual(n.lagrangian(n.price * nu), P, blocks) - 0.5 * total


def _dual(n: NormalizedQuotient, P: Columns, R: Residual, total: float) -> float:
    """D(P); ``total`` is the sum of multipliers that dominate R'R."""
    q, gain = n.q, n.gain
    if q.lambda_b == 0 and not np.sqrt(q.sizes @ R.bias**2) <= 1e-13:
        return -np.inf
    if gain is None:
        # along S_t = Y + t(P - Y) the price grows like t^2: the best t is one unless P is far from the optimum
        return max(dual_along(q, P, R, t) - t * t * total / (2 * n.price) for t in (1.0, 0.9, 0.5, 0.1, 0.0))
    return dual_along(q, P, R, min(1.0, gain / np.sqrt(total) * (1 - 1e-13)) if total > 0 else 1.0)


def _dominating(q: Quotient, R: Residual, y: Vector) -> float:
    """The sum over classes of the least multiple of y with diag(y) >= R'R."""
    y = np.maximum(y, 1e-12 * float(np.max(y, initial=0.0)))
    if not np.all(y > 0):
        y = _cut_multipliers(q, R)
    # if a smoothed target is met, the residual and the multipliers are nothing but rounding
    length = np.maximum(np.sqrt(np.sum(R.between**2, axis=0)), np.abs(R.within))
    raised = np.where(y < _SMALL * np.max(y), np.maximum(y, length * np.max(length)), y)
    return min(_least_multiple(q, R, y), _least_multiple(q, R, raised))


def _least_multiple(q: Quotient, R: Residual, y: Vector) -> float:
    part = R.between / np.sqrt(y)
    top = max(float(np.linalg.eigvalsh(part.T @ part)[-1]), float(np.max(R.within**2 / y, initial=0.0)))
    return top * (1 + 1e-14) * float(q.sizes @ y)


def collapsed(n: NormalizedQuotient) -> tuple[Blocks, float]:
    """Z = 0 with the best bias, and gamma*(R) there: the least gain for which this is the optimum."""
    J = n.q.num_clusters
    rest = Blocks(np.zeros(J), np.zeros((J, J)), np.zeros(J))
    rest = balance_bias(n.q, rest) if n.has_bias else rest
    R = residual(n.q, predict(n.q, rest)[0])
    return rest, float(np.sqrt(n.q.sizes @ _cut_multipliers(n.q, R)))


def _cut_multipliers(q: Quotient, R: Residual, max_steps: int = 1000) -> Vector:
    """Multipliers when nothing is known of them (W = 0): those of the largest <R'R, H'H> over unit columns."""
    root, K = np.sqrt(q.sizes), q.num_classes
    cross, contrast = R.between.T @ R.between, R.within**2
    F, u = np.eye(q.num_clusters) - np.outer(root, root) / (K + 1), np.sqrt(q.sizes - 1)
    length, previous = np.ones_like(u), 0.0
    for _ in range(max_steps):
        F, u = F @ cross, u * contrast
        length = np.maximum(np.sqrt((np.sum(F**2, axis=0) + u**2) / q.sizes), 1e-300)
        F, u = F / length, u / length
        total = float(q.sizes @ length)
        if total - previous <= 1e-15 * total:
            break
        previous = total
    return np.maximum(length, 1e-12 * float(np.max(length))) + 1e-300


def spheres_of(n: NormalizedQuotient, blocks: Blocks, max_steps: int = 500) -> Spheres:
    """Factors of exactly this point with ||h_k|| <= 1 and nearly the least ||W||.

    The weights mu of the dual form of gamma are found by the multiplicative algorithm of optimal design,
    mu_k <- mu_k ||h_k||^2, which raises ||Z diag(mu)^(1/2)||_* at every step (Yu, Ann. Statist. 38, 2010).
    """
    q = n.q
    R = residual(q, predict(q, blocks)[0])
    X, width = q.weight * blocks.C, np.sqrt(np.maximum(q.sizes - 1, 0.0))
    alpha = np.abs(blocks.alpha) * (q.sizes > 1)
    # a first guess from the optimality conditions; at an optimum it is exact
    mu = (np.sum(X * R.between, axis=0) + width**2 * alpha * R.within) / q.sizes
    live = (np.sum(X**2, axis=0) + width**2 * alpha**2) > 0
    mu = np.where(live, np.maximum(mu, 1e-3 * max(float(np.max(np.abs(mu), initial=0.0)), 1e-300)), 0.0)
    if not live.any():
        zero = np.zeros_like(X)
        return Spheres(zero, zero, np.zeros_like(alpha), np.zeros_like(alpha), blocks.b)
    best: Spheres | None = None
    for _ in range(max_steps):
        mu = mu / float(q.sizes @ mu)
        root = np.sqrt(mu)
        U, s, Vt = np.linalg.svd(X * root)
        nuclear = float(s.sum() + np.sum(width**2 * root * alpha))
        inverse = np.where(root > 0, 1 / np.where(root > 0, root, 1.0), 0.0)
        half = np.sqrt(s)[:, None]
        F, u = half * Vt * inverse, width * np.sqrt(alpha * inverse)
        length = np.sqrt((np.sum(F**2, axis=0) + u**2) / q.sizes)
        longest = float(np.max(length))
        E, v = half * U.T * longest, np.sign(blocks.alpha) * width * np.sqrt(alpha * root) * longest
        found = Spheres(E, F / longest, v, u / longest, blocks.b)
        if best is None or found.weight_norm() < best.weight_norm():
            best = found
        if best.weight_norm() <= (nuclear * (1 + _TIGHT)) ** 2:
            break
        mu = mu * length**2
    assert best is not None
    return best


# --- per sample, features >= 0


@dataclass(frozen=True)
class NonnegativeSpheres:
    """A point with features >= 0 of unit length, and what proves it.

    Attributes:
        atoms: the factors, one row per orbit; the squares of every cluster's features sum to its size.
        b: bias, shape (J,).
        y: multipliers of the dual, shape (J,), > 0.
        witness: S, and N in units in which R has masses y.
    """

    atoms: Atoms
    b: Vector
    y: Vector
    witness: Witness

    def blocks(self, q: Quotient) -> Blocks:
        """Z and b per cluster."""
        return self.atoms.blocks(q, self.b)


def nonnegative_point(n: NormalizedQuotient, atoms: Atoms, b: Vector) -> NonnegativeSpheres:
    """Unit features with their multipliers and the witness that they suggest, at the best bias for Z."""
    q, blocks = n.q, atoms.blocks(n.q, b)
    if q.lambda_b < np.inf:
        blocks = balance_bias(q, blocks)
    S = predict(q, blocks)[0]
    y = n.price * atoms.pull(q, residual(q, S)) / q.sizes
    y = np.maximum(y, max(_ALIVE * float(np.max(y)), np.finfo(np.float64).tiny))
    C, gamma = atoms.gram()
    return NonnegativeSpheres(
        atoms, blocks.b, y, witness_of(n.lagrangian(y), S, C * np.sqrt(np.outer(y, y)) / n.price, gamma * y / n.price)
    )


def certify_nonnegative(n: NormalizedQuotient, x: NonnegativeSpheres, held: int | None = None) -> Certificate:
    """The objective of the factors, and what multipliers and witness prove; ``held``: a cluster of equal features."""
    q, N = n.q, x.witness
    weight = float(np.sum(x.atoms.norms(q)[0] ** 2))
    primal = predict(q, x.blocks(q))[1] + 0.5 * n.price * weight + q.bias_cost(x.b)
    if not (min(N.between.min(), N.within.min()) >= 0 and x.y.min() > 0):
        return Certificate(primal, -np.inf)
    R = residual(n.lagrangian(x.y), N.S)
    gram = R.between.T @ R.between + N.between + np.diag((q.sizes - 1) * N.within)
    contrasts = np.where(np.arange(q.num_clusters) == held, 0.0, R.within**2 - N.within)
    top = max(float(np.linalg.eigvalsh(gram)[-1]), float(np.max(contrasts)))
    return Certificate(primal, _dual(n, N.S, residual(q, N.S), top * (1 + 1e-14) * float(q.sizes @ x.y)))


# --- per batch


def certify_batch(problem: Problem, q: Quotient, blocks: Blocks, proof: SharedProof | None = None) -> Certificate:
    """The certificate per batch; ``q`` and ``blocks`` have the row penalties in their scales.

    If classes share directions, ``proof`` is that of the plain program, and ``q.lambda_z`` the price there.
    """
    gain = normalization_of(problem).lambda_gain is not None
    price = penalty(q, blocks) if proof is None else proof.atoms.price(q)
    if proof is None:
        q = replace(
            q, lambda_z=problem.lambda_z / np.sqrt(problem.mass.sum()) if gain else batch_price(problem) * price
        )
    own = certify_blocks(q, blocks) if proof is None else proof.certificate(q, blocks.b)
    shift = 0.0 if gain else 0.5 * q.lambda_z * price  # the price of a given length is squared
    return Certificate(own.primal - shift, own.dual - shift)


def in_row_units(problem: Problem, q: Quotient, blocks: Blocks) -> Blocks:
    """A point in the units of :func:`scaled_quotient`."""
    rows = row_scales(problem, q)
    return Blocks(blocks.alpha / rows, blocks.C / rows[:, None], blocks.b / rows)


def certify_normalized(problem: Problem, q: Quotient, blocks: Blocks) -> Certificate:
    """The duality gap at a point of a problem with normalised features, block-structured over ``q``."""
    inner = in_row_units(problem, q, blocks)
    if normalization_of(problem).over == "batch":
        return certify_batch(problem, scaled_quotient(problem, q), inner)
    n = normalized_quotient(problem, q)
    if q.features == "signed":
        return certify_spheres(n, spheres_of(n, inner))
    x = nonnegative_point(n, own_directions(n.q, inner), inner.b)  # one direction per class, an upper bound
    return certify_nonnegative(n, replace(x, b=inner.b))
