"""The optimum that standard training comes to rest at: under SGD that of its decay, under AdamW that of a forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.advise.recipe import Recipe
from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.normalization import Over
from collapsar.core.problem import Problem
from collapsar.core.types import Vector
from collapsar.solver import NotConvergedError, Solution, solve
from collapsar.solver.symmetry import quotient

_ROUNDS = 80  # optima of a forecast
_AGREED = 1e-4  # relative: rows and optimum agree far better than either agrees with a run
# The same where features swing to and fro, as they do where decay leaves hardly more of them than their signs, and a
# share of the change as small as this has not brought them to rest: still far better.
_SWINGING, _CALMED = 1e-2, 0.1


@dataclass(frozen=True)
class Forecast:
    """What the decay of the head will be at rest.

    Attributes:
        rows: lambda_k, shape (K,).
        solution: the optimum with these rows.
        settled: whether rows and optimum agreed; otherwise the margins run off and only the clock speaks.
    """

    rows: Vector
    solution: Solution
    settled: bool


def optimum_at_rest(n: NDArray[np.int64], recipe: Recipe) -> Forecast:
    """The optimum of training as in the recipe, of which SGD's rows are known beforehand."""
    if recipe.optimizer == "adamw":
        return forecast_rows(n, recipe)
    s = solve(head_problem(n, recipe, recipe.weight_decay), 1e-7, throw=False)
    return Forecast(np.full(n.size, recipe.weight_decay), s, True)


def head_problem(n: NDArray[np.int64], recipe: Recipe, lambda_w: float | Vector) -> Problem:
    """The optimum's problem behind the recipe's norm, with a penalty of the head or of each of its rows."""
    over: Over = "batch" if recipe.norm == "batchnorm" else "sample"
    how: Any = {"lambda_w": lambda_w, "over": over, "lambda_b": 0.0, "loss": recipe.whole_loss}
    if recipe.gain_decay is not None:
        return Problem.from_gain_decay(n, lambda_gain=recipe.gain_decay, **how)
    return Problem.from_normalized(n, norm=recipe.norm_length, **how)


def forecast_rows(counts: CountsLike | ArrayLike, recipe: Recipe) -> Forecast:
    """AdamW's decay at rest before training: rows lambda_k = wd (sqrt(v_k) + eps) and the optimum with them, iterated.

    At collapse v_k = (rho^2/d) (1/B) sum_c (n_c/N) g_kc^2 + (1 - 1/B) ||sum_c (n_c/N) g_kc h_c||^2 / d, B the batch and
    g_kc = (q_c N/n_c) tau_c delta_k (P - Y)_kc the gradient of the logits, P - I of the plain loss.
    Measured on digits with a LayerNorm: rows within 5 % of a run's at wd 30 and 60 with 32 features, a quarter below at
    wd 10 there and at wd 30 with 128; at wd 3 its margins run off, while the run rests at rows of .02.

    Args:
        counts: samples per class.
        recipe: with ``optimizer="adamw"`` and a norm without decayed gain.

    Returns:
        The forecast; ``settled`` is False where its margins run off.

    Example:
        >>> f = forecast_rows("100x5,20x5", Recipe("adamw", 30.0, 1e-3, 1000, 64, "layernorm", 128))
        >>> f.settled, bool(f.rows[0] > f.rows[9])
        (True, True)
    """
    n = class_counts(counts)
    kind = quotient(head_problem(n, recipe, 1.0)).labels
    rows = np.full(n.size, recipe.weight_decay * 0.05)
    last: Solution | None = None
    share, before = 0.5, np.zeros(n.size)
    for _ in range(_ROUNDS):
        try:
            last = solve(head_problem(n, recipe, rows), 1e-8, start=last)
        except (NotConvergedError, FloatingPointError) as error:
            if last is None:
                raise ValueError(f"no forecast for these counts: {error}") from error
            return Forecast(rows, last, False)
        # equal to the last bit for classes of one kind: they stay one cluster
        v = (np.bincount(kind, mean_square(last, recipe)) / np.bincount(kind))[kind]
        new = recipe.weight_decay * (np.sqrt(v) + recipe.eps)
        change = np.log(new / rows)
        share, before = share / 2 if change @ before < 0 else share, change
        rows = rows * np.exp(share * change)
        if float(np.max(np.abs(change))) <= (_AGREED if share > _CALMED else _SWINGING):
            return Forecast(rows, last, True)
        if float(rows.max()) < 1e-6 * recipe.weight_decay:
            break
    assert last is not None
    return Forecast(rows, last, False)


def mean_square(s: Solution, recipe: Recipe) -> Vector:
    """v, shape (K,): the mean square of one entry of the head's gradient, per row."""
    if recipe.batch_size is None:
        raise ValueError("`batch_size` must be given: AdamW's decay at rest depends on the samples of a step")
    p, eps = s.problem, recipe.smoothing
    u = p.temperatures * p.scales[:, None] * (s.Z + s.b[:, None]) + p.offsets[:, None]
    P = np.exp(u - u.max(axis=0))
    r = P / P.sum(axis=0) - (1 - eps) * np.eye(p.num_classes) - eps / p.num_classes
    shown = p.class_counts / p.num_samples
    g = (p.loss_share / shown) * p.temperatures * p.scales[:, None] * r
    G, pull = s.feature_gram(), g * shown
    noise = (g**2 * np.diag(G)) @ shown / recipe.batch_size
    mean = (1 - 1 / recipe.batch_size) * np.sum(pull @ G * pull, axis=1)
    return (noise + np.maximum(mean, 0.0)) / recipe.width
