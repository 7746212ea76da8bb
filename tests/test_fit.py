"""Fit to theory: networks built by hand from closed forms, which share no code with the solver behind the fit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import collapsar as cs
from collapsar.diagnose.agreement import agreement_words, effective_penalties, head_forces
from collapsar.diagnose.fit import distance, fit_to_theory
from collapsar.diagnose.measurement import Pass, measure
from collapsar.diagnose.readings import lambda_z_from_predictions, lambda_z_from_residual
from collapsar.metrics.balance import balance_penalties
from networks import RNG, measured, nonnegative_network, samples, signed_network
from problems import INF, PROBLEMS, naive_loss


@pytest.mark.parametrize("lambda_b", [0.02, INF, 0.0])
def test_the_papers_optimum_is_recognised_with_all_its_penalties(lambda_b):
    counts, W, H, b = signed_network(lambda_b=lambda_b)
    m = measured(counts, W, H, None if lambda_b == INF else b)
    forces = head_forces(m)
    assert forces.relative_gradient < 1e-8  # the square root of the rounding in the singular value that should be 0
    assert forces.fitted_w == pytest.approx(0.01, rel=1e-9)
    assert forces.fitted_b == (INF if lambda_b == INF else pytest.approx(lambda_b, abs=1e-9))
    found = effective_penalties(m, "signed", lambda_b=lambda_b)
    assert found.lambda_z == pytest.approx(0.0027, rel=1e-9)
    assert found.lambda_h == pytest.approx(0.0027**2 / 0.01, rel=1e-9)
    np.testing.assert_allclose(found.by_class, 0.0027, rtol=1e-9)
    assert found.by_residual == pytest.approx(0.0027, rel=1e-9)
    assert found.agree
    problem = cs.Problem(counts, found.lambda_z, lambda_b)
    fit = fit_to_theory(problem, m.Z, m.b, weight=W, class_means=H, split=(found.lambda_w, found.lambda_h))
    here = fit.models["signed"]
    assert fit.follows == "signed"
    assert max(here.distance.Z, here.distance.Z_max, here.classifier_gram, here.feature_gram, here.excess) < 1e-4
    assert fit.models["nonnegative"].distance.Z > 0.03  # the printed distance between the models is .042
    assert fit.block_residual_z < 1e-12


def test_hand_built_relu_network_follows_the_nonnegative_model():
    counts, W, H = nonnegative_network([300, 300, 100, 100, 40], 0.004)
    m = measured(counts, W, H)
    assert m.nonnegative
    found = effective_penalties(m, "nonnegative")
    assert found.lambda_w == pytest.approx(0.1, rel=1e-9)
    assert found.lambda_z == pytest.approx(0.004, rel=1e-9)
    np.testing.assert_allclose(found.by_class, 0.004, rtol=1e-9)
    fit = fit_to_theory(
        cs.Problem(counts, 0.004), m.Z, m.b, weight=W, class_means=H, split=(found.lambda_w, found.lambda_h)
    )
    assert fit.follows == "nonnegative"
    here = fit.models["nonnegative"]
    assert max(here.distance.Z, here.classifier_gram, here.feature_gram) < 1e-4
    assert fit.models["signed"].distance.Z > 0.05


def test_a_vanished_class_bounds_the_penalty_from_below():
    counts, W, H = nonnegative_network([300, 300, 300, 12], 0.005)
    assert not W[:, 3].any()
    found = effective_penalties(measured(counts, W, H), "nonnegative")
    assert found.tells.tolist() == [True, True, True, False]
    assert found.by_class[3] < 0.005
    assert found.from_predictions == pytest.approx(0.005, rel=1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_readings_hold_at_the_optimum_of_every_remedy(name, features):
    p = PROBLEMS[name].replace(features=features)
    s = cs.solve(p, 1e-12, throw=False)
    states = np.array(s.class_states)
    values = lambda_z_from_predictions(p, s.Z, s.b, features)
    apart = (states == "separated") & np.isfinite(values)
    # the gap bounds the residual's error by sqrt(2 gap max q / m), some 1e-6 of lambda_z
    np.testing.assert_allclose(values[apart], p.lambda_z, rtol=2e-4)
    assert (values[~apart & np.isfinite(values)] <= p.lambda_z * 1.0002).all()
    if (states != "vanished").any():
        assert lambda_z_from_residual(p, s.Z, s.b) == pytest.approx(p.lambda_z, rel=2e-4)


@pytest.mark.parametrize("name", ["paper-apart", "vs-loss", "ldt-smoothed", "weighted"])
def test_the_head_gradient_is_that_of_the_loss(name):
    """Central differences of a loss written class by class."""
    p = PROBLEMS[name].replace(class_counts=[3] * 5 + [1] * (PROBLEMS[name].num_classes - 5), lambda_b=0.0)
    K, d = p.num_classes, 3
    H, W, b = RNG(2).normal(size=(K, d)), RNG(3).normal(size=(K, d)), RNG(4).normal(size=K)
    m = measure(*samples(p.class_counts, H), W, b, p.loss)
    step = 1e-6

    def loss(W, b):
        return naive_loss(p, W @ H.T, b)

    assert m.loss == pytest.approx(loss(W, b), rel=1e-12)
    for l, j in ((0, 0), (K - 1, 2), (2, 1)):
        E = np.zeros_like(W)
        E[l, j] = step
        assert m.weight_gradient[l, j] == pytest.approx((loss(W + E, b) - loss(W - E, b)) / (2 * step), abs=1e-8)
        e = np.zeros(K)
        e[l] = step
        assert m.bias_gradient[l] == pytest.approx((loss(W, b + e) - loss(W, b - e)) / (2 * step), abs=1e-8)


def test_batches_add_up_and_measure_what_loops_measure():
    counts, W, H, b = signed_network(2, 2, 30, 10, dim=5)
    X, y = samples(counts, H, noise=0.3)
    sums = Pass(W, b)
    order = RNG(5).permutation(len(y))
    for part in np.array_split(order, 7):
        sums.add(X[part].astype(np.float32), y[part])
    m = sums.result({"nc1_uniform": 0.5})
    means = np.array([X[y == k].mean(axis=0) for k in range(4)])
    np.testing.assert_allclose(m.class_means, means, atol=1e-6)
    np.testing.assert_allclose(m.Z, W @ means.T, atol=1e-5)
    right = [np.mean((X[y == k] @ W.T + b).argmax(axis=1) == k) for k in range(4)]
    np.testing.assert_allclose(m.accuracies, right)
    spread = sum(((X[y == k] - means[k]) ** 2).sum() for k in range(4)) / (X**2).sum()
    assert m.within_share == pytest.approx(spread, rel=1e-5)
    assert m.metrics == {"nc1_uniform": 0.5}
    assert not m.nonnegative


def test_a_head_that_still_moves_is_not_at_rest():
    counts, W, H, b = signed_network()
    assert head_forces(measured(counts, 3 * W, H, b), 0.01, 0.02).relative_gradient > 0.3
    assert head_forces(measured(counts, W, H, b), 0.02, 0.02).relative_gradient == pytest.approx(0.5, abs=0.1)
    random = measured(counts, RNG(0).normal(size=W.shape), H, b)
    assert not head_forces(random).relative_gradient < 0.3
    assert math.isnan(head_forces(measured(counts, 0 * W, H)).fitted_w)
    assert math.isnan(head_forces(measured(counts, 0 * W, H), 0.01).relative_gradient)


def test_two_readings_that_disagree_are_told_with_what_it_means():
    counts, W, H, b = signed_network()
    agree = effective_penalties(measured(counts, W, H, b), "signed", 0.01, 0.02)
    assert "they agree" in agreement_words(agree, at_rest=True)
    assert "neither is reliable yet" in agreement_words(agree, at_rest=False)
    # longer features, the same predictions: by the norms the features are cheap, by the predictions they are not
    m = measured(counts, W / 2, 2 * H, b)
    weak = effective_penalties(m, "signed", 0.01, 0.02)
    assert weak.lambda_z == pytest.approx(0.0027 / 4, rel=1e-9)
    assert weak.ratio == pytest.approx(4, rel=1e-9)
    assert weak.agree is False
    assert "look safer than they are" in agreement_words(weak, at_rest=True)
    strong = effective_penalties(measured(counts, 2 * W, H / 2, b), "signed", 0.01, 0.02)
    assert strong.ratio == pytest.approx(1 / 4, rel=1e-9)
    assert "more at risk than they are" in agreement_words(strong, at_rest=True)


def test_single_classes_off_the_others_are_told():
    counts, W, H = nonnegative_network([100] * 6, 0.004)
    H = H.copy()
    H[0] *= 0.55
    found = effective_penalties(measured(counts, W, H), "nonnegative", 0.1)
    assert found.spread > 1.5
    assert found.agree is False
    assert "no single penalty" in agreement_words(found, at_rest=True)


def test_a_free_bias_is_compared_up_to_a_shift():
    s = cs.solve(cs.Problem("50x3,10x3", 0.004, 0.0))
    assert distance(s, s.Z, s.b + 7.0).b == pytest.approx(0.0, abs=1e-9)
    fixed = cs.solve(cs.Problem("50x3,10x3", 0.004, 0.02))
    assert distance(fixed, fixed.Z, fixed.b + 7.0).b > 1


def test_a_bias_that_is_zero_to_the_solver_has_no_relative_distance():
    """Weights 1/n make all classes equal; what is left of the optimum's bias was 1e-7, and 31356062 % of it said."""
    counts = np.repeat([100, 20], 5)
    equal = cs.Loss(class_weights=1 / counts)
    s = cs.solve(cs.Problem.from_normalized(counts, lambda_w=1.5, norm=32**0.5, lambda_b=0.0, loss=equal), 1e-7)
    assert s.quotient.num_clusters == 2
    near = replace(s, blocks=replace(s.blocks, b=np.array([-1e-4, 1e-4])))
    found = distance(near, s.Z, np.linspace(-0.03, 0.03, 10))
    assert np.isnan([found.b, found.b_max]).all()
    assert abs(found.Z) < 1e-9


