"""A group of classes at an optimum: its state, its distance from the threshold, and how its samples are classified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.counts import CountsLike
from collapsar.core.loss import Loss
from collapsar.core.normalization import own_penalties
from collapsar.core.problem import Problem
from collapsar.core.record_types import OutlookRecord
from collapsar.core.states import ClassState, past, worst
from collapsar.core.types import Matrix, Vector
from collapsar.solver import Solution
from collapsar.solver.atoms import Atoms
from collapsar.solver.normalized_transitions import merge_per_batch, merge_per_sample, plain_problem
from collapsar.solver.symmetry import Quotient, quotient
from collapsar.theory import thresholds
from collapsar.theory.thresholds import complete_collapse, gradual_merge, merge_strength

# A margin this small, in nats, is a tie: siblings that have merged have equal logits up to the solver's rounding.
TIE = 1e-6
# Columns whose cosine is closer to 1 than this share one direction.
PARALLEL = 1e-5
# If classes share directions, a column this short relative to the longest is a trace of its neighbours', not its own.
FAINT = 1e-2
PRIOR_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of the log prior that a correction may subtract."""
# The least margin is enough if it is three quarters of the best one's, or says that the own class is twice as likely as
# any other: below that large classes lost test samples.
_NEAR_BEST, _ENOUGH = 0.75, float(np.log(2))


@dataclass(frozen=True)
class Outlook:
    """Classes with the same number of samples, at an optimum.

    Attributes:
        classes: their indices.
        samples: samples of each.
        state: "separated", "merged" or "vanished", the worst among them, as in :attr:`collapsar.Solution.class_states`.
        lost: whether one of them has no predictions of its own, see :func:`clearance`.
        threshold: lambda_z (lambda_w for normalised features) above which they are no longer separated; see
            :func:`edges`.
        safety: threshold over the present penalty: above 1 exactly if the state is "separated". NaN, like the
            threshold, if the bias alone predicts the class well at every lambda_z, or if the threshold is approximate
            and the certified state contradicts it; for normalised features: if nothing merges the class.
        margin: own logit minus the largest other at the class mean, nats; negative: the mean itself is misclassified.
        corrected_margin: the same after the prior correction for equally frequent classes.
        contrast: own logit minus a sibling's (a class of the same group), nats; NaN without siblings.
        norm: length of the class's column of predictions.
    """

    classes: tuple[int, ...]
    samples: int
    state: ClassState
    lost: bool
    threshold: float
    safety: float
    margin: float
    corrected_margin: float
    contrast: float
    norm: float

    def to_dict(self) -> OutlookRecord:
        """The fields as JSON-able values."""
        values: dict[str, Any] = {**asdict(self), "classes": list(self.classes), "lost": not self.lost}
        return OutlookRecord(**{"apart" if name == "lost" else name: value for name, value in values.items()})


def outlooks(solution: Solution) -> tuple[Outlook, ...]:
    """The outlook of every kind of class at an optimum, largest classes first.

    Args:
        solution: a certified optimum.

    Returns:
        One entry per different number of samples.

    Example:
        >>> from collapsar import Problem, solve
        >>> [(o.samples, o.state, round(o.safety, 3)) for o in outlooks(solve(Problem("500x5,100x5", 0.0036, 0.02)))]
        [(500, 'separated', 2.07), (100, 'merged', 0.926)]
    """
    problem, states = solution.problem, solution.class_states
    penalty, edge = own_penalties(problem), edges(problem)
    separated = np.array([state == "separated" for state in states])
    edge = np.where(~past(penalty, edge) != separated, np.nan, edge)  # contradicted by the certified state
    logits = logits_of(solution)
    margin, corrected = _margins(logits), _margins(logits + _equal_priors(problem))
    lost = _clearance(solution, separated, logits, margin, corrected) <= 0
    columns = (edge / penalty, edge, margin, corrected, solution.column_norms, lost)
    safety, edge, margin, corrected, norm, lost = (values.tolist() for values in columns)
    members: dict[int, list[int]] = {n: [] for n in sorted(set(problem.class_counts.tolist()), reverse=True)}
    for k, n in enumerate(problem.class_counts.tolist()):
        members[n].append(k)
    result = []
    for n, ks in members.items():
        first = next((k for k in ks if np.isnan(safety[k])), min(ks, key=safety.__getitem__))
        result.append(
            Outlook(
                classes=tuple(ks),
                samples=n,
                state=worst(states[k] for k in ks),
                lost=any(lost[k] for k in ks),
                threshold=edge[first],
                safety=safety[first],
                margin=min(margin[k] for k in ks),
                corrected_margin=min(corrected[k] for k in ks),
                contrast=_contrast(logits[np.ix_(ks, ks)]) if len(ks) > 1 else float("nan"),
                norm=min(norm[k] for k in ks),
            )
        )
    return tuple(result)


