"""The penalised loss against loops written out in float64, and against its own average over an epoch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from collapsar.core.penalties import Penalties
from collapsar.training.penalties import penalised_backward, penalised_loss, penalties_for, scaled, with_weight_decay

K, D, N = 4, 6, 11


def _problem(bias: bool = True) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    head = nn.Linear(D, K, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    features = torch.randn(N, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, (N,), generator=generator)
    return head, features, labels


def _naive(head: nn.Linear, features: torch.Tensor, labels: torch.Tensor, penalties: Penalties, num: int) -> float:
    weight = head.weight.tolist()
    bias = [0.0] * K if head.bias is None else head.bias.tolist()
    total = 0.0
    for h, label in zip(features.tolist(), labels.tolist(), strict=True):
        logits = [sum(w * x for w, x in zip(row, h, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        total += math.log(sum(math.exp(z) for z in logits)) - logits[label]
    total /= len(labels)
    total += penalties.lambda_w / 2 * sum(w * w for row in weight for w in row)
    total += penalties.lambda_h / 2 * num / len(labels) * sum(x * x for h in features.tolist() for x in h)
    if head.bias is not None:
        total += penalties.lambda_b / 2 * sum(b * b for b in bias)
    return total


@pytest.mark.parametrize(
    ("penalties", "bias"),
    [
        (Penalties(0.3, 0.02, 0.5), True),
        (Penalties(0.3, 0.02, 0.0), True),
        (Penalties(0.3, 0.02, math.inf), False),
        (Penalties(0.0, 0.0, 0.0), True),
    ],
)
@pytest.mark.parametrize("num_samples", [N, 3 * N])
def test_loss_is_the_sum_written_out(penalties: Penalties, bias: bool, num_samples: int) -> None:
    head, features, labels = _problem(bias)
    loss = penalised_loss(head(features), features, labels, head, penalties, num_samples)
    assert loss.item() == pytest.approx(_naive(head, features, labels, penalties, num_samples), rel=1e-12)


def test_gradient_is_the_formula_of_the_model() -> None:
    """d/dh_i of the full loss is Wᵀ(p_i − y_i)/N + λ_H h_i, d/dW and d/db likewise."""
    head, features, labels = _problem()
    features.requires_grad_()
    penalties = Penalties(0.3, 0.02, 0.5)
    penalised_loss(head(features), features, labels, head, penalties, N).backward()
    h, W, b = features.detach(), head.weight.detach(), head.bias.detach()
    P = torch.exp(h @ W.T + b)
    residual = P / P.sum(dim=1, keepdim=True) - torch.eye(K, dtype=torch.float64)[labels]
    expected = {
        "features": (features.grad, residual @ W / N + 0.02 * h),
        "weight": (head.weight.grad, residual.T @ h / N + 0.3 * W),
        "bias": (head.bias.grad, residual.mean(dim=0) + 0.5 * b),
    }
    for name, (got, wanted) in expected.items():
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-14), name  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 11, 64])
def test_batches_average_to_the_full_loss_with_a_short_last_one(batch_size: int) -> None:
    head, features, labels = _problem()
    penalties = Penalties(0.3, 0.02, 0.5)
    whole = penalised_loss(head(features), features, labels, head, penalties, N)
    average = torch.zeros((), dtype=torch.float64)
    for batch in torch.arange(N).split(batch_size):
        h = features[batch]
        average += len(batch) / N * penalised_loss(head(h), h, labels[batch], head, penalties, N)
    assert average.item() == pytest.approx(whole.item(), rel=1e-13)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((-1.0, 0.0, 0.0), "lambda_w"),
        ((math.nan, 0.0, 0.0), "lambda_w"),
        ((math.inf, 0.0, 0.0), "lambda_w"),
        ((0.0, -1.0, 0.0), "lambda_h"),
        ((0.0, math.inf, 0.0), "lambda_h"),
        ((0.0, 0.0, -1.0), "lambda_b"),
        ((0.0, 0.0, math.nan), "lambda_b"),
    ],
)
def test_bad_penalties_are_refused_by_name(values: tuple[float, float, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"^`{named}` must be"):
        Penalties(*values)


def test_penalties_for_splits_lambda_z() -> None:
    penalties = penalties_for(0.004, 0.02, head_ratio=4.0)
    assert penalties.lambda_w / penalties.lambda_h == pytest.approx(16)
    assert penalties.lambda_z == pytest.approx(0.004)
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"^`lambda_z` must be"):
            penalties_for(bad)
        with pytest.raises(ValueError, match=r"^`head_ratio` must be"):
            penalties_for(0.1, head_ratio=bad)


def test_warm_start_and_weight_decay_change_what_they_should() -> None:
    penalties = Penalties(0.3, 0.02, 0.5)
    assert scaled(penalties, 0.5) == Penalties(0.15, 0.01, 0.5)
    assert with_weight_decay(penalties, 0.25) == Penalties(0.55, 0.02, 0.75)
    assert with_weight_decay(Penalties(0.3, 0.02), 0.25).lambda_b == math.inf


@pytest.mark.parametrize(
    ("penalties", "bias"),
    [
        (Penalties(0.3, 0.02, 0.5), True),
        (Penalties(0.3, 0.0, 0.0), True),
        (Penalties(0.3, 0.02, math.inf), False),
        (Penalties(0.0, 0.0, 0.0), True),
    ],
)
def test_gradient_without_the_loss_is_the_losses(penalties: Penalties, bias: bool) -> None:
    head, features, labels = _problem(bias)
    scale = torch.full((features.shape[1],), 1.5, dtype=torch.float64, requires_grad=True)  # a body of one parameter
    parameters = [scale, *head.parameters()]
    h = features * scale
    wanted = torch.autograd.grad(penalised_loss(head(h), h, labels, head, penalties, 3 * N), parameters)
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 7.0)  # it adds
    h = features * scale
    penalised_backward((head(h), h), labels, head, penalties, 3 * N, 1 / len(labels))
    for parameter, gradient in zip(parameters, wanted, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad - 7, gradient, rtol=1e-10, atol=1e-13)
