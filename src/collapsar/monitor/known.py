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
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer
from torch.utils.data import WeightedRandomSampler

from collapsar.core.known import KnownTraining
from collapsar.core.problem import Loss, Penalties

__all__ = ["PenaltyWarning", "known_training", "layers_above_norm", "penalty_warnings", "weight_decays"]

_NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)
_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Flatten)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_DECOUPLED = re.compile(r"adamw|sgdw|lion|lamb|adafactor|muon", re.IGNORECASE)
_RANDOM = re.compile(r"Random|AutoAugment|TrivialAugment|AugMix|ColorJitter|ElasticTransform", re.IGNORECASE)
_MIXED = re.compile(r"mix_?up|cut_?mix", re.IGNORECASE)

_TEXTS: Mapping[str, str] = {
    "decoupled-decay": "{} shrinks weights beside the gradient step instead of penalising them: its weight_decay is no "
    "penalty of the loss. lambda_w is read from the head's gradient instead.",
    "frozen-head": "The head is not trained: it balances no forces, and no penalty can be read from it.",
    "frozen-backbone": "The network below the head {} frozen: its features cannot answer to a penalty as the theory "
    "assumes.",
    "normalised-features": "{} feeds the head: the length of the features is normalised and cannot answer to a penalty "
    "({}).",
    "normalised-below": "A normalisation lies below the features: decay of the layers under it changes no function, "
    "only the pace of learning; decay of its scale acts as a feature penalty.",
    "decayed-layers": "{} more decayed layers lie below the head, above the last normalisation if there is one: each "
    "further factor bends the price of the predictions, and classes collapse at weaker penalties than the thresholds "
    "of two layers say.",
    "no-feature-penalty": "Nothing penalises the features: they may grow without end, and there is no optimum. If "
    "the loop adds such a penalty to the loss itself, name it with penalties=.",
    "augmentation": "Samples are augmented in training: a class is then a cloud, not a point, and the floor of its "
    "loss acts like a stronger penalty.",
    "mixup": "Samples and labels are mixed in training: the targets are soft, which acts like a stronger penalty and "
    "is not in the theory.",
    "resampled": "{} shows classes at other rates than the data set has them: states and margins are measured on the "
    "samples given, but what theory says here holds without resampling.",
    "loss": "The loss is {}; the theory here is that of cross-entropy.",
}


