"""``CollapseMonitor`` in loops of one's own: what it measures, and that training does not notice."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import random
from typing import Any, cast
from unittest import TestCase

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from collapsar.core.json_lines import JsonLines
from collapsar.metrics import class_moments, collapse_report
from collapsar.metrics.head import find_head
from collapsar.monitor import CollapseMonitor, MergeRule, MonitorOptions, read_json_lines
from collapsar.monitor.undisturbed import undisturbed
from ranks import monitored, on_two_ranks

K, DIM = 4, 6
QUIET = {"say": lambda message: None}


class Net(nn.Module):
    """Dropout, batch norm, and a linear layer before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, DIM), nn.BatchNorm1d(DIM), nn.ReLU(), nn.Dropout(0.3))
        self.fc = nn.Linear(DIM, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


def options(tmp_path, **more) -> MonitorOptions:
    return MonitorOptions(path=tmp_path / "nc.jsonl", **{**QUIET, **more})


def evaluated(monitor: CollapseMonitor) -> Any:
    """The record of an epoch that is due."""
    record = monitor.end_epoch()
    assert record is monitor.record
    return record


def dataset(size: int = 44) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(K, (size,), generator=generator)
    return TensorDataset(3 * torch.eye(K, 5)[labels] + torch.randn(size, 5, generator=generator), labels)


def training(mode: str, tmp_path, *, autocast: bool = False):
    """Two epochs; returns everything that the trajectory consists of, and what the monitor saw."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    model, generator = Net(), torch.Generator().manual_seed(1)
    model.body[0].eval()  # a mode that differs from the model's own
    loader = DataLoader(dataset(), batch_size=8, shuffle=True, generator=generator)
    plain = DataLoader(dataset(), batch_size=8, shuffle=True)  # draws its order from the global generator
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    own = {"none": None, "reuse": None, "own": loader, "own plain": plain}[mode]
    monitor = None if mode == "none" else CollapseMonitor(model, loader=own, options=options(tmp_path))
    losses, seen = [], []
    for _ in range(2):
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = nn.functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                if monitor is not None and own is not None and len(losses) == 3:
                    monitor.end_epoch()  # in the middle of a step as well
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if monitor is not None and own is None:
                monitor.step(labels)
                seen.append(images)
        if monitor is not None:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                monitor.end_epoch()
    drawn = torch.rand(1), torch.rand(1, generator=generator), random.random(), np.random.rand()  # noqa: NPY002
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return {"losses": losses, "drawn": drawn, "modes": modes, "weights": weights}, monitor


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", ["reuse", "own", "own plain"])
def test_the_trajectory_does_not_change_by_a_bit(mode, autocast, tmp_path):
    plain, _ = training("none", tmp_path, autocast=autocast)
    watched, monitor = training(mode, tmp_path, autocast=autocast)
    assert monitor is not None
    assert monitor.record is not None
    assert monitor.record.report.num_samples == 44
    assert watched["losses"] == plain["losses"]
    assert watched["drawn"] == plain["drawn"]
    assert watched["modes"] == plain["modes"]
    assert all(torch.equal(value, plain["weights"][name]) for name, value in watched["weights"].items())
    assert torch.is_grad_enabled()
    assert torch.is_autocast_cache_enabled()


def test_the_test_above_can_fail():
    """A pass that is not protected does change the trajectory: dropout draws and running means move."""
    model = Net()
    torch.manual_seed(0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    model(dataset()[:8][0])
    assert not torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(model.state_dict()["body.1.running_mean"], before["body.1.running_mean"])


def test_undisturbed_restores_after_an_exception_and_buffers_that_move_in_eval():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            cast("torch.Tensor", self.calls).add_(1)
            return x

    model = nn.Sequential(Counter(), nn.Dropout())
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset(), sampler=RandomSampler(range(4), generator=generator))
    state = generator.get_state()

    def fails() -> None:
        with undisturbed(model, loader):
            assert not any(module.training for module in model.modules())
            model(torch.ones(1))
            list(loader)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    assert model.training
    assert float(next(model.buffers())) == 0
    assert torch.equal(generator.get_state(), state)


def test_reused_features_are_those_of_the_training_pass(tmp_path):
    """Against a second hook and the moments of everything it kept."""
    model, kept = Net(), []
    model.fc.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach().clone()))
    data = dataset()
    with CollapseMonitor(model, options=options(tmp_path, within_scatter=True)) as monitor:
        for images, labels in DataLoader(data, batch_size=8):
            model(images)
            monitor.step(labels)
        model.eval()
        model(data[:20][0])  # a validation in between is not counted
        record = evaluated(monitor)
    expected = collapse_report(class_moments(torch.cat(kept[:-1]), data[:][1], K), model.fc.weight, model.fc.bias)
    assert record.report.scalars() == pytest.approx(expected.scalars(), rel=1e-9, nan_ok=True)
    assert record.scalars["nc/cdnv"] == pytest.approx(expected.cdnv)
    assert expected.Z is not None
    np.testing.assert_allclose(record.report.Z, expected.Z)


def test_a_pass_of_its_own_is_in_evaluation_mode(tmp_path):
    model, data = Net(), dataset()
    monitor = CollapseMonitor(model, loader=DataLoader(data, batch_size=7), options=options(tmp_path))
    report = evaluated(monitor).report
    assert monitor() is monitor.record is not None
    model.eval()
    with torch.no_grad():
        features = model.body(data[:][0])
    expected = collapse_report(class_moments(features, data[:][1], K), model.fc.weight, model.fc.bias)
    assert report.scalars() == pytest.approx(expected.scalars(), rel=1e-6, nan_ok=True)
    monitor.close()


def test_mappings_and_functions_of_the_batch(tmp_path):
    model, data = nn.Sequential(nn.Linear(5, K)), dataset()

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, K)

        def forward(self, pixels):
            return self.fc(pixels)

    batch = {"pixels": data[:][0], "labels": data[:][1]}
    record = evaluated(CollapseMonitor(Named(), loader=[batch], options=options(tmp_path)))
    assert record.report.num_samples == 44

    def forward(net, batch):
        net(batch[1])
        return batch[0]

    swapped = [(data[:][1], data[:][0])]
    record = evaluated(CollapseMonitor(model, loader=swapped, options=options(tmp_path, forward=forward)))
    assert record.report.num_samples == 44
    with pytest.raises(ValueError, match=r"`loader` must yield .*; got Tensor"):
        CollapseMonitor(model, loader=[data[:][0]], options=options(tmp_path)).end_epoch()


def test_large_small_and_odd_batches_are_all_counted(tmp_path, monkeypatch):
    from collapsar.monitor import samples as module

    monkeypatch.setattr(module, "_ROWS", 8)
    model = nn.Sequential(nn.Linear(5, K)).bfloat16()
    images, labels = dataset(60)[:]
    labels[3], labels[17] = -100, -100
    with CollapseMonitor(model, options=options(tmp_path)) as monitor:
        for a, b in itertools.pairwise((0, 1, 5, 14, 14, 30, 37, 60)):
            model(images[a:b].bfloat16())
            monitor.step(labels[a:b].numpy())
        record = evaluated(monitor)
    kept = labels >= 0
    expected = class_moments(images[kept].bfloat16(), labels[kept], K)
    assert record.report.num_samples == 58
    np.testing.assert_allclose(record.report.class_means, expected.class_means, rtol=1e-9)


def test_every_nth_epoch_only(tmp_path):
    model = nn.Sequential(nn.Linear(5, K))
    images, labels = dataset()[:]
    with CollapseMonitor(model, every=3, options=options(tmp_path)) as monitor:
        records = []
        for epoch in range(10, 17):
            model(images)
            monitor.step(labels)
            records.append(monitor.end_epoch(epoch))
    assert [record and (record.epoch, record.report.num_samples) for record in records] == [
        *(None, None, (12, 44)),
        *(None, None, (15, 44), None),
    ]
    assert monitor.end_epoch() is None


def merging(model: nn.Sequential, minority: float) -> None:
    """Make a linear model show classes 2 and 3 as far apart as asked on inputs that are the class's unit vector."""
    Z = 3 * np.eye(K) - 0.75
    Z[:, 2:] = [[-1, -1], [-1, -1], [1 + minority, 1 - minority], [1 - minority, 1 + minority]]
    with torch.no_grad():
        cast("nn.Linear", model[0]).weight.copy_(torch.from_numpy(Z))


def test_it_says_in_words_which_classes_begin_to_merge_logs_and_resumes(tmp_path):
    model, said, logged = nn.Sequential(nn.Linear(K, K, bias=False)), [], []
    eye, labels = torch.eye(K), torch.arange(K)
    settings = options(tmp_path, say=said.append, log=lambda scalars, epoch: logged.append((epoch, scalars)))
    names = ["ant", "bee", "lynx", "puma"]

    def epochs(monitor, levels):
        for level in levels:
            merging(model, level)
            model(eye)
            monitor.step(labels)
            monitor.end_epoch()

    with CollapseMonitor(model, class_names=names, options=settings) as monitor:
        epochs(monitor, [1.0, 1.0, 0.0])
        state = json.loads(json.dumps(monitor.state_dict()))
    (summary,) = said
    assert summary.startswith("After epoch 3: 2 of 4 classes are separated; merged: lynx and puma; lost, with none")
    assert summary.endswith("puma to lynx; dead, with coinciding rows of the head: lynx and puma.")
    with (tmp_path / "nc.jsonl").open("a") as file:
        file.write('{"kind": "epoch", "torn')
    with CollapseMonitor(model, class_names=names, options=settings) as monitor:
        monitor.load_state_dict(state)
        epochs(monitor, [0.0, 0.0, 0.0])
    assert said[1].startswith("Classes lynx and puma begin to merge (epoch 4): ")
    assert len(said) == 3
    lines = read_json_lines(tmp_path / "nc.jsonl")
    assert [line["kind"] for line in lines] == ["epoch"] * 3 + [
        "summary",
        "epoch",
        "event",
        "epoch",
        "epoch",
        "summary",
    ]
    assert lines[5] == {
        "kind": "event",
        "event": "merge",
        "epoch": 4,
        "classes": [2, 3],
        "names": ["lynx", "puma"],
        "message": said[1],
    }
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3, 4, 5, 6] == [e for e, _ in logged]
    assert lines[4]["states"] == ["separated", "separated", "merged", "merged"]
    assert lines[4]["nearest"][2:] == [3, 2]
    assert lines[4]["class_counts"] == [1] * K
    assert lines[4]["nc/num_merged"] == logged[3][1]["nc/num_merged"] == 2.0
    assert all(
        name.startswith("nc/") and np.isfinite(value) for _, scalars in logged for name, value in scalars.items()
    )


