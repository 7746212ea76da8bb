"""A pass over data in the middle of training that does not affect it, and how it runs a batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LABELS = ("labels", "label", "targets", "target", "y")
"""Usual names of labels in mappings and data sets."""


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the random states of Python, NumPy, torch and every CUDA device in use afterwards."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def undisturbed(model: nn.Module, loader: Any = None) -> Iterator[None]:
    """Evaluation mode without gradients inside; afterwards everything is as it was, to the bit.

    Restored: the mode of every module, all buffers (running statistics), the random states of Python, NumPy, torch
    and every CUDA device in use, and the generators of a ``DataLoader``. Modules' modes are set directly, because
    their own ``train()`` may do more than that. Autocast stays as it is, but without its cache of weights: the training
    that follows must not find a weight that was cast without gradients.

    Not restored: what a data set, a worker process or a layer keeps elsewhere. A loader with persistent workers in the
    middle of an epoch would be restarted: call between epochs.

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
    cached = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), random_states_kept():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, version, before in buffers:
                # Only if needed: a backward pass that has saved the buffer would notice the write.
                if buffer._version != version:
                    buffer.copy_(before)
        for generator, state in generators:
            generator.set_state(state)


def inputs_and_labels(model: nn.Module, batch: Any) -> Any:
    """Run the model on a batch and return its labels: ``forward`` of a monitor's own pass, unless given.

    Args:
        model: The model.
        batch: (inputs, labels, ...), or a mapping with "labels", the rest going to the model by name (``labels_in``).

    Raises:
        ValueError: The batch is neither, or it is one sample.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    labels = labels_in(batch)
    if labels is None:
        raise ValueError(
            f"`loader` must yield (inputs, labels) or mappings with labels; got {type(batch).__name__}. Wrap it in a "
            "generator that does, or give a monitor MonitorOptions(forward=...), a function of model and batch that "
            "runs the model and returns the labels"
        )
    if isinstance(batch, Mapping):
        inputs = {k: v for k, v in batch.items() if k not in ("labels", "label") and v is not labels}
        model(**{key: v.to(device) if isinstance(v, Tensor) else v for key, v in inputs.items()})
        return labels
    if isinstance(labels, int) or (isinstance(labels, Tensor) and labels.ndim == 0):
        raise ValueError(
            "`loader` must yield batches, got one sample with one label; wrap the data set: "
            "torch.utils.data.DataLoader(dataset, batch_size=256)"
        )
    model(batch[0].to(device) if isinstance(batch[0], Tensor) else batch[0])
    return labels


def labels_in(batch: Any) -> Any:
    """The labels of a batch or sample: its second part, or an entry with a usual name; None if there are none.

    Example:
        >>> labels_in(("images", [0, 1])), labels_in({"pixels": "images", "label": [1, 0]}), labels_in("text")
        ([0, 1], [1, 0], None)
    """
    if isinstance(batch, Mapping):
        return next((batch[key] for key in LABELS if key in batch), None)
    return batch[1] if isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) > 1 else None


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators that iterating a DataLoader draws from, each once."""
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
