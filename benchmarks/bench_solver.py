"""The solver against cvxpy, in units of one SVD, and as K and J grow; gap and status beside every time.

Gaps are asserted, times never. Times are processor seconds, which say the same on a busy machine as on a calm one where
BLAS has one thread (OMP_NUM_THREADS=1). Every comparison is a ratio within this run; COLLAPSAR_BENCH=all adds what
takes minutes.
``benchmarks/table.py`` turns the JSON of a run into docs/benchmarks.md, its picture and results/benchmarks/solver.json.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

import collapsar as cs
from collapsar.core.problem import FeatureModel
from collapsar.solver.batched import ProblemBatch, solve_batch

pytestmark = pytest.mark.benchmark(timer=time.process_time)
long = pytest.mark.skipif(os.environ.get("COLLAPSAR_BENCH") != "all", reason="takes minutes: COLLAPSAR_BENCH=all")

CONE_SECONDS = 900.0  # a cone solver that has not answered by then is recorded as such


def dataset1() -> cs.Problem:
    """K = 10 in three clusters, the setting of JMLR Sec. 4 and the program's own penalties."""
    return cs.Problem.from_penalties([5000] * 4 + [4000] * 3 + [3000] * 3, 1e-3, 1e-6, 1e-2)


def geometric(K: int, multiple: float) -> cs.Problem:
    """K distinct counts from 5000 to 50 (times 1000 from K = 101 on, where whole numbers would repeat)."""
    n = np.rint(np.geomspace(5000, 50, K) * (1 if K <= 100 else 1000)).astype(int)
    assert np.unique(n).size == K
    return cs.Problem(n, multiple * np.sqrt(n.min()) / n.sum(), 0.02)


def clustered(K: int, J: int) -> cs.Problem:
    """K classes in J clusters of nearly equal size, counts from 5000 to 50."""
    n = np.rint(np.geomspace(5000, 50, J)).astype(int)
    assert np.unique(n).size == J
    counts = np.repeat(n, np.diff(np.linspace(0, K, J + 1).astype(int)))
    return cs.Problem(counts, 0.3 * np.sqrt(n.min()) / counts.sum(), 0.02)


def inaturalist_like() -> cs.Problem:
    """K = 8142, counts 1000 to 2: geometric, so that all 999 values occur."""
    n = np.rint(np.geomspace(1000, 2, 8142)).astype(int)
    return cs.Problem(n, np.sqrt(10) / n.sum(), 0.02)


def zipf() -> cs.Problem:
    """K = 50 000, counts in proportion to 1/rank, 1980 distinct: all but 999 classes below the threshold."""
    n = np.maximum(np.rint(1e6 / np.arange(1, 50_001)), 1).astype(int)
    return cs.Problem(n, np.sqrt(1000) / n.sum(), 0.02)


def seconds(run: Callable[[], object], repeat: int) -> float:
    """The median processor time of a call."""
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return float(np.median(times))


def svd_seconds(K: int) -> float:
    """One SVD of a K x K matrix, with vectors."""
    A = np.random.default_rng(0).normal(size=(K, K))
    np.linalg.svd(A)
    return seconds(lambda: np.linalg.svd(A), 3 if K >= 500 else 15)


class ConeProgram:
    """The same K x K program for cvxpy, as its user writes it; lambda_Z is a parameter so that it can change."""

    def __init__(self, p: cs.Problem, solver: str | None) -> None:
        import cvxpy as cp

        K, self.solver = p.num_classes, solver
        self.Z, self.b, self.lambda_z = cp.Variable((K, K)), cp.Variable(K), cp.Parameter(nonneg=True)
        self.lambda_z.value = p.lambda_z
        logits = self.Z + self.b[:, None] @ np.ones((1, K))
        loss = p.loss_share @ (cp.log_sum_exp(logits, axis=0) - cp.diag(logits))
        price = self.lambda_z * cp.normNuc(self.Z @ np.diag(np.sqrt(p.mass)))
        self.program = cp.Problem(cp.Minimize(loss + price + p.lambda_b / 2 * cp.sum_squares(self.b)))

    def solve(self) -> None:
        options: dict[str, Any] = {} if self.solver is None else {"solver": self.solver}
        if self.solver == "CLARABEL":
            options["time_limit"] = CONE_SECONDS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.program.solve(warm_start=False, **options)

    def certificate(self, p: cs.Problem) -> cs.Certificate:
        return cs.certify(p, np.asarray(self.Z.value), np.asarray(self.b.value))


