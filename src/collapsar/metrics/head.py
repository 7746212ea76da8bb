"""Finding the head of a model: the linear layer that turns features into logits.

Example:
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> find_head(model)[0], find_head(model, "0")[0]
    ('2', '0')
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["compiled_part", "computes", "find_head", "is_linear_head", "unwrapped"]

_MAX_LISTED = 12
# Logits nearer to W h + b than this, relative to the largest, are W h + b: half precision rounds to 1/256.
_SAME = 0.02
# What people call classifiers and what they call projections: where several layers could be the head, a name that says
# more than one thing is not followed.
_HEADS = ("head", "fc", "classifier", "lm_head", "score", "logits", "linear", "out_proj", "heads")
# Parts of an adapter, and the frozen copy that PEFT keeps of a layer it trains anew: never the head by themselves.
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector", "original_module")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside data-parallel wrappers and ``torch.compile``."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel | DataParallel) else None
        inner = getattr(model, "_orig_mod", inner)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def compiled_part(model: nn.Module) -> str | None:
    """Return the name of a module that is compiled already ("" for the model itself), or None."""
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            return name
    return None


def computes(head: Any, features: Tensor, logits: Tensor) -> bool:
    """Whether logits are W h + b of these features, up to what is added to all logits of a sample.

    Args:
        head: a module; it may have no weight.
        features: shape (B, d), what it receives.
        logits: shape (B, K), what the model gives.
    """
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    if not isinstance(weight, Tensor) or weight.shape != (logits.shape[1], features.shape[-1]):
        return False
    expected = features.double() @ weight.detach().double().T
    expected = expected if bias is None else expected + bias.detach().double()
    found = logits.double()
    expected, found = (x - x.mean(dim=1, keepdim=True) for x in (expected, found))
    return bool((expected - found).abs().max() <= _SAME * expected.abs().max() + 1e-3)


@torch.no_grad()
def is_linear_head(head: nn.Module) -> bool:
    """Whether a module computes W h + b from the weight it shows: it is asked for eight random features.

    Example:
        >>> is_linear_head(nn.Linear(4, 3)), is_linear_head(nn.Sequential(nn.Linear(4, 3)))
        (True, False)
    """
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return False
    generator = torch.Generator().manual_seed(0)  # its own: the training's random state stays as it is
    probe = torch.randn(8, weight.shape[1], generator=generator).to(weight)
    try:
        logits = head.forward(probe)  # not through its hooks
    except Exception:
        return True
    return not isinstance(logits, Tensor) or logits.ndim != 2 or computes(head, probe, logits)


def find_head(
    model: nn.Module, head: nn.Module | str | None = None, num_classes: int | None = None, *, weighted: bool = True
) -> tuple[str, nn.Module]:
    """Return the name and the module of the head.

    Without ``head`` it is the last registered ``nn.Linear`` with ``num_classes`` outputs, or the last of all where that
    is unknown. Adapters count as the layer they adapt, and of PEFT's two copies the trained one. Where several layers
    have as many outputs, the only one that is trained counts; where the number of classes is unknown and two layers
    side by side bear the name of a head (``fc`` and ``head``), or one is left in doubt, it cannot be told.

    Args:
        model: The model, without wrappers (``unwrapped``).
        head: The head itself or its name in ``model.named_modules()``; None looks for it.
        num_classes: K, where known.
        weighted: Whether it must have a weight of shape (K, d), as W h + b needs.

    Raises:
        ValueError: The name is unknown, the module is not part of the model or has no weight of shape (K, d), or
            the head cannot be told; the message lists the candidates.
    """
    modules = dict(model.named_modules())
    linear = _candidates(modules)
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
    if weighted and (not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[0] < 2):
        raise ValueError(
            f"`head` must have a weight of shape (K, d), K >= 2; got {type(head).__name__} {name!r}. "
            f"Candidates: {_listed(linear)}"
        )
    return name, head


def _candidates(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Linear layers by name; for an adapted one the adapter around it."""
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        parts = name.split(".")
        if not isinstance(module, nn.Linear) or any(part in _PARTS for part in parts):
            continue
        owner = ".".join(parts[:-1]) if parts[-1] == "base_layer" else name
        found[owner] = modules[owner]
    return found


def _last(linear: dict[str, nn.Module], num_classes: int | None) -> tuple[str, nn.Module]:
    if not linear:
        raise ValueError("`head` cannot be found: the model has no nn.Linear. Pass the head itself")
    beside = list(linear)[-1].rpartition(".")[0]
    named = [name for name in linear if name.rpartition(".")[0] == beside and name.rpartition(".")[2] in _HEADS]
    if num_classes is None and len(named) > 1 and list(linear)[-1] in named:
        raise ValueError(
            f"`head` cannot be told: {' and '.join(map(repr, named))} could be it. Pass head=NAME, "
            f"one of: {_listed(linear)}"
        )
    outputs = _outputs(list(linear.values())[-1]) if num_classes is None else num_classes
    fitting = {name: module for name, module in linear.items() if _outputs(module) == outputs}
    trained = {name: m for name, m in fitting.items() if any(p.requires_grad for p in m.parameters())}
    fitting = trained if len(trained) == 1 else fitting
    if len(fitting) != 1:
        how = "none has" if not fitting else f"{len(fitting)} linear layers have"
        raise ValueError(
            f"`head` cannot be told: {how} {outputs} outputs. Pass head=NAME, one of: {_listed(fitting or linear)}"
        )
    return next(iter(fitting.items()))


def _outputs(layer: nn.Module) -> int:
    return int(getattr(layer, "out_features", 0))


def _listed(linear: dict[str, nn.Module]) -> str:
    items = list(linear.items())[-_MAX_LISTED:]
    sizes = ((name, getattr(layer, "in_features", "?"), _outputs(layer)) for name, layer in items)
    return ", ".join(f"{name!r} ({inputs} to {outputs})" for name, inputs, outputs in sizes) or "none"
