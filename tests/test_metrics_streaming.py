"""``NeuralCollapse`` among torchmetrics: batches, merging, copies, casts, and two real processes."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection

from collapsar.metrics import CollapseReport, NeuralCollapse, class_moments, collapse_report
from ranks import on_two_ranks, streamed

K, DIM = 4, 5


def data(size=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (size,), generator=generator)
    centres = 5 * torch.randn(K, DIM, generator=generator) + 30
    return centres[labels] + 0.1 * torch.randn(size, DIM, generator=generator), labels


def head():
    torch.manual_seed(1)
    return nn.Linear(DIM, K)


def assert_same_report(got, want, rel=1e-9):
    assert isinstance(got, CollapseReport)
    for field in dataclasses.fields(CollapseReport):
        left, right = getattr(got, field.name), getattr(want, field.name)
        if left is None or right is None:
            assert left is right, field.name
        else:
            np.testing.assert_allclose(left, right, rtol=rel, atol=1e-12, err_msg=field.name)


def expected_report(features, labels, layer=None):
    weight, bias = (None, None) if layer is None else (layer.weight, layer.bias)
    return collapse_report(class_moments(features, labels, K), weight, bias)


def test_batches_give_the_report_of_all_samples():
    features, labels = data()
    layer = head()
    metric = NeuralCollapse(head=layer)
    for rows in torch.arange(60).split(7):
        metric.update(features[rows], labels[rows])
    metric.update(features[:0], labels[:0])
    report = metric.compute()
    assert_same_report(report, expected_report(features, labels, layer))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.cdnv = 0.0  # type: ignore[misc]
    without = NeuralCollapse(num_classes=K, num_features=DIM)
    without.update(features.numpy(), labels.numpy())
    assert without.compute().Z is None
    assert without.compute().nc1_uniform == pytest.approx(report.nc1_uniform)


def test_a_report_does_not_change_with_later_updates_or_training():
    features, labels = data()
    layer = head().double()
    metric = NeuralCollapse(head=layer)
    metric.update(features, labels)
    report = metric.compute()
    kept = copy.deepcopy(report)
    metric.update(features + 1, labels)
    nn.init.zeros_(layer.weight)
    assert_same_report(report, kept)
    assert metric.compute().num_samples == 120


def test_forward_reports_the_batch_and_accumulates():
    features, labels = data()
    metric = NeuralCollapse(K, DIM)
    first, second = metric(features[:25], labels[:25]), metric(features[25:], labels[25:])
    assert_same_report(first, expected_report(features[:25], labels[:25]))
    assert_same_report(second, expected_report(features[25:], labels[25:]))
    assert_same_report(metric.compute(), expected_report(features, labels))
    metric.to("cpu")


def test_merge_state_leaves_its_argument_and_reset_forgets():
    features, labels = data()
    parts = [NeuralCollapse(K, DIM) for _ in range(2)]
    for part, rows in zip(parts, torch.arange(60).split(45), strict=True):
        part.update(features[rows], labels[rows])
    whole = NeuralCollapse(K, DIM)
    for part in parts:
        before = part.packed_moments.clone()
        whole.merge_state(part)
        assert torch.equal(part.packed_moments, before)
    assert_same_report(whole.compute(), expected_report(features, labels))
    assert whole.class_moments.num_samples == 60
    whole.reset()
    assert whole.class_moments.num_samples == 0
    whole.update(features[:9], labels[:9])
    assert_same_report(whole.compute(), expected_report(features[:9], labels[:9]))


def test_compute_before_update_warns_and_is_undefined():
    metric = NeuralCollapse(K, DIM)
    with pytest.warns(UserWarning, match=r"before the ``update``"):
        report = metric.compute()
    assert report.unseen_classes == (0, 1, 2, 3)
    assert np.isnan(report.nc1_uniform)


def test_a_rejected_batch_leaves_the_state_unchanged():
    features, labels = data()
    metric = NeuralCollapse(head=head(), centers=torch.randn(K, DIM))
    metric.update(features, labels)
    before = metric.packed_moments.clone(), metric.center_agreements.clone()
    bad = features.clone()
    bad[-1, -1] = torch.nan
    for wrong in ((bad, labels), (features, labels + 1), (features[:, 1:], labels)):
        with pytest.raises(ValueError, match=r"`(features|labels)` must"):
            metric.update(*wrong)
    assert torch.equal(metric.packed_moments, before[0])
    assert torch.equal(metric.center_agreements, before[1])


def test_the_head_is_read_at_compute_and_belongs_to_its_model():
    features, labels = data()
    layer = head()
    model = nn.ModuleDict({"fc": layer})
    model["nc"] = NeuralCollapse(head=model["fc"])
    metric = model["nc"]
    assert isinstance(metric, NeuralCollapse)
    assert [name for name, _ in model.named_parameters()] == ["fc.weight", "fc.bias"]
    assert set(model.state_dict()) == {"fc.weight", "fc.bias"}
    metric.update(features, labels)
    metric.compute()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert_same_report(metric.compute(), expected_report(features, labels, model["fc"]))
    clone = metric.clone()
    assert clone.head is model["fc"]
    twin = copy.deepcopy(model)
    assert twin["nc"].head is twin["fc"]
    restored = pickle.loads(pickle.dumps(metric))
    assert_same_report(restored.compute(), metric.compute())


@pytest.mark.parametrize(
    "cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.to("cpu", torch.float32)]
)
def test_moments_stay_float64_when_the_model_is_cast(cast):
    features, labels = data()
    metric = NeuralCollapse(head=head(), centers=expected_report(features, labels).class_means)
    metric.update(features[:30], labels[:30])
    before = metric.packed_moments.clone()
    cast(nn.ModuleList([metric]))
    assert metric.packed_moments.dtype == torch.float64
    assert torch.equal(metric.packed_moments, before)
    metric.update(features[30:], labels[30:])
    metric.reset()
    assert metric.packed_moments.dtype == torch.float64


def test_inference_mode_and_gradients():
    features, labels = data()
    metric = NeuralCollapse(K, DIM)
    with torch.inference_mode():
        metric.update(features, labels)
        metric.reset()
        metric.update(features[:20], labels[:20])
    metric.update(features[20:].requires_grad_(), labels[20:])
    assert not metric.packed_moments.requires_grad
    assert_same_report(metric.compute(), expected_report(features, labels))


def test_it_works_in_a_collection():
    features, labels = data()
    metrics = MetricCollection({"plain": NeuralCollapse(K, DIM), "head": NeuralCollapse(head=head())})
    metrics.update(features, labels)
    reports = metrics.compute()
    assert_same_report(reports["plain"], expected_report(features, labels))
    assert reports["head"].Z.shape == (K, K)


def test_metrics_that_agree_on_the_first_batch_stay_apart_in_a_collection():
    """Centres that differ only in class 3, which the first batch does not have."""
    features, labels = data()
    layer, other = head(), nn.Linear(DIM, K)
    plain = NeuralCollapse(head=layer)
    plain.update(features, labels)
    centers = torch.from_numpy(plain.compute().class_means)
    moved = centers.clone()
    moved[3] = 1e6
    kinds = {
        "one": {"head": layer, "centers": centers},
        "moved": {"head": layer, "centers": moved},
        "other": {"head": other, "centers": centers},
        "ignoring": {"head": layer, "ignore_index": 3},
        "plain": {"head": layer},
    }
    metrics = MetricCollection({name: NeuralCollapse(**kind) for name, kind in kinds.items()})
    alone = {name: NeuralCollapse(**kind) for name, kind in kinds.items()}
    for rows in ((labels < 3).nonzero().flatten(), (labels == 3).nonzero().flatten()):
        metrics.update(features[rows], labels[rows])
        for metric in alone.values():
            metric.update(features[rows], labels[rows])
    reports = metrics.compute()
    for name, metric in alone.items():
        assert_same_report(reports[name], metric.compute())
    assert reports["ignoring"].class_counts[3] == 0


@pytest.mark.parametrize("ignored", [-100, -1, 255])
def test_samples_without_a_label_are_left_out(ignored):
    features, labels = data()
    metric = NeuralCollapse(K, DIM, ignore_index=ignored)
    metric.update(features, labels.where(torch.arange(60) >= 7, ignored))
    assert_same_report(metric.compute(), expected_report(features[7:], labels[7:]))
    with pytest.raises(ValueError, match="ignore_index"):
        NeuralCollapse(K, DIM).update(features, labels.where(torch.arange(60) >= 7, ignored))


def test_nc4_is_counted_against_fixed_centres():
    features, labels = data()
    layer = head()
    first = NeuralCollapse(head=layer)
    first.update(features, labels)
    centers = first.compute().class_means
    second = NeuralCollapse(head=layer, centers=centers)
    for rows in torch.arange(60).split(11):
        second.update(features[rows], labels[rows])
    decided = layer.double()(features.double()).argmax(dim=1).numpy()
    nearest = ((features.numpy()[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    report = second.compute()
    assert report.nc4_agreement == pytest.approx((decided == nearest).mean(), rel=1e-15)
    assert report.nc4_per_class is not None
    assert report.nc4_per_class[2] == pytest.approx((decided == nearest)[labels.numpy() == 2].mean())
    assert np.isnan(first.compute().nc4_agreement)
    assert first.compute().nc4_per_class is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`num_classes` must be a positive integer; got None"),
        ({"num_classes": 3}, "`num_features` must be a positive integer; got None"),
        ({"num_classes": 0, "num_features": 2}, "`num_classes` must be a positive integer; got 0"),
        ({"num_classes": 7, "head": nn.Linear(2, 3)}, "`num_classes` must be 3, as in the head; got 7"),
        ({"head": nn.ReLU()}, "`head` must be a linear layer .*; got ReLU"),
        (
            {"head": nn.Linear(2, 3), "centers": torch.zeros(2, 2)},
            r"`centers` must have shape \(K, d\) = \(3, 2\)",
        ),
        ({"num_classes": 3, "num_features": 2, "centers": torch.zeros(3, 2)}, "needs a `head`"),
    ],
)
def test_bad_constructions_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        NeuralCollapse(**arguments)


def test_two_gloo_processes_equal_one(tmp_path):
    """Uneven batches, an empty one, and accumulation that goes on after a synchronised ``compute``."""
    features, labels = data(60)
    labels[:41] = labels[:41] % 2  # classes 2 and 3 are seen by rank 1 alone
    weight = torch.randn(K, DIM, generator=torch.Generator().manual_seed(2))
    found = on_two_ranks(streamed, tmp_path, features, labels, weight)
    layer = nn.Linear(DIM, K, bias=False)
    layer.weight.data = weight
    one = NeuralCollapse(head=layer, centers=torch.zeros(K, DIM).fill_diagonal_(1.0))
    reports = []
    for rows in (slice(0, 44), slice(44, None)):
        one.update(features[rows], labels[rows])
        reports.append(one.compute())
    assert 0 < reports[1].nc4_agreement < 1
    for saved in found:
        for (scalars, means), report in zip(saved, reports, strict=True):
            assert scalars == pytest.approx(report.scalars(), rel=1e-9, abs=1e-12, nan_ok=True)
            np.testing.assert_allclose(means, report.class_means, rtol=1e-12)


def test_a_collapsed_stream_far_from_the_origin_keeps_its_digits():
    """NC1 about 1e-8 with means 1e5 spreads from the origin, in 40 float32 batches, one of them of one sample."""
    rng = np.random.default_rng(7)
    labels = rng.permutation(np.repeat(np.arange(5), [400, 300, 200, 50, 10]))
    centres = 1e3 * np.ones(8) / np.sqrt(8) + 60 * rng.normal(size=(5, 8))
    features = (centres[labels] + 1e-2 * rng.normal(size=(960, 8))).astype(np.float32)
    metric = NeuralCollapse(5, 8)
    for rows in np.split(np.arange(960), [1, *range(25, 960, 25)]):
        metric.update(features[rows], labels[rows])
    H = features.astype(np.float64)
    means = np.array([H[labels == k].mean(axis=0) for k in range(5)])
    centred, between = H - means[labels], means - H.mean(axis=0)
    inverse = np.linalg.pinv(between.T @ between / 5, rcond=1e-12, hermitian=True)
    expected = np.trace(centred.T @ centred / 960 @ inverse) / 5
    assert 1e-9 < expected < 1e-7
    assert metric.compute().nc1_uniform == pytest.approx(expected, rel=1e-6)


def test_leaving_the_scatter_out_changes_nc1_alone():
    features, labels = data()
    layer = head()
    parts = [NeuralCollapse(head=layer, within_scatter=False) for _ in range(2)]
    for part, rows in zip(parts, torch.arange(60).split(45), strict=True):
        part.update(features[rows], labels[rows])
    assert parts[0].packed_moments.numel() == 2 * K + K * DIM
    parts[0].merge_state(parts[1])
    report, full = parts[0].compute(), expected_report(features, labels, layer)
    assert np.isnan([report.nc1_uniform, report.nc1_weighted]).all()
    assert_same_report(
        dataclasses.replace(report, nc1_uniform=0.0, nc1_weighted=0.0),
        dataclasses.replace(full, nc1_uniform=0.0, nc1_weighted=0.0),
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_are_flattened_as_the_message_says(channels_last):
    """Of 2 maps of 3 x 5 places with 4 channels; some places have no label."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(2, 3, 5, 4, generator=generator)
    labels = torch.randint(3, (2, 3, 5), generator=generator)
    labels[0, 0] = 255
    features = places if channels_last else places.movedim(-1, 1)
    metric = NeuralCollapse(num_classes=3, num_features=4, ignore_index=255)
    with pytest.raises(ValueError, match="one row per label: ") as refused:
        metric.update(features, labels)
    flat = str(refused.value).partition("one row per label: ")[2]
    metric.update(*eval(flat, {"features": features, "labels": labels}))
    report = metric.compute()
    for k in range(3):
        np.testing.assert_allclose(report.class_means[k], places[labels == k].double().mean(dim=0).numpy(), atol=1e-12)
