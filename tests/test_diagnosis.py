"""The diagnosis of networks whose state is known by construction."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

import collapsar as cs
from collapsar.advise.sources import problem_of_diagnosis
from collapsar.core.known import HeadNorm, KnownTraining
from collapsar.diagnose.agreement import AT_REST
from collapsar.diagnose.diagnosis import diagnose_measurement
from collapsar.diagnose.frozen import frozen_head, frozen_of
from collapsar.diagnose.measurement import MAX_CLASSES, MAX_TABLE, measure
from collapsar.diagnose.prediction import as_measured
from collapsar.diagnose.readers import diagnose
from collapsar.diagnose.record import Diagnosis
from collapsar.diagnose.words import FAR
from collapsar.metrics.separation import class_separation
from collapsar.report import diagnosis_page
from networks import RNG, measured, nonnegative_network, samples, signed_network
from problems import PROBLEMS


def paper(lambda_z: float, *, known: bool = True, noise: float = 0.0) -> Diagnosis:
    """The optimum at (5, 5, 500, 100), lambda_b = .02: merges at .003333, vanishes at .003983, all gone at .007454."""
    counts, W, H, b = signed_network(lambda_z=lambda_z)
    given = KnownTraining(0.01, lambda_z**2 / 0.01, 0.02) if known else None
    return diagnose_measurement(measured(counts, W, H, b, noise), given)


@pytest.mark.parametrize(
    ("lambda_z", "small", "headline"),
    [
        (0.0027, "separated", "All 10 classes are separated."),
        (0.0037, "merged", "5 of 10 classes have collapsed: 5, 6, 7, 8 and 9 are merged into one."),
        (0.0045, "vanished", "5 of 10 classes have collapsed: 5, 6, 7, 8 and 9 have vanished."),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_the_papers_three_states_are_found_and_predicted(lambda_z, small, headline, known):
    d = paper(lambda_z, known=known)
    assert d.separation.states == ("separated",) * 5 + (small,) * 5
    assert d.headline == headline
    assert d.num_collapsed == (0 if small == "separated" else 5)
    assert d.at_rest
    assert d.effective is not None
    assert d.effective.lambda_z == pytest.approx(lambda_z, rel=1e-6)
    assert d.effective.agree
    assert d.prediction is not None
    assert d.prediction.source == ("as trained" if known else "effective")
    assert d.prediction.features == "signed"
    assert d.prediction.states == d.prediction.seen == d.separation.states
    assert d.prediction.merge[9] == pytest.approx(10 / 3000, rel=1e-9)
    assert d.prediction.edge[9] == pytest.approx(
        d.prediction.merge[9], rel=1e-15
    )  # by two roads: the last bit may differ
    assert d.fit is not None
    assert d.fit.follows == "signed"
    assert d.fit.models["signed"].distance.Z < 1e-3
    text = " ".join(d.words)
    assert "as measured, for every class" in text
    assert "The head is at rest" in text
    share = lambda_z / (10 / 3000)
    assert f"{share:.2f} times that" in text if share > 1 else "81 % of it" in text


def test_classes_alone_in_their_size_have_an_edge_where_they_have_no_transition():
    counts = np.array([120, 91, 69, 52, 40, 30, 23, 17, 13, 10])
    problem = cs.Problem(counts, 0.008, 0.02)
    W, H, b = cs.solve(problem).factors(10, lambda_w=0.1)
    found = diagnose_measurement(measured(counts, W.T, H.T, b), KnownTraining(0.1, 0.008**2 / 0.1, 0.02))
    assert found.prediction is not None
    assert np.isnan(found.prediction.merge).all()
    np.testing.assert_allclose(found.prediction.edge[1:], np.sqrt(counts[1:]) / counts.sum(), rtol=1e-9)
    assert found.prediction.edge[0] == found.prediction.complete  # nothing outlives everything
    lost = np.flatnonzero(found.prediction.edge < 0.008)
    assert lost.tolist() == [8, 9] == list(found.separation.merged_classes)
    assert (
        "9 becomes indistinguishable first, above about lambda_z = 0.006801; this network is at 1.18 times that."
        in found.words
    )


def test_complete_collapse_needs_the_penalties_to_be_predicted():
    counts, W, H, b = signed_network(lambda_z=0.0045)
    still = 1e-6 * H  # a head that has sunk to zero, its bias at the log-odds that the penalty allows
    m = measured(counts, 0 * W, still, b)
    known = diagnose_measurement(m, KnownTraining(0.09, 0.0008, 0.02))
    assert known.headline == "All 10 classes have vanished."
    assert known.effective is None
    assert known.fit_source == "as trained"
    assert known.prediction is not None
    assert set(known.prediction.states) == {"vanished"}
    blind = diagnose_measurement(m)
    assert blind.prediction is None
    assert blind.fit is None
    assert any("nothing is predicted" in note for note in blind.notes)


def test_a_zero_head_under_a_pull_is_not_at_rest_but_a_sunken_one_is():
    counts, W, H, _ = signed_network(lambda_z=0.0045)
    pulled = diagnose_measurement(measured(counts, 0 * W, H), KnownTraining(lambda_w=0.01))
    assert pulled.headline == "All 10 classes have vanished."
    assert not pulled.at_rest
    sunken = diagnose_measurement(measured(counts, 1e-5 * W, 0 * H), KnownTraining(lambda_w=0.01))
    assert sunken.at_rest
    assert any("the head stays collapsed" in sentence for sentence in sunken.words)


def test_a_network_that_still_moves_is_told_to_train_on():
    counts, W, H, b = signed_network()
    d = diagnose_measurement(measured(counts, 2.5 * W, H, b), KnownTraining(0.01, 0.0027**2 / 0.01, 0.02))
    assert not d.at_rest
    assert any(sentence.startswith("The head is not at rest") for sentence in d.words)
    assert any("mean little until the head is at rest" in sentence for sentence in d.words)
    assert not any("they agree" in sentence for sentence in d.words)


@pytest.mark.parametrize(("lambda_z", "stuck"), [(0.004, (2,)), (0.0185, ())])  # class 2 vanishes at .0204
def test_classes_that_no_penalty_holds_are_named_as_stuck(lambda_z, stuck):
    """A dead feature stays dead under any penalty: the head rests, the norms agree, and it is no optimum."""
    counts, W, H = nonnegative_network([200, 100, 100], lambda_z)
    H[2], W[:, 2] = 0, 0  # then classes 0 and 1 alone, balanced again below
    m = measured(*rested(counts, W, H, lambda_z))
    d = diagnose_measurement(m, KnownTraining(0.1, lambda_z**2 / 0.1, features="nonnegative"))
    assert d.at_rest
    assert d.effective is not None
    assert d.effective.agree
    assert d.effective.stuck == stuck
    text = " ".join(d.words)
    assert ("2 is not held there by the penalty" in text) == bool(stuck)
    assert "they agree for the separated classes, but the network is not at the optimum" in text


def rested(counts, W, H, lambda_z, lambda_w=0.1):
    """Gradient descent on the mean predictions, class by class, with the third feature held at zero."""
    N, lambda_h = counts.sum(), lambda_z**2 / lambda_w
    for _ in range(40_000):
        Z = W @ H.T
        P = np.exp(Z - Z.max(axis=0))
        G = (P / P.sum(axis=0) - np.eye(3)) * (counts / N)
        step_w, step_h = G @ H + lambda_w * W, G.T @ W + lambda_h * counts[:, None] * H
        step_h[2] = 0
        W, H, before = W - 0.2 * step_w, np.maximum(H - 0.2 * step_h, 0), (W, H)
        if max(np.max(np.abs(W - before[0])), np.max(np.abs(H - before[1]))) < 1e-14:
            break
    return counts, W, H


@pytest.mark.parametrize("lambda_z", [0.0027, 0.0037, 0.0045])
def test_nothing_is_stuck_at_an_optimum(lambda_z):
    d = paper(lambda_z)
    assert d.effective is not None
    assert d.effective.stuck == ()
    assert any("is at an optimum" in sentence for sentence in d.words)


@pytest.mark.parametrize(("share", "merged"), [(0.7, False), (0.94, True)])
def test_classes_merged_by_the_rule_below_their_threshold_are_told_from_those_above_it(share, merged):
    """At 94 % of it the optimum's small classes differ by less than the rule tells apart: both sentences are true."""
    edge = cs.thresholds(cs.Problem.from_normalized("40x2,10x2", lambda_w=1.0, norm=4.0, lambda_b=0.0)).merge[3]
    p = cs.Problem.from_normalized("40x2,10x2", lambda_w=share * edge, norm=4.0, lambda_b=0.0)
    W, H, b = cs.solve(p).factors(8)
    X, y = samples(p.class_counts, H.T)
    d = diagnose_measurement(measure(X, y, W.T, b), KnownTraining(lambda_w=share * edge, lambda_b=0.0))
    assert d.prediction is not None
    assert d.prediction.states == ("separated",) * 4
    assert (d.separation.merged_classes == (2, 3)) == merged
    text = " ".join(d.words)
    assert ("2 merged (by the rule below, which ignores small differences)" in text) == merged
    assert f"this network is at {100 * share:.0f} % of it" in text


