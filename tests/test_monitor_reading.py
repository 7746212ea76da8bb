"""What optimizers, losses, layers and loaders really do, told by trying them: tables of cases."""

from __future__ import annotations

import inspect
import math
import random
import re
import warnings
from typing import Any, cast

import numpy as np
import pytest
import pytorch_optimizer
import schedulefree
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import lr_scheduler
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import collapsar as cs
from collapsar.advise.recipe import Recipe
from collapsar.advise.standard import StandardAdvice, advise_standard
from collapsar.core.known import KnownTraining
from collapsar.core.penalties import Penalties
from collapsar.diagnose.readers import diagnose
from collapsar.metrics.norms import normalization
from collapsar.monitor import Loop, advise_training, known_training, penalty_warnings
from collapsar.monitor.adaptive import decay_clock, decay_odometer, decay_rows
from collapsar.monitor.exposure import exposure
from collapsar.monitor.losses import read_criterion
from collapsar.monitor.optimizers import decay_of
from collapsar.training import ClassAwareSampler, param_groups

torch_optim, po = torch.optim, pytorch_optimizer


def quietly(*arguments: Any, **named: Any) -> tuple[KnownTraining, list[str]]:
    """What is known, and the kinds of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        known = known_training(*arguments, **named)
    return known, [w.message.kind for w in caught]  # pyright: ignore[reportAttributeAccessIssue]


# --- optimizers


class Wrapped(torch.optim.Optimizer):
    """A wrapper as Accelerate's or ZeRO's: an optimizer whose own class says nothing."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.state, self.defaults = inner, inner.param_groups, inner.state, {}


