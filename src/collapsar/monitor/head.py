"""The head that labels determine if nothing else is given (``metrics.head`` has the finder), and a head's size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from collapsar.metrics.head import find_head, linear_map, own_logits
from collapsar.monitor.exposure import classes_at_hand
from collapsar.monitor.undisturbed import undisturbed

_ROUNDING = 0.02  # of bfloat16, summed over the features


def told_head(
    model: nn.Module, head: nn.Module | str | None, classes: int | None, data: Any = None, *, weighted: bool = True
) -> tuple[str, nn.Module]:
    """``find_head``, using the labels of the data, a loader, if nothing else is given.

    Raises:
        ValueError: as there, or the labels' number fits another layer than the last.
    """
    seen = None if head is not None or classes is not None else classes_at_hand(data)
    if seen is None or seen < 2:
        return find_head(model, head, classes, weighted=weighted)
    try:
        by_labels = find_head(model, None, seen, weighted=weighted)
    except ValueError:  # no layer or several have as many outputs
        return find_head(model, None, weighted=weighted)
    try:
        by_place = find_head(model, None, weighted=weighted)
    except ValueError:
        return by_labels
    if by_place[1] is not by_labels[1]:
        raise ValueError(
            f"`head` is ambiguous: {by_labels[0]!r} has as many outputs as there are classes, {seen}, but "
            f"{by_place[0]!r} comes last. Pass head=NAME, one of the two"
        )
    return by_labels


def is_told(head: nn.Module, classes: int | None, data: Any = None) -> bool:
    """Whether the head has as many outputs as there are classes, by their names or by the labels of a loader."""
    classes = classes_at_hand(data) if classes is None else classes
    return classes is not None and classes == head_sizes(head)[0]


def head_sizes(head: nn.Module) -> tuple[int, int]:
    """The number of classes and of features, (K, d).

    If the weight of a custom module may be stored either way, it is tried on two random samples.

    Example:
        >>> head_sizes(nn.Linear(8, 3)), head_sizes(nn.Linear(8, 1)), head_sizes(nn.Conv2d(8, 3, 1))
        ((3, 8), (2, 8), (3, 8))
    """
    found = linear_map(head)
    assert found is not None
    K, d = found.weight.shape
    if isinstance(head, nn.Linear | nn.Conv2d) or hasattr(head, "in_features") or d == K:
        return K, d
    generator = torch.Generator().manual_seed(0)  # its own: the training's random state stays as it is
    with undisturbed(head):
        for width, classes in ((d, K), (K, d)):
            probe = torch.randn(2, width, generator=generator).to(found.weight)
            try:
                output: Tensor | None = own_logits(head.forward(probe))  # not through its hooks
            except Exception:
                continue
            if output is not None and output.shape[1] == classes:
                return classes, width
    return K, d


def acts_as_stored(head: nn.Module) -> bool:
    """Whether a head returns W h + b of the weight that it stores, to 2 %; a cosine head does not.

    A custom module is tried on four random samples; True if it cannot be tried, like one that takes labels.

    Example:
        >>> acts_as_stored(nn.Linear(8, 3))
        True
    """
    found = linear_map(head)
    if found is None or type(head).forward in (nn.Linear.forward, nn.Conv2d.forward):
        return True
    K, d = head_sizes(head)
    weight = (found.weight if found.weight.shape == (K, d) else found.weight.T).double()
    probe = torch.randn(4, d, generator=torch.Generator().manual_seed(0))
    with undisturbed(head):
        try:
            output = own_logits(head.forward(probe.to(found.weight)))  # not through its hooks
        except Exception:
            return True
    if output is None or output.shape != (4, K):
        return True
    expected = probe.to(weight) @ weight.T + (0.0 if found.bias is None else found.bias.double())
    off, own = (x - x.mean(dim=1, keepdim=True) for x in (output.double() - expected, expected))
    return bool(off.norm() <= _ROUNDING * own.norm())
