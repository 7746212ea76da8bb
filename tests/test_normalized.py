"""Normalised features: the certified solver against a closed form, plain descent, a conic solver, and itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

import collapsar as cs
from collapsar.advise import mitigations
from collapsar.solver.normalized_solution import NormalizedSolution
from collapsar.solver.spheres import Spheres
from collapsar.theory import edge_of, normalized_merge, normalized_two_cluster
from collapsar.theory.inverse import largest_head_decay_factor

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

NORM = 128**0.5
ROWS = np.linspace(0.2, 0.5, 10)


def normalized(counts: Any = "100x5,20x5", lambda_w: Any = 1.0, over: Any = "sample", **rest: Any) -> cs.Problem:
    return cs.Problem.from_normalized(counts, lambda_w=lambda_w, norm=NORM, over=over, **{"lambda_b": 0.0, **rest})


def objective(p: cs.Problem, W: Matrix, H: Matrix, b: Vector) -> float:
    """The objective of class means of the right length, written out."""
    K = p.num_classes
    assert p.normalization is not None
    u = p.temperatures * p.scales[:, None] * (W.T @ H + b[:, None]) + p.offsets[:, None]
    Y = (1 - p.loss.smoothing) * np.eye(K) + p.loss.smoothing / K
    top = u.max(axis=0)
    loss = p.loss_share @ (top + np.log(np.exp(u - top).sum(axis=0)) - (Y * u).sum(axis=0))
    rows = np.broadcast_to(p.normalization.lambda_w, (K,))
    bias = 0.0 if p.lambda_b == np.inf else 0.5 * p.lambda_b * b @ b
    return float(loss + 0.5 * rows @ (W**2).sum(axis=0) + bias)


def descended(p: cs.Problem, seed: int = 0) -> float:
    """The least value that descent on (W, H on spheres or one big sphere, b) finds, from scratch."""
    K, how = p.num_classes, p.normalization
    assert how is not None
    norm = how.norm or np.nan
    rows = np.broadcast_to(how.lambda_w, (K,))
    delta, tau, iota, q = p.scales[:, None], p.temperatures, p.offsets[:, None], p.loss_share
    Y = (1 - p.loss.smoothing) * np.eye(K) + p.loss.smoothing / K

    def value(x: Vector) -> tuple[float, Vector]:
        W, free, b = x[: K * K].reshape(K, K), x[K * K : 2 * K * K].reshape(K, K), x[2 * K * K :]
        if how.over == "sample":
            size = np.linalg.norm(free, axis=0)
        else:
            size = np.full(K, np.sqrt(np.sum(p.mass * free**2) / p.mass.sum()))
        H = norm * free / size
        u = tau * delta * (W.T @ H + b[:, None] * (p.lambda_b < np.inf)) + iota
        top = u.max(axis=0)
        odds = np.exp(u - top)
        P = odds / odds.sum(axis=0)
        g = q * tau * delta * (P - Y)
        gH = W @ g
        if how.over == "sample":
            gF = norm / size * (gH - free / size * np.sum(free / size * gH, axis=0))
        else:
            along = np.sum(free * gH) / (size[0] ** 2 * p.mass.sum())
            gF = norm / size * (gH - along * p.mass * free)
        price = p.lambda_b if p.lambda_b < np.inf else 0.0
        loss = q @ (top + np.log(odds.sum(axis=0)) - (Y * u).sum(axis=0))
        total = loss + 0.5 * rows @ (W**2).sum(axis=0) + 0.5 * price * b @ b
        gb = g.sum(axis=1) * (p.lambda_b < np.inf) + price * b
        return float(total), np.concatenate([(H @ g.T + rows * W).ravel(), gF.ravel(), gb])

    x = np.random.default_rng(seed).standard_normal(2 * K * K + K) * 0.5
    x[2 * K * K :] = 0
    found = minimize(value, x, jac=True, method="L-BFGS-B", options={"maxiter": 20000, "ftol": 1e-13, "gtol": 1e-10})
    return float(found.fun)


REFERENCES = [  # the six numbers in forty-digit arithmetic, derivatives by differences
    ((5, 5), (100, 20), 0.1, 0.12239827001850002, (-0.1526, -0.0571, -0.1097)),
    ((5, 5), (100, 20), 3.0, 0.96799191868402571, (-0.2111, 0.2003, -0.1059)),
    ((5, 5), (100, 5), 0.6, 0.32946072615422118, (-0.2219, 0.2648, -0.0963)),
]


@pytest.mark.parametrize(("classes", "counts", "lambda_w", "value", "cosines"), REFERENCES)
def test_reference_values(
    classes: tuple[int, int],
    counts: tuple[int, int],
    lambda_w: float,
    value: float,
    cosines: tuple[float, float, float],
) -> None:
    closed = normalized_two_cluster(classes, counts, lambda_w, NORM)
    assert closed.value == pytest.approx(value, abs=1e-14)
    assert closed.cosines == pytest.approx(cosines, abs=6e-5)
    s = cs.solve(normalized(np.repeat(counts, classes), lambda_w))
    assert s.certificate.primal == pytest.approx(closed.value, rel=1e-12)
    G = s.feature_gram() / NORM**2
    assert (G[0, 1], G[-1, -2], G[0, -1]) == pytest.approx(cosines, abs=6e-5)


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, np.inf])
@pytest.mark.parametrize(
    ("classes", "counts", "lambda_w"),
    [((5, 5), (100, 20), 10.0), ((3, 7), (500, 20), 1.0), ((1, 4), (30, 10), 2.0), ((1, 1), (9, 2), 5.0)],
)
def test_solver_meets_the_closed_form(
    classes: tuple[int, int], counts: tuple[int, int], lambda_w: float, lambda_b: float
) -> None:
    closed = normalized_two_cluster(classes, counts, lambda_w, NORM, lambda_b)
    s = cs.solve(normalized(np.repeat(counts, classes), lambda_w, lambda_b=lambda_b))
    assert s.certificate.primal == pytest.approx(closed.value, rel=1e-11)
    np.testing.assert_allclose(s.Z, closed.Z(), atol=1e-6)
    np.testing.assert_allclose(s.b - s.b.mean(), closed.bias() - closed.bias().mean(), atol=1e-6)
    assert (s.class_states[-1] == "merged") == closed.merged[1]


@pytest.mark.parametrize(
    ("classes", "counts", "value"),
    [
        ((5, 5), (100, 20), 0.0662034),
        ((5, 5), (100, 5), 0.0115098),
        ((3, 7), (500, 20), 0.0167689),
        ((2, 8), (1000, 10), 0.00579312),
    ],
)
def test_merge_threshold_two_roads_and_both_sides(
    classes: tuple[int, int], counts: tuple[int, int], value: float
) -> None:
    p = normalized(np.repeat(counts, classes))
    merge = float(cs.thresholds(p).merge[-1])
    assert merge / NORM**2 == pytest.approx(value, rel=1e-5)
    assert merge == pytest.approx(normalized_merge(classes, counts, NORM), rel=1e-9)
    for factor, state in ((0.999, "separated"), (1.001, "merged")):
        assert cs.solve(p.replace(lambda_w=factor * merge)).class_states[-1] == state


def test_thresholds_of_many_clusters_hold_on_both_sides() -> None:
    p = normalized("1000x3,800x3,100x3,20x1")
    t = cs.thresholds(p)
    assert np.isnan(t.merge[-1])
    assert np.isnan(t.vanish).all()
    found = {float(v): k for k, v in enumerate(t.merge) if np.isfinite(v)}
    assert found
    for merge, k in found.items():
        for factor, state in ((0.998, "separated"), (1.002, "merged")):
            assert cs.solve(p.replace(lambda_w=factor * merge)).class_states[k] == state


@pytest.mark.parametrize("lambda_b", [0.0, np.inf])
def test_as_the_decay_fades_the_geometry_is_the_simplex_whatever_the_counts(lambda_b: float) -> None:
    """And slowly: what is missing falls like 1 / log(1 / lambda_w)."""
    off = []
    for c in (1e-6, 1e-12):
        p = cs.Problem.from_normalized("100x5,5x5", lambda_w=c, norm=1.0, lambda_b=lambda_b)
        s = cs.solve(p)
        assert s.status is cs.Status.OPTIMAL
        off.append(np.abs(s.feature_gram() - 10 / 9 * (np.eye(10) - 0.1)).max() * np.log(1 / c))
    assert off[1] == pytest.approx(off[0], rel=0.15) if lambda_b == 0 else off[1] < 0.25


def test_the_threshold_falls_with_the_imbalance_and_with_more_large_classes() -> None:
    """The values of docs/theory/normalized.md by the solver's road; those of the closed form are its own test."""

    def merge(classes: tuple[int, int], counts: tuple[int, int]) -> float:
        p = cs.Problem.from_normalized(np.repeat(counts, classes), lambda_w=1.0, norm=1.0, lambda_b=0.0)
        return float(cs.thresholds(p).merge[-1])

    known = {1: 0.001793, 10: 0.0265, 40: 0.251, 80: 10.1, 95: 271.0}
    for n, value in known.items():
        assert merge((5, 5), (100, n)) == pytest.approx(value, rel=6e-3)
    assert merge((5, 5), (200, 20)) == pytest.approx(merge((5, 5), (100, 10)), rel=1e-8)  # of the ratio alone
    assert merge((1, 5), (100, 20)) == pytest.approx(0.384, rel=2e-3)
    assert merge((20, 5), (100, 20)) == pytest.approx(0.015, rel=4e-2)


