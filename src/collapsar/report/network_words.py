"""What a report says about its networks, in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collapsar.core.record_types import DiagnosisRecord, PredictionRecord, ReportRecord, RunRecord
from collapsar.core.sentences import listed
from collapsar.report.record import defined
from collapsar.report.words import number_text, sentence

_MODELS = {
    "mlp": "A perceptron",
    "cnn": "A small convolutional network",
    "resnet18": "A ResNet-18",
    "vgg11": "A VGG-11",
    "vgg13": "A VGG-13",
}
_RECOGNISED = 0.5
_MORE = (("lost", "num_lost"), ("dead", "num_dead"))


def trained(run: RunRecord) -> str:
    """What was trained, in one line."""
    diagnosis, training = run["diagnosis"], run["training"]
    counts = [n for n in diagnosis["class_counts"] if n]
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{max(counts)} to {min(counts)}"
    data = f"{sum(counts)} samples in {len(diagnosis['class_counts'])} classes ({each} each)"
    if training is None:
        price = _prices(diagnosis)
        return f"A network from {diagnosis['source']}, measured on {data}{price}."
    model = _MODELS.get(training["model"]["name"], f"A network ({training['model']['name']})")
    return (
        f"{model} trained on {training['dataset']}, {data}, for {training['trained_epochs']} epochs"
        f"{_prices(diagnosis)}, seed {training['seed']}."
    )


def _prices(diagnosis: DiagnosisRecord) -> str:
    theory = diagnosis["prediction"]
    if theory is None:
        return ""
    origin = "" if theory["source"] == "as trained" else " as read from it"
    bias = theory["lambda_b"]
    bias_text = f", bias penalty {number_text(bias)}" if isinstance(bias, int | float) and bias > 0 else ""
    head = " of the head" if unit_of(theory) == "lambda_w" else ""
    return f", penalty{head} {number_text(price_of(theory))}{origin}{bias_text}"


def price_of(theory: PredictionRecord) -> float:
    """The network's penalty in the unit of its thresholds: lambda_z, or lambda_w behind a normalisation."""
    return theory.get("price", theory["lambda_z"])


def unit_of(theory: PredictionRecord) -> str:
    """What thresholds are values of; records of earlier versions knew one unit."""
    return theory.get("unit", "lambda_z")


def first_thresholds(theory: PredictionRecord) -> np.ndarray:
    """The penalty above which each class has no predictions of its own; inf if it always has."""
    levels = [theory["merge"], theory["vanish"], theory.get("edge", theory["vanish"])]
    return np.fmin.reduce(np.array([*levels, np.full(len(theory["merge"]), np.inf)], dtype=float))


def model_distance(data: DiagnosisRecord) -> float | None:
    """Distance of the mean predictions from the model used for the prediction."""
    if (own := (data.get("model") or {}).get("distance")) is not None:
        return own["Z"]
    if data["fit"] is None:
        return None
    features = data["prediction"]["features"] if data["prediction"] is not None else "signed"
    return data["fit"]["models"][features]["distance"]["Z"]


def cautions(diagnosis: DiagnosisRecord) -> list[str]:
    """What a reader of the headline must know: classes that are lost although separated, or a network not at rest.

    Example:
        >>> cautions({"class_names": ["cat", "dog"], "accuracies": [1.0, 0.25], "at_rest": True,
        ...           "separation": {"states": ["separated", "separated"]}})
        ['Separated does not mean recognised: dog has scores of its own, but wins for less than half of its samples.']
    """
    found = []
    states = diagnosis["separation"]["states"]
    weak = [
        name
        for name, state, right in zip(diagnosis["class_names"], states, diagnosis["accuracies"], strict=True)
        if state == "separated" and defined(right) and right < _RECOGNISED
    ]
    if weak:
        verbs = ("has", "wins", "its") if len(weak) == 1 else ("have", "win", "their")
        found.append(
            f"Separated does not mean recognised: {listed(weak, 6)} {verbs[0]} scores of {verbs[2]} own, but "
            f"{verbs[1]} for less than half of {verbs[2]} samples."
        )
    unread = "forces" in diagnosis and not defined(diagnosis["forces"]["fitted_w"])  # a frozen head, a cosine
    if not (diagnosis["at_rest"] or unread):
        found.append("Training has not converged: with more training the states might still change.")
    return found


def state_counts(diagnosis: DiagnosisRecord) -> str:
    """How many classes are in each state, and how many are lost or dead, whatever their state."""
    counts = [f"{number} {word}" for word, key in _MORE if (number := diagnosis.get(key))]
    return ", ".join([_counted(diagnosis["separation"]["states"]), *counts])


def _counted(states: Sequence[str]) -> str:
    order = [state for state in ("separated", "merged", "vanished", "unseen") if state in states]
    return ", ".join(f"{states.count(state)} {state}" for state in order)


def solution_headline(states: Sequence[str]) -> str:
    """What became of the classes of an optimum, in one sentence."""
    if set(states) == {"separated"}:
        return f"At the optimum all {len(states)} classes are separated."
    return f"At the optimum of {len(states)} classes: {_counted(states)}."


def report_finding(record: ReportRecord) -> str:
    """One sentence: the headline of one network or optimum, or which of several networks lost classes."""
    runs = record["runs"]
    if not runs:
        return solution_headline(record.get("solutions", [])[0]["class_states"])
    if len(runs) == 1:
        return runs[0]["diagnosis"]["headline"]
    every = "both" if len(runs) == 2 else f"all {len(runs)}"
    gone = [run["name"] for run in runs if _num_gone(run["diagnosis"])]
    if not gone:
        return f"All classes are separated, and none is lost, in {every} networks."
    found = [run["diagnosis"] for run in runs]
    collapsed = {state for d in found if d.get("num_collapsed") for state in d["separation"]["states"]}
    kinds = [state for state in ("merged", "vanished") if state in collapsed]
    kinds += [word for word, key in _MORE if any(d.get(key) for d in found)]
    what = f"{', '.join(kinds[:-1])} or {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    if len(gone) == len(runs):
        return f"{sentence(every)} networks have {what} classes."
    verb = "network has" if len(gone) == 1 else "networks have"
    return f"{len(gone)} of {len(runs)} {verb} {what} classes: {listed(gone, 6)}."


def _num_gone(diagnosis: DiagnosisRecord) -> int:
    """Merged, vanished, lost and dead classes; records of earlier versions count them separately, or not all."""
    return diagnosis.get("num_gone") or max(
        diagnosis.get(key) or 0 for key in ("num_collapsed", "num_lost", "num_dead")
    )


def accuracy(run: RunRecord, which: str) -> float | None:
    """Test accuracy at the end of training, "balanced", "majority" or "minority"; None if it was not recorded."""
    last = run["history"][-1] if run["history"] else {}
    value = last.get(f"test_{which}_accuracy", last.get(f"test_{which}"))
    return value if defined(value) else None
