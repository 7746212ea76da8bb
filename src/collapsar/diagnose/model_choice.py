"""Which model of the theory a trained network follows, judged by its layers, its optimizer and its features' lengths.

Networks that normalise before the head have features of given length and no feature penalty: their optimum is that of
``Problem.from_normalized``, or of ``Problem.from_gain_decay`` if the norm's gain is decayed.

Example:
    >>> from collapsar.diagnose.measurement import measure
    >>> from collapsar.solver import solve
    >>> p = Problem.from_normalized("40x2,10x2", lambda_w=0.4, norm=4.0, lambda_b=0.0)
    >>> W, H, b = solve(p).factors(8)
    >>> labels = np.repeat(np.arange(4), p.class_counts)
    >>> found = choose_model(measure(H.T[labels], labels, W.T, b), KnownTraining(lambda_w=0.4, lambda_b=0.0))
    >>> found.name, found.sentence[:46]
    ('sample', 'The norms of the features are equal to 0 %: pe')
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from collapsar.core.known import HeadNorm, KnownTraining
from collapsar.core.normalization import Over
from collapsar.core.problem import Problem
from collapsar.core.sentences import percent
from collapsar.core.thresholds import Thresholds
from collapsar.diagnose.agreement import bias_price, head_forces
from collapsar.diagnose.fit import Distance, distance_beside
from collapsar.diagnose.measurement import Lengths, Measurement
from collapsar.phase.transitions import thresholds
from collapsar.solver import NotConvergedError, Solution, solve

ModelName = Literal["penalty", "sample", "batch", "frozen", "none"]

# Lengths, or variances of features, that differ by less than this were made equal; rounding in half precision is .1 %,
# running statistics of a batch norm are off by a few per cent.
_EQUAL, _EQUAL_VARIANCES, _CENTRED = 0.003, 0.1, 0.01
# Features that share more than this of their squared length are all nearly as long as the part they share.
_OFFSET = 0.5
# Above this spread inside a class, equal lengths cannot come from the collapse of balanced classes.
_WITHIN = 0.01
# A gain more uneven than this is mentioned, and lengths below this share of the norm's; longer ones are not its own.
_UNEVEN, _SHORT, _LONGER = 0.05, 0.97, 1.05
_TOO_UNEVEN = 0.2
# The share of the penalty's force that may be left over with a penalty fitted to the head's gradient: with half of it
# the two still have a correlation of .9; above, the fit says nothing.
_READABLE = 0.5
# More kinds of normalised classes than this take minutes; so do the thresholds for more sizes with several classes.
_MOST_CLUSTERS, _MOST_MERGING = {"signed": 300, "nonnegative": 120}, {"signed": 60, "nonnegative": 12}
_PER = {"sample": "per-sample", "batch": "per-batch"}


@dataclass(frozen=True, eq=False)
class Choice:
    """A model of the theory, and why.

    Attributes:
        name: "penalty": penalised features, the model of Hong & Ling; "sample", "batch": normalised features; "frozen":
            the features are given; "none": the theory has no optimum for this training.
        sentence: the evidence, and what follows.
        problem: for normalised features; None for the others, and if the head's penalty is not known.
        shifted: whether something is added to the features after the norm, which the bias cancels.
    """

    name: ModelName
    sentence: str
    problem: Problem | None = None
    shifted: bool = False


@dataclass(frozen=True, eq=False)
class NormalizedFit:
    """A measured network compared with the optimum of normalised features.

    Attributes:
        solution: the optimum.
        distance: of Z and b.
        away: ||Z - Z*||_F, nats.
        norm: length of the optimum's features; given, or where a decayed gain comes to rest.
        thresholds: in ``lambda_w``; None if they could not be found.
    """

    solution: Solution
    distance: Distance
    away: float
    norm: float
    thresholds: Thresholds | None


_UNHELD = (
    "The head has no weight decay (lambda_w = 0): nothing limits its weight, so there is no optimum to compare with "
    "and no threshold. If classes are merged or lost, there is another reason."
)
_GIVEN = (
    "The head is not trained: no model here has a fixed head, so no optimum is compared. No penalty is read from it "
    "either, since loss and penalty do not balance there."
)


def choose_model(m: Measurement, known: KnownTraining) -> Choice:
    """The model of a network, by what is known about its training; without a norm in it, by its features' lengths."""
    if not m.linear:
        return Choice("none", "")
    if known.frozen_head:
        return Choice("none", _GIVEN)
    if known.body == "frozen":
        return Choice(
            "frozen", "Only the head is trained: its features are given, and its optimum is a convex problem's."
        )
    if known.one_lambda_w == 0:
        return Choice("none", _UNHELD)
    norm, lengths = known.norm, m.lengths
    if norm is not None and _elsewhere(m, norm):
        norm = None  # registered before the head, but not feeding it
    if norm is not None:
        return _of_layer(m, known, norm)
    if known.bounded_by or (lengths is not None and lengths.bounded):
        seen = f"A {known.bounded_by} feeds the head" if known.bounded_by else "Every feature lies in [-1, 1]"
        return Choice(
            "none",
            f"{seen}, as behind a tanh: no model here has a bound on each feature, so no optimum is compared.",
        )
    found = None if known.lambda_h or lengths is None or not _telling(m) else _of_lengths(m, known, lengths)
    return Choice("penalty", _penalised(known)) if found is None else found


