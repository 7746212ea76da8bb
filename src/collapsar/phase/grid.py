"""The configuration of a phase diagram: two axes, the parameters that stay fixed, and the grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import inf
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.checks import bias_price, must_be_positive
from collapsar.core.normalization import Over
from collapsar.core.record_types import PhaseConfigRecord
from collapsar.core.records import to_json
from collapsar.core.types import Array

AxisName = Literal["lambda_z", "lambda_b", "r", "n_a", "n_b", "share_a", "oversampling", "lambda_w", "norm"]
Scale = Literal["linear", "log"]

FORMAT = 1  # version of what is computed and written for a configuration
MOST_POINTS = 1000  # on an axis
CHUNK_CELLS = 10_000  # computed together, in about half a second
DEAR_CELLS = 60  # the same with normalised features, where every cell is solved by itself


@dataclass(frozen=True)
class Axis:
    """One parameter and its values.

    Attributes:
        name: "lambda_z", "lambda_b", "r" (n_A / n_B: changes n_A, or n_B if the other axis is n_A), "n_a", "n_b",
            "share_a" (k_A / K, rounded to whole numbers of classes), "oversampling" (of B, its feature penalty
            repeated too); "lambda_w" and "norm" for networks that normalise their features.
        low: first value.
        high: last value.
        num: number of values; "share_a" may have fewer.
        scale: "linear" or "log" spacing.

    Raises:
        ValueError: The range is empty or leaves the parameter's domain, or a name is unknown.

    Example:
        >>> Axis.parse("lambda_z:1e-4:1e-2:3:log").values.tolist()
        [0.0001, 0.001, 0.01]
    """

    name: AxisName
    low: float
    high: float
    num: int = 60
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        if self.name not in get_args(AxisName):
            raise ValueError(f"`name` of an axis must be one of {', '.join(get_args(AxisName))}, got {self.name!r}")
        if self.scale not in get_args(Scale):
            raise ValueError(f'`scale` of the axis {self.name} must be "linear" or "log", got {self.scale!r}')
        if not -inf < self.low < self.high < inf:
            raise ValueError(f"the axis {self.name} must have finite low < high, got {self.low:g} and {self.high:g}")
        if not (self.low > 0 or (self.low == 0 and self.name == "lambda_b" and self.scale == "linear")):
            rule = ">= 0 (> 0 on a log scale)" if self.name == "lambda_b" else "> 0"
            raise ValueError(f"the axis {self.name} must be {rule}, got {self.low:g}")
        if self.name == "share_a" and not self.high < 1:
            raise ValueError(f"the axis share_a must stay below 1, got {self.high:g}")
        if isinstance(self.num, bool) or not (isinstance(self.num, int) and 2 <= self.num <= MOST_POINTS):
            raise ValueError(f"the axis {self.name} must have 2 to {MOST_POINTS} points, got {self.num!r}")

    @property
    def values(self) -> Array:
        """Shape (num,), rising."""
        spaced = np.geomspace if self.scale == "log" else np.linspace
        return spaced(self.low, self.high, self.num)

    @classmethod
    def parse(cls, text: str) -> Self:
        """An axis from "name:low:high", "name:low:high:num" or "name:low:high:num:log".

        Raises:
            ValueError: The text is not of this form.
        """
        parts = text.split(":")
        help_text = 'write NAME:LOW:HIGH:NUM or NAME:LOW:HIGH:NUM:log, for example "lambda_z:1e-4:1e-2:60:log"'
        if not 3 <= len(parts) <= 5:
            raise ValueError(f"an axis cannot be read from {text!r}; {help_text}")
        try:
            low, high = float(parts[1]), float(parts[2])
            num = int(parts[3]) if len(parts) > 3 else 60
        except ValueError:
            raise ValueError(f"an axis cannot be read from {text!r}; {help_text}") from None
        return cls(parts[0].strip(), low, high, num, parts[4].strip() if len(parts) > 4 else "linear")  # type: ignore[arg-type]


@dataclass(frozen=True)
class PhaseSettings:
    """What stays fixed, unless it is on an axis. The defaults are the paper's Fig. 5.

    Attributes:
        num_classes: K.
        k_a: k_A, classes of cluster A; B has the others.
        n_a: samples per class of A; need not be whole, since only ratios enter.
        n_b: samples per class of B.
        lambda_z: penalty of Z.
        lambda_b: penalty of the bias; inf: no bias, 0: free bias.
        oversampling: how often the samples of B are repeated.
        over: None: the features are penalised. "sample" or "batch": they are normalised, see
            :meth:`collapsar.Problem.from_normalized`, and ``lambda_w`` and ``norm`` replace ``lambda_z``.
        lambda_w: penalty of the head's weight.
        norm: length of the features.

    Raises:
        ValueError: A value is out of range.
    """

    num_classes: int = 10
    k_a: int = 5
    n_a: float = 500.0
    n_b: float = 100.0
    lambda_z: float = 0.0036
    lambda_b: float = 0.02
    oversampling: float = 1.0
    over: Over | None = None
    lambda_w: float = 1.0
    norm: float = 1.0

    def __post_init__(self) -> None:
        if self.over is not None and self.over not in get_args(Over):
            raise ValueError(f'`over` must be "sample", "batch" or None, got {self.over!r}')
        if not (isinstance(self.num_classes, int) and self.num_classes >= 2):
            raise ValueError(f"`num_classes` must be a whole number >= 2, got {self.num_classes!r}")
        if not (isinstance(self.k_a, int) and 1 <= self.k_a < self.num_classes):
            raise ValueError(f"`k_a` must be a whole number from 1 to {self.num_classes - 1}, got {self.k_a!r}")
        numbers = ("n_a", "n_b", "lambda_z", "oversampling", "lambda_w", "norm")
        must_be_positive(**{name: getattr(self, name) for name in numbers})
        bias_price(self.lambda_b)


@dataclass(frozen=True)
class PhaseConfig:
    """The whole configuration of a phase diagram: what is computed depends on nothing else.

    Attributes:
        x: horizontal axis.
        y: vertical axis, another parameter.
        settings: the others.
        tol: relative duality gap of every cell.

    Raises:
        ValueError: The axes are the same parameter, or a value is out of range.

    Example:
        >>> config = PhaseConfig(Axis("lambda_z", 0.002, 0.008, 4), Axis("r", 1, 9, 3))
        >>> config.shape, config.num_chunks, config.counts[:, 0, 0].tolist()
        ((3, 4), 1, [100.0, 500.0, 900.0])
    """

    x: Axis
    y: Axis
    settings: PhaseSettings = field(default_factory=PhaseSettings)
    tol: float = 1e-9

    def __post_init__(self) -> None:
        if self.x.name == self.y.name:
            raise ValueError(f"the two axes must be different parameters, got {self.x.name} twice")
        foreign = {"lambda_w", "norm"} if self.settings.over is None else {"lambda_z"}
        for name in foreign & self._axes:
            needs = 'needs normalised features: set `over` to "sample" or "batch"'
            raise ValueError(
                f"the axis {name} {needs if self.settings.over is None else 'does not go with `over`: use lambda_w'}"
            )
        if not 0 < self.tol < 1:
            raise ValueError(f"`tol` must be in (0, 1), got {self.tol!r}")
        for axis in (self.x, self.y):
            if self.values_of(axis).size < 2:
                K = self.settings.num_classes
                raise ValueError(
                    f"the axis {axis.name} from {axis.low:g} to {axis.high:g} has fewer than two whole numbers of "
                    f"{K} classes; widen it, or use more classes"
                )

    @property
    def _axes(self) -> set[str]:
        return {self.x.name, self.y.name}

    def values_of(self, axis: Axis) -> Array:
        """The values of an axis on the grid."""
        if axis.name != "share_a":
            return axis.values
        K = self.settings.num_classes
        return np.unique(np.clip(np.rint(axis.values * K), 1, K - 1)) / K

    @cached_property
    def x_values(self) -> Array:
        """Shape (nx,)."""
        return self.values_of(self.x)

    @cached_property
    def y_values(self) -> Array:
        """Shape (ny,)."""
        return self.values_of(self.y)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (y) and columns (x) of the grid."""
        return self.y_values.size, self.x_values.size

    def parameter(self, name: str) -> Array:
        """An axis or a setting by its name, shape (ny, nx)."""
        for axis, values in ((self.x, self.x_values[None]), (self.y, self.y_values[:, None])):
            if axis.name == name:
                return np.broadcast_to(values, self.shape)
        return np.full(self.shape, float(getattr(self.settings, name)))

    @cached_property
    def sizes(self) -> Array:
        """(k_A, k_B), shape (ny, nx, 2)."""
        K = self.settings.num_classes
        k_a = np.rint(self.parameter("share_a") * K) if "share_a" in self._axes else self.parameter("k_a")
        return np.stack([k_a, K - k_a], axis=-1)

    @cached_property
    def counts(self) -> Array:
        """(n_A, n_B), that of B oversampled, shape (ny, nx, 2)."""
        n_a, n_b = self.parameter("n_a"), self.parameter("n_b")
        if self._axes == {"r", "n_a"}:
            n_b = n_a / self.parameter("r")
        elif "r" in self._axes:
            n_a = self.parameter("r") * n_b
        return np.stack([n_a, n_b * self.parameter("oversampling")], axis=-1)

    @property
    def is_normalized(self) -> bool:
        """Whether the features are normalised."""
        return self.settings.over is not None

    @property
    def _swept(self) -> str:
        return "lambda_w" if self.is_normalized else "lambda_z"

    @cached_property
    def penalty(self) -> Array:
        """The penalty to which thresholds apply: lambda_z, or lambda_w for normalised features, shape (ny, nx)."""
        return self.parameter(self._swept)

    @property
    def along(self) -> Literal[0, 1]:
        """The dimension of the grid along which thresholds repeat: that of the penalty, otherwise the columns."""
        return 0 if self.y.name == self._swept else 1

    @property
    def has_penalty(self) -> bool:
        """Whether the penalty is on an axis."""
        return self._swept in self._axes

    @cached_property
    def chunks(self) -> tuple[slice, ...]:
        """Ranges of lines (rows, or columns where lambda_z is vertical) that are computed and stored together."""
        lines, length = (self.shape[0], self.shape[1]) if self.along == 1 else (self.shape[1], self.shape[0])
        size = max(1, (DEAR_CELLS if self.is_normalized else CHUNK_CELLS) // length)
        return tuple(slice(first, min(first + size, lines)) for first in range(0, lines, size))

    @property
    def num_chunks(self) -> int:
        """How many parts the work has."""
        return len(self.chunks)

    def cut(self, grid: ArrayLike, chunk: int) -> Array:
        """The part of a grid that belongs to a chunk."""
        lines = self.chunks[chunk]
        return np.asarray(grid)[lines] if self.along == 1 else np.asarray(grid)[:, lines]

    def to_dict(self) -> PhaseConfigRecord:
        """The configuration as JSON values; an infinite ``lambda_b`` is the string "inf"."""
        values = to_json(asdict(self))
        if not self.is_normalized:  # as in versions without normalised features
            for name in ("over", "lambda_w", "norm"):
                del values["settings"][name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that :meth:`to_dict` wrote.

        Raises:
            ValueError: A field is missing, unknown or out of range.
        """
        try:
            settings = {**values["settings"], "lambda_b": float(values["settings"]["lambda_b"])}
            return cls(Axis(**values["x"]), Axis(**values["y"]), PhaseSettings(**settings), float(values["tol"]))
        except (TypeError, KeyError) as error:
            raise ValueError(f"`values` does not describe a phase diagram: {error}") from None

    @cached_property
    def digest(self) -> str:
        """A hash of the whole configuration and of the format of what is computed from it."""
        text = json.dumps({"format": FORMAT, **self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
