"""Heads that are not what they are taken for: their logits decide, or they are refused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset
from transformers.modeling_outputs import ImageClassifierOutput

from collapsar.core.loss import Loss
from collapsar.core.penalties import Penalties
from collapsar.core.problem import Problem
from collapsar.diagnose.head_audit import audit
from collapsar.diagnose.head_files import read_head
from collapsar.diagnose.readers import diagnose
from collapsar.metrics import NeuralCollapse
from collapsar.metrics.head import find_head
from collapsar.monitor import CollapseMonitor, MonitorOptions, known_training, read_json_lines
from collapsar.monitor.differences import PenaltyWarning
from collapsar.monitor.watch import MergeWatch
from collapsar.solver import solve
from collapsar.training import param_groups

K, D = 4, 16
Y = torch.arange(400) % K
X = F.normalize(torch.eye(D)[Y] + 0.05 * torch.randn(400, D, generator=torch.Generator().manual_seed(0)), dim=1)
EYE = torch.eye(K, D)
MERGED = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0]))


def linear(weight, *, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(D, K, bias=bias)
    layer.weight.data = weight.clone()
    if bias:
        layer.bias.data.zero_()
    return layer


class Cosine(nn.Linear):
    def forward(self, input):  # noqa: A002 - torch's name
        return 30 * F.linear(F.normalize(input), F.normalize(self.weight))


class LWS(nn.Linear):
    scales = torch.ones(K)

    def forward(self, input):  # noqa: A002 - torch's name
        return super().forward(input) * self.scales


class Normed(nn.Module):
    """LDAM's: the weight is stored (d, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(EYE.T.clone())

    def forward(self, h):
        return 30 * F.normalize(h, dim=1).mm(F.normalize(self.weight, dim=0))


class NoBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(20 * EYE.clone())

    def forward(self, h):
        return h @ self.weight.T


class Net(nn.Module):
    def __init__(self, head, after=lambda z: z) -> None:
        super().__init__()
        self.fc, self.after = head, after
        self.body: nn.Module = nn.Identity()

    def forward(self, x):
        return self.after(self.fc(self.body(x)))


class Twin(nn.Module):
    """DeiT's: two heads, in evaluation their mean."""

    def __init__(self, *, as_tuple: bool = False, named: bool = False) -> None:
        super().__init__()
        self.head, self.head_dist = linear(0.001 * EYE), linear(40 * EYE)
        self.as_tuple, self.named = as_tuple, named

    def forward(self, x):
        both = self.head(x), self.head_dist(x)
        mean = (both[0] + both[1]) / 2
        if self.named:
            return {"cls_logits": both[0], "distillation_logits": both[1], "logits": mean}
        return both if self.as_tuple else mean


def as_kind(kind, weight):
    layer = kind(D, K, bias=False)
    layer.weight.data = weight.clone()
    return layer


def lws(scales):
    layer = as_kind(LWS, 30 * EYE)
    layer.scales = torch.tensor(scales)
    return layer


APART, PAIR = ("separated",) * 4, ("separated", "separated", "vanished", "vanished")
# case: the network, its head, the true states, whether the head's geometry is read
CASES = {
    "nn.Linear": (lambda: Net(linear(30 * EYE)), "fc", APART, True),
    "cosine, weights shrunk": (lambda: Net(as_kind(Cosine, 0.001 * EYE)), "fc", APART, False),
    "LWS, the same scale": (lambda: Net(lws([1.0] * 4)), "fc", APART, True),
    "LWS, two classes at 0": (lambda: Net(lws([1.0, 1.0, 0.0, 0.0])), "fc", PAIR, False),
    "weight_norm": (lambda: Net(nn.utils.parametrizations.weight_norm(linear(30 * EYE))), "fc", APART, True),
    "LDAM NormedLinear (d, K)": (lambda: Net(Normed()), "fc", APART, False),
    "a module without `bias`": (lambda: Net(NoBias()), "fc", APART, True),
    "logit scale after the head": (lambda: Net(linear(0.001 * EYE), lambda z: 3e4 * z), "fc", APART, False),
    "softmax after the head": (lambda: Net(linear(30 * EYE), lambda z: z.softmax(1)), "fc", APART, True),
    "log-softmax in a tuple": (lambda: Net(linear(30 * EYE), lambda z: (z.log_softmax(1), z)), "fc", APART, True),
    "logits in a mapping": (lambda: Net(linear(30 * EYE), lambda z: {"loss": 0, "logits": z}), "fc", APART, True),
    "log-softmax alone": (lambda: Net(linear(30 * EYE), lambda z: z.log_softmax(1)), "fc", APART, True),
    "a scale before a ModelOutput": (
        lambda: Net(linear(0.001 * EYE), lambda z: ImageClassifierOutput(logits=3e4 * z)),
        "fc",
        APART,
        False,
    ),
    "a learned temperature, in place": (lambda: Net(linear(0.001 * EYE), lambda z: z.mul_(3e4)), "fc", APART, False),
    "twin heads, averaged": (Twin, "head", APART, False),
    "twin heads, their mean called logits": (lambda: Twin(named=True), "head", APART, False),
    "twin heads in a tuple, the first": (lambda: Twin(as_tuple=True), "head", ("vanished",) * 4, True),
    "twin heads in a tuple, the second": (lambda: Twin(as_tuple=True), "head_dist", APART, True),
}


