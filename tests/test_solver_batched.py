from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import collapsar as cs
from collapsar.core.problem import Problem
from collapsar.solver import batched
from collapsar.solver.batch_newton import BatchPoint
from collapsar.solver.batched import ProblemBatch, solve_batch
from collapsar.solver.certificate import certify_blocks
from collapsar.solver.symmetry import lift, quotient
from collapsar.theory.two_cluster import two_cluster
from problems import PROBLEMS, naive_objective

INF = math.inf


def random_batch(seed: int, size: int, clusters: int, features, *, general: bool = True) -> ProblemBatch:
    """Counts over three decades, lambda_Z over four, lambda_b in {0, finite, inf}, half of the losses general."""
    rng = np.random.default_rng(seed)
    shape = (size, clusters)
    k = rng.integers(1 if clusters > 1 else 2, 12, shape).astype(float)
    n = 10 ** rng.uniform(0.5, 3.5, shape)
    special = (rng.random((size, 1)) < 0.5) & general

    def spread(decades):
        return np.where(special, 10 ** rng.uniform(-decades, decades, shape), 1.0)

    q = spread(0.7) * n
    q /= np.sum(k * q, axis=1, keepdims=True)
    m, delta, tau = spread(1.0) * n, spread(0.4), spread(0.4)
    iota = np.where(special, rng.normal(size=shape), 0.0)
    eps = np.where(special[:, 0], rng.uniform(0, 0.3, size), 0.0)
    top = np.max(tau * delta * q / np.sqrt(m), axis=1)
    lambda_b = np.choose(rng.integers(0, 3, size), [np.zeros(size), 10 ** rng.uniform(-4, 1, size), np.full(size, INF)])
    return ProblemBatch(k, q, m, delta, tau, iota, eps, top * 10 ** rng.uniform(-3.8, 0.2, size), lambda_b, features)


def states_by_threshold(p: Problem, q) -> list[str | None]:
    """What the closed forms say of each cluster; None where they do not know (classes share a direction)."""
    t, states = cs.thresholds(p), []
    for k, size in zip(np.searchsorted(q.labels, np.arange(q.num_clusters)), q.sizes, strict=True):
        merged = size > 1 and p.lambda_z >= t.merge[k]  # never of NaN
        state = "vanished" if p.lambda_z >= t.vanish[k] else "merged" if merged else "separated"
        states.append(state if t.exact[k] else None)
    return states


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
@pytest.mark.parametrize("clusters", [1, 2, 3])
def test_the_batch_finds_what_the_general_solver_finds(clusters, features):
    size = (
        8 if (clusters, features) == (3, "nonnegative") else 16
    )  # these are handed to the general solver, most of them
    batch = random_batch(clusters, size, clusters, features)
    r = solve_batch(batch)
    closed = 0
    handed_on = np.flatnonzero(r.one_by_one)
    for i in range(batch.num_problems):
        if i in handed_on[2:]:
            continue  # the general solver itself: the first few say that it was handed the right problem
        q, alone = batch.quotient(i), cs.solve(batch.problem(i), throw=False)
        assert r.status[i] is (alone.status if r.one_by_one[i] else cs.Status.OPTIMAL)
        if r.one_by_one[i]:
            assert r.solutions[i].certificate.dual <= r.primal[i] + 1e-15
            assert r.primal[i] <= alone.certificate.primal * (1 + 1e-12) + 1e-15
            continue
        closed += 1
        assert r.relative_gap[i] <= 1e-9
        assert r.primal[i] == pytest.approx(alone.certificate.primal, rel=3e-9, abs=3e-12)
        # another code certifies exactly this point
        again = certify_blocks(q, r.blocks(i))
        assert again.primal == pytest.approx(r.primal[i], rel=1e-12, abs=1e-15)
        assert again.relative_gap <= 1e-9
        assert r.dual[i] <= again.primal + 1e-15
        known = states_by_threshold(batch.problem(i), q)
        assert all(wanted in (None, state) for wanted, state in zip(known, r.states[i], strict=True))
    assert closed >= (15 if features == "signed" else 4)


@pytest.mark.parametrize("name", [name for name, p in PROBLEMS.items() if quotient(p).num_clusters <= 3])
def test_the_problem_table(name):
    p = PROBLEMS[name]
    r = solve_batch([p, p.replace(lambda_z=0.5 * p.lambda_z)])
    Z, b = lift(quotient(p), r.blocks(0))
    assert r.primal[0] == pytest.approx(naive_objective(p, Z, b), rel=1e-11)
    assert cs.certify(p, Z, b).relative_gap <= 1e-9
    s = cs.solve(p, tol=1e-13, throw=False)
    assert np.abs(s.Z - Z).max() <= 1e-6 * max(1.0, np.abs(Z).max())
    assert np.abs(s.b - b).max() <= 1e-6 * max(1.0, np.abs(b).max())
    assert not r.one_by_one.any()


