"""One evaluation of a monitor: what it found, as scalars for a logger and as a line of the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from collapsar.core.records import to_json
from collapsar.core.sentences import listed
from collapsar.core.types import Record, Vector
from collapsar.metrics import CollapseReport
from collapsar.metrics.evidence import Standings, collapsed_classes, dead_classes
from collapsar.metrics.separation import ClassSeparation
from collapsar.monitor.watch import MOST_NAMED, Event


@dataclass(frozen=True, eq=False)
class MonitorRecord:
    """One evaluation. For the same features it agrees with ``diagnose``.

    Attributes:
        epoch: The epoch's number.
        report: All metrics; without the head's if it does not compute W h + b.
        separation: Which classes are separated, merged, vanished; None above 4096 classes.
        standings: Which classes are lost (no sample recognised), and why; None above 4096 classes.
        recalls: Share of each class's samples that are recognised, shape (K,); NaN without samples.
        shared_rows: Groups of classes whose rows of the head coincide.
        events: The messages.
        seconds: Time of a pass of its own, if any, and of the evaluation.
    """

    epoch: float
    report: CollapseReport
    separation: ClassSeparation | None
    standings: Standings | None
    recalls: Vector
    shared_rows: tuple[tuple[int, ...], ...]
    events: tuple[Event, ...]
    seconds: float

    @property
    def lost(self) -> tuple[int, ...]:
        """The classes with samples of which none is recognised, ascending, whatever their state."""
        return tuple(np.flatnonzero(self.recalls == 0).tolist())

    @property
    def dead(self) -> tuple[int, ...]:
        """The classes with samples whose row coincides with another's, ascending, whatever their state."""
        return dead_classes(self.shared_rows, self.report.class_counts)

    @property
    def gone(self) -> tuple[int, ...]:
        """The merged, vanished (unless the bias alone classifies them correctly), lost and dead classes, ascending."""
        collapsed: tuple[int, ...] = ()
        if self.separation is not None and self.standings is not None:
            collapsed = collapsed_classes(self.separation, self.standings)
        return tuple(sorted({*collapsed, *self.lost, *self.dead}))

    @cached_property
    def scalars(self) -> dict[str, float]:
        """The logged values, with names beginning with "nc/"; undefined and infinite values are left out."""
        report, separation = self.report, self.separation
        values = report.scalars()
        del values["nc1_tolerance"]  # a numerical detail, not a curve to look at
        values |= {
            "num_lost": float(len(self.lost)),
            "num_dead": float(len(self.dead)),
            "num_gone": float(len(self.gone)),
            "least_recall": float(min(self.recalls[report.class_counts > 0], default=math.nan)),
        }
        if separation is not None:
            nearest = separation.nearest_separation
            values |= {
                "num_distinct": float(separation.num_distinct),
                "num_merged": float(len(separation.merged_classes)),
                "num_vanished": float(len(separation.vanished_classes)),
                "least_separation": float(min(nearest[nearest == nearest], default=math.nan)),
                "least_norm": float(min(separation.relative_norms[report.class_counts > 0], default=math.nan)),
                "largest_norm": separation.scale * float(np.nanmax(separation.relative_norms, initial=0.0)),
            }
        return {f"nc/{name}": value for name, value in values.items() if math.isfinite(value)}

    def summary(self, names: Sequence[str]) -> str:
        """The lost and the dead classes in one sentence, without the states."""
        found = {
            "lost, with none of their samples recognised": self.lost,
            "dead, with coinciding rows of the head": self.dead,
        }
        named = {what: listed((names[k] for k in own), MOST_NAMED, last=" and ") for what, own in found.items() if own}
        parts = [f"{what}: {classes}" for what, classes in named.items()]
        return f"After epoch {self.epoch:g}: {'; '.join(parts) or 'no class is lost or dead'}."

    def line(self) -> Record:
        """The record as one line: the scalars, and per class the numbers behind the words."""
        line: Record = {"kind": "epoch", "epoch": self.epoch, "seconds": self.seconds, **self.scalars}
        line |= {"class_counts": self.report.class_counts, "recalls": self.recalls, "dead": self.dead}
        if self.standings is not None:
            line["lost"] = self.standings.lost
        if self.separation is not None:
            names = ("states", "groups", "relative_norms", "nearest", "nearest_separation")
            line |= {name: getattr(self.separation, name) for name in names}
        return to_json(line)
