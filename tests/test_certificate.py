from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.certificate import certify_blocks
from collapsar.solver.objective import predict, residual
from collapsar.solver.symmetry import Blocks, lift, project, quotient


def random_point(p, rng, size=2.0):
    q = quotient(p)
    J = q.num_clusters
    b = rng.normal(size=J) if p.lambda_b < np.inf else np.zeros(J)
    return q, Blocks(rng.normal(size=J) * size * (q.sizes > 1), rng.normal(size=(J, J)) * size, b)


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_the_primal_is_the_objective(problem, objective, features):
    p = problem.replace(features=features)
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(p.num_classes, p.num_classes))
    b = rng.normal(size=p.num_classes) if p.lambda_b < np.inf else np.zeros(p.num_classes)
    assert cs.certify(p, Z, b).primal == pytest.approx(objective(p, Z, b), rel=1e-12)


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_reduced_and_full_certificates_agree(problem, features):
    p = problem.replace(features=features)
    s = cs.solve(p, throw=False)
    q, blocks = s.quotient, s.blocks
    blocks = Blocks(1.001 * blocks.alpha, 1.001 * blocks.C, blocks.b)
    reduced, full = certify_blocks(q, blocks), cs.certify(p, *lift(q, blocks))
    assert reduced.primal == pytest.approx(full.primal, rel=1e-12)
    assert reduced.dual == pytest.approx(full.dual, rel=1e-9, abs=1e-12)


def test_no_point_has_a_dual_above_any_primal(problem):
    # every lower bound lies below every upper bound, whatever points they come from
    rng = np.random.default_rng(2)
    certificates = [certify_blocks(*random_point(problem, rng, size)) for size in (0.0, 0.1, 1.0, 3.0, 10.0)]
    optimum = cs.solve(problem, throw=False).certificate
    assert max(c.dual for c in certificates) <= optimum.primal + 1e-12
    assert min(c.primal for c in certificates) >= optimum.dual - 1e-12


def test_projection_onto_blocks_never_costs(problem, objective):
    q, blocks = random_point(problem, np.random.default_rng(3))
    Z, b = lift(q, blocks)
    again = project(q, Z, b)
    assert np.allclose(again.C, blocks.C)
    assert np.allclose(again.alpha, blocks.alpha)
    Z = Z + np.random.default_rng(4).normal(size=Z.shape)
    assert objective(problem, *lift(q, project(q, Z, b))) <= objective(problem, Z, b)


def test_mending_makes_the_gap_quadratic():
    # at distance e of the optimum the primal is off by e^2, and so must be the dual, or no gap would close in time
    p = cs.Problem([400, 300, 200, 100, 50], 0.004, 0.05)
    s = cs.solve(p)
    direction = np.random.default_rng(5).normal(size=s.Z.shape)
    direction = direction @ np.diag(np.linalg.norm(s.Z, axis=0)) / 20
    direction -= direction.mean(axis=0)
    gaps = [cs.certify(p, s.Z + e * direction, s.b).gap for e in (1e-3, 1e-4)]
    assert gaps[0] / gaps[1] > 50


def test_the_gap_is_small_only_at_the_optimum(problem):
    s = cs.solve(problem)
    assert cs.certify(problem, s.Z, s.b).relative_gap <= 1e-9
    assert cs.certify(problem, 1.01 * s.Z + 1e-3 * np.eye(problem.num_classes), s.b).relative_gap > 1e-8


def test_a_weak_but_positive_bias_penalty_is_certified():
    p = cs.Problem("500x5,100x5", 0.0027, 1e-9)
    assert cs.solve(p).certificate.relative_gap <= 1e-9


@pytest.mark.parametrize(
    ("Z", "b", "says"),
    [
        (np.zeros((2, 2)), None, "shape (3, 3)"),
        (np.zeros((3, 3)), np.zeros(2), "shape (3,)"),
        (np.full((3, 3), np.nan), None, "finite"),
        (np.zeros((3, 3)), np.ones(3), "inf (no bias)"),
    ],
)
def test_bad_points_are_named(Z, b, says):
    with pytest.raises(ValueError) as error:
        cs.certify(cs.Problem([5, 4, 3], 0.1), Z, b)
    assert says in str(error.value)


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, np.inf])
@pytest.mark.parametrize("share", [1e-3, 1e-5, 1e-7])
def test_a_direction_that_should_be_dead_opens_the_gap_by_what_it_costs(lambda_b, share):
    n = np.rint(np.geomspace(5000, 50, 20)).astype(int)
    s = cs.solve(cs.Problem(n, 3 * np.sqrt(50) / n.sum(), lambda_b), 1e-12)
    q, C = s.quotient, s.blocks.C
    A, sigma, Bt = np.linalg.svd(residual(q, predict(q, s.blocks)[0]).between)
    first = int(np.argmax(sigma < 0.99 * q.lambda_z))  # to set its singular value to lambda_Z would cost more
    size = share * np.linalg.norm(q.weight * C, 2)
    c = certify_blocks(q, Blocks(s.blocks.alpha, C + size * np.outer(A[:, first], Bt[first]) / q.weight, s.blocks.b))
    assert c.gap == pytest.approx(c.primal - s.certificate.primal, rel=1e-3)


@cache
def least(p):
    return cs.solve(p).certificate.primal


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
@pytest.mark.parametrize("lambda_b", [0.0, 1e-300, 1e-14, 0.01])
@pytest.mark.parametrize(
    ("scale", "shut_out"), [(100.0, 0.0), (1e4, 0.0), (1e100, 0.0), (1e150, 0.0), (-100.0, 0.0), (10.0, -200.0)]
)
def test_saturated_predictions_are_certified(features, lambda_b, scale, shut_out, objective):
    # the loss is flat there: no Newton step balances the bias, and the bound is what the targets themselves prove
    p = cs.Problem([100, 50, 10], 1e-3, lambda_b, features=features)
    b = np.array([0.0, 0.0, shut_out])
    c = cs.certify(p, scale * np.eye(3), b)
    assert c.primal == pytest.approx(objective(p, scale * np.eye(3), b), rel=1e-12)
    assert 0 <= c.dual <= least(p)
