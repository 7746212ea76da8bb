"""Criteria, parameter groups and prior correction: gradient descent on (W, H, b) ends where ``solve`` says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import collapsar as cs
from collapsar.training.criteria import MatchedCrossEntropy
from collapsar.training.groups import param_groups
from collapsar.training.prior import fold_into_bias, prior_correction
from collapsar.training.sampler import ClassAwareSampler

N = np.array([12, 12, 5, 5])
PRIOR = N / N.sum()
LOSSES = {
    "plain": cs.Loss(),
    "weights": cs.Loss(class_weights=[1.0, 1.0, 2.5, 2.5]),
    "offsets": cs.Loss(offsets=np.log(PRIOR)),
    "scales": cs.Loss(scales=[1.0, 1.0, 0.7, 0.7]),
    "vs": cs.Loss(scales=[1.0, 1.0, 1.4, 1.4], offsets=np.log(PRIOR)),
    "temperatures": cs.Loss(temperatures=[1.0, 1.0, 1.6, 1.6]),
    "smoothing": cs.Loss(smoothing=0.1),
    "all": cs.Loss([1, 1, 2, 2], np.log(PRIOR), [1, 1, 0.8, 0.8], [1, 1, 1.3, 1.3], 0.05),
}


def descend(problem: cs.Problem, lambda_b: float, *, squared: bool) -> tuple[np.ndarray, np.ndarray]:
    """L-BFGS in float64 on W, every sample's own feature, and b; nonnegative features as squares."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.from_numpy(np.repeat(np.arange(4), problem.class_counts))
    K, d = 4, 6
    W, V = (torch.randn(rows, d, dtype=torch.float64, generator=generator) for rows in (K, len(labels)))
    V = V.abs() if squared else V
    b = torch.zeros(K, dtype=torch.float64)
    parameters = [t.requires_grad_() for t in (W, V, b)]
    criterion = MatchedCrossEntropy(problem)
    lambda_w, lambda_h = 4 * problem.lambda_z, problem.lambda_z / 4

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            vector_to_parameters(torch.from_numpy(x), parameters)
        H = V.square() if squared else V
        loss = criterion(H @ W.T + b, labels)
        loss = (
            loss + lambda_w / 2 * W.square().sum() + lambda_h / 2 * H.square().sum() + lambda_b / 2 * b.square().sum()
        )
        return loss.item(), parameters_to_vector(torch.autograd.grad(loss, parameters)).numpy()

    start = parameters_to_vector(parameters).detach().numpy()
    options = {"maxiter": 4000, "maxfun": 8000, "maxcor": 60, "ftol": 1e-16, "gtol": 1e-11}
    value(minimize(value, start, jac=True, method="L-BFGS-B", options=options).x)
    with torch.no_grad():
        H = V.square() if squared else V
        logits = (H @ W.T).numpy()
    Z = np.stack([logits[labels.numpy() == k].mean(axis=0) for k in range(K)], axis=1)
    return Z, b.detach().numpy()


@pytest.mark.parametrize("name", LOSSES)
def test_descent_ends_at_the_optimum_of_every_criterion(name: str) -> None:
    problem = cs.Problem(N, 0.02, 0.05, LOSSES[name])
    Z, b = descend(problem, 0.05, squared=False)
    s = cs.solve(problem, 1e-13, throw=False)
    assert s.certificate.relative_gap < 1e-11
    np.testing.assert_allclose(Z, s.Z, atol=1e-6)
    np.testing.assert_allclose(b, s.b, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "all"])
def test_descent_with_nonnegative_features(name: str) -> None:
    problem = cs.Problem(N, 0.02, 0.05, LOSSES[name], features="nonnegative")
    Z, b = descend(problem, 0.05, squared=True)
    s = cs.solve(problem, 1e-12, throw=False)
    np.testing.assert_allclose(Z, s.Z, atol=1e-6)
    np.testing.assert_allclose(b, s.b, atol=1e-6)


def test_offsets_are_added_so_that_rare_classes_gain() -> None:
    """+ log prior in the training loss: at equal raw logits the rare class loses more and gains logits."""
    problem = cs.Problem([90, 10], 0.01, loss=cs.Loss(offsets=np.log([0.9, 0.1])))
    criterion = MatchedCrossEntropy(problem)
    equal = torch.zeros(1, 2)
    rare, common = (float(criterion(equal, torch.tensor([k]))) for k in (1, 0))
    assert rare == pytest.approx(-np.log(0.1), rel=1e-6)
    assert common == pytest.approx(-np.log(0.9), rel=1e-6)
    # and at the optimum the unadjusted decision favours the rare class, compared with plain training
    plain, adjusted = (cs.solve(problem.replace(loss=loss, lambda_b=0.02)) for loss in (cs.Loss(), problem.loss))
    assert adjusted.b[1] - adjusted.b[0] > plain.b[1] - plain.b[0]