def test_fewer_dimensions_than_the_rank_leave_a_lower_bound() -> None:
    """At the rank the optimum is attained; below it descent ends higher, and the certificate still bounds it."""
    p = normalized(lambda_w=10.0)  # merged: rank 5, for ten classes
    s = cs.solve(p)
    W, H, b = s.factors(s.rank)
    assert s.rank < p.num_classes
    assert objective(p, W, H, b) == pytest.approx(s.certificate.primal, rel=1e-12)
    balanced = normalized([10] * 5, 1.0)
    optimum = cs.solve(balanced)
    with pytest.raises(ValueError, match="at least 4"):
        optimum.factors(2)
    angle = 2 * np.pi * np.arange(5) / 5
    H = NORM * np.stack([np.cos(angle), np.sin(angle)])  # a pentagon, and the best head for it
    found = minimize(
        lambda w: objective(balanced, w.reshape(2, 5), H, np.zeros(5)), np.zeros(10), method="BFGS", tol=1e-9
    )
    Z = found.x.reshape(2, 5).T @ H
    c = cs.certify(balanced, Z)
    assert c.dual <= optimum.certificate.primal < c.primal <= found.fun * (1 + 1e-9)


def test_a_balanced_problem_is_the_simplex_and_never_merges() -> None:
    p = normalized([10] * 7, 0.5)
    G = cs.solve(p).feature_gram() / NORM**2
    np.testing.assert_allclose(G, 7 / 6 * (np.eye(7) - 1 / 7), atol=1e-10)
    assert np.isnan(cs.thresholds(p).merge).all()