def _of_lengths(m: Measurement, known: KnownTraining, lengths: Lengths) -> Choice | None:
    """The model that the features' lengths imply; None if they imply none."""
    if lengths.spread < _EQUAL and lengths.offset_share < _OFFSET:
        found = f"The norms of the features are equal to {percent(round(lengths.spread, 3))}: per-sample model"
        return _priced(m, known, found, "sample", partial(Problem.from_normalized, norm=lengths.mean))
    if lengths.variance_spread < _EQUAL_VARIANCES and lengths.offset_share < _CENTRED and not m.nonnegative:
        equal = percent(round(lengths.variance_spread, 3))
        found = f"The features are centred, and their variances equal to {equal}: per-batch model"
        norm = float(np.sqrt(lengths.mean_square))
        return _priced(m, known, found, "batch", partial(Problem.from_normalized, norm=norm))
    return None


def _elsewhere(m: Measurement, norm: HeadNorm) -> bool:
    """Whether the features cannot be the output of a norm: none is below zero, or they are too long."""
    if m.lengths is None:
        return False
    # a mean over a batch is a mean over what is shown
    too_long = m.exposure is None and m.lengths.mean_square > (_LONGER * norm.length) ** 2
    return m.lengths.least >= 0 or (too_long and not norm.shifted and norm.uneven < _UNEVEN)


def _telling(m: Measurement) -> bool:
    """Whether equal lengths or variances say anything: for collapsed classes of one size they are equal by symmetry."""
    return len(np.unique(m.class_counts[m.class_counts > 0])) > 1 or m.within_share > _WITHIN


def _penalised(known: KnownTraining) -> str:
    if known.lambda_h:
        return "The features are penalised, as in Hong and Ling (2024): the model of penalised features."
    return (
        "No normalisation was found before the head: the model of penalised features is used, at the penalty read. "
        "If only weight decay limits the features, it is known to misplace where classes are lost: only a hint."
    )


def _of_layer(m: Measurement, known: KnownTraining, norm: HeadNorm) -> Choice:
    """The model of a network whose norm before the head is known."""
    found = f"{_named(norm)} feeds the head{_lengths(m, norm)}"
    if norm.free_gain:
        return Choice(
            "none",
            f"{found}, and its gain is trained without decay: the length of the features may grow without bound, so "
            "there is no optimum and no threshold; nothing merges for good, and weight decay of the head only slows "
            f"the classes. {'Fix the gain' if norm.over == 'sample' else 'Decay or fix the gain'} to have one.",
        )
    shifted = norm.shifted
    if norm.gain_penalty is not None and norm.gain_penalty > 0:
        if norm.over == "sample":
            return Choice(
                "none",
                f"{found}, and its gain is decayed, one for each feature: gathered in few features, length costs less "
                "than in any model here, so no optimum is compared. A gain that is fixed, or one "
                "number, has one.",
            )
        found += f"; its gain is decayed, which penalises their length: {_PER[norm.over]} model of a decayed gain"
        make = partial(Problem.from_gain_decay, lambda_gain=norm.gain_penalty)
        return _priced(m, known, found, norm.over, make, shifted)
    if norm.trained_gain:
        found += "; its gain is trained, and taken at its present value"
    if norm.uneven > _TOO_UNEVEN:
        return Choice(
            "none",
            f"{found} (uneven by {percent(norm.uneven)}): directions with a large gain are cheaper than others, which "
            "no model here includes, so no optimum is compared.",
        )
    if norm.uneven > _UNEVEN:
        found += f" (uneven by {percent(norm.uneven)}, about as far as the model may be off)"
    make = partial(Problem.from_normalized, norm=norm.length)
    return _priced(m, known, f"{found}: {_PER[norm.over]} model", norm.over, make, shifted)