@pytest.mark.parametrize("case", CASES)
def test_states_are_those_of_the_logits(case):
    make, head, states, linear_head = CASES[case]
    d = diagnose(make().eval(), [(X, Y)], head=head)
    assert d.separation.states == states
    assert d.measurement.linear == linear_head
    assert any("does not compute W h + b" in note for note in d.notes) != linear_head
    assert (d.effective is None) or linear_head
    assert d.to_json()


def test_adapters_are_the_layer_they_adapt(tmp_path):
    peft: Any = import_module("peft")  # its types know less than what it returns

    def adapted(base, delta):
        model = peft.get_peft_model(Net(linear(base)), peft.LoraConfig(r=4, lora_alpha=4, target_modules=["fc"])).eval()
        layer = model.base_model.model.fc
        layer.lora_A["default"].weight.data = torch.eye(4, D)
        layer.lora_B["default"].weight.data = delta[:, :4].clone()
        return model

    model = adapted(0.01 * EYE, 20 * EYE)
    assert find_head(model)[0] == "base_model.model.fc"
    found = diagnose(model, [(X, Y)])
    assert (found.separation.states, found.measurement.linear) == (APART, False)
    merged = adapted(20 * EYE, 20 * (MERGED @ EYE - EYE))
    assert diagnose(merged, [(X, Y)]).separation.states == PAIR
    record, said, line = monitored(merged, tmp_path)
    assert any("are not W h + b" in text for text in said)
    agrees(record, line, diagnose(merged, [(X, Y)]))
    groups = {g["name"]: g["params"] for g in param_groups(model, weight_decay=0.1, head_weight_decay=0.0)}
    layer = model.base_model.model.fc
    assert set(groups["head"]) == {layer.lora_A["default"].weight, layer.lora_B["default"].weight}
    config = peft.LoraConfig(r=2, target_modules=["body"], modules_to_save=["fc"])
    net = Net(linear(0.01 * EYE))
    net.body = nn.Linear(D, D)
    saved = peft.get_peft_model(net, config)
    assert find_head(saved, None, K)[0] == "base_model.model.fc.modules_to_save.default"
    saved.base_model.model.fc.modules_to_save["default"].weight.data = 20 * EYE
    record, _, line = monitored(saved, tmp_path, class_names=list("abcd"))
    assert record.separation is not None
    assert record.separation.states == APART
    agrees(record, line, diagnose(saved.eval(), [(X, Y)], class_names=list("abcd")))


