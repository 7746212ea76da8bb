"""Thresholds against the numbers in print and against brute-force descent on the full program."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

import collapsar as cs
from collapsar.core.loss import Loss
from collapsar.core.problem import FeatureModel, Problem
from collapsar.solver.solve import solve
from collapsar.theory import column_path
from collapsar.theory.clusters import balanced_bias, clusters_of
from collapsar.theory.column_form import resting, without_columns
from collapsar.theory.roots import root_between, roots_between
from collapsar.theory.thresholds import complete_collapse, thresholds, thresholds_of_many

INF = float("inf")
known = cache(thresholds)


# --- an oracle: accelerated proximal gradient on the full (K, K) program, no clusters, no roots


@dataclass(frozen=True)
class Program:
    """The convex program spelled out from the problem's raw vectors."""

    problem: Problem
    lambda_z: float

    @cached_property
    def parts(self) -> tuple[NDArray, ...]:
        """Temperatures, scales, offsets, labels and weights, each as its products need it."""
        p, K = self.problem, self.problem.num_classes
        Y = (1 - p.loss.smoothing) * np.eye(K) + p.loss.smoothing / K
        return p.temperatures, p.scales[:, None], p.offsets[:, None], Y, p.temperatures * p.loss_share

    def logits(self, Z: NDArray, b: NDArray) -> NDArray:
        temperatures, scales, offsets, _, _ = self.parts
        return temperatures * (scales * (Z + b[:, None])) + offsets

    def gradient(self, Z: NDArray, b: NDArray) -> NDArray:
        """The loss's gradient in Z; the one in b is its row sum."""
        _, scales, _, Y, weights = self.parts
        odds = np.exp(self.logits(Z, b))
        return scales * (odds / odds.sum(axis=0) - Y) * weights

    def shrink(self, X: NDArray, amount: float) -> NDArray:
        if self.problem.features == "signed":
            U, s, V = np.linalg.svd(X, full_matrices=False)
            return (U * np.maximum(s - amount, 0)) @ V
        norms = np.linalg.norm(X, axis=0)
        return X * np.maximum(1 - amount / np.maximum(norms, 1e-300), 0)

    def descend(self, steps: int = 6000) -> NDArray:
        """Z after FISTA with restarts, in X = Z M^(1/2) and b."""
        p, K = self.problem, self.problem.num_classes
        root = np.sqrt(p.mass)
        curvature = p.loss_share * p.temperatures**2 * np.max(p.scales) ** 2
        step_x = 1 / np.max(curvature / p.mass)
        step_b = 0.0 if p.lambda_b == INF else 1 / (curvature.sum() + p.lambda_b)
        price_b = 0.0 if p.lambda_b == INF else p.lambda_b
        X, b = np.zeros((K, K)), np.zeros(K)
        x, a, t = X, b, 1.0
        for _ in range(steps):
            G = self.gradient(x / root, a)
            X_new = self.shrink(x - step_x * G / root, step_x * self.lambda_z)
            b_new = a - step_b * (G.sum(axis=1) + price_b * a)
            still = max(np.max(np.abs(X_new - x)), np.max(np.abs(b_new - a))) < 1e-10
            if np.sum((x - X_new) * (X_new - X)) + np.sum((a - b_new) * (b_new - b)) > 0:
                t = 1.0
            t_new = (1 + np.sqrt(1 + 4 * t**2)) / 2
            momentum = (t - 1) / t_new
            x, a = X_new + momentum * (X_new - X), b_new + momentum * (b_new - b)
            X, b, t = X_new, b_new, t_new
            if still:
                break
        return X / root