def test_a_diagnosis_prints_what_it_found():
    d = paper(0.0037)
    assert f"{d}".splitlines() == repr(d).splitlines() == [d.headline, *d.words]


def test_one_class_vanishes_in_good_english():
    d = diagnose_measurement(measured(*nonnegative_network([200, 100, 50], 0.004)), KnownTraining(0.1, 1.6e-4))
    assert any(sentence.startswith("2 vanishes first") for sentence in d.words)


@pytest.mark.parametrize("factor", [1e160, 1e300])
def test_numbers_whose_squares_overflow_are_refused(factor):
    with pytest.raises(ValueError, match=r"`features` must be finite and below 1e\+100.*class 0"):
        measure(factor * np.eye(2), [0, 1], np.eye(2))
    with pytest.raises(ValueError, match=r"`weight` must be finite real numbers below 1e\+100"):
        measure(np.eye(2), [0, 1], factor * np.eye(2))


def test_half_precision_heads_are_read_without_overflow():
    W = np.eye(2, dtype=np.float16)
    assert measure(np.eye(2, dtype=np.float16), [0, 1], W).class_counts.tolist() == [1, 1]


def test_states_that_theory_misses_are_named():
    counts, W, H, b = signed_network(lambda_z=0.0045)
    d = diagnose_measurement(
        measured(counts, W, H, b), KnownTraining(0.01, 0.0027**2 / 0.01, 0.02), [f"class {k}" for k in range(10)]
    )
    text = " ".join(d.words)
    assert "as measured for 5 of 10 classes" in text
    assert "class 5: predicted separated, measured vanished" in text
    assert "and 2 more" in text
    assert "Trained with 0.0027: the norms differ from that by 67 %" in text