class Renaming:
    """As fastai's OptimWrapper: none of torch's optimizers; its groups are made anew and have names of its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.state = inner, {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": group["params"], "wd": group["weight_decay"]} for group in self.inner.param_groups]


class SignedSteps:
    """As fastai's own optimizers: none of torch's, with a penalty of another name inside the step."""

    def __init__(self, params: Any, lr: float, wd: float) -> None:
        self.param_groups, self.state = [{"params": list(params), "lr": lr, "wd": wd}], {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [dict(group) for group in self.groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.groups = groups

    def step(self) -> None:
        for group in self.groups:
            for p in group["params"]:
                p.data -= group["lr"] * (p.grad + group["wd"] * p.data).sign()


def wrapped(kind: Any):
    return lambda p, **k: Wrapped(kind(p, **k))


OTHERS = [
    "AdaBelief",
    "AdamP",
    "LaProp",
    "MARS",
    "Kron",
    "CAME",
    "SOAP",
    "Adan",
    "Lion",
    "Lamb",
    "Prodigy",
    "StableAdamW",
]
OPTIMIZERS = {
    "SGD": (torch_optim.SGD, "coupled"),
    "SGD momentum": (lambda p, **k: torch_optim.SGD(p, momentum=0.9, **k), "coupled"),
    "Adam": (torch_optim.Adam, "coupled"),
    "RMSprop": (torch_optim.RMSprop, "coupled"),
    "Adagrad": (torch_optim.Adagrad, "coupled"),
    "NAdam decoupled": (lambda p, **k: torch_optim.NAdam(p, decoupled_weight_decay=True, **k), "preconditioned"),
    "AdamW": (torch_optim.AdamW, "preconditioned"),
    "AdamW fused": (lambda p, **k: torch_optim.AdamW(p, fused=True, **k), "preconditioned"),
    "AdamW at rate 0": (lambda p, **k: torch_optim.AdamW(p, **{**k, "lr": 0.0}), "preconditioned"),
    "Adafactor": (torch_optim.Adafactor, "preconditioned"),
    "Muon": (torch_optim.Muon, "preconditioned"),
    "SGDW momentum": (lambda p, **k: po.SGDW(p, momentum=0.9, weight_decouple=True, **k), "linear"),
    "SGDSaI": (po.SGDSaI, "unknown"),
    "ASGD": (torch_optim.ASGD, "unknown"),  # its lambd decays as well
    "ASGD without lambd": (lambda p, **k: torch_optim.ASGD(p, lambd=0.0, **k), "coupled"),
    "SGDScheduleFree": (schedulefree.SGDScheduleFree, "coupled"),
    "AdamWScheduleFree": (schedulefree.AdamWScheduleFree, "preconditioned"),
    "RAdamScheduleFree": (schedulefree.RAdamScheduleFree, "preconditioned"),
    "SAM of AdaBelief": (lambda p, **k: po.SAM(p, base_optimizer=po.AdaBelief, **k), "preconditioned"),
    "wrapped SGD": (wrapped(torch_optim.SGD), "coupled"),
    "renamed SGD": (lambda p, **k: Renaming(torch_optim.SGD(p, **k)), "coupled"),
    "renamed AdamW": (lambda p, **k: Renaming(torch_optim.AdamW(p, **k)), "preconditioned"),
    "wrapped Adafactor": (wrapped(torch_optim.Adafactor), "preconditioned"),
    "prepared AdamW": (lambda p, **k: Accelerator(cpu=True).prepare(torch_optim.AdamW(p, **k)), "preconditioned"),
    **{
        name: (getattr(po, name), "preconditioned")
        for name in [
            "AdaBelief",
            "AdamP",
            "LaProp",
            "MARS",
            "Kron",
            "CAME",
            "SOAP",
            "Adan",
            "Lion",
            "Lamb",
            "Prodigy",
            "StableAdamW",
        ]
    },
}


def test_a_decay_that_is_not_called_weight_decay_is_not_taken_for_none() -> None:
    w = nn.Parameter(torch.ones(5, 4, dtype=torch.float64))
    optimizer = torch_optim.ASGD([w], lr=0.01)
    decay = decay_of(w, optimizer)
    assert (decay.kind, decay.weight_decay) == ("unknown", 0.0)
    assert math.isnan(decay.penalty)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert bool((w < 1).all())  # nothing pulls, and it shrinks
    for settled in (torch_optim.SGD, torch_optim.Adam, torch_optim.RMSprop, torch_optim.Rprop, po.Yogi):
        assert decay_of(w, settled([w], lr=0.01)).kind == "none"


@pytest.mark.parametrize(("wd", "kind", "warned"), [(0.1, "unknown", ["unknown-decay"]), (0.0, "none", [])])
def test_settings_that_know_no_weight_decay_may_hold_one(wd: float, kind: str, warned: list[str]) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), head := nn.Linear(6, 3))
    optimizer: Any = SignedSteps(model.parameters(), lr=0.1, wd=wd)
    assert decay_of(head.weight, optimizer).kind == kind
    known, found = quietly(model, model[2], optimizer, penalties=Penalties(0.01, 0.01), schedule=10_000)
    assert [each for each in found if "decay" in each and each != "decayed-layers"] == warned
    assert (known.lambda_w, known.decay_clock) == ((None, None) if wd else (0.01, 0.0))


def test_a_wrapper_with_names_of_its_own_is_read_as_what_it_wraps() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    groups = [
        {"params": model[0].parameters(), "weight_decay": 0.0},
        {"params": [model[2].weight], "weight_decay": 0.02},
        {"params": [model[2].bias], "weight_decay": 0.3},
    ]
    plain = torch_optim.SGD(groups, lr=0.1)
    found = [quietly(model, model[2], each, schedule=1000)[0] for each in (plain, Renaming(plain))]
    for known in found:
        assert (known.lambda_w, known.lambda_b, known.body) == (0.02, 0.3, "free")
        assert known.decay_clock == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("lambd", "kinds"), [(1e-4, ["unknown-decay", "decayed-layers"]), (0.0, ["no-feature-penalty"])]
)
def test_layers_below_the_head_are_decayed_by_whatever_shrinks_them(lambd: float, kinds: list[str]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    known, found = quietly(model, model[2], torch_optim.ASGD(model.parameters(), lr=0.1, lambd=lambd))
    assert (known.body, found) == ("decayed" if lambd else "free", kinds)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_known_by_what_it_does(name: str) -> None:
    make, kind = OPTIMIZERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        w = nn.Parameter(torch.randn(5, 4))
        optimizer = make([w], lr=0.01, weight_decay=0.02)
    before = w.detach().clone(), torch.get_rng_state(), random.getstate()
    decay = decay_of(w, optimizer)
    assert (decay.kind, decay.weight_decay) == (kind, 0.02)
    assert math.isnan(decay.penalty) == (kind in ("preconditioned", "unknown"))
    assert torch.equal(w, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert all(float(state.get("step", 0)) == 0 for state in optimizer.state.values())


def test_the_momentum_of_heavyball_is_called_beta() -> None:
    class HeavyBall(torch_optim.Optimizer):  # as SGD of heavyball 3.2.1 steps
        def __init__(self, params: Any, lr: float, weight_decay: float, beta: float) -> None:
            super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "beta": beta})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            (group,) = self.param_groups
            for p in group["params"]:
                sums = self.state[p].setdefault("sums", torch.zeros_like(p)).mul_(group["beta"]).add_(p.grad)
                p.sub_(group["lr"] * (sums + group["weight_decay"] * p))

    w = nn.Parameter(torch.ones(5, 4))
    optimizer = HeavyBall([w], lr=0.1, weight_decay=0.5, beta=0.75)
    for _ in range(500):  # pulled to 2 by a square: rests where 2 - w = penalty * w
        w.grad = w.detach() - 2
        optimizer.step()
    decay = decay_of(w, optimizer)
    assert decay.kind == "linear"
    assert torch.allclose((2 - w.detach()) / w.detach(), torch.full((5, 4), decay.penalty), rtol=1e-4)


def of_package() -> list[str]:
    """The optimizers of pytorch_optimizer that need parameters, a rate and a weight decay alone."""
    found = []
    kinds = [kind for kind in vars(po).values() if inspect.isclass(kind) and issubclass(kind, torch_optim.Optimizer)]
    for kind in kinds:
        settings = inspect.signature(kind.__init__).parameters.values()
        needed = {p.name for p in settings if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
        if needed == {"self", "params"} and {"lr", "weight_decay"} <= {p.name for p in settings}:
            found.append(kind.__name__)
    assert len(found) > 80  # the table below is not empty
    return sorted(found)


# Not tried here: it takes seconds a step; and those that need a graph, a process group or another package.
LEFT_OUT = {"SpectralSphere", "TAM", "SGDP", "AdaHessian", "SophiaH", "DeMo", "DistributedMuon"}
# A step without gradient is not their usual one: projected (AdamP), at random (Magma, Kron), with a rate of their
# own (GrokFastAdamW).
UNUSUAL = {"AdamP", "Magma", "Kron", "GrokFastAdamW"}


@pytest.mark.parametrize("name", [name for name in of_package() if name not in LEFT_OUT | UNUSUAL])
def test_the_decay_read_is_the_one_that_a_step_without_gradient_makes(name: str) -> None:
    """Coupled decay steps as a gradient of wd * w would; decoupled decay takes the share lr * wd of every weight."""
    kind, rate, wd = getattr(po, name), 2.0**-6, 0.25
    start = torch.tensor([[1.0, 0.5, -1.5], [-2.0, 0.25, 1.75], [0.5, -1.0, 0.5], [-0.25, -1.0, 1.25]])
    both = "weight_decouple" in inspect.signature(kind.__init__).parameters
    ways = [{"weight_decouple": way} for way in (True, False)] if both else [{}]

    def moved(gradient: torch.Tensor, decay: float, way: dict[str, bool]) -> tuple[torch.Tensor, Any, nn.Parameter]:
        w = nn.Parameter(start.clone())
        group = {"params": [w], **({"use_muon": True} if "uon" in name or name == "AdaGO" else {})}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = kind([group], lr=rate, weight_decay=decay, **way)
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
        w.grad = gradient.clone()
        optimizer.step()
        return w.detach() - start, optimizer, w

    for way in ways:
        by_decay, optimizer, w = moved(torch.zeros_like(start), wd, way)
        by_decay = by_decay - moved(torch.zeros_like(start), 0.0, way)[0]
        found = decay_of(w, optimizer)
        if found.kind == "coupled":
            assert torch.allclose(by_decay, moved(wd * start, 0.0, way)[0], rtol=1e-3, atol=1e-7)
        elif found.kind == "none" and name != "DAdaptAdaGrad":  # which goes back from where it began, decay or not
            assert not by_decay.any()
        elif found.kind == "preconditioned" and found.clock_rate == 1:
            assert torch.allclose(by_decay, -rate * wd * start, rtol=1e-3)


@pytest.mark.parametrize("kind", [po.ROSE, po.Ranger])
def test_a_penalty_of_centred_gradients_is_that_of_all_but_the_mean_of_a_row(kind: Any) -> None:
    """A quadratic rests where the loss pulls by wd * w, but for the mean of each row, which no gradient moves."""
    torch.manual_seed(0)
    goal, wd, steps = torch.randn(4, 6, dtype=torch.float64), 0.5, 1500
    w = nn.Parameter(torch.randn(4, 6, dtype=torch.float64))
    optimizer = kind([w], lr=0.1, weight_decay=wd, weight_decouple=False)
    decay = decay_of(w, optimizer)
    assert (decay.kind, decay.penalty, decay.centred) == ("coupled", wd, True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps))
        w.grad = 0.5 * (w.detach() - goal)
        optimizer.step()
    rest = w.detach()
    pull, held = 0.5 * (goal - rest), wd * rest
    off = pull - held
    assert float((off - off.mean(dim=1, keepdim=True)).abs().max()) < 2e-3
    assert float(off.mean(dim=1).abs().max()) > 0.05
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.02, weight_decouple=False)
    known, kinds = quietly(model, model[2], optimizer, penalties=Penalties(0.01, 0.01))
    assert known.lambda_w == pytest.approx(0.03)
    assert "centred-gradients" in kinds
    assert (
        "centred-gradients" not in quietly(model, model[2], torch_optim.Adam(model.parameters(), weight_decay=0.1))[1]
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch_optim.SGD(p, lr=0.05, weight_decay=0.5),
        lambda p: torch_optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.5),
        lambda p: po.SGDW(p, lr=0.05, momentum=0.9, weight_decouple=True, weight_decay=0.5),
        lambda p: torch_optim.Adam(p, lr=0.05, weight_decay=0.5),
    ],
)
def test_the_penalty_read_is_the_one_at_which_a_quadratic_rests(make) -> None:
    x = nn.Parameter(torch.zeros(1, 3, dtype=torch.float64))
    optimizer = make([x])
    penalty = decay_of(x, optimizer).penalty
    for _ in range(300):  # what is left shrinks by 3.5 % a step
        optimizer.zero_grad()
        (0.1 * (x - 1) ** 2).sum().backward()
        optimizer.step()
    assert x.detach().numpy() == pytest.approx(0.2 / (0.2 + penalty), rel=1e-4)


def test_a_wrapper_that_may_change_the_steps_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    sam = po.SAM(model.parameters(), base_optimizer=torch_optim.SGD, lr=0.1, weight_decay=1e-3)
    named: dict[str, Any] = {"penalties": Penalties(0.01, 0.01)}
    assert [w.kind for w in penalty_warnings(model, model[2], sam, **named)] == ["wrapped-optimizer"]
    prepared = Accelerator(cpu=True).prepare(torch_optim.SGD(model.parameters(), lr=0.1, weight_decay=1e-3))
    assert penalty_warnings(model, model[2], prepared, **named) == ()
    assert known_training(model, model[2], prepared, **named).lambda_w == pytest.approx(0.011)


def test_one_optimizer_for_the_body_and_another_for_the_head() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    both = [
        torch_optim.Muon(model[0].parameters(), weight_decay=0.1),
        torch_optim.SGD(model[2].parameters(), lr=0.1, weight_decay=0.02),
    ]
    with pytest.warns(UserWarning, match="Muon shrinks weights separately from the gradient step"):
        known = known_training(model, model[2], both, penalties=Penalties(0.01, 0.01))
    assert known.lambda_w == pytest.approx(0.03)


def test_an_optimizer_that_cannot_be_tried_is_a_caution() -> None:
    class Odd(torch_optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("only with a closure")

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = Odd(model.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.warns(UserWarning, match="The effect of the weight_decay of Odd is not known"):
        known = known_training(model, model[2], optimizer, penalties=Penalties(0.01, 0.01))
    assert known.lambda_w is None
    with pytest.raises(ValueError, match="is not known"):
        advise_training([9, 9, 3], model, optimizer, Loop(penalties=Penalties(0.01, 0.01)))


def test_a_decay_that_changes_no_step_is_told() -> None:
    class Forgetful(torch_optim.AdamW):
        def step(self, closure=None):
            for group in self.param_groups:
                group["weight_decay"] = 0.0
            super().step(closure)
            for group in self.param_groups:
                group["weight_decay"] = group["kept"]

    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    groups = [{"params": model.parameters(), "kept": 0.1, "weight_decay": 0.1}]
    known, kinds = quietly(model, model[2], Forgetful(groups, lr=0.1))
    assert "unused-decay" in kinds
    assert "Forgetful has a weight_decay but steps as if it had none" in " ".join(known.cautions)
    assert known.lambda_w is None


@pytest.mark.parametrize(
    ("name", "matrix"), [("LARS", "coupled"), ("Kron", "preconditioned"), ("MARS", "preconditioned")]
)
def test_what_leaves_vectors_alone_has_no_penalty_on_the_bias(name: str, matrix: str) -> None:
    def after(weight_decay: float) -> tuple[torch.Tensor, nn.Linear, Any]:
        torch.manual_seed(0)
        head = nn.Linear(5, 4)
        optimizer = getattr(po, name)(head.parameters(), lr=0.01, weight_decay=weight_decay)
        for parameter in head.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        return head.bias.detach(), head, optimizer

    (plain, *_), (decayed, head, optimizer) = after(0.0), after(0.5)
    assert torch.equal(plain, decayed)
    # MARS has another setting for vectors, which shrinks them.
    assert (decay_of(head.weight, optimizer).kind, decay_of(head.bias, optimizer).kind) == (
        matrix,
        "unknown" if name == "MARS" else "none",
    )


def test_a_group_of_vectors_that_are_left_alone_is_no_unused_decay() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    groups = [{"params": [p for p in model.parameters() if p.ndim == dims]} for dims in (2, 1)]
    known, kinds = quietly(model, model[2], po.LARS(groups, lr=0.1, weight_decay=0.01))
    assert "unused-decay" not in kinds
    assert (known.lambda_w, known.lambda_b) == (0.01, 0.0)


def test_gradients_that_are_centred_for_convolutions_alone() -> None:
    def made(weight_decay: float) -> tuple[list[torch.Tensor], Any]:
        parameters: list[torch.Tensor] = [nn.Linear(5, 4).weight, nn.Conv2d(5, 4, 1).weight]
        settings: dict[str, Any] = {"weight_decouple": False, "gc_conv_only": True}
        return parameters, po.Ranger(parameters, lr=0.01, weight_decay=weight_decay, **settings)

    parameters, optimizer = made(0.0)
    before = [p.detach().clone() for p in parameters]
    for _ in range(8):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert [torch.equal(p, old) for p, old in zip(parameters, before, strict=True)] == [False, True]
    parameters, optimizer = made(0.1)
    assert [decay_of(p, optimizer).centred for p in parameters] == [False, True]


# --- AdamW at rest


def layer_norm_network(weight_decay: float, steps: int, lr: float, **settings: Any) -> tuple[Any, ...]:
    """5 x 100 + 5 x 20 digits, the body not decayed; the head's penalty is AdamW's alone (theory: section 11)."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    rows = np.concatenate([np.flatnonzero(digits == k)[: 100 if k < 5 else 20] for k in range(10)])
    x, y = torch.tensor(images[rows] / 16 - 0.5, dtype=torch.float32), torch.tensor(digits[rows])
    torch.manual_seed(0)
    norm = nn.LayerNorm(32, elementwise_affine=False)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), norm, nn.Linear(32, 10))
    groups = [
        {"params": model[:4].parameters(), "weight_decay": 0.0},
        {"params": [model[4].weight], "weight_decay": weight_decay},
        {"params": [model[4].bias], "weight_decay": 0.0},
    ]
    optimizer = torch_optim.AdamW(groups, lr=lr, **settings)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps // 9 + 1):
        for batch in torch.randperm(len(y))[:576].split(64):
            if scheduler.last_epoch < steps:
                optimizer.zero_grad()
                F.cross_entropy(model(x[batch]), y[batch]).backward()
                optimizer.step()
                scheduler.step()
    return model, optimizer, scheduler, x, y


