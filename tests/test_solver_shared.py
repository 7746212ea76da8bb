from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

import collapsar as cs
from collapsar.core.loss import Loss
from collapsar.core.problem import Problem
from collapsar.solver import factored
from collapsar.solver.atoms import Atoms
from collapsar.solver.certificate import balance_bias
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.objective import Columns, predict, residual
from collapsar.solver.relaxed import _Round, beginning, relaxed
from collapsar.solver.shared import certify_atoms, factors, minimise_shared
from collapsar.solver.shared_directions import missing_directions
from collapsar.solver.solution import shared_proof
from collapsar.solver.status import Status
from collapsar.solver.symmetry import lift, quotient
from collapsar.solver.witness import lower_bound
from problems import naive_loss
from test_solver_sweep import draw

INF = math.inf

PROBLEMS = {
    "merged-minority": Problem("500x5,20x5", 0.0018, 0.001),
    "leaning": Problem([1000, 500, 10], 0.002, 0.001),
    "merged-alive": Problem([1000, 10, 10], 0.004, 0.0),
    "mixed": Problem("500x2,100x2,20x2", 0.002, 0.0),
    "long-tail": Problem([1000, 500, 200, 100, 50, 20], 0.0005, 0.0),
    "tail-in-one": Problem([1000, 500, 200, 100, 50, 20], 0.003, 0.001),
    "weighted": Problem("300x2,30x2,5", 0.003, 0.0, Loss(class_weights=[1, 1, 2, 2, 3])),
    "vs-loss": Problem("300x2,30x3", 0.003, 1e-4, Loss(offsets=[0.5] * 2 + [-0.5] * 3, scales=[1.0] * 2 + [0.8] * 3)),
    "ldt-smoothed": Problem("200x2,20x2", 0.003, 0.0, Loss(temperatures=[1, 1, 1.5, 1.5], smoothing=0.05)),
    "held-mass": Problem("100x3,5x3", 0.002, 0.0, feature_mass=[100.0] * 3 + [10.0] * 3),
}
PROBLEMS = {name: p.replace(features="nonnegative") for name, p in PROBLEMS.items()}


def shared_optimum(p: Problem, **options):
    q = quotient(p)
    column = minimise_nonnegative(q)
    return q, column, minimise_shared(q, column.blocks, **options)


@pytest.fixture(params=PROBLEMS, ids=list(PROBLEMS), scope="module")
def solved(request: pytest.FixtureRequest):
    p = PROBLEMS[request.param]
    return p, *shared_optimum(p)


def test_the_gap_closes_where_the_column_form_leaves_it_open(solved):
    _, q, column, result = solved
    assert column.status is Status.SHARED_DIRECTIONS
    assert result.status is Status.OPTIMAL
    assert result.certificate.relative_gap <= 1e-9
    assert result.certificate.primal <= column.certificate.primal
    again = certify_atoms(q, result.atoms, result.blocks.b, result.witness)
    assert again.primal == pytest.approx(result.certificate.primal, rel=1e-13)
    assert again.relative_gap <= 1e-9


def test_the_factors_are_nonnegative_and_worth_the_objective(solved):
    p, q, _, result = solved
    W, H = factors(q, result.atoms)
    Z, b = lift(q, result.blocks)
    assert (H >= 0).all()
    np.testing.assert_allclose(W.T @ H, Z, atol=1e-12 * np.abs(Z).max())
    price = 0.5 * (np.sum(W**2) + np.sum(p.mass * H**2))
    assert price == pytest.approx(result.penalty, rel=1e-12)
    assert naive_loss(p, Z, b) + p.lambda_z * price == pytest.approx(result.certificate.primal, rel=1e-11)


