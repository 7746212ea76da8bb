"""Cuts of the cone of features: what a witness with cuts proves, and where to cut."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver import copositive_bound
from collapsar.solver.certificate import balance_bias
from collapsar.solver.copositive_bound import copositive_witness
from collapsar.solver.objective import Columns, Residual, predict
from collapsar.solver.solution import SharedProof
from collapsar.solver.symmetry import Quotient, quotient
from collapsar.solver.witness import Cut, Witness, coordinates, lower_bound
from test_solver_sweep import draw
from test_solver_sweep import lower_bound as lower_bound_by_hand

PROBLEMS = {
    "long-tail": cs.Problem([1000, 500, 200, 100, 50, 20], 0.0005, 0.0, features="nonnegative"),
    "clusters": cs.Problem("500x2,100x2,20x2", 0.002, 0.0, features="nonnegative"),
}


def proof_of(s: cs.Solution) -> SharedProof:
    assert s.proof is not None
    return s.proof


@pytest.fixture(params=PROBLEMS, scope="module")
def solved(request: pytest.FixtureRequest) -> cs.Solution:
    return cs.solve(PROBLEMS[request.param])


def with_random_cuts(s: cs.Solution) -> SharedProof:
    """A poor witness with two cuts, which share a cluster."""
    q, rng, proof = s.quotient, np.random.default_rng(0), proof_of(s)
    J, lam2 = q.num_clusters, q.lambda_z**2
    N = 0.1 * lam2 * rng.random((2, 2, J, J)) * (1 - np.eye(J))
    nu = 0.1 * lam2 * rng.random((2, 2, J)) * (q.sizes > 1)
    cuts = (Cut(0, 1, 0.7), Cut(2, 0, 1.6))
    return replace(proof, witness=Witness(proof.witness.S, N + np.swapaxes(N, -1, -2), nu, cuts))


def test_a_witness_with_cuts_proves_what_it_does_class_by_class(solved):
    poor = replace(solved, proof=with_random_cuts(solved))
    bound, optimum = lower_bound(solved.quotient, poor.proof.witness), solved.certificate.primal
    assert 0.3 * optimum < bound < 0.999 * optimum
    assert bound == pytest.approx(lower_bound_by_hand(poor), rel=1e-6)


def test_features_are_no_longer_than_a_witness_with_cuts_says(solved):
    """||R h||^2 <= h'(R'R + A'N A)h for every h >= 0 in its own part, so that N >= 0 there can only add."""
    q, witness = solved.quotient, with_random_cuts(solved).witness
    for h in np.random.default_rng(1).random((50, q.num_clusters)):
        y, part = h.copy(), []
        for i, j, c in witness.cuts:
            part.append(0 if y[i] >= c * y[j] else 1)
            if part[-1] == 0:
                y[i] -= c * y[j]
            else:
                y[j] -= y[i] / c
        assert y.min() >= 0
        assert y @ witness.between[tuple(part)] @ y >= 0


@pytest.mark.parametrize(
    "false",
    [
        {"cuts": (Cut(0, 1, 0.0), Cut(2, 0, 1.6))},
        {"cuts": (Cut(0, 1, -1.0), Cut(2, 0, 1.6))},
        {"cuts": (Cut(0, 1, math.nan), Cut(2, 0, 1.6))},
        {"cuts": (Cut(1, 1, 0.7), Cut(2, 0, 1.6))},
        {"cuts": (Cut(0, 1, 0.7),)},
        {"cuts": ()},
    ],
    ids=["edge", "no halves", "nan", "one cluster", "a cut is missing", "no cuts"],
)
def test_a_witness_of_other_cuts_proves_nothing(false):
    s = cs.solve(PROBLEMS["long-tail"])
    assert lower_bound(s.quotient, replace(with_random_cuts(s).witness, **false)) == -math.inf


def test_a_saved_proof_keeps_its_cuts(solved, tmp_path):
    poor = replace(solved, proof=with_random_cuts(solved))
    poor.save(tmp_path / "cut.npz")
    loaded = cs.load_solution(tmp_path / "cut.npz")
    assert proof_of(loaded).witness.cuts == poor.proof.witness.cuts
    assert loaded.certificate.dual == pytest.approx(lower_bound(solved.quotient, poor.proof.witness), rel=1e-9)


