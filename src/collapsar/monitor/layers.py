"""What stands between a network and its head, in the order in which layers were registered.

Example:
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(), nn.Linear(8, 2))
    >>> head_norm(model, model[3], None).over, head_norm(model, model[3], None).length
    ('sample', 2.8284271247461903)
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from collapsar.core.known import HeadNorm
from collapsar.metrics.norms import normalization
from collapsar.monitor.optimizers import Optimizers, decay_of

__all__ = ["above_norm", "feeding", "head_norm", "is_linear", "layers_above_norm"]

_TRANSPARENT = (nn.Identity, nn.Dropout, nn.Flatten)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
    return next((leaf for leaf in reversed(_below(model, head)) if not isinstance(leaf, _TRANSPARENT)), None)


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


def head_norm(model: nn.Module, head: nn.Module, optimizers: Optimizers | None) -> HeadNorm | None:
    """The normalisation that feeds the head, its length and what prices its gain; None where there is none.

    Args:
        model: the network.
        head: its head.
        optimizers: the training's; None where none is at hand: the price of the gain is then unknown.
    """
    layer, weight = feeding(model, head), getattr(head, "weight", None)
    width = int(weight.shape[1]) if isinstance(weight, Tensor) and weight.ndim > 1 else 0
    found = None if layer is None else normalization(layer, width)
    if layer is None or found is None:
        return None
    length = (
        math.sqrt(width) * (1.0 if found.gain is None else _rms(found.gain)) if found.length is None else found.length
    )
    penalty, free = None, False
    if found.gain is not None and found.gain.requires_grad and optimizers is not None:
        decay = decay_of(found.gain, optimizers)
        penalty, free = None if math.isnan(decay.penalty) else decay.penalty, decay.kind == "none"
    return HeadNorm(type(layer).__name__, found.over, width, length, penalty, free)


def _rms(gain: Tensor) -> float:
    return float(gain.detach().double().square().mean().sqrt())
