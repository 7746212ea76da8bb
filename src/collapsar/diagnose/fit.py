"""Measured against optimum: distances, and which model a network follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.types import Matrix, Vector
from collapsar.diagnose.readings import checked_predictions
from collapsar.metrics.balance import balance_penalties  # noqa: F401 - public here as well
from collapsar.metrics.predictions import MeanPredictions
from collapsar.solver import Solution, solve
from collapsar.solver.certificate import penalty
from collapsar.solver.objective import predict
from collapsar.solver.symmetry import Blocks, lift, project, quotient, trivial_quotient

# A network counts as following one model if it is nearer to it by more than this factor.
_NEARER = 0.8
# Nats: a bias of the optimum shorter than this may be the solver's error around zero (at a gap of 1e-7, its root).
_NO_BIAS = 1e-3


@dataclass(frozen=True)
class Distance:
    """Relative distances of a measured (Z, b) to an optimum (Z*, b*); NaN where the optimum is zero.

    Attributes:
        Z: ||Z - Z*||_F / ||Z*||_F.
        Z_max: the same in the largest absolute entry.
        b: ||b - b*||_2 / ||b*||_2.
        b_max: the same in the largest absolute entry.
    """

    Z: float
    Z_max: float
    b: float
    b_max: float


def distance(solution: Solution, Z: ArrayLike | MeanPredictions, b: ArrayLike) -> Distance:
    """How far a network's mean predictions are from the optimum (Hong & Ling, JMLR 25(192), 2024, Fig. 3).

    With a free bias (``lambda_b`` 0) a shift of b along 1/delta changes neither loss nor price: it is removed first.

    Args:
        solution: the optimum.
        Z: shape (K, K), [logit, class], mean predictions without the bias, or their factors.
        b: shape (K,).

    Raises:
        ValueError: a shape disagrees.

    Example:
        >>> from collapsar import Problem, solve
        >>> s = solve(Problem([10, 10], lambda_z=0.05))
        >>> round(distance(s, 1.1 * s.Z, s.b).Z, 12)
        0.1
    """
    P, bias = checked_predictions(solution.problem, Z, b)
    return _deviations([solution], P, [np.zeros(bias.size)], [bias])[0][0]


def _deviations(
    solutions: Sequence[Solution], P: MeanPredictions, offsets: Sequence[Vector], biases: Sequence[Vector]
) -> list[tuple[Distance, float]]:
    """The distance of (Z - offset, b) from each optimum and ||Z - offset - Z*||_F, in one pass over the columns."""
    # per optimum: squares of the difference and of the optimum, their largest entries
    sums, most = np.zeros((2, len(solutions), 2))
    for part, columns in P.blocks():
        for i, (solution, offset) in enumerate(zip(solutions, offsets, strict=True)):
            optimum = _columns_of(solution, part)
            difference = columns - offset[:, None]
            difference -= optimum
            for j, values in enumerate((difference, optimum)):
                sums[i, j] += np.vdot(values, values)
                most[i, j] = max(most[i, j], values.max(), -values.min())
    found = []
    for solution, b, (off, whole), (off_max, whole_max) in zip(solutions, biases, sums, most, strict=True):
        bias, best = b, solution.b
        if solution.problem.lambda_b == 0:
            shift = _unseen(solution.problem)
            bias, best = (x - (shift @ x) * shift for x in (bias, best))
        db = bias - best
        distances = Distance(
            Z=_ratio(np.sqrt(off), np.sqrt(whole)),
            Z_max=_ratio(off_max, whole_max),
            b=_ratio(np.linalg.norm(db), np.linalg.norm(best), _NO_BIAS),
            b_max=_ratio(np.abs(db).max(), np.abs(best).max(), _NO_BIAS),
        )
        found.append((distances, float(np.sqrt(off))))
    return found


def _columns_of(solution: Solution, part: slice) -> Matrix:
    """These columns of the optimum's Z."""
    q, blocks = solution.quotient, solution.blocks
    labels = q.labels[part]
    columns = blocks.C[np.ix_(q.labels, labels)]
    for j in np.unique(labels[q.sizes[labels] > 1]):
        columns[np.ix_(q.labels == j, labels == j)] -= blocks.alpha[j] / q.sizes[j]
    lone = np.where(q.sizes[labels] > 1, blocks.alpha[labels], 0.0)
    columns[np.arange(part.start, part.stop), np.arange(labels.size)] += lone
    return columns


