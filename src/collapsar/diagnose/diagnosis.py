"""A trained network diagnosed: which classes collapsed, what theory says of them, and how far to trust that.

Example:
    >>> from collapsar.core.problem import Problem
    >>> from collapsar.diagnose.measurement import measure
    >>> from collapsar.solver import solve
    >>> s = solve(Problem("50x2,10x2", 0.02, 0.02, features="nonnegative"))
    >>> W, H, b = s.factors(32, lambda_w=0.2)
    >>> labels = np.repeat(np.arange(4), s.problem.class_counts)
    >>> d = diagnose_measurement(measure(H.T[labels], labels, W.T, b), KnownTraining(lambda_w=0.2, lambda_b=0.02))
    >>> d.headline
    'All 4 classes are separated.'
    >>> round(d.effective.lambda_z, 6), d.fit.follows, d.at_rest
    (0.02, 'nonnegative', True)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from collapsar.core.files import write_atomically
from collapsar.core.known import KnownTraining, rests_by_rows
from collapsar.core.problem import FeatureModel
from collapsar.core.records import to_json
from collapsar.diagnose import words
from collapsar.diagnose.agreement import (
    AT_REST,
    UNREAD,
    EffectivePenalties,
    HeadForces,
    effective_penalties,
    head_forces,
)
from collapsar.diagnose.fit import Fit
from collapsar.diagnose.frozen import FrozenHead
from collapsar.diagnose.gauge import without_offset
from collapsar.diagnose.measurement import MAX_TABLE, Measurement
from collapsar.diagnose.model_choice import Choice, NormalizedFit, choose_model, fit_normalized
from collapsar.diagnose.prediction import (
    Prediction,
    by_rows,
    compared,
    model_record,
    predicted,
    predicted_of_normalized,
)
from collapsar.metrics.evidence import Standings, mean_standings
from collapsar.metrics.separation import ClassSeparation
from collapsar.metrics.shared_rows import shared_rows

__all__ = ["Diagnosis", "Prediction", "diagnose_measurement"]


# A record keeps the K x K tables of scores up to this many classes.
_TABLE_CLASSES = 200
# The optimum for more different class counts than this takes long: 5 s at 600.
_MOST_CLUSTERS = 600
# The same beside more classes than a table is made for: the nonnegative optimum goes from seconds to minutes above.
_MOST_CLUSTERS_OF_MANY = 200
# Below this mean loss, in nats, what pulls at the head is rounding.
_SATURATED = 1e-9
_SATURATED_WORDS = (
    "The softmax is saturated (mean loss {:.2g} nats): the loss no longer pulls at the head, so no penalty can be read "
    "from it. Give lambda_w and lambda_h."
)
_NO_PENALTY = (
    "No penalty is known, and none can be read from this network: nothing is predicted. Give lambda_w and lambda_h."
)
# Rows are means of penalties that differ within a row: at a correlation of .99 entry by entry a seventh is left over.
_ROWS_AT_REST = 0.5
_READINGS = ("from_predictions", "ratio", "spread", "agree")


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The result: plain values that a page, a test or a gate can read; ``to_dict`` makes JSON of it.

    Attributes:
        headline: what happened to the classes, in one sentence.
        words: all that was found, a sentence or two per finding.
        source: where the network came from.
        class_names: shape (K,).
        measurement: what was measured.
        separation: which classes are separated, merged, vanished or unseen, with the rule's thresholds.
        standings: which classes are lost, not given to their own samples, and why; which the bias alone decides right.
        shared_rows: classes whose rows of the head coincide (``metrics.shared_rows``): no features separate them.
        known: what is known of the training.
        forces: the balance of forces at the head.
        at_rest: whether the head is stationary; distances to theory mean nothing before that.
        effective: the penalties read from the network; None where nothing is alive or a class has no samples.
        model: the model of the theory that this training has, and the evidence.
        model_fit: distance to the optimum of that model where it is one of normalised features.
        frozen: where only the head is trained, its optimum on the features, and that of each mitigation.
        fit: distances to the optima of penalised features; None where they cannot be computed (a note says why).
        fit_source: which penalties ``fit`` was made at.
        prediction: what theory predicts; None as for ``fit``.
        notes: what was left out, and why.
    """

    headline: str
    words: tuple[str, ...]
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

    @property
    def collapsed(self) -> tuple[int, ...]:
        """The classes that are merged or vanished, ascending, but for those that the bias alone decides right."""
        gone = {*self.separation.merged_classes, *self.separation.vanished_classes}
        return tuple(sorted(gone - set(self.standings.carried)))

    @property
    def lost(self) -> tuple[int, ...]:
        """The classes that are not given to any of their own samples, ascending, whatever their state."""
        return tuple(c.index for c in self.standings.lost)

    @property
    def dead(self) -> tuple[int, ...]:
        """The classes with samples whose row coincides with another's, ascending, whatever their state."""
        return _with_samples(self.shared_rows, self.measurement)

    @property
    def num_collapsed(self) -> int:
        """How many classes are merged or vanished."""
        return len(self.collapsed)

    @property
    def num_gone(self) -> int:
        """How many classes are merged, vanished, lost or dead: what the gate ``--max-merged`` counts."""
        return len({*self.collapsed, *self.lost, *self.dead})

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON-able values: NaN is None, infinity "inf", Z is None beyond 200 classes."""
        m, known = self.measurement, self.known
        forces = to_json(self.forces)
        if m.bias is None:
            forces["fitted_b"] = "inf"
        prediction = None if self.prediction is None else to_json(self.prediction)
        table = m.num_classes <= _TABLE_CLASSES
        if prediction is not None and not table:
            prediction["Z"] = None
        return {
            "kind": "diagnosis",
            "headline": self.headline,
            "words": list(self.words),
            "source": self.source,
            "class_names": list(self.class_names),
            "class_counts": m.class_counts.tolist(),
            "accuracies": to_json(m.accuracies),
            "loss": to_json(m.loss),
            "features_nonnegative": m.nonnegative,
            "within_share": to_json(m.within_share),
            "Z": to_json(m.Z) if table else None,
            "b": to_json(m.b),
            "separation": to_json(self.separation),
            "standings": to_json(self.standings),
            "shared_rows": [list(group) for group in self.shared_rows],
            "dead": list(self.dead),
            "num_dead": len(self.dead),
            "num_collapsed": self.num_collapsed,
            "num_lost": len(self.lost),
            "num_gone": self.num_gone,
            "metrics": [
                {"name": name, "value": to_json(m.metrics[name]), "meaning": meaning}
                for name, meaning in words.METRICS.items()
                if name in m.metrics and not math.isnan(m.metrics[name])
            ],
            "known": {**known.to_dict(), "lambda_z": known.lambda_z, "cautions": list(known.cautions)},
            "forces": forces,
            "at_rest": self.at_rest,
            "effective": None if self.effective is None else {
                **to_json(self.effective),
                **{name: to_json(getattr(self.effective, name)) for name in _READINGS},
            },
            "model": model_record(self.model, self.model_fit),
            "frozen": None if self.frozen is None else {**to_json(self.frozen), "excess": to_json(self.frozen.excess)},
            "fit": None if self.fit is None else {**to_json(self.fit), "source": self.fit_source},
            "prediction": prediction,
            "notes": list(self.notes),
        }  # fmt: skip

    def to_json(self) -> str:
        """The record as one line of standard JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write ``to_json`` to a file, all of it or nothing.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        return write_atomically(path, self.to_json() + "\n")


