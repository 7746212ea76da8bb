"""Advice from the objects of a training loop: the penalties and layers that they have, or the reason to refuse."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import collapsar as cs
from collapsar.advise.advice import Advice
from collapsar.advise.recipe import Recipe
from collapsar.advise.standard import StandardAdvice, advise_standard
from collapsar.advise.weight_decay import DecayAdvice, advise_weight_decay
from collapsar.core.penalties import Penalties
from collapsar.monitor import Loop, advise_training
from collapsar.training import MatchedCrossEntropy

COUNTS = [100, 100, 20]


def network(norm: bool = True) -> nn.Sequential:
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def sgd(model: nn.Module, decay: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)


def test_ordinary_training_counts_its_layers() -> None:
    model = network()
    found = advise_training(COUNTS, model, sgd(model, 0.03))
    assert isinstance(found.advice, DecayAdvice)
    assert found.advice.to_dict() == advise_weight_decay(COUNTS, 0.03, layers=2).to_dict()


def test_penalties_of_the_loss_add_to_the_decay() -> None:
    model, weights = network(norm=False), [1.0, 1.0, 2.0]
    criterion = MatchedCrossEntropy(cs.Problem(COUNTS, 1.0, loss=cs.Loss(class_weights=weights)))
    loop = Loop(criterion, Penalties(0.02, 5e-4, 0.01))
    found = advise_training(COUNTS, model, sgd(model, 0.01), loop)
    assert isinstance(found.advice, Advice)
    expected = cs.Problem(COUNTS, (0.03 * 5e-4) ** 0.5, 0.02, cs.Loss(class_weights=weights), features="nonnegative")
    assert found.advice.problem == expected
    assert found.cautions == ()


W = torch.tensor([1.0, 1.0, 5.0])


def unnormalised(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the mean over 220 samples, 1.36 times the loss of the theory."""
    return (W[y] * nn.functional.cross_entropy(x, y, reduction="none")).mean()


def adjusted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(x + torch.tensor(COUNTS).log(), y)


@pytest.mark.parametrize(
    ("criterion", "loss", "times"),
    [
        (nn.CrossEntropyLoss(W), cs.Loss(class_weights=[1, 1, 5]), 1.0),
        (unnormalised, cs.Loss(class_weights=[1, 1, 5]), 300 / 220),
        (adjusted, cs.Loss(offsets=np.log(COUNTS)), 1.0),
        (nn.CrossEntropyLoss(label_smoothing=0.1), cs.Loss(smoothing=0.1), 1.0),
    ],
)
@pytest.mark.parametrize("decay", [0.5, 1.5])
def test_another_loss_behind_a_norm_is_advised_on(criterion: Any, loss: cs.Loss, times: float, decay: float) -> None:
    norm = nn.LayerNorm(8, elementwise_affine=False)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 3))
    groups = [{"params": model[0].parameters()}, {"params": [model[2].weight], "weight_decay": decay}]
    found = advise_training(COUNTS, model, torch.optim.SGD(groups, lr=0.1), Loop(criterion, schedule=2000)).advice
    assert isinstance(found, StandardAdvice)
    how: Any = {"norm": "layernorm", "width": 8, "schedule": "constant", "smoothing": loss.smoothing, "loss": loss}
    same = advise_standard(COUNTS, Recipe("sgd", decay / times, 0.1 * times, 2000, None, **how))
    assert (found.verdict, found.merged, found.outvoted) == (same.verdict, same.merged, same.outvoted)
    assert found.lambda_w == pytest.approx(decay / times)
    assert found.prior == pytest.approx(same.prior, abs=1e-4)


def test_a_loss_that_is_not_plain_leaves_the_clock_of_adamw() -> None:
    model = network(norm=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    found = advise_training(COUNTS, model, optimizer, Loop(nn.CrossEntropyLoss(W), schedule=100)).advice
    assert found.verdict == "not acted"


def mixup_batches(batch: list) -> list:
    return batch


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "adamw",
            "shrinks weights separately from the gradient",
        ),  # and a feature penalty, which needs the one of the head
        ("loss", "The loss is MSELoss"),
        ("frozen", "The head is not trained"),
        ("mixed", "Samples and labels are mixed"),
        ("resampled", "shows classes at other rates"),
        ("two decays", "the same weight decay > 0, got 0, 0.01"),
        ("no decay", "the same weight decay > 0, got 0"),
        ("no norm", "without a normalisation"),
    ],
)
def test_what_no_theory_covers_is_refused_with_the_reason(change: str, words: str) -> None:
    model, loop = network(norm=change != "no norm"), Loop()
    optimizer: torch.optim.Optimizer = sgd(model, 0.0 if change == "no decay" else 0.01)
    data = torch.utils.data.TensorDataset(torch.zeros(4, 4), torch.zeros(4))
    if change == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        loop = Loop(penalties=Penalties(0.0, 0.01))
    elif change == "loss":
        loop = Loop(nn.MSELoss())
    elif change == "frozen":
        model[-1].requires_grad_(False)
    elif change == "mixed":
        loop = Loop(data=torch.utils.data.DataLoader(data, collate_fn=mixup_batches))
    elif change == "resampled":
        sampler = torch.utils.data.WeightedRandomSampler([1.0, 1.0, 1.0, 9.0], 4)
        loop = Loop(data=torch.utils.data.DataLoader(data, sampler=sampler))
    elif change == "two decays":
        optimizer = torch.optim.SGD(
            [{"params": model[:-1].parameters()}, {"params": model[-1].parameters(), "weight_decay": 0.0}],
            lr=0.1,
            weight_decay=0.01,
        )
    with pytest.raises(ValueError, match=re.escape(words)):
        advise_training(COUNTS, model, optimizer, loop)


