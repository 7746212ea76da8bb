"""Parameters of a network in groups with their own weight decay: head, head's bias, norms, other biases, the rest."""

from __future__ import annotations

from typing import Any

from torch import nn

from collapsar.metrics.head import find_head
from collapsar.metrics.norms import normalization


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    head_weight_decay: float | None = None,
    head_bias_weight_decay: float | None = None,
    norm_weight_decay: float | None = None,
    head: nn.Module | str | None = None,
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer: ``torch.optim.SGD(param_groups(model, ...), lr=0.1)``.

    torch's ``weight_decay`` of SGD, Adam and RMSprop is the derivative of (decay/2)||w||^2, so the head's is lambda_W
    and its bias's lambda_b. AdamW's is not such a penalty.

    Args:
        model: the network.
        weight_decay: >= 0, of the backbone's weights and biases, and of every group not named below.
        head_weight_decay: of the head's weight: lambda_W.
        head_bias_weight_decay: of the head's bias: lambda_b.
        norm_weight_decay: of scales and shifts of normalisations. Decay on the scale of the last one acts as a feature
            penalty; 0 removes it.
        head: the last linear layer or its name; by default what :func:`collapsar.metrics.head.find_head` finds.

    Returns:
        Groups named "backbone", "norm", "head" and "head_bias" (without empty ones); frozen parameters are left out,
        shared ones appear once, in the first group that has them (head first).

    Raises:
        ValueError: a decay is negative or not finite, or the head is ambiguous.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3))
        >>> groups = param_groups(model, weight_decay=5e-4, head_weight_decay=1e-4, head="2")
        >>> [(g["name"], len(g["params"]), g["weight_decay"]) for g in groups]
        [('head', 1, 0.0001), ('head_bias', 1, 0.0005), ('norm', 2, 0.0005), ('backbone', 2, 0.0005)]
    """
    decays = {
        "head": head_weight_decay,
        "head_bias": head_bias_weight_decay,
        "norm": norm_weight_decay,
        "backbone": weight_decay,
    }
    _check(decays)
    layer = find_head(model, head)[1]
    bias = getattr(layer, "bias", None)
    norms = [p for m in model.modules() if normalization(m) is not None for p in m.parameters(recurse=False)]
    members: dict[str, list[Any]] = {
        # an adapter's matrices and the tensors behind a parametrised weight count as the weight
        "head": [p for p in layer.parameters() if p is not bias],
        "head_bias": [p for p in layer.parameters() if p is bias],
        "norm": norms,
        "backbone": list(model.parameters()),
    }
    seen: set[int] = set()
    groups = []
    for name, parameters in members.items():
        own = [p for p in parameters if p.requires_grad and id(p) not in seen]
        seen |= {id(p) for p in parameters}
        decay = decays[name]
        if own:
            groups.append({"params": own, "weight_decay": weight_decay if decay is None else decay, "name": name})
    return groups


def _check(decays: dict[str, float | None]) -> None:
    for name, value in decays.items():
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"`{'' if name == 'backbone' else name + '_'}weight_decay` must be >= 0, got {value!r}")
