"""``NeuralCollapse``: all metrics in one pass, as a ``torchmetrics.Metric`` fit for data-parallel training.

Example:
    >>> import torch
    >>> from collapsar.metrics import NeuralCollapse
    >>> head = torch.nn.Linear(2, 2)
    >>> metric = NeuralCollapse(head=head)
    >>> metric.update(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]))
    >>> metric.update(torch.tensor([[-2.0, 1.0], [-2.0, -1.0]]), torch.tensor([1, 1]))
    >>> report = metric.compute()
    >>> round(report.nc1_uniform, 12), report.Z.shape
    (0.0625, (2, 2))
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from collapsar.metrics.centers import center_agreement
from collapsar.metrics.head import linear_map
from collapsar.metrics.moments import (
    WITHOUT_FLOAT64,
    ClassMoments,
    accumulate_,
    checked_batch,
    pack,
    packed_size,
    packed_views,
    unpack,
)
from collapsar.metrics.report import CollapseReport, collapse_report


class NeuralCollapse(Metric):
    """Neural-collapse metrics in one pass, exact under any split, order, merge and sync of the samples.

    The state is one float64 vector of 2K + K·d + d² numbers (the class moments, ``ClassMoments``) and K
    counts for NC4; it holds no samples and no K×K matrix. Processes are synchronised by gathering and merging
    moments pairwise, which is exact for uneven batches and for processes without data. A
    ``DistributedSampler`` pads the last batch with duplicates, which are counted: use an unpadded sampler to
    count each sample once.

    State precision never changes: ``.to(dtype)`` and ``.half()`` move the metric but leave it float64.
    On a device without float64 (MPS) the metric stays on the CPU: ``update`` moves features to it.

    The head is read when ``compute`` is called (for NC4 also at every ``update``), not copied, and is not a submodule
    of the metric. Results are therefore not cached unless ``compute_with_cache=True`` is passed.

    Args:
        num_classes: K; read from ``head`` if omitted.
        num_features: d; read from ``head`` if omitted.
        head: The linear layer that maps features to logits: a module with ``weight`` (K, d) and maybe
            ``bias`` (K,).
        centers: Fixed class centres, shape (K, d), NaN rows where unknown, for example ``report.class_means``
            of an earlier pass. With a head, NC4 is counted against them while accumulating; without centres
            NC4 is NaN, because the class means of the running pass are not known until it ends.
        pairwise: False leaves out the work of O(K²·d) at ``compute``; see ``collapse_report``.
        within_scatter: False leaves out Σ_W, and with it d² of the state and the product that costs O(d²) time per
            sample: NC1 is then NaN. Its trace, the variances of the classes, and everything else stay the same.
        ignore_index: Label that marks samples without one, such as -100, -1 or 255: they are left out.
        **kwargs: As for ``torchmetrics.Metric``.

    Raises:
        ValueError: If the sizes are missing, contradict the head, or ``centers`` does not fit.
    """

    full_state_update = False
    is_differentiable = False
    packed_moments: Tensor
    center_agreements: Tensor
    distinction: Tensor

    def __init__(
        self,
        num_classes: int | None = None,
        num_features: int | None = None,
        *,
        head: nn.Module | None = None,
        centers: Any = None,
        pairwise: bool = True,
        within_scatter: bool = True,
        ignore_index: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"compute_with_cache": False, **kwargs})
        self.num_classes, self.num_features = _sizes(num_classes, num_features, head)
        self.pairwise, self.ignore_index = pairwise, ignore_index
        self._head = _Reference(head)
        shape = (self.num_classes, self.num_features)
        self._centers = None if centers is None else torch.as_tensor(centers).detach().double().clone()
        if self._centers is not None and (self._centers.shape != shape or head is None):
            raise ValueError(
                f"`centers` must have shape (K, d) = {shape} and needs a `head` to compare with; got "
                f"{tuple(self._centers.shape)}, head {type(head).__name__}. Pass report.class_means"
            )
        reduction = functools.partial(_merge_packed, num_classes=shape[0], num_features=shape[1])
        zeros = torch.zeros(packed_size(*shape, within_scatter), dtype=torch.float64)
        self.add_state("packed_moments", zeros, dist_reduce_fx=reduction)
        self.add_state("center_agreements", torch.zeros(self.num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        # A MetricCollection lets metrics whose states are equal after the first batch share one state from then on.
        self.add_state("distinction", self._distinction(), dist_reduce_fx=_first)

    @property
    def head(self) -> nn.Module | None:
        """The head given, by reference."""
        return self._head.target

    def _distinction(self) -> Tensor:
        """Eight small numbers, shape (8,), that differ where metrics accumulate different things."""
        of_centers = None if self._centers is None else (id(self.head), self._centers.cpu().numpy().tobytes())
        digest = hashlib.blake2b(repr((self.ignore_index, of_centers)).encode(), digest_size=8).digest()
        return torch.tensor(list(digest), dtype=torch.float64)

    @property
    def class_moments(self) -> ClassMoments:
        """A copy of the moments accumulated so far (by this process, unless synchronised)."""
        return unpack(self.packed_moments.clone(), self.num_classes, self.num_features)

    @torch.no_grad()
    def update(self, features: Any, labels: Any) -> None:
        """Merge a batch; only the rows of classes that occur in it are touched.

        Args:
            features: What the head receives, shape (B, d), tensor or array, any real dtype and device, B ≥ 0.
            labels: Class indices, shape (B,), integers in [0, K).

        Raises:
            ValueError: If shapes or types do not fit, a label is out of range (named), or a feature is not
                finite. The state is then unchanged.
        """
        features, labels = checked_batch(features, labels, self.num_classes, self.num_features, self.ignore_index)
        features, labels = features.to(self.packed_moments.device), labels.to(self.packed_moments.device)
        if self.packed_moments.is_inference() and not torch.is_inference_mode_enabled():
            # A reset under inference_mode leaves tensors that may not be written in place outside of it.
            self.packed_moments = self.packed_moments.clone()
        weight, bias = _head_parameters(self.head)
        if self._centers is not None and weight is not None:
            agree = center_agreement(features, labels, self._centers, weight, bias)
            self.center_agreements = self.center_agreements + agree
        buffers = packed_views(self.packed_moments, self.num_classes, self.num_features)
        accumulate_(*buffers, features, labels)

    def compute(self) -> CollapseReport:
        """Return the report on everything accumulated, over all processes; all NaN before any data."""
        moments = unpack(self.packed_moments, self.num_classes, self.num_features)
        weight, bias = _head_parameters(self.head)
        agreements = None if self._centers is None else self.center_agreements
        return collapse_report(moments, weight, bias, agreements=agreements, pairwise=self.pairwise)

    def forward(self, features: Any, labels: Any) -> CollapseReport:
        """Merge a batch and return the report on that batch alone; in a loop ``update`` is cheaper."""
        report = super().forward(features, labels)
        # Otherwise moving the metric later would try to move the numpy report along.
        self._forward_cache = None
        return report

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Merge the state of another metric over the same classes and features, which does not change."""
        super().merge_state(incoming_state)
        # Counts as an update: torchmetrics would otherwise warn that there is no data.
        self._update_count += 1

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        # torchmetrics walks through dataclasses to clone tensors and refuses frozen ones, but not boxes.
        boxed = super()._wrap_compute(functools.wraps(compute)(lambda: _Box(compute())))

        @functools.wraps(compute)
        def unboxed() -> CollapseReport:
            return boxed().value

        return unboxed

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        # Follow the device, never the dtype: half-precision moments would lose the very spread they measure.
        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, dtype=torch.float32, device=tensor.device)).device
            return tensor if device.type in WITHOUT_FLOAT64 else tensor.to(device)

        if self._centers is not None:
            self._centers = move(self._centers)
        return super()._apply(move, exclude_state)


