"""What a diagnosis finds: one record of a trained network compared with theory, and the meaning of its metrics."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from collapsar.core.files import write_atomically
from collapsar.core.known import KnownTraining
from collapsar.core.record_types import DiagnosisRecord, FitRecord, KnownRecord
from collapsar.core.records import to_json
from collapsar.core.sentences import listed
from collapsar.diagnose import words
from collapsar.diagnose.agreement import EffectivePenalties, HeadForces
from collapsar.diagnose.class_words import headline
from collapsar.diagnose.fit import Fit
from collapsar.diagnose.frozen import FrozenHead
from collapsar.diagnose.measurement import Measurement
from collapsar.diagnose.model_choice import Choice, NormalizedFit
from collapsar.diagnose.prediction import Prediction, model_record
from collapsar.metrics.evidence import Standings, collapsed_classes, dead_classes
from collapsar.metrics.separation import ClassSeparation

# A record keeps the K x K tables of scores up to this many classes.
_TABLE_CLASSES = 200
_MOST_NAMES = 8
_READINGS = ("from_predictions", "ratio", "spread", "agree")

METRICS: Mapping[str, str] = {
    "nc1_uniform": "Spread of the features inside classes relative to the spread of the class means, each class "
    "counted once. 0: every class is one point.",
    "nc1_weighted": "The same with every sample counted once, so that large classes dominate.",
    "nc1_trace_ratio": "Total spread inside classes over total spread between class means. Large classes dominate.",
    "cdnv": "Spread inside two classes relative to the distance between them, averaged over all pairs. The average "
    "hides a few merged pairs.",
    "cdnv_max": "The same for the worst pair: large when two classes overlap.",
    "cdnv_undefined": "Pairs of classes that are the same point: 0/0, left out of the two values above.",
    "nc2_equinorm": "How unequal the lengths of the centred class means are. 0 for balanced classes at the optimum; "
    "under imbalance the optimum itself is unequal.",
    "nc2_equiangular": "How unequal the angles between class means are. 0 for balanced classes at the optimum.",
    "nc2_etf": "Distance of the class means' geometry from the simplex, the optimum of balanced classes. Under "
    "imbalance that is not the target: see the distance to theory.",
    "nc3_self_duality": "Difference between the directions of the head and of the class means. 0 for balanced classes "
    "at the optimum, at most 2.",
    "nc0_relative": "How far the head's rows are from summing to zero, which they do at every optimum.",
    "nc4_agreement": "Share of samples on which the head and the nearest class mean agree. 1 at collapse.",
}


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """The result: plain values that a page, a test or a gate can read; ``to_dict`` converts it to JSON.

    When printed, or as the last line of a notebook cell, it shows the findings, one per line.

    Attributes:
        source: where the network came from.
        class_names: shape (K,).
        measurement: what was measured.
        separation: which classes are separated, merged, vanished or unseen, with the rule's thresholds.
        standings: which classes are lost (no sample recognised) and why; which the bias alone classifies correctly.
        shared_rows: classes whose rows of the head coincide (``metrics.shared_rows``): no features separate them.
        known: what is known about the training.
        forces: the balance of forces at the head.
        at_rest: whether the head is stationary; distances to theory mean nothing before that.
        effective: the penalties read from the network; None if nothing is alive or a class has no samples.
        model: the model of the theory that describes this training, and the evidence.
        model_fit: distance to the optimum of that model, if it is one of normalised features.
        frozen: if only the head is trained, its optimum on the features, and that of each mitigation.
        fit: distances to the optima of penalised features; None if they cannot be computed (a note says why).
        fit_source: the penalties that ``fit`` was computed at.
        prediction: what theory predicts; None as for ``fit``.
        notes: what was left out, and why.
    """

    source: str
    class_names: tuple[str, ...]
    measurement: Measurement
    separation: ClassSeparation
    standings: Standings
    shared_rows: tuple[tuple[int, ...], ...]
    known: KnownTraining
    forces: HeadForces
    at_rest: bool
    effective: EffectivePenalties | None
    model: Choice
    model_fit: NormalizedFit | None
    frozen: FrozenHead | None
    fit: Fit | None
    fit_source: Literal["effective", "as trained", ""]
    prediction: Prediction | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join((self.headline, *self.words))

    @cached_property
    def headline(self) -> str:
        """What happened to the classes, in one sentence."""
        return headline(self)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """All findings, a sentence or two each."""
        return tuple(words.findings(self))

    @cached_property
    def reason(self) -> str:
        """Those of ``words`` that say what theory predicts, and at which penalty; empty if it predicts nothing."""
        return " ".join(words.reason(self))

    @property
    def collapsed(self) -> tuple[int, ...]:
        """The merged and vanished classes, ascending, except those that the bias alone classifies correctly."""
        return collapsed_classes(self.separation, self.standings)

    @property
    def lost(self) -> tuple[int, ...]:
        """The classes with samples of which none is recognised, ascending, whatever their state."""
        return tuple(c.index for c in self.standings.lost)

    @property
    def dead(self) -> tuple[int, ...]:
        """The classes with samples whose row coincides with another's, ascending, whatever their state."""
        return dead_classes(self.shared_rows, self.measurement.class_counts)

    @property
    def num_collapsed(self) -> int:
        """How many classes are merged or vanished."""
        return len(self.collapsed)

    @property
    def num_gone(self) -> int:
        """How many classes are merged, vanished, lost or dead: what the gate ``--max-merged`` counts."""
        return len({*self.collapsed, *self.lost, *self.dead})

    def named(self, classes: Iterable[int]) -> str:
        """Names of classes in a sentence, the first eight of many."""
        return listed((self.class_names[k] for k in classes), _MOST_NAMES, last=" and ")

    def to_dict(self) -> DiagnosisRecord:
        """The diagnosis as JSON-able values: NaN is None, infinity "inf", Z is None beyond 200 classes."""
        m, known, prediction = self.measurement, self.known, self.prediction
        table = m.num_classes <= _TABLE_CLASSES
        if prediction is not None and not table:
            prediction = replace(prediction, Z=None)
        record: DiagnosisRecord = {
            "kind": "diagnosis",
            "headline": self.headline,
            "words": list(self.words),
            "reason": self.reason,
            "source": self.source,
            "class_names": list(self.class_names),
            "class_counts": m.class_counts.tolist(),
            "accuracies": m.accuracies.tolist(),
            "loss": m.loss,
            "features_nonnegative": m.nonnegative,
            "within_share": m.within_share,
            "Z": m.Z if table else None,
            "b": m.b.tolist(),
            "separation": to_json(self.separation),
            "standings": to_json(self.standings),
            "shared_rows": to_json(self.shared_rows),
            "dead": list(self.dead),
            "num_dead": len(self.dead),
            "num_collapsed": self.num_collapsed,
            "num_lost": len(self.lost),
            "num_gone": self.num_gone,
            "metrics": [
                {"name": name, "value": m.metrics[name], "meaning": meaning}
                for name, meaning in METRICS.items()
                if name in m.metrics and not math.isnan(m.metrics[name])
            ],
            "known": KnownRecord(**known.to_dict(), lambda_z=known.lambda_z),
            "forces": to_json(self.forces if m.bias is not None else replace(self.forces, fitted_b=math.inf)),
            "at_rest": self.at_rest,
            "effective": _with(self.effective, *_READINGS),
            "model": model_record(self.model, self.model_fit),
            "frozen": _with(self.frozen, "excess"),
            "fit": None if self.fit is None else FitRecord(**to_json(self.fit), source=self.fit_source),
            "prediction": to_json(prediction),
            "notes": list(self.notes),
        }
        return to_json(record)

    def to_json(self) -> str:
        """The record as one line of standard JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``to_json`` to a file, all of it or nothing.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        return write_atomically(path, self.to_json() + "\n")


def _with(value: Any, *properties: str) -> Any:
    """The fields of a dataclass and some of its properties; None stays."""
    return None if value is None else {**to_json(value), **{name: getattr(value, name) for name in properties}}