def test_by_default_it_speaks_through_logging(tmp_path):
    model = nn.Sequential(nn.Linear(5, K))
    with (
        TestCase().assertLogs("collapsar", logging.WARNING) as caught,
        CollapseMonitor(model, options=MonitorOptions(path=tmp_path / "nc.jsonl")) as monitor,
    ):
        model(dataset()[:][0])
        monitor.step(dataset()[:][1])
        monitor.end_epoch()
    (record,) = caught.records
    assert record.getMessage().startswith("After epoch 1: ")


def test_features_that_are_not_finite_are_said_once_and_left_out(tmp_path):
    model, said = nn.Sequential(nn.Linear(5, K)), []
    images, labels = dataset()[:]
    images[3, 2], images[4, 0] = torch.nan, torch.inf
    with CollapseMonitor(model, options=options(tmp_path, say=said.append)) as monitor:
        for _ in range(2):
            model(images)
            monitor.step(labels)
            assert evaluated(monitor).report.num_samples == 42
        images.fill_(torch.nan)
        model(images)
        monitor.step(labels)
        assert monitor.end_epoch() is None
    assert said[0] == "2 samples have features that are not finite (epoch 1)."
    assert len(said) == 2  # and the summary


def test_a_step_that_was_forgotten_is_said_once(tmp_path):
    model, said = nn.Sequential(nn.Linear(5, K)), []
    with CollapseMonitor(model, options=options(tmp_path, say=said.append)) as monitor:
        for _ in range(2):
            model(dataset()[:][0])
            assert monitor.end_epoch() is None
    assert said == ["No samples to evaluate (epoch 1). Call step(labels) after each batch."]
    with CollapseMonitor(model, loader=[], options=options(tmp_path, say=said.append)) as monitor:
        assert monitor.end_epoch() is None
    assert said[1:] == ["No samples to evaluate (epoch 1). The loader gave none."]