class Projected(nn.Module):
    """Names of contrastive long-tail repositories: the classifier ``fc``, the projection ``head``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.fc, self.head = nn.Linear(8, 32), nn.Linear(32, 10), nn.Linear(32, 128)


def test_a_projection_is_not_taken_for_the_head():
    assert find_head(Projected(), None, 10)[0] == "fc"
    with pytest.raises(ValueError, match="it could be 'fc' or 'head'"):
        find_head(Projected())
    with pytest.raises(ValueError, match="it could be 'fc' or 'head'"):
        param_groups(Projected(), weight_decay=1e-3)
    groups = param_groups(Projected(), weight_decay=1e-3, head="fc")
    assert [g["name"] for g in groups][:2] == ["head", "head_bias"]


class Branches(nn.Module):
    """A classifier, and a projection of the same features that is registered after it."""

    def __init__(self, classifier: str, projection) -> None:
        super().__init__()
        self.encoder = nn.Linear(8, 32)
        self.add_module(classifier, nn.Linear(32, 10))
        self.proj = projection


@pytest.mark.parametrize(
    "projection",
    [
        nn.Linear(32, 128),
        nn.Linear(32, 32, bias=False),
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 128)),
    ],
)
def test_a_projection_after_the_classifier_is_not_taken(projection):
    assert find_head(Branches("fc", projection))[0] == "fc"
    with pytest.raises(ValueError, match=r"it could be 'out' or 'proj"):
        find_head(Branches("out", projection))
    assert find_head(Branches("out", projection.requires_grad_(requires_grad=False)))[0] == "out"
    assert find_head(Branches("out", projection), None, 10)[0] == "out"


def test_the_labels_tell_the_classifier(tmp_path):
    x, y = torch.randn(30, 8), torch.arange(30) % 10

    class Runs(Branches):
        def forward(self, x):
            return self.get_submodule("out")(self.encoder(x))

    model = Runs("out", nn.Linear(32, 128))
    loader = DataLoader(TensorDataset(x, y), 10)
    for data in (loader, [(x, y)], [{"x": x, "labels": y}]):
        record, _, line = monitored(model, tmp_path, data)
        agrees(record, line, diagnose(model.eval(), data))
    with pytest.raises(ValueError, match="it could be 'out' or 'proj'"):
        diagnose(model, iter([(x, y)]))
    late = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 128))
    with pytest.raises(ValueError, match="'0' has as many outputs as there are classes, 10, but '2' comes last"):
        diagnose(late, loader)


def test_a_narrow_hidden_layer_is_not_beside_the_head():
    model = nn.ModuleDict({"down": nn.Linear(16, 8), "up": nn.Linear(8, 16), "out": nn.Linear(16, 4)})
    assert find_head(model)[0] == "out"


def test_what_makes_the_weight_is_the_weight():
    layer: Any = nn.utils.parametrizations.weight_norm(linear(EYE, bias=True))
    groups = {g["name"]: g["params"] for g in param_groups(Net(layer), weight_decay=0.1)}
    assert set(groups["head"]) == set(layer.parametrizations.weight.parameters())
    assert groups["head_bias"] == [layer.bias]
    torch.optim.SGD(param_groups(Net(layer), weight_decay=0.1), lr=0.1)


def test_of_two_layers_as_wide_the_trained_one_is_the_head():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="2 linear layers have 8 outputs"):
        find_head(model)
    model[0].requires_grad_(requires_grad=False)
    assert find_head(model)[0] == "2"


def test_one_finder_for_decay_and_measurement():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10)))
    name, layer = find_head(model)
    assert name == "1.2"
    assert param_groups(model, weight_decay=1e-3, head_weight_decay=1e-5)[0]["params"][0] is layer.weight


def test_one_output_tells_two_classes_apart():
    head = nn.Linear(D, 1, bias=False)
    head.weight.data = (10 * (torch.eye(D)[0] - torch.eye(D)[1]))[None]
    two = Y < 2
    d = diagnose(Net(head).eval(), [(X[two], 1 - Y[two])], head="fc")
    assert d.headline == "All 2 classes are separated."
    assert d.measurement.accuracies.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("positive", [None, 3.0])
def test_one_output_at_its_own_optimum_is_found_at_rest(positive, tmp_path):
    """Its row w scores as rows -w/2 and w/2 do, whose squares are half of its own: the penalty counts twice."""
    weights = None if positive is None else (1.0, positive)
    problem = Problem((80, 20), 0.005, 0.04, loss=Loss(class_weights=weights), features="nonnegative")
    W, H, b = solve(problem).factors(D, lambda_w=0.05)
    y = torch.tensor([0] * 80 + [1] * 20)
    x = torch.from_numpy(H.T[y.numpy()])
    model: Any = Net(nn.Linear(D, 1)).double()
    model.fc.weight.data, model.fc.bias.data = torch.from_numpy(W.T[1:] - W.T[:1]), torch.from_numpy(b[1:] - b[:1])
    criterion = nn.BCEWithLogitsLoss(pos_weight=None if positive is None else torch.tensor([positive]).double())
    scale = 1.0 if positive is None else (80 + 20 * positive) / 100  # torch divides by N, not by the sum of weights
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.0)
    own = Penalties(0.025 * scale, 0.005**2 / 0.05 * scale, 0.02 * scale)
    loss = criterion(model(x)[:, 0], y.double())
    loss = loss + own.lambda_w / 2 * model.fc.weight.square().sum() + own.lambda_b / 2 * model.fc.bias.square().sum()
    loss.backward()
    assert model.fc.weight.grad.abs().max() < 1e-7  # autograd finds the optimum of the one row there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PenaltyWarning)  # with weights: the loss divides by N
        known = known_training(model, model.fc, optimizer, penalties=own, criterion=criterion, data=[(x, y)])
    assert known.lambda_w == pytest.approx(0.05)
    assert known.lambda_b == pytest.approx(0.04)
    found = diagnose(model, [(x, y)], known=replace(known, body=None), class_names=["no", "yes"])
    assert found.at_rest
    assert found.effective is not None
    assert found.effective.lambda_z == pytest.approx(0.005, rel=1e-4)
    assert found.fit is not None
    assert found.fit.models["nonnegative"].distance.Z < 1e-4
    record, _, _ = monitored(model, tmp_path, [(x, y)], class_names=["no", "yes"])
    assert record.report.num_classes == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda y: (y + 1) % K, "a, b, c and d are taken for one another"),  # numbered from 1, or in another order
        (lambda y: torch.where(y < 2, 1 - y, y), "a and b are taken for one another"),
        (lambda y: y, None),
        (lambda y: torch.where(y == 0, 1, y), None),  # one class taken for another is lost, not exchanged
    ],
)
def test_labels_in_another_order_than_the_heads_rows_are_told(given, words, tmp_path):
    model, data = Net(linear(30 * EYE)).eval(), [(X, given(Y))]
    found = diagnose(model, data, class_names=list("abcd")).words
    said = monitored(model, tmp_path, data, class_names=list("abcd"))[1]
    assert words is None or not any("needs more room" in text for text in found)
    for texts in (found, said):
        assert any("one for one" in text for text in texts) == (words is not None)
        assert words is None or any(words in text for text in texts)
    few = [(X[:4], given(Y[:4]))]
    assert not any("one for one" in note for note in diagnose(model, few).words)


@pytest.mark.parametrize("times", [1, 100])
def test_a_head_that_is_right_about_neither_class_by_hardly_anything_is_not_told_to_be_in_another_order(
    times, tmp_path
):
    """As an untrained one by chance; with scores a hundred times as far apart it says something."""
    model, data = Net(linear(0.1 * times * EYE)).eval(), [(X, torch.where(Y < 2, 1 - Y, Y))]
    found, said = diagnose(model, data).words, monitored(model, tmp_path, data)[1]
    for texts in (found, said):
        assert any("one for one" in text for text in texts) == (times == 100)


def test_more_outputs_than_classes_is_a_caution():
    wide = nn.Linear(D, 32, bias=False)
    d = diagnose(Net(wide).eval(), [(X, Y)], head="fc")
    assert any("32 outputs, but samples of only 4 of these classes were seen" in note for note in d.notes)


def monitored(model, folder, data=None, **more):
    """The record of a pass of its own, what was said, and the line written."""
    said: list[str] = []
    options = MonitorOptions(path=folder / "x.jsonl", say=said.append)
    data = [(X, Y)] if data is None else data
    with CollapseMonitor(model, loader=data, options=options, **more) as monitor:
        record = monitor.end_epoch()
    assert record is not None
    return record, said, [line for line in read_json_lines(folder / "x.jsonl") if line["kind"] == "epoch"][-1]


def agrees(record, line, d):
    """The monitor and ``diagnose`` say the same, in record, scalars and file."""
    assert record.separation.states == d.separation.states
    assert record.separation.groups == d.separation.groups
    assert record.lost == d.lost
    assert [(c.reason, c.rival) for c in record.standings.lost] == [(c.reason, c.rival) for c in d.standings.lost]
    assert [c.nats for c in record.standings.lost] == pytest.approx([c.nats for c in d.standings.lost], rel=1e-4)
    assert record.standings.carried == d.standings.carried
    assert record.dead == d.dead
    assert record.recalls == pytest.approx(d.measurement.accuracies, nan_ok=True)
    assert len(record.gone) == d.num_gone
    assert [record.scalars[f"nc/num_{name}"] for name in ("lost", "dead", "gone")] == [
        len(d.lost),
        len(d.dead),
        d.num_gone,
    ]
    assert [c["index"] for c in line["lost"]] == list(d.lost)
    assert line["dead"] == list(d.dead)
    assert line["states"] == list(d.separation.states)


@pytest.mark.parametrize("case", CASES)
def test_the_monitor_says_of_such_heads_what_diagnose_says(case, tmp_path):
    make, head, states, geometry = CASES[case]
    model = make()
    record, said, line = monitored(model, tmp_path, head=head)
    assert record.separation is not None
    assert record.separation.states == states
    assert any("are not W h + b" in text for text in said) == (not geometry)
    assert (record.report.Z is None) == (not geometry)
    agrees(record, line, diagnose(model.eval(), [(X, Y)], head=head))


@pytest.mark.parametrize("case", CASES)
def test_the_training_pass_is_followed_by_its_logits_too(case, tmp_path):
    make, head, states, _ = CASES[case]
    model = make()
    options = MonitorOptions(path=tmp_path / "x.jsonl", say=lambda _: None)
    with CollapseMonitor(model, head=head, options=options) as monitor:
        for rows in torch.arange(400).split(50):
            out = model(X[rows])
            logits = out if isinstance(out, torch.Tensor) else out["logits"] if isinstance(out, dict) else out[0]
            logits.sum().backward()
            monitor.step(Y[rows])
        record = monitor.end_epoch()
    assert record is not None
    assert record.separation is not None
    assert record.separation.states == states


def test_a_temperature_that_is_learned_is_noticed_in_the_epoch_in_which_it_moves(tmp_path):
    scale = torch.ones(())
    model = Net(linear(0.001 * EYE), lambda z: scale * z)
    options = MonitorOptions(path=tmp_path / "x.jsonl", say=lambda _: None)
    states = []
    with CollapseMonitor(model, options=options) as monitor:
        for value in (1.0, 1.0, 3e4, 3e4):
            for rows in torch.arange(400).split(100):
                model(X[rows])
                monitor.step(Y[rows])
                scale.fill_(value)
            record = monitor.end_epoch()
            assert record is not None
            assert record.separation is not None
            states.append(set(record.separation.states))
    assert states == [{"vanished"}, {"vanished"}, {"separated"}, {"separated"}]


def shut(classes):
    layer = linear(3 * EYE, bias=True)
    layer.bias.data[list(classes)] = -50
    return layer


def shared(spread=0.0):
    """Two rows that are one; the classes' features differ, so that their columns need not be."""
    layer = linear(3 * EYE, bias=True)
    layer.weight.data[2:] = 3 * (EYE[2] + EYE[3]) / 2
    layer.weight.data[3, 9] = spread
    layer.bias.data[3] = -0.1
    return layer


