"""Decoupled decay that is a penalty at rest, read from the optimizer's own state; and how long decay has acted.

AdamW rests where dL/dW = -wd (sqrt(v) + eps) W, entry by entry, with v its bias-corrected ``exp_avg_sq``: its decay
is then the penalty wd (sqrt(v) + eps) of each weight, whose mean over a row is that class's lambda_w. The same state
tells whether it is at rest: m, its bias-corrected ``exp_avg``, is the gradient's running mean.

The decay clock is the sum of lr * weight_decay over all steps: on its own, decay shrinks a weight by e^(-clock). Rest
needs a clock well above 1; far below 1 decay has not acted and cannot have merged classes.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from collapsar.core.known import Rest
from collapsar.monitor.optimizers import Optimizers, corrected_moments, group_of, groups_of, innermost, preconditioner

# Rest as measured: slope 1.00 at a clock of 15, 1.15 at 4.5, 2.8 at .15 (docs/optimizers.md).
_SLOPE, _CORRELATION, _LEAST_CLOCK = 1.25, 0.9, 1.0


@dataclass(frozen=True, eq=False)
class Rows:
    """What the state of an optimizer says about its decay of a head.

    Attributes:
        rows: mean of wd (sqrt(v) + eps) over each row, shape (K,); None if it cannot be read.
        rest: how well the loss's pull and the decay agree.
        reason: why nothing can be read, and what to do; "" otherwise.
    """

    rows: NDArray[np.float64] | None
    rest: Rest | None
    reason: str = ""

    def at_rest(self, clock: float | None) -> bool:
        """Whether loss and decay balance; ``clock`` is the decay clock so far, None if it is unknown."""
        if self.rest is None or (clock is not None and clock < _LEAST_CLOCK):
            return False
        return 1 / _SLOPE <= self.rest.slope <= _SLOPE and self.rest.correlation >= _CORRELATION


@dataclass(frozen=True)
class Clock:
    """Sums of lr * weight_decay.

    Attributes:
        past: over the steps made, as far as the optimizer has counted them.
        total: including later steps, as far as they are known.
        exact: whether a scheduler gave every learning rate; otherwise the largest rate stored counts throughout.
        steps: of the run, as far as they are known.
    """

    past: float
    total: float
    exact: bool
    steps: int = 0


@dataclass(frozen=True)
class Odometer:
    """The decay clock as the head itself shows it.

    Attributes:
        clock: -log of how much the sum of the head's rows has shrunk.
        alignment: cosine of that sum with the initial one; 1 up to rounding if the reading is valid.
    """

    clock: float
    alignment: float


def decay_rows(weight: nn.Parameter, optimizers: Optimizers) -> Rows:
    """The penalty of each row of a head under AdamW's decay, from the optimizer's state.

    Fused, foreach and capturable states, amsgrad and schedules of the learning rate make no difference. The pull of the
    loss is ``weight.grad``, most accurate after a backward pass over all training samples, or the optimizer's running
    mean of gradients, whichever agrees better with the decay: noise can only spoil agreement.

    Args:
        weight: the head's weight, shape (K, d).
        optimizers: as the training has them.

    Returns:
        The rows, whether or not the training is at rest, and the agreement; or the reason why there are none.
    """
    found = group_of(weight, optimizers)
    if found is None:
        return Rows(None, None, "the optimizer does not hold the head")
    optimizer, group = innermost(found[0]), found[1]
    state = optimizer.state.get(weight, {})
    v = state.get("exp_avg_sq")
    if _sharded(weight) or _sharded(v) or (isinstance(v, Tensor) and v.shape != weight.shape):
        return Rows(
            None,
            None,
            "its state is sharded over processes: gather model and optimizer first, for example with "
            "torch.distributed.checkpoint.state_dict.get_optimizer_state_dict and full_state_dict=True",
        )
    if not state:
        return Rows(
            None, None, "this process has no state of the head: it has not stepped, or another process holds it"
        )
    if not preconditioner(weight, optimizers):
        return Rows(None, None, "its step is not lr * m / (sqrt(v) + eps) of its state, so no penalty can be read")
    moments = corrected_moments(state, group)
    if moments is None:
        return Rows(None, None, "its state has no exp_avg and exp_avg_sq of the head")
    penalties = float(group["weight_decay"]) * (moments[1].sqrt() + float(group["eps"]))
    held = penalties * weight.detach().double()
    pulls = [moments[0]] if weight.grad is None else [moments[0], weight.grad.detach().double()]
    rests = [rest for rest in (_agreement(-pull, held) for pull in pulls) if rest is not None]
    rest = max(rests, key=lambda found: found.correlation, default=None)
    return Rows(penalties.flatten(1).mean(dim=1).cpu().numpy(), rest)


def decay_clock(
    parameter: Tensor, optimizers: Optimizers, *, scheduler: LRScheduler | None = None, steps: int | None = None
) -> Clock | None:
    """The sum of lr * weight_decay over a run, from the optimizer's counter and the scheduler.

    Args:
        parameter: the head's weight.
        optimizers: as the training has them.
        scheduler: the optimizer's; run again on a copy to find the learning rates of all steps. It may be stepped once
            per epoch: the optimizer's counter tells how many steps that is. Without either the largest rate stored in
            the optimizer counts, an upper bound for rates that only fall.
        steps: of the whole run; by default what the scheduler was made for, otherwise those made so far. An optimizer
            that does not count its steps (SGD), or has not begun, needs it.

    Returns:
        The clock; None if no number of steps is known.

    Example:
        >>> w = nn.Parameter(torch.ones(2, 2))
        >>> decay_clock(w, torch.optim.SGD([w], lr=0.1, weight_decay=0.01), steps=1000)
        Clock(past=0.0, total=1.0, exact=False, steps=1000)
    """
    found = group_of(parameter, optimizers)
    if found is None:
        return None
    optimizer, group = innermost(found[0]), found[1]
    decay, rate = float(group.get("weight_decay", 0.0)), float("nan" if group.get("lr") is None else group["lr"])
    counter, ticks = optimizer.state.get(parameter, {}).get("step"), _ticks(scheduler)
    if counter is None and ticks and steps is None:
        return None
    past, cycle = int(counter or 0), getattr(scheduler, "total_steps", None)
    # Steps per tick, 1 or an epoch, or ticks per step if gradients are accumulated: both counts tell; until then, a
    # tick of one cycle is known to be a step.
    each = max(1, round(past / ticks)) if past and ticks else 1 if cycle and not ticks else 0
    stride = max(1, round(ticks / past)) if past else 1
    planned = int(cycle or getattr(scheduler, "T_max", None) or 0) * each // stride
    total = max(past, planned if steps is None else steps)
    if not total or not math.isfinite(rate):
        return None
    index = next(i for i, g in enumerate(groups_of(found[0])) if g["params"][0] is group["params"][0])
    rates = None if scheduler is None or not each else _replayed(scheduler, index, total // each * stride + 1)
    if rates is not None and abs(rates[min(ticks, len(rates) - 1)] - rate) <= 1e-3 * max(rates):
        every = np.repeat(rates[stride - 1 :: stride], each)[:total]
        return Clock(decay * float(every[:past].sum()), decay * float(every.sum()), exact=True, steps=total)
    default = getattr(optimizer, "defaults", {}).get("lr")
    most = max(float(group.get(name) or default or 0.0) for name in ("lr", "initial_lr", "max_lr"))
    return Clock(decay * most * past, decay * most * total, exact=False, steps=total)


def decay_odometer(weight: ArrayLike | Tensor, initial: ArrayLike | Tensor) -> Odometer:
    """How far decay has come, from a head and its initialisation alone.

    The rows of the gradient of a cross-entropy sum to zero, whatever the samples, so that under SGD with coupled decay
    1'W_t = prod(1 - lr wd) 1'W_0 exactly; with momentum in the long run, with a clock 1 / (1 - momentum) times as fast.
    AdamW's steps do not sum to zero: the alignment falls below 1 and the reading is not valid.

    Args:
        weight: W, shape (K, d).
        initial: the same before training.

    Raises:
        ValueError: the shapes differ, or the rows of the initial head sum to zero.

    Example:
        >>> decay_odometer([[0.0, 1.0], [0.0, 0.5]], [[0.0, 1.0], [0.0, 2.0]])
        Odometer(clock=0.6931471805599453, alignment=1.0)
    """
    now, then = (np.asarray(w.detach().cpu() if isinstance(w, Tensor) else w, np.float64) for w in (weight, initial))
    if now.shape != then.shape or now.ndim != 2:
        raise ValueError(f"`weight` and `initial` must have one shape (K, d), got {now.shape} and {then.shape}")
    a, b = now.sum(axis=0), then.sum(axis=0)
    if not np.linalg.norm(b) > 0:
        raise ValueError("`initial` must have rows that do not sum to zero: otherwise nothing shows the decay")
    share, lengths = float(a @ b) / float(b @ b), float(np.linalg.norm(a) * np.linalg.norm(b))
    return Odometer(
        clock=-math.log(share) if share > 0 else math.inf,
        alignment=min(float(a @ b) / lengths, 1.0) if lengths > 0 else math.nan,
    )


def _sharded(value: Any) -> bool:
    return hasattr(value, "placements") or type(value).__name__ in ("ShardedTensor", "FlatParameter")


def _agreement(pull: Tensor, held: Tensor) -> Rest | None:
    if not (torch.isfinite(pull).all() and float(held.square().sum()) > 0 and float(pull.square().sum()) > 0):
        return None
    both = torch.stack([pull.flatten(), held.flatten()])
    return Rest(float((pull * held).sum() / held.square().sum()), float(torch.corrcoef(both)[0, 1]))


def _replayed(scheduler: LRScheduler, index: int, count: int) -> NDArray[np.float64] | None:
    """The learning rates of one group at every tick, by running a copy of the scheduler from its start."""
    try:
        real: Any = scheduler.optimizer
        toy: Any = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in real.param_groups]
        toy.param_groups = [{**s, "params": [torch.zeros(1)], "lr": s.get("initial_lr", s["lr"])} for s in settings]
        toy.defaults, toy.state = dict(real.defaults), defaultdict(dict)
        memo = {id(real): toy}
        own = {k: v for k, v in vars(scheduler).items() if k != "step"}
        twin: Any = object.__new__(type(scheduler))
        twin.__dict__.update(copy.deepcopy(own, {**memo, id(scheduler): twin}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing optimizer steps in between
            _restart(twin)
            rates = [float(toy.param_groups[index]["lr"])]
            for _ in range(count - 1):
                twin.step()
                rates.append(float(toy.param_groups[index]["lr"]))
        return np.array(rates)
    except Exception:  # a scheduler that follows a metric, or stores its position elsewhere
        return None


def _ticks(scheduler: Any) -> int:
    """How often a scheduler has stepped."""
    parts = getattr(scheduler, "_schedulers", [None])
    return int(getattr(scheduler, "last_epoch", getattr(parts[0], "last_epoch", 0)))


def _restart(scheduler: Any) -> None:
    """Reset a scheduler, and those that it is made of, to their state after construction."""
    parts = getattr(scheduler, "_schedulers", [])
    for place, part in enumerate(parts):
        part.last_epoch = -1
        if place == 0 or not hasattr(scheduler, "_milestones"):
            _restart(part)
    if parts:
        scheduler.last_epoch = 0
    else:
        scheduler.last_epoch = -1
        scheduler._initial_step()
