"""The loss that a criterion computes, found by trying it: a class's name or base does not tell what ``forward`` does.

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

# Logits of usual size; what the formula and the criterion may differ by, float16 weights included; and what the weights
# that a criterion names may differ by from those that it is found to use.
_BATCHES, _ROWS, _CLOSE, _NAMED = 3, 8, 2e-3, 2e-2
# Below all others by this, a logit is pulled by the whole weight; the number of classes for which that is tried.
_FAR, _MOST_READ = 30.0, 2048


@dataclass(frozen=True)
class Criterion:
    """What a criterion computes.

    Attributes:
        loss: the theory's loss; None if it is not one of those, with the reason.
        summed: whether it is the sum over the batch instead of the mean.
        reason: why ``loss`` is None, a sentence; "" otherwise.
        normalised: whether the class weights of a batch are divided by their sum, as in the theory.
        factor: by which the loss of every sample is multiplied, whatever its class.
    """

    loss: Loss | None
    summed: bool = False
    reason: str = ""
    normalised: bool = True
    factor: float = 1.0

    def scale(self, counts: NDArray[np.int64] | None) -> float | None:
        """A sample's average loss over the theory's, sum w n / N; None without counts."""
        weights = None if self.loss is None else self.loss.class_weights
        if self.normalised or weights is None:
            return self.factor
        if counts is None or len(counts) > len(weights) or not counts.any():
            return None
        return float(weights[: len(counts)] @ counts / counts.sum())


def read_criterion(criterion: Callable[..., Any] | None, num_classes: int) -> Criterion:
    """Find the loss of a criterion by trying it on a few logits: cross-entropy with weights, offsets and smoothing.

    Args:
        criterion: a module or function of logits (B, K), or their log-softmax, and class indices (B,), for one output
            of scores (B, 1) and labels as for ``nn.BCEWithLogitsLoss``; None: plain cross-entropy. An attribute
            ``loss`` of type :class:`collapsar.Loss` (``MatchedCrossEntropy``) is trusted.
        num_classes: K; 1 for a head with one output, which counts as two classes.

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
    K = max(num_classes, 2)
    asked = criterion if num_classes > 1 else _TwoClasses(criterion)

    def of_logarithms(x: Tensor, y: Tensor) -> Any:  # as NLLLoss takes them from a model, or skorch for it
        return asked(x.log_softmax(dim=1), y)

    found = _tried(asked, K) or (_tried(of_logarithms, K) if num_classes > 1 else None)
    if found is not None:
        return found
    if (
        isinstance(criterion, nn.CrossEntropyLoss)
        and type(criterion).forward is nn.CrossEntropyLoss.forward
        and weights is not None
        and criterion.label_smoothing > 0
        and criterion.reduction != "none"
    ):
        return _smoothed_by_weights(weights.detach().double().cpu().numpy(), criterion)
    return Criterion(None, reason=_unread(asked, name, K))


def _tried(criterion: Callable[..., Any], num_classes: int) -> Criterion | None:
    try:
        with _exactly():
            return _matching(copy.deepcopy(criterion), num_classes)
    except Exception:  # one that needs other arguments, shapes or labels computes something else
        return None


def _smoothed_by_weights(weights: NDArray[np.float64], criterion: nn.CrossEntropyLoss) -> Criterion:
    """CrossEntropyLoss with weights and smoothing: the labels' smoothed part is shared out by the weights."""
    smoothing, K = criterion.label_smoothing, len(weights)
    theirs = 1 - smoothing + smoothing / K
    whole = theirs * weights + smoothing / K * (weights.sum() - weights)
    kept = theirs * weights / whole
    k, first = int(np.argmax(np.abs(kept - theirs))), int(np.argmax(weights))
    other = smoothing / K * float(weights[first] / whole[k])
    behind = f", and {other:.2g} for class {first}" if other > kept[k] else ""
    return Criterion(
        Loss(weights, smoothing=smoothing),
        criterion.reduction == "sum",
        "CrossEntropyLoss with both class weights and label smoothing weighs the smoothed part by the other "
        "classes' weights, which is not the loss of the theory: the label of a sample of class "
        f"{k} counts {kept[k]:.2g} for its own class there{behind}; in the theory {theirs:.2g}",
    )


