"""A network on a data set: features and logits in one pass, accuracies, and whether its head is at rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor
from torch.nn import functional

from collapsar.core.penalties import Penalties
from collapsar.metrics.balance import balance_penalties
from collapsar.training.data import ImageData
from collapsar.training.models import FeatureNetwork


@dataclass(frozen=True)
class HeadGradient:
    """How far the head is from a stationary point, with the features fixed.

    Attributes:
        norm: ‖g‖, the Euclidean norm over (W, b) of the gradient of mean CE + (λ_W/2)‖W‖² + (λ_b/2)‖b‖².
        penalty_norm: ‖(λ_W W, λ_b b)‖, the norm of the penalties' part of it.
    """

    norm: float
    penalty_norm: float

    @property
    def relative(self) -> float:
        """``norm / penalty_norm``; NaN if the penalties exert no force to compare with.

        1 means that the data do not push at all (all features are dead, say, while the weights still decay), 0
        that data and penalties balance.
        """
        return self.norm / self.penalty_norm if self.penalty_norm > 0 else math.nan


def features_and_logits(
    model: FeatureNetwork, data: ImageData, split: str = "train", batch_size: int = 2048
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features, logits and labels, batch by batch, in ``eval()`` mode and without gradients.

    The model's mode is restored when the iterator ends.

    Args:
        model: The network.
        data: The data, on any device; batches are moved to the model's device.
        split: "train" or "test".
        batch_size: Images per batch, >= 1.

    Yields:
        Features (B, d), logits (B, K), labels (B,), on the model's device.

    Example:
        >>> from collapsar.training import build_model, load_data
        >>> data = load_data("digits")
        >>> model = build_model("mlp", data.image_shape, data.num_classes)
        >>> sum(len(labels) for _, _, labels in features_and_logits(model, data, "test"))
        454
    """
    if split not in ("train", "test"):
        raise ValueError(f'`split` must be "train" or "test", got {split!r}')
    device, was_training = model.head.weight.device, model.training
    images, labels = data.images(split), data.labels(split)
    model.eval()
    try:
        for begin in range(0, len(labels), batch_size):
            batch = slice(begin, begin + batch_size)
            with torch.no_grad():
                logits, features = model(data.normalised(images[batch].to(device)))
            yield features, logits, labels[batch].to(device)
    finally:
        model.train(was_training)


def head_gradient(model: FeatureNetwork, data: ImageData, penalties: Penalties) -> HeadGradient:
    """The gradient of the whole training set's penalised loss with respect to the head.

    With p_i the softmax of the logits, g_W = (1/N) Σ_i (p_i − y_i) h_iᵀ + λ_W W and
    g_b = (1/N) Σ_i (p_i − y_i) + λ_b b; the features' penalty does not depend on (W, b).

    Args:
        model: The network, measured in ``eval()`` mode.
        data: Its training images.
        penalties: The full penalties; add an optimiser's decay with ``with_weight_decay``.
    """
    return _training_pass(model, data, penalties).gradient


class Evaluation(TypedDict):
    """The numbers in every record, from one pass over each split in ``eval()`` mode.

    ``effective_lambda_h`` is estimated from the balance λ_W‖W‖² = λ_H Σ_k n_k‖h̄_k‖² of a stationary point; NaN if λ_W
    is 0 or all class means are.
    """

    train_loss: float  #: mean cross-entropy, nats, without penalties
    train_accuracy: float
    train_class_accuracies: list[float]  #: K shares; NaN for a class without images, here and below
    stationarity: float  #: the head's relative gradient
    head_gradient_norm: float
    test_accuracy: float
    test_class_accuracies: list[float]
    test_balanced_accuracy: float  #: the mean of these shares
    test_majority_accuracy: float  #: mean over the classes with most training images
    test_minority_accuracy: float  #: mean over those with fewest
    effective_lambda_w: float  #: the penalty given
    effective_lambda_h: float
    effective_lambda_b: float  #: the penalty given
    effective_lambda_z: float  #: √(λ_W λ_H) of these


