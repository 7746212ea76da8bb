"""The layers right before the head of a network, in the order in which they were registered.

Example:
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(), nn.Linear(8, 2))
    >>> head_norm(model, model[3], None).over, head_norm(model, model[3], None).length
    ('sample', 2.8284271247461903)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from torch import Tensor, nn

from collapsar.core.known import HeadNorm
from collapsar.metrics.norms import normalization
from collapsar.monitor.optimizers import Decay, Optimizers, decay_of, group_of

# Layers without parameters that do not change the length of features, and averages over places; libraries vary.
_TRANSPARENT = re.compile("Identity|Dropout|DropPath|Flatten|Permute|Reshape|Rearrange|Squeeze|Rotary")
_POOLING = re.compile("(?!.*Max).*Pool")
_BOUNDING = (nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Softsign)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _is(kind: re.Pattern[str], layer: nn.Module) -> bool:
    """Whether a layer without parameters has such a name."""
    return kind.search(type(layer).__name__) is not None and next(layer.parameters(), None) is None


def is_linear(layer: nn.Module) -> bool:
    """Whether a layer is a linear map with a weight."""
    return isinstance(layer, _LAYERS)


def _below(model: nn.Module, head: nn.Module) -> list[nn.Module]:
    """Normalisations and the layers without children, registered before the head."""
    found: list[nn.Module] = []
    for module in model.modules():
        if module is head:
            break
        if not any(True for _ in module.children()) or normalization(module) is not None:
            found.append(module)
    return found


def feeding(model: nn.Module, head: nn.Module) -> nn.Module | None:
    """The layer that feeds the head, dropout and the like left out."""
    return next((leaf for leaf in reversed(_below(model, head)) if not _is(_TRANSPARENT, leaf)), None)


def bounding(model: nn.Module, head: nn.Module) -> str | None:
    """The class of the layer that feeds the head if it bounds each feature, like a tanh; otherwise None."""
    layer = feeding(model, head)
    return type(layer).__name__ if isinstance(layer, _BOUNDING) else None


def _pooled(model: nn.Module, head: nn.Module) -> tuple[nn.Module | None, str | None]:
    """The layer that feeds the head, skipping average pooling too, and the class of the pooling."""
    pooled = None
    for leaf in reversed(_below(model, head)):
        if _is(_POOLING, leaf):
            pooled = pooled or type(leaf).__name__
        elif not _is(_TRANSPARENT, leaf):
            return leaf, pooled
    return None, None


def above_norm(model: nn.Module, head: nn.Module) -> tuple[list[nn.Module], bool]:
    """The layers between the last normalisation and the head, and whether there is a normalisation."""
    leaves = _below(model, head)
    norms = [i for i, leaf in enumerate(leaves) if normalization(leaf) is not None]
    return (leaves[norms[-1] + 1 :], True) if norms else (leaves, False)


def layers_above_norm(model: nn.Module, head: nn.Module) -> int:
    """Linear layers above the last normalisation, the head included, in order of registration; 0 without one.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> layers_above_norm(model, model[3])
        2
    """
    leaves, normed = above_norm(model, head)
    return 1 + sum(map(is_linear, leaves)) if normed else 0


def head_norm(
    model: nn.Module,
    head: nn.Module,
    optimizers: Optimizers | None,
    decay_of_gain: Callable[[Tensor], Decay] | None = None,
) -> HeadNorm | None:
    """The normalisation that feeds the head, its length and the penalty of its gain; None if there is none.

    Without the training's optimizers the penalty of the gain is not known. ``decay_of_gain`` returns its decay if that
    has been tried before; otherwise it is tried here.
    """
    (layer, pooled), weight = _pooled(model, head), getattr(head, "weight", None)
    width = int(weight.shape[1]) if isinstance(weight, Tensor) and weight.ndim > 1 else 0
    found = None if layer is None else normalization(layer, width)
    if layer is None or found is None:
        return None
    gain = found.gain
    rms = 1.0 if gain is None else float(gain.detach().double().square().mean().sqrt())
    length = math.sqrt(width) * rms if found.length is None else found.length
    penalty, free, trained = None, False, gain is not None and gain.requires_grad
    if gain is not None and trained and optimizers is not None:
        decay = decay_of(gain, optimizers) if decay_of_gain is None else decay_of_gain(gain)
        penalty, free = None if math.isnan(decay.penalty) else decay.penalty, decay.kind == "none"
        trained = group_of(gain, optimizers) is not None
    return HeadNorm(
        layer=type(layer).__name__,
        over=found.over,
        width=width,
        length=length,
        gain_penalty=penalty if trained else None,
        free_gain=free and trained,
        trained_gain=trained,
        uneven=0.0 if gain is None or found.length is not None else _unevenness(gain),  # else it may be 1 + gain
        shifted=found.shift is not None and bool(found.shift.detach().abs().max() > 0),
        pooled=pooled,
    )


def _unevenness(gain: Tensor) -> float:
    sizes = gain.detach().double().abs()
    level = float(sizes.mean())
    return float(sizes.std(correction=0)) / level if level > 0 else 0.0