class PenaltyWarning(UserWarning):
    """The penalties of this training are not those of the theory.

    Attributes:
        kind: "decoupled-decay", "frozen-head", "frozen-backbone", "normalised-features", "normalised-below",
            "decayed-layers", "no-feature-penalty", "augmentation", "mixup", "resampled" or "loss".
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def known_training(
    model: nn.Module,
    head: nn.Module,
    optimizer: Optimizer | None,
    *,
    penalties: Penalties | None = None,
    criterion: nn.Module | None = None,
    data: Any = None,
) -> KnownTraining:
    """What a torch training loop says of its penalties; each difference from the theory is warned of, once here.

    The optimizer's ``weight_decay`` on the head's parameters adds to the penalties of the loss. Decay that is
    decoupled (AdamW) is no penalty: the head's penalty is then unknown, and a diagnosis fits it. Decay of a batch norm
    that feeds the head directly is a feature penalty: with unit variance in each coordinate, sum ||h||^2 =
    N (||gamma||^2 + ||beta||^2), so lambda_h = wd / N.

    Args:
        model: the whole network.
        head: its last linear layer.
        optimizer: the training's; None where none is at hand: only the loss's penalties are then known.
        penalties: those written into the loss, for the sum over all N samples.
        criterion: the loss function; its class weights and label smoothing are read if it is a cross-entropy.
        data: the training loader or data set; tells N, and whether images are augmented or mixed.

    Returns:
        The penalties for :func:`collapsar.diagnose.readers.diagnose`, with the warnings' texts as cautions.

    Warns:
        PenaltyWarning: for every difference found; ``kind`` says which.

    Raises:
        ValueError: ``head`` is no linear layer of ``model``.
    """
    found = penalty_warnings(model, head, optimizer, penalties=penalties, criterion=criterion, data=data)
    for warning in found:
        warnings.warn(warning, stacklevel=2)
    lambda_w = _total(_decay(head, "weight", optimizer), penalties and penalties.lambda_w)
    lambda_b = _total(_decay(head, "bias", optimizer), penalties and penalties.lambda_b)
    lambda_h = penalties.lambda_h if penalties is not None and penalties.lambda_h > 0 else None
    norm = _before(model, head)
    size = _num_samples(data)
    if lambda_h is None and isinstance(norm, _BatchNorm) and norm.affine and size:
        decays = {_decay(norm, name, optimizer) for name in ("weight", "bias")}
        if len(decays) == 1 and (decays := [x for x in decays if x is not None and x > 0]):
            lambda_h = decays[0] / size
    return KnownTraining(
        lambda_w=lambda_w or None,
        lambda_h=lambda_h,
        lambda_b=lambda_b,
        loss=_loss(criterion) or Loss(),
        cautions=tuple(str(warning) for warning in found),
    )


def penalty_warnings(
    model: nn.Module,
    head: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    penalties: Penalties | None = None,
    criterion: nn.Module | None = None,
    data: Any = None,
) -> tuple[PenaltyWarning, ...]:
    """The differences between a training and the theory, as values; arguments as for :func:`known_training`.

    Order of layers is the order in which they were registered: for a network that runs them in another order, look
    yourself.
    """
    weight = getattr(head, "weight", None)
    if not any(module is head for module in model.modules()) or weight is None or weight.ndim != 2:
        raise ValueError("`head` must be a linear layer of `model`, its last; pass the module itself, e.g. model.fc")
    return (
        *_of_optimizer(model, head, optimizer),
        *_of_layers(model, head, optimizer, penalties),
        *_of_data(data, criterion),
    )


def layers_above_norm(model: nn.Module, head: nn.Module) -> int:
    """Linear layers above the last normalisation, the head included, in order of registration; 0 without one.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> layers_above_norm(model, model[3])
        2
    """
    leaves = _leaves_below(model, head)
    norms = [i for i, leaf in enumerate(leaves) if isinstance(leaf, _NORMS)]
    return 1 + sum(isinstance(leaf, _LAYERS) for leaf in leaves[norms[-1] + 1 :]) if norms else 0


def weight_decays(model: nn.Module, optimizer: Optimizer) -> set[float]:
    """The different weight decays that the model's trained parameters have."""
    own = {id(p) for p in model.parameters() if p.requires_grad}
    return {float(g.get("weight_decay", 0.0)) for g in optimizer.param_groups if any(id(p) in own for p in g["params"])}


def _of_optimizer(model: nn.Module, head: nn.Module, optimizer: Optimizer | None) -> Iterator[PenaltyWarning]:
    own = {id(p) for p in head.parameters()}
    groups = [] if optimizer is None else optimizer.param_groups
    trained = {id(p) for group in groups for p in group["params"]}

    def moves(parameter: nn.Parameter) -> bool:
        return parameter.requires_grad and (optimizer is None or id(parameter) in trained)

    if optimizer is not None and any(_decoupled(optimizer, group) and group.get("weight_decay") for group in groups):
        yield _warning("decoupled-decay", type(optimizer).__name__)
    if not any(moves(p) for p in head.parameters()):
        yield _warning("frozen-head")
    rest = [p for p in model.parameters() if id(p) not in own]
    still = sum(not moves(p) for p in rest)
    if still:
        yield _warning("frozen-backbone", "is" if still == len(rest) else "is in part")


