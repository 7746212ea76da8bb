"""What pages show of a diagnosed network beside the diagnosis: its class means in few axes, and advice."""

from __future__ import annotations

import numpy as np

import collapsar as cs
from collapsar.advise.sources import advise_diagnosis
from collapsar.core.record_types import AdviceRecord, DiagnosisRecord, GeometryRecord
from collapsar.diagnose.record import Diagnosis

# Mitigations are found by solving again and again: with up to this many different class sizes that takes seconds.
_MOST_SIZES = 40


def advice_record(diagnosis: DiagnosisRecord) -> AdviceRecord | None:
    """Advice if classes have merged, vanished or been lost and penalties are known; otherwise None."""
    if diagnosis.get("num_collapsed", 0) + diagnosis.get("num_lost", 0) == 0 or diagnosis["prediction"] is None:
        return None
    if len(set(diagnosis["class_counts"])) > _MOST_SIZES:
        return None
    return advise_diagnosis(diagnosis)


def geometry_record(found: Diagnosis) -> GeometryRecord:
    """Class means of the network and of the optimum at its penalties, each in its own axes: (K, r) coordinates."""
    return {
        "network": coordinates(found.measurement.class_means @ found.measurement.class_means.T),
        "theory": _optimal_means(found),
    }


def _optimal_means(found: Diagnosis) -> list[list[float]] | None:
    theory = found.prediction
    if theory is None:
        return None
    if found.model_fit is not None:  # in units of its own: the length of its features is given
        return coordinates(found.model_fit.solution.feature_gram())
    gram = cs.solve(theory.problem, 1e-7, throw=False).feature_gram()
    known, effective = found.known, found.effective
    split = (known.one_lambda_w, known.lambda_h)
    if theory.source == "effective" and effective is not None:
        split = (effective.lambda_w, effective.lambda_h)
    assert split[0] is not None  # as lambda_z is known
    assert split[1] is not None
    return coordinates(gram * np.sqrt(split[0] / split[1]))


def coordinates(gram: np.ndarray) -> list[list[float]]:
    """Points with these inner products, in as few axes as they need; rows of NaN where the products are undefined."""
    seen = np.isfinite(np.diag(gram))
    values, vectors = np.linalg.eigh(gram[np.ix_(seen, seen)])
    kept = values > 1e-9 * max(float(values.max(initial=0.0)), 1e-300)
    places = np.full((len(gram), max(int(kept.sum()), 1)), np.nan)
    places[seen] = 0.0
    places[np.ix_(seen, np.arange(int(kept.sum())))] = (vectors[:, kept] * np.sqrt(values[kept]))[:, ::-1]
    return places.tolist()
