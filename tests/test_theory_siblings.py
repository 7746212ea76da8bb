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
from collapsar.theory import siblings
from collapsar.theory.deep import deep_column, deep_price, deep_within
from collapsar.theory.thresholds import thresholds
from collapsar.theory.two_cluster import balanced

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

        best = minimize_scalar(objective, bounds=(0, 20), method="bounded", options={"xatol": 1e-10})
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


# --- deep model


def _column_objective(z: NDArray, share: float, price: float, depth: int, b: NDArray, k: int) -> float:
    u = z + b
    return float(share * (logsumexp(u) - u[k]) + price * np.linalg.norm(z) ** (2 / depth))


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("fraction", [0.2, 0.9])
def test_deep_column_minimum_by_descent_on_the_whole_column(depth: int, fraction: float) -> None:
    b, k, share = np.array([1.0, 0.5, 0.5, -1.0]), 3, 0.05
    price = fraction * deep_column(share, 1.0, depth, b, k).spinodal
    s = deep_column(share, price, depth, b, k)
    start = 1.2 * s.rho * (np.eye(4)[k] - 0.3)
    found = minimize(_column_objective, start, (share, price, depth, b, k), method="BFGS", options={"gtol": 1e-10})
    assert np.linalg.norm(found.x) == pytest.approx(s.rho, rel=1e-4)
    zero = _column_objective(np.zeros(4), share, price, depth, b, k)
    assert zero - found.fun == pytest.approx(s.gain, abs=1e-9)
    assert (s.gain > 0) == (price < s.switch)
    assert s.zero_is_minimum == (depth > 2)


@pytest.mark.parametrize("depth", [3, 4])
def test_deep_column_switch_spinodal_and_barrier(depth: int) -> None:
    """Both sides of the switch and of the spinodal; the barrier is the top of the steepest path, scanned."""
    b, k, share = np.zeros(5), 0, 0.2
    s = deep_column(share, 0.01, depth, b, k)
    assert s.switch < s.spinodal
    assert deep_column(share, 0.999 * s.switch, depth, b, k).gain > 0
    assert deep_column(share, 1.001 * s.switch, depth, b, k).gain < 0
    assert np.isfinite(deep_column(share, 0.999 * s.spinodal, depth, b, k).rho)
    assert np.isnan(deep_column(share, 1.001 * s.spinodal, depth, b, k).rho)
    near = deep_column(share, 0.95 * s.switch, depth, b, k)
    rho = np.linspace(1e-6, near.rho, 200001)
    a = rho * np.sqrt(5 / 4)  # without bias the path is straight
    height = share * np.log1p(4 * np.exp(-a)) + 0.95 * s.switch * rho ** (2 / depth) - share * np.log(5)
    assert near.barrier == pytest.approx(height.max(), rel=1e-6)
    assert near.barrier_rho == pytest.approx(rho[np.argmax(height)], rel=1e-3)


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


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_deep_price_is_the_cheapest_chain(depth: int) -> None:
    """The price of L decayed scalars whose product is rho, by descent on the free ones."""
    lambda_w, lambda_h, mass, rho = 0.03, 0.002, 7.0, 2.5

    def cost(logs: NDArray) -> float:
        factors = np.exp(logs)
        return float(0.5 * lambda_w * np.sum(factors**2) + 0.5 * lambda_h * mass * (rho / np.prod(factors)) ** 2)

    found = minimize(cost, np.zeros(depth - 1), method="BFGS")
    assert found.fun == pytest.approx(deep_price(depth, lambda_w, lambda_h, mass) * rho ** (2 / depth), rel=1e-8)


@pytest.mark.parametrize("depth", [2, 3])
def test_deep_within_cluster(depth: int) -> None:
    K, n = 6, 40
    lambda_z = 0.004
    price = lambda_z * np.sqrt(n) if depth == 2 else 0.02
    s = deep_within(K, 1 / K, price, depth)
    grid = np.linspace(1e-9, 30, 600001)
    objective = np.log1p((K - 1) * np.exp(-grid)) + (K - 1) * price * grid ** (2 / depth)
    assert s.rho == pytest.approx(grid[np.argmin(objective)], abs=1e-4)
    assert (K - 1) * s.gain == pytest.approx(np.log(K) - objective.min(), abs=1e-8)
    if depth == 2:
        assert s.rho == pytest.approx(balanced(K, n, lambda_z), rel=1e-10)


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
        (lambda: deep_column(0.1, 0.1, 1, [0.0, 0.0], 0), "depth"),
        (lambda: deep_column(0.1, 0.1, 3, [0.0, np.nan], 0), "bias"),
        (lambda: deep_column(0.1, 0.1, 3, [0.0, 0.0], 5), "class_index"),
        (lambda: deep_within(1, 0.1, 0.1, 3), "classes"),
        (lambda: deep_price(3, 0.1, 0.0, 1), "lambda_h"),
    ],
)
def test_bad_arguments(call: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()
