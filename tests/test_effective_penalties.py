"""Penalties read from optimizers, losses and layers; a warning for each difference from the theory."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from collapsar.core.loss import Loss
from collapsar.core.penalties import Penalties
from collapsar.core.problem import Problem
from collapsar.diagnose.readers import diagnose
from collapsar.monitor.differences import PenaltyWarning
from collapsar.monitor.known import known_training, penalty_warnings
from collapsar.report.network_words import cautions
from collapsar.training import ClassAwareSampler, MatchedCrossEntropy


def plain_model(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=bias))


def sgd(model: nn.Module, weight_decay: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=weight_decay)


def kinds(*arguments, **named) -> list[str]:
    return [warning.kind for warning in penalty_warnings(*arguments, **named)]


def test_decay_adds_to_the_penalties_of_the_loss():
    model = plain_model()
    known = known_training(model, model[2], sgd(model, 5e-4), penalties=Penalties(2e-3, 2e-6, 2e-2))
    assert (known.lambda_w, known.lambda_h, known.lambda_b) == pytest.approx((2.5e-3, 2e-6, 2.05e-2))
    assert known.cautions == ()
    headless = plain_model(bias=False)
    known = known_training(headless, headless[2], sgd(headless, 5e-4), penalties=Penalties(2e-3, 2e-6))
    assert known.lambda_w == pytest.approx(2.5e-3)
    assert known.lambda_b is None


def test_each_parameter_has_the_decay_of_its_own_group():
    model = plain_model()
    head = model[2]
    optimizer = torch.optim.SGD(
        [
            {"params": [head.weight], "weight_decay": 0.03},
            {"params": [head.bias], "weight_decay": 0.0},
            {"params": model[0].parameters(), "weight_decay": 0.5},
        ],
        lr=0.1,
    )
    with pytest.warns(PenaltyWarning, match="last normalisation if there is one: 1. Each"):
        known = known_training(model, head, optimizer)
    assert (known.lambda_w, known.lambda_h, known.lambda_b) == (0.03, None, 0.0)
    assert len(known.cautions) == 1


@pytest.mark.parametrize(
    ("make", "decoupled"),
    [
        (lambda p: torch.optim.AdamW(p, weight_decay=0.1), True),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1, decoupled_weight_decay=True), True),
        (lambda p: torch.optim.NAdam(p, weight_decay=0.1, decoupled_weight_decay=True), True),
        (lambda p: type("Lion", (torch.optim.SGD,), {})(p, lr=0.1, weight_decay=0.1), False),  # a name says nothing
        (lambda p: type("Plain", (torch.optim.AdamW,), {})(p, lr=0.1, weight_decay=0.1), True),
        (lambda p: torch.optim.Adam(p, weight_decay=0.1), False),
        (lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1), False),
        (lambda p: torch.optim.AdamW(p, weight_decay=0.0), False),
    ],
)
def test_decoupled_decay_is_no_penalty(make, decoupled):
    model = plain_model()
    optimizer = make(model.parameters())
    penalties = Penalties(0.01, 0.001, 0.02)
    assert ("decoupled-decay" in kinds(model, model[2], optimizer, penalties=penalties)) is decoupled
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PenaltyWarning)
        known = known_training(model, model[2], optimizer, penalties=penalties)
    assert (known.lambda_w is None) is decoupled
    assert (known.lambda_b is None) is decoupled


def test_adamw_really_rests_where_the_loss_and_its_decay_do_not_balance():
    """The reason for the warning: a quadratic whose minimum under an L2 penalty is known."""
    resting = {}
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        x = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
        optimizer = kind([x], lr=0.05, weight_decay=0.5)
        for _ in range(450):  # SGD's way shrinks by 3.5 % a step
            optimizer.zero_grad()
            (0.1 * (x - 1) ** 2).sum().backward()
            optimizer.step()
        resting[kind] = x.item()
    assert resting[torch.optim.SGD] == pytest.approx(0.2 / 0.7, rel=1e-6)  # 0.2 (x - 1) + 0.5 x = 0
    assert resting[torch.optim.AdamW] > 0.5


def test_frozen_parts_are_told_apart():
    model = plain_model()
    assert kinds(model, model[2], sgd(model[2])) == ["frozen-backbone", "no-feature-penalty"]
    model[0].bias.requires_grad_(False)
    found = penalty_warnings(model, model[2], sgd(model), penalties=Penalties(1, 1))
    assert [(w.kind, "in part" in str(w)) for w in found] == [("frozen-backbone", True)]
    model[0].bias.requires_grad_(True)
    model[2].requires_grad_(False)
    assert kinds(model, model[2], sgd(model), penalties=Penalties(1, 1)) == ["frozen-head"]


def test_a_head_that_is_not_trained_is_compared_with_nothing():
    """A fixed simplex, or adapters below an old head: its forces never balance, and more training does not help."""
    torch.manual_seed(0)
    model, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.tensor([0] * 30 + [1] * 30 + [2] * 8)
    x = torch.eye(3, 4)[y] + 0.1 * torch.randn(68, 4)
    model[2].weight.requires_grad_(False)  # its bias is trained
    optimizer = sgd(model, 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PenaltyWarning)
        known = known_training(model, model[2], optimizer)
    found = diagnose(model, [(x, y)], known=known)
    assert (known.frozen_head, known.lambda_w) == (True, None)
    assert (found.model.name, found.effective, found.fit, found.prediction) == ("none", None, None, None)
    assert not found.at_rest
    text = " ".join(found.words)
    assert text.count("The head is not trained") == 1
    assert "at rest" not in text
    assert not any("converged" in caution for caution in cautions(json.loads(found.to_json())))
    free = diagnose(model, [(x, y)], known=replace(known, frozen_head=False))
    assert "The head is not at rest" in " ".join(free.words)
    assert any("converged" in caution for caution in cautions(json.loads(free.to_json())))


def test_an_optimizer_of_another_network_is_refused():
    """A moving average of the weights is no part of the training: it would be read as frozen in every layer."""
    model = plain_model()
    average: Any = AveragedModel(model)
    for read in (known_training, penalty_warnings):
        with pytest.raises(ValueError, match=r"`optimizer` holds no parameter of `model`.*a moving average"):
            read(average, average.module[2], sgd(model))


def test_decay_of_a_batch_norm_that_feeds_the_head_is_a_feature_penalty():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), norm, nn.Dropout(0.1), nn.Linear(6, 3)).double()
    x, wd = torch.randn(500, 4, dtype=torch.float64), 0.01
    with torch.no_grad():
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        features = model[:2](x)  # in training mode: normalised by this very batch
        of_norm = wd / 2 * float(norm.weight.square().sum() + norm.bias.square().sum())
    with pytest.warns(PenaltyWarning, match="BatchNorm1d feeds the head") as caught:
        known = known_training(model, model[3], sgd(model, wd), data=DataLoader(TensorDataset(x), batch_size=50))
    assert [w.message.kind for w in caught] == ["normalised-features"]  # pyright: ignore[reportAttributeAccessIssue]
    assert known.lambda_h is not None
    # BatchNorm adds 1e-5 to the variance, which is some 1e-4 of it here
    assert known.lambda_h / 2 * float(features.square().sum()) == pytest.approx(of_norm, rel=1e-3)


def test_layers_between_the_last_norm_and_the_head_are_counted():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(),
        nn.Linear(6, 3),
    )  # fmt: skip
    found = penalty_warnings(model, model[7], sgd(model, 1e-3))
    assert [w.kind for w in found] == ["normalised-below", "decayed-layers"]
    assert str(found[1]).startswith("Decayed layers below the head, above the last normalisation if there is one: 2.")
    assert kinds(model, model[7], sgd(model, 1e-3), penalties=Penalties(1, 1)) == []
    layered = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    assert kinds(layered, layered[2]) == ["normalised-features"]


def test_nothing_on_the_features_is_told():
    model = plain_model()
    assert kinds(model, model[2], sgd(model)) == ["no-feature-penalty"]


class RandomCrop:
    def __repr__(self) -> str:
        return "Compose(RandomCrop(size=(32, 32)), ToTensor())"


class Images(TensorDataset):
    transform: object = None


def mixup_collate(batch):
    return batch


@pytest.mark.parametrize(
    ("transform", "augmented"),
    [
        ("RandAugment(num_ops=2, magnitude=9, num_magnitude_bins=31, fill=None)", True),
        ("TrivialAugmentWide(num_magnitude_bins=31, fill=None)", True),
        ("Compose([HorizontalFlip(p=0.5), Normalize(mean=(0.5,), std=(0.5,), p=1.0)], p=1.0)", True),
        ("Compose([Resize(p=1, height=32), Normalize(mean=(0.5,), std=(0.5,), p=1.0)], p=1.0)", False),
        ("Compose(CenterCrop(size=(32, 32)), ToTensor())", False),
    ],
)
def test_transforms_that_vary_are_told_by_name_or_probability(transform: str, augmented: bool) -> None:
    class Transform:
        def __repr__(self) -> str:
            return transform

    model, images = plain_model(), Images(torch.zeros(4, 4), torch.zeros(4))
    images.transform = Transform()
    found = kinds(model, model[2], sgd(model), data=DataLoader(images), penalties=Penalties(1.0, 1.0))
    assert found == ["augmentation"] * augmented


def test_augmentation_and_mixing_are_seen_in_the_loader():
    model = plain_model()
    given = {"penalties": Penalties(1.0, 1.0)}
    images = Images(torch.zeros(4, 4), torch.zeros(4))
    assert kinds(model, model[2], sgd(model), data=DataLoader(images), **given) == []
    images.transform = RandomCrop()
    part = torch.utils.data.Subset(images, [0, 1])
    assert kinds(model, model[2], sgd(model), data=DataLoader(part), **given) == ["augmentation"]
    loader = DataLoader(images, collate_fn=mixup_collate)
    assert kinds(model, model[2], sgd(model), data=loader, **given) == ["augmentation", "mixup"]


def test_the_loss_is_read():
    model = plain_model()
    weight = torch.tensor([1.0, 2.0, 4.0])
    criterion = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    with pytest.warns(
        PenaltyWarning, match="which is not the loss of the theory"
    ):  # torch weighs the smoothed part too
        known = known_training(model, model[2], sgd(model), penalties=Penalties(1, 1), criterion=criterion)
    assert known.loss == Loss(class_weights=np.array([1.0, 2.0, 4.0]), smoothing=0.1)
    assert kinds(model, model[2], criterion=nn.MultiMarginLoss()) == ["loss"]


def test_without_an_optimizer_only_the_loss_speaks():
    model = plain_model()
    known = known_training(model, model[2], None, penalties=Penalties(0.1, 0.01, 0.02))
    assert (known.lambda_w, known.lambda_h, known.lambda_b) == (0.1, 0.01, 0.02)
    assert known_training(model, model[2], None).lambda_w is None


def test_a_head_of_another_model_is_refused():
    with pytest.raises(ValueError, match="`head` must be a linear layer of `model`"):
        penalty_warnings(plain_model(), nn.Linear(6, 3))


def test_the_matched_criterion_is_known_and_resampling_is_warned_of():
    problem = Problem([30, 10, 5], 0.01, loss=Loss(class_weights=[1.0, 1.0, 3.0], scales=[1.0, 1.0, 2.0]))
    model = plain_model()
    named = {"penalties": Penalties(0.1, 0.01), "criterion": MatchedCrossEntropy(problem)}
    known = known_training(model, model[2], sgd(model), **named)
    assert known.loss == problem.loss
    assert known.cautions == ()
    drawn = MatchedCrossEntropy(problem, oversampled=True).loss
    assert drawn.class_weights is None
    assert drawn.scales is not None
    labels = np.repeat(np.arange(3), problem.class_counts)
    data = TensorDataset(torch.zeros(45, 4), torch.from_numpy(labels))
    for sampler in (ClassAwareSampler(labels, [1, 2, 3]), WeightedRandomSampler((1 + labels**2).tolist(), 45)):
        loader = DataLoader(data, sampler=sampler)
        assert kinds(model, model[2], sgd(model), penalties=Penalties(0.1, 0.01), data=loader) == ["resampled"]
    for loader in (
        DataLoader(data, shuffle=True),
        DataLoader(data, sampler=WeightedRandomSampler([1.0] * 45, 45)),  # at the rates of the data
    ):
        assert kinds(model, model[2], sgd(model), penalties=Penalties(0.1, 0.01), data=loader) == []
