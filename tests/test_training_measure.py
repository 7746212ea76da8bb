"""Measurements of a network against autograd and against numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from collapsar.core.penalties import Penalties
from collapsar.training.config import TrainConfig
from collapsar.training.data import imbalanced, load_data
from collapsar.training.loop import train
from collapsar.training.measure import HeadGradient, evaluate, features_and_logits, head_gradient
from collapsar.training.models import FeatureNetwork, ModelSpec, build_model

DATA = imbalanced(load_data("digits"), (12,) * 5 + (5,) * 5)


def _model(head_bias: bool = True, batch_norm: bool = False) -> FeatureNetwork:
    generator = torch.Generator().manual_seed(1)
    spec = ModelSpec("mlp", widths=(24, 16), batch_norm=batch_norm)
    model = build_model(spec, DATA.image_shape, 10, head_bias=head_bias, generator=generator)
    if head_bias:
        with torch.no_grad():
            model.head.bias.copy_(torch.randn(10, generator=generator))
    return model


@pytest.mark.parametrize("lambda_b", [0.0, 0.3, math.inf])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_head_gradient_is_autograds(lambda_b: float, batch_norm: bool) -> None:
    head_bias = math.isfinite(lambda_b)
    model = _model(head_bias, batch_norm)
    got = head_gradient(model, DATA, Penalties(0.2, 0.01, lambda_b))
    model = model.double().eval()
    logits, features = model(DATA.normalised(DATA.train_images).double())
    penalty = 0.1 * model.head.weight.square().sum()
    loss = functional.cross_entropy(logits, DATA.train_labels) + penalty
    loss = loss + 0.005 * features.square().sum()  # must make no difference
    parameters = list(model.head.parameters())
    if head_bias:
        loss = loss + lambda_b / 2 * model.head.bias.square().sum()
        penalty = penalty + lambda_b / 2 * model.head.bias.square().sum()
    norms = []
    for value in (loss, penalty):
        gradients = torch.autograd.grad(value, parameters, retain_graph=True)
        norms.append(math.sqrt(sum(gradient.square().sum().item() for gradient in gradients)))
    assert got.norm == pytest.approx(norms[0], rel=1e-5)
    assert got.penalty_norm == pytest.approx(norms[1], rel=1e-5)
    assert got.relative == pytest.approx(norms[0] / norms[1], rel=1e-5)


def test_relative_gradient_without_penalties_is_undefined() -> None:
    assert math.isnan(head_gradient(_model(), DATA, Penalties(0.0, 0.0, 0.0)).relative)
    assert HeadGradient(0.5, 2.0).relative == 0.25


def test_head_fitted_to_its_features_stands_still() -> None:
    """With the head at its own minimum the relative gradient is 0, to the features' float32 accuracy."""
    model = _model()
    features = model.body(DATA.normalised(DATA.train_images)).detach().double()
    weight, bias = (p.detach().double().requires_grad_() for p in model.head.parameters())
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> torch.Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(features @ weight.T + bias, DATA.train_labels)
        loss = loss + 0.05 * weight.square().sum() + 0.15 * bias.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    penalties = Penalties(0.1, 0.01, 0.3)
    assert head_gradient(model, DATA, penalties).relative > 0.1
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)
    assert head_gradient(model, DATA, penalties).relative < 1e-5


@pytest.mark.parametrize("was_training", [True, False])
def test_features_come_in_order_in_eval_mode_and_the_mode_returns(was_training: bool) -> None:
    model = _model(batch_norm=True).train(was_training)
    seen = []
    for features, logits, labels in features_and_logits(model, DATA, "test", batch_size=100):
        assert not model.training
        assert not logits.requires_grad
        seen.append((features, logits, labels))
        if len(seen) == 2 and was_training:
            break  # an iterator left early must give the mode back too
    assert model.training == was_training
    features, logits, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    whole_logits, whole_features = model.eval()(DATA.normalised(DATA.test_images))
    assert torch.allclose(features, whole_features[: len(features)], atol=1e-5)
    assert torch.allclose(logits, whole_logits[: len(logits)], atol=1e-5)
    assert torch.equal(labels, DATA.test_labels[: len(labels)])
    with pytest.raises(ValueError, match="`split` must be"):
        next(features_and_logits(model, DATA, "validation"))


