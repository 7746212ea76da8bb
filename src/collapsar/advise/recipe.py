"""What is known about a standard training before it runs: optimizer, decay, learning rate, steps, and the norm."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from collapsar.core.checks import must_be_positive
from collapsar.core.loss import Loss
from collapsar.core.normalization import norm_length

Norm = Literal["layernorm", "rmsnorm", "cosine", "batchnorm", "none"]
Optimizer = Literal["sgd", "adam", "adamw", "other"]
Schedule = Literal["constant", "cosine", "linear"]
_EPS = 1e-8  # torch's


@dataclass(frozen=True)
class Recipe:
    """What is known about a training before it runs.

    Attributes:
        optimizer: ``"sgd"``, ``"adam"`` (L2 in the gradient), ``"adamw"`` (decoupled decay) or ``"other"``: decoupled
            decay with a step that is not AdamW's, for which only the decay clock is known.
        weight_decay: > 0, decay of the head's weight.
        lr: > 0, learning rate at its peak.
        steps: updates in the run.
        batch_size: samples per update; None if unknown: AdamW's rest is then not forecast.
        norm: the normalisation right before the head.
        width: d, number of features.
        schedule: of the learning rate; its mean is 1 or 1/2 of the peak.
        gain_decay: decay of the norm's gain; None if it has no gain, or one that is fixed or exempt from decay.
        eps: AdamW's.
        length: of the features, or its root mean square; None: sqrt(width), or 16 for a cosine head, whose scale this
            is.
        smoothing: of the labels, in [0, 1).
        loss: its class weights, offsets, scales and temperatures.
        unit: what the optimizer calls a decay of 1: not 1 if the loss is a multiple of the mean, the head has one
            output, or decay is decoupled with momentum. Weight decays of the advice are multiplied by it.

    Raises:
        ValueError: A value is out of range, or ``loss`` has another smoothing.
    """

    optimizer: Optimizer
    weight_decay: float
    lr: float
    steps: int
    batch_size: int | None
    norm: Norm
    width: int
    schedule: Schedule = "cosine"
    gain_decay: float | None = None
    eps: float = _EPS
    length: float | None = None
    smoothing: float = 0.0
    loss: Loss = field(default_factory=Loss)
    unit: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("optimizer", Optimizer), ("norm", Norm), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"`{name}` must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        optional = {"batch_size": self.batch_size, "gain_decay": self.gain_decay, "length": self.length}
        known = {name: value for name, value in optional.items() if value is not None}
        if self.loss.smoothing not in (0, self.smoothing):
            raise ValueError(
                f"`smoothing` must equal that of `loss`, {self.loss.smoothing:g}, or be omitted, got {self.smoothing:g}"
            )
        Loss(smoothing=self.smoothing)
        known |= {name: getattr(self, name) for name in ("weight_decay", "lr", "steps", "width", "unit")}
        must_be_positive(**known)

    @property
    def whole_loss(self) -> Loss:
        """The loss with the smoothing of the labels."""
        return replace(self.loss, smoothing=self.smoothing)

    @property
    def norm_length(self) -> float:
        """The length of the features."""
        return self.length or norm_length(self.norm, self.width)

    @property
    def clock(self) -> float:
        """The sum of lr * wd over the run: the share of the initial head that is left is exp(-clock)."""
        return self.lr * self.weight_decay * self.steps * (1.0 if self.schedule == "constant" else 0.5)
