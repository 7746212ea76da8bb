"""Phase diagrams: the state of every cluster over a grid of two parameters, solved, beside the closed-form thresholds.

Two clusters: k_A classes of n_A samples and k_B of n_B, with no mitigation except an oversampling factor of B, which
repeats its samples and with them its feature penalty. The states come from certified optima and the curves from
:func:`collapsar.thresholds`; the two share no code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from collapsar.core.problem import FeatureModel
from collapsar.core.record_types import PhaseRecord
from collapsar.core.records import to_json
from collapsar.core.states import CLASS_STATES
from collapsar.core.types import Array
from collapsar.phase.curves import Curve, curves_of
from collapsar.phase.grid import FORMAT, Axis, PhaseConfig, PhaseSettings
from collapsar.phase.grid_states import FEATURES, FIELDS, Codes, GridStates, Part, phase_chunk

UNKNOWN = -1  # predicted state where classes share a feature direction, which the closed forms do not follow


@dataclass(frozen=True)
class Agreement:
    """How the solver's states compare with the thresholds.

    Attributes:
        cells: number of cells, both clusters counted.
        known: those for which the closed forms are certified to be exact.
        equal: known cells with the same state.
        near: known cells whose state differs but is that of a neighbouring cell: off by less than one cell.
    """

    cells: int
    known: int
    equal: int
    near: int

    @property
    def share(self) -> float:
        """Share of the known cells that agree or are off by less than one cell; NaN if none is known."""
        return (self.equal + self.near) / self.known if self.known else float("nan")


@dataclass(frozen=True, eq=False)
class ModelPhase:
    """One feature model over the grid; arrays are indexed [.., row of y, column of x].

    Attributes:
        features: "signed" or "nonnegative".
        predicted: as ``states``, by the thresholds; -1 where they are not certified to be exact.
        states: shape (2, ny, nx), per cluster A, B an index of "separated", "merged", "vanished". Both vanished: Z = 0.
        gap: relative duality gap, (ny, nx).
        status: names of :class:`collapsar.Status`, (ny, nx).
        one_by_one: whether the batch handed the cell over to the general solver, (ny, nx).
        curves: the transitions.
    """

    features: FeatureModel
    predicted: Codes
    states: Codes
    gap: Array
    status: NDArray[np.str_]
    one_by_one: NDArray[np.bool_]
    curves: tuple[Curve, ...]

    @property
    def zero(self) -> NDArray[np.bool_]:
        """Where Z = 0, shape (ny, nx)."""
        return np.asarray((self.states == CLASS_STATES.index("vanished")).all(axis=0))

    @property
    def agreement(self) -> Agreement:
        """States against thresholds."""
        known = self.predicted != UNKNOWN
        equal = known & (self.states == self.predicted)
        near = known & ~equal & (_around(self.predicted) == self.states[None]).any(axis=0)
        return Agreement(known.size, int(known.sum()), int(equal.sum()), int(near.sum()))

    @property
    def notes(self) -> tuple[str, ...]:
        """Which transitions lie outside the range."""
        return tuple(curve.note for curve in self.curves if not curve.lines)


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """States and transitions of both feature models over one grid.

    Attributes:
        config: everything it was computed from; ``config.x_values`` and ``config.y_values`` are the grid.
        models: one per feature model.
    """

    config: PhaseConfig
    models: tuple[ModelPhase, ...]

    def model(self, features: FeatureModel) -> ModelPhase:
        """The part for one feature model.

        Raises:
            ValueError: there is no such part.
        """
        for part in self.models:
            if part.features == features:
                return part
        raise ValueError(f"`features` must be one of {[part.features for part in self.models]}, got {features!r}")

    def to_dict(self) -> PhaseRecord:
        """The record as JSON values."""
        return {
            "kind": "phase",
            "format": FORMAT,
            "config": self.config.to_dict(),
            "config_digest": self.config.digest,
            "x_values": self.config.x_values.tolist(),
            "y_values": self.config.y_values.tolist(),
            "state_names": list(CLASS_STATES),
            "models": to_json(self.models),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The diagram that :meth:`to_dict` wrote.

        Raises:
            ValueError: The record is of another kind, incomplete, or does not match its configuration.
        """
        try:
            config = PhaseConfig.from_dict(record["config"])
            if record["kind"] != "phase" or record["config_digest"] != config.digest:
                raise ValueError("`record` does not match its configuration; compute it again")
            models = tuple(_model_from(part) for part in record["models"])
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"`record` is not a phase diagram: {error!r}") from None
        if {part.states.shape for part in models} != {(2, *config.shape)}:
            raise ValueError("`record` has a grid of another shape; compute it again")
        return cls(config, models)


