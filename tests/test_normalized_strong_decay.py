"""Decay so strong that the loss hardly depends on the head: states against the conditions of the optimum."""

from __future__ import annotations

import numpy as np
import pytest

import collapsar as cs

COUNTS = {
    "merging": (3339, 2907, 1592, 1566, 930, 523, 433, 293, 53, 12, 11, 10),
    "nearly": (4914, 4438, 885, 721, 708, 569, 458, 261, 112, 108, 68, 23),
}


def optimality(p: cs.Problem, s: cs.Solution, lambda_w: float, rho: float) -> tuple[float, float, np.ndarray]:
    """K x K and from the factors alone: how far the optimum's conditions are from holding, each against its own size.

    With y_k = lambda_w <h_k, W r_k> / rho^2 they are lambda_w W = H R', W r_k along h_k, and diag(y) >= R'R; and the
    largest eigenvalue of R'R against diag(y) among the differences of the classes of each three.
    """
    K, (W, H, _) = p.num_classes, s.factors(p.num_classes)
    logits = W.T @ H
    odds = np.exp(logits - logits.max(axis=0))
    R = (np.eye(K) - odds / odds.sum(axis=0)) * p.class_counts / p.class_counts.sum()
    head = lambda_w * np.linalg.norm(W, axis=0)
    moved = W @ R
    y = lambda_w * np.sum(H * moved, axis=0) / rho**2
    slopes = np.linalg.norm(lambda_w * W - H @ R.T, axis=0) / head
    sides = np.linalg.norm(lambda_w * moved - H * y, axis=0) / (y * rho)
    gram = R.T @ R / np.sqrt(np.outer(y, y))
    inside = np.array([gram[k, k] - gram[k, k + 1] for k in range(0, K, 3)])
    return max(slopes.max(), sides.max()), float(np.linalg.eigvalsh(gram)[-1]) - 1, inside


@pytest.mark.parametrize(("name", "over"), [("merging", 3.0), ("nearly", 1.0)])
def test_the_states_of_small_classes_are_those_of_the_optimum(name, over):
    counts = np.repeat(COUNTS[name], 3)
    p = cs.Problem.from_normalized(counts, lambda_w=over * 128, norm=128**0.5, over="sample", lambda_b=np.inf)
    s = cs.solve(p)
    off, above, inside = optimality(p, s, over * 128, 128**0.5)
    assert off <= 1e-6
    assert above <= 1e-8
    gram = s.feature_gram()
    cosines = np.array([gram[k, k + 1] for k in range(0, 36, 3)]) / 128
    states = s.class_states[::3]
    for state, cosine, value in zip(states, cosines, inside, strict=True):
        # apart, the differences within a cluster are in use: value one. Merged, they are not
        assert state == ("merged" if value < 1 - 1e-7 else "separated")
        assert (cosine > 1 - 1e-9) == (state == "merged")
    assert states.count("merged") == (4 if name == "merging" else 1)
