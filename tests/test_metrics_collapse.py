"""Every metric against naive float64 loops, on geometries with exact values, and where it is undefined."""

import json
import math

import numpy as np
import pytest
import torch

import collapsar as cs
from collapsar.metrics import ClassMoments, cdnv, class_moments, collapse_report, nc1, pairs, tiles
from collapsar.metrics.angles import etf_distance
from collapsar.metrics.centers import center_agreement, nearest_centers
from collapsar.metrics.collapse import equinorm
from collapsar.metrics.pairs import cdnv_between_clusters, cdnv_matrix, points_of

SCALARS = [
    "nc1_uniform",
    "nc1_weighted",
    "nc1_trace_ratio",
    "cdnv",
    "cdnv_max",
    "nc2_equinorm",
    "nc2_equiangular",
    "nc2_maximal_angle",
    "nc2_etf",
    "nc3_self_duality",
    "nc0",
    "nc0_relative",
    "within_trace",
    "between_trace",
]


def naive(features, labels, W):
    """Every scalar by its definition, with loops over samples, classes and pairs."""
    H, y, W = (np.asarray(x, dtype=np.float64 if i != 1 else int) for i, x in enumerate((features, labels, W)))
    classes = [k for k in range(len(W)) if (y == k).any()]
    N, K, d = len(y), len(classes), H.shape[1]
    n = {k: int((y == k).sum()) for k in classes}
    mu = {k: sum(h for h, label in zip(H, y, strict=True) if label == k) / n[k] for k in classes}
    grand, center = H.mean(axis=0), sum(mu.values()) / K
    within, variance = np.zeros((d, d)), dict.fromkeys(classes, 0.0)
    for h, k in zip(H, y, strict=True):
        within += np.outer(h - mu[k], h - mu[k]) / N
        variance[k] += ((h - mu[k]) ** 2).sum() / n[k]
    uniform = sum(np.outer(mu[k] - grand, mu[k] - grand) for k in classes) / K
    weighted = sum(n[k] * np.outer(mu[k] - grand, mu[k] - grand) for k in classes) / N
    M, V = np.array([mu[k] - center for k in classes]), W[classes]
    norms = np.linalg.norm(M, axis=1)
    every = [(i, j) for i in range(K) for j in range(i)]
    cosines = np.array([M[i] @ M[j] / norms[i] / norms[j] for i, j in every])
    ratios = [(variance[classes[i]] + variance[classes[j]]) / 2 / np.square(M[i] - M[j]).sum() for i, j in every]
    gram = M @ M.T
    return {
        "nc1_uniform": np.trace(within @ np.linalg.pinv(uniform, rcond=1e-12, hermitian=True)) / K,
        "nc1_weighted": np.trace(within @ np.linalg.pinv(weighted, rcond=1e-12, hermitian=True)) / K,
        "nc1_trace_ratio": np.trace(within) / np.trace(weighted),
        "within_trace": np.trace(within),
        "between_trace": np.trace(weighted),
        "cdnv": np.mean(ratios),
        "cdnv_max": np.max(ratios),
        "nc2_equinorm": norms.std() / norms.mean(),
        "nc2_equiangular": cosines.std(),
        "nc2_maximal_angle": np.abs(cosines + 1 / (K - 1)).mean(),
        "nc2_etf": np.linalg.norm(gram / np.linalg.norm(gram) - (np.eye(K) - 1 / K) / math.sqrt(K - 1)),
        "nc3_self_duality": np.linalg.norm(V / np.linalg.norm(V) - M / np.linalg.norm(M)),
        "nc0": np.linalg.norm(W.sum(axis=0)),
        "nc0_relative": np.linalg.norm(W.sum(axis=0)) / np.linalg.norm(W, axis=1).sum(),
    }