def _model_from(part: Mapping[str, Any]) -> ModelPhase:
    curves = tuple(
        Curve(**{**curve, "lines": tuple(tuple((x, y) for x, y in line) for line in curve["lines"])})
        for curve in part["curves"]
    )
    arrays = {name: np.array(values) for name, values in part.items() if name not in ("features", "curves")}
    return ModelPhase(features=part["features"], curves=curves, **arrays)


def phase_diagram(
    x: Axis | str,
    y: Axis | str,
    settings: PhaseSettings | None = None,
    *,
    tol: float = 1e-9,
    progress: Callable[[int, int], None] | None = None,
) -> PhaseDiagram:
    """The states of both clusters over a grid of two parameters, for both feature models.

    ``collapsar phase`` and :func:`collapsar.phase.sweep.sweep` do the same in parallel, and can resume.

    Args:
        x: horizontal axis, or as text, "lambda_z:1e-4:1e-2:60:log".
        y: vertical axis.
        settings: the other parameters; ``PhaseSettings(over="sample")`` for networks that normalise their features.
        tol: relative duality gap of every cell.
        progress: called with (parts done, parts in all).

    Returns:
        States, gaps and statuses per cell, and the closed-form transitions as curves.

    Raises:
        ValueError: an axis or a setting is out of range.

    Example:
        >>> d = phase_diagram("lambda_z:0.003:0.005:5", "r:4:6:3")
        >>> [CLASS_STATES[code] for code in d.model("signed").states[1, 1]]
        ['separated', 'merged', 'vanished', 'vanished', 'vanished']
        >>> d.model("signed").notes
        ('everything collapses: nowhere in this range',)
    """
    x, y = (Axis.parse(axis) if isinstance(axis, str) else axis for axis in (x, y))
    config = PhaseConfig(x, y, PhaseSettings() if settings is None else settings, tol)
    parts = []
    for i in range(config.num_chunks):
        parts.append(phase_chunk(config, i))
        if progress is not None:
            progress(i + 1, config.num_chunks)
    return assemble(config, parts)


def assemble(config: PhaseConfig, parts: Sequence[Part]) -> PhaseDiagram:
    """The diagram from all parts of its work, in order.

    Args:
        config: what they were computed from.
        parts: one of :func:`phase_chunk` per chunk.
    """
    models = []
    for features in FEATURES:
        own = zip(*(part[features] for part in parts), strict=True)
        cells = GridStates(*(np.concatenate(arrays, axis=-1 - config.along) for arrays in own))
        levels: dict[str, Array] = dict(zip(FIELDS, cells.thresholds, strict=True))
        predicted = np.stack([_predicted(config, levels, side) for side in "ab"])
        models.append(ModelPhase(features, predicted, *cells[:-1], curves=curves_of(config, levels)))
    return PhaseDiagram(config, tuple(models))


def _predicted(config: PhaseConfig, fields: Mapping[str, Array], side: str) -> Codes:
    """State of a cluster by its thresholds; comparisons with NaN are false."""
    penalty = config.penalty
    merged = np.where(penalty >= fields[f"merge_{side}"], CLASS_STATES.index("merged"), CLASS_STATES.index("separated"))
    vanish = fields[f"vanish_{side}"]  # NaN: zero at every lambda_z; with normalised features: never
    carried = np.isnan(vanish) & (not config.is_normalized)
    state = np.where((penalty >= vanish) | carried, CLASS_STATES.index("vanished"), merged)
    return np.where(fields[f"exact_{side}"] > 0, state, UNKNOWN)


def _around(codes: Codes) -> Codes:
    """The codes of the eight neighbours of every cell, shape (8, 2, ny, nx); UNKNOWN beyond the edge."""
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1)), constant_values=UNKNOWN)
    ny, nx = codes.shape[1:]
    return np.stack([padded[:, i : i + ny, j : j + nx] for i in range(3) for j in range(3) if (i, j) != (1, 1)])
