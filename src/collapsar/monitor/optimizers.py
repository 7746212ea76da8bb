"""What an optimizer's weight decay does, found by trying it on a few numbers, never by the optimizer's name.

At rest a penalty of the loss has gradient = -wd * weight: an optimizer that starts there and stays has a coupled decay,
which is the penalty lambda = wd. One that moves has a decoupled decay. If its step is linear in the gradient (SGD with
momentum and decoupled decay) it still rests at a penalty, of measured size; if the step is preconditioned (AdamW) there
is none, but a penalty per weight that ``collapsar.monitor.adaptive`` reads.

Example:
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(3, 2))
    >>> kinds = torch.optim.SGD, torch.optim.AdamW
    >>> [decay_of(weight, kind([weight], lr=0.1, weight_decay=0.02)).kind for kind in kinds]
    ['coupled', 'preconditioned']
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from collapsar.monitor.undisturbed import random_states_kept

Optimizers = Optimizer | Sequence[Optimizer]
Group = dict[str, Any]
"""What torch stores for a parameter group, or for one parameter: settings and tensors by name."""
DecayKind = Literal["none", "coupled", "linear", "preconditioned", "unknown"]

# The trial: decay 1/4, weights that are powers of two, so that wd * weight is exact in every precision. Rows sum to
# zero: some optimizers subtract its mean from every row of a gradient.
_DECAY, _RATE, _STEPS = 0.25, 2.0**-6, 60
_WEIGHTS = ((1.0, 1.0, -2.0), (-2.0, 1.0, 1.0), (0.5, -1.0, 0.5), (-0.25, -0.25, 0.5))
_STILL, _MOVED, _CLOSE = 0.02, 0.2, 0.05
# Wrappers that change nothing about the steps.
_TRANSPARENT = ("accelerate", "fastai", "lightning", "pytorch_lightning", "lightning_fabric", "torch", "transformers")


@dataclass(frozen=True)
class Decay:
    """The decay of one parameter.

    Attributes:
        weight_decay: as in the optimizer's group; 0 if the optimizer does not hold the parameter.
        kind: "none"; "coupled": the penalty ``weight_decay``; "linear": decoupled, with a step that is linear in the
            gradient; "preconditioned": decoupled and not a penalty; "unknown": the optimizer could not be tried, or
            shrinks weights whatever its ``weight_decay``.
        factor: penalty over ``weight_decay``: 1 for "coupled", measured for "linear", otherwise NaN.
        clock_rate: factor of lr * weight_decay that gives the share of a weight that a step takes in the long run: 1 /
            (1 - momentum) for SGD with a coupled decay, 1 for AdamW, its present estimate of the step for an optimizer
            that finds its own (Prodigy, D-Adaptation); NaN if unknown.
        centred: whether no gradient moves the mean of a row (ROSE and Ranger centralise them); only for "coupled".
    """

    weight_decay: float
    kind: DecayKind
    factor: float
    clock_rate: float
    centred: bool = False

    @property
    def penalty(self) -> float:
        """The lambda that this decay amounts to; NaN if it is not a penalty."""
        return 0.0 if self.kind == "none" else self.weight_decay * self.factor


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside wrappers (Accelerate, Lightning, ZeroRedundancyOptimizer, SAM, Lookahead)."""
    seen = {id(optimizer)}
    while True:
        inner = [v for v in vars(optimizer).values() if isinstance(v, Optimizer) and id(v) not in seen]
        if len(inner) != 1:
            return optimizer
        optimizer = inner[0]
        seen.add(id(optimizer))


def own_name(optimizer: Optimizer) -> str:
    """The class of an optimizer, or of the wrapped one if the wrapper changes nothing."""
    return type(innermost(optimizer) if wrapper_of(optimizer) is None else optimizer).__name__


def wrapper_of(optimizer: Optimizer) -> str | None:
    """The class of a wrapper that may change the steps of what it wraps; None if there is none."""
    inner = innermost(optimizer)
    changes = inner is not optimizer and type(optimizer).__module__.split(".")[0] not in _TRANSPARENT
    return type(optimizer).__name__ if changes else None


def each_of(optimizers: Optimizers | None) -> tuple[Optimizer, ...]:
    """One optimizer or several as a tuple; Lightning's wrapper, which is not an ``Optimizer``, counts as one."""
    if optimizers is None:
        return ()
    one: Any = optimizers
    return (one,) if hasattr(optimizers, "param_groups") else tuple(one)


