"""Ordinary training, weight decay and no feature penalty: what can be said while no model is validated.

The decay on the scale of a batch normalisation is a feature penalty, lambda_h = decay / N for the normalised features;
every decayed linear layer above them bends the price (:mod:`collapsar.theory.deep`). The models disagree with each
other and, so far, with networks. The range between them is given, and what was measured, from one small data file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from collapsar.analysis.advice_outlook import EXACT_KINDS, edges
from collapsar.counts import CountsLike, class_counts
from collapsar.problem import Problem
from collapsar.solver import solve
from collapsar.theory import deep_column, thresholds

__all__ = ["DecayAdvice", "DecayPrediction", "advise_weight_decay", "evidence"]

Optimizer = Literal["sgd", "adam", "adamw"]
Verdict = Literal["separated", "undecided", "collapsed"]

UNKNOWN_LAYERS = (1, 2, 3)  # tried where the number of layers above the normalisation is not given


@dataclass(frozen=True)
class DecayPrediction:
    """Where one model puts the collapse of the smallest classes.

    Attributes:
        model: "shallow" (one layer above the normalised features), "deep-switch" (where zero becomes the global
            minimum) or "deep-spinodal" (where the separated minimum disappears).
        layers: decayed linear layers above the last normalisation, the head included.
        weight_decay: the decay from which on the smallest classes are collapsed.
        measured_ratio: smallest and largest measured / predicted decay over the cases on record; None: no case.
    """

    model: str
    layers: int
    weight_decay: float
    measured_ratio: tuple[float, float] | None

    @property
    def interval(self) -> tuple[float, float]:
        """The prediction, widened to what was measured where the model was tried."""
        low, high = (1.0, 1.0) if self.measured_ratio is None else self.measured_ratio
        return self.weight_decay * min(low, 1.0), self.weight_decay * max(high, 1.0)


@dataclass(frozen=True)
class DecayAdvice:
    """What can be said about a decay without a feature penalty.

    Attributes:
        class_counts: n, shape (K,).
        weight_decay: as given.
        margin: as given.
        predictions: of every model considered.
        low: below it no model, with what was measured of it, has the smallest classes collapsed.
        high: above it every model has.
        validated: name of the model that was found to predict the switch, whose measured error then is the range; None
            while there is none.
        verdict: "separated": below ``low`` with the margin; "collapsed": above ``high``; else "undecided".
    """

    class_counts: NDArray[np.int64]
    weight_decay: float
    margin: float
    predictions: tuple[DecayPrediction, ...]
    low: float
    high: float
    validated: str | None
    verdict: Verdict

    @property
    def largest_safe(self) -> float:
        """The largest decay that is below ``low`` with the margin."""
        return self.low / (1 + self.margin)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return {
            "kind": "advice-weight-decay",
            "class_counts": self.class_counts.tolist(),
            "weight_decay": self.weight_decay,
            "margin": self.margin,
            "verdict": self.verdict,
            "validated": self.validated,
            "low": self.low,
            "high": self.high,
            "largest_safe": self.largest_safe,
            "predictions": [asdict(p) for p in self.predictions],
            "cases": evidence()["cases"],
        }


@cache
def evidence() -> dict[str, Any]:
    """What networks did: {"validated": None or {"model": name}, "cases": [...]}, read from the package's data file.

    A case has "counts", "layers" and "merged_between", the two decays between which its smallest classes merged.
    """
    return json.loads(files("collapsar.analysis").joinpath("advice_ordinary.json").read_text(encoding="utf-8"))


def advise_weight_decay(
    counts: CountsLike,
    weight_decay: float,
    *,
    layers: int | None = None,
    optimizer: Optimizer = "sgd",
    margin: float = 0.1,
) -> DecayAdvice:
    """Whether weight decay alone may collapse the smallest classes: the range between models, and what was measured.

    Args:
        counts: samples per class.
        weight_decay: of all parameters, normalisations included; > 0.
        layers: decayed linear layers above the last normalisation, head included; None: one, two and three are tried.
        optimizer: "sgd", or "adam" with its L2 decay; both have the same stationary points.
        margin: safety below the range; >= 0.

    Returns:
        The range and where the decay lies.

    Raises:
        ValueError: an argument is out of range, or ``optimizer="adamw"``: its decoupled decay is the derivative of no
            penalty, so that there is no optimum that the theory could know.

    Example:
        >>> advice = advise_weight_decay("1000x5,20x5", 5e-4, layers=2)
        >>> advice.verdict, advice.validated
        ('separated', None)
    """
    if optimizer == "adamw":
        raise ValueError(
            '`optimizer` must be "sgd" or "adam": the decay of AdamW is decoupled from the gradient and is the '
            "derivative of no penalty, so no theory of the optimum applies; use SGD, or measure a trained network "
            "with `collapsar diagnose`"
        )
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f'`optimizer` must be "sgd", "adam" or "adamw", got {optimizer!r}')
    if not 0 < weight_decay < np.inf:
        raise ValueError(f"`weight_decay` must be finite and > 0, got {weight_decay!r}; without decay nothing merges")
    if not 0 <= margin < np.inf:
        raise ValueError(f"`margin` must be finite and >= 0, got {margin!r}")
    if layers is not None and not (isinstance(layers, int) and layers >= 1):
        raise ValueError(f"`layers` must be a whole number >= 1, got {layers!r}")
    n = class_counts(counts)
    tried = UNKNOWN_LAYERS if layers is None else (layers,)
    predictions = tuple(p for depth in tried for p in _predictions(n, weight_decay, depth))
    chosen = evidence()["validated"]
    name = None if chosen is None else str(chosen["model"])
    trusted = [p for p in predictions if name is None or p.model == name] or list(predictions)
    low, high = min(p.interval[0] for p in trusted), max(p.interval[1] for p in trusted)
    verdict: Verdict = "undecided"
    if weight_decay * (1 + margin) < low:
        verdict = "separated"
    elif weight_decay > high:
        verdict = "collapsed"
    return DecayAdvice(n, weight_decay, margin, predictions, low, high, name, verdict)


def _predictions(n: NDArray[np.int64], lambda_b: float, layers: int) -> list[DecayPrediction]:
    places = _switches(n, lambda_b, layers)
    ratios = _ratios(layers)
    return [DecayPrediction(model, layers, place, ratios.get(model)) for model, place in places.items()]


def _ratios(layers: int) -> dict[str, tuple[float, float]]:
    """Measured over predicted decay, smallest and largest, of every model over the cases of that depth."""
    found: dict[str, list[float]] = {}
    for case in evidence()["cases"]:
        if case["layers"] == layers:
            low, high = case["merged_between"]
            places = _switches(class_counts(case["counts"]), float(np.sqrt(low * high)), layers)
            for model, place in places.items():
                found.setdefault(model, []).extend((low / place, high / place))
    return {model: (min(values), max(values)) for model, values in found.items()}


def _switches(n: NDArray[np.int64], lambda_b: float, layers: int) -> dict[str, float]:
    """Decays from which on the smallest class is collapsed: every layer's penalty is decay, the features' decay / N.

    A class's price is then (L/2) decay (n_k / N)^(1/L) with L = layers + 1 factors, linear in the decay.
    """
    k, N = int(np.argmin(n)), int(n.sum())
    share, factors = n[k] / N, layers + 1
    state = deep_column(share, 1.0, factors, _bias_at_the_edge(n, lambda_b, k), k)
    unit = factors / 2 * share ** (1 / factors)
    if layers == 1:
        return {"shallow": float(state.switch / unit)}
    return {"deep-switch": float(state.switch / unit), "deep-spinodal": float(state.spinodal / unit)}


def _bias_at_the_edge(n: NDArray[np.int64], lambda_b: float, k: int) -> NDArray[np.float64]:
    """The bias of the shallow optimum where the smallest class has just vanished."""
    problem = Problem(n, 1.0, lambda_b, features="nonnegative")
    if np.unique(n).size <= EXACT_KINDS:
        edge = float(thresholds(problem).vanish[k])
        return solve(problem.replace(lambda_z=1.001 * edge), 1e-6, throw=False).b
    bias = np.zeros(n.size)
    for _ in range(4):
        # the least strength only: with many kinds of classes the residual at the present bias stands in for the root
        edge = float(edges(problem, bias)[k])
        bias = solve(problem.replace(lambda_z=1.001 * edge), 1e-6, throw=False).b
    return bias