def _ratio(value: float | np.floating, scale: float | np.floating, zero: float = 1e-9) -> float:
    # an optimum that is zero to rounding has no relative distance
    return float(value / scale) if scale > zero else float("nan")


def _block_residual(problem: Problem, Z: Matrix, b: Vector) -> tuple[float, float]:
    """How far Z, and b, is from being equal for classes that the problem cannot tell apart; NaN if it is zero."""
    q = quotient(problem)
    blocks = lift(q, project(q, Z, b))
    pairs = zip((Z, b), blocks, strict=True)
    from_z, from_b = (_ratio(np.linalg.norm(own - block), np.linalg.norm(own)) for own, block in pairs)
    return from_z, from_b


def _gram_distances(solution: Solution, W: Matrix, H: Matrix, split: tuple[float, float]) -> tuple[float, float]:
    """Relative Frobenius distances of the Gram matrices of head and features, each by rows, from the optimum's.

    ``split`` is (lambda_w, lambda_h), which splits the scale between the two; NaN if the optimum's is zero.
    """
    scale = float(np.sqrt(split[1] / split[0]))
    optima = solution.classifier_gram() * scale, solution.feature_gram() / scale
    pairs = zip((W @ W.T, H @ H.T), optima, strict=True)
    of_head, of_features = (_ratio(np.linalg.norm(own - best), np.linalg.norm(best)) for own, best in pairs)
    return of_head, of_features


@dataclass(frozen=True)
class ModelFit:
    """A measured network compared with the optimum of one feature model at given penalties.

    Attributes:
        features: the model.
        distance: of Z and b.
        away: ||Z - Z*||_F, nats: defined even if the optimum is zero.
        classifier_gram: relative distance of the head's Gram matrix; NaN if lambda_h is unknown or Z given by factors.
        feature_gram: the same for the class means.
        excess: by how much the network's mean predictions cost more than the optimum, relative to it; NaN if they
            are given by factors.
        gap: relative duality gap of the optimum itself.
    """

    features: FeatureModel
    distance: Distance
    away: float
    classifier_gram: float
    feature_gram: float
    excess: float
    gap: float


@dataclass(frozen=True)
class Fit:
    """A measured network compared with both feature models at the same penalties.

    Attributes:
        lambda_z: the penalty of the mean predictions.
        lambda_b: the penalty of the bias.
        models: a :class:`ModelFit` per feature model.
        follows: the model that the network is nearer to; None if it is about as near to both.
        block_residual_z: ||Z - its block part||_F / ||Z||_F, Z about its mean over samples: how far it is from being
            equal for classes that the problem cannot tell apart. The optimum is block-structured over clusters (JMLR
            Thm 2b): the rest comes from data, not counts. NaN if Z is zero or given by factors.
        block_residual_b: the same for b.
    """

    lambda_z: float
    lambda_b: float
    models: Mapping[FeatureModel, ModelFit]
    follows: FeatureModel | None
    block_residual_z: float
    block_residual_b: float


def fit_to_theory(
    problem: Problem,
    Z: ArrayLike | MeanPredictions,
    b: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    class_means: ArrayLike | None = None,
    split: tuple[float, float] | None = None,
) -> Fit:
    """Compare mean predictions with the optima of both feature models.

    Args:
        problem: counts, loss and penalties; its feature model is not used.
        Z: shape (K, K), [logit, class]; or its factors, which avoid K x K tables.
        b: shape (K,); zero if ``lambda_b`` is inf.
        weight: W, shape (K, d), for the Gram matrices.
        class_means: shape (K, d), for the Gram matrices.
        split: (lambda_w, lambda_h), for the Gram matrices.

    Raises:
        ValueError: a shape disagrees, or there is a bias although ``lambda_b`` is inf.

    Example:
        >>> p = Problem("100x2,20x2", lambda_z=0.01, lambda_b=0.02, features="nonnegative")
        >>> s = solve(p)
        >>> fit_to_theory(p, s.Z, s.b).follows
        'nonnegative'
    """
    return fit_beside(both(problem), Z, b, weight, class_means, split)


def near_optimum(problem: Problem) -> Solution:
    """The optimum, as accurately as a network can be compared with it; if it is less accurate, its status says so."""
    return solve(problem, 1e-7, throw=False)


def both(problem: Problem, optimum: Callable[[Problem], Solution] = near_optimum) -> list[Solution]:
    """The optima of both feature models."""
    return [optimum(problem.replace(features=features)) for features in get_args(FeatureModel)]


