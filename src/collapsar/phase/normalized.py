"""The cells of a phase diagram of networks that normalise their features: every one is solved by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from collapsar.core.problem import FeatureModel, Loss, Problem
from collapsar.core.thresholds import Thresholds
from collapsar.phase.grid import PhaseConfig
from collapsar.phase.transitions import thresholds
from collapsar.solver import Solution, solve

__all__ = ["solved_cells"]

Cell = tuple[int, int]


def solved_cells(
    config: PhaseConfig, cells: list[Cell], features: FeatureModel
) -> tuple[list[Solution], list[Thresholds]]:
    """Of each cell (row, column) the optimum and the thresholds in lambda_w."""
    known: dict[tuple[float, ...], Thresholds] = {}
    solutions, found = [], []
    for cell in cells:
        problem = _problem(config, cell, features)
        solutions.append(solve(problem, config.tol, throw=False))
        grids = (config.counts_a, config.counts_b, config.parameter("lambda_b"))
        key = (*config.sizes[cell].tolist(), *(float(grid[cell]) for grid in grids))
        if key not in known:  # one root serves all cells that differ in lambda_w and norm only
            known[key] = thresholds(problem.replace(norm=1.0))
        t, square = known[key], float(config.parameter("norm")[cell]) ** 2
        # with nonnegative features NaN may also mean a class that the bias carries
        exact = t.exact & (np.isfinite(t.vanish) | (features == "signed"))
        levels = {name: getattr(t, name) * square for name in ("merge", "vanish", "vanish_bound")}
        found.append(replace(t, **levels, exact=exact))
    return solutions, found


def _problem(config: PhaseConfig, cell: Cell, features: FeatureModel) -> Problem:
    """Counts need not be whole, so they are weights of one sample per class."""
    n = np.repeat([config.counts_a[cell], config.counts_b[cell]], config.sizes[cell].astype(int))
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
