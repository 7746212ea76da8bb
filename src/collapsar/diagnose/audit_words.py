"""The findings of an audit, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from collapsar.core.sentences import listed, percent
from collapsar.diagnose.audit_samples import CountEffect
from collapsar.diagnose.reach import Reach
from collapsar.metrics.predictions import Decisions
from collapsar.metrics.shared_rows import TOLERANCE

if TYPE_CHECKING:
    from collapsar.diagnose.head_audit import Audit, Group

_MOST_NAMES = 8


def summary(a: Audit) -> str:
    """How many classes are dead, of which kinds, and what to do: one line."""
    K, dead = a.num_classes, int(a.dead.sum())
    if not dead:
        return f"None of the {K} classes is dead."
    said = np.zeros(K, dtype=bool)
    said[[k for group in a.groups for k in group]] = True
    kinds = []
    if a.groups:
        near = f" within {100 * a.tolerance:g} %" if a.tolerance > TOLERANCE else ""
        kinds.append(f"{said.sum()} share {_several(len(a.groups), 'row')} with others{near}")
    for mask, words in (
        (a.shrunk, "shrunk to the mean of all rows"),
        (a.at_initialisation, "as the initialisation left them"),
        (a.unreachable, "that no features can make the answer"),
    ):
        new = mask & ~said
        kinds += [f"{new.sum()} {words}"] if new.any() else []
        said |= mask
    be = "class is" if dead == 1 else "classes are"
    return f"{dead} of {K} {be} dead: {'; '.join(kinds)}. {_remedy(a.counts)}"


def _remedy(effect: CountEffect | None) -> str:
    if effect is None or not effect.dies_below:
        asked = "; class counts would tell which need more samples" if effect is None else ""
        return (
            "Retrain their rows with class-balanced sampling and less weight decay on the head, or drop the classes"
            f"{asked}."
        )
    return (
        f"Classes die below {effect.dies_below} samples: collect more of those, or retrain their rows with "
        "class-balanced sampling and less weight decay on the head, or drop the classes."
    )


def findings(a: Audit) -> list[str]:
    """A sentence or two for each thing that was found."""
    details = a.group_details
    out = [_group_words(a, group) for group in details[:5]]
    if (more := len(details) - 5) > 0:
        hold = "group holds" if more == 1 else "groups hold"
        out.append(f"{more} more {hold} {sum(len(g.classes) for g in details[5:])} classes.")
    if a.shrunk.any():
        out.append(
            f"{_several(int(a.shrunk.sum()), 'row')} shrank to the mean of all rows, within "
            f"{100 * a.tolerance:g} % of the longest: {_named(a, np.flatnonzero(a.shrunk).tolist())}. Weight decay "
            "does that to classes whose samples no longer pull."
        )
    if a.at_initialisation.any():
        still = np.flatnonzero(a.at_initialisation).tolist()
        out.append(
            f"{_several(len(still), 'row')} still with the length and the random direction of an initialisation "
            f"({a.scheme}): {_named(a, still)}. Nothing was learned for these classes."
        )
    if a.reach is not None:
        out.append(_reach_words(a, a.reach))
    most, used = min(a.num_classes - 1, a.num_features), a.spectrum.num_rows
    estimated = f", estimated from {used} rows" if used < a.num_classes else ""
    out.append(
        f"The rows about their mean have rank {a.spectrum.rank} of at most {most}, effective rank "
        f"{a.spectrum.effective_rank:.1f}{estimated}."
    )
    if a.counts is not None:
        out.append(_count_words(a, a.counts))
    if a.recalls is not None:
        out.append(_recall_words(a, a.recalls))
    for model, lost in a.predicted.items():
        apart = int((a.dead & ~lost).sum())
        out.append(
            f"At these counts and penalties the exact optimum for {model} features has "
            f"{_several(int(lost.sum()), 'class')} merged or vanished, {int((lost & a.dead).sum())} of them dead here; "
            f"{apart} dead {'one is' if apart == 1 else 'ones are'} separated there."
        )
    return out


def _named(a: Audit, classes: Sequence[int]) -> str:
    """The first few of the classes by name."""
    return listed((str(k) if a.class_names is None else repr(a.class_names[k]) for k in classes), _MOST_NAMES)


def _group_words(a: Audit, group: Group) -> str:
    same = f", {group.identical} of them identical up to rounding" if group.identical else ""
    favoured = _named(a, [group.answered])
    if group.identical == len(group.classes):
        told = "No input separates them"
        biases = f"always favour {favoured}"
    else:  # two members are at most a diameter apart
        told = (
            "Features that give the longest row ten nats tell two of them apart by at most "
            f"{20 * group.radius:.2g} nats"
        )
        biases = f"favour {favoured}"
    tail = (
        "and their biases are equal"
        if group.bias_spread == 0
        else (f"their biases, {group.bias_spread:.2g} nats from smallest to largest, {biases}")
    )
    return (
        f"{len(group.classes)} classes share one row{same} (radius {percent(group.radius)} of the longest row): "
        f"{_named(a, group.classes)}. {told}; {tail}."
    )


def _reach_words(a: Audit, reached: Reach) -> str:
    where = {"free": "whatever the features", "nonnegative": "whatever the features, none of them below zero"}
    place = where.get(str(reached.space), f"whatever the features of length {reached.space}")
    lost = np.flatnonzero(a.unreachable).tolist()
    if not lost:
        aside = f", {reached.num_searched} of them not along their own row" if reached.num_searched else ""
        decided = " for which this was decided" if reached.undecided.any() else ""
        return f"Every class{decided} can be the answer{aside}."
    proof = "a weighted mean of other rows equals its row and has no smaller bias"
    if not isinstance(reached.space, str):
        proof = "a weighted mean of other rows scores as much at every such feature"
    elif reached.space == "nonnegative":
        proof = "a weighted mean of other rows is nowhere below its row and has no smaller bias"
    return (
        f"{_several(len(lost), 'class')} can never be the answer, {place}: {_named(a, lost)}. Each is proven: {proof}."
    )


def not_decided(reached: Reach) -> list[str]:
    """How many classes are proven neither to have features that win nor to have none, and why."""
    number = int(reached.undecided.sum())
    if not number:
        return []
    if reached.out_of_budget:
        why = "`largest_reach` ended the search before their turn. Raise it to decide them"
    elif isinstance(reached.space, str):
        why = "they are undecided within rounding"
    else:
        why = "they win at shorter features, and no features of that length that win were found"
    found = f"For {number} of {len(reached.undecided)} classes neither features that make them the answer nor a proof"
    return [f"{found} that there are none was found: {why}."]


def _count_words(a: Audit, effect: CountEffect) -> str:
    text = f"Row length and class count have a rank correlation of {effect.length_correlation:.2f}"
    if not math.isnan(effect.bias_correlation):
        text += f", bias and class count {effect.bias_correlation:.2f}"
    if a.dead.any() and not a.dead.all():
        text += (
            f". Dead classes have {effect.dead_median:.0f} samples in the median, the others {effect.alive_median:.0f}"
        )
    if a.dead.any() and effect.dies_below:
        text += (
            f". Below {effect.dies_below} samples {percent(effect.dead_below)} of the classes are dead, of the others "
            f"{percent(effect.dead_above)}"
        )
    return text + "."


def _recall_words(a: Audit, seen: Decisions) -> str:
    had = np.flatnonzero(a.dead & (seen.counts > 0))
    if not len(had):
        return f"The head is right on {percent(seen.accuracy)} of the samples given; no dead class has any."
    recall = float((seen.recall[had] * seen.counts[had]).sum() / seen.counts[had].sum())
    takers, times = np.unique(seen.taken_by[had][seen.taken_by[had] >= 0], return_counts=True)
    taken = ""
    if len(takers):
        taken = f"; {_named(a, takers[np.argsort(-times, kind='stable')][:3].tolist())} take most of the others"
    return (
        f"{_several(len(had), 'dead class')} {'has' if len(had) == 1 else 'have'} samples here: {percent(recall)} of "
        f"those are recognised, and {percent(seen.accuracy)} of all samples{taken}."
    )


def _several(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