LOSSES = {
    "smoothing": cs.Loss(smoothing=0.1),
    "offsets": cs.Loss(offsets=np.log(np.repeat([100, 20], 5) / 600)),
    "scales": cs.Loss(scales=np.repeat([1.0, 1.3], 5)),
    "temperatures": cs.Loss(temperatures=np.repeat([1.0, 1.5], 5)),
    "weights": cs.Loss(class_weights=np.repeat([1.0, 3.0], 5)),
}
DESCENTS = {
    **{name: normalized(loss=loss) for name, loss in LOSSES.items()},
    **{f"{name}, batch": normalized(loss=loss, over="batch") for name, loss in LOSSES.items()},
    "distinct": normalized([60, 30, 17, 9, 4], 0.7),
    "distinct, no bias": normalized([60, 30, 17, 9, 4], 0.7, lambda_b=np.inf),
    "distinct, strong": normalized([60, 30, 17, 9, 4, 3], 9.0, lambda_b=0.02),
    "distinct, batch": normalized([60, 30, 17, 9, 4], 0.7, over="batch", lambda_b=0.02),
    "distinct, smoothed": normalized("exp:1000:10:12", 1e-2, loss=LOSSES["smoothing"]),
    # the large class meets its smoothed target exactly: part of its feature lies where the head sees nothing
    "target met": normalized(
        [3, 2, 2], 0.1675, lambda_b=0.174, loss=cs.Loss(temperatures=[1.6, 1.06, 1.06], smoothing=0.09)
    ),
    "target met, far from balance": normalized(
        [82, 4], 8e-3, lambda_b=np.inf, loss=cs.Loss(offsets=[-0.6, -2.3], smoothing=0.47)
    ),
    "merged": normalized(lambda_w=10.0),
    "rows": normalized(lambda_w=ROWS),
    "rows and a priced bias": normalized(lambda_w=ROWS, lambda_b=0.02),
    "rows and a priced bias, batch": normalized(lambda_w=ROWS, lambda_b=0.02, over="batch"),
    "distinct rows and a priced bias, batch": normalized([60, 30, 17, 9, 4], ROWS[:5], lambda_b=0.1, over="batch"),
    "rows, batch": normalized(lambda_w=ROWS, over="batch"),
    "oversampled batch": normalized(over="batch", feature_mass=np.repeat([100.0, 60.0], 5)),
}


@pytest.mark.parametrize("eps", [0.1, 0.3])
@pytest.mark.parametrize("lambda_w", [1e-5, 1e-4, 1e-3, 1e-2])
def test_targets_that_are_met_exactly_leave_no_gap(lambda_w: float, eps: float) -> None:
    s = cs.solve(normalized("exp:1000:10:12", lambda_w, loss=cs.Loss(smoothing=eps)))
    assert s.certificate.relative_gap <= 1e-9
    assert np.abs(s.Z.sum(axis=0)).max() <= 1e-9 * np.abs(s.Z).max()