def test_weights_are_normalised_over_the_data_set() -> None:
    """torch's own weighted mean over the batch is another loss; over the whole data set the two agree."""
    problem = cs.Problem(N, 0.02, loss=LOSSES["weights"])
    criterion, weight = MatchedCrossEntropy(problem), torch.tensor([1.0, 1.0, 2.5, 2.5], dtype=torch.float64)
    labels = torch.from_numpy(np.repeat(np.arange(4), N))
    logits = torch.randn(len(labels), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = functional.cross_entropy(logits, labels, weight=weight)
    assert float(criterion(logits, labels)) == pytest.approx(float(whole), rel=1e-12)
    parts = torch.arange(len(labels)).reshape(2, -1)
    mean = np.mean([float(criterion(logits[rows], labels[rows])) for rows in parts])
    assert mean == pytest.approx(float(whole), rel=1e-12)
    torchs = np.mean([float(functional.cross_entropy(logits[rows], labels[rows], weight=weight)) for rows in parts])
    assert abs(torchs - float(whole)) > 1e-3


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), r"`logits` must have shape \(B, 2\)"),
        (torch.zeros(4, 2), torch.zeros(4, 2), "soft or one-hot"),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), r"`labels` \(B,\)"),
        (torch.zeros(4, 2), torch.zeros(4), "int64"),
    ],
)
def test_bad_batches_are_named(logits: torch.Tensor, labels: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MatchedCrossEntropy(cs.Problem([30, 10], 0.01))(logits, labels)


def test_an_oversampled_epoch_has_the_mean_of_the_weighted_loss() -> None:
    multipliers = [1.0, 1.0, 3.0, 3.0]
    problem = cs.Problem(N, 0.02, loss=cs.Loss(class_weights=multipliers))
    labels = torch.from_numpy(np.repeat(np.arange(4), N))
    logits = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(2))
    order = list(ClassAwareSampler(labels, multipliers))
    sampled = MatchedCrossEntropy(problem, oversampled=True)(logits[order], labels[order])
    assert float(sampled) == pytest.approx(float(MatchedCrossEntropy(problem)(logits, labels)), rel=1e-5)


# --- prior correction


def test_correction_turns_one_posterior_into_the_other() -> None:
    """Bayes by hand on random likelihoods: trained under q with offsets, read under pi."""
    random = np.random.default_rng(0)
    likelihood = random.random((50, 3))
    q, pi, iota = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3]), np.array([0.3, -0.2, 1.0])
    logits = np.log(likelihood * q) - iota  # softmax(g + iota) is the posterior under q
    corrected = torch.from_numpy(logits) + prior_correction(q, pi, offsets=iota)
    expected = likelihood * pi / (likelihood * pi).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(corrected.softmax(1).numpy(), expected, atol=1e-12)


def test_oversampling_corrected_back_is_plain_training_without_penalties() -> None:
    """One constant feature: logits are log q, and the correction gives the natural frequencies back."""
    s = ClassAwareSampler([0] * 30 + [1] * 10, [1.0, 3.0])
    logits = torch.from_numpy(np.log(s.loss_share)) + prior_correction(s.loss_share, s.class_counts)
    np.testing.assert_allclose(logits.softmax(0).numpy(), [0.75, 0.25], atol=1e-12)


def test_folding_changes_the_head_for_good() -> None:
    head = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    before = head(x).detach()
    correction = prior_correction([0.8, 0.2])
    fold_into_bias(head, correction)
    torch.testing.assert_close(head(x).detach(), before + correction.float())
    with pytest.raises(ValueError, match="`correction`"):
        fold_into_bias(head, torch.zeros(3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([0.5, 0.0],), "`train_share`"),
        (([0.5, 0.5], [1.0]), "`target_prior`"),
        (([0.5, 0.5], [1.0, float("nan")]), "`target_prior`"),
    ],
)
def test_bad_shares_are_named(arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        prior_correction(*arguments)


# --- parameter groups


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(16))
        self.head = nn.Linear(16, 5)