CASES = {
    "two clusters": Problem([60, 60, 20, 20, 20], 1.0, 0.02),
    "two clusters, no bias": Problem([60, 60, 20, 20], 1.0, INF),
    "two clusters, free bias": Problem([40, 40, 10, 10], 1.0, 0.0),
    "single large class": Problem([80, 20, 20, 20], 1.0, 0.05),
    "single small class": Problem([60, 60, 60, 15], 1.0, 0.05),
    "all different": Problem([60, 30, 15], 1.0, 0.1),
    "three clusters": Problem([80, 80, 30, 30, 10, 10], 1.0, 0.05),
    "balanced": Problem([10] * 4, 1.0, 0.3),
    "weights": Problem([60, 60, 20, 20], 1.0, 0.02, Loss(class_weights=[1, 1, 2, 2])),
    "smoothing": Problem([60, 60, 20, 20], 1.0, 0.05, Loss(smoothing=0.2)),
    "offsets": Problem([60, 60, 20, 20], 1.0, 0.05, Loss(offsets=np.log([60, 60, 20, 20]))),
    "scales": Problem([60, 60, 20, 20], 1.0, 0.05, Loss(scales=[1.2, 1.2, 0.8, 0.8])),
    "temperatures": Problem([60, 60, 20, 20], 1.0, 0.05, Loss(temperatures=[0.8, 0.8, 1.3, 1.3])),
    "mass": Problem([60, 60, 20, 20], 1.0, 0.05, feature_mass=np.ones(4)),
    "everything": Problem(
        [60, 60, 20, 20, 30],
        1.0,
        0.1,
        Loss([1, 1, 1.5, 1.5, 2], [0.3, 0.3, -0.4, -0.4, 0], [1, 1, 0.8, 0.8, 1.1], [1, 1, 1.2, 1.2, 0.9], 0.1),
        [50, 50, 30, 30, 20],
    ),
}


def _alike(problem: Problem, k: int) -> NDArray[np.intp]:
    """The other classes that differ from class k in nothing."""
    rows = np.stack(
        [
            problem.loss_share,
            problem.mass,
            problem.scales,
            problem.temperatures,
            problem.offsets,
            problem.class_counts,
        ]
    )
    same = np.all(rows == rows[:, [k]], axis=0)
    same[k] = False
    return np.flatnonzero(same)


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
@pytest.mark.parametrize("name", CASES)
def test_both_sides_of_every_threshold(name: str, features: FeatureModel) -> None:
    problem = CASES[name].replace(features=features)
    t = known(problem)
    values = {round(float(v), 14) for v in (*t.merge, *t.vanish) if np.isfinite(v)}
    if features == "signed":
        values.add(round(t.complete, 14))
    for value in sorted(values):
        for factor in (0.995, 1.005):
            lambda_z = value * factor
            Z = Program(problem, lambda_z).descend()
            scale = np.linalg.norm(Z) + 1e-3
            for k in range(problem.num_classes):
                norm = np.linalg.norm(Z[:, k]) / scale
                alive = lambda_z < t.vanish[k]
                assert norm > 1e-3 if alive else norm < 1e-4, (lambda_z, k, norm)
                if np.isfinite(t.merge[k]):
                    contrast = abs(Z[k, k] - Z[_alike(problem, k)[0], k]) / scale
                    apart = lambda_z < t.merge[k]
                    assert contrast > 1e-3 if apart else contrast < 1e-4, (lambda_z, k, contrast)


# --- numbers in print


VANISH = {  # to the digits printed, for lambda_b = .02, .01, 1, inf
    "500x5,100x5": (0.003983, 0.004002, 0.004446, 0.004605),
    "500x3,100x7": (0.006407, 0.006427, 0.007663, 0.008120),
}


@pytest.mark.parametrize("counts", VANISH)
def test_merged_classes_vanish_at_the_printed_root(counts: str) -> None:
    for lambda_b, printed in zip((0.02, 0.01, 1.0, INF), VANISH[counts], strict=True):
        assert thresholds(Problem(counts, 1.0, lambda_b)).vanish[-1] == pytest.approx(printed, abs=5.01e-7)


def _counts(k: tuple[int, int], n: tuple[float, float]) -> list[int]:
    return [round(n[0])] * k[0] + [round(n[1])] * k[1]


@pytest.mark.parametrize(
    ("k", "features", "minority", "complete", "digits"),
    [
        ((5, 5), "signed", 0.00333, 0.00745, 5.1e-6),
        ((5, 5), "nonnegative", 0.00329, 0.00675, 5.1e-6),
        ((3, 7), "signed", 0.00455, 0.01016, 5.1e-6),
        ((3, 7), "nonnegative", 0.00447, 0.00871, 5.1e-6),
    ],
)
def test_figures_5_and_6(
    k: tuple[int, int], features: FeatureModel, minority: float, complete: float, digits: float
) -> None:
    t = thresholds(Problem(_counts(k, (500, 100)), 1.0, 0.02, features=features))
    first = t.merge[-1] if features == "signed" else t.vanish[-1]
    assert first == pytest.approx(minority, abs=digits)
    assert t.complete == pytest.approx(complete, abs=digits)
    assert t.vanish[0] == t.complete
    if features == "nonnegative":
        # the brackets that can be read from the figures: networks collapse where this model says, not the
        # signed one
        observed = {(5, 5): (0.0063, 0.0069), (3, 7): (0.0086, 0.0094)}[k]
        assert observed[0] < t.complete <= observed[1]
        assert t.exact.all()