def test_zero_optimum_has_no_relative_distance_but_an_absolute_one():
    fit = fit_to_theory(cs.Problem("20x4", 1.0), 0.1 * np.eye(4), np.zeros(4))
    assert math.isnan(fit.models["signed"].distance.Z)
    assert fit.models["signed"].away == pytest.approx(0.1 * math.sqrt(3))  # what is added to all logits is not counted
    assert fit.follows is None


def test_excess_and_blocks_and_grams_against_their_definitions():
    p = cs.Problem("40x2,10x3", 0.01, 0.05)
    s = cs.solve(p, 1e-11)
    noise = RNG(0).normal(size=(5, 5))
    noise -= noise.mean(axis=0)  # neither what no loss sees nor an offset, which the bias would take up
    noise -= (noise @ p.class_counts / p.num_samples)[:, None]
    Z = s.Z + 0.1 * noise
    fit = fit_to_theory(p, Z, s.b)
    price = naive_loss(p, Z, s.b) + 0.01 * np.linalg.norm(Z * np.sqrt(p.class_counts), "nuc")
    assert fit.models["signed"].excess == pytest.approx(price / s.certificate.primal - 1, rel=1e-6)
    about = Z - (Z @ p.class_counts / p.num_samples)[:, None]  # the mean over samples, which the bias takes up
    block = np.zeros((5, 5))  # the mean over all permutations inside clusters, by brute force
    from itertools import permutations

    turns = [(*a, *(2 + np.array(c))) for a in permutations(range(2)) for c in permutations(range(3))]
    for turn in turns:
        block += about[np.ix_(turn, turn)] / len(turns)
    assert fit.block_residual_z == pytest.approx(np.linalg.norm(about - block) / np.linalg.norm(about), rel=1e-9)
    W, H, _ = s.factors(6, lambda_w=0.2)
    split = (0.2, 0.01**2 / 0.2)
    near = fit_to_theory(p, s.Z, s.b, weight=1.1 * W.T, class_means=H.T, split=split).models["signed"]
    assert (near.classifier_gram, near.feature_gram) == pytest.approx((0.21, 0.0), abs=1e-9)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: measure(np.ones((3, 2)), [0, 1], np.ones((2, 2))), "`labels`.*one per row"),
        (lambda: measure(np.ones((2, 3)), [0, 1], np.ones((2, 2))), "`features`.*shape"),
        (lambda: measure(np.ones((2, 2)), [0.0, 1.0], np.ones((2, 2))), "`labels` must be whole"),
        (lambda: measure(np.ones((2, 2)), [0, 7], np.ones((2, 2))), r"\[0, 2\).*got 7"),
        (lambda: measure(np.array([[1, np.nan], [0, 0]]), [0, 1], np.ones((2, 2))), "`features` must be finite"),
        (lambda: measure(np.ones((2, 2)), [0, 1], np.full((2, 2), np.inf)), "`weight` must be finite"),
        (lambda: measure(np.ones((2, 2)), [0, 1], np.ones((2, 2)), [1.0]), "`bias`"),
        (lambda: measure(np.ones((2, 2)), [0, 1], np.ones((1, 2))), "K >= 2"),
        (lambda: measure(np.ones((0, 2)), np.zeros(0, int), np.ones((2, 2))), "at least one sample"),
        (lambda: Pass(np.ones((20_001, 2))), "20001 classes"),
        (lambda: balance_penalties(np.ones((2, 2)), np.ones((2, 2)), np.ones(2), 0.0), "`lambda_w`"),
        (lambda: balance_penalties(np.ones((2, 2)), np.ones((3, 2)), np.ones(2), 1.0), "shapes"),
        (lambda: distance(cs.solve(cs.Problem([5, 5], 0.1)), np.ones((3, 3)), np.ones(2)), "`Z` must have shape"),
        (lambda: fit_to_theory(cs.Problem([5, 5], 0.1), np.eye(2), np.ones(2)), "`b` must be zero"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