def theirs(p: cs.Problem, solver: str | None) -> dict[str, Any]:
    """What cvxpy needs for the program, from writing it down to the answer, and how good the answer is."""
    begin = time.process_time()
    cone = ConeProgram(p, solver)
    try:
        cone.solve()
    except Exception as error:  # a solver that gives up is a result
        took = time.process_time() - begin
        return {"their_solver": solver or "default", "their_status": type(error).__name__, "their_seconds": took}
    first = time.process_time() - begin
    rounds = 1 if first > 5 else 3 if first > 1 else 11
    fresh = first if rounds == 1 else seconds(lambda: ConeProgram(p, solver).solve(), rounds)
    values = iter(p.lambda_z * (1 + 1e-3 * np.arange(1, rounds + 1)))

    def again() -> None:
        cone.lambda_z.value = next(values)
        cone.solve()

    certificate = cone.certificate(p)
    return {
        "their_solver": cone.program.solver_stats.solver_name,
        "their_status": cone.program.status,
        "their_seconds": fresh,
        "their_seconds_again": None if rounds == 1 else seconds(again, rounds),
        "their_gap": certificate.relative_gap,
        "their_primal": certificate.primal,
    }


def record(benchmark, kind: str, s: cs.Solution, tol: float, **more: Any) -> None:
    """Beside the time: what was solved, how well, and what it is compared with."""
    c, q = s.certificate, s.quotient
    benchmark.extra_info.update(
        kind=kind,
        K=q.num_classes,
        J=q.num_clusters,
        gap=c.relative_gap,
        status=s.status.name,
        steps=s.num_steps,
        tol=tol,
    )
    benchmark.extra_info.update(primal=c.primal, **more)
    print(f"\n{benchmark.name}: {benchmark.stats['median'] * 1e3:.3f} ms", benchmark.extra_info)
    assert c.relative_gap <= tol


CONE = {
    "dataset1": dataset1(),
    "distinct10": geometric(10, 0.1),
    "distinct20": geometric(20, 0.1),
    "distinct50": geometric(50, 0.1),
}


@pytest.mark.parametrize("solver", [None, "CLARABEL"], ids=["default", "clarabel"])
@pytest.mark.parametrize("case", [*CONE, pytest.param("distinct100", marks=long)], ids=[*CONE, "distinct100"])
def test_against_cone_solvers(benchmark, case, solver):
    p = CONE[case] if case in CONE else geometric(100, 0.1)
    counts, lambda_z, lambda_b = p.class_counts.tolist(), p.lambda_z, p.lambda_b
    s = benchmark(lambda: cs.solve(cs.Problem(counts, lambda_z, lambda_b), throw=False))
    other = theirs(p, solver)
    record(benchmark, "cone", s, 1e-9, case=case, ratio=other["their_seconds"] / benchmark.stats["median"], **other)


