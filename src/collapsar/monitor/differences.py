"""The differences between a training and the theory, each as a warning."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import nn

from collapsar.core.known import IDLE, NORMALISED, UNPENALISED, UNTRAINED, HeadNorm
from collapsar.core.sentences import percent
from collapsar.monitor.facts import Facts
from collapsar.monitor.layers import above_norm, is_linear
from collapsar.monitor.optimizers import each_of, group_of, own_name, wrapper_of

# Random by name, as in torchvision, or by a probability below 1, as in albumentations.
_RANDOM = re.compile(r"Random|RandAug|AutoAug|TrivialAug|AugMix|ColorJitter|Elastic|\bp=0?\.\d", re.IGNORECASE)
_MIXED = re.compile(r"mix_?up|cut_?mix", re.IGNORECASE)
# A clock below this has left more than nine tenths of every weight in place.
_IDLE = 0.1
_MOST_LISTED = 10

_TEXTS: Mapping[str, str] = {
    "decoupled-decay": "{} shrinks weights separately from the gradient step: its weight_decay is not a penalty of the "
    "loss. {}",
    "linear-decay": "{} shrinks weights separately from the gradient step: with its momentum, weight_decay {:g} is the "
    "penalty {:.3g} of the loss.",
    "unknown-decay": "The effect of the weight_decay of {} is not known: a copy of it could not be tried, or shrinks "
    "weights by another setting, as ASGD's lambd does. lambda_w is read from the head's gradient instead.",
    "unused-decay": "{} has a weight_decay but steps as if it had none: it penalises nothing.",
    "centred-gradients": "{} subtracts its mean from every row of a gradient: weight_decay {:g} penalises what is left "
    "of the head's rows, and no loss moves their means.",
    "wrapped-optimizer": "{} wraps another optimizer: the decay is read from that one; what else the wrapper does to "
    "the steps is not known.",
    "decay-clock": f"{IDLE}: the sum of lr * weight_decay {{}} {{:.2g}}, far below 1, so it cannot have "
    "merged classes in this run. Small classes that are lost are not learned yet, are outvoted by the prior, or have "
    "no room; or the weights were loaded, and an earlier training had lost them.",
    "frozen-head": f"{UNTRAINED}: loss and penalty do not balance there, and no penalty can be read from it.",
    "reshaped-head": "The head does not compute W h + b from the weight that it stores (cosine, scale, adapter): decay "
    "of that weight is not the penalty of the theory, and no penalty at all if the head normalises its rows.",
    "frozen-backbone": "The network below the head {} frozen: its features cannot respond to a penalty as the theory "
    "assumes.",
    "normalised-features": f"{{}} {NORMALISED} ({{}}).",
    "normalised-below": "There is a normalisation below the features: decay of the layers under it does not change the "
    "function, only the pace of learning; decay of its scale acts as a feature penalty.",
    "decayed-layers": "Decayed layers below the head, above the last normalisation if there is one: {}. Each "
    "further factor changes the penalty of the mean predictions, and classes collapse at weaker penalties than the "
    "thresholds for two layers.",
    "no-feature-penalty": f"{UNPENALISED}: they may grow without bound, and there is no optimum. If "
    "the loop adds such a penalty to the loss itself, name it with penalties=.",
    "augmentation": "Samples are augmented in training: a class is then a cloud, not a point, and the floor of its "
    "loss acts like a stronger penalty.",
    "mixup": "Samples and labels are mixed in training: the targets are soft, which acts like a stronger penalty and "
    "is not in the theory.",
    "resampled": "{} shows classes at other rates than in the data set{}: states and margins are measured on the "
    "samples given, and the theory here {}.",
    "compounded": "Two mitigations compound: {} shows classes at other rates, and the loss {}. {}",
    "loss": "{}; the theory here is that of cross-entropy.",
    "summed-loss": "The loss is a sum over the batch: a penalty counts as if divided by the number of samples per "
    "step, {}.",
    "unnormalised-weights": "The loss does not divide its class weights by their sum: a penalty counts as if divided "
    "by their mean over the samples, {}.",
    "multiplied-loss": "The loss is {:.4g} times the mean over the samples: a penalty counts as if divided by that "
    "factor.",
}


class PenaltyWarning(UserWarning):
    """The penalties of this training are not those of the theory.

    Attributes:
        kind: "decoupled-decay", "linear-decay", "unknown-decay", "unused-decay", "centred-gradients",
            "wrapped-optimizer", "decay-clock", "frozen-head", "reshaped-head", "frozen-backbone",
            "normalised-features", "normalised-below", "decayed-layers", "no-feature-penalty", "augmentation", "mixup",
            "resampled", "compounded", "loss", "summed-loss", "unnormalised-weights" or "multiplied-loss".
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def differences(facts: Facts) -> tuple[PenaltyWarning, ...]:
    """All differences found, those of the optimizer first."""
    return (*_of_optimizer(facts), *_of_layers(facts), *_of_data(facts))


