from __future__ import annotations

import math
import warnings
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import collapsar as cs
from collapsar.core.problem import Problem
from collapsar.solver.conjugate_gradients import truncated_newton
from collapsar.solver.symmetry import quotient
from collapsar.theory.thresholds import thresholds_of_many
from problems import PROBLEMS, naive_loss, naive_objective

INF = math.inf


def test_every_problem_is_solved_and_certified(problem):
    s = cs.solve(problem)
    assert s.status is cs.Status.OPTIMAL
    assert s.certificate.relative_gap <= 1e-9
    assert s.certificate.primal == pytest.approx(naive_objective(problem, s.Z, s.b), rel=1e-11)
    # JMLR Lemma 8 with scales: the columns of Z and the bias sum to zero against 1/delta
    assert np.abs(s.Z.T @ (1 / problem.scales)).max() < 1e-5
    assert abs(s.b @ (1 / problem.scales)) < 1e-6


@pytest.mark.reference
@pytest.mark.parametrize("name", PROBLEMS)
def test_cvxpy_finds_the_same_optimum(name):
    import cvxpy as cp

    p = PROBLEMS[name]
    K = p.num_classes
    Z = cp.Variable((K, K))
    b = cp.Variable(K)
    cost = 0
    for k in range(K):
        u = p.temperatures[k] * cp.multiply(p.scales, Z[:, k] + b) + p.offsets
        y = np.full(K, p.loss.smoothing / K)
        y[k] += 1 - p.loss.smoothing
        cost += p.loss_share[k] * (cp.log_sum_exp(u) - y @ u)
    cost += p.lambda_z * cp.normNuc(Z @ np.diag(np.sqrt(p.mass)))
    if 0 < p.lambda_b < INF:
        cost += p.lambda_b / 2 * cp.sum_squares(b)
    program = cp.Problem(cp.Minimize(cost), [b == 0] if p.lambda_b == INF else [])
    s = cs.solve(p, tol=1e-13, throw=False)
    solvers = {"CLARABEL": {}, "SCS": {"eps": 1e-8, "max_iters": 20_000}}
    reached = 0
    for solver, options in solvers.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                program.solve(solver=solver, **options)
            except cp.SolverError:  # cone solvers give up on some of these; one of the two must not
                continue
        if program.status not in ("optimal", "optimal_inaccurate"):
            continue
        bias = np.zeros(K) if p.lambda_b == INF else np.asarray(b.value)
        theirs = cs.certify(p, np.asarray(Z.value), bias)
        if theirs.relative_gap > 1e-3:
            continue
        reached += 1
        assert theirs.primal == pytest.approx(s.certificate.primal, rel=1e-6)
        assert s.certificate.gap <= max(theirs.gap, 1e-13)  # rounding of an objective of order 1
        break
    assert reached >= 1


@pytest.mark.parametrize("name", ["paper-apart", "paper-merged", "vs-loss", "free-bias", "no-bias"])
def test_descent_on_the_factors_ends_at_the_same_objective(name):
    p = PROBLEMS[name]
    K = p.num_classes
    rng = np.random.default_rng(0)

    def unpack(v):
        W, H, b = v[: K * K].reshape(K, K), v[K * K : 2 * K * K].reshape(K, K), v[2 * K * K :]
        return W, H, b

    root = np.sqrt(p.mass)
    Y = (1 - p.loss.smoothing) * np.eye(K) + p.loss.smoothing / K

    def value(v):  # H holds sqrt(m) h
        W, H, b = unpack(v)
        Z = W.T @ H / root
        U = p.temperatures * (p.scales[:, None] * (Z + b[:, None])) + p.offsets[:, None]
        lse = np.logaddexp.reduce(U, axis=0)
        P = np.exp(U - lse)
        lambda_b = 0.0 if p.lambda_b == INF else p.lambda_b
        f = p.loss_share @ (lse - np.sum(Y * U, axis=0)) + p.lambda_z / 2 * (np.sum(W**2) + np.sum(H**2))
        G = p.scales[:, None] * (P - Y) * (p.temperatures * p.loss_share)
        gb = np.zeros(K) if p.lambda_b == INF else G.sum(axis=1) + lambda_b * b
        X = G / root
        gradient = np.concatenate([(H @ X.T + p.lambda_z * W).ravel(), (W @ X + p.lambda_z * H).ravel(), gb])
        return f + lambda_b / 2 * b @ b, gradient

    start = np.concatenate([rng.normal(size=2 * K * K), np.zeros(K)])
    found = minimize(
        value, start, jac=True, method="L-BFGS-B", options={"maxiter": 20_000, "ftol": 1e-15, "gtol": 1e-10}
    )
    assert found.fun == pytest.approx(cs.solve(p).certificate.primal, rel=1e-8)


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, INF])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("K", "n", "lambda_z"), [(2, 50, 0.01), (10, 100, 0.004), (50, 20, 1e-4), (4, 9, 0.2)])
def test_balanced_closed_form(K, n, lambda_z, lambda_b, smoothing):
    # JMLR Thm 2(c): Z = alpha C_K, p_own - p_other = (1 - eps) - N lambda_Z / sqrt(n), where that is positive
    t = K * n * lambda_z / math.sqrt(n)
    s = cs.solve(Problem([n] * K, lambda_z, lambda_b, cs.Loss(smoothing=smoothing)), tol=1e-13, throw=False)
    contrast = (1 - smoothing) - t
    odds = (1 + (K - 1) * contrast) / (1 - contrast)  # p_own / p_other
    alpha = math.log(odds) if contrast > 0 else 0.0
    assert np.abs(s.Z - alpha * (np.eye(K) - 1 / K)).max() <= 1e-10 * max(1.0, alpha)
    assert np.abs(s.b).max() <= 1e-10


