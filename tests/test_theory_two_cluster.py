"""The two-cluster optimum against its optimality conditions on full matrices, and against the paper."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from collapsar.core.problem import Problem
from collapsar.theory.thresholds import thresholds
from collapsar.theory.two_cluster import TwoCluster, balanced, two_cluster

INF = float("inf")


def optimality_gap(s: TwoCluster, n_a: float, n_b: float, lambda_z: float, lambda_b: float) -> float:
    """How far the conditions of JMLR Lemma 8 on R and the bias are from holding, relative."""
    n = np.repeat([n_a, n_b], (s.k_a, s.k_b))
    Z, b, q = s.Z(), s.bias(), n / n.sum()
    odds = np.exp(Z + b[:, None])
    miss = np.eye(n.size) - odds / odds.sum(axis=0)
    R, X = miss * (q / np.sqrt(n)), Z * np.sqrt(n)
    nuclear = np.linalg.svd(X, compute_uv=False).sum()
    errors = [
        max(np.linalg.norm(R, 2) / lambda_z - 1, 0),
        abs(np.sum(R * X) - lambda_z * nuclear) / (lambda_z * max(nuclear, 1)),
        np.max(np.abs(Z.sum(axis=0))),
        np.max(np.abs(b)) if lambda_b == INF else np.max(np.abs(miss @ q - lambda_b * b)),
    ]
    return float(max(errors))


problems = st.tuples(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.floats(0.02, 1.2),
    st.sampled_from([0.0, 1e-6, 1e-3, 0.02, 1.0, 1e4, INF]),
)


@settings(max_examples=100, deadline=None)
@given(problems)
def test_the_closed_form_is_the_optimum(case: tuple[int, int, int, int, float, float]) -> None:
    k_a, k_b, n_a, n_b, level, lambda_b = case
    lambda_z = level * sqrt(max(n_a, n_b)) / (k_a * n_a + k_b * n_b)
    s = two_cluster(k_a, k_b, n_a, n_b, lambda_z, lambda_b)
    assert optimality_gap(s, n_a, n_b, lambda_z, lambda_b) < 1e-10


@settings(max_examples=60, deadline=None)
@given(problems)
def test_its_states_change_where_the_thresholds_say(case: tuple[int, int, int, int, float, float]) -> None:
    """Where b and c end together is where the dual norm says: two roads to one transition."""
    k_a, k_b, n_a, n_b, _, lambda_b = case
    assume(n_a != n_b)
    t = thresholds(Problem([n_a] * k_a + [n_b] * k_b, 1.0, lambda_b))

    def state(lambda_z: float) -> str:
        return two_cluster(k_a, k_b, n_a, n_b, lambda_z, lambda_b).state

    first = float(np.min(t.vanish))
    if first < t.complete * (1 - 1e-6):
        assert state(first * (1 - 1e-7)) in ("merged", "apart")
        assert state(first * (1 + 1e-7)) == "vanished"
    assert state(t.complete * (1 + 1e-7)) == "zero"
    merge = float(np.nanmin([*t.merge, INF]))
    if merge < first * (1 - 1e-6):
        assert state(merge * (1 - 1e-7)) == "apart"
        assert state(merge * (1 + 1e-7)) != "apart"


@settings(max_examples=60, deadline=None)
@given(problems)
def test_theorem_3_signs(case: tuple[int, int, int, int, float, float]) -> None:
    """While classes are apart b, c, alpha > 0, and inside p_own - p_other = 1 - N lambda / sqrt(n)."""
    k_a, k_b, n_a, n_b, level, lambda_b = case
    assume(k_a > 1 and k_b > 1)
    N = k_a * n_a + k_b * n_b
    lambda_z = min(level, 0.95) * sqrt(min(n_a, n_b)) / N
    s = two_cluster(k_a, k_b, n_a, n_b, lambda_z, lambda_b)
    assert s.state == "apart"
    assert min(s.b, s.c, s.alpha_a, s.alpha_b) > 0
    odds = np.exp(s.Z() + s.bias()[:, None])
    P = odds / odds.sum(axis=0)
    assert P[0, 0] - P[1, 0] == pytest.approx(1 - N * lambda_z / sqrt(n_a), abs=1e-10)
    assert P[-1, -1] - P[-2, -1] == pytest.approx(1 - N * lambda_z / sqrt(n_b), abs=1e-10)


def test_erratum_of_theorem_3a_d_may_be_negative() -> None:
    s = two_cluster(5, 5, 500, 100, 0.003, 0.02)
    assert s.d == pytest.approx(-0.129, abs=5e-4)
    assert optimality_gap(s, 500, 100, 0.003, 0.02) < 1e-12
    assert min(s.b, s.c, s.alpha_a, s.alpha_b) > 0


@pytest.mark.parametrize("lambda_b", [1e-3, 0.02, 1.0, INF])
@pytest.mark.parametrize(("k", "n"), [((5, 5), (500, 100)), ((3, 7), (500, 100)), ((2, 6), (90, 40))])
def test_equations_of_the_paper(k: tuple[int, int], n: tuple[int, int], lambda_b: float) -> None:
    """(5.16)-(5.51) in the paper's own functions g1, g2, x1, x2, m of t hold, apart and merged."""
    (k_a, k_b), (n_a, n_b) = k, n
    K, N = k_a + k_b, k_a * n_a + k_b * n_b
    for lambda_z in (0.9 * sqrt(n_b) / N, 1.03 * sqrt(n_b) / N):
        s = two_cluster(k_a, k_b, n_a, n_b, lambda_z, lambda_b)
        t = s.b / s.c
        m = lambda_z / lambda_b * (n_a - n_b * t) / sqrt((k_b * n_a + k_a * n_b * t**2) * K)
        x2 = k_a / (sqrt((k_b + k_a * n_b * t**2 / n_a) * K) - k_b)
        g2 = log((sqrt(n_a) / (N * lambda_z) - 1) * (k_a + k_b * x2) + 1) - k_a * log(x2)
        assert s.m == pytest.approx(m, rel=1e-8)
        assert s.c == pytest.approx(g2 / K - k_a * m, rel=1e-10)
        assert s.a == pytest.approx(s.c + log(x2) + K * m, rel=1e-10)
        if s.state == "apart":
            x1 = k_b / (sqrt((k_a + n_a * k_b / (n_b * t**2)) * K) - k_a)
            g1 = log((sqrt(n_b) / (N * lambda_z) - 1) * (k_a * x1 + k_b) + 1) - k_b * log(x1)
            assert t == pytest.approx((g1 + K * k_b * m) / (g2 - K * k_a * m), rel=1e-10)
            assert s.d == pytest.approx(s.b + log(x1) - K * m, rel=1e-9, abs=1e-9)
        else:
            assert s.state == "merged"
            x1 = k_b / (sqrt((k_a * n_b + k_b * n_a / t**2) * K) / (N * lambda_z) - k_a)
            assert t == pytest.approx(-k_b * (log(x1) - K * m) / (g2 - K * k_a * m), rel=1e-9)
            assert s.d == pytest.approx(-k_a / k_b * s.b, rel=1e-12)


