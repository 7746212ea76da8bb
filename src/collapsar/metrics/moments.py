"""Class moments in one pass: mergeable sufficient statistics for every metric of within-class collapse.

A classifier that collapses produces features whose class means are far apart, and often far from the origin,
while the spread inside a class is tiny. Raw second moments ``Σ h hᵀ`` lose every digit of that spread. Here
each batch is centred by its own class means in float64 and merged with what came before by the pairwise
update of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample
variances", 1979), so nothing large is ever subtracted from something large.

Example:
    >>> import torch
    >>> from collapsar.metrics.moments import class_moments
    >>> features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]])
    >>> first = class_moments(features[:1], torch.tensor([0]), num_classes=2)
    >>> second = class_moments(features[1:], torch.tensor([0, 1]), num_classes=2)
    >>> merged = first.merge(second)
    >>> merged.class_means.tolist(), merged.class_traces.round(decimals=12).tolist()
    ([[2.0, 0.0], [0.0, 5.0]], [2.0, 0.0])
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import get_blas_funcs
from torch import Tensor

from collapsar.core.sentences import listed
from collapsar.core.threads import LARGE, one_thread_below

# How many numbers of features are merged at once: this bounds the work space, so that one call over a whole data set
# does not double its memory. On the CPU blocks of 4 MiB stay in the cache; accelerators prefer fewer, larger ones.
_NUMBERS = {"cpu": 1 << 19}
_NUMBERS_ELSEWHERE = 1 << 21
(_syrk,) = get_blas_funcs(("syrk",), dtype=np.float64)
WITHOUT_FLOAT64 = ("mps",)
"""Types of device that cannot hold moments."""


@dataclass(frozen=True)
class ClassMoments:
    """Sufficient statistics of labelled features: O(K·d + d²) numbers, whatever the number of samples.

    Attributes:
        class_counts: Samples per class n_k, shape (K,), int64.
        class_means: Class means μ_k, shape (K, d), float64; zero rows where a class was not seen.
        within_scatter: Σ_k Σ_i (h_ki − μ_k)(h_ki − μ_k)ᵀ, shape (d, d), float64: not divided by N. All NaN if it was
            not accumulated.
        class_traces: Σ_i ‖h_ki − μ_k‖² per class, shape (K,), float64; they sum to the trace of
            ``within_scatter``.
    """

    class_counts: Tensor
    class_means: Tensor
    within_scatter: Tensor
    class_traces: Tensor

    @classmethod
    def empty(cls, num_classes: int, num_features: int, device: torch.device | str | None = None) -> ClassMoments:
        """Return the moments of no samples, the neutral element of ``merge``."""
        K, d = num_classes, num_features
        return cls(
            class_counts=torch.zeros(K, dtype=torch.int64, device=device),
            class_means=torch.zeros(K, d, dtype=torch.float64, device=device),
            within_scatter=torch.zeros(d, d, dtype=torch.float64, device=device),
            class_traces=torch.zeros(K, dtype=torch.float64, device=device),
        )

    @property
    def num_classes(self) -> int:
        """K, seen or not."""
        return self.class_means.shape[0]

    @property
    def num_features(self) -> int:
        """The feature dimension d."""
        return self.class_means.shape[1]

    @property
    def num_samples(self) -> int:
        """N = Σ n_k."""
        return int(self.class_counts.sum())

    @property
    def seen(self) -> Tensor:
        """Indices of the classes with at least one sample, int64."""
        return self.class_counts.nonzero().flatten()

    @property
    def seen_means(self) -> Tensor:
        """The means of the seen classes, shape (S, d); not a copy if every class was seen."""
        return self.class_means if bool(self.class_counts.all()) else self.class_means[self.seen]

    @property
    def unseen_classes(self) -> tuple[int, ...]:
        """The classes without a sample."""
        return tuple((self.class_counts == 0).nonzero().flatten().tolist())

    @property
    def sample_mean(self) -> Tensor:
        """μ_G = Σ n_k μ_k / N, shape (d,): every *sample* counts once. NaN without samples."""
        return self.class_counts.double() @ self.class_means / self.class_counts.sum()

    @property
    def mean_of_class_means(self) -> Tensor:
        """μ_C, shape (d,): every *seen class* counts once. Differs from ``sample_mean`` under imbalance."""
        return self.seen_means.mean(dim=0)

    @property
    def within_covariance(self) -> Tensor:
        """Σ_W = ``within_scatter`` / N, shape (d, d). NaN without samples."""
        return self.within_scatter / self.class_counts.sum()

    def merge(self, other: ClassMoments) -> ClassMoments:
        """Return the moments of both sets of samples together; neither argument changes.

        Merging is associative and commutative up to rounding: Chan et al. (1979), (2.1).

        Args:
            other: Moments over the same classes and features.

        Raises:
            ValueError: If the shapes disagree.
        """
        if self.class_means.shape != other.class_means.shape:
            raise ValueError(
                f"`other` must have moments of shape (K, d) = {tuple(self.class_means.shape)}; got "
                f"{tuple(other.class_means.shape)}. Build both with the same num_classes and features"
            )
        counts = self.class_counts + other.class_counts
        share = other.class_counts.double() / counts.clamp(min=1)
        step = other.class_means - self.class_means
        weights = self.class_counts.double() * share
        both = weights.nonzero().flatten()
        scatter, traces = self.within_scatter + other.within_scatter, self.class_traces + other.class_traces
        rows = step[both] * weights[both].sqrt()[:, None]
        return ClassMoments(
            class_counts=counts,
            class_means=torch.addcmul(self.class_means, step, share[:, None]),
            within_scatter=scatter.addmm_(rows.T, rows),
            class_traces=traces.index_add_(0, both, rows.square().sum(dim=1)),
        )


def class_moments(features: Any, labels: Any, num_classes: int) -> ClassMoments:
    """Return the moments of one set of labelled features.

    Args:
        features: Shape (B, d), B ≥ 0; a tensor or an array of any real dtype, contiguous or not, on any
            device.
        labels: Shape (B,), integers in [0, num_classes).
        num_classes: K.

    Raises:
        ValueError: If ``num_classes`` is not positive, or as ``checked_batch``.
    """
    if not num_classes >= 1:
        raise ValueError(f"`num_classes` must be a positive integer; got {num_classes}. Count the classes in use")
    features, labels = checked_batch(features, labels, num_classes)
    out = ClassMoments.empty(num_classes, features.shape[1], features.device)
    accumulate_(out.class_counts, out.class_means, out.within_scatter, out.class_traces, features, labels)
    return ClassMoments(out.class_counts, out.class_means, _mirrored(out.within_scatter), out.class_traces)


def class_indices(labels: Any) -> Tensor:
    """Labels as a tensor, whatever holds them; a column, (B, 1), as MedMNIST gives them, is (B,).

    Raises:
        ValueError: they are names, or anything else but numbers.
    """
    try:
        found = torch.as_tensor(labels).detach()
    except (TypeError, ValueError, RuntimeError):
        first = next(iter(labels), None) if hasattr(labels, "__iter__") else labels
        raise ValueError(
            f"`labels` must be class indices, integers; got {type(first).__name__} {first!r}. Number the names by "
            "{name: k for k, name in enumerate(class_names)}"
        ) from None
    return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found


def checked_batch(
    features: Any,
    labels: Any,
    num_classes: int,
    num_features: int | None = None,
    ignore_index: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return features (B, d) and int64 labels (B,) as detached tensors on the device of the features.

    Rows whose label is ``ignore_index`` are left out.

    Raises:
        ValueError: If the shapes do not fit, labels are not integers, a label lies outside [0, num_classes)
            (the message names it), or a feature is NaN or infinite (the message names its class).
    """
    features, labels = _tensor(features), _tensor(labels)
    if features.ndim != 2 or (num_features is not None and features.shape[1] != num_features):
        wanted = "(B, d)" if num_features is None else f"(B, {num_features})"
        channels = num_features is not None and features.ndim > 2 and features.shape[1] == num_features
        rows = "features.movedim(1, -1)" if channels else "features"  # otherwise pixels and channels would be mixed
        size = "d" if num_features is None else num_features
        raise ValueError(
            f"`features` must have shape {wanted}; got {tuple(features.shape)}. Flatten the head's input to one row "
            f"per label: {rows}.reshape(-1, {size}), labels.reshape(-1)"
        )
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"`labels` must hold one class index per row of `features`, shape ({features.shape[0]},); "
            f"got {tuple(labels.shape)}. Turn one-hot or soft labels into indices first"
        )
    if labels.is_floating_point() or labels.is_complex() or features.is_complex():
        raise ValueError(
            f"`labels` must be integers and `features` real; got {labels.dtype} and {features.dtype}. "
            "Convert labels with .long()"
        )
    labels = labels.to(features.device, torch.int64)
    if ignore_index is not None:
        known = labels != ignore_index
        features, labels = features[known], labels[known]
    if labels.numel() == 0:
        return features, labels
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= num_classes:
        outside = labels[(labels < 0) | (labels >= num_classes)].unique().tolist()
        raise ValueError(
            f"`labels` must lie in [0, {num_classes}); got {listed(outside)}. Raise num_classes; for samples without "
            "a label pass ignore_index=..., or drop them"
        )
    if features.is_floating_point() and features.numel() > 0:
        # Rows with finite sums have finite entries; the others, some of which merely overflow, are checked again.
        sums = features.sum(dim=1)
        if not sums.isfinite().all() and len(bad := labels[~features.isfinite().all(dim=1)]):
            raise ValueError(
                f"`features` must be finite; got NaN or infinity in {len(bad)} of {len(labels)} rows: class "
                f"{listed(bad.unique().tolist())}. Look for a diverged run or an overflow in half precision"
            )
    return features, labels


