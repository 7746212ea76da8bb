"""What samples of a class say beyond the bias, and which classes are lost: read from the logits alone, without torch.

Replacing features h by h + c and the bias b by b - W c changes no logit, so it must not change a verdict: before
lengths are compared, the origin that all classes share is subtracted (``common_origin``). States (``class_separation``)
say whether classes are separated; ``class_standings`` says what a user notices: whether samples of a class are ever
predicted as their own class, and if not, why.

Example:
    >>> import numpy as np
    >>> from collapsar.metrics.separation import class_separation
    >>> Z, b = np.array([[2.0, -1, -1], [-1, 2, -1], [-1, -1, 2]]), np.array([4.0, 0.0, 0.0])
    >>> standing = class_standings(class_separation(Z), Z + b[:, None])
    >>> [(c.index, c.reason, c.rival, c.nats) for c in standing.lost]
    [(1, 'outvoted', 0, 1.0), (2, 'outvoted', 0, 1.0)]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.types import Matrix, Vector
from collapsar.metrics.predictions import MeanPredictions
from collapsar.metrics.separation import ClassSeparation, as_array, class_logits

# Features behind a ReLU rest on a floor: in most coordinates most class means lie within this share of the range.
_AT_FLOOR, _MOST_CLASSES, _MOST_COORDINATES = 0.05, 0.5, 0.8
# A coordinate that varies less than this relative to the one that varies most is noise.
_LIVE = 1e-3
# Logits nearer than this, in nats, are a tie.
_TIE = 1e-6
# Columns are computed for this many classes at a time.
_CLASSES = 256


@dataclass(frozen=True)
class LostClass:
    """A class that is predicted for none of its own samples.

    Attributes:
        index: the class.
        reason: its state, "merged" or "vanished", or "outvoted" if it is separated.
        rival: the class that its samples are predicted as.
        nats: by how much its mean prediction scores the rival higher.
    """

    index: int
    reason: Literal["merged", "vanished", "outvoted"]
    rival: int
    nats: float


@dataclass(frozen=True)
class Standings:
    """How the head decides about the samples of each class.

    Attributes:
        lost: the classes that are predicted for none of their own samples, ascending.
        carried: classes without evidence of their own that the bias alone classifies correctly, while no other class
            has the same predictions.
        outscored: separated classes that are not lost, although their mean prediction scores another class higher.
    """

    lost: tuple[LostClass, ...]
    carried: tuple[int, ...]
    outscored: tuple[int, ...] = ()

    def behind(self, num_classes: int) -> Vector:
        """Nats by which the mean prediction of each lost class scores its rival higher, shape (K,); 0 for others."""
        found = np.zeros(num_classes)
        for c in self.lost:
            found[c.index] = c.nats
        return found


def collapsed_classes(found: ClassSeparation, standings: Standings) -> tuple[int, ...]:
    """The merged and vanished classes, ascending, except those that the bias alone classifies correctly."""
    return tuple(sorted({*found.merged_classes, *found.vanished_classes} - set(standings.carried)))


def dead_classes(shared_rows: Sequence[Sequence[int]], class_counts: ArrayLike) -> tuple[int, ...]:
    """The classes with samples whose row of the head coincides with another's (``shared_rows``), ascending."""
    counts = np.asarray(class_counts)
    return tuple(sorted(k for group in shared_rows for k in group if counts[k] > 0))


def common_origin(class_means: Any, class_counts: ArrayLike) -> Vector:
    """The point from which features count as evidence, shape (d,): it moves with an offset of all features.

    It is the sample mean, which is zero at the optimum of signed features with a free bias; or, if most class means lie
    on the floor of most coordinates, as behind a ReLU, that floor, which is zero for nonnegative features.

    Args:
        class_means: shape (K, d); NaN rows for classes without samples.
        class_counts: shape (K,).
    """
    means, counts = np.asarray(class_means, dtype=np.float64), np.asarray(class_counts, dtype=np.float64)
    seen = np.isfinite(means).all(axis=1) & (counts > 0)
    if seen.sum() < 2:  # nothing to compare with
        return np.zeros(means.shape[1])
    return means[seen].min(axis=0) if on_floor(means) else counts[seen] @ means[seen] / counts[seen].sum()


