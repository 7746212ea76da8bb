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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collapsar.core.loss import Loss
from collapsar.core.sentences import listed

# Logits of usual size; what the formula and the criterion may differ by, float16 weights included.
_BATCHES, _ROWS, _CLOSE = 3, 8, 2e-3
# Below all others by this, a logit is pulled by the whole weight; the number of classes for which that is tried.
_FAR, _MOST_READ = 30.0, 2048


@dataclass(frozen=True)
class Criterion:
    """What a criterion computes.

    Attributes:
        loss: the theory's loss; None where it is none of those, with the reason.
        summed: whether it is the sum over the batch in place of the mean.
        reason: why ``loss`` is None, a sentence; "" otherwise.
        normalised: whether the class weights of a batch are divided by their sum, as the theory has it.
        factor: by which the loss of every sample is multiplied, whatever its class.
    """

    loss: Loss | None
    summed: bool = False
    reason: str = ""
    normalised: bool = True
    factor: float = 1.0

    def scale(self, counts: NDArray[np.int64] | None) -> float | None:
        """How many times the theory's loss this one is for a sample on average, sum w n / N; None without counts."""
        weights = None if self.loss is None else self.loss.class_weights
        if self.normalised or weights is None:
            return self.factor
        if counts is None or len(counts) > len(weights) or not counts.any():
            return None
        return float(weights[: len(counts)] @ counts / counts.sum())


def read_criterion(criterion: Callable[..., Any] | None, num_classes: int) -> Criterion:
    """Find the loss of a criterion by trying it on a few logits: cross-entropy with weights, offsets and smoothing.

    Args:
        criterion: a module or function of logits (B, K) and class indices (B,), for one output of scores (B, 1) and
            labels as those of ``nn.BCEWithLogitsLoss``; None is plain cross-entropy. One with an attribute ``loss`` of
            type :class:`collapsar.Loss` (``MatchedCrossEntropy``) is believed.
        num_classes: K; 1 for a head of one output, which is read as two classes.

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
        with _exactly():
            twin = copy.deepcopy(criterion)
            found = _matching(twin, num_classes) if num_classes > 1 else _matching(_TwoClasses(twin), 2)
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


class _TwoClasses(nn.Module):
    """A criterion of one score and labels of the same shape, 0 or 1, as one of two classes and their indices."""

    def __init__(self, criterion: Callable[..., Any]) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(self, logits: Tensor, labels: Tensor) -> Any:
        scores = logits[:, 1:] - logits[:, :1]
        return self.criterion(scores, labels[:, None].to(scores.dtype))


@contextmanager
def _exactly() -> Iterator[None]:
    """Without autocast, under which the trial's own sums would lose their digits."""
    with ExitStack() as stack:
        for device in ("cpu", *(("cuda",) if torch.cuda.is_available() else ())):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _matching(criterion: Any, num_classes: int) -> Criterion | None:
    given = getattr(criterion, "weight", None)
    like = next((t for t in (given, *_tensors(criterion)) if isinstance(t, Tensor) and t.is_floating_point()), None)
    kind: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
    smoothing = float(getattr(criterion, "label_smoothing", 0.0))
    weights = torch.ones(num_classes) if given is None else given.detach().float().cpu()
    found = _with_weights(criterion, weights, smoothing, kind)
    if found is None:  # all samples multiplied by one number
        weights = torch.full((num_classes,), _weight(criterion, num_classes, 0, smoothing, kind))
        found = _with_weights(criterion, weights, smoothing, kind) if bool((weights > 0).all()) else None
    if found is None and num_classes <= _MOST_READ:
        pulls = [_weight(criterion, num_classes, label, smoothing, kind) for label in range(num_classes)]
        weights = torch.tensor(pulls)
        found = _with_weights(criterion, weights, smoothing, kind) if bool((weights > 0).all()) else None
    if found is None:
        return None
    offsets, summed, normalised = found
    shift = (offsets - offsets.mean()).double().numpy()
    plain = bool(np.abs(shift).max() < _CLOSE)
    even = bool((weights == weights[0]).all())
    factor = float(weights[0]) if even and not normalised else 1.0
    w = None if even and (given is None or not normalised) else weights.double().numpy()
    return Criterion(
        Loss(w, None if plain else shift, smoothing=smoothing), summed, "", normalised or w is None, factor=factor
    )


def _with_weights(
    criterion: Any, w: Tensor, smoothing: float, kind: dict[str, Any]
) -> tuple[Tensor, bool, bool] | None:
    """Offsets, whether it is a sum, and whether a batch's weights are divided by their sum; None: none of these."""
    num_classes, generator = len(w), torch.Generator().manual_seed(0)
    # Of different sizes, which tell a sum from a mean that is multiplied.
    labels = [(torch.arange(_ROWS + batch) * 7 + batch) % num_classes for batch in range(_BATCHES)]
    logits = [(2 * torch.randn(len(y), num_classes, generator=generator)).to(**kind) for y in labels]
    values = [float(criterion(x, y.to(x.device))) for x, y in zip(logits, labels, strict=True)]
    for normalised in (True, False):
        offsets = _offsets(criterion, torch.ones_like(w) if normalised else w, smoothing, kind)
        sums = [
            float(
                w[y]
                @ nn.functional.cross_entropy(x.cpu().float() + offsets, y, label_smoothing=smoothing, reduction="none")
            )
            for x, y in zip(logits, labels, strict=True)
        ]
        sizes = [float(w[y].sum()) if normalised else float(len(y)) for y in labels]
        for summed in (False, True)[: 1 if normalised else 2]:
            means = sums if summed else [total / size for total, size in zip(sums, sizes, strict=True)]
            if all(abs(value / mean - 1) <= _CLOSE for value, mean in zip(values, means, strict=True)):
                return offsets, summed, normalised
    return None


def _weight(criterion: Any, num_classes: int, label: int, smoothing: float, kind: dict[str, Any]) -> float:
    """A class's weight where it is not divided by the batch's sum: the pull on its logit, far below the others."""
    x = torch.zeros(1, num_classes, **kind)
    x[0, label] = -_FAR
    return -float(_gradient(criterion, x, label)[label]) / (1 - smoothing + smoothing / num_classes)


def _offsets(criterion: Any, weights: Tensor, smoothing: float, kind: dict[str, Any]) -> Tensor:
    """What the criterion adds to the logits: at logits of zero the gradient is softmax(offsets) minus the target.

    Each entry is taken from a sample of another class, where nothing cancels; ``weights`` multiply the gradients.
    """
    num_classes = len(weights)
    share = torch.zeros(num_classes)
    for label in (1, 0):
        slope = _gradient(criterion, torch.zeros(1, num_classes, **kind), label) / weights[label]
        others = torch.arange(num_classes) != label
        share[others] = slope[others] + smoothing / num_classes
    return torch.log(share.clamp_min(1e-30))


def _gradient(criterion: Any, x: Tensor, label: int) -> Tensor:
    with torch.enable_grad():
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(criterion(x, torch.tensor([label], device=x.device)), x)
    return gradient[0].detach().float().cpu()


def _tensors(criterion: Any) -> list[Tensor]:
    return [*criterion.parameters(), *criterion.buffers()] if isinstance(criterion, nn.Module) else []