def test_features_choose_the_model_and_can_be_overruled():
    counts, W, H = nonnegative_network([300, 300, 100, 100, 40], 0.004)
    d = diagnose_measurement(measured(counts, W, H))
    assert d.prediction is not None
    assert d.prediction.features == "nonnegative"
    forced = diagnose_measurement(measured(counts, W, H), KnownTraining(features="signed"))
    assert forced.prediction is not None
    assert forced.prediction.features == "signed"


def test_accuracy_in_collapsed_classes_is_told():
    d = paper(0.0045)
    assert d.measurement.accuracies.tolist() == [1.0] * 5 + [0.0] * 5
    assert "recognises 0 % in a collapsed class on average, and 100 % in the others" in d.words[0]
    assert "collapsed class" not in paper(0.0027).words[0]


def test_classes_that_are_apart_but_taken_for_another_are_named():
    counts, W, H, b = signed_network(lambda_z=0.0027)
    m = measured(counts, W, H, b)
    L = m.Z + m.b[:, None]
    half = np.where(np.arange(len(m.weight)) == 1, 0.6 * (L[0, 0] - L[1, 0]) / (H[0] @ H[0]), 0)
    d = diagnose_measurement(replace(m, weight=W + np.outer(2 * half, H[0]), accuracies=np.full(10, 0.4)))
    assert d.lost == ()
    said = "0 is separated, but on average the head scores another class higher: it recognises 40 % of its samples."
    assert said in d.words
    assert not any("scores another" in sentence for sentence in paper(0.0027).words)


def test_a_class_whose_mean_is_that_of_a_few_far_samples_is_not_said_to_be_missed():
    """A class of 46 of a FashionMNIST run: 41 samples right, 5 so far off that the mean prediction is not its own."""
    counts, W, H, b = signed_network(lambda_z=0.0027)
    X, labels = samples(counts, H)
    own = np.flatnonzero(labels == 9)
    X[own[:12]] += 12 * (H[0] - H[9])  # twelve of a hundred, far inside class 0
    d = diagnose_measurement(measure(X, labels, W, b))
    assert d.standings.outscored == (9,)
    assert d.measurement.accuracies[9] == 0.88
    assert any(
        sentence.startswith("9 is separated") and "still recognises 88 % of its samples" in sentence
        for sentence in d.words
    )


def test_a_single_merged_pair_in_a_long_tail_is_named():
    K = 30
    counts = np.full(K, 20)
    H = np.eye(K)
    H[17] = H[4] + 0.01 * np.eye(K)[17]
    W = 5 * (np.eye(K) - 1 / K)
    W[17] = W[4] = (W[4] + W[17]) / 2
    d = diagnose_measurement(measured(counts, W, H), class_names=[f"kind {k}" for k in range(K)])
    assert d.separation.groups == ((4, 17),)
    assert d.headline == "2 of 30 classes have collapsed: kind 4 and kind 17 are merged into one."


def test_classes_without_samples_are_left_out_of_theory_and_named():
    counts, W, H, b = signed_network(lambda_z=0.0027)
    X, y = samples(counts, H)
    kept = y != 3
    d = diagnose_measurement(measure(X[kept], y[kept], W, b), KnownTraining(0.01, 7e-4, 0.02))
    assert d.separation.states[3] == "unseen"
    assert d.headline == "All 9 classes are separated. Class 3 had no samples."
    alone = diagnose_measurement(measure(X[y == 0], y[y == 0], W, b), KnownTraining(0.0))
    assert alone.headline.startswith("Only one class has samples: there is none to separate it from. Classes 1, 2, 3")
    assert d.effective is d.fit is d.prediction is None
    assert any("Classes without samples: 1." in note for note in d.notes)
    record = json.loads(d.to_json())
    assert record["accuracies"][3] is None
    assert record["Z"][0][3] is None


def test_the_record_is_standard_json_and_holds_everything(tmp_path):
    d = paper(0.0045, noise=1e-4)
    record = json.loads(d.save(tmp_path / "d.json").read_text())
    assert record == json.loads(json.dumps(d.to_dict(), allow_nan=False))
    assert record["kind"] == "diagnosis"
    assert record["class_counts"] == [500] * 5 + [100] * 5
    assert record["separation"]["vanish_threshold"] == 0.05
    assert record["effective"]["ratio"] == pytest.approx(1.0, abs=1e-3)
    assert record["fit"]["models"]["signed"]["distance"]["Z"] < 1e-2
    assert record["known"]["lambda_z"] == pytest.approx(0.0045)
    np.testing.assert_allclose(record["Z"], d.measurement.Z)
    no_bias = diagnose_measurement(measured(*nonnegative_network([40, 20], 0.01)))
    record = json.loads(no_bias.to_json())
    assert record["forces"]["fitted_b"] == record["prediction"]["lambda_b"] == "inf"
    assert any("need torch" in note for note in record["notes"])


def test_many_classes_are_diagnosed_without_their_table_in_the_record():
    counts, W, H = nonnegative_network([12] * 250 + [4] * 150, 2e-5)
    d = diagnose_measurement(measured(counts, W, H))
    record = json.loads(d.to_json())
    assert record["Z"] is None
    assert record["prediction"]["Z"] is None
    assert d.effective is not None
    assert d.effective.lambda_z == pytest.approx(2e-5, rel=1e-6)