@pytest.mark.parametrize(
    ("k", "features", "minority", "complete"),
    [
        ((5, 5), "signed", 300, 1393),
        ((5, 5), "nonnegative", 290.5, 1088),
        ((3, 7), "signed", 433, 3964),
        ((3, 7), "nonnegative", 419, 2545),
    ],
)
def test_figures_7_and_8(k: tuple[int, int], features: FeatureModel, minority: float, complete: float) -> None:
    """At lambda_z = .005, n_B = 100: whole numbers n_A around the printed transition lie on its two sides."""

    def at(n_a: float) -> tuple[float, float]:
        t = thresholds(Problem(_counts(k, (n_a, 100)), 1.0, 0.02, features=features))
        return float(t.merge[-1] if features == "signed" else t.vanish[-1]), t.complete

    lambda_z = 0.005
    assert at(minority - 1)[0] > lambda_z > at(minority + 1)[0]
    assert at(complete - 1)[1] > lambda_z > at(complete + 1)[1]


def test_classes_that_share_a_direction_outlive_the_column_form() -> None:
    """n = (1000, 10, 10), free bias: complete collapse at .00526, where the column form says .00432."""
    t = thresholds(Problem([1000, 10, 10], 1.0, 0.0, features="nonnegative"))
    assert t.vanish[1:] == pytest.approx(0.00432, abs=5e-6)
    assert t.complete == pytest.approx(0.00526, abs=5e-6)
    assert t.complete_bound == pytest.approx(t.complete, rel=1e-12)
    assert not t.exact.any()
    # as lambda_z falls to zero the minorities buy their margin and the bias carries the majority: no
    # transition
    assert np.isnan(t.vanish[0])


def _factored_optimum(problem: Problem, seeds: int = 3) -> float:
    """The best objective over W, H >= 0, b by bounded quasi-Newton from random starts."""
    p, K, d = problem, problem.num_classes, 2 * problem.num_classes

    lam, program = p.lambda_z, Program(p, p.lambda_z)

    def objective(v: NDArray) -> tuple[float, NDArray]:
        W, H, b = v[: d * K].reshape(d, K), v[d * K : 2 * d * K].reshape(d, K), v[2 * d * K :]
        Z = W.T @ H
        U = program.logits(Z, b)
        value = float(p.loss_share @ (np.logaddexp.reduce(U, axis=0) - np.diag(U)))
        value += 0.5 * lam * (np.sum(W**2) + np.sum(p.mass * H**2)) + 0.5 * p.lambda_b * b @ b
        G = program.gradient(Z, b)
        parts = (H @ G.T + lam * W, W @ G + lam * p.mass * H, G.sum(axis=1) + p.lambda_b * b)
        return value, np.concatenate([part.ravel() for part in parts])

    bounds = [(None, None)] * (d * K) + [(0, None)] * (d * K) + [(None, None)] * K
    best = np.inf
    for seed in range(seeds):
        start = np.random.default_rng(seed).uniform(0, 0.5, len(bounds))
        options = {"maxiter": 4000, "maxfun": 10000, "ftol": 1e-15, "gtol": 1e-10}
        best = min(best, minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun)
    return best


@pytest.mark.parametrize(("counts", "lambda_b"), [([1000, 10, 10], 0.0), ([50, 20, 10], 0.05), ([300, 20, 20], 1e-3)])
def test_complete_collapse_with_nonnegative_features(counts: list[int], lambda_b: float) -> None:
    """Against descent on (W, H >= 0, b): just below, some Z beats Z = 0; just above, none does."""
    t = thresholds(Problem(counts, 1.0, lambda_b, features="nonnegative"))
    # at a huge price Z = 0 and only the bias is left
    base = _factored_optimum(Problem(counts, 10.0, lambda_b, features="nonnegative"), seeds=1)
    below = _factored_optimum(Problem(counts, 0.95 * t.complete, lambda_b, features="nonnegative"), seeds=1)
    above = _factored_optimum(Problem(counts, 1.01 * t.complete_bound, lambda_b, features="nonnegative"))
    assert below < base - 1e-5
    assert above == pytest.approx(base, abs=1e-8)


