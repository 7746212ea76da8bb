"""What became of the classes, in plain words: the headline, which classes are lost or dead and why, and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from collapsar.advise.outlook import PRIOR_SHARES, TIE, first_enough, left_prior
from collapsar.core.sentences import percent
from collapsar.core.types import Mask, Vector
from collapsar.diagnose.optimum_words import GENTLE, kept
from collapsar.metrics.evidence import LostClass
from collapsar.metrics.predictions import exchanged, exchanged_words

if TYPE_CHECKING:
    from collapsar.diagnose.record import Diagnosis

_MOST_LOST = 5
_MOST_LISTED = 100
_MOST_GROUPS = 3
# Columns of the predictions are computed for this many classes at a time.
_CLASSES = 256
_UNDECAYED = "the decay of this run has not acted, and weaker decay changes nothing"
_MUCH = 2.0  # times as hard as the penalty holds, the loss pulls along the head's weight
_UNHELD = "the loss still pulls much harder at the head than its penalty holds, so weaker penalties change little"
# A difference of biases, in nats, that no class frequencies explain: a factor of a million.
_SHUT = 14.0
# Differences of log priors up to this, in nats, count as none.
_FLAT = 0.01


def headline(d: Diagnosis) -> str:
    """What happened to the classes."""
    found, K = d.separation, len(d.class_names)
    carried = set(d.standings.carried)
    gone = set(found.vanished_classes) - carried
    lost = len(found.merged_classes) + len(gone)
    seen = K - len(found.unseen_classes)
    unseen = _unseen(d)
    outvoted = " ".join(part for part in (_outvoted(d, seen), _dead(d, seen)) if part)
    if not lost:
        if outvoted:
            return f"{outvoted}{unseen}"
        if carried:
            verb = "is" if seen - len(carried) == 1 else "are"
            by_bias = f"the bias alone classifies {d.named(d.standings.carried)} correctly"
            return f"{seen - len(carried)} of {seen} classes {verb} separated; {by_bias}.{unseen}"
        if seen == 1:
            return f"Only one class has samples: there is none to separate it from.{unseen}"
        return f"All {seen} classes are separated.{unseen}"
    if len(gone) == seen > 1:
        return f"All {seen} classes have vanished.{unseen}"
    parts = []
    if gone:
        verb = "has" if len(gone) == 1 else "have"
        parts.append(f"{d.named(sorted(gone))} {verb} vanished")
    groups = [group for group in found.groups if not gone & set(group)]
    parts += [f"{d.named(group)} are merged into one" for group in groups[:3]]
    if (more := len(groups) - 3) > 0:
        parts.append(f"{more} more group{' is' if more == 1 else 's are'} merged")
    verb = "has" if lost == 1 else "have"
    text = f"{lost} of {seen} classes {verb} collapsed: {'; '.join(parts)}."
    return f"{text}{f' {outvoted}' if outvoted else ''}{unseen}"


def _unseen(d: Diagnosis) -> str:
    """The classes without samples; the noun comes first, since "0 had no samples" would say the opposite."""
    classes = d.separation.unseen_classes
    if not classes:
        return ""
    return f" {'Class' if len(classes) == 1 else 'Classes'} {d.named(classes)} had no samples."


def _outvoted(d: Diagnosis, seen: int) -> str:
    """The classes that are lost although they are separated; "" for none."""
    lost = [c for c in d.standings.lost if c.reason == "outvoted"]
    if not lost:
        return ""
    by: dict[int, list[int]] = {}
    for c in lost:
        by.setdefault(c.rival, []).append(c.index)
    parts = [f"{d.named(classes)} to {d.class_names[rival]}" for rival, classes in list(by.items())[:3]]
    parts += [f"{sum(map(len, list(by.values())[3:]))} more"] if len(by) > 3 else []
    verb, own = ("is", "its") if len(lost) == 1 else ("are", "their")
    return f"{len(lost)} of {seen} classes {verb} lost, outvoted on every sample of {own} own: {', '.join(parts)}."


def _dead(d: Diagnosis, seen: int) -> str:
    """The classes that share a row of the head although their mean predictions are separated; "" for none."""
    known = {*d.separation.merged_classes, *d.separation.vanished_classes}
    dead = [k for k in d.dead if k not in known]
    if not dead:
        return ""
    verb, row = ("is", "row") if len(dead) == 1 else ("are", "rows")
    return f"{len(dead)} of {seen} classes {verb} dead, with the same {row} of the head as others: {d.named(dead)}."


def _nats(value: float) -> str:
    return f"{value:.0f}" if 99.5 <= value < 1e6 else f"{value:.2g}"


def cost(d: Diagnosis) -> Iterator[str]:
    """How often collapsed classes are still recognised."""
    lost, accuracies = list(d.collapsed), d.measurement.accuracies
    if not lost:
        return
    right = percent(float(np.mean(accuracies[lost])))
    separated = [k for k, state in enumerate(d.separation.states) if state == "separated"]
    others = f", and {percent(float(np.mean(accuracies[separated])))} in the others" if separated else ""
    yield f"Of the samples measured, the head recognises {right} in a collapsed class on average{others}."


def lost(d: Diagnosis) -> Iterator[str]:
    """Why no sample of a class is recognised, and what helps."""
    m, states = d.measurement, d.separation.states
    dead = {k: group for group in d.shared_rows for k in group}
    corrections = _corrections(d) if d.standings.lost else ()
    strange: tuple[int, ...] = ()
    if m.taken_for is not None:
        strange = exchanged(m.accuracies, m.taken_for, m.class_counts, d.standings.behind(m.num_classes))
    if strange:
        yield f"Caution: {exchanged_words([d.class_names[k] for k in strange])}"
    for c in [c for c in d.standings.lost if c.reason == "outvoted" and c.index not in strange][:_MOST_LOST]:
        samples = f"none of the {m.class_counts[c.index]} samples of {d.class_names[c.index]} is recognised"
        text = f"on average the head {_ahead(d, c)}. {_cure(d, c, corrections)}"
        if c.index in dead and c.rival in dead[c.index]:
            text = f"its row of the head coincides with that of {d.class_names[c.rival]}, which the bias prefers."
        yield f"{samples[0].upper()}{samples[1:]}: {text}"
    near = {reason: [c.index for c in d.standings.lost if c.reason == reason] for reason in ("merged", "vanished")}
    astray = set(kept(d, [*near["merged"], *near["vanished"]]))
    if near["merged"]:
        pairs = "; ".join(
            f"{d.class_names[c.index]}, taken for {d.class_names[c.rival]}"
            for c in [c for c in d.standings.lost if c.reason == "merged"][:_MOST_LOST]
        )
        room = "need room of their own, by weaker penalties on head and features, or class weights."
        if unheld := _unheld(d):
            room = f"need longer training, or class weights: {unheld}."
        if not set(near["merged"]) - astray:
            room = f"need room of their own, which the optimum at these penalties gives them: {GENTLE}"
        tried = _of_merged(d, set(near["merged"]), corrections)
        yield f"Lost among the merged classes, with no sample recognised: {pairs}. {tried} they {room}"
    for classes in ([k for k in near["vanished"] if k not in astray], [k for k in near["vanished"] if k in astray]):
        if classes:
            cure = "weaken the penalties, or give these classes larger weights."
            if unheld := _unheld(d):
                cure = f"train longer, or give these classes larger weights; {unheld}."
            if classes[0] in astray:
                cure = f"the optimum at these penalties separates them nevertheless, but {GENTLE}"
            yield (
                f"Lost without evidence of their own, with no sample recognised: {d.named(classes)}. Their samples "
                f"change no score: {cure}"
            )
    if d.standings.carried:
        text = d.named(d.standings.carried)
        verb = "is" if len(d.standings.carried) == 1 else "are"
        yield (
            f"{text} {verb} without evidence of {'its' if verb == 'is' else 'their'} own, yet not lost: where a sample "
            "shows no evidence of another class the bias decides, and decides correctly."
        )
    if any(state == "separated" for state in states) and len(d.standings.lost) > _MOST_LOST:
        names = [d.class_names[c.index] for c in d.standings.lost]
        rest = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
        yield f"All lost classes: {', '.join(names[:_MOST_LISTED])}{rest}."


def _unheld(d: Diagnosis) -> str:
    """Why weaker penalties do not help, if the present ones do not hold the head; "" if they may help."""
    if d.known.idle:
        return _UNDECAYED
    known = d.known.one_lambda_w
    return _UNHELD if known is not None and not d.at_rest and d.forces.fitted_w > _MUCH * known else ""


def _ahead(d: Diagnosis, c: LostClass) -> str:
    """Which class the mean prediction of a lost class scores higher: its rival, or another if that scores lower."""
    rival, nats = c.rival, c.nats
    if nats <= 0:
        scores = d.measurement.predictions.columns(np.array([c.index]))[:, 0] + d.measurement.b
        rival = int(np.argmax(scores))
        nats = float(scores[rival] - scores[c.index])
    return f"scores {d.class_names[rival]} higher by {_nats(nats)} nats" if nats > 0 else "is nevertheless right"


@dataclass(frozen=True, eq=False)
class _Correction:
    """A correction of the scores: a share of the prior that the loss has left in them is subtracted.

    Attributes:
        prior: the prior in words: log(n_k/N) for the plain loss.
        share: how much of it.
        before: nats by which each class's own score leads at its mean prediction before, shape (K,); NaN if that was
            not computed.
        margins: the same after the correction.
    """

    prior: str
    share: float
    before: Vector
    margins: Vector

    @property
    def right(self) -> Mask:
        """Classes whose mean prediction after it scores their own class highest, shape (K,)."""
        return self.margins > TIE

    @property
    def loses(self) -> tuple[int, ...]:
        """Classes that this loses, ascending: right before it, and not after."""
        return tuple(np.flatnonzero((self.before > TIE) & ~self.right).tolist())

    def weakest(self, back: Sequence[int]) -> tuple[int, float]:
        """Of these and the classes that were right before, the one that leads by least after it, and by how much."""
        kept = np.where((self.before > TIE) | np.isin(np.arange(self.before.size), back), self.margins, np.inf)
        return int(kept.argmin()), float(kept.min())

    @property
    def text(self) -> str:
        return self.prior if self.share == 1 else f"{self.share:g} {self.prior}"


def _corrections(d: Diagnosis) -> tuple[_Correction, ...]:
    """What each share of the prior's correction does; with many classes, only to the lost ones that are named.

    Empty if the loss has already taken the prior out, by offsets or class weights.
    """
    m, loss = d.measurement, d.known.loss
    absent, prior = m.class_counts == 0, left_prior(np.maximum(m.class_counts, 1), loss)[:, None]
    if not loss.is_plain and np.ptp(prior[~absent]) < _FLAT:
        return ()
    name = "log(n_k/N)" if loss.class_weights is None else "log(w_k n_k / sum(w n))"
    name = name if loss.offsets is None else f"[{name} - offset_k]"
    classes = np.arange(m.num_classes) if m.small else np.array([c.index for c in d.standings.lost[:_MOST_LISTED]])
    margins = np.full((len(PRIOR_SHARES), m.num_classes), np.nan)
    for part in np.array_split(classes, -(-len(classes) // _CLASSES)):
        scores, place = m.predictions.columns(part) + m.b[:, None], np.arange(len(part))
        for found, share in zip(margins, PRIOR_SHARES, strict=True):
            x = scores - share * prior
            x[absent & (share > 0)] = -np.inf  # a prior of zero has no correction
            own = x[part, place]
            x[part, place] = -np.inf
            found[part] = own - x.max(axis=0)
    whole_to_none = [_Correction(name, share, margins[-1], x) for share, x in zip(PRIOR_SHARES, margins, strict=True)]
    return tuple(whole_to_none[:-1])


def _of_merged(d: Diagnosis, lost: set[int], corrections: tuple[_Correction, ...]) -> str:
    """What the prior's correction does for classes that differ by little."""
    for correction in corrections:
        # of several equal classes a bias can make one right
        several = [group for group in d.separation.groups if np.count_nonzero(correction.right[list(group)]) > 1]
        back = sorted(k for group in several for k in group if correction.right[k] and k in lost)
        if back and not correction.loses:
            return (
                f"Subtracting {correction.text} from the scores recovers {d.named(back)} on these samples, by the "
                "little difference that is left between them; for new samples"
            )
    return "No correction of the scores separates them:"


