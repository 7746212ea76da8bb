"""What is known about how a network was trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from collapsar.core.loss import Loss, class_vector, frozen_vector
from collapsar.core.problem import FeatureModel
from collapsar.core.records import JsonValue, to_json
from collapsar.core.types import Record, Vector

NORMALISED = "feeds the head: the length of the features is normalised and cannot answer to a penalty"
"""Part of the caution about a norm before the head, which is left out where the norm's own model is chosen."""
UNTRAINED = "The head is not trained"
"""Start of the caution that loss and penalty are not balanced at the head."""
IDLE = "Weight decay has not acted"
"""Start of the caution that the run's decay was too weak, or the run too short, to have merged classes."""
UNPENALISED = "Nothing penalises the features"
"""Start of the caution that features may grow without bound; left out where their lengths show a normalisation."""


class Rest(NamedTuple):
    """How well the loss's pull on the head, -dL/dW, agrees with the penalty that holds it; (1, 1) at rest.

    Attributes:
        slope: of the pull regressed on the penalty's gradient, through the origin.
        correlation: between the two, over all entries.
    """

    slope: float
    correlation: float

    @property
    def imbalance(self) -> float:
        """Their difference relative to the penalty's gradient; at x the correlation is only about 1 - x^2 / 2.

        Example:
            >>> round(Rest(0.96, 0.991).imbalance, 3)
            0.136
        """
        return math.sqrt(max((self.slope / self.correlation) ** 2 - 2 * self.slope + 1, 0.0))


@dataclass(frozen=True)
class HeadNorm:
    """The normalisation that feeds the head.

    Attributes:
        layer: its class.
        over: "sample": every sample's features have one length; "batch": their mean square over the batch is fixed.
        width: d, the number of its outputs.
        length: ||gamma||, sqrt(d) without a gain: the length of the features, or its root mean square over the batch.
        gain_penalty: lambda of its gain; NaN: decayed, but the loss has an unknown scale; 0.0: trained without a
            penalty, so that the length may grow without bound; None: there is no gain, it is not trained, or its
            decay is not a penalty.
        free_gain: whether there is a gain that is trained without any decay.
        trained_gain: whether there is a gain that is trained at all.
        uneven: standard deviation over mean of the gain's absolute values; 0 without one.
        shifted: whether something is added after the gain.
        pooled: class of the pooling between it and the head; None if there is none.
    """

    layer: str
    over: Literal["sample", "batch"]
    width: int
    length: float
    gain_penalty: float | None
    free_gain: bool
    trained_gain: bool = False
    uneven: float = 0.0
    shifted: bool = False
    pooled: str | None = None


@dataclass(frozen=True, eq=False)
class KnownTraining(JsonValue):
    """What is known about how a network was trained; None means "not known".

    Attributes:
        lambda_w: penalty of the head, with its half; torch SGD's ``weight_decay`` on it plus the loss's own. One
            number, or shape (K,), one for each class's row: AdamW at rest.
        lambda_h: penalty of the features, with its half, summed over all training samples.
        lambda_b: penalty of the head's bias; 0: not penalised.
        loss: the loss, as it counts each class: its class weights times ``exposure``.
        features: "nonnegative" after a ReLU, "signed" otherwise; None: decided by looking at the features.
        cautions: what makes these penalties differ from the theory's.
        decay_clock: sum of lr * weight_decay of the head over all steps, including later ones where they are known.
            Far below 1, weight decay has not acted.
        rest: how well loss and decay balance at the head.
        norm: the normalisation that feeds the head.
        bounded_by: class of a layer before the head that bounds each feature (tanh, as in the poolers of BERT).
        body: the layers below the head: "frozen", "decayed" if any of their matrices is decayed, otherwise "free".
        frozen_head: whether the head's weight is not trained (a fixed simplex, or a head below adapters): loss and
            penalty do not balance there, and no optimum here describes it.
        exposure: how often training shows each class, relative to its share of the samples, shape (K,), > 0, if a
            sampler resamples. A feature's penalty counts as often. None: all samples are shown equally often.

    Raises:
        ValueError: a penalty or an exposure is out of range, or ``features`` is unknown.

    Example:
        >>> KnownTraining(lambda_w=0.04, lambda_h=0.01).lambda_z
        0.02
    """

    lambda_w: float | Vector | None = None
    lambda_h: float | None = None
    lambda_b: float | None = None
    loss: Loss = field(default_factory=Loss)
    features: FeatureModel | None = None
    cautions: tuple[str, ...] = ()
    decay_clock: float | None = None
    rest: Rest | None = None
    norm: HeadNorm | None = None
    bounded_by: str | None = None
    body: Literal["frozen", "decayed", "free"] | None = None
    frozen_head: bool = False
    exposure: Vector | None = None

    def __post_init__(self) -> None:
        if self.exposure is not None:
            object.__setattr__(self, "exposure", class_vector("exposure", self.exposure, positive=True))
        for name in ("lambda_w", "lambda_h", "lambda_b"):
            value = getattr(self, name)
            numbers = np.asarray(0.0 if value is None else value, dtype=np.float64)
            if not (numbers.ndim <= (name == "lambda_w") and ((numbers >= 0) & (numbers < np.inf)).all()):
                raise ValueError(f"`{name}` must be finite and >= 0, or None where it is not known, got {value!r}")
            if numbers.ndim:
                object.__setattr__(self, name, frozen_vector(numbers.copy()))
        if self.features not in (None, "signed", "nonnegative"):
            raise ValueError(f'`features` must be "signed", "nonnegative" or None, got {self.features!r}')

    @property
    def idle(self) -> bool:
        """Whether weight decay alone was there to merge classes, and has not acted."""
        penalised = self.norm is None and bool(self.lambda_h)
        return not penalised and any(caution.startswith(IDLE) for caution in self.cautions)

    @property
    def one_lambda_w(self) -> float | None:
        """The head's penalty as one number, the mean over its rows, for uses that need one."""
        return None if self.lambda_w is None else float(np.mean(self.lambda_w))

    @property
    def priced_w(self) -> float | Vector | None:
        """The head's penalty where it is known and not zero; None reads it from the head's gradient."""
        return self.lambda_w if self.one_lambda_w else None

    @property
    def row_scales(self) -> Vector | None:
        """delta_k = sqrt(mean / lambda_k), shape (K,): a penalty per row equals one penalty with logits scaled by it.

        With w_k = v_k delta_k, sum_k lambda_k ||w_k||^2 = mean * sum_k ||v_k||^2. As a scale of ``Loss`` it multiplies
        the bias too, so this holds for a bias that is free or absent. None with one penalty for all rows.
        """
        rows = self.lambda_w
        if not isinstance(rows, np.ndarray) or not (rows > 0).all():
            return None
        return np.sqrt(rows.mean() / rows)

    @property
    def lambda_z(self) -> float | None:
        """sqrt(lambda_w lambda_h), with the mean of the rows; None unless both are known and positive."""
        head = self.one_lambda_w
        if not head or not self.lambda_h:
            return None
        return float(np.sqrt(head * self.lambda_h))

    def to_dict(self) -> Record:
        """The fields as JSON-able values."""
        return {**super().to_dict(), "rest": self.rest and to_json(self.rest._asdict())}


def rests_by_rows(known: KnownTraining) -> bool:
    """Whether, by the optimizer's own state, the head is at rest with a penalty for each row (AdamW)."""
    return known.rest is not None and isinstance(known.lambda_w, np.ndarray)
