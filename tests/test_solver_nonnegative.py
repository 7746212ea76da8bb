from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

import collapsar as cs
from collapsar.core.loss import Loss
from collapsar.core.problem import Problem
from collapsar.solver.certificate import balance_bias
from collapsar.solver.nonnegative import column_certificate, minimise_nonnegative
from collapsar.solver.objective import predict, residual
from collapsar.solver.status import Status
from collapsar.solver.symmetry import Blocks, lift, quotient, trivial_quotient
from problems import PROBLEMS, naive_objective

INF = math.inf


def nonnegative(counts, lambda_z, lambda_b=INF, **rest) -> Problem:
    return Problem(counts, lambda_z, lambda_b, features="nonnegative", **rest)


def column_optimum(p: Problem, tol: float = 1e-9):
    q = quotient(p)
    result = minimise_nonnegative(q, tol=tol)
    return q, result, *lift(q, result.blocks)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_column_form_is_solved_and_its_value_is_the_definition(name):
    p = PROBLEMS[name].replace(features="nonnegative")
    q, result, Z, b = column_optimum(p)
    own = column_certificate(q, result.blocks)
    assert own.relative_gap <= 1e-9
    assert own.primal == pytest.approx(naive_objective(p, Z, b), rel=1e-12)
    assert result.certificate.primal == pytest.approx(own.primal, rel=1e-14)
    assert result.status is (Status.OPTIMAL if result.certificate.relative_gap <= 1e-9 else Status.SHARED_DIRECTIONS)
    assert result.certificate.dual <= own.dual + 1e-12  # the cone of columns is the smaller of the two


