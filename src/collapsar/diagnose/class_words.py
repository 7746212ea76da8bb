"""What became of the classes, in plain words: the headline, who is lost or dead and why, and what helps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from collapsar.core.sentences import percent
from collapsar.diagnose.measurement import Measurement
from collapsar.metrics.evidence import LostClass

if TYPE_CHECKING:
    from collapsar.diagnose.record import Diagnosis

_MOST_LOST = 5
_MOST_LISTED = 100
_MOST_GROUPS = 3
# A difference of biases, in nats, that no class frequencies explain: a factor of a million.
_SHUT = 14.0


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
            by_bias = f"the bias alone decides {d.named(d.standings.carried)} right"
            return f"{seen - len(carried)} of {seen} classes {verb} separated; {by_bias}.{unseen}"
        if seen == 1:
            return f"One class alone has samples: none to separate it from.{unseen}"
        return f"All {seen} classes are separated.{unseen}"
    if len(gone) == seen > 1:
        return f"All {seen} classes have vanished.{unseen}"
    parts = []
    if gone:
        verb = "has" if len(gone) == 1 else "have"
        parts.append(f"{d.named(sorted(gone))} {verb} vanished")
    groups = [group for group in found.groups if not gone & set(group)]
    parts += [f"{d.named(group)} are merged into one" for group in groups[:3]]
    if len(groups) > 3:
        parts.append(f"{len(groups) - 3} more groups are merged")
    verb = "has" if lost == 1 else "have"
    text = f"{lost} of {seen} classes {verb} collapsed: {'; '.join(parts)}."
    return f"{text}{f' {outvoted}' if outvoted else ''}{unseen}"


def _unseen(d: Diagnosis) -> str:
    """The classes without samples; the noun before them, as "0 had no samples" would say the opposite."""
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
    verb, own = ("is", "its row") if len(dead) == 1 else ("are", "their rows")
    return f"{len(dead)} of {seen} classes {verb} dead, {own} of the head the same as others': {d.named(dead)}."


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
    """Why no sample of a class is given to it, and what helps."""
    m, states = d.measurement, d.separation.states
    dead = {k: group for group in d.shared_rows for k in group}
    for c in [c for c in d.standings.lost if c.reason == "outvoted"][:_MOST_LOST]:
        samples = f"none of the {m.class_counts[c.index]} samples of {d.class_names[c.index]} is given to it"
        ahead = (
            f"scores {d.class_names[c.rival]} higher by {_nats(c.nats)} nats" if c.nats > 0 else "is right all the same"
        )
        text = f"on average the head {ahead}. {_cure(c, m)}"
        if c.index in dead and c.rival in dead[c.index]:
            text = f"its row of the head is that of {d.class_names[c.rival]} as well, which the bias prefers."
        yield f"{samples[0].upper()}{samples[1:]}: {text}"
    near = {reason: [c for c in d.standings.lost if c.reason == reason] for reason in ("merged", "vanished")}
    if near["merged"]:
        pairs = "; ".join(
            f"{d.class_names[c.index]}, taken for {d.class_names[c.rival]}" for c in near["merged"][:_MOST_LOST]
        )
        yield (
            f"Lost among the merged classes, no sample given to them: {pairs}. No correction of the scores "
            "separates them: they need room of their own, by weaker penalties on head and features, or class weights."
        )
    if near["vanished"]:
        classes = d.named([c.index for c in near["vanished"]])
        yield (
            f"Lost without evidence of their own, no sample given to them: {classes}. Their samples move no score: "
            "weaken the penalties, or weigh these classes up."
        )
    if d.standings.carried:
        text = d.named(d.standings.carried)
        verb = "is" if len(d.standings.carried) == 1 else "are"
        yield (
            f"{text} {verb} without evidence of {'its' if verb == 'is' else 'their'} own, yet not lost: the bias "
            "decides for what shows no evidence of another class, and decides right."
        )
    if any(state == "separated" for state in states) and len(d.standings.lost) > _MOST_LOST:
        names = [d.class_names[c.index] for c in d.standings.lost]
        rest = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
        yield f"All lost classes: {', '.join(names[:_MOST_LISTED])}{rest}."


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


def outscored(d: Diagnosis) -> Iterator[str]:
    """Classes that are separated, but not in the right direction."""
    wrong = d.standings.outscored
    if wrong:
        verb, own = ("is", "its") if len(wrong) == 1 else ("are", "their")
        yield (
            f"{d.named(wrong)} {verb} separated, but on average the head scores another class higher: it "
            f"recognises few of {own} samples."
        )


def shared_rows(d: Diagnosis) -> Iterator[str]:
    """Classes whose rows of the head coincide, with samples or without."""
    counts = d.measurement.class_counts
    if len(d.separation.vanished_classes) == np.count_nonzero(counts):
        return  # of a head that has sunk to zero nothing else can be said
    groups = [group for group in d.shared_rows if any(counts[k] > 0 for k in group)]
    if groups:
        rows = [d.named(group) for group in groups[:_MOST_GROUPS]]
        rows += [f"{len(groups) - _MOST_GROUPS} more groups"] if len(groups) > _MOST_GROUPS else []
        yield (
            f"Dead, as their rows of the head coincide: {'; '.join(rows)}. No features separate them, and the bias "
            "alone decides which of them is answered: train these rows again, with weaker decay or more samples."
        )
    silent = sorted(k for group in d.shared_rows for k in group if counts[k] == 0)
    if silent:
        rest = ("has", "its row coincides") if len(silent) == 1 else ("have", "their rows coincide")
        yield f"{d.named(silent)} {rest[0]} no samples here, and {rest[1]} with others': dead, not counted."


def rule(d: Diagnosis) -> str:
    """How the states were told from the numbers."""
    found = d.separation
    longest = found.scale * float(np.nanmax(found.relative_norms, initial=0.0))
    return (
        f"A class has vanished if its mean prediction is shorter than {percent(found.vanish_threshold)} of the longest "
        f"one ({longest:.3g} nats) or than 0.05 nats: its samples move no score. Classes are merged if every two of "
        f"them differ by less than {percent(found.merge_threshold)}: the head gives them the same scores."
    )