def fit_beside(
    solutions: Sequence[Solution],
    Z: ArrayLike | MeanPredictions,
    b: ArrayLike,
    weight: ArrayLike | None = None,
    class_means: ArrayLike | None = None,
    split: tuple[float, float] | None = None,
) -> Fit:
    """As :func:`fit_to_theory`, given the optima of :func:`both`."""
    problems = [solution.problem for solution in solutions]
    problem = problems[0]
    whole, given_b = checked_predictions(problem, Z, b)
    table = whole.class_means is None
    given = whole.without(_unseen(problem))
    moves = [_beside(solution, given, given_b) for solution in solutions]
    deviations = _deviations(solutions, given, [offset for offset, _ in moves], [bias for _, bias in moves])
    models: dict[FeatureModel, ModelFit] = {}
    for model, solution, (offset, bias), deviation in zip(problems, solutions, moves, deviations, strict=True):
        grams, excess = (float("nan"), float("nan")), float("nan")
        best = solution.certificate
        if table:
            excess = (_price(model, given.weight - offset[:, None], bias) - best.primal) / best.primal
            if weight is not None and class_means is not None and split is not None:
                W, H = np.asarray(weight, dtype=np.float64), np.asarray(class_means, dtype=np.float64)
                grams = _gram_distances(solution, W, H, split)
        models[model.features] = ModelFit(model.features, *deviation, *grams, excess=excess, gap=best.relative_gap)
    near, far = sorted(models.values(), key=lambda fit: fit.away)
    told = far.away > 0 and near.away < _NEARER * far.away
    nowhere = (float("nan"), float("nan"))
    blocks = _block_residual(problem, *_without_mean(problem, whole.weight, given_b)) if table else nowhere
    return Fit(problem.lambda_z, problem.lambda_b, models, near.features if told else None, *blocks)


def distance_beside(
    solution: Solution, Z: ArrayLike | MeanPredictions, b: ArrayLike, *, moved: bool
) -> tuple[Distance, float]:
    """``distance`` of (Z, b) from an optimum, and ||Z - Z*||_F in nats.

    An offset of features that have ``moved``, which the bias cancels, is first set to the optimum's.
    """
    P, bias = checked_predictions(solution.problem, Z, b)
    offset = np.zeros(bias.size)
    if moved:
        P = P.without(_unseen(solution.problem))
        offset, bias = _beside(solution, P, bias)
    return _deviations([solution], P, [offset], [bias])[0]


def _price(problem: Problem, Z: Matrix, b: Vector) -> float:
    """The objective of these mean predictions, without a bound, which a saturated softmax would not give."""
    q = trivial_quotient(problem)
    here = Blocks(np.zeros(q.num_classes), Z, b)
    bias = 0.5 * problem.lambda_b * float(b @ b) if np.isfinite(problem.lambda_b) else 0.0
    return predict(q, here)[1] + problem.lambda_z * penalty(q, here) + bias


def _unseen(problem: Problem) -> Vector:
    """The direction along which all logits may be moved without changing the loss, of length 1."""
    return (1 / problem.scales) / np.linalg.norm(1 / problem.scales)


def _beside(solution: Solution, given: MeanPredictions, b: Vector) -> tuple[Vector, Vector]:
    """What to subtract from every column, and the new bias, for the same predictions with the optimum's offset.

    Features h + c with the bias b - W c give the same logits: the network's mean prediction is moved to the optimum's.
    ``given`` no longer has a part along the unseen direction.
    """
    problem, q = solution.problem, solution.quotient
    if not np.isfinite(problem.lambda_b):
        if b.any():
            raise ValueError("`b` must be zero if `lambda_b` is inf (no bias); give a finite `lambda_b`")
        return np.zeros(b.size), b
    share = problem.class_counts / problem.num_samples
    # only the optimum's cluster part has a mean: inside a cluster all have one share
    optimal = (solution.blocks.C @ np.bincount(q.labels, weights=share))[q.labels]
    offset, unseen = given.mean(share) - optimal, _unseen(problem)
    return offset, b - unseen * (unseen @ b) + offset


def _without_mean(problem: Problem, Z: Matrix, b: Vector) -> tuple[Matrix, Vector]:
    """Z about its mean over samples, which the bias absorbs; unchanged without a bias."""
    if not np.isfinite(problem.lambda_b):
        return Z, b
    mean = Z @ (problem.class_counts / problem.num_samples)
    return Z - mean[:, None], b + mean