@pytest.mark.parametrize("settings", [{}, {"amsgrad": True}, {"fused": True}])
def test_adamw_at_rest_is_a_penalty_for_each_class(settings: dict[str, bool]) -> None:
    # The diagnosis below asks for more rest than the rows do. A shorter memory of v comes to rest sooner.
    steps, lr, memory = (300, 4e-3, 0.99) if settings else (700, 2e-3, 0.998)
    model, optimizer, scheduler, x, y = layer_norm_network(10.0, steps, lr, betas=(0.9, memory), **settings)
    head = model[4]
    known, kinds = quietly(model, head, optimizer, schedule=scheduler)
    assert kinds == ["decoupled-decay", "normalised-features"]
    assert "At rest it acts as the penalty" in known.cautions[0]
    for group in optimizer.param_groups:  # its steps are rounded otherwise, its state is read as the same
        group |= {"foreach": True, "fused": False}
    assert quietly(model, head, optimizer, schedule=scheduler)[0].rest == known.rest
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    gradient, rows = head.weight.grad.double(), np.asarray(known.lambda_w)
    # A second road: the penalties that balance the gradient over all samples, row by row.
    W = head.weight.detach().double()
    balanced = (-(gradient * W).sum(dim=1) / (W * W).sum(dim=1)).numpy()
    assert rows.shape == (10,)
    assert known.rest is not None
    if not settings.get("amsgrad"):  # the largest v of a run is not the present one's mean square
        assert rows == pytest.approx(balanced, rel=0.25)
        assert rows[:5].mean() > 1.3 * rows[5:].mean()  # rare classes are decayed less
    slope, correlation = known.rest
    assert slope == pytest.approx(1, abs=0.1)
    assert correlation > 0.98
    assert known.to_dict()["rest"] == {"slope": slope, "correlation": correlation}
    assert known.decay_clock == pytest.approx(10 * lr * (steps + 1) / 2, rel=1e-3)
    assert known.lambda_b == 0.0
    assert known.norm is not None
    assert (known.norm.over, known.norm.length) == ("sample", pytest.approx(32**0.5))
    if not settings:  # the diagnosis chooses that model with these rows, and finds the network near its optimum
        found = diagnose(model, [(x, y)], head=head, known=known)
        assert (found.model.name, found.at_rest) == ("sample", True)
        assert found.model.problem is not None
        assert found.model.problem.normalization is not None
        np.testing.assert_array_equal(found.model.problem.normalization.lambda_w, rows)
        assert found.model_fit is not None
        assert "at rest by its optimizer's state" in " ".join(found.words)
        assert found.model_fit.distance.Z < 0.15  # the bias, of a lower learning rate than it needs, is still moving


def test_adamw_whose_decay_has_not_acted_is_no_penalty() -> None:
    model, optimizer, scheduler, *_ = layer_norm_network(0.05, 150, 1e-3)
    known, kinds = quietly(model, model[4], optimizer, schedule=scheduler)
    assert known.decay_clock == pytest.approx(0.05 * 1e-3 * 150 / 2, rel=1e-2)
    assert known.lambda_w is None
    assert known.rest is not None
    assert known.rest.slope > 2
    assert kinds == ["decoupled-decay", "decay-clock", "normalised-features"]
    assert "cannot have merged classes in this run" in known.cautions[1]
    assert "an earlier training had lost them" in known.cautions[1]  # a checkpoint that is fine-tuned


def test_advice_on_adamw_says_what_the_clock_bounds() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 3))
    optimizer = torch_optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.01)
    found = advise_training([300, 60, 10], model, optimizer, Loop(schedule=3000))
    assert isinstance(found.advice, StandardAdvice)
    assert (found.advice.verdict, found.advice.clock) == ("not acted", pytest.approx(6e-4))
    assert "are outvoted or not learned yet: train until" in found.advice.cure  # how often they are seen is not known
    assert "recognised, then subtract the log of the class frequencies from the logits" in found.advice.cure
    with pytest.raises(ValueError, match=r"`loop.data` must be given"):
        advise_training([300, 60, 10], model, optimizer, Loop(schedule=30_000_000))
    data = torch.utils.data.TensorDataset(torch.zeros(370, 8), torch.repeat_interleave(torch.tensor([300, 60, 10])))
    loader = torch.utils.data.DataLoader(data, batch_size=37, shuffle=True)
    at_rest = advise_training([300, 60, 10], model, optimizer, Loop(data=loader, schedule=300_000_000))
    assert isinstance(at_rest.advice, StandardAdvice)
    recipe = Recipe("adamw", 0.01, 2e-5, 300_000_000, 37, "layernorm", 16, "constant")
    assert at_rest.advice.to_dict() == advise_standard([300, 60, 10], recipe).to_dict()


