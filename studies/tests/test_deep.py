"""The deep model against descent on whole columns and chains, and brute-force scans."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from collapsar.theory.two_cluster import balanced
from collapsar_studies.deep import deep_column, deep_price, deep_within


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
