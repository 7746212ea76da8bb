"""What theory predicts for a trained network's counts and penalties, and how far the network is from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collapsar.advise.outlook import edges
from collapsar.core.known import KnownTraining
from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.records import to_json
from collapsar.diagnose.agreement import EffectivePenalties
from collapsar.diagnose.fit import Fit, fit_to_theory
from collapsar.diagnose.measurement import Measurement
from collapsar.diagnose.model_choice import Choice, NormalizedFit
from collapsar.metrics.separation import ClassState, class_separation
from collapsar.solver import solve
from collapsar.theory import thresholds

__all__ = ["Prediction", "by_rows", "compared", "model_record", "predicted", "predicted_of_normalized"]

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What theory predicts for these counts and penalties.

    Attributes:
        features: the feature model.
        lambda_z: the price of the predictions, ``Problem.lambda_z``; so are the thresholds, also of normalised features
            (sqrt(lambda_w) / norm), whose own unit ``NormalizedFit.thresholds`` has.
        lambda_b: the price of the bias.
        source: whether the price is that of the training as known, or was read from the network.
        states: state of each class at the exact optimum.
        seen: the states that the measuring rule finds in the optimum's Z: what a perfect network would show.
        groups: the classes that the same rule finds merged with one another.
        merge: shape (K,), lambda_z from which the class merges; NaN where it does not.
        vanish: shape (K,), lambda_z from which it vanishes.
        complete: lambda_z from which nothing is left; NaN where something always is.
        edge: shape (K,), lambda_z from which the class has no predictions of its own: the first of the two, or for one
            alone in its size (signed features), which has no transition, where it loses its own direction.
        Z: shape (K, K), the optimum's mean predictions.
        b: shape (K,).
        gap: relative duality gap of the optimum.
    """

    features: FeatureModel
    lambda_z: float
    lambda_b: float
    source: Literal["as trained", "effective"]
    states: tuple[ClassState, ...]
    seen: tuple[ClassState, ...]
    groups: tuple[tuple[int, ...], ...]
    merge: Vector
    vanish: Vector
    complete: float
    edge: Vector
    Z: Matrix
    b: Vector
    gap: float


def by_rows(m: Measurement, known: KnownTraining) -> Measurement:
    """The same network in units in which its rows cost the same: w_k / delta_k, with delta_k scales of the loss.

    Holds for a bias that is free or absent; with a penalised one, and with one penalty for all rows, it is ``m``.
    """
    scales = known.row_scales
    if scales is None or (m.bias is not None and known.lambda_b):
        return m
    own = np.ones_like(scales) if m.loss_form.scales is None else m.loss_form.scales
    return replace(
        m,
        weight=m.weight / scales[:, None],
        bias=None if m.bias is None else m.bias / scales,
        weight_gradient=m.weight_gradient * scales[:, None],
        bias_gradient=m.bias_gradient * scales,
        loss_form=replace(m.loss_form, scales=own * scales),
    )


def _problem(m: Measurement, lambda_z: float, lambda_b: float, features: FeatureModel) -> Problem:
    return Problem(m.class_counts, lambda_z, lambda_b, m.loss_form, features=features)


def _bias_price(m: Measurement, known: KnownTraining, effective: EffectivePenalties | None) -> float:
    if m.bias is None:
        return math.inf
    if known.lambda_b is not None:
        return known.lambda_b
    return effective.lambda_b if effective is not None else 0.0


def compared(
    m: Measurement, known: KnownTraining, effective: EffectivePenalties | None
) -> tuple[Fit | None, Literal["effective", "as trained", ""]]:
    """Distances at the effective penalties; at those of the training where nothing is alive to read them from."""
    lambda_b = _bias_price(m, known, effective)
    if effective is not None and 0 < effective.lambda_z < math.inf:
        problem = _problem(m, effective.lambda_z, lambda_b, "signed")
        grams: dict[str, Any] = {"weight": m.weight, "class_means": m.class_means}
        return fit_to_theory(problem, m.Z, m.b, **grams, split=(effective.lambda_w, effective.lambda_h)), "effective"
    if known.lambda_z is not None:
        return fit_to_theory(_problem(m, known.lambda_z, lambda_b, "signed"), m.Z, m.b), "as trained"
    return None, ""


def predicted(
    m: Measurement, known: KnownTraining, effective: EffectivePenalties | None, features: FeatureModel
) -> Prediction | None:
    """Theory at the penalties of the training where they are known, else at the effective ones."""
    lambda_z = known.lambda_z
    source: Literal["as trained", "effective"] = "as trained"
    if lambda_z is None:
        if effective is None or not 0 < effective.lambda_z < math.inf:
            return None
        lambda_z, source = effective.lambda_z, "effective"
    problem = _problem(m, lambda_z, _bias_price(m, known, effective), features)
    solution = solve(problem, 1e-7, throw=False)
    t = thresholds(problem)
    rows = known.row_scales if m.loss_form != known.loss else None  # as ``by_rows`` has it
    Z, b = (solution.Z, solution.b) if rows is None else (rows[:, None] * solution.Z, rows * solution.b)
    edge = np.fmin(t.merge, t.vanish)
    share = m.class_counts / m.class_counts.sum()
    own = Z - (Z @ share)[:, None] if features == "signed" else Z  # as ``class_evidence`` sees it
    separation = class_separation(own)
    return Prediction(
        features=features,
        lambda_z=lambda_z,
        lambda_b=problem.lambda_b,
        source=source,
        states=solution.class_states,
        seen=separation.states,
        groups=separation.groups,
        merge=t.merge,
        vanish=t.vanish,
        complete=t.complete,
        edge=np.fmin(edge, edges(problem, solution.b)) if features == "signed" else edge,
        Z=Z,
        b=b,
        gap=solution.certificate.relative_gap,
    )


def predicted_of_normalized(found: NormalizedFit, known: KnownTraining) -> Prediction | None:
    """Theory of normalised features, its thresholds in the unit of ``Problem.lambda_z``."""
    solution, t = found.solution, found.thresholds
    problem = solution.problem
    how = problem.normalization
    if how is None or t is None:
        return None
    own = np.asarray(how.lambda_w) * np.ones(problem.num_classes)
    merge, vanish = (problem.lambda_z * np.sqrt(level / own) for level in (t.merge, t.vanish))
    separation = class_separation(solution.Z)
    return Prediction(
        features=problem.features,
        lambda_z=problem.lambda_z,
        lambda_b=problem.lambda_b,
        source="as trained" if known.one_lambda_w else "effective",
        states=solution.class_states,
        seen=separation.states,
        groups=separation.groups,
        merge=merge,
        vanish=vanish,
        complete=float(problem.lambda_z * np.sqrt(t.complete / how.level)) if np.isfinite(t.complete) else math.nan,
        edge=np.fmin(merge, vanish),
        Z=solution.Z,
        b=solution.b,
        gap=solution.certificate.relative_gap,
    )


def model_record(choice: Choice, fit: NormalizedFit | None) -> dict[str, Any]:
    """The model chosen, and how far the network is from it, as JSON-able values."""
    record: dict[str, Any] = {
        "name": choice.name,
        "sentence": choice.sentence,
        "problem": None if choice.problem is None else choice.problem.to_dict(),
        "distance": None,
    }
    if fit is not None:
        record |= {"distance": to_json(fit.distance), "away": to_json(fit.away), "norm": to_json(fit.norm)}
        record["gap"] = to_json(fit.solution.certificate.relative_gap)
        record["merge"] = None if fit.thresholds is None else to_json(fit.thresholds.merge)
    return record