# classes that meet their targets have multipliers and residuals of nothing but rounding
MET_WITH_A_GAIN = [
    ([42] * 5 + [693], 8.31e-4, 1.744e-3, 1.43, cs.Loss(offsets=[-1.23] * 5 + [0.24], smoothing=0.412)),
    (
        [3, 6],
        1.028e-3,
        2.828e-4,
        0.111,
        cs.Loss(offsets=[1.784, -0.324], scales=[0.559, 1.551], temperatures=[0.925, 0.997], smoothing=0.357),
    ),
    (
        [8, 8, 1, 1, 1, 1, 4, 2],
        1.254e-5,
        1.571e-2,
        1.15e-2,
        cs.Loss(offsets=[-2.37, -2.37, *[-0.602] * 4, 1.941, -1.22], smoothing=0.488),
    ),
]


@pytest.mark.parametrize(("counts", "lambda_w", "lambda_gain", "lambda_b", "loss"), MET_WITH_A_GAIN)
def test_targets_that_are_met_under_a_decayed_gain_leave_no_gap(
    counts: list[int], lambda_w: float, lambda_gain: float, lambda_b: float, loss: cs.Loss
) -> None:
    p = cs.Problem.from_gain_decay(counts, lambda_w=lambda_w, lambda_gain=lambda_gain, lambda_b=lambda_b, loss=loss)
    s = cs.solve(p)
    assert s.certificate.relative_gap <= 1e-9
    assert isinstance(s, NormalizedSolution)
    fixed = descended(p.replace(norm=s.norm)) + 0.5 * lambda_gain * s.norm**2
    assert s.certificate.primal == pytest.approx(fixed, rel=1e-7)


@pytest.mark.parametrize("name", DESCENTS)
def test_optimum_factors_and_file(name: str, tmp_path: Path) -> None:
    p = DESCENTS[name]
    s = cs.solve(p)
    assert s.certificate.relative_gap <= 1e-9
    assert descended(p) == pytest.approx(s.certificate.primal, rel=2e-7)
    W, H, b = s.factors(p.num_classes + 2)
    assert W.shape == H.shape == (p.num_classes + 2, p.num_classes)
    np.testing.assert_allclose(W.T @ H, s.Z, atol=1e-12)
    np.testing.assert_allclose(W.T @ W, s.classifier_gram(), atol=1e-12)
    np.testing.assert_allclose(H.T @ H, s.feature_gram(), atol=1e-9)
    assert objective(p, W, H, b) == pytest.approx(s.certificate.primal, rel=1e-12)
    assert p.normalization is not None
    if p.normalization.over == "sample":
        np.testing.assert_allclose(np.linalg.norm(H, axis=0), NORM, rtol=1e-12)
    else:
        assert np.sqrt(p.mass @ (H**2).sum(axis=0) / p.mass.sum()) == pytest.approx(NORM, rel=1e-9)
    again = cs.certify(p, s.Z, s.b)
    assert again.primal == pytest.approx(s.certificate.primal, rel=1e-11)
    assert again.relative_gap <= 1e-9
    back = cs.load_solution(s.save(tmp_path / "s.npz"))
    assert back.problem == p
    assert back.class_states == s.class_states
    assert back.certificate.relative_gap <= 1e-9
    np.testing.assert_allclose(back.factors(p.num_classes + 2)[1], H, atol=1e-9)


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("lambda_b", [0.0, 0.02, np.inf])
def test_certificates_of_other_points_are_bounds(over: str, lambda_b: float) -> None:
    p = normalized([60, 30, 17, 9, 4], 0.7, over=over, lambda_b=lambda_b)
    s = cs.solve(p)
    optimum = s.certificate.primal
    noise = np.random.default_rng(0)
    for size in (0.0, 1e-6, 1e-3, 0.1, 3.0):
        b = s.b + size * noise.standard_normal(5) * (lambda_b < np.inf)
        c = cs.certify(p, s.Z + size * noise.standard_normal((5, 5)), b)
        assert c.dual <= optimum * (1 + 1e-12)
        assert c.primal >= optimum * (1 - 1e-11)
        assert c.gap <= 30 * size + 1e-9
    assert cs.certify(p, np.zeros((5, 5))).primal >= optimum