def horn(q, t: float) -> np.ndarray:
    """R with R'R = lambda_Z^2 (I - t D H D), H Horn's matrix: too long for the relaxation, but along no h >= 0."""
    stretch, away = np.array([1.0, 1.2, 0.9, 1.1, 1.0]), (np.arange(5)[:, None] - np.arange(5)) % 5
    matrix = np.where((away == 1) | (away == 4), -1.0, 1.0)
    gram = np.eye(q.num_clusters)
    gram[5:, 5:] *= 0.5  # classes that have no part in it
    gram[:5, :5] -= t * matrix * np.outer(stretch, stretch)
    return q.lambda_z * np.linalg.cholesky(gram).T


@pytest.fixture
def pentagon(monkeypatch: pytest.MonkeyPatch) -> Quotient:
    q = quotient(PROBLEMS["long-tail"])
    R = Residual(np.zeros(6), horn(q, 0.2), np.zeros(6))
    monkeypatch.setattr(copositive_bound, "residual", lambda *_: R)
    return q


def test_a_pentagon_is_cut_along_two_that_overlap(pentagon):
    q, S = pentagon, Columns(np.zeros(6), np.zeros((6, 6)))
    uncut, witness = copositive_witness(q, S, 0.06), copositive_witness(q, S, 1e-3)  # the relaxation's excess is 0.05
    assert uncut.cuts == ()
    ((i, j, c),) = witness.cuts
    assert max(i, j) < 5
    assert (i - j) % 5 in (1, 4)  # two that overlap
    assert 0.5 < c < 2
    gram = horn(q, 0.2).T @ horn(q, 0.2)
    for side in (0, 1):
        A = coordinates(witness.cuts, (side,), 6)
        assert witness.between[side].min() >= 0
        largest = np.linalg.eigvalsh(gram + A.T @ witness.between[side] @ A)[-1]
        assert largest <= q.lambda_z**2 * (1 + 1e-3)


def test_no_cut_mends_a_residual_that_is_longer_along_a_direction(monkeypatch):
    """By 0.3 along one h >= 0, and no more: what is asked decides."""
    q, h = quotient(PROBLEMS["long-tail"]), np.array([0.6, 0.0, 0.0, 0.0, 0.0, 0.8])
    gram = np.eye(6) * 0.5 + (1.3 - 0.5) * np.outer(h, h)
    R = Residual(np.zeros(6), np.asarray(q.lambda_z * np.linalg.cholesky(gram).T, dtype=np.float64), np.zeros(6))
    monkeypatch.setattr(copositive_bound, "residual", lambda *_: R)
    S = Columns(np.zeros(6), np.zeros((6, 6)))
    for excess in (0.299, 0.301):
        witness = copositive_witness(q, S, excess)
        assert witness.cuts == ()
        largest = np.linalg.eigvalsh(q.lambda_z**2 * gram + witness.between)[-1] / q.lambda_z**2 - 1
        assert 0.3 - 1e-9 <= largest <= max(excess, 0.3) * 1.01


def test_the_residual_of_an_optimum_is_its_own_proof(solved):
    """Whatever the relaxation found: the program at the optimum's residual meets its bound."""
    q, proof = solved.quotient, proof_of(solved)
    witness = copositive_witness(q, predict(q, balance_bias(q, solved.blocks))[0], 1e-8)
    bound = lower_bound(q, witness)
    assert solved.certificate.primal * (1 - 1e-8) <= bound <= solved.certificate.primal * (1 + 1e-13)
    assert proof.witness.cuts == ()


@pytest.mark.slow  # a minute: the one problem of the sweep that cuts close
def test_a_problem_whose_relaxation_is_not_tight_is_solved_by_cuts():
    s = cs.solve(draw(1045))
    assert s.status.name == "OPTIMAL"
    assert len(proof_of(s).witness.cuts) > 0
    assert s.certificate.primal - lower_bound_by_hand(s) <= 1e-9 * s.certificate.primal
