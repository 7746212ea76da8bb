"""Newton's method on the overlaps of nonnegative features, against the descent on their factors."""

from __future__ import annotations

import math

import numpy as np
import pytest

import collapsar as cs
from collapsar.core.loss import Loss
from collapsar.core.problem import Problem
from collapsar.solver.atoms import near_overlaps, with_overlaps
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.objective import predict, residual
from collapsar.solver.overlaps import follow_overlaps, minimise_overlaps
from collapsar.solver.shared import SharedResult, certify_atoms, minimise_shared
from collapsar.solver.status import Status
from collapsar.solver.symmetry import quotient, trivial_quotient
from test_solver_sweep import draw, verdict

INF = math.inf

SHARING = {
    "merged-minority": Problem("500x5,20x5", 0.0018, 0.001),
    "mixed": Problem("500x2,100x2,20x2", 0.002, 0.0),
    "long-tail": Problem("exp:5000:10:12", 1e-4, 0.0),
    "priced-bias": Problem("exp:5000:10:20", 4e-5, 1e-4),
    "fewer-directions": Problem("exp:5000:10:12", 2e-3, 0.0),
    "leaning-alone": Problem([1000, 500, 10], 0.01, 0.1),
    "weighted": Problem("300x2,30x2,5", 0.003, 0.0, Loss(class_weights=[1, 1, 2, 2, 3])),
    "vs-loss": Problem("300x2,30x3", 0.003, 1e-4, Loss(offsets=[0.5] * 2 + [-0.5] * 3, scales=[1.0] * 2 + [0.8] * 3)),
    "ldt-smoothed": Problem("200x2,20x2", 0.003, 0.0, Loss(temperatures=[1, 1, 1.5, 1.5], smoothing=0.05)),
}
OWN = {
    "no-bias": Problem("exp:5000:10:12", 1e-4, INF),
    "dear-bias": Problem("exp:5000:50:12", 4e-5, 1e-2),
    "clusters": Problem("500x3,300x1,200x2", 5e-4, 0.05),
    "vanished-classes": Problem("500x3,20x3", 5e-3, INF),
}


@pytest.mark.parametrize("name", SHARING)
def test_it_meets_the_descent_on_the_factors(name):
    q = quotient(SHARING[name].replace(features="nonnegative"))
    result = minimise_overlaps(q)
    assert isinstance(result, SharedResult)
    assert certify_atoms(q, result.atoms, result.blocks.b, result.witness).relative_gap <= 1e-10
    assert (result.atoms.own >= 0).all()
    assert (result.atoms.common >= 0).all()
    other = minimise_shared(q, minimise_nonnegative(q).blocks, tol=1e-12)
    assert result.certificate.primal == pytest.approx(other.certificate.primal, rel=1e-11)
    np.testing.assert_allclose(result.blocks.C, other.blocks.C, atol=2e-5)  # as far as a gap of 1e-12 tells
    np.testing.assert_allclose(result.blocks.b, other.blocks.b, atol=2e-5)


@pytest.mark.parametrize("name", OWN)
def test_where_no_direction_is_shared_it_is_the_column_form(name):
    q = quotient(OWN[name].replace(features="nonnegative"))
    result, column = minimise_overlaps(q), minimise_nonnegative(q, tol=1e-12)
    assert result is not None
    assert not isinstance(result, SharedResult)
    assert column.status is Status.OPTIMAL
    np.testing.assert_allclose(result.blocks.C, column.blocks.C, atol=1e-6)
    np.testing.assert_allclose(result.blocks.alpha, column.blocks.alpha, atol=1e-6)


def test_residuals_are_orthonormal_where_directions_are_shared_and_obtuse_elsewhere():
    q = quotient(SHARING["long-tail"].replace(features="nonnegative"))
    result = minimise_overlaps(q)
    assert isinstance(result, SharedResult)
    C, _ = result.atoms.gram()
    R = residual(q, predict(q, result.blocks)[0]).between / q.lambda_z
    cosines, shared = R.T @ R, C > 0
    np.testing.assert_allclose(cosines[shared], np.eye(12)[shared], atol=1e-7)
    assert 10 < shared.sum() - 12 < 12 * 11
    assert (cosines[~shared] < 0).all()


@pytest.mark.parametrize("lambda_b", [0.0, 1e-4, INF])
def test_clusters_change_nothing(lambda_b):
    p = Problem("500x3,100x2,20x3", 5e-4, lambda_b, features="nonnegative")
    one, all_ = minimise_overlaps(quotient(p)), minimise_overlaps(trivial_quotient(p))
    assert one is not None
    assert all_ is not None
    assert one.certificate.primal == pytest.approx(all_.certificate.primal, rel=1e-11)


def test_a_class_without_a_direction_leans_on_others():
    q = quotient(SHARING["fewer-directions"].replace(features="nonnegative"))
    result = minimise_overlaps(q)
    assert isinstance(result, SharedResult)
    C, _ = result.atoms.gram()
    assert np.linalg.matrix_rank(C, tol=1e-9 * C.max()) == len(result.atoms.own) < 12
    lengths = np.linalg.norm(residual(q, predict(q, result.blocks)[0]).between, axis=0) / q.lambda_z
    assert lengths.min() < 0.9
    assert (C.diagonal()[lengths < 0.9] > 0).any()


