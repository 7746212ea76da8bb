"""Lost classes, and verdicts that depend on the logits alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collapsar as cs
from collapsar.core.known import KnownTraining
from collapsar.diagnose.diagnosis import Diagnosis, diagnose_measurement
from collapsar.diagnose.measurement import measure, without_offset
from networks import RNG, nonnegative_network, samples, signed_network

COUNTS = np.array([40, 40, 8, 8])


def diagonal(b=(0.0, 0.0, 0.0, 0.0), scale=3.0, known: KnownTraining | None = None) -> Diagnosis:
    """Four classes, each with a direction of its own, and a bias."""
    X, y = samples(COUNTS, scale * np.eye(4, 8), noise=1e-3)
    return diagnose_measurement(measure(X, y, scale * np.eye(4, 8), np.array(b)), known)


@pytest.mark.parametrize("known", [None, KnownTraining(lambda_w=5e-4, lambda_b=5e-4)])
def test_a_class_that_its_bias_shuts_out_is_lost_and_named_with_the_cure(known):
    d = diagonal((0.0, 0.0, 0.0, -200.0), known=known)
    assert d.separation.states == ("separated",) * 4
    assert (d.lost, d.num_collapsed, d.num_gone) == ((3,), 0, 1)
    (lost,) = d.standings.lost
    assert (lost.reason, lost.nats) == ("outvoted", pytest.approx(200 - 9, abs=0.02))
    assert d.headline.startswith("1 of 4 classes is lost, outvoted on every sample of its own: 3 to ")
    assert "Its bias shuts it out: it is 200 nats below" in d.words[0]
    assert json.loads(d.to_json())["num_lost"] == 1


def test_a_class_outvoted_by_the_prior_is_given_the_prior_correction():
    d = diagonal((10.0, 0.0, 0.0, 0.0))
    assert d.lost == (1, 2, 3)
    assert d.headline == "3 of 4 classes are lost, outvoted on every sample of their own: 1, 2 and 3 to 0."
    assert "1 nats" in d.words[0]
    assert "Subtracting log(n_k/N) from the scores is not enough" in d.words[0]  # as frequent as class 0
    assert "logit adjustment" in d.words[1]


def test_a_merged_class_that_is_taken_for_its_sibling_needs_room_not_a_correction():
    W, H, b = signed_network(lambda_z=0.0037)[1:]
    X, y = samples(np.repeat([500, 100], 5), H)
    nudged = b + np.where(np.arange(10) == 5, 0.01, 0)
    d = diagnose_measurement(measure(X, y, W, nudged))
    assert d.separation.merged_classes == (5, 6, 7, 8, 9)
    lost = [c for c in d.standings.lost if c.index in (6, 7, 8, 9)]
    assert {c.reason for c in lost} == {"merged"}
    text = " ".join(d.words)
    assert "No correction of the scores separates them" in text
    assert "logit adjustment" not in text


def test_a_class_that_the_bias_alone_decides_right_is_not_called_lost():
    s = cs.solve(cs.Problem([300, 10], 0.004, 0.0))  # the large class has hardly any evidence: n-weighted, Z sums to 0
    W, H, b = s.factors(4, lambda_w=0.1)
    X, y = samples(np.array([300, 10]), H.T)
    d = diagnose_measurement(measure(X, y, W.T, b))
    assert d.separation.states == ("vanished", "separated")
    assert (d.lost, d.standings.carried, d.num_gone) == ((), (0,), 0)
    assert d.headline == "1 of 2 classes is separated; the bias alone decides 0 right."
    assert any("0 is without evidence of its own, yet not lost" in sentence for sentence in d.words)


@pytest.mark.parametrize("scale", [6, 7, 10, 20, 30, 100])
@pytest.mark.parametrize("decay", [None, 5e-4])
def test_a_saturated_head_is_read_as_far_as_it_can_be(scale, decay):
    d = diagonal(scale=scale, known=KnownTraining(lambda_w=decay, lambda_b=decay))
    assert d.headline == "All 4 classes are separated."
    said = any("The softmax is saturated" in note for note in d.notes)
    assert said == (decay is None)
    assert (d.effective is None) == (decay is None)


def verdicts(d: Diagnosis):
    prediction = None if d.prediction is None else (d.prediction.features, d.prediction.seen)
    follows = None if d.fit is None else d.fit.follows
    return d.headline, d.separation.states, d.lost, d.num_gone, prediction, follows


CASES = {
    "signed, apart": (signed_network(), {}),
    "signed, merged": (signed_network(lambda_z=0.0037), {}),
    "signed, vanished": (signed_network(lambda_z=0.0045), {}),
    "nonnegative, vanished": (
        (*nonnegative_network([300, 300, 100, 100, 5], 0.012, dim=9), 0.001 * np.arange(5.0)),
        {},
    ),
    "random features": (
        (np.full(6, 30), RNG(3).normal(size=(6, 12)), 2 * RNG(4).normal(size=(6, 12)), np.zeros(6)),
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([0.1, 1.0, 100.0, 1e4]))
def test_an_offset_of_all_features_changes_no_verdict(case, seed, size):
    (counts, W, H, b), _ = CASES[case]
    rng = RNG(seed)
    c = rng.normal(size=W.shape[1])
    c *= size / np.linalg.norm(c)
    X, y = samples(counts, H)
    here = diagnose_measurement(measure(X, y, W, b))
    there = diagnose_measurement(measure(X + c, y, W, b - W @ c))
    assert there.separation.states == here.separation.states
    np.testing.assert_allclose(there.separation.relative_norms, here.separation.relative_norms, atol=1e-6)
    np.testing.assert_allclose(there.separation.nearest_separation, here.separation.nearest_separation, atol=1e-6)
    assert (there.headline, there.lost) == (here.headline, here.lost)
    assert there.measurement.nonnegative == here.measurement.nonnegative


@pytest.mark.parametrize("case", CASES)
def test_a_large_offset_changes_neither_prediction_nor_distance(case):
    (counts, W, H, b), _ = CASES[case]
    X, y = samples(counts, H)
    c = 100 * RNG(5).normal(size=W.shape[1])
    known = KnownTraining(0.01, 0.004**2 / 0.01, 0.02)
    here, there = (diagnose_measurement(measure(X + s * c, y, W, b - s * (W @ c)), known) for s in (0, 1))
    assert verdicts(there) == verdicts(here)
    assert here.fit is not None
    assert there.fit is not None
    near, far = here.fit.models["signed"], there.fit.models["signed"]
    assert far.away == pytest.approx(near.away, rel=0.1, abs=0.1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_rotations_and_constants_on_all_logits_change_no_verdict(seed):
    counts, W, H, b = signed_network(lambda_z=0.0037)
    X, y = samples(counts, H)
    here = diagnose_measurement(measure(X, y, W, b))
    rng = RNG(seed)
    turn = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    assert verdicts(diagnose_measurement(measure(X @ turn, y, W @ turn, b))) == verdicts(here)
    common = 10 ** rng.uniform(-2, 2) * rng.normal(size=16)  # adds common'h + 3 to every logit of a sample
    there = diagnose_measurement(measure(X, y, W + common, b + 3))
    assert (there.separation.states, there.headline, there.lost) == (here.separation.states, here.headline, here.lost)


def test_the_moved_measurement_is_the_measurement_of_moved_features():
    counts, W, H, b = signed_network()
    X, y = samples(counts, H, noise=0.01)
    c = 50 * RNG(0).normal(size=16)
    moved = without_offset(measure(X + c, y, W, b - W @ c))
    origin = (X + c).mean(axis=0)
    again = measure(X + c - origin, y, W, b - W @ c + W @ origin)
    for name in ("class_means", "weight_gradient", "bias_gradient", "bias"):
        np.testing.assert_allclose(getattr(moved, name), getattr(again, name), atol=1e-9)
    assert moved.energy == pytest.approx(again.energy, rel=1e-6)
    assert replace(moved, energy=0.0).num_classes == 10
