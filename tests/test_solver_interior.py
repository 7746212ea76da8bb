"""The interior-point method over overlaps: the relaxation, and the best features along given directions."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.atoms import Atoms
from collapsar.solver.interior import Space
from collapsar.solver.interior_bounds import best_weights, relaxation
from collapsar.solver.nonnegative import minimise_nonnegative
from collapsar.solver.objective import Columns, predict, residual
from collapsar.solver.overlap_model import OverlapPoint, response
from collapsar.solver.shared import certify_atoms, leaning, minimise_shared
from collapsar.solver.shared_directions import ascent, near_directions
from collapsar.solver.solution import SharedProof
from collapsar.solver.status import Result
from collapsar.solver.symmetry import Quotient, quotient
from collapsar.solver.witness import Cut, Witness, lower_bound, witness_of
from test_solver_sweep import draw
from test_solver_sweep import lower_bound as lower_bound_by_hand

# classes alone, clusters, a bias that is free, priced and none, smoothing, scales
PROBLEMS = {
    "long-tail": cs.Problem([1000, 500, 200, 100, 50, 20], 0.0005, 0.0, features="nonnegative"),
    "clusters": cs.Problem("500x2,100x3,20x2", 0.002, 0.01, features="nonnegative"),
    "no-bias": cs.Problem("400x1,90x3,30x2,7x1", 0.001, math.inf, cs.Loss(smoothing=0.1), features="nonnegative"),
    "scales": cs.Problem(
        [300, 200, 80, 40, 12], 0.001, 0.0, cs.Loss(scales=[1.0, 2.0, 0.5, 1.0, 1.5]), features="nonnegative"
    ),
}


@pytest.fixture(params=PROBLEMS, scope="module")
def q(request: pytest.FixtureRequest) -> Quotient:
    return quotient(PROBLEMS[request.param])


def near_column(q: Quotient) -> tuple[Atoms, Columns]:
    """The column form's features, each leaning a little on all classes, and its softmax."""
    column = minimise_nonnegative(q)
    S = predict(q, column.blocks)[0]
    return leaning(q, column.blocks, S)[0], S


def squares(q: Quotient, column: Result) -> np.ndarray:
    """Of the column form's features."""
    return leaning(q, column.blocks, predict(q, column.blocks)[0])[0].squares(q)


def at_random(q: Quotient) -> tuple[Space, OverlapPoint]:
    """A residual with positive probabilities and overlaps inside the cone."""
    space, rng = Space(q), np.random.default_rng(0)
    Q = residual(q, predict(q, minimise_nonnegative(q).blocks)[0]).over(q.lambda_z)
    H = rng.random((3 * q.num_clusters, q.num_clusters))
    gamma = np.where(q.sizes > 1, rng.random(q.num_clusters), 0.0)
    x = space.vector(H.T @ H + np.diag(gamma), gamma)
    lost = np.zeros(q.num_clusters, dtype=bool)
    return space, OverlapPoint(q, space.model, Q, space.stacked(x), lost)


def test_overlaps_as_a_vector_and_back(q):
    space, here = at_random(q)
    C, gamma = here.gram, here.D[-1]
    x = space.vector(C, gamma)
    assert x.size == space.size
    np.testing.assert_allclose(space.gram(x), C)
    np.testing.assert_allclose(space.stacked(x), here.D)
    # <M, C> is linear in x, and its slope is what pairs give
    M = np.random.default_rng(1).random(C.shape)
    M = M + M.T
    assert space.paired(M) @ x == pytest.approx(np.sum(M * C))


def test_the_second_derivative_against_one_direction_at_a_time(q):
    space, here = at_random(q)
    follow = response(here)
    assert follow is not None
    H = space.curvature(here, follow)
    for a, unit in enumerate(np.eye(space.size)):
        bent = here.bent(follow(here.times(space.stacked(unit))))  # Q falls by what follows, and I - Q'Q rises
        np.testing.assert_allclose(H[a], space.paired(bent[:-1], bent[-1]), rtol=1e-9, atol=1e-9 * np.abs(H).max())
    assert np.linalg.eigvalsh(H)[0] >= -1e-9 * np.abs(H).max()  # phi is convex


def test_a_sandwich_against_its_definition(q):
    space, rng = Space(q), np.random.default_rng(0)
    V = rng.random((q.num_clusters, q.num_clusters))
    V = V + V.T
    for a, unit in enumerate(np.eye(space.size)):
        np.testing.assert_allclose(space.scaled(V)[a], space.paired(V @ space.gram(unit) @ V), rtol=1e-12)


