"""The penalties of theory, read from a torch optimizer, the loss and the network; with warnings where they differ.

The convention is the half on every square, which is torch's ``weight_decay`` for SGD: lambda_w = wd.

Example:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.0)
    >>> known = known_training(model, model[2], optimizer, penalties=Penalties(0.1, 0.01))
    >>> known.lambda_w, known.lambda_h
    (0.1, 0.01)
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from collapsar.core.known import KnownTraining
from collapsar.core.loss import Loss
from collapsar.core.penalties import Penalties
from collapsar.metrics.head import linear_map
from collapsar.metrics.norms import normalization
from collapsar.monitor.differences import PenaltyWarning, differences
from collapsar.monitor.facts import Facts
from collapsar.monitor.layers import bounding, feeding
from collapsar.monitor.optimizers import Optimizers, each_of, groups_of


def known_training(
    model: nn.Module,
    head: nn.Module,
    optimizer: Optimizers | None,
    *,
    penalties: Penalties | None = None,
    criterion: Any = None,
    data: Any = None,
    schedule: LRScheduler | int | None = None,
) -> KnownTraining:
    """The penalties of a torch training loop; each difference from the theory is a warning.

    The optimizer's ``weight_decay`` on the head's parameters adds to the penalties of the loss. The effect of a decay
    is tried on a copy of the optimizer (:mod:`collapsar.monitor.optimizers`). A decoupled one (AdamW) is not a penalty
    until training is at rest; then ``lambda_w`` has one entry for each class, read from the optimizer's state
    (:mod:`collapsar.monitor.adaptive`). Until then it is None, and a diagnosis fits it. Decay of a batch norm
    that feeds the head directly is a feature penalty: with unit variance in each coordinate, sum ||h||^2 = N
    (||gamma||^2 + ||beta||^2), so lambda_h = wd / N. A head with one output counts as one with two classes, whose
    penalty is twice that of its row.

    Args:
        model: the whole network.
        head: its last linear layer.
        optimizer: the training's, or several that share the parameters; None if none is at hand: then only the loss's
            penalties are known.
        penalties: those written into the loss, for the sum over all N samples.
        criterion: the loss function, tried on a few logits; None: plain cross-entropy.
        data: the training loader or data set; tells N, what an epoch shows of each class, and whether images are
            augmented or mixed.
        schedule: the scheduler of the learning rate, in its present state, or the number of steps of the whole run; for
            ``decay_clock``.

    Returns:
        The penalties for :func:`collapsar.diagnose.readers.diagnose`, with the warnings' texts as cautions.

    Warns:
        PenaltyWarning: for every difference found; ``kind`` says which.

    Raises:
        ValueError: ``head`` is not a linear layer of ``model``, ``optimizer`` holds none of its parameters, or
            ``criterion`` has class weights for another number of classes.
    """
    facts = facts_of(model, head, optimizer, penalties, criterion, data, schedule)
    found = differences(facts)
    for warning in found:
        warnings.warn(warning, stacklevel=2)
    return training_of(facts, found)


def training_of(facts: Facts, found: tuple[PenaltyWarning, ...]) -> KnownTraining:
    """The known training that follows from the facts, with the differences found as cautions."""
    own = facts.penalties or Penalties(0.0, 0.0)
    step, size = (facts.samples_per_step, facts.num_samples) if facts.loss.summed else (1, 1)
    step, size = (None if n is None or facts.loss_scale is None else n * facts.loss_scale for n in (step, size))
    nothing = facts.frozen_head or not facts.stored_head or (facts.optimizer is None and facts.penalties is None)
    lambda_w = None if nothing else _over(_of_rows(facts, _held(facts) + own.lambda_w), step)
    if lambda_w is not None and not np.any(lambda_w):
        lambda_w = None
    lambda_h = _over(own.lambda_h, size) if own.lambda_h > 0 else _over(_of_batch_norm(facts), step)
    norm, loss, times = facts.norm, facts.loss.loss or Loss(), facts.resampling
    if times is not None:
        loss = replace(loss, class_weights=times * (1.0 if loss.class_weights is None else loss.class_weights))
    if norm is not None and norm.gain_penalty:
        norm = replace(norm, gain_penalty=norm.gain_penalty / (step or math.nan))
    return KnownTraining(
        lambda_w=lambda_w,
        lambda_h=lambda_h,
        lambda_b=_over(_of_rows(facts, _of_bias(facts)), step),
        loss=loss,
        cautions=tuple(str(warning) for warning in found),
        decay_clock=None if facts.clock is None else facts.clock.total,
        rest=None if facts.rows is None else facts.rows.rest,
        norm=norm,
        bounded_by=bounding(facts.model, facts.head),
        body=body(facts),
        frozen_head=facts.frozen_head,
        exposure=times,
    )


def penalty_warnings(
    model: nn.Module,
    head: nn.Module,
    optimizer: Optimizers | None = None,
    *,
    penalties: Penalties | None = None,
    criterion: Any = None,
    data: Any = None,
    schedule: LRScheduler | int | None = None,
) -> tuple[PenaltyWarning, ...]:
    """The differences between a training and the theory, as values; arguments as for :func:`known_training`.

    Layers are taken in the order in which they were registered: check a network that runs them in another order
    yourself.
    """
    return differences(facts_of(model, head, optimizer, penalties, criterion, data, schedule))


def weight_decays(model: nn.Module, optimizer: Optimizers | None) -> set[float]:
    """The different weight decays that the model's trained parameters have."""
    own = {id(p) for p in model.parameters() if p.requires_grad}
    groups = [group for each in each_of(optimizer) for group in groups_of(each)]
    return {float(g.get("weight_decay", 0.0)) for g in groups if any(id(p) in own for p in g["params"])}