def test_the_closed_form_of_two_clusters():
    # JMLR (5.16)-(5.51), on counts that need not be whole
    rng = np.random.default_rng(1)
    k, n = rng.integers(1, 8, (40, 2)), 10 ** rng.uniform(1, 3, (40, 2))
    lambda_b = np.array([0.0, 0.01, 1.0, INF] * 10)
    lambda_z = 10 ** rng.uniform(-2, -0.1, 40) * np.sqrt(n.max(axis=1)) / np.sum(k * n, axis=1)
    r = solve_batch(ProblemBatch.plain(k, n, lambda_z, lambda_b))
    for i in range(40):
        exact = two_cluster(int(k[i, 0]), int(k[i, 1]), n[i, 0], n[i, 1], lambda_z[i], lambda_b[i])
        Z, b = lift(r.batch.quotient(i), r.blocks(i))
        scale = max(1.0, np.abs(exact.Z()).max())
        assert np.abs(Z - exact.Z()).max() <= 1e-8 * scale
        assert np.abs(b - exact.bias()).max() <= 1e-8 * scale


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_both_sides_of_every_threshold(features):
    """1e-3 on either side of merge and vanish, for each cluster, in one batch."""
    rng = np.random.default_rng(2)
    problems, expected = [], []
    while len(problems) < 60:
        k, n = rng.integers(1, 8, 2), np.sort(rng.integers(10, 900, 2))[::-1]
        if n[0] == n[1]:
            continue
        p = Problem([n[0]] * k[0] + [n[1]] * k[1], 1.0, float(rng.choice([0.02, 1.0, INF])), features=features)
        t = cs.thresholds(p)
        for j, first in ((0, 0), (1, int(k[0]))):
            for edge in (t.merge[first], t.vanish[first]):
                if not (np.isfinite(edge) and t.exact[first]):
                    continue
                for factor in (0.999, 1.001):
                    z = factor * edge
                    problems.append(p.replace(lambda_z=z))
                    # fmax: where there is no merging, or a class dies before it merges
                    merged = z >= np.fmin(t.merge[first], t.vanish[first]) and k[j] > 1 and np.isfinite(t.merge[first])
                    expected.append((j, "vanished" if z >= t.vanish[first] else "merged" if merged else "separated"))
    r = solve_batch(problems)
    assert r.relative_gap.max() <= 1e-9
    found = [(j, str(r.states[i, j])) for i, (j, _) in enumerate(expected)]
    assert found == expected
    assert {state for _, state in found} >= {"separated", "vanished"}


def test_a_shared_direction_goes_to_the_general_solver():
    """Theory: minority classes too weak to live alone share a direction; the column form's certificate stays open."""
    shares = Problem("500x5,20x5", 0.0018, 0.001, features="nonnegative")
    plain = Problem("500x5,100x5", 0.0018, 0.02, features="nonnegative")
    r = solve_batch([shares, plain, shares.replace(lambda_z=0.0001, lambda_b=1.0)])
    assert r.one_by_one.tolist() == [True, False, False]
    assert r.status[1] is cs.Status.OPTIMAL
    alone = cs.solve(shares, throw=False)
    assert r.status[0] is alone.status
    assert r.primal[0] == pytest.approx(alone.certificate.primal, rel=1e-9)
    assert list(r.states[0]) == [alone.class_states[0], alone.class_states[9]]


def test_equal_clusters_are_one_to_the_general_solver(monkeypatch):
    """n_A = n_B: the general solver sees one cluster, and its answer is told per cluster again."""
    batch = ProblemBatch.plain([[3, 2], [1, 4], [3, 2]], [[50, 50], [50, 50], [50, 20]], 0.02, 0.1)
    direct = solve_batch(batch)
    monkeypatch.setattr(batched, "minimise_lines", hopeless)
    r = solve_batch(batch)
    assert r.one_by_one.all()
    assert not direct.one_by_one.any()
    for i in range(3):
        Z, b = lift(batch.quotient(i), r.blocks(i))
        wanted, wanted_b = lift(batch.quotient(i), direct.blocks(i))
        assert np.allclose(Z, wanted, atol=1e-6)
        assert np.allclose(b, wanted_b, atol=1e-6)
        assert list(r.states[i]) == list(direct.states[i])


def hopeless(model, line, tol, max_steps):
    """A batch in which nothing closes."""
    J, B = model.num_clusters, model.lambda_z.size
    return BatchPoint(
        np.zeros((J, J, B)), np.zeros((J - 1, B)), np.full(B, 1e3), np.full(B, -INF), np.zeros(B, dtype=np.int64)
    )


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
@pytest.mark.parametrize("length", [7, 8, 25])
def test_problems_along_lines_have_the_same_optima(features, length):
    """Some first, the others from the points in between: same states, same Z, across every transition."""
    counts = np.repeat([[500.0, 100.0], [300.0, 20.0], [50.0, 50.0]], length, axis=0)
    lambda_z = np.tile(np.geomspace(1e-4, 2e-2, length), 3)
    batch = ProblemBatch.plain([3, 2], counts, lambda_z, 0.02, features)
    alone, along = solve_batch(batch), solve_batch(batch, line=length)
    assert (along.relative_gap <= 1e-9).all()
    assert (along.states == alone.states).all()
    assert np.abs(along.C - alone.C).max() <= 1e-7 * np.abs(alone.C).max()
    assert set(along.states.ravel()) >= {"separated", "vanished"}
    with pytest.raises(ValueError, match="`line` must be >= 1 and divide"):
        solve_batch(batch, line=length + 1)


