"""A diagnosis in plain words: one headline, one sentence or two per finding, the meaning of every metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from collapsar.core.known import UNPENALISED
from collapsar.diagnose.agreement import AT_REST, EffectivePenalties, HeadForces, agreement_words
from collapsar.diagnose.fit import Fit, ModelFit
from collapsar.diagnose.measurement import Measurement
from collapsar.metrics.evidence import LostClass, Standings
from collapsar.metrics.separation import ClassSeparation

if TYPE_CHECKING:
    from collapsar.core.known import KnownTraining
    from collapsar.diagnose.frozen import FrozenHead
    from collapsar.diagnose.model_choice import Choice, NormalizedFit
    from collapsar.diagnose.prediction import Prediction

__all__ = ["METRICS", "Says", "findings", "headline", "named"]

_MOST_NAMES = 8
_MOST_LOST = 5
# A difference of biases, in nats, that no class frequencies explain: a factor of a million.
_SHUT = 14.0

METRICS: Mapping[str, str] = {
    "nc1_uniform": "Spread of the features inside classes against the spread of the class means, each class counted "
    "once. 0: every class is one point.",
    "nc1_weighted": "The same with every sample counted once, so that large classes dominate.",
    "nc1_trace_ratio": "Total spread inside classes over total spread between class means. Large classes dominate.",
    "cdnv": "Spread inside classes against the distance between two classes, averaged over all pairs. The average "
    "hides a few merged pairs.",
    "cdnv_max": "The same for the worst pair: large when two classes overlap.",
    "nc2_equinorm": "How unequal the lengths of the centred class means are. 0 for balanced classes at the optimum; "
    "under imbalance the optimum itself is unequal.",
    "nc2_equiangular": "How unequal the angles between class means are. 0 for balanced classes at the optimum.",
    "nc2_etf": "Distance of the class means' geometry to the simplex, the optimum of balanced classes. Under imbalance "
    "that is not the target: see the distance to theory.",
    "nc3_self_duality": "Difference between the directions of the head and of the class means. 0 for balanced classes "
    "at the optimum, at most 2.",
    "nc0_relative": "How far the head's rows are from summing to zero, which they do at every optimum.",
    "nc4_agreement": "Share of samples on which the head and the nearest class mean agree. 1 at collapse.",
}


@dataclass(frozen=True)
class Says:
    """What every sentence may need."""

    names: Sequence[str]
    found: ClassSeparation
    standings: Standings
    measurement: Measurement
    at_rest: bool
    dead: tuple[int, ...] = ()


def headline(say: Says) -> str:
    """What happened to the classes."""
    found, K = say.found, len(say.names)
    carried = set(say.standings.carried)
    gone = set(found.vanished_classes) - carried
    lost = len(found.merged_classes) + len(gone)
    seen = K - len(found.unseen_classes)
    unseen = f" {named(say.names, found.unseen_classes)} had no samples." if found.unseen_classes else ""
    outvoted = " ".join(part for part in (_outvoted(say, seen), _dead(say, seen)) if part)
    if not lost:
        if outvoted:
            return f"{outvoted}{unseen}"
        by_bias = f"; {named(say.names, say.standings.carried)} by the bias alone" if carried else ""
        return f"All {seen} classes are told apart{by_bias}.{unseen}"
    if len(gone) == seen > 1:
        return f"All {seen} classes have vanished.{unseen}"
    parts = []
    if gone:
        verb = "has" if len(gone) == 1 else "have"
        parts.append(f"{named(say.names, sorted(gone))} {verb} vanished")
    groups = [group for group in found.groups if not gone & set(group)]
    parts += [f"{named(say.names, group)} are merged into one" for group in groups[:3]]
    if len(groups) > 3:
        parts.append(f"{len(groups) - 3} more groups are merged")
    verb = "has" if lost == 1 else "have"
    text = f"{lost} of {seen} classes {verb} collapsed: {'; '.join(parts)}."
    return f"{text}{f' {outvoted}' if outvoted else ''}{unseen}"


def _outvoted(say: Says, seen: int) -> str:
    """The classes that are lost although they are apart; "" for none."""
    lost = [c for c in say.standings.lost if c.reason == "outvoted"]
    if not lost:
        return ""
    by: dict[int, list[int]] = {}
    for c in lost:
        by.setdefault(c.rival, []).append(c.index)
    parts = [f"{named(say.names, classes)} to {say.names[rival]}" for rival, classes in list(by.items())[:3]]
    parts += [f"{sum(map(len, list(by.values())[3:]))} more"] if len(by) > 3 else []
    verb, own = ("is", "its") if len(lost) == 1 else ("are", "their")
    return f"{len(lost)} of {seen} classes {verb} lost, outvoted on every sample of {own} own: {', '.join(parts)}."


def _dead(say: Says, seen: int) -> str:
    """The classes that share a row of the head although their mean predictions are apart; "" for none."""
    told = {*say.found.merged_classes, *say.found.vanished_classes}
    dead = [k for k in say.dead if k not in told]
    if not dead:
        return ""
    verb, own = ("is", "its row") if len(dead) == 1 else ("are", "their rows")
    return (
        f"{len(dead)} of {seen} classes {verb} dead, {own} of the head the same as others': {named(say.names, dead)}."
    )


def findings(
    say: Says,
    known: KnownTraining,
    forces: HeadForces,
    effective: EffectivePenalties | None,
    fit: Fit | None,
    prediction: Prediction | None,
    model: tuple[Choice, NormalizedFit | None, FrozenHead | None],
) -> Iterator[str]:
    """Everything found, most important first."""
    yield from _cost(say)
    yield from _lost(say)
    yield from _elsewhere(say)
    choice, own, frozen = model
    if choice.sentence:
        yield f"Model: {choice.sentence}"
    if frozen is not None:
        yield from _frozen(say, frozen)
    if prediction is not None and own is not None:
        yield _predicted(say, prediction, "for these class counts and this model")
        yield from _merging(say, own)
    elif prediction is not None:
        yield _predicted(say, prediction)
        yield from _margin(say, prediction)
    yield _rest(say, known, forces)
    if own is not None:
        yield _own_distance(say, own)
    if fit is not None:
        yield _distance(say, fit)
    if effective is not None and choice.name == "penalty":
        yield agreement_words(effective, say.at_rest) + _against_known(known, effective)
        yield from _stuck(say, effective)
    given = choice.name in ("sample", "batch", "frozen")
    told = [caution for caution in known.cautions if not (given and caution.startswith(UNPENALISED))]
    yield from (f"Caution: {caution}" for caution in told)
    yield _rule(say)


def named(names: Sequence[str], classes: Sequence[int]) -> str:
    """Names of classes in a sentence, the first eight of many."""
    shown = [names[k] for k in classes[:_MOST_NAMES]]
    if len(classes) > _MOST_NAMES:
        return f"{', '.join(shown)} and {len(classes) - _MOST_NAMES} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.0995 else f"{100 * share:.0f} %"


def _cost(say: Says) -> Iterator[str]:
    """How often collapsed classes are still recognised."""
    lost = sorted({*say.found.merged_classes, *say.found.vanished_classes} - set(say.standings.carried))
    accuracies = say.measurement.accuracies
    if not lost:
        return
    right = _percent(float(np.mean(accuracies[lost])))
    apart = [k for k, state in enumerate(say.found.states) if state == "separated"]
    others = f", and {_percent(float(np.mean(accuracies[apart])))} in the others" if apart else ""
    yield f"Of the samples measured, the head recognises {right} in a collapsed class on average{others}."


def _lost(say: Says) -> Iterator[str]:
    """Why no sample of a class is given to it, and what helps."""
    m, states = say.measurement, say.found.states
    for c in [c for c in say.standings.lost if c.reason == "outvoted"][:_MOST_LOST]:
        samples = f"none of the {m.class_counts[c.index]} samples of {say.names[c.index]} is given to it"
        ahead = f"scores {say.names[c.rival]} higher by {c.nats:.2g} nats" if c.nats > 0 else "is right all the same"
        yield f"{samples[0].upper()}{samples[1:]}: on average the head {ahead}. {_cure(c, m)}"
    near = {reason: [c for c in say.standings.lost if c.reason == reason] for reason in ("merged", "vanished")}
    if near["merged"]:
        pairs = "; ".join(f"{say.names[c.index]}, taken for {say.names[c.rival]}" for c in near["merged"][:_MOST_LOST])
        yield (
            f"Lost among the merged classes, no sample given to them: {pairs}. No correction of the scores tells them "
            "apart: they need room of their own, by weaker penalties on head and features, or class weights."
        )
    if near["vanished"]:
        classes = named(say.names, [c.index for c in near["vanished"]])
        yield (
            f"Lost without evidence of their own, no sample given to them: {classes}. Their samples move no score: "
            "weaken the penalties, or weigh these classes up."
        )
    if say.standings.carried:
        text = named(say.names, say.standings.carried)
        verb = "is" if len(say.standings.carried) == 1 else "are"
        yield (
            f"{text} {verb} without evidence of {'its' if verb == 'is' else 'their'} own, yet not lost: the bias "
            "decides for what shows no evidence of another class, and decides right."
        )
    if any(state == "separated" for state in states) and len(say.standings.lost) > _MOST_LOST:
        yield f"All lost classes: {', '.join(say.names[c.index] for c in say.standings.lost)}."


def _cure(c: LostClass, m: Measurement) -> str:
    """Whether dividing the class frequencies out of the scores gives the class back."""
    if int(np.argmax(m.evidence.columns(c.index))) == c.index and m.b[c.index] < m.b[c.rival] - _SHUT:
        return f"Its bias shuts it out: it is {m.b[c.rival] - m.b[c.index]:.3g} nats below the rival's; set it anew."
    corrected = m.predictions.columns(c.index) + m.b - np.log(np.maximum(m.class_counts, 1))
    if int(np.argmax(corrected)) == c.index:
        return (
            "The evidence is there, the prior outvotes it: subtract log(n_k/N) from the scores after training, or "
            "train with those offsets (logit adjustment)."
        )
    return (
        "Subtracting log(n_k/N) from the scores is not enough to give it back: it needs more room, by weaker penalties "
        "or class weights, or more samples."
    )


def _elsewhere(say: Says) -> Iterator[str]:
    """Classes that are apart, but not in the right direction."""
    wrong = say.standings.outscored
    if wrong:
        verb = "is" if len(wrong) == 1 else "are"
        yield (
            f"{named(say.names, wrong)} {verb} apart from the other classes, but on average the head scores another "
            "class higher: it recognises few of what it tells apart."
        )


def _rule(say: Says) -> str:
    """How the states were told from the numbers."""
    found = say.found
    longest = found.scale * float(np.nanmax(found.relative_norms, initial=0.0))
    return (
        f"A class has vanished if its mean prediction is shorter than {found.vanish_threshold:.0%} of the longest one "
        f"({longest:.3g} nats) or than 0.05 nats: its samples move no score. Classes are merged if every two of "
        f"them differ by less than {found.merge_threshold:.0%}: the head gives them the same scores."
    )


def _rest(say: Says, known: KnownTraining, forces: HeadForces) -> str:
    value = forces.relative_gradient
    if not say.measurement.linear:
        return "Whether the head is at rest is not read: its weight is not all that makes its scores."
    if say.at_rest and not value < AT_REST:
        return "Nothing is alive, and the penalty holds the head harder than the loss pulls: it stays collapsed."
    fitted = "" if known.one_lambda_w else f" (lambda_w was not given; {forces.fitted_w:.3g} fits its gradient best)"
    if say.at_rest:
        return f"The head is at rest: loss and penalty balance to {_percent(value)}{fitted}."
    if not np.isfinite(value):
        return (
            "The loss does not pull the head outwards, or no penalty holds it: it is not at rest, and distances to "
            "theory mean nothing yet."
        )
    return (
        f"The head is not at rest: loss and penalty differ by {_percent(value)} of the penalty{fitted}. Train on, with "
        "a smaller learning rate, before you read the distances to theory; states may still change. What minimises "
        "something else than the plain loss of these samples (SAM, mixup, augmentation, dropout) comes to rest "
        "elsewhere, and this does not judge it."
    )


def _predicted(say: Says, prediction: Prediction, of: str = "") -> str:
    states = say.found.states
    wrong = [k for k, (theory, here) in enumerate(zip(prediction.seen, states, strict=True)) if theory != here]
    count = Counter(prediction.seen)
    what = ", ".join(f"{number} {state}" for state, number in count.most_common())
    origin = "as trained" if prediction.source == "as trained" else "read from the network"
    text = (
        f"For these class counts at lambda_z = {prediction.lambda_z:.4g} ({origin}) theory with {prediction.features} "
        f"features predicts {what}"
    )
    text = f"{of[0].upper()}{of[1:]} theory predicts {what}" if of else text
    if not wrong:
        return f"{text}: as measured, for every class."
    listed = "; ".join(f"{say.names[k]}: predicted {prediction.seen[k]}, measured {states[k]}" for k in wrong[:3])
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{text}: as measured for {len(states) - len(wrong)} of {len(states)} classes. Not so: {listed}{more}."


def _margin(say: Says, prediction: Prediction) -> Iterator[str]:
    """How far the class that goes first is from its threshold."""
    first = np.where(np.isnan(prediction.edge), np.inf, prediction.edge)
    level = float(first.min())
    if not np.isfinite(level):
        return
    classes = np.flatnonzero(first <= level * (1 + 1e-9)).tolist()
    verb = "merges" if level == prediction.merge[classes[0]] else "vanishes"
    if level < np.fmin(prediction.merge, prediction.vanish)[classes[0]]:  # alone in its size: no transition
        verb = "comes to equal others"
    if len(classes) > 1:
        verb = {"merges": "merge", "vanishes": "vanish"}.get(verb, "come to equal others")
    ratio = prediction.lambda_z / level
    where = f"{ratio:.2f} times that" if ratio >= 0.995 else f"{_percent(ratio)} of it"
    yield f"{named(say.names, classes)} {verb} first, from lambda_z = {level:.4g} on; this network is at {where}."


def _merging(say: Says, fit: NormalizedFit) -> Iterator[str]:
    """How far the class that merges first is from its threshold, in lambda_w."""
    how = fit.solution.problem.normalization
    if how is None or fit.thresholds is None or not np.isfinite(fit.thresholds.merge).any():
        return
    share = np.asarray(how.lambda_w) / fit.thresholds.merge
    most = float(np.nanmax(share))
    classes = np.flatnonzero(share >= most * (1 - 1e-9)).tolist()
    verb = "merges" if len(classes) == 1 else "merge"
    where = f"{most:.2f} times that" if most >= 0.995 else f"{_percent(most)} of it"
    level = float(fit.thresholds.merge[classes[0]])
    yield f"{named(say.names, classes)} {verb} first, from lambda_w = {level:.4g} on; this network is at {where}."


def _frozen(say: Says, head: FrozenHead) -> Iterator[str]:
    """How far a head is from its optimum on given features, who is lost there, and what each mitigation would do."""
    best = head.optimum
    above = f"{_percent(head.excess)} above" if head.excess > max(best.gap, 1e-6) else "at"
    yield (
        f"On these features its objective is {head.objective:.4g}, {above} the optimum, {best.objective:.4g} "
        f"(certified to {max(best.gap, 1e-15):.0e}; mean recall there {_percent(best.mean_recall)})."
    )
    if best.outvoted:
        verb = "is" if len(best.outvoted) == 1 else "are"
        yield (
            f"At that optimum {named(say.names, best.outvoted)} {verb} lost, outvoted on every sample: longer training "
            "does not give back what the objective gives away."
        )
    solved = []
    for remedy in head.remedies:
        lost = f"{named(say.names, remedy.outvoted)} lost" if remedy.outvoted else "no class lost"
        solved.append(f"{remedy.name}: mean recall {_percent(remedy.mean_recall)}, {lost}")
    yield f"Solved again with {'; with '.join(solved)} (on these samples)."


def _own_distance(say: Says, fit: NormalizedFit) -> str:
    """How far the network is from the optimum of its own model."""
    off = fit.distance
    bias = f", its bias {_percent(off.b)}" if np.isfinite(off.b) else ""
    text = f"The mean predictions lie {_percent(off.Z)} from the optimum of this model{bias}"
    if not np.isfinite(off.Z):
        text = f"The optimum of this model is zero; the network is {fit.away:.2g} nats from it"
    if fit.solution.status.name != "OPTIMAL":
        text += f" (which is known to {fit.solution.certificate.relative_gap:.1g} only)"
    return f"{text}." if say.at_rest else f"{text}. This distance means little before the head is at rest."


def _distance(say: Says, fit: Fit) -> str:
    signed, nonnegative = fit.models["signed"], fit.models["nonnegative"]
    if np.isnan(signed.distance.Z) and np.isnan(nonnegative.distance.Z):
        return (
            f"At lambda_z = {fit.lambda_z:.4g} both optima are zero; the network is {signed.away:.2g} nats from them."
        )
    text = (
        f"At lambda_z = {fit.lambda_z:.4g} the mean predictions lie {_away(nonnegative)} from the optimum with "
        f"nonnegative features and {_away(signed)} from the one with signed features"
    )
    text += f": the network follows the {fit.follows} model." if fit.follows else ": the two are not told apart."
    counts = say.measurement.class_counts
    if np.isfinite(fit.block_residual_z) and len(np.unique(counts[counts > 0])) < np.count_nonzero(counts):
        text += " Theory has equal predictions for classes of equal size; here they differ by "
        text += f"{_percent(fit.block_residual_z)}."
    return text if say.at_rest else f"{text} These distances mean little before the head is at rest."


def _stuck(say: Says, effective: EffectivePenalties) -> Iterator[str]:
    """Classes that the penalty does not hold together."""
    if say.at_rest and effective.stuck:
        verb, them = ("is", "it") if len(effective.stuck) == 1 else ("are", "them")
        yield (
            f"{named(say.names, effective.stuck)} {verb} not held there by the penalty: the loss pulls {them} apart "
            f"harder than lambda_z = {effective.lambda_z:.4g} holds, so this is no optimum. The features no longer "
            "answer (ReLU units that died, layers below that are frozen or too small), or training ended too soon: "
            "begin with weaker penalties, raise them once the classes are apart, and train longer."
        )


def _away(fit: ModelFit) -> str:
    if np.isfinite(fit.distance.Z):
        return _percent(fit.distance.Z)
    return f"{fit.away:.2g} nats (that optimum is zero)"


def _against_known(known: KnownTraining, effective: EffectivePenalties) -> str:
    nominal = known.lambda_z
    if nominal is None or not np.isfinite(effective.lambda_z):
        return ""
    off = effective.lambda_z / nominal - 1
    return f" Trained with {nominal:.3g}: the norms differ from that by {_percent(abs(off))}."
