"""Weight decay and no feature penalty: the model that networks were found to follow, with its measured error.

The decay on the scale of a batch normalisation is a feature penalty, lambda_h = decay / N for the normalised features;
every decayed linear layer above them changes the price (:mod:`collapsar.theory.deep_switch`). How far networks switch
from that model's prediction was measured, per number of layers, by the ``effective`` experiment; what it found is one
small data file here. Where the model failed, or was not tried, the verdict stays open.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from collapsar.core.counts import CountsLike, class_counts
from collapsar.core.record_types import DecayPredictionRecord, DecayRecord
from collapsar.core.records import to_json
from collapsar.core.types import Record
from collapsar.theory.deep_switch import decay_switch

Optimizer = Literal["sgd", "adam", "adamw"]
Verdict = Literal["separated", "undecided", "collapsed"]


@dataclass(frozen=True)
class DecayPrediction:
    """The decay at which the model loses the smallest classes, for one number of layers, and its measured error.

    Attributes:
        layers: decayed linear layers above the last normalisation, the head included.
        weight_decay: the decay above which the optimum without the smallest classes is the better one.
        measured_ratio: measured over predicted decay: the last at which any network kept its small classes, and the
            first at which any lost them; None: outside the decays tried, or never measured.
        switches: how many networks it is based on.
        predicts: whether all of them switched within a factor of 2 of the prediction. Only then is there a verdict.
        verdict: "separated": the decay, with the margin, lies below everything measured; "collapsed": above it;
            otherwise, and wherever the model does not predict, "undecided".
    """

    layers: int
    weight_decay: float
    measured_ratio: tuple[float | None, float | None]
    switches: int
    predicts: bool
    verdict: Verdict

    @property
    def interval(self) -> tuple[float, float] | None:
        """The decays between which networks switch, given the model's error; None if it does not predict."""
        low, high = self.measured_ratio
        if not self.predicts or low is None or high is None:
            return None
        return low * self.weight_decay, high * self.weight_decay

    def to_dict(self) -> DecayPredictionRecord:
        """The fields as JSON-able values."""
        return to_json({**asdict(self), "interval": self.interval})


@dataclass(frozen=True)
class DecayAdvice:
    """What can be said about a decay without a feature penalty.

    Attributes:
        class_counts: n, shape (K,).
        weight_decay: as given.
        margin: as given.
        model: the model that came nearest to the measured switches.
        predictions: one for the number of layers given, or one for each number that was measured.
        networks: the class counts of the networks that it was measured on.
        beyond: whether these counts are more imbalanced than those of every network measured.
        verdict: the verdict of all predictions if they agree; otherwise "undecided".
    """

    class_counts: NDArray[np.int64]
    weight_decay: float
    margin: float
    model: str
    predictions: tuple[DecayPrediction, ...]
    networks: tuple[str, ...]
    beyond: bool

    @property
    def verdict(self) -> Verdict:
        """The verdict of all predictions if they agree, otherwise "undecided"."""
        found: set[Verdict] = {p.verdict for p in self.predictions}
        return found.pop() if len(found) == 1 else "undecided"

    @property
    def largest_safe(self) -> float | None:
        """The largest decay with the verdict "separated"; None if there is none."""
        lows = [None if p.interval is None else p.interval[0] for p in self.predictions]
        known = [low for low in lows if low is not None]
        return min(known) / (1 + self.margin) if len(known) == len(lows) else None

    def to_dict(self) -> DecayRecord:
        """Everything as JSON-able values."""
        values = {**to_json(vars(self)), "predictions": [p.to_dict() for p in self.predictions]}
        values |= {"verdict": self.verdict, "largest_safe": self.largest_safe}
        values |= {name: evidence()[name] for name in ("data", "source")}
        return DecayRecord(kind="advice-weight-decay", **values)


@cache
def evidence() -> Record:
    """What networks did, as :func:`collapsar_studies.advice_evidence.evidence_of` derives it from the record.

    The ``model`` that came nearest to the measured switches, and how near: for each number of decayed ``layers``
    whether it ``predicts``, the ``ratio`` of measured to predicted switch and the number of networks.
    """
    return json.loads(files("collapsar.advise").joinpath("weight_decay.json").read_text(encoding="utf-8"))


