"""The cells of a phase diagram: states of certified optima, and thresholds, part by part."""

from __future__ import annotations

from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.clusters import NUMBERS
from collapsar.core.loss import Loss
from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.states import CLASS_STATES
from collapsar.core.thresholds import Thresholds
from collapsar.core.types import Array, Mask
from collapsar.phase.grid import PhaseConfig
from collapsar.phase.transitions import thresholds
from collapsar.solver import solve
from collapsar.solver.batched import ProblemBatch, solve_batch
from collapsar.theory.clusters import Clusters
from collapsar.theory.thresholds import cluster_thresholds

Codes = NDArray[np.int64]

FEATURES: tuple[FeatureModel, ...] = get_args(FeatureModel)
FIELDS = ("merge_a", "merge_b", "vanish_a", "vanish_b", "complete", "exact_a", "exact_b", "exact_complete")


class GridStates(NamedTuple):
    """What is found for some cells under one feature model; every array ends in (rows, columns).

    Attributes:
        states: per cluster, first A, then B; this and the next three as in :class:`collapsar.phase.diagram.ModelPhase`.
        gap: relative duality gap.
        status: names of :class:`collapsar.Status`.
        one_by_one: whether the general solver had to take over.
        thresholds: in the order of ``FIELDS``, NaN where there is none.
    """

    states: Codes
    gap: Array
    status: NDArray[np.str_]
    one_by_one: NDArray[np.bool_]
    thresholds: Array


Part = dict[FeatureModel, GridStates]
"""A part of the work on a diagram."""


def phase_chunk(config: PhaseConfig, chunk: int) -> Part:
    """One part of the work: the same for the same configuration, wherever it is computed.

    Args:
        config: the whole diagram.
        chunk: which part, from 0.
    """
    cells = _normalized_cells if config.is_normalized else _cells
    return {features: cells(config, chunk, features) for features in FEATURES}


def _cells(config: PhaseConfig, chunk: int, features: FeatureModel) -> GridStates:
    grids = (config.sizes, config.counts, config.parameter("lambda_z"), config.parameter("lambda_b"))
    sizes, counts, lambda_z, lambda_b = (config.cut(grid, chunk) for grid in grids)
    prices = lambda_z.ravel(), lambda_b.ravel()
    batch = ProblemBatch.plain(sizes.reshape(-1, 2), counts.reshape(-1, 2), *prices, features)
    shape = lambda_z.shape
    result = solve_batch(batch, config.tol, line=shape[1])
    codes = np.argmax(result.states[..., None] == np.array(CLASS_STATES), axis=-1)
    names = [status.name for status in result.status]
    levels = _threshold_fields(config, batch, shape)
    return _shaped(shape, codes.T, result.relative_gap, names, result.one_by_one, levels)


def _normalized_cells(config: PhaseConfig, chunk: int, features: FeatureModel) -> GridStates:
    """The same for normalised features, every cell solved by itself."""
    places = config.cut(np.moveaxis(np.indices(config.shape), 0, -1), chunk).astype(int)
    known: dict[tuple[float, ...], Thresholds] = {}
    found, levels = [], []
    for i, j in places.reshape(-1, 2).tolist():
        problem = _normalized_problem(config, (i, j), features)
        found.append(solve(problem, config.tol, throw=False))
        key = (*config.sizes[i, j].tolist(), *config.counts[i, j].tolist(), problem.lambda_b)
        if key not in known:  # one root serves all cells that differ only in lambda_w and norm
            known[key] = thresholds(problem.replace(norm=1.0))
        t, square = known[key], float(config.parameter("norm")[i, j]) ** 2
        # with nonnegative features NaN may also mean a class that the bias alone predicts well
        exact = t.exact & (np.isfinite(t.vanish) | (features == "signed"))
        levels.append(_levels(t.merge * square, t.vanish * square, exact, t.complete, t.complete_bound))
    codes = [
        [CLASS_STATES.index(s.class_states[k]) for s in found] for k in (0, -1)
    ]  # A's classes come first, B's last
    gaps, names = [s.certificate.relative_gap for s in found], [s.status.name for s in found]
    shape = places.shape[:2]
    return _shaped(shape, codes, gaps, names, [True] * len(found), np.transpose(levels).reshape(-1, *shape))


def _normalized_problem(config: PhaseConfig, cell: tuple[int, int], features: FeatureModel) -> Problem:
    """Counts need not be whole, so they are weights of one sample per class."""
    n = np.repeat(config.counts[cell], config.sizes[cell].astype(int))
    over = config.settings.over
    assert over is not None
    return Problem.from_normalized(
        np.ones(n.size, dtype=np.int64),
        lambda_w=float(config.penalty[cell]),
        norm=float(config.parameter("norm")[cell]),
        over=over,
        lambda_b=float(config.parameter("lambda_b")[cell]),
        loss=Loss(class_weights=n),
        feature_mass=None if over == "sample" else n,
        features=features,
    )


def _shaped(
    shape: tuple[int, ...], codes: ArrayLike, gap: ArrayLike, names: ArrayLike, one_by_one: ArrayLike, levels: Array
) -> GridStates:
    digits = np.asarray(gap)  # rounded to three digits, to the float64 nearest to the decimal number
    scale = 10.0 ** np.clip(2 - np.floor(np.log10(np.maximum(digits, 1e-300))), 0, 22)  # powers that are exact
    return GridStates(
        states=np.reshape(codes, (2, *shape)),
        gap=np.reshape(np.rint(digits * scale) / scale, shape),
        status=np.reshape(np.asarray(names, dtype=np.str_), shape),
        one_by_one=np.reshape(one_by_one, shape),
        thresholds=np.broadcast_to(np.where(np.isfinite(levels), levels, np.nan), (len(FIELDS), *shape)),
    )


def _threshold_fields(config: PhaseConfig, batch: ProblemBatch, shape: tuple[int, ...]) -> Array:
    """Thresholds per cell, in the order of ``FIELDS``; one line of them along lambda_z, where they repeat."""
    grid = np.arange(batch.num_problems).reshape(shape)
    wanted = np.take(grid, [0], axis=config.along) if config.has_penalty else grid
    c = Clusters(np.empty(0, dtype=np.intp), **{name: getattr(batch, name)[wanted.ravel()] for name in NUMBERS})
    found = np.empty((len(FIELDS), wanted.size))
    alike = (c.share[:, 0] == c.share[:, 1]) & (c.mass[:, 0] == c.mass[:, 1])  # A and B are one kind of classes
    for part, some in ((~alike, c.taken(~alike)), (alike, c.taken(alike).joined())):
        if part.any():
            merge, v = cluster_thresholds(some, batch.features)
            found[:, part] = _levels(merge, v.vanish, v.exact, v.complete, v.complete_bound)
    return found.reshape(-1, *wanted.shape)


def _levels(merge: Array, vanish: Array, exact: Mask, complete: ArrayLike, bound: ArrayLike) -> Array:
    """Thresholds in the order of ``FIELDS``, of classes or clusters, (..., J); A is the first and B the last."""
    (merges, vanishes, certain) = ([values[..., side] for side in (0, -1)] for values in (merge, vanish, exact))
    return np.stack([*merges, *vanishes, complete, *certain, np.less_equal(bound, np.multiply(complete, 1 + 1e-9))])
