"""Remedies against the table of thresholds, the data sets they imitate, and the solver on both sides."""

from __future__ import annotations

import json
from math import inf, isnan, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

import collapsar as cs
from collapsar.advise import mitigations as rm
from collapsar.core.problem import FeatureModel
from collapsar.core.records import to_json

N_A, N_B, K_A, K_B = 500, 100, 5, 5
COUNTS = np.array([N_A] * K_A + [N_B] * K_B)
N = COUNTS.sum()
BASE = cs.Problem(COUNTS, 0.0036, 0.02)

# name, remedy, merge thresholds of A and B in units of the lambda_z before the remedy (signed; any lambda_b)
ROOT = np.sqrt([N_A, N_B])
TABLE = [
    ("none", rm.plain_training(), ROOT / N),
    ("weights 1/n", rm.inverse_weights(COUNTS), 1 / ROOT / 10),
    ("weights 1/root", rm.inverse_weights(COUNTS, 0.5), np.full(2, 1 / (5 * ROOT.sum()))),
    ("weights n^-2", rm.inverse_weights(COUNTS, 2.0), ROOT**-3.0 / (5 * np.sum(ROOT**-2.0))),
    ("oversampling", rm.oversampling(COUNTS), np.full(2, sqrt(500) / 5000)),
    (
        "oversampling three times",
        rm.oversampling(COUNTS, [1] * 5 + [3] * 5),
        np.sqrt([500, 300]) / (5 * 500 + 3 * 5 * 100),
    ),
    ("oversampling, held", rm.oversampling(COUNTS, penalty="held"), np.full(2, sqrt(0.1 / N))),
    ("logit adjustment", rm.logit_adjustment(COUNTS, 1.7), ROOT / N),
    ("balanced softmax", rm.balanced_softmax(COUNTS), ROOT / N),
    ("CDT", rm.cdt(COUNTS, 0.3), ROOT / N * [1, 0.2**0.3]),
    ("VS", rm.vs_loss(COUNTS, 0.3, 1.2), ROOT / N * [1, 0.2**0.3]),
    ("LDT", rm.ldt(COUNTS, 0.5), np.full(2, ROOT[0] / N)),
    ("LDT for margins", rm.ldt(COUNTS, -0.2), ROOT / N * [1, 0.2**0.2]),
    ("smoothing", rm.label_smoothing(0.15), ROOT / N * 0.85),
    ("head decay", rm.head_decay(4.0), ROOT / N / 2),
    (
        "several",
        rm.combined(rm.inverse_weights(COUNTS, 0.5), rm.cdt(COUNTS, 0.2), rm.label_smoothing(), rm.head_decay(0.25)),
        2 * 0.9 * np.array([1, 0.2**0.2]) / (5 * ROOT.sum()),
    ),
]


def record_of(*chosen: rm.Remedy, problem: cs.Problem = BASE) -> list[dict]:
    return rm.compare_remedies(problem, chosen)["remedies"]


@pytest.mark.parametrize(("name", "remedy", "merge"), TABLE, ids=[row[0] for row in TABLE])
def test_merge_thresholds_are_those_of_the_table(name: str, remedy: rm.Remedy, merge: NDArray) -> None:
    """The table in closed form, the record, and the optimum half a percent to either side, agree."""
    (row,) = record_of(remedy)
    np.testing.assert_allclose(row["signed"]["thresholds"]["merge"], merge, rtol=1e-12)
    for group, k in ((0, 0), (1, -1)):
        below, above = (cs.solve(remedy(BASE.replace(lambda_z=f * merge[group]))) for f in (0.995, 1.005))
        assert below.class_states[k] == "separated"
        assert above.class_states[k] != "separated"


@pytest.mark.parametrize(("name", "remedy", "merge"), TABLE, ids=[row[0] for row in TABLE])
def test_nonnegative_vanish_thresholds_meet_the_solver(name: str, remedy: rm.Remedy, merge: NDArray) -> None:
    (row,) = record_of(remedy)
    t = row["nonnegative"]["thresholds"]
    for group, k in ((0, 0), (1, -1)):
        problem = BASE.replace(features="nonnegative")
        if not t["exact"][group]:  # the column form is then a bound only: classes share directions at its transition
            assert cs.solve(remedy(problem.replace(lambda_z=t["vanish"][group])), throw=False).proof is not None
            continue
        below, above = (
            cs.solve(remedy(problem.replace(lambda_z=f * t["vanish"][group])), throw=False) for f in (0.995, 1.005)
        )
        assert below.class_states[k] == "separated"
        assert above.class_states[k] == "vanished"


