"""Sibling models against independent optimisation: descent on factors, a conic solver, brute-force scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import logsumexp

from collapsar.core.problem import Problem
from collapsar.theory.thresholds import thresholds
from collapsar.theory.two_cluster import balanced
from collapsar_studies import siblings
from collapsar_studies.deep import deep_column, deep_price

# --- layer-peeled


@pytest.mark.parametrize(("k_a", "printed", "digits"), [(5, 12.19, 0.005), (3, 245.5, 0.05), (7, 4.00, 0.005)])
def test_layer_peeled_ratio_to_the_printed_digits(k_a: int, printed: float, digits: float) -> None:
    ratio = siblings.layer_peeled_ratio(k_a, 10 - k_a, 1.0, 5.0)
    assert ratio == pytest.approx(printed, abs=digits)
    for factor, state in ((0.999, "apart"), (1.001, "merged")):
        assert siblings.layer_peeled(k_a, 10 - k_a, ratio * factor, 1.0, 5.0)[0].state == state


@pytest.mark.reference
@pytest.mark.parametrize("ratio", [3.0, 40.0])
def test_layer_peeled_against_the_constrained_program(ratio: float) -> None:
    k_a, k_b, e_w, e_h = 2, 2, 1.0, 2.0
    K, share = 4, np.array([ratio, ratio, 1, 1]) / (2 * ratio + 2)
    Z = cp.Variable((K, K))
    loss = sum(share[k] * (cp.log_sum_exp(Z[:, k]) - Z[k, k]) for k in range(K))
    program = cp.Problem(cp.Minimize(loss), [cp.normNuc(Z) <= K * np.sqrt(e_w * e_h)])
    program.solve(solver=cp.CLARABEL)
    s, _ = siblings.layer_peeled(k_a, k_b, ratio, e_w, e_h)
    assert Z.value is not None
    np.testing.assert_allclose(s.Z(), Z.value, atol=2e-3)


# --- squared error


def _deep_linear_descent(n: NDArray, lambda_w: float, lambda_h: float, depth: int, start: float) -> NDArray:
    """One class is a chain of scalars w_1..w_M, h: descend on all of them."""

    def amplitude(n_k: float) -> float:
        def objective(v: NDArray) -> float:
            z = np.prod(v)
            price = 0.5 * lambda_w * np.sum(v[:-1] ** 2) + 0.5 * lambda_h * n_k * v[-1] ** 2
            return float(n_k / (2 * n.sum()) * (z - 1) ** 2 + price)

        first = np.r_[np.full(depth, start * n_k**0.2), start / n_k**0.2]
        options = {"xatol": 1e-12, "fatol": 1e-18, "maxiter": 20000, "maxfev": 20000}
        found = minimize(objective, first, method="Nelder-Mead", options=options)
        return float(np.prod(found.x)) if found.fun < n_k / (2 * n.sum()) - 1e-12 else 0.0

    return np.array([amplitude(float(v)) for v in n])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_mse_deep_linear(depth: int) -> None:
    n = np.array([100.0, 40.0, 3.0])
    d = siblings.mse_deep_linear(n, 0.004, 0.004, depth)
    np.testing.assert_allclose(d.amplitude, _deep_linear_descent(n, 0.004, 0.004, depth, 1.5), atol=2e-5)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_mse_deep_linear_collapses_at_the_limit_and_jumps(depth: int) -> None:
    """On the two sides of b/n = (M - 1)^((M - 1)/M)/M: a jump for M >= 2, none for M = 1."""
    n = np.array([100.0, 10.0])

    def at(level: float) -> siblings.DeepLinear:
        # lambda_w = lambda_h = v: level = M N (N v^(M + 1))^(1/M) / n_k
        v = ((level * n[1] / (depth * n.sum())) ** depth / n.sum()) ** (1 / (depth + 1))
        return siblings.mse_deep_linear(n, v, v, depth)

    limit = at(1.0).limit
    below, above = at(limit * (1 - 1e-6)), at(limit * (1 + 1e-6))
    assert above.amplitude[1] == 0
    assert below.level[1] == pytest.approx(limit, rel=1e-5)
    if depth == 1:
        assert 0 < below.amplitude[1] < 1e-5
        assert below.spinodal == pytest.approx(limit)
    else:
        assert below.amplitude[1] > 0.3
        assert below.spinodal > limit


def test_mse_with_one_layer_is_soft_thresholding() -> None:
    n, lambda_z = np.array([100.0, 25.0, 1.0]), 0.03
    d = siblings.mse_deep_linear(n, lambda_z, lambda_z)
    np.testing.assert_allclose(d.amplitude, np.maximum(1 - n.sum() * lambda_z / np.sqrt(n), 0), atol=1e-12)


@pytest.mark.reference
def test_mse_free_bias_against_a_conic_solver() -> None:
    n, lambda_z = np.array([30.0, 10.0, 4.0]), 0.06
    Z, b = cp.Variable((3, 3)), cp.Variable(3)
    loss = sum(n[k] * cp.sum_squares(Z[:, k] + b - np.eye(3)[k]) for k in range(3)) / (2 * n.sum())
    cp.Problem(cp.Minimize(loss + lambda_z * cp.normNuc(Z @ np.diag(np.sqrt(n))))).solve(solver=cp.CLARABEL)
    found = siblings.mse_free_bias(n, lambda_z)
    assert Z.value is not None
    assert b.value is not None
    assert found.rank == 1
    np.testing.assert_allclose(found.Z, Z.value, atol=1e-4)
    np.testing.assert_allclose(found.b, b.value, atol=1e-4)


# --- nonnegative features without bias, balanced losses


def test_relu_without_bias() -> None:
    """Against the thresholds of the nonnegative model, and its own stationarity, norms included."""
    n, lambda_w, lambda_h = np.array([100, 40, 1]), 2e-2, 3e-3
    r = siblings.relu_without_bias(n, lambda_w, lambda_h)
    lambda_z = np.sqrt(lambda_w * lambda_h)
    np.testing.assert_allclose(r.vanish, thresholds(Problem(n, 1.0, features="nonnegative")).vanish, rtol=1e-12)
    for k in range(3):

        def objective(length: float, k: int = k) -> float:
            z = length * (np.eye(3)[k] - 1 / 3)
            return float(n[k] / n.sum() * (logsumexp(z) - z[k]) + lambda_z * np.sqrt(n[k]) * np.linalg.norm(z))

        best: Any = minimize_scalar(objective, bounds=(0, 20), method="bounded", options={"xatol": 1e-10})
        assert r.amplitude[k] == pytest.approx(best.x, abs=1e-6)
    assert r.amplitude[2] == 0
    # the penalty splits evenly: lambda_w ||w||^2 = lambda_h n ||h||^2 with ||w|| ||h|| = ||z||
    z = r.amplitude * np.sqrt(2 / 3)
    np.testing.assert_allclose(r.feature_norm**4 * lambda_h * n, lambda_w * z**2, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_balanced_smoothing(smoothing: float) -> None:
    K, n = 6, 40
    for lambda_z in (0.001, 0.01, 0.05):

        def objective(alpha: float, lambda_z: float = lambda_z) -> float:
            z = alpha * (np.eye(K)[0] - 1 / K)
            y = (1 - smoothing) * np.eye(K)[0] + smoothing / K
            return float(logsumexp(z) - y @ z + lambda_z * np.sqrt(n) * (K - 1) * alpha)

        best: Any = minimize_scalar(objective, bounds=(0, 30), method="bounded", options={"xatol": 1e-11})
        assert siblings.balanced_smoothing(K, n, lambda_z, smoothing) == pytest.approx(best.x, abs=1e-5)
    assert siblings.balanced_smoothing(K, n, 0.002, 0.0) == pytest.approx(balanced(K, n, 0.002), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 3.0])
def test_balanced_focal(gamma: float) -> None:
    K, n = 6, 40
    grid = np.linspace(0, 30, 300001)
    p = 1 / (1 + (K - 1) * np.exp(-grid))
    for lambda_z in (0.001, 0.01, 0.02, 0.05):
        objective = -((1 - p) ** gamma) * np.log(p) + lambda_z * np.sqrt(n) * (K - 1) * grid
        assert siblings.balanced_focal(K, n, lambda_z, gamma) == pytest.approx(grid[np.argmin(objective)], abs=2e-4)


# --- two factors of the deep model


def test_two_factors_are_the_shallow_model() -> None:
    n, lambda_w, lambda_h = np.array([100, 40, 4]), 2e-2, 3e-3
    r = siblings.relu_without_bias(n, lambda_w, lambda_h)
    for k in range(3):
        price = deep_price(2, lambda_w, lambda_h, float(n[k]))
        s = deep_column(float(n[k] / n.sum()), price, 2, np.zeros(3), k)
        edge = s.switch / np.sqrt(n[k])
        assert edge == pytest.approx(r.vanish[k], rel=1e-12)
        if r.amplitude[k] > 0:
            assert s.rho == pytest.approx(r.amplitude[k] * np.sqrt(2 / 3), rel=1e-10)
        else:
            assert np.isnan(s.rho)


# --- bad input


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: siblings.layer_peeled_ratio(5, 5, 0.0, 1.0), "e_w"),
        (lambda: siblings.layer_peeled(5, 5, float("nan"), 1.0, 1.0), "ratio"),
        (lambda: siblings.mse_deep_linear([1, 2], 0.1, 0.1, 0), "depth"),
        (lambda: siblings.mse_deep_linear([1, -2], 0.1, 0.1), "class_counts"),
        (lambda: siblings.mse_free_bias([1], 0.1), "class_counts"),
        (lambda: siblings.balanced_smoothing(10, 5, 0.1, 1.0), "smoothing"),
        (lambda: siblings.balanced_focal(10, 5, 0.1, -1.0), "gamma"),
        (lambda: siblings.balanced_focal(1, 5, 0.1, 1.0), "num_classes"),
    ],
)
def test_bad_arguments(call: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()
