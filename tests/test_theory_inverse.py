"""Inverted thresholds against the thresholds themselves, both sides, and the numbers in print."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collapsar.core.loss import Loss
from collapsar.core.problem import FeatureModel, Problem
from collapsar.solver.solve import solve
from collapsar.theory import inverse
from collapsar.theory.inverse import edge_of, fractional_problem
from collapsar.theory.thresholds import thresholds

INF = float("inf")
clusters = st.tuples(st.integers(1, 9), st.integers(2, 9), st.floats(5, 900), st.floats(2e-4, 0.03))


def _merge(k_a: int, k_b: int, n_a: float, n_b: float, s: float = 1.0) -> float:
    """sqrt(s n_B) / N with B repeated s times, features too."""
    return np.sqrt(s * n_b) / (k_a * n_a + s * k_b * n_b)


@settings(max_examples=80, deadline=None)
@given(clusters)
def test_corollary_4_inverted(case: tuple[int, int, float, float]) -> None:
    k_a, k_b, n, lambda_z = case
    r = inverse.critical_ratio(k_a, k_b, n, lambda_z)
    if r is None:
        assert _merge(k_a, k_b, 1e-9, n) <= lambda_z * (1 + 1e-9)
    else:
        assert _merge(k_a, k_b, 0.999 * r * n, n) > lambda_z > _merge(k_a, k_b, 1.001 * r * n, n)
        assert inverse.critical_majority(k_a, k_b, n, lambda_z) == r * n
    ends = inverse.critical_minority(k_a, k_b, n, lambda_z)
    if ends is None:
        assert max(_merge(k_a, k_b, n, m) for m in np.geomspace(1e-3, 1e6, 300)) < lambda_z
    else:
        assert _merge(k_a, k_b, n, ends[0]) == pytest.approx(lambda_z, rel=1e-9)
        assert _merge(k_a, k_b, n, ends[1]) == pytest.approx(lambda_z, rel=1e-9)
        assert _merge(k_a, k_b, n, np.sqrt(ends[0] * ends[1])) >= lambda_z * (1 - 1e-12)
        assert _merge(k_a, k_b, n, 0.99 * ends[0]) < lambda_z > _merge(k_a, k_b, n, 1.01 * ends[1])


@settings(max_examples=80, deadline=None)
@given(clusters, st.floats(1, 300))
def test_oversampling(case: tuple[int, int, float, float], n_b: float) -> None:
    k_a, k_b, n_a, lambda_z = case
    s = inverse.least_oversampling(k_a, k_b, n_a, n_b, lambda_z)
    if s is None:
        assert all(_merge(k_a, k_b, n_a, n_b, v) < lambda_z * (1 + 1e-9) for v in np.geomspace(1, 1e5, 200))
    elif s > 1:
        assert _merge(k_a, k_b, n_a, n_b, s) == pytest.approx(lambda_z, rel=1e-9)
        assert _merge(k_a, k_b, n_a, n_b, max(1.0, 0.99 * s)) < lambda_z
    else:
        assert _merge(k_a, k_b, n_a, n_b) >= lambda_z * (1 - 1e-12)
    best = inverse.best_oversampling(k_a, k_b, n_a, n_b)
    assert _merge(k_a, k_b, n_a, n_b, best) >= max(_merge(k_a, k_b, n_a, n_b, f * best) for f in (0.9, 1.1))


@pytest.mark.parametrize(
    ("k", "features", "transition", "printed"),
    [
        ((5, 5), "signed", "merge", "300"),
        ((5, 5), "nonnegative", "vanish", "290.5"),
        ((3, 7), "signed", "merge", "433"),
        ((3, 7), "nonnegative", "vanish", "419"),
        ((5, 5), "signed", "complete", "1393"),
        ((5, 5), "nonnegative", "complete", "1088"),
        ((3, 7), "signed", "complete", "3964"),
        ((3, 7), "nonnegative", "complete", "2545"),
    ],
)
def test_figures_7_and_8(
    k: tuple[int, int], features: FeatureModel, transition: inverse.Transition, printed: str
) -> None:
    """n_A at lambda_z = .005, lambda_b = .02, n_B = 100, to the digits printed."""

    def at(n_a: float) -> Problem:
        return fractional_problem([n_a] * k[0] + [100.0] * k[1], 0.005, 0.02, features=features)

    edge = edge_of(at, -1, (101, 5000), transition, points=6)
    assert edge.value is not None
    assert edge.value == pytest.approx(float(printed), abs=0.51 * 10.0 ** -len(printed.partition(".")[2]))
    assert edge.bracket[0] <= edge.value <= edge.bracket[1]
    assert edge.alive_below
    assert edge.exact
    assert "about" not in edge.note


def test_an_approximate_threshold_is_called_so() -> None:
    """Two small classes share a direction and outlive the value of the column form: the optimum beyond it says so."""

    def at(lambda_z: float) -> Problem:
        return fractional_problem([1000, 10, 10], lambda_z, 0.0, features="nonnegative")

    found = thresholds(at(1.0))  # they ignore lambda_z, which is all that varies here

    def edge_at(high: float, transition: inverse.Transition, points: int) -> inverse.Edge:
        return edge_of(at, -1, (0.001, high), transition, points, lambda _: found)

    edge = edge_at(0.02, "vanish", 8)
    assert edge.value is not None
    assert solve(at(1.1 * edge.value)).class_states[-1] == "merged"
    assert not edge.exact
    assert f"at about {edge.value:.6g}" in edge.note
    assert "approximate" in edge_at(0.002, "vanish", 2).note
    assert edge_at(0.02, "complete", 8).exact  # found and bound are one number here
    with pytest.warns(UserWarning, match=r"about 0\.00432.*vanish_bound"):
        inverse.largest_head_decay_factor(at(0.002), -1, "vanish")


def test_a_range_without_a_transition_says_so() -> None:
    edge = edge_of(lambda n: fractional_problem([n] * 5 + [100.0] * 5, 0.005), -1, (101, 200))
    assert edge.value is None
    assert "no" in edge.note
    assert "alive throughout" in edge.note
    assert inverse.critical_ratio(5, 5, 100, 1.0) is None
    assert inverse.critical_minority(5, 5, 1e6, 0.1) is None
    assert inverse.least_oversampling(5, 5, 1e6, 10, 0.1) is None


def test_fractional_counts_are_counts() -> None:
    whole = thresholds(Problem([60, 60, 20, 20], 1.0, 0.1, Loss(class_weights=[1, 1, 2, 2])))
    same = thresholds(fractional_problem([60, 60, 20, 20], 1.0, 0.1, Loss(class_weights=[1, 1, 2, 2])))
    np.testing.assert_allclose(same.vanish, whole.vanish, rtol=1e-12)
    np.testing.assert_allclose(same.merge, whole.merge, rtol=1e-12)


@pytest.mark.parametrize(("features", "transition"), [("signed", "merge"), ("nonnegative", "vanish")])
def test_head_decay(features: FeatureModel, transition: inverse.Transition) -> None:
    problem = Problem([60, 60, 20, 20], 0.002, 0.1, features=features)
    c = inverse.largest_head_decay_factor(problem, -1, transition)
    value = float(getattr(thresholds(problem), transition)[-1])
    assert 0.002 * np.sqrt(c) == pytest.approx(value, rel=1e-12)


def test_bad_arguments() -> None:
    def at(n: float) -> Problem:
        return fractional_problem([n, n, 5.0], 0.01)

    with pytest.raises(ValueError, match="bracket"):
        edge_of(at, 0, (5, 2))
    with pytest.raises(ValueError, match="never merges"):
        edge_of(at, -1, (2, 5))
    with pytest.raises(ValueError, match="transition"):
        edge_of(at, 0, (2, 5), "melt")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`n_b`"):
        inverse.critical_ratio(5, 5, float("nan"), 0.1)
    with pytest.raises(ValueError, match="never merges"):
        inverse.largest_head_decay_factor(at(3.0), -1)