def test_theorem_2c_balanced() -> None:
    """Equal counts: alpha C_K without bias, as one formula and as two clusters that happen to be equal."""
    for lambda_z in (0.001, 0.003, 0.0045, 0.02):
        s = two_cluster(4, 6, 50, 50, lambda_z, 0.1)
        alpha = balanced(10, 50, lambda_z)
        np.testing.assert_allclose(s.Z(), alpha * (np.eye(10) - 0.1), atol=1e-12)
        assert s.m == pytest.approx(0, abs=1e-14)
        odds = np.exp(alpha)
        if alpha > 0:
            assert (odds - 1) / (odds + 9) == pytest.approx(1 - 500 * lambda_z / sqrt(50), rel=1e-12)


def test_balanced_nonnegative_closed_form() -> None:
    """At the optimum (sqrt(n)/N) ||e_k - p|| = lambda_z; zero where the column can no longer reach it."""
    K, n = 10, 50

    def column(lambda_z: float) -> NDArray:
        z = balanced(K, n, lambda_z, nonnegative=True) * (np.eye(K)[0] - 1 / K)
        p = np.exp(z) / np.exp(z).sum()
        return np.eye(K)[0] - p

    edge = sqrt(n * (K - 1) / K) / (K * n)
    for lambda_z in (0.1 * edge, 0.5 * edge, 0.99 * edge):
        assert sqrt(n) / (K * n) * np.linalg.norm(column(lambda_z)) == pytest.approx(lambda_z, rel=1e-12)
    assert balanced(K, n, 1.001 * edge, nonnegative=True) == 0
    assert thresholds(Problem([n] * K, 1.0, features="nonnegative")).complete == pytest.approx(edge, rel=1e-12)


def test_it_is_continuous_in_the_bias_price() -> None:
    for lambda_z in (0.003, 0.0036, 0.006):
        for near, limit in ((1e-9, 0.0), (1e9, INF)):
            s, t = (two_cluster(5, 5, 500, 100, lambda_z, value) for value in (near, limit))
            np.testing.assert_allclose(s.Z() + s.bias()[:, None], t.Z() + t.bias()[:, None], atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((0, 5, 10, 10, 0.1, 1.0), "k_a"),
        ((5, 2.5, 10, 10, 0.1, 1.0), "k_b"),
        ((5, 5, float("nan"), 10, 0.1, 1.0), "n_a"),
        ((5, 5, 10, 10, 0.0, 1.0), "lambda_z"),
        ((5, 5, 10, 10, 0.1, -1.0), "lambda_b"),
    ],
)
def test_bad_arguments(arguments: tuple, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        two_cluster(*arguments)
    with pytest.raises(ValueError, match="num_classes"):
        balanced(1, 10, 0.1)