def _cure(d: Diagnosis, c: LostClass, corrections: tuple[_Correction, ...]) -> str:
    """Whether taking the class frequencies out of the scores recovers the class, and at whose cost."""
    m, k, room = d.measurement, c.index, "it needs more room, by weaker penalties or class weights, or more samples."
    if unheld := _unheld(d):
        room = f"it needs longer training, class weights or more samples; {unheld}."
    if int(np.argmax(m.evidence.columns(k))) == k and m.b[k] < m.b[c.rival] - _SHUT:
        return f"Its bias shuts it out: it is {m.b[c.rival] - m.b[k]:.3g} nats below the rival's; reset it."
    if not corrections:
        return f"The loss has already taken the prior out of the scores: {room}"
    whole = corrections[0]
    best, back = _best(d, k, corrections)
    if best is None and whole.right[k]:
        return f"Subtracting {whole.text} from the scores recovers it but loses {d.named(whole.loses)}: {room}"
    if best is None:
        return f"Subtracting {whole.text} from the scores is not enough to recover it: {room}"
    there = f"The evidence is there, but the prior outvotes it: subtract {best.text} from the scores after training"
    if best is whole:
        how = "with those offsets (logit adjustment)" if d.known.loss.offsets is None else "with offsets larger by that"
        return f"{there}, or train {how}."
    if whole.loses or not whole.right[k]:
        return f"{there}; all of it would lose {d.named(sorted({*whole.loses, *([] if whole.right[k] else [k])}))}."
    least, lead = whole.weakest(back)
    return f"{there}; with all of it {d.class_names[least]} would lead by only {_nats(lead)} nats on average."