@pytest.mark.reference
@pytest.mark.parametrize("name", PROBLEMS)
def test_cvxpy_finds_the_same_column_optimum(name):
    import cvxpy as cp

    p = PROBLEMS[name].replace(features="nonnegative")
    K = p.num_classes
    Z, b = cp.Variable((K, K)), cp.Variable(K)
    cost = 0
    for k in range(K):
        u = p.temperatures[k] * cp.multiply(p.scales, Z[:, k] + b) + p.offsets
        y = np.full(K, p.loss.smoothing / K)
        y[k] += 1 - p.loss.smoothing
        cost += p.loss_share[k] * (cp.log_sum_exp(u) - y @ u) + p.lambda_z * np.sqrt(p.mass[k]) * cp.norm(Z[:, k])
    if 0 < p.lambda_b < INF:
        cost += p.lambda_b / 2 * cp.sum_squares(b)
    program = cp.Problem(cp.Minimize(cost), [b == 0] if p.lambda_b == INF else [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program.solve(solver="CLARABEL")
    q, result, _, _ = column_optimum(p)
    own = column_certificate(q, result.blocks)
    assert own.primal == pytest.approx(program.value, rel=1e-6)
    # Clarabel's own point, feasible for the column form, is no better than ours proves possible
    assert Z.value is not None
    assert b.value is not None
    theirs = naive_objective(p, Z.value, np.zeros(K) if p.lambda_b == INF else np.asarray(b.value))
    assert own.primal <= theirs + 1e-12
    assert own.gap <= max(theirs - own.dual, 1e-12)


@pytest.mark.parametrize(
    ("K", "n", "lambda_z", "lambda_b"), [(2, 30, 0.01, 0.1), (10, 500, 2e-5, 0.0), (7, 3, 0.05, INF)]
)
def test_balanced_closed_form(K, n, lambda_z, lambda_b):
    # theory: Z = a (I - 1/K), b = 0, 1 - p_own = t sqrt((K-1)/K), t = N lambda_Z / sqrt n
    _, result, Z, b = column_optimum(nonnegative([n] * K, lambda_z, lambda_b), tol=1e-13)
    miss = K * n * lambda_z / math.sqrt(n) * math.sqrt((K - 1) / K)
    a = math.log((K - 1) * (1 / miss - 1))
    np.testing.assert_allclose(Z, a * (np.eye(K) - 1 / K), atol=1e-10 * a)
    np.testing.assert_allclose(b, 0, atol=1e-12)
    assert result.status is Status.OPTIMAL


@pytest.mark.parametrize("counts", [[500, 500, 100, 100, 100], [10**6, 10**3, 1], [9, 8, 7, 6, 5, 4, 3, 2]])
@pytest.mark.parametrize("multiple", [1e-6, 0.1, 0.9])
def test_closed_form_without_bias(counts, multiple):
    # Dang et al., ICML 2024: M_k = log((K-1)(1/t_k - 1))_+, t_k = N lambda_Z sqrt((K-1)/(K n_k))
    n, K = np.array(counts, dtype=float), len(counts)
    lambda_z = multiple * math.sqrt(n.max() * (K - 1) / K) / n.sum()
    _, result, Z, _ = column_optimum(nonnegative(counts, lambda_z), tol=1e-13)
    t = n.sum() * lambda_z * np.sqrt((K - 1) / (K * n))
    M = np.log(np.maximum((K - 1) * (1 / t - 1), 1.0))
    np.testing.assert_allclose(Z, (np.eye(K) - 1 / K) * M, atol=1e-10 * M.max())
    assert result.status is Status.OPTIMAL
    assert ((np.abs(Z).max(axis=0) > 0) == (M > 0)).all()


@pytest.mark.parametrize(("side", "dead"), [(1 - 1e-6, False), (1 + 1e-6, True)])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_both_sides_of_the_vanish_threshold_without_bias(k, side, dead):
    counts = [500, 120, 30]
    threshold = math.sqrt(counts[k] * 2 / 3) / sum(counts)
    q, result, Z, _ = column_optimum(nonnegative(counts, side * threshold))
    assert column_certificate(q, result.blocks).relative_gap <= 1e-9
    assert bool(np.abs(Z[:, k]).max() == 0) is dead


@pytest.mark.parametrize(
    ("counts", "minority", "complete"),
    # theory, table of figures 5 and 6: the model's thresholds, printed to three digits
    [("500x5,100x5", 0.00329, 0.00675), ("500x3,100x7", 0.00447, 0.00871)],
)
def test_collapse_of_the_minority_and_of_all_in_the_papers_settings(counts, minority, complete):
    alive = {}
    for value in (0.99 * minority, 1.01 * minority, 0.99 * complete, 1.01 * complete):
        _, result, Z, b = column_optimum(nonnegative(counts, value, 0.02))
        assert result.status is Status.OPTIMAL
        alive[value] = np.abs(Z).max(axis=0) > 0
        n = Problem(counts, value).class_counts
        # a dead class: lambda_Z >= sqrt(n_k)/N ||e_k - softmax(b)||; a living one: the columns' own condition
        P = softmax(Z + b[:, None], axis=0)
        pull = np.sqrt(n) / n.sum() * np.linalg.norm(np.eye(10) - P, axis=0)
        assert (pull[~alive[value]] <= value).all()
        np.testing.assert_allclose(pull[alive[value]], value, rtol=1e-6)
    split = int(counts.split("x")[1].split(",")[0])
    assert [(a[:split].all(), a[split:].any()) for a in alive.values()] == [
        (True, True),
        (True, False),
        (True, False),
        (False, False),
    ]


def complete_collapse(p: Problem) -> float:
    """The lambda_Z from which Z = 0 is the best column form: the longest column of R at the best bias alone."""
    q = quotient(p)
    J = q.num_clusters
    zero = Blocks(np.zeros(J), np.zeros((J, J)), np.zeros(J))
    R = residual(q, predict(q, zero if p.lambda_b == INF else balance_bias(q, zero))[0])
    return float(np.sqrt(np.max(np.sum(R.between**2, axis=0) / q.sizes + R.within**2 * (1 - 1 / q.sizes))))


def random_problem(rng: np.random.Generator, max_clusters: int = 20) -> Problem:
    """Counts over six decades, all losses, lambda_Z from 1e-6 of complete collapse to beyond it, or just at it."""
    J = int(rng.integers(1, max_clusters + 1))
    sizes = rng.choice([1, 1, 1, 2, 3, 10], J)
    sizes[0] += sizes.sum() < 2
    spread, least = rng.choice([0.0, 1.0, 2.0, 6.0]), rng.choice([1, 10, 1000])
    counts = np.repeat(np.maximum(np.round(10 ** (rng.random(J) * spread) * least), 1).astype(int), sizes)

    def maybe(chance: float, width: float):
        factors = np.repeat(np.exp(width * rng.standard_normal(J)), sizes)
        return factors if rng.random() < chance else None

    loss = Loss(
        class_weights=maybe(0.25, 1.0),
        offsets=np.log(counts / counts.sum()) if rng.random() < 0.2 else None,
        scales=maybe(0.15, 0.3),
        temperatures=maybe(0.15, 0.3),
        smoothing=float(rng.choice([0, 0, 0, 0.1, 0.01])),
    )
    mass = maybe(0.15, 1.0)
    lambda_b = float(rng.choice([0.0, INF, 10 ** rng.uniform(-8, 1), 0.02, 0.001]))
    p = nonnegative(counts, 1.0, lambda_b, loss=loss, feature_mass=None if mass is None else mass * counts)
    multiple = rng.choice([10 ** rng.uniform(-6, 0.1), 1 - 1e-6, 1.0, 1 + 1e-6, 10 ** rng.uniform(-2, 0.1)])
    return p.replace(lambda_z=complete_collapse(p) * float(multiple))


@pytest.mark.parametrize("seed", range(8))
def test_random_problems_are_solved_to_tol(seed):
    rng = np.random.default_rng(seed)
    for _ in range(15):
        q = quotient(random_problem(rng))
        result = minimise_nonnegative(q)
        assert column_certificate(q, result.blocks).relative_gap <= 1e-9
        assert result.status in (Status.OPTIMAL, Status.SHARED_DIRECTIONS)


@pytest.mark.parametrize(
    "p",
    [
        nonnegative("1000000000000x2,1000000x3", 1e-9, 0.02),  # N = 2e12
        nonnegative([100, 100 + 1, 100 + 2, 7], 0.01, 0.0),  # near-duplicates
        nonnegative([10, 10], 0.01, 0.0),  # one cluster: the bias is free to shift and does nothing
        nonnegative([356, 2324436], 1e-7, 0.0, loss=Loss(class_weights=[0.3, 0.8], smoothing=0.1)),
        nonnegative([3, 2], 0.02, 1e-12),
    ],
    ids=["huge", "near-duplicates", "one-cluster", "two-classes-kink", "tiny-bias-penalty"],
)
def test_odd_problems(p):
    q, result, _, _ = column_optimum(p)
    assert column_certificate(q, result.blocks).relative_gap <= 1e-9


def test_clusters_and_their_classes_one_by_one_have_the_same_optimum():
    p = nonnegative("300x3,40x2,7", 0.004, 0.01)
    one, all_ = minimise_nonnegative(quotient(p), tol=1e-12), minimise_nonnegative(trivial_quotient(p), tol=1e-12)
    assert one.certificate.primal == pytest.approx(all_.certificate.primal, rel=1e-12)
    Z, b = lift(quotient(p), one.blocks)
    np.testing.assert_allclose(Z, all_.blocks.C, atol=1e-6)
    np.testing.assert_allclose(b, all_.blocks.b, atol=1e-6)


def test_more_samples_of_every_class_are_a_smaller_penalty():
    small, large = nonnegative([50, 20, 5], 0.02, 0.1), nonnegative([5000, 2000, 500], 0.002, 0.1)
    (*_, Z, b), (*_, W, c) = column_optimum(small, 1e-12), column_optimum(large, 1e-12)
    np.testing.assert_allclose(Z, W, atol=1e-7)
    np.testing.assert_allclose(b, c, atol=1e-7)


def factored_descent(p: Problem, rows: int, seed: int) -> float:
    """The lowest objective L-BFGS-B finds over W, H >= 0 and b of the plain problem, from random factors."""
    n, K = p.class_counts.astype(float), p.num_classes
    rng = np.random.default_rng(seed)
    biased = p.lambda_b < INF

    def objective(x):
        W, H, b = x[: rows * K].reshape(rows, K), x[rows * K : -K].reshape(rows, K), x[-K:]
        u = W.T @ H + (b[:, None] if biased else 0)
        P = softmax(u, axis=0)
        G = (P - np.eye(K)) * n / n.sum()
        loss = float(-np.log(np.diag(P)) @ n) / n.sum() + p.lambda_z / 2 * float((W**2).sum() + (n * H**2).sum())
        slope_b = G.sum(axis=1) + p.lambda_b * b if biased else 0 * b
        slopes = [(H @ G.T + p.lambda_z * W).ravel(), (W @ G + p.lambda_z * n * H).ravel(), slope_b]
        return loss + (p.lambda_b / 2 * float(b @ b) if biased else 0.0), np.concatenate(slopes)

    start = np.concatenate(
        [rng.standard_normal(rows * K), rng.random((rows, K)).ravel() * 3 / np.sqrt(n.mean()), np.zeros(K)]
    )
    bounds = [(None, None)] * (rows * K) + [(0, None)] * (rows * K) + [(None, None)] * K
    options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 0.0, "gtol": 1e-10}
    return float(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun)


@pytest.mark.parametrize(
    "p",
    [
        nonnegative([50, 50, 10, 10], 0.01, 0.02),
        nonnegative([50, 50, 10, 10], 0.035, 0.02),
        nonnegative([40, 20, 5], 0.02),
        nonnegative([30, 30, 30, 8], 0.02, 1.0),
    ],
    ids=["apart", "vanished", "no-bias", "strong-bias-penalty"],
)
def test_descent_on_nonnegative_factors_finds_the_certified_optimum(p):
    result = minimise_nonnegative(quotient(p))
    assert result.status is Status.OPTIMAL
    lowest = min(factored_descent(p, 2 * p.num_classes, seed) for seed in range(3))
    assert lowest >= result.certificate.dual - 1e-12
    assert lowest == pytest.approx(result.certificate.primal, rel=1e-7)


def test_a_solution_is_a_good_start_for_its_neighbour():
    near = quotient(nonnegative("5000x3,400x2,30x4", 0.0015, 0.0))
    far = quotient(nonnegative("5000x3,400x2,30x4", 0.00151, 0.0))
    cold = minimise_nonnegative(far)
    warm = minimise_nonnegative(far, minimise_nonnegative(near).blocks)
    assert warm.num_steps < cold.num_steps
    assert warm.certificate.primal == pytest.approx(cold.certificate.primal, rel=1e-9)


def test_progress_falls_and_max_steps_is_honest():
    q = quotient(nonnegative([5000, 400, 30], 0.0005, 0.0))
    seen = []
    minimise_nonnegative(q, progress=lambda step, certificate: seen.append((step, certificate)))
    assert [step for step, _ in seen] == list(range(1, len(seen) + 1))
    assert len(seen) > 3
    assert all(after.primal <= before.primal * (1 + 1e-14) for (_, before), (_, after) in pairwise(seen))
    short = minimise_nonnegative(q, max_steps=2)
    assert short.num_steps == 2
    assert short.status is Status.MAX_STEPS
    assert short.certificate.relative_gap > 1e-9

    def interrupt(step, certificate):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimise_nonnegative(q, progress=interrupt)


def test_a_gap_below_rounding_stalls():
    result = minimise_nonnegative(quotient(nonnegative([50, 20, 5], 0.01, 0.1)), tol=1e-17)
    assert result.status is Status.STALLED
    assert 1e-17 < result.certificate.relative_gap < 1e-12


def test_directions_are_looked_for_where_the_column_form_itself_stalls_above_tol():
    mass = [2.9, 0.3, 0.3, 0.3, 1.1, 56.0, 0.12]
    p = Problem([7] * 7, 0.018, 0.0, feature_mass=mass, features="nonnegative")
    column = minimise_nonnegative(quotient(p), tol=1e-15)
    assert column.status is Status.SHARED_DIRECTIONS
    assert column.certificate.relative_gap > 1e-2
    assert cs.solve(p, 1e-15, throw=False).certificate.relative_gap < 1e-12


def test_a_column_at_its_threshold_has_a_direction_to_start_from():
    offsets = [1.7080077298832077, 2.7658503181406187]
    p = Problem([2, 2], 0.37113902264876714, INF, Loss(offsets=offsets), features="nonnegative")
    s = cs.solve(p)  # by a rounding below the threshold: without numpy's warnings
    assert s.class_states == ("vanished", "vanished")
    assert np.isfinite(s.Z).all()


def test_progress_is_called_where_no_step_was_needed():
    seen = []
    p = nonnegative(list(range(2, 44)), 1e-3)  # no bias: the columns do not know of each other
    s = cs.solve(p, progress=lambda step, certificate: seen.append((step, certificate)))
    assert s.num_steps == 0
    assert seen == [(0, s.certificate)]


def test_sharing_is_reported_with_an_honest_gap():
    q = quotient(nonnegative("500x5,20x5", 0.0018, 0.001))
    result = minimise_nonnegative(q)
    assert result.status is Status.SHARED_DIRECTIONS
    assert result.certificate.primal == pytest.approx(0.90639653, abs=5e-9)
    assert result.certificate.dual <= 0.90329912  # the optimum with shared directions