def _of_layers(
    model: nn.Module, head: nn.Module, optimizer: Optimizer | None, penalties: Penalties | None
) -> Iterator[PenaltyWarning]:
    priced = penalties is not None and penalties.lambda_h > 0
    before = _before(model, head)
    if isinstance(before, _NORMS):
        decay = "decay of its own scale alone can" if isinstance(before, _BatchNorm) else "it is fixed by the layer"
        yield _warning("normalised-features", type(before).__name__, decay)
        return
    if priced:
        return
    leaves = _leaves_below(model, head)
    norms = [i for i, leaf in enumerate(leaves) if isinstance(leaf, _NORMS)]
    above = leaves[norms[-1] + 1 :] if norms else leaves
    decayed = sum(isinstance(leaf, _LAYERS) and (_decay(leaf, "weight", optimizer) or 0) > 0 for leaf in above)
    if norms:
        yield _warning("normalised-below")
    if decayed:
        yield _warning("decayed-layers", decayed)
    if not (norms or decayed or optimizer is None):
        yield _warning("no-feature-penalty")


def _of_data(data: Any, criterion: nn.Module | None) -> Iterator[PenaltyWarning]:
    transforms = " ".join(repr(getattr(part, "transform", "")) for part in _datasets(data))
    if _RANDOM.search(transforms):
        yield _warning("augmentation")
    collate = getattr(data, "collate_fn", "")
    if _MIXED.search(f"{transforms} {getattr(collate, '__qualname__', '')} {collate!r}"):
        yield _warning("mixup")
    if criterion is not None and _loss(criterion) is None:
        yield _warning("loss", type(criterion).__name__)
    sampler = getattr(data, "sampler", None)
    if isinstance(sampler, WeightedRandomSampler) or hasattr(sampler, "loss_share"):
        yield _warning("resampled", type(sampler).__name__)


def _warning(kind: str, *values: Any) -> PenaltyWarning:
    return PenaltyWarning(kind, _TEXTS[kind].format(*values))


def _decoupled(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return bool(group.get("decoupled_weight_decay")) or any(
        _DECOUPLED.search(kind.__name__) for kind in type(optimizer).__mro__
    )


def _decay(layer: nn.Module, name: str, optimizer: Optimizer | None) -> float | None:
    """The L2 decay of one parameter; NaN where it is decoupled, None where there is no such parameter or optimizer."""
    parameter = getattr(layer, name, None)
    if parameter is None or optimizer is None:
        return None
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            decay = float(group.get("weight_decay", 0.0))
            return math.nan if decay and _decoupled(optimizer, group) else decay
    return 0.0


def _total(of_optimizer: float | None, of_loss: float | None) -> float | None:
    """Both together; None where neither is known, or where decoupled decay (NaN) makes the sum meaningless."""
    if of_optimizer is None and of_loss is None:
        return None
    total = (of_optimizer or 0.0) + (of_loss or 0.0)
    return total if math.isfinite(total) else None


def _leaves_below(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """The layers without children registered before the head."""
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    place = next((i for i, leaf in enumerate(leaves) if leaf is head), len(leaves))
    return leaves[:place]


def _before(model: nn.Module, head: nn.Module) -> nn.Module | None:
    """The layer that feeds the head, dropout and the like left out."""
    return next((leaf for leaf in reversed(_leaves_below(model, head)) if not isinstance(leaf, _TRANSPARENT)), None)


def _datasets(data: Any) -> Iterator[Any]:
    """A loader's data set, and those that it wraps."""
    while data is not None:
        yield data
        data = getattr(data, "dataset", None)


def _num_samples(data: Any) -> int | None:
    """N: of a loader, the size of its data set."""
    inner = getattr(data, "dataset", data)
    return len(inner) if inner is not None and hasattr(inner, "__len__") else None


def _loss(criterion: nn.Module | None) -> Loss | None:
    """The criterion's loss; None where it is none of the theory's."""
    own = getattr(criterion, "loss", None)  # training.MatchedCrossEntropy has one
    if isinstance(own, Loss):
        return own
    if not isinstance(criterion, nn.CrossEntropyLoss):
        return None
    weight = criterion.weight
    weights = None if weight is None else weight.detach().double().cpu().numpy()
    return Loss(class_weights=weights, smoothing=criterion.label_smoothing)