def _contrast(block: Matrix) -> float:
    """The least own logit minus a sibling's."""
    ahead = np.diag(block)[:, None] - block.T
    return float(ahead[~np.eye(len(block), dtype=bool)].min())


def clearance(solution: Solution) -> Vector:
    """How far each class is from being lost, nats, shape (K,): positive exactly if it has predictions of its own.

    For a separated class this is its decision margin with the priors of training or with equal ones, whichever is
    larger; columns that have become parallel are separated in name only. Any other class has predictions of its own
    only if the bias alone classifies it, by the margin with the priors of training; -inf if neither margin tells.

    Example:
        >>> from collapsar import Problem, solve
        >>> (clearance(solve(Problem("500x2,100x2", 0.01, 0.02))) > 0).tolist()
        [True, True, False, False]
    """
    logits, separated = logits_of(solution), np.array([state == "separated" for state in solution.class_states])
    corrected = _margins(logits + _equal_priors(solution.problem))
    return _clearance(solution, separated, logits, _margins(logits), corrected)


def _clearance(solution: Solution, own: NDArray[np.bool_], logits: Matrix, margin: Vector, corrected: Vector) -> Vector:
    q, better = solution.quotient, np.maximum(margin, corrected)
    Z = logits - solution.b[:, None]
    # the features' own lead: what a class just born has of its own, while its margin may come from the bias
    kept = np.where((q.sizes == 1)[q.labels], np.minimum(better, _margins(Z) + np.where(own, TIE, 0.0)), better)
    if not own.all():  # born where its residual is as long as the penalty
        R = solution.residual
        square = np.sum(R.between**2, axis=0) / q.sizes + R.within**2 * (1 - 1 / q.sizes)
        born = 0.5 * np.log(np.maximum(square[q.labels], np.finfo(np.float64).tiny)) - np.log(q.lambda_z)
        dead = solution.column_norms == 0
        kept = np.where(own, kept, np.minimum(np.where(dead, better, kept), born))
    if solution.proof is not None and (shared := _sharing(q, solution.proof.atoms)[q.labels]).any():
        # their columns may be multiples of each other
        size = solution.column_norms / (FAINT * solution.column_norms.max())
        one, faint = shared & _parallel(Z), shared & (size <= 1)
        if one.any():
            kept = np.where(one, np.minimum(kept, np.log(merge_strength(solution.problem) / q.lambda_z)), kept)
        kept = np.where(faint & (size > 0), np.minimum(kept, np.log(np.where(size > 0, size, 1.0))), kept)
        own = own & ~(one | faint)
    return np.where(own, kept, np.where(margin > TIE, margin, np.minimum(kept, 0.0))) - TIE


def _sharing(q: Quotient, atoms: Atoms) -> NDArray[np.bool_]:
    """Per cluster, whether its classes share a direction, with each other or with another cluster's."""
    common, inside = atoms.common > 0, (atoms.own > 0) | (atoms.common > 0)
    several = inside.sum(axis=1, keepdims=True) > 1
    return np.any((several & inside) | (common & (q.sizes > 1)), axis=0)


def _parallel(Z: Matrix) -> NDArray[np.bool_]:
    """Whether a column points where another one does, shape (K,)."""
    norm = np.linalg.norm(Z, axis=0)
    unit = Z / np.where(norm > 0, norm, np.inf)
    cosine = unit.T @ unit
    np.fill_diagonal(cosine, 0.0)
    return cosine.max(axis=0) > 1 - PARALLEL


def edges(problem: Problem) -> Vector:
    """The penalty (lambda_z, or lambda_w of normalised features) above which each class is no longer separated, (K,).

    Signed features: tau delta (1 - eps) q / sqrt(m), where classes of one kind merge; a class alone in its kind has no
    transition there, but loses its own direction near it, at the latest where all classes vanish; of two classes each
    loses it exactly there. Nonnegative features: where the class loses its own direction. Normalised features: where
    the class merges, NaN if it never does.

    Args:
        problem: its penalty is ignored.
    """
    how = problem.normalization
    if how is not None and how.over == "sample":
        return merge_per_sample(problem)[0]
    if how is not None:
        plain, q = plain_problem(problem), quotient(problem)
        own = edges(plain)
        if problem.features == "signed":
            own = np.where(q.sizes[q.labels] > 1, own, np.nan)
        return merge_per_batch(problem, own)
    if problem.features == "signed":
        # only for a class alone in its kind can this lie above complete collapse
        gradual = np.any(quotient(problem).sizes == 1)
        return gradual_merge(problem, complete_collapse(problem)) if gradual else merge_strength(problem)
    return thresholds(problem).vanish