FOUND = {
    "all separated": (lambda: linear(3 * EYE, bias=True), ()),
    "one shut out by its bias": (lambda: shut([3]), (3,)),
    "two shut out": (lambda: shut([1, 3]), (1, 3)),
    "merged, one of them never predicted": (shared, (3,)),
    "rows that nearly coincide": (lambda: shared(0.01), (3,)),
    "nothing learned": (lambda: linear(0 * EYE, bias=True), (1, 2, 3)),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_monitor_and_diagnose_count_and_name_the_same_classes(case, tmp_path):
    make, lost = FOUND[case]
    model = Net(make())
    record, said, line = monitored(model, tmp_path, class_names=list("abcd"))
    d = diagnose(model.eval(), [(X, Y)], class_names=list("abcd"))
    assert record.lost == lost
    agrees(record, line, d)
    if case == "nothing learned":
        assert (
            said[-1]
            == "After epoch 1: no class is 0.5 nats ahead of its nearest yet: nothing has been learned that could "
            "merge."
        )
        return
    assert ("lost, with none of their samples recognised: " in said[-1]) == bool(lost)
    assert ("dead, with coinciding rows of the head: " in said[-1]) == (case in list(FOUND)[3:5])
    assert all(("abcd"[c.index] + " to " + "abcd"[c.rival]) in said[-1] for c in d.standings.lost)


@pytest.mark.parametrize("seed", range(10))
def test_monitor_and_diagnose_agree_on_random_networks(seed, tmp_path):
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    head = nn.Linear(12, 6)
    head.weight.data *= 10 ** random.uniform(-2, 1.5)
    head.bias.data *= 10 ** random.uniform(-1, 1.5)
    if seed % 3 == 0:
        weight = head.get_parameter("weight").data
        weight[1] = weight[0]
    labels = torch.arange(6).repeat_interleave(torch.tensor(random.integers(seed % 5 > 0, 60, 6)))
    rows = random.uniform(0, 2) * head.weight.data[labels] + random.uniform(0, 2) * torch.randn(len(labels), 12)
    scale = 10 ** random.uniform(-1, 1) if seed % 2 else 1.0
    model, order = Net(head, lambda z: scale * z), torch.randperm(len(labels))
    batches = list(zip(rows.split(16), labels.split(16), strict=True))
    record, _, line = monitored(model, tmp_path, batches)
    agrees(record, line, diagnose(model.eval(), [(rows[order], labels[order])]))


def test_a_class_that_is_never_predicted_is_lost_although_its_mean_is_scored_highest(tmp_path):
    """Most samples go to another class by a hair, a few say their own class loudly: recall decides, not the mean."""
    head, loud = linear(EYE), torch.zeros(100, D)
    loud[:, 0], loud[:, 1] = 1.0, 0.9
    rows, labels = torch.cat([loud, 3 * EYE]), torch.tensor([1] * 100 + [0, 2, 2, 3])
    record, _, line = monitored(Net(head), tmp_path, [(rows, labels)])
    d = diagnose(Net(head).eval(), [(rows, labels)])
    assert record.recalls.tolist() == [1, 0, 0.5, 1]
    assert record.lost == d.lost == (1,)
    agrees(record, line, d)


def test_one_output_and_a_convolution_are_heads(tmp_path):
    one: Any = nn.Linear(D, 1)
    one.weight.data, one.bias.data = (10 * (torch.eye(D)[0] - torch.eye(D)[1]))[None], torch.zeros(1)
    conv: Any = nn.Conv2d(D, K, 1)
    conv.weight.data, conv.bias.data = 5 * EYE[:, :, None, None], torch.tensor([0.0, 0, 0, -9])
    two = Y < 2
    pixels = X[:, :, None, None]
    cases = [
        (Net(one), [(X[two], 1 - Y[two])]),
        (Net(one, lambda z: z.squeeze(1)), [(X[two], 1 - Y[two])]),
        (Net(one, lambda z: z.squeeze(1).sigmoid()), [(X[two], 1 - Y[two])]),
        (Net(conv, lambda z: z.flatten(1)), [(pixels, Y)]),
        (Net(conv), [(pixels, Y)]),
    ]
    for model, data in cases:
        record, _, line = monitored(model, tmp_path, data)
        d = diagnose(model.eval(), data)
        assert d.measurement.linear
        assert set(d.separation.states) == {"separated"}
        agrees(record, line, d)
        metric = NeuralCollapse(head=model.fc)
        metric.update(data[0][0].flatten(1), data[0][1])
        assert metric.compute().separation().states == d.separation.states


def test_a_margin_in_training_is_said(tmp_path):
    class Margin(nn.Linear):
        def forward(self, input, labels=None):  # noqa: A002 - torch's name
            logits = super().forward(input)
            return logits if labels is None else logits - 9 * F.one_hot(labels, K)

    class WithLabels(Net):
        def forward(self, x, labels=None):
            return self.fc(x, labels)

    model, said = WithLabels(as_kind(Margin, 3 * EYE)), []
    options = MonitorOptions(path=tmp_path / "x.jsonl", say=said.append)
    with CollapseMonitor(model, options=options) as monitor:
        model(X, Y)
        monitor.step(Y)
        record = monitor.end_epoch()
    assert record is not None
    assert record.lost == (0, 1, 2, 3)
    assert any("receives more than features, perhaps labels" in text for text in said)
    assert monitored(model, tmp_path)[0].lost == ()


def test_what_cannot_be_read_of_a_training_is_said(tmp_path):
    said, model = [], Net(nn.Linear(D, K))
    with CollapseMonitor(model, options=MonitorOptions(path=tmp_path / "x.jsonl", say=said.append)) as monitor:
        assert monitor.read_training(torch.optim.SGD(nn.Linear(D, K).parameters(), lr=0.1)) is None
        assert monitor.known is None
    (text,) = said
    assert text.startswith("What the optimizer does to the head cannot be read: ValueError: `optimizer` holds no param")


def test_a_head_of_another_size_than_the_models_scores_is_refused(tmp_path):
    """A cosine head is no ``nn.Linear``, and the hidden layer below it none whose rows are classes."""

    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(D, 7), nn.ReLU(), Scaled(7))

    class Scaled(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(K, d))

        def forward(self, h):
            return 16 * F.normalize(h) @ F.normalize(self.weight).T

    words = r"the model gives each sample 4 scores, its last linear layer '0' 7. Pass head=NAME.*: perhaps '2'"
    model = make()
    with pytest.raises(ValueError, match=words):
        diagnose(model.eval(), iter([(X, Y)]))
    options = MonitorOptions(path=tmp_path / "x.jsonl", say=lambda _: None)
    with CollapseMonitor(model.train(), options=options) as monitor:
        model(X)
        with pytest.raises(ValueError, match=words):
            monitor.step(Y)
    with CollapseMonitor(model, head="2", options=options) as monitor:
        logits = model(X)
        monitor.step(Y)
        found: Any = monitor.end_epoch()
    right = (logits.argmax(1) == Y).numpy()
    np.testing.assert_allclose(found.recalls, [right[k == Y].mean() for k in range(K)])
    assert diagnose(model.eval(), [(X, Y)], head="2").measurement.num_classes == K

    # told by the names: a classifier inside a model that returns what it projects
    class Projects(Branches):
        def forward(self, x):
            h = self.encoder(x)
            self.get_submodule("fc")(h)
            return self.proj(h)

    model, data = Projects("fc", nn.Linear(32, 128)), [(torch.randn(20, 8), torch.arange(20) % 10)]
    assert monitored(model, tmp_path, data)[0].report.num_classes == 10
    assert diagnose(model, data).measurement.num_classes == 10


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_convolution_of_one_pixel_is_read_as_the_layer_that_it_is(kind):
    flat: Any = Net(nn.Linear(D, K))
    conv: Any = Net(nn.Conv2d(D, K, 1))
    conv.fc.weight.data, conv.fc.bias.data = flat.fc.weight.data[:, :, None, None].clone(), flat.fc.bias.data.clone()
    found = []
    for model, x in ((flat, X), (conv, X[:, :, None, None])):
        optimizer = kind(
            [{"params": [model.fc.weight]}, {"params": [model.fc.bias], "weight_decay": 0.0}], lr=0.05, weight_decay=1.0
        )
        for _ in range(80):
            optimizer.zero_grad()
            F.cross_entropy(model(x).flatten(1), Y).backward()
            optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PenaltyWarning)
            found.append(known_training(model, model.fc, optimizer, schedule=80))
        assert audit(model.fc.weight, model.fc.bias).spectrum.effective_rank > 1
    for name in ("lambda_w", "lambda_b", "decay_clock", "rest"):
        values = [np.array(getattr(known, name), dtype=np.float64) for known in found]  # None is NaN
        np.testing.assert_allclose(*values, rtol=1e-4)
    assert (np.ndim(found[1].lambda_w) == 1) == (kind is torch.optim.AdamW)


