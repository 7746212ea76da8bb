"""Limits against optima far out, and against convex programs solved by cvxpy."""

from __future__ import annotations

from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from collapsar.theory.limits import (
    column_cosines,
    etf_cosine,
    large_sample_margins,
    seli,
    seli_two_cluster_grams,
    simplex_etf,
)
from collapsar.theory.two_cluster import TwoCluster, two_cluster

INF = float("inf")


def _max_margin(m: NDArray, delta: NDArray, tau: NDArray, *, bias: bool = False) -> NDArray:
    """min ||Z M^(1/2)||_* with all margins >= 1, by a conic solver."""
    K = m.size
    Z, b = cp.Variable((K, K)), cp.Variable(K)
    shift = b if bias else np.zeros(K)
    margins = [
        tau[k] * (delta[k] * (Z[k, k] + shift[k]) - delta[l] * (Z[l, k] + shift[l])) >= 1
        for k in range(K)
        for l in range(K)
        if l != k
    ]
    problem = cp.Problem(cp.Minimize(cp.normNuc(Z @ np.diag(np.sqrt(m)))), margins)
    problem.solve(solver=cp.CLARABEL)
    assert Z.value is not None
    return Z.value


@pytest.mark.reference
@pytest.mark.parametrize(
    ("m", "delta", "tau", "bias"),
    [
        ([10, 10, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], False),
        ([10, 5, 1], [1, 1, 1], [1, 1, 1], False),
        ([10, 10, 1, 1], [1, 1, 0.5, 0.5], [1, 1, 1, 1], False),
        ([10, 10, 1, 1], [1, 1, 1, 1], [1, 1, 2, 2], False),
        ([8, 4, 1], [1.2, 1, 0.7], [1, 0.8, 1.4], False),
        ([10, 4, 1], [1, 1, 1], [1, 1, 1], True),
    ],
)
def test_seli_is_the_max_margin_solution(m: list, delta: list, tau: list, bias: bool) -> None:
    """The regularisation path ends in the nuclear-norm max-margin problem; the limit is its solution."""
    arrays = [np.array(v, dtype=float) for v in (m, delta, tau)]
    plain = not bias and all(v == 1 for v in (*delta, *tau))
    limit = seli(m, free_bias=True) if bias else seli(m) if plain else seli(m, delta, tau)
    assert limit.margins_tight
    np.testing.assert_allclose(_max_margin(*arrays, bias=bias), limit.Z, atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_grams_factor_the_limit(seed: int) -> None:
    """W'H = Z for factors read off the Grams: the product of the Grams has Z Z' up to similarity."""
    m = np.random.default_rng(seed).integers(1, 200, 5)
    g = seli(m)
    # W'W M^(1/2)... with W = S^(1/2) U', H = S^(1/2) V' M^(-1/2): W'W W'W = Z M Z', and H'H M H'H = Z'Z in
    # the mass metric
    np.testing.assert_allclose(g.classifier_gram @ g.classifier_gram, (g.Z * m) @ g.Z.T, atol=1e-9)
    np.testing.assert_allclose((g.feature_gram * m) @ g.feature_gram, g.Z.T @ g.Z, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(1, 1e4), st.floats(1, 1e4))
def test_two_cluster_blocks(k_a: int, k_b: int, n_a: float, n_b: float) -> None:
    g = seli([n_a] * k_a + [n_b] * k_b)
    W, H = seli_two_cluster_grams(k_a, k_b, n_a, n_b)
    np.testing.assert_allclose(W, g.classifier_gram, atol=1e-9 * np.max(W))
    np.testing.assert_allclose(H, g.feature_gram, atol=1e-9 * np.max(H))
    np.testing.assert_allclose(g.Z, simplex_etf(k_a + k_b), atol=1e-15)


def _unit(G: NDArray) -> NDArray:
    return G / np.linalg.norm(G)


def _classifier_gram(s: TwoCluster, n: NDArray) -> NDArray:
    U, values, _ = np.linalg.svd(s.Z() * np.sqrt(n))
    return (U * values) @ U.T


def _far_out(N: float, lambda_b: float) -> tuple[TwoCluster, NDArray]:
    """Fig. 9's problem, k = (5, 5), r = 2, N lambda_z = .1, at N samples."""
    n = np.repeat([2 * N / 15, N / 15], 5)
    return two_cluster(5, 5, n[0], n[-1], 0.1 / N, lambda_b), n


@pytest.mark.parametrize("lambda_b", [0.01, INF])
def test_theorem_5_and_its_erratum(lambda_b: float) -> None:
    """The columns of Z turn to the ETF like 1 / log N, and W'W to SELI's Gram, not to the ETF as printed."""
    off = ~np.eye(10, dtype=bool)
    cosines, grams = [], []
    for N in (1e3, 1e6, 1e12, 1e40):
        s, n = _far_out(N, lambda_b)
        cosines.append(np.max(np.abs(column_cosines(s.Z())[off] - etf_cosine(10))))
        gram = _unit(_classifier_gram(s, n))
        grams.append(np.linalg.norm(gram - _unit(seli(n).classifier_gram)))
        assert np.linalg.norm(gram - _unit(simplex_etf(10))) > 0.1
    for series in (cosines, grams):
        assert all(late < early for early, late in pairwise(series))
        assert series[-1] < 0.3 * series[0]


def test_theorem_5_constant() -> None:
    """(cosine + 1/9) log N has the limit that the polar factor predicts; 1 / log N is reached very slowly."""
    gaps = []
    for N in (1e12, 1e40, 1e160):
        s, n = _far_out(N, INF)
        margins = large_sample_margins(n, 0.1 / N)
        mean = margins.sum() / 90
        predicted = column_cosines(margins.mean(axis=0) - margins)
        pairs = ([0, -1], [1, -2])  # inside A, inside B
        found, expected = ((C[pairs] - etf_cosine(10)) * mean for C in (column_cosines(s.Z()), predicted))
        gaps.append(np.max(np.abs(found / expected - 1)))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert gaps[2] < 0.05


@pytest.mark.parametrize("lambda_b", [0.0, 0.01, INF])
def test_large_sample_margins(lambda_b: float) -> None:
    """The constant under the logarithm, from the polar factor: the error itself vanishes."""
    worst = []
    for N in (1e5, 1e10, 1e40, 1e160):
        s, n = _far_out(N, lambda_b)
        u = s.Z() + s.bias()[:, None]
        predicted = large_sample_margins(n, 0.1 / N, free_bias=lambda_b == 0)
        worst.append(np.max(np.abs(np.diag(u) - u - predicted)))
    if lambda_b == 0:  # here the error falls with a power of N
        assert worst[0] < 2e-3
        assert worst[1] < 1e-5
    else:
        assert worst[0] > worst[1] > 2 * worst[2] > 6 * worst[3]
        assert worst[3] < 0.01


def test_free_bias_turns_the_columns_elsewhere() -> None:
    """With lambda_b = 0 they tend to I - (n/N) 1', not to the ETF."""
    N = 1e13
    n = np.repeat([2 * N / 15, N / 15], 5)
    Z = two_cluster(5, 5, n[0], n[-1], 0.1 / N, 0.0).Z()
    limit = seli(n, free_bias=True).Z
    assert np.linalg.norm(_unit(Z) - _unit(limit)) < 0.05
    assert np.linalg.norm(_unit(Z) - _unit(limit)) < 0.5 * np.linalg.norm(_unit(Z) - _unit(simplex_etf(10)))


def test_figure_9_cosines_at_500_samples() -> None:
    """Exact signed optimum at n_A = 500, N lambda_z = .1, lambda_b = .02: columns A -.138, B -.078."""
    cosines = column_cosines(two_cluster(5, 5, 500, 250, 0.1 / 3750, 0.02).Z())
    assert cosines[0, 1] == pytest.approx(-0.138, abs=2e-3)
    assert cosines[-1, -2] == pytest.approx(-0.078, abs=2e-3)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="feature_mass"):
        seli([1, -1])
    with pytest.raises(ValueError, match="scales"):
        seli([1, 2], scales=[1, 1, 1])
    with pytest.raises(ValueError, match="free_bias"):
        seli([1, 2], scales=[1, 1], free_bias=True)
    with pytest.raises(ValueError, match="lambda_z"):
        large_sample_margins([1, 2], 0)
    with pytest.raises(ValueError, match="num_classes"):
        simplex_etf(1)
    with pytest.raises(ValueError, match="n_b"):
        seli_two_cluster_grams(1, 1, 1, 0)
