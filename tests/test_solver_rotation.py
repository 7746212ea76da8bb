"""Few clusters at full rank: the rotation against the general algorithm, the closed form and the K x K certificate."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.certificate import certify_blocks
from collapsar.solver.rotation import FEW, _curvature_in_pairs, _curvature_in_planes, _planes, rotation_point
from collapsar.solver.signed import minimise_signed
from collapsar.solver.small_certificate import certify_small
from collapsar.solver.symmetry import Blocks, lift, quotient
from collapsar.theory.two_cluster import two_cluster
from problems import PROBLEMS, naive_objective

INF = math.inf

# every cluster alive and all directions with it; the others of the table have lost rank
FULL = ["paper-apart", "paper-merged", "dataset1", "no-bias", "free-bias", "balanced", "two-classes", "weighted"]
FULL += ["oversampled", "adjusted", "vs-loss", "ldt-smoothed"]


@pytest.mark.parametrize("name", FULL)
def test_the_general_algorithm_ends_at_the_same_point(name):
    q = quotient(PROBLEMS[name])
    found = rotation_point(q)
    assert found is not None
    blocks, steps = found
    general = minimise_signed(q, tol=1e-9)
    assert steps <= 8
    assert certify_small(q, blocks).relative_gap <= 1e-12
    assert certify_small(q, blocks).primal == pytest.approx(general.certificate.primal, rel=1e-9)
    for ours, theirs in zip(lift(q, blocks), lift(q, general.blocks), strict=True):
        assert np.abs(ours - theirs).max() <= 2e-6


@pytest.mark.parametrize("J", [2, 3, 7, FEW])
def test_the_products_that_are_left_out_are_zero(J):
    rng = np.random.default_rng(J)
    Q, weight, S = np.linalg.qr(rng.normal(size=(J, J)))[0], rng.uniform(0.1, 5.0, (J, J)), rng.normal(size=(J, J))
    for bent in (S + S.T, None):
        few = _curvature_in_pairs(_planes(J), Q, weight, bent)
        assert few == pytest.approx(_curvature_in_planes(_planes(J), Q, weight, bent), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("lambda_b", [0.02, 1.0, INF])
@pytest.mark.parametrize(
    ("k", "n", "lambda_z"),
    [((5, 5), (500, 100), 0.0027), ((5, 5), (500, 100), 0.0036), ((3, 7), (500, 100), 1e-4), ((2, 9), (70, 3), 0.001)],
)
def test_two_clusters_meet_the_closed_form(k, n, lambda_z, lambda_b):
    # JMLR (5.16)-(5.51), a scalar root that knows no rotation
    theory = two_cluster(k[0], k[1], n[0], n[1], lambda_z, lambda_b)
    s = cs.solve(cs.Problem([n[0]] * k[0] + [n[1]] * k[1], lambda_z, lambda_b))
    assert np.abs(s.Z - theory.Z()).max() <= 1e-8
    assert np.abs(s.b - theory.bias()).max() <= 1e-8


def test_the_gap_is_that_of_the_unreduced_certificate(problem):
    s = cs.solve(problem, throw=False)
    q = s.quotient
    few, full = certify_small(q, s.blocks), cs.certify(problem, s.Z, s.b)
    assert few.primal == pytest.approx(full.primal, rel=1e-13)
    assert few.primal == pytest.approx(naive_objective(problem, s.Z, s.b), rel=1e-12)
    assert few.dual <= full.dual + 1e-13  # certify looks for more bounds, never for fewer
    if s.rank == sum(q.sizes) - 1:  # merged and vanished clusters leave slack in the ray
        assert few.dual == pytest.approx(full.dual, rel=1e-11)


def test_at_any_point_the_bound_stays_below_the_optimum(problem):
    best = cs.solve(problem).certificate
    q = quotient(problem)
    rng = np.random.default_rng(3)
    for size in (1e-3, 0.1, 2.0):
        J = q.num_clusters
        b = rng.normal(size=J) if 0 < problem.lambda_b < INF else np.zeros(J)
        blocks = Blocks(size * rng.normal(size=J) * (q.sizes > 1), size * rng.normal(size=(J, J)), b)
        certificate = certify_small(q, blocks)
        assert certificate.primal == pytest.approx(naive_objective(problem, *lift(q, blocks)), rel=1e-12)
        assert certificate.dual <= best.primal
        if problem.lambda_b > 0:
            assert certificate.dual > -INF


def random_problem(rng: np.random.Generator, fewest: int, most: int) -> cs.Problem:
    J = int(rng.integers(fewest, most + 1))
    sizes = rng.integers(1, 6, size=J) + (J == 1)
    counts = np.maximum(np.rint(10 ** rng.uniform(0, rng.uniform(0.5, 5), size=J)), 1)

    def spread(values):
        return np.repeat(values, sizes)

    def maybe(values):
        return spread(values) if rng.random() < 0.25 else None

    loss = cs.Loss(
        class_weights=maybe(10 ** rng.uniform(-1, 1, size=J)),
        offsets=maybe(rng.normal(size=J)),
        scales=maybe(10 ** rng.uniform(-0.4, 0.4, size=J)),
        temperatures=maybe(10 ** rng.uniform(-0.4, 0.4, size=J)),
        smoothing=float(rng.uniform(0, 0.3)) if rng.random() < 0.25 else 0.0,
    )
    p = cs.Problem(spread(counts).astype(np.int64), 1.0, float(rng.choice([0.0, INF, 10 ** rng.uniform(-5, 1)])), loss)
    top = np.max(p.loss_share * p.temperatures * p.scales / np.sqrt(p.mass))
    return p.replace(lambda_z=float(top * 10 ** rng.uniform(-5, 0.1)))


@pytest.mark.parametrize(("fewest", "most", "number", "enough"), [(1, FEW, 150, 90), (FEW + 1, 40, 60, 20)])
def test_random_problems_are_solved_or_left_to_the_general_algorithm(fewest, most, number, enough):
    rng = np.random.default_rng(11)
    solved = 0
    for _ in range(number):
        p = random_problem(rng, fewest, most)
        q = quotient(p)
        found = rotation_point(q)
        if found is None:
            continue
        few = certify_small(q, found[0])
        if few.relative_gap > 1e-9:
            continue
        solved += 1
        full = certify_blocks(q, found[0])
        assert full.relative_gap <= 1e-9
        assert few.primal == pytest.approx(full.primal, rel=1e-12, abs=1e-15)
    assert solved >= enough


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, INF])
@pytest.mark.parametrize("K", [FEW, FEW + 1, 30])
def test_many_distinct_counts_turn_by_conjugate_gradients_to_the_same_point(K, lambda_b):
    n = np.rint(np.geomspace(5000, 50, K)).astype(int)
    q = quotient(cs.Problem(n, 0.5 * math.sqrt(50) / n.sum(), lambda_b))
    found = rotation_point(q)
    assert found is not None
    blocks, steps = found
    assert steps <= 8
    assert certify_blocks(q, blocks).relative_gap <= 1e-12
    for ours, theirs in zip(lift(q, blocks), lift(q, minimise_signed(q).blocks), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-7


@pytest.mark.parametrize("offset", [-1e-2, -1e-6, -1e-9, 0.0, 1e-9, 1e-6, 1e-2])
@pytest.mark.parametrize("lambda_b", [0.0, 0.02, INF])
def test_on_both_sides_of_a_merge(offset, lambda_b):
    # JMLR Cor. 4: the minority merges at sqrt(n) / N whatever the bias and the other clusters do
    p = cs.Problem("500x4,200x3,100x3", math.sqrt(100) / 2900 * (1 + offset), lambda_b)
    found = rotation_point(quotient(p))
    assert found is not None
    assert certify_small(quotient(p), found[0]).relative_gap <= 1e-12
    s = cs.solve(p)
    if abs(offset) >= 1e-6:
        assert s.class_states[-1] == ("merged" if offset > 0 else "separated")
    assert (np.ptp(s.Z[:, -3:], axis=1).max() == 0.0) == (offset >= 0)


def test_lost_rank_is_left_to_the_general_algorithm():
    for p in (cs.Problem("500x5,100x5", 0.0045, 0.02), cs.Problem("500x5,100x5", 0.01, 0.02), PROBLEMS["distinct"]):
        q = quotient(p)
        found = rotation_point(q)
        assert found is None or certify_small(q, found[0]).relative_gap > 1e-3
        assert cs.solve(p).certificate.relative_gap <= 1e-9


def test_one_cluster_needs_no_step():
    q = quotient(cs.Problem([100] * 6, 0.004, 0.02))
    found = rotation_point(q)
    assert found is not None
    assert found[1] == 0
    assert certify_small(q, found[0]).relative_gap <= 1e-12


def test_too_few_steps_find_nothing():
    q = quotient(PROBLEMS["dataset1"])
    assert rotation_point(q, max_steps=1) is None


def test_a_free_bias_out_of_balance_has_no_bound():
    q = quotient(PROBLEMS["free-bias"])
    found = rotation_point(q)
    assert found is not None
    blocks = replace(found[0], b=found[0].b + np.array([1e-3, 0.0]))
    assert certify_small(q, blocks).dual == -INF


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, INF])
def test_a_neighbours_optimum_saves_steps_and_does_not_mislead(lambda_b):
    counts = "500x2,200,100x3,50"
    q = quotient(cs.Problem(counts, 1e-3, lambda_b))
    cold = rotation_point(q)
    assert cold is not None
    scales = np.array([1.0] * 6 + [1.02])
    near = cs.solve(cs.Problem(counts, 1.03e-3, lambda_b, cs.Loss(scales=scales))).blocks
    lost = cs.solve(cs.Problem(counts, 1.0, lambda_b)).blocks  # Z = 0: no direction to start from
    for start, fewest in ((near, cold[1] - (lambda_b > 0)), (lost, cold[1])):
        found = rotation_point(q, near=start)
        assert found is not None
        assert found[1] <= fewest
        for ours, theirs in zip(lift(q, found[0]), lift(q, cold[0]), strict=True):
            assert np.abs(ours - theirs).max() <= 1e-8


def test_a_start_next_to_the_optimum_costs_no_digits_by_conjugate_gradients():
    p = cs.Problem(",".join(str(n) for n in range(500, 500 - 12 * FEW, -12)) + ",100", 2e-4, 0.02)
    near = cs.solve(p.replace(lambda_z=2.0005e-4)).blocks  # the first step, to a tenth of its length, is 1e-6 long
    found, cold = rotation_point(quotient(p), near=near), rotation_point(quotient(p))
    assert found is not None
    assert cold is not None
    assert np.abs(found[0].C - cold[0].C).max() <= 1e-7 * np.abs(cold[0].C).max()