def test_the_witness_proves_the_bound_in_full_coordinates(solved):
    p, q, _, result = solved
    K = p.num_classes
    S = result.witness.S.other[np.ix_(q.labels, q.labels)]
    S[np.diag_indices(K)] = 1 - result.witness.S.miss[q.labels]
    N = (result.witness.between / np.sqrt(np.outer(q.sizes, q.sizes)))[np.ix_(q.labels, q.labels)]
    N = np.where(q.labels[:, None] == q.labels, result.witness.within[q.labels], N)
    N[np.diag_indices(K)] = 0.0
    Y = (1 - p.loss.smoothing) * np.eye(K) + p.loss.smoothing / K
    assert (S >= 0).all()
    np.testing.assert_allclose(S.sum(axis=0), 1, atol=1e-12)
    assert (N >= 0).all()
    pull = p.scales[:, None] * (Y - S) * (p.temperatures * p.loss_share)
    R = pull / np.sqrt(p.mass)
    assert np.linalg.eigvalsh(R.T @ R + N)[-1] <= p.lambda_z**2 * (1 + 1e-12)
    # the bound is the one at the end of the ray from the targets through S
    t = p.lambda_z / math.sqrt(np.linalg.eigvalsh(R.T @ R + N)[-1])
    S, pull = Y + t * (S - Y), t * pull
    assert (S >= 0).all()
    # D(S) of theory, one loop per class
    bound = 0.0
    for k in range(K):
        entropy = -sum(s * math.log(s) for s in S[:, k] if s > 0)
        bound += p.loss_share[k] * (entropy + float((S[:, k] - Y[:, k]) @ p.offsets))
    balance = pull.sum(axis=1)
    if p.lambda_b == 0:
        assert np.abs(balance).max() < 1e-14
    elif p.lambda_b < INF:
        bound -= float(balance @ balance) / (2 * p.lambda_b)
    assert bound == pytest.approx(result.certificate.dual, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "column", "optimum"),
    # found by descent on (W, H >= 0, b) before this algorithm existed
    [
        ("merged-minority", 0.90639653, 0.90329912),
        ("leaning", 0.27213880, 0.27042084),
        ("merged-alive", 0.108072, 0.100663),
    ],
)
def test_recorded_optima(name, column, optimum):
    _, first, result = shared_optimum(PROBLEMS[name])
    digits = 5e-9 if name != "merged-alive" else 5e-7
    assert first.certificate.primal == pytest.approx(column, abs=digits)
    assert result.certificate.primal == pytest.approx(optimum, abs=digits)


def test_merged_minorities_live_until_their_own_complete_collapse():
    # (1000, 10, 10), free bias: one by one the small classes would die at .00432, together at .00526
    states = []
    for value in (0.0040, 0.00435, 0.00521, 0.00531):
        q, column, result = shared_optimum(PROBLEMS["merged-alive"].replace(lambda_z=value))
        assert result.status is Status.OPTIMAL
        assert result.certificate.relative_gap <= 1e-9
        Z, _ = lift(q, result.blocks)
        np.testing.assert_allclose(Z[:, 1], Z[:, 2], atol=1e-6)
        states.append((bool(np.abs(column.blocks.C).max() > 0), bool(np.abs(Z[:, 1]).max() > 1e-3)))
    assert states == [(True, True), (False, True), (False, True), (False, False)]


def factored_descent(p: Problem, seed: int) -> float:
    """The lowest plain objective L-BFGS-B finds over class features H >= 0, W and b, K x K, from random factors."""
    n, K = p.class_counts.astype(float), p.num_classes
    root, rows, q = np.sqrt(n), 2 * p.num_classes, n / n.sum()
    rng = np.random.default_rng(seed)

    def objective(x):
        W, H, b = x[: rows * K].reshape(rows, K), x[rows * K : -K].reshape(rows, K), x[-K:]
        P = softmax(W.T @ H / root + b[:, None], axis=0)
        G = (P - np.eye(K)) * q
        value = float(-np.log(np.diag(P)) @ q) + p.lambda_z / 2 * float(np.sum(W**2) + np.sum(H**2))
        slopes = [(H @ (G / root).T + p.lambda_z * W).ravel(), (W @ (G / root) + p.lambda_z * H).ravel()]
        return value + p.lambda_b / 2 * float(b @ b), np.concatenate([*slopes, G.sum(axis=1) + p.lambda_b * b])

    start = np.concatenate([rng.standard_normal(rows * K) / 2, np.abs(rng.standard_normal(rows * K)) / 2, np.zeros(K)])
    bounds = [(None, None)] * (rows * K) + [(0, None)] * (rows * K) + [(None, None)] * K
    options = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 0.0, "gtol": 1e-11, "maxcor": 40}
    return float(minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun)