@pytest.mark.reference
@pytest.mark.parametrize("features", ["signed", "nonnegative"])
@pytest.mark.parametrize("lambda_w", [2.0, 60.0])
def test_conic_solver_agrees(features: str, lambda_w: float) -> None:
    """With nonnegative features the cone is that of doubly nonnegative Gram matrices, a relaxation."""
    import cvxpy

    p = normalized([60, 30, 17, 9, 4, 2], lambda_w, lambda_b=0.05, features=features)
    K = p.num_classes
    assert p.normalization is not None
    M = cvxpy.Variable((2 * K, 2 * K), PSD=True)  # [[||W|| part, Z], [Z', G]]
    Z, b = M[:K, K:], cvxpy.Variable(K)
    columns = [cvxpy.log_sum_exp(Z[:, k] + b) - Z[k, k] - b[k] for k in range(K)]
    value = sum(q * column for q, column in zip(p.loss_share, columns, strict=True))
    value += 0.5 * p.normalization.price * cvxpy.trace(M[:K, :K]) + 0.025 * cvxpy.sum_squares(b)
    signs = [] if features == "signed" else [M[K:, K:] >= 0]
    conic = cvxpy.Problem(cvxpy.Minimize(value), [cvxpy.diag(M[K:, K:]) <= 1, *signs])
    conic.solve(solver="CLARABEL")
    s = cs.solve(p)
    assert conic.value == pytest.approx(s.certificate.primal, rel=1e-6)
    np.testing.assert_allclose(np.asarray(Z.value, dtype=np.float64), s.Z, atol=2e-3)


def test_a_decayed_gain_per_batch_is_the_model_with_a_feature_penalty() -> None:
    counts, wd = np.repeat([100, 5], 5), 0.06
    p = cs.Problem.from_gain_decay(counts, lambda_w=wd, lambda_gain=wd, over="batch", lambda_b=0.02)
    plain = cs.solve(cs.Problem.from_penalties(counts, wd, wd / counts.sum(), 0.02))
    s = cs.solve(p)
    np.testing.assert_allclose(s.Z, plain.Z, atol=1e-9)
    assert s.class_states == plain.class_states
    edge = np.sqrt(5 / counts.sum())
    t = cs.thresholds(p.replace(lambda_gain=edge))
    assert t.merge[-1] == pytest.approx(edge, rel=1e-9)


@pytest.mark.parametrize(
    ("counts", "loss"),
    [
        ("12x2,51x2,11,5x4", None),
        ("1,21x3,4x3,23x2", None),
        ("40x4,33,3x3", cs.Loss(smoothing=0.297)),
        ("1x3,3x2", cs.Loss(offsets=[-3.03] * 3 + [-0.35] * 2, smoothing=0.31)),
        ("1x3,3x2", cs.Loss(offsets=[-3.74] * 3 + [1.04] * 2, smoothing=0.11)),
    ],
)
def test_where_a_decayed_gain_takes_everything_is_known_to_its_digits(counts: str, loss: cs.Loss | None) -> None:
    p = cs.Problem.from_gain_decay(counts, lambda_w=0.01, lambda_gain=1e-3, lambda_b=np.inf, loss=loss or cs.Loss())
    t = cs.thresholds(p)
    assert np.all(t.merge[np.isfinite(t.merge)] <= t.complete)
    for factor, gone in ((1 - 1e-6, False), (1 + 1e-6, True)):
        s = cs.solve(p.replace(lambda_w=factor * t.complete))
        assert (set(s.class_states) == {"vanished"}) == gone
        assert (np.abs(s.Z).max() == 0) == gone
    # the price of the whole head falls below the dual norm of the residual there, by K x K steps from many starts
    K, eps = p.num_classes, p.loss.smoothing
    odds = np.exp(p.offsets - p.offsets.max())
    R = p.scales[:, None] * ((1 - eps) * np.eye(K) + eps / K - odds[:, None] / odds.sum()) * p.loss_share
    best, noise = 0.0, np.random.default_rng(0)
    for _ in range(3):
        H = noise.standard_normal((K, K))
        for _ in range(3000):
            H = H @ (R.T @ R)
            H /= np.linalg.norm(H, axis=0)
        best = max(best, float(np.sum((R @ H.T) ** 2)))
    assert t.complete * 1e-3 == pytest.approx(best, rel=1e-7)


@pytest.mark.parametrize("lambda_b", [0.0, np.inf])
def test_a_decayed_gain_per_sample(lambda_b: float) -> None:
    p = cs.Problem.from_gain_decay("100x5,5x5", lambda_w=0.1, lambda_gain=0.1, lambda_b=lambda_b)
    s = cs.solve(p)
    # the same optimum with the length given at which the gain came to rest
    W, H, _ = s.factors(10)
    rho = float(np.linalg.norm(H[:, 0]))
    fixed = cs.solve(cs.Problem.from_normalized("100x5,5x5", lambda_w=0.1, norm=rho, lambda_b=lambda_b))
    np.testing.assert_allclose(s.Z, fixed.Z, atol=1e-7)
    assert s.certificate.primal == pytest.approx(fixed.certificate.primal + 0.05 * rho**2, rel=1e-10)
    assert 0.1 * np.sum(W**2) == pytest.approx(0.1 * rho**2, rel=1e-6)
    t = cs.thresholds(p)
    for value, below, above in ((t.merge[-1], "separated", "merged"), (t.complete, "merged", "vanished")):
        assert cs.solve(p.replace(lambda_w=0.998 * value)).class_states[-1] == below
        assert cs.solve(p.replace(lambda_w=1.002 * value)).class_states[-1] == above


