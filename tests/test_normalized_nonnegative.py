"""Nonnegative features of equal length: the certified solver against plain descent, closed forms, and itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize

import collapsar as cs
from collapsar.solver.nonnegative_spheres import (
    _continued,
    _descended,
    _tightened,
    _widened,
    fewest,
    held_equal,
    minimise_nonnegative_spheres,
    ridge,
)
from collapsar.solver.normalized_certificate import certify_nonnegative, normalized_quotient
from collapsar.solver.shared_directions import missing_directions
from collapsar.solver.status import Settings
from collapsar.solver.symmetry import quotient

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

NORM = 128**0.5


def nonnegative(counts: Any = "100x5,20x5", lambda_w: Any = 1.0, **rest: Any) -> cs.Problem:
    how = {"lambda_b": 0.0, **rest}
    return cs.Problem.from_normalized(counts, lambda_w=lambda_w, norm=NORM, features="nonnegative", **how)


def objective(p: cs.Problem) -> Callable[[Matrix, Matrix, Vector], tuple[float, Matrix]]:
    """The objective written out as a function of W, H and b, with its slope in the logits before scales."""
    K, q, offsets = p.num_classes, p.loss_share, p.offsets[:, None]
    assert p.normalization is not None
    scale = p.temperatures * p.scales[:, None]
    Y = (1 - p.loss.smoothing) * np.eye(K) + p.loss.smoothing / K
    rows = np.broadcast_to(p.normalization.lambda_w, (K,))
    lambda_b = 0.0 if p.lambda_b == np.inf else p.lambda_b

    def at(W: Matrix, H: Matrix, b: Vector) -> tuple[float, Matrix]:
        u = scale * (W.T @ H + b[:, None]) + offsets
        top = u.max(axis=0)
        odds = np.exp(u - top)
        whole = odds.sum(axis=0)
        loss = q @ (top + np.log(whole) - (Y * u).sum(axis=0))
        price = 0.5 * rows @ (W**2).sum(axis=0) + 0.5 * lambda_b * b @ b
        return float(loss + price), q * scale * (odds / whole - Y)

    return at


def descended(p: cs.Problem, wanted: float) -> float:
    """The least value that descent on (W, H >= 0 on spheres, b) finds: up to four random starts, until one is there."""
    K, d = p.num_classes, 2 * p.num_classes
    assert p.normalization is not None
    rows, biased, at = np.broadcast_to(p.normalization.lambda_w, (K,)), p.lambda_b < np.inf, objective(p)

    def value(x: Vector) -> tuple[float, Vector]:
        W, free, b = x[: d * K].reshape(d, K), x[d * K : 2 * d * K].reshape(d, K), x[2 * d * K :] * biased
        length = np.sqrt((free**2).sum(axis=0))
        unit = free / length
        total, g = at(W, NORM * unit, b)
        slope = W @ g
        slope_b = (g.sum(axis=1) + (p.lambda_b * b if biased else 0.0)) * biased
        slope_free = NORM * (slope - unit * np.sum(unit * slope, axis=0)) / length
        return total, np.concatenate([(NORM * unit @ g.T + rows * W).ravel(), slope_free.ravel(), slope_b])

    # not quite zero: a long step to a corner would leave a class no direction at all
    bounds = [(None, None)] * (d * K) + [(1e-9, None)] * (d * K) + [(None, None)] * K
    best = np.inf
    for seed in range(4):
        noise = np.random.default_rng(seed)
        x = np.concatenate([0.03 * noise.standard_normal(d * K), np.abs(noise.standard_normal(d * K)), np.zeros(K)])
        for ftol in (1e-13, 1e-15):  # on plateaus the first ends too soon
            options = {"maxiter": 20000, "maxfun": 40000, "ftol": ftol, "gtol": 1e-10}
            found = minimize(value, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            x, best = found.x, min(best, float(found.fun))
            if best <= wanted * (1 + 2e-7):
                return best
    return best


PROBLEMS = {
    "own directions": nonnegative(),
    "shared": nonnegative(lambda_w=8.0),
    "merged": nonnegative(lambda_w=14.0),
    "merged, priced bias": nonnegative(lambda_w=30.0, lambda_b=0.02),
    "no bias": nonnegative(lambda_w=30.0, lambda_b=np.inf),
    "three kinds": nonnegative("300x2,60x2,10x2", 5.0),
    "distinct": nonnegative([60, 30, 17, 9, 4, 3], 40.0),
    "distinct, priced bias": nonnegative([60, 30, 17, 9, 4, 3], 30.0, lambda_b=0.02),
    "rows": nonnegative([60, 30, 17, 9, 4], np.linspace(20.0, 40.0, 5)),
    "smoothing": nonnegative([60, 30, 17, 9, 4], 30.0, loss=cs.Loss(smoothing=0.1)),
    "offsets": nonnegative("60x3,9x2", 30.0, loss=cs.Loss(offsets=np.log(np.repeat([60, 9], [3, 2]) / 200))),
    "scales": nonnegative("60x3,9x2", 30.0, loss=cs.Loss(scales=np.repeat([1.0, 1.3], [3, 2]))),
    "temperatures": nonnegative("60x3,9x2", 30.0, loss=cs.Loss(temperatures=np.repeat([1.0, 1.5], [3, 2]))),
    "weights": nonnegative("60x3,9x2", 9.0, loss=cs.Loss(class_weights=np.repeat([1.0, 2.0], [3, 2]))),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_optimum_factors_and_file(name: str, tmp_path: Path) -> None:
    p = PROBLEMS[name]
    s = cs.solve(p)
    assert s.certificate.relative_gap <= 1e-9
    assert descended(p, s.certificate.primal) == pytest.approx(s.certificate.primal, rel=2e-7)
    W, H, b = s.factors(60)
    assert H.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(H, axis=0), NORM, rtol=1e-12)
    np.testing.assert_allclose(W.T @ H, s.Z, atol=1e-11)
    np.testing.assert_allclose(W.T @ W, s.classifier_gram(), atol=1e-12)
    np.testing.assert_allclose(H.T @ H, s.feature_gram(), atol=1e-9)
    assert objective(p)(W, H, b)[0] == pytest.approx(s.certificate.primal, rel=1e-12)
    c = cs.certify(p, s.Z, s.b)  # prices column by column
    assert c.dual <= s.certificate.primal * (1 + 1e-12)
    assert c.primal >= s.certificate.primal * (1 - 1e-12)
    assert (s.proof is not None) or c.relative_gap <= 1e-9
    back = cs.load_solution(s.save(tmp_path / "s.npz"))
    assert back.problem == p
    assert back.class_states == s.class_states
    assert back.certificate.relative_gap <= 1e-9
    np.testing.assert_allclose(back.factors(60)[1], H, atol=1e-12)


def test_features_that_may_be_signed_cost_no_more() -> None:
    for p in (PROBLEMS["own directions"], PROBLEMS["shared"], PROBLEMS["distinct"]):
        assert cs.solve(p.replace(features="signed")).certificate.primal < cs.solve(p).certificate.primal


@pytest.mark.parametrize("lambda_b", [0.0, np.inf])
def test_balanced_classes_own_orthogonal_directions(lambda_b: float) -> None:
    """The root of one equation: z = t (e_k - 1/K) with lambda_w t / norm^2 = (1 - p_own + p_other) / K."""
    K, lambda_w = 7, 3.0
    s = cs.solve(nonnegative([10] * K, lambda_w, lambda_b=lambda_b))
    np.testing.assert_allclose(s.feature_gram(), NORM**2 * np.eye(K), atol=1e-10)

    def excess(t: float) -> float:
        return lambda_w / NORM**2 * t - 1 / (np.exp(t) + K - 1)

    t: Any = brentq(excess, 0.0, 50.0, xtol=1e-14)
    np.testing.assert_allclose(s.Z, t * (np.eye(K) - 1 / K), atol=1e-9)
    assert np.isnan(cs.thresholds(s.problem).merge).all()


@pytest.mark.parametrize(
    ("counts", "lambda_b"), [("100x5,20x5", 0.0), ("100x5,20x5", 0.02), ("1000x2,200x2,20x2", 0.0)]
)
def test_thresholds_hold_on_both_sides(counts: str, lambda_b: float) -> None:
    p = nonnegative(counts, lambda_b=lambda_b)
    t = cs.thresholds(p)
    assert np.isnan(t.vanish).all()
    assert np.isnan(t.merge[0])
    found = {float(v): k for k, v in enumerate(t.merge) if np.isfinite(v)}
    assert found
    for merge, k in found.items():
        for factor, state in ((0.999, "separated"), (1.001, "merged")):
            s = cs.solve(p.replace(lambda_w=factor * merge))
            assert s.class_states[k] == state
            cosine = s.feature_gram()[k, k - 1] / NORM**2
            assert (cosine > 1 - 1e-9) == (state == "merged")


def test_without_a_bias_no_class_shares_a_direction() -> None:
    """At W = 0 the residual's columns are at obtuse angles, and the nearer to it the more."""
    for lambda_w in (1.0, 100.0):
        s = cs.solve(nonnegative("100x5,5x5", lambda_w, lambda_b=np.inf))
        np.testing.assert_allclose(s.feature_gram(), NORM**2 * np.eye(10), atol=1e-9)
    assert np.isnan(cs.thresholds(nonnegative("100x5,5x5", lambda_b=np.inf)).merge).all()


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, np.inf])
def test_certificates_of_other_points_are_bounds(lambda_b: float) -> None:
    p = nonnegative([60, 30, 17, 9, 4], 30.0, lambda_b=lambda_b)
    s, noise = cs.solve(p), np.random.default_rng(0)
    for size in (0.0, 1e-6, 1e-3, 0.1, 3.0):
        b = s.b + size * noise.standard_normal(5) * (lambda_b < np.inf)
        c = cs.certify(p, s.Z + size * noise.standard_normal((5, 5)), b)
        assert c.dual <= s.certificate.primal * (1 + 1e-12)
        assert c.primal >= s.certificate.primal * (1 - 1e-12)