def groups_of(optimizer: Optimizer) -> list[Group]:
    """The groups under torch's names: of the optimizer inside if a wrapper, like fastai's, has names of its own."""
    return (optimizer if isinstance(optimizer, Optimizer) else innermost(optimizer)).param_groups


def group_of(parameter: Tensor | None, optimizers: Optimizers | None) -> tuple[Optimizer, Group] | None:
    """The optimizer that holds a parameter, as given, and its group; None if none does."""
    if parameter is None or optimizers is None:
        return None
    for optimizer in each_of(optimizers):
        for group in groups_of(optimizer):
            if any(p is parameter for p in group["params"]):
                return optimizer, group
    return None


def decay_of(parameter: Tensor, optimizers: Optimizers) -> Decay:
    """The effect of the weight decay of a parameter, tried on a copy of its optimizer with a dozen numbers.

    Neither the optimizer nor any global random state is changed.

    Args:
        parameter: the parameter.
        optimizers: one, or several that hold the network's parameters between them; wrappers are looked through.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> decay_of(w, torch.optim.SGD([w], lr=0.1, momentum=0.9, weight_decay=0.02))
        Decay(weight_decay=0.02, kind='coupled', factor=1.0, clock_rate=10.0, centred=False)
    """
    found = group_of(parameter, optimizers)
    if found is None:
        return Decay(0.0, "none", math.nan, math.nan)
    optimizer, group = found
    decay = group.get("weight_decay", 0.0)
    decay = float(decay) if isinstance(decay, int | float | Tensor) else math.nan
    start = _like(parameter)
    try:
        with _without_traces():
            if _shrinks(innermost(optimizer), group, start):
                return Decay(decay, "unknown", math.nan, math.nan)
    except Exception:  # without a weight decay it is assumed to have none; with one, see below
        pass
    if decay == 0:
        return Decay(0.0, "none", math.nan, math.nan)
    try:
        with _without_traces():
            return _tried(innermost(optimizer), group, decay, start)
    except Exception:  # an optimizer that cannot step a copy: needs a closure, a process group, a device
        return Decay(decay, "unknown", math.nan, math.nan)


def _like(parameter: Tensor) -> Tensor:
    """The trial's numbers in as many dimensions as a parameter has: some optimizers decay no vectors (LARS, Kron)."""
    weights = torch.tensor(_WEIGHTS, dtype=torch.float64)
    return weights.flatten() if parameter.ndim < 2 else weights.reshape(4, 3, *[1] * (parameter.ndim - 2))


def _shrinks(optimizer: Optimizer, group: Group, start: Tensor) -> bool:
    """Whether a step without gradient or weight decay takes a share of every weight, like the lambd of ASGD.

    If the settings have no ``weight_decay``, like fastai's with their ``wd``, any move counts as decay.
    """
    shares = 1 - _twin(optimizer, group, start, weight_decay=0.0).stepped(torch.zeros_like(start)) / start
    if "weight_decay" not in group:
        return bool(shares.any())
    return bool(shares.min() > 0) and torch.allclose(shares, shares.mean(), rtol=_CLOSE, atol=0)


def _tried(optimizer: Optimizer, group: Group, decay: float, start: Tensor) -> Decay:
    balance = -_DECAY * start

    def moves(gradient: Tensor, decay: float) -> Iterator[Tensor]:
        torch.default_generator.manual_seed(0)  # one that draws at random (Kron) draws the same with and without decay
        twin = _twin(optimizer, group, start, weight_decay=decay)
        return (twin.stepped(gradient) - start for _ in range(_STEPS))

    all_free = list(moves(balance, 0.0))
    *_, held = moves(balance, _DECAY)
    free = all_free[-1]
    if not (torch.isfinite(free).all() and torch.isfinite(held).all() and free.abs().max() > 0):
        return Decay(decay, "unknown", math.nan, math.nan)
    ratio = float(held.abs().max() / free.abs().max())
    fourfold = moves(4 * balance, 0.0)
    linear = all(  # most that are not linear show it at the first step
        torch.allclose(torch.stack(list(some)), 4 * torch.stack(once), rtol=_CLOSE, atol=0)
        for some, once in ((islice(fourfold, 1), all_free[:1]), (fourfold, all_free[1:]))
    )
    if ratio < _STILL:
        centred = not any(bool(move.any()) for move in moves(torch.ones_like(start), 0.0))
        return Decay(decay, "coupled", 1.0, _clock_rate(optimizer, group, start) if linear else math.nan, centred)
    if torch.equal(free, held):  # it has a weight decay and does not use it
        return Decay(decay, "none", math.nan, math.nan)
    if linear:
        return Decay(decay, *_rested(optimizer, group, start))
    if ratio > _MOVED:
        return Decay(decay, "preconditioned", math.nan, _share(optimizer, group, start))
    return Decay(decay, "unknown", math.nan, math.nan)