def _best(d: Diagnosis, k: int, corrections: tuple[_Correction, ...]) -> tuple[_Correction | None, list[int]]:
    """What to subtract to recover class k without losing another, and which classes that recovers.

    The scores can have only one correction: if possible, it is the one that recovers most of the outvoted classes.
    """
    harmless = [found for found in corrections if not found.loses]
    outvoted = [c.index for c in d.standings.lost if c.reason == "outvoted"]
    recovered = [[c for c in outvoted if found.right[c]] for found in harmless]
    most = max(map(len, recovered), default=0)
    for good in (
        [(found, back) for found, back in zip(harmless, recovered, strict=True) if k in back and len(back) == most],
        [(found, [k]) for found in harmless if found.right[k]],
    ):
        place = first_enough([found.weakest(back)[1] for found, back in good])
        if place is not None:
            return good[place]
    return None, []


def outscored(d: Diagnosis) -> Iterator[str]:
    """Classes that are separated, but not in the right direction."""
    wrong = list(d.standings.outscored)
    if wrong:
        verb, own = ("is", "its") if len(wrong) == 1 else ("are", "their")
        recalls = d.measurement.accuracies[wrong]
        low, high = percent(float(recalls.min())), percent(float(recalls.max()))
        share = low if low == high else f"{low} to {high}"
        some = (
            f". It still recognises {share} of {own} samples: the mean is dominated by the others, which are far off."
        )
        text = some if recalls.min() > 0.5 else f": it recognises {share} of {own} samples."
        yield f"{d.named(wrong)} {verb} separated, but on average the head scores another class higher{text}"


