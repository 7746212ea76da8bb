"""The feature penalty under which a trained head would be balanced. Needs only numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def balance_penalties(
    weight: ArrayLike, class_means: ArrayLike, mass: ArrayLike, lambda_w: float
) -> tuple[float, float]:
    """The feature penalty under which a head would be stationary, inferred from norms alone.

    At any stationary point lambda_w ||W||^2 = lambda_h sum_k m_k ||h_k||^2.

    Args:
        weight: W, shape (K, d), as torch stores a linear layer.
        class_means: shape (K, d), mean feature of each class.
        mass: m, shape (K,), samples per class.
        lambda_w: the head's penalty, with its half.

    Returns:
        lambda_h and lambda_z = sqrt(lambda_w lambda_h); NaN if all features are zero.

    Raises:
        ValueError: ``lambda_w`` is not positive or the shapes disagree.
    """
    W, H, m = (np.asarray(v, dtype=np.float64) for v in (weight, class_means, mass))
    if W.shape != H.shape or m.shape != W.shape[:1]:
        raise ValueError(
            f"`weight`, `class_means` and `mass` must have shapes (K, d), (K, d), (K,), "
            f"got {W.shape}, {H.shape}, {m.shape}"
        )
    if not 0 < lambda_w < np.inf:
        raise ValueError(f"`lambda_w` must be finite and > 0, got {lambda_w!r}")
    features = float(m @ np.sum(H**2, axis=1))
    lambda_h = lambda_w * float(np.sum(W**2)) / features if features > 0 else float("nan")
    return lambda_h, float(np.sqrt(lambda_w * lambda_h))