def test_a_head_that_is_stored_turned_is_told(tmp_path):
    W, b = EYE.T.numpy(), np.zeros(K)
    with pytest.raises(ValueError, match=r"transpose a head stored \(d, K\), as Keras stores kernels: weight\.T"):
        audit(W, b)
    np.savez(tmp_path / "with", features=X, labels=Y, weight=W, bias=b)
    np.savez(tmp_path / "without", features=X, labels=Y, weight=W)
    for name in ("with", "without"):
        with pytest.raises(ValueError, match=r"as Keras stores kernels: weight\.T"):
            diagnose(tmp_path / f"{name}.npz")


def test_more_outputs_than_classes_is_said_by_the_monitor_too(tmp_path):
    _, said, _ = monitored(Net(nn.Linear(D, 32)), tmp_path)
    assert any("has 32 outputs, but samples of only 4 of these classes were seen" in text for text in said)


def test_labels_in_a_column_and_features_before_flattening_are_read(tmp_path):
    model = Net(shut([3]))
    record, _, line = monitored(model, tmp_path, [(X, Y[:, None])])
    d = diagnose(model.eval(), [(X, Y[:, None])])
    agrees(record, line, d)
    arrays = {"weight": model.fc.weight.detach(), "bias": model.fc.bias.detach()}
    np.savez(tmp_path / "f.npz", allow_pickle=False, features=X[:, :, None, None], labels=Y[:, None], **arrays)
    assert diagnose(tmp_path / "f.npz").headline == d.headline


