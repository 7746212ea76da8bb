"""The map of the vanish boundary against the thresholds, the solver, polynomial roots and the numbers in print."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collapsar as cs
from collapsar.core.problem import FeatureModel
from collapsar.theory.vanish_boundary import lowest_vanish, vanish_boundary

PRICES = (0.0, 1e-6, 1e-3, 0.02, 0.3, 50.0, inf)
SETTINGS = ((5, 5, 500, 100), (3, 7, 500, 100), (20, 2, 5000, 50), (2, 40, 300, 200), (4, 1, 60, 10))
pairs = st.tuples(st.integers(2, 60), st.integers(1, 60), st.floats(1.05, 3000))


def problem(setting: tuple[int, int, int, int], lambda_z: float, lambda_b: float, features: FeatureModel) -> cs.Problem:
    k_a, k_b, n_a, n_b = setting
    return cs.Problem([n_a] * k_a + [n_b] * k_b, lambda_z, lambda_b, features=features)


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_map_goes_through_the_thresholds(setting: tuple[int, int, int, int], features: FeatureModel) -> None:
    """The curve is parametrised by the bias, the thresholds are roots in lambda_z: two roads to one number."""
    found = vanish_boundary(*setting, PRICES, features)
    expected = [cs.thresholds(problem(setting, 1.0, price, features)).vanish[-1] for price in PRICES]
    np.testing.assert_allclose(found.lambda_z, expected, rtol=1e-11)
    assert np.all(np.diff(found.advantage) < 0)
    assert found.advantage[-1] == 0


def test_the_numbers_in_print() -> None:
    printed = {0.02: 0.003983, 0.01: 0.004002, 1.0: 0.004446, inf: 0.004605, 0.0: 0.00404803}
    found = vanish_boundary(5, 5, 500, 100, list(printed))
    for value, expected in zip(found.lambda_z, printed.values(), strict=True):
        assert value == pytest.approx(expected, abs=5.1e-7 if expected != 0.00404803 else 5.1e-9)
    found = vanish_boundary(3, 7, 500, 100, [0.02, 0.01, 1.0, inf])
    np.testing.assert_allclose(found.lambda_z, [0.006407, 0.006427, 0.007663, 0.008120], atol=5.1e-7)


@pytest.mark.parametrize(("k_a", "k_b", "r"), [(2, 3, 4.0), (5, 5, 5.0), (3, 7, 50.0), (6, 1, 1.5)])
def test_both_limits_are_roots_of_polynomials(k_a: int, k_b: int, r: float) -> None:
    n_a, n_b, K = 100.0 * r, 100.0, k_a + k_b
    N = k_a * n_a + k_b * n_b
    free, without = vanish_boundary(k_a, k_b, n_a, n_b, [0.0, inf]).lambda_z
    # no bias: (y^k_A + k_A - 1 + k_B y)^2 = K r (k_A + 2 k_B y - k_B y^2), y > 1
    T = np.polynomial.Polynomial([k_a - 1, k_b]) + np.polynomial.Polynomial([0] * k_a + [1])
    roots = (T**2 - K * r * np.polynomial.Polynomial([k_a, 2 * k_b, -k_b])).roots()
    # its other real roots make the right side's square root negative or lie below 1
    y = [z.real for z in roots if abs(z.imag) < 1e-9 and z.real > 1]
    assert len(y) == 1
    assert without == pytest.approx(sqrt(n_a) / N * (k_a + k_b * y[0]) / T(y[0]), rel=1e-9)
    # free bias: v is explicit, and y^(k_A + 1) + (k_A - 1 + k_B v - r v k_A) y = r k_B v^2
    v = k_a / (sqrt(K * (k_b + k_a * r)) - k_b)
    mixed = np.zeros(k_a + 2)
    mixed[[0, 1, -1]] = -r * k_b * v**2, k_a - 1 + k_b * v - r * v * k_a, 1
    y = [z.real for z in np.polynomial.Polynomial(mixed).roots() if abs(z.imag) < 1e-9 and z.real > 0]
    assert len(y) == 1
    assert free == pytest.approx(sqrt(n_a) / N * (k_a + k_b * v) / (y[0] ** k_a + k_a - 1 + k_b * v), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(1.05, 3000))
def test_nonnegative_limit_without_bias(k_a: int, k_b: int, r: float) -> None:
    K = k_a + k_b
    found = vanish_boundary(k_a, k_b, r, 1.0, [inf], "nonnegative")
    assert found.lambda_z[0] == pytest.approx(sqrt((K - 1) / K) / (k_a * r + k_b), rel=1e-13)
    assert found.exact[0]


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(2, 60), st.sampled_from([0.0, 1e-3, 0.05, 1.0, inf]))
def test_the_solver_on_both_sides_signed(k_a: int, k_b: int, r: int, lambda_b: float) -> None:
    edge = vanish_boundary(k_a, k_b, 10 * r, 10, [lambda_b]).lambda_z[0]
    below, above = (
        cs.solve(problem((k_a, k_b, 10 * r, 10), factor * edge, lambda_b, "signed")) for factor in (0.995, 1.005)
    )
    # the merged state can be narrower than half a percent below the boundary
    alive = "merged" if 0.995 * edge >= sqrt(10) / (10 * (k_a * r + k_b)) else "separated"
    assert below.class_states[-1] == alive
    assert above.class_states[-1] == "vanished"
    assert above.class_states[0] == "separated"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("lambda_b", [1e-3, 0.05, inf])
def test_the_solver_on_both_sides_nonnegative(setting: tuple[int, int, int, int], lambda_b: float) -> None:
    """Where no two columns are acute the column form is the model; elsewhere the state above is not 'vanished'."""
    found = vanish_boundary(*setting, [lambda_b], "nonnegative")
    edge = float(found.lambda_z[0])
    above = cs.solve(problem(setting, 1.005 * edge, lambda_b, "nonnegative"), throw=False)
    proved_dead = above.status is cs.Status.OPTIMAL and above.class_states[-1] == "vanished"
    assert proved_dead == bool(found.exact[0])
    if found.exact[0]:
        below = cs.solve(problem(setting, 0.995 * edge, lambda_b, "nonnegative"))
        assert below.class_states[-1] == "separated"


@settings(max_examples=15, deadline=None)
@given(pairs)
def test_the_signed_map_is_never_monotone(case: tuple[int, int, float]) -> None:
    """It begins by falling and ends by rising, which is proved in the module; the lowest point is below both ends."""
    k_a, k_b, r = case
    lowest_at, lowest = lowest_vanish(k_a, k_b, r, 1.0)
    prices = np.array([0.0, 0.1, 0.5, 1.0, 2.0, 10.0, inf]) * lowest_at
    prices[0] = 0.0
    found = vanish_boundary(k_a, k_b, r, 1.0, prices).lambda_z
    assert np.argmin(found) == 3
    # at r = 1.05 with many classes the whole dip is 1e-9 of the value
    assert np.all(np.diff(found[:4]) < 0)
    assert np.all(np.diff(found[3:]) > 0)
    assert found[3] == pytest.approx(lowest, rel=1e-12)
    # the merged state has room: the boundary lies above the merge threshold and below complete collapse
    assert np.all(found > 1 / (k_a * r + k_b))
    assert np.all(found < sqrt(r) / (k_a * r + k_b))


def test_the_lowest_point_of_the_papers_setting() -> None:
    lambda_b, lambda_z = lowest_vanish(5, 5, 500, 100)
    assert lambda_b == pytest.approx(0.03005, abs=5e-6)
    assert lambda_z == pytest.approx(0.00397861, abs=5e-9)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: vanish_boundary(1, 5, 500, 100, [0.1]), "k_a"),
        (lambda: vanish_boundary(2, 0, 500, 100, [0.1]), "k_b"),
        (lambda: vanish_boundary(2, 2.5, 500, 100, [0.1]), "k_b"),  # pyright: ignore[reportArgumentType]
        (lambda: vanish_boundary(2, 2, 100, 100, [0.1]), "n_a"),
        (lambda: vanish_boundary(2, 2, float("nan"), 100, [0.1]), "n_a"),
        (lambda: vanish_boundary(2, 2, 500, 100, [-0.1]), "lambda_b"),
        (lambda: vanish_boundary(2, 2, 500, 100, [float("nan")]), "lambda_b"),
        (lambda: vanish_boundary(2, 2, 500, 100, [0.1], "relu"), "features"),  # pyright: ignore[reportArgumentType]
        (lambda: lowest_vanish(1, 2, 500, 100), "k_a"),
    ],
)
def test_bad_arguments(call, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()