def test_what_it_cannot_do_is_left_to_the_descent():
    p = Problem("exp:5000:10:12", 2e-3, 0.0, features="nonnegative")
    assert minimise_overlaps(quotient(p), max_steps=2) is None
    solution = cs.solve(p, max_steps=2, throw=False)
    assert solution.num_steps <= 2
    many = Problem(list(range(1, 202)), 1e-4, 0.1, features="nonnegative")
    assert minimise_overlaps(quotient(many)) is None


def test_overlaps_are_followed_from_stronger_penalties():
    q = quotient(draw(1347))  # a penalty 5e4 times below complete collapse
    assert minimise_overlaps(q) is None  # from its own start
    followed = follow_overlaps(q)
    assert followed is not None
    assert followed.status is Status.OPTIMAL
    end, open_ = verdict(1347)
    assert end == "OPTIMAL"
    assert open_ <= 1e-9
    # where no path is needed it ends at the same optimum
    q = quotient(SHARING["long-tail"].replace(features="nonnegative"))
    cold, followed = minimise_overlaps(q), follow_overlaps(q)
    assert cold is not None
    assert followed is not None
    assert followed.certificate.primal == pytest.approx(cold.certificate.primal, rel=1e-11)
    assert follow_overlaps(q, max_steps=20) is None


@pytest.mark.parametrize("lambda_z", [0.01304, 0.01307])
def test_overlaps_that_turn_singular_in_a_shortened_step_are_left_to_the_general_algorithm(lambda_z: float):
    n = np.array([8, 8, 8, 15, 15, 15, 24, 24, 24, 438])
    p = Problem(n, lambda_z, 0.0, Loss(temperatures=(438 / n) ** 0.315), features="nonnegative")
    assert minimise_overlaps(quotient(p)) is None
    assert cs.solve(p).class_states == ("separated",) * 9 + ("vanished",)


def test_features_with_given_overlaps():
    q = trivial_quotient(Problem([5, 4, 3, 2, 1], 0.01))
    H = np.triu(np.random.default_rng(1).random((5, 5)))
    H[0, 2] = H[1, 3] = H[0, 3] = 0.0
    found = with_overlaps(q, H.T @ H, np.zeros(5))
    assert found is not None
    own, common = found
    assert not own.any()
    assert (common >= 0).all()
    np.testing.assert_allclose(common.T @ common, H.T @ H, atol=1e-12)
    # five vectors, each at right angles to two others: positive semidefinite and >= 0, but no vectors >= 0 are so
    ring = np.eye(5) + 0.61 * (np.roll(np.eye(5), 1, axis=0) + np.roll(np.eye(5), -1, axis=0))
    assert np.linalg.eigvalsh(ring)[0] > 0
    assert with_overlaps(q, ring, np.zeros(5)) is None


def test_contrasts_of_a_cluster_stay_in_its_own_direction():
    q = quotient(Problem("50x3,20x2", 0.01))
    S, gamma = np.array([[0.0, 0.3], [0.3, 0.5]]), np.array([1.0, 0.2])
    found = with_overlaps(q, S, gamma)
    assert found is not None
    own, common = found
    np.testing.assert_allclose((own + common).T @ (own + common), S + np.diag(gamma), atol=1e-12)
    np.testing.assert_allclose(np.sum(own**2, axis=0), gamma, atol=1e-12)
    # siblings that share nothing cannot both lean on a class that is taken off first
    assert with_overlaps(q, np.array([[0.0, 1.1], [1.1, 0.5]]), gamma) is None


def test_features_whose_overlaps_are_nearest():
    q = quotient(Problem("50x3,20x2,9,7,5,3", 0.01))
    rng = np.random.default_rng(2)
    own, common = rng.random((2, 9, 6)) * (rng.random((2, 9, 6)) < 0.5)
    own *= q.sizes > 1
    S, gamma = (own + common).T @ (own + common), np.sum(own**2, axis=0)
    found_own, found_common = near_overlaps(q, S - np.diag(gamma), gamma)
    mean = found_own + found_common
    assert found_own.min() >= 0
    assert found_common.min() >= 0
    assert not found_own[:, q.sizes == 1].any()
    np.testing.assert_allclose(mean.T @ mean, S, rtol=0.0, atol=2e-3)
    np.testing.assert_allclose(np.sum(found_own**2, axis=0), gamma, rtol=0.0, atol=2e-3)


def test_the_distance_from_overlaps_that_no_features_have_is_that_of_a_copositive_form():
    q = trivial_quotient(Problem([5, 4, 3, 2, 1], 0.01))
    beside = np.roll(np.eye(5), 1, axis=0) + np.roll(np.eye(5), -1, axis=0)
    ring = np.eye(5) + 0.6 * beside
    _, common = near_overlaps(q, ring, np.zeros(5))
    # Horn's form is >= 0 at all overlaps of features >= 0, and -1 here; its norm is 5
    horn = np.ones((5, 5)) - 2 * beside
    assert np.sum(horn * ring) == pytest.approx(-1.0)
    assert np.linalg.norm(common.T @ common - ring) == pytest.approx(0.2, rel=1e-6)