def diagnose_measurement(
    m: Measurement,
    known: KnownTraining | None = None,
    class_names: Sequence[str] | None = None,
    source: str = "arrays",
    frozen: tuple[FrozenHead | None, str] = (None, ""),
) -> Diagnosis:
    """Diagnose a measured network.

    Args:
        m: the network over its training samples.
        known: what is known of its training; its loss must be the one that ``m`` was measured with.
        class_names: K names; the class numbers by default.
        source: where it came from, for the reader.
        frozen: where only the head is trained, its optimum on the features, or why there is none (``frozen_of``).

    Raises:
        ValueError: the names are not K, or the loss was another.
    """
    known = KnownTraining(loss=m.loss_form) if known is None else known
    if known.loss != m.loss_form:
        raise ValueError("`known` must name the loss that the network was measured with; measure with loss=known.loss")
    names = _names(class_names, m.num_classes)
    found = m.separation
    standings = mean_standings(found, m.predictions, m.b, m.accuracies, m.taken_for)
    moved = without_offset(m, known.lambda_w if known.one_lambda_w else None)
    rowed = by_rows(moved, known)
    features: FeatureModel = known.features or ("nonnegative" if m.nonnegative else "signed")
    forces = head_forces(moved, known.lambda_w if known.one_lambda_w else None, known.lambda_b) if m.linear else UNREAD
    alive = any(state in ("separated", "merged") for state in found.states)
    held = known.one_lambda_w != 0  # a head without weight decay grows for good: it shows no penalty, and never rests
    at_rest = held and m.linear and _rests(moved, forces, known, alive=alive)
    notes = _notes(m, alive=alive, lost=bool(found.merged_classes or found.vanished_classes))
    effective = None
    saturated = not known.one_lambda_w and m.loss < _SATURATED
    if saturated and held and m.linear:
        notes.append(_SATURATED_WORDS.format(m.loss))
    if alive and held and not m.unseen and m.linear and not saturated:
        effective = effective_penalties(rowed, features, known.one_lambda_w or None, known.lambda_b, found)
    solvable = not m.unseen and len(np.unique(m.class_counts)) <= _most_clusters(m)
    compares = solvable and held and m.linear and known.body != "frozen"
    fit, fit_source = compared(rowed, known, effective) if compares else (None, "")
    choice = choose_model(m, known)
    model_fit, why = fit_normalized(m, choice)
    notes += [reason for reason in (why, frozen[1]) if reason]
    prediction = None if model_fit is None else predicted_of_normalized(model_fit, known)
    if choice.name == "penalty" and solvable:
        prediction = predicted(rowed, known, effective, features)
    if choice.name == "penalty" and solvable and prediction is None and not saturated:
        notes.append(_NO_PENALTY)
    rows = shared_rows(m.weight) if m.linear else ()
    say = words.Says(names, found, standings, m, at_rest, _with_samples(rows, m), rows)
    return Diagnosis(
        headline=words.headline(say),
        words=tuple(words.findings(say, known, forces, effective, fit, prediction, (choice, model_fit, frozen[0]))),
        source=source,
        class_names=names,
        measurement=m,
        separation=found,
        standings=standings,
        shared_rows=rows,
        known=known,
        forces=forces,
        at_rest=at_rest,
        effective=effective,
        model=choice,
        model_fit=model_fit,
        frozen=frozen[0],
        fit=fit,
        fit_source=fit_source,
        prediction=prediction,
        notes=tuple(notes),
    )