def test_equalising_remedies_reach_the_same_state_for_all_classes() -> None:
    """w ∝ 1/sqrt(n) and LDT at 1/2 merge everything at once; oversampling to balance removes every difference."""
    root, ldt, over, held = record_of(
        rm.inverse_weights(COUNTS, 0.5),
        rm.ldt(COUNTS, 0.5),
        rm.oversampling(COUNTS),
        rm.oversampling(COUNTS, penalty="held"),
    )
    for row in (root, ldt, over, held):
        assert np.ptp(row["signed"]["thresholds"]["merge"]) < 1e-15
    for row in (over, held):
        for model in ("signed", "nonnegative"):
            assert np.ptp(row[model]["margins"]) < 1e-8
            np.testing.assert_allclose(row[model]["cosines"]["W"], -1 / 9, atol=1e-8)


@pytest.mark.parametrize("features", ["signed", "nonnegative"])
def test_oversampling_is_the_repeated_data_set(features: FeatureModel) -> None:
    """Three copies of every sample of B, penalty repeated too: the optimum of 500 and 300 samples."""
    treated = rm.oversampling(COUNTS, [1] * 5 + [3] * 5)(BASE.replace(features=features))
    repeated = cs.Problem([500] * 5 + [300] * 5, BASE.lambda_z, BASE.lambda_b, features=features)
    np.testing.assert_allclose(cs.solve(treated).Z, cs.solve(repeated).Z, atol=1e-4)
    assert cs.thresholds(treated).vanish[-1] == pytest.approx(cs.thresholds(repeated).vanish[-1], rel=1e-10)


def test_balanced_softmax_is_logit_adjustment_at_one() -> None:
    one, two = record_of(rm.balanced_softmax(COUNTS), rm.logit_adjustment(COUNTS, 1.0))
    assert one["signed"]["margins"] == pytest.approx(two["signed"]["margins"], abs=1e-7)
    assert one["nonnegative"]["thresholds"]["vanish"] == pytest.approx(
        two["nonnegative"]["thresholds"]["vanish"], rel=1e-10
    )


def test_effective_number_goes_from_no_weights_to_inverse_ones() -> None:
    """Cui et al.: beta to 0 is no weighting, beta to 1 is 1/n; the definition in between."""
    weights = [rm.effective_number_weights(COUNTS, beta).loss.class_weights for beta in (1e-9, 0.99, 1 - 1e-9)]
    ratios = [float(w[-1] / w[0]) for w in weights if w is not None]
    assert ratios[0] == pytest.approx(1, abs=1e-6)
    assert ratios[1] == pytest.approx((1 - 0.99**500) / (1 - 0.99**100), rel=1e-12)
    assert ratios[2] == pytest.approx(5, rel=1e-5)


def test_the_best_oversampling_factor_and_worse_beyond() -> None:
    """s = k_A n_A / (k_B n_B), checked by scanning the record's own thresholds."""
    counts = [500] * 3 + [100] * 7
    base = cs.Problem(counts, 0.0036, 0.02)
    factors = np.geomspace(1, 10, 41)
    chosen = []
    for i, s in enumerate(factors):
        r = rm.oversampling(counts, [1] * 3 + [float(s)] * 7)
        chosen.append(rm.Remedy(str(i), r.words, r.loss, r.mass_factor))
    merge = [cs.thresholds(r(base)).merge[-1] for r in chosen]
    best = factors[int(np.argmax(merge))]
    assert best == pytest.approx(3 * 500 / (7 * 100), rel=0.03)
    assert merge[-1] < merge[int(np.argmax(merge))]


