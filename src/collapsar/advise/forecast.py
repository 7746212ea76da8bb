"""Standard training at rest: an optimum under SGD, a forecast under AdamW; whether runs keep all classes there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.advise.outlook import inference_margins
from collapsar.advise.recipe import Recipe
from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.normalization import Over
from collapsar.core.problem import Problem
from collapsar.core.types import Vector
from collapsar.solver import NotConvergedError, Solution, Status, solve
from collapsar.solver.solve import solve_near
from collapsar.solver.symmetry import quotient

_ROUNDS = 80  # optima of a forecast
_AGREED = 1e-4  # relative: rows and optimum agree far better than either agrees with a run
# The same if features oscillate, as where decay leaves hardly more than their signs, and a share of the change as small
# as this has not brought them to rest: this is still far better.
_SWINGING, _CALMED = 1e-2, 0.1
_MOST, _LEAP = 20.0, 3.0  # largest share of a change of the log rows, and their largest step
# Rows below this share of the decay belong to margins beyond what any run reaches. With a LayerNorm on digits those of
# runs were a third above a forecast of .03, and 350 times one of 2e-5 (docs/optimizers.md).
_FELT = 0.01

LEVEL = 1e-6
"""By how many nats scores of merged classes may differ."""

_ALIKE = 0.95  # cosine above which two classes' features count as one; in a cluster it is one exactly if they merge
# What holds at these multiples of the decay held for runs. Rows of AdamW at rest were up to a third above the forecast
# (docs/optimizers.md). SGD lost classes above .9 of the decay at which the optimum outvotes them, and above .6 of the
# one at which it merges them; behind a batch norm, whose statistics are those of a batch, above .3, and sooner below
# half a sample of a class per batch (docs/advise.md).
_OFF, _NEAR, _MERGING, _OF_BATCHES, _SEEN = 1.4, 1.25, 2.0, 4.0, 0.5
_PRICES, _BISECTIONS = (1e-5, 10.0), 10  # range of lambda_w / norm^2 in which classes begin to be lost
_MOST_HALVINGS = 64


@dataclass(frozen=True)
class Forecast:
    """What the decay of the head will be at rest.

    Attributes:
        rows: lambda_k, shape (K,).
        solution: the optimum with these rows.
        settled: whether rows and optimum agreed within the reach of runs; otherwise the margins diverge and only the
            clock tells anything. For SGD, whose rows are known: whether the optimum was found.
    """

    rows: Vector
    solution: Solution
    settled: bool


def head_problem(n: NDArray[np.int64], recipe: Recipe, lambda_w: float | Vector) -> Problem:
    """The problem of a head behind the recipe's norm, with one penalty or one for each row."""
    over: Over = "batch" if recipe.norm == "batchnorm" else "sample"
    how: Any = {"lambda_w": lambda_w, "over": over, "lambda_b": 0.0, "loss": recipe.whole_loss}
    if recipe.gain_decay is not None:
        return Problem.from_gain_decay(n, lambda_gain=recipe.gain_decay, **how)
    return Problem.from_normalized(n, norm=recipe.norm_length, **how)


def forecast_rows(counts: CountsLike | ArrayLike, recipe: Recipe) -> Forecast:
    """AdamW's decay at rest before training: rows lambda_k = wd (sqrt(v_k) + eps) and the optimum with them, iterated.

    At collapse v_k = (rho^2/d) (1/B) sum_c (n_c/N) g_kc^2 + (1 - 1/B) ||sum_c (n_c/N) g_kc h_c||^2 / d, B the batch and
    g_kc = (q_c N/n_c) tau_c delta_k (P - Y)_kc the gradient of the logits, which is P - I for the plain loss.
    Measured on digits with a LayerNorm: rows within 5 % of a run's at wd 30 and 60 with 32 features, a quarter below at
    wd 10 there and at wd 30 with 128; at wd 3 its margins diverge, while the run rests at rows of .02.

    Args:
        counts: samples per class.
        recipe: with ``optimizer="adamw"`` and a norm without decayed gain.

    Returns:
        The forecast; ``settled`` is False if its margins diverge.

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
        # equal to the last bit for classes of one kind, so that they stay one cluster
        v = (np.bincount(kind, mean_square(last, recipe)) / np.bincount(kind))[kind]
        new = recipe.weight_decay * (np.sqrt(v) + recipe.eps)
        change = np.log(new / rows)
        kept = float(np.clip(change @ before / max(before @ before, 1e-300), -1.0, 0.75))
        share, before = min(share / (1 - kept), _MOST), change  # the secant's
        rows = rows * np.exp(np.clip(share * change, -_LEAP, _LEAP))
        felt = float(rows.max()) >= _FELT * recipe.weight_decay
        if max(1.0, share) * float(np.max(np.abs(change))) <= (_AGREED if share > _CALMED else _SWINGING):
            return Forecast(rows, last, felt)
        if not felt and float(change.max()) < 0:  # they fall further still
            break
    assert last is not None
    return Forecast(rows, last, False)


def mean_square(s: Solution, recipe: Recipe) -> Vector:
    """v, shape (K,): the mean square of one entry of the head's gradient, per row."""
    if recipe.batch_size is None:
        raise ValueError("`batch_size` must be given: AdamW's decay at rest depends on the number of samples per step")
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