class _Box:
    """Holds a value that torchmetrics should hand on without looking inside."""

    def __init__(self, value: CollapseReport) -> None:
        self.value = value


class _Reference:
    """Holds a module without registering it as a submodule.

    A copy of the metric refers to the same module, or to its copy when a whole model is copied.
    """

    def __init__(self, target: nn.Module | None) -> None:
        self.target = target

    def __deepcopy__(self, memo: dict[int, Any]) -> _Reference:
        return _Reference(memo.get(id(self.target), self.target))


def _first(stacked: Tensor) -> Tensor:
    return stacked[0]


def _merge_packed(stacked: Tensor, num_classes: int, num_features: int) -> Tensor:
    """Reduce packed moments, shape (P, n), to those of all their samples together, shape (n,)."""
    parts = (unpack(row, num_classes, num_features) for row in stacked.unbind())
    return pack(functools.reduce(ClassMoments.merge, parts))[: stacked.shape[1]]  # the scatter, if any, is last


def _head_parameters(head: nn.Module | None) -> tuple[Tensor | None, Tensor | None]:
    if head is None:
        return None, None
    found = linear_map(head)
    if found is None:
        raise ValueError(
            f"`head` must be a linear layer with a weight of shape (K, d); got {type(head).__name__}. "
            "Pass the last layer itself, for example head=model.fc"
        )
    return found


def _sizes(num_classes: int | None, num_features: int | None, head: nn.Module | None) -> tuple[int, int]:
    weight, _ = _head_parameters(head)
    given = (num_classes, num_features)
    found = given if weight is None else (weight.shape[0], weight.shape[1])
    sizes: list[int] = []
    for name, size, of_head in zip(("num_classes", "num_features"), given, found, strict=True):
        if not isinstance(of_head, int) or of_head < 1 or size not in (None, of_head):
            wanted = "be a positive integer" if weight is None else f"be {of_head}, as in the head"
            raise ValueError(f"`{name}` must {wanted}; got {size}. Pass both sizes, or head=model.fc alone")
        sizes.append(of_head)
    return sizes[0], sizes[1]
