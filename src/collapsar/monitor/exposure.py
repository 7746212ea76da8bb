"""How often one epoch shows each class: the indices that a loader would draw are counted, whatever draws them.

Example:
    >>> import torch
    >>> data = torch.utils.data.TensorDataset(torch.zeros(6, 2), torch.tensor([0, 0, 0, 0, 1, 1]))
    >>> twice = torch.utils.data.Subset(data, [0, 1, 2, 3, 4, 4, 5, 5])
    >>> found = exposure(torch.utils.data.DataLoader(twice, batch_size=2, shuffle=True))
    >>> found.shown.tolist(), found.present.tolist(), found.resampled
    ([4, 4], [4, 2], True)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, RandomSampler, Subset, TensorDataset, WeightedRandomSampler

from collapsar.core.types import Vector
from collapsar.monitor.undisturbed import LABELS, labels_in, random_states_kept

Counts = NDArray[np.int64]

_MOST, _ENOUGH, _MOST_EPOCHS = 1 << 22, 2000, 16
# From this difference on, beyond rounding, a data set has classes at other shares than its distinct samples.
_LEAST = 5e-3
# A difference in shares counts if it exceeds what random drawing explains by this many standard deviations.
_SIGMAS = 6.0


@dataclass(frozen=True, eq=False)
class Exposure:
    """One epoch of a loader.

    Attributes:
        shown: how often a sample of each class is drawn, shape (K,); None if labels cannot be read without loading the
            data.
        present: how many different samples of each class there are to draw from; None likewise.
        resampled: whether the shares of the two differ by more than chance; without labels, whether single samples are
            drawn at different rates.
        name: the class of the sampler, or of the data set that repeats samples.
        expected: the mean of ``shown``, up to a factor, shape (K,), if the sampler tells; None otherwise.
    """

    shown: Counts | None
    present: Counts | None
    resampled: bool
    name: str
    expected: Vector | None = None

    @property
    def factors(self) -> Vector | None:
        """By how much each class's share is multiplied, shape (K,); NaN for classes without samples.

        If the sampler does not tell, classes of one size that differ only by chance have one factor.
        """
        if self.shown is None or self.present is None:
            return None
        shown = self.expected
        if shown is None:
            shown = self.shown.astype(np.float64)
            for alike in (self.present == size for size in np.unique(self.present[self.present > 0])):
                if shown[alike].any() and not unlike(shown[alike], self.present[alike]):
                    shown[alike] = shown[alike].mean()
        with np.errstate(invalid="ignore", divide="ignore"):
            return (shown / shown.sum()) / (self.present / self.present.sum())


def exposure(data: Any) -> Exposure | None:
    """Count what an epoch would show, without loading a sample or changing any random state.

    Samplers are copied and iterated; labels are looked up where a data set stores them (``targets``, ``labels``,
    tensors, a column, or pairs in a list), through ``Subset`` and ``ConcatDataset``.

    Args:
        data: a loader, prepared by Accelerate or not, a data set, or a list of batches (inputs, labels).

    Returns:
        The counts; None if nothing can be said, as for a stream.
    """
    if data is None:
        return None
    if isinstance(data, list | tuple):
        labels = _of_batches(data)
        return None if labels is None else Exposure(_count(labels), _count(labels), False, "list")
    dataset = getattr(data, "dataset", data)
    if not hasattr(dataset, "__len__") or not len(dataset):
        return None
    epochs = [np.arange(len(dataset))] if dataset is data else _drawn(data)
    drawn = np.concatenate(epochs) if epochs else np.zeros(0, np.int64)
    if drawn.size == 0 or drawn.min() < 0 or drawn.max() >= len(dataset):
        return None
    origin, labels = _origins(dataset)
    name = _who(data, dataset, origin)
    if labels is None:
        return Exposure(None, None, _uneven(data, drawn, origin), name)
    size = int(labels.max()) + 1
    held, present = _count(labels, size), _count(labels[np.unique(origin, return_index=True)[1]], size)
    repeated = np.abs(held / held.sum() - present / present.sum()).max() > _LEAST
    resampled = bool(repeated) or unlike(_count(labels[drawn], size), held)
    return Exposure(_count(labels[epochs[0]], size), present, resampled, name, _expected(data, labels, size))


def unlike(shown: ArrayLike, counts: ArrayLike) -> bool:
    """Whether the shares of two counts of classes differ by more than drawing at random explains.

    Example:
        >>> unlike([135, 126, 109], [300, 60, 10]), unlike([150, 31, 4], [300, 60, 10])
        (True, False)
    """
    a, b = np.asarray(shown, np.float64), np.asarray(counts, np.float64)
    size = max(a.size, b.size)
    a, b = (np.pad(x, (0, size - x.size)) for x in (a, b))
    expected = a.sum() * b / b.sum()
    if (a[expected == 0] > 0).any():
        return True
    seen = expected > 0
    statistic = float(((a - expected)[seen] ** 2 / expected[seen]).sum())
    freedom = max(int(seen.sum()) - 1, 1)
    return bool(statistic > freedom + _SIGMAS * np.sqrt(2 * freedom) + _SIGMAS**2 / 2)


def classes_at_hand(data: Any) -> int | None:
    """How many classes the labels of a loader, data set or list of batches show; None if none are at hand.

    Nothing that may be used up is iterated.

    Example:
        >>> import torch
        >>> classes_at_hand([(torch.zeros(3, 2), torch.tensor([0, 4, 1]))])
        5
    """
    dataset = getattr(data, "dataset", data)
    batches = dataset is data and isinstance(data, list | tuple)
    try:
        labels = _of_batches(data) if batches else _origins(dataset)[1] if hasattr(dataset, "__len__") else None
    except (TypeError, ValueError, IndexError):
        return None
    return None if labels is None or not labels.size else int(labels.max()) + 1


def batch_size(data: Any) -> int | None:
    """Samples per step of a loader; None where it is not known."""
    for part in (data, getattr(data, "batch_sampler", None)):
        size = getattr(part, "batch_size", None)
        if isinstance(size, int):
            return size
    return None


def _drawn(loader: Any) -> list[Counts]:
    """The indices of one epoch, or several short ones, drawn from a copy; empty if that is impossible."""
    batches, sampler = getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)
    source = sampler if batches is None else batches
    if source is None:
        return []
    epochs: list[Counts] = []
    try:
        with random_states_kept():
            twin = copy.deepcopy(source, {id(loader.dataset): loader.dataset})
            while sum(map(len, epochs)) < _ENOUGH and len(epochs) < _MOST_EPOCHS:
                found: list[int] = []
                for item in twin:
                    found += [int(i) for i in item] if isinstance(item, Iterable) else [int(item)]
                    if len(found) > _MOST:
                        return []  # endless
                epochs.append(np.array(found, dtype=np.int64))
    except Exception:  # a sampler that cannot be copied, or a stream's
        return []
    return epochs


def _origins(dataset: Any) -> tuple[NDArray[Any], Counts | None]:
    """Which original sample each item of a data set is, and the labels; one number per original."""
    if isinstance(dataset, Subset):
        origin, labels = _origins(dataset.dataset)
        rows = np.asarray(dataset.indices, dtype=np.int64)
        return origin[rows], None if labels is None else labels[rows]
    if isinstance(dataset, ConcatDataset):
        bases = {id(base): base for base in map(_base, dataset.datasets)}
        start, starts = 0, {}
        for key, base in bases.items():
            starts[key], start = start, start + len(base)
        parts = [_origins(part) for part in dataset.datasets]
        origin = np.concatenate(
            [found + starts[id(_base(part))] for part, (found, _) in zip(dataset.datasets, parts, strict=True)]
        )
        known = [labels for _, labels in parts if labels is not None]
        return origin, np.concatenate(known) if len(known) == len(parts) else None
    return np.arange(len(dataset)), _labels(dataset)


def _base(dataset: Any) -> Any:
    return _base(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _labels(dataset: Any) -> Counts | None:
    """The labels that a data set stores, shape (N,): the first class indices in a place for labels."""
    found: Iterable[Any]
    if isinstance(dataset, TensorDataset):  # (inputs, labels, numbers of the samples), or (tokens, mask, labels)
        found = dataset.tensors[1:]
    elif isinstance(dataset, list | tuple):
        found = [] if labels_in(dataset[0]) is None else [[labels_in(item) for item in dataset]]
    else:
        columns = getattr(dataset, "column_names", None)
        named = columns if isinstance(columns, list) else ()
        found = (dataset[key][:] if key in named else getattr(dataset, key, None) for key in LABELS)
    return next((labels for given in found if (labels := _whole(given, len(dataset))) is not None), None)


def _whole(labels: Any, size: int) -> Counts | None:
    """Class indices, one for each sample or a column of them, or None."""
    if not isinstance(labels, Sequence | np.ndarray | Tensor):  # not a column that would be read from the data
        return None
    try:
        array = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels[:])
    except (TypeError, ValueError):
        return None
    array = array[:, 0] if array.shape == (size, 1) else array
    if array.shape != (size,) or array.dtype.kind not in "iu" or array.min() < 0:
        return None
    return array.astype(np.int64)


def _of_batches(batches: Sequence[Any]) -> Counts | None:
    parts = []
    for batch in batches:
        labels = labels_in(batch)
        found = _whole(labels, len(labels)) if getattr(labels, "ndim", 1) and hasattr(labels, "__len__") else None
        if found is None:
            return None
        parts.append(found)
    return np.concatenate(parts) if parts else None


def _uneven(data: Any, drawn: Counts, origin: NDArray[Any]) -> bool:
    """Without labels: whether some samples are drawn more often than others, which mere shuffling does not do."""
    sampler = _sampler(data)
    if isinstance(sampler, RandomSampler) and len(np.unique(origin)) == len(origin):
        return False
    weights = getattr(sampler, "weights", None)
    if weights is not None:
        return bool(np.ptp(np.asarray(weights)) > 0)
    times = np.bincount(np.unique(origin, return_inverse=True)[1][drawn])
    times = times[times > 0]
    return bool(times.max() > 1.5 * times.min() and times.max() > times.min() + 1)


def _sampler(data: Any) -> Any:
    """The innermost sampler of a loader."""
    found = getattr(data, "batch_sampler", None) or getattr(data, "sampler", None)
    for _ in range(8):
        inner = getattr(found, "batch_sampler", None) or getattr(found, "sampler", None)
        if inner is None:
            break
        found = inner
    return found


def _expected(data: Any, labels: Counts, size: int) -> Vector | None:
    """How often a sampler shows each class in the mean, up to a factor, if it tells; None otherwise."""
    sampler = _sampler(data)
    shares, weights = getattr(sampler, "effective_counts", None), getattr(sampler, "weights", None)
    own = getattr(type(sampler), "__iter__", None) is WeightedRandomSampler.__iter__ and sampler.replacement
    if own and weights is not None and len(weights) == len(labels):
        shares = np.bincount(labels, np.asarray(weights, dtype=np.float64), minlength=size)
    return None if shares is None or np.shape(shares) != (size,) else np.asarray(shares, dtype=np.float64)


def _who(data: Any, dataset: Any, origin: NDArray[Any]) -> str:
    repeats = len(np.unique(origin)) < len(origin)
    return type(dataset if repeats or _sampler(data) is None else _sampler(data)).__name__


def _count(labels: Counts, size: int = 0) -> Counts:
    return np.bincount(labels, minlength=size)
