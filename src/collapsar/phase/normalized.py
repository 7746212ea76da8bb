"""The cells of a phase diagram of networks that normalise their features: every one is solved by itself."""

from __future__ import annotations

import numpy as np

from collapsar.core.problem import FeatureModel, Loss, Problem
from collapsar.core.types import Array
from collapsar.phase.grid import PhaseConfig
from collapsar.phase.transitions import thresholds
from collapsar.solver import Solution, solve
from collapsar.theory.thresholds import Thresholds

__all__ = ["cell_problem", "cell_solutions", "cell_thresholds"]

Cell = tuple[int, int]


def cell_problem(config: PhaseConfig, cell: Cell, features: FeatureModel) -> Problem:
    """The problem of one cell (row, column); counts need not be whole, so they are weights of one sample per class."""
    sizes = config.sizes[cell].astype(int)
    n = np.repeat([config.counts_a[cell], config.counts_b[cell]], sizes)
    over = config.settings.over
    assert over is not None
    return Problem.from_normalized(
        np.ones(n.size, dtype=np.int64),
        lambda_w=float(config.penalty[cell]),
        norm=float(config.norm[cell]),
        over=over,
        lambda_b=float(config.lambda_b[cell]),
        loss=Loss(class_weights=n),
        feature_mass=None if over == "sample" else n,
        features=features,
    )


def cell_solutions(config: PhaseConfig, cells: list[Cell], features: FeatureModel) -> list[Solution]:
    """The optimum of every cell."""
    return [solve(cell_problem(config, cell, features), config.tol, throw=False) for cell in cells]


def cell_thresholds(config: PhaseConfig, cells: list[Cell], features: FeatureModel) -> list[Thresholds]:
    """Thresholds in lambda_w of every cell; one root serves all cells that differ in lambda_w and norm only."""
    known: dict[tuple[float, ...], Thresholds] = {}
    found = []
    for cell in cells:
        key = (*config.sizes[cell].tolist(), *_floats(config, cell))
        if key not in known:
            known[key] = thresholds(cell_problem(config, cell, features).replace(norm=1.0))
        t, square = known[key], float(config.norm[cell]) ** 2
        # with nonnegative features NaN may also mean a class that the bias carries
        exact = t.exact & (np.isfinite(t.vanish) | (features == "signed"))
        found.append(Thresholds(t.merge * square, t.vanish * square, t.complete, t.complete_bound, exact))
    return found


def _floats(config: PhaseConfig, cell: Cell) -> tuple[float, ...]:
    grids: tuple[Array, ...] = (config.counts_a, config.counts_b, config.lambda_b)
    return tuple(float(grid[cell]) for grid in grids)