def test_path_and_a_solution_as_a_start() -> None:
    p = nonnegative()
    for s, value in zip(cs.path(p, [14.0, 1.0, 8.0]), (14.0, 1.0, 8.0), strict=True):
        assert s.certificate.primal == pytest.approx(cs.solve(p.replace(lambda_w=value)).certificate.primal, rel=1e-10)


def test_a_path_goes_on_where_a_direction_dies() -> None:
    p = cs.Problem.from_normalized(
        "160x2,50x3,17,3", lambda_w=1.0, norm=8.0, over="sample", lambda_b=0.0, features="nonnegative"
    )
    _, s = cs.path(p, [2.85 * 1.25**7, 2.85 * 1.25**6])
    cold = cs.solve(s.problem)
    assert s.certificate.primal == pytest.approx(cold.certificate.primal, rel=1e-9)
    assert s.class_states == cold.class_states


def test_nonnegative_batch_factors_stay_nonnegative_where_directions_are_shared() -> None:
    p = cs.Problem.from_normalized(
        "500x5,20x5", lambda_w=2.0, norm=NORM, over="batch", lambda_b=0.001, features="nonnegative"
    )
    s = cs.solve(p)
    assert s.proof is not None
    W, H, b = s.factors(20)
    assert H.min() >= 0
    assert objective(p)(W, H, b)[0] == pytest.approx(s.certificate.primal, rel=1e-9)
    with pytest.raises(ValueError, match="the directions this optimum uses"):
        s.factors(2)