@pytest.mark.parametrize(
    "p",
    [
        Problem("500x5,100x5", 1.0, 0.02),
        Problem("500x3,100x7", 1.0, INF),
        Problem("500x2,200x3,50x4", 1.0, 0.0),
        Problem("300x3,30x3", 1.0, 0.02, cs.Loss(class_weights=[1.0] * 3 + [3.0] * 3)),
        Problem("300x3,30x3", 1.0, 0.02, cs.Loss(scales=[1.0] * 3 + [1.4] * 3, smoothing=0.1)),
        Problem(
            "300x3,30x3",
            1.0,
            0.02,
            cs.Loss(temperatures=[1.0] * 3 + [1.4] * 3, offsets=[0.0] * 3 + [1.0] * 3),
        ),
    ],
)
def test_classes_merge_exactly_at_the_threshold(p):
    # JMLR Cor. 4 and theory for remedies: tau delta (1 - eps) q / sqrt(m), whatever the bias and the other clusters do
    edge = p.temperatures * p.scales * (1 - p.loss.smoothing) * p.loss_share / np.sqrt(p.mass)
    for k in (0, p.num_classes - 1):
        below, above = (cs.solve(p.replace(lambda_z=f * edge[k])) for f in (0.99, 1.01))
        assert below.class_states[k] == "separated"
        assert above.class_states[k] in ("merged", "vanished")
        siblings = np.flatnonzero(quotient(p).labels == quotient(p).labels[k])
        assert np.ptp(above.Z[:, siblings], axis=1).max() == 0.0


def test_while_apart_the_probabilities_differ_by_what_the_penalty_leaves():
    s = cs.solve(PROBLEMS["paper-apart"])
    logits = s.Z + s.b[:, None]
    P = np.exp(logits - np.logaddexp.reduce(logits, axis=0))
    p = s.problem
    for k, other in ((0, 1), (9, 8)):
        gap = 1 - p.num_samples * p.lambda_z / math.sqrt(p.class_counts[k])
        assert P[k, k] - P[other, k] == pytest.approx(gap, abs=1e-7)


def test_erratum_the_minority_constant_d_need_not_be_positive():
    # JMLR Thm 3(a) states d > 0; at (5, 5, 500, 100), lambda_b = .02, lambda_Z = .003 it is -.129
    s = cs.solve(Problem("500x5,100x5", 0.003, 0.02))
    # Z's minority block is d(k I - J) + b k I: its off-diagonal entry is -d
    assert -s.Z[9, 8] == pytest.approx(-0.129, abs=5e-4)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 10_000), min_size=2, max_size=8),
    log_factor=st.floats(-4, 0.1),
    lambda_b=st.sampled_from([0.0, 1e-3, 0.02, 1.0, INF]),
    seed=st.integers(0, 2**16),
)
def test_invariances(counts, log_factor, lambda_b, seed):
    n = np.array(counts)
    N = n.sum()
    p = Problem(n, 10**log_factor * math.sqrt(n.max()) / N, lambda_b)
    s = cs.solve(p)
    assert s.certificate.relative_gap <= 1e-9
    order = np.random.default_rng(seed).permutation(n.size)
    permuted = cs.solve(Problem(n[order], p.lambda_z, lambda_b))
    assert permuted.certificate.primal == pytest.approx(s.certificate.primal, rel=3e-9, abs=3e-12)
    assert np.allclose(permuted.Z, s.Z[np.ix_(order, order)], atol=2e-3 * max(1.0, np.abs(s.Z).max()))
    # c times the samples and lambda_Z / sqrt(c) is the same program
    scaled = cs.solve(Problem(9 * n, p.lambda_z / 3, lambda_b))
    assert scaled.certificate.primal == pytest.approx(s.certificate.primal, rel=3e-9, abs=3e-12)


