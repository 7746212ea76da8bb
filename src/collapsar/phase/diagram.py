"""Phase diagrams: the state of every cluster over a grid of two parameters, solved, beside the closed-form thresholds.

Two clusters: k_A classes of n_A samples and k_B of n_B, plain training but for an oversampling factor of B, which
repeats its samples and with them its feature penalty. The states come from certified optima and the curves from
:func:`collapsar.thresholds`; the two share no code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.problem import FeatureModel
from collapsar.core.states import CLASS_STATES
from collapsar.core.thresholds import Thresholds
from collapsar.core.types import Array, Record
from collapsar.phase.curves import Curve, curves_of
from collapsar.phase.grid import FORMAT, Axis, PhaseConfig, PhaseSettings
from collapsar.phase.normalized import solved_cells
from collapsar.solver.batched import ProblemBatch, solve_batch
from collapsar.solver.status import Status
from collapsar.theory.clusters import Clusters
from collapsar.theory.thresholds import cluster_thresholds

__all__ = ["Agreement", "ModelPhase", "PhaseDiagram", "assemble", "phase_chunk", "phase_diagram"]

Codes = NDArray[np.int64]

FEATURES: tuple[FeatureModel, ...] = get_args(FeatureModel)
STATES = CLASS_STATES
UNKNOWN = -1  # predicted state where classes share a feature direction, which the closed forms do not follow
_CELLS = ("states", "gap", "status", "one_by_one")
_FIELDS = ("merge_a", "merge_b", "vanish_a", "vanish_b", "complete", "exact_a", "exact_b", "exact_complete")


@dataclass(frozen=True)
class Agreement:
    """How the solver's states compare with the thresholds.

    Attributes:
        cells: number of cells, both clusters counted.
        known: those of which the closed forms are certified to be exact.
        equal: known cells with the same state.
        near: known cells with another state, but that of a neighbouring cell: off by less than one cell of the grid.
    """

    cells: int
    known: int
    equal: int
    near: int

    @property
    def share(self) -> float:
        """Share of the known cells that agree or are off by less than one cell; NaN where none is known."""
        return (self.equal + self.near) / self.known if self.known else float("nan")


@dataclass(frozen=True, eq=False)
class ModelPhase:
    """One feature model over the grid; arrays are indexed [.., row of y, column of x].

    Attributes:
        features: "signed" or "nonnegative".
        states: shape (2, ny, nx), per cluster A, B an index of "separated", "merged", "vanished". Both vanished: Z = 0.
        predicted: the same by the thresholds; -1 where they are not certified to be exact.
        gap: relative duality gap, (ny, nx).
        status: names of :class:`collapsar.Status`, (ny, nx).
        one_by_one: whether the general solver had to take over from the batch, (ny, nx).
        curves: the transitions.
    """

    features: FeatureModel
    states: Codes
    predicted: Codes
    gap: Array
    status: NDArray[np.str_]
    one_by_one: NDArray[np.bool_]
    curves: tuple[Curve, ...]

    @property
    def zero(self) -> NDArray[np.bool_]:
        """Where Z = 0, shape (ny, nx)."""
        return np.asarray((self.states == STATES.index("vanished")).all(axis=0))

    @property
    def agreement(self) -> Agreement:
        """States against thresholds."""
        known = self.predicted != UNKNOWN
        equal = known & (self.states == self.predicted)
        near = known & ~equal & (_around(self.predicted) == self.states[None]).any(axis=0)
        return Agreement(known.size, int(known.sum()), int(equal.sum()), int(near.sum()))

    @property
    def notes(self) -> tuple[str, ...]:
        """Which transitions the range does not contain."""
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
        """The part of one feature model.

        Raises:
            ValueError: there is no such part.
        """
        for part in self.models:
            if part.features == features:
                return part
        raise ValueError(f"`features` must be one of {[part.features for part in self.models]}, got {features!r}")

    def to_dict(self) -> Record:
        """The record as JSON values."""
        models = [
            {
                "features": part.features,
                **{name: getattr(part, name).tolist() for name in ("predicted", *_CELLS)},
                "curves": [
                    {**asdict(curve), "lines": [[list(point) for point in line] for line in curve.lines]}
                    for curve in part.curves
                ],
            }
            for part in self.models
        ]
        return {
            "kind": "phase",
            "format": FORMAT,
            "config": self.config.to_dict(),
            "config_digest": self.config.digest,
            "x_values": self.config.x_values.tolist(),
            "y_values": self.config.y_values.tolist(),
            "state_names": list(STATES),
            "models": models,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """The diagram that :meth:`to_dict` wrote.

        Raises:
            ValueError: The record is of another kind, incomplete, or not of its configuration.
        """
        try:
            config = PhaseConfig.from_dict(record["config"])
            if record["kind"] != "phase" or record["config_digest"] != config.digest:
                raise ValueError("`record` is not a phase diagram of its configuration; compute it again")
            models = tuple(_model_from(part) for part in record["models"])
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"`record` is not a phase diagram: {error!r}") from None
        if {part.states.shape for part in models} != {(2, *config.shape)}:
            raise ValueError("`record` holds a grid of another shape; compute it again")
        return cls(config, models)


def _model_from(part: Mapping[str, Any]) -> ModelPhase:
    curves = tuple(
        Curve(**{**curve, "lines": tuple(tuple((x, y) for x, y in line) for line in curve["lines"])})
        for curve in part["curves"]
    )
    arrays = [np.array(part[name]) for name in ("states", "predicted", "gap", "status", "one_by_one")]
    return ModelPhase(part["features"], *arrays, curves=curves)


def phase_diagram(
    x: Axis | str,
    y: Axis | str,
    settings: PhaseSettings | None = None,
    *,
    tol: float = 1e-9,
    progress: Callable[[int, int], None] | None = None,
) -> PhaseDiagram:
    """The states of both clusters over a grid of two parameters, for both feature models.

    ``collapsar phase`` and :func:`collapsar.phase.sweep.sweep` do the same in parallel, and resume.

    Args:
        x: horizontal axis, or its text, "lambda_z:1e-4:1e-2:60:log".
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
        >>> [STATES[code] for code in d.model("signed").states[1, 1]]
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


