"""What theory needs to know about a trained network: class means, head, and how hard the loss still pulls. No torch.

Example:
    >>> features = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> m = measure(features, [0, 0, 1], weight=[[1.0, -1.0], [-1.0, 1.0]])
    >>> m.class_counts.tolist(), m.Z.tolist(), m.nonnegative
    ([2, 1], [[2.0, -1.0], [-2.0, 1.0]], True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.checks import STORED_TURNED, flat_bias
from collapsar.core.loss import Loss
from collapsar.core.problem import FeatureModel
from collapsar.core.sentences import listed
from collapsar.core.types import Matrix, Vector
from collapsar.metrics.evidence import common_origin, on_floor
from collapsar.metrics.predictions import MeanPredictions, decisions
from collapsar.metrics.separation import ClassSeparation, class_logits, mean_separation

MAX_CLASSES = 20_000
"""A diagnosis compares every two classes: this many take minutes."""

MAX_TABLE = 2000
"""K x K tables are made for up to this many classes; beyond, whatever needs one is left out, with a note."""

# Sums of squares of larger numbers exceed the range of float64.
_LARGEST = 1e100

# Nonnegative features come this near to zero, relative to their range.
_NEAR_ZERO = 0.5

# The outputs of a tanh come this near to 1 on either side.
_NEAR_ONE = 0.9

# float64 work space of one step over the samples: 2^21 numbers are 16 MiB. A step adds K x d numbers to the gradient,
# so it should cover many samples.
_BLOCK_NUMBERS = 1 << 21
_LEAST_STEP = 384


@dataclass(frozen=True)
class Lengths:
    """How long the features are: the trace of a normalisation before the head.

    Attributes:
        mean: of ||h|| over the samples.
        spread: standard deviation of ||h|| over its mean; 0 if each sample is normalised to one length.
        mean_square: of ||h||^2 over the samples.
        variance_spread: standard deviation over the features of their variances, over the mean of these; 0 if each
            feature is normalised to one variance over the batch. NaN for constant features.
        offset_share: ||mean of h||^2 over ``mean_square``; 0 if the features are centred.
        least: the smallest value of any feature.
        bounded: whether every feature stays within [-1, 1] and most come near both ends, as behind a tanh.
    """

    mean: float
    spread: float
    mean_square: float
    variance_spread: float
    offset_share: float
    least: float
    bounded: bool


@dataclass(frozen=True, eq=False)
class Measurement:
    """One pass over the training samples, in the mode in which the network is used.

    Attributes:
        class_counts: n, shape (K,), int64.
        class_means: shape (K, d), mean feature of each class; NaN rows for classes without samples.
        weight: W, shape (K, d), as torch stores a linear layer.
        bias: b, shape (K,); None for a head without bias.
        weight_gradient: shape (K, d), gradient of the mean loss, without penalties, in W, with the features fixed.
        bias_gradient: shape (K,), the same in b.
        loss: the mean loss, nats.
        accuracies: shape (K,), share of each class's samples that the head gets right; NaN without samples.
        energy: sum of ||h||^2 over all samples.
        nonnegative: whether features lie on a floor, as behind a ReLU: zero, or zero moved by an offset.
        loss_form: the loss behind the gradients.
        metrics: scalars of ``CollapseReport`` by name, empty if they were not computed.
        taken_for: shape (K,), the class that most misclassified samples of each class are predicted as, the first of
            equals; -1 for none.
        linear: whether the head computes W h + b. If not, features are the logits themselves, W the identity, and
            nothing is said about penalties and geometry.
        lengths: how long the features are, as the head receives them.
        least: shape (d,), the smallest value of each feature over the samples.
        exposure: shape (K,), how often training shows each class relative to its share; None: all samples equally.
    """

    class_counts: NDArray[np.int64]
    class_means: Matrix
    weight: Matrix
    bias: Vector | None
    weight_gradient: Matrix
    bias_gradient: Vector
    loss: float
    accuracies: Vector
    energy: float
    nonnegative: bool
    loss_form: Loss = field(default_factory=Loss)
    metrics: Mapping[str, float] = field(default_factory=dict)
    taken_for: NDArray[np.int64] | None = None
    linear: bool = True
    lengths: Lengths | None = None
    least: Vector | None = None
    exposure: Vector | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return self.class_counts.size

    @property
    def Z(self) -> Matrix:  # noqa: N802 - the paper's letter
        """Mean predictions, shape (K, K) [logit, class], bias not included; NaN columns without samples.

        Built on request, never stored; ``predictions`` has columns of it.
        """
        return class_logits(self.class_means, self.weight)

    @property
    def features(self) -> FeatureModel:
        """The model of penalised features that these look like."""
        return "nonnegative" if self.nonnegative else "signed"

    @property
    def small(self) -> bool:
        """Whether there are few enough classes for K x K tables."""
        return self.num_classes <= MAX_TABLE

    @property
    def predictions(self) -> MeanPredictions:
        """Z as a product of its factors."""
        return MeanPredictions(self.weight, self.class_means)

    @cached_property
    def evidence(self) -> MeanPredictions:
        """Z without what all classes share: an offset of all features that the bias cancels changes nothing here."""
        return MeanPredictions(self.weight, self.class_means - common_origin(self.class_means, self.class_counts))

    @cached_property
    def separation(self) -> ClassSeparation:
        """Which classes are separated, merged or vanished, by the ``evidence``."""
        return mean_separation(self.evidence.class_means, self.weight)

    @property
    def feature_mass(self) -> Vector | None:
        """How often training's penalty counts a feature of each class, shape (K,), N in all; None: once per sample."""
        if self.exposure is None:
            return None
        shown = self.class_counts * self.exposure
        return shown * (self.class_counts.sum() / shown.sum())

    @property
    def mass(self) -> Vector:
        """The same, with the class counts if once per sample."""
        return self.class_counts.astype(np.float64) if self.feature_mass is None else self.feature_mass

    @property
    def b(self) -> Vector:
        """The bias, zeros for a head without one."""
        return np.zeros(self.num_classes) if self.bias is None else self.bias

    @property
    def unseen(self) -> tuple[int, ...]:
        """The classes without samples."""
        return tuple(np.flatnonzero(self.class_counts == 0).tolist())

    @property
    def within_share(self) -> float:
        """1 - sum_k n_k ||mean_k||^2 / energy: the share of the features' energy inside classes. 0 at collapse."""
        means = float(self.class_counts @ np.sum(np.nan_to_num(self.class_means) ** 2, axis=1))
        return max(1 - means / self.energy, 0.0) if self.energy > 0 else float("nan")