def random_problem(rng: np.random.Generator) -> Problem:
    J = int(rng.integers(1, 21))
    sizes = rng.integers(1, 8, size=J)
    if sizes.sum() < 2:
        sizes[0] = 2
    counts = np.maximum(np.rint(10 ** rng.uniform(0, rng.uniform(0, 6), size=J)), 1)
    if J > 1 and rng.random() < 0.2:
        counts[1] = counts[0] + 1  # near-duplicates

    def spread(values):
        return np.repeat(values, sizes)

    loss = cs.Loss(
        class_weights=spread(10 ** rng.uniform(-1, 1, size=J)) if rng.random() < 0.2 else None,
        offsets=spread(rng.normal(size=J)) if rng.random() < 0.2 else None,
        scales=spread(10 ** rng.uniform(-0.5, 0.5, size=J)) if rng.random() < 0.2 else None,
        temperatures=spread(10 ** rng.uniform(-0.5, 0.5, size=J)) if rng.random() < 0.2 else None,
        smoothing=float(rng.uniform(0, 0.3)) if rng.random() < 0.2 else 0.0,
    )
    lambda_b = float(rng.choice([0.0, INF, 10 ** rng.uniform(-6, 1)]))
    p = Problem(spread(counts).astype(np.int64), 1.0, lambda_b, loss)
    top = np.max(p.loss_share * p.temperatures * p.scales / np.sqrt(p.mass))
    return p.replace(lambda_z=float(top * 10 ** rng.uniform(-6, 0.2)))


def test_random_problems_reach_the_gap():
    rng = np.random.default_rng(7)
    worst = max(cs.solve(random_problem(rng)).certificate.relative_gap for _ in range(120))
    assert worst <= 1e-9


@cache
def _general_problems() -> list[tuple[Problem, float]]:
    """Whatever temperatures, scales and the price of the bias, and where everything vanishes."""
    rng, found = np.random.default_rng(77), []
    for lambda_b in (0.0, 1e-9, 0.02, INF) * 5:
        J = int(rng.integers(2, 6))
        sizes = rng.integers(1, 4, J)
        loss = cs.Loss(
            temperatures=np.repeat(rng.uniform(0.3, 3, J), sizes), scales=np.repeat(rng.uniform(0.5, 2, J), sizes)
        )
        found.append(Problem(np.repeat(rng.integers(2, 1000, J), sizes), 1.0, lambda_b, loss))
    return [(p, t.complete) for p, t in zip(found, thresholds_of_many(found), strict=True)]


@pytest.mark.parametrize("beyond", [1e-9, 1e-7, 1e-3, 0.1])
def test_above_complete_collapse_nothing_is_merged(beyond):
    """Z is 0 there, not of the order of the gap's root."""
    for p, complete in _general_problems():
        s = cs.solve(p.replace(lambda_z=complete * (1 + beyond)))
        assert set(s.class_states) == {"vanished"}
        assert not s.Z.any()
        assert s.certificate.relative_gap <= 1e-9


@pytest.mark.parametrize("offset", [-1e-6, 0.0, 1e-6])
@pytest.mark.parametrize("lambda_b", [0.0, 0.02, INF])
def test_at_the_edge_of_a_transition(offset, lambda_b):
    for edge in (math.sqrt(100) / 3000, math.sqrt(500) / 3000):
        assert cs.solve(Problem("500x5,100x5", edge * (1 + offset), lambda_b)).certificate.relative_gap <= 1e-9


