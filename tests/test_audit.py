"""Dead classes found from a head alone: every kind that was planted, none in healthy heads, in any coordinates."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

import collapsar as cs
from audit_heads import KINDS, check_proof, healthy, planted
from collapsar.diagnose.audit_samples import count_effect
from collapsar.diagnose.untrained import initial_variances
from collapsar.metrics import near_rows
from collapsar.metrics.near_rows import groups_of, near_labels, nearest_rows
from collapsar.metrics.shared_rows import longest_row

SEEDS = range(2)


@pytest.mark.parametrize(
    ("seed", "K", "d"),
    [(0, 1500, 96), (1, 1500, 96), (2, 4000, 48), pytest.param(3, 32_000, 256, marks=pytest.mark.slow)],
)
def test_every_planted_death_is_found(seed: int, K: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    W, b, where = planted(rng, K, d, 12)
    found = cs.audit(W, b)
    assert {kind: int(found.dead[where[kind]].sum()) for kind in KINDS} == dict.fromkeys(KINDS, 12)
    assert tuple(sorted(where["identical"].tolist())) in found.groups
    assert tuple(sorted(where["near"].tolist())) in found.groups
    assert found.group_details[found.groups.index(tuple(sorted(where["identical"].tolist())))].identical == 12
    assert found.shrunk[where["shrunk"]].all()
    assert found.at_initialisation[where["initial"]].all()
    assert found.scheme == "torch.nn.Linear"
    assert found.unreachable[where["inside"]].all()
    planted_rows = np.concatenate(list(where.values()))
    others = np.setdiff1d(np.flatnonzero(found.dead), planted_rows)
    assert found.unreachable[others].all()  # and these are proven
    assert found.reach is not None
    scale = np.median(np.linalg.norm(W - W.mean(axis=0), axis=1))
    for k in np.flatnonzero(found.unreachable).tolist():
        check_proof(W, b, found.reach, k, scale)
    assert not found.at_initialisation[others].any()
    assert not found.shrunk[others].any()


def test_none_of_hundreds_of_healthy_heads_has_a_dead_class() -> None:
    accused = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        d = int(rng.integers(16, 65))
        W, b = healthy(rng, int(rng.integers(2, 3 * d)), d, decay=rng.uniform(0, 1.5))
        found = cs.audit(W, b)
        if found.dead.any():
            accused.append((seed, found.summary))
    assert accused == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_large_healthy_head_has_no_dead_class(seed: int) -> None:
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((6000, 256)) * np.arange(1, 257) ** -0.25
    W *= (np.exp(0.2 * rng.standard_normal(6000)) / np.linalg.norm(W, axis=1))[
        :, None
    ]  # across several schemes' lengths
    assert cs.audit(W).summary == "None of the 6000 classes is dead."


@pytest.mark.parametrize("seed", SEEDS)
def test_no_verdict_depends_on_the_coordinates_of_the_features(seed: int) -> None:
    rng = np.random.default_rng(seed)
    W, b, _ = planted(rng, 900, 32, 9)
    rotation = np.linalg.qr(rng.standard_normal((32, 32)))[0]
    c = rng.standard_normal(32)
    before = cs.audit(W, b)
    for weight, bias in (
        (W @ rotation, b),
        (W, b - W @ c),
        (W @ rotation, b - W @ (10 * c)),
        (W + c, b + 3),  # the same added to all logits of a sample
    ):
        after = cs.audit(weight, bias)
        assert after.groups == before.groups
        for name in ("dead", "unreachable", "at_initialisation", "shrunk"):
            assert np.array_equal(getattr(after, name), getattr(before, name)), name
        assert after.lengths == pytest.approx(before.lengths, rel=1e-9)
        assert after.spectrum.effective_rank == pytest.approx(before.spectrum.effective_rank, rel=1e-9)


@cache
def _in_nats(K: int, d: int, each: int) -> tuple[np.ndarray, np.ndarray, cs.Audit]:
    W, b, _ = planted(np.random.default_rng(5), K, d, each)
    return W, b, cs.audit(W, b)


@pytest.mark.parametrize(
    ("scale", "head"),  # at the last hardly any class is decided, which takes long
    [(1e-14, (200, 32, 6)), (1e-7, (200, 32, 6)), (1e7, (200, 32, 6)), (1e14, (100, 16, 4))],
)
def test_no_verdict_depends_on_the_unit_of_the_logits(scale: float, head: tuple[int, int, int]) -> None:
    """Biases are rounded in nats: in other units some classes are not decided, but none is decided otherwise."""
    W, b, before = _in_nats(*head)
    after = cs.audit(scale * W, scale * b)
    assert after.groups == before.groups
    assert after.spectrum.rank == before.spectrum.rank
    assert np.array_equal(after.shrunk, before.shrunk)
    assert before.reach is not None
    assert after.reach is not None
    assert not before.reach.undecided.any()
    assert np.array_equal(after.unreachable, before.unreachable & ~after.reach.undecided)


@pytest.mark.parametrize("scheme", ["torch.nn.Linear", "Kaiming (He)", "normal with deviation 0.02"])
def test_an_untrained_head_is_known_by_its_scheme(scheme: str) -> None:
    rng = np.random.default_rng(1)
    K, d = 200, 300
    deviation = np.sqrt(initial_variances(K, d)[scheme])
    W = (
        rng.uniform(-1, 1, (K, d)) * deviation * np.sqrt(3)
        if scheme.startswith("torch")
        else rng.normal(0, deviation, (K, d))
    )
    found = cs.audit(W)
    assert found.at_initialisation.mean() > 0.99
    assert found.scheme == scheme


def _single_linkage(distances: np.ndarray, tolerance: float) -> set[tuple[int, ...]]:
    labels = fcluster(linkage(distances, "single"), tolerance, "distance")
    groups = (tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels))
    return {group for group in groups if len(group) > 1}


@pytest.mark.parametrize("d", [1, 2, 5, 40, 200])
@pytest.mark.parametrize("seed", SEEDS)
def test_near_rows_are_those_that_all_pairs_find(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((400, d)) + 50
    points[100:130] = points[100] + 1e-3 * rng.standard_normal((30, d))
    points[200:220] = points[200]
    pairs = pdist(points)
    for tolerance in (0.0, 1e-4, 2e-3 * np.sqrt(d), 0.3, 1.0):
        found = set(groups_of(near_labels(points, tolerance)))
        assert found == _single_linkage(pairs, tolerance)
    nearest, distances = nearest_rows(points)
    table = squareform(pairs)
    np.fill_diagonal(table, np.inf)
    assert distances == pytest.approx(table.min(axis=1), rel=1e-12, abs=1e-14)
    assert table[np.arange(400), nearest] == pytest.approx(table.min(axis=1), rel=1e-12, abs=1e-14)


def test_rows_of_very_different_lengths_are_compared_with_few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounding of the longest row makes no candidates of all short ones: 77 for each row before, now 31."""
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((1500, 256)) * np.exp(1.5 * rng.standard_normal((1500, 1)))
    tolerance = 0.01 * longest_row(np.linalg.norm(rows - rows.mean(axis=0), axis=1))
    compared, distances = [], near_rows._distances  # pyright: ignore[reportPrivateUsage]

    def counted(rows: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        compared.append(len(i))
        return distances(rows, i, j)

    monkeypatch.setattr(near_rows, "_distances", counted)
    assert set(groups_of(near_labels(rows, tolerance))) == _single_linkage(pdist(rows), tolerance)
    assert sum(compared) < 45 * len(rows)


@pytest.mark.parametrize(
    ("groups", "audited", "diagnosed"),
    [(6, "1 more group holds 2", "3 more groups"), (4, "", "1 more group"), (7, "2 more groups hold 4", "4 more")],
)
def test_groups_that_are_not_named_are_counted(groups: int, audited: str, diagnosed: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    W = np.vstack([np.repeat(rng.normal(size=(groups, 16)), 2, axis=0), rng.normal(size=(2, 16))])
    assert audited in " ".join(cs.audit(W).to_dict()["words"])
    y = np.repeat(np.arange(len(W)), 20)
    X = W[y] - W.mean(axis=0) + 0.01 * rng.normal(size=(y.size, 16))
    np.savez(tmp_path / "net.npz", features=X, labels=y, weight=W, bias=np.zeros(len(W)))
    found = cs.diagnose(tmp_path / "net.npz")
    verb = "is" if groups == 4 else "are"
    assert f"{groups - 3} more group{'s' if groups > 4 else ''} {verb} merged" in found.headline
    assert diagnosed in next(words for words in found.words if words.startswith("Dead, "))


def test_a_chain_of_rows_is_no_group() -> None:
    W = np.zeros((40, 3))
    W[:20, 0] = 0.009 * np.arange(20)  # each within 1 % of the next, the ends far apart
    W[20:] = np.random.default_rng(0).standard_normal((20, 3))
    W[20:] /= np.linalg.norm(W[20:], axis=1, keepdims=True)
    found = cs.audit(W)
    assert max(np.ptp(W[list(group), 0]) for group in found.groups) <= 0.04
    assert len(found.groups) > 1


def test_counts_tell_where_classes_die() -> None:
    rng = np.random.default_rng(0)
    W, b, where = planted(rng, 1000, 64, 10)
    counts = rng.integers(50, 1000, 1000)
    for kind in KINDS:
        counts[where[kind]] = rng.integers(0, 50, 10)
    found = cs.audit(W, b, class_counts=counts)
    assert found.counts is not None
    assert found.counts.dies_below == counts[counts >= 50].min()
    assert found.counts.dead_below == 1.0
    assert f"below {found.counts.dies_below} samples" in found.summary


def test_theory_stands_beside_what_was_found() -> None:
    problem = cs.Problem("500x5,100x5", 0.006, 0.02)
    solution = cs.solve(problem)
    W, _, b = solution.factors(12, lambda_w=0.1)
    options = cs.AuditOptions(lambda_z=0.006, lambda_b=0.02)
    found = cs.audit(W.T, b, class_counts=problem.class_counts, options=options)
    lost = np.array([state != "separated" for state in solution.class_states])
    assert found.predicted["signed"].tolist() == lost.tolist()
    assert set(found.predicted) == {"signed", "nonnegative"}
    assert found.dead[lost].all()
    assert not found.dead[~lost].any()
    assert "5 of them dead here; 0 dead ones are separated there" in " ".join(found.words)


@pytest.mark.parametrize(("lambda_w", "merged"), [(6.0, 0), (6.5, 5)])  # they merge at 6.269
def test_the_normalised_model_stands_beside_a_head_behind_a_norm(lambda_w: float, merged: int) -> None:
    W = np.random.default_rng(0).standard_normal((12, 16))
    options = cs.AuditOptions(features=8.0, lambda_w=lambda_w, lambda_b=0.02)
    found = cs.audit(W, class_counts=[500] * 5 + [100] * 5 + [0, 0], options=options)
    assert list(found.predicted) == ["normalised"]
    assert np.flatnonzero(found.predicted["normalised"]).tolist() == [*range(10 - merged, 10), 10, 11]
    assert f"for normalised features has {merged + 2} classes merged or vanished" in " ".join(found.words)
    assert cs.thresholds(cs.Problem.from_normalized("500x5,100x5", lambda_w=1, norm=8, lambda_b=0.02)).merge[
        9
    ] == pytest.approx(6.269, abs=1e-3)


def test_what_the_theory_leaves_out_is_said() -> None:
    W = np.random.default_rng(0).standard_normal((30, 16))
    found = cs.audit(W, class_counts=np.arange(1, 31), options=cs.AuditOptions(lambda_z=0.01))
    assert list(found.predicted) == ["signed"]
    assert "nonnegative features loses at these counts is left out: 30 different counts" in " ".join(found.notes)
    assert "depends on `class_counts`" in " ".join(cs.audit(W, options=cs.AuditOptions(lambda_z=0.01)).notes)


def test_the_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    lengths, counts = rng.random(50), rng.integers(0, 9, 50)
    effect = count_effect(lengths, -lengths, counts, lengths < 0.1)
    assert effect.length_correlation == pytest.approx(spearmanr(lengths, counts)[0])
    assert effect.bias_correlation == pytest.approx(-effect.length_correlation)


def test_samples_of_dead_classes_are_seen_to_go_to_others() -> None:
    W = np.array([[1.0, 0], [0, 1], [-1, 0], [-1, 0]])
    b = np.array([0.0, 0, 0.1, 0])
    features, labels = np.array([[2.0, 0], [0, 2], [-2, 0], [-2, 0], [-2, 0]]), np.array([0, 1, 2, 3, 3])
    found = cs.audit(W, b, features=features, labels=labels)
    assert found.recalls is not None
    assert found.recalls.recall.tolist() == [1, 1, 1, 0]
    assert found.recalls.taken_by.tolist() == [-1, -1, -1, 2]
    assert found.recalls.predicted.tolist() == [1, 1, 3, 0]
    record: Any = found.to_dict()
    assert record["recalls"]["dead"][1] == {
        "class": 3, "samples": 2, "recall": 0.0, "predicted": 0, "taken_by": 2,
    }  # fmt: skip


GOOD = np.random.default_rng(0).standard_normal((6, 4))
HOLED = np.where(np.arange(24).reshape(6, 4) == 9, np.nan, GOOD)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": np.zeros(4)}, r"`weight` must be \(K, d\)"),
        ({"weight": np.zeros((1, 4))}, "two or more classes"),
        ({"weight": HOLED}, "`weight` must be finite; row 2 is not"),
        ({"weight": 1e200 * GOOD}, r"`weight` must be below 1e\+100; row 0 is not"),
        ({"weight": 1e20 * GOOD}, "scale weight and bias by one number"),
        ({"weight": 1e-40 * GOOD}, "scale weight and bias by one number"),
        ({"weight": GOOD, "bias": np.zeros(5)}, r"`bias` must be \(K,\) = \(6,\)"),
        ({"weight": GOOD, "bias": np.full(6, np.inf)}, "`bias` must be finite"),
        ({"weight": GOOD, "class_names": ["a"]}, "hold one name for each of 6 classes, got 1"),
        ({"weight": GOOD, "class_counts": [1, 2]}, "a number for each of the 6 rows"),
        ({"weight": GOOD, "class_counts": [1, 2, 3, 4, 5, -1]}, "whole numbers >= 0"),
        ({"weight": GOOD, "features": np.zeros((3, 4))}, "`features` and `labels` go together"),
        ({"weight": GOOD, "features": np.zeros((3, 5)), "labels": [0, 1, 2]}, r"`features` must be \(N, 4\)"),
        ({"weight": GOOD, "features": np.zeros((3, 4)), "labels": [0, 1, 6]}, "from 0 to 5"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cs.audit(**arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"tolerance": 0.0},
        {"tolerance": np.nan},
        {"features": "relu"},
        {"features": -1.0},
        {"lambda_w": 0.1},
        {"largest_reach": np.nan},
    ],
)
def test_bad_options_are_named(options: dict) -> None:
    with pytest.raises(ValueError, match=r"`tolerance`|`features`|`lambda_w`|`largest_reach`"):
        cs.AuditOptions(**options)


def test_the_record_is_standard_json() -> None:
    W, b, _ = planted(np.random.default_rng(0), 500, 32, 5)
    found = cs.audit(W, b, class_counts=np.arange(500), class_names=[f"n{k}" for k in range(500)])
    record = json.loads(found.to_json())
    assert record["dead"] == np.flatnonzero(found.dead).tolist()
    assert [tuple(group["classes"]) for group in record["groups"]] == list(found.groups)


def test_a_head_of_equal_rows_is_dead_as_a_whole() -> None:
    found = cs.audit(np.ones((5, 3)), np.arange(5.0))
    assert found.dead.all()
    assert found.groups == ((0, 1, 2, 3, 4),)


def test_a_diagnosis_counts_classes_that_share_a_row() -> None:
    """Their mean predictions are apart, their rows are not: no sample tells them from one another."""
    from collapsar.diagnose.diagnosis import diagnose_measurement
    from collapsar.diagnose.measurement import measure

    W = np.vstack([np.eye(5) - 0.2, (np.eye(5) - 0.2)[3:4]])  # the last two of six classes have one row
    means = np.vstack([3 * np.eye(5), 3 * np.eye(5)[3:4] + [0, 0, 0, -1, 1.5]])
    found = diagnose_measurement(measure(means.repeat(4, axis=0), np.arange(6).repeat(4), W, np.zeros(6)))
    assert found.separation.states == ("separated",) * 6
    assert found.shared_rows == ((3, 5),)
    assert found.dead == (3, 5)
    assert "2 of 6 classes are dead, with the same rows of the head as others: 3 and 5." in found.headline
    assert found.num_gone == 2
    assert found.to_dict().get("num_dead") == 2


def test_a_head_with_a_bias_is_compared_with_the_optimum_that_has_one() -> None:
    """Alone in its size the smallest class is merged at the optimum with a free bias, and separated without one."""
    n = [200, 129, 84, 54, 35, 23, 15, 10, 6, 4]
    W = np.random.default_rng(0).standard_normal((10, 64))
    for b, lambda_b in ((np.zeros(10), 0.0), (None, np.inf)):
        p = cs.Problem.from_normalized(n, lambda_w=0.6, norm=8.0, over="sample", lambda_b=lambda_b)
        lost = [state != "separated" for state in cs.solve(p).class_states]
        assert sum(lost) == (b is not None)
        found = cs.audit(W, b, class_counts=n, options=cs.AuditOptions(features=8.0, lambda_w=0.6))
        assert found.predicted["normalised"].tolist() == lost
        said = cs.AuditOptions(features=8.0, lambda_w=0.6, lambda_b=lambda_b)
        assert cs.audit(W, b, class_counts=n, options=said).predicted["normalised"].tolist() == lost
