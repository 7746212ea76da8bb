"""The landscape certificate against descent on (W, H, b) and finite differences of the objective."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from collapsar.core.loss import Loss
from collapsar.core.problem import Problem
from collapsar.theory.landscape import Verdict, landscape
from collapsar.theory.two_cluster import two_cluster


def objective(p: Problem, lambda_w: float, W: NDArray, H: NDArray, b: NDArray) -> float:
    """The non-convex objective on class means, written out."""
    U = p.temperatures * (p.scales[:, None] * (W.T @ H + b[:, None])) + p.offsets[:, None]
    Y = (1 - p.loss.smoothing) * np.eye(p.num_classes) + p.loss.smoothing / p.num_classes
    value = p.loss_share @ (logsumexp(U, axis=0) - np.sum(Y * U, axis=0))
    value += 0.5 * lambda_w * np.sum(W**2) + 0.5 * p.lambda_z**2 / lambda_w * np.sum(p.mass * H**2)
    return float(value + (0.0 if p.lambda_b == np.inf else 0.5 * p.lambda_b * b @ b))


def descend(p: Problem, lambda_w: float, d: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    K = p.num_classes

    def parts(v: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        return v[: d * K].reshape(d, K), v[d * K : 2 * d * K].reshape(d, K), v[2 * d * K :]

    start = 0.5 * np.random.default_rng(seed).standard_normal(2 * d * K + K)
    options = {"gtol": 1e-9, "maxiter": 3000}
    found = minimize(lambda v: objective(p, lambda_w, *parts(v)), start, method="BFGS", options=options)
    return parts(found.x)


PROBLEMS = {
    "plain": Problem([20, 10, 10], 0.05, 0.1),
    "remedies": Problem([20, 10, 10], 0.03, 0.1, Loss([1, 2, 2], [0.2, 0, 0], [1, 0.8, 1], [1, 1, 1.2], 0.1)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_where_descent_ends_is_global(name: str) -> None:
    problem = PROBLEMS[name]
    W, H, b = descend(problem, 0.2, 4, 0)
    verdict = landscape(problem, W, H, b, lambda_w=0.2, tol=1e-5)
    assert verdict.verdict is Verdict.GLOBAL
    assert verdict.spectral_norm == pytest.approx(problem.lambda_z, rel=1e-4)


def _curvature(p: Problem, lambda_w: float, point: tuple, direction: tuple) -> float:
    step = 1e-3
    f = [
        objective(p, lambda_w, point[0] + t * direction[0], point[1] + t * direction[1], point[2])
        for t in (-step, 0, step)
    ]
    return (f[0] - 2 * f[1] + f[2]) / step**2


def test_the_origin_is_a_saddle_and_the_direction_leaves_it() -> None:
    problem = Problem([30, 10, 10], 0.02)
    zero = (np.zeros((4, 3)), np.zeros((4, 3)), np.zeros(3))
    found = landscape(problem, zero[0], zero[1], lambda_w=0.3)
    assert found.verdict is Verdict.SADDLE
    assert found.direction is not None
    assert found.curvature < 0
    assert _curvature(problem, 0.3, zero, found.direction) == pytest.approx(found.curvature, rel=1e-4)


def test_a_merged_critical_point_below_the_merge_threshold_is_a_saddle() -> None:
    """The best point with two classes tied together is critical; the way out separates the two."""
    problem = Problem([40, 40, 10, 10], 0.01)  # merge threshold .0316
    # the optimum of a problem whose two minorities are held equal: its symmetric part, by descent on tied
    # columns
    K, d, lambda_w = 4, 6, 0.1
    tie = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1.0]]).T

    def tied(v: NDArray) -> float:
        W, H = v[: d * 3].reshape(d, 3) @ tie, v[d * 3 :].reshape(d, 3) @ tie
        return objective(problem, lambda_w, W, H, np.zeros(K))

    start = 0.5 * np.random.default_rng(3).standard_normal(2 * d * 3)
    v = minimize(tied, start, method="BFGS", options={"gtol": 1e-9, "maxiter": 3000}).x
    point = (v[: d * 3].reshape(d, 3) @ tie, v[d * 3 :].reshape(d, 3) @ tie, np.zeros(K))
    found = landscape(problem, point[0], point[1], lambda_w=lambda_w, tol=1e-5)
    assert found.verdict is Verdict.SADDLE
    assert found.direction is not None
    assert _curvature(problem, lambda_w, point, found.direction) == pytest.approx(found.curvature, rel=1e-2)
    head = found.direction[0]
    assert abs(np.sum(head[:, 2] * head[:, 3]) / (np.linalg.norm(head[:, 2]) * np.linalg.norm(head[:, 3])) + 1) < 1e-3


def test_samples_and_class_means_agree() -> None:
    s = two_cluster(2, 2, 30, 10, 0.02, 0.1)
    n = np.array([30, 30, 10, 10])
    problem, lambda_w = Problem(n, 0.02, 0.1), 0.05
    lambda_h = 0.02**2 / lambda_w
    U, values, Vt = np.linalg.svd(s.Z() * np.sqrt(n))
    values[-1] = 0.0  # Z has rank K - 1
    W = np.zeros((5, 4))
    H = np.zeros((5, 4))
    W[:4] = (lambda_h / lambda_w) ** 0.25 * np.sqrt(values)[:, None] * U.T
    H[:4] = (lambda_w / lambda_h) ** 0.25 * np.sqrt(values)[:, None] * Vt / np.sqrt(n)
    labels = np.repeat(np.arange(4), n)
    for found in (
        landscape(problem, W, H, s.bias(), lambda_w=lambda_w),
        landscape(problem, W, H[:, labels], s.bias(), lambda_w=lambda_w, labels=labels),
    ):
        assert found.verdict is Verdict.GLOBAL
        assert found.gradient_norm < 1e-10
    assert landscape(problem, 1.1 * W, H, s.bias(), lambda_w=lambda_w).verdict is Verdict.NOT_CRITICAL


def test_no_spare_dimension_is_undecided() -> None:
    """d = 1 for three classes: critical, not global, and no unused direction."""
    problem = Problem([10, 10, 10], 0.01)
    W, H, b = descend(problem, 0.1, 1, 0)
    found = landscape(problem, W, H, lambda_w=0.1, tol=1e-4)
    assert np.abs(b).max() < 10
    assert found.verdict in (Verdict.UNDECIDED, Verdict.NOT_CRITICAL)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"W": np.zeros((3, 4))}, "W"),
        ({"H": np.zeros((2, 3))}, "H"),
        ({"H": np.zeros((3, 5))}, "labels"),
        ({"b": np.zeros(2)}, "b"),
        ({"b": np.ones(3)}, "b"),
        ({"W": np.full((3, 3), np.nan)}, "W"),
        ({"lambda_w": 0.0}, "lambda_w"),
        ({"problem": Problem([10, 10, 5], 0.1, features="nonnegative")}, "problem"),
        ({"problem": Problem.from_normalized([10, 10, 5], lambda_w=0.1, norm=1.0)}, "problem"),
        ({"labels": [0, 0, 1]}, "labels"),
    ],
)
def test_bad_arguments(change: dict, name: str) -> None:
    good = {"problem": Problem([10, 10, 5], 0.1), "W": np.zeros((3, 3)), "H": np.zeros((3, 3)), "lambda_w": 0.1}
    with pytest.raises(ValueError, match=f"`{name}`"):
        landscape(**{**good, **change})