@pytest.mark.parametrize(
    ("p", "num_penalties"),
    [
        (PROBLEMS["distinct"], 4),  # each started from the two before it
        (PROBLEMS["paper-apart"], 20),  # side by side
        (PROBLEMS["ldt-smoothed"].replace(features="nonnegative"), 5),
        # side by side but for those whose classes share a direction
        (Problem("500x5,20x5", 1.0, 0.001, features="nonnegative"), 6),
        (Problem([7, 7], 1.0), 3),
    ],
)
def test_a_path_is_the_list_of_its_solutions(p, num_penalties):
    lambdas = cs.thresholds(p).complete * np.geomspace(1e-3, 1.1, num_penalties)
    lambdas = np.random.default_rng(0).permutation(lambdas)
    seen = []
    solutions = cs.path(p, lambdas, progress=lambda step, c: seen.append(c.gap))
    assert len(seen) >= num_penalties
    for value, s in zip(lambdas, solutions, strict=True):
        cold = cs.solve(p.replace(lambda_z=float(value)))
        assert s.problem == cold.problem
        assert s.certificate.relative_gap <= 1e-9
        assert s.certificate.primal == pytest.approx(cold.certificate.primal, rel=2e-9)
        assert s.class_states == cold.class_states
        assert s.rank == cold.rank
    assert cs.path(p, []) == []
    with pytest.raises(ValueError, match="`lambda_z`"):
        cs.path(p, [*lambdas, 0.0])


def test_rank_comes_from_the_dual():
    # all-distinct counts, theory section 3: #{k: sqrt(n_k)/N > lambda_Z} - 1 in most cases
    n = np.array([1000, 800, 600, 400, 10, 8, 6])
    s = cs.solve(Problem(n, 0.5 * math.sqrt(400) / n.sum(), 0.02))
    assert s.rank == 3
    assert np.sum(np.linalg.svd(s.Z, compute_uv=False) > 1e-6) == 3
    assert cs.solve(Problem("500x5,100x5", 0.0027, 0.02)).rank == 9
    assert cs.solve(Problem("500x5,100x5", 0.01, 0.02)).rank == 0


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_factors_attain_the_optimum(features):
    p = Problem("500x5,100x5", 0.0027, 0.02, features=features)
    s = cs.solve(p)
    W, H, b = s.factors(12, lambda_w=0.027)
    lambda_h = p.lambda_z**2 / 0.027
    assert W.shape == H.shape == (12, 10)
    assert np.allclose(W.T @ H, s.Z, atol=1e-12)
    if features == "nonnegative":
        assert H.min() >= 0
    price = 0.5 * (0.027 * np.sum(W**2) + lambda_h * np.sum(p.mass * H**2))
    assert naive_loss(p, W.T @ H, b) + price == pytest.approx(s.certificate.primal, rel=1e-10)
    # balance at a stationary point (theory section 5)
    assert 0.027 * np.sum(W**2) == pytest.approx(lambda_h * np.sum(p.mass * H**2), rel=1e-9)
    ratio = math.sqrt(lambda_h / 0.027)
    assert np.allclose(W.T @ W, ratio * s.classifier_gram(), atol=1e-9)
    assert np.allclose(H.T @ H, s.feature_gram() / ratio, atol=1e-9)
    with pytest.raises(ValueError, match="`dim`"):
        s.factors(3)
    with pytest.raises(ValueError, match="`lambda_w`"):
        s.factors(12, lambda_w=1.0, lambda_h=1.0)


def test_not_converged_is_honest():
    p = PROBLEMS["distinct"]
    with pytest.raises(cs.NotConvergedError, match="max_steps") as error:
        cs.solve(p, max_steps=1)
    s = error.value.solution
    assert s.status is cs.Status.MAX_STEPS
    assert s.certificate.gap == pytest.approx(cs.certify(p, s.Z, s.b).gap, rel=1e-6)
    assert cs.solve(p, max_steps=1, throw=False).status is cs.Status.MAX_STEPS
    stalled = cs.solve(p, tol=1e-18, throw=False)
    assert stalled.status is cs.Status.STALLED
    assert stalled.certificate.relative_gap < 1e-12


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
@pytest.mark.parametrize("lambda_b", [0.0, 1e-15, INF])
@pytest.mark.parametrize(
    ("mass", "lambda_z"),
    [
        ((1.0, 1e12, 1.0), 1e-3),
        ((1.0, 1e6, 1e12), 1e-9),
        ((1e12, 1.0, 1e12, 1.0, 1.0), 3e-6),
        ((3e10, 3e-24, 3e-24, 3e-24, 3e-24), 1e-12),
        ((1e22, 1.0, 1.0, 1.0), 3e-3),
    ],
)
def test_masses_of_very_different_size_end_in_an_answer_or_a_status(mass, lambda_z, lambda_b, features):
    p = Problem((1000, 50, 20, 5, 100)[: len(mass)], lambda_z, lambda_b, features=features, feature_mass=mass)
    s = cs.solve(p, throw=False)
    assert (s.certificate.relative_gap <= 1e-9) == (s.status is cs.Status.OPTIMAL)
    assert s.status is cs.Status.OPTIMAL or max(mass) / min(mass) > 1e20
    # whatever it says, one logit vector for all classes is no better
    assert s.certificate.dual <= naive_objective(p, np.zeros((len(mass), len(mass))), np.zeros(len(mass)))


