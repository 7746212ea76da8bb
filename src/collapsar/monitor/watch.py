"""When to say that classes merge or are lost: a rule against false alarms, and the words. Needs only numpy.

The rule, for every class, on mean predictions Z̄ = W M̄ᵀ measured at successive evaluations (``MergeRule`` holds the
numbers, ``class_separation`` the definitions):

* A class is **close** when its nearest other class is nearer than ``merge`` times the longest column of Z̄. It is
  **distinct** when that distance is more than ``release`` times as large *and* the two differ in the right
  direction: the contrast α = ½(z_ii − z_ji + z_jj − z_ij) with its nearest class is at least ``contrast`` nats. An
  untrained network fails the second test, whatever the result of the first.
* ``confirm`` evaluations in a row decide. A class that has been distinct and becomes close *begins to merge*, which is
  said once. It is said again only after the class has been distinct again, which is also said. Between the two limits
  nothing changes, so noise around either of them is silent.
* The same for the length of the column: a class **vanishes**.
* A class that was never distinct is not said to merge. Once some other class has been, ``patience`` close evaluations
  in a row make it a class that *has not separated*.
* A class of which no sample is recognised is **lost**, whatever its state (``class_standings``); one whose row of the
  head coincides with another's is **dead**. Either is said after ``confirm`` evaluations in a row of a class that was
  not, or after ``patience`` of them, and only of classes that were not said to merge or vanish. So is the end of it.

Example:
    >>> import numpy as np
    >>> watch = MergeWatch(3, class_names=["cat", "lynx", "puma"])
    >>> separated, merged = 3 * np.eye(3) - 1, np.array([[2.0, -1, -1], [-1, 0.5, 0.5], [-1, 0.5, 0.5]])
    >>> for epoch, Z in enumerate([separated, separated, merged, merged, merged], start=1):
    ...     for event in watch.observe(epoch, Z):
    ...         print(event.message)
    Classes lynx and puma begin to merge (epoch 4): their mean predictions differ by less than 10 % of the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collapsar.core.sentences import listed, names_of
from collapsar.core.types import Mask, Record
from collapsar.metrics.evidence import Standings, class_standings
from collapsar.metrics.separation import ClassSeparation, class_separation

EventKind = Literal["merge", "vanish", "separate", "never separated", "lost", "found", "dead", "revived"]

MOST_NAMED = 20
"""Names in one sentence."""

_NEW, _ARMED, _ON = 0, 1, 2


@dataclass(frozen=True)
class MergeRule:
    """The numbers of the rule (see the module).

    Attributes:
        merge: Relative separation below which a class is close, in (0, 0.5).
        vanish: Relative norm below which a class has vanished, in (0, 0.5).
        min_norm: Norm in nats below which it has vanished whatever the others do, > 0.
        release: How many times ``merge`` or ``vanish`` a class must exceed to count as distinct or alive, > 1.
        contrast: The least contrast in the right direction, in nats: at 0.5, samples of the two classes differ in
            their mean log-odds by 1. >= 0.
        confirm: Evaluations in a row that decide, >= 1.
        patience: Close evaluations in a row after which a class that was never distinct is named, >= 1.

    Raises:
        ValueError: A number is out of range.
    """

    merge: float = 0.1
    vanish: float = 0.05
    min_norm: float = 0.05
    release: float = 2.0
    contrast: float = 0.5
    confirm: int = 2
    patience: int = 10

    def __post_init__(self) -> None:
        limits = {
            "merge": (0 < self.merge < 0.5, "in (0, 0.5)"),
            "vanish": (0 < self.vanish < 0.5, "in (0, 0.5)"),
            "min_norm": (0 < self.min_norm < np.inf, "positive and finite"),
            "release": (1 < self.release < np.inf, "greater than 1"),
            "contrast": (0 <= self.contrast < np.inf, ">= 0 and finite"),
            "confirm": (self.confirm >= 1, ">= 1"),
            "patience": (self.patience >= 1, ">= 1"),
        }
        for name, (good, wanted) in limits.items():
            if not good:
                raise ValueError(f"`{name}` must be {wanted}; got {getattr(self, name)}. Try the default")


@dataclass(frozen=True)
class Event:
    """Something worth saying.

    Attributes:
        kind: "merge", "vanish", "separate" (again), "never separated", "lost" (no sample recognised), "dead" (its row
            of the head coincides with another's), "found" and "revived" (no longer lost, no longer dead).
        epoch: The evaluation at which it was confirmed.
        classes: The classes it is about, ascending.
        message: The sentence.
    """

    kind: EventKind
    epoch: float
    classes: tuple[int, ...]
    message: str


class MergeWatch:
    """Follows the classes from evaluation to evaluation and says what happens to them, once.

    Args:
        num_classes: K >= 2.
        rule: When to speak.
        class_names: K names; None numbers them from 0.

    Raises:
        ValueError: There are fewer than two classes, or not K names.
    """

    def __init__(
        self, num_classes: int, rule: MergeRule | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        if not num_classes >= 2:
            raise ValueError(f"`num_classes` must be at least 2; got {num_classes}. One class cannot merge")
        self.rule = MergeRule() if rule is None else rule
        self.class_names = names_of(class_names, num_classes)
        self.separation: ClassSeparation | None = None
        self._epoch, self._any_distinct = 0.0, False
        self._together, self._vanished, self._lost, self._dead = (_Switch(num_classes) for _ in range(4))
        self.standings = Standings((), ())
        self.dead: tuple[int, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether any class has ever been distinct."""
        return bool((self._together.status != _NEW).any())

    def observe(
        self,
        epoch: float,
        Z: Any,
        logits: Any = None,
        recalls: Any = None,
        taken_for: Any = None,
        shared_rows: Sequence[Sequence[int]] = (),
    ) -> tuple[Event, ...]:
        """Add one evaluation and return what to say about it.

        Args:
            epoch: Its number.
            Z: Mean predictions (logit, class), shape (K, K), NaN columns for classes without samples: nothing is
                decided about those.
            logits: Mean logits (logit, class), shape (K, K), bias included: with them, lost classes are reported too.
            recalls: Share of each class's samples that are recognised, shape (K,); None judges by the mean logits.
            taken_for: The class that most of its other samples are predicted as, shape (K,), -1 for none.
            shared_rows: Groups of classes whose rows of the head coincide (``metrics.shared_rows``).

        Raises:
            ValueError: As ``class_separation``, or Z is not (K, K).
        """
        Z = np.asarray(Z, dtype=np.float64)
        size = len(self.class_names)
        if Z.shape != (size, size):
            raise ValueError(
                f"`Z` must have shape (K, K) = {(size, size)}; got {Z.shape}. Use the same head throughout"
            )
        rule = self.rule
        found = class_separation(Z, merge_threshold=rule.merge, vanish_threshold=rule.vanish, min_norm=rule.min_norm)
        self.separation, self._epoch = found, epoch
        self.standings = Standings((), ())
        if logits is not None:
            self.standings = class_standings(found, logits, recalls, taken_for)
        seen, paired = np.isfinite(found.relative_norms), found.nearest >= 0
        self.dead = tuple(sorted(k for group in shared_rows for k in group if seen[k]))
        contrast, own = _contrasts(Z, found.nearest)
        # one that the bias classifies correctly needs no evidence of its own, such as the larger of two classes
        gone = np.array([state == "vanished" for state in found.states]) & ~self._mask(self.standings.carried)
        floor = rule.release * max(rule.vanish, rule.min_norm / found.scale)
        with np.errstate(invalid="ignore"):  # an unseen class, NaN, is neither
            close = found.nearest_separation < rule.merge
            distinct = (found.nearest_separation > rule.release * rule.merge) & (contrast >= rule.contrast)
            alive = (found.relative_norms > floor) & (own >= rule.contrast)
        self._any_distinct = bool(distinct.any())
        merging, parted = self._together.update(close, distinct, paired, rule.confirm)
        vanishing, revived = self._vanished.update(gone, alive, seen, rule.confirm)
        back = (parted | revived) & ~self._together.on & ~self._vanished.on
        never = np.zeros(size, dtype=bool)
        if self.learned:
            told = self._together.on | self._vanished.on
            never = (self._together.stuck(rule.patience) | self._vanished.stuck(rule.patience)) & ~told
        events = self._grouped("merge", merging & ~gone, found)
        for event in events:
            self._together.turn_on(list(event.classes))
        events += self._all("vanish", vanishing) + self._all("separate", back)
        lost, dead = self._mask(c.index for c in self.standings.lost), self._mask(self.dead)
        right = ~lost & (distinct if recalls is None else seen)
        events += self._turned(("lost", "found"), self._lost, lost, right, seen)
        events += self._turned(("dead", "revived"), self._dead, dead, ~dead, seen)
        return tuple(events + self._grouped("never separated", never, found))

    def summary(self) -> str:
        """Return the present state in one sentence; "" before the first evaluation."""
        found = self.separation
        if found is None:
            return ""
        start = f"After epoch {self._epoch:g}:"
        lost = [f"{self.class_names[c.index]} to {self.class_names[c.rival]}" for c in self.standings.lost]
        if not (self.learned or self._any_distinct):
            ahead = f"{self.rule.contrast:g} nats ahead of its nearest"
            return f"{start} no class is {ahead} yet: nothing has been learned that could merge."
        verb = "is" if found.num_distinct == 1 else "are"
        parts = [f"{found.num_distinct} of {len(found.states)} classes {verb} separated"]
        merged = [group for group in found.groups if not set(group) & set(found.vanished_classes)]
        parts += [f"merged: {self._named(group)}" for group in merged]
        vanished = [k for k in found.vanished_classes if k not in self.standings.carried]
        parts += [f"vanished: {self._named(vanished)}"] if vanished else []
        carried = self.standings.carried
        parts += [f"right by the bias alone: {self._named(carried)}"] if carried else []
        if lost:
            parts.append(f"lost, with none of their samples recognised: {listed(lost, MOST_NAMED, last=' and ')}")
        parts += [f"dead, with coinciding rows of the head: {self._named(self.dead)}"] if self.dead else []
        parts += [f"without samples: {self._named(found.unseen_classes)}"] if found.unseen_classes else []
        return f"{start} {'; '.join(parts)}."

    def _turned(
        self, kinds: tuple[EventKind, EventKind], switch: _Switch, on: Mask, off: Mask, seen: Mask
    ) -> list[Event]:
        """Events for classes that are on, or off again, for long enough and are not said to merge or vanish."""
        if not self.learned:  # an untrained network predicts only a few classes
            return []
        fired, ended = switch.update(on, off, seen, self.rule.confirm)
        begun, alone = fired | switch.stuck(self.rule.patience), ~self._together.on & ~self._vanished.on
        return self._all(kinds[0], begun & alone) + self._all(kinds[1], ended & alone)

    def _mask(self, classes: Iterable[int]) -> Mask:
        mask = np.zeros(len(self.class_names), dtype=bool)
        mask[list(classes)] = True
        return mask

    def state_dict(self) -> Record:
        """Return what is needed to continue later, as numbers and lists."""
        return {name: switch.state() for name, switch in self._switches().items()}

    def load_state_dict(self, state: Record) -> None:
        """Continue from a ``state_dict`` over the same classes."""
        fresh = _Switch(len(self.class_names)).state()
        state = {"lost": state.get("outvoted", fresh), "dead": fresh, **state}  # older states have none
        for name, switch in self._switches().items():
            if len(state[name]["status"]) != len(self.class_names):
                raise ValueError(
                    f"`state` must be of {len(self.class_names)} classes; got {len(state[name]['status'])}. "
                    "It belongs to another head"
                )
            switch.load(state[name])

    def _switches(self) -> dict[str, _Switch]:
        return {"together": self._together, "vanished": self._vanished, "lost": self._lost, "dead": self._dead}

    def _grouped(self, kind: EventKind, mask: Mask, found: ClassSeparation) -> list[Event]:
        """One event per group of merged or vanished classes that the mask touches."""
        groups: list[tuple[int, ...]] = []
        for k in np.flatnonzero(mask).tolist():
            if any(k in group for group in groups):
                continue
            home = next((group for group in found.groups if k in group), None)
            # Close to another class, but in no group whose members all are: then named only with that one; a vanished
            # class by itself.
            alone = (k,) if found.states[k] == "vanished" else tuple(sorted((k, int(found.nearest[k]))))
            joined = set(alone if home is None else home).union(*(g for g in groups if set(g) & set(home or alone)))
            groups = [g for g in groups if not set(g) & joined] + [tuple(sorted(joined))]
        return [self._event(kind, group) for group in groups]

    def _all(self, kind: EventKind, mask: Mask) -> list[Event]:
        classes = tuple(np.flatnonzero(mask).tolist())
        return [self._event(kind, classes)] if classes else []

    def _event(self, kind: EventKind, classes: tuple[int, ...]) -> Event:
        one, when = len(classes) == 1, f"(epoch {self._epoch:g})"
        subject = f"{'Class' if one else 'Classes'} {self._named(classes)}"
        if kind == "merge":
            share = f"{100 * self.rule.merge:g} %"
            words = f"begin to merge {when}: their mean predictions differ by less than {share} of the largest."
        elif kind == "vanish":
            words = f"{'vanishes' if one else 'vanish'} {when}: only the bias is predicted, whatever the sample."
        elif kind == "lost":
            rivals = sorted({c.rival for c in self.standings.lost if c.index in classes})
            whose = "its" if one else "their"
            words = f"{'is' if one else 'are'} lost {when}: {whose} samples are predicted as {self._named(rivals)}."
        elif kind == "dead":
            rows = "its row of the head is another's too" if one else "their rows of the head coincide with others'"
            words = f"{'is' if one else 'are'} dead {when}: {rows}."
        elif kind == "found":
            words = f"{'is' if one else 'are'} recognised again {when}."
        elif kind == "revived":
            words = (
                f"{'has a row' if one else 'have rows'} of {'its' if one else 'their'} own in the head again {when}."
            )
        elif kind == "separate":
            words = f"{'has' if one else 'have'} separated {when}."
        else:
            words = f"{'has' if one else 'have'} still not separated {when}, while other classes have."
        return Event(kind, self._epoch, classes, f"{subject} {words}")

    def _named(self, classes: Sequence[int]) -> str:
        return listed((self.class_names[k] for k in classes), MOST_NAMED, last=" and ")


class _Switch:
    """Hysteresis per class: armed by ``confirm`` evaluations off, turned on by as many evaluations on."""

    def __init__(self, size: int) -> None:
        self.status = np.full(size, _NEW)
        self._streak_on = np.zeros(size, dtype=np.int64)
        self._streak_off = np.zeros(size, dtype=np.int64)

    @property
    def on(self) -> Mask:
        return self.status == _ON

    def update(self, on: Mask, off: Mask, judged: Mask, confirm: int) -> tuple[Mask, Mask]:
        """Return the classes that have been turned on and off just now."""
        self._streak_on = np.where(judged, (self._streak_on + 1) * on, self._streak_on)
        self._streak_off = np.where(judged, (self._streak_off + 1) * off, self._streak_off)
        fired = judged & (self.status == _ARMED) & (self._streak_on >= confirm)
        settled = judged & (self._streak_off >= confirm)
        released = settled & self.on
        self.status[fired], self.status[settled] = _ON, _ARMED
        return fired, released

    def turn_on(self, classes: list[int]) -> None:
        """Count classes as reported that were named together with others."""
        self.status[classes] = np.where(self.status[classes] == _ARMED, _ON, self.status[classes])

    def stuck(self, patience: int) -> Mask:
        """Return, once, the classes that were on from the start and for so many evaluations now."""
        found = (self.status == _NEW) & (self._streak_on >= patience)
        self.status[found] = _ON
        return found

    def state(self) -> dict[str, list[int]]:
        return {
            "status": self.status.tolist(),
            "on": self._streak_on.tolist(),
            "off": self._streak_off.tolist(),
        }

    def load(self, state: dict[str, list[int]]) -> None:
        self.status = np.array(state["status"])
        self._streak_on, self._streak_off = np.array(state["on"]), np.array(state["off"])


def _contrasts(Z: NDArray[np.float64], nearest: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per class the contrast with its nearest class, and its own entry centred over logits; both in nats."""
    diagonal, k = Z.diagonal(), np.arange(len(Z))
    contrast = (diagonal - Z[nearest, k] + diagonal[nearest] - Z[k, nearest]) / 2
    return contrast, diagonal - Z.mean(axis=0)