# --- Corollary 4 and its relatives


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 400), st.integers(2, 5)), min_size=1, max_size=4, unique_by=lambda g: g[0]),
    st.sampled_from([0.0, 1e-3, 0.1, INF]),
)
def test_corollary_4(groups: list[tuple[int, int]], lambda_b: float) -> None:
    """Classes of n_k samples merge at sqrt(n_k) / N whatever the bias costs and whoever else is there."""
    counts = np.concatenate([[n] * k for n, k in groups])
    t = thresholds(Problem(counts, 1.0, lambda_b))
    np.testing.assert_allclose(t.merge, np.sqrt(counts) / counts.sum(), rtol=1e-13)
    # every class vanishes no earlier than it merges, the largest with everything, and complete collapse is
    # Thm 3's
    assert np.all(t.vanish >= t.merge * (1 - 1e-12))
    assert t.complete == pytest.approx(np.sqrt(counts.max()) / counts.sum(), rel=1e-9)


REMEDIES = [  # the table of remedies: loss, feature mass, factor on sqrt(n_k) / N for n = (60, 60, 20, 20)
    (Loss(class_weights=[1, 1, 3, 3]), None, 160 / 240 * np.array([1, 1, 3, 3])),
    (Loss(offsets=[1, 1, -1, -1]), None, np.ones(4)),
    (Loss(scales=[2, 2, 0.5, 0.5]), None, np.array([2, 2, 0.5, 0.5])),
    (Loss(temperatures=[2, 2, 0.5, 0.5]), None, np.array([2, 2, 0.5, 0.5])),
    (Loss(smoothing=0.3), None, np.full(4, 0.7)),
    # oversampling three times, the penalty repeated too: sqrt(s n_B) / (k_A n_A + s k_B n_B)
    (Loss(class_weights=[1, 1, 3, 3]), [60, 60, 60, 60], 160 / 240 * np.sqrt([1, 1, 3, 3])),
]


@pytest.mark.parametrize(("loss", "mass", "factor"), REMEDIES)
def test_remedies_move_the_merge_threshold(loss: Loss, mass: list[float] | None, factor: NDArray) -> None:
    counts = np.array([60, 60, 20, 20])
    t = thresholds(Problem(counts, 1.0, 0.1, loss, mass))
    np.testing.assert_allclose(t.merge, factor * np.sqrt(counts) / 160, rtol=1e-13)


def test_weights_inverse_to_the_root_of_the_count_merge_all_classes_at_once() -> None:
    counts = np.repeat([500, 100, 20], 3)
    t = thresholds(Problem(counts, 1.0, 0.1, Loss(class_weights=counts**-0.5)))
    assert np.ptp(t.merge) < 1e-15


# --- many at once, and one class at a time


LONG_TAILS = {  # gaps of up to a factor of 4 between neighbours, and a majority that the bias alone carries
    "steps": Problem([2956] * 5 + [2021] * 2 + [2018, 1902, 1490] + [782] * 3 + [492] + [121] * 2, 1.0, 1e-4),
    "free bias": Problem([5000, 1200, 1200, 300, 60, 60, 9], 1.0, 0.0),
    "carried by the bias": Problem([455, 234, 7, 2], 1.0, 1e-6),
    "many": Problem("exp:500:5:30", 1.0, 0.02),
    "temperatures": Problem(
        [700, 500, 210, 100, 60, 12], 1.0, 0.02, Loss(temperatures=[0.8, 0.9, 1, 1.2, 1.1, 1.4], smoothing=0.1)
    ),
    "no bias": Problem([2900, 2900, 700, 150, 150, 12, 3], 1.0, INF),
    "dear bias": Problem("exp:500:5:12", 1.0, 0.3),
    "remedies": Problem(
        [900, 900, 90, 90, 9], 1.0, 0.01, Loss([1, 1, 3, 3, 9], np.log([9, 9, 3, 3, 1]), [1, 1, 0.7, 0.7, 0.4])
    ),
}