def test_evaluate_counts_like_numpy() -> None:
    model = _model()
    seven_missing = DATA.test_labels != 7
    data = replace(DATA, test_images=DATA.test_images[seven_missing], test_labels=DATA.test_labels[seven_missing])
    got = evaluate(model, data, Penalties(0.1, 0.01, 0.3))
    rows = {}
    for split in ("train", "test"):
        with torch.no_grad():
            rows[split] = model(data.normalised(data.images(split)))[0].double().numpy()
    labels = data.train_labels.numpy()
    shifted = rows["train"] - rows["train"].max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    assert got["train_loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert got["train_accuracy"] == pytest.approx((rows["train"].argmax(axis=1) == labels).mean())
    labels = data.test_labels.numpy()
    right = rows["test"].argmax(axis=1) == labels
    assert got["test_accuracy"] == pytest.approx(right.mean())
    assert math.isnan(got["test_class_accuracies"][7])
    for label in (0, 1, 2, 3, 4, 5, 6, 8, 9):
        assert got["test_class_accuracies"][label] == pytest.approx(right[labels == label].mean())
    assert got["stationarity"] == head_gradient(model, data, Penalties(0.1, 0.01, 0.3)).relative


def test_balanced_majority_and_minority_accuracy_are_means_over_classes() -> None:
    got = evaluate(_model(), DATA, Penalties(0.1, 0.01, 0.3))
    shares = got["test_class_accuracies"]  # the first five classes have 12 training images, the others 5
    assert got["test_balanced_accuracy"] == pytest.approx(np.mean(shares))
    assert got["test_majority_accuracy"] == pytest.approx(np.mean(shares[:5]))
    assert got["test_minority_accuracy"] == pytest.approx(np.mean(shares[5:]))
    assert np.mean(shares[:5]) != pytest.approx(np.mean(shares[5:]))


def test_effective_penalties_balance_head_and_class_means() -> None:
    model = _model()
    got = evaluate(model, DATA, Penalties(0.2, 0.01, 0.3))
    with torch.no_grad():
        features = model(DATA.normalised(DATA.train_images))[1].double().numpy()
    labels = DATA.train_labels.numpy()
    mass = sum(n * (features[labels == k].mean(axis=0) ** 2).sum() for k, n in enumerate(DATA.class_counts))
    lambda_h = 0.2 * float(model.head.weight.detach().double().square().sum()) / mass
    assert got["effective_lambda_h"] == pytest.approx(lambda_h, rel=1e-5)
    assert got["effective_lambda_z"] == pytest.approx(math.sqrt(0.2 * lambda_h), rel=1e-5)
    assert (got["effective_lambda_w"], got["effective_lambda_b"]) == (0.2, 0.3)
    without = evaluate(model, DATA, Penalties(0.0, 0.01, 0.3))
    assert math.isnan(without["effective_lambda_h"])
    assert math.isnan(without["effective_lambda_z"])


def test_a_trained_network_shows_the_feature_penalty_it_was_given() -> None:
    """At a stationary point the balance of head and features gives back λ_H: the loss's own, found without it."""
    penalties = Penalties(0.05, 0.0008, 0.02)
    config = TrainConfig("digits", (60,) * 10, penalties, epochs=120, model=ModelSpec("mlp", (64, 64)), clip_norm=1.0)
    last = train(replace(config, eval_every=120, device="cpu"), load_data("digits")).records[-1]
    assert last["effective_lambda_h"] == pytest.approx(penalties.lambda_h, rel=0.03)
    assert last["effective_lambda_z"] == pytest.approx(penalties.lambda_z, rel=0.03)
