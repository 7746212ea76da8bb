"""A diagnosis in plain words: a sentence or two per finding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from collapsar.core.known import NORMALISED, UNPENALISED, UNTRAINED, KnownTraining, rests_by_rows
from collapsar.core.normalization import own_penalties
from collapsar.core.sentences import percent
from collapsar.core.types import Vector
from collapsar.diagnose.agreement import AT_REST, EffectivePenalties, agreement_words
from collapsar.diagnose.class_words import cost, lost, outscored, rule, shared_rows
from collapsar.diagnose.fit import Fit, ModelFit
from collapsar.diagnose.frozen import FrozenHead
from collapsar.diagnose.model_choice import NormalizedFit
from collapsar.diagnose.optimum_words import outvoted_there
from collapsar.diagnose.prediction import Prediction

if TYPE_CHECKING:
    from collapsar.diagnose.record import Diagnosis

FAR = 0.15
"""Distance of the mean predictions from an optimum that a head at rest does not explain: its gradient is below 0.1."""


def findings(d: Diagnosis) -> Iterator[str]:
    """Everything found, most important first."""
    yield from cost(d)
    yield from lost(d)
    yield from shared_rows(d)
    yield from outscored(d)
    penalised = d.model.name == "penalty"
    if d.model.sentence:
        yield f"Model: {d.model.sentence}"
    if d.frozen is not None:
        yield from _frozen(d, d.frozen)
    yield from reason(d)
    if not d.known.frozen_head:
        yield _rest(d)
    if d.model_fit is not None:
        yield _own_distance(d, d.model_fit)
    if d.fit is not None and d.model.name != "none":
        yield _distance(d, d.fit)
    if d.effective is not None and penalised:
        as_predicted = d.prediction is None or tuple(d.prediction.seen) == tuple(d.separation.states)
        yield agreement_words(d.effective, d.at_rest, as_predicted=as_predicted) + _against_known(d.known, d.effective)
        yield from _stuck(d, d.effective)
    answered = () if penalised else (UNPENALISED, NORMALISED, UNTRAINED)  # the model's own sentence covers these
    told = [caution for caution in d.known.cautions if not any(text in caution for text in answered)]
    yield from (f"Caution: {caution}" for caution in told)
    yield rule(d)


def reason(d: Diagnosis) -> Iterator[str]:
    """What theory says about the states: which it predicts, and which class is lost first, at which penalty."""
    if d.prediction is None:
        return
    yield _predicted(d, d.prediction)
    yield from outvoted_there(d)
    own = 1.0 if d.model_fit is None else own_penalties(d.model_fit.solution.problem) / d.prediction.price
    if first := first_lost(d.prediction, d.named, "network", own):
        yield first


def _rest(d: Diagnosis) -> str:
    known, forces = d.known, d.forces
    value = forces.relative_gradient
    if not d.measurement.linear:
        return "Whether the head is at rest is unknown: its scores do not come from its weight alone."
    if d.at_rest and rests_by_rows(known) and known.rest is not None and np.isfinite(value):
        return (
            "The head is at rest by its optimizer's state: over all entries the loss's pull against the penalty has "
            f"slope {known.rest.slope:.3g} and correlation {known.rest.correlation:.3g}; with one penalty per row they "
            f"balance to within {percent(value)}."
        )
    if d.at_rest and not value < AT_REST:
        return "All classes have vanished, and the penalty is stronger than the loss's pull: the head stays collapsed."
    if known.one_lambda_w == 0:
        return "Without weight decay the head does not come to rest: its weight grows as long as it is trained."
    fitted = "" if known.one_lambda_w else f" (lambda_w was not given; {forces.fitted_w:.3g} fits its gradient best)"
    if d.at_rest:
        return f"The head is at rest: loss and penalty balance to within {percent(value)}{fitted}."
    if not np.isfinite(value):
        return (
            "The loss does not pull the head outwards, or no penalty holds it: it is not at rest, and distances to "
            "theory mean nothing yet."
        )
    # near rest a large rate's steps are what keeps the head from it; far from rest a small rate takes long
    rate = ", with a smaller learning rate," if value < 1 else ""
    return (
        f"The head is not at rest: loss and penalty differ by {percent(value)} of the penalty{fitted}. Train on{rate} "
        "before you read the distances to theory; states may still change. Training that minimises "
        "anything but the plain loss of these samples (SAM, mixup, augmentation, resampling, dropout) comes to rest "
        "elsewhere, and this test does not apply to it."
    )


def _predicted(d: Diagnosis, prediction: Prediction) -> str:
    states = d.separation.states
    wrong = [k for k, (theory, here) in enumerate(zip(prediction.seen, states, strict=True)) if theory != here]
    count = Counter(prediction.seen)
    what = ", ".join(f"{number} {state}" for state, number in count.most_common())
    origin = "as trained" if prediction.source == "as trained" else "read from the network"
    at = f"at lambda_z = {prediction.lambda_z:.4g} ({origin}) theory with {prediction.features} features"
    at = at if d.model_fit is None else "and this model theory"
    small = any(exact == "separated" != rule for exact, rule in zip(prediction.states, prediction.seen, strict=True))
    by_rule = " (by the rule below, which ignores small differences)" if small else ""
    pairs = zip(prediction.states, prediction.seen, strict=True)
    turned = [k for k, pair in enumerate(pairs) if pair == ("merged", "separated")]
    if turned:  # alone in their size, and by no distance near another
        verb, own = ("is", "its") if len(turned) == 1 else ("are", "their")
        by_rule += (
            f" ({d.named(turned)} {verb} merged in solve and advise: {own} features raise another class's score "
            f"at least as much as {own} own)"
        )
    text = f"For these class counts {at} predicts {what}{by_rule}"
    if not wrong:
        return f"{text}: as measured, for every class."
    listed = "; ".join(f"{d.class_names[k]}: predicted {prediction.seen[k]}, measured {states[k]}" for k in wrong[:3])
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{text}: as measured for {len(states) - len(wrong)} of {len(states)} classes. Exceptions: {listed}{more}."


def first_lost(p: Prediction, named: Callable[[Iterable[int]], str], what: str, scale: Vector | float = 1.0) -> str:
    """How far the class that is lost first is from its threshold; empty if none is lost at any penalty.

    Args:
        p: prediction for a network or an optimum.
        named: the names of classes in a sentence.
        what: "network" or "optimum".
        scale: each class's own penalty in units of ``p.price``, shape (K,), if the head's rows have several.
    """
    first = np.where(np.isnan(p.edge), np.inf, p.edge)
    level = float(first.min())
    if not np.isfinite(level):
        return ""
    classes = np.flatnonzero(first <= level * (1 + 1e-9)).tolist()
    many, about = len(classes) > 1, ""
    verb = "merge" if level == p.merge[classes[0]] else "vanish"
    verb += "" if many else "s" if verb == "merge" else "es"
    if level < np.fmin(p.merge, p.vanish)[classes[0]]:  # approximate: it is alone in its size, or directions are shared
        verb, about = "become indistinguishable" if many else "becomes indistinguishable", "about "
    ratio = p.price / level
    where = f"{ratio:.2f} times that" if ratio >= 0.995 else f"{percent(ratio)} of it"
    level *= np.broadcast_to(scale, first.shape)[classes[0]]
    return f"{named(classes)} {verb} first, above {about}{p.unit} = {level:.4g}; this {what} is at {where}."


def _frozen(d: Diagnosis, head: FrozenHead) -> Iterator[str]:
    """How far a head is from its optimum on given features, which classes are lost there, and what mitigations do."""
    best = head.optimum
    above = f"{percent(head.excess)} above" if head.excess > max(best.gap, 1e-6) else "at"
    price = ""
    if d.known.priced_w is None:
        price = f", at lambda_w = {np.mean(head.lambda_w):.3g}, which fits its gradient best (its own is not known),"
    yield (
        f"On these features{price} its objective is {head.objective:.4g}, {above} the optimum, {best.objective:.4g} "
        f"(certified to {max(best.gap, 1e-15):.0e}; mean recall there {percent(best.mean_recall)})."
    )
    if best.outvoted:
        verb = "is" if len(best.outvoted) == 1 else "are"
        yield (
            f"At that optimum {d.named(best.outvoted)} {verb} lost, outvoted on every sample: longer training "
            "does not help, because the objective itself gives them up."
        )
    solved = []
    for remedy in head.remedies:
        lost = f"{d.named(remedy.outvoted)} lost" if remedy.outvoted else "no class lost"
        solved.append(f"{remedy.name}: mean recall {percent(remedy.mean_recall)}, {lost}")
    yield f"Solved again with {'; with '.join(solved)} (on these samples)."


def _own_distance(d: Diagnosis, fit: NormalizedFit) -> str:
    """How far the network is from the optimum of its own model."""
    off = fit.distance
    bias = f", its bias {percent(off.b)}" if np.isfinite(off.b) else ""
    text = f"The mean predictions lie {percent(off.Z)} from the optimum of this model{bias}"
    if not np.isfinite(off.Z):
        text = f"The optimum of this model is zero; the network is {fit.away:.2g} nats from it"
    if fit.solution.status.name != "OPTIMAL":
        text += f" (which is known only to {fit.solution.certificate.relative_gap:.1g})"
    if not d.at_rest:
        return f"{text}. This distance means little until the head is at rest."
    if off.Z > FAR:
        text += (
            ". A head at rest so far away has features unlike the optimum's: the layers below have not brought them "
            "there. Start with a tenth of the decay and raise it later, since a strong one from the first step keeps "
            "small classes from being learned, or train longer"
        )
    return f"{text}."


def _distance(d: Diagnosis, fit: Fit) -> str:
    """How far the network is from the optima of penalised features."""
    signed, nonnegative = fit.models["signed"], fit.models["nonnegative"]
    if np.isnan(signed.distance.Z) and np.isnan(nonnegative.distance.Z):
        return (
            f"At lambda_z = {fit.lambda_z:.4g} both optima are zero; the network is {signed.away:.2g} nats from them."
        )
    text = (
        f"At lambda_z = {fit.lambda_z:.4g} the mean predictions lie {_away(nonnegative)} from the optimum with "
        f"nonnegative features and {_away(signed)} from the one with signed features"
    )
    if d.model.name != "penalty":
        text += ", which are models of other networks."
    else:
        text += f": the network follows the {fit.follows} model." if fit.follows else ": it is about as near to both."
    counts = d.measurement.class_counts
    if np.isfinite(fit.block_residual_z) and len(np.unique(counts[counts > 0])) < np.count_nonzero(counts):
        text += " Theory has equal predictions for classes of equal size; here they differ by "
        text += f"{percent(fit.block_residual_z)}."
    return text if d.at_rest else f"{text} These distances mean little until the head is at rest."


def _stuck(d: Diagnosis, effective: EffectivePenalties) -> Iterator[str]:
    """Classes that the penalty does not hold together."""
    if d.at_rest and effective.stuck:
        verb, them = ("is", "it") if len(effective.stuck) == 1 else ("are", "them")
        yield (
            f"{d.named(effective.stuck)} {verb} not held there by the penalty: the loss pulls {them} outwards "
            f"harder than lambda_z = {effective.lambda_z:.4g} holds, so this is not an optimum. The features no longer "
            "respond (dead ReLU units, layers below that are frozen or too small), or training ended too soon: start "
            "with weaker penalties, raise them once the classes are separated, and train longer."
        )


def _away(fit: ModelFit) -> str:
    if np.isfinite(fit.distance.Z):
        return percent(fit.distance.Z)
    return f"{fit.away:.2g} nats (that optimum is zero)"


def _against_known(known: KnownTraining, effective: EffectivePenalties) -> str:
    nominal = known.lambda_z
    if nominal is None or not np.isfinite(effective.lambda_z):
        return ""
    off = effective.lambda_z / nominal - 1
    return f" Trained with {nominal:.3g}: the norms differ from that by {percent(abs(off))}."
