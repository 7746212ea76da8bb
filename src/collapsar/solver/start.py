"""A first guess: the asymptotic form of the optimum.

As the penalty weakens, Y - P tends to lambda_Z diag(1/delta) Q diag(sqrt(m) / (tau q)) with Q the polar factor of
C_K M^(1/2): the off-diagonal of Q gives every wrong class its probability, whose logarithm is the logit.
"""

from __future__ import annotations

import numpy as np

from collapsar.solver.symmetry import Blocks, Quotient

__all__ = ["asymptotic_start"]

# Newton's method on a cross-entropy overshoots from probabilities that are too small and creeps by one unit of
# logit from ones that are too large: twice the asymptotic value, no entry below the mean, was best for K = 50 to 200.
_INFLATE = 2.0


def asymptotic_start(q: Quotient) -> Blocks:
    """A block-structured point with zero bias, usually within a few Newton steps of the optimum."""
    J, K = q.num_clusters, q.num_classes
    root = np.sqrt(q.sizes)
    centring = np.eye(J) - np.outer(root, root) / K  # C_K on the cluster directions
    A, _, Bt = np.linalg.svd(centring * np.sqrt(q.mass))
    polar = A[:, : J - 1] @ Bt[: J - 1]
    on = np.diag_indices(J)
    wrong = -polar / np.outer(root, root)  # entries of -Q between clusters
    wrong[on] = (1 - polar[on]) / q.sizes  # and inside, where Q = I - J/k + polar_jj J/k
    wrong = _INFLATE * np.maximum(wrong, np.mean(np.abs(wrong)))
    price = q.lambda_z * np.sqrt(q.mass) / (q.temperatures * q.share)
    P = wrong * price / q.scales[:, None] + q.smoothing / K
    miss = np.sum(q.others * P, axis=0)
    cap = np.minimum(1.0, (1 - 1.5 / K) / miss)  # keep the own class ahead
    P, miss = P * cap, miss * cap
    z = (np.log(P) - np.log1p(-miss) - (q.offsets[:, None] - q.offsets)) / (q.temperatures * q.scales[:, None])
    z[on] = np.where(q.sizes > 1, z[on], 0.0)  # against an own logit of 0, which the shift along 1/delta then moves
    alpha = np.maximum(-z[on], 0.0)
    shift = -np.sum(q.others * z / q.scales[:, None], axis=0) / float(q.sizes @ q.scales**-2.0)
    C = z + shift / q.scales[:, None]
    C[on] = shift / q.scales - alpha * (1 - 1 / q.sizes)
    return Blocks(alpha, C, np.zeros(J))