def test_advice_before_training_does_not_caution_against_what_it_answers() -> None:
    """That AdamW has not stepped yet, and where a diagnosis would read lambda_w, is no news to who asks before."""
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 4))
    groups = [{"params": model[0].parameters(), "weight_decay": 0.0}, {"params": model[2].weight, "weight_decay": 30.0}]
    data = torch.utils.data.TensorDataset(torch.zeros(240, 8), torch.arange(4).repeat_interleave(60))
    loader = torch.utils.data.DataLoader(data, batch_size=60, shuffle=True)
    for steps in (1, 1000):
        found = advise_training([60] * 4, model, torch_optim.AdamW(groups, lr=1e-3), Loop(data=loader, schedule=steps))
        assert isinstance(found.advice, StandardAdvice)
        assert found.cautions == ()
    free = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    groups = [{"params": free[2].weight, "weight_decay": 0.8}, {"params": free[:2].parameters(), "weight_decay": 0.0}]
    kept = advise_training([60] * 4, free, torch_optim.SGD(groups, lr=0.1), Loop(schedule=1000))
    assert any("LayerNorm feeds the head" in caution for caution in kept.cautions)


def test_advice_on_a_norm_before_the_head_is_that_of_its_model() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16, elementwise_affine=False), nn.Linear(16, 4))
    groups = [{"params": model[0].parameters()}, {"params": model[2].weight, "weight_decay": 0.8}]
    optimizer = torch_optim.SGD(groups, lr=0.1, momentum=0.9)
    found = advise_training([100, 100, 20, 20], model, optimizer, Loop(schedule=1000))
    assert isinstance(found.advice, StandardAdvice)
    assert found.advice.clock == pytest.approx(0.1 * 0.8 * 1000 * 10)
    same = advise_standard([100, 100, 20, 20], Recipe("sgd", 0.8, 1.0, 1000, None, "layernorm", 16, "constant"))
    assert (found.advice.verdict, found.advice.lambda_w) == (same.verdict, 0.8)
    unknown = advise_training([100, 100, 20, 20], model, optimizer)
    assert unknown.advice.verdict == same.verdict
    assert "The number of steps is not known" in unknown.cautions[-1]
    assert not any("also acts on the layers below the head" in caution for caution in unknown.cautions)
    groups = [{"params": model[0].parameters(), "weight_decay": 0.3}, groups[1]]
    both = advise_training([100, 100, 20, 20], model, torch_optim.SGD(groups, lr=0.1), Loop(schedule=1000))
    assert any("also acts on the layers below the head" in caution for caution in both.cautions)
    groups[1]["weight_decay"] = 2.6  # merges without smoothing only
    for smoothing, verdict in ((0.0, "merge"), (0.1, "outvoted")):
        loop = Loop(nn.CrossEntropyLoss(label_smoothing=smoothing), schedule=1000)
        both = advise_training([100, 100, 20, 20], model, torch_optim.SGD(groups, lr=0.1), loop)
        assert both.advice.verdict == verdict
    without = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    adamw = torch_optim.AdamW(without.parameters(), lr=1e-3, weight_decay=0.05)
    assert advise_training([300, 60, 10], without, adamw, Loop(schedule=1_000_000)).advice.verdict == "unknown"


def test_a_state_that_is_not_whole_is_refused_with_the_way_out() -> None:
    w = nn.Parameter(torch.randn(4, 3))
    optimizer = torch_optim.AdamW([w], weight_decay=0.1)
    assert "it has not stepped" in decay_rows(w, optimizer).reason
    w.grad = torch.randn(4, 3)
    optimizer.step()
    assert decay_rows(w, optimizer).rows is not None
    optimizer.state[w]["exp_avg_sq"] = optimizer.state[w]["exp_avg_sq"].flatten()[:5]  # as FSDP or ZeRO hold it
    found = decay_rows(w, optimizer)
    assert found.rows is None
    assert "full_state_dict=True" in found.reason
    belief = po.AdaBelief([w], weight_decay=0.1)
    w.grad = torch.randn(4, 3)
    belief.step()
    assert "no penalty can be read" in decay_rows(w, belief).reason


SCHEDULES = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 50),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 50),
    "steps": lambda o: lr_scheduler.StepLR(o, 10, 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1, (t + 1) / 10) * max(0.0, 1 - t / 50)),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "warm-up, then cosine": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1, 10), lr_scheduler.CosineAnnealingLR(o, 40)], [10]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 20), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, 2),
    "a metric": lr_scheduler.ReduceLROnPlateau,
}


@pytest.mark.parametrize("per_tick", [1, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_decay_clock_is_the_sum_over_the_steps(name: str, per_tick: int) -> None:
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = torch_optim.AdamW([w], lr=0.02, weight_decay=0.3)
    scheduler: Any = SCHEDULES[name](optimizer)
    total = 0.0
    for step in range(50 * per_tick):
        w.grad = torch.ones(3, 2)
        total += 0.3 * optimizer.param_groups[0]["lr"]
        optimizer.step()
        if (step + 1) % per_tick == 0:
            scheduler.step(*([1.0] if name == "a metric" else []))
    clock, bound = decay_clock(w, optimizer, scheduler=scheduler), decay_clock(w, optimizer)
    assert clock is not None
    assert bound is not None
    assert clock.exact is (name != "a metric")
    assert clock.past == pytest.approx(total, rel=1e-9) if clock.exact else clock.past > total
    assert bound.past >= total
    assert not bound.exact
    longer = decay_clock(w, optimizer, steps=1000)
    assert longer is not None
    assert longer.total == pytest.approx(1000 / (50 * per_tick) * bound.past)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "a metric"])
def test_the_decay_clock_where_gradients_are_accumulated_over_two_ticks(name: str) -> None:
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = torch_optim.AdamW([w], lr=0.02, weight_decay=0.3)
    scheduler: Any = SCHEDULES[name](optimizer)
    sums, early = [0.0], None
    for tick in range(50):
        w.grad = torch.ones(3, 2)
        if tick % 2 == 1:
            sums.append(sums[-1] + 0.3 * optimizer.param_groups[0]["lr"])
            optimizer.step()
        scheduler.step()
        if tick == 29:
            early = decay_clock(w, optimizer, scheduler=scheduler, steps=25)
    assert early is not None
    assert (early.exact, early.past, early.total) == (True, pytest.approx(sums[15]), pytest.approx(sums[25]))
    clock = decay_clock(w, optimizer, scheduler=scheduler)
    assert clock is not None
    assert (clock.exact, clock.past, clock.total) == (True, pytest.approx(sums[25]), pytest.approx(sums[25]))


class Estimating(torch_optim.AdamW):
    """AdamW with a learning rate of d * lr, the estimate d growing: the way of D-Adaptation and Prodigy."""

    def __init__(self, params: Any, **settings: float) -> None:
        super().__init__(params, **settings)
        for group in self.param_groups:
            group["d"] = 0.001

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["whole"], group["lr"] = group["lr"], group["lr"] * group["d"]
        result = super().step(closure)
        for group in self.param_groups:
            group["lr"], group["d"] = group["whole"], min(1.01 * group["d"], 0.01)
        return result


def test_the_decay_clock_of_an_optimizer_that_finds_its_own_step_is_bounded_by_its_estimate() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer, total = Estimating(model.parameters(), lr=1.0, weight_decay=0.5), 0.0
    x, y = torch.randn(30, 6), torch.arange(30) % 3
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        total += 0.5 * optimizer.param_groups[0]["d"]
        optimizer.step()
    known, _ = quietly(model, model[2], optimizer, schedule=300)
    assert known.decay_clock == pytest.approx(0.5 * 0.01 * 300)  # lr * weight_decay alone would say 150
    assert known.decay_clock is not None
    assert total <= known.decay_clock < 2 * total
    assert quietly(model, model[2], optimizer, schedule=10_000)[0].decay_clock is None  # the estimate may grow further


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("AdamW", {}),
        ("NAdam", {"decoupled_weight_decay": True}),
        ("RAdam", {"decoupled_weight_decay": True}),
        ("Adafactor", {}),
        ("Muon", {}),
    ],
)
def test_steps_of_lr_have_the_clock_of_lr(name: str, settings: dict[str, Any]) -> None:
    w = nn.Parameter(torch.eye(4, 3))
    optimizer = getattr(torch_optim, name)([w], lr=0.01, weight_decay=0.1, **settings)
    found = decay_of(w, optimizer)
    assert (found.kind, found.clock_rate) == ("preconditioned", 1.0)