def test_every_parameter_is_in_one_group_with_its_decay() -> None:
    model = Small()
    groups = param_groups(
        model, weight_decay=5e-4, head_weight_decay=0.04, head_bias_weight_decay=0.02, norm_weight_decay=0.0
    )
    found = {g["name"]: (g["weight_decay"], {id(p) for p in g["params"]}) for g in groups}
    assert found["head"] == (0.04, {id(model.head.weight)})
    assert found["head_bias"] == (0.02, {id(model.head.bias)})
    assert found["norm"] == (0.0, {id(p) for m in (model.body[1], model.body[3]) for p in m.parameters()})
    assert found["backbone"] == (5e-4, {id(p) for p in model.body[0].parameters()})
    every = [id(p) for g in groups for p in g["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))


def test_sgd_decays_as_half_squares() -> None:
    """One step with zero gradients: each group shrinks by its own lr * decay."""
    model = Small()
    before = [p.detach().clone() for p in model.parameters()]
    groups = param_groups(model, weight_decay=0.1, head_weight_decay=0.4, norm_weight_decay=0.0)
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    torch.optim.SGD(groups, lr=0.5).step()
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old * (1 - 0.5 * decay[id(p)]))


def test_frozen_and_shared_parameters() -> None:
    model = Small()
    model.body[0].weight.requires_grad_(False)
    tied = nn.Module()
    tied.embed, tied.head = nn.Embedding(5, 16), nn.Linear(16, 5)
    tied.embed.weight = tied.head.weight
    groups = {g["name"]: g for g in param_groups(tied, weight_decay=0.1, head_weight_decay=0.2)}
    assert [len(g["params"]) for g in groups.values()] == [1, 1]
    assert groups["head"]["weight_decay"] == 0.2
    names = [p is model.body[0].weight for g in param_groups(model, weight_decay=0.1) for p in g["params"]]
    assert not any(names)


def test_heads_are_found_or_asked_for() -> None:
    only = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    assert param_groups(only, weight_decay=0.0)[0]["params"][0] is only[2].weight
    two = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    assert param_groups(two, weight_decay=0.0)[0]["params"][0] is two[1].weight
    nested = nn.ModuleDict({"model": nn.ModuleDict({"body": nn.Linear(4, 4), "classifier": nn.Linear(4, 2)})})
    assert param_groups(nested, weight_decay=0.0)[0]["params"][0].shape == (2, 4)
    projected = nn.ModuleDict({"body": nn.Linear(4, 8), "fc": nn.Linear(8, 2), "head": nn.Linear(8, 5)})
    for unclear in (nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2)), projected):
        with pytest.raises(ValueError, match="`head` is ambiguous"):
            param_groups(unclear, weight_decay=0.0)
    assert param_groups(two, weight_decay=0.0, head="1")[0]["params"][0] is two[1].weight
    with pytest.raises(ValueError, match="`head`"):
        param_groups(two, weight_decay=0.0, head="nowhere")
    with pytest.raises(ValueError, match="`head`"):
        param_groups(two, weight_decay=0.0, head=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="`head_weight_decay`"):
        param_groups(two, weight_decay=0.0, head="1", head_weight_decay=-1.0)


def test_half_precision_loses_digits_and_nothing_else() -> None:
    counts = np.rint(np.geomspace(50000, 2, 1000)).astype(int)
    criterion = MatchedCrossEntropy(cs.Problem(counts, 0.01, loss=cs.Loss(class_weights=1 / counts)))
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) * 15
    want = float(criterion(logits.double(), labels))
    for kind, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):  # the format's digits of logits and mean
        got = criterion(logits.to(kind), labels)
        assert got.dtype is torch.float32
        assert float(got) == pytest.approx(want, rel=tolerance)


def test_the_first_factor_of_a_gradient_scaler_leaves_no_gradient_without_a_number() -> None:
    """It is 2^16, more than float16 holds: a loss in that type would be infinite once scaled."""
    logits = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    half, labels = logits.half().requires_grad_(), torch.arange(64) % 3
    (MatchedCrossEntropy(cs.Problem([30, 20, 10], 0.01))(half, labels) * 2.0**16).backward()
    assert half.grad is not None
    expected = (torch.softmax(half.detach().double(), 1) - torch.eye(3)[labels]) / 64
    torch.testing.assert_close(half.grad.double() / 2**16, expected, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("K", [10, 100, 150])
@pytest.mark.parametrize("ignore_index", [-100, -1, 255])
def test_samples_without_a_label_are_left_out_as_torch_does(K: int, ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(K)
    logits, labels = torch.randn(8, K, generator=generator), torch.arange(8)
    labels[4:] = ignore_index
    logits[7] = torch.nan  # what has no label has no say
    ours = logits.clone().requires_grad_()
    theirs = logits.clone().requires_grad_()
    got = MatchedCrossEntropy(cs.Problem([50] * K, 0.01), ignore_index=ignore_index)(ours, labels)
    want = functional.cross_entropy(theirs, labels, ignore_index=ignore_index)
    torch.testing.assert_close(got, want)
    got.backward()
    want.backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad[:7], theirs.grad[:7])


def test_what_is_ignored_is_no_class() -> None:
    with pytest.raises(ValueError, match="`ignore_index`"):
        MatchedCrossEntropy(cs.Problem([50] * 3, 0.01), ignore_index=2)
