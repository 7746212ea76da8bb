"""What is known of how a network was trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from collapsar.core.problem import FeatureModel, Loss

__all__ = ["KnownTraining"]


@dataclass(frozen=True)
class KnownTraining:
    """What is known of how a network was trained; None is "not known".

    Attributes:
        lambda_w: penalty of the head, with its half; torch SGD's ``weight_decay`` on it and the loss's own add up.
        lambda_h: penalty of the features, with its half, summed over all training samples.
        lambda_b: penalty of the head's bias; 0: not penalised.
        loss: the loss.
        features: "nonnegative" after a ReLU, "signed" otherwise; None looks at the features.
        cautions: what makes these penalties differ from the theory's.

    Raises:
        ValueError: a penalty is negative or not finite, or ``features`` is unknown.
    """

    lambda_w: float | None = None
    lambda_h: float | None = None
    lambda_b: float | None = None
    loss: Loss = field(default_factory=Loss)
    features: FeatureModel | None = None
    cautions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("lambda_w", "lambda_h", "lambda_b"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be finite and >= 0, or None where it is not known, got {value!r}")
        if self.features not in (None, "signed", "nonnegative"):
            raise ValueError(f'`features` must be "signed", "nonnegative" or None, got {self.features!r}')

    @property
    def lambda_z(self) -> float | None:
        """sqrt(lambda_w lambda_h); None unless both are known and positive."""
        if not self.lambda_w or not self.lambda_h:
            return None
        return float(np.sqrt(self.lambda_w * self.lambda_h))
