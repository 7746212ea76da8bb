"""Which classes are merging: exact optima, constructed cases, and stability where features vanish."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

from collapsar import metrics
from collapsar.metrics import class_moments, class_separation, cluster_contrasts, collapse_report
from collapsar.metrics.separation import class_logits, mean_separation


def relative(Z):
    """Lengths of the centred columns, shape (K,), and their distances, (K, K), over the longest, at least .05."""
    columns = (Z - Z.mean(axis=0)).T
    lengths = np.linalg.norm(columns, axis=1)
    longest = max(float(np.nanmax(lengths)), 0.05)
    return lengths / longest, squareform(pdist(columns)) / longest


def blocks(k_a, k_b, a, b, c, d):
    """Mean predictions of two clusters of classes in the form of Hong & Ling (2024), (5.16)."""
    K = k_a + k_b
    Z = np.zeros((K, K))
    Z[:k_a, :k_a] = a * (k_a * np.eye(k_a) - 1) + c * k_b * np.eye(k_a)
    Z[:k_a, k_a:], Z[k_a:, :k_a] = -b, -c
    Z[k_a:, k_a:] = d * (k_b * np.eye(k_b) - 1) + b * k_a * np.eye(k_b)
    return Z


# The exact optimum for 5 classes of 500 and 5 of 100 samples, λ_b = 0.02: (a, b, c, d) from the scalar equations
# (5.16)-(5.51) of Hong & Ling (2024) and a bracketed root finder. Merge threshold √100/3000 = .00333, vanish
# threshold .003983; above it b = c = d = 0 and any positive a does.
OPTIMA = {
    0.0030: (0.4266237654962852, 0.30114526802008634, 0.08752544240926802, -0.12901859133479154),
    0.0032: (0.41779632858593463, 0.2613774215374276, 0.07493164801748581, -0.17832348713538781),
    0.0034: (0.4142691446582577, 0.2038483547451546, 0.057855131460640495, -0.2038483547451546),
    0.0036: (0.4133158819546039, 0.13768940816117028, 0.03876279373220672, -0.13768940816117028),
    0.0039: (0.4139348665577357, 0.031446285876832195, 0.008762743823887042, -0.031446285876832195),
    0.0045: (0.41, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize(
    ("lambda_z", "state"),
    [
        (0.0030, "separated"),
        (0.0032, "separated"),
        (0.0034, "merged"),
        (0.0036, "merged"),
        (0.0039, "merged"),
        (0.0045, "vanished"),
    ],
)
def test_states_of_the_exact_optimum_at_the_papers_counts(lambda_z, state):
    """Measured from features and a head that realise the optimum, through the whole pipeline."""
    a, b, c, d = OPTIMA[lambda_z]
    Z = blocks(5, 5, a, b, c, d)
    U, sigma, Vt = np.linalg.svd(Z)
    W, H = U * np.sqrt(sigma), Vt.T * np.sqrt(sigma)
    labels = np.repeat(np.arange(10), [50] * 5 + [10] * 5)
    report = collapse_report(class_moments(H[labels], labels, 10), W)
    assert report.Z is not None
    np.testing.assert_allclose(report.Z, Z, atol=1e-12)
    found = report.separation()
    assert found.states == ("separated",) * 5 + (state,) * 5
    assert found.groups == (() if state == "separated" else (tuple(range(5, 10)),))
    assert found.num_distinct == (10 if state == "separated" else 5)
    alphas = cluster_contrasts(report.Z, [500] * 5 + [100] * 5)
    np.testing.assert_allclose(alphas, [5 * d + 5 * b, 5 * a + 5 * c], atol=1e-12)  # sorted labels: 100, 500
    assert bool(alphas[0] > 1e-9) is (state == "separated")


def test_numbers_against_loops():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(5, 4)) + 7.0
    columns = (Z - Z.mean(axis=0)).T
    longest = max(math.sqrt(sum(x * x for x in z)) for z in columns)
    found = class_separation(Z)
    assert found.scale == pytest.approx(longest)
    for i in range(4):
        assert found.relative_norms[i] == pytest.approx(np.linalg.norm(columns[i]) / longest)
        distances = {j: np.linalg.norm(columns[i] - columns[j]) / longest for j in range(4) if j != i}
        assert found.nearest[i] == min(distances, key=distances.__getitem__)
        assert found.nearest_separation[i] == pytest.approx(min(distances.values()))


@pytest.mark.parametrize(
    ("offset", "merged", "groups"),
    [
        (0.101, (), ()),
        (0.099, (1, 2, 3), ((1, 2, 3),)),
    ],
)
def test_both_sides_of_the_merge_threshold(offset, merged, groups):
    """Three columns at equal distance just above or below a tenth of the longest, of length 1."""
    logits = np.linalg.qr(np.column_stack([np.ones(6), np.eye(6)[:, :5]]))[0][:, 1:]  # orthonormal, centred
    Z = np.column_stack([logits[:, 0], *(0.5 * logits[:, 1] + offset / math.sqrt(2) * logits[:, k] for k in (2, 3, 4))])
    found = class_separation(Z)
    np.testing.assert_allclose(relative(Z)[1][1:, 1:], offset * (1 - np.eye(3)), atol=1e-12)
    assert found.merged_classes == merged
    assert found.groups == groups


@pytest.mark.parametrize(("length", "state"), [(0.051, "separated"), (0.049, "vanished")])
def test_both_sides_of_the_vanish_threshold(length, state):
    Z = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) * 10
    Z[:, 2] = length * np.array([1.0, 1.0, -2.0]) * 10 / math.sqrt(3)
    found = class_separation(Z)
    assert found.relative_norms[2] == pytest.approx(length)
    assert found.states == ("separated", "separated", state)
    assert found.groups == ()


def test_a_chain_of_shrinking_classes_is_not_one_group():
    """Neighbours are 0.06 apart, the ends 0.54: every pair of a group stays within the threshold."""
    lengths = np.linspace(1.0, 0.46, 10)
    Z = np.outer([1.0, -1.0], lengths)
    found = class_separation(Z)
    _, distances = relative(Z)
    assert len(found.groups) > 1
    for group in found.groups:
        assert distances[np.ix_(group, group)].max() < 0.1
    assert set(found.merged_classes) == {k for group in found.groups for k in group}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1.0, 1e6), shift=st.floats(-1e3, 1e3))
def test_states_follow_permutations_and_ignore_scale_and_common_shifts(seed, scale, shift):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(6, 6))
    Z[:, 4], Z[:, 5] = Z[:, 3] + 0.01 * rng.normal(size=6), 0.001 * rng.normal(size=6)
    order = rng.permutation(6)
    base = class_separation(Z)
    moved = class_separation(scale * (Z + rng.normal(size=6) * shift)[:, order])
    assert base.states[3:] == ("merged", "merged", "vanished")
    assert moved.states == tuple(base.states[k] for k in order)
    named = [tuple(sorted(order[list(group)].tolist())) for group in moved.groups]
    assert sorted(named) == list(base.groups)


@pytest.mark.parametrize("noise", [0.0, 1e-300, 1e-8, 1e-3, 0.015])
def test_complete_collapse_is_not_blown_up_to_structure(noise):
    Z = noise * np.random.default_rng(0).normal(size=(4, 4))
    found = class_separation(Z)
    assert found.states == ("vanished",) * 4
    assert found.groups == ((0, 1, 2, 3),)
    assert found.num_distinct == 0
    assert np.isfinite(found.relative_norms).all()
    assert np.isfinite(found.nearest_separation).all()


@pytest.mark.parametrize(
    ("unseen", "states", "nearest"),
    [
        ((), ("separated",) * 3, (1, 0, 0)),
        ((1,), ("separated", "unseen", "separated"), (2, -1, 0)),
        ((0, 1), ("unseen", "unseen", "separated"), (-1, -1, -1)),
        ((0, 1, 2), ("unseen",) * 3, (-1, -1, -1)),
    ],
)
def test_unseen_classes_are_named(unseen, states, nearest):
    Z = np.array([[3.0, -1.0, -1.5], [-1.0, 3.0, -1.5], [-2.0, -2.0, 3.0]])
    Z[:, list(unseen)] = np.nan
    found = class_separation(Z)
    assert found.states == states
    assert found.unseen_classes == unseen
    assert tuple(found.nearest) == nearest
    assert np.isnan(found.nearest_separation).tolist() == [k < 0 for k in nearest]
    alphas = cluster_contrasts(Z, ["x", "x", "y"])
    assert np.isnan(alphas).tolist() == [bool(unseen), True]


def test_tensors_of_any_dtype_are_read():
    means, weight = torch.eye(3).bfloat16(), torch.nn.Parameter(2 * torch.eye(3))
    Z = class_logits(means, weight)
    np.testing.assert_array_equal(Z, 2 * np.eye(3))
    assert class_separation(torch.from_numpy(Z)).states == ("separated",) * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: class_separation(np.eye(3), merge_threshold=1.0),
            "`merge_threshold` must lie strictly between",
        ),
        (
            lambda: class_separation(np.eye(3), vanish_threshold=math.nan),
            "`vanish_threshold` must .* got nan",
        ),
        (lambda: class_separation(np.eye(3), min_norm=0.0), "`min_norm` must be finite and positive"),
        (lambda: class_separation(np.zeros(3)), r"`Z` must be a matrix \(logit, class\); got shape \(3,\)"),
        (lambda: class_separation([[np.nan, 1.0], [0.0, 0.0]]), "finite except for all-NaN columns"),
        (lambda: cluster_contrasts(np.eye(3), [0, 1]), r"got \(3, 3\) and \(2,\)"),
        (lambda: class_logits(np.eye(3), np.eye(2)), r"must share d; got \(3, 3\) and \(2, 2\)"),
        (lambda: class_logits(np.eye(2), np.full((2, 2), np.inf)), "`weight` must be finite"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_name_of_the_door_is_there_and_no_other():
    assert all(getattr(metrics, name) is not None for name in metrics.__all__)
    assert not hasattr(metrics, "missing")


@pytest.mark.parametrize(("K", "d", "seed"), [(60, 8, 0), (200, 20, 1), (700, 30, 2), (40, 100, 3), (600, 10, 4)])
def test_states_from_means_and_head_are_those_of_all_pairs(K, d, seed):
    """Sets of near columns, linked one by one, are what one complete linkage of all of them gives."""
    from scipy.cluster.hierarchy import fcluster, linkage

    rng = np.random.default_rng(seed)
    means, weight = rng.standard_normal((K, d)), rng.standard_normal((K, d))
    means[K // 2 : K // 2 + 8] = means[K // 2] + 0.02 * rng.standard_normal((8, d))
    means[3], means[-5:], means[0] = means[4], 1e-3 * means[-5:], np.nan
    Z = class_logits(means, weight)
    found, (norms, distances) = mean_separation(means, weight), relative(Z)
    alive = np.flatnonzero(norms >= 0.05)
    tree = linkage(squareform(distances[np.ix_(alive, alive)], checks=False), "complete")
    labels = fcluster(tree, np.nextafter(0.1, 0), "distance")
    groups = {tuple(alive[labels == label].tolist()) for label in np.unique(labels)}
    assert set(found.groups) == {g for g in groups if len(g) > 1} | {tuple(np.flatnonzero(norms < 0.05).tolist())}
    rivals = np.where(np.eye(K, dtype=bool) | np.isnan(distances), np.inf, distances)
    assert found.nearest[0] == -1
    np.testing.assert_allclose(found.nearest_separation[1:], rivals.min(axis=1)[1:], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        rivals[np.arange(1, K), found.nearest[1:]], rivals.min(axis=1)[1:], rtol=1e-9, atol=1e-12
    )
    from_table = class_separation(Z)
    assert (from_table.states, from_table.groups) == (found.states, found.groups)


@pytest.mark.slow
def test_thousands_of_classes_need_no_table():
    """A head as large as a text recogniser's, in a process of its own: no table of all pairs."""

    code = """
import resource, numpy as np
from collapsar.metrics import mean_separation
rng = np.random.default_rng(0)
means, weight = rng.standard_normal((2, 6625, 120))
means[:200] = means[0] + 1e-3 * rng.standard_normal((200, 120))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = mean_separation(means, weight)
print(len(found.groups[0]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, kib = map(float, done.stdout.split())
    assert size == 200
    assert kib < 300 * 1024