def _with_samples(groups: Sequence[Sequence[int]], m: Measurement) -> tuple[int, ...]:
    return tuple(sorted(k for group in groups for k in group if m.class_counts[k] > 0))


def _most_clusters(m: Measurement) -> int:
    return _MOST_CLUSTERS if m.small else _MOST_CLUSTERS_OF_MANY


def _rests(m: Measurement, forces: HeadForces, known: KnownTraining, *, alive: bool) -> bool:
    """Whether the head is stationary; where nothing is alive, whether the loss has stopped pulling it outwards."""
    if alive:
        return forces.relative_gradient < (_ROWS_AT_REST if rests_by_rows(known) else AT_REST)
    # a head that sinks to zero never balances relative to itself: it rests once the penalty outweighs the loss
    hold = (known.one_lambda_w or 0.0) * float(np.linalg.norm(m.weight))
    return forces.relative_gradient < AT_REST or float(np.linalg.norm(m.weight_gradient)) <= hold


def _notes(m: Measurement, *, alive: bool, lost: bool) -> list[str]:
    notes = []
    if not m.linear:
        notes.append(
            "The head does not compute W h + b from the weight it holds (cosine, scale, adapter, several heads): "
            "states and recall are those of its logits; geometry, penalties and whether it is at rest are not read."
        )
    if m.unseen:
        notes.append(
            f"Classes without samples: {len(m.unseen)}. Theory, which speaks of classes with samples, is left out."
        )
    if len(m.unseen) > m.num_classes / 2:
        notes.append(
            f"Caution: the head has {m.num_classes} outputs, but samples of only {m.num_classes - len(m.unseen)} of "
            "these classes were seen: is it a hidden layer?"
        )
    if not (alive or m.unseen):
        notes.append("All classes have vanished: the features' penalty cannot be read from the network.")
    if len(np.unique(m.class_counts)) > _most_clusters(m):
        notes.append(
            f"More than {_most_clusters(m)} different class sizes: the optimum would take minutes and is left out."
        )
    if m.metrics and lost:
        notes.append(
            "NC1 and CDNV divide by differences between class means; for merged or vanished classes these are "
            "noise, and so are the values."
        )
    if not m.small:
        notes.append(
            f"More than {MAX_TABLE} classes: what needs a table of all pairs is left out (CDNV, angles between class "
            "means, Gram matrices, the cost above the optimum, lambda_z from all predictions at once)."
        )
    if not m.metrics:
        notes.append("The metrics of neural collapse need torch: pip install 'collapsar[train]'.")
    return notes


def _names(class_names: Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    if class_names is None:
        return tuple(str(k) for k in range(num_classes))
    if len(class_names) != num_classes:
        raise ValueError(f"`class_names` must name each of the {num_classes} classes, got {len(class_names)} names")
    return tuple(str(name) for name in class_names)