def test_the_relaxation_meets_the_optimum_from_below(q):
    """Few clusters: features reach it, as the solver finds by other means."""
    optimum = minimise_shared(q, minimise_nonnegative(q).blocks, tol=1e-12).certificate.primal
    atoms, S = near_column(q)
    found = relaxation(q, atoms, S, witness_of(q, S, *atoms.gram()), 1e-13)
    assert found is not None
    bound = lower_bound(q, found.witness)
    assert bound == pytest.approx(optimum, rel=1e-10)
    assert bound <= optimum * (1 + 1e-13)


@pytest.mark.parametrize("cut", [Cut(0, 1, 0.5), Cut(2, 1, 2.0)])
def test_a_cut_changes_nothing_where_the_relaxation_is_tight(q, cut):
    optimum = minimise_shared(q, minimise_nonnegative(q).blocks, tol=1e-12).certificate.primal
    (atoms, S), J = near_column(q), q.num_clusters
    found = relaxation(q, atoms, S, Witness(S, np.zeros((2, J, J)), np.zeros((2, J)), (cut,)), 1e-12)
    assert found is not None
    assert found.witness.cuts == (cut,)
    bound = lower_bound(q, found.witness)
    assert bound == pytest.approx(optimum, rel=1e-9)
    assert bound <= optimum * (1 + 1e-13)


def test_along_one_direction_a_class_the_best_weights_are_the_column_form(q):
    column = minimise_nonnegative(q, tol=1e-13)
    several = q.sizes > 1
    own, common = np.diag(several.astype(float)), np.diag((~several).astype(float))
    Q = residual(q, predict(q, minimise_nonnegative(q, tol=1e-3).blocks)[0]).over(q.lambda_z)
    atoms, b, Q = best_weights(q, own, common, squares(q, column), Q, 1e-14)
    witness = witness_of(q, predict(q, column.blocks)[0], *atoms.gram())
    value = certify_atoms(q, atoms, b, witness).primal
    assert value == pytest.approx(column.certificate.primal, rel=1e-10)
    np.testing.assert_allclose(atoms.blocks(q, b).C, column.blocks.C, atol=1e-4)


def test_more_directions_close_the_gap_that_the_column_form_leaves():
    q = quotient(PROBLEMS["long-tail"])
    column, rng = minimise_nonnegative(q), np.random.default_rng(0)
    optimum = minimise_shared(q, column.blocks, tol=1e-12).certificate.primal
    own, common = np.zeros((6, 6)), np.eye(6)
    S = predict(q, column.blocks)[0]
    atoms, b, Q = best_weights(q, own, common, squares(q, column), residual(q, S).over(q.lambda_z), 1e-14)
    for _ in range(6):
        S = predict(q, atoms.blocks(q, b))[0]
        more = near_directions(q, S, atoms, 1e-10, rng)
        own, common = np.vstack([atoms.own, more.own]), np.vstack([atoms.common, more.common])
        atoms, b, Q = best_weights(q, own, common, np.append(atoms.weights(q), np.zeros(len(more.own))), Q, 1e-14)
    value = certify_atoms(q, atoms, b, witness_of(q, S, *atoms.gram())).primal
    assert column.certificate.primal - optimum > 1e-6
    assert value == pytest.approx(optimum, rel=1e-9)
    assert atoms.common.min() >= 0


def test_directions_that_pay_are_local_maxima(q):
    """None is longer than a climb from it, and no two are alike."""
    atoms, S = near_column(q)
    found = near_directions(q, S, atoms, -1e-3, np.random.default_rng(0))
    assert len(found.own) > 0
    own, common = ascent(q, residual(q, S).over(q.lambda_z), found.own, found.common, 2000, 1e-12)
    np.testing.assert_allclose(own + common, found.own + found.common, atol=1e-6)
    unit = np.hstack([found.mean, found.own * np.sqrt(q.sizes - 1)])
    np.testing.assert_allclose(np.sum(unit**2, axis=1), 1.0)
    assert np.max(unit @ unit.T - np.eye(len(unit))) < 0.9999


def test_probabilities_that_are_zero_are_left_alone():
    q = quotient(PROBLEMS["long-tail"])
    atoms, S = near_column(q)
    none = replace(S, other=np.zeros_like(S.other), miss=np.zeros_like(S.miss))
    assert relaxation(q, atoms, none, witness_of(q, none, *atoms.gram()), 1e-12) is None


@pytest.mark.slow  # half a minute: directions whose weights alone are left, and a cut with a relaxation of its own
@pytest.mark.parametrize(("seed", "cut"), [(787, False), (1011, True)])
def test_problems_that_descent_leaves_open_are_closed(seed, cut):
    s = cs.solve(draw(seed))
    assert s.status.name == "OPTIMAL"
    assert isinstance(s.proof, SharedProof)
    assert (len(s.proof.witness.cuts) > 0) == cut  # one or two, as descent's last digits have it
    assert s.certificate.primal - lower_bound_by_hand(s) <= 1e-9 * s.certificate.primal
