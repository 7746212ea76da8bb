"""One evaluation of a monitor: what it found, as scalars for a logger and as a line of the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.records import to_json
from collapsar.metrics import CollapseReport
from collapsar.metrics.evidence import Standings
from collapsar.metrics.separation import ClassSeparation
from collapsar.monitor.samples import Totals
from collapsar.monitor.watch import Event, MergeWatch, listed

__all__ = ["MonitorRecord", "evaluated"]


@dataclass(frozen=True, eq=False)
class MonitorRecord:
    """One evaluation. Of the same features it says what ``diagnose`` says.

    Attributes:
        epoch: What the epoch is called.
        report: All metrics; without the head's where it does not compute W h + b.
        separation: Which classes are separated, merged, vanished; None above 4096 classes.
        standings: Which classes are lost, given to none of their own samples, and why; None above 4096 classes.
        recalls: Share of each class's samples that are given to it, shape (K,); NaN without samples.
        shared_rows: Groups of classes whose rows of the head coincide.
        events: What was said.
        scalars: What was logged, names beginning with "nc/"; undefined and infinite values are left out.
        seconds: Time of a pass of its own, if any, and of the evaluation.
    """

    epoch: float
    report: CollapseReport
    separation: ClassSeparation | None
    standings: Standings | None
    recalls: NDArray[np.float64]
    shared_rows: tuple[tuple[int, ...], ...]
    events: tuple[Event, ...]
    scalars: dict[str, float]
    seconds: float

    @property
    def lost(self) -> tuple[int, ...]:
        """The classes that are given to none of their own samples, ascending, whatever their state."""
        return tuple(np.flatnonzero(self.recalls == 0).tolist())

    @property
    def dead(self) -> tuple[int, ...]:
        """The classes with samples whose row coincides with another's, ascending, whatever their state."""
        counts = self.report.class_counts
        return tuple(sorted(k for group in self.shared_rows for k in group if counts[k] > 0))

    @property
    def gone(self) -> tuple[int, ...]:
        """The classes that are merged, vanished (unless the bias alone decides them right), lost or dead, ascending."""
        collapsed: set[int] = set()
        if self.separation is not None and self.standings is not None:
            collapsed = {*self.separation.merged_classes, *self.separation.vanished_classes}
            collapsed -= set(self.standings.carried)
        return tuple(sorted({*collapsed, *self.lost, *self.dead}))

    def summary(self, names: Sequence[str]) -> str:
        """The lost and the dead classes in one sentence, without the states."""
        found = (
            ("lost, given to none of their own samples", self.lost),
            ("dead, their rows of the head the same", self.dead),
        )
        parts = [f"{what}: {listed([names[k] for k in classes])}" for what, classes in found if classes]
        return f"After epoch {self.epoch:g}: {'; '.join(parts) or 'no class is lost or dead'}."

    def line(self) -> dict[str, Any]:
        """The record as one line: the scalars, and per class what the words are made from."""
        line: dict[str, Any] = {"kind": "epoch", "epoch": self.epoch, "seconds": self.seconds, **self.scalars}
        line |= {"class_counts": self.report.class_counts, "recalls": self.recalls, "dead": self.dead}
        if self.standings is not None:
            line["lost"] = self.standings.lost
        if self.separation is not None:
            names = ("states", "groups", "relative_norms", "nearest", "nearest_separation")
            line |= {name: getattr(self.separation, name) for name in names}
        return to_json(line)


def evaluated(
    epoch: float,
    totals: Totals,
    watch: MergeWatch,
    shared_rows: tuple[tuple[int, ...], ...],
    events: Sequence[Event],
    seconds: float,
) -> MonitorRecord:
    """The record of an evaluation that the watch, if there are tables, has just observed."""
    small = totals.evidence is not None
    record = MonitorRecord(
        epoch=epoch,
        report=totals.report,
        separation=watch.separation if small else None,
        standings=watch.standings if small else None,
        recalls=totals.recalls,
        shared_rows=shared_rows,
        events=tuple(events),
        scalars={},
        seconds=seconds,
    )
    record.scalars.update(_scalars(record))
    return record


def _scalars(record: MonitorRecord) -> dict[str, float]:
    report, separation = record.report, record.separation
    values = report.scalars()
    del values["nc1_tolerance"]  # a detail of the numerics, not a curve to look at
    values |= {
        "num_lost": float(len(record.lost)),
        "num_dead": float(len(record.dead)),
        "num_gone": float(len(record.gone)),
        "least_recall": float(min(record.recalls[report.class_counts > 0], default=math.nan)),
    }
    if separation is not None:
        nearest = separation.nearest_separation
        values |= {
            "num_distinct": float(separation.num_distinct),
            "num_merged": float(len(separation.merged_classes)),
            "num_vanished": float(len(separation.vanished_classes)),
            "least_separation": float(min(nearest[nearest == nearest], default=math.nan)),
            "least_norm": float(min(separation.relative_norms[report.class_counts > 0], default=math.nan)),
            "largest_norm": separation.scale,
        }
    return {f"nc/{name}": value for name, value in values.items() if math.isfinite(value)}
