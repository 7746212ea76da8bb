"""Heads that are not what they are taken for: their logits decide, or they are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from collapsar.diagnose.readers import diagnose
from collapsar.metrics.head import find_head, is_linear_head
from collapsar.monitor import CollapseMonitor, MonitorOptions
from collapsar.monitor.watch import MergeWatch
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

    def __init__(self, *, as_tuple: bool = False) -> None:
        super().__init__()
        self.head, self.head_dist, self.as_tuple = linear(0.001 * EYE), linear(40 * EYE), as_tuple

    def forward(self, x):
        both = self.head(x), self.head_dist(x)
        return both if self.as_tuple else (both[0] + both[1]) / 2


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
    "twin heads, averaged": (Twin, "head", APART, False),
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


def test_adapters_are_the_layer_they_adapt():
    peft = pytest.importorskip("peft")

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
    config = peft.LoraConfig(r=2, target_modules=["body"], modules_to_save=["fc"])
    net = Net(linear(0.01 * EYE))
    net.body = nn.Linear(D, D)
    saved = peft.get_peft_model(net, config)
    assert find_head(saved, None, K)[0] == "base_model.model.fc.modules_to_save.default"


class Projected(nn.Module):
    """Names of contrastive long-tail repositories: the classifier ``fc``, the projection ``head``."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.fc, self.head = nn.Linear(8, 32), nn.Linear(32, 10), nn.Linear(32, 128)


def test_a_projection_is_not_taken_for_the_head():
    assert find_head(Projected(), None, 10)[0] == "fc"
    with pytest.raises(ValueError, match="'fc' and 'head' could be it"):
        find_head(Projected())
    with pytest.raises(ValueError, match="'fc' and 'head' could be it"):
        param_groups(Projected(), weight_decay=1e-3)
    groups = param_groups(Projected(), weight_decay=1e-3, head="fc")
    assert [g["name"] for g in groups][:2] == ["head", "head_bias"]


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
    assert d.headline == "All 2 classes are told apart."
    assert d.measurement.accuracies.tolist() == [1.0, 1.0]


def test_more_outputs_than_classes_is_a_caution():
    wide = nn.Linear(D, 32, bias=False)
    d = diagnose(Net(wide).eval(), [(X, Y)], head="fc")
    assert any("32 outputs, but only 4 classes have samples" in note for note in d.notes)


@pytest.mark.parametrize(
    ("head", "states"),
    [
        (lambda: as_kind(Cosine, 0.001 * EYE), APART),
        (lambda: lws([1.0, 1.0, 0.0, 0.0]), PAIR),
        (lambda: linear(30 * EYE), APART),
    ],
)
def test_the_monitor_follows_the_logits_of_such_heads(head, states, tmp_path):
    said: list[str] = []
    options = MonitorOptions(path=tmp_path / "x.jsonl", say=said.append)
    model = Net(head())
    with CollapseMonitor(model, head="fc", loader=[(X, Y)], options=options) as monitor:
        record = monitor.end_epoch()
    assert record is not None
    assert record.separation is not None
    assert record.separation.states == states
    assert any("does not compute W h + b" in text for text in said) == (not is_linear_head(model.fc))


def test_the_monitor_counts_and_names_an_outvoted_class(tmp_path):
    layer = linear(3 * EYE, bias=True)
    layer.bias.data[3] = -50
    options = MonitorOptions(path=tmp_path / "x.jsonl", say=lambda _: None)
    with CollapseMonitor(Net(layer), loader=[(X, Y)], options=options, class_names=list("abcd")) as monitor:
        record = monitor.end_epoch()
        assert "outvoted: d by" in monitor.watch.summary()
    assert record is not None
    assert (record.scalars["nc/num_lost"], record.scalars["nc/num_distinct"]) == (1, 4)


def test_outvoted_is_said_once_after_a_class_was_right():
    watch = MergeWatch(3)
    Z, shut = 3 * np.eye(3) - 1, np.array([[0.0], [0.0], [-9.0]])
    told = [watch.observe(t, Z, Z + (shut if t > 3 else 0)) for t in range(1, 8)]
    events = [(event.kind, event.classes, event.epoch) for found in told for event in found]
    assert events == [("outvoted", (2,), 5)]
    again = MergeWatch(3)
    again.load_state_dict(watch.state_dict())
    assert again.observe(8, Z, Z + shut) == ()