class EvaluationRecord(Evaluation):
    """The same as a run keeps it, with what its ``measure`` hook adds."""

    kind: str
    epoch: int  #: finished epochs
    learning_rate: float
    lambda_w: float  #: penalties of the loss in that epoch; an infinite one is NaN
    lambda_h: float
    lambda_b: float
    lambda_z: float
    seconds: float


def evaluate(model: FeatureNetwork, data: ImageData, penalties: Penalties) -> Evaluation:
    """One pass over each split: losses, accuracies, the head's gradient, and the penalties that it implies."""
    total = _training_pass(model, data, penalties)
    right, hits, test_counts = total.right, *torch.zeros(2, data.num_classes, dtype=torch.float64)
    for _, logits, labels in features_and_logits(model, data, "test"):
        hits += _hits(logits, labels)
        test_counts += torch.bincount(labels, minlength=data.num_classes).cpu()
    shares = hits / test_counts
    counts = torch.tensor(data.class_counts)
    lambda_h = lambda_z = math.nan
    if penalties.lambda_w > 0:
        weight, means = model.head.weight.detach().double().cpu().numpy(), total.class_sums.cpu() / counts[:, None]
        lambda_h, lambda_z = balance_penalties(weight, means.numpy(), counts.numpy(), penalties.lambda_w)
    return {
        "train_loss": total.loss,
        "train_accuracy": float(right.sum() / len(data.train_labels)),
        "train_class_accuracies": (right / counts).tolist(),
        "stationarity": total.gradient.relative,
        "head_gradient_norm": total.gradient.norm,
        "test_accuracy": float(hits.sum() / test_counts.sum()),
        "test_class_accuracies": shares.tolist(),
        "test_balanced_accuracy": float(shares.mean()),
        "test_majority_accuracy": float(shares[counts == counts.max()].mean()),
        "test_minority_accuracy": float(shares[counts == counts.min()].mean()),
        "effective_lambda_w": penalties.lambda_w,
        "effective_lambda_h": lambda_h,
        "effective_lambda_b": penalties.lambda_b,
        "effective_lambda_z": lambda_z,
    }


@dataclass(frozen=True)
class _Totals:
    """For the training set: the head's gradient, mean cross-entropy, hits per class (K,), sums of features (K, d)."""

    gradient: HeadGradient
    loss: float
    right: Tensor
    class_sums: Tensor


def _training_pass(model: FeatureNetwork, data: ImageData, penalties: Penalties) -> _Totals:
    """One pass over the training set; sums in float64."""
    head = model.head
    weight = head.weight.detach().double()
    by_weight, class_sums = torch.zeros_like(weight), torch.zeros_like(weight)
    by_bias = weight.new_zeros(weight.shape[0])
    loss = weight.new_zeros(())
    right = torch.zeros(data.num_classes, dtype=torch.float64)
    for features, logits, labels in features_and_logits(model, data):
        residual = torch.softmax(logits.double(), dim=1)
        residual[torch.arange(len(labels), device=labels.device), labels] -= 1
        by_weight += residual.T @ features.double()
        class_sums.index_add_(0, labels, features.double())
        by_bias += residual.sum(dim=0)
        loss += functional.cross_entropy(logits.double(), labels, reduction="sum")
        right += _hits(logits, labels)
    n = len(data.train_labels)
    force = penalties.lambda_w * weight
    squares = (by_weight / n + force).square().sum()
    force_squares = force.square().sum()
    if head.bias is not None:
        bias_force = penalties.lambda_b * head.bias.detach().double()
        squares += (by_bias / n + bias_force).square().sum()
        force_squares += bias_force.square().sum()
    gradient = HeadGradient(float(squares.sqrt()), float(force_squares.sqrt()))
    return _Totals(gradient, float(loss / n), right, class_sums)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Correct predictions per class, on the CPU."""
    return torch.bincount(labels[logits.argmax(dim=1) == labels], minlength=logits.shape[1]).cpu()
