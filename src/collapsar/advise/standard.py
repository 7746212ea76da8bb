"""Standard training, a norm before the head and decay on it: which classes merge, and why.

SGD and Adam with L2 decay penalise the head by the decay itself. AdamW's decoupled decay is, at rest, a penalty
lambda_k = wd (sqrt(v_k) + eps) on the row of class k, v_k the optimizer's mean squared gradient; before training v_k is
forecast from the optimum it leads to, and the two are iterated. Whether any of this has happened by the end of a run
says the decay clock, the sum of lr * wd over its steps: far below one, decay has not acted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.advise.forecast import Forecast, head_problem, mean_square, optimum_at_rest
from collapsar.advise.outlook import corrected_margins, inference_margins, left_prior
from collapsar.advise.recipe import Recipe
from collapsar.advise.sources import joined_classes
from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.normalization import GATHERS
from collapsar.core.sentences import percent
from collapsar.core.types import Record
from collapsar.solver import Solution
from collapsar.solver.solve import solve_near

_Answer = partial["StandardAdvice"]
Verdict = Literal["safe", "merge", "outvoted", "not acted", "unknown"]

_ALIKE = 0.95  # cosine from which two classes' features count as one; in a cluster it is one exactly where they merge
ACTED, _RESTED = 0.1, 3.0  # decay clock: below, decay has not acted; above, the run can be at rest
_LEVEL = 1e-6  # nats, by which scores of merged classes may differ
_FORECAST_SIZES = 32  # different sizes of classes in a forecast
# What holds at this multiple of the decay held for runs. Rows of AdamW at rest were up to a third above the forecast
# (docs/optimizers.md). SGD lost classes from .9 of the decay on at which the optimum outvotes them, and from .6 of the
# one at which it merges them; behind a batch norm, whose statistics are those of a batch, from .3 on, and sooner below
# half a sample of a class per batch (docs/advise.md).
_OFF, _NEAR, _MERGING, _OF_BATCHES, _SEEN = 1.4, 1.25, 2.0, 4.0, 0.5
_FLAT = 0.01  # nats: a prior that the loss has taken out
_PRICES, _HALVINGS = (1e-5, 10.0), 10  # of lambda_w / norm^2 between which classes begin to be lost


@dataclass(frozen=True)
class HeadPrediction:
    """What the theory says where the head alone follows the normalisation.

    Attributes:
        verdict: as of the advice.
        largest_decay: as of the advice.
        layers: decayed linear layers above the normalisation: 1, the head.
    """

    verdict: Verdict
    largest_decay: float | None
    layers: int = 1


@dataclass(frozen=True)
class StandardAdvice:
    """The answer, in words and numbers.

    Attributes:
        verdict: ``"safe"``, ``"merge"`` (classes merge at rest), ``"outvoted"`` (classes keep features of their own at
            rest, but are given none of their own samples), ``"not acted"`` (decay cannot have merged anything) or
            ``"unknown"``.
        reason: one sentence.
        cure: one sentence.
        clock: the sum of lr * wd.
        prior: log of the class frequencies, to subtract from the logits of a classifier that outvotes small classes;
            what class weights or offsets of the loss leave of it.
        merged: indices of classes that are one with another at rest.
        lambda_w: penalty of the rows at rest, one number or one per class; None where nothing is known.
        outvoted: indices of classes that the optimum at rest gives none of their own samples to, though not merged.
        largest_decay: the largest weight decay (of those tried, in halves) that is safe; None where the one given is,
            or none was found.
    """

    verdict: Verdict
    reason: str
    cure: str
    clock: float
    prior: tuple[float, ...]
    merged: tuple[int, ...] = ()
    lambda_w: float | tuple[float, ...] | None = None
    outvoted: tuple[int, ...] = ()
    largest_decay: float | None = None

    @property
    def predictions(self) -> tuple[HeadPrediction, ...]:
        """One, where :class:`~collapsar.advise.weight_decay.DecayAdvice` has one per number of layers."""
        return (HeadPrediction(self.verdict, self.largest_decay),)

    def to_dict(self) -> Record:
        """The fields as JSON-able values."""
        return asdict(self)


def advise_standard(counts: CountsLike | ArrayLike, recipe: Recipe) -> StandardAdvice:
    """Which classes a standard training merges, from what is known before it runs.

    Args:
        counts: samples per class.
        recipe: the training.

    Returns:
        Verdict, reason and cure. Where no theory holds it says so and gives what helps without one.

    Raises:
        ValueError: counts or recipe are out of range.

    Example:
        >>> fine_tuning = Recipe("adamw", 0.01, 2e-5, 3000, 32, "layernorm", 768)
        >>> a = advise_standard("500x5,20x5", fine_tuning)
        >>> a.verdict, round(a.clock, 4)
        ('not acted', 0.0003)
    """
    n = class_counts(counts)
    answer = partial(StandardAdvice, clock=recipe.clock, prior=tuple(left_prior(n, recipe.whole_loss).tolist()))
    if recipe.clock < ACTED:
        advice = _not_acted(n, recipe, answer)
    elif (why := _uncovered(recipe)) is not None:
        what = _prior(recipe, answer)
        cure = f"{f'subtract {what} from the logits; ' if what else ''}watch the class means during training"
        advice = answer("unknown", f"{why}: whether classes merge is not known", cure)
    else:
        advice = _at_rest(n, recipe, answer)
    if recipe.width >= n.size - 1:
        return advice
    features = "1 feature" if recipe.width == 1 else f"{recipe.width} features"
    room = f"; with {features} for {n.size} classes some are close in any case: no room"
    return replace(advice, reason=advice.reason + room)


def _not_acted(n: NDArray[np.int64], recipe: Recipe, answer: _Answer) -> StandardAdvice:
    seen = ""
    if recipe.batch_size is not None:
        times = recipe.steps * recipe.batch_size * int(n.min()) / int(n.sum())
        seen = f" (the smallest is seen {times:{'.0f' if times >= 100 else '.3g'}} times)"
    reason = (
        f"the decay clock, the sum of lr * wd, is {recipe.clock:.2g}, far below 1: decay has not acted and cannot "
        "have merged classes"
    )
    what = _prior(recipe, answer)
    cure = (
        f"small classes that are lost are {'outvoted or ' if what else ''}not learned yet{seen}: "
        f"{f'subtract {what} from the logits, then ' if what else ''}train longer; leave the decay alone"
    )
    return answer("not acted", reason, cure)


def _uncovered(recipe: Recipe) -> str | None:
    """Why no optimum is known for a training; None where one is."""
    if recipe.norm == "none":
        return "nothing normalises the features before the head, so decay of the layers below decides (--layers)"
    if recipe.optimizer == "other":
        return "decay beside the step of this optimizer is no penalty whose size is known"
    if recipe.gain_decay is None:
        return None
    if recipe.optimizer == "adamw":
        return "AdamW's decay of the norm's gain cannot be forecast"
    if recipe.norm in ("layernorm", "rmsnorm"):
        return GATHERS
    return None


def _at_rest(n: NDArray[np.int64], recipe: Recipe, answer: _Answer) -> StandardAdvice:
    most = {"most": _FORECAST_SIZES} if recipe.optimizer == "adamw" else {}
    few, loss, change = joined_classes(n, recipe.loss, **most)
    advice = _of_few(n, few, replace(recipe, loss=loss), answer)
    if not change:
        return advice
    sizes = f"{np.unique(n).size} sizes of classes were joined into {np.unique(few).size}"
    joined = f"; for this {sizes}, the smallest kept, the others changed by at most {percent(change)}"
    return replace(advice, reason=advice.reason + joined)


def _of_few(n: NDArray[np.int64], few: NDArray[np.int64], recipe: Recipe, answer: _Answer) -> StandardAdvice:
    """The advice from an optimum of few sizes of classes, in words of those given."""
    found = optimum_at_rest(few, recipe)
    if not found.settled:
        return _beyond(few, recipe, answer)
    merged, outvoted = _alike(found.solution), _outvoted(found.solution)
    rows = found.rows.tolist()
    weight = rows[0] if len(set(rows)) == 1 else tuple(rows)
    when = "" if recipe.clock >= _RESTED else f" (the clock is {recipe.clock:.2g}: the run ends on its way there)"
    answer = partial(answer, merged=merged, outvoted=outvoted, lambda_w=weight)
    if not (merged or outvoted):
        return _kept(few, recipe, answer, when)
    largest = _largest_decay(few, recipe)
    lost = merged or outvoted
    sizes = sorted({int(n[k]) for k in lost})
    which = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    if merged and len(lost) > 1:
        what = f"merges {len(lost)} classes, those of {which} samples"
    elif merged:
        what = f"leaves the class of {which} samples without features of its own"
    elif len(lost) > 1:
        what = f"leaves {len(lost)} classes outvoted, none of their own samples given to them, those of {which} samples"
    else:
        what = f"leaves the class of {which} samples outvoted, none of its own samples given to it"
    reason = f"at rest the decay of the head {what}{when}"
    cure = (
        f"lower the head's weight decay to {largest:.2g} or less: then every class keeps its own samples"
        if largest is not None
        else "take the head out of the weight decay"
    )
    if not merged:
        cure = f"{cure}; {_correction(found.solution, recipe, answer)}"
    return answer("merge" if merged else "outvoted", reason, cure, largest_decay=largest)


def _kept(few: NDArray[np.int64], recipe: Recipe, answer: _Answer, when: str) -> StandardAdvice:
    """Where the optimum at rest keeps all classes: whether runs do."""
    keeps, room = f"at rest every class keeps features of its own and is given its own samples{when}", _room(recipe)
    if _seldom(few, recipe):
        shown = _in_a_batch(few, recipe)
        reason = (
            f"{keeps}; but a batch has {shown:.2g} samples of the smallest class, too few for the norm's statistics"
        )
        return answer(
            "unknown", reason, f"use larger batches, or a norm over each sample; {_outvoting(recipe, answer)}"
        )
    if _is_safe(few, recipe):
        return answer("safe", keeps, f"none is needed; {_outvoting(recipe, answer)}")
    off = (
        "have been that far off a forecast"
        if recipe.optimizer == "adamw"
        else "have lost classes that close to where it no longer does"
    )
    multiple = f"{room:g}" if room >= _MERGING else f"{room:g} to {_MERGING:g}"
    reason, largest = f"{keeps}; but not at {multiple} times this decay, and runs {off}", _largest_decay(few, recipe)
    lower = "take the head out of the weight decay"
    if largest is not None:
        lower = f"lower the head's weight decay to {largest:.2g}"
    return answer("unknown", reason, f"{lower} to be sure; {_outvoting(recipe, answer)}", largest_decay=largest)


def _correction(s: Solution, recipe: Recipe, answer: _Answer) -> str:
    """What the prior correction alone does at an optimum that outvotes classes."""
    what = _prior(recipe, answer)
    if not what:
        return "no correction of the prior is left to make: the loss has taken it out of the logits"
    if not corrected_margins(s).min() > _LEVEL:
        return f"subtracting {what} from the logits alone does not give every class its samples"
    if recipe.optimizer == "adamw":  # its runs end off the forecast: one was cured, one ruined (docs/advise.md)
        return f"{what} alone can be too much for logits that decay has shortened"
    them = "it" if len(_outvoted(s)) == 1 else "them"
    return f"where it must stay, subtract {what} from the logits: at rest that gives {them} back too"


def _prior(recipe: Recipe, answer: _Answer) -> str:
    """What there is to subtract from the logits for equal priors, in words; "" where the loss has left nothing."""
    if float(np.ptp(answer.keywords["prior"])) < _FLAT:
        return ""
    frequencies = "the log of the class frequencies"
    shares = frequencies if recipe.loss.class_weights is None else "the log of the classes' shares in the loss"
    return shares if recipe.loss.offsets is None else f"{shares}, less the loss's offsets,"


def _outvoting(recipe: Recipe, answer: _Answer) -> str:
    what = _prior(recipe, answer)
    if not what:
        return "the loss has taken the prior out of the logits: subtract nothing from them"
    return f"if small classes are outvoted, subtract {what} from the logits"


def _beyond(few: NDArray[np.int64], recipe: Recipe, answer: _Answer) -> StandardAdvice:
    """Where the forecast does not settle: the decay at which classes begin to be lost at rest bounds this one."""
    bound, outvoting = _least_harmful(few, recipe) * recipe.unit, _outvoting(recipe, answer)
    runs_off = (
        "AdamW's decay shrinks with the gradient, and where it comes to rest cannot be forecast at this decay: the "
        "margins grow beyond what any run reaches"
    )
    if _room(recipe) * recipe.weight_decay * recipe.unit < bound and not _seldom(few, recipe):
        reason = f"{runs_off}; but at rest no class is lost below a decay of about {bound:.3g}"
        return answer("safe", reason, f"none is needed against merging; {outvoting}")
    reason = f"{runs_off}, and from a decay of about {bound:.3g} on classes may be lost at rest"
    return answer("unknown", reason, f"watch the class means during training; {outvoting}")


def _room(recipe: Recipe) -> float:
    """The multiple of the decay that must be harmless for a run to be safe."""
    if recipe.norm == "batchnorm":
        return _OF_BATCHES
    return _OFF if recipe.optimizer == "adamw" else _NEAR


def _in_a_batch(n: NDArray[np.int64], recipe: Recipe) -> float:
    """Samples of the smallest class in a batch; inf where its size is not known."""
    return np.inf if recipe.batch_size is None else recipe.batch_size * float(n.min() / n.sum())


def _seldom(n: NDArray[np.int64], recipe: Recipe) -> bool:
    """Whether a norm over batches sees too little of the smallest class for the theory, whose batch is all samples."""
    return recipe.norm == "batchnorm" and _in_a_batch(n, recipe) < _SEEN


def _is_safe(few: NDArray[np.int64], recipe: Recipe) -> bool:
    """Whether runs keep all classes: the rests at the multiples of this decay that were measured do."""

    def at(factor: float) -> Forecast:
        return optimum_at_rest(few, replace(recipe, weight_decay=factor * recipe.weight_decay))

    room = _room(recipe)
    found = at(room)
    if not found.settled:
        return room * recipe.weight_decay < _least_harmful(few, recipe)
    if _loses(found.solution):
        return False
    further = None if room >= _MERGING else at(_MERGING)
    return further is None or not (further.settled and _alike(further.solution))


def _least_harmful(few: NDArray[np.int64], recipe: Recipe) -> float:
    """The decay whose rest has rows at which classes begin to merge or to be outvoted, all rows taken as one.

    wd = lambda / (sqrt(v) + eps) at the largest v; it rises with lambda, so that weaker decay rests at smaller rows.
    """
    low, high = (price * recipe.norm_length**2 for price in _PRICES)
    best = solve_near(head_problem(few, recipe, low), None, 1e-7)
    for _ in range(_HALVINGS):
        middle = float(np.sqrt(low * high))
        s = solve_near(head_problem(few, recipe, middle), best, 1e-7)
        if _loses(s):
            high = middle
        else:
            low, best = middle, s
    return low / float(np.sqrt(mean_square(best, recipe)).max() + recipe.eps)


def _alike(s: Solution) -> tuple[int, ...]:
    """Classes whose features are those of another class, or nothing, as all are where Z = 0."""
    G = s.feature_gram()
    size = np.sqrt(np.diag(G))
    gone = size <= 1e-6 * size.max()
    cosines = G / np.maximum(np.outer(size, size), 1e-300)
    np.fill_diagonal(cosines, 0.0)
    return tuple(int(k) for k in np.flatnonzero(gone | (cosines.max(axis=0) >= _ALIKE)))


def _outvoted(s: Solution) -> tuple[int, ...]:
    """Classes for which the optimum scores another class higher."""
    return tuple(int(k) for k in np.flatnonzero(inference_margins(s) < -_LEVEL))


def _loses(s: Solution) -> bool:
    return bool(_alike(s) or _outvoted(s))


def _largest_decay(n: NDArray[np.int64], recipe: Recipe) -> float | None:
    """The first of wd/2, wd/4, ... that is safe, as the optimizer calls it; None where the weakest is not."""
    weaker = [replace(recipe, weight_decay=recipe.weight_decay / 2**halvings) for halvings in range(1, 14)]
    if not _is_safe(n, weaker[-1]):
        return None
    return next(w.weight_decay * w.unit for w in weaker if w is weaker[-1] or _is_safe(n, w))