@pytest.mark.parametrize("shape", [(-1, 1), (1, -1)])
@pytest.mark.parametrize("labels", [Y.float(), torch.eye(4)[Y], torch.eye(4, dtype=torch.bool)[Y]])
def test_a_bias_with_two_axes_and_labels_one_hot_in_a_file_are_read(shape, labels, tmp_path):
    head = shut([3])
    W, b = head.weight.detach().numpy(), head.bias.detach().numpy()
    np.savez(tmp_path / "plain.npz", features=X, labels=Y, weight=W, bias=b)
    np.savez(tmp_path / "f.npz", features=X, labels=labels, weight=W, bias=b.reshape(shape))
    assert diagnose(tmp_path / "f.npz").words == diagnose(tmp_path / "plain.npz").words
    for found in (read_head(tmp_path / "f.npz"), audit(W, b.reshape(shape))):
        assert found.bias is not None
        assert found.bias.tolist() == b.tolist()


def test_one_option_for_samples_without_a_label(tmp_path):
    labels = Y.clone()
    labels[::7] = 255
    model = Net(shut([3]))
    record, _, line = monitored(model, tmp_path, [(X, labels)], ignore_index=255)
    assert record.report.num_samples == 400 - len(labels[::7])
    agrees(record, line, diagnose(model.eval(), [(X, labels)], ignore_index=255))
    with pytest.raises(ValueError, match=r"got 255.*ignore_index"):
        diagnose(model.eval(), [(X, labels)])


