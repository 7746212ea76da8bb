"""The comparison of remedies against loops over full matrices, and what it says at one penalty."""

from __future__ import annotations

import json
from math import isnan

import numpy as np
import pytest

import collapsar as cs
from collapsar.advise.mitigations import (
    Remedy,
    balanced_softmax,
    inverse_weights,
    ldt,
    logit_adjustment,
    oversampling,
    plain_training,
    vs_loss,
)
from collapsar.core.records import to_json
from collapsar_studies.remedies_compared import compare_remedies

COUNTS = np.repeat([500, 100], 5)
BASE = cs.Problem(COUNTS, 0.0036, 0.02)


def record_of(*chosen: Remedy, problem: cs.Problem = BASE) -> list[dict]:
    return compare_remedies(problem, chosen)["remedies"]


def test_equalising_remedies_reach_the_same_state_for_all_classes() -> None:
    """w ∝ 1/sqrt(n) and LDT at 1/2 merge everything at once; oversampling to balance removes every difference."""
    root, tempered, over, held = record_of(
        inverse_weights(COUNTS, 0.5),
        ldt(COUNTS, 0.5),
        oversampling(COUNTS),
        oversampling(COUNTS, penalty="held"),
    )
    for row in (root, tempered, over, held):
        assert np.ptp(row["signed"]["thresholds"]["merge"]) < 1e-15
    for row in (over, held):
        for model in ("signed", "nonnegative"):
            assert np.ptp(row[model]["margins"]) < 1e-8
            np.testing.assert_allclose(row[model]["cosines"]["W"], -1 / 9, atol=1e-8)


def test_balanced_softmax_is_logit_adjustment_at_one() -> None:
    one, two = record_of(balanced_softmax(COUNTS), logit_adjustment(COUNTS, 1.0))
    assert one["signed"]["margins"] == pytest.approx(two["signed"]["margins"], abs=1e-7)
    assert one["nonnegative"]["thresholds"]["vanish"] == pytest.approx(
        two["nonnegative"]["thresholds"]["vanish"], rel=1e-10
    )


def test_margins_and_geometry_against_loops_over_full_matrices() -> None:
    counts = [300, 300, 80, 20, 20, 20]
    problem = cs.Problem(counts, 0.004, 0.1)
    remedy = vs_loss(counts, 0.1, 0.5)
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
    record = compare_remedies(BASE)
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


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="`remedies`"):
        compare_remedies(BASE, [plain_training()] * 2)
