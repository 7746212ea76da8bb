"""What an audit says, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from collapsar.diagnose.audit_samples import CountEffect, Recalls
from collapsar.diagnose.reach import FeatureSpace, Reach
from collapsar.diagnose.untrained import RowSpectrum
from collapsar.metrics.shared_rows import TOLERANCE

if TYPE_CHECKING:
    from collapsar.diagnose.head_audit import Group

__all__ = ["Says", "beside_theory", "findings", "not_decided", "summary"]

_MOST_NAMES = 8


@dataclass(frozen=True, eq=False)
class Says:
    """What the sentences need to know."""

    num_classes: int
    dead: NDArray[np.bool_]
    groups: tuple[tuple[int, ...], ...]
    unreachable: NDArray[np.bool_]
    initial: NDArray[np.bool_]
    shrunk: NDArray[np.bool_]
    scheme: str
    names: tuple[str, ...] | None
    space: FeatureSpace
    tolerance: float

    def named(self, classes: Sequence[int]) -> str:
        """The first few of the classes by name."""
        shown = [str(k) if self.names is None else repr(self.names[k]) for k in classes[:_MOST_NAMES]]
        return ", ".join(shown) + (", …" if len(classes) > _MOST_NAMES else "")


def summary(say: Says, effect: CountEffect | None) -> str:
    """How many classes are dead, of which kinds, and what to do: one line."""
    K, dead = say.num_classes, int(say.dead.sum())
    if not dead:
        return f"None of the {K} classes is dead."
    shared = sum(map(len, say.groups))
    in_groups = np.zeros(K, dtype=bool)
    for group in say.groups:
        in_groups[list(group)] = True
    kinds = []
    if shared:
        near = f" within {100 * say.tolerance:g} %" if say.tolerance > TOLERANCE else ""
        kinds.append(f"{shared} share {_several(len(say.groups), 'row')} with others{near}")
    for mask, words in (
        (say.shrunk & ~in_groups, "{} shrunk to the mean of all rows"),
        (say.initial & ~in_groups & ~say.shrunk, "{} as the initialisation left them"),
        (say.unreachable & ~in_groups & ~say.shrunk & ~say.initial, "{} that no features can make the answer"),
    ):
        if mask.any():
            kinds.append(words.format(int(mask.sum())))
    be = "class is" if dead == 1 else "classes are"
    return f"{dead} of {K} {be} dead: {'; '.join(kinds)}. {_remedy(effect)}"


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


def findings(
    say: Says,
    details: tuple[Group, ...],
    spectrum: RowSpectrum,
    num_features: int,
    reached: Reach | None,
    effect: CountEffect | None,
    seen: Recalls | None,
) -> list[str]:
    """A sentence or two for each thing that was found."""
    out = [_group_words(say, group) for group in details[:5]]
    if len(details) > 5:
        out.append(f"{len(details) - 5} more groups hold {sum(len(g.classes) for g in details[5:])} classes.")
    if say.shrunk.any():
        out.append(
            f"{_several(int(say.shrunk.sum()), 'row')} went to the mean of all rows, within "
            f"{100 * say.tolerance:g} % of the longest: {say.named(np.flatnonzero(say.shrunk).tolist())}. Weight decay "
            "does that to classes whose samples no longer pull."
        )
    if say.initial.any():
        out.append(
            f"{_several(int(say.initial.sum()), 'row')} left with the length and the random direction of an "
            f"initialisation ({say.scheme}): {say.named(np.flatnonzero(say.initial).tolist())}. Nothing was learned "
            "for these classes."
        )
    if reached is not None:
        out.append(_reach_words(say, reached))
    most = min(say.num_classes - 1, num_features)
    estimated = f", estimated from {spectrum.num_rows} rows" if spectrum.num_rows < say.num_classes else ""
    out.append(
        f"The rows about their mean have rank {spectrum.rank} of at most {most}, effective rank "
        f"{spectrum.effective_rank:.1f}{estimated}."
    )
    if effect is not None:
        out.append(_count_words(say, effect))
    if seen is not None:
        out.append(_recall_words(say, seen))
    return out


def _group_words(say: Says, group: Group) -> str:
    same = f", {group.identical} of them identical to rounding" if group.identical else ""
    favoured = say.named([group.answered])
    if group.identical == len(group.classes):
        told = "No evidence separates them"
        biases = f"always favour {favoured}"
    else:  # two members are at most a diameter apart
        told = (
            "Features that give the longest row ten nats tell two of them apart by at most "
            f"{20 * group.radius:.2g} nats"
        )
        biases = f"favour {favoured}"
    tail = (
        "and no bias does"
        if group.bias_spread == 0
        else (f"their biases, {group.bias_spread:.2g} nats from smallest to largest, {biases}")
    )
    return (
        f"{len(group.classes)} classes lie on one row{same} (radius {100 * group.radius:.2g} % of the longest row): "
        f"{say.named(group.classes)}. {told}; {tail}."
    )


def _reach_words(say: Says, reached: Reach) -> str:
    where = {"free": "whatever the features", "nonnegative": "whatever the features, none of them below zero"}
    place = where.get(str(reached.space), f"with no features of length {reached.space}")
    lost = np.flatnonzero(say.unreachable).tolist()
    if not lost:
        aside = f", {reached.num_searched} of them not along their own row" if reached.num_searched else ""
        return f"Every class that was decided can be the answer{aside}."
    proof = "a weighted mean of other rows equals its row and has no smaller bias"
    if not isinstance(reached.space, str):
        proof = "a weighted mean of other rows scores as much at every such feature"
    elif reached.space == "nonnegative":
        proof = "a weighted mean of other rows is nowhere below its row and has no smaller bias"
    return (
        f"{_several(len(lost), 'class')} can never be the answer, {place}: {say.named(lost)}. Each is proven: {proof}."
    )


def not_decided(reached: Reach) -> list[str]:
    """How many classes are neither proven to have features that win nor to have none, and why."""
    number = int(reached.undecided.sum())
    if not number:
        return []
    if reached.out_of_budget:
        why = "`largest_reach` ended the search before theirs. Raise it to look at them"
    elif isinstance(reached.space, str):
        why = "they are within rounding of both"
    else:
        why = "they win at shorter features, and at that length none that win were found"
    found = f"For {number} of {len(reached.undecided)} classes neither features that make them the answer nor a proof"
    return [f"{found} that none do was found: {why}."]


def _count_words(say: Says, effect: CountEffect) -> str:
    text = f"Row length goes with the class count by a rank correlation of {effect.length_correlation:.2f}"
    if not math.isnan(effect.bias_correlation):
        text += f", the bias by {effect.bias_correlation:.2f}"
    if say.dead.any() and not say.dead.all():
        text += (
            f". Dead classes have {effect.dead_median:.0f} samples at the median, the others {effect.alive_median:.0f}"
        )
    if say.dead.any() and effect.dies_below:
        text += (
            f". Below {effect.dies_below} samples {100 * effect.dead_below:.0f} % of the classes are dead, from there "
            f"on {100 * effect.dead_above:.0f} %"
        )
    return text + "."


def beside_theory(model: str, lost: NDArray[np.bool_], dead: NDArray[np.bool_]) -> str:
    """What the exact optimum loses at these counts, beside what is dead."""
    return (
        f"At these counts and penalties the exact optimum for {model} features has {int(lost.sum())} classes merged or "
        f"vanished, {int((lost & dead).sum())} of them dead here; {int((dead & ~lost).sum())} dead ones are "
        "separated there."
    )


def _recall_words(say: Says, seen: Recalls) -> str:
    had = np.flatnonzero(say.dead & (seen.counts > 0))
    if not len(had):
        return f"The head is right on {100 * seen.accuracy:.1f} % of the samples given; no dead class has any."
    recall = float((seen.recall[had] * seen.counts[had]).sum() / seen.counts[had].sum())
    takers, times = np.unique(seen.taken_by[had][seen.taken_by[had] >= 0], return_counts=True)
    taken = ""
    if len(takers):
        taken = f"; {say.named(takers[np.argsort(-times, kind='stable')][:3].tolist())} take most of the others"
    return (
        f"{_several(len(had), 'dead class')} have samples here: {100 * recall:.1f} % of those are recognised, of all "
        f"samples {100 * seen.accuracy:.1f} %{taken}."
    )


def _several(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