def test_margins_and_geometry_against_loops_over_full_matrices() -> None:
    counts = [300, 300, 80, 20, 20, 20]
    problem = cs.Problem(counts, 0.004, 0.1)
    remedy = rm.vs_loss(counts, 0.1, 0.5)
    (row,) = record_of(remedy, problem=problem)
    s = cs.solve(remedy(problem))
    first = [0, 2, 3]
    for group, k in enumerate(first):
        rivals = [s.Z[l, k] + s.b[l] for l in range(6) if l != k]
        assert row["signed"]["margins"][group] == pytest.approx(s.Z[k, k] + s.b[k] - max(rivals), abs=1e-6)
    W, H, _ = s.factors(6)
    groups = [[0, 1], [2], [3, 4, 5]]
    for name, vectors in (("W", W), ("H", H), ("Z", s.Z)):
        for i, a in enumerate(groups):
            for j, b in enumerate(groups):
                cosines = [
                    vectors[:, k] @ vectors[:, l] / np.linalg.norm(vectors[:, k]) / np.linalg.norm(vectors[:, l])
                    for k in a
                    for l in b
                    if k != l
                ]
                found = row["signed"]["cosines"][name][i][j]
                if not cosines:
                    assert isnan(found)
                else:
                    assert found == pytest.approx(np.mean(cosines), abs=1e-6)
        assert row["signed"]["norms"][name] == pytest.approx(np.linalg.norm(vectors[:, first], axis=0), abs=1e-6)
    assert isnan(row["signed"]["contrasts"][1])
    assert row["signed"]["contrasts"][2] == pytest.approx(s.Z[3, 3] - s.Z[4, 3], abs=1e-6)


def test_the_standard_comparison_is_one_json_record() -> None:
    record = rm.compare_remedies(BASE)
    again = json.loads(json.dumps(to_json(record), allow_nan=False))
    assert [g["samples"] for g in again["groups"]] == [500, 100]
    by_name = {r["name"]: r for r in again["remedies"]}
    assert len(by_name) == len(again["remedies"]) == 17
    # at this penalty plain training has lost its minority, and what the table promises holds
    assert by_name["plain"]["signed"]["states"] == ["separated", "merged"]
    assert by_name["plain"]["nonnegative"]["states"] == ["separated", "vanished"]
    for name in ("weights-1", "weights-0.5", "oversampling-held", "ldt-0.5", "head-decay-0.25"):
        for model in ("signed", "nonnegative"):
            assert by_name[name][model]["states"] == ["separated", "separated"]
            assert min(by_name[name][model]["margins"]) > 0
    for name in ("balanced-softmax", "cdt-0.2", "vs-0.2-1", "smoothing-0.1"):
        assert by_name[name]["signed"]["states"][1] != "separated"
    # a small class whose whole kind is merged is not told apart: its margin is at most zero
    for row in again["remedies"]:
        for state, margin in zip(row["signed"]["states"], row["signed"]["margins"], strict=True):
            assert (margin > 1e-9) == (state == "separated")


def test_remedies_add_up() -> None:
    both = rm.combined(rm.inverse_weights(COUNTS), rm.oversampling(COUNTS, penalty="held"), rm.logit_adjustment(COUNTS))
    twice = rm.logit_adjustment(COUNTS)(both(BASE))
    assert twice.loss.class_weights is not None
    assert twice.loss.class_weights[-1] / twice.loss.class_weights[0] == pytest.approx(25)
    assert twice.loss.offsets == pytest.approx(2 * np.log(COUNTS / N))
    assert both(BASE).mass.sum() == pytest.approx(N)
    assert rm.combined(rm.head_decay(4.0), rm.head_decay(0.25))(BASE).lambda_z == pytest.approx(BASE.lambda_z)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: rm.effective_number_weights(COUNTS, 1.0), "beta"),
        (lambda: rm.oversampling(COUNTS, [1, 2]), "factors"),
        (lambda: rm.oversampling(COUNTS, [0] * 10), "factors"),
        (lambda: rm.oversampling(COUNTS, penalty="free"), "penalty"),  # pyright: ignore[reportArgumentType]
        (lambda: rm.head_decay(inf), "factor"),
        (lambda: rm.head_decay(float("nan")), "factor"),
        (lambda: rm.label_smoothing(1.0), "smoothing"),
        (rm.combined, "remedies"),
        (lambda: rm.combined(rm.label_smoothing(), rm.label_smoothing(0.2)), "smoothing"),
        (lambda: rm.compare_remedies(BASE, [rm.plain_training()] * 2), "remedies"),
        (lambda: rm.ldt([500, 100])(BASE), "temperatures"),
    ],
)
def test_bad_arguments(call, name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}`"):
        call()
