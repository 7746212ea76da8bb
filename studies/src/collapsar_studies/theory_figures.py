"""Every picture of the theory, with the record behind it, from one command: ``collapsar figures theory``.

Nothing here is random but the sample of problems behind the vanish boundary, which has a seed; the records are the same
bytes every time on one machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy

import collapsar as cs
from collapsar.core.files import write_atomically
from collapsar.core.problem import FeatureModel
from collapsar.core.records import to_json
from collapsar.core.types import Record
from collapsar.theory import best_oversampling, edge_of, fractional_problem, least_oversampling, seli, two_cluster
from collapsar.theory.limits import column_cosines, etf_cosine, etf_slope, self_consistent_cosines, simplex_etf
from collapsar.theory.vanish_boundary import lowest_vanish, vanish_boundary
from collapsar_studies.remedies_compared import compare_remedies
from collapsar_studies.theory_models import landscape_record, models_record
from collapsar_studies.vanish_shape import monotonicity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS: tuple[FeatureModel, FeatureModel] = ("signed", "nonnegative")
INF = float("inf")

# The setting of the paper's Fig. 5 in this project's convention, and the penalty between merging and vanishing at which
# remedies are compared: plain training has just lost its minority there.
COUNTS, LAMBDA_B, BETWEEN = (5, 5, 500, 100), 0.02, 0.0036


# --- the paper's Figs. 5-8 against both models


@dataclass(frozen=True)
class Observed:
    """What can be read from one of the paper's figures. Collapsed somewhere in (above, up_to]; None: no lower end.

    Attributes:
        figure: its number.
        k: classes in A and B.
        varied: "lambda_z", with n = (500, 100), or "n_a", with lambda_z = .005 and n_B = 100.
        minority: the bracket in which the minority's columns become equal.
        complete: the bracket in which everything becomes zero.
    """

    figure: int
    k: tuple[int, int]
    varied: str
    minority: tuple[float | None, float]
    complete: tuple[float | None, float]


# Read off the grey maps of the figures; the minority of Figs. 5, 6 and 7 is collapsed at the first value where it could
# be, so that only an upper end is known.
OBSERVED = (
    Observed(5, (5, 5), "lambda_z", (None, 0.0033), (0.0063, 0.0069)),
    Observed(6, (3, 7), "lambda_z", (None, 0.0045), (0.0086, 0.0094)),
    Observed(7, (5, 5), "n_a", (None, 300), (1000, 1100)),
    Observed(8, (3, 7), "n_a", (400, 450), (2200, 2500)),
)


def table_record() -> Record:
    """The table of predicted against observed transitions, Figs. 5-8, both feature models."""
    rows = []
    for seen in OBSERVED:
        predicted = {model: dict(_predicted(seen, model)) for model in MODELS}
        rows.append(
            {
                "figure": seen.figure,
                "k": list(seen.k),
                "varied": seen.varied,
                "observed": {"minority": list(seen.minority), "complete": list(seen.complete)},
                **predicted,
                "inside": {
                    model: {event: _inside(predicted[model][event], getattr(seen, event)) for event in predicted[model]}
                    for model in MODELS
                },
            }
        )
    return {"lambda_b": LAMBDA_B, "n_b": 100, "lambda_z_of_figures_7_and_8": 0.005, "rows": rows}


@cache
def _predicted(seen: Observed, model: FeatureModel) -> Record:
    k_a, k_b = seen.k
    first = "merge" if model == "signed" else "vanish"
    if seen.varied == "lambda_z":
        t = cs.thresholds(cs.Problem([500] * k_a + [100] * k_b, 1.0, LAMBDA_B, features=model))
        return {"minority": float(getattr(t, first)[-1]), "complete": t.complete}

    def at(n_a: float) -> cs.Problem:
        return fractional_problem([n_a] * k_a + [100.0] * k_b, 0.005, LAMBDA_B, features=model)

    edges = {
        "minority": edge_of(at, -1, (101, 5000), first, 12),
        "complete": edge_of(at, -1, (101, 5000), "complete", 12),
    }
    return {event: edge.value for event, edge in edges.items()}


def _inside(value: float, bracket: tuple[float | None, float]) -> bool:
    low, high = bracket
    # 1e-9 is rounding: the signed model merges Fig. 7's minority at n_A = 300 exactly
    return (low is None or low < value) and value <= high * (1 + 1e-9)


# --- the two-cluster optimum through its transitions


def walk_record() -> Record:
    """The entries a, b, c, d of the optimum, the contrasts and the bias over lambda_z; and the transitions."""
    k_a, k_b, n_a, n_b = COUNTS
    t = cs.thresholds(cs.Problem(_counts(), 1.0, LAMBDA_B))
    grid = np.linspace(0.0012, 1.08 * t.complete, 260)
    found = [two_cluster(k_a, k_b, n_a, n_b, float(v), LAMBDA_B) for v in grid]
    names = ("a", "b", "c", "d", "m", "alpha_a", "alpha_b", "state")
    return {
        "setting": list(COUNTS),
        "lambda_b": LAMBDA_B,
        "thresholds": {"merge": t.merge[-1], "vanish": t.vanish[-1], "complete": t.complete},
        "lambda_z": grid,
        **{name: [getattr(s, name) for s in found] for name in names},
    }


# --- the vanish boundary


def vanish_record(num_problems: int = 1000) -> Record:
    """Maps lambda*(lambda_b) of several settings, both models, and the sample behind the statement on their shape."""
    prices = np.concatenate([[0.0], np.geomspace(1e-5, 1e2, 141), [INF]])
    curves = []
    for setting in ((5, 5, 500, 100), (3, 7, 500, 100), (5, 5, 1000, 20), (2, 8, 5000, 500), (10, 90, 500, 100)):
        k_a, k_b, n_a, n_b = setting
        maps = {model: vanish_boundary(*setting, prices, model) for model in MODELS}
        low = lowest_vanish(*setting)
        curves.append(
            {
                "setting": list(setting),
                "merge": np.sqrt(n_b) / (k_a * n_a + k_b * n_b),
                **{model: {"lambda_z": m.lambda_z, "exact": m.exact} for model, m in maps.items()},
                "lowest": {"lambda_b": low[0], "lambda_z": low[1]},
            }
        )
    samples = {model: monotonicity(num_problems, features=model) for model in MODELS}
    return {"lambda_b": [*prices[:-1], "inf"], "curves": curves, "samples": samples}


# --- more samples


def large_samples_record() -> Record:
    """Cosines of columns and Grams of W over N at fixed N lambda_z and imbalance, and what they tend to."""
    shares, level = np.repeat([2.0, 1.0], 5) / 15, 0.1
    slope = etf_slope(shares, level)
    runs = []
    for exponent in (3, 3.5, 4, 4.5, 5, 6, 7, 8, 9, 10, 11, 12, 16, 20, 30, 40, 60, 80, 110, 150):
        N = 10.0**exponent
        s = two_cluster(5, 5, 2 * N / 15, N / 15, level / N, LAMBDA_B)
        cosines = column_cosines(s.Z())
        U, values, _ = np.linalg.svd(s.Z() * np.sqrt(shares))
        gram = (U * values) @ U.T
        run = {
            "log10_N": exponent,
            "cosines": _pairs(cosines),
            "self_consistent": _pairs(self_consistent_cosines(shares, level, N)),
            "W_to_etf": _angle(gram, simplex_etf(10)),
            "W_to_seli": _angle(gram, seli(shares).classifier_gram),
            "Z_to_etf": _angle(s.Z(), simplex_etf(10)),
        }
        if exponent <= 12:  # counts are 64-bit integers, and the objective is 1e-6 nats there
            n = round(N / 15)
            problem = cs.Problem([2 * n] * 5 + [n] * 5, level / (15 * n), LAMBDA_B)
            solution = cs.solve(problem, 1e-12, throw=False)
            run["solver"] = _pairs(column_cosines(solution.Z))
            run["solver_gap"] = solution.certificate.relative_gap
        runs.append(run)
    return {
        "k": [5, 5],
        "r": 2,
        "N_lambda_z": level,
        "lambda_b": LAMBDA_B,
        "etf_cosine": etf_cosine(10),
        "slope": _pairs(slope),
        "runs": runs,
    }


def _pairs(matrix: np.ndarray) -> dict[str, float]:
    return {"A": float(matrix[0, 1]), "B": float(matrix[-1, -2]), "across": float(matrix[0, -1])}


def _angle(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of two matrices of norm 1."""
    return float(np.linalg.norm(first / np.linalg.norm(first) - second / np.linalg.norm(second)))