def test_extreme_problems_are_never_silently_wrong():
    """Counts over six decades, lambda_Z down to 1e-6 of complete collapse: the gap holds, or the status says not."""
    rng = np.random.default_rng(3)
    n, k = 10 ** rng.uniform(0, 6, (300, 2)), np.rint(10 ** rng.uniform(0, 2.5, (300, 2)))
    top = np.sqrt(n.max(axis=1)) / np.sum(k * n, axis=1)
    lambda_b = rng.choice([0.0, 1e-9, 0.02, 1e3, INF], 300)
    batch = ProblemBatch.plain(k, n, top * 10 ** rng.uniform(-6, 0.3, 300), lambda_b)
    r = solve_batch(batch)
    good = np.array([status is cs.Status.OPTIMAL for status in r.status])
    assert good.mean() >= 0.99
    assert (r.relative_gap[good] <= 1e-9).all()
    assert (r.num_steps[~r.one_by_one] <= 60).all()
    assert r.one_by_one.mean() <= 0.02
    for i in rng.choice(np.flatnonzero(good & ~r.one_by_one), 40, replace=False):
        again = certify_blocks(batch.quotient(i), r.blocks(i))
        assert again.primal == pytest.approx(r.primal[i], rel=1e-11, abs=1e-14)
        assert again.relative_gap <= 1e-9


def test_every_problem_ends_on_its_own():
    """The answer to a problem does not depend on what else is in the batch, or on how the batch is cut."""
    batch = random_batch(5, 50, 2, "signed")
    whole = solve_batch(batch)
    for i in (0, 17, 49):
        alone = solve_batch([batch.problem(i)])
        assert alone.primal[0] == pytest.approx(whole.primal[i], rel=1e-12)
    seen: list[tuple[int, int]] = []
    solve_batch(random_batch(5, 60, 3, "nonnegative", general=False), progress=lambda *at: seen.append(at))
    assert seen[-1] == (60, 60)


PLAIN = {"sizes": [5, 5], "counts": [500, 100], "lambda_z": 0.003}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lambda_z": 0.0}, "`lambda_z` must be finite and > 0, got 0"),
        ({"lambda_z": [0.1, math.nan]}, "`lambda_z` must be finite and > 0, got nan for problem 1"),
        ({"lambda_b": -1.0}, "`lambda_b` must be >= 0"),
        ({"lambda_b": math.nan}, "`lambda_b` must be >= 0"),
        ({"counts": [500, 0]}, "`counts` must be finite and > 0, got 0"),
        ({"counts": [500, math.inf]}, "`counts` must be finite and > 0"),
        ({"counts": [500, 100, 20]}, "must be numbers that fit"),
        ({"counts": "many"}, "must be numbers that fit"),
        ({"sizes": [5, 0.5]}, "`sizes` must be whole numbers"),
        ({"sizes": [1], "counts": [5]}, "`sizes` must be two classes or more"),
        ({"features": "relu"}, "`features` must be"),
    ],
)
def test_bad_batches(changes, message):
    with pytest.raises(ValueError, match=message):
        ProblemBatch.plain(**{**PLAIN, **changes})


def test_bad_arguments_and_problems_that_are_not_alike():
    p = Problem("500x5,100x5", 0.003)
    for problems, message in (
        ([], "at least one problem"),
        ([p, Problem("5x5", 0.003)], "one number of clusters"),
        ([p, p.replace(features="nonnegative")], "one feature model"),
        ([p, Problem.from_normalized("500x5,100x5", lambda_w=1.0, norm=1.0)], "normalised features one by one"),
    ):
        with pytest.raises(ValueError, match=message):
            solve_batch(problems)
    no_number: Any = "1e-9"
    for tol in (0.0, 1.0, math.nan, no_number):
        with pytest.raises(ValueError, match="`tol` must be"):
            solve_batch([p], tol)
    with pytest.raises(ValueError, match="`max_steps` must be"):
        solve_batch([p], max_steps=0)
    batch = ProblemBatch.of([p])
    with pytest.raises(ValueError, match="`share` must be such that"):
        ProblemBatch(**{**vars(batch), "share": 2 * batch.share})
    with pytest.raises(ValueError, match=r"`mass` must have shape \(1, 2\)"):
        ProblemBatch(**{**vars(batch), "mass": batch.mass[:, :1]})