@pytest.mark.parametrize("name", LONG_TAILS)
def test_the_path_meets_what_each_class_finds_by_itself(name: str) -> None:
    """Newton along lambda_z on everything at once, against nested roots: bias, column, prediction."""
    problem = LONG_TAILS[name].replace(features="nonnegative")
    t, c = known(problem), clusters_of(problem)
    at_rest = c.column_norms(balanced_bias(c, partial(without_columns, c))[1].P)
    later = np.flatnonzero(at_rest < at_rest.max())
    for j in later[:: max(1, later.size // 5)]:
        k = int(np.argmax(c.labels == j))
        value, exact = column_path._alone(c, int(j), float(at_rest.max()), float(at_rest[j]))
        assert t.vanish[k] == pytest.approx(value, rel=1e-11, nan_ok=True)
        assert t.exact[k] == exact


def test_a_class_that_shares_above_its_own_threshold_is_not_exact() -> None:
    """The rarest class is alive at 3.4 times its own value, with the class that comes to life there."""
    problem = Problem("exp:500:5:18", 1.0, 0.02, features="nonnegative")
    t = thresholds(problem)
    at = float(t.vanish[8]) * 0.9999
    assert solve(problem.replace(lambda_z=at)).class_states[-1] != "vanished"
    assert at > 3.3 * t.vanish[-1]
    assert at < t.vanish_bound[-1]
    assert t.exact.tolist() == [True] * 8 + [False] * 10


@pytest.mark.parametrize("name", [*CASES, *LONG_TAILS])
def test_the_bias_alone_by_one_softmax_is_the_one_that_balances_all_columns(name: str) -> None:
    """Newton on the log-probabilities of one column, against Newton on the bias with every column as it may come."""
    c = clusters_of((CASES | LONG_TAILS)[name])
    wanted, at = balanced_bias(c, partial(without_columns, c))
    b, P = resting(c)
    np.testing.assert_allclose(b, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(P, at.P, rtol=1e-12)


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_many_problems_at_once_are_those_one_by_one(features: FeatureModel) -> None:
    problems = [p.replace(features=features) for p in (*CASES.values(), *LONG_TAILS.values())]
    for problem, together in zip(problems, thresholds_of_many(problems), strict=True):
        alone = known(problem)
        for name in ("merge", "vanish", "complete", "complete_bound", "exact"):
            np.testing.assert_allclose(getattr(together, name), getattr(alone, name), rtol=1e-11)


# --- undefined values, invariance, cost


@pytest.mark.parametrize("name", CASES)
def test_complete_collapse_by_itself_is_the_last_of_all_transitions(name: str) -> None:
    problem = CASES[name].replace(features="signed")
    assert complete_collapse(problem) == pytest.approx(known(problem).complete, rel=1e-12)


@pytest.mark.parametrize("bias", [0.0, 0.01, INF])
@pytest.mark.parametrize("pairs", [False, True])
def test_complete_collapse_of_many_clusters_is_the_norm_of_the_full_residual(bias: float, pairs: bool) -> None:
    """Beyond 200 clusters no matrix of that size is built; the oracle is R of (K, K), class by class."""
    n = np.arange(11, 251).repeat(2 if pairs else 1)
    scales, offsets = 1 + 0.3 * np.sin(n), 0.2 * np.cos(n)
    p = Problem(n, 1.0, bias, Loss(offsets=offsets, scales=scales, smoothing=0.1))
    c = clusters_of(p)
    b = resting(c)[0][c.labels]
    u = scales * b + offsets
    P = np.exp(u) / np.exp(u).sum()
    if 0 < bias < INF:
        np.testing.assert_allclose(scales * (0.9 * p.loss_share + 0.1 / n.size - P), bias * b, atol=1e-12)
    R = scales[:, None] * (0.9 * np.eye(n.size) + 0.1 / n.size - P[:, None]) * (p.loss_share / np.sqrt(n))
    assert complete_collapse(p) == pytest.approx(np.linalg.norm(R, 2), rel=1e-13)


def test_transitions_that_coincide_to_rounding_are_found() -> None:
    scales = np.repeat([0.625, 2.5], 5) ** 0.5  # sqrt(n_k) delta_k is the same for all
    t = thresholds(Problem("200x5,50x5", 1.0, 0.0, Loss(scales=scales)))
    assert (t.merge, t.vanish, t.complete) == (pytest.approx(0.8**0.5 / 100),) * 3


def test_what_does_not_exist_is_nan() -> None:
    assert np.isnan(thresholds(Problem([50, 20, 10], 1.0, 0.1)).merge).all()
    t = thresholds(Problem([50, 20, 20], 1.0, 0.1, features="nonnegative"))
    assert np.isnan(t.merge).all()
    assert np.isfinite(t.vanish).all()


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_order_of_classes_and_own_lambda_z_do_not_matter(features: FeatureModel) -> None:
    counts = np.array([80, 10, 30, 80, 30, 10])
    t = thresholds(Problem(counts, 1.0, 0.05, features=features))
    turn = np.array([5, 3, 0, 1, 4, 2])
    u = thresholds(Problem(counts[turn], 0.01, 0.05, features=features))
    np.testing.assert_allclose(u.merge, t.merge[turn], rtol=1e-12)
    np.testing.assert_allclose(u.vanish, t.vanish[turn], rtol=1e-9)
    assert u.complete == pytest.approx(t.complete, rel=1e-12)


def test_a_thousand_classes_in_two_sizes_have_the_thresholds_of_ten() -> None:
    """Per cluster: with the loss shares and masses of ten classes, 500 of each size merge in step with the counts."""
    few, many = (thresholds(Problem([500] * k + [100] * k, 1.0)) for k in (5, 500))
    np.testing.assert_allclose(many.merge[[0, -1]], few.merge[[0, -1]] / 100, rtol=1e-12)
    assert np.unique(many.vanish).size == 2


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
@pytest.mark.parametrize(
    ("counts", "lambda_b"),
    [
        *(((100, 50, 10), lambda_b) for lambda_b in (1e-300, 1e-100, 1e-20, 1e-14, 1e-12)),
        *(
            (counts, lambda_b)
            for counts in ((500, 500, 100, 100), (400, 90, 30, 20, 5))
            for lambda_b in (1e-300, 1e-12)
        ),
    ],
)
def test_a_bias_that_costs_next_to_nothing_is_a_free_one(
    counts: tuple[int, ...], lambda_b: float, features: FeatureModel
) -> None:
    free = known(Problem(counts, 1.0, 0.0, features=features))
    cheap = thresholds(Problem(counts, 1.0, lambda_b, features=features))
    np.testing.assert_allclose(cheap.vanish, free.vanish, rtol=1e-9)
    assert cheap.complete == pytest.approx(free.complete, rel=1e-9)


def test_results_cannot_be_written_to() -> None:
    t = thresholds(Problem([20, 20, 10], 1.0))
    with pytest.raises(ValueError, match="read-only"):
        t.vanish[0] = 0.0


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (lambda x: x**2 - 2, 0.0, 2.0),
        (lambda x: np.log(x / 3e-9), 1e-12, 10.0),
        (lambda x: np.tanh(1e4 * (x - 0.3)), 0.0, 1.0),
        (lambda x: np.exp(50 * (x - 7)) - 1, 1.0, 20.0),
        (lambda x: 1 / x - 1e5, 0.0, 1.0),
    ],
)
def test_many_roots_are_those_of_scipy(function, low, high):
    with np.errstate(divide="ignore"):
        expected = root_between(lambda x: function(np.float64(x)), low, high)  # brentq
        found = roots_between(lambda x: np.array([function(x[0])]), np.array([low]), np.array([high]))
    assert abs(function(expected)) <= 1e-8 * max(abs(function(1.1 * expected)), abs(function(0.9 * expected)))
    assert found[0] == pytest.approx(expected, rel=1e-14)


def test_root_at_an_end_and_no_root():
    assert root_between(lambda x: x, 0.0, 1.0) == 0.0
    assert root_between(lambda x: x - 1, 0.0, 1.0) == 1.0
    with pytest.raises(ValueError, match="no change of sign between 1 and 2"):
        root_between(lambda x: x, 1.0, 2.0)


@pytest.mark.parametrize("small", [1, 5])
def test_counts_over_fifteen_decades_are_refused_in_one_sentence(small: int) -> None:
    with pytest.raises(ArithmeticError, match="the bias did not converge; the problem may be scaled too badly"):
        cs.thresholds(cs.Problem([10**15, small], 1e-3, 0.0, features="nonnegative"))
