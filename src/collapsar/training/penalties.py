"""The three penalties of the model, in the loss of one batch.

The convention is the half on every square (theory: Hong & Ling, JMLR 25(192), 2024, Sec. 2.1):

    L = (1/N) Σ CE  +  (λ_W/2)‖W‖²  +  (λ_H/2) Σ_i ‖h_i‖²  +  (λ_b/2)‖b‖²

summed over all N training samples. A batch B sees only its own features, so their sum is scaled by N/|B|.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from collapsar.core.checks import must_be_positive
from collapsar.core.penalties import Penalties


def penalties_for(lambda_z: float, lambda_b: float = math.inf, *, head_ratio: float = 10.0) -> Penalties:
    """Penalties with the given λ_Z, split as λ_W = ratio·λ_Z and λ_H = λ_Z/ratio.

    Args:
        lambda_z: λ_Z > 0.
        lambda_b: Penalty on the bias; inf for a head without one.
        head_ratio: √(λ_W/λ_H) > 0. The default 10 is the paper's (JMLR Sec. 4, Figs 5-8). It shifts scale
            between W and H and leaves the optimal predictions unchanged.

    Raises:
        ValueError: ``lambda_z`` or ``head_ratio`` is not positive and finite.

    Example:
        >>> penalties_for(0.004, 0.02)
        Penalties(lambda_w=0.04, lambda_h=0.0004, lambda_b=0.02)
    """
    must_be_positive(lambda_z=lambda_z, head_ratio=head_ratio)
    return Penalties(head_ratio * lambda_z, lambda_z / head_ratio, lambda_b)


def scaled(penalties: Penalties, factor: float) -> Penalties:
    """λ_W and λ_H times ``factor``, λ_b unchanged: the warm start of the paper's experiments.

    Example:
        >>> scaled(Penalties(0.5, 0.25, 0.02), 0.5)
        Penalties(lambda_w=0.25, lambda_h=0.125, lambda_b=0.02)
    """
    return replace(penalties, lambda_w=factor * penalties.lambda_w, lambda_h=factor * penalties.lambda_h)


def with_weight_decay(penalties: Penalties, weight_decay: float) -> Penalties:
    """The head's penalties when the optimiser's L2 weight decay adds to λ_W and λ_b.

    This holds for torch's SGD, whose ``weight_decay`` is the gradient of a half square; AdamW's decay is not an L2
    penalty.

    Example:
        >>> with_weight_decay(Penalties(0.5, 0.25, 0.0), 0.5)
        Penalties(lambda_w=1.0, lambda_h=0.25, lambda_b=0.5)
    """
    return replace(penalties, lambda_w=penalties.lambda_w + weight_decay, lambda_b=penalties.lambda_b + weight_decay)


def penalised_loss(
    logits: Tensor, features: Tensor, labels: Tensor, head: nn.Linear, penalties: Penalties, num_samples: int
) -> Tensor:
    """The loss of one batch whose average over an epoch is the penalised loss of the whole training set.

    mean CE + (λ_W/2)‖W‖² + (λ_b/2)‖b‖² + (λ_H/2)(N/|B|) Σ_{i in B} ‖h_i‖² (JMLR (2.2), one batch). Averaged
    over the batches of an epoch with weights |B|/N it is exactly the full loss, even with a smaller last
    batch.

    Args:
        logits: Shape (|B|, K), Wh + b.
        features: Shape (|B|, d), what enters the head.
        labels: Shape (|B|,), int64.
        head: The linear head; its bias, if it has one, is penalised by λ_b.
        penalties: λ_W, λ_H, λ_b.
        num_samples: N, the size of the whole training set.

    Returns:
        A scalar, in nats.

    Example:
        >>> import torch
        >>> head = torch.nn.Linear(2, 3)
        >>> _ = torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
        >>> h = torch.ones(4, 2)
        >>> loss = penalised_loss(head(h), h, torch.tensor([0, 1, 2, 0]), head, Penalties(1.0, 0.5, 0.0), 8)
        >>> round(float(loss.detach()), 4)  # log 3 + (0.5 / 2) (8 / 4) 8
        5.0986
    """
    loss = functional.cross_entropy(logits, labels)
    loss = loss + (penalties.lambda_w / 2) * head.weight.square().sum()
    loss = loss + (penalties.lambda_h / 2 * num_samples / len(labels)) * features.square().sum()
    if head.bias is not None:
        loss = loss + (penalties.lambda_b / 2) * head.bias.square().sum()
    return loss


def penalised_backward(
    outputs: tuple[Tensor, Tensor],
    labels: Tensor,
    head: nn.Linear,
    penalties: Penalties,
    num_samples: int,
    weight: float,
) -> None:
    """Add the gradient of ``penalised_loss`` to every ``grad``, without forming the loss.

    With p_i = softmax(Wh_i + b), the gradients that enter the network are p_i - y_i at the logits and λ_H N h_i at
    the features, both times ``weight``, while λ_W W and λ_b b belong to the head alone. This takes a dozen small
    kernels fewer than autograd, a twentieth of the step of a small network.

    Args:
        outputs: Logits (B, K) and features (B, d), still attached to the network; B may be 0.
        labels: Shape (B,), int64.
        head: The linear head.
        penalties: λ_W, λ_H, λ_b.
        num_samples: N, the size of the whole training set.
        weight: Of one image: 1/|B|. If gradients are averaged over processes that share the batch, their number
            divided by the size of the whole batch.

    Example:
        >>> import torch
        >>> head, h = torch.nn.Linear(2, 2, bias=False), torch.ones(4, 2, requires_grad=True)
        >>> _ = torch.nn.init.zeros_(head.weight)
        >>> penalised_backward((head(h), h), torch.tensor([0, 0, 0, 1]), head, Penalties(1.0, 0.5), 8, 1 / 4)
        >>> head.weight.grad.tolist(), h.grad[0].tolist()  # W = 0: (p - y) averaged, and 0.5 * 8 / 4
        ([[-0.25, -0.25], [0.25, 0.25]], [1.0, 1.0])
    """
    logits, features = outputs
    with torch.no_grad():
        residual = torch.softmax(logits, dim=1)
        residual -= torch.eye(logits.shape[1], device=logits.device).index_select(0, labels)
        residual *= weight
        pull = features * (penalties.lambda_h * num_samples * weight) if penalties.lambda_h else None
    roots, gradients = ((logits,), (residual,)) if pull is None else ((logits, features), (residual, pull))
    torch.autograd.backward(roots, gradients)
    with torch.no_grad():
        for parameter, price in ((head.weight, penalties.lambda_w), (head.bias, penalties.lambda_b)):
            if parameter is not None and parameter.grad is not None:
                parameter.grad.add_(parameter, alpha=price)