def test_hooks_go_on_exit_exception_and_close(tmp_path):
    model = Net()
    with CollapseMonitor(model, options=options(tmp_path)) as monitor:
        assert len(model.fc._forward_hooks) == len(model._forward_hooks) == 1
    with pytest.raises(RuntimeError, match="stop"), CollapseMonitor(model, options=options(tmp_path)):
        raise RuntimeError("stop")
    monitor.close()
    assert len(model.fc._forward_hooks) == len(model._forward_hooks) == 0
    assert not (tmp_path / "nc.jsonl").exists()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch.compile itself
@pytest.mark.parametrize("early", [True, False])
def test_a_compiled_model(early, tmp_path):
    """Hooked before compilation it is measured; compiled before, it is refused, or measured uncompiled."""
    torch._dynamo.reset()
    model, (images, labels), record = Net().eval(), dataset()[:], cast("Any", None)
    if not early:
        compiled = cast("Net", torch.compile(model, backend="eager"))
        compiled(images)
        with pytest.raises(ValueError, match="`model` must not be compiled before the monitor is created"):
            CollapseMonitor(compiled, options=options(tmp_path))
        record = evaluated(CollapseMonitor(compiled, loader=[(images, labels)], options=options(tmp_path)))
    else:
        with CollapseMonitor(model, every=2, options=options(tmp_path)) as monitor:
            compiled = cast("Net", torch.compile(model, backend="eager"))
            for _ in range(2):
                for rows in torch.arange(44).split(11):
                    compiled(images[rows])
                    monitor.step(labels[rows])
                record = evaluated(monitor)
    with torch.no_grad():
        expected = class_moments(model.body(images), labels, K).class_means
    np.testing.assert_allclose(record.report.class_means, expected, atol=1e-5)
    torch._dynamo.reset()


