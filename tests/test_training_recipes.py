"""The demonstration recipes reach what every minimum with nonnegative features must satisfy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from collapsar.training import demo_config, imbalanced, load_data, train
from collapsar.training.measure import features_and_logits


@pytest.mark.slow
@pytest.mark.parametrize(("lambda_z", "alive"), [(0.0045, 10), (0.0105, 5), (0.02, 0)])
def test_digits_end_at_a_minimum_of_the_nonnegative_model(lambda_z: float, alive: int) -> None:
    """Conditions that need no solver, with the tolerances of a run that ends within 3% of the optimum.

    An alive class has √n_k ‖e_k − p̄_k‖ = N λ_Z, a dead one at most that; λ_W ‖W‖² = λ_H Σ n_k ‖h̄_k‖²; the
    features of a class fall together.
    """
    config = demo_config("digits", lambda_z)
    data = imbalanced(load_data("digits"), config.class_counts)
    result = train(replace(config, device="cpu"), data)
    parts = list(features_and_logits(result.model, data))
    features, logits, labels = (torch.cat(column).double() for column in zip(*parts, strict=True))
    means = torch.stack([features[labels == label].mean(dim=0) for label in range(10)])
    norms = means.norm(dim=1)
    assert ((norms > 0.5).sum(), (norms < 0.05).sum()) == (alive, 10 - alive)
    assert bool((norms[:5] > 0.5).all()) or alive == 0  # it is the large classes that live on

    N = len(labels)
    n = torch.tensor(data.class_counts, dtype=torch.float64)
    P = torch.stack([torch.softmax(logits[labels == label], dim=1).mean(dim=0) for label in range(10)])
    pull = n.sqrt() * (torch.eye(10) - P).norm(dim=1) / N
    for label in range(10):
        if norms[label] > 0.5:
            assert pull[label].item() == pytest.approx(lambda_z, rel=0.05)
        else:
            assert pull[label].item() < 1.02 * lambda_z
    if alive:
        weight = config.penalties.lambda_w * result.model.head.weight.double().square().sum()
        assert weight.item() == pytest.approx(config.penalties.lambda_h * features.square().sum().item(), rel=0.03)
        spread = (features - means[labels.long()]).square().sum() / features.square().sum()
        assert spread.item() < 0.01
    # With the weights gone the bias alone is left to be compared with, which the last small rates hardly move.
    assert result.records[-1]["stationarity"] < (0.02 if alive else 0.04)
