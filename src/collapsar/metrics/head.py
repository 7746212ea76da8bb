"""Finding the head of a model: the linear layer that turns features into logits.

Example:
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> find_head(model)[0], find_head(model, "0")[0]
    ('2', '0')
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["find_head", "unwrapped"]

_MAX_LISTED = 12
# What classifiers are called; a projection beside one of these often has another of these names.
_NAMES = ("head", "fc", "classifier", "score", "lm_head", "out_proj")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside data-parallel wrappers and ``torch.compile``."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel | DataParallel) else None
        inner = getattr(model, "_orig_mod", inner)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def find_head(
    model: nn.Module, head: nn.Module | str | None = None, num_classes: int | None = None
) -> tuple[str, nn.Module]:
    """Return the name and the module of the head.

    Without ``head`` it is the last registered ``nn.Linear`` with ``num_classes`` outputs, or the last of all where that
    is unknown, provided that no other linear layer has as many outputs: where a model has several such layers, which
    one is the head cannot be told from its modules. Nor can it, without ``num_classes``, where several layers side by
    side have a classifier's name (``fc`` and ``head``): one may be a projection.

    Args:
        model: The model, without wrappers (``unwrapped``).
        head: The head itself or its name in ``model.named_modules()``; None looks for it.
        num_classes: K, where known.

    Raises:
        ValueError: The name is unknown, the module is not part of the model or has no weight of shape (K, d), or
            the head cannot be told; the message lists the candidates.
    """
    modules = dict(model.named_modules())
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    if isinstance(head, str):
        if head not in modules:
            raise ValueError(f"`head` must be the name of a module; got {head!r}. Candidates: {_listed(linear)}")
        head = modules[head]
    if head is not None:
        name = next((name for name, module in modules.items() if module is head), None)
        if name is None:
            raise ValueError(
                f"`head` must be part of the model; got a {type(head).__name__} that is not. "
                f"Candidates: {_listed(linear)}"
            )
    else:
        name, head = _last(linear, num_classes)
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[0] < 2:
        raise ValueError(
            f"`head` must have a weight of shape (K, d), K >= 2; got {type(head).__name__} {name!r}. "
            f"Candidates: {_listed(linear)}"
        )
    return name, head


def _last(linear: dict[str, nn.Linear], num_classes: int | None) -> tuple[str, nn.Module]:
    if not linear:
        raise ValueError("`head` cannot be found: the model has no nn.Linear. Pass the head itself")
    last = list(linear)[-1]
    if num_classes is None:
        parent = last.rpartition(".")[0]
        rivals = {n: m for n, m in linear.items() if n.rpartition(".")[::2] in [(parent, name) for name in _NAMES]}
        if last in rivals and len(rivals) > 1:
            raise ValueError(
                f"`head` cannot be told: {len(rivals)} layers have a classifier's name. Pass head=NAME, one of: "
                f"{_listed(rivals)}"
            )
    outputs = linear[last].out_features if num_classes is None else num_classes
    fitting = {name: module for name, module in linear.items() if module.out_features == outputs}
    if len(fitting) != 1:
        how = "none has" if not fitting else f"{len(fitting)} linear layers have"
        raise ValueError(
            f"`head` cannot be told: {how} {outputs} outputs. Pass head=NAME, one of: {_listed(fitting or linear)}"
        )
    return next(iter(fitting.items()))


def _listed(linear: dict[str, nn.Linear]) -> str:
    items: Iterable[tuple[str, nn.Linear]] = list(linear.items())[-_MAX_LISTED:]
    return ", ".join(f"{name!r} ({layer.in_features} to {layer.out_features})" for name, layer in items) or "none"
