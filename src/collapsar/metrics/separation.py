"""Which classes are merging: read from the mean predictions of a trained head, without torch.

The matrix Z (logit, class) holds in column k the mean prediction z̄_k = W μ_k of class k, bias not included.
When a minority collapses, its columns first turn equal (the classes are *merged*) and then zero (they have
*vanished*): the states of the exact optimum (Hong & Ling, JMLR 25(192), 2024, Thm 3 and Cor. 4), measured
here with a threshold. Everything is a distance or a length relative to the longest column, never a cosine:
cosines are 0/0 once a class vanishes.

Example:
    >>> import numpy as np
    >>> from collapsar.metrics.separation import class_separation
    >>> columns = [[3, -1, -1, -1], [-1, 3, -1, -1], [-1, -1, 1, 1], [-1, -1, 1, 1]]
    >>> Z = np.array(columns).T
    >>> found = class_separation(Z)
    >>> found.states
    ('separated', 'separated', 'merged', 'merged')
    >>> found.groups
    ((2, 3),)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from collapsar.core.states import ClassState
from collapsar.core.types import Mask
from collapsar.metrics.near_rows import groups_of, near_labels, nearest_rows

# Many columns of a rank below one of these are compared in that many coordinates.
_RANKS = (128, 512)
# In groups larger than this, identical members are compared once.
_LARGE_GROUP = 1000

MeasuredState = ClassState | Literal["unseen"]
"""The state of a class in a network; "unseen" if it has no samples."""


@dataclass(frozen=True)
class ClassSeparation:
    """How far the classes are from each other in logit space, and which cannot be told apart.

    Attributes:
        states: Per class "separated", "merged" or "vanished", the words of the theory; "unseen" without
            samples.
        groups: Sets of classes that cannot be told apart, each sorted, ordered by their first member: the
            vanished classes (when there are two or more) and the groups of merged ones.
        relative_norms: ‖z̄_k‖ / scale, shape (K,); NaN where unseen.
        nearest: The class with the closest column, shape (K,), int64; −1 where there is none.
        nearest_separation: Its distance ‖z̄_k − z̄_j‖ / scale, shape (K,); NaN where there is none.
        scale: The length everything is relative to, in nats: max_k ‖z̄_k‖, or ``min_norm`` if that is larger.
        merge_threshold: As given.
        vanish_threshold: As given.
    """

    states: tuple[MeasuredState, ...]
    groups: tuple[tuple[int, ...], ...]
    relative_norms: NDArray[np.float64]
    nearest: NDArray[np.int64]
    nearest_separation: NDArray[np.float64]
    scale: float
    merge_threshold: float
    vanish_threshold: float

    @property
    def merged_classes(self) -> tuple[int, ...]:
        """The classes in state "merged", ascending."""
        return self._in_state("merged")

    @property
    def vanished_classes(self) -> tuple[int, ...]:
        """The classes in state "vanished", ascending."""
        return self._in_state("vanished")

    @property
    def unseen_classes(self) -> tuple[int, ...]:
        """The classes without samples, ascending."""
        return self._in_state("unseen")

    @property
    def num_distinct(self) -> int:
        """How many classes are separated; merged, vanished and unseen ones make up the rest of the K."""
        return self.states.count("separated")

    def _in_state(self, state: MeasuredState) -> tuple[int, ...]:
        return tuple(k for k, found in enumerate(self.states) if found == state)


def class_logits(class_means: Any, weight: Any) -> NDArray[np.float64]:
    """Return Z = W M̄ᵀ (logit, class) from class means and head, bias not included.

    Args:
        class_means: Class means, shape (K, d), array or tensor; NaN rows for unseen classes give NaN columns.
        weight: Head weight, shape (L, d), one row per logit.

    Raises:
        ValueError: If the shapes do not fit or the weight is not finite.
    """
    means, weight = as_array(class_means), as_array(weight)
    if means.ndim != 2 or weight.ndim != 2 or means.shape[1] != weight.shape[1]:
        raise ValueError(
            f"`class_means` (K, d) and `weight` (L, d) must share d; got {means.shape} and "
            f"{weight.shape}. Pass what the head receives and `head.weight`"
        )
    if not np.isfinite(weight).all():
        raise ValueError("`weight` must be finite; got NaN or infinity. Look for a diverged run")
    seen = np.isfinite(means).all(axis=1)
    Z = np.full((len(weight), len(means)), np.nan)
    Z[:, seen] = weight @ means[seen].T
    return Z


def relative_norms(Z: Any, min_norm: float = 0.05) -> NDArray[np.float64]:
    """Return ‖z̄_k‖ / max‖z̄‖, shape (K,), of the columns centred over logits; see ``class_separation``."""
    norms = np.linalg.norm(_columns(Z)[0], axis=0)
    return norms / _scale(norms, min_norm)


def relative_separation(Z: Any, min_norm: float = 0.05) -> NDArray[np.float64]:
    """Return ‖z̄_i − z̄_j‖ / max‖z̄‖, shape (K, K), of the columns centred over logits; NaN if unseen."""
    columns, seen = _columns(Z)
    out = np.full((len(seen), len(seen)), np.nan)
    # Differences are taken directly: from inner products they would cancel exactly where classes merge.
    out[np.ix_(seen, seen)] = squareform(pdist(columns[:, seen].T)) / _scale(np.linalg.norm(columns, axis=0), min_norm)
    return out


def cluster_contrasts(Z: Any, clusters: Sequence[Any]) -> NDArray[np.float64]:
    """Return the contrast α of every cluster: mean diagonal minus mean off-diagonal entry of its block.

    At the optimum the block of a cluster is α (I − J/k) + const, and α > 0 while its classes are apart
    (theory: Hong & Ling 2024, Thm 2b). 0 when they have merged.

    Args:
        Z: Mean predictions (logit, class), shape (K, K).
        clusters: One label per class, length K, for example its class count.

    Returns:
        Shape (J,), in the order of ``numpy.unique(clusters)``; NaN for a cluster with fewer than two seen
        classes.

    Raises:
        ValueError: If ``Z`` is not square or ``clusters`` does not have K entries.
    """
    Z = as_array(Z)
    labels = np.asarray(clusters)
    if Z.ndim != 2 or Z.shape[0] != Z.shape[1] or labels.shape != Z.shape[1:]:
        raise ValueError(
            f"`Z` must be (K, K) and `clusters` hold one label per class; got {Z.shape} and {labels.shape}. "
            "Give every class a label, seen or not"
        )
    seen = np.isfinite(Z).all(axis=0)
    contrasts = []
    for label in np.unique(labels):
        members = np.flatnonzero((labels == label) & seen)
        block, k = Z[np.ix_(members, members)], len(members)
        off = block.sum() - block.trace()
        contrasts.append(block.trace() / k - off / (k * (k - 1)) if k > 1 else np.nan)
    return np.array(contrasts)


def class_separation(
    Z: Any, *, merge_threshold: float = 0.1, vanish_threshold: float = 0.05, min_norm: float = 0.05
) -> ClassSeparation:
    """Say which classes are separated, merged or vanished, and which are merged with which.

    Columns are first centred over the logits, because softmax does not see a common shift. Then, with the
    scale max(max_k ‖z̄_k‖, ``min_norm``):

    * a class has **vanished** if ‖z̄_k‖ is below ``vanish_threshold`` · scale or below ``min_norm``: it
      predicts the bias, whatever the sample;
    * the others are grouped by complete linkage: two groups are joined, closest first, while *every* two of
      their members are closer than ``merge_threshold`` · scale. A class in a group of two or more is
      **merged**. Complete linkage is chosen because "merged" should hold for every pair in a group; connected
      components would chain a long tail of gradually shrinking classes into one group whose ends are far
      apart;
    * all else is **separated**.

    The defaults resolve the merged state of the exact optimum down to a few percent below the penalty at
    which it vanishes. ``vanish_threshold`` is half of ``merge_threshold``, so that any two vanished classes
    are also within the merge threshold.

    Args:
        Z: Mean predictions (logit, class), shape (L, K), array or tensor; a column of NaN marks an unseen
            class.
        merge_threshold: Relative distance in (0, 1).
        vanish_threshold: Relative norm in (0, 1).
        min_norm: In nats, positive. Without it, noise would look like structure when all classes vanish together; a
            column this short changes a probability by less than 2 percentage points.

    Raises:
        ValueError: If a threshold is out of range or ``Z`` is not a matrix that is finite except for NaN
            columns.
    """
    table, seen = _checked(Z)
    return _separation(_coordinates(table, seen), seen, merge_threshold, vanish_threshold, min_norm)


def mean_separation(
    class_means: Any,
    weight: Any,
    *,
    merge_threshold: float = 0.1,
    vanish_threshold: float = 0.05,
    min_norm: float = 0.05,
) -> ClassSeparation:
    """``class_separation`` of ``class_logits``, without the (L, K) table: for thousands of classes.

    Args:
        class_means: shape (K, d), NaN rows for classes without samples.
        weight: shape (L, d).
        merge_threshold: as for ``class_separation``.
        vanish_threshold: as for ``class_separation``.
        min_norm: as for ``class_separation``.

    Raises:
        ValueError: As for these two functions.

    Example:
        >>> mean_separation([[1.0, 0], [0, 1], [0, 1]], [[1.0, 0], [0, 1], [0, 1]]).groups
        ((1, 2),)
    """
    means, W = as_array(class_means), as_array(weight)
    class_logits(means[:1], W)  # the same checks
    seen = np.asarray(np.isfinite(means).all(axis=1))
    # the columns in the coordinates of an orthonormal basis of the head's columns
    basis = np.linalg.qr(W - W.mean(axis=0))[1] if len(W) > W.shape[1] else W - W.mean(axis=0)
    return _separation(means[seen] @ basis.T, seen, merge_threshold, vanish_threshold, min_norm)


def _separation(
    points: NDArray[np.float64], seen: Mask, merge: float, vanish: float, min_norm: float
) -> ClassSeparation:
    """The states of the seen classes from their columns, in any orthonormal coordinates: shape (n, m)."""
    for name, value in (("merge_threshold", merge), ("vanish_threshold", vanish)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must lie strictly between 0 and 1; got {value}. Try the default")
    norms = np.linalg.norm(points, axis=1)
    scale = _scale(norms, min_norm)
    norms = norms / scale
    vanished = (norms < vanish) | (norms * scale < min_norm)
    found = _complete_linkage(points / scale, np.flatnonzero(~vanished), merge)
    states = np.where(vanished, "vanished", "separated").astype(object)
    for group in found:
        states[list(group)] = "merged"
    if vanished.sum() > 1:
        found.append(tuple(np.flatnonzero(vanished).tolist()))
    place = np.flatnonzero(seen)
    every = np.full(len(seen), "unseen", dtype=object)
    every[place] = states
    nearest, distance = np.full(len(seen), -1), np.full(len(seen), np.nan)
    if len(place) > 1:
        rival, apart = nearest_rows(points)
        nearest[place], distance[place] = place[rival], apart / scale
    all_norms = np.full(len(seen), np.nan)
    all_norms[place] = norms
    return ClassSeparation(
        states=tuple(every.tolist()),
        groups=tuple(sorted(tuple(place[list(group)].tolist()) for group in found)),
        relative_norms=all_norms,
        nearest=nearest,
        nearest_separation=distance,
        scale=scale,
        merge_threshold=merge,
        vanish_threshold=vanish,
    )


def _coordinates(Z: NDArray[np.float64], seen: Mask) -> NDArray[np.float64]:
    """The seen columns, centred over logits, as points, shape (n, m): in fewer coordinates if many have a low rank.

    Distances are the same as in all coordinates. A large table is not copied unless its rank is high.
    """
    place = np.flatnonzero(seen)
    L, n = len(Z), len(place)
    means = Z.mean(axis=0)
    if n == Z.shape[1] and min(n, L) > 2 * _RANKS[0]:
        largest = max(float(np.abs(Z[:, i : i + 256] - means[i : i + 256]).max()) for i in range(0, n, 256))
        for rank in (rank for rank in _RANKS if min(n, L) > 2 * rank):
            drawn = np.random.default_rng(0).standard_normal((n, rank))
            basis = np.linalg.qr(Z @ drawn - means @ drawn)[0]
            fewer = Z.T @ basis - np.outer(means, basis.sum(axis=0))
            lost = (
                float(np.abs(Z[:, i : i + 256] - means[i : i + 256] - basis @ fewer[i : i + 256].T).max())
                for i in range(0, n, 256)
            )
            if all(part <= 1e-12 * largest for part in lost):
                return fewer
    return (Z[:, place] - means[place]).T


def _complete_linkage(
    points: NDArray[np.float64], members: NDArray[np.int64], threshold: float
) -> list[tuple[int, ...]]:
    """Groups of two or more of the members whose diameter is below the threshold.

    Only members that are connected by steps below the threshold can share a group: each such set is linked by itself.
    """
    found: list[tuple[int, ...]] = []
    for part in groups_of(near_labels(points[members], threshold)):
        chosen = members[list(part)]
        same = near_labels(points[chosen], 1e-9 * threshold) if len(chosen) > _LARGE_GROUP else np.arange(len(chosen))
        first, member = np.unique(same, return_inverse=True)
        assigned = np.ones(1, dtype=np.int64)
        if len(first) > 1:
            tree = linkage(pdist(points[chosen[first]]), method="complete")
            # fcluster joins at distances <= t; the states are defined with a strict comparison.
            assigned = fcluster(tree, t=np.nextafter(threshold, 0), criterion="distance")
        groups = (tuple(chosen[assigned[member] == label].tolist()) for label in np.unique(assigned))
        found += [group for group in groups if len(group) > 1]
    return found


def _columns(Z: Any) -> tuple[NDArray[np.float64], Mask]:
    """Return the columns of Z centred over logits, and the mask of the seen classes."""
    Z, seen = _checked(Z)
    return Z - Z.mean(axis=0), seen


def _checked(Z: Any) -> tuple[NDArray[np.float64], Mask]:
    """Return Z as an array, and the mask of the seen classes."""
    Z = as_array(Z)
    if Z.ndim != 2 or Z.shape[0] < 1 or Z.shape[1] < 1:
        raise ValueError(f"`Z` must be a matrix (logit, class); got shape {Z.shape}. See class_logits")
    seen = ~np.isnan(Z).all(axis=0)
    if not np.isfinite(Z).all(axis=0)[seen].all():
        raise ValueError("`Z` must be finite except for all-NaN columns (unseen classes). Look for a diverged run")
    return Z, seen


def _scale(norms: NDArray[np.float64], min_norm: float) -> float:
    if not (np.isfinite(min_norm) and min_norm > 0):
        raise ValueError(f"`min_norm` must be finite and positive, in nats; got {min_norm}. Keep the default")
    return float(max(norms[np.isfinite(norms)].max(initial=0.0), min_norm))


def as_array(values: Any) -> NDArray[np.float64]:
    """A float64 array from an array or, without importing torch, from a tensor of any device and dtype."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)
