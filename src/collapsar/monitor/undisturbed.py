"""A pass over data in the middle of training that training does not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module, loader: Any = None) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards everything is as it was, to the bit.

    Restored: the mode of every module, all buffers (running statistics), the random states of Python, NumPy, torch
    and every CUDA device in use, and the generators of a ``DataLoader``. Modules' modes are set directly, because a
    ``train()`` of their own may do more than that. Autocast stays as it is, but without its cache of weights: a
    weight cast without gradients must not be met by the training that follows.

    Not restored: what a data set, a worker process or a layer keeps elsewhere. A loader with persistent workers that
    training is in the middle of would be started anew: call between epochs.

    Example:
        >>> model = nn.Dropout()
        >>> with undisturbed(model):
        ...     model.training, torch.is_grad_enabled()
        (False, False)
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer._version, buffer.detach().clone()) for buffer in model.buffers()]
    generators = [(generator, generator.get_state()) for generator in _generators(loader)]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    cached = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, version, before in buffers:
                # Only where needed: writing is noticed by a backward pass that has saved the buffer.
                if buffer._version != version:
                    buffer.copy_(before)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        for generator, state in generators:
            generator.set_state(state)


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators that iterating a DataLoader draws from, each once."""
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