def test_a_model_compiled_in_place_around_its_head_is_refused(tmp_path):
    model = nn.Sequential(Net())
    model[0].compile(backend="eager")
    for loader in (None, [1]):
        with pytest.raises(ValueError, match="with its module '0', which has the head, compiled"):
            CollapseMonitor(model, loader=loader, options=options(tmp_path))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_backbone_below_the_head_is_measured(in_place, tmp_path):
    torch._dynamo.reset()
    model, (images, labels) = Net().eval(), dataset()[:]
    with torch.no_grad():
        expected = class_moments(model.body(images), labels, K).class_means
        if in_place:
            model.body.compile(backend="eager")
        else:
            model.body = cast("nn.Sequential", torch.compile(model.body, backend="eager"))
        model(images)
        with CollapseMonitor(model, options=options(tmp_path)) as monitor:
            model(images)
            monitor.step(labels)
            record = evaluated(monitor)
    np.testing.assert_allclose(record.report.class_means, expected, atol=1e-5)
    torch._dynamo.reset()


def test_the_head_is_found_or_the_candidates_are_listed():
    model = Net()
    assert find_head(model) == ("fc", model.fc)
    assert find_head(model, model.fc)[0] == find_head(model, "fc")[0] == find_head(model, None, K)[0] == "fc"
    twins = nn.ModuleDict({"stem": nn.Linear(3, 8), "head": nn.Linear(8, 5), "head_dist": nn.Linear(8, 5)})
    with pytest.raises(
        ValueError,
        match=r"`head` is ambiguous: 2 linear layers have 5 outputs. .* 'head' \(8 to 5\), 'head_dist' \(8 to 5\)$",
    ):
        find_head(twins)
    assert find_head(twins, None, 8)[0] == "stem"
    with pytest.raises(ValueError, match=r"none has 7 outputs. Pass head=NAME, one of: 'stem'"):
        find_head(twins, None, 7)
    with pytest.raises(ValueError, match=r"`head` must be the name of a module; got 'fx'. Candidates: 'stem'"):
        find_head(twins, "fx")
    with pytest.raises(ValueError, match="`head` must be part of the model; got a Linear that is not"):
        find_head(twins, nn.Linear(8, 5))
    with pytest.raises(ValueError, match=r"the model has no nn.Linear"):
        find_head(nn.Conv2d(1, 1, 3))
    with pytest.raises(
        ValueError, match=r"`head` must have a weight of shape \(K, d\), or be a 1x1 convolution; got BatchNorm"
    ):
        find_head(model, model.body[1])


def test_mistakes_are_named(tmp_path):
    model, (images, labels) = Net(), dataset()[:]
    with pytest.raises(ValueError, match="`every` must be at least 1; got 0"):
        CollapseMonitor(model, every=0, options=options(tmp_path))
    with CollapseMonitor(model, options=options(tmp_path)) as monitor:
        with pytest.raises(ValueError, match="`head` 'fc' has received nothing since the last step"):
            monitor.step(labels)
        model(images)
        with pytest.raises(ValueError, match=r"for each of the 44 samples .*; got \(43,\)"):
            monitor.step(labels[1:])
        model(images)
        with pytest.raises(ValueError, match=r"got \(44, 4\). Mixed or one-hot labels name no class"):
            monitor.step(nn.functional.one_hot(labels))
        model.fc(torch.zeros(2, 3, DIM))
        with pytest.raises(ValueError, match=r"one row per sample, \(B, d\); got \(2, 3, 6\)"):
            monitor.step(labels)


