"""The loss that a criterion computes, read by trying it: a class's name or base does not say what ``forward`` does.

Example:
    >>> class Adjusted(nn.CrossEntropyLoss):
    ...     def forward(self, x, y):
    ...         return super().forward(x + torch.tensor([0.0, 1.0, 3.0]), y)
    >>> read_criterion(Adjusted(), 3).loss.offsets.round(3).tolist()
    [-1.333, -0.333, 1.667]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from collapsar.core.problem import Loss
from collapsar.core.sentences import listed

__all__ = ["Criterion", "read_criterion"]

# Logits of usual size; what the formula and the criterion may differ by, float16 weights included.
_BATCHES, _ROWS, _CLOSE = 3, 8, 2e-3


@dataclass(frozen=True)
class Criterion:
    """What a criterion computes.

    Attributes:
        loss: the theory's loss; None where it is none of those, with the reason.
        summed: whether it is the sum over the batch in place of the mean.
        reason: why ``loss`` is None, a sentence; "" otherwise.
    """

    loss: Loss | None
    summed: bool = False
    reason: str = ""


def read_criterion(criterion: Callable[..., Any] | None, num_classes: int) -> Criterion:
    """Find the loss of a criterion by trying it on a few logits: cross-entropy with weights, offsets and smoothing.

    Args:
        criterion: a module or function of logits (B, K) and class indices (B,); None is plain cross-entropy. One with
            an attribute ``loss`` of type :class:`collapsar.Loss` (``MatchedCrossEntropy``) is believed.
        num_classes: K.

    Raises:
        ValueError: its class weights are not one per class.
    """
    if criterion is None:
        return Criterion(Loss())
    own = getattr(criterion, "loss", None)
    if isinstance(own, Loss):
        return Criterion(own)
    name = getattr(criterion, "__name__", type(criterion).__name__)
    weights = getattr(criterion, "weight", None)
    if isinstance(weights, Tensor) and weights.ndim == 1:
        if len(weights) != num_classes:
            raise ValueError(f"`criterion` has {len(weights)} class weights for a head of {num_classes} classes")
        if not bool((weights > 0).all()):
            none = listed(torch.nonzero(~(weights > 0)).flatten().tolist(), num_classes)
            return Criterion(None, reason=f"The loss gives class {none} the weight 0: it is not trained")
    ignored = getattr(criterion, "ignore_index", -100)
    if isinstance(ignored, int) and 0 <= ignored < num_classes:
        return Criterion(None, reason=f"The loss ignores class {ignored} (ignore_index): it is not trained")
    try:
        found = _matching(copy.deepcopy(criterion), num_classes)
    except Exception:  # one that needs other arguments, shapes or labels computes something else
        found = None
    if found is not None:
        return found
    if (
        isinstance(criterion, nn.CrossEntropyLoss)
        and type(criterion).forward is nn.CrossEntropyLoss.forward
        and weights is not None
        and criterion.label_smoothing > 0
    ):
        near = Loss(weights.detach().double().cpu().numpy(), smoothing=criterion.label_smoothing)
        return Criterion(
            near,
            criterion.reduction == "sum",
            "CrossEntropyLoss with both class weights and label smoothing weighs the smoothed part by the other "
            "classes' weights, which is not quite the loss of the theory",
        )
    return Criterion(None, reason=f"The loss is {name}, which is none of the cross-entropies of the theory")


def _matching(criterion: Any, num_classes: int) -> Criterion | None:
    weights = getattr(criterion, "weight", None)
    like = next((t for t in (weights, *_tensors(criterion)) if isinstance(t, Tensor) and t.is_floating_point()), None)
    kind: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
    smoothing = float(getattr(criterion, "label_smoothing", 0.0))
    w = torch.ones(num_classes) if weights is None else weights.detach().float().cpu()
    offsets = _offsets(criterion, w, smoothing, kind)
    generator, ratios, sums = torch.Generator().manual_seed(0), [], []
    for batch in range(_BATCHES):
        x = (2 * torch.randn(_ROWS, num_classes, generator=generator)).to(**kind)
        y = (torch.arange(_ROWS) * 7 + batch) % num_classes
        each = nn.functional.cross_entropy(x.cpu().float() + offsets, y, label_smoothing=smoothing, reduction="none")
        ratios.append(float(criterion(x, y.to(x.device))) / float((w[y] * each).sum() / w[y].sum()))
        sums.append(float(w[y].sum()))
    mean, summed = (
        [abs(r / size - 1) <= _CLOSE for r, size in zip(ratios, of, strict=True)] for of in ([1.0] * _BATCHES, sums)
    )
    if not (all(mean) or all(summed)):
        return None
    shift = (offsets - offsets.mean()).double().numpy()
    plain = bool(np.abs(shift).max() < _CLOSE)
    return Criterion(
        Loss(None if weights is None else w.double().numpy(), None if plain else shift, smoothing=smoothing),
        not all(mean),
    )


def _offsets(criterion: Any, weights: Tensor, smoothing: float, kind: dict[str, Any]) -> Tensor:
    """What the criterion adds to the logits: at logits of zero the gradient is softmax(offsets) minus the target.

    Each entry is taken from a sample of another class, where nothing cancels.
    """
    num_classes = len(weights)
    share = torch.zeros(num_classes)
    for label in (1, 0):
        x = torch.zeros(1, num_classes, requires_grad=True, **kind)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(criterion(x, torch.tensor([label], device=x.device)), x)
        slope = gradient[0].detach().float().cpu() + smoothing / num_classes
        if getattr(criterion, "reduction", "mean") == "sum":
            slope = slope / weights[label]
        others = torch.arange(num_classes) != label
        share[others] = slope[others]
    return torch.log(share.clamp_min(1e-30))


def _tensors(criterion: Any) -> list[Tensor]:
    return [*criterion.parameters(), *criterion.buffers()] if isinstance(criterion, nn.Module) else []