# --- remedies and inverse thresholds


def remedies_record(counts: str | None = None, lambda_z: float = BETWEEN, lambda_b: float = LAMBDA_B) -> Record:
    """The standard mitigations at one setting."""
    return compare_remedies(cs.Problem(_counts() if counts is None else counts, lambda_z, lambda_b))


def oversampling_record() -> Record:
    """Thresholds of both clusters over the oversampling factor of B: least, best, and worse beyond."""
    k_a, k_b, n_a, n_b = 5, 5, 500, 50
    s = np.geomspace(1, 1000, 61)
    curves = {}
    for penalty in ("repeated", "held"):
        merge_a, merge_b, vanish_b = [], [], []
        for value in s:
            factors = np.repeat([1.0, value], (k_a, k_b))
            n = np.repeat([n_a, n_b], (k_a, k_b)).astype(float)
            mass = factors * n * (1.0 if penalty == "repeated" else n.sum() / (factors @ n))
            p = cs.Problem(n.astype(int), 1.0, LAMBDA_B, cs.Loss(class_weights=factors), mass)
            merge = cs.thresholds(p).merge
            vanish = cs.thresholds(p.replace(features="nonnegative")).vanish
            merge_a.append(merge[0])
            merge_b.append(merge[-1])
            vanish_b.append(vanish[-1])
        curves[penalty] = {"merge_a": merge_a, "merge_b": merge_b, "vanish_b": vanish_b}
    lambda_z = 0.0035
    return {
        "setting": [k_a, k_b, n_a, n_b],
        "lambda_b": LAMBDA_B,
        "factor": s,
        **curves,
        "lambda_z": lambda_z,
        "least": least_oversampling(k_a, k_b, n_a, n_b, lambda_z),
        "best": best_oversampling(k_a, k_b, n_a, n_b),
    }


