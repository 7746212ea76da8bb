"""Quadratic penalties with a half, and the conversion from those without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from collapsar.core.checks import bias_price


@dataclass(frozen=True)
class Penalties:
    """Quadratic penalties, each with a half: (lambda_w/2)||W||^2 + (lambda_h/2)||H||^2 + (lambda_b/2)||b||^2.

    ``lambda_b = inf`` is a head without bias, ``lambda_b = 0`` a free bias.

    Raises:
        ValueError: lambda_w or lambda_h is negative or not finite, or lambda_b is negative or NaN.

    Example:
        >>> Penalties(lambda_w=1e-3, lambda_h=1e-5, lambda_b=0.02).lambda_z
        0.0001
    """

    lambda_w: float
    lambda_h: float
    lambda_b: float = float("inf")

    def __post_init__(self) -> None:
        for name in ("lambda_w", "lambda_h"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise ValueError(f"`{name}` must be finite and >= 0, got {value!r}")
        bias_price(self.lambda_b)

    @property
    def lambda_z(self) -> float:
        """The penalty of the mean predictions, sqrt(lambda_w lambda_h)."""
        return float(np.sqrt(self.lambda_w * self.lambda_h))


def penalties_without_halves(
    reg_w: float,
    reg_h: float,
    reg_b: float = float("inf"),
    *,
    weight_decay: float = 0.0,
    feature_term: Literal["dataset", "batch_sum", "batch_mean"] = "dataset",
    num_samples: int | None = None,
    batch_size: int | None = None,
) -> Penalties:
    """Convert penalties written as reg * (square), without the half, to this project's convention.

    The authors' published scripts minimise CE + reg_w ||W||^2 + reg_h ||H||^2 + reg_b ||b||^2 and let SGD's
    ``weight_decay``, which does carry the half, add to the head: lambda_w = 2 reg_w + wd, lambda_b = 2 reg_b + wd.

    Args:
        reg_w: factor of ||W||^2 (sum of squares).
        reg_h: factor of the feature term.
        reg_b: factor of ||b||^2; inf for a head without bias.
        weight_decay: the optimizer's L2 decay on the head, on top (not AdamW's decoupled decay).
        feature_term: how one batch of B of the N samples writes its feature penalty: ``"dataset"`` for
            reg_h (N/B) sum ||h||^2 (an estimate of the whole data set's), ``"batch_sum"`` for reg_h sum ||h||^2,
            ``"batch_mean"`` for reg_h (1/B) sum ||h||^2.
        num_samples: N; needed unless ``feature_term="dataset"``.
        batch_size: B; needed for ``"batch_sum"``.

    Returns:
        The equivalent :class:`Penalties`.

    Raises:
        ValueError: An argument is negative, or N or B is needed and missing.

    Example:
        >>> penalties_without_halves(1e-3, 1e-6, 1e-2, weight_decay=5e-4)
        Penalties(lambda_w=0.0025, lambda_h=2e-06, lambda_b=0.0205)
    """
    if not weight_decay >= 0:
        raise ValueError(f"`weight_decay` must be >= 0, got {weight_decay!r}")
    if feature_term not in ("dataset", "batch_sum", "batch_mean"):
        raise ValueError(f'`feature_term` must be "dataset", "batch_sum" or "batch_mean", got {feature_term!r}')
    if feature_term == "dataset":
        scale = 1.0
    elif num_samples is None or (feature_term == "batch_sum" and batch_size is None):
        raise ValueError(f'`feature_term="{feature_term}"` needs `num_samples` (and "batch_sum" `batch_size`)')
    else:
        scale = (batch_size if feature_term == "batch_sum" and batch_size is not None else 1) / num_samples
    return Penalties(2 * reg_w + weight_decay, 2 * reg_h * scale, 2 * reg_b + weight_decay)