class Pass:
    """Sums over batches; ``result`` turns them into a :class:`Measurement`.

    Args:
        weight: W, shape (K, d).
        bias: shape (K,) or None.
        loss: the loss that the network was trained with.

    Raises:
        ValueError: a shape disagrees, an entry is not finite, or there are too many classes.
    """

    def __init__(self, weight: ArrayLike, bias: ArrayLike | None = None, loss: Loss | None = None) -> None:
        self.weight = _finite("weight", weight)
        if self.weight.ndim != 2 or min(self.weight.shape) < 1 or len(self.weight) < 2:
            raise ValueError(
                f"`weight` must have shape (K, d) with K >= 2, got {self.weight.shape}; give that of the last layer"
            )
        K = len(self.weight)
        if K > MAX_CLASSES:
            raise ValueError(
                f"`weight` has {K} classes, more than the {MAX_CLASSES} that a diagnosis compares pair by pair; "
                "`collapsar audit` reads the head alone, collapsar.metrics.NeuralCollapse(pairwise=False) the features"
            )
        self.bias = None if bias is None else flat_bias(_finite("bias", bias))
        if self.bias is not None and self.bias.shape != (K,):
            hint = STORED_TURNED if self.bias.shape == self.weight.shape[1:] else ""
            raise ValueError(f"`bias` must have one entry per row of `weight`, ({K},), got {self.bias.shape}{hint}")
        self.loss = Loss() if loss is None else loss
        self.counts = np.zeros(K, dtype=np.int64)
        self.sums = np.zeros_like(self.weight)
        self.pulls = np.zeros_like(self.weight)
        self.bias_pull, self.losses = np.zeros((2, K))
        self.squares = np.zeros(self.weight.shape[1])
        self.length = 0.0
        self.least, self.most = np.full((2, self.weight.shape[1]), [[np.inf], [-np.inf]])
        self.decided: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # true and predicted class of each sample

    def add(self, features: ArrayLike, labels: ArrayLike) -> None:
        """Add samples.

        Args:
            features: shape (B, d), what the head receives.
            labels: shape (B,), whole numbers in [0, K).

        Raises:
            ValueError: a shape disagrees, a label is out of range (named), or a feature is not finite.
        """
        rows, classes = np.asarray(features), np.asarray(labels)
        self._check(rows, classes)
        step = max(_LEAST_STEP, _BLOCK_NUMBERS // max(self.weight.shape))
        for start in range(0, len(rows), step):
            self._add(rows[start : start + step].astype(np.float64), classes[start : start + step].astype(np.int64))

    def _add(self, h: Matrix, k: NDArray[np.int64]) -> None:
        usable = np.abs(h) < _LARGEST  # NaN is not
        if not usable.all():
            bad = sorted({int(x) for x in k[~usable.all(axis=1)]})
            raise ValueError(
                f"`features` must be finite and below {_LARGEST:g}, got NaN, infinity or larger values in "
                f"class {listed(bad)}; the run diverged"
            )
        K, loss = len(self.weight), self.loss
        logits = h @ self.weight.T
        logits += 0.0 if self.bias is None else self.bias
        scales = np.ones(K) if loss.scales is None else loss.scales
        temperature = np.ones(len(k)) if loss.temperatures is None else loss.temperatures[k]
        importance = np.ones(len(k)) if loss.class_weights is None else loss.class_weights[k]
        best = logits.argmax(axis=1)
        self.decided.append((k, best))
        u = logits  # in place from here on: with many classes the time goes into passes over memory
        if loss.scales is not None or loss.temperatures is not None:
            u = temperature[:, None] * (scales * u)
        if loss.offsets is not None:
            u = u + loss.offsets
        top = u.max(axis=1, keepdims=True)
        sample, eps = np.arange(len(k)), loss.smoothing
        target = (1 - eps) * u[sample, k] + (eps * u.mean(axis=1) if eps else 0.0)
        r = np.exp(np.subtract(u, top, out=u), out=u)
        total = r.sum(axis=1, keepdims=True)
        value = (top + np.log(total))[:, 0] - target
        r /= total
        r -= eps / K
        r[sample, k] -= 1 - eps
        r *= scales * (importance * temperature)[:, None]
        occurring, starts = np.unique(np.sort(k), return_index=True)
        self.counts += np.bincount(k, minlength=K)
        self.sums[occurring] += np.add.reduceat(h[np.argsort(k, kind="stable")], starts, axis=0)
        self.pulls += r.T @ h
        self.bias_pull += r.sum(axis=0)
        self.losses += np.bincount(k, weights=importance * value, minlength=K)
        square = h * h
        self.squares += square.sum(axis=0)
        self.length += float(np.sqrt(square.sum(axis=1)).sum())
        self.least, self.most = np.minimum(self.least, h.min(axis=0)), np.maximum(self.most, h.max(axis=0))

    def _check(self, rows: NDArray, classes: NDArray) -> None:
        K, d = self.weight.shape
        if rows.ndim != 2 or rows.shape[1] != d or rows.dtype.kind not in "fiub":
            raise ValueError(
                f"`features` must be real with shape (N, {d}), to match the head's `weight` {self.weight.shape}, "
                f"got {rows.dtype} {rows.shape}{STORED_TURNED if rows.shape[1:] == (K,) else ''}"
            )
        if classes.shape != rows.shape[:1] or classes.dtype.kind not in "iu":
            raise ValueError(
                f"`labels` must be whole numbers of an integer type, one per row of `features` ({len(rows)}), "
                f"got {classes.dtype} {classes.shape}"
            )
        outside = (classes < 0) | (classes >= K)
        if outside.any():
            named = listed(sorted({int(x) for x in classes[outside]}))
            raise ValueError(
                f"`labels` must lie in [0, {K}), one logit per class, got {named}; for samples without a "
                "label pass ignore_index=..., or leave them out"
            )

    def result(self, metrics: Mapping[str, float] | None = None, *, linear: bool = True) -> Measurement:
        """The measurement of everything added so far, with scalars; not linear if the rows added were logits.

        Raises:
            ValueError: nothing was added.
        """
        if not self.counts.any():
            raise ValueError("`features` must hold at least one sample, got none")
        n = self.counts.astype(np.float64)
        weights = np.ones_like(n) if self.loss.class_weights is None else self.loss.class_weights
        total = float(n @ weights)
        seen = self.counts > 0
        each = np.where(seen, n, np.nan)
        means = self.sums / each[:, None]
        labels, given = map(np.concatenate, zip(*self.decided, strict=True))
        decided = decisions(labels, given, n.size)
        return Measurement(
            class_counts=self.counts.copy(),
            class_means=means,
            weight=self.weight,
            bias=self.bias,
            weight_gradient=self.pulls / total,
            bias_gradient=self.bias_pull / total,
            loss=float(self.losses.sum()) / total,
            accuracies=decided.recall,
            energy=float(self.squares.sum()),
            nonnegative=on_floor(means) or self._above_zero(),
            loss_form=self.loss,
            metrics=dict(metrics or {}),
            taken_for=decided.taken_by,
            linear=linear,
            lengths=self._lengths(),
            least=self.least,
        )

    def _lengths(self) -> Lengths:
        N = float(self.counts.sum())
        mean, square, centre = self.length / N, float(self.squares.sum()) / N, self.sums.sum(axis=0) / N
        variance = self.squares / N - centre**2
        level, nothing = float(variance.mean()), float("nan")
        return Lengths(
            mean=mean,
            spread=float(np.sqrt(max(square / mean**2 - 1, 0.0))) if mean > 0 else nothing,
            mean_square=square,
            variance_spread=float(variance.std()) / level if level > 1e-12 * square else nothing,
            offset_share=float(centre @ centre) / square if square > 0 else nothing,
            least=float(self.least.min()),
            bounded=self._bounded(),
        )

    def _bounded(self) -> bool:
        near = (self.least < -_NEAR_ONE) & (self.most > _NEAR_ONE)
        return bool((self.least >= -1).all() and (self.most <= 1).all() and near.mean() > 1 / 2)

    def _above_zero(self) -> bool:
        """Whether no feature is below zero, and most come near it: a mere offset may make all of them positive."""
        near = self.least <= _NEAR_ZERO * (self.most - self.least)
        return bool((self.least >= 0).all() and near.mean() > 1 / 2)


def measure(
    features: ArrayLike, labels: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, loss: Loss | None = None
) -> Measurement:
    """Measure features and head given as arrays.

    Args:
        features: shape (N, d), what the head receives, in evaluation mode, for the training samples.
        labels: shape (N,), whole numbers in [0, K).
        weight: W, shape (K, d), as torch stores a linear layer.
        bias: shape (K,); None for a head without bias.
        loss: the loss that the network was trained with; plain cross-entropy by default.

    Raises:
        ValueError: a shape disagrees, a label is out of range, or a value is not finite.
    """
    sums = Pass(weight, bias, loss)
    sums.add(features, labels)
    return sums.result()


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values)
    numbers = array.astype(np.float64) if array.dtype.kind in "fiub" else np.full(1, np.nan)
    if not (np.abs(numbers) < _LARGEST).all():
        raise ValueError(
            f"`{name}` must be finite real numbers below {_LARGEST:g}, got {array.dtype} with NaN, infinity, more, "
            "or no numbers"
        )
    return numbers