def long_tail(num_classes, dim, seed=0, spread=0.5, shift=0.0, unseen=()):
    rng = np.random.default_rng(seed)
    counts = [0 if k in unseen else 2 + 60 // (k + 1) for k in range(num_classes)]
    labels = rng.permutation(np.repeat(np.arange(num_classes), counts))
    centres = shift + rng.normal(size=(num_classes, dim))
    features = centres[labels] + spread * rng.normal(size=(len(labels), dim))
    return (
        features.astype(np.float32),
        labels,
        rng.normal(size=(num_classes, dim)),
        rng.normal(size=num_classes),
    )


@pytest.mark.parametrize("side", [768, 6])  # the second crosses every seam of the sweeps over pairs
@pytest.mark.parametrize(
    "case",
    [
        {"num_classes": 2, "dim": 3},
        {"num_classes": 6, "dim": 9},
        {"num_classes": 9, "dim": 9},
        {"num_classes": 14, "dim": 5},
        {"num_classes": 8, "dim": 12, "unseen": (0, 5)},
        {"num_classes": 5, "dim": 7, "spread": 1e-4, "shift": 10.0},
    ],
    ids=lambda case: "-".join(f"{k}{v}" for k, v in case.items()),
)
def test_every_metric_equals_its_definition(case, side, monkeypatch):
    monkeypatch.setitem(tiles._SIDE, "cpu", side)
    features, labels, W, b = long_tail(**case)
    report = collapse_report(class_moments(features, labels, len(W)), W, b)
    scalars, expected = report.scalars(), naive(features, labels, W)
    assert set(expected) == set(SCALARS)
    for name in SCALARS:
        assert scalars[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-12), name
    means = np.array([features[labels == k].astype(float).mean(axis=0) for k in range(len(W)) if k in labels])
    seen = np.unique(labels)
    assert report.Z is not None
    np.testing.assert_allclose(report.Z[:, seen], W @ means.T, rtol=1e-9)
    np.testing.assert_array_equal(report.b, b)
    np.testing.assert_allclose(report.mean_of_class_means, means.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(report.sample_mean, features.astype(float).mean(axis=0), rtol=1e-9)
    assert report.nc1_rank == min(len(seen) - 1, features.shape[1])


def test_nc1_of_1e_minus_8_with_means_1e5_spreads_from_the_origin():
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(5), [400, 300, 200, 50, 10])
    centres = 1e3 * np.ones(8) / np.sqrt(8) + 60 * rng.normal(size=(5, 8))
    features = (centres[labels] + 1e-2 * rng.normal(size=(960, 8))).astype(np.float32)
    report = collapse_report(class_moments(features, labels, 5))
    expected = naive(features, labels, np.ones((5, 8)))
    assert 1e-9 < expected["nc1_uniform"] < 1e-7
    assert report.nc1_uniform == pytest.approx(expected["nc1_uniform"], rel=1e-3)
    assert report.nc1_weighted == pytest.approx(expected["nc1_weighted"], rel=1e-3)


def test_per_class_and_per_pair_versions():
    features, labels, W, _ = long_tail(7, 5, seed=3, unseen=(2,))
    moments = class_moments(features, labels, 7)
    report, matrix = collapse_report(moments, W, num_worst=4), cdnv_matrix(moments).numpy()
    for i in range(7):
        for j in range(7):
            a, b = features[labels == i].astype(float), features[labels == j].astype(float)
            if i == j or 2 in (i, j):
                assert math.isnan(matrix[i, j])
                continue
            gap = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
            assert matrix[i, j] == pytest.approx((a.var(axis=0).sum() + b.var(axis=0).sum()) / 2 / gap, rel=1e-9)
    seen = [0, 1, 3, 4, 5, 6]
    best = np.nanmax(matrix[seen], axis=1)
    np.testing.assert_allclose(report.cdnv_worst[seen], best, rtol=1e-9)
    np.testing.assert_array_equal(report.cdnv_rival[seen], np.nanargmax(matrix[seen], axis=1))
    assert report.cdnv_rival[2] == -1
    assert math.isnan(report.cdnv_worst[2])
    ranked = sorted(((matrix[i, j], i, j) for i in range(7) for j in range(i + 1, 7) if 2 not in (i, j)), reverse=True)
    assert [tuple(pair) for pair in report.worst_pairs.tolist()] == [(i, j) for _, i, j in ranked[:4]]
    np.testing.assert_allclose(report.worst_pair_cdnv, [value for value, _, _ in ranked[:4]], rtol=1e-9)
    np.testing.assert_allclose(cdnv_matrix(moments, [5], [0, 2, 5]).numpy(), matrix[[5]][:, [0, 2, 5]], rtol=1e-9)
    blocks = cdnv_between_clusters(moments, [0, 0, 0, 1, 1, 2, 3]).numpy()
    assert blocks[0, 0] == pytest.approx(matrix[0, 1])
    assert blocks[0, 1] == blocks[1, 0] == pytest.approx(matrix[:2, 3:5].mean())
    assert math.isnan(blocks[2, 2])
    np.testing.assert_allclose(report.cdnv_between([0, 0, 0, 1, 1, 2, 3]), blocks, rtol=1e-12)
    counts = report.class_counts  # the long tail's: all different but for the class that is not seen
    order = np.argsort(counts)
    np.testing.assert_allclose(report.cdnv_between(), matrix[order][:, order], rtol=1e-9)
    np.testing.assert_allclose(report.within_variances[0], features[labels == 0].astype(float).var(axis=0).sum())
    np.testing.assert_allclose(
        report.center_norms[3], np.linalg.norm(report.class_means[3] - report.mean_of_class_means)
    )


def test_nearly_merged_pairs_keep_their_digits():
    """Two far classes 1e-5 apart: through ‖x‖² + ‖y‖² − 2⟨x, y⟩ the distance would lose six digits."""
    means = np.array([[50.0, 0.0], [50.0, 1e-5], [-100.0, 3.0]])
    step = np.array([1e-6, 0.0])
    features = np.concatenate([means + step, means - step])
    found = cdnv(class_moments(features, [0, 1, 2] * 2, 3))
    assert found.worst_pairs[0].tolist() == [0, 1]
    assert found.worst_values[0].item() == pytest.approx(1e-12 / 1e-10, rel=1e-8)
    assert found.mean == pytest.approx(1e-2 / 3, rel=1e-6)


@pytest.mark.parametrize("shape", [(3, 8), (6, 5), (7, 5), (40, 3)])
def test_etf_distance_of_vectors_that_are_not_centred(shape):
    vectors = np.random.default_rng(0).normal(size=shape) + 0.5
    gram, K = vectors @ vectors.T, shape[0]
    expected = np.linalg.norm(gram / np.linalg.norm(gram) - (np.eye(K) - 1 / K) / math.sqrt(K - 1))
    assert etf_distance(torch.from_numpy(vectors)) == pytest.approx(expected, rel=1e-10)


def isotropic(means, counts, eps):
    """Samples μ_k ± ε e_i, counts[k] times over: the within-class covariance is ε²/d times the identity."""
    d = means.shape[1]
    stars = np.concatenate([means[:, None] + eps * np.eye(d), means[:, None] - eps * np.eye(d)], axis=1)
    features = np.concatenate([np.tile(stars[k], (counts[k], 1)) for k in range(len(means))])
    return features, np.repeat(np.arange(len(means)), 2 * d * np.asarray(counts))


@pytest.mark.parametrize("counts", [(3, 3, 3, 3), (9, 4, 1, 1)], ids=["balanced", "imbalanced"])
@pytest.mark.parametrize("frame", ["simplex", "orthogonal"])
def test_exact_values_on_simplex_etf_and_orthogonal_frame(frame, counts):
    """Both frames have the same centred means, so NC2 is the ETF's; NC1 has a closed form for any counts."""
    K, a, eps = 4, 3.0, 0.1
    shift = 1 / K if frame == "simplex" else 0.0
    means = np.zeros((K, 6))
    means[:, 1:5] = a * (np.eye(K) - shift)
    features, labels = isotropic(means, counts, eps)
    report = collapse_report(class_moments(features, labels, K), means)
    p, s = np.array(counts) / sum(counts), eps**2 / 6
    assert report.nc1_weighted == pytest.approx(s * (1 - 1 / K) * (1 / p).sum() / (K * a**2), rel=1e-10)
    assert report.nc1_uniform == pytest.approx(s * (K - 2 + 1 / (K * p @ p)) / a**2, rel=1e-10)
    assert report.nc1_trace_ratio == pytest.approx(eps**2 / (a**2 * (1 - p @ p)), rel=1e-10)
    assert report.cdnv == pytest.approx(eps**2 / (2 * a**2), rel=1e-10)
    np.testing.assert_allclose(report.within_variances, eps**2, rtol=1e-10)
    np.testing.assert_allclose(report.center_norms, a * math.sqrt(1 - 1 / K), rtol=1e-12)
    for name in ("nc2_equinorm", "nc2_equiangular", "nc2_maximal_angle", "nc2_etf"):
        assert getattr(report, name) == pytest.approx(0, abs=1e-12), name
    # The head of the orthogonal frame has norm a√K, its projection on the ETF a√(K−1).
    duality = 0 if frame == "simplex" else math.sqrt(2 - 2 * math.sqrt((K - 1) / K))
    assert report.nc3_self_duality == pytest.approx(duality, abs=1e-7)
    assert report.nc0 == pytest.approx(0 if frame == "simplex" else a * math.sqrt(K), abs=1e-12)
    assert report.nc0_relative == pytest.approx(0 if frame == "simplex" else 1 / math.sqrt(K), abs=1e-12)


@pytest.mark.parametrize(("n_a", "n_b"), [(50, 50), (500, 100), (5000, 10)])
def test_seli_geometry(n_a, n_b):
    """W = Σ^{1/2}Uᵀ, H = Σ^{1/2}VᵀD^{-1/2} of C_K D^{1/2} = UΣVᵀ predicts C_K; an ETF only when balanced."""
    k_a, k_b = 3, 4
    K, n = k_a + k_b, np.array([n_a] * k_a + [n_b] * k_b)
    U, sigma, Vt = np.linalg.svd((np.eye(K) - 1 / K) * np.sqrt(n))
    U, sigma, Vt = U[:, : K - 1], sigma[: K - 1], Vt[: K - 1]  # the root of a rounded zero is 1e-8
    W, H = (np.sqrt(sigma)[:, None] * U.T).T, (np.sqrt(sigma)[:, None] * Vt / np.sqrt(n)).T
    features, labels = isotropic(H, [1] * K, 1e-3)
    report = collapse_report(class_moments(features, labels, K), W)
    assert report.Z is not None
    np.testing.assert_allclose(report.Z, np.eye(K) - 1 / K, atol=1e-10)
    assert report.nc0 == pytest.approx(0, abs=1e-10)
    assert report.separation().states == ("separated",) * K
    # Closed form of the two-cluster SELI head: rows of A and of B have these squared norms.
    mixed = math.sqrt((k_b * n_a + k_a * n_b) / K)
    squared = [math.sqrt(n_a) * (1 - 1 / k_a) + mixed * k_b / (k_a * K)] * k_a
    squared += [math.sqrt(n_b) * (1 - 1 / k_b) + mixed * k_a / (k_b * K)] * k_b
    norms = np.sqrt(squared)
    assert equinorm(torch.from_numpy(W)) == pytest.approx(norms.std() / norms.mean(), abs=1e-10)
    balanced = n_a == n_b
    for name in ("nc2_equinorm", "nc2_equiangular", "nc2_etf", "nc3_self_duality"):
        assert (getattr(report, name) < 1e-7) is balanced, name


@pytest.mark.parametrize(
    ("lambda_z", "state", "rank"), [(0.0027, "separated", 9), (0.0037, "merged", 5), (0.0045, "vanished", 4)]
)
def test_the_exact_optimum_at_the_papers_counts(lambda_z, state, rank):
    """Every metric of its factors, against its value from the Gram matrices and Z, which are unique."""
    K, d, eps, n = 10, 12, 1e-3, np.array([5] * 5 + [1] * 5)
    s = cs.solve(cs.Problem("500x5,100x5", lambda_z=lambda_z, lambda_b=0.02))
    W, H, b = s.factors(d, lambda_w=lambda_z, lambda_h=lambda_z)
    report = collapse_report(class_moments(*isotropic(H.T, n, eps), K), W.T, b)
    C, p, pairs = np.eye(K) - 1 / K, n / n.sum(), np.triu_indices(K, 1)
    gram = C @ s.feature_gram() @ C
    norms = np.sqrt(np.where(gram.diagonal() > 1e-9, gram.diagonal(), 0))
    with np.errstate(invalid="ignore", divide="ignore"):  # a vanished class has no angle
        cosines = np.where(norms.min() > 0, gram / np.outer(norms, norms), np.nan)[pairs]
    about_sample_mean = (np.eye(K) - p) @ s.feature_gram() @ (np.eye(K) - p).T
    nonzero = np.linalg.eigvalsh(about_sample_mean)[-rank:]
    weighted = np.linalg.eigvalsh(about_sample_mean * np.sqrt(np.outer(p, p)))[-rank:]
    distances = (gram.diagonal()[:, None] + gram.diagonal() - 2 * gram)[pairs]
    distances[distances < 1e-9] = 0
    with np.errstate(divide="ignore"):
        ratios = eps**2 / distances
    aligned = np.trace(s.Z) / math.sqrt(np.trace(s.classifier_gram()) * np.trace(gram))
    duality = 2 - 2 * aligned if 2 - 2 * aligned > 1e-11 else 0.0  # roots of zero eigenvalues are rounding
    expected = {
        "nc1_uniform": eps**2 / d * (1 / nonzero).sum(),
        "nc1_weighted": eps**2 / d * (1 / weighted).sum() / K,
        "nc1_trace_ratio": eps**2 / (p @ about_sample_mean.diagonal()),
        "cdnv": ratios.mean(),
        "cdnv_max": ratios.max(),
        "nc2_equinorm": norms.std() / norms.mean(),
        "nc2_equiangular": cosines.std(),
        "nc2_maximal_angle": np.abs(cosines + 1 / (K - 1)).mean(),
        "nc2_etf": np.linalg.norm(gram / np.linalg.norm(gram) - C / math.sqrt(K - 1)),
        "nc3_self_duality": math.sqrt(duality),
        "nc0_relative": 0.0,
        "nc1_rank": rank,
    }
    scalars = report.scalars()
    for name, value in expected.items():
        assert scalars[name] == pytest.approx(value, rel=1e-6, abs=1e-7, nan_ok=True), name
    assert math.isnan(scalars["nc2_equiangular"]) is (state == "vanished")
    assert (scalars["cdnv"] == math.inf) is (state != "separated")
    assert report.Z is not None
    np.testing.assert_allclose(report.Z, s.Z, atol=1e-7)
    assert report.separation().states == ("separated",) * 5 + (state,) * 5


def test_merged_minority_loses_rank_and_is_named():
    means = np.diag([4.0, 3.0, 2.0, 0.0, 0.0])
    means[3:, 3] = 1.0
    features, labels = isotropic(means, [5, 4, 3, 1, 1], 0.01)
    report = collapse_report(class_moments(features, labels, 5), means)
    with np.errstate(divide="ignore"):
        expected = naive(features, labels, means)
    assert report.nc1_rank == 3
    assert report.nc1_uniform == pytest.approx(expected["nc1_uniform"], rel=1e-8)
    assert report.cdnv == expected["cdnv"] == math.inf
    assert report.worst_pairs[0].tolist() == [3, 4]
    assert report.cdnv_rival.tolist()[3:] == [4, 3]
    assert report.separation().states == ("separated",) * 3 + ("merged",) * 2


def test_rank_tolerance_decides_whether_a_nearly_merged_direction_counts():
    means = np.diag([1.0, 1.0, 1.0, 0.0])
    means[3] = means[2] + [0, 0, 0, 1e-4]
    moments = class_moments(*isotropic(means, [1] * 4, 1e-6), 4)
    fine, coarse = nc1(moments), nc1(moments, rtol=1e-6)
    assert (fine.rank, coarse.rank) == (3, 2)
    assert fine.value > 1000 * coarse.value
    assert fine.tolerance < 1e-12 < coarse.tolerance


def test_vanished_minority():
    """Features of the minority at zero: distances and lengths stay defined, and say vanished."""
    means = np.diag([4.0, 4.0, 0.0, 0.0])
    features, labels = isotropic(means, [5, 5, 1, 1], 0.01)
    report = collapse_report(class_moments(features, labels, 4), np.eye(4) - 0.25)
    assert report.separation().states == ("separated", "separated", "vanished", "vanished")
    assert report.separation().groups == ((2, 3),)
    assert all(math.isfinite(getattr(report, name)) for name in ("nc1_uniform", "nc2_equinorm", "nc2_equiangular"))


@pytest.mark.parametrize(
    ("features", "labels", "infinite", "undefined"),
    [
        # Complete collapse with noise: every class mean is the same up to rounding.
        ([[1.1], [0.9], [1.1], [0.9]], [0, 0, 1, 1], {"nc1_trace_ratio", "cdnv", "cdnv_max"}, set()),
        ([[0.3]] * 7, [0, 0, 0, 1, 1, 1, 1], set(), {"nc1_trace_ratio", "cdnv", "cdnv_max"}),
        ([[0.3], [0.7]], [0, 0], {"nc1_trace_ratio"}, {"cdnv", "cdnv_max"}),
        (
            np.zeros((0, 1)),
            [],
            set(),
            {"nc1_trace_ratio", "cdnv", "cdnv_max", "within_trace", "between_trace"},
        ),
    ],
    ids=["noise", "exact", "one class", "no data"],
)
def test_undefined_values_are_nan_never_zero(features, labels, infinite, undefined):
    report = collapse_report(class_moments(np.array(features), np.array(labels, dtype=int), 2))
    scalars = report.scalars()
    # Without a head and without distinct means, these have no value in any of the cases.
    undefined = undefined | {
        "nc1_uniform",
        "nc1_weighted",
        "nc2_equinorm",
        "nc2_equiangular",
        "nc2_maximal_angle",
    }
    undefined |= {"nc2_etf", "nc3_self_duality", "nc0", "nc0_relative", "nc4_agreement"}
    if not len(labels):
        undefined |= {"nc1_tolerance"}
    assert {name for name, value in scalars.items() if math.isnan(value)} == undefined
    assert {name for name, value in scalars.items() if math.isinf(value)} == infinite
    assert scalars["nc1_rank"] == 0


def test_unseen_classes_are_named_and_do_not_count():
    features, labels, W, _ = long_tail(5, 6, seed=9)
    seen = collapse_report(class_moments(features, labels, 5))
    wider = collapse_report(class_moments(features, labels + 1, 7), np.pad(W, ((1, 1), (0, 0))), np.zeros(7))
    assert wider.unseen_classes == (0, 6)
    for name in ("nc1_uniform", "nc1_weighted", "cdnv", "nc2_equinorm", "nc2_equiangular", "nc2_etf"):
        assert getattr(wider, name) == pytest.approx(getattr(seen, name), rel=1e-12), name
    assert np.isnan(wider.class_means[[0, 6]]).all()
    assert wider.Z is not None
    assert np.isnan(wider.Z[:, [0, 6]]).all()
    assert np.isfinite(wider.Z[:, 1:6]).all()
    assert wider.separation().states[0] == "unseen"
    assert wider.scalars()["num_unseen"] == 2


def test_report_is_frozen_floats_and_arrays():
    features, labels, W, _ = long_tail(4, 3)
    report = collapse_report(class_moments(features, labels, 4), torch.from_numpy(W).requires_grad_().bfloat16())
    with pytest.raises(AttributeError):
        report.cdnv = 0.0  # type: ignore[misc]
    assert json.loads(json.dumps(report.scalars())) == pytest.approx(report.scalars(), nan_ok=True)
    assert all(type(value) is float for value in report.scalars().values())
    assert isinstance(report.Z, np.ndarray)
    assert report.Z is report.Z
    assert report.b is not None
    assert report.b.tolist() == [0.0] * 4
    bare = collapse_report(class_moments(features, labels, 4), pairwise=False)
    assert bare.Z is None
    assert bare.b is None
    assert math.isnan(bare.cdnv)
    assert bare.nc1_uniform == report.nc1_uniform
    with pytest.raises(ValueError, match="Pass head="):
        bare.separation()


def test_nearest_centres_and_nc4_against_loops():
    features, labels, W, b = long_tail(6, 4, seed=4, spread=1.0, shift=100.0)
    b *= 300  # large enough to matter beside logits of features far from the origin
    centers = np.array([features[labels == k].mean(axis=0) for k in range(6)], dtype=np.float64)
    centers[1] = np.nan
    known = [0, 2, 3, 4, 5]
    nearest = [min(known, key=lambda k: ((h - centers[k]) ** 2).sum()) for h in features.astype(float)]
    decided = [int(np.argmax(W @ h + b)) for h in features.astype(float)]
    expected = np.zeros(6, dtype=int)
    for label, left, right in zip(labels, nearest, decided, strict=True):
        expected[label] += left == right
    assert nearest_centers(torch.from_numpy(features), torch.from_numpy(centers)).tolist() == nearest
    head = torch.from_numpy(W), torch.from_numpy(b)
    agree = center_agreement(features, labels, torch.from_numpy(centers), *head)
    np.testing.assert_array_equal(agree.numpy(), expected)
    assert 0 < expected.sum() < len(labels)
    without_bias = center_agreement(features, labels, torch.from_numpy(centers), head[0])
    assert not torch.equal(without_bias, agree)
    report = collapse_report(class_moments(features, labels, 6), *head, agreements=agree)
    assert report.nc4_agreement == pytest.approx(expected.sum() / len(labels), rel=1e-15)
    assert report.nc4_per_class is not None
    np.testing.assert_allclose(report.nc4_per_class, expected / np.bincount(labels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: collapse_report(m, np.zeros((3, 5))), r"`head_weight` must be \(K, d\) = \(3, 2\)"),
        (
            lambda m: collapse_report(m, np.zeros((3, 2)), np.zeros(2)),
            r"`head_bias` \(K,\); got \(3, 2\) and \(2,\)",
        ),
        (lambda m: collapse_report(m, np.full((3, 2), np.nan)), "must be finite"),
        (lambda m: collapse_report(m, None, np.zeros(3)), "`head_bias` needs a `head_weight`"),
        (lambda m: nc1(m, "sample"), "`weighting` must be"),  # type: ignore[arg-type]
        (lambda m: nc1(m, rtol=math.nan), r"`rtol` must lie in \[0, 1\); got nan"),
        (lambda m: cdnv_between_clusters(m, [0, 1]), r"`clusters` must hold one label per class"),
        (lambda m: cdnv_matrix(m, [0, 3]), r"`classes` must lie in \[0, 3\); got 3"),
        (
            lambda m: nearest_centers(torch.zeros(1, 2), torch.full((3, 2), math.nan)),
            "at least one finite row",
        ),
        (lambda m: nearest_centers(torch.zeros(1, 2), torch.zeros(3, 4)), "must share d"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(ClassMoments.empty(3, 2))


def test_pairs_of_points_in_one_place_are_set_aside_and_counted():
    means = np.array([[0.0, 0], [0, 0], [0, 0], [3, 4], [6, 8]])
    features = np.vstack([np.repeat(means[:4], 2, axis=0), [[5.0, 8], [7, 8]]])
    report = collapse_report(class_moments(features, np.repeat(np.arange(5), 2), 5))
    # the last class has variance 1, the others none; of its pairs three are 10 away and one 5
    assert report.cdnv_undefined == 3
    assert report.cdnv == pytest.approx((3 / 200 + 1 / 50) / 7)
    assert report.cdnv_worst.tolist() == pytest.approx([1 / 200, 1 / 200, 1 / 200, 1 / 50, 1 / 50])
    assert report.scalars()["cdnv_max"] == pytest.approx(1 / 50)
    assert report.cdnv_between([0, 0, 0, 1, 1])[0, 0] != report.cdnv_between([0, 0, 0, 1, 1])[0, 0]  # none is left


def test_single_precision_over_many_pairs_is_good_to_six_digits(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    K = 700
    means = 1e-6 * torch.randn(K, 5, generator=generator, dtype=torch.float64)  # lengths that squares must survive
    means[:40] *= 30.0
    means[100:120] = means[80:100] + 1e-9 * torch.randn(20, 5, generator=generator, dtype=torch.float64)  # cancel
    means[130] = means[131]
    labels = torch.arange(K).repeat(4)
    spread = torch.where((labels == 130) | (labels == 131), 0.0, 1e-8)[:, None]
    features = means[labels] + spread * torch.randn(4 * K, 5, generator=generator, dtype=torch.float64)
    moments = class_moments(features, labels, num_classes=K)
    exact, angles = pairs.cdnv_and_angles(points_of(moments))
    blocks = pairs.cdnv_between_clusters(moments, [k % 7 for k in range(K)])
    monkeypatch.setattr(pairs, "_MANY", 100)
    with torch.autocast("cpu"):  # which would make half precision of it
        fast, fast_angles = pairs.cdnv_and_angles(points_of(moments))
    assert points_of(moments).fast.means.dtype == torch.float32
    assert fast.undefined == exact.undefined == 1
    assert fast.mean == pytest.approx(exact.mean, rel=1e-6)
    assert fast_angles.equiangularity == pytest.approx(angles.equiangularity, rel=1e-6)
    assert fast_angles.etf_distance == pytest.approx(angles.etf_distance, rel=1e-6)
    torch.testing.assert_close(fast.worst, exact.worst, rtol=1e-6, atol=0.0, equal_nan=True)
    torch.testing.assert_close(fast.worst_values, exact.worst_values, rtol=1e-6, atol=0.0)
    assert fast.worst_pairs.tolist() == exact.worst_pairs.tolist()
    again = pairs.cdnv_between_clusters(moments, [k % 7 for k in range(K)])
    torch.testing.assert_close(again, blocks, rtol=1e-6, atol=0.0)