@pytest.mark.parametrize("multiple", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("K", [10, 20, 50, 100, 200, 400, 1000])
def test_in_units_of_one_svd(benchmark, K, multiple):
    p, tol = geometric(K, multiple), 1e-8 if K >= 1000 else 1e-9
    before = svd_seconds(K)
    rounds = 20 if K <= 20 else 5 if K <= 200 else 1
    s = benchmark.pedantic(lambda: cs.solve(p, tol, throw=False), rounds=rounds, warmup_rounds=int(rounds > 1))
    svd = 0.5 * (before + svd_seconds(K))
    record(benchmark, "svd", s, tol, multiple=multiple, svd_seconds=svd, svds=benchmark.stats["median"] / svd)


@pytest.mark.parametrize("J", [2, 10, 50, 200])
def test_growth_with_clusters(benchmark, J):
    p = clustered(1000, J)
    s = benchmark.pedantic(lambda: cs.solve(p, throw=False), rounds=5 if J <= 50 else 1, warmup_rounds=int(J <= 50))
    record(benchmark, "clusters", s, 1e-9)


@pytest.mark.parametrize("K", [10, 1_000, 100_000])
def test_growth_with_classes_of_two_clusters(benchmark, K):
    p = cs.Problem([500] * (K // 2) + [100] * (K - K // 2), 0.3 * np.sqrt(100) / (300 * K), 0.02)
    record(benchmark, "classes", benchmark(lambda: cs.solve(p, throw=False)), 1e-9)


def peak_mib() -> float:
    """The most memory this process has held so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@pytest.mark.parametrize(
    ("make", "tol"), [(inaturalist_like, 1e-9), pytest.param(zipf, 1e-6, marks=long)], ids=["inaturalist", "zipf"]
)
@pytest.mark.parametrize("features", get_args(FeatureModel))
def test_many_classes(benchmark, make, tol, features):
    p = make().replace(features=features)
    s = benchmark.pedantic(lambda: cs.solve(p, tol, throw=False), rounds=1)
    record(benchmark, "many", s, tol, case=make.__name__, features=features, peak_mib=peak_mib())


@pytest.mark.parametrize("features", get_args(FeatureModel))
def test_ten_thousand_problems_at_once(benchmark, features):
    lambdas, minority = np.geomspace(1e-4, 2e-2, 100), np.geomspace(5, 500, 100)
    z, n = (x.ravel() for x in np.meshgrid(lambdas, minority))
    batch = ProblemBatch.plain([5, 5], np.stack([np.full_like(n, 500.0), n], axis=1), z, 0.02, features)
    r = benchmark.pedantic(lambda: solve_batch(batch), rounds=3, warmup_rounds=1)
    gap, failed = float(r.relative_gap.max()), int(np.sum(r.relative_gap > 1e-9))
    benchmark.extra_info.update(kind="batch", features=features, problems=batch.num_problems, gap=gap, failed=failed)
    benchmark.extra_info.update(one_by_one=int(r.one_by_one.sum()))
    print(f"\n{benchmark.name}: {benchmark.stats['median']:.3f} s", benchmark.extra_info)
    assert failed == 0


@pytest.mark.parametrize(
    ("case", "features", "num_penalties"),
    [
        ("dataset1", "signed", 30),
        ("dataset1", "signed", 300),
        ("dataset1", "nonnegative", 30),
        ("distinct50", "signed", 30),
        ("distinct50", "signed", 300),
        ("distinct50", "nonnegative", 30),
    ],
)
def test_a_path_against_cold_solves(benchmark, case, features, num_penalties):
    p = CONE[case].replace(features=features)
    top = np.sqrt(p.class_counts.max()) / p.num_samples
    lambdas = top * np.geomspace(1e-3, 1, num_penalties)
    rounds = 3 if num_penalties <= 30 else 1
    cold = seconds(lambda: [cs.solve(p.replace(lambda_z=float(x)), throw=False) for x in lambdas], rounds)
    solutions = benchmark.pedantic(lambda: cs.path(p, lambdas, throw=False), rounds=rounds, warmup_rounds=1)
    worst = max(solutions, key=lambda s: s.certificate.relative_gap)
    more = {"case": case, "features": features, "problems": lambdas.size, "cold_seconds": cold}
    record(benchmark, "path", worst, 1e-9, **more, ratio=cold / benchmark.stats["median"])
