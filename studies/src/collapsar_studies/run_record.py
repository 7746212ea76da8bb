"""What is kept of one training run: numbers with six digits, enough to draw every picture without training again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from collapsar.core.types import Record
from collapsar.metrics import CollapseReport, NeuralCollapse
from collapsar.monitor.adaptive import decay_rows
from collapsar.training import ImageData, TrainResult
from collapsar.training.measure import features_and_logits
from collapsar.training.models import FeatureNetwork
from collapsar_studies.gradient_noise import gradient_noise

Detail = Literal["end", "curve", "layers", "decay", "entries", "noise"]

DIGITS = 6


def finished_record(result: TrainResult, data: ImageData, detail: Detail) -> Record:
    """The numbers of a run that has ended.

    Args:
        result: The run.
        data: Its training images, and all test images.
        detail: "curve": also Z, b and NC1 at every evaluation. "layers": also the squared norms of weights and of
            hidden activations (see ``layer_norms``). "decay": also what AdamW's decay of the head amounts to (see
            ``decay_of_head``). "entries": the same weight by weight (see ``entries_of_head``).
            "noise": of the head's gradient (see ``gradient_noise``).

    Returns:
        A dict of JSON values, floats with six digits: "epochs", "finished", "Z" (K, K) [logit, class], "b", "states",
        "relative_norms", "nearest_separation", "nc1_uniform", "nc1_weighted", "stationarity" (relative gradient of the
        head), "head_norm" (||W||^2), "feature_mass" (Σ n_k ||mean feature of k||^2), losses and accuracies.
    """
    report = _report(result.model, data)
    assert report.Z is not None  # a head was given
    assert report.b is not None
    assert report.head_weight is not None
    separation = report.separation()
    last = result.records[-1]
    record: Record = {
        "epochs": result.epoch,
        "finished": result.finished,
        "Z": report.Z,
        "b": report.b,
        "states": list(separation.states),
        "relative_norms": separation.relative_norms,
        "nearest_separation": separation.nearest_separation,
        "nc1_uniform": report.nc1_uniform,
        "nc1_weighted": report.nc1_weighted,
        "head_norm": float(np.sum(report.head_weight**2)),
        "feature_mass": float(report.class_counts @ np.sum(report.class_means**2, axis=1)),
        **{name: last[name] for name in ("stationarity", "train_loss", "train_accuracy", "test_class_accuracies")},
    }
    if detail == "curve":
        names = ("epoch", "nc1_uniform", "nc1_weighted", "stationarity", "Z", "b")
        record["curve"] = [{name: dict(r)[name] for name in names} for r in result.records]
    if detail == "layers":
        record["layers"] = layer_norms(result.model, data)
    if detail in ("decay", "entries"):
        record |= decay_of_head(result, data)
    if detail == "noise":
        record |= gradient_noise(result, data)
    if detail == "entries":
        record |= entries_of_head(result, report)
    return rounded(record)


def decay_of_head(result: TrainResult, data: ImageData) -> Record:
    """What AdamW's state says of its decay of the head, with the gradient of the whole training set.

    Returns:
        "square_length", the mean ||feature||^2; for AdamW with a decay also "rows" (K,), "slope" and "correlation" of
        gradient and decay (see ``collapsar.monitor.adaptive.decay_rows``), and whether that means rest, "at_rest".
    """
    head: Any = result.model.head
    num_samples = len(data.train_labels)
    gradient, squares = torch.zeros_like(head.weight), 0.0
    for features, logits, labels in features_and_logits(result.model, data):
        missed = logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1])
        gradient += missed.T @ features / num_samples
        squares += float(features.square().sum()) / num_samples
    decays = result.config.head_decay + result.config.weight_decay
    if result.config.optimizer == "sgd" or decays == 0 or result.optimizer is None:
        return {"square_length": squares}
    head.weight.grad = gradient
    found = decay_rows(head.weight, result.optimizer)
    assert found.rows is not None  # AdamW's state is plain here
    assert found.rest is not None
    return {
        "square_length": squares,
        "rows": found.rows,
        "slope": found.rest.slope,
        "correlation": found.rest.correlation,
        "at_rest": found.at_rest(None),
    }


def entries_of_head(result: TrainResult, report: CollapseReport) -> Record:
    """The head and what AdamW's decay of it amounts to, weight by weight.

    Returns:
        "weight" (K, d), "means" (K, d) of the features, "penalties" (K, d), wd (sqrt(v) + eps); "residual", how far the
        whole training set's gradient, in ``weight.grad``, is from them: |G + penalties * W| / |penalties * W|.
    """
    assert result.optimizer is not None  # AdamW's, in this process
    weight = result.model.head.weight
    group = next(g for g in result.optimizer.param_groups if any(p is weight for p in g["params"]))
    state = result.optimizer.state[weight]
    v = state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"]))
    penalties = group["weight_decay"] * (v.sqrt() + group["eps"])
    assert weight.grad is not None  # of ``decay_of_head``
    held = penalties * weight.detach().double()
    return {
        "weight": weight.detach(),
        "means": report.class_means,
        "penalties": penalties,
        "residual": float((weight.grad.double() + held).norm() / held.norm()),
    }


def layer_norms(model: FeatureNetwork, data: ImageData) -> list[Record]:
    """Every linear map from the image up: its size and that of what it gets.

    Returns:
        One dict per linear layer, the head last: "weight" ||W||^2, "bias" ||b||^2 (0 without one), "inputs" the sum of
        ||input||^2 over the training images, "normalised" whether a batch normalisation follows, and then its squared
        "scale" and "shift".
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    sums = dict.fromkeys(layers, 0.0)

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        sums[layer] += float(inputs[0].detach().double().square().sum())  # pyright: ignore[reportArgumentType]

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        for _ in features_and_logits(model, data):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    order = list(model.modules())
    out = []
    for layer in layers:
        following = next(iter(order[order.index(layer) + 1 :]), None)
        entry: Record = {
            "weight": _square(layer.weight),
            "bias": 0.0 if layer.bias is None else _square(layer.bias),
            "inputs": sums[layer],
            "normalised": isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d),
        }
        if isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d):
            entry |= {"scale": _square(following.weight), "shift": _square(following.bias)}
        out.append(entry)
    return out


def rounded(value: Any) -> Any:
    """The value as JSON can hold it: arrays as lists, floats with six digits, non-finite ones as None.

    Example:
        >>> rounded({"Z": np.array([[1.23456789, np.nan]]), "n": 3})
        {'Z': [[1.23457, None]], 'n': 3}
    """
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return rounded(value.tolist())
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def _square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().sum())


def _report(model: FeatureNetwork, data: ImageData) -> CollapseReport:
    """Every collapse metric of the training set in one pass, features in ``eval()`` mode."""
    metric = NeuralCollapse(head=model.head, sync_on_compute=False)  # this process sees all the images
    with torch.no_grad():
        for features, _, labels in features_and_logits(model, data):
            metric.update(features, labels)
    return metric.compute()


def _curve(model: FeatureNetwork, data: ImageData) -> Record:
    report = _report(model, data)
    return {"nc1_uniform": report.nc1_uniform, "nc1_weighted": report.nc1_weighted, "Z": report.Z, "b": report.b}


DETAILS: dict[Detail, Callable[[FeatureNetwork, ImageData], Mapping[str, Any]] | None] = {
    "end": None,
    "curve": _curve,
    "layers": None,
    "decay": None,
    "entries": None,
    "noise": None,
}
