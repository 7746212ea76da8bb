"""A network on a data set: features and logits in one pass, accuracies, and how still its head stands."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from collapsar.training.data import ImageData
from collapsar.training.models import FeatureNetwork
from collapsar.training.penalties import Penalties

__all__ = ["HeadGradient", "evaluate", "features_and_logits", "head_gradient"]


@dataclass(frozen=True)
class HeadGradient:
    """How far the head is from a stationary point, the features held.

    Attributes:
        norm: ‖g‖, the Euclidean norm over (W, b) of the gradient of mean CE + (λ_W/2)‖W‖² + (λ_b/2)‖b‖².
        penalty_norm: ‖(λ_W W, λ_b b)‖, the norm of the penalties' part of it.
    """

    norm: float
    penalty_norm: float

    @property
    def relative(self) -> float:
        """``norm / penalty_norm``; NaN where the penalties exert no force to compare with.

        1 says that the data do not push at all (all features dead, say, while the weights still decay), 0
        that data and penalties balance.
        """
        return self.norm / self.penalty_norm if self.penalty_norm > 0 else math.nan


def features_and_logits(
    model: FeatureNetwork, data: ImageData, split: str = "train", batch_size: int = 2048
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Features, logits and labels, batch by batch, in ``eval()`` mode and without gradients.

    The mode the model was in comes back when the iterator ends.

    Args:
        model: The network.
        data: The data, anywhere; batches are moved to the model's device.
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
    return _training_pass(model, data, penalties)[0]


def evaluate(model: FeatureNetwork, data: ImageData, penalties: Penalties) -> dict[str, Any]:
    """The numbers that every record holds: one pass over each split, in ``eval()`` mode.

    Returns:
        ``train_loss`` (mean cross-entropy, nats, without penalties), ``stationarity`` (the head's relative
        gradient), ``head_gradient_norm``, and for the training and the test images ``…_accuracy`` and
        ``…_class_accuracies`` (K shares). A share of no images is NaN.
    """
    gradient, loss, right = _training_pass(model, data, penalties)
    hits, total = torch.zeros(2, data.num_classes, dtype=torch.float64)
    for _, logits, labels in features_and_logits(model, data, "test"):
        hits += _hits(logits, labels)
        total += torch.bincount(labels, minlength=data.num_classes).cpu()
    return {
        "train_loss": loss,
        "train_accuracy": float(right.sum() / len(data.train_labels)),
        "train_class_accuracies": (right / torch.tensor(data.class_counts)).tolist(),
        "stationarity": gradient.relative,
        "head_gradient_norm": gradient.norm,
        "test_accuracy": float(hits.sum() / total.sum()),
        "test_class_accuracies": (hits / total).tolist(),
    }


def _training_pass(model: FeatureNetwork, data: ImageData, penalties: Penalties) -> tuple[HeadGradient, float, Tensor]:
    """The head's gradient, the mean cross-entropy and each class's hits on the training set; sums in float64."""
    head = model.head
    weight = head.weight.detach().double()
    by_weight = torch.zeros_like(weight)
    by_bias = weight.new_zeros(weight.shape[0])
    loss = weight.new_zeros(())
    right = torch.zeros(data.num_classes, dtype=torch.float64)
    for features, logits, labels in features_and_logits(model, data):
        residual = torch.softmax(logits.double(), dim=1)
        residual[torch.arange(len(labels), device=labels.device), labels] -= 1
        by_weight += residual.T @ features.double()
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
    return gradient, float(loss / n), right


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Right answers per class, on the CPU."""
    return torch.bincount(labels[logits.argmax(dim=1) == labels], minlength=logits.shape[1]).cpu()
