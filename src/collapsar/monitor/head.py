"""The finder of a model's head, which lives with the metrics, and how large a head is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from collapsar.metrics.head import compiled_part, find_head, linear_map, own_logits, unwrapped
from collapsar.monitor.undisturbed import undisturbed

__all__ = ["compiled_part", "find_head", "head_sizes", "unwrapped"]


def head_sizes(head: nn.Module) -> tuple[int, int]:
    """The number of classes and of features, (K, d).

    Where the weight of a module of one's own may be stored either way, it is asked for two random samples.

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
