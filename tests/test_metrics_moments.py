"""Class moments against float64 two-pass loops: any split, order, merge, dtype and scale agrees."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from collapsar.metrics import ClassMoments, class_moments
from collapsar.metrics.moments import accumulate_, pack, packed_size, packed_views, unpack
from collapsar.metrics.running import RunningMoments

PARTS = ("class_counts", "class_means", "within_scatter", "class_traces")


def two_pass(features, labels, num_classes):
    """The moments by the definition, one class at a time, in float64."""
    H, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
    d = H.shape[1]
    counts, means = np.zeros(num_classes, dtype=int), np.zeros((num_classes, d))
    scatter, traces = np.zeros((d, d)), np.zeros(num_classes)
    for k in range(num_classes):
        rows = H[y == k]
        counts[k] = len(rows)
        if len(rows):
            means[k] = rows.mean(axis=0)
            centred = rows - means[k]
            scatter += centred.T @ centred
            traces[k] = (centred**2).sum()
    return dict(zip(PARTS, (counts, means, scatter, traces), strict=True))


def assert_moments(moments, expected, rtol=1e-9):
    for name in PARTS:
        want = expected[name] if isinstance(expected, dict) else getattr(expected, name).numpy()
        got = getattr(moments, name).numpy()
        scale = np.abs(want).max(initial=0.0) if name == "within_scatter" else 0.0
        np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * scale, err_msg=name)


def draw(seed, size, dim, num_classes, shift=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(num_classes, size=size)
    centres = shift + rng.normal(size=(num_classes, dim))
    return (centres[labels] + spread * rng.normal(size=(size, dim))).astype(np.float32), labels


@pytest.mark.parametrize(("dim", "num_classes"), [(0, 2), (1, 2), (5, 3), (40, 7), (300, 4), (8, 60)])
def test_one_pass_equals_two_passes(dim, num_classes):
    features, labels = draw(dim, 200, dim, num_classes)
    moments = class_moments(features, labels, num_classes)
    assert_moments(moments, two_pass(features, labels, num_classes))
    assert torch.equal(moments.within_scatter, moments.within_scatter.T)
    assert moments.class_counts.dtype == torch.int64
    assert moments.num_samples == 200


def test_tiny_spread_far_from_the_origin_survives_float32_inputs():
    """Means 1e5 spreads from the origin: raw second moments in float32 would keep no digit of the spread."""
    features, labels = draw(0, 4000, 6, 5, shift=1000.0, spread=1e-2)
    moments = class_moments(features, labels, 5)
    expected = two_pass(features, labels, 5)
    assert_moments(moments, expected, rtol=1e-8)
    raw = features.T @ features - sum(
        n * np.outer(m, m) for n, m in zip(expected["class_counts"], expected["class_means"], strict=True)
    )
    assert np.abs(raw - expected["within_scatter"]).max() > 10 * expected["within_scatter"].max()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    shift=st.sampled_from([0.0, 1e3]),
    tree=st.booleans(),
)
def test_any_split_order_and_merge_gives_the_same_moments(seed, cuts, shift, tree):
    features, labels = draw(seed, 60, 4, 6, shift=shift, spread=1e-2)
    order = np.random.default_rng(seed + 1).permutation(60)
    edges = [0, *sorted(cuts), 60]
    pieces = [order[a:b] for a, b in itertools.pairwise(edges)]
    parts = [class_moments(features[piece], labels[piece], 6) for piece in pieces]
    kept = [{name: getattr(part, name).clone() for name in PARTS} for part in parts]
    merged = list(parts)
    while len(merged) > 1:
        merged = [merged[0].merge(merged[1]), *merged[2:]] if tree else [*merged[:-2], merged[-1].merge(merged[-2])]
    assert_moments(merged[0], two_pass(features, labels, 6), rtol=1e-8)
    for part, before in zip(parts, kept, strict=True):
        assert all(torch.equal(getattr(part, name), before[name]) for name in PARTS)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    shift=st.sampled_from([0.0, 1e3]),
    sort=st.booleans(),
)
def test_any_split_and_order_accumulated_in_place_gives_the_same_moments(seed, cuts, shift, sort):
    """Sorted by class, whole batches hold one class and others meet it never or late."""
    features, labels = draw(seed, 60, 4, 6, shift=shift, spread=1e-2)
    order = np.argsort(labels) if sort else np.random.default_rng(seed + 1).permutation(60)
    state, short = torch.zeros(packed_size(6, 4), dtype=torch.float64), torch.zeros(packed_size(6, 4, False)).double()
    for a, b in itertools.pairwise([0, *sorted(cuts), 60]):
        rows = torch.from_numpy(features[order[a:b]]), torch.from_numpy(labels[order[a:b]])
        accumulate_(*packed_views(state, 6, 4), *rows)
        accumulate_(*packed_views(short, 6, 4), *rows)
    assert_moments(unpack(state, 6, 4), two_pass(features, labels, 6), rtol=1e-8)
    assert torch.equal(short, state[: len(short)])
    assert torch.isnan(unpack(short, 6, 4).within_scatter).all()


def test_accumulating_batches_in_place_equals_one_batch(monkeypatch):
    features, labels = draw(3, 500, 7, 5, shift=50.0, spread=1e-2)
    expected = two_pass(features, labels, 5)
    state = torch.zeros(packed_size(5, 7), dtype=torch.float64)
    from collapsar.metrics import moments as module

    monkeypatch.setitem(module._NUMBERS, "cpu", 21)  # three rows at once: seams lie inside of batches
    for a, b in ((0, 1), (1, 1), (1, 230), (230, 500)):
        batch = torch.from_numpy(features[a:b]), torch.from_numpy(labels[a:b])
        accumulate_(*module.packed_views(state, 5, 7), *batch)
    assert_moments(unpack(state, 5, 7), expected)
    running = RunningMoments(5, 7)
    for part in np.array_split(np.arange(500), 3):
        running.update(features[part], labels[part])
    assert_moments(running.moments, expected)
    assert torch.equal(pack(unpack(state, 5, 7))[:5], state[:5])


@pytest.mark.parametrize("name", ["_add_gram_", "_add_strips_"])
def test_both_symmetric_products_add_the_upper_triangle_in_place(name):
    """300 columns are three strips."""
    from collapsar.metrics import moments as module

    rows = torch.randint(-9, 9, (5, 300), generator=torch.Generator().manual_seed(0)).double()
    out = torch.ones(300, 300, dtype=torch.float64)
    getattr(module, name)(out, rows)
    assert torch.equal(out.triu(), (1 + rows.T @ rows).triu())


def test_finite_features_whose_sums_overflow_are_accepted():
    features = np.array([[3e38, 3e38], [-3e38, -3e38], [1.0, 2.0]], dtype=np.float32)
    moments = class_moments(features, [0, 0, 1], 2)
    np.testing.assert_array_equal(moments.class_means.numpy(), [[0.0, 0.0], [1.0, 2.0]])
    features[1, 0] = np.nan
    with pytest.raises(ValueError, match="in 1 of 3 rows: class 0"):
        class_moments(features, [0, 0, 1], 2)


def test_empty_moments_are_the_neutral_element():
    features, labels = draw(1, 30, 3, 4)
    moments, nothing = class_moments(features, labels, 4), ClassMoments.empty(4, 3)
    for merged in (moments.merge(nothing), nothing.merge(moments)):
        assert all(torch.equal(getattr(merged, name), getattr(moments, name)) for name in PARTS)
    assert nothing.unseen_classes == (0, 1, 2, 3)
    assert torch.isnan(nothing.sample_mean).all()
    assert torch.isnan(nothing.mean_of_class_means).all()


def test_the_two_means_differ_under_imbalance():
    features = np.array([[0.0], [0.0], [0.0], [4.0]])
    moments = class_moments(features, [0, 0, 0, 2], 3)
    assert moments.sample_mean.item() == 1.0
    assert moments.mean_of_class_means.item() == 2.0
    assert moments.unseen_classes == (1,)
    assert moments.within_covariance.item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8])
def test_every_real_dtype_is_measured_in_float64(dtype):
    generator = torch.Generator().manual_seed(0)
    features = (40 * torch.rand(50, 3, generator=generator)).to(dtype)
    labels = torch.randint(4, (50,), generator=generator).to(torch.uint8)
    moments = class_moments(features, labels, 4)
    assert moments.class_means.dtype == torch.float64
    assert_moments(moments, two_pass(features.double().numpy(), labels.numpy(), 4))


def test_views_and_read_only_arrays_are_accepted_and_left_alone():
    features, labels = draw(2, 24, 6, 3)
    frozen = np.ascontiguousarray(features[::2, ::3])
    frozen.flags.writeable = False
    expected = two_pass(frozen, labels[::2], 3)
    strided = torch.from_numpy(features)[::2, ::3]
    transposed = torch.from_numpy(np.ascontiguousarray(frozen.T)).T
    for view in (frozen, strided, transposed, strided.clone().requires_grad_()):
        assert_moments(class_moments(view, labels[::2], 3), expected)
    np.testing.assert_array_equal(strided.numpy(), frozen)


def test_batches_of_one_and_none():
    one = class_moments(torch.tensor([[3.0, 4.0]]), torch.tensor([1]), 2)
    assert one.class_means.tolist() == [[0.0, 0.0], [3.0, 4.0]]
    assert one.within_scatter.abs().max() == 0
    none = class_moments(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), 2)
    assert none.num_samples == 0


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((3, 2)), [0, 7, -1], r"`labels` must lie in \[0, 3\); got -1, 7\."),
        (np.zeros((30, 2)), range(30), r"got 3, 4, .* and 17 more"),
        (np.zeros((2, 2)), [0.0, 1.0], r"`labels` must be integers"),
        (np.zeros((2, 2), dtype=complex), [0, 1], r"`features` real; got torch.int64 and torch.complex128"),
        (np.zeros(3), [0, 1, 2], r"`features` must have shape \(B, d\); got \(3,\)"),
        (np.zeros((3, 2)), [0, 1], r"shape \(3,\); got \(2,\)"),
        (np.zeros((2, 2)), [[0, 1], [1, 0]], r"got \(2, 2\)"),
        (
            np.array([[0.0], [np.nan], [1.0]]),
            [0, 2, 1],
            r"finite; got NaN or infinity in 1 of 3 rows: class 2",
        ),
        (np.array([[np.inf], [-np.inf]]), [0, 1], r"in 2 of 2 rows: class 0, 1"),
    ],
)
def test_bad_batches_are_named(features, labels, message):
    with pytest.raises(ValueError, match=message):
        class_moments(features, np.asarray(labels), 3)


def test_mismatched_merges_and_class_counts_are_named():
    with pytest.raises(ValueError, match=r"shape \(K, d\) = \(2, 3\); got \(2, 4\)"):
        ClassMoments.empty(2, 3).merge(ClassMoments.empty(2, 4))
    with pytest.raises(ValueError, match="`num_classes` must be a positive integer; got 0"):
        class_moments(np.zeros((1, 1)), [0], 0)


class LargestOutput(TorchDispatchMode):
    """Records the largest storage that an operation creates."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            # A view or an in-place result shares its storage with an argument and creates nothing.
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in self.known(args):
                self.largest = max(self.largest, value.untyped_storage().nbytes() // 8)
        return out

    @staticmethod
    def known(args):
        flat = [a for arg in args for a in (arg if isinstance(arg, tuple | list) else (arg,))]
        return {a.untyped_storage().data_ptr() for a in flat if isinstance(a, torch.Tensor)}


def test_a_batch_touches_only_its_own_classes():
    """With many classes a batch must not allocate anything of size K·d."""
    K, d = 5000, 20
    state = torch.zeros(packed_size(K, d), dtype=torch.float64)
    views = (state[:K], state[2 * K : 2 * K + K * d].view(K, d), state[-d * d :].view(d, d), state[K : 2 * K])
    features, labels = draw(4, 32, d, K)
    with LargestOutput() as seen:
        accumulate_(*views, torch.from_numpy(features), torch.from_numpy(labels))
    assert 32 * d <= seen.largest <= K
    assert_moments(unpack(state, K, d), two_pass(features, labels, K))