def _unread(criterion: Callable[..., Any], name: str, num_classes: int) -> str:
    """Why a loss is none of the theory's, as far as a trial tells."""

    def of_shares(x: Tensor, y: Tensor) -> Any:
        return criterion(x, nn.functional.one_hot(y, num_classes).to(x.dtype))

    rows = _ROWS + (num_classes == _ROWS)  # not as many as classes
    try:
        each = copy.deepcopy(criterion)(torch.zeros(rows, num_classes), torch.arange(rows) % num_classes)
    except Exception:
        each = None
    if isinstance(each, Tensor) and each.numel() == rows:
        return (
            f"The loss, {name}, returns a value for each sample, and it is not known how they are combined: pass a "
            "function that returns the loss of a batch"
        )
    if _tried(of_shares, num_classes) is not None:
        return (
            f"The loss, {name}, takes a share of every class as labels, and it is not known how these are made "
            "(mixup, smoothing)"
        )
    return f"The loss is {name}, which is not one of the theory's cross-entropies"


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
    scale, smoothing = _scale_and_smoothing(criterion, num_classes, kind)
    weights = torch.ones(num_classes) if given is None else given.detach().float().cpu()
    if abs(scale / float(weights[0]) - 1) < _CLOSE:
        scale = float(weights[0])
    if num_classes <= _MOST_READ:
        used = _relative_weights(criterion, num_classes, kind)
        weights = weights if torch.allclose(used, weights / weights[0], rtol=_NAMED, atol=0) else used
    found = _with_weights(criterion, weights / weights[0], (scale, smoothing), kind)
    if found is None or not bool((weights > 0).all()):
        return None
    offsets, summed, normalised = found
    shift = (offsets - offsets.mean()).double().numpy()
    plain = bool(np.abs(shift).max() < _CLOSE)
    even = bool((weights / weights[0] - 1).abs().max() < _CLOSE)
    normalised = normalised or even
    # where nothing divides by them, with whatever multiplies all
    w = None if even else (weights if normalised else weights / weights[0] * scale).double().numpy()
    return Criterion(
        Loss(w, None if plain else shift, smoothing=smoothing),
        summed,
        normalised=normalised,
        factor=scale if normalised and abs(scale - 1) >= _CLOSE else 1.0,
    )


def _with_weights(
    criterion: Any, w: Tensor, of_one: tuple[float, float], kind: dict[str, Any]
) -> tuple[Tensor, bool, bool] | None:
    """Offsets, whether it is a sum, and whether a batch's weights are divided by their sum; None: none of these.

    ``w`` are the weights over that of class 0, and ``of_one`` the scale and smoothing of a sample of that alone.
    """
    num_classes, generator, (scale, smoothing) = len(w), torch.Generator().manual_seed(0), of_one
    # From the first class to the last; in different sizes, which tell a sum from a mean that is multiplied.
    labels = [torch.linspace(0, num_classes - 1, _ROWS + batch).round().long() for batch in range(_BATCHES)]
    logits = [(2 * torch.randn(len(y), num_classes, generator=generator)).to(**kind) for y in labels]
    values = [float(criterion(x, y.to(x.device))) for x, y in zip(logits, labels, strict=True)]
    for normalised in (True, False):
        offsets = _offsets(criterion, scale * (torch.ones_like(w) if normalised else w), smoothing, kind)
        sums = [
            scale
            * float(
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


def _scale_and_smoothing(criterion: Any, num_classes: int, kind: dict[str, Any]) -> tuple[float, float]:
    """The factor of a sample of class 0 alone, and the smoothing of its label.

    Its logit far above all others is pulled down by the label's missing part, far below them up by the rest of it.
    """
    pulls = []
    for side in (_FAR, -_FAR):
        x = torch.zeros(1, num_classes, **kind)
        x[0, 0] = side
        pulls.append(side / _FAR * float(_gradient(criterion, x, [0])[0, 0]))
    missing, scale = pulls[0], pulls[0] + pulls[1]
    smoothing = missing / scale * num_classes / (num_classes - 1)
    said = float(getattr(criterion, "label_smoothing", 0.0))
    smoothing = said if abs(smoothing - said) < _CLOSE else round(smoothing, 5)
    return 1.0 if abs(scale - 1) < _CLOSE else scale, smoothing


def _relative_weights(criterion: Any, num_classes: int, kind: dict[str, Any]) -> Tensor:
    """The classes' weights over that of class 0: what pulls their logits, far below the others, in a batch of all."""
    x = torch.zeros(num_classes, num_classes, **kind).fill_diagonal_(-_FAR)
    pulls = -_gradient(criterion, x, list(range(num_classes))).diagonal()
    return pulls / pulls[0]


def _offsets(criterion: Any, weights: Tensor, smoothing: float, kind: dict[str, Any]) -> Tensor:
    """What the criterion adds to the logits: at logits of zero the gradient is softmax(offsets) minus the target.

    Each entry is taken from a sample of another class, where nothing cancels; ``weights`` multiply the gradients.
    """
    num_classes = len(weights)
    share = torch.zeros(num_classes)
    for label in (1, 0):
        slope = _gradient(criterion, torch.zeros(1, num_classes, **kind), [label])[0] / weights[label]
        others = torch.arange(num_classes) != label
        share[others] = slope[others] + smoothing / num_classes
    return torch.log(share.clamp_min(1e-30))


def _gradient(criterion: Any, x: Tensor, labels: list[int]) -> Tensor:
    with torch.enable_grad():
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(criterion(x, torch.tensor(labels, device=x.device)), x)
    return gradient.detach().float().cpu()


def _tensors(criterion: Any) -> list[Tensor]:
    return [*criterion.parameters(), *criterion.buffers()] if isinstance(criterion, nn.Module) else []