def test_json_lines_survive_tearing_and_keep_names(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    JsonLines(path).append({"a": float("inf"), "names": ("Füchse",), "nested": {"x": [float("nan"), 1.5]}})
    path.write_bytes(path.read_bytes() + b'{"half')
    assert len(read_json_lines(path)) == 1
    JsonLines(path).append({"b": 2})
    assert read_json_lines(path) == [{"a": "inf", "names": ["Füchse"], "nested": {"x": [None, 1.5]}}, {"b": 2}]


def test_two_gloo_processes_with_uneven_batches(tmp_path):
    images, labels = dataset(43)[:]
    ranks = on_two_ranks(monitored, tmp_path, images, labels, str(tmp_path / "nc.jsonl"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, K))
    with torch.no_grad():
        features = net[:2](images)
    for found, _ in ranks:
        for (scalars, Z, recalls), size in zip(found, (43, 36), strict=True):
            expected = collapse_report(class_moments(features[:size], labels[:size], K), net[2].weight, net[2].bias)
            assert scalars == pytest.approx(expected.scalars(), rel=1e-5, nan_ok=True)
            assert expected.Z is not None
            np.testing.assert_allclose(Z, expected.Z, rtol=1e-5)
            right = (net[2](features[:size]).argmax(dim=1) == labels[:size]).float()
            assert recalls == pytest.approx([float(right[labels[:size] == k].mean()) for k in range(K)])
    assert [line["kind"] for line in read_json_lines(tmp_path / "nc.jsonl")] == ["epoch", "summary"] * 2
    assert "".join(ranks[0][1]).count("After epoch 1") == 2
    assert ranks[1][1] == []


def test_many_classes_do_without_pairs(tmp_path, monkeypatch):
    from collapsar.monitor import samples as module

    monkeypatch.setattr(module, "MAX_TABLE", 3)
    model, said = Net().eval(), []
    nn.init.zeros_(model.fc.weight[2:])
    with CollapseMonitor(model, options=options(tmp_path, rule=MergeRule(confirm=1), say=said.append)) as monitor:
        model(dataset()[:][0])
        monitor.step(dataset()[:][1])
        record = evaluated(monitor)
    assert record.separation is None
    assert record.standings is None
    with torch.no_grad():
        decisions = model(dataset()[:][0]).argmax(dim=1)
    right = [bool((decisions[dataset()[:][1] == k] == k).any()) for k in range(K)]
    assert record.lost == tuple(k for k in range(K) if not right[k])
    assert "nc/cdnv" not in record.scalars
    assert record.scalars["nc/nc1_trace_ratio"] > 0
    assert record.dead == (2, 3)
    assert said[-1].startswith("After epoch 1: lost, with none of their samples recognised: ")
    assert said[-1].endswith("; dead, with coinciding rows of the head: 2 and 3.")


def test_labels_that_are_names_are_refused_with_the_way_to_number_them(tmp_path):
    model = Net()
    x = dataset()[:8][0]
    with CollapseMonitor(model, options=options(tmp_path)) as monitor:
        model(x)
        with pytest.raises(ValueError, match=r"got str 'cat'\. Number the names"):
            monitor.step(["cat"] * 8)


def test_the_largest_norm_is_that_of_the_predictions_however_short(tmp_path):
    torch.manual_seed(0)
    body, head = nn.Linear(6, 5), nn.Linear(5, 4)
    model, X, y = nn.Sequential(body, head), torch.randn(40, 6), torch.arange(40) % 4
    nn.init.normal_(head.weight, std=1e-3)
    monitor = CollapseMonitor(model, loader=[(X, y)], options=options(tmp_path))
    found = evaluated(monitor)
    features = body(X).detach().double()
    logits = (features - features.mean(dim=0)) @ head.weight.detach().double().T
    logits -= logits.mean(dim=1, keepdim=True)
    longest = max(float(logits[y == k].mean(dim=0).norm()) for k in range(4))
    assert longest < 0.01
    assert found.scalars["nc/largest_norm"] == pytest.approx(longest, rel=1e-4)
