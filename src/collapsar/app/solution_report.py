"""The record behind the page of an optimum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import collapsar as cs
from collapsar.app.network_records import coordinates
from collapsar.app.theory_records import solution_groups, solution_record
from collapsar.core.normalization import own_penalties
from collapsar.core.record_types import DirectionsRecord, OptimumRecord, PathRecord
from collapsar.core.records import to_json
from collapsar.core.sentences import listed, problem_words
from collapsar.core.thresholds import Thresholds
from collapsar.core.types import Matrix
from collapsar.diagnose.prediction import Prediction, prediction_of
from collapsar.diagnose.words import first_lost

_TABLE_CLASSES = 200  # K x K tables up to this many classes, as in the record of a diagnosis
# The path: more sizes of classes take minutes; this many points draw smooth lines, from where all classes are well
# separated to beyond the last threshold.
_MOST_SIZES, _POINTS, _BELOW, _ABOVE = 16, 33, 1 / 8, 2.0
_PATH_TOL = 1e-6
_ZERO = 1e-4  # of the longest: a length is the root of scores, of which the solver's tolerance leaves some 1e-10


def solution_report(s: cs.Solution, name: str = "optimum", names: Sequence[str] | None = None) -> OptimumRecord:
    """The record behind the page of an optimum, with penalised or normalised features.

    Args:
        s: the optimum.
        name: for the user.
        names: of the classes; their numbers by default.
    """
    problem, plain = s.problem, solution_record(s, names)
    sides = {"heads": s.classifier_gram(), "features": s.feature_gram()}
    table = problem.num_classes <= _TABLE_CLASSES
    theory = cs.thresholds(problem)
    prediction = prediction_of(s, theory)
    record: OptimumRecord = {
        **plain,
        "groups": solution_groups(s),
        "name": name,
        "class_counts": problem.class_counts.tolist(),
        "setting": problem_words(problem),
        "Z": plain["Z"] if table else None,
        "prediction": to_json(prediction),
        "reason": _reason(s, prediction, plain["class_names"]),
        "norm": getattr(s, "norm", None),
        "heads": _directions(sides["heads"], table),
        "features": _directions(sides["features"], table),
        "geometry": {side: coordinates(gram) for side, gram in sides.items()} if table else None,
        "path": _path(s, theory),
    }
    return to_json(record)


def _reason(s: cs.Solution, prediction: Prediction, names: Sequence[str]) -> str:
    """The first threshold beside the penalty."""
    scale = own_penalties(s.problem) / prediction.price
    if first := first_lost(
        prediction, lambda some: listed((names[k] for k in some), 8, last=" and "), "optimum", scale
    ):
        return first
    if np.any(s.quotient.sizes == 1):
        return (
            "A class that shares its size with no other has no sharp threshold here: as the decay grows, its scores "
            "approach those of other classes gradually."
        )
    return f"No value of {prediction.unit} merges these classes, or lets one vanish."


def _directions(gram: Matrix, table: bool) -> DirectionsRecord:
    """Lengths and cosines of vectors with these inner products; the cosine with a vector of length 0 is NaN."""
    lengths = np.sqrt(np.maximum(np.diag(gram), 0.0))
    longest = float(lengths.max()) or 1.0
    seen = lengths > _ZERO * longest
    some = np.where(seen, lengths, np.nan)
    return {
        "lengths": np.where(seen, lengths / longest, 0.0).tolist(),
        "cosines": gram / np.outer(some, some) if table else None,
    }


def _path(s: cs.Solution, theory: Thresholds) -> PathRecord | None:
    """How far apart two classes of one cluster are, and how long their columns are, over the penalty.

    Both relative to the longest column at the same penalty; NaN for a class alone, or if nothing is left.
    """
    problem, q = s.problem, s.quotient
    here, *others = np.unique(own_penalties(problem))
    if others or q.num_clusters > _MOST_SIZES:
        return None
    levels = np.array([here, *theory.merge, *theory.vanish])
    marks = levels[np.isfinite(levels)]
    prices = np.geomspace(_BELOW * marks.min(), _ABOVE * marks.max(), _POINTS)
    members = [np.flatnonzero(q.labels == j) for j in range(q.num_clusters)]
    apart, length = [], []
    for at in cs.path(problem, prices, _PATH_TOL, throw=False):
        columns = at.column_norms[[part[0] for part in members]]
        longest = float(columns.max()) if set(at.class_states) != {"vanished"} else np.nan
        apart.append(np.where(q.sizes > 1, np.sqrt(2) * at.blocks.alpha, np.nan) / longest)
        length.append(columns / longest)
    return {
        "prices": prices.tolist(),
        "clusters": [part.tolist() for part in members],
        "apart": np.transpose(apart).tolist(),
        "length": np.transpose(length).tolist(),
    }
