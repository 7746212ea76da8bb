"""What samples add to an audit: class counts compared with row lengths, and features with labels.

Example:
    >>> lengths, counts = np.array([1.0, 0.9, 0.5, 0.1]), np.array([100, 50, 10, 2])
    >>> effect = count_effect(lengths, None, counts, np.array([False, False, False, True]))
    >>> round(effect.length_correlation, 3), effect.dies_below
    (1.0, 10)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.types import Mask, Vector
from collapsar.metrics.near_rows import Rows
from collapsar.metrics.predictions import Decisions, decisions

_BLOCK_NUMBERS = 1 << 22
# With more different counts than this the optimum takes minutes.
_MOST_COUNTS = {"signed": 1000, "nonnegative": 20, "normalised": 100}


@dataclass(frozen=True)
class CountEffect:
    """How the head depends on the class counts.

    Attributes:
        length_correlation: rank correlation of row length and count (Spearman), over all classes; NaN if undefined.
        bias_correlation: of bias and count; NaN without a bias.
        dies_below: the count that best separates dead from living classes: most of those with fewer samples are dead
            and most others are not; 0 if counts tell nothing.
        dead_below: share of the classes with fewer samples than that that are dead; NaN if there are none.
        dead_above: share of the others.
        dead_median: median count of the dead classes; NaN if there are none.
        alive_median: of the others.
    """

    length_correlation: float
    bias_correlation: float
    dies_below: int
    dead_below: float
    dead_above: float
    dead_median: float
    alive_median: float


def count_effect(lengths: Vector, bias: Vector | None, counts: NDArray[np.int64], dead: Mask) -> CountEffect:
    """Lengths, biases and deaths against the class counts, all of shape (K,)."""
    below, share_below, share_above = _cut(counts, dead)
    return CountEffect(
        length_correlation=_rank_correlation(lengths, counts),
        bias_correlation=math.nan if bias is None else _rank_correlation(bias, counts),
        dies_below=below,
        dead_below=share_below,
        dead_above=share_above,
        dead_median=float(np.median(counts[dead])) if dead.any() else math.nan,
        alive_median=float(np.median(counts[~dead])) if not dead.all() else math.nan,
    )


def _rank_correlation(values: Vector, counts: NDArray[np.int64]) -> float:
    """Spearman's, NaN if either is constant."""
    from scipy.stats import rankdata

    varied = np.ptp(values) > 0 and np.ptp(counts) > 0
    return float(np.corrcoef(rankdata(values), rankdata(counts))[0, 1]) if varied else math.nan


def _cut(counts: NDArray[np.int64], dead: Mask) -> tuple[int, float, float]:
    """The count below which a class is dead, with the fewest classes on the wrong side, and the two shares."""
    levels, member = np.unique(counts, return_inverse=True)
    died = np.bincount(member, weights=dead, minlength=len(levels))
    total = np.bincount(member, minlength=len(levels))
    # wrong: living classes below the cut and dead ones above
    wrong = np.concatenate([[0], np.cumsum(total - died)]) + died.sum() - np.concatenate([[0], np.cumsum(died)])
    place = int(wrong[:-1].argmin())  # a cut above every class says nothing
    if place == 0:
        return 0, math.nan, float(dead.mean())
    low = counts < levels[place]
    return int(levels[place]), float(dead[low].mean()), float(dead[~low].mean())


def predicted_lost(
    class_counts: NDArray[np.int64],
    *,
    lambda_z: float | None = None,
    lambda_w: float | None = None,
    norm: float | None = None,
    lambda_b: float = math.inf,
) -> tuple[dict[str, Mask], list[str]]:
    """Which classes have merged or vanished at the exact optimum for these counts and penalties.

    Args:
        class_counts: shape (K,), >= 0; a class without samples has no predictions of its own.
        lambda_z: the penalty of the mean predictions, sqrt(lambda_w * lambda_h), for signed and nonnegative features.
        lambda_w: the penalty of the weight, for features that a normalisation gives the length ``norm``.
        norm: that length.
        lambda_b: the penalty of the bias; inf: no bias.

    Returns:
        For each feature model with known penalties, "signed" and "nonnegative" or "normalised", a mask of shape (K,);
        and a sentence for each that is left out.

    Example:
        >>> found, _ = predicted_lost(np.array([500, 500, 20, 20, 0]), lambda_z=0.005)
        >>> {model: lost.tolist() for model, lost in found.items()}
        {'signed': [False, False, True, True, True], 'nonnegative': [False, False, True, True, True]}
    """
    seen = class_counts > 0
    found: dict[str, Mask] = {}
    notes: list[str] = []
    if seen.sum() < 2:
        return found, notes
    counts = class_counts[seen]
    models: dict[str, Callable[[], Mask | None]] = {}
    priced: tuple[FeatureModel, ...] = ("signed", "nonnegative")
    if lambda_z is not None:
        for model in priced:
            problem = Problem(counts, lambda_z, lambda_b, features=model)
            models[model] = partial(_beyond_thresholds, problem)
    if lambda_w is not None and norm is not None:
        problem = Problem.from_normalized(counts, lambda_w=lambda_w, norm=norm, lambda_b=lambda_b)
        models["normalised"] = partial(_not_apart, problem)
    different = len(np.unique(counts))
    for model, look in models.items():
        part = look() if different <= _MOST_COUNTS[model] else None
        if part is None:
            why = f"{different} different counts take minutes" if different > _MOST_COUNTS[model] else "it stayed open"
            notes.append(f"What the optimum for {model} features loses at these counts is left out: {why}.")
            continue
        found[model] = ~seen
        found[model][seen] = part
    return found, notes


def _beyond_thresholds(problem: Problem) -> Mask:
    from collapsar.theory import thresholds

    t = thresholds(problem)
    return problem.lambda_z >= np.fmin(np.fmin(t.merge, t.vanish), t.complete)


def _not_apart(problem: Problem) -> Mask | None:
    """From the certified optimum; None if there is none."""
    from collapsar.solver import solve

    solution = solve(problem, throw=False)
    return np.array(solution.class_states) != "separated" if solution.status.name == "OPTIMAL" else None


def recalls(W: Rows, bias: Vector | None, features: ArrayLike | None, labels: ArrayLike | None) -> Decisions:
    """What the head decides on given samples.

    Raises:
        ValueError: one of the two is missing, or a shape, label or number is invalid.
    """
    if features is None or labels is None:
        raise ValueError("`features` and `labels` go together; give both or neither")
    K, d = W.shape
    H, y = np.asarray(features), np.asarray(labels)
    if H.ndim != 2 or H.shape[1] != d or y.shape != (len(H),) or not len(H):
        raise ValueError(
            f"`features` must be (N, {d}), what the head receives, and `labels` (N,); got {H.shape} and {y.shape}"
        )
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= K:
        raise ValueError(f"`labels` must be whole numbers from 0 to {K - 1}, a class for each row of `features`")
    if not np.isfinite(H).all():
        raise ValueError("`features` must be finite; got NaN or infinity")
    weight = np.asarray(W[:], dtype=np.float64)
    answers = []
    step = max(1, _BLOCK_NUMBERS // K)
    for start in range(0, len(H), step):
        logits = H[start : start + step].astype(np.float64) @ weight.T
        answers.append((logits if bias is None else logits + bias).argmax(axis=1))
    return decisions(y.astype(np.int64), np.concatenate(answers), K)