def _rested(optimizer: Optimizer, group: Group, uneven: Tensor) -> tuple[DecayKind, float, float]:
    """The penalty of a decoupled decay with linear steps: where the weights rest under a constant gradient."""
    # A decay that does not scale with the learning rate, or depends on the gradients, differs at each step: what is
    # measured on these gradients would not hold for the network's.
    momentum = group.get("momentum", group.get("beta", 0.0))  # heavyball's name
    possible, factors = (1.0, 1.0 - momentum), []
    for rate, pull in ((0.25, torch.ones_like(uneven)), (0.125, uneven), (0.125, uneven**3)):
        twin, now = _twin(optimizer, group, pull, lr=rate, weight_decay=_DECAY), pull
        for _ in range(3000):
            before, now = now, twin.stepped(-pull)
            if torch.allclose(now, before, rtol=1e-10, atol=0):
                break
        factors.append((pull / now) / _DECAY)
        if not any(torch.allclose(factors[-1], torch.full_like(pull, f), rtol=1e-2) for f in possible):
            return "unknown", math.nan, math.nan
    both = torch.cat(factors)
    factor = float(both.mean())
    expected = [f for f in possible if abs(factor - f) <= 1e-3 * f] if factor > 0 else []
    if not (expected and torch.allclose(both, torch.full_like(both, factor), rtol=1e-3)):
        return "unknown", math.nan, math.nan
    return "linear", expected[0], _clock_rate(optimizer, group, uneven)


def _clock_rate(optimizer: Optimizer, group: Group, like: Tensor) -> float:
    """The share of a weight that one step takes when nothing pulls, over lr * weight_decay; NaN if it is not steady.

    It approaches its limit geometrically: once 25 steps change it by less than 1e-5 of itself, later steps change none
    of its two decimals, with a momentum up to 0.98; beyond that all 400 steps are made.
    """
    rate, decay = 2.0**-6, 2.0**-12  # slow compared with any momentum
    twin = _twin(optimizer, group, torch.ones_like(like), lr=rate, weight_decay=decay)
    nothing, shares = torch.zeros_like(twin.weight), []
    for _ in range(16):
        before = twin.stepped(nothing, 24)
        shares.append(float((1 - twin.stepped(nothing) / before).mean()) / (rate * decay))
        if len(shares) > 1 and abs(shares[-1] - shares[-2]) <= 1e-5 * abs(shares[-1]):
            return round(shares[-1], 2)
    return round(shares[-1], 2) if abs(shares[-1] - shares[7]) <= _CLOSE * abs(shares[-1]) else math.nan


def _share(optimizer: Optimizer, group: Group, start: Tensor) -> float:
    """The share of a weight that decoupled decay takes in a step, over lr * weight_decay; NaN if it varies."""
    shares, estimates = [], []
    for rate, pull, steps in ((_RATE, start, 3), (_RATE / 4, 4 * start, 3), (_RATE, start**3, _STEPS)):
        free = _twin(optimizer, group, start, weight_decay=0.0, lr=rate)
        before = free.stepped(pull, steps - 1)
        decayed = free.copied()
        decayed.group["weight_decay"] = _DECAY  # only in the last step
        # D-Adaptation and Prodigy keep the estimate that scales their steps in the group.
        estimates.append(float(free.group.get("d", math.nan)))
        shares.append((free.stepped(pull) - decayed.stepped(pull)) / (rate * _DECAY * before))
    every, one = torch.stack(shares), torch.ones((), dtype=torch.float64)
    if torch.allclose(every, one, rtol=_CLOSE):
        return 1.0
    every /= torch.tensor(estimates).reshape(-1, *[1] * start.ndim)
    return float(group["d"]) if torch.allclose(every, one, rtol=_CLOSE) else math.nan


