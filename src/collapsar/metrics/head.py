"""Finding the head of a model: the linear layer that turns features into logits.

Example:
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> find_head(model)[0], find_head(model, "0")[0]
    ('2', '0')
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

_MAX_LISTED = 12
# Logits closer to W h + b than this, relative to the largest, count as W h + b: half precision rounds to 1/256.
_SAME = 0.02
# Usual names of classifiers and of projections: if several layers could be the head, an ambiguous name does not decide.
_HEADS = ("head", "fc", "classifier", "lm_head", "score", "logits", "linear", "out_proj", "heads")
# Parts of an adapter, and the frozen copy that PEFT keeps of a layer it retrains: never the head by themselves.
_PARTS = ("lora_A", "lora_B", "lora_magnitude_vector", "original_module")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside data-parallel wrappers and ``torch.compile``."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel | DataParallel) else None
        inner = getattr(model, "_orig_mod", inner)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


class HeadMap(NamedTuple):
    """W h + b.

    Attributes:
        weight: W, shape (K, d).
        bias: b, shape (K,), or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, features: Tensor) -> Tensor:
        """The logits of features of shape (B, d), in double precision if the device has it."""
        logits = _wide(features) @ _wide(self.weight).T
        return logits if self.bias is None else logits + _wide(self.bias)


def linear_map(head: Any, num_features: int | None = None) -> HeadMap | None:
    """The W h + b that a head's parameters describe, whether or not it computes that; None without a matrix.

    A 1x1 convolution counts as a linear layer on one pixel; one output means two classes, the first with score 0.

    Args:
        head: a module.
        num_features: d, if it is known: a weight that is stored (d, K) is then transposed.

    Example:
        >>> linear_map(nn.Conv2d(8, 3, 1)).weight.shape, linear_map(nn.Linear(8, 1)).weight.shape
        (torch.Size([3, 8]), torch.Size([2, 8]))
    """
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or getattr(head, "groups", 1) != 1:
        return None
    W = flat_rows(weight.detach())
    if W.ndim != 2:
        return None
    if num_features is not None and W.shape[1] != num_features == W.shape[0]:
        W = W.T
    b = bias.detach() if isinstance(bias, Tensor) and bias.ndim == 1 else None
    if len(W) == 1:
        W, b = torch.cat([torch.zeros_like(W), W]), None if b is None else torch.cat([torch.zeros_like(b), b])
    return HeadMap(W, b)


def flat_rows(values: Tensor) -> Tensor:
    """One row per sample: (B, d, 1, 1), as after global pooling, becomes (B, d); anything else is unchanged."""
    return values.flatten(1) if values.ndim > 2 and values.shape[2:].numel() == 1 else values


def one_row_each(values: Tensor, name: str) -> Tensor:
    """``flat_rows`` of what the head of this name receives.

    Raises:
        ValueError: it is not one row per sample, for example if a head is applied to every token.
    """
    rows = flat_rows(values)
    if rows.ndim != 2:
        raise ValueError(
            f"`head` {name!r} must receive one row per sample, (B, d); got {tuple(rows.shape)}. For a head that is "
            "applied to every token or pixel, write the rows that have a label and their labels, shifted as in the "
            "loss, to an .npz with the head's weight: `collapsar diagnose FILE` reads it, and `collapsar audit` reads "
            "the head alone; or pass such rows to collapsar.metrics.NeuralCollapse batch by batch"
        )
    return rows


def model_logits(given: Any, output: Any) -> Tensor | None:
    """The logits in what a model returns, shape (B, K); the head's own if none there fits; None without any.

    They are found by their shape in a tensor, tuple, mapping or an object with ``logits``. If several fit, one that is
    called ``logits`` comes first, and in a tuple, which has no names, the head's own. One output means two classes, the
    first with score 0.

    Args:
        given: what the model returned.
        output: what its head returned.
    """
    own = own_logits(output)
    if own is None:
        return None
    shape = flat_rows(own).shape
    shapes = (shape, shape[:1]) if shape[1] == 1 else (shape,)
    fitting = [part for part in tensors_in(given) if flat_rows(part).shape in shapes]
    nameless = fitting if isinstance(given, tuple | list) else ()
    same = (part for part in nameless if part.data_ptr() == own.data_ptr())
    found = next(same, fitting[0] if fitting else own)
    logits, own = flat_rows(found.detach()), flat_rows(own.detach())
    if shape[1] == 1:
        logits = logits.reshape(-1, 1)
        if logits is not own and torch.allclose(logits, own.sigmoid(), atol=1e-3):
            logits = own
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    return logits


