"""Any rank: the contraction against the general algorithm, closed forms, the rotation and the K x K certificate."""

from __future__ import annotations

import math

import numpy as np
import pytest

import collapsar as cs
from collapsar.solver.certificate import certify_blocks
from collapsar.solver.contraction import contraction_point
from collapsar.solver.rotation import rotation_point
from collapsar.solver.signed import minimise_signed
from collapsar.solver.small_certificate import certify_small
from collapsar.solver.symmetry import lift, quotient
from collapsar.theory.two_cluster import two_cluster
from problems import PROBLEMS

INF = math.inf

TWENTY = tuple(np.rint(np.geomspace(5000, 10, 20)).astype(int).tolist())
UNEVEN = (9356, 7345, 4692, 3648, 1544, 683, 488, 468, 454, 298, 228, 179, 93, 92, 55, 44, 40, 18, 15, 11)


@pytest.mark.parametrize("lambda_b", [0.0, 1e-4, 0.02, INF])
@pytest.mark.parametrize("part", [0.01, 0.2, 0.97, 1.3])
@pytest.mark.parametrize("counts", [TWENTY, UNEVEN])
def test_the_general_algorithm_ends_at_the_same_point(counts, part, lambda_b):
    p = cs.Problem(counts, 1.0, lambda_b)
    p = p.replace(lambda_z=part * float(cs.thresholds(p).complete))
    q = quotient(p)
    found = contraction_point(q)
    assert found is not None
    blocks, steps = found
    assert steps <= 10  # and as many singular value decompositions
    assert certify_small(q, blocks).relative_gap <= 1e-9
    general = minimise_signed(q, tol=1e-10)
    for ours, theirs in zip(lift(q, blocks), lift(q, general.blocks), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-6
    s = cs.solve(p)
    assert cs.certify(p, s.Z, s.b).relative_gap <= 1e-9
    assert s.rank == np.sum(np.linalg.svd(lift(q, general.blocks)[0] * np.sqrt(p.mass), compute_uv=False) > 1e-4)


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "balanced"])
def test_every_kind_of_loss(name):
    q = quotient(PROBLEMS[name])
    found = contraction_point(q)
    assert found is not None
    general = minimise_signed(q, tol=1e-9)
    assert certify_blocks(q, found[0]).relative_gap <= 1e-9
    for ours, theirs in zip(lift(q, found[0]), lift(q, general.blocks), strict=True):
        assert np.abs(ours - theirs).max() <= 2e-6


@pytest.mark.parametrize("lambda_b", [0.02, 1.0, INF])
@pytest.mark.parametrize(
    ("k", "n", "lambda_z"),
    [((5, 5), (500, 100), 0.0027), ((5, 5), (500, 100), 0.0045), ((5, 5), (500, 100), 0.0060), ((2, 9), (70, 3), 0.02)],
)
def test_two_clusters_meet_the_closed_form(k, n, lambda_z, lambda_b):
    # JMLR (5.16)-(5.51): with the minority vanished Z has lost rank
    theory = two_cluster(k[0], k[1], n[0], n[1], lambda_z, lambda_b)
    q = quotient(cs.Problem([n[0]] * k[0] + [n[1]] * k[1], lambda_z, lambda_b))
    found = contraction_point(q)
    assert found is not None
    Z, b = lift(q, found[0])
    assert np.abs(Z - theory.Z()).max() <= 1e-8
    assert np.abs(b - theory.bias()).max() <= 1e-8


@pytest.mark.parametrize("lambda_b", [0.0, 1e-3, 0.02, INF])
@pytest.mark.parametrize("offset", [-1e-2, -1e-4, 1e-4, 1e-2])
def test_on_both_sides_of_the_last_threshold(offset, lambda_b):
    p = cs.Problem(TWENTY, 1.0, lambda_b)
    p = p.replace(lambda_z=float(cs.thresholds(p).complete) * (1 + offset))
    found = contraction_point(quotient(p))
    assert found is not None
    Z, _ = lift(quotient(p), found[0])
    assert (np.abs(Z).max() > 1e-6) == (offset < 0)


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, INF])
def test_at_full_rank_it_is_the_rotation(lambda_b):
    n = np.rint(np.geomspace(5000, 50, 30)).astype(int)
    q = quotient(cs.Problem(n, 0.5 * math.sqrt(50) / n.sum(), lambda_b))
    turned, found = rotation_point(q), contraction_point(q)
    assert turned is not None
    assert found is not None
    for ours, theirs in zip(lift(q, found[0]), lift(q, turned[0]), strict=True):
        assert np.abs(ours - theirs).max() <= 2e-7


def test_the_rotation_gives_way_at_once_where_rank_is_lost():
    for lambda_b in (0.0, 0.02, INF):
        p = cs.Problem(UNEVEN, 1.0, lambda_b)
        p = p.replace(lambda_z=0.07 * float(cs.thresholds(p).complete))
        assert rotation_point(quotient(p), max_steps=3) is None
        s = cs.solve(p)
        assert s.rank < 19
        assert s.num_steps <= 10


def test_one_cluster_and_too_few_steps_find_nothing():
    assert contraction_point(quotient(cs.Problem([100] * 6, 0.004, 0.02))) is None
    assert contraction_point(quotient(PROBLEMS["distinct"]), max_steps=1) is None


@pytest.mark.parametrize("seed", [1, 3, 22, 29, 36])
def test_a_second_start_goes_as_far_as_probabilities_stay_positive(seed: int) -> None:
    """A bias that costs next to nothing and masses over four decades: steps in logarithms end in none of these."""
    rng = np.random.default_rng(seed)
    n, mass = np.rint(10 ** rng.uniform(1, 4, 16)).astype(int), 10 ** rng.uniform(0, 4, 16)
    p = cs.Problem(n, 1.0, 1e-6, feature_mass=mass)
    p = p.replace(lambda_z=0.1 * float(cs.thresholds(p).complete))
    found = contraction_point(quotient(p))
    assert found is not None
    assert found[1] > 12
    s = cs.solve(p)
    assert s.num_steps == found[1]
    assert cs.certify(p, s.Z, s.b).relative_gap <= 1e-9
    general = minimise_signed(quotient(p), tol=1e-10)
    assert s.certificate.primal == pytest.approx(general.certificate.primal, rel=1e-9)