def shared_rows(d: Diagnosis) -> Iterator[str]:
    """Classes whose rows of the head coincide, with samples or without."""
    counts = d.measurement.class_counts
    if len(d.separation.vanished_classes) == np.count_nonzero(counts):
        return  # nothing more can be said about a head that has sunk to zero
    groups = [group for group in d.shared_rows if any(counts[k] > 0 for k in group)]
    if groups:
        rows = [d.named(group) for group in groups[:_MOST_GROUPS]]
        if (more := len(groups) - _MOST_GROUPS) > 0:
            rows.append(f"{more} more group{'s' if more > 1 else ''}")
        yield (
            f"Dead, as their rows of the head coincide: {'; '.join(rows)}. No features separate them, and the bias "
            "alone decides which of them is predicted: retrain these rows, with weaker decay or more samples."
        )
    silent = sorted(k for group in d.shared_rows for k in group if counts[k] == 0)
    if silent:
        rest = ("has", "its row coincides") if len(silent) == 1 else ("have", "their rows coincide")
        yield f"{d.named(silent)} {rest[0]} no samples here, and {rest[1]} with others': dead, not counted."


def rule(d: Diagnosis) -> str:
    """How the states follow from the numbers."""
    found = d.separation
    longest = found.scale * float(np.nanmax(found.relative_norms, initial=0.0))
    return (
        f"A class has vanished if its mean prediction is shorter than {percent(found.vanish_threshold)} of the longest "
        f"one ({longest:.3g} nats) or than 0.05 nats: its samples change no score. Classes are merged if every two of "
        f"them differ by less than {percent(found.merge_threshold)}: the head gives them the same scores."
    )