def test_a_scheduler_alone_does_not_tell_how_many_steps_sgd_made() -> None:
    """It may be stepped once an epoch: 200 of 390 steps are no clock of 200 steps."""
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = torch_optim.SGD([w], lr=0.1, weight_decay=5e-4)
    head = nn.Linear(2, 3)
    own = torch_optim.SGD(head.parameters(), lr=0.1, weight_decay=0.5)
    steps, broken = cast("Any", (np.int64(400), 400.0))
    assert quietly(nn.Sequential(head), head, own, schedule=steps)[0].decay_clock == pytest.approx(20)
    with pytest.raises(ValueError, match=r"`schedule` must be a scheduler or a whole number of steps, got 400\.0"):
        known_training(nn.Sequential(head), head, own, schedule=broken)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 200)
    optimizer.step()
    scheduler.step()
    assert decay_clock(w, optimizer, scheduler=scheduler) is None
    told = decay_clock(w, optimizer, steps=78_000)
    assert told is not None
    assert told.total == pytest.approx(78_000 * 0.1 * 5e-4)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_scheduler_before_the_first_tick_does_not_tell_how_many_steps_there_will_be(name: str) -> None:
    """T_max may count epochs: 200 of them are no clock of 200 steps, and decay that will act is not called idle."""
    head = nn.Linear(8, 3)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), head)
    optimizer: Any = getattr(torch_optim, name)(model.parameters(), lr=0.1, weight_decay=0.001)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 200)
    known, kinds = quietly(model, head, optimizer, penalties=Penalties(0.0, 0.01), schedule=scheduler)
    assert known.decay_clock is None
    assert "decay-clock" not in kinds
    optimizer.step()  # in the first epoch
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    clock = decay_clock(head.weight, optimizer, scheduler=scheduler, steps=78_000)
    assert clock is not None
    assert not clock.exact
    assert clock.total == pytest.approx(78_000 * 0.1 * 0.001)


def test_one_cycle_is_made_of_steps() -> None:
    w, total = nn.Parameter(torch.ones(3, 2)), 0.0
    optimizer = torch_optim.SGD([w], lr=0.1, weight_decay=0.5)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, 50)
    clock = decay_clock(w, optimizer, scheduler=scheduler)
    for _ in range(50):
        total += 0.5 * optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    assert clock is not None
    assert clock.exact
    assert clock.total == pytest.approx(total, rel=1e-9)


def test_the_scheduler_of_an_optimizer_that_does_not_count_its_steps_bounds_the_clock() -> None:
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = torch_optim.SGD([w], lr=0.1, weight_decay=5e-4)
    scheduler, total = lr_scheduler.StepLR(optimizer, 2, 0.1), 0.0
    for _ in range(5):
        total += 20 * 5e-4 * optimizer.param_groups[0]["lr"]
        optimizer.step()  # one of 20 in the epoch
        scheduler.step()
    clock = decay_clock(w, optimizer, scheduler=scheduler, steps=100)
    assert clock is not None
    assert not clock.exact
    assert clock.total >= total


@pytest.mark.parametrize(("momentum", "steps"), [(0.0, 250), (0.9, 1000)])  # momentum begins and ends ten steps late
def test_the_odometer_reads_the_clock_off_the_head(momentum: float, steps: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 8), torch.arange(60) % 3
    head = nn.Linear(8, 3)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), head).double()
    before = head.weight.detach().clone()
    optimizer = torch_optim.SGD(model.parameters(), lr=50 / steps, momentum=momentum, weight_decay=0.002)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
    found = decay_odometer(head.weight, before)
    assert found.alignment == pytest.approx(1, abs=1e-9)
    rate = decay_of(head.weight, optimizer).clock_rate
    assert rate == pytest.approx(1 / (1 - momentum))
    assert found.clock == pytest.approx(0.1 * rate, rel=1e-3 if momentum == 0 else 0.02)
    known = known_training(model, head, optimizer, penalties=Penalties(0.0, 0.01), schedule=steps)
    assert known.decay_clock == pytest.approx(0.1)
    assert any("has not acted" in caution for caution in known.cautions) is False  # 0.1 is not below it


# --- losses

N = [500, 100, 20]
W = torch.tensor([0.2, 1.0, 5.0])


class Focal(nn.CrossEntropyLoss):
    def forward(self, input, target):  # noqa: A002
        x, y = input, target
        ce = F.cross_entropy(x, y, reduction="none")
        return ((1 - (-ce).exp()) ** 2 * ce).mean()


class Adjusted(nn.CrossEntropyLoss):
    def forward(self, input, target):  # noqa: A002
        return super().forward(input + torch.tensor(N).log(), target)


class Own(nn.Module):
    def forward(self, x, y):
        return -x.log_softmax(1)[torch.arange(len(y)), y].mean()


class Renamed(nn.CrossEntropyLoss):
    """A subclass that changes nothing."""


class OverN(nn.CrossEntropyLoss):
    """Weighs samples, and takes the mean over all of them."""

    def __init__(self) -> None:
        super().__init__(W)

    def forward(self, input, target):  # noqa: A002
        return (W[target] * F.cross_entropy(input, target, reduction="none")).mean()


def class_balanced(x, y):
    """As the package balanced-loss: beside targets that are probabilities, torch divides by the number of samples."""
    return F.cross_entropy(x, F.one_hot(y, len(W)).float(), weight=W)


class Smoothed(nn.Module):
    """As timm's LabelSmoothingCrossEntropy, which torch's attribute does not name."""

    def forward(self, x, y):
        logs = x.log_softmax(-1)
        return (0.9 * -logs.gather(-1, y[:, None])[:, 0] - 0.1 * logs.mean(-1)).mean()


def of_shares(x, y):
    """As timm's SoftTargetCrossEntropy."""
    return (-y * x.log_softmax(-1)).sum(-1).mean()


def smoothed_over_the_others(x, y):
    """The missing .1 shared by the other K - 1 classes alone."""
    return F.cross_entropy(x, 0.85 * F.one_hot(y, len(W)).float() + 0.05)


PRIOR = np.log(N) - np.log(N).mean()
SMOOTHED = cs.Loss(smoothing=0.1)
LOSSES = {
    "none": (None, cs.Loss(), False, ""),
    "cross-entropy": (nn.CrossEntropyLoss(), cs.Loss(), False, ""),
    "renamed": (Renamed(label_smoothing=0.1), cs.Loss(smoothing=0.1), False, ""),
    "function": (F.cross_entropy, cs.Loss(), False, ""),
    "written out": (Own(), cs.Loss(), False, ""),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), cs.Loss(), True, ""),
    "weighted sum": (nn.CrossEntropyLoss(W, reduction="sum"), cs.Loss(W.numpy()), True, ""),
    "weights": (nn.CrossEntropyLoss(W), cs.Loss(W.numpy()), False, ""),
    "half weights": (nn.CrossEntropyLoss(W.half()), cs.Loss(W.half().numpy()), False, ""),
    "logit-adjusted subclass": (Adjusted(), cs.Loss(offsets=PRIOR), False, ""),
    "equal weights": (nn.CrossEntropyLoss(torch.full((3,), 2.0)), cs.Loss(), False, ""),
    "equal weights, smoothed": (nn.CrossEntropyLoss(torch.full((3,), 2.0), label_smoothing=0.1), SMOOTHED, False, ""),
    "weights in a function": (lambda x, y: F.cross_entropy(x, y, weight=W), cs.Loss((5 * W).numpy()), False, ""),
    "twice that": (lambda x, y: 2 * F.cross_entropy(x, y, weight=W), cs.Loss((5 * W).numpy()), False, ""),
    "smoothing in a function": (lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1), SMOOTHED, False, ""),
    "smoothing of another name": (Smoothed(), SMOOTHED, False, ""),
    "smoothing in the labels": (smoothed_over_the_others, cs.Loss(smoothing=0.15), False, ""),
    "smoothing and offsets": (
        lambda x, y: F.cross_entropy(x + torch.tensor(PRIOR).float(), y, label_smoothing=0.1),
        cs.Loss(offsets=PRIOR, smoothing=0.1),
        False,
        "",
    ),
    "soft labels": (of_shares, None, False, "takes a share of every class as labels"),
    "a value per sample": (nn.CrossEntropyLoss(W, reduction="none"), None, False, "returns a value for each sample"),
    "weights and smoothing": (
        nn.CrossEntropyLoss(W, label_smoothing=0.1),
        cs.Loss(W.numpy(), smoothing=0.1),
        False,
        "of a sample of class 0 counts 0.48 for its own class there; in the theory 0.93",
    ),
    "focal subclass": (Focal(), None, False, "not one of the theory's"),
    "NLL": (nn.NLLLoss(), cs.Loss(), False, ""),
    "NLL in a function": (F.nll_loss, cs.Loss(), False, ""),
    "NLL, weighted": (nn.NLLLoss(W), cs.Loss((5 * W).numpy()), False, ""),
    "NLL, weighted sum": (nn.NLLLoss(W, reduction="sum"), cs.Loss(W.numpy()), True, ""),
    "probabilities": (lambda x, y: -x.softmax(dim=1)[torch.arange(len(y)), y].mean(), None, False, "not one of the"),
    "BCE": (nn.BCEWithLogitsLoss(), None, False, "not one of the theory's"),
    "weights over N": (
        lambda x, y: (W[y] * F.cross_entropy(x, y, reduction="none")).mean(),
        cs.Loss(W.numpy()),
        False,
        "",
    ),
    "weights over N, module": (OverN(), cs.Loss(W.numpy()), False, ""),
    "class-balanced": (class_balanced, cs.Loss(W.numpy()), False, ""),
    "weights over N and offsets": (
        lambda x, y: (W[y] * F.cross_entropy(x + torch.tensor(PRIOR).float(), y, reduction="none")).mean(),
        cs.Loss(W.numpy(), offsets=PRIOR),
        False,
        "",
    ),
    "a weight of 0": (nn.CrossEntropyLoss(torch.tensor([0.0, 1, 1])), None, False, "class 0 the weight 0"),
    "an ignored class": (nn.CrossEntropyLoss(ignore_index=0), None, False, "ignores class 0"),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_what_it_computes(name: str, autocast: bool) -> None:
    criterion, loss, summed, reason = LOSSES[name]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = read_criterion(criterion, 3)
    assert found.summed is summed
    assert reason in found.reason
    assert (found.loss is None) is (loss is None)
    if loss is not None and found.loss is not None:
        for ours, theirs in zip(found.loss.to_dict().values(), loss.to_dict().values(), strict=True):
            assert (ours is None) is (theirs is None)
            assert ours is None or np.allclose(ours, np.asarray(theirs), atol=1e-5)