@pytest.mark.parametrize("network", [signed_network(lambda_z=0.0037), nonnegative_network([90, 90, 30, 30, 4], 0.008)])
def test_without_tables_everything_else_is_the_same(network, monkeypatch):
    m, known = measured(*network), KnownTraining(lambda_w=0.01)
    table = diagnose_measurement(m, known)
    monkeypatch.setattr(import_module("collapsar.diagnose.measurement"), "MAX_TABLE", 3)
    factors = diagnose_measurement(replace(m), known)
    assert (factors.headline, factors.separation.states) == (table.headline, table.separation.states)
    assert factors.standings == table.standings
    assert table.effective is not None
    assert factors.effective is not None
    np.testing.assert_array_equal(factors.effective.by_class, table.effective.by_class)
    assert math.isnan(factors.effective.by_residual)
    assert table.prediction is not None
    assert factors.prediction is not None
    assert factors.prediction.Z is None
    assert factors.prediction.seen == table.prediction.seen
    assert table.fit is not None
    assert factors.fit is not None
    assert factors.fit.follows == table.fit.follows
    for features, fit in table.fit.models.items():
        other = factors.fit.models[features]
        assert pytest.approx(fit.distance.Z, rel=1e-6, abs=1e-9) == other.distance.Z
        assert other.distance.Z_max == pytest.approx(fit.distance.Z_max, rel=1e-6, abs=1e-9)
        assert other.distance.b == pytest.approx(fit.distance.b, rel=1e-6, abs=1e-9, nan_ok=True)
        assert other.away == pytest.approx(fit.away, rel=1e-6, abs=1e-9)
        assert math.isnan(other.excess)
    assert any("More than" in note for note in factors.notes)
    json.dumps(factors.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_states_of_an_optimum_are_those_of_its_table(name, features):
    s = cs.solve(PROBLEMS[name].replace(features=features), 1e-9, throw=False)
    share = s.problem.class_counts / s.problem.num_samples
    own = s.Z - (s.Z @ share)[:, None] if features == "signed" else s.Z
    found = class_separation(own)
    assert as_measured(s)[:2] == (found.states, found.groups)


def test_thousands_of_classes_are_diagnosed_without_a_table():
    K, d = 2100, 40
    counts = np.repeat([5, 2], K // 2)
    H = 4 * RNG(0).normal(size=(K, d)) / np.sqrt(d)
    W = H.copy()
    W[9] = W[7] = H[9] = H[7]
    W[11] = W[12]
    H[1500:1510] = 0.0
    d_ = diagnose_measurement(measured(counts, W, H))
    assert set(d_.separation.merged_classes) >= {7, 9}
    assert d_.separation.vanished_classes == tuple(range(1500, 1510))
    assert d_.shared_rows == ((7, 9), (11, 12))
    L = W @ H.T  # the table, made here
    behind = {k for k in range(K) if L[:, k].argmax() != k}
    assert set(d_.lost) | set(d_.standings.outscored) | set(range(1500, 1510)) >= behind
    for c in d_.standings.lost:
        assert c.nats == pytest.approx(L[c.rival, c.index] - L[c.index, c.index], abs=1e-9)
    record = d_.to_dict()
    assert record["Z"] is None
    assert len(json.dumps(record)) < 1_500_000


def test_an_optimum_out_of_reach_is_left_out_and_said_to_be():
    counts = np.concatenate([np.arange(1, 202), np.ones(1800, dtype=int)])
    H = RNG(2).normal(size=(len(counts), 12))
    d = diagnose_measurement(measured(counts, H, H))
    assert d.fit is d.prediction is None
    assert d.separation.num_distinct > 0
    assert any("More than 200 different class sizes" in note for note in d.notes)


def test_metrics_come_with_their_meaning_and_undefined_ones_are_left_out():
    m = measured(*nonnegative_network([40, 20], 0.01))
    d = diagnose_measurement(replace(m, metrics={"nc1_uniform": 0.25, "nc1_weighted": math.nan, "cdnv_max": math.inf}))
    assert [(x["name"], x["value"]) for x in d.to_dict()["metrics"]] == [("nc1_uniform", 0.25), ("cdnv_max", "inf")]
    assert all(len(x["meaning"]) > 20 for x in d.to_dict()["metrics"])


def test_a_head_without_weight_decay_shows_no_penalty():
    m = measured(*nonnegative_network([40, 20], 0.01))
    d = diagnose_measurement(m, KnownTraining(lambda_w=0.0))
    assert d.effective is d.fit is d.prediction is None
    assert not d.at_rest
    assert "no optimum" in d.model.sentence
    assert diagnose_measurement(m).effective is not None


def test_cautions_are_said():
    m = measured(*nonnegative_network([40, 20], 0.01))
    d = diagnose_measurement(m, KnownTraining(cautions=("decay is decoupled.",)))
    assert "Caution: decay is decoupled." in d.words


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: KnownTraining(lambda_w=-1.0), "`lambda_w`"),
        (lambda: KnownTraining(lambda_h=math.nan), "`lambda_h`"),
        (lambda: KnownTraining(lambda_b=math.inf), "`lambda_b`"),
        (lambda: KnownTraining(features="relu"), "`features`"),  # pyright: ignore[reportArgumentType]
        (lambda: diagnose_measurement(MEASURED, class_names=["a"]), "hold one name for each of 2 classes, got 1"),
        (lambda: diagnose_measurement(MEASURED, KnownTraining(loss=cs.Loss(smoothing=0.1))), "`known`.*loss"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


MEASURED = measure(np.eye(2), [0, 1], RNG(0).normal(size=(2, 2)))


def test_the_page_on_diagnosis_says_what_is_so():
    page = (Path(__file__).parent.parent / "docs" / "diagnose.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(blocks[-1], "docs/diagnose.md", "exec"), {})  # its own assertions
    assert f"up to {MAX_CLASSES} classes" in page
    assert f"up to {MAX_TABLE}\nclasses" in page
    assert f"below {AT_REST:g} the head" in page


def test_the_lengths_tell_what_stands_before_the_head():
    x = RNG(3).normal(size=(400, 16))
    y, W = np.arange(400) % 2, np.ones((2, 16))
    sample = measure(3 * x / np.linalg.norm(x, axis=1, keepdims=True), y, W).lengths
    assert sample is not None
    assert (sample.mean, sample.mean_square) == pytest.approx((3.0, 9.0))
    assert sample.spread < 1e-7
    batch = measure((x - x.mean(axis=0)) / x.std(axis=0), y, W).lengths
    assert batch is not None
    assert batch.spread > 0.1
    assert max(batch.variance_spread, batch.offset_share) < 1e-12
    moved = measure(x + 5, y, W).lengths
    assert moved is not None
    lengths = np.linalg.norm(x + 5, axis=1)
    assert moved.spread == pytest.approx(lengths.std() / lengths.mean(), rel=1e-9)
    assert moved.offset_share == pytest.approx(np.sum((x + 5).mean(axis=0) ** 2) / np.mean(lengths**2))


@cache
def normalised(over: str, *, rows: bool = False) -> tuple[cs.Problem, np.ndarray, np.ndarray, np.ndarray]:
    weight = np.repeat([0.5, 0.3], 5) if rows else 0.4
    p = cs.Problem.from_normalized("100x5,20x5", lambda_w=weight, norm=4.0, over=over, lambda_b=0.0)  # pyright: ignore[reportArgumentType]
    W, H, b = cs.solve(p).factors(16)
    return p, W.T, H.T, b


@pytest.mark.parametrize(("counts", "verb"), [("60x3,20x3", "merge"), ("60,30,12", "vanish")])
def test_behind_a_decayed_gain_the_first_threshold_is_told(counts, verb):
    p = cs.Problem.from_gain_decay(counts, lambda_w=0.02, lambda_gain=0.5, over="batch", lambda_b=0.0)
    W, H, b = cs.solve(p).factors(16)
    norm = HeadNorm("BatchNorm1d", "batch", 16, 1.0, 0.5, free_gain=False, trained_gain=True, shifted=True)
    known = KnownTraining(lambda_w=0.02, lambda_b=0.0, norm=norm)
    d = diagnose_measurement(measured(p.class_counts, W.T, H.T, b), known)
    t = cs.thresholds(p)
    level = float(np.nanmin([t.merge, t.vanish]))
    said = f"{verb} first, above lambda_w = {level:.4g}; this network is at {100 * 0.02 / level:.2g} % of it"
    assert said in " ".join(d.words)


LAYER = HeadNorm("LayerNorm", "sample", 16, 4.0, None, free_gain=False)


@pytest.mark.parametrize(
    ("over", "norm", "words"),
    [
        ("sample", LAYER, "A LayerNorm feeds the head (features of length 4, equal to 0 %): per-sample model"),
        ("sample", None, "The norms of the features are equal to 0 %: per-sample model"),
        ("batch", replace(LAYER, layer="BatchNorm1d", over="batch"), "A BatchNorm1d feeds the head (features of len"),
    ],
)
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.usefixtures("undrawn")
def test_networks_that_normalise_are_compared_with_their_own_optimum(over, norm, words, rows):
    p, W, H, b = normalised(over, rows=rows)
    assert p.normalization is not None
    known = KnownTraining(lambda_w=p.normalization.lambda_w, lambda_b=0.0, norm=norm)
    d = diagnose_measurement(measured(p.class_counts, W, H, b), known)
    assert (d.model.name, d.model.problem) == (over, p.replace(norm=d.model.problem.normalization.norm))  # pyright: ignore[reportOptionalMemberAccess]
    assert d.model.sentence.startswith(words)
    assert d.at_rest
    assert d.model_fit is not None
    assert max(d.model_fit.distance.Z, d.model_fit.distance.b) < 1e-4
    assert d.fit is not None
    if over == "sample":  # the paper's models are other ones
        assert min(fit.distance.Z for fit in d.fit.models.values()) > 0.05
    assert d.prediction is not None
    assert d.prediction.seen == d.separation.states
    np.testing.assert_allclose(d.prediction.lengths, d.separation.relative_norms, atol=1e-6)
    merge = cs.thresholds(p).merge
    level, share = merge[9], np.asarray(p.normalization.lambda_w) * np.ones(10) / merge
    assert f"merge first, above lambda_w = {level:.4g}; this network is at {100 * share[9]:.2g} % of it" in " ".join(
        d.words
    )
    record = json.loads(d.to_json())["model"]
    assert cs.Problem.from_dict(record["problem"]) == d.model.problem
    assert record["distance"]["Z"] == d.model_fit.distance.Z
    assert problem_of_diagnosis(d.to_dict())[0] == d.model.problem
    assert d.headline in diagnosis_page(d.to_dict())


@pytest.mark.parametrize(("merged", "far"), [(False, False), (True, True)])
def test_a_head_at_rest_on_features_far_from_the_optimum_is_not_said_to_have_come_to_it(merged, far):
    """Of a network that keeps two classes in one point the head alone can rest: its optimum has them separated."""
    p, _, H, _ = normalised("sample")
    assert p.normalization is not None
    weight = float(p.normalization.lambda_w)
    H = np.concatenate([H[:-2], H[[-1, -1]]]) if merged else H
    labels = np.repeat(np.arange(10), p.class_counts)

    def loss(x):
        W, b = x[:160].reshape(10, 16), x[160:]
        L = H @ W.T + b
        P = np.exp(L - L.max(axis=1, keepdims=True))
        P /= P.sum(axis=1, keepdims=True)
        q = p.loss_share
        G = q[:, None] * (P - np.eye(10))
        value = -q @ np.log(np.diag(P)) + weight / 2 * (W**2).sum()
        return value, np.concatenate([(G.T @ H + weight * W).ravel(), G.sum(axis=0)])

    best = minimize(loss, np.zeros(170), jac=True, method="L-BFGS-B", options={"maxiter": 4000, "gtol": 1e-9}).x
    W, b = best[:160].reshape(10, 16), best[160:]
    d = diagnose_measurement(measure(H[labels], labels, W, b), KnownTraining(lambda_w=weight, lambda_b=0.0, norm=LAYER))
    assert d.at_rest
    assert d.model_fit is not None
    assert (d.model_fit.distance.Z > FAR) == far
    assert any("Start with a tenth of the decay" in sentence for sentence in d.words) == far


def test_without_the_penalty_the_heads_gradient_tells_it():
    p, W, H, b = normalised("sample")
    d = diagnose_measurement(measured(p.class_counts, W, H, b))
    assert d.model.problem is not None
    assert d.model.problem.normalization is not None
    assert d.model.problem.normalization.lambda_w == pytest.approx(0.4, rel=1e-4)
    assert "read from the head's gradient" in d.model.sentence


def test_a_gradient_far_from_any_penalty_tells_none():
    p, W, H, b = normalised("sample")
    moved = W + RNG(0).normal(scale=np.abs(W).mean() * 3, size=W.shape)
    d = diagnose_measurement(measured(p.class_counts, moved, H, b))
    assert d.forces.relative_gradient > 0.5
    assert d.prediction is d.model.problem is None
    assert "neither known nor readable" in d.model.sentence


@pytest.mark.parametrize(
    ("known", "name", "words"),
    [
        (KnownTraining(norm=replace(LAYER, gain_penalty=0.0, free_gain=True)), "none", "no optimum and no threshold"),
        (KnownTraining(bounded_by="Tanh"), "none", "A Tanh feeds the head"),
        (KnownTraining(norm=replace(LAYER, length=40.0)), "sample", "have 10 % of its length"),
        (KnownTraining(norm=replace(LAYER, gain_penalty=0.1)), "none", "its gain is decayed, one for each feature"),
        (KnownTraining(norm=replace(LAYER, over="batch", gain_penalty=0.1)), "batch", "model of a decayed gain"),
        (KnownTraining(norm=replace(LAYER, trained_gain=True, uneven=0.5)), "none", "value (uneven by 50 %)"),
        (KnownTraining(norm=replace(LAYER, uneven=0.1)), "sample", "(uneven by 10 %, about as far"),
        (KnownTraining(norm=replace(LAYER, length=1.0)), "sample", "The norms of the features are equal"),
        (KnownTraining(0.4, norm=LAYER, body="decayed"), "sample", "Decay also acts on the layers below"),
    ],
)
def test_what_the_layers_say_decides_the_model(known, name, words):
    p, W, H, b = normalised("sample")
    d = diagnose_measurement(measured(p.class_counts, W, H, b), known)
    assert d.model.name == name
    assert words in d.model.sentence
    assert (d.prediction is None) == (name == "none")


def test_equal_lengths_of_balanced_collapsed_classes_are_no_normalisation():
    counts, W, H, b = signed_network(n_a=200, n_b=200)
    assert diagnose_measurement(measured(counts, W, H, b)).model.name == "penalty"
    assert diagnose_measurement(measured(*nonnegative_network([8] * 120, 1e-4))).model.name == "penalty"


@pytest.mark.parametrize("lambda_b", [0.0, math.inf])
def test_penalties_by_rows_are_used_for_penalised_features_as_well(lambda_b):
    """The optimum under sum_k lambda_k ||w_k||^2 / 2 by the scaled problem, as a head in its own units."""
    rows, counts = np.repeat([0.02, 0.007], 5), np.repeat([200, 50], 5)
    scales = np.sqrt(rows.mean() / rows)
    p = cs.Problem(counts, 0.004, lambda_b, cs.Loss(scales=scales))
    V, H, c = cs.solve(p).factors(12, lambda_w=rows.mean())
    bias = None if lambda_b == math.inf else scales * c
    m = measured(counts, (V * scales).T, H.T, bias)
    assert m.weight_gradient == pytest.approx(-rows[:, None] * m.weight, abs=1e-7)  # it is that optimum
    known = KnownTraining(rows, 0.004**2 / rows.mean(), None if bias is None else 0.0)
    d = diagnose_measurement(m, known)
    assert d.at_rest
    assert d.fit is not None
    assert d.fit.models["signed"].distance.Z < 1e-4
    assert d.effective is not None
    assert d.effective.lambda_z == pytest.approx(0.004, rel=1e-4)
    assert d.prediction is not None
    assert d.prediction.seen == d.separation.states
    assert np.linalg.norm(np.asarray(d.prediction.Z) - m.Z) < 1e-4 * np.linalg.norm(m.Z)


def long_tail_features() -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap, three of them small: what a frozen backbone may hand to a head."""
    rng = RNG(11)
    y = np.repeat(np.arange(6), [120, 120, 120, 12, 12, 12])
    return 1.2 * rng.normal(size=(6, 5))[y] + rng.normal(size=(y.size, 5)), y


@pytest.mark.parametrize(("lambda_w", "bias"), [(0.3, True), (0.01, True), (1e-3, True), (0.01, False)])
def test_a_head_on_frozen_features_is_solved_as_scikit_learn_solves_it(lambda_w, bias):
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = long_tail_features()
    b = np.zeros(6) if bias else None
    found = frozen_head(X, y, 0.1 * RNG(1).normal(size=(6, 5)), b, lambda_w=lambda_w)
    settings = {"tol": 1e-9, "max_iter": 20_000, "fit_intercept": bias}
    counts = np.bincount(y)
    # weights 1/n are normalised in our objective: the mean over classes
    for solved, weights, C in (
        (found.optimum, None, 1 / (len(y) * lambda_w)),
        (found.remedies[1], dict(enumerate(1 / (6 * counts))), 1 / lambda_w),
    ):
        theirs = linear_model.LogisticRegression(C=C, class_weight=weights, **settings).fit(X, y)
        each = 1 / len(y) if weights is None else 1 / (6 * counts[y])
        loss = -np.sum(each * theirs.predict_log_proba(X)[np.arange(len(y)), y])
        assert solved.objective == pytest.approx(loss + lambda_w / 2 * np.sum(theirs.coef_**2), rel=1e-8)
        assert solved.gap < 1e-8
        right = theirs.predict(X) == y
        np.testing.assert_allclose(solved.recalls, [right[y == k].mean() for k in range(6)], atol=0.01)
    assert found.excess > 0
    if bias:  # trained with log(n_k/N): the plain optimum, its bias moved
        theirs = linear_model.LogisticRegression(C=1 / (len(y) * lambda_w), **settings).fit(X, y)
        best = (theirs.decision_function(X) - np.log(counts / counts.sum())).argmax(axis=1)
        np.testing.assert_allclose(found.remedies[0].recalls, [(best == k)[y == k].mean() for k in range(6)], atol=0.01)


def test_a_frozen_backbone_gets_its_own_model_and_words(tmp_path):
    X, y = long_tail_features()
    W, b = np.zeros((6, 5)), np.zeros(6)
    m = measure(X, y, W, b)
    known = KnownTraining(0.3, lambda_b=0.0, body="frozen")
    d = diagnose_measurement(m, known, frozen=frozen_of(X, y, m, known))
    assert (d.model.name, d.prediction, d.fit) == ("frozen", None, None)
    assert d.frozen is not None
    assert d.frozen.optimum.outvoted == (3, 4, 5)
    text = " ".join(d.words)
    assert "Only the head is trained" in text
    assert "At that optimum 3, 4 and 5 are lost, outvoted on every sample" in text
    assert "class weights 1/n, or balanced sampling: mean recall" in text
    record = json.loads(d.to_json())["frozen"]
    assert record["remedies"][0]["name"] == "logit adjustment"
    assert record["excess"] == d.frozen.excess
    assert frozen_of(X, y, m, KnownTraining(body="frozen"))[1].startswith("The head on frozen features is not solved")
    path = tmp_path / "features.npz"
    np.savez(path, features=X, labels=y, weight=W, bias=b, lambda_w=0.3)
    of_file = diagnose(path, known=KnownTraining(body="frozen"))
    assert of_file.frozen is not None
    assert of_file.frozen.optimum.objective == pytest.approx(d.frozen.optimum.objective, rel=1e-9)
    assert "at lambda_w" not in text
    with pytest.raises(ValueError, match="`lambda_w` must be finite and > 0"):
        frozen_head(X, y, W, b, lambda_w=0.0)


def test_the_objective_of_a_frozen_head_names_the_penalty_that_was_read_for_it():
    """Solved by scikit-learn at 0.3 and told nothing of it: the gradient gives 0.3 back."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = long_tail_features()
    theirs = linear_model.LogisticRegression(C=1 / (0.3 * len(y)), tol=1e-10, max_iter=20_000).fit(X, y)
    m, known = measure(X, y, theirs.coef_, theirs.intercept_), KnownTraining(body="frozen", lambda_b=0.0)
    d = diagnose_measurement(m, known, frozen=frozen_of(X, y, m, known))
    assert any(words.startswith("On these features, at lambda_w = 0.3, which fits its gradient") for words in d.words)


def test_each_problem_is_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparison and prediction at effective penalties ask for the same optimum."""
    from collapsar.diagnose import fit

    solved: list[cs.Problem] = []
    solve = cs.solve
    monkeypatch.setattr(fit, "solve", lambda p, *a, **k: solved.append(p) or solve(p, *a, **k))
    p = cs.Problem("40x2,10x2", 0.004, 0.02, features="nonnegative")
    W, H, b = cs.solve(p).factors(8)
    labels = np.repeat(np.arange(4), p.class_counts)
    found = diagnose_measurement(measure(H.T[labels], labels, W.T, b))
    assert found.prediction is not None
    assert found.prediction.source == "effective"
    assert len(solved) == len(set(solved)) == 2


def test_a_sampler_counts_where_features_are_normalised_per_batch():
    times = np.array([0.5, 0.5, 3.0, 3.0]) * 100 / 160
    loss = cs.Loss(class_weights=times)
    mass = times * [40, 40, 10, 10]
    how = {"lambda_w": 0.4, "norm": 4.0, "over": "batch", "lambda_b": 0.0, "loss": loss}
    p = cs.Problem.from_normalized("40x2,10x2", feature_mass=mass * 100 / mass.sum(), **how)
    W, H, b = cs.solve(p).factors(16)
    labels = np.repeat(np.arange(4), p.class_counts)
    norm = HeadNorm("BatchNorm1d", "batch", 16, 4.0, None, False)
    known = KnownTraining(0.4, lambda_b=0.0, loss=loss, norm=norm, exposure=times)
    d = diagnose_measurement(measure(H.T[labels], labels, W.T, b, loss), known)
    assert d.model_fit is not None
    assert d.at_rest
    assert d.model.problem == p
    assert d.model_fit.distance.Z < 1e-3


def test_advice_on_a_diagnosis_is_on_the_problem_of_its_prediction_also_by_rows():
    """Rows of AdamW at rest, a quarter for the small classes, which merge at 1.6 times what one penalty would."""
    n, rows = np.repeat([100, 20], 3), np.repeat([0.2, 0.05], 3)
    scales = np.sqrt(rows.mean() / rows)
    p = cs.Problem(n, np.sqrt(rows.mean() * 1e-3), 0.0, cs.Loss(scales=scales))
    W, H, b = cs.solve(p).factors(8, lambda_w=rows.mean(), lambda_h=1e-3)
    labels = np.repeat(np.arange(6), n)
    m = measure(H.T[labels], labels, (W * scales).T, b * scales)
    d = diagnose_measurement(m, KnownTraining(rows, 1e-3, 0.0, features="signed"))
    assert d.prediction is not None
    problem, _ = problem_of_diagnosis(json.loads(d.to_json()))
    assert problem == d.prediction.problem
    assert cs.thresholds(problem).merge == pytest.approx(d.prediction.merge)
    assert cs.thresholds(problem).merge[3:] == pytest.approx(
        cs.thresholds(p.replace(loss=cs.Loss())).merge[3:] * 2.5**0.5
    )


def test_a_class_that_solve_calls_merged_and_the_rule_separated_is_named():
    """Alone in its size a class is merged where its features raise another's score as much as its own."""
    counts = [200, 129, 84, 54, 35, 23, 15, 10, 6, 4]
    p = cs.Problem.from_normalized(counts, lambda_w=0.6, norm=8.0, over="sample", lambda_b=0.0)
    s = cs.solve(p)
    assert s.Z[9, 9] <= np.delete(s.Z[:, 9], 9).max()
    assert s.class_states == ("separated",) * 9 + ("merged",)
    W, H, b = s.factors(64)
    norm = replace(LAYER, width=64, length=8.0)
    d = diagnose_measurement(measured(counts, W.T, H.T, b), KnownTraining(lambda_w=0.6, lambda_b=0.0, norm=norm))
    assert d.separation.states == ("separated",) * 10
    assert "predicts 10 separated (9 is merged in solve and advise: its features raise another class's" in d.reason
    assert "8 and 9 are outvoted at that optimum as well" in d.reason


@pytest.mark.parametrize("body", ["decayed", "free"])
def test_decay_below_a_norm_is_named_where_a_class_is_lost_that_the_optimum_keeps(body):
    p, W, H, b = normalised("sample")
    lowered = b - 8.0 * (np.arange(10) == 9)
    known = KnownTraining(lambda_w=0.4, lambda_b=0.0, norm=LAYER, body=body)
    d = diagnose_measurement(measured(p.class_counts, W, H, lowered), known)
    assert d.lost == (9,)
    (told,) = [sentence for sentence in d.words if "this network has not reached it" in sentence]
    assert told.startswith("9 is predicted on its own samples at that optimum")
    assert ("because of decay of the layers below, which the model does not include" in told) == (body == "decayed")


@pytest.mark.parametrize(("times", "rate"), [(0.2, False), (1.3, True)])
def test_a_smaller_learning_rate_is_advised_near_rest_alone(times, rate):
    """Off by a factor of five the head still grows: at a tenth of the rate a perceptron's lost classes stayed lost."""
    counts, W, H, b = signed_network()
    known = KnownTraining(lambda_w=0.01 * times, lambda_b=0.02 * times, features="signed")
    d = diagnose_measurement(measured(counts, W, H, b), known)
    assert (d.forces.relative_gradient < 1) == rate
    (told,) = [words for words in d.words if words.startswith("The head is not at rest")]
    assert ("Train on, with a smaller learning rate, before" in told) == rate
    assert ("Train on before" in told) != rate
