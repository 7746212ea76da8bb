"""Standard training, a norm before the head and decay on it: which classes merge, and why.

With SGD and Adam with L2 decay the decay itself is the head's penalty. AdamW's decoupled decay is, at rest, a penalty
lambda_k = wd (sqrt(v_k) + eps) on the row of class k, v_k the optimizer's mean squared gradient; before training v_k is
forecast from the optimum it leads to, and the two are iterated. The decay clock, the sum of lr * wd over the steps of a
run, tells whether any of this has happened by its end: far below one, decay has not acted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.advise.forecast import LEVEL, Rests, alike, outvoted_at
from collapsar.advise.outlook import corrected_margins, left_prior
from collapsar.advise.recipe import Recipe
from collapsar.advise.sources import joined_classes
from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.normalization import GATHERS
from collapsar.core.sentences import percent
from collapsar.core.types import Record
from collapsar.solver import Solution

Verdict = Literal["safe", "merge", "outvoted", "not acted", "unknown"]

ACTED, _RESTED = 0.1, 3.0  # decay clock: below, decay has not acted; above, the run can be at rest
_FORECAST_SIZES = 32  # different sizes of classes in a forecast
_FLAT = 0.01  # nats: a prior that the loss has taken out
_WATCH, _HEAD_OUT = "watch the class means during training", "take the head out of the weight decay"


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
            rest, but none of their samples is recognised), ``"not acted"`` (decay cannot have merged anything) or
            ``"unknown"``.
        reason: one sentence.
        cure: one sentence.
        clock: the sum of lr * wd.
        prior: log of the class frequencies, to subtract from the logits of a classifier that outvotes small classes;
            or what class weights or offsets of the loss leave of it.
        merged: indices of classes that coincide with another at rest.
        lambda_w: penalty of the rows at rest, one number or one per class; None if nothing is known.
        outvoted: indices of classes that are not merged but of which the optimum at rest recognises no sample.
        largest_decay: the largest weight decay (of those tried, by halving) that is safe; None if the given one is, or
            none was found.
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
        Verdict, reason and cure. If no theory applies, it says so and names what helps anyway.

    Raises:
        ValueError: counts or recipe are out of range.

    Example:
        >>> fine_tuning = Recipe("adamw", 0.01, 2e-5, 3000, 32, "layernorm", 768)
        >>> a = advise_standard("500x5,20x5", fine_tuning)
        >>> a.verdict, round(a.clock, 4)
        ('not acted', 0.0003)
    """
    n = class_counts(counts)
    training = _Training(n, recipe, tuple(left_prior(n, recipe.whole_loss).tolist()))
    if recipe.clock < ACTED:
        advice = training.not_acted()
    elif (why := _uncovered(recipe)) is not None:
        cure = f"{f'subtract {training.left} from the logits; ' if training.left else ''}{_WATCH}"
        advice = training.answer("unknown", f"{why}: whether classes merge is not known", cure)
    else:
        advice = training.at_rest()
    if recipe.width >= n.size - 1:
        return advice
    features = "1 feature" if recipe.width == 1 else f"{recipe.width} features"
    room = f"; with {features} for {n.size} classes some are close in any case: no room"
    return replace(advice, reason=advice.reason + room)


def _uncovered(recipe: Recipe) -> str | None:
    """Why no optimum is known for a training; None if one is."""
    if recipe.norm == "none":
        return "nothing normalises the features before the head, so decay of the layers below decides (--layers)"
    if recipe.optimizer == "other":
        return "decay separate from this optimizer's step is not a penalty of known size"
    if recipe.gain_decay is None:
        return None
    if recipe.optimizer == "adamw":
        return "AdamW's decay of the norm's gain cannot be forecast"
    if recipe.norm in ("layernorm", "rmsnorm"):
        return GATHERS
    return None