@pytest.mark.parametrize("name", ["merged-minority", "leaning", "merged-alive", "mixed", "long-tail", "tail-in-one"])
def test_no_descent_on_nonnegative_factors_goes_lower(name):
    p = PROBLEMS[name]
    _, _, result = shared_optimum(p)
    found = [factored_descent(p, seed) for seed in range(6)]
    assert min(found) >= result.certificate.dual - 1e-12
    assert min(found) == pytest.approx(result.certificate.primal, rel=1e-8)


def test_orbits_mix_own_and_common_directions():
    # the middle classes keep a direction each that leans on the smallest ones: own and common parts in one atom
    q, _, result = shared_optimum(PROBLEMS["mixed"])
    w, h = result.atoms.norms(q)
    heavy = w * h > 1e-3 * np.max(w * h)
    mixed = (result.atoms.own[heavy, 1] > 0.1) & (result.atoms.common[heavy, 2] > 0.1)
    assert mixed.any()
    # without its leaning part the same factors, best multiples taken, are worse by far more than the gap
    apart = replace(
        result.atoms, common=np.where(result.atoms.own.max(axis=1, keepdims=True) > 0, 0, result.atoms.common)
    )
    costs = []
    for scale in np.linspace(0.8, 1.2, 81):
        atoms = replace(apart, between=scale * apart.between, within=scale * apart.within)
        costs.append(certify_atoms(q, atoms, result.blocks.b, result.witness).primal)
    assert min(costs) > result.certificate.primal * (1 + 1e-3)


def copositive_norm(G: np.ndarray) -> float:
    """max h'Gh over unit h >= 0 by enumeration: on its support the best h is a positive eigenvector."""
    best = float(np.max(np.diag(G)))
    for size in range(2, len(G) + 1):
        for support in combinations(range(len(G)), size):
            values, vectors = np.linalg.eigh(G[np.ix_(support, support)])
            for value, vector in zip(values, vectors.T, strict=True):
                if (vector >= -1e-9).all() or (vector <= 1e-9).all():
                    best = max(best, float(value))
    return best


@pytest.mark.parametrize("name", ["leaning", "long-tail", "tail-in-one", "mixed"])
def test_at_the_optimum_no_feature_direction_pays(name):
    # the exact dual norm, max ||R h|| over unit h >= 0, reaches lambda_Z and does not pass it
    p = PROBLEMS[name]
    q, _, result = shared_optimum(p)
    Z, b = lift(q, result.blocks)
    P = softmax(Z + b[:, None], axis=0)
    R = (np.eye(p.num_classes) - P) * np.sqrt(p.class_counts) / p.num_samples
    assert math.sqrt(copositive_norm(R.T @ R)) == pytest.approx(p.lambda_z, rel=1e-6)