@pytest.mark.parametrize("name", ["RAdam", "Adafactor"])
@pytest.mark.parametrize(("steps", "verdict"), [(100_000, "unknown"), (100, "not acted")])
def test_decay_beside_a_step_that_is_not_adamws_is_known_by_its_clock_alone(
    name: str, steps: int, verdict: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3))
    decoupled = {"decoupled_weight_decay": True} if name == "RAdam" else {}
    optimizer = getattr(torch.optim, name)(
        [{"params": model[:3].parameters(), "weight_decay": 0.0}, {"params": model[3].parameters()}],
        lr=1e-3,
        weight_decay=0.5,
        **decoupled,
    )
    data = torch.utils.data.TensorDataset(torch.zeros(220, 4), torch.tensor([0] * 100 + [1] * 100 + [2] * 20))
    loop = Loop(nn.CrossEntropyLoss(), data=torch.utils.data.DataLoader(data, batch_size=20), schedule=steps)
    advice = advise_training(COUNTS, model, optimizer, loop).advice
    assert isinstance(advice, StandardAdvice)
    assert (advice.verdict, advice.lambda_w) == (verdict, None)
    assert advice.clock == pytest.approx(0.5e-3 * steps)


def eight_times(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 8 * nn.functional.cross_entropy(x, y)


def of_eight(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(x, y) / 8


@pytest.mark.parametrize(
    ("outputs", "criterion", "decay", "penalty"),
    [
        (3, nn.CrossEntropyLoss(), 4.0, 4.0),
        (3, eight_times, 32.0, 4.0),
        (3, of_eight, 0.5, 4.0),
        (1, nn.BCEWithLogitsLoss(), 1.5, 3.0),
    ],
)
def test_a_cure_names_the_decay_as_the_optimizer_calls_it(
    outputs: int, criterion: Any, decay: float, penalty: float
) -> None:
    """Set there, it is safe: of a loss that is a multiple of the mean, and of one output that is two classes."""
    norm = nn.LayerNorm(8, elementwise_affine=False)
    model = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, outputs))
    counts = COUNTS if outputs == 3 else [100, 5]

    def advised(decay: float) -> StandardAdvice:
        groups = [{"params": model[0].parameters()}, {"params": [model[2].weight], "weight_decay": decay}]
        loop = Loop(criterion, schedule=2000)
        found = advise_training(counts, model, torch.optim.SGD(groups, lr=0.1), loop).advice
        assert isinstance(found, StandardAdvice)
        return found

    found = advised(decay)
    assert found.verdict in ("outvoted", "merge")
    assert found.lambda_w == pytest.approx(penalty)
    assert found.clock == pytest.approx(0.1 * decay * 2000)
    assert found.largest_decay is not None
    assert f"lower the head's weight decay to {found.largest_decay:.2g} or less" in found.cure
    assert advised(found.largest_decay).verdict == "safe"
    assert advised(2 * found.largest_decay).verdict != "safe"


@pytest.mark.parametrize("times", [8.0, 0.125])
def test_ordinary_training_names_decays_as_the_optimizer_calls_them(times: float) -> None:
    model = network()
    plain = advise_training(COUNTS, model, sgd(model, 0.03)).advice
    loop = Loop(eight_times if times == 8 else of_eight)
    found = advise_training(COUNTS, model, sgd(model, times * 0.03), loop).advice
    assert isinstance(found, DecayAdvice)
    assert isinstance(plain, DecayAdvice)
    assert found.verdict == plain.verdict
    assert found.weight_decay == pytest.approx(times * 0.03)
    assert found.largest_safe == pytest.approx(times * (plain.largest_safe or 0))


