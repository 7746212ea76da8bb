"""The signed solver against cvxpy and against one SVD of its size, in one run; gap and status beside every time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest

import collapsar as cs


def dataset1() -> cs.Problem:
    return cs.Problem.from_penalties("5000x4,4000x3,3000x3", lambda_w=2.5e-3, lambda_h=2e-6, lambda_b=2.05e-2)


def geometric(K: int, multiple: float) -> cs.Problem:
    """K distinct counts from 5000 to 50 (times 100 from K = 101 on, where whole numbers would repeat)."""
    n = np.rint(np.geomspace(5000, 50, K) * (1 if K <= 100 else 1000)).astype(int)
    assert np.unique(n).size == K
    return cs.Problem(n, multiple * np.sqrt(n.min()) / n.sum(), 0.02)


def seconds(run: Callable[[], object], repeat: int = 5) -> float:
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def svd_seconds(K: int) -> float:
    A = np.random.default_rng(0).normal(size=(K, K))
    return seconds(lambda: np.linalg.svd(A), 3 if K >= 500 else 15)


def cone_program(p: cs.Problem, solver: str) -> Callable[[], cs.Certificate]:
    import cvxpy as cp

    K = p.num_classes
    Z, b = cp.Variable((K, K)), cp.Variable(K)
    logits = Z + b[:, None] @ np.ones((1, K))
    loss = p.loss_share @ (cp.log_sum_exp(logits, axis=0) - cp.diag(logits))
    price = p.lambda_z * cp.normNuc(Z @ np.diag(np.sqrt(p.mass))) + p.lambda_b / 2 * cp.sum_squares(b)
    program = cp.Problem(cp.Minimize(loss + price))

    def run() -> cs.Certificate:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program.solve(solver=solver)
        return cs.certify(p, np.asarray(Z.value), np.asarray(b.value))

    return run


def report(benchmark, p: cs.Problem, **more: float) -> None:
    s = cs.solve(p, throw=False)
    benchmark.extra_info.update(gap=s.certificate.relative_gap, status=s.status.name, steps=s.num_steps, **more)
    print(f"\n{benchmark.name}: {benchmark.stats['median'] * 1e3:.2f} ms", benchmark.extra_info)


@pytest.mark.parametrize("solver", ["SCS", "CLARABEL"])
@pytest.mark.parametrize(
    "p", [dataset1(), geometric(20, 0.1), geometric(50, 0.1)], ids=["dataset1", "distinct20", "distinct50"]
)
def test_against_cone_solvers(benchmark, p, solver):
    theirs = cone_program(p, solver)
    try:
        begin = time.perf_counter()
        certificate = theirs()  # cvxpy's first call compiles; small problems are timed again without that
        cone = time.perf_counter() - begin
    except Exception as error:  # a solver that gives up is a result
        benchmark(lambda: cs.solve(p))
        report(benchmark, p)
        benchmark.extra_info["theirs"] = type(error).__name__
        return
    if cone < 1:
        cone = seconds(theirs, 3)
    benchmark(lambda: cs.solve(p))
    report(benchmark, p, ratio=cone / benchmark.stats["median"], their_seconds=cone, their_gap=certificate.relative_gap)


@pytest.mark.parametrize("multiple", [0.1, 3.0])
@pytest.mark.parametrize("K", [50, 100, 200, 400, 1000])
def test_in_units_of_one_svd(benchmark, K, multiple):
    p = geometric(K, multiple)
    svd = svd_seconds(K)
    benchmark.pedantic(lambda: cs.solve(p, tol=1e-8 if K >= 1000 else 1e-9), rounds=1 if K >= 400 else 5)
    report(benchmark, p, svds=benchmark.stats["median"] / svd, svd_seconds=svd)


@pytest.mark.parametrize("K", [10, 1_000, 100_000])
def test_size_of_clusters_costs_nothing(benchmark, K):
    p = cs.Problem([500] * (K // 2) + [100] * (K - K // 2), 0.3 * np.sqrt(100) / (300 * K), 0.02)
    benchmark(lambda: cs.solve(p))
    report(benchmark, p)


def test_a_path_against_cold_solves(benchmark):
    p = geometric(50, 1.0)
    lambdas = p.lambda_z * np.geomspace(0.1, 10, 30)
    cold = seconds(lambda: [cs.solve(p.replace(lambda_z=float(x))) for x in lambdas], 3)
    benchmark(lambda: cs.path(p, lambdas))
    report(benchmark, p, cold_over_warm=cold / benchmark.stats["median"])