def other_scores(given: Any, output: Any) -> int | None:
    """How many scores a model gives each sample, if its head gives another number; None otherwise.

    Arguments as for ``model_logits``. A head with one output may be turned into two classes.

    Example:
        >>> rows = torch.zeros(5, 8)
        >>> other_scores(rows[:, :6], rows), other_scores(rows, rows), other_scores((rows[:, :6], rows), rows)
        (6, None, None)
    """
    own = own_logits(output)
    scores = given.get("logits") if isinstance(given, Mapping) else getattr(given, "logits", given)
    if own is None or not isinstance(scores, Tensor):
        return None
    K, found = flat_rows(own).shape[1], flat_rows(scores)
    apart = K > 1 and found.ndim == 2 and found.is_floating_point() and len(found) == len(own)
    return int(found.shape[1]) if apart and found.shape[1] != K else None


def refuse_untold(model: nn.Module, name: str, outputs: int, scores: int | None) -> None:
    """Refuse the head that was found if the model's scores are as many as another layer's outputs.

    Raises:
        ValueError: There are such scores; the message lists the layers that may compute them.
    """
    if scores is None:
        return
    likely = [
        other
        for other, module in model.named_modules()
        if not isinstance(module, nn.Embedding) and (found := linear_map(module)) and scores in found.weight.shape
    ]
    names = ", ".join(map(repr, likely[-_MAX_LISTED:]))
    raise ValueError(
        f"`head` is ambiguous: the model gives each sample {scores} scores, its last linear layer {name!r} {outputs}"
        f". Pass head=NAME, the layer that computes the scores{f': perhaps {names}' if names else ''}"
    )


def own_logits(output: Any) -> Tensor | None:
    """The first tensor in what a head returned that may be logits, (B, K) or (B, K, 1, 1), as a detached view."""
    return next((part.detach() for part in tensors_in(output) if flat_rows(part).ndim == 2), None)


def tensors_in(given: Any) -> Iterator[Tensor]:
    """The tensors in what a module returned that may be logits, the likeliest first; one column counts as scores."""
    parts = [given, given.get("logits") if isinstance(given, Mapping) else getattr(given, "logits", None)]
    parts += given.values() if isinstance(given, Mapping) else given if isinstance(given, tuple | list) else ()
    for part in parts:
        if isinstance(part, Tensor) and part.is_floating_point() and part.ndim >= 1 and flat_rows(part).ndim <= 2:
            yield part


def from_probabilities(logits: Tensor) -> Tensor:
    """The logarithm if every row sums to one, the logits unchanged otherwise."""
    few = logits[:64]  # enough to recognise most logits
    if all(bool((x >= 0).all() & ((x.sum(dim=1) - 1).abs() < 1e-3).all()) for x in (few, logits)):
        return logits.double().clamp_min(1e-30).log()
    return logits


def differ(expected: Tensor, logits: Tensor) -> Tensor:
    """Whether logits (B, K) differ from those expected, up to rounding and a constant for all logits of a sample.

    Rows that are not finite are left out. The answer is a tensor of shape (), so the device need not be waited for.
    """
    expected, found = (_wide(x) - _wide(x).mean(dim=1, keepdim=True) for x in (expected, logits))
    gap, size = ((x.nan_to_num(0, 0, 0)).abs().amax() for x in (expected - found, expected))
    return gap > _SAME * size + 1e-3


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.device.type == "mps" else values.double()


def computes(head: Any, features: Tensor, logits: Tensor) -> bool:
    """Whether the model's logits (B, K) are W h + b of what its head receives (B, d), up to a constant per row."""
    found = linear_map(head, features.shape[-1])
    if found is None or found.weight.shape != (logits.shape[1], features.shape[-1]):
        return False
    return len(features) == 0 or not bool(differ(found(features), logits))