@pytest.mark.parametrize("lambda_b", [0.0, 0.02, np.inf])
def test_per_batch_transitions_hold_on_both_sides(lambda_b: float) -> None:
    p = normalized(over="batch", lambda_b=lambda_b)
    t = cs.thresholds(p)
    assert t.complete == np.inf
    assert np.isnan(t.vanish[0])
    for value, below, above in ((t.merge[-1], "separated", "merged"), (t.vanish[-1], "merged", "vanished")):
        assert cs.solve(p.replace(lambda_w=0.998 * value)).class_states[-1] == below
        assert cs.solve(p.replace(lambda_w=1.002 * value)).class_states[-1] == above


def test_just_before_classes_vanish_behind_a_batch_norm_their_price_is_found() -> None:
    """There the price of Z falls a hundred times as fast as its penalty rises."""
    weights = [2.37, 2.55, 2.55, 0.581, 0.581, 3.609, 3.609, 3.609]
    scales = [0.511, 1.341, 1.341, 0.558, 0.558, 0.876, 0.876, 0.876]
    p = cs.Problem.from_normalized(
        [1, 3, 3, 5, 5, 3, 3, 3],
        lambda_w=1.0,
        norm=1.0,
        over="batch",
        features="nonnegative",
        loss=cs.Loss(class_weights=weights, scales=scales, smoothing=0.352),
    )
    s = cs.solve(p.replace(lambda_w=0.99 * float(cs.thresholds(p).vanish[-1])))
    assert s.class_states[-1] == "separated"
    W, H, b = s.factors(8)
    assert objective(s.problem, W, H, b) == pytest.approx(s.certificate.primal, rel=1e-11)


def test_rows_and_a_priced_bias_merge_per_batch_on_both_sides_of_the_threshold() -> None:
    p = normalized(lambda_w=np.repeat([1.0, 2.0], 5), over="batch", lambda_b=0.02)
    t = cs.thresholds(p)
    assert np.isnan(t.vanish).all()
    factor = t.merge[-1] / 2.0
    for part, state in ((0.998, "separated"), (1.002, "merged")):
        assert cs.solve(p.replace(lambda_w=part * factor * np.repeat([1.0, 2.0], 5))).class_states[-1] == state


@pytest.mark.parametrize("lambda_w", [0.1, 10.0])
def test_many_distinct_classes_meet_descent_on_fewer_directions(lambda_w: float) -> None:
    """Directions that die are dropped on the way; plain descent keeps all of them."""
    p = normalized(np.round(np.geomspace(3000, 5, 14)).astype(int), lambda_w)
    s = cs.solve(p)
    assert s.certificate.relative_gap <= 1e-9
    assert descended(p) == pytest.approx(s.certificate.primal, rel=1e-6)
    assert isinstance(s, NormalizedSolution)
    assert isinstance(s.spheres, Spheres)
    assert s.rank <= s.spheres.E.shape[0] < 14


def test_directions_dropped_at_strong_decay_come_back_at_weak_decay() -> None:
    p = normalized(np.round(np.geomspace(3000, 5, 20)).astype(int), 10.0)
    strong = cs.solve(p)
    weak = cs.solve(p.replace(lambda_w=0.1), start=strong)
    assert isinstance(strong, NormalizedSolution)
    assert isinstance(weak, NormalizedSolution)
    assert strong.rank < weak.rank
    alone = cs.solve(p.replace(lambda_w=0.1))
    assert weak.certificate.primal == pytest.approx(alone.certificate.primal, rel=1e-10)
    W, H, _ = weak.factors(20)
    np.testing.assert_allclose(W.T @ H, alone.Z, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(H, axis=0), NORM, rtol=1e-12)


def test_rows_with_equal_penalties_are_one_penalty_and_classes_may_be_permuted() -> None:
    p = normalized([60, 30, 17, 9, 4], 0.7)
    s = cs.solve(p)
    np.testing.assert_allclose(cs.solve(p.replace(lambda_w=np.full(5, 0.7))).Z, s.Z, atol=1e-9)
    order = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(
        cs.solve(p.replace(class_counts=p.class_counts[order])).Z, s.Z[np.ix_(order, order)], atol=1e-8
    )


def test_path_warm_starts_through_the_merge_in_any_order() -> None:
    p, values = normalized(), [20.0, 1.0, 9.0, 3.0]
    rows = np.linspace(0.5, 1.5, p.num_classes)  # of mean 1: each class's own penalty keeps its ratio to the others
    for over, own_rows in (("sample", 1.0), ("batch", 1.0), ("sample", rows)):
        own = p.replace(over=over, lambda_w=2.0 * own_rows)
        for value, s in zip(values, cs.path(own, values), strict=True):
            alone = cs.solve(own.replace(lambda_w=value * own_rows))
            assert s.certificate.primal == pytest.approx(alone.certificate.primal, rel=1e-9)
            assert s.class_states == alone.class_states