def phase_chunk(config: PhaseConfig, chunk: int) -> Record:
    """One part of the work: the same for the same configuration, wherever it is computed.

    Args:
        config: the whole diagram.
        chunk: which part, from 0.

    Returns:
        Per feature model arrays over the part's cells: "states" (first A, then B), "gap", "status", "one_by_one", and
        "thresholds", NaN where there is none; one line of them where they repeat.
    """
    cells = _normalized_cells if config.is_normalized else _cells
    return {features: cells(config, chunk, features) for features in FEATURES}


def _cells(config: PhaseConfig, chunk: int, features: FeatureModel) -> Record:
    grids = (config.parameter("lambda_z"), config.parameter("lambda_b"), config.counts_a, config.counts_b)
    lambda_z, lambda_b, n_a, n_b = (config.cut(grid, chunk) for grid in grids)
    sizes, counts = config.cut(config.sizes, chunk).reshape(-1, 2), np.stack([n_a, n_b], axis=-1).reshape(-1, 2)
    batch = ProblemBatch.plain(sizes, counts, lambda_z.ravel(), lambda_b.ravel(), features)
    result = solve_batch(batch, config.tol, line=n_a.shape[1])
    codes = np.argmax(result.states[..., None] == np.array(STATES), axis=-1)
    names = np.full(result.status.size, Status.OPTIMAL.name, dtype=object)
    for i in np.flatnonzero(result.status != Status.OPTIMAL):
        names[i] = result.status[i].name
    fields = _threshold_fields(config, batch, n_a.shape)
    return _part(n_a.shape, codes.T, result.relative_gap, names, result.one_by_one, fields)


def _normalized_cells(config: PhaseConfig, chunk: int, features: FeatureModel) -> Record:
    """The same for normalised features, cell by cell."""
    rows, columns = (config.cut(grid, chunk) for grid in np.indices(config.shape))
    cells = [(int(i), int(j)) for i, j in zip(rows.ravel(), columns.ravel(), strict=True)]
    found, levels = solved_cells(config, cells, features)
    codes = [[STATES.index(s.class_states[k]) for s in found] for k in (0, -1)]
    fields = np.transpose([_row(t) for t in levels]).reshape(-1, *rows.shape)
    names = [s.status.name for s in found]
    return _part(rows.shape, codes, [s.certificate.relative_gap for s in found], names, [True] * len(found), fields)


