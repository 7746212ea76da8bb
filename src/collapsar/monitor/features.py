"""What the head receives, caught on its way in and added up a few thousand rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from collapsar.metrics import CollapseReport, NeuralCollapse
from collapsar.metrics.moments import class_indices

__all__ = ["BatchedMetric", "HeadTap", "Hook"]

# A merge of moments costs some 25 small operations whatever its size: as much as a training step of a small network.
# So rows are collected until one merge pays for itself; 2^21 numbers are 8 MiB in float32.
_ROWS, _NUMBERS = 4096, 1 << 21
_IGNORED = -100
# Passes of one step that are kept until its labels come.
_MOST_PASSES = 8


@dataclass(frozen=True, eq=False)
class _Pass:
    """One forward pass of the head: what it received, and how likely it is the pass that trains."""

    features: Tensor
    rank: tuple[bool, bool]


class Hook:
    """A forward hook of one module of one model: in a copy of the module, and on disk, it does nothing.

    A model that is copied (``copy.deepcopy``, ``AveragedModel``) or saved whole while it is monitored takes its hooks
    along; this one becomes a method of Python's own that does nothing, so that such a file can be read where Collapsar
    is not installed.

    Args:
        call: gets what the hook gets, as positional arguments; its result is dropped.
    """

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    @torch.compiler.disable  # a compiled model would otherwise trace the hook and keep the monitor's state as constants
    def __call__(self, *arguments: Any) -> None:
        """Pass the arguments on."""
        self._call(*arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes anything and returns None


class HeadTap:
    """Keeps what the head receives, by a forward pre-hook, until it is asked for.

    A step may run the head more than once: a teacher, an adversarial or an unlabelled batch, a second view, a
    validation. The pass that trains is taken to be the first one in training mode with gradients; passes of another
    kind stand in only where there is none such.

    Args:
        head: The layer.
        name: What to call it in errors.
    """

    def __init__(self, head: nn.Module, name: str) -> None:
        self.listening = False
        self.ignored = 0
        self._name, self._head = name, head
        self._passes: list[_Pass] = []
        hook: Any = Hook(self._catch)
        self._hook = head.register_forward_pre_hook(hook)
        self._removed = False

    def take(self, size: int | None = None) -> Tensor:
        """Hand the features over, shape (B, d), and forget all passes so far.

        Args:
            size: B, where it is known: of several passes of the kind that trains, the first of this size.

        Raises:
            ValueError: There are none since the last time, or they are not one row per sample.
        """
        passes, self._passes = self._passes, []
        if not passes:
            raise ValueError(
                f"`head` {self._name!r} has received nothing since the last step. Call step(labels) once after each "
                "forward pass; if the model was compiled or copied after the monitor was created, or does not use "
                "this layer, create the monitor on the model that trains and name its head"
            )
        fitting = [seen for seen in passes if size is None or len(seen.features) == size]
        features = (fitting or passes)[0].features
        # The same batch once more is the recomputation of a checkpointed layer.
        self.ignored += sum(not _equal(seen.features, features) for seen in passes) if self.ignored == 0 else 0
        if features.ndim != 2:
            raise ValueError(
                f"`head` {self._name!r} must receive one row per sample, (B, d); got {tuple(features.shape)}. "
                "A head that is applied to every token or pixel is not supported"
            )
        return features

    def forget(self) -> None:
        """Drop the passes so far."""
        self._passes = []

    def remove(self) -> bool:
        """Take the hook off; False if it was off already."""
        self._hook.remove()
        self.listening, self._passes = False, []
        was, self._removed = self._removed, True
        return not was

    def _catch(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not (self.listening and inputs and module is self._head):
            return
        rank = (module.training, torch.is_grad_enabled())
        best = self._passes[0].rank if self._passes else rank
        if rank > best:
            self._passes = []
        if rank >= best and len(self._passes) < _MOST_PASSES:
            self._passes.append(_Pass(inputs[0].detach(), rank))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and bool(torch.equal(a, b)))


class BatchedMetric:
    """Feeds a metric in large pieces; leaves out samples that have no label or no finite features.

    Args:
        metric: Its device follows the features.
    """

    def __init__(self, metric: NeuralCollapse) -> None:
        self.metric = metric
        self._rows: Tensor | None = None
        self._labels: Tensor | None = None
        self._filled = 0
        self._lost = 0

    def add(self, features: Tensor, labels: Any) -> None:
        """Take a batch in: features (B, d), class indices (B,), −100 for samples to be left out.

        Raises:
            ValueError: The sizes differ, or the labels are no integers.
        """
        labels = class_indices(labels)
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f"`labels` must be class indices, integers; got {labels.dtype}. Mixed labels have no class: "
                "give the monitor a loader of plain samples; indices stored as floats become labels with .long()"
            )
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"`labels` must hold one class index for each of the {len(features)} samples that the head received "
                f"last, shape ({len(features)},); got {tuple(labels.shape)}. Mixed or one-hot labels have no class; "
                "give the monitor a loader of plain samples"
            )
        size, capacity = len(labels), min(_ROWS, max(1, _NUMBERS // features.shape[1]))
        if self._rows is None or self._rows.dtype != features.dtype or self._rows.device != features.device:
            self._flush()
            self._rows = features.new_empty(capacity, features.shape[1])
            self._labels = torch.empty(capacity, dtype=torch.int64, device=features.device)
        if self._filled + size > capacity:
            self._flush()
        if size > capacity:
            self._merge(features, labels.to(features.device))
            return
        # Copied, not kept: a view would keep a larger tensor alive, and a CUDA graph reuses its memory.
        assert self._labels is not None
        self._rows[self._filled : self._filled + size].copy_(features)
        self._labels[self._filled : self._filled + size].copy_(labels)
        self._filled += size

    def finish(self) -> tuple[CollapseReport, int]:
        """Return the report on everything since the last time and the number of samples that were not finite.

        Both are over all processes of a distributed run, each of which must call this.
        """
        self._flush()
        # A process without samples takes part as well, and torchmetrics should not warn about it.
        self.metric.update(torch.zeros(0, self.metric.num_features), torch.zeros(0, dtype=torch.int64))
        lost = torch.tensor(self._lost, device=self.metric.packed_moments.device)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(lost)
        report = self.metric.compute()
        self.metric.reset()
        self._lost = 0
        return report, int(lost)

    def _flush(self) -> None:
        if self._filled and self._rows is not None and self._labels is not None:
            self._merge(self._rows[: self._filled], self._labels[: self._filled])
        self._filled = 0

    def _merge(self, features: Tensor, labels: Tensor) -> None:
        self.metric.to(features.device)
        labelled = labels != _IGNORED
        if not bool(labelled.all()):
            features, labels = features[labelled], labels[labelled]
        try:
            self.metric.update(features, labels)
        except ValueError:
            # Looked for only now, because the metric has looked already and a mask costs as much as the rest.
            finite = torch.isfinite(features).all(dim=1)
            if bool(finite.all()):
                raise
            self._lost += int((~finite).sum())
            self.metric.update(features[finite], labels[finite])