def find_head(
    model: nn.Module, head: nn.Module | str | None = None, num_classes: int | None = None, *, weighted: bool = True
) -> tuple[str, nn.Module]:
    """Return the name and the module of the head.

    Without ``head`` it is the last registered ``nn.Linear`` with ``num_classes`` outputs, or the last of all if that
    is unknown; in a model without any, the last 1x1 convolution. Adapters count as the layer they adapt, and of PEFT's
    two copies the trained one counts. A projection of the same features beside the classifier is not taken if the
    classifier has a usual name of a head or is the only one that is trained. If several layers have as many outputs,
    the only trained one counts. In doubt it is an error.

    Args:
        model: The model, without wrappers (``unwrapped``).
        head: The head itself or its name in ``model.named_modules()``; None looks for it.
        num_classes: K, if known.
        weighted: Whether it must have a weight that is a matrix, (K, d), or that of a 1x1 convolution.

    Raises:
        ValueError: The name is unknown, the module is not part of the model or has no weight of shape (K, d), or
            the head is ambiguous; the message lists the candidates.
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
        name, head = _last(linear, num_classes, modules)
    if weighted and linear_map(head) is None:
        raise ValueError(
            f"`head` must have a weight of shape (K, d), or be a 1x1 convolution; got {type(head).__name__} {name!r}. "
            f"Candidates: {_listed(linear)}"
        )
    return name, head


def _candidates(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Linear layers by name, for an adapted one the adapter around it; if there are none, 1x1 convolutions."""
    found: dict[str, nn.Module] = {}
    kinds = (nn.Linear, nn.Conv2d) if not any(isinstance(m, nn.Linear) for m in modules.values()) else (nn.Linear,)
    for name, module in modules.items():
        parts = name.split(".")
        if not isinstance(module, kinds) or linear_map(module) is None or any(part in _PARTS for part in parts):
            continue
        owner = ".".join(parts[:-1]) if parts[-1] == "base_layer" else name
        found[owner] = modules[owner]
    return found


def _last(
    linear: dict[str, nn.Module], num_classes: int | None, modules: dict[str, nn.Module]
) -> tuple[str, nn.Module]:
    if not linear:
        raise ValueError("`head` cannot be found: the model has no nn.Linear. Pass the head itself")
    name = list(linear)[-1] if num_classes is not None else _classifier(linear, modules)
    outputs = _outputs(linear[name]) if num_classes is None else num_classes
    sizes = (outputs, 1) if outputs == 2 else (outputs,)  # one output is enough for two classes
    fitting: dict[str, nn.Module] = {}
    for size in sizes:
        fitting = fitting or {name: module for name, module in linear.items() if _outputs(module) == size}
    fitting = _only_trained(fitting)
    if len(fitting) != 1:
        how = "none has" if not fitting else f"{len(fitting)} linear layers have"
        raise ValueError(
            f"`head` is ambiguous: {how} {outputs} outputs. Pass head=NAME, one of: {_listed(fitting or linear)}"
            f"{'' if fitting else '; or the head itself, if it is another module than an nn.Linear'}"
        )
    return next(iter(fitting.items()))


def _classifier(linear: dict[str, nn.Module], modules: dict[str, nn.Module]) -> str:
    """The last layer, or one beside it with the same input that is the classifier by its name or by being trained."""
    last = list(linear)[-1]
    rivals = _only_trained({**_beside(last, linear, modules), last: linear[last]})
    doubtful = [name for name in rivals if name.rpartition(".")[2] in _HEADS] or list(rivals)
    if len(doubtful) > 1:
        raise ValueError(
            f"`head` is ambiguous: it could be {' or '.join(map(repr, doubtful))}. Pass head=NAME, "
            f"one of: {_listed(linear)}"
        )
    return doubtful[0]


def _beside(last: str, linear: dict[str, nn.Module], modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Layers that end beside the last one: with the same input as its branch, and feeding no later layer."""
    names, parts, found = list(linear), last.split("."), {}
    for depth in range(len(parts)):
        owner, branch = ".".join(parts[:depth]), ".".join(parts[: depth + 1])
        if isinstance(modules[owner], nn.Sequential):  # a chain
            continue
        entry = next(layer for name, layer in linear.items() if f"{name}.".startswith(f"{branch}."))
        for name, layer in linear.items():
            after = {_inputs(linear[later]) for later in names[names.index(name) + 1 :]}
            if name.rpartition(".")[0] == owner and name != last and _inputs(layer) == _inputs(entry):
                found |= {name: layer} if _outputs(layer) not in {*after, _outputs(linear[last])} else {}
    return found


def _only_trained(layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The only one that is trained, if there is just one; otherwise all."""
    trained = {name: m for name, m in layers.items() if any(p.requires_grad for p in m.parameters())}
    return trained if len(trained) == 1 else layers


def _inputs(layer: nn.Module) -> int:
    return int(getattr(layer, "in_features", getattr(layer, "in_channels", 0)))


def _outputs(layer: nn.Module) -> int:
    return int(getattr(layer, "out_features", getattr(layer, "out_channels", 0)))


def _listed(linear: dict[str, nn.Module]) -> str:
    items = list(linear.items())[-_MAX_LISTED:]
    sizes = ((name, _inputs(layer), _outputs(layer)) for name, layer in items)
    return ", ".join(f"{name!r} ({inputs} to {outputs})" for name, inputs, outputs in sizes) or "none"
