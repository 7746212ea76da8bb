"""Which layers of a network are normalisations: one answer for monitors, advice and parameter groups.

torch's own classes are known. Any other layer is tried out: if its output does not change when its input is scaled,
although it does depend on the input, it is a normalisation whatever its name (RMSNorm of any library, an L2
normalisation).

Example:
    >>> from torch import nn
    >>> normalization(nn.LayerNorm(8)).over, normalization(nn.BatchNorm1d(8)).over, normalization(nn.ReLU())
    ('sample', 'batch', None)
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

_PER_SAMPLE = (_InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NAMED = re.compile(r"(rms|layer|batch|group|instance)_?norm", re.IGNORECASE)
# As many rows as in a batch: a layer that divides by n - 1 gives other lengths with few rows.
_ROWS, _STRETCH = 128, 64.0


@dataclass(frozen=True, eq=False)
class Normalization:
    """A normalisation layer.

    Attributes:
        over: "sample": each sample's features are brought to one length (LayerNorm, RMSNorm, L2); "batch": each
            feature to unit variance over the batch (BatchNorm).
        gain: the parameter that scales its output, or None.
        shift: the parameter added to it, or None.
        length: that of its output for one sample, tried with its present parameters; None: sqrt(d) times the root mean
            square of its gain, as for torch's own layers.
    """

    over: Literal["sample", "batch"]
    gain: Tensor | None
    shift: Tensor | None
    length: float | None = None


def normalization(layer: nn.Module, width: int = 16) -> Normalization | None:
    """What kind of normalisation a layer is; None for any other layer.

    Args:
        layer: a module; one with children is not a normalisation, except torch's own norms and their subclasses.
        width: how many features to give a layer without parameters.

    Returns:
        Its kind and its parameters, or None. Layers that cannot run by themselves on a CPU are recognised by name.

    Example:
        >>> class Scaled(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.g = nn.Parameter(torch.ones(8))
        ...
        ...     def forward(self, x):
        ...         return self.g * x * x.square().mean(-1, keepdim=True).rsqrt()
        >>> normalization(Scaled()).over, normalization(Scaled()).gain.shape
        ('sample', torch.Size([8]))
    """
    if isinstance(layer, _BatchNorm):
        return Normalization("batch", layer.weight, layer.bias)
    own = list(layer.parameters(recurse=False))
    if isinstance(layer, _PER_SAMPLE):
        return Normalization("sample", *_gain_and_shift(layer, own))
    if type(layer).__module__.startswith("torch.nn.modules") or any(True for _ in layer.children()):
        return None
    if len(own) > 2 or any(p.ndim > 1 for p in own) or (own and own[0].numel() < 2):
        return None
    over, length = _tried(layer, own[0].numel() if own else width)
    return None if over is None else Normalization(over, *_gain_and_shift(layer, own), length)


def _gain_and_shift(layer: nn.Module, own: list[nn.Parameter]) -> tuple[Tensor | None, Tensor | None]:
    named: Any = dict(layer.named_parameters(recurse=False))
    shift = named.get("bias", own[1] if len(own) > 1 else None)
    return next((p for p in own if p is not shift), None), shift


def _tried(layer: nn.Module, width: int) -> tuple[Literal["sample", "batch"] | None, float | None]:
    """Whether scaling the input, all of it or one row, leaves the output unchanged; and how long the output is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_ROWS, width, generator=generator)
    rows = torch.tensor([[_STRETCH]] + [[1.0]] * (_ROWS - 1))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            twin = copy.deepcopy(layer).cpu().float()
            length = float(twin(x).square().sum(dim=1).mean().sqrt())
            for parameter in twin.parameters():
                parameter.fill_(1.0)  # a gain that starts at zero would hide the layer
            plain, all_stretched, one_stretched = (twin(y) for y in (x, _STRETCH * x, rows * x))
            if plain.shape != x.shape or not torch.isfinite(plain).all() or _same(plain[:1].expand_as(plain), plain):
                return None, None
            if not _same(plain, all_stretched):
                return None, None
            return ("sample" if _same(plain, one_stretched) else "batch"), length
    except Exception:  # a layer that needs another device or shape may raise anything
        found = _NAMED.search(type(layer).__name__)
        return None if found is None else "batch" if found[1].lower() == "batch" else "sample", None


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-2 * a.abs().max())