def _part(
    shape: tuple[int, ...], codes: ArrayLike, gap: ArrayLike, names: ArrayLike, one_by_one: ArrayLike, fields: Array
) -> Record:
    digits = np.asarray(gap)  # to three of them, the float64 nearest to the decimal number
    scale = 10.0 ** np.clip(2 - np.floor(np.log10(np.maximum(digits, 1e-300))), 0, 22)  # powers that are exact
    return {
        "states": np.reshape(codes, (2, *shape)),
        "gap": np.reshape(np.rint(digits * scale) / scale, shape),
        "status": np.reshape(names, shape),
        "one_by_one": np.reshape(one_by_one, shape),
        "thresholds": dict(zip(_FIELDS, np.where(np.isfinite(fields), fields, np.nan), strict=True)),
    }


def _threshold_fields(config: PhaseConfig, batch: ProblemBatch, shape: tuple[int, ...]) -> Array:
    """Thresholds per cell, in the order of ``_FIELDS``; one line of them along lambda_z, where they repeat."""
    grid = np.arange(batch.num_problems).reshape(shape)
    wanted = np.take(grid, [0], axis=config.along) if config.has_penalty else grid
    names = [f.name for f in fields(Clusters) if f.name != "labels"]
    c = Clusters(np.empty(0, dtype=np.intp), **{name: getattr(batch, name)[wanted.ravel()] for name in names})
    found = np.empty((len(_FIELDS), wanted.size))
    alike = (c.share[:, 0] == c.share[:, 1]) & (c.mass[:, 0] == c.mass[:, 1])  # A and B are one kind of classes
    for part, some in ((~alike, c.taken(~alike)), (alike, c.taken(alike).joined())):
        if part.any():
            merge, v = cluster_thresholds(some, batch.features)
            certain = v.complete_bound <= v.complete * (1 + 1e-9)
            ends = [array[:, side] for array in (merge, v.vanish, v.exact) for side in (0, -1)]
            found[:, part] = np.stack([*ends[:4], v.complete, *ends[4:], certain])
    return found.reshape(-1, *wanted.shape)


def _row(t: Thresholds) -> list[float]:
    """In the order of ``_FIELDS``; the classes of A come first, those of B last."""
    certain = (*t.exact[[0, -1]], t.complete_bound <= t.complete * (1 + 1e-9))
    return [*t.merge[[0, -1]], *t.vanish[[0, -1]], t.complete, *map(float, certain)]


def assemble(config: PhaseConfig, parts: Sequence[Record]) -> PhaseDiagram:
    """The diagram from all parts of its work, in order.

    Args:
        config: what they were computed from.
        parts: one record of :func:`phase_chunk` per chunk, or what JSON made of it.
    """
    axis = 1 - config.along

    def joined(features: FeatureModel, name: str) -> NDArray[Any]:
        return np.concatenate([np.array(part[features][name]) for part in parts], axis=axis - 2)

    def threshold(features: FeatureModel, name: str) -> Array:
        lines = [np.array(part[features]["thresholds"][name], dtype=np.float64) for part in parts]
        shapes = [np.shape(part[features]["gap"]) for part in parts]
        grids = [np.broadcast_to(line, shape) for line, shape in zip(lines, shapes, strict=True)]
        return np.concatenate(grids, axis=axis)

    models = []
    for features in FEATURES:
        fields = {name: threshold(features, name) for name in _FIELDS}
        states, *cells = (joined(features, name) for name in _CELLS)
        predicted = np.stack([_predicted(config, fields, side) for side in "ab"])
        models.append(ModelPhase(features, states, predicted, *cells, curves=curves_of(config, fields)))
    return PhaseDiagram(config, tuple(models))


def _predicted(config: PhaseConfig, fields: Mapping[str, Array], side: str) -> Codes:
    """State of a cluster by its thresholds; comparisons with NaN are false."""
    penalty = config.penalty
    merged = np.where(penalty >= fields[f"merge_{side}"], STATES.index("merged"), STATES.index("separated"))
    vanish = fields[f"vanish_{side}"]  # NaN: zero at every lambda_z; never, where features are normalised
    carried = np.isnan(vanish) & (not config.is_normalized)
    state = np.where((penalty >= vanish) | carried, STATES.index("vanished"), merged)
    return np.where(fields[f"exact_{side}"] > 0, state, UNKNOWN)


def _around(codes: Codes) -> Codes:
    """The codes of the eight neighbours of every cell, shape (8, 2, ny, nx); UNKNOWN beyond the edge."""
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1)), constant_values=UNKNOWN)
    ny, nx = codes.shape[1:]
    return np.stack([padded[:, i : i + ny, j : j + nx] for i in range(3) for j in range(3) if (i, j) != (1, 1)])