def test_lost_is_said_once_after_a_class_was_right():
    watch = MergeWatch(3)
    Z, shut = 3 * np.eye(3) - 1, np.array([[0.0], [0.0], [-9.0]])
    told = [watch.observe(t, Z, Z + (shut if t > 3 else 0)) for t in range(1, 8)]
    events = [(event.kind, event.classes, event.epoch) for found in told for event in found]
    assert events == [("lost", (2,), 5)]
    again = MergeWatch(3)
    again.load_state_dict(watch.state_dict())
    assert again.observe(8, Z, Z + shut) == ()
    back = [event for t in range(9, 13) for event in again.observe(t, Z, Z)]
    assert [event.message for event in back] == ["Class 2 is recognised again (epoch 10)."]


def test_a_row_of_its_own_again_is_said():
    watch, Z, events = MergeWatch(3), 3 * np.eye(3) - 1, []
    for t in range(1, 10):
        events += watch.observe(t, Z, shared_rows=[(1, 2)] if 3 < t < 7 else [])
    assert [event.message for event in events] == [
        "Classes 1 and 2 are dead (epoch 5): their rows of the head coincide with others'.",
        "Classes 1 and 2 have rows of their own in the head again (epoch 8).",
    ]


def test_a_head_of_tokens_is_refused_and_its_rows_are_read_from_a_file(tmp_path):
    """Of 100 sequences of four tokens each; the way out that the refusal names is taken."""
    model, tokens, labels = Net(linear(EYE)), X.reshape(100, 4, D), Y.reshape(100, 4)
    with pytest.raises(
        ValueError, match=r"one row per sample, \(B, d\); got \(100, 4, 16\).* `collapsar diagnose FILE`"
    ):
        diagnose(model, [(tokens, labels)], head="fc")
    with CollapseMonitor(model, head="fc", options=MonitorOptions(path=tmp_path / "c.jsonl")) as monitor:
        model(tokens)
        with pytest.raises(ValueError, match="`collapsar diagnose FILE` reads it"):
            monitor.step(labels)
    np.savez(tmp_path / "rows.npz", features=X.numpy(), labels=Y.numpy(), weight=EYE.numpy())
    read, seen = diagnose(tmp_path / "rows.npz"), diagnose(Net(linear(EYE)), [(X, Y)], head="fc")
    assert read.headline == seen.headline
    assert np.array_equal(read.measurement.class_counts, seen.measurement.class_counts)
