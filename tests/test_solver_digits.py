"""Z and b themselves, not only the objective: nine digits at the default tolerance, and sums that theory says are 0."""

from __future__ import annotations

import numpy as np
import pytest

import collapsar as cs

INF = float("inf")


def random_problem(seed: int) -> cs.Problem:
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(3, 61))
    tail = np.rint(np.geomspace(5000, 5000 / rng.choice([10, 100, 500]), num_classes)).astype(int)
    n = np.unique(tail if rng.random() < 0.6 else rng.integers(5, 5000, num_classes))
    lambda_z = 10 ** rng.uniform(-1, 0.7) * np.sqrt(n.min()) / n.sum()
    return cs.Problem(n, lambda_z, rng.choice([0.0, 1e-4, 1e-2, 0.02, 1.0, INF]))


def relative(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(x - reference) / max(np.linalg.norm(reference), 1e-300))


def test_the_point_has_nine_digits() -> None:
    """Against the same point after further steps, each certified to 1e-13 and started from the one before."""
    errors = []
    for seed in range(40):
        p = random_problem(seed)
        s = reference = cs.solve(p)
        for _ in range(3):
            reference = cs.solve(p, tol=1e-13, start=reference, throw=False)
        errors.append(relative(s.Z, reference.Z))
    assert np.median(errors) <= 2e-9
    assert np.max(errors) <= 1e-5  # a class at its threshold: the objective is all but flat


@pytest.mark.parametrize(
    "p",
    [
        cs.Problem("exp:5000:50:50", 0.1 * np.sqrt(50) / 58_000, 1e-4),
        cs.Problem("exp:5000:50:15", 1e-4, 1e-10),  # the price of the bias is too low to hold its sum down by itself
        cs.Problem("exp:5000:50:15", 1e-3, 1e-10, features="nonnegative"),
        cs.Problem("500x5,20x5", 0.0018, 0.001, features="nonnegative"),
        cs.Problem("exp:5000:50:15", 1e-3, 1e-10, loss=cs.Loss(scales=np.linspace(1, 2, 15))),
        cs.Problem("exp:5000:50:30", 1e-4, 0.0, loss=cs.Loss(scales=np.linspace(1, 2, 30))),
    ],
    ids=["long-tail", "cheap-bias", "nonnegative", "shared", "scales", "free-bias"],
)
def test_columns_and_bias_sum_to_zero_against_the_scales(p: cs.Problem) -> None:
    s = cs.solve(p)
    assert np.abs((1 / p.scales) @ s.Z).max() <= 1e-12 * np.abs(s.Z).max()
    assert abs((1 / p.scales) @ s.b) <= 1e-12 * np.abs(s.b).max()