def on_floor(class_means: Any) -> bool:
    """Whether most class means lie on the floor of most coordinates, as behind a ReLU; NaN rows are left out."""
    means = np.asarray(class_means, dtype=np.float64)
    means = means[np.isfinite(means).all(axis=1)]
    if len(means) < 2:
        return False
    spread = means.max(axis=0) - means.min(axis=0)
    live = spread > _LIVE * spread.max()
    if not live.any():
        return False
    low = (means - means.min(axis=0))[:, live] <= _AT_FLOOR * spread[live]
    return bool(np.mean(low.mean(axis=0) > _MOST_CLASSES) >= _MOST_COORDINATES)


def class_evidence(class_means: Any, weight: Any, class_counts: ArrayLike) -> Matrix:
    """Mean predictions [logit, class] without what all classes share: Z of the features about ``common_origin``.

    Args:
        class_means: shape (K, d), NaN rows for classes without samples, which give NaN columns.
        weight: W, shape (K, d).
        class_counts: shape (K,).

    Raises:
        ValueError: as ``class_logits``.

    Example:
        >>> means, W = np.array([[1.0, 0.0], [0.0, 1.0]]), np.eye(2)
        >>> np.array_equal(class_evidence(means + 8, W, [5, 5]), class_evidence(means, W, [5, 5]))
        True
    """
    means = as_array(class_means)
    return class_logits(means - common_origin(means, class_counts), weight)


def class_standings(
    found: ClassSeparation,
    logits: ArrayLike | MeanPredictions,
    recalls: ArrayLike | None = None,
    taken_for: ArrayLike | None = None,
    *,
    bias: Vector | None = None,
) -> Standings:
    """Say which classes are lost, and which are right by the bias alone.

    A class is lost if none of its samples is predicted as it; if that was not counted, if its mean prediction scores
    another class higher. From factors only the columns that matter are computed: none for a class of which every
    sample is predicted correctly.

    Args:
        found: the states.
        logits: mean logits [logit, class], bias included, shape (K, K), NaN columns for classes without samples; or
            factors of the mean predictions.
        recalls: share of each class's samples that are predicted as it, shape (K,).
        taken_for: class that most of its other samples are predicted as, shape (K,), -1 if there are none.
        bias: b, shape (K,), if ``logits`` does not include it.
    """
    predictions = logits if isinstance(logits, MeanPredictions) else MeanPredictions(np.asarray(logits, np.float64))
    K = predictions.shape[1]
    states = np.array(found.states)
    given = np.full(K, np.nan) if recalls is None else np.asarray(recalls, dtype=np.float64)
    taken = np.full(K, -1) if taken_for is None else np.asarray(taken_for, dtype=np.int64)
    open_ = np.flatnonzero((states != "unseen") & ((states == "vanished") | ~(given >= 1)))
    lost: list[LostClass] = []
    carried: list[int] = []
    outscored: list[int] = []
    for part in np.array_split(open_, -(-len(open_) // _CLASSES) or 1):
        L = predictions.columns(part) + (0.0 if bias is None else bias[:, None])
        place = np.arange(len(part))
        own = L[part, place].copy()
        L[part, place] = -np.inf
        highest = L.argmax(axis=0) if len(part) else place
        behind = L[highest, place] - own
        for i, k in enumerate(part.tolist()):
            state: Any = found.states[k]
            if given[k] == 0 or (recalls is None and behind[i] > _TIE):
                rival = int(taken[k]) if taken[k] >= 0 else int(highest[i])
                reason = "outvoted" if state == "separated" else state
                lost.append(LostClass(k, reason, rival, float(L[rival, i] - own[i])))
            elif state == "vanished" and behind[i] < -_TIE and found.nearest_separation[k] >= found.merge_threshold:
                carried.append(k)
            elif state == "separated" and behind[i] > 0:
                outscored.append(k)
    return Standings(tuple(lost), tuple(carried), tuple(outscored))