def facts_of(model: nn.Module, head: nn.Module, *rest: Any) -> Facts:
    """The facts; their fields after the head are ``rest``.

    Raises:
        ValueError: ``head`` is no linear layer of ``model``, or the optimizer holds none of its parameters.
    """
    if not any(module is head for module in model.modules()) or linear_map(head) is None:
        raise ValueError("`head` must be a linear layer of `model`, the last; pass the module itself, e.g. model.fc")
    return Facts(model, head, *rest)


def _of_rows(facts: Facts, penalty: Any) -> Any:
    """A penalty of the head as that of the classes' rows."""
    if penalty is None or facts.row_penalty == 1:
        return penalty
    return facts.row_penalty * (np.repeat(penalty, 2) if isinstance(penalty, np.ndarray) else penalty)


def _held(facts: Facts) -> float | NDArray[np.float64]:
    """The penalty that the optimizer's decay of the head's weight amounts to; NaN if unknown."""
    if facts.decay is None:
        return 0.0
    if facts.rows is not None and facts.rows.rows is not None and facts.at_rest:
        return facts.rows.rows
    return facts.decay.penalty


def _of_bias(facts: Facts) -> float | None:
    """The penalty of the head's bias; None if there is no bias, or the penalty is unknown."""
    bias, own = getattr(facts.head, "bias", None), facts.penalties and facts.penalties.lambda_b
    of_optimizer = None if bias is None or facts.optimizer is None else facts.decay_of(bias).penalty
    return None if of_optimizer is None and own is None else (of_optimizer or 0.0) + (own or 0.0)


def body(facts: Facts) -> Literal["frozen", "decayed", "free"] | None:
    """Whether the layers below the head are frozen, decayed, or trained without decay; None without an optimizer."""
    if facts.optimizer is None:
        return None
    own = {id(p) for p in facts.head.parameters()}
    held = {id(p) for each in each_of(facts.optimizer) for group in groups_of(each) for p in group["params"]}
    below = [p for p in facts.model.parameters() if id(p) not in own and p.requires_grad and id(p) in held]
    if not below:
        return "frozen"
    matrices = (p for p in below if p.ndim > 1)
    return "decayed" if any(facts.decay_of(p).kind != "none" for p in matrices) else "free"


def _of_batch_norm(facts: Facts) -> float | None:
    layer = feeding(facts.model, facts.head)
    found = None if layer is None else normalization(layer)
    if facts.optimizer is None or found is None or found.over != "batch" or not facts.num_samples:
        return None
    if found.gain is None or found.shift is None:
        return None
    penalties = {facts.decay_of(parameter).penalty for parameter in (found.gain, found.shift)}
    price = penalties.pop()
    return price / facts.num_samples if not penalties and 0 < price < math.inf else None


def _over(penalty: Any, times: float | None) -> Any:
    """A penalty of the theory's loss, given one for a loss ``times`` as large; None if either is unknown."""
    if penalty is None or times is None or not np.isfinite(penalty).all():
        return None
    return penalty / times