@pytest.mark.parametrize("weights", [W, torch.tensor([0.01, 1.0, 1.0])])
def test_the_label_that_torch_smooths_by_weights_is_the_one_named(weights: torch.Tensor) -> None:
    """Where the loss of one sample is least, its softmax is the label; the class itself need not come first."""
    criterion, x = nn.CrossEntropyLoss(weights, label_smoothing=0.1), torch.zeros(1, 3, requires_grad=True)
    optimizer = torch_optim.LBFGS([x], lr=0.5, max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = criterion(x, torch.tensor([0]))
        loss.backward()
        return loss

    optimizer.step(closure)
    own, *others = x.detach().softmax(1)[0].tolist()
    behind = f", and {others[0]:.2g} for class 1" if own < max(others) else ""
    assert bool(behind) == (weights is not W)
    assert f"counts {own:.2g} for its own class there{behind}; in" in read_criterion(criterion, 3).reason


def test_a_loss_times_a_number_beside_weights_is_read_with_it() -> None:
    found = read_criterion(LOSSES["twice that"][0], 3)
    assert (found.factor, found.normalised) == (pytest.approx(2.0), True)


@pytest.mark.parametrize("first", [0.999, 1.0, 1.001])
def test_a_weight_near_1_is_no_factor_of_a_loss_that_divides_by_weights(first: float) -> None:
    weights = torch.tensor([first, 2.0, 3.0])
    found = read_criterion(nn.CrossEntropyLoss(weights), 3)
    assert (found.factor, found.normalised) == (1.0, True)
    summed = read_criterion(nn.CrossEntropyLoss(weights, reduction="sum"), 3)
    for each in (found, summed):
        assert each.loss is not None
        assert each.loss.class_weights == pytest.approx(weights.numpy())


@pytest.mark.parametrize("num_classes", [7, 14, 100, 1000])  # of seven, every seventh label is the same
@pytest.mark.parametrize("over_n", [False, True])
def test_weights_of_the_last_classes_alone_are_read(num_classes: int, over_n: bool) -> None:
    weights = torch.ones(num_classes)
    weights[-(num_classes // 3) :] = 10.0

    def criterion(x, y):
        if over_n:
            return (weights[y] * F.cross_entropy(x, y, reduction="none")).mean()
        return F.cross_entropy(x, y, weight=weights)

    found = read_criterion(criterion, num_classes)
    assert found.loss is not None
    assert found.loss.class_weights == pytest.approx(weights.numpy(), rel=1e-5)
    assert found.normalised is not over_n


@pytest.mark.parametrize("num_classes", [7, 1000, 3000])
def test_margins_of_the_last_classes_alone_are_none_of_the_losses(num_classes: int) -> None:
    margins = torch.zeros(num_classes)
    margins[-(num_classes // 3) :] = 0.5
    found = read_criterion(lambda x, y: F.cross_entropy(x - torch.diag(margins)[y], y), num_classes)
    assert found.loss is None


def test_class_weights_for_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="`criterion` has 5 class weights for a head of 3 classes"):
        read_criterion(nn.CrossEntropyLoss(torch.ones(5)), 3)


def test_a_summed_loss_divides_the_penalty_by_the_samples_of_a_step() -> None:
    """Trained to rest on all samples at once: the penalty is that of the theory's optimum at wd / N, not at wd."""
    torch.manual_seed(0)
    n, decay = [10, 10, 10, 10], 0.4
    y, features = torch.arange(40) % 4, nn.Parameter(torch.randn(40, 8).double() * 0.3)
    model = nn.Sequential(nn.Linear(8, 4, bias=False).double())
    criterion = nn.CrossEntropyLoss(reduction="sum")
    optimizer = torch_optim.SGD([features, *model.parameters()], lr=0.02, momentum=0.9, weight_decay=decay)
    for _ in range(600):
        optimizer.zero_grad()
        criterion(model(features), y).backward()
        optimizer.step()
    Z = np.stack([model(features).detach().numpy()[y == k].mean(0) for k in range(4)], axis=1)
    data = TensorDataset(torch.zeros(40, 8), y)
    loader = DataLoader(data, batch_size=40)
    nothing, _ = quietly(model, model[0], optimizer, criterion=criterion)
    whole, _ = quietly(model, model[0], optimizer, criterion=criterion, data=loader)
    small, _ = quietly(model, model[0], optimizer, criterion=criterion, data=DataLoader(data, batch_size=8))
    assert nothing.lambda_w is None
    assert "pass data=" in " ".join(nothing.cautions)
    assert whole.lambda_w == pytest.approx(decay / 40)
    assert small.lambda_w == pytest.approx(decay / 8)
    optimum = cs.solve(cs.Problem(n, decay / 40))  # features decayed by the same optimizer
    assert np.linalg.norm(Z - optimum.Z) < 1e-6 * np.linalg.norm(optimum.Z)


@pytest.mark.parametrize("summed", [False, True])
def test_weights_that_are_not_divided_by_their_sum_divide_the_penalty(summed: bool) -> None:
    """Trained to rest on all samples at once: the optimum of the theory is that of the penalty over sum w n / N."""
    torch.manual_seed(0)
    n, weights = [20, 20, 5, 5], torch.tensor([1.0, 1.0, 3.0, 3.0], dtype=torch.float64)
    decay = 0.4 if summed else 0.012
    y, features = torch.repeat_interleave(torch.arange(4), torch.tensor(n)), nn.Parameter(torch.randn(50, 8).double())
    model = nn.Sequential(nn.Linear(8, 4, bias=False).double())

    def criterion(x, target):
        each = weights.to(x.dtype)[target] * F.cross_entropy(x, target, reduction="none")
        return each.sum() if summed else each.mean()

    rate = 0.02 if summed else 0.5
    optimizer = torch_optim.SGD([features, *model.parameters()], lr=rate, momentum=0.9, weight_decay=decay)
    for _ in range(600):
        optimizer.zero_grad()
        criterion(model(features), y).backward()
        optimizer.step()
    Z = np.stack([model(features).detach().numpy()[y == k].mean(0) for k in range(4)], axis=1)
    known, _ = quietly(
        model, model[0], optimizer, criterion=criterion, data=DataLoader(TensorDataset(torch.zeros(50, 8), y), 50)
    )
    blind, kinds = quietly(model, model[0], optimizer, criterion=criterion)
    scale = 70 / 50 * (50 if summed else 1)
    assert known.lambda_w == pytest.approx(decay / scale)
    assert blind.lambda_w is None
    assert "unnormalised-weights" in kinds
    loss = cs.Loss(weights.numpy())
    optimum = cs.solve(cs.Problem(n, decay / scale, loss=loss))  # features decayed by the same optimizer
    assert np.linalg.norm(Z - optimum.Z) < 1e-5 * np.linalg.norm(optimum.Z)
    assert known.loss.class_weights is not None
    assert np.allclose(known.loss.class_weights, weights, rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("factor", "classes"), [(0.125, 3), (8.0, 3), (8.0, 3000)])  # a batch of trial has 8 samples
def test_a_multiplied_loss_is_the_same_loss_beside_a_smaller_penalty(
    factor: float, classes: int, reduction: str
) -> None:
    def criterion(x, y):
        return factor * F.cross_entropy(x, y, reduction=reduction)

    found = read_criterion(criterion, classes)
    assert found.loss is not None
    assert found.loss.is_plain
    assert found.summed is (reduction == "sum")
    assert found.factor == pytest.approx(factor)
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, classes))
    optimizer = torch_optim.SGD(model.parameters(), lr=0.1, weight_decay=0.02)
    data = DataLoader(TensorDataset(torch.zeros(60, 8), torch.arange(60) % 3), batch_size=20)
    known, kinds = quietly(model, model[2], optimizer, criterion=criterion, data=data)
    assert known.lambda_w == pytest.approx(0.02 / factor / (20 if reduction == "sum" else 1))
    assert "multiplied-loss" in kinds
    if factor == 0.125:
        plain = torch_optim.SGD(model.parameters(), lr=0.1 * factor, weight_decay=0.02 / factor)
        same = advise_training([20, 20, 20], model, plain, Loop(nn.CrossEntropyLoss(reduction=reduction), data=data))
        ours = advise_training([20, 20, 20], model, optimizer, Loop(criterion, data=data))
        assert ours.advice.to_dict() == same.advice.to_dict()


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(W), nn.CrossEntropyLoss(label_smoothing=0.3), Adjusted()])
def test_advice_on_weight_decay_alone_does_not_ignore_the_loss(criterion: nn.Module) -> None:
    below = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()]
    model = nn.Sequential(*below, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch_optim.SGD(model.parameters(), lr=0.1, weight_decay=0.02)
    with pytest.raises(ValueError, match=r"measured for the plain cross-entropy.*collapsar\.diagnose"):
        advise_training(N, model, optimizer, Loop(criterion))


# --- what an epoch shows

COUNTS = [300, 60, 10]
LABELS = np.repeat([0, 1, 2], COUNTS)
DATA = TensorDataset(torch.zeros(370, 8), torch.tensor(LABELS))
RARE = torch.tensor([1 / COUNTS[k] for k in LABELS])
THIRD = np.flatnonzero(LABELS == 2)


class Imbalanced(Sampler):
    """As ufoym's ImbalancedDatasetSampler: a class of its own."""

    def __iter__(self):
        return iter(torch.multinomial(RARE, 370, replacement=True).tolist())

    def __len__(self):
        return 370


class Shares(DistributedSampler):
    """As catalyst's DistributedSamplerWrapper."""

    def __init__(self, sampler, **settings):
        whole: Any = list(sampler)
        super().__init__(whole, **settings)
        self.own = sampler

    def __iter__(self):
        drawn = list(self.own)
        return iter([drawn[i] for i in super().__iter__()])


def weighted() -> WeightedRandomSampler:
    return WeightedRandomSampler(RARE.tolist(), 370)


class Bare(Dataset):
    """Labels cannot be looked up."""

    def __len__(self):
        return 370

    def __getitem__(self, i):
        return i


LOADERS = {
    "weighted": (lambda: DataLoader(DATA, 32, sampler=weighted()), True),
    "weighted, without labels": (lambda: DataLoader(Bare(), 32, sampler=weighted()), True),
    "batches of weighted": (lambda: DataLoader(DATA, batch_sampler=BatchSampler(weighted(), 32, False)), True),
    "batches of class-aware": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(ClassAwareSampler(LABELS, [1, 5, 30]), 32, False)),
        True,
    ),
    "its own class": (lambda: DataLoader(DATA, 32, sampler=Imbalanced()), True),
    "wrapped for two ranks": (
        lambda: DataLoader(DATA, 32, sampler=Shares(weighted(), num_replicas=2, rank=0)),
        True,
    ),
    "prepared": (lambda: Accelerator(cpu=True).prepare(DataLoader(DATA, 32, sampler=weighted())), True),
    "repeated indices": (lambda: DataLoader(Subset(DATA, [*range(370), *THIRD.tolist() * 29]), 32, shuffle=True), True),
    "copies joined": (
        lambda: DataLoader(ConcatDataset([DATA] + [Subset(DATA, THIRD.tolist())] * 29), 32, shuffle=True),
        True,
    ),
    "shuffled": (lambda: DataLoader(DATA, 32, shuffle=True), False),
    "shuffled, without labels": (lambda: DataLoader(Bare(), 32, shuffle=True), False),
    "with replacement": (lambda: DataLoader(DATA, 32, sampler=RandomSampler(DATA, replacement=True)), False),
    "two ranks": (lambda: DataLoader(DATA, 32, sampler=DistributedSampler(DATA, 2, 0)), False),
    "a random part": (
        lambda: DataLoader(DATA, 32, sampler=SubsetRandomSampler(torch.randperm(370)[:300].tolist())),
        False,
    ),
    "all copied twice": (lambda: DataLoader(ConcatDataset([DATA, DATA]), 32, shuffle=True), False),
    "equal weights": (lambda: DataLoader(DATA, 32, sampler=WeightedRandomSampler([1.0] * 370, 370)), False),
}