def test_a_loose_tolerance_takes_no_more_steps_than_a_tight_one():
    """A few digits more than the gap asks for are Newton's last step, whatever the gap: none waits for it in vain."""
    p = cs.Problem("500x5,100x5", 0.0045, 0.02)
    for strength in np.geomspace(0.5, 1.6, 40):
        steps = [cs.solve(p.replace(lambda_z=0.0045 * strength), tol).num_steps for tol in (1e-4, 1e-6, 1e-7, 1e-9)]
        assert steps == sorted(steps)
        assert steps[-1] <= 10


@pytest.mark.parametrize(("features", "K"), [("signed", 140), ("nonnegative", 60)])
def test_progress_sees_every_step_and_may_interrupt(features, K):
    p = Problem(np.rint(np.geomspace(5000, 50, K)).astype(int), 1e-3 * 40 / K, 0.02, features=features)
    seen = []
    s = cs.solve(p, progress=lambda step, c: seen.append((step, c)))
    steps = [step for step, _ in seen]
    assert steps == list(range(1, s.num_steps + 1))
    assert s.num_steps >= 2
    for _, c in seen:  # every one is true of the problem
        assert c.dual <= s.certificate.primal * (1 + 1e-14)
        assert c.primal >= s.certificate.dual * (1 - 1e-14)
    assert seen[-1][1].relative_gap <= 1e-9

    def stop(step, certificate):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cs.solve(p, progress=stop)
    assert cs.solve(p).certificate == s.certificate  # an interrupted solve leaves nothing behind


def test_save_and_load(tmp_path, problem):
    s = cs.solve(problem)
    file = s.save(tmp_path / "solution.npz")
    again = cs.load_solution(file)
    assert again.problem == problem
    assert np.array_equal(again.Z, s.Z)
    assert again.certificate.relative_gap <= 1e-9
    assert list(tmp_path.iterdir()) == [file]


def test_damaged_solutions_are_refused(tmp_path):
    s = cs.solve(PROBLEMS["balanced"])
    file = s.save(tmp_path / "solution.npz")
    garbage = tmp_path / "garbage.npz"
    garbage.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="garbage"):
        cs.load_solution(garbage)
    with np.load(file) as content:
        arrays = dict(content)
    arrays["alpha"] = arrays["alpha"] * 1.1
    np.savez(tmp_path / "altered.npz", **arrays)
    with pytest.raises(ValueError, match="altered"):
        cs.load_solution(tmp_path / "altered.npz")


@pytest.mark.parametrize("arguments", [{"tol": 0.0}, {"tol": math.nan}, {"max_steps": 0}])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        cs.solve(PROBLEMS["balanced"], **arguments)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("enough", [1e-2, 1e-3])
def test_products_stop_where_little_is_left_to_gain(seed, enough):
    h = np.geomspace(1, 1e-4, 400)  # half of the gain lies in flat directions
    g = np.random.default_rng(seed).normal(size=h.size) * np.sqrt(h)
    gain = 0.5 * float(np.sum(g**2 / h))
    seen = []
    step = truncated_newton(
        lambda v: (seen.append(1), h * v)[1], lambda v: v, g, radius=np.inf, forcing=1e-8, enough=enough * gain
    )
    left = gain + step.slope + 0.5 * step.curvature
    assert 0 < left <= enough * gain
    assert 4 < len(seen) < 300  # to the residual it would be the 500 allowed


def test_a_step_beyond_all_numbers_is_no_error():
    h, g = np.array([1e-30, 1e-40]), np.full(2, 1e120)  # its length, squared, is not representable
    with np.errstate(over="ignore", invalid="ignore"):
        step = truncated_newton(lambda v: h * v, lambda v: v, g, radius=np.inf, forcing=1e-12)
    assert not np.isfinite(step.v).all()