def preconditioner(parameter: Tensor, optimizers: Optimizers) -> bool:
    """Whether an optimizer's step is lr * m / (sqrt(v) + eps), with the m and v of its state: AdamW's, under any name.

    Then its decoupled decay is, at rest, the penalty wd (sqrt(v) + eps) of each weight. Tried with gradients that
    become smaller, so that m and v remember different ones.
    """
    found = group_of(parameter, optimizers)
    if found is None:
        return False
    optimizer, group = innermost(found[0]), found[1]
    try:
        with _without_traces():
            start = torch.tensor(_WEIGHTS, dtype=torch.float64)
            twin = _twin(optimizer, group, start, weight_decay=0.0)
            twin.stepped(4 * start, _STEPS)
            before = twin.stepped(start, _STEPS - 1)
            moved = twin.stepped(start) - before
            moments = corrected_moments(twin.optimizer.state[twin.weight], twin.group)
            if moments is None:
                return False
            expected = -float(twin.group["lr"]) * moments[0] / (moments[1].sqrt() + twin.group["eps"])
            return torch.allclose(moved, expected, rtol=_CLOSE, atol=0)
    except Exception:
        return False


def corrected_moments(state: Group, group: Group) -> tuple[Tensor, Tensor] | None:
    """Adam's m and v of one parameter, bias-corrected, in double precision; None if there are none."""
    m, v, step, betas = state.get("exp_avg"), state.get("exp_avg_sq"), state.get("step"), group.get("betas")
    if not (isinstance(m, Tensor) and isinstance(v, Tensor)) or not step or betas is None or "eps" not in group:
        return None
    if group.get("amsgrad") and isinstance(state.get("max_exp_avg_sq"), Tensor):
        v = state["max_exp_avg_sq"]
    t, (first, second) = float(step), (float(beta) for beta in betas)
    return m.detach().double() / (1 - first**t), v.detach().double() / (1 - second**t)


@dataclass(frozen=True)
class _Twin:
    """A copy of an optimizer that holds one small parameter, in one group."""

    optimizer: Optimizer
    group: Group
    weight: torch.nn.Parameter

    def stepped(self, gradient: Tensor, times: int = 1) -> Tensor:
        """The weights after this many steps with this gradient."""
        step: Any = type(self.optimizer).step
        if getattr(step, "hooked", False):  # the profiler's label takes as long as the step of a dozen numbers
            step = step.__wrapped__
        for _ in range(times):
            self.weight.grad = gradient.clone()
            step(self.optimizer)
        return self.weight.detach().clone()

    def copied(self) -> _Twin:
        """A copy that continues from here."""
        optimizer = object.__new__(type(self.optimizer))
        optimizer.__dict__.update(copy.deepcopy(vars(self.optimizer), {id(self.optimizer): optimizer}))
        group = optimizer.param_groups[0]
        return _Twin(optimizer, group, group["params"][0])


def _twin(optimizer: Optimizer, group: Group, start: Tensor, *, weight_decay: float, lr: float = _RATE) -> _Twin:
    """The same optimizer with the same settings, no history, and one small parameter."""
    weight = torch.nn.Parameter(start.clone())
    settings = {name: value for name, value in group.items() if name != "params"}
    own = {"params": [weight], **copy.deepcopy(settings), "weight_decay": weight_decay}
    if own.get("lr") is not None:
        own["lr"] = lr
    for name in ("fused", "foreach"):
        own |= {name: None} if name in own else {}
    for name in ("capturable", "differentiable", "maximize"):
        own |= {name: False} if name in own else {}
    twin: Any = object.__new__(type(optimizer))
    kept = {
        name: value
        for name, value in vars(optimizer).items()
        if name not in ("param_groups", "state", "step") and not name.endswith("_hooks")
    }
    # References to the real parameters become references to the small one; nothing large is copied.
    memo: dict[int, Any] = {id(p): weight for g in optimizer.param_groups for p in g["params"]}
    memo |= {id(optimizer): twin, id(optimizer.state): defaultdict(dict), id(optimizer.param_groups): [own]}
    twin.__dict__.update(copy.deepcopy(kept, memo))
    twin.__dict__.update({name: OrderedDict() for name in vars(optimizer) if name.endswith("_hooks")})
    twin.param_groups, twin.state = [own], defaultdict(dict)
    if callable(getattr(twin, "train", None)):  # schedule-free optimizers step only in training mode
        twin.train()
    return _Twin(twin, own, weight)


@contextmanager
def _without_traces() -> Iterator[None]:
    """Keep random states, allow gradients, and show no warnings."""
    with random_states_kept(), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
