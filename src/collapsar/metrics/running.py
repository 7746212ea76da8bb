"""Class moments that grow batch by batch in one process, and over the processes of a distributed run."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.distributed as dist

from collapsar.metrics.moments import (
    WITHOUT_FLOAT64,
    ClassMoments,
    accumulate_,
    checked_batch,
    packed_size,
    packed_views,
    unpack,
)


class RunningMoments:
    """Class moments of one process, batch by batch in place: what ``NeuralCollapse`` keeps, without torchmetrics.

    Args:
        num_classes: K.
        num_features: d.
        device: where the sums are kept; the CPU if the device has no float64 (MPS).
        within_scatter: False leaves out Σ_W, and with it the product that costs O(d²) time per sample.

    Example:
        >>> sums = RunningMoments(2, 1)
        >>> sums.update(torch.tensor([[1.0], [3.0]]), torch.tensor([1, 1]))
        >>> sums.moments.class_means.tolist()
        [[0.0], [2.0]]
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        device: torch.device | str = "cpu",
        *,
        within_scatter: bool = True,
    ) -> None:
        self._sizes = num_classes, num_features
        self._packed = torch.zeros(packed_size(num_classes, num_features, within_scatter), dtype=torch.float64)
        self.to(device)

    def to(self, device: torch.device | str) -> None:
        """Move the sums."""
        if torch.device(device).type not in WITHOUT_FLOAT64:
            self._packed = self._packed.to(device)

    @property
    def device(self) -> torch.device:
        """Where the sums are kept."""
        return self._packed.device

    def update(self, features: Any, labels: Any) -> None:
        """Merge a batch; see ``class_moments`` for what is accepted and for the errors."""
        features, labels = checked_batch(features, labels, *self._sizes)
        device = self._packed.device
        accumulate_(*packed_views(self._packed, *self._sizes), features.to(device), labels.to(device))

    @property
    def moments(self) -> ClassMoments:
        """A copy of the moments so far."""
        return unpack(self._packed.clone(), *self._sizes)

    def over_processes(self) -> ClassMoments:
        """The moments of all processes of a distributed run, each of which must call this."""
        if not (dist.is_available() and dist.is_initialized()):
            return self.moments
        parts = [torch.empty_like(self._packed) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, self._packed)
        return reduce(ClassMoments.merge, (unpack(part, *self._sizes) for part in parts))