@dataclass(frozen=True)
class _Training:
    """A training, and what to say about it."""

    n: NDArray[np.int64]
    recipe: Recipe
    prior: tuple[float, ...]

    def answer(self, verdict: Verdict, reason: str, cure: str, **found: Any) -> StandardAdvice:
        return StandardAdvice(verdict, reason, cure, clock=self.recipe.clock, prior=self.prior, **found)

    @property
    def left(self) -> str:
        """What to subtract from the logits for equal priors, in words; "" if the loss has left nothing."""
        if float(np.ptp(self.prior)) < _FLAT:
            return ""
        loss, frequencies = self.recipe.loss, "the log of the class frequencies"
        shares = frequencies if loss.class_weights is None else "the log of the classes' shares in the loss"
        return shares if loss.offsets is None else f"{shares}, less the loss's offsets,"

    @property
    def outvoting(self) -> str:
        if not self.left:
            return "the loss has taken the prior out of the logits: subtract nothing from them"
        return f"if small classes are outvoted, subtract {self.left} from the logits"

    def not_acted(self) -> StandardAdvice:
        n, recipe, seen = self.n, self.recipe, ""
        if recipe.batch_size is not None:
            times = recipe.steps * recipe.batch_size * int(n.min()) / int(n.sum())
            shown = f"{times:{'.0f' if times >= 100 else '.2g'}}"
            seen = f" (at one batch a step, {shown} samples of the smallest are shown in all, repeats counted)"
        reason = (
            f"the decay clock, the sum of lr * wd, is {recipe.clock:.2g}, far below 1: decay has not acted and cannot "
            "have merged classes in this run; in weights that are loaded, an earlier training may have"
        )
        # of classes that are not learned yet the prior is not all that they lack: taking it out first costs others
        then = f", then subtract {self.left} from the logits" if self.left else ""
        cure = (
            f"small classes that are lost are {'outvoted or ' if self.left else ''}not learned yet{seen}: train until "
            f"their training samples are recognised{then}; leave the decay alone"
        )
        return self.answer("not acted", reason, cure)

    def at_rest(self) -> StandardAdvice:
        most = {"most": _FORECAST_SIZES} if self.recipe.optimizer == "adamw" else {}
        few, loss, change = joined_classes(self.n, self.recipe.loss, **most)
        advice = self._of_few(Rests(few, replace(self.recipe, loss=loss)))
        if not change:
            return advice
        sizes = f"{np.unique(self.n).size} sizes of classes were joined into {np.unique(few).size}"
        joined = f"; for this {sizes}, the smallest kept, the others changed by at most {percent(change)}"
        return replace(advice, reason=advice.reason + joined)

    def _of_few(self, rests: Rests) -> StandardAdvice:
        """The advice from an optimum of few sizes of classes, in words of those given."""
        found = rests.at(1.0)
        if not found.settled:
            return self._open(found.solution) if self.recipe.optimizer != "adamw" else self._beyond(rests)
        merged, outvoted = alike(found.solution), outvoted_at(found.solution)
        rows, clock = found.rows.tolist(), self.recipe.clock
        when = "" if clock >= _RESTED else f" (the clock is {clock:.2g}: the run ends on its way there)"
        weight = rows[0] if len(set(rows)) == 1 else tuple(rows)
        if not (merged or outvoted):
            return replace(self._kept(rests, when), lambda_w=weight)
        largest = rests.largest_decay()
        cure = _HEAD_OUT if largest is None else _lower(largest, " or less: then no class is lost")
        if not merged:
            cure = f"{cure}; {self._correction(found.solution)}"
        reason = f"at rest the decay of the head {self._what(merged, outvoted)}{when}"
        lost = {"merged": merged, "outvoted": outvoted, "lambda_w": weight, "largest_decay": largest}
        return self.answer("merge" if merged else "outvoted", reason, cure, **lost)

    def _what(self, merged: tuple[int, ...], outvoted: tuple[int, ...]) -> str:
        """What becomes of the classes that are lost."""
        lost = merged or outvoted
        sizes = sorted({int(self.n[k]) for k in lost})
        which = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        if merged and len(lost) > 1:
            return f"merges {len(lost)} classes, those of {which} samples"
        if merged:
            return f"leaves the class of {which} samples without features of its own"
        if len(lost) > 1:
            some = f"leaves {len(lost)} classes outvoted"
            return f"{some} with none of their own samples recognised, those of {which} samples"
        return f"leaves the class of {which} samples outvoted, with none of its own samples recognised"

    def _kept(self, rests: Rests, when: str) -> StandardAdvice:
        """Where the optimum at rest keeps all classes: whether runs do."""
        keeps = f"at rest every class keeps features of its own, and its samples are recognised{when}"
        if rests.seldom:
            reason = (
                f"{keeps}; but a batch has {rests.in_a_batch:.2g} samples of the smallest class, too few for the "
                "norm's statistics"
            )
            return self.answer("unknown", reason, f"use larger batches, or a norm over each sample; {self.outvoting}")
        kept = rests.kept(1.0)
        if kept:
            return self.answer("safe", keeps, f"none is needed; {self.outvoting}")
        off = (
            "have been that far off a forecast"
            if self.recipe.optimizer == "adamw"
            else "have lost classes that close to where it no longer does"
        )
        largest = rests.largest_decay()
        lower = _HEAD_OUT if largest is None else _lower(largest)
        there = f"at {rests.multiple} times this decay"
        there = f"not {there}" if kept is not None else f"whether {there} as well is not known"
        reason = f"{keeps}; but {there}, and runs {off}"
        return self.answer("unknown", reason, f"{lower} to be sure; {self.outvoting}", largest_decay=largest)

    def _correction(self, s: Solution) -> str:
        """What the prior correction alone does at an optimum that outvotes classes."""
        if not self.left:
            return "no correction of the prior is left to make: the loss has taken it out of the logits"
        if not corrected_margins(s).min() > LEVEL:
            return f"subtracting {self.left} from the logits is not enough to recognise every class"
        if self.recipe.optimizer == "adamw":  # runs end off its forecast: one was cured, one ruined (docs/advise.md)
            return f"{self.left} alone can be too much for logits that decay has shortened"
        them = "it" if len(outvoted_at(s)) == 1 else "them"
        return f"where it must stay, subtract {self.left} from the logits: at rest that recovers {them} too"

    def _open(self, s: Solution) -> StandardAdvice:
        """Where the optimum is not found, as with class weights over a range too large for float64."""
        gap = s.certificate.relative_gap
        known = f"is known only to a relative gap of {gap:.1g}" if gap < 1 else "was not found"
        reason = f"the optimum at rest {known}: whether classes merge is not known"
        vectors = any(v is not None for v in (self.recipe.loss.class_weights, self.recipe.loss.scales))
        closer = "bring the loss's values for the classes closer together; " if vectors else ""
        return self.answer("unknown", reason, f"{closer}{_WATCH}; {self.outvoting}")

    def _beyond(self, rests: Rests) -> StandardAdvice:
        """Where the forecast does not settle: the decay at which classes begin to be lost at rest bounds this one."""
        bound = rests.least_harmful * self.recipe.unit
        runs_off = (
            "AdamW's decay shrinks with the gradient, and where it comes to rest cannot be forecast at this decay: the "
            "margins grow beyond what any run reaches"
        )
        if rests.kept_if_weaker(1.0) and not rests.seldom:
            reason = f"{runs_off}; but at rest no class is lost below a decay of about {bound:.3g}"
            return self.answer("safe", reason, f"none is needed against merging; {self.outvoting}")
        reason = f"{runs_off}, and above a decay of about {bound:.3g} classes may be lost at rest"
        return self.answer("unknown", reason, f"{_WATCH}; {self.outvoting}")


def _lower(decay: float, then: str = "") -> str:
    return f"lower the head's weight decay to {decay:.2g}{then}"
