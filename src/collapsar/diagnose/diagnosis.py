"""The diagnosis of a trained network: which classes collapsed, what theory says about them, and how far to trust that.

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

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from collapsar.core.known import KnownTraining, rests_by_rows
from collapsar.core.sentences import names_of
from collapsar.diagnose.agreement import AT_REST, UNREAD, HeadForces, effective_penalties, head_forces
from collapsar.diagnose.fit import near_optimum
from collapsar.diagnose.frozen import FrozenHead
from collapsar.diagnose.gauge import without_offset
from collapsar.diagnose.measurement import MAX_TABLE, Measurement
from collapsar.diagnose.model_choice import choose_model, fit_normalized
from collapsar.diagnose.prediction import by_rows, compared, predicted, prediction_of, priced
from collapsar.diagnose.record import Diagnosis
from collapsar.metrics.evidence import class_standings
from collapsar.metrics.shared_rows import shared_rows

# With more different class counts than this the optimum takes too long: 5 s at 600.
_MOST_CLUSTERS = 600
# The same with too many classes for a K x K table: above this the nonnegative optimum takes minutes, not seconds.
_MOST_CLUSTERS_OF_MANY = 200
# Below this mean loss, in nats, the pull on the head is rounding.
_SATURATED = 1e-9
_SATURATED_WORDS = (
    "The softmax is saturated (mean loss {:.2g} nats): the loss no longer pulls on the head, so no penalty can be read "
    "from it. Give lambda_w and lambda_h."
)
_NO_PENALTY = (
    "No penalty is known, and none can be read from this network: nothing is predicted. Give lambda_w and lambda_h."
)
# A row's penalty is a mean over entries that differ: at a correlation of .99 over all entries a seventh is left over.
_ROWS_AT_REST = 0.5


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
        known: what is known about its training; its loss must be the one that ``m`` was measured with.
        class_names: K names; the class numbers by default.
        source: where it came from, for the user.
        frozen: if only the head is trained, its optimum on the features, or why there is none (``frozen_of``).

    Raises:
        ValueError: there are not K names, or the loss was another.
    """
    known = KnownTraining(loss=m.loss_form) if known is None else known
    if known.loss != m.loss_form:
        raise ValueError("`known` must have the loss that the network was measured with; measure with loss=known.loss")
    m = replace(m, exposure=known.exposure)
    names, separation = names_of(class_names, m.num_classes), m.separation
    alive = any(state in ("separated", "merged") for state in separation.states)
    moved = without_offset(m, known.priced_w)
    readable = m.linear and not known.frozen_head
    forces = head_forces(moved, known.priced_w, known.lambda_b) if readable else UNREAD
    held = known.one_lambda_w != 0  # without weight decay a head grows forever: it shows no penalty and never rests
    saturated = known.priced_w is None and m.loss < _SATURATED
    rowed, features, effective = by_rows(moved, known), known.features or m.features, None
    if alive and held and not m.unseen and readable and not saturated:
        effective = effective_penalties(rowed, features, known.one_lambda_w or None, known.lambda_b, separation)
    solvable, optimum = (
        readable and not m.unseen and len(np.unique(m.class_counts)) <= _most_clusters(m),
        cache(near_optimum),
    )
    problems = priced(rowed, known, effective, features) if solvable else {}
    fit, fit_source, prediction, model = None, "", None, choose_model(m, known)
    if problems and held and known.body != "frozen":
        fit, fit_source = compared(rowed, problems, effective, optimum)
    model_fit, why = fit_normalized(m, model)
    if model_fit is not None and model_fit.thresholds is not None:
        origin = "as trained" if known.one_lambda_w else "effective"
        prediction = prediction_of(model_fit.solution, model_fit.thresholds, origin)
    if model.name == "penalty" and problems:
        prediction = predicted(rowed, known, problems, optimum)
    notes = _notes(m, alive=alive, lost=bool(separation.merged_classes or separation.vanished_classes))
    notes += [_SATURATED_WORDS.format(m.loss)] if saturated and held and readable else []
    notes += [reason for reason in (why, frozen[1]) if reason]
    if model.name == "penalty" and solvable and not problems and not saturated:
        notes.append(_NO_PENALTY)
    return Diagnosis(
        source=source,
        class_names=names,
        measurement=m,
        separation=separation,
        standings=class_standings(separation, m.predictions, m.accuracies, m.taken_for, bias=m.b),
        shared_rows=shared_rows(m.weight) if m.linear else (),
        known=known,
        forces=forces,
        at_rest=held and readable and _rests(moved, forces, known, alive=alive),
        effective=effective,
        model=model,
        model_fit=model_fit,
        frozen=frozen[0],
        fit=fit,
        fit_source=fit_source,
        prediction=prediction,
        notes=tuple(notes),
    )


def _most_clusters(m: Measurement) -> int:
    return _MOST_CLUSTERS if m.small else _MOST_CLUSTERS_OF_MANY


def _rests(m: Measurement, forces: HeadForces, known: KnownTraining, *, alive: bool) -> bool:
    """Whether the head is stationary; if nothing is alive, whether the loss has stopped pulling it outwards."""
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
            "states and recall are those of its logits; geometry, penalties and whether it is at rest are unknown."
        )
    if m.unseen:
        notes.append(
            f"Classes without samples: {len(m.unseen)}. Theory, which needs samples of every class, is left out."
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
            "noise, and so are the metrics."
        )
    if not m.small:
        notes.append(
            f"More than {MAX_TABLE} classes: what needs a table of all pairs is left out (CDNV, angles between class "
            "means, Gram matrices, the cost above the optimum, lambda_z from all predictions at once)."
        )
    if not m.metrics:
        notes.append("The metrics of neural collapse need torch: pip install 'collapsar[train]'.")
    return notes