@pytest.mark.parametrize(
    ("counts", "width", "before", "after"),
    [
        ("100x5,20x5", 32, (36.66268, 11.95906), (42.99184, 11.66261)),
        ("500x5,20x5", 32, (2.72566, 0.46124), (3.03751, 0.42412)),
    ],
)
def test_classes_that_are_merged_at_the_start_come_apart(counts: str, width: int, before: tuple, after: tuple) -> None:
    """With other rows their contrast has no slope at zero, where Newton's method rested and said that it stalled."""
    first, second = (
        cs.Problem.from_normalized(counts, lambda_w=np.repeat(rows, 5), norm=width**0.5, over="sample", lambda_b=0.0)
        for rows in (before, after)
    )
    start, cold = cs.solve(first), cs.solve(second)
    assert (start.class_states[9], cold.class_states[9]) == ("merged", "separated")
    np.testing.assert_allclose(cs.solve(second, start=start).Z, cold.Z, atol=1e-7)


def test_nonnegative_features_after_a_batch_norm() -> None:
    p = normalized(over="batch", lambda_b=0.02, features="nonnegative")
    s = cs.solve(p)
    W, H, b = s.factors(12)
    assert H.min() >= 0
    assert objective(p, W, H, b) == pytest.approx(s.certificate.primal, rel=1e-11)
    assert s.certificate.relative_gap <= 1e-9


@pytest.mark.parametrize("p", [normalized(lambda_w=10.0), normalized(lambda_w=10.0, over="batch")])
def test_advice_and_the_merge_threshold_are_two_roads(p: cs.Problem) -> None:
    """Remedies are found on certified optima; the root of the merge threshold says whether they are least."""
    a = cs.advise(p, families=("penalty", "weights", "temperatures", "oversampling"))
    assert a.verdict == "merging"
    assert "norm 11.31 per" in str(a)
    merge = float(cs.thresholds(p).merge[-1])
    for o in a.outlooks[1:]:
        assert o.safety == pytest.approx(merge / 10.0, rel=1e-8)
    assert len(a.suggestions) == 4
    for s in a.suggestions:
        assert s.verified
        treated = s.treatment.problem
        assert treated.normalization is not None
        room = cs.thresholds(treated).merge[-1] / treated.normalization.lambda_w
        assert 1.1 <= room <= (1.11 if s.treatment.family == "penalty" else 1.13)


def test_remedies_move_the_merge_threshold_as_their_optima_say() -> None:
    """A threshold from a root, a state from a certified optimum; with a free bias offsets move neither."""
    counts = np.repeat([100, 20], 5)
    p = normalized(counts, 8.0)
    chosen = (mitigations.plain_training(), mitigations.inverse_weights(counts, 0.5), mitigations.ldt(counts))
    chosen += (mitigations.balanced_softmax(counts), mitigations.label_smoothing(), mitigations.head_decay(0.5))
    found = {r.name: cs.solve(r(p)) for r in chosen}
    nominal = {name: 8.0 / s.problem.normalization.level for name, s in found.items() if s.problem.normalization}
    merge = {name: nominal[name] * cs.thresholds(s.problem).merge[-1] for name, s in found.items()}
    plain = merge["plain"]
    assert merge["head-decay-0.5"] == pytest.approx(2 * plain, rel=1e-9)
    assert merge["balanced-softmax"] == pytest.approx(plain, rel=1e-9)
    for name, s in found.items():
        assert (s.class_states[-1] == "separated") == (not merge[name] <= 8.0)


def test_inverse_questions_two_roads() -> None:
    """How many samples, how large a penalty: a scan of thresholds against the two-cluster closed form."""
    p, find = normalized(lambda_w=3.0), cache(cs.thresholds)
    factor = largest_head_decay_factor(p, -1, find=find)
    assert factor == pytest.approx(normalized_merge((5, 5), (100, 20), NORM) / 3.0, rel=1e-9)
    assert largest_head_decay_factor(p, 0, find=find) == np.inf

    def at(n: float) -> cs.Problem:
        weights = np.repeat([100.0, n], 5)
        return normalized([1] * 10, 3.0, loss=cs.Loss(class_weights=weights))

    edge = edge_of(at, -1, (2.0, 80.0), points=3, find=find)
    assert edge.value is not None
    assert not edge.alive_below
    assert normalized_merge((5, 5), (100, edge.value), NORM) == pytest.approx(3.0, rel=1e-8)