@torch.no_grad()
def accumulate_(
    counts: Tensor, means: Tensor, scatter: Tensor | None, traces: Tensor, features: Tensor, labels: Tensor
) -> None:
    """Merge a checked batch into buffers in place, touching only the means of classes that occur in it.

    Only the upper triangle of ``scatter`` is kept up to date, the part below it is unspecified: this saves half of the
    product, and ``unpack`` mirrors once. Work space is bounded (``_NUMBERS``), never O(K·d).

    Args:
        counts: Shape (K,), int64 or float64 (exact up to 2⁵³).
        means: Shape (K, d), float64; zero where a class has no samples yet.
        scatter: Shape (d, d), float64; None leaves it out, and with it the work of O(B·d²).
        traces: Shape (K,), float64.
        features: Shape (B, d), finite, on the device of the buffers.
        labels: Shape (B,), int64, in range, on the device of the buffers.
    """
    d = means.shape[1]
    length = max(1, _NUMBERS.get(means.device.type, _NUMBERS_ELSEWHERE) // max(1, d))
    work = means.new_empty(2, min(length, len(features)), d)
    for block, its in zip(features.split(length), labels.split(length), strict=True):
        rows, own = work[:, : len(its)].unbind()
        occurring = torch.bincount(its, minlength=len(counts))
        classes = occurring.nonzero().flatten()
        position = (torch.cumsum(occurring > 0, dim=0) - 1)[its]
        n_old, n_new = counts[classes].double(), occurring[classes].double()
        share = n_new / (n_old + n_new)

        fresh = means.new_zeros(len(classes), d).index_add_(0, position, rows.copy_(block))
        old = means.index_select(0, classes)
        step = fresh.div_(n_new[:, None]).sub_(old)
        # Chan et al. (1979), (2.1): the scatter about the fresh means, plus n_new (1 - share) step stepᵀ for each
        # class. Rows centred at fresh - sqrt(1 - share) step give both sums at once, because rows about their own
        # mean are orthogonal to any constant. A class seen for the first time has mean 0 and share 1: it takes the
        # fresh mean unchanged, and its step adds nothing.
        centres = old.addcmul_(step, (1 - (1 - share).sqrt())[:, None])
        rows.sub_(torch.index_select(centres, 0, position, out=own))
        means.index_add_(0, classes, step.mul_(share[:, None]))
        counts.add_(occurring)
        traces.index_add_(0, its, torch.linalg.vector_norm(rows, dim=1).square_())
        if scatter is not None and d:
            _add_gram_(scatter, rows)


def packed_size(num_classes: int, num_features: int, within_scatter: bool = True) -> int:
    """Return the length of the vector that ``pack`` writes: 2K + K·d + d², or without the d² for the scatter."""
    return 2 * num_classes + num_classes * num_features + (num_features**2 if within_scatter else 0)


def pack(moments: ClassMoments) -> Tensor:
    """Return the moments as one float64 vector: counts, traces, means, scatter."""
    parts = (moments.class_counts, moments.class_traces, moments.class_means, moments.within_scatter)
    return torch.cat([part.flatten().double() for part in parts])


def packed_views(packed: Tensor, num_classes: int, num_features: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return (counts, means, scatter, traces) as views into a packed vector; None for a scatter left out."""
    K, d = num_classes, num_features
    counts, traces, means, scatter = packed.split([K, K, K * d, len(packed) - packed_size(K, d, False)])
    return counts, means.view(K, d), scatter.view(d, d) if len(scatter) else None, traces


def unpack(packed: Tensor, num_classes: int, num_features: int) -> ClassMoments:
    """Return the moments held in a packed vector; means and traces share its memory."""
    counts, means, scatter, traces = packed_views(packed, num_classes, num_features)
    unknown = packed.new_full((1, 1), torch.nan).expand(num_features, num_features)
    return ClassMoments(counts.round().long(), means, unknown if scatter is None else _mirrored(scatter), traces)


def _add_gram_(out: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of rowsᵀ rows to ``out``: half of the product, by symmetry."""
    if out.device.type != "cpu":
        _add_strips_(out, rows)
        return
    # BLAS has a symmetric product, which torch does not expose. It stores columns: our upper triangle is its lower one.
    with one_thread_below(len(out), LARGE if torch.get_num_threads() > 1 else sys.maxsize):
        _syrk(1.0, rows.numpy().T, 1.0, out.numpy().T, lower=True, overwrite_c=True)


def _add_strips_(out: Tensor, rows: Tensor) -> None:
    """The same on any device, by strips of columns: narrower strips save more but run less efficiently."""
    strip = max(128, len(out) // 8)
    for start in range(0, len(out), strip):
        stop = start + strip
        out[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])


def _mirrored(scatter: Tensor) -> Tensor:
    upper = scatter.triu()
    return upper + upper.triu(1).T


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)  # torch takes only the machine's own byte order
    # torch warns about read-only memory, although nothing here writes to it.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
