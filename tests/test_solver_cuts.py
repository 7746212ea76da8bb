"""Cuts of the cone of features: what a witness with cuts proves, and where to cut."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.certificate import balance_bias
from collapsar.solver.cuts import pentagon_cut, split
from collapsar.solver.objective import Columns, Residual, predict
from collapsar.solver.relaxed import Relaxed, beginning, relaxed
from collapsar.solver.solution import SharedProof
from collapsar.solver.symmetry import quotient
from collapsar.solver.witness import Cut, Witness, lower_bound, mended
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


def cut_in_two(s: cs.Solution, cut: Cut) -> Relaxed:
    """The relaxation of the cut cone at the optimum, where the uncut one is tight."""
    proof = proof_of(s)
    return split(s.quotient, beginning(s.quotient, proof.atoms, s.blocks.b, proof.witness), proof.atoms, cut)


def softmax(s: cs.Solution, at: Relaxed) -> Columns:
    return predict(s.quotient, balance_bias(s.quotient, at.blocks(s.quotient)))[0]


@pytest.mark.parametrize("cut", [Cut(0, 1, 1.0), Cut(1, 0, 3.0), Cut(2, 1, 0.2)])
def test_the_multipliers_of_a_tight_relaxation_prove_as_much_in_either_half(solved, cut):
    at = cut_in_two(solved, cut)
    blocks = at.blocks(solved.quotient)
    np.testing.assert_allclose(blocks.C, solved.blocks.C, rtol=1e-6, atol=1e-6 * np.abs(solved.blocks.C).max())
    witness = at.witness(solved.quotient, proof_of(solved).witness.S)
    assert lower_bound(solved.quotient, witness) == pytest.approx(solved.certificate.dual, rel=1e-9)
    largest = np.abs(witness.between).max()  # and not because the half has no other multipliers than the whole
    assert np.abs(witness.between - proof_of(solved).witness.between).max() > 1e-3 * largest


def test_the_relaxation_of_a_cut_cone_meets_the_optimum_from_a_rough_start(solved):
    rough = replace(solved, proof=replace(proof_of(solved), witness=emptied(proof_of(solved).witness)))
    optimum, bound, q = solved.certificate.primal, -math.inf, solved.quotient
    for at in relaxed(q, cut_in_two(rough, Cut(0, 1, 1.0)), 1e-9):
        bound = max(bound, lower_bound(q, mended(q, at.witness(q, softmax(solved, at)))))
        if bound >= optimum * (1 - 1e-8):
            break
    assert optimum * (1 - 1e-8) <= bound <= optimum * (1 + 1e-13)


def test_an_excess_that_is_mended_costs_less_than_on_the_ray(solved):
    """Where one small class is too long by a millionth, the ray takes all classes back, and mending that one."""
    q, optimum = solved.quotient, solved.certificate.primal
    at = cut_in_two(solved, Cut(0, 1, 1.0))
    N = at.N.copy()
    N[..., -1, -2] += 1e-6
    N[..., -2, -1] += 1e-6
    witness = replace(at, N=N).witness(q, proof_of(solved).witness.S)
    ray, bound = lower_bound(q, witness), lower_bound(q, mended(q, witness))
    assert optimum * (1 - 1e-5) < ray < optimum * (1 - 1e-8)
    assert optimum - (optimum - ray) / 3 < bound <= optimum * (1 + 1e-13)


def emptied(witness: Witness) -> Witness:
    return replace(witness, between=0 * witness.between, within=0 * witness.within)


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


def test_a_pentagon_is_cut_along_two_that_overlap():
    """R'R = lambda_Z^2 (I - t D H D), H Horn's matrix, copositive: too long for the relaxation, but along no h >= 0."""
    p = cs.Problem([1000, 500, 200, 100, 50, 20], 0.0005, 0.0, features="nonnegative")
    q, t, stretch = quotient(p), 0.2, np.array([1.0, 1.2, 0.9, 1.1, 1.0])
    away = (np.arange(5)[:, None] - np.arange(5)) % 5
    horn = np.where((away == 1) | (away == 4), -1.0, 1.0)
    gram = np.eye(6)
    gram[5, 5] = 0.5  # a class that has no part in it
    gram[:5, :5] -= t * horn * np.outer(stretch, stretch)
    root = np.linalg.cholesky(gram).T
    R = Residual(np.zeros(6), np.asarray(p.lambda_z * root, dtype=np.float64), np.zeros(6))
    empty = np.zeros((6, 6))
    at = Relaxed(np.eye(6), np.eye(6), np.zeros(6), np.zeros(6), np.zeros(6), empty, np.zeros(6))
    i, j, c = pentagon_cut(q, R, at)
    assert max(i, j) < 5
    assert away[i, j] in (1, 4)
    assert 0.5 < c < 2