@pytest.mark.parametrize("name", LOADERS)
def test_resampling_is_seen_whatever_does_it(name: str) -> None:
    torch.manual_seed(0)
    make, resampled = LOADERS[name]
    loader = make()
    before = torch.get_rng_state()
    found = exposure(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert found is not None
    assert found.resampled is resampled
    if found.shown is not None and resampled:
        seen = np.zeros(3)
        for _, labels in loader:
            seen += np.bincount(labels, minlength=3)
        assert found.shown / found.shown.sum() == pytest.approx(seen / seen.sum(), abs=0.15)
        often = [1, 1, 30] if "repeated" in name or "copies" in name else [1, 5, 30]
        assert found.factors == pytest.approx(np.array(often) * 370 / (np.array(often) @ COUNTS), rel=0.15)
        if {"weighted", "prepared", "class-aware"} & {*name.split()}:  # which tell their rates
            assert found.factors == pytest.approx(np.array(often) * 370 / (np.array(often) @ COUNTS), rel=1e-6)


@pytest.mark.parametrize(
    "more",
    [
        (DATA.tensors[1], torch.arange(370)),  # the samples' numbers
        (DATA.tensors[1], torch.rand(370)),  # weights
        (DATA.tensors[1][:, None],),  # a column, as MedMNIST's
        (torch.ones(370, 4, dtype=torch.int64), DATA.tensors[1]),  # a mask of tokens
    ],
)
def test_the_labels_are_the_first_class_indices_behind_the_inputs(more: tuple[torch.Tensor, ...]) -> None:
    found = exposure(DataLoader(TensorDataset(torch.zeros(370, 4), *more), 32, shuffle=True))
    assert found is not None
    assert found.shown is not None
    assert found.shown.tolist() == COUNTS


class Named(Bare):
    """Masks and names beside the labels."""

    labels = ("cat", "lynx", "puma")
    label = LABELS
    targets = torch.zeros(370, 8, 8)


class Column:
    """As Hugging Face's, read when it is asked for rows."""

    def __getitem__(self, rows):
        return LABELS[rows].tolist()


class Table(Bare):
    def __init__(self):
        self.column_names = ["text", "label"]

    def __getitem__(self, key):
        return Column() if key == "label" else {"text": "", "label": int(LABELS[key])}


@pytest.mark.parametrize("kind", [Named, Table])
def test_of_a_data_set_the_names_that_hold_no_class_indices_are_passed_over(kind: type[Bare]) -> None:
    found = exposure(kind())
    assert found is not None
    assert found.shown is not None
    assert found.shown.tolist() == COUNTS


def test_a_list_of_samples_is_no_list_of_batches() -> None:
    assert exposure([(torch.zeros(8), label) for label in DATA.tensors[1]]) is None
    assert exposure([(torch.zeros(8), int(label)) for label in DATA.tensors[1]]) is None


def test_counts_that_are_not_the_datas_are_refused() -> None:
    below = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()]
    model = nn.Sequential(*below, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch_optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    part = DataLoader(Subset(DATA, list(range(50))), 32, shuffle=True)
    with pytest.raises(ValueError, match=r"`counts` must be those of the data: .* shows 50 samples"):
        advise_training(COUNTS, model, optimizer, Loop(data=part))
    assert advise_training(COUNTS, model, optimizer, Loop(data=DataLoader(DATA, 32))).advice.verdict == "separated"


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 30.0])), r"Together, classes count 0.034\d, 0.85\d, 30.8 times"),
        (Focal(), "changes their weight as well"),
    ],
)
def test_two_mitigations_that_compound_are_named(criterion: nn.Module, words: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    loader = DataLoader(DATA, 32, sampler=ClassAwareSampler(LABELS, [1, 5, 30]))
    optimizer = torch_optim.SGD(model.parameters(), lr=0.1)
    found = penalty_warnings(model, model[2], optimizer, penalties=Penalties(1, 1), criterion=criterion, data=loader)
    texts = {w.kind: str(w) for w in found}
    assert "Two mitigations compound" in texts["compounded"]
    assert re.search(words, texts["compounded"])


# --- normalisations


class Frozen(nn.Module):
    """A batch norm whose statistics are fixed: a scale and a shift, no normalisation."""

    def __init__(self, size):
        super().__init__()
        self.register_buffer("weight", 2 * torch.ones(size))

    def forward(self, x):
        return x * self.weight


class Unit(nn.Module):
    def forward(self, x):
        return F.normalize(x)


class ZeroCentred(nn.Module):
    """As Gemma's RMSNorm: a gain of 1 + w, w from zero."""

    def __init__(self, size):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return (1 + self.w) * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class Standardised(nn.Module):
    """A batch norm written out, by torch's standard deviation, which divides by n - 1."""

    def forward(self, x):
        return (x - x.mean(dim=0)) / (x.std(dim=0) + 1e-5)


NORMS = {
    "written-out batch norm": (Standardised(), "batch", 4.0 * math.sqrt(127 / 128)),
    "BatchNorm1d": (nn.BatchNorm1d(16), "batch", 4.0),
    "LayerNorm": (nn.LayerNorm(16), "sample", 4.0),
    "torch RMSNorm": (nn.RMSNorm(16), "sample", 4.0),
    "Llama RMSNorm": (LlamaRMSNorm(16), "sample", 4.0),
    "T5 LayerNorm": (T5LayerNorm(16), "sample", 4.0),
    "zero-centred RMSNorm": (ZeroCentred(16), "sample", 4.0),
    "unit length": (Unit(), "sample", 1.0),
    "frozen scale": (Frozen(16), None, None),
    "ReLU": (nn.ReLU(), None, None),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_normalisation_is_one_whatever_its_name(name: str) -> None:
    norm, over, length = NORMS[name]
    found = normalization(norm)
    assert (None if found is None else found.over) == over
    below = [nn.Linear(8, 16), norm]
    direct = nn.Sequential(*below, nn.Linear(16, 3))
    deeper = nn.Sequential(*below, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch_optim.SGD(direct.parameters(), lr=0.1, weight_decay=1e-3)
    kinds = [w.kind for w in penalty_warnings(direct, direct[-1], optimizer)]
    assert kinds == (["decayed-layers"] if over is None else ["normalised-features"])
    optimizer = torch_optim.SGD(deeper.parameters(), lr=0.1, weight_decay=1e-3)
    kinds = [w.kind for w in penalty_warnings(deeper, deeper[-1], optimizer)]
    assert kinds == (["decayed-layers"] if over is None else ["normalised-below", "decayed-layers"])
    groups = {g["name"]: len(g["params"]) for g in param_groups(direct, weight_decay=1e-3, head="2")}
    own = len(list(norm.parameters()))
    assert groups == {"head": 1, "head_bias": 1, "backbone": 2, **({"norm": own} if own else {})}
    if over is not None:
        read = quietly(direct, direct[-1], None)[0].norm
        assert read is not None
        assert (read.over, read.width, read.length) == (over, 16, pytest.approx(length, rel=1e-3))


@pytest.mark.parametrize(
    ("decay", "make", "penalty", "free", "words"),
    [
        (1e-3, torch_optim.SGD, 1e-3, False, "once the gain gathers in few features"),
        (0.0, torch_optim.SGD, 0.0, True, "may grow without bound"),
        (1e-3, torch_optim.AdamW, None, False, "from_normalized"),
    ],
)
def test_whether_the_gain_is_decayed_is_read(decay, make, penalty, free, words) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3))
    groups = param_groups(model, weight_decay=1e-3, norm_weight_decay=decay, head="2")
    optimizer = make(groups, lr=0.1)
    known, _ = quietly(model, model[2], optimizer)
    assert re.search(words, " ".join(known.cautions))
    norm = known.norm
    assert norm is not None
    assert (norm.gain_penalty, norm.free_gain) == (penalty, free)


def test_what_stands_between_the_norm_and_the_head_is_read() -> None:
    pooled = nn.Sequential(nn.Conv1d(4, 16, 1), nn.GroupNorm(4, 16), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                           nn.Dropout(), nn.Linear(16, 3))  # fmt: skip
    optimizer = torch_optim.SGD(param_groups(pooled, weight_decay=1e-3, norm_weight_decay=0.0, head="5"), lr=0.1)
    known, _ = quietly(pooled, pooled[-1], optimizer)
    assert known.norm is not None
    assert (known.norm.layer, known.norm.over, known.norm.pooled) == ("GroupNorm", "sample", "AdaptiveAvgPool1d")
    assert (known.norm.trained_gain, known.norm.free_gain, known.norm.shifted) == (True, True, False)
    assert (known.bounded_by, known.body) == (None, "decayed")
    pooler = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh(), nn.Dropout(),
                           nn.Linear(16, 3))  # fmt: skip
    known, _ = quietly(pooler, pooler[-1], torch_optim.SGD(pooler[-1].parameters(), lr=0.1))
    assert (known.norm, known.bounded_by, known.body) == (None, "Tanh", "frozen")
    fixed = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 3))
    with torch.no_grad():
        fixed[1].get_parameter("weight")[:8] = 3.0
    fixed[1].requires_grad_(False)
    held = [{"params": fixed[2].parameters(), "weight_decay": 0.1}, {"params": fixed[0].parameters()}]
    known, _ = quietly(fixed, fixed[-1], torch_optim.SGD(held, lr=0.1))
    assert known.norm is not None
    assert (known.norm.trained_gain, known.norm.gain_penalty, known.body) == (False, None, "free")
    assert (known.norm.uneven, known.norm.length) == (pytest.approx(0.5), pytest.approx(80**0.5))


