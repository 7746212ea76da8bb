"""The audit of a trained head: which of its classes are dead, from weight and bias alone.

Rows are compared about their mean, on which a softmax does not depend, and by distances, lengths and leads, which do
not change when features are rotated, or shifted by c with the bias changed to b − Wc.

Example:
    >>> rng = np.random.default_rng(0)
    >>> weight = rng.standard_normal((40, 16)) * np.linspace(0.5, 2, 40)[:, None]
    >>> weight[5] = weight[6] = weight[7]  # three classes on one row
    >>> found = audit(weight)
    >>> found.groups, np.flatnonzero(found.dead).tolist()
    (((5, 6, 7),), [5, 6, 7])
    >>> found.summary.partition(".")[0]
    '3 of 40 classes are dead: 3 share 1 row with others'
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.checks import STORED_TURNED, flat_bias
from collapsar.core.record_types import AuditRecord
from collapsar.core.records import to_json
from collapsar.core.sentences import names_of
from collapsar.core.types import Mask, Vector
from collapsar.diagnose import audit_words
from collapsar.diagnose.audit_samples import CountEffect, count_effect, predicted_lost, recalls
from collapsar.diagnose.reach import Progress, Reach, reach
from collapsar.diagnose.reach_search import FeatureSpace
from collapsar.diagnose.untrained import RowSpectrum, at_initial_length, row_spectrum
from collapsar.metrics.near_rows import Rows, SomeRows, near_labels
from collapsar.metrics.predictions import Decisions
from collapsar.metrics.separation import as_array
from collapsar.metrics.shared_rows import TOLERANCE, from_middle, longest_row, row_geometry, row_groups

# Rows this close, relative to the longest, count as one row: float32 rounding of training and storage.
_IDENTICAL = 1e-6
# Rows are sketched in float32: squares of longer or shorter ones, with room for the products, exceed its range.
_SHORTEST, _LONGEST = 1e-15, 1e15
# Records list every class up to this many; beyond, only the dead ones.
_LISTED = 20_000


@dataclass(frozen=True)
class AuditOptions:
    """The criteria of an audit.

    Attributes:
        tolerance: rows coincide if no farther apart than this share of the longest row, in (0, 1).
        features: where features are looked for that make a class the answer: "free", "nonnegative" (behind a ReLU), or
            a number, the length of all (behind a normalisation).
        lambda_z: the penalty of the mean predictions in training, sqrt(lambda_w * lambda_h); with class counts the
            exact optimum for signed and nonnegative features is put beside what was found.
        lambda_w: the penalty of the head's weight where ``features`` is a length; with class counts the exact optimum
            for normalised features is.
        lambda_b: the penalty of the bias; inf: no bias; None: a free bias, 0, where the head has one.
        largest_reach: how many multiplications may be spent on whether features make each class the answer; it is not
            looked at where K²d is more.
        progress: called with a sentence now and then while that takes long.
    """

    tolerance: float = TOLERANCE
    features: FeatureSpace = "free"
    lambda_z: float | None = None
    lambda_w: float | None = None
    lambda_b: float | None = None
    largest_reach: float = 2e13
    progress: Progress | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(
                f"`tolerance` must lie between 0 and 1, a share of the longest row; got {self.tolerance}. Keep 0.01"
            )
        number = isinstance(self.features, int | float) and not isinstance(self.features, bool)
        if not (self.features in ("free", "nonnegative") if not number else 0 < float(self.features) < np.inf):
            raise ValueError(
                f'`features` must be "free", "nonnegative" or a positive number, their length; got {self.features!r}'
            )
        if not self.largest_reach >= 0:
            raise ValueError(f"`largest_reach` must be a number of multiplications, >= 0; got {self.largest_reach}")
        if self.lambda_w is not None and not number:
            raise ValueError("`lambda_w` alone is for normalised features: set `features` to their length, a number")


@dataclass(frozen=True)
class Group:
    """Classes whose rows coincide: no input can tell them apart, the bias alone decides which is predicted.

    Attributes:
        classes: ascending.
        identical: the largest number of them that share one row up to rounding.
        radius: the largest distance from their mean row, relative to the longest row of the head.
        bias_spread: largest minus smallest of what the bias adds at their mean feature offset, in nats.
        answered: the member with the largest bias, the only one that can be predicted.
    """

    classes: tuple[int, ...]
    identical: int
    radius: float
    bias_spread: float
    answered: int


@dataclass(frozen=True, eq=False)
class Audit:
    """What a head tells about its classes.

    Attributes:
        notes: what was left out, and why.
        num_classes: K.
        num_features: d.
        class_names: K names, or None.
        class_counts: shape (K,), or None.
        groups: classes whose rows coincide within the tolerance, the largest group first.
        group_details: the same with their measurements.
        dead: shape (K,): the row coincides with others, has shrunk to the mean, is as initialised, or cannot win.
        unreachable: shape (K,): no features make the class the answer; False for all if that was left out.
        at_initialisation: shape (K,): the row is still as initialised.
        shrunk: shape (K,): the row has shrunk to the mean of all rows.
        scheme: the initialisation whose length those rows have, "" without such rows.
        lengths: shape (K,), of the rows about their mean, relative to the longest.
        scale: the length of the longest row (three times the 90th percentile if that is less).
        bias: shape (K,), or None.
        spectrum: of the rows.
        reach: certificates of the unreachable classes and features for the others; None if that was left out.
        counts: how length, bias and death depend on the class counts; None without counts.
        recalls: what the head does with the given features; None without them.
        predicted: for each feature model ("signed", "nonnegative", "normalised") the classes, shape (K,), that have
            merged or vanished at the exact optimum for these counts; empty without counts and penalties.
        tolerance: as given.
    """

    notes: tuple[str, ...]
    num_classes: int
    num_features: int
    class_names: tuple[str, ...] | None
    class_counts: NDArray[np.int64] | None
    groups: tuple[tuple[int, ...], ...]
    group_details: tuple[Group, ...]
    dead: Mask
    unreachable: Mask
    at_initialisation: Mask
    shrunk: Mask
    scheme: str
    lengths: Vector
    scale: float
    bias: Vector | None
    spectrum: RowSpectrum
    reach: Reach | None
    counts: CountEffect | None
    recalls: Decisions | None
    predicted: Mapping[str, Mask]
    tolerance: float

    @cached_property
    def summary(self) -> str:
        """How many classes are dead, of which kinds, and what to do: one line."""
        return audit_words.summary(self)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The findings, a sentence or two each."""
        return tuple(audit_words.findings(self))

    def to_dict(self) -> AuditRecord:
        """The audit as JSON-able values: classes by number, NaN as None.

        "dead_classes" has the name, samples and length of every dead class; up to 20 000 classes, all are listed.
        """
        full, reached = self.num_classes <= _LISTED, self.reach
        dead, names, counts = np.flatnonzero(self.dead).tolist(), self.class_names, self.class_counts
        record: AuditRecord = {
            "kind": "audit",
            "summary": self.summary,
            "words": list(self.words),
            "notes": list(self.notes),
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "class_names": list(names) if full and names is not None else None,
            "class_counts": counts.tolist() if full and counts is not None else None,
            "tolerance": self.tolerance,
            "groups": to_json(self.group_details),
            "dead": dead,
            "dead_classes": [
                {"index": k, "name": str(k) if names is None else names[k], "length": float(self.lengths[k]),
                 "samples": None if counts is None else int(counts[k])}
                for k in dead
            ],
            "unreachable": None if reached is None else np.flatnonzero(self.unreachable).tolist(),
            "undecided": None if reached is None else np.flatnonzero(reached.undecided).tolist(),
            "feature_space": None if reached is None else reached.space,
            "at_initialisation": np.flatnonzero(self.at_initialisation).tolist(),
            "scheme": self.scheme,
            "shrunk": np.flatnonzero(self.shrunk).tolist(),
            "lengths": self.lengths.tolist() if full else None,
            "scale": self.scale,
            "rank": self.spectrum.rank,
            "effective_rank": self.spectrum.effective_rank,
            "most_rank": min(self.num_classes - 1, self.num_features),
            "counts": to_json(self.counts),
            "predicted": {model: np.flatnonzero(lost).tolist() for model, lost in self.predicted.items()},
            "recalls": None if self.recalls is None else _recall_rows(self.recalls, self.dead),
        }  # fmt: skip
        return to_json(record)

    def to_json(self) -> str:
        """The record as one line of standard JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)


def audit(
    weight: Any,
    bias: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
    class_counts: ArrayLike | None = None,
    features: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    options: AuditOptions | None = None,
) -> Audit:
    """Say which classes of a trained linear head are dead, from its weight and bias.

    Args:
        weight: shape (K, d), a row per class: an array, a tensor, or a memory map, which is read in blocks.
        bias: shape (K,).
        class_names: K names.
        class_counts: samples of each class in training, shape (K,), whole numbers >= 0.
        features: what the head receives, shape (N, d), with ``labels``: shows which dead classes have samples and what
            these are predicted as.
        labels: shape (N,), whole numbers from 0 to K − 1.
        options: tolerance, and the space of features to search.

    Returns:
        The audit.

    Raises:
        ValueError: a shape does not fit, or a number is not finite; the message says which.
    """
    options = AuditOptions() if options is None else options
    W = _weight(weight)
    K = W.shape[0]
    b, counts = _bias(bias, *W.shape), _counts(class_counts, K)
    names = None if class_names is None else names_of(class_names, K)
    seen = recalls(W, b, features, labels) if features is not None or labels is not None else None
    mean, lengths = row_geometry(W)
    scale = longest_row(lengths)
    if scale > 0 and not _SHORTEST <= scale <= _LONGEST:
        raise ValueError(
            f"`weight` must have rows between {_SHORTEST:g} and {_LONGEST:g} long about their mean, or all equal; got "
            f"{scale:.3g}. Look for a diverged run or a damaged file, or scale weight and bias by one number"
        )
    # a scale of zero: all rows are equal
    groups = row_groups(W, mean, options.tolerance * scale) if scale > 0 else [tuple(range(K))]
    spectrum = row_spectrum(W, mean)
    shrunk = lengths <= options.tolerance * scale
    initial, scheme = at_initial_length(W, lengths, spectrum, mean) if scale > 0 else (np.zeros(K, dtype=bool), "")
    decided, notes = _reach(W, b, options)
    unreachable = np.zeros(K, dtype=bool) if decided is None else decided.unreachable
    dead = shrunk | initial | unreachable
    dead[[k for group in groups for k in group]] = True
    predicted, left_out = _theory(counts, options, b)
    return Audit(
        notes=(*notes, *left_out),
        num_classes=K,
        num_features=W.shape[1],
        class_names=names,
        class_counts=counts,
        groups=tuple(groups),
        group_details=tuple(_detail(W, b, mean, scale, group) for group in groups),
        dead=dead,
        unreachable=unreachable,
        at_initialisation=initial,
        shrunk=shrunk,
        scheme=scheme,
        lengths=lengths / scale if scale > 0 else lengths,
        scale=scale,
        bias=b,
        spectrum=spectrum,
        reach=decided,
        counts=None if counts is None else count_effect(lengths, b, counts, dead),
        recalls=seen,
        predicted=predicted,
        tolerance=options.tolerance,
    )


def _recall_rows(seen: Decisions, dead: Mask) -> dict[str, Any]:
    """The accuracy, and a row for each dead class with samples."""
    rows = [
        {"class": k, "samples": seen.counts[k], "recall": seen.recall[k], "predicted": seen.predicted[k],
         "taken_by": seen.taken_by[k]}
        for k in np.flatnonzero(dead & (seen.counts > 0)).tolist()
    ]  # fmt: skip
    return {"accuracy": seen.accuracy, "num_samples": seen.counts.sum(), "dead": rows}


def _weight(weight: Any) -> Rows:
    if hasattr(weight, "detach"):
        weight = weight.detach().cpu().float().numpy()
    if not hasattr(weight, "shape"):
        weight = np.asarray(weight)
    shape = tuple(weight.shape)
    if len(shape) > 2 and set(shape[2:]) == {1}:  # a convolution of one pixel
        weight, shape = np.reshape(weight, shape[:2]), shape[:2]
    if len(shape) != 2 or shape[0] < 2 or shape[1] < 1:
        raise ValueError(f"`weight` must be (K, d), a row for each of two or more classes; got shape {shape}")
    if isinstance(weight, np.ndarray) and weight.dtype.kind not in "fiu":
        raise ValueError(f"`weight` must hold real numbers; got {weight.dtype}")
    return weight


def _bias(bias: Any, K: int, turned: int) -> Vector | None:
    """The bias of a head (K, d); ``turned``, d, would be its length if the weight was stored (d, K)."""
    if bias is None:
        return None
    b = flat_bias(as_array(bias))
    if b.shape != (K,):
        hint = STORED_TURNED if b.shape == (turned,) else ""
        raise ValueError(f"`bias` must be (K,) = ({K},), a number for each row of `weight`; got shape {b.shape}{hint}")
    if not np.isfinite(b).all():
        raise ValueError(
            f"`bias` must be finite; got {b[~np.isfinite(b)][0]} for class {int(np.argmin(np.isfinite(b)))}"
        )
    return b


def _counts(class_counts: ArrayLike | None, K: int) -> NDArray[np.int64] | None:
    if class_counts is None:
        return None
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.shape != (K,):
        raise ValueError(
            f"`class_counts` must hold a number for each of the {K} rows of `weight`; got shape {counts.shape}"
        )
    if not (np.isfinite(counts) & (counts >= 0) & (counts == np.floor(counts))).all():
        raise ValueError("`class_counts` must be whole numbers >= 0, in the order of the rows of `weight`")
    return counts.astype(np.int64)


def _detail(W: Rows, b: Vector | None, mean: Vector, scale: float, group: tuple[int, ...]) -> Group:
    members = np.array(group)
    rows = SomeRows(W, members)
    same = np.bincount(near_labels(rows, _IDENTICAL * scale, mean)).max()
    biases = np.zeros(len(members)) if b is None else b[members]
    return Group(
        classes=group,
        identical=int(same) if same > 1 else 0,
        radius=float(from_middle(rows).max()) / scale if scale > 0 else 0.0,
        bias_spread=float(np.ptp(biases)),
        answered=int(members[biases.argmax()]),
    )


def _theory(
    counts: NDArray[np.int64] | None, options: AuditOptions, b: Vector | None
) -> tuple[dict[str, Mask], list[str]]:
    if counts is not None:
        norm = None if isinstance(options.features, str) else float(options.features)
        lambda_b = (np.inf if b is None else 0.0) if options.lambda_b is None else options.lambda_b
        return predicted_lost(
            counts, lambda_z=options.lambda_z, lambda_w=options.lambda_w, norm=norm, lambda_b=lambda_b
        )
    if options.lambda_z is None and options.lambda_w is None:
        return {}, []
    return {}, ["Which classes the penalties lose depends on `class_counts`, which were not given."]


def _reach(W: Rows, b: Vector | None, options: AuditOptions) -> tuple[Reach | None, list[str]]:
    K, d = W.shape
    left = options.largest_reach - float(K) * K * d
    if left < 0:
        note = (
            f"Whether some features make each class the answer was left out: {K} rows of {d} are more than "
            "`largest_reach` allows. Raise it, or audit only the rows that matter."
        )
        return None, [note]
    decided = reach(np.asarray(W[:]), b, options.features, largest=left, progress=options.progress)
    return decided, audit_words.not_decided(decided)