def test_the_problem_as_a_value() -> None:
    p = normalized(lambda_w=ROWS)
    assert cs.Problem.from_dict(p.to_dict()) == p
    assert p != normalized(lambda_w=ROWS, over="batch")
    assert p.replace(norm=2.0).replace(norm=NORM).fingerprint == p.fingerprint
    assert p.replace(lambda_gain=0.1).normalization == replace_gain(p)
    assert hash(p.normalization) == hash(cs.Problem.from_dict(p.to_dict()).normalization)


def replace_gain(p: cs.Problem) -> object:
    assert p.normalization is not None
    return p.normalization.replace(norm=None, lambda_gain=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambda_w": 0.0}, "`lambda_w` must be"),
        ({"lambda_w": [0.1, 0.2]}, "one per class"),
        ({"lambda_w": [0.1] * 9 + [np.nan]}, "`lambda_w` must be"),
        ({"norm": -1.0}, "`norm` must be"),
        ({"norm": float("nan")}, "`norm` must be"),
        ({"over": "layer"}, "`over` must be"),
        ({"lambda_z": 0.1}, "change `lambda_w`"),
        ({"features": "nonnegative", "lambda_gain": 0.1}, "for a given `norm`"),
        ({"feature_mass": np.ones(10)}, "per sample"),
        ({"lambda_w": ROWS, "over": "batch", "lambda_b": 0.1, "features": "nonnegative"}, "needs a free bias or none"),
    ],
)
def test_bad_arguments(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalized().replace(**change)


def test_arguments_of_the_other_kind_of_problem() -> None:
    with pytest.raises(ValueError, match="belongs to normalised features"):
        cs.Problem([5, 5], 0.1).replace(norm=1.0)
    s = cs.solve(normalized([5, 4, 3]))
    with pytest.raises(ValueError, match="leave them out"):
        s.factors(3, lambda_h=1.0)
    with pytest.raises(ValueError, match="must be at least 2"):
        s.factors(1)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    s = cs.solve(normalized([5, 4, 3]))
    assert isinstance(s, cs.Solution)
    bad = replace(s, certificate=cs.Certificate(s.certificate.primal * 1.001, 0.0))
    with pytest.raises(ValueError, match="was altered"):
        cs.load_solution(bad.save(tmp_path / "bad.npz"))


def test_balanced_classes_on_spheres_merge_only_where_all_vanish():
    assert np.isnan(cs.thresholds(cs.Problem.from_normalized([100] * 4, lambda_w=0.1, norm=1.0)).merge).all()
    t = cs.thresholds(cs.Problem.from_gain_decay([100] * 4, lambda_w=0.1, lambda_gain=0.01, over="sample"))
    assert t.merge.tolist() == [t.complete] * 4
    for share, state in ((0.98, "separated"), (1.02, "vanished")):
        p = cs.Problem.from_gain_decay([100] * 4, lambda_w=share * t.complete, lambda_gain=0.01, over="sample")
        assert set(cs.solve(p).class_states) == {state}


def test_a_gain_for_each_feature_beats_the_model_of_one_gain() -> None:
    """The optimum's own factors, their lengths made by an RMSNorm whose gain is 0 on what they do not use."""
    lambda_w = lambda_gain = 0.05
    p = cs.Problem.from_gain_decay("100x5,20x5", lambda_w=lambda_w, lambda_gain=lambda_gain, lambda_b=0.0)
    s, d = cs.solve(p), 32
    W, H, b = s.factors(d)
    used = int(np.linalg.matrix_rank(H))
    assert np.abs(H[used:]).max() < 1e-9
    unit = H / np.sqrt(np.mean(H**2, axis=0))  # what the norm puts out
    gain = np.where(np.arange(d) < used, np.linalg.norm(H[:, 0]) / np.sqrt(d), 0.0)
    np.testing.assert_allclose(gain[:, None] * unit, H, atol=1e-9)
    u = W.T @ H + b[:, None]
    loss = p.loss_share @ (np.log(np.exp(u).sum(axis=0)) - np.diag(u))
    total = loss + lambda_w / 2 * np.sum(W**2) + lambda_gain / 2 * np.sum(gain**2)
    assert total < 0.9 * s.certificate.dual


@pytest.mark.parametrize(
    ("counts", "lambda_b"), [("275x4,44x4,15x4", 0.0), ("211x2,305x3,54x4", 0.0), ("216x2,397x4,27x2", 0.02)]
)
@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_the_largest_classes_never_vanish_behind_a_batch_norm(counts, lambda_b, features):
    """Z = 0 is no optimum at any decay: rounding there gave them thresholds of 1e10."""
    problem = cs.Problem.from_normalized(
        counts, lambda_w=1.0, norm=3.0, over="batch", lambda_b=lambda_b, features=features
    )
    vanish = cs.thresholds(problem).vanish
    largest = problem.class_counts == problem.class_counts.max()
    assert np.isnan(vanish[largest]).all()
    assert (vanish[~largest] < 10 * 9).all()