def _of_optimizer(facts: Facts) -> Iterator[PenaltyWarning]:
    own = {id(p) for p in facts.head.parameters()}
    yield from _of_decays(facts)
    yield from _of_clock(facts)
    if facts.frozen_head:
        yield _warning("frozen-head")
    rest = [p for p in facts.model.parameters() if id(p) not in own]
    still = sum(not facts.moves(p) for p in rest)
    if still:
        yield _warning("frozen-backbone", "is" if still == len(rest) else "is in part")


def _of_decays(facts: Facts) -> Iterator[PenaltyWarning]:
    for optimizer in each_of(facts.optimizer):
        if (wrapper := wrapper_of(optimizer)) is not None:
            yield _warning("wrapped-optimizer", wrapper)
    seen = {(name, decay.kind) for name, decay in facts.decays}
    decay, found = facts.decay, group_of(facts.weight, facts.optimizer)
    of_head = "" if found is None else own_name(found[0])
    for name in sorted({name for name, kind in seen if kind == "preconditioned"}):
        told = facts.rows is None or name == of_head
        yield _warning("decoupled-decay", name, _of_rows(facts) if told else "It does not act on the head.")
    for name in sorted({name for name, kind in seen if kind == "unknown"}):
        yield _warning("unknown-decay", name)
    # Of one that decays no vectors, a group of biases and gains alone is no surprise.
    acting = {name for name, kind in seen if kind != "none"}
    for name in sorted({name for name, decay in facts.decays if decay.weight_decay != 0} - acting):
        yield _warning("unused-decay", name)
    if decay is not None and decay.kind == "linear":
        yield _warning("linear-decay", of_head, decay.weight_decay, decay.penalty)
    if decay is not None and decay.centred:
        yield _warning("centred-gradients", of_head, decay.weight_decay)


def _of_rows(facts: Facts) -> str:
    rows = facts.rows
    fallback = "lambda_w is read from the head's gradient instead."
    if rows is None:  # the decay of other layers than the head
        return "The head's own penalty is read as usual."
    if rows.rows is None:
        return f"No penalty can be read from its state: {rows.reason}. {fallback}"
    agreement, rest = "", rows.rest
    if rest is not None:
        off = f", off balance by {percent(rest.imbalance)}" if rest.correlation > 0 else ""
        agreement = f" (slope {rest.slope:.3g}, correlation {rest.correlation:.3g}{off})"
    low, high = float(rows.rows.min()), float(rows.rows.max())
    if facts.at_rest:
        return (
            f"At rest it acts as the penalty wd (sqrt(v) + eps) of each weight: lambda_w from {low:.3g} to {high:.3g} "
            f"over the classes, read from its state, with which the loss's pull agrees{agreement}."
        )
    return f"It acts as a penalty only at rest, and this training is not at rest{agreement}. {fallback}"


def _of_clock(facts: Facts) -> Iterator[PenaltyWarning]:
    decay, clock = facts.decay, facts.clock
    if decay is None or clock is None or decay.kind not in ("coupled", "linear", "preconditioned"):
        return
    rate = 1.0 if decay.kind == "preconditioned" else decay.clock_rate  # Adam's L2 decay has none
    if math.isfinite(rate) and 0 < rate * clock.total < _IDLE:
        over = "over the run is" if clock.exact else "over the run is at most"
        yield _warning("decay-clock", over, rate * clock.total)