def test_a_point_that_lacks_directions_says_so_where_its_bound_comes_from_the_relaxation() -> None:
    p = nonnegative("100x5,20x5", 10.0)
    n = normalized_quotient(p, quotient(p))
    own, before = ridge(n)[0], certify_nonnegative(n, ridge(n)[0])
    x, certificate = _tightened(n, own, 1e-9)
    assert certificate.dual > before.dual
    assert missing_directions(n.lagrangian(x.y), x.witness.S) is None  # the relaxation's point lacks none
    wider = _widened(n, x)
    assert wider is not None
    assert certify_nonnegative(n, _descended(n, wider, 1e-9)).primal < before.primal


def test_an_optimum_continued_from_a_near_price_is_the_one_found_from_nothing() -> None:
    p, how = nonnegative("1000x2,200x2,20x2", lambda_b=0.02), Settings(1e-9, 300, None, throw=False)
    n = normalized_quotient(p, quotient(p))
    for price, other in ((5.0, 2.5), (0.5, 0.4), (0.014, 0.013)):
        there, here = replace(n, price=price), replace(n, price=other)
        near = fewest(there, minimise_nonnegative_spheres(there, how)[0])
        found = _continued(here, near)
        assert found is not None
        x, certificate = found
        assert certificate.relative_gap <= 1e-12
        np.testing.assert_allclose(x.y, minimise_nonnegative_spheres(here, how)[0].y, rtol=1e-9)
        again = minimise_nonnegative_spheres(here, how, near)
        assert again[3] == 1  # step


def test_where_a_direction_is_missing_the_near_optimum_is_left() -> None:
    p, how = nonnegative("100x5,20x5,5x5", lambda_b=0.01), Settings(1e-9, 300, None, throw=False)
    n = normalized_quotient(p, quotient(p))
    merged, apart = replace(n, price=0.12), replace(n, price=0.06)
    near = minimise_nonnegative_spheres(merged, how)[0]
    assert _continued(apart, near) is None
    cold, warm = (minimise_nonnegative_spheres(apart, how, start) for start in (None, near))
    np.testing.assert_allclose(warm[0].y, cold[0].y, rtol=1e-9)


@pytest.mark.parametrize(("price", "j"), [(0.017, 2), (0.0224, 2), (0.0047, 3), (0.125, 1)])
def test_the_optimum_with_equal_features_in_a_cluster(price: float, j: int) -> None:
    """From nothing and from a near price; the relaxation's witness proves it in half of these."""
    p = nonnegative("500x3,100x3,30x3,8x3")
    n = normalized_quotient(p, quotient(p))
    here, there = replace(n, price=price), replace(n, price=1.03 * price)
    cold, warm = held_equal(here, j), held_equal(here, j, fewest(there, held_equal(there, j)))
    np.testing.assert_allclose(warm.y, cold.y, rtol=1e-8)
    assert missing_directions(here.lagrangian(cold.y), cold.witness.S, j) is None
    assert cold.atoms.own[:, j].max() == 0


def test_progress_is_told_of_an_optimum_found_at_once() -> None:
    told: list[cs.Certificate] = []
    s = cs.solve(nonnegative(), progress=lambda _, certificate: told.append(certificate))
    assert told == [s.certificate]
