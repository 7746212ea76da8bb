"""The duality gap of :mod:`.certificate` at a point of few clusters, in as few operations on small arrays as it takes.

Primal: the objective at the point. Dual: D(S) at S = Y + t(P - Y), t = min(1, lambda_Z / ||R||), the simplest of the
feasible points there. At an optimum ||R|| = lambda_Z and the two meet; elsewhere certificate.py finds better bounds.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import get_lapack_funcs

from collapsar.solver.certificate import BALANCED, INSIDE, Certificate
from collapsar.solver.symmetry import Blocks, Quotient, grid

(_gesdd,) = get_lapack_funcs(("gesdd",), dtype=np.float64)


def certify_small(q: Quotient, blocks: Blocks) -> Certificate:
    """The duality gap at a block-structured point, for signed features.

    Args:
        q: J clusters, ``features == "signed"``.
        blocks: the point; if the bias is free, it must be the best for its Z, or the bound is -inf.

    Returns:
        The certificate.
    """
    k, J, even = q.sizes, q.sizes.size, q.smoothing / q.labels.size
    row, column, eye = grid(J)
    one, siblings = np.ones(J), k - 1
    root, root_m = np.sqrt(k), np.sqrt(q.mass)
    g, class_share = root * root_m, k * q.share
    others = k[row] - eye
    # scaled logits of one other class of each cluster, less the own class's: a sibling's differs from it by alpha
    d = q.scales[row] * (blocks.C.ravel() + blocks.b[row])
    contrast = q.scales * blocks.alpha
    own = d[:: J + 1] + contrast * (siblings / k)
    d[:: J + 1] -= contrast / k
    d -= own[column]
    d *= q.temperatures[column]
    offsets = q.offsets[row] - q.offsets[column] if np.count_nonzero(q.offsets) else None
    if offsets is not None:
        d += offsets
    odds = np.exp(d)
    wrong = one.dot((others * odds).reshape(J, J))
    loss = np.log1p(wrong)
    if even:
        loss -= even * one.dot((others * d).reshape(J, J))
    nuclear = sum(_gesdd((root[row] * g[column] * blocks.C.ravel()).reshape(J, J), compute_uv=0)[1].tolist())
    primal = class_share.dot(loss) + q.lambda_z * (nuclear + (siblings * root_m).dot(abs(blocks.alpha)))
    # R, whose between-cluster part has (own + siblings) on its diagonal, and own - sibling inside a cluster
    total = 1 + wrong
    P, miss, certain = odds / total[column], wrong / total, even * (q.labels.size - 1)
    weight = q.temperatures * q.share / root_m
    r = (q.scales[row] * weight[column]) * (even - P)
    own, sibling = q.scales * weight * (miss - certain), r[:: J + 1].copy()
    r *= root[row] * root[column]
    r[:: J + 1] = own + siblings * sibling
    R = r.reshape(J, J)
    inside = [rho for rho, n in zip(abs(own - sibling).tolist(), siblings.tolist(), strict=True) if n]
    norm = max([float(_gesdd(R, compute_uv=0)[1][0]), *inside])
    t = min(q.lambda_z * INSIDE / norm, 1.0) if norm > 0 else 1.0
    S, miss = even + t * (P - even), certain + t * (miss - certain)
    terms = S * np.log(S) if offsets is None else S * np.log(S) - (S - even) * offsets
    entropy = one.dot((others * terms).reshape(J, J)) + (1 - miss) * np.log1p(-miss)
    dual = -class_share.dot(entropy)
    imbalance = R.dot(g)  # sqrt(k) times the bias equation
    if 0 < q.lambda_b < math.inf:
        primal += 0.5 * q.lambda_b * k.dot(blocks.b * blocks.b)
        dual -= 0.5 * t * t / q.lambda_b * imbalance.dot(imbalance)
    elif q.lambda_b == 0 and not math.sqrt(imbalance.dot(imbalance)) <= BALANCED:
        dual = -math.inf
    return Certificate(float(primal), float(dual))
