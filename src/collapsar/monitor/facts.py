"""A training and what is read from it, each item once: optimizer, decay, loss, data and normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from collapsar.core.known import HeadNorm
from collapsar.core.penalties import Penalties
from collapsar.core.types import Vector
from collapsar.monitor.adaptive import Clock, Rows, decay_clock, decay_rows
from collapsar.monitor.exposure import Exposure, batch_size, exposure
from collapsar.monitor.head import acts_as_stored
from collapsar.monitor.layers import head_norm
from collapsar.monitor.losses import Criterion, read_criterion
from collapsar.monitor.optimizers import Decay, Optimizers, decay_of, each_of, group_of, groups_of, own_name


@dataclass(frozen=True)
class Facts:
    """A training, and what is read from it, each item once.

    Attributes:
        model: the whole network.
        head: its last linear layer.
        optimizer: the training's, or several; None if none is at hand.
        penalties: those written into the loss.
        criterion: the loss function.
        data: the training loader or data set.
        schedule: the optimizer's scheduler, or the number of steps of the whole run.
        counts: samples per class; None: those that an epoch of the data shows, if known.
    """

    model: nn.Module
    head: nn.Module
    optimizer: Optimizers | None
    penalties: Penalties | None = None
    criterion: Any = None
    data: Any = None
    schedule: LRScheduler | int | None = None
    counts: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.optimizer is not None and not any(id(p) in self._trained for p in self.model.parameters()):
            raise ValueError(
                "`optimizer` holds no parameter of `model`: it trains another network, of which this is a copy or a "
                "moving average, or it steps copies of the parameters, as some offloading optimizers do. Pass the "
                "trained network and an optimizer made for its own parameters; the result also holds for averages of "
                "its weights"
            )

    def decay_of(self, parameter: Any) -> Decay:
        """The decay of a parameter: one for a group's matrices, one for its vectors, each tried once."""
        found = group_of(parameter, self.optimizer)
        # Some build their groups anew at each access.
        place = None if found is None else (id(found[1]["params"][0]), max(parameter.ndim, 1))
        if place not in self._decays:
            self._decays[place] = decay_of(parameter, () if self.optimizer is None else self.optimizer)
        return self._decays[place]

    def moves(self, parameter: nn.Parameter) -> bool:
        """Whether training changes a parameter."""
        return parameter.requires_grad and (self.optimizer is None or id(parameter) in self._trained)

    @cached_property
    def _trained(self) -> frozenset[int]:
        groups = (group for optimizer in each_of(self.optimizer) for group in groups_of(optimizer))
        return frozenset(id(p) for group in groups for p in group["params"])

    @property
    def frozen_head(self) -> bool:
        """Whether nothing behind the head's weight is trained."""
        return not any(self.moves(p) for name, p in self.head.named_parameters() if name != "bias")

    @cached_property
    def stored_head(self) -> bool:
        """Whether the head returns W h + b of the weight that it stores."""
        return acts_as_stored(self.head)

    @cached_property
    def _decays(self) -> dict[tuple[int, int] | None, Decay]:
        return {}

    @cached_property
    def decay(self) -> Decay | None:
        """The decay of the head's weight; None without an optimizer."""
        return None if self.optimizer is None else self.decay_of(self.weight)

    @cached_property
    def decays(self) -> tuple[tuple[str, Decay], ...]:
        """The decays of all trained parameters, one for each group of each optimizer, with the optimizer's class."""
        found = []
        for optimizer in each_of(self.optimizer):
            for group in groups_of(optimizer):
                own = [p for p in group["params"] if p.requires_grad]
                # A matrix if there is one: some optimizers do not decay vectors.
                own.sort(key=lambda p: p.ndim == 2, reverse=True)
                found += [(own_name(optimizer), self.decay_of(own[0]))] if own else []
        return tuple(found)

    @cached_property
    def rows(self) -> Rows | None:
        """The head's penalty by rows, if its decay is preconditioned."""
        if self.optimizer is None or self.decay is None or self.decay.kind != "preconditioned":
            return None
        return decay_rows(self.weight, self.optimizer)

    @cached_property
    def clock(self) -> Clock | None:
        """How far the head's decay has come."""
        if self.optimizer is None or self.decay is None:
            return None
        plan = self.schedule
        if not (plan is None or isinstance(plan, Integral) or hasattr(plan, "step")):
            raise ValueError(f"`schedule` must be a scheduler or a whole number of steps, got {plan!r}")
        steps, scheduler = (int(plan), None) if isinstance(plan, int | Integral) else (None, plan)
        clock = decay_clock(self.weight, self.optimizer, scheduler=scheduler, steps=steps)
        kind, rate = self.decay.kind, self.decay.clock_rate
        if clock is None or kind not in ("preconditioned", "unknown") or rate == 1:
            return clock
        # Steps that are not lr: an estimate that only grows (D-Adaptation, Prodigy) bounds only the steps made so far.
        if math.isnan(rate) or clock.total > clock.past:
            return None
        return Clock(rate * clock.past, rate * clock.total, exact=False, steps=clock.steps)

    @cached_property
    def loss(self) -> Criterion:
        """What the criterion computes."""
        return read_criterion(self.criterion, len(self.weight))

    @cached_property
    def loss_scale(self) -> float | None:
        """A sample's average loss over the theory's; None if the counts are needed and not known."""
        shown = None if self.exposure is None else self.exposure.shown
        return self.loss.scale(shown if self.counts is None else self.counts)

    @cached_property
    def exposure(self) -> Exposure | None:
        """What an epoch shows."""
        return exposure(self.data)

    @cached_property
    def resampling(self) -> Vector | None:
        """How often an epoch shows each class relative to its share, shape (K,); None: once, or not known for all."""
        factors = self.exposure.factors if self.exposure is not None and self.exposure.resampled else None
        known = factors is not None and factors.size == max(len(self.weight), 2) and bool((factors > 0).all())
        return factors if known else None

    @cached_property
    def norm(self) -> HeadNorm | None:
        """The normalisation that feeds the head."""
        return head_norm(self.model, self.head, self.optimizer, self.decay_of)

    @cached_property
    def num_samples(self) -> int | None:
        """N: of a loader, the size of its data set."""
        if isinstance(self.data, list | tuple) and self.data and isinstance(self.data[0], list | tuple):
            seen = self.exposure
            return None if seen is None or seen.shown is None else int(seen.shown.sum())
        inner = getattr(self.data, "dataset", self.data)
        return len(inner) if inner is not None and hasattr(inner, "__len__") else None

    @cached_property
    def samples_per_step(self) -> int | None:
        """How many samples a summed loss adds up in a step; a data set alone counts as one step."""
        if isinstance(self.data, list | tuple):
            return None if self.num_samples is None else round(self.num_samples / len(self.data))
        size = batch_size(self.data)
        return self.num_samples if size is None else min(size, self.num_samples or size)

    @property
    def at_rest(self) -> bool:
        """Whether the rows of a preconditioned decay may be taken as penalties."""
        return self.rows is not None and self.rows.at_rest(None if self.clock is None else self.clock.past)

    @property
    def weight(self) -> Any:
        """The head's weight, shape (K, d)."""
        return self.head.weight

    @property
    def row_penalty(self) -> int:
        """How many times that of the weight the penalty of the classes' rows is.

        One output w is two rows, w/2 and -w/2, with half of its square; its bias likewise.
        """
        return 2 if len(self.weight) == 1 else 1