def logits_of(solution: Solution) -> Matrix:
    """Z + b, shape (K, K), [logit, class]: the head's output at the class means."""
    return solution.Z + solution.b[:, None]


def _equal_priors(problem: Problem) -> Matrix:
    """What the prior correction for equally frequent classes adds to each logit, shape (K, 1).

    Trained with loss shares q and offsets iota, g + iota is the log posterior under the prior q; g + iota - log q is
    the one under equal priors.
    """
    return (problem.offsets - np.log(problem.loss_share))[:, None]


def left_prior(counts: CountsLike, loss: Loss) -> Vector:
    """The log prior that a loss leaves in the logits, shape (K,): log(n/N) for the plain loss, log q - iota for others.

    Args:
        counts: samples per class.
        loss: with class weights and offsets, or without.

    Returns:
        The log prior, shifted so that its exponentials sum to one.

    Example:
        >>> from collapsar import Loss
        >>> left_prior([90, 10], Loss(offsets=np.log([90, 10]))).round(3).tolist()
        [-0.693, -0.693]
    """
    prior = -_equal_priors(Problem(counts, 1.0, loss=loss))[:, 0]
    return prior - np.logaddexp.reduce(prior)


def inference_margins(solution: Solution) -> Vector:
    """z_kk + b_k - max over l != k of (z_lk + b_l), shape (K,), nats: the margin of the head's decision.

    Offsets, scales and temperatures belong to the training loss and are left out.

    Example:
        >>> from collapsar import Problem, solve
        >>> print(inference_margins(solve(Problem("500x5,100x5", 0.0036, 0.02)))[[0, 9]].round(3))
        [ 2.26  -0.603]
    """
    return _margins(logits_of(solution))


def corrected_margins(solution: Solution) -> Vector:
    """The same after the prior correction for equally frequent classes.

    Example:
        >>> from collapsar import Problem, solve
        >>> print(corrected_margins(solve(Problem("500x5,100x5", 0.0032, 0.02)))[[0, 9]].round(3))
        [1.337 0.415]
    """
    return _margins(logits_of(solution) + _equal_priors(solution.problem))


def prior_share(solution: Solution) -> float:
    """How much of the prior to correct, 0 to 1: all of it if that is good for every class.

    The largest of 1, .75, .5, .25 and 0 after which the least decision margin over the class means is log 2, or three
    quarters of what the best of them gives; 0 if none classifies every class mean correctly. Penalties shorten the
    scores, not the prior: with a strongly penalised head, correcting all takes from large classes what small ones gain.

    Example:
        >>> from collapsar import Problem, solve
        >>> [prior_share(solve(Problem("400,200,40,20", lambda_z, 0.01))) for lambda_z in (0.001, 0.005)]
        [1.0, 0.75]
    """
    logits, prior = logits_of(solution), _equal_priors(solution.problem)
    place = first_enough([float(_margins(logits + share * prior).min()) for share in PRIOR_SHARES])
    return 0.0 if place is None else PRIOR_SHARES[place]


def first_enough(margins: Sequence[float]) -> int | None:
    """The index of the first of several least margins that is log 2, or near the best; None if none is positive."""
    best = max(margins, default=0.0)
    if not best > TIE:
        return None
    return next(i for i, margin in enumerate(margins) if margin >= min(_NEAR_BEST * best, _ENOUGH))


def calibration_shift(solution: Solution) -> float:
    """How far the mean predicted probabilities are from the class frequencies n/N: total variation, 0 to 1.

    At the optimum of the plain loss with a free bias it is 0. Weights, oversampling and offsets change it.

    Example:
        >>> from collapsar import Loss, Problem, solve
        >>> weighted = Loss(class_weights=[1, 1, 5, 5])
        >>> [round(calibration_shift(solve(Problem("500x2,100x2", 0.01, 0.0, loss))), 3) for loss in (None, weighted)]
        [0.0, 0.172]
    """
    logits = logits_of(solution)
    P = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
    prior = solution.problem.class_counts / solution.problem.num_samples
    return float(0.5 * np.abs(P @ prior - prior).sum())


def _margins(logits: Matrix) -> Vector:
    others = logits.copy()
    others.reshape(-1)[:: len(others) + 1] = -np.inf
    return logits.diagonal() - others.max(axis=0)