def _counts() -> str:
    k_a, k_b, n_a, n_b = COUNTS
    return f"{n_a}x{k_a},{n_b}x{k_b}"


# --- all of them


@dataclass(frozen=True)
class TheoryFigure:
    """A record, and the name of the function in ``collapsar.report`` that draws it.

    By name, so that the records can be had without matplotlib.
    """

    record: Callable[[], Record]
    draw: str
    title: str


FIGURES: dict[str, TheoryFigure] = {
    "figures_5_to_8": TheoryFigure(table_record, "table_figure", "observed transitions against both feature models"),
    "two_cluster": TheoryFigure(walk_record, "walk_figure", "the two-cluster optimum through its transitions"),
    "vanish": TheoryFigure(vanish_record, "vanish_figure", "where merged classes vanish, for every price of the bias"),
    "large_samples": TheoryFigure(large_samples_record, "large_samples_figure", "the rate of Theorem 5, and SELI"),
    "remedies": TheoryFigure(remedies_record, "remedies_figure", "remedies: thresholds, margins, geometry"),
    "oversampling": TheoryFigure(oversampling_record, "oversampling_figure", "how much oversampling helps, and harms"),
    "models": TheoryFigure(models_record, "models_figure", "collapse thresholds of all models"),
    "landscape": TheoryFigure(landscape_record, "landscape_figure", "saddles on the way down, and the way out"),
}


def theory_figures(
    out: Path, names: Sequence[str] = (), progress: Callable[[str], None] | None = None
) -> dict[str, Record]:
    """Compute the records and draw the pictures: NAME.json, NAME.png and NAME.svg in one folder.

    Args:
        out: the folder, made if it does not exist.
        names: keys of ``FIGURES``; all by default.
        progress: called with each name before its work begins.

    Returns:
        The records by name.

    Raises:
        ValueError: a name is unknown.
        OSError: the folder cannot be written.
    """
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        raise ValueError(f"`names` must be among {', '.join(FIGURES)}, got {', '.join(unknown)}")
    out.mkdir(parents=True, exist_ok=True)
    records = {}
    for name in names or FIGURES:
        if progress is not None:
            progress(name)
        records[name] = write_figure(out, name, FIGURES[name].draw, FIGURES[name].title, FIGURES[name].record())
    return records


def write_figure(out: Path, name: str, draw: str, title: str, data: Record) -> Record:
    """One record with its picture beside it.

    Args:
        out: an existing folder.
        name: of the files.
        draw: name of the drawing function.
        title: alternative text for the picture.
        data: the record, without provenance.

    Returns:
        The record as written.
    """
    from collapsar_studies import theory_plots, theory_rows
    from collapsar_studies.picture_files import write_pictures

    versions = {"collapsar": cs.__version__, "numpy": np.__version__, "scipy": scipy.__version__}
    record = to_json({"figure": name, "title": title, "versions": versions, **data})
    home = theory_rows if hasattr(theory_rows, draw) else theory_plots
    figure: Figure = getattr(home, draw)(record)
    write_atomically(out / f"{name}.json", json.dumps(record, allow_nan=False, indent=None) + "\n")
    write_pictures(out, name, figure, title, dpi=200)
    return record