def _named(norm: HeadNorm) -> str:
    article = "An" if norm.layer[:1].upper() in "AEIOU" else "A"
    return f"{article} {norm.layer}{'' if norm.pooled is None else f', averaged by {norm.pooled},'}"


def _lengths(m: Measurement, norm: HeadNorm) -> str:
    """What the measured lengths say about the layer."""
    if m.lengths is None or norm.shifted or (m.exposure is not None and norm.over == "batch"):
        return ""
    share = float(np.sqrt(m.lengths.mean_square)) / norm.length
    if share < _SHORT:
        why = "averaging" if norm.pooled else "pooling in forward, or a norm that saw other samples,"
        return f" (the features have {percent(share)} of its length, {norm.length:.4g}: {why} makes them shorter)"
    equal = (
        f", equal to {percent(round(m.lengths.spread, 3))}" if norm.over == "sample" and norm.uneven < _UNEVEN else ""
    )
    return f" (features of length {m.lengths.mean:.4g}{equal})"


def _priced(
    m: Measurement,
    known: KnownTraining,
    found: str,
    over: Over,
    make: Callable[..., Problem],
    shifted: bool = False,
) -> Choice:
    """The model with the penalties of the head, if known, otherwise those read from its gradient."""
    problem, how = _problem_of(m, known, over, make)
    return Choice(over, found + how, problem, shifted)


def _problem_of(
    m: Measurement, known: KnownTraining, over: Over, make: Callable[..., Problem]
) -> tuple[Problem | None, str]:
    """The problem of normalised features and its penalty, the end of a sentence; or None, and why there is none."""
    forces = head_forces(m, known.priced_w, known.lambda_b)
    weight = forces.fitted_w if known.priced_w is None else known.priced_w
    if known.priced_w is None and not forces.relative_gradient < _READABLE:
        return None, "; the head is not at rest, and its penalty is neither known nor readable."
    if not np.all(np.asarray(weight) > 0):
        return None, "; the head's penalty is not known and its gradient shows none."
    if m.unseen:
        return None, "."
    rest: Any = {"loss": m.loss_form, "features": known.features or m.features}
    if over == "batch":
        rest["feature_mass"] = m.feature_mass
    lambda_b = bias_price(m, known.lambda_b, forces.fitted_b)
    try:
        problem = make(m.class_counts, lambda_w=weight, over=over, lambda_b=lambda_b, **rest)
    except ValueError as error:
        return None, f", which is not compared here: {error}."
    rows = " by rows" if isinstance(weight, np.ndarray) else ""
    origin = "" if known.one_lambda_w else ", read from the head's gradient"
    body = ". Decay also acts on the layers below, which the model does not include" if known.body == "decayed" else ""
    return problem, f", lambda_w = {_penalty_text(weight)}{rows}{origin}{body}."


def fit_normalized(m: Measurement, choice: Choice) -> tuple[NormalizedFit | None, str]:
    """A network compared with the optimum of the normalised model chosen, and ""; or None, and why there is none."""
    problem = choice.problem
    if problem is None:
        return None, ""
    most, most_merging = _MOST_CLUSTERS[problem.features], _MOST_MERGING[problem.features]
    if len(np.unique(m.class_counts)) > most:
        return None, (
            f"More than {most} different class sizes with a normalisation: the optimum would take minutes "
            "and is left out."
        )
    try:
        solution = solve(problem, 1e-7, throw=False)
    except (ValueError, ArithmeticError, NotConvergedError) as error:
        return None, f"The optimum of the model chosen is left out: {error}."
    found, why = None, ""
    merging = int(np.sum(np.unique(m.class_counts, return_counts=True)[1] > 1))
    if problem.normalization is not None and problem.normalization.over == "sample" and merging > most_merging:
        why = f"More than {most_merging} sizes with several classes: their thresholds would take minutes."
    else:
        try:
            found = thresholds(problem)
        except (ValueError, ArithmeticError) as error:
            why = f"The thresholds of the model chosen are left out: {error}."
    off, away = distance_beside(solution, m.predictions, m.b, moved=choice.shifted and m.bias is not None)
    return NormalizedFit(solution, off, away, float(getattr(solution, "norm", np.nan)), found), why


def _penalty_text(weight: Any) -> str:
    low, high = float(np.min(weight)), float(np.max(weight))
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
