"""Advice from a torch training as it stands: its optimizer, loss and layers, or the reason why no theory applies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from collapsar.advise.advice import Advice, advise
from collapsar.advise.recipe import Recipe
from collapsar.advise.standard import ACTED, StandardAdvice, advise_standard
from collapsar.advise.weight_decay import DecayAdvice, advise_weight_decay
from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.loss import Loss
from collapsar.core.penalties import Penalties
from collapsar.core.problem import FeatureModel, Problem
from collapsar.metrics.head import find_head, unwrapped
from collapsar.monitor.differences import differences
from collapsar.monitor.exposure import unlike
from collapsar.monitor.facts import Facts
from collapsar.monitor.head import head_sizes
from collapsar.monitor.known import body, training_of, weight_decays
from collapsar.monitor.layers import layers_above_norm
from collapsar.monitor.optimizers import Optimizers, each_of, group_of, preconditioner

# Differences for which the theory does not apply; all others are cautions.
_REFUSED = ("unknown-decay", "frozen-head", "reshaped-head", "frozen-backbone", "mixup", "loss", "resampled")

# What the advice on weight decay alone, measured on such networks, takes in.
_MEASURED = (
    "normalised-below",
    "decayed-layers",
    "no-feature-penalty",
    "linear-decay",
    "summed-loss",
    "multiplied-loss",
)

_LONG = 100.0  # decay clock assumed if the steps are not known: at rest
_OWN_STEPS = (
    "It is not known how far decay gets: if an optimizer finds the size of its steps itself, the sum of "
    "lr * weight_decay bounds nothing until the run has ended."
)
_BODY = (
    "Decay also acts on the layers below the head, which the model does not include: strong decay there can lose "
    "classes that the head's alone would keep."
)
_UNSEEN = (
    "{} of the {} outputs have no samples and are left out: statements class by class are about the others, in order. "
    "Without a free bias such outputs take a little of every prediction."
)
_NO_STEPS = (
    "The number of steps is not known: the verdict is that of a run to rest. Pass loop.schedule, the steps of the "
    "whole run (or a scheduler, where the optimizer counts its steps); far from rest, decay has done less."
)


@dataclass(frozen=True)
class TrainingAdvice:
    """Advice, and what makes it less than certain.

    Attributes:
        advice: on penalties of head and features; on a head that is decayed behind a norm, or by AdamW, with the decay
            clock; or on weight decay alone, if nothing else penalises the features.
        cautions: sentences on how the training differs from the theory.
    """

    advice: Advice | StandardAdvice | DecayAdvice
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Loop:
    """What a training loop has besides the network and its optimizer.

    Attributes:
        criterion: the loss function; None: plain cross-entropy.
        penalties: those written into the loss, for the sum over all N samples; None: none.
        data: the training loader or data set; tells whether samples are mixed, augmented or resampled.
        schedule: the scheduler of the learning rate, or the number of steps of the whole run; for the decay clock.
    """

    criterion: Any = None
    penalties: Penalties | None = None
    data: Any = None
    schedule: LRScheduler | int | None = None


def advise_training(
    counts: CountsLike,
    model: nn.Module,
    optimizer: Optimizers,
    loop: Loop | None = None,
    *,
    features: FeatureModel = "nonnegative",
    margin: float = 0.1,
    head: nn.Module | str | None = None,
) -> TrainingAdvice:
    """The advice of ``collapsar advise`` on a training, with penalties and layers read from the objects themselves.

    Args:
        counts: samples per class; 0 for an output of the head whose class has none, which is left out.
        model: the network.
        optimizer: with the network's parameters.
        loop: the rest.
        features: "nonnegative" if the head's input comes out of a ReLU.
        margin: see :func:`collapsar.advise.advice.advise`.
        head: the last linear layer, or its name; by default what :func:`collapsar.metrics.head.find_head` finds.

    Raises:
        ValueError: the head is ambiguous, or no theory applies, with the reason: mixed samples, resampling, another
            loss, frozen parameters, a head that is not W h + b, a feature penalty together with decoupled decay before
            training is at rest, or, without a feature penalty or a norm before the head, a loss that is not plain or a
            weight decay that differs between parameters.

    Example:
        >>> import torch
        >>> below = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()]
        >>> model = nn.Sequential(*below, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
        >>> found = advise_training([100, 100, 20], model, optimizer)
        >>> found.advice.verdict, found.advice.predictions[0].layers
        ('separated', 2)
    """
    whole = _whole_counts(counts)
    seen = whole > 0
    n = class_counts(whole[seen])
    model, loop = unwrapped(model), Loop() if loop is None else loop
    head = _head_of(model, head, whole.size)
    facts = Facts(model, head, optimizer, loop.penalties, loop.criterion, loop.data, loop.schedule, whole)
    found = differences(facts)
    penalised = loop.penalties is not None and loop.penalties.lambda_h > 0
    for warning in found:
        if warning.kind in _REFUSED or (warning.kind == "decoupled-decay" and penalised and not facts.at_rest):
            # What the clock bounds is valid without a theory of the optimum.
            idle = next((f" {other}" for other in found if other.kind == "decay-clock"), "")
            raise ValueError(f"no theory applies: {warning}{idle}")
    _check_counts(whole, facts)
    unseen = _without_samples(facts, seen)
    cautions = unseen + tuple(str(warning) for warning in found)
    if penalised:
        return TrainingAdvice(advise(_problem(n, facts, features), margin), cautions)
    if (recipe := _recipe(n, facts)) is not None:
        steps = () if facts.clock is not None else (_NO_STEPS if recipe.optimizer != "other" else _OWN_STEPS,)
        layers = (_BODY,) if facts.norm is not None and body(facts) == "decayed" else ()
        left = tuple(str(warning) for warning in found if warning.kind not in _answered(recipe, facts))
        return TrainingAdvice(advise_standard(n, recipe), unseen + left + layers + steps)
    (decay, unit), above = _one_decay(facts), layers_above_norm(model, head)
    unit /= facts.row_penalty ** (1 / (above + 1))  # one of the factors, which cost by their geometric mean
    advice = advise_weight_decay(n, decay / unit, layers=above, margin=margin)
    own = tuple(replace(p, weight_decay=p.weight_decay * unit) for p in advice.predictions)  # as the optimizer calls it
    left = tuple(str(warning) for warning in found if warning.kind not in _MEASURED)
    return TrainingAdvice(replace(advice, weight_decay=decay, predictions=own), unseen + left)


def _whole_counts(counts: CountsLike) -> NDArray[np.int64]:
    """Samples per output of the head, 0 for those without any."""
    try:
        return class_counts(counts)
    except ValueError:
        given = np.asarray(counts)
        if given.ndim != 1 or given.dtype.kind not in "iu" or (given < 0).any() or not (given == 0).any():
            raise
        class_counts(given[given > 0])
        return given.astype(np.int64)


def _head_of(model: nn.Module, head: nn.Module | str | None, outputs: int) -> nn.Module:
    """The head, with as many outputs as there are counts.

    Raises:
        ValueError: it is ambiguous, or has another number of outputs.
    """
    zeros = "if an output's class has no samples, give the count 0 for it"
    try:
        found = find_head(model, head, outputs)[1]
    except ValueError as unclear:
        raise ValueError(f"{unclear}. `counts` have {outputs} classes: {zeros}") from None
    if (K := head_sizes(found)[0]) != outputs:
        raise ValueError(f"`counts` must have one entry for each of the head's {K} outputs, got {outputs}; {zeros}")
    return found


def _without_samples(facts: Facts, seen: NDArray[np.bool_]) -> tuple[str, ...]:
    """The caution that outputs are left out."""
    if seen.all():
        return ()
    if facts.loss.loss is not None and facts.loss.loss.smoothing > 0:
        raise ValueError("no theory applies: label smoothing gives a share of every label to classes without samples")
    return (_UNSEEN.format(np.count_nonzero(~seen), seen.size),)


def _of_seen(facts: Facts, values: Any) -> Any:
    """The entries of classes with samples, of one value per output or None."""
    return values if values is None or np.ndim(values) == 0 else values[_seen(facts)]


def _seen(facts: Facts) -> NDArray[np.bool_]:
    assert facts.counts is not None
    return facts.counts > 0


def _loss_of_seen(facts: Facts, loss: Loss) -> Loss:
    vectors = ("class_weights", "offsets", "scales", "temperatures")
    return replace(loss, **{name: _of_seen(facts, getattr(loss, name)) for name in vectors})


def _answered(recipe: Recipe, facts: Facts) -> set[str]:
    """The differences that the advice on standard training is itself about."""
    kinds = {"decay-clock"}
    if recipe.optimizer == "adamw":
        kinds.add("decoupled-decay")
    if facts.norm is not None and not facts.norm.free_gain:  # of a free gain the caution says what follows
        kinds.add("normalised-features")
    return kinds


def _recipe(n: NDArray[np.int64], facts: Facts) -> Recipe | None:
    """The training in the form of the advice on standard training; None if that does not cover it.

    It covers a decayed head behind a norm, and AdamW, whose decay may not have acted.
    """
    decay, norm = facts.decay, facts.norm
    adaptive = decay is not None and decay.kind == "preconditioned"
    if decay is None or not decay.weight_decay > 0 or (norm is None and not adaptive) or decay.kind == "unknown":
        return None
    wd, batch = decay.weight_decay if adaptive else decay.penalty, facts.samples_per_step
    rate = decay.clock_rate if decay.clock_rate > 0 and not adaptive else 1.0
    steps = facts.clock.steps if facts.clock is not None and facts.clock.steps else 1
    clock = _LONG if facts.clock is None else facts.clock.total * rate
    loss = _loss_of_seen(facts, facts.loss.loss or Loss())
    scale = _loss_scale(facts)
    optimizers = each_of(facts.optimizer)
    own = "sgd" if not adaptive else "adamw" if preconditioner(facts.weight, optimizers) else "other"
    if batch is None and own == "adamw" and clock >= ACTED and norm is not None:
        raise ValueError("`loop.data` must be given: AdamW's decay at rest depends on the samples per step")
    # AdamW's steps are those of the mean, whatever the loss is multiplied by.
    step = 1.0 if adaptive else scale
    head = wd / step * facts.row_penalty
    gain = None if norm is None or not norm.trained_gain or norm.free_gain else norm.gain_penalty or wd
    group = group_of(facts.weight, facts.optimizer)
    return Recipe(
        optimizer=own,
        weight_decay=head,
        lr=clock / (head * steps),
        steps=steps,
        batch_size=batch,
        norm="none" if norm is None else "batchnorm" if norm.over == "batch" else "layernorm",
        width=int(facts.weight.shape[1]),
        schedule="constant",
        gain_decay=None if gain is None else gain / step,
        eps=float(group[1].get("eps", 1e-8)) if own == "adamw" and group is not None else 1e-8,
        length=None if norm is None else norm.length,
        smoothing=loss.smoothing,
        loss=loss,
        unit=decay.weight_decay / head,
    )


def _check_plain(facts: Facts) -> None:
    loss = facts.loss.loss
    if loss is not None and not loss.is_plain:
        raise ValueError(
            "no theory applies: what weight decay alone loses was measured for the plain cross-entropy, not with class "
            "weights, offsets or smoothing. Name a feature penalty with loop.penalties, or measure a trained network "
            "with collapsar.diagnose"
        )


def _problem(n: NDArray[np.int64], facts: Facts, features: FeatureModel) -> Problem:
    """The training with penalties on head and features as the theory's problem."""
    known = training_of(facts, ())
    loss = _loss_of_seen(facts, known.loss)
    known = replace(known, lambda_w=_of_seen(facts, known.lambda_w), loss=loss, exposure=None)  # resampling is refused
    if known.lambda_w is None or known.lambda_h is None or known.one_lambda_w is None:
        raise ValueError(
            "`optimizer` and `loop.penalties` put no known penalty on the head: without one nothing merges. For a "
            "summed loss, pass loop.data, which tells the number of samples per step"
        )
    scales = known.row_scales
    if scales is not None:
        if known.lambda_b not in (None, 0.0) or loss.scales is not None:
            raise ValueError(
                "no theory applies: penalties that differ by class, such as this optimizer's decay at rest, are "
                "covered only for a bias that is free or absent"
            )
        loss = replace(loss, scales=scales)
    bias = float("inf") if known.lambda_b is None else known.lambda_b
    return Problem(n, Penalties(known.one_lambda_w, known.lambda_h).lambda_z, bias, loss, features=features)


def _one_decay(facts: Facts) -> tuple[float, float]:
    """The one weight decay of a training without a feature penalty, and that over its penalty of the mean."""
    _check_plain(facts)
    if any(decay.kind == "preconditioned" for _, decay in facts.decays):
        raise ValueError(
            "no theory applies: weight decay alone was measured for SGD and Adam with L2 decay, not for decoupled "
            "decay. Measure a trained network with collapsar.diagnose, which reads its penalty at rest"
        )
    decays = weight_decays(facts.model, facts.optimizer)
    if len(decays) > 1 or 0.0 in decays:
        raise ValueError(
            "no theory applies: without a feature penalty every parameter must have the same weight decay > 0, got "
            f"{', '.join(f'{decay:g}' for decay in sorted(decays))}"
        )
    factor = 1.0 if facts.decay is None or facts.decay.kind != "linear" else facts.decay.factor
    return decays.pop(), _loss_scale(facts) / factor


def _loss_scale(facts: Facts) -> float:
    """How many times the theory's loss, the mean over the samples, the loss is."""
    scale = facts.loss_scale
    assert scale is not None  # the counts are known
    if not facts.loss.summed:
        return scale
    if facts.samples_per_step is None:
        raise ValueError("`loop.data` must be given with a summed loss: it tells the number of samples per step")
    return facts.samples_per_step * scale


def _check_counts(n: NDArray[np.int64], facts: Facts) -> None:
    """Refuse data whose class shares differ from those of the counts."""
    seen = facts.exposure
    if seen is None or seen.shown is None or seen.present is None:
        return
    for held, differs in ((seen.present, _other_shares(seen.present, n)), (seen.shown, unlike(seen.shown, n))):
        if differs:
            listed = ", ".join(map(str, held[:10])) + (", ..." if held.size > 10 else "")
            raise ValueError(
                f"`counts` must be those of the data: an epoch of `loop.data` shows {listed} samples of the classes. "
                "Pass these as counts, or the loader that trains"
            )


def _other_shares(held: NDArray[np.int64], n: NDArray[np.int64]) -> bool:
    size = max(held.size, n.size)
    shares = [np.pad(counts, (0, size - counts.size)) / counts.sum() for counts in (held, n)]
    return bool(np.abs(shares[0] - shares[1]).max() > 5e-3)