class CosineHead(nn.Module):
    """As LDAM and CosFace have it: rows and features normalised, stored (K, d) or (d, K)."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.weight, self.turned = nn.Parameter(torch.randn(8, 3) if turned else torch.randn(3, 8)), turned

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        rows = self.weight.T if self.turned else self.weight
        return 16 * nn.functional.linear(nn.functional.normalize(h), nn.functional.normalize(rows))


@pytest.mark.parametrize("turned", [False, True])
def test_decay_of_a_head_that_normalises_its_rows_is_no_penalty_and_presses_on_nothing(turned: bool) -> None:
    """Its logits are the same at any length of its weight and of the features: decay above the norm bends nothing."""
    torch.manual_seed(0)
    head = CosineHead(turned)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), head)
    optimizer = torch_optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    known, found = quietly(model, head, optimizer)
    assert (known.lambda_w, found) == (None, ["reshaped-head"])


@pytest.mark.parametrize(
    ("frozen", "kinds"), [(True, ["frozen-backbone"]), (False, ["normalised-below", "decayed-layers"])]
)
def test_of_decay_below_the_head_nothing_is_said_where_nothing_there_is_trained(frozen: bool, kinds: list[str]) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[:-1].requires_grad_(not frozen)
    trained = model[-1].parameters() if frozen else model.parameters()
    assert quietly(model, model[-1], torch_optim.SGD(trained, lr=0.1, weight_decay=5e-4))[1] == kinds


def test_what_the_heads_optimizer_shows_is_not_said_of_the_bodys() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3))
    optimizers = [
        torch_optim.NAdam(model[0].parameters(), lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
        torch_optim.AdamW(model[2].parameters(), lr=0.1, weight_decay=0.1),
    ]
    for _ in range(5):
        nn.functional.cross_entropy(model(torch.randn(9, 6)), torch.arange(9) % 3).backward()
        for each in optimizers:
            each.step()
    told = {
        str(w).split()[0]: str(w) for w in penalty_warnings(model, model[2], optimizers) if w.kind == "decoupled-decay"
    }
    assert "slope" in told["AdamW"]
    assert told["NAdam"].endswith("is not a penalty of the loss. It does not act on the head.")
