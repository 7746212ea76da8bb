"""A first guess: the asymptotic form of the optimum.

As the penalty weakens, Y - P tends to lambda_Z diag(1/delta) Q diag(sqrt(m) / (tau q)), with Q the polar factor of
C_K M^(1/2): the off-diagonal of Q gives every wrong class its probability, whose logarithm is the logit.
"""

from __future__ import annotations

import numpy as np

from collapsar.core.types import Array
from collapsar.solver.symmetry import Blocks, Quotient

# Newton's method on a cross-entropy overshoots from probabilities that are too small and creeps by one unit of
# logit from ones that are too large: twice the asymptotic value, no entry below the mean, was best for K = 50 to 200.
_INFLATE = 2.0


def asymptotic_start(q: Quotient) -> Blocks:
    """A block-structured point with zero bias, usually within a few Newton steps of the optimum."""
    price = q.lambda_z * np.sqrt(q.mass) / (q.temperatures * q.share)
    scales, temperatures = q.scales[:, None], q.temperatures[:, None]
    shift = (q.offsets[:, None] - q.offsets)[..., None]
    columns = (q.sizes[:, None], np.sqrt(q.mass)[:, None], price[:, None], scales, temperatures, shift)
    alpha, z = (part[..., 0] for part in asymptotic_logits(*columns, np.array([q.smoothing / q.num_classes])))
    # the own logit is 0 so far: the shift along 1/delta makes the column sum to zero against it
    shift = -np.sum(q.others * z / q.scales[:, None], axis=0) / float(q.sizes @ q.scales**-2.0)
    C = z + shift / q.scales[:, None]
    C[np.diag_indices_from(C)] = shift / q.scales - alpha * (1 - 1 / q.sizes)
    return Blocks(alpha, C, np.zeros(q.num_clusters))


def asymptotic_logits(
    sizes: Array, root_mass: Array, price: Array, scales: Array, temperatures: Array, shift: Array, smooth: Array
) -> tuple[Array, Array]:
    """The asymptotic optima of B problems of J clusters, on the last axis: contrasts and logits against the own class.

    Args:
        sizes: k, shape (J, B).
        root_mass: sqrt(m), (J, B).
        price: lambda_Z sqrt(m) / (tau q), (J, B).
        scales: delta, (J, B).
        temperatures: tau, (J, B).
        shift: iota_i - iota_j, (J, J, B).
        smooth: eps / K, (B,).

    Returns:
        alpha, (J, B), and z, (J, J, B): the logit of one other class of cluster i, less the own one's; on the diagonal
        that of a sibling, 0 if there is none.
    """
    J, K, on = sizes.shape[0], sizes.sum(axis=0), np.arange(sizes.shape[0])
    root = np.sqrt(sizes)
    centring = np.eye(J)[:, :, None] - root[:, None] * root / K  # C_K on the cluster directions
    A, _, Bt = np.linalg.svd(np.moveaxis(centring * root_mass, -1, 0))
    polar = np.moveaxis(A[:, :, : J - 1] @ Bt[:, : J - 1], 0, -1)
    wrong = -polar / (root[:, None] * root)  # entries of -Q between clusters
    wrong[on, on] = (1 - polar[on, on]) / sizes  # and inside, where Q = I - J/k + polar_jj J/k
    wrong = _INFLATE * np.maximum(wrong, np.abs(wrong).mean(axis=(0, 1)))
    P = wrong * price / scales[:, None] + smooth
    others = sizes[:, None] - np.eye(J)[:, :, None]
    miss = np.sum(others * P, axis=0)
    cap = np.minimum(1.0, (1 - 1.5 / K) / miss)  # keep the own class ahead
    P, miss = P * cap, miss * cap
    z = (np.log(P) - np.log1p(-miss) - shift) / (temperatures * scales[:, None])
    z[on, on] = np.where(sizes > 1, z[on, on], 0.0)
    return np.maximum(-z[on, on], 0.0), z
