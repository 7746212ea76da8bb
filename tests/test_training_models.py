"""Shapes, the switch of the last ReLU, initialisation, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from collapsar.training.models import ModelSpec, build_model

SHAPES = {"mlp": (1, 8, 8), "cnn": (3, 12, 16)}


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("feature_relu", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_forward_gives_logits_of_the_features(name: str, feature_relu: bool, batch_norm: bool) -> None:
    spec = ModelSpec(name, widths=(8, 12, 20), feature_relu=feature_relu, batch_norm=batch_norm)
    generator = torch.Generator().manual_seed(0)
    model = build_model(spec, SHAPES[name], 5, generator=generator)
    logits, features = model(torch.randn(7, *SHAPES[name], generator=generator))
    assert logits.shape == (7, 5)
    assert features.shape == (7, 20)
    assert model.num_features == 20
    assert torch.allclose(logits, features @ model.head.weight.T + model.head.bias, atol=1e-5)
    assert bool((features >= 0).all()) == feature_relu
    assert bool((features == 0).any()) == feature_relu
    normed = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert len(normed) == (2 if batch_norm else 0)
    loss = logits.sum() + features.sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_head_bias_is_absent_for_an_infinite_penalty() -> None:
    assert build_model("mlp", (1, 8, 8), 10, head_bias=False).head.bias is None
    assert build_model("mlp", (1, 8, 8), 10).head.bias is not None


def test_generator_decides_the_weights_and_the_global_one_stays() -> None:
    before = torch.get_rng_state()
    one, two, three = (
        build_model("cnn", (1, 8, 8), 10, generator=torch.Generator().manual_seed(seed)).state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], three["head.weight"])


@pytest.mark.parametrize(("feature_relu", "last_gain"), [(True, 2.0), (False, 1.0)])
def test_initial_variances_keep_the_scale(feature_relu: bool, last_gain: float) -> None:
    """Variance 2/fan_in before a ReLU, 1/fan_in elsewhere; 5% is 14 standard errors of 400x400 draws."""
    spec = ModelSpec("mlp", widths=(400, 400), feature_relu=feature_relu)
    model = build_model(spec, (1, 20, 20), 400, generator=torch.Generator().manual_seed(0))
    first, last = (layer for layer in model.body.modules() if isinstance(layer, nn.Linear))
    for layer, gain in ((first, 2.0), (last, last_gain), (model.head, 1.0)):
        assert layer.weight.var().item() * 400 == pytest.approx(gain, rel=0.05)
        assert not layer.bias.any()


def test_bad_models_are_refused() -> None:
    for make, named in (
        (lambda: ModelSpec("resnet999"), "`name` must be one of cnn, mlp"),
        (lambda: ModelSpec(widths=(0,)), "`widths` must be"),
        (lambda: ModelSpec(widths=(2.5,)), "`widths` must be"),  # pyright: ignore[reportArgumentType]
        (lambda: build_model(ModelSpec(widths=(64, 9)), (1, 8, 8), 10), "got 9 features for 10 classes"),
        (lambda: build_model(ModelSpec("cnn", (8, 8, 8, 8, 16)), (1, 8, 8), 10), "too many for 8x8"),
        (lambda: build_model("mlp", (1, 8, 8), 1), "`num_classes` must be at least 2"),
    ):
        with pytest.raises(ValueError, match=named):
            make()
