"""Advice from a torch training as it stands: its optimizer, loss and layers, or the reason why no theory applies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from collapsar.advise.advice import Advice, advise
from collapsar.advise.weight_decay import DecayAdvice, advise_weight_decay
from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.problem import FeatureModel, Penalties, Problem
from collapsar.monitor.head import find_head, unwrapped
from collapsar.monitor.known import known_training, layers_above_norm, penalty_warnings, weight_decays

__all__ = ["TrainingAdvice", "advise_training"]

# What takes the training out of the theory; other differences are cautions.
_REFUSED = ("decoupled-decay", "frozen-head", "frozen-backbone", "mixup", "loss", "resampled")


@dataclass(frozen=True)
class TrainingAdvice:
    """Advice, and what makes it less than certain.

    Attributes:
        advice: on penalties of head and features; or on weight decay alone, where nothing else prices the features.
        cautions: sentences on where the training differs from the theory.
    """

    advice: Advice | DecayAdvice
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Loop:
    """What a training loop has besides the network and its optimizer.

    Attributes:
        criterion: the loss function; None: plain cross-entropy.
        penalties: those written into the loss, for the sum over all N samples; None: none.
        data: the training loader or data set; tells whether samples are mixed, augmented or resampled.
    """

    criterion: nn.Module | None = None
    penalties: Penalties | None = None
    data: Any = None


def advise_training(
    counts: CountsLike,
    model: nn.Module,
    optimizer: Optimizer,
    loop: Loop | None = None,
    *,
    features: FeatureModel = "nonnegative",
    margin: float = 0.1,
) -> TrainingAdvice:
    """What ``collapsar advise`` says of a training, its penalties and layers read from the objects that do it.

    Args:
        counts: samples per class.
        model: the network; its head must be found by :func:`collapsar.monitor.head.find_head`.
        optimizer: with the network's parameters.
        loop: the rest.
        features: "nonnegative" where the head's input comes out of a ReLU.
        margin: see :func:`collapsar.advise.advice.advise`.

    Raises:
        ValueError: no theory applies, with the reason: decoupled decay, mixed samples, resampling, another loss,
            frozen parameters, or weight decay without a feature penalty that differs between parameters or has no
            normalisation above which to count layers.

    Example:
        >>> import torch
        >>> below = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()]
        >>> model = nn.Sequential(*below, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
        >>> found = advise_training([100, 100, 20], model, optimizer)
        >>> found.advice.verdict, found.advice.predictions[0].layers
        ('separated', 2)
    """
    n = class_counts(counts)
    model, loop = unwrapped(model), Loop() if loop is None else loop
    head = find_head(model, None, n.size)[1]
    facts: dict[str, Any] = {"penalties": loop.penalties, "criterion": loop.criterion, "data": loop.data}
    found = penalty_warnings(model, head, optimizer, **facts)
    for warning in found:
        if warning.kind in _REFUSED:
            raise ValueError(f"no theory applies: {warning}")
    if loop.penalties is not None and loop.penalties.lambda_h > 0:
        known = known_training(model, head, optimizer, **facts)
        if known.lambda_w is None:
            raise ValueError("`optimizer` and `loop.penalties` put no penalty on the head: nothing merges")
        assert known.lambda_h is not None  # of the loop's own penalties
        problem = Problem(
            n,
            Penalties(known.lambda_w, known.lambda_h).lambda_z,
            float("inf") if known.lambda_b is None else known.lambda_b,
            known.loss,
            features=features,
        )
        return TrainingAdvice(advise(problem, margin), tuple(str(warning) for warning in found))
    decays = weight_decays(model, optimizer)
    if len(decays) > 1 or 0.0 in decays:
        raise ValueError(
            "no theory applies: without a feature penalty every parameter must have the same weight decay > 0, got "
            f"{', '.join(f'{decay:g}' for decay in sorted(decays))}"
        )
    layers = layers_above_norm(model, head)
    return TrainingAdvice(advise_weight_decay(n, decays.pop(), layers=layers, margin=margin), ())