@dataclass(frozen=True)
class Rests:
    """Optima at rest of a recipe, at multiples of its weight decay.

    Attributes:
        n: samples per class, with few different sizes.
        recipe: the training.
    """

    n: NDArray[np.int64]
    recipe: Recipe

    @cached_property
    def _found(self) -> dict[float, Forecast]:
        return {}

    def at(self, factor: float) -> Forecast:
        """The optimum at ``factor`` times the decay, computed once: multiples of halves are used again."""
        if factor not in self._found:
            self._found[factor] = self._rest(factor)
        return self._found[factor]

    def _rest(self, factor: float) -> Forecast:
        n, decay = self.n, factor * self.recipe.weight_decay
        if self.recipe.optimizer == "adamw":
            return forecast_rows(n, replace(self.recipe, weight_decay=decay))
        s = solve(head_problem(n, self.recipe, decay), 1e-7, throw=False)
        return Forecast(np.full(n.size, decay), s, s.status is Status.OPTIMAL)

    @property
    def room(self) -> float:
        """The multiple of the decay that must be harmless for a run to be safe."""
        if self.recipe.norm == "batchnorm":
            return _OF_BATCHES
        return _OFF if self.recipe.optimizer == "adamw" else _NEAR

    @property
    def multiple(self) -> str:
        """The multiples of the decay at which a safe run would still be safe, in words."""
        return f"{self.room:g}" if self.room >= _MERGING else f"{self.room:g} to {_MERGING:g}"

    @property
    def in_a_batch(self) -> float:
        """Samples of the smallest class in a batch; inf if the batch size is unknown."""
        size = self.recipe.batch_size
        return np.inf if size is None else size * float(self.n.min() / self.n.sum())

    @property
    def seldom(self) -> bool:
        """Whether a norm over batches sees too few samples of the smallest class for the theory of one large batch."""
        return self.recipe.norm == "batchnorm" and self.in_a_batch < _SEEN

    def kept(self, factor: float) -> bool | None:
        """Whether runs keep all classes: whether the rests at the measured multiples do; None: one stays open."""
        found = self.at(self.room * factor)
        if not found.settled:
            return self.kept_if_weaker(factor) if self.recipe.optimizer == "adamw" else None
        if _loses(found.solution):
            return False
        if self.room >= _MERGING:
            return True
        further = self.at(_MERGING * factor)
        if not further.settled:
            return True if self.recipe.optimizer == "adamw" else None
        return not alike(further.solution)

    def kept_if_weaker(self, factor: float) -> bool:
        """Whether this is weaker than the decay at which classes begin to be lost, if a forecast does not settle."""
        return self.room * factor * self.recipe.weight_decay < self.least_harmful

    @cached_property
    def least_harmful(self) -> float:
        """The decay at whose rest classes begin to merge or to be outvoted, with all rows taken as one.

        wd = lambda / (sqrt(v) + eps) at the largest v rises with lambda: weaker decay rests at smaller rows.
        """
        low, high = (price * self.recipe.norm_length**2 for price in _PRICES)
        best = solve_near(head_problem(self.n, self.recipe, low), None, 1e-7)
        for _ in range(_BISECTIONS):
            middle = float(np.sqrt(low * high))
            s = solve_near(head_problem(self.n, self.recipe, middle), best, 1e-7)
            if s.status is not Status.OPTIMAL or _loses(s):
                high = middle
            else:
                low, best = middle, s
        return low / float(np.sqrt(mean_square(best, self.recipe)).max() + self.recipe.eps)

    def largest_decay(self) -> float | None:
        """The largest of wd/2, wd/4, ... that is safe, in the optimizer's units; None if none of those tried is."""
        tried, halvings = 0, 1
        while not self.kept(0.5**halvings):
            if halvings == _MOST_HALVINGS:
                return None
            tried, halvings = halvings, 2 * halvings
        while halvings - tried > 1:
            middle = (tried + halvings) // 2
            tried, halvings = (tried, middle) if self.kept(0.5**middle) else (middle, halvings)
        return 0.5**halvings * self.recipe.weight_decay * self.recipe.unit


def alike(s: Solution) -> tuple[int, ...]:
    """Classes whose features coincide with another class's, or are zero, as all are where Z = 0."""
    G = s.feature_gram()
    size = np.sqrt(np.diag(G))
    gone = size <= 1e-6 * size.max()
    cosines = G / np.maximum(np.outer(size, size), 1e-300)
    np.fill_diagonal(cosines, 0.0)
    return tuple(int(k) for k in np.flatnonzero(gone | (cosines.max(axis=0) >= _ALIKE)))


def outvoted_at(s: Solution) -> tuple[int, ...]:
    """Classes for which the optimum scores another class higher."""
    return tuple(int(k) for k in np.flatnonzero(inference_margins(s) < -LEVEL))


def _loses(s: Solution) -> bool:
    return bool(alike(s) or outvoted_at(s))
