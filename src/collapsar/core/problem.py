"""The convex program as a frozen value.

    min_{Z,b}  sum_k q_k [ lse(u_k) - <y_k, u_k> ]  +  lambda_Z ||Z M^{1/2}||  +  (lambda_b / 2) ||b||^2,
    u_k = tau_k * delta o (z_k + b) + iota,     y_k = (1 - eps) e_k + (eps / K) 1,

with the nuclear norm for signed features (Hong & Ling, JMLR 25(192), 2024, Sec. 2.1) and the gauge of
factorisations with nonnegative features otherwise. Column k of Z is the mean prediction of class k without the bias.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.checks import bias_price, must_be_positive
from collapsar.core.counts import CheckedCounts, CountsLike, class_counts
from collapsar.core.loss import Loss, class_vector, frozen_vector
from collapsar.core.normalization import Normalization, Over
from collapsar.core.penalties import (
    Penalties,
    penalties_without_halves,  # noqa: F401 - public here as well
)
from collapsar.core.record_types import ProblemRecord
from collapsar.core.records import to_json
from collapsar.core.types import Vector

FeatureModel = Literal["signed", "nonnegative"]


_PLAIN = Loss()
_PER_CLASS = ("class_weights", "offsets", "scales", "temperatures", "feature_mass")
_FEATURE_MODELS = get_args(FeatureModel)
_OF_NORMALIZATION = ("lambda_w", "norm", "lambda_gain", "over")


@dataclass(frozen=True, eq=False)
class Problem:
    """The unconstrained feature model under cross-entropy, as a value. See the module's equation.

    Attributes:
        class_counts: n, shape (K,), int64; anything :func:`collapsar.class_counts` reads.
        lambda_z: > 0, price of Z: sqrt(lambda_w lambda_h) with halves in the penalties; nats.
        lambda_b: >= 0, penalty of the bias; ``inf``: no bias, ``0``: free bias.
        loss: the mitigations, plain by default.
        feature_mass: m > 0, shape (K,): how often the penalty counts the feature of class k; n by default.
        features: ``"signed"`` (Hong & Ling's model) or ``"nonnegative"`` (features after a ReLU).
        normalization: None, or, for normalised features, what replaces the feature penalty; then ``lambda_z`` follows
            from it. See :meth:`from_normalized`.

    Raises:
        ValueError: Any of these does not hold; the message names the argument.

    Example:
        >>> p = Problem("500x5,100x5", lambda_z=0.0027, lambda_b=0.02)
        >>> p.num_classes, p.num_samples
        (10, 3000)
    """

    class_counts: NDArray[np.int64]
    lambda_z: float
    lambda_b: float = float("inf")
    loss: Loss = field(default_factory=Loss)
    feature_mass: Vector | None = None
    features: FeatureModel = "signed"
    normalization: Normalization | None = None

    def __init__(
        self,
        class_counts: CountsLike | ArrayLike,
        lambda_z: float,
        lambda_b: float = float("inf"),
        loss: Loss | None = None,
        feature_mass: ArrayLike | None = None,
        features: FeatureModel = "signed",
        normalization: Normalization | None = None,
    ) -> None:
        counts = _counts(class_counts)
        loss = _PLAIN if loss is None else loss
        must_be_positive(lambda_z=lambda_z)
        lambda_z, lambda_b = float(lambda_z), bias_price(lambda_b)
        if features not in _FEATURE_MODELS:
            raise ValueError(f'`features` must be "signed" or "nonnegative", got {features!r}')
        mass = None if feature_mass is None else class_vector("feature_mass", feature_mass, positive=True)
        for name in () if loss is _PLAIN and mass is None else _PER_CLASS:
            value = mass if name == "feature_mass" else getattr(loss, name)
            if value is not None and value.shape != counts.shape:
                raise ValueError(f"`{name}` must have one entry per class: got {value.size} for {counts.size} classes")
        if normalization is not None:
            normalization.check(lambda_z, lambda_b, counts.size, features)
            if normalization.over == "sample" and mass is not None:
                raise ValueError(
                    'features normalised per sample have no `feature_mass`; leave it out, or use `over="batch"`'
                )
            if normalization.over == "sample" and features == "nonnegative" and normalization.norm is None:
                raise ValueError(
                    "nonnegative features normalised per sample are solved for a given `norm`, not for a decayed gain; "
                    "give the length at which the gain came to rest"
                )
        values = (counts, lambda_z, lambda_b, loss, mass, features, normalization)  # in the order of the fields
        for own, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, own.name, value)

    @classmethod
    def from_penalties(
        cls,
        class_counts: CountsLike | ArrayLike,
        lambda_w: float,
        lambda_h: float,
        lambda_b: float = float("inf"),
        **rest: Any,
    ) -> Self:
        """The problem of a network trained with (lambda_w/2)||W||^2 + (lambda_h/2)||H||^2 + (lambda_b/2)||b||^2.

        Args:
            class_counts: as for :class:`Problem`.
            lambda_w: > 0, penalty of the head's weight.
            lambda_h: > 0, penalty of the features, summed over all N samples.
            lambda_b: penalty of the head's bias.
            **rest: ``loss``, ``feature_mass``, ``features`` as for :class:`Problem`.

        Raises:
            ValueError: A penalty is out of range.

        Example:
            >>> Problem.from_penalties("500x5,100x5", lambda_w=1e-3, lambda_h=1e-5, lambda_b=0.02).lambda_z
            0.0001
        """
        must_be_positive(lambda_w=lambda_w, lambda_h=lambda_h)
        return cls(class_counts, Penalties(lambda_w, lambda_h).lambda_z, lambda_b, **rest)

    @classmethod
    def from_normalized(
        cls,
        class_counts: CountsLike | ArrayLike,
        *,
        lambda_w: float | ArrayLike,
        norm: float,
        over: Over = "sample",
        lambda_b: float = float("inf"),
        **rest: Any,
    ) -> Self:
        """The problem of a network that normalises its features and decays its head, with no feature penalty.

        Args:
            class_counts: as for :class:`Problem`.
            lambda_w: > 0, penalty (lambda_w/2)||W||^2 of the head's weight, or one per class (of its row).
            norm: > 0, the length of the features: sqrt(d) after a norm without gain.
            over: ``"sample"`` (LayerNorm, RMSNorm, cosine head) or ``"batch"`` (BatchNorm: mean ||h||^2 = norm^2).
            lambda_b: penalty of the head's bias.
            **rest: ``loss``, ``features``, and for ``over="batch"`` ``feature_mass``, as for :class:`Problem`.

        Raises:
            ValueError: An argument is out of range.

        Example:
            >>> p = Problem.from_normalized("100x5,20x5", lambda_w=3.0, norm=128**0.5, lambda_b=0.0)
            >>> p.normalization.over, p.replace(lambda_w=1.0).normalization.lambda_w
            ('sample', 1.0)
        """
        how = Normalization(lambda_w, norm=norm, over=over)
        return cls(class_counts, how.lambda_z, lambda_b, normalization=how, **rest)

    @classmethod
    def from_gain_decay(
        cls,
        class_counts: CountsLike | ArrayLike,
        *,
        lambda_w: float | ArrayLike,
        lambda_gain: float,
        over: Over = "sample",
        lambda_b: float = float("inf"),
        **rest: Any,
    ) -> Self:
        """The problem of a network whose last norm has a decayed gain, so that the length of the features is free.

        The length costs (lambda_gain/2) norm^2. Per batch norm^2 = ||gain||^2, with one gain per feature. Per sample
        the gain is one number, like a cosine head's scale: with one gain per feature (LayerNorm, RMSNorm) it gathers
        in few features, where a length costs less; that optimum lies below this one and is not covered. A gain that is
        *not* decayed grows without bound: then there is no optimum and no threshold.

        Args:
            class_counts: as for :class:`Problem`.
            lambda_w: as for :meth:`from_normalized`.
            lambda_gain: > 0, penalty of the gain.
            over: as for :meth:`from_normalized`. ``"batch"`` is the model of Hong & Ling with
                lambda_h = lambda_gain / N.
            lambda_b: penalty of the head's bias.
            **rest: as for :meth:`from_normalized`.

        Raises:
            ValueError: An argument is out of range.

        Example:
            >>> Problem.from_gain_decay("100x5,20x5", lambda_w=0.01, lambda_gain=0.01).lambda_z
            0.01
        """
        how = Normalization(lambda_w, lambda_gain=lambda_gain, over=over)
        return cls(class_counts, how.lambda_z, lambda_b, normalization=how, **rest)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.class_counts.size

    @property
    def num_samples(self) -> int:
        """N, the sum of the class counts."""
        return int(self.class_counts.sum())

    @cached_property
    def loss_share(self) -> Vector:
        """q, shape (K,): the share of class k in the loss; n/N unless weighted."""
        weight = self.class_counts.astype(np.float64)
        if self.loss.class_weights is not None:
            weight = weight * self.loss.class_weights
        return frozen_vector(weight / weight.sum())

    @cached_property
    def mass(self) -> Vector:
        """m, shape (K,): ``feature_mass`` or n."""
        return frozen_vector(self.class_counts.astype(np.float64)) if self.feature_mass is None else self.feature_mass

    @cached_property
    def scales(self) -> Vector:
        """delta, shape (K,), one per logit."""
        return self._or_constant(self.loss.scales, 1.0)

    @cached_property
    def temperatures(self) -> Vector:
        """tau, shape (K,), one per class of the sample."""
        return self._or_constant(self.loss.temperatures, 1.0)

    @cached_property
    def offsets(self) -> Vector:
        """iota, shape (K,), one per logit."""
        return self._or_constant(self.loss.offsets, 0.0)

    def _or_constant(self, value: Vector | None, constant: float) -> Vector:
        return frozen_vector(np.full(self.num_classes, constant)) if value is None else value

    @property
    def is_plain(self) -> bool:
        """Whether this is training without a mitigation: unmodified loss, feature mass n."""
        return self.loss.is_plain and self.feature_mass is None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, including those of the ``normalization``: lambda_w, norm, lambda_gain, over.

        Example:
            >>> Problem([5, 5], 0.1).replace(lambda_z=0.2).lambda_z
            0.2
        """
        own = {name: changes.pop(name) for name in _OF_NORMALIZATION if name in changes}
        how = changes.get("normalization", self.normalization)
        if own and how is None:
            raise ValueError(f"`{next(iter(own))}` belongs to normalised features; this problem has `lambda_z`")
        if own:
            how = changes["normalization"] = how.replace(**own)
        if how is not None:
            changes.setdefault("lambda_z", how.lambda_z)
        changes.setdefault("class_counts", CheckedCounts(self.class_counts))
        return replace(self, **changes)

    def to_dict(self) -> ProblemRecord:
        """The fields as JSON-able values; an infinite ``lambda_b`` is the string "inf"."""
        values = to_json(self)
        if self.normalization is None:
            del values["normalization"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The problem that :meth:`to_dict` wrote.

        Raises:
            ValueError: A field is missing, unknown or out of range.
        """
        try:
            loss, lambda_b = Loss(**values["loss"]), float(values["lambda_b"])
            rest: dict[str, Any] = {"loss": loss, "lambda_b": lambda_b}
            if values.get("normalization") is not None:
                rest["normalization"] = Normalization.from_dict(values["normalization"])
            return cls(**{**values, **rest})
        except (TypeError, KeyError) as error:
            raise ValueError(f"`values` does not describe a problem: {error}") from None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every field, equal for equal problems."""
        parts = [self.class_counts, self.loss_share, self.mass, self.scales, self.temperatures, self.offsets]
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
        digest.update(repr((self.lambda_z, self.lambda_b, self.loss.smoothing, self.features)).encode())
        if self.normalization is not None:
            digest.update(repr(self.normalization.to_dict()).encode())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _counts(spec: CountsLike | ArrayLike | CheckedCounts) -> NDArray[np.int64]:
    counts = class_counts(spec)
    counts.setflags(write=False)
    return counts