@pytest.mark.parametrize("n", [[500, 50], [300, 290]])
@pytest.mark.parametrize("outputs", [1, 2])
def test_ordinary_training_loses_the_smaller_of_two_classes_where_its_optimum_does(outputs: int, n: list[int]) -> None:
    """The penalty of one row is twice that of two; the model's geometric mean leaves that of the bias 9 % too small."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))
    criterion = nn.BCEWithLogitsLoss() if outputs == 1 else nn.CrossEntropyLoss()
    found = advise_training(n, model, sgd(model, 0.03), Loop(criterion)).advice
    assert isinstance(found, DecayAdvice)
    assert found.weight_decay == 0.03
    (switch,) = (prediction.weight_decay for prediction in found.predictions)

    def lost(decay: float) -> bool:
        own = decay * (2 if outputs == 1 else 1)
        penalties = {"lambda_w": own, "lambda_h": decay / sum(n), "lambda_b": own}
        return cs.solve(cs.Problem.from_penalties(n, **penalties, features="nonnegative")).class_states[1] == "vanished"

    off = 0.09 if outputs == 1 else 1e-3
    assert lost(switch * (1 + 1e-3))
    assert not lost(switch * (1 - off))


def test_one_output_rests_where_two_classes_at_twice_the_penalty_do() -> None:
    """Descent on one row and two class means on a sphere, against the solver's optimum of two rows."""
    n, decay = torch.tensor([100.0, 20.0], dtype=torch.float64), 0.3
    generator = torch.Generator().manual_seed(0)
    w, H, b = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((4,), (2, 4), (1,)))
    for x in (w, H, b):
        x.requires_grad_()
    how: Any = {"max_iter": 1000, "tolerance_grad": 1e-11, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([w, H, b], **how)

    def scores() -> torch.Tensor:
        return 2 * H / H.norm(dim=1, keepdim=True) @ w + b

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        target = torch.tensor([0.0, 1.0], dtype=torch.float64)
        each = nn.functional.binary_cross_entropy_with_logits(scores(), target, reduction="none")
        loss = n / n.sum() @ each + decay / 2 * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    s = cs.solve(cs.Problem.from_normalized([100, 20], lambda_w=2 * decay, norm=2.0, lambda_b=0.0))
    u = s.Z + s.b[:, None]
    np.testing.assert_allclose(scores().detach().numpy(), u[1] - u[0], atol=1e-6)


def behind_a_norm(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.LayerNorm(8, elementwise_affine=False)
    return nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, outputs))


def test_an_output_without_samples_is_left_out_of_the_advice() -> None:
    model, three = behind_a_norm(4), behind_a_norm(3)
    weights = torch.tensor([1.0, 1.0, 7.0, 2.0])
    found = advise_training([100, 100, 0, 20], model, sgd(model, 0.3), Loop(nn.CrossEntropyLoss(weights)))
    expected = advise_training([100, 100, 20], three, sgd(three, 0.3), Loop(nn.CrossEntropyLoss(weights[[0, 1, 3]])))
    assert found.advice.to_dict() == expected.advice.to_dict()
    assert any(caution.startswith("1 of the 4 outputs have no samples") for caution in found.cautions)
    penalties = Penalties(0.02, 5e-4, 0.01)
    problems = [
        advise_training(n, m, sgd(m, 0.01), Loop(penalties=penalties)).advice.problem  # pyright: ignore[reportAttributeAccessIssue]
        for n, m in (([100, 100, 0, 20], model), ([100, 100, 20], three))
    ]
    assert problems[0] == problems[1]


def test_counts_that_are_not_those_of_the_heads_outputs_are_refused_with_the_way_out() -> None:
    model = behind_a_norm(4)
    for head in (None, "2", model[2]):
        with pytest.raises(ValueError, match="give the count 0 for it"):
            advise_training([100, 100, 20], model, sgd(model, 0.3), head=head)
    with pytest.raises(ValueError, match="or the head itself, if it is another module"):
        advise_training([9, 9], model, sgd(model, 0.3))
    with pytest.raises(ValueError, match="label smoothing gives a share"):
        advise_training([9, 9, 0, 9], model, sgd(model, 0.3), Loop(nn.CrossEntropyLoss(label_smoothing=0.1)))


def test_a_named_head_that_normalises_its_rows_is_refused_for_what_it_is() -> None:
    class Cosine(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return 16 * nn.functional.linear(nn.functional.normalize(input), nn.functional.normalize(self.weight))

    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8, elementwise_affine=False), Cosine(8, 3, bias=False))
    with pytest.raises(ValueError, match="the weight that it stores"):
        advise_training(COUNTS, model, sgd(model, 0.3), head="2")


def test_a_decay_that_is_too_strong_but_has_not_acted_is_said_to_have_not() -> None:
    """Momentum 0: the clock is lr * wd * steps = 0.1 * 0.03 * 20."""
    model = network()
    acting, idle = (advise_training(COUNTS, model, sgd(model, 0.03), Loop(schedule=steps)) for steps in (20000, 20))
    assert acting.advice.to_dict() == idle.advice.to_dict()
    assert acting.cautions == ()
    (caution,) = idle.cautions
    assert "Weight decay has not acted: the sum of lr * weight_decay over the run is at most 0.06" in caution