def _of_layers(facts: Facts) -> Iterator[PenaltyWarning]:
    if not facts.stored_head:
        yield _warning("reshaped-head")
        return
    norm = facts.norm
    if norm is not None:
        yield _warning("normalised-features", norm.layer, _gain(norm, known=facts.optimizer is not None))
        return
    if facts.penalties is not None and facts.penalties.lambda_h > 0:
        return
    above, normed = above_norm(facts.model, facts.head)
    linear = [leaf for leaf in above if is_linear(leaf)] if facts.optimizer is not None else []
    decayed = sum(_decays_any(facts, (p for p in leaf.parameters() if p.ndim > 1)) for leaf in linear)
    if normed and (facts.optimizer is None or _decayed_below(facts)):
        yield _warning("normalised-below")
    if decayed:
        yield _warning("decayed-layers", decayed)
    if not (normed or decayed or facts.optimizer is None):
        yield _warning("no-feature-penalty")


def _decayed_below(facts: Facts) -> bool:
    """Whether decay acts on any layer below the head."""
    own = {id(p) for p in facts.head.parameters()}
    return _decays_any(facts, (p for p in facts.model.parameters() if id(p) not in own))


def _decays_any(facts: Facts, parameters: Iterable[nn.Parameter]) -> bool:
    return any(facts.moves(p) and facts.decay_of(p).kind != "none" for p in parameters)


def _gain(norm: HeadNorm, *, known: bool) -> str:
    over = f', over="{norm.over}"' if norm.over == "batch" else ""
    if norm.free_gain:
        return "its gain is trained without decay, so the length may grow without bound and nothing merges for good"
    if norm.gain_penalty is not None and norm.over == "sample":
        return (
            "decay of its gain prices it, and less than any model here once the gain gathers in few features: no "
            "optimum is known"
        )
    if norm.gain_penalty is not None:
        return (
            f"decay of its gain alone can price it: Problem.from_gain_decay(counts, lambda_w=..., "
            f"lambda_gain={norm.gain_penalty:g}{over}) is the model"
        )
    reading = f"it is {norm.length:.3g}: Problem.from_normalized(counts, lambda_w=..., norm={norm.length:.4g}{over})"
    return f"{reading} is the model" if known else f"{reading} is the model as long as its gain does not change"


def _of_data(facts: Facts) -> Iterator[PenaltyWarning]:
    transforms = " ".join(repr(getattr(part, "transform", "")) for part in _datasets(facts.data))
    if _RANDOM.search(transforms):
        yield _warning("augmentation")
    collate = getattr(facts.data, "collate_fn", "")
    if _MIXED.search(f"{transforms} {getattr(collate, '__qualname__', '')} {collate!r}"):
        yield _warning("mixup")
    loss, seen = facts.loss, facts.exposure
    if loss.reason:
        yield _warning("loss", loss.reason)
    if loss.summed:
        size = facts.samples_per_step
        unknown = "which is not known: pass data="
        yield _warning("summed-loss", unknown if size is None else f"{size} here")
    if not loss.normalised:
        scale = facts.loss_scale
        unknown = "which is not known: pass data=, whose labels tell the class counts"
        yield _warning("unnormalised-weights", unknown if scale is None else f"{scale:.4g} here")
    if loss.factor != 1:
        yield _warning("multiplied-loss", loss.factor)
    if seen is None or not seen.resampled:
        return
    times = "" if seen.factors is None else f" ({_times(seen.factors)})"
    yield _warning("resampled", seen.name, times, f"holds with{'out' if facts.resampling is None else ''} resampling")
    weights = None if loss.loss is None else loss.loss.class_weights
    if loss.loss is None and facts.criterion is not None:
        yield _warning("compounded", seen.name, "changes their weight as well", f"{loss.reason}.")
    elif weights is not None and np.ptp(weights) > 0:
        product = ""
        factors, present = seen.factors, seen.present
        if factors is not None and present is not None and len(weights) >= len(factors):
            both = factors * weights[: len(factors)]
            product = f"Together, {_times(both * present.sum() / np.nansum(both * present))}."
        yield _warning("compounded", seen.name, "weighs them as well", product)


def _times(factors: Any) -> str:
    """By how much each class counts more than its frequency."""
    values = [f"{factor:.3g}" for factor in factors]
    if len(values) <= _MOST_LISTED:
        return f"classes count {', '.join(values)} times their frequency"
    return f"classes count {np.nanmin(factors):.3g} to {np.nanmax(factors):.3g} times their frequency"


def _warning(kind: str, *values: Any) -> PenaltyWarning:
    return PenaltyWarning(kind, _TEXTS[kind].format(*values))


def _datasets(data: Any) -> Iterator[Any]:
    """A loader's data set, and those that it wraps."""
    while data is not None:
        yield data
        data = getattr(data, "dataset", None)