def test_every_pair_of_classes_whose_direction_pays_is_found_among_many():
    # fifteen pairs of clusters, whose classes are taken for a third and everybody else for them: R is longest on one
    # class of each of a pair, and a start on which many classes take part loses them
    clusters, k = 45, 3
    p = Problem({i: 1000 - 5 * (i // k) for i in range(clusters * k)}, 1e-3, 1e-3, features="nonnegative")
    q, other, paired = quotient(p), np.zeros((clusters, clusters)), np.arange(30)
    other[:30] = 0.002
    other[paired, paired] = other[30 + paired // 2, paired] = 0.1
    S = Columns(np.sum(q.others * other, axis=0), other)
    R = residual(q, S)
    gram = R.between.T @ R.between / k  # of single classes of different clusters
    np.fill_diagonal(gram, np.diag(gram) + R.within**2 * (1 - 1 / k))
    least = min(np.linalg.eigvalsh(gram[i : i + 2, i : i + 2])[-1] for i in range(0, 30, 2)) ** 0.5
    missing = missing_directions(replace(q, lambda_z=0.999 * least), S)
    assert missing is not None
    found = {tuple(np.flatnonzero(h > 1e-3)) for h in missing.own[np.all(missing.common < 1e-3, axis=1)]}
    assert found >= {(i, i + 1) for i in range(0, 30, 2)}


@pytest.mark.parametrize("lambda_b", [0.0, 1e-2, INF])
@pytest.mark.parametrize("counts", [(50, 20, 10, 5), (50, 50, 20, 20, 20, 5)])
def test_the_hessian_of_the_factors_is_the_difference_of_gradients(counts, lambda_b):
    scales = np.where(np.array(counts) > 10, 1.2, 0.8)
    loss = Loss(scales=scales, temperatures=1 / scales, smoothing=0.1)
    q = quotient(Problem(counts, 3e-2, lambda_b, loss, features="nonnegative"))
    rng, J, several = np.random.default_rng(0), q.num_clusters, q.sizes > 1

    def random_atoms() -> Atoms:
        between, within, own, common = rng.normal(size=(4, J + 2, J))
        return Atoms(between, within * several, np.abs(own) * several, np.abs(common))

    unknowns = factored._Unknowns(q, J + 2)
    x, move = (unknowns.pack(random_atoms(), rng.normal(size=J) * (lambda_b < INF)) for _ in range(2))
    ahead, behind = (unknowns.at(x + h * move).gradient for h in (1e-6, -1e-6))
    everything = np.ones(x.size, dtype=bool)
    product = factored._curvature(unknowns.at(x), everything, 0.0)(move)
    assert np.abs(product - (ahead - behind) / 2e-6).max() <= 1e-8 * np.abs(product).max()


@cache
def optimum(p: Problem):
    return cs.solve(p)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.05])
def test_a_start_leads_to_the_same_optimum(solved, factor):
    """From the directions of a near problem, also where some are born or die between the two."""
    near = optimum(solved[0])
    problem = solved[0].replace(lambda_z=factor * solved[0].lambda_z)
    cold, warm = cs.solve(problem), cs.solve(problem, start=near)
    assert warm.certificate.primal == pytest.approx(cold.certificate.primal, rel=1e-9)
    assert np.abs(warm.Z - cold.Z).max() <= 2e-5 * np.abs(cold.Z).max()
    assert warm.class_states == cold.class_states
    if warm.proof is not None:
        W, H, b = warm.factors(64)
        assert (H >= 0).all()
        assert cs.certify(problem, W.T @ H, b).primal >= warm.certificate.dual


def test_random_plain_problems_close_their_gap():
    rng = np.random.default_rng(5)
    shared_ones = 0
    for _ in range(40):
        sizes = rng.choice([1, 1, 2, 5], rng.integers(2, 7))
        counts = np.repeat(np.round(10 ** rng.uniform(0.5, 4, sizes.size)).astype(int), sizes)
        scale = math.sqrt(counts.max()) / counts.sum()
        p = Problem(counts, scale * 10 ** rng.uniform(-4, 0), rng.choice([0.0, 1e-5, 1e-3]), features="nonnegative")
        _, column, result = shared_optimum(p)
        shared_ones += column.status is Status.SHARED_DIRECTIONS
        assert result.status is Status.OPTIMAL
        assert result.certificate.relative_gap <= 1e-9
    assert shared_ones >= 10


def test_a_closed_column_form_is_returned_as_it_is():
    p = Problem("500x5,100x5", 0.0027, 0.02, features="nonnegative")
    q, column, result = shared_optimum(p)
    assert result.status is Status.OPTIMAL
    assert result.num_steps == 0
    assert result.blocks is column.blocks
    assert result.atoms.price(q) == pytest.approx(
        (column.certificate.primal - naive_loss(p, *lift(q, column.blocks))) / p.lambda_z
    )
    W, H = factors(q, result.atoms)
    assert W.shape == H.shape == (10, 10)
    np.testing.assert_allclose(W.T @ H, lift(q, column.blocks)[0], atol=1e-12)


@pytest.mark.parametrize(
    ("lambda_z", "lambda_b"), [(6e-5, 0.0), (1e-4, 0.0), (4e-5, 1e-4), (6e-5, 1e-3), (1e-4, 1e-3), (1e-4, 1e-2)]
)
def test_a_long_tail_of_forty_different_classes_is_certified(lambda_z, lambda_b):
    """Before this algorithm the bound stayed open by up to 18 %, and the column form's Z was off by up to a tenth."""
    p = Problem("exp:5000:10:40", lambda_z, lambda_b, features="nonnegative")
    q, column, result = shared_optimum(p)
    assert result.certificate.relative_gap <= 1e-8
    assert result.certificate.primal <= column.certificate.primal
    W, H = factors(q, result.atoms)
    Z, b = lift(q, result.blocks)
    assert (H >= 0).all()
    np.testing.assert_allclose(W.T @ H, Z, atol=1e-12 * np.abs(Z).max())
    price = 0.5 * (np.sum(W**2) + np.sum(p.mass * H**2))
    own = naive_loss(p, Z, b) + lambda_z * price
    assert own == pytest.approx(result.certificate.primal, rel=1e-10)


def test_a_column_form_that_only_a_witness_certifies_keeps_it():
    q = quotient(draw(1205))
    column = minimise_nonnegative(q)
    result = minimise_shared(q, column.blocks)
    assert column.certificate.relative_gap > 1e-5
    assert result.certificate.primal == pytest.approx(column.certificate.primal, rel=1e-12)
    proof = shared_proof(result)
    assert proof is not None
    assert certify_atoms(q, proof.atoms, result.blocks.b, proof.witness).relative_gap <= 1e-9


def test_progress_tells_a_rising_bound_and_may_interrupt():
    q = quotient(PROBLEMS["leaning"])
    start = minimise_nonnegative(q).blocks
    seen = []
    result = minimise_shared(q, start, progress=lambda step, certificate: seen.append((step, certificate)))
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)
    assert all(certificate.dual <= result.certificate.primal for _, certificate in seen)
    assert seen[-1][1].dual > seen[0][1].dual
    assert minimise_shared(q, start, tol=1e-15, max_steps=1).status in (Status.MAX_STEPS, Status.STALLED)

    def interrupt(step, certificate):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        minimise_shared(q, start, progress=interrupt)


def test_a_gap_below_rounding_stalls_with_what_it_has():
    _, _, result = shared_optimum(PROBLEMS["leaning"], tol=1e-16)
    assert result.status is Status.STALLED
    assert result.certificate.relative_gap < 1e-9


def test_a_false_witness_proves_nothing_or_less(solved):
    _, q, _, result = solved
    bound = result.certificate.dual
    without = replace(result.witness, between=0 * result.witness.between, within=0 * result.witness.within)
    negative = replace(result.witness, between=result.witness.between - 1e-3)
    assert lower_bound(q, negative) == -INF
    assert lower_bound(q, without) <= bound + 1e-12


def test_a_negative_feature_certifies_nothing(solved):
    _, q, _, result = solved
    common = result.atoms.common.copy()
    common[0, 0] = -1e-12
    certificate = certify_atoms(q, replace(result.atoms, common=common), result.blocks.b, result.witness)
    assert certificate.primal == INF
    assert not certificate.relative_gap <= 1e-9


def test_factors_refuse_a_matrix_beyond_the_limit():
    q, _, result = shared_optimum(PROBLEMS["merged-minority"])
    with pytest.raises(ValueError, match="`max_rows` must be at least"):
        factors(q, result.atoms, max_rows=3)


def test_solve_goes_on_to_shared_directions(tmp_path):
    # theory section 4: merged and alive, where the column form alone says vanished
    p = Problem([1000, 10, 10], 0.004, 0.0, features="nonnegative")
    s = cs.solve(p)
    assert s.certificate.primal == pytest.approx(0.100663, abs=5e-7)
    assert s.class_states == ("vanished", "merged", "merged")
    W, H, b = s.factors(5)
    assert H.min() >= 0
    assert np.allclose(W.T @ H, s.Z, atol=1e-10)
    price = 0.5 * (np.sum(W**2) + np.sum(p.mass * H**2))
    assert naive_loss(p, s.Z, b) + p.lambda_z * price == pytest.approx(s.certificate.primal, rel=1e-9)
    again = cs.load_solution(s.save(tmp_path / "shared.npz"))
    assert again.certificate.relative_gap <= 1e-9
    assert np.allclose(again.Z, s.Z)
    assert cs.certify(p, s.Z, s.b).gap > 1e-4  # column by column it cannot be seen
    assert set(cs.solve(p.replace(lambda_z=0.0054)).class_states) == {"vanished"}  # complete collapse at .00526


def test_the_relaxation_meets_the_factors_from_a_rough_start():
    """Its bound from far off: ten percent of the features are lost, and nothing is known of the multipliers."""
    for p in (PROBLEMS["long-tail"], PROBLEMS["mixed"], PROBLEMS["ldt-smoothed"]):
        q, _, result = shared_optimum(p)
        atoms, none = result.atoms, np.zeros(q.num_clusters)
        rough = Atoms(0.9 * atoms.between, 0.9 * atoms.within, 0.9 * atoms.own, 0.9 * atoms.common)
        empty = replace(result.witness, between=np.zeros((q.num_clusters, q.num_clusters)), within=none)
        *_, at = relaxed(q, beginning(q, rough, result.blocks.b, empty), 1e-12)
        C = at.V.T @ at.V
        assert (C - np.diag(at.v**2)).min() >= -1e-6 * C.max()
        S = predict(q, balance_bias(q, at.blocks(q)))[0]
        optimum = result.certificate.primal
        assert optimum * (1 - 1e-9) <= lower_bound(q, at.witness(q, S)) <= optimum * (1 + 1e-13)


def test_the_relaxation_gives_classes_their_contrasts_back():
    """Contrasts that are zero stay zero along the gradient: the residual inside the cluster says that they pay."""
    q, _, result = shared_optimum(PROBLEMS["mixed"])
    atoms, none = result.atoms, np.zeros_like(result.atoms.own)
    assert atoms.own.any()
    merged = Atoms(atoms.between, none, none, atoms.mean)
    *_, at = relaxed(q, beginning(q, merged, result.blocks.b, result.witness), 1e-12)
    S = predict(q, balance_bias(q, at.blocks(q)))[0]
    optimum = result.certificate.primal
    assert optimum * (1 - 1e-9) <= lower_bound(q, at.witness(q, S)) <= optimum * (1 + 1e-13)


def test_the_relaxation_has_the_derivatives_it_says():
    q = quotient(PROBLEMS["ldt-smoothed"])
    rng, J = np.random.default_rng(0), q.num_clusters
    N = rng.random((J, J))
    problem = _Round(q, N + N.T, rng.random(J), 1 + rng.random(J), 2.0)
    x, d = rng.standard_normal((2, 2 * 4 * J + 3 * J))
    up, down = problem.objective(x + 1e-5 * d), problem.objective(x - 1e-5 * d)
    _, gradient = problem.objective(x)
    assert (up[0] - down[0]) / 2e-5 == pytest.approx(gradient @ d, rel=1e-8)
    np.testing.assert_allclose(problem.hessian(x)[0](d), (up[1] - down[1]) / 2e-5, rtol=1e-6, atol=1e-8)