def advise_weight_decay(
    counts: CountsLike,
    weight_decay: float,
    *,
    layers: int | None = None,
    optimizer: Optimizer = "sgd",
    margin: float = 0.1,
) -> DecayAdvice:
    """Whether weight decay alone loses the smallest classes, by the model that predicts it and its measured error.

    Args:
        counts: samples per class.
        weight_decay: of all parameters, normalisations included; > 0.
        layers: decayed linear layers above the last normalisation, head included; None: all that were measured.
        optimizer: "sgd", or "adam" with its L2 decay; both have the same stationary points.
        margin: safety below the measured range; >= 0.

    Returns:
        The prediction, its measured error, and where the given decay lies.

    Raises:
        ValueError: an argument is out of range; ``layers=0``, no normalisation: the features' penalty then does not
            follow from the decay; or ``optimizer="adamw"``: its decoupled decay is not the derivative of a penalty, so
            the theory has no optimum for it.

    Example:
        >>> advice = advise_weight_decay("100x5,20x5", 5e-4, layers=2)
        >>> advice.verdict, advice.model, round(advice.largest_safe, 3)
        ('separated', 'deep', 0.031)
        >>> advise_weight_decay("100x5,20x5", 5e-4, layers=1).verdict  # the model fails there
        'undecided'
    """
    if optimizer == "adamw":
        raise ValueError(
            '`optimizer` must be "sgd" or "adam": the decay of AdamW is decoupled from the gradient and is not the '
            "derivative of a penalty, so no theory of the optimum applies; use SGD, or measure a trained network "
            "with `collapsar diagnose`"
        )
    if optimizer not in ("sgd", "adam"):
        raise ValueError(f'`optimizer` must be "sgd", "adam" or "adamw", got {optimizer!r}')
    if not 0 < weight_decay < np.inf:
        raise ValueError(f"`weight_decay` must be finite and > 0, got {weight_decay!r}; without decay nothing merges")
    if not 0 <= margin < np.inf:
        raise ValueError(f"`margin` must be finite and >= 0, got {margin!r}")
    if layers == 0:
        raise ValueError(
            "`layers` must be >= 1: without a normalisation the penalty of the features depends on the trained "
            "network, not on the decay alone; train, and measure it with `collapsar diagnose`"
        )
    if layers is not None and not (isinstance(layers, int) and layers >= 1):
        raise ValueError(f"`layers` must be a whole number >= 1, got {layers!r}")
    n = class_counts(counts)
    depths: Sequence[int] = [d["layers"] for d in evidence()["depths"]] if layers is None else (layers,)
    networks = [network for d in evidence()["depths"] for network in d["networks"]]
    return DecayAdvice(
        class_counts=n,
        weight_decay=weight_decay,
        margin=margin,
        model=evidence()["model"],
        predictions=tuple(_prediction(n, weight_decay, depth, margin) for depth in depths),
        networks=tuple(dict.fromkeys(network["class_counts"] for network in networks)),
        beyond=_imbalance(n) > max(_imbalance(class_counts(network["class_counts"])) for network in networks),
    )


def _imbalance(n: NDArray[np.int64]) -> float:
    return float(n.max() / n.min())


def _prediction(n: NDArray[np.int64], weight_decay: float, layers: int, margin: float) -> DecayPrediction:
    found = next((d for d in evidence()["depths"] if d["layers"] == layers), None)
    place = decay_switch(n, layers)
    verdict: Verdict = "undecided"
    if found is None:
        return DecayPrediction(layers, place, (None, None), 0, False, verdict)
    low, high = found["ratio"]
    if found["predicts"] and low is not None and high is not None:
        if weight_decay * (1 + margin) < low * place:
            verdict = "separated"
        elif weight_decay > high * place:
            verdict = "collapsed"
    return DecayPrediction(layers, place, (low, high), found["switches"], found["predicts"], verdict)
