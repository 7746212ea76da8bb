"""One run of the advice study: a small network, trained by one recipe, measured on a balanced test set.

Uses the project's own tools as a practitioner would: the class-aware sampler, the matched criteria, parameter groups
and the prior correction.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from collapsar import Penalties, Problem
from collapsar.core.types import Record
from collapsar.diagnose import distance
from collapsar.metrics import NeuralCollapse
from collapsar.solver import solve
from collapsar.training import (
    ClassAwareSampler,
    MatchedCrossEntropy,
    ModelSpec,
    build_model,
    load_data,
    param_groups,
    prior_correction,
)
from collapsar.training.models import FeatureNetwork
from collapsar.training.penalties import scaled

Adjust = Callable[[int, FeatureNetwork, Penalties], Penalties]
"""Called with (epoch, network, the recipe's penalties) before an epoch past the warm start."""

BATCH = 128
BINS = 15  # of the calibration error (Guo et al., ICML 2017)
# As in the paper's experiments: weak penalties first, learning rate in three stages.
WARM, WARM_FACTOR, LEARNING_RATE, MOMENTUM, CLIP = 1 / 6, 0.1, 0.1, 0.9, 1.0
ADAMW_RATE = 1e-3


@dataclass(frozen=True)
class Images:
    """Training images of K classes, largest class first, and a balanced test set, as float32 on the CPU."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    class_counts: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.train.shape[1:]
        return c, h, w


@dataclass(frozen=True)
class Schedule:
    """How long and how large.

    Attributes:
        epochs: passes over the training images; a pass with extra samples is longer.
        widths: of the perceptron.
        pool: images are averaged over squares of this side first.
    """

    epochs: int
    widths: tuple[int, ...]
    pool: int


@dataclass(frozen=True)
class Recipe:
    """What is done about the imbalance, in terms of what training does.

    Attributes:
        problem: the convex program of it: counts, loss, feature mass; its own lambda_z is the one that acts.
        penalties: with halves; None: ordinary training, weight decay alone.
        weight_decay: of all parameters where ``penalties`` is None; of the head's weight where ``body_decay`` is given.
        multipliers: copies per sample of each class; None: each sample once.
        penalised_samples: what the batch's mean squared feature length is multiplied with, besides lambda_H / 2.
        retrain_head: epochs of a fresh head on class-balanced batches with the body frozen; 0: none.
        standard: a LayerNorm before the head, AdamW and a cosine schedule instead of the paper's.
        rate: AdamW's at its peak.
        body_decay: AdamW's of all but the head's weight; None: ``weight_decay``.
    """

    problem: Problem
    penalties: Penalties | None = None
    weight_decay: float = 0.0
    multipliers: tuple[float, ...] | None = None
    penalised_samples: float = 0.0
    retrain_head: int = 0
    standard: bool = False
    rate: float = ADAMW_RATE
    body_decay: float | None = None


@lru_cache(maxsize=2)
def _pooled(name: str, pool: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load_data(name)
    train, test = (
        functional.avg_pool2d(data.normalised(data.images(split)), pool)
        if pool > 1
        else data.normalised(data.images(split))
        for split in ("train", "test")
    )
    return train, data.train_labels, test, data.test_labels


def subset(name: str, class_counts: tuple[int, ...], pool: int, seed: int) -> Images:
    """Random images of randomly chosen classes: the seed says which class is large and which images are taken.

    Raises:
        ValueError: a class has too few images.
    """
    train, labels, test, test_labels = _pooled(name, pool)
    random = np.random.default_rng((seed, 20))
    classes = random.permutation(len(class_counts))
    rows, new = [], []
    for k, (original, count) in enumerate(zip(classes, class_counts, strict=True)):
        members = np.flatnonzero(labels.numpy() == original)
        if count > members.size:
            raise ValueError(f"class {original} of {name} has {members.size} training images, {count} were asked for")
        rows.append(random.choice(members, count, replace=False))
        new += [k] * count
    place = torch.empty(len(class_counts), dtype=torch.int64)
    place[torch.from_numpy(classes)] = torch.arange(len(class_counts))
    chosen = torch.from_numpy(np.concatenate(rows))
    return Images(train[chosen], torch.tensor(new), test, place[test_labels], class_counts)


def train_and_measure(
    images: Images, recipe: Recipe, schedule: Schedule, seed: int, adjust: Adjust | None = None
) -> Record:
    """Train one network and return what is kept of it, as JSON-able values.

    ``adjust`` may change the penalties before every epoch.
    """
    begun = time.process_time()
    generator = torch.Generator().manual_seed(seed)
    spec = ModelSpec("mlp", widths=schedule.widths, layers_above_norm=0 if recipe.penalties else len(schedule.widths))
    if recipe.standard:
        spec = ModelSpec("mlp", widths=schedule.widths, feature_relu=False, feature_norm="layernorm")
    bias = recipe.penalties is None or math.isfinite(recipe.penalties.lambda_b)
    model = build_model(spec, images.shape, len(images.class_counts), head_bias=bias, generator=generator)
    seen = _fit(model, images, recipe, schedule, seed, adjust)
    share = recipe.problem.loss_share
    if recipe.retrain_head:
        seen += _refit_head(model, images, recipe, seed, generator)
        share = np.full_like(share, 1 / share.size)
    seconds = time.process_time() - begun
    return {"samples_seen": seen, "cpu_seconds": round(seconds, 3), **_measured(model, images, recipe, share)}


def _fit(
    model: FeatureNetwork, images: Images, recipe: Recipe, schedule: Schedule, seed: int, adjust: Adjust | None
) -> int:
    """The plain loop; returns how many samples passed through the network."""
    counts = np.array(images.class_counts)
    s = np.ones(counts.size) if recipe.multipliers is None else np.array(recipe.multipliers)
    sampler = ClassAwareSampler(images.train_labels, s, seed=seed)
    criterion = MatchedCrossEntropy(recipe.problem, oversampled=recipe.multipliers is not None)
    optimizer = _optimizer(model, recipe)
    parameters, seen = list(model.parameters()), 0
    model.train()
    for epoch in range(schedule.epochs):
        done = epoch / schedule.epochs
        rate = LEARNING_RATE * (1 if done < 1 / 3 else 0.1 if done < 2 / 3 else 0.01)
        if recipe.standard:
            rate = recipe.rate * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        penalties = recipe.penalties
        if penalties is not None and done < WARM:
            penalties = scaled(penalties, WARM_FACTOR)
        elif penalties is not None and adjust is not None:
            penalties = adjust(epoch, model, penalties)
        order = torch.tensor(list(sampler))
        for batch in order.split(BATCH):
            if len(batch) == 1:  # undefined for batch normalisation
                continue
            labels = images.train_labels[batch]
            logits, features = model(images.train[batch])
            loss = criterion(logits, labels)
            if penalties is not None:
                loss = loss + _penalty(model.head, features, penalties, recipe.penalised_samples)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            seen += len(batch)
    return seen


def _optimizer(model: FeatureNetwork, recipe: Recipe) -> torch.optim.Optimizer:
    if not recipe.standard:
        groups = param_groups(model, weight_decay=recipe.weight_decay)
        return torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)
    head = [model.head.weight]
    body = [p for p in model.parameters() if p is not model.head.weight]
    decay = recipe.weight_decay if recipe.body_decay is None else recipe.body_decay
    groups = [{"params": body, "weight_decay": decay}, {"params": head, "weight_decay": recipe.weight_decay}]
    return torch.optim.AdamW(groups, lr=recipe.rate, fused=True)


def _penalty(head: nn.Linear, features: Tensor, penalties: Penalties, samples: float) -> Tensor:
    total = penalties.lambda_w / 2 * head.weight.square().sum()
    total = total + penalties.lambda_h / 2 * samples * features.square().sum() / len(features)
    return total if head.bias is None else total + penalties.lambda_b / 2 * head.bias.square().sum()


def _refit_head(model: FeatureNetwork, images: Images, recipe: Recipe, seed: int, generator: torch.Generator) -> int:
    """A fresh head on frozen features and class-balanced batches (Kang et al., ICLR 2020, cRT)."""
    model.eval()
    with torch.no_grad():
        features = model.body(images.train)
    nn.init.kaiming_normal_(model.head.weight, nonlinearity="linear", generator=generator)
    if model.head.bias is not None:
        nn.init.zeros_(model.head.bias)
    counts = np.array(images.class_counts)
    sampler = ClassAwareSampler(images.train_labels, counts.sum() / (counts.size * counts), seed=seed + 1)
    decay = recipe.weight_decay if recipe.penalties is None else recipe.penalties.lambda_w
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        model.head.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=decay
    )
    peak = LEARNING_RATE
    if recipe.standard:
        peak = 3 * recipe.rate  # a head alone comes to rest sooner at a higher rate
        optimizer = torch.optim.AdamW(model.head.parameters(), lr=peak, weight_decay=decay)
    seen = 0
    for epoch in range(recipe.retrain_head):
        for group in optimizer.param_groups:
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * epoch / recipe.retrain_head))
        for batch in torch.tensor(list(sampler)).split(BATCH):
            loss = functional.cross_entropy(model.head(features[batch]), images.train_labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            seen += len(batch)
    return seen


def _measured(model: FeatureNetwork, images: Images, recipe: Recipe, share: np.ndarray) -> Record:
    model.eval()
    metric = NeuralCollapse(head=model.head, sync_on_compute=False)  # this process sees all the images
    with torch.no_grad():
        for rows in torch.arange(len(images.train_labels)).split(2048):
            metric.update(model(images.train[rows])[1], images.train_labels[rows])
        logits = model(images.test)[0]
        train_right = model(images.train)[0].argmax(1) == images.train_labels
    report = metric.compute()
    separation = report.separation()
    # after a fresh head the offsets no longer act
    offsets = None if recipe.retrain_head else recipe.problem.offsets
    corrected = logits + prior_correction(share, offsets=offsets).to(logits.dtype)
    record: Record = {
        "raw": _accuracies(logits, images),
        "corrected": _accuracies(corrected, images),
        "train_accuracy": float(train_right.float().mean()),
        "states": list(separation.states),
        "relative_norms": separation.relative_norms.tolist(),
        "nearest_separation": separation.nearest_separation.tolist(),
        "merged_classes": sum(state != "separated" for state in separation.states),
    }
    if recipe.penalties is not None and not recipe.retrain_head:
        assert report.Z is not None  # a head was given
        assert report.b is not None
        solution = solve(recipe.problem, 1e-7, throw=False)
        found = distance(solution, report.Z, report.b)
        record |= {"predicted_states": list(solution.class_states), "distance_Z": found.Z, "distance_b": found.b}
    return record


def _accuracies(logits: Tensor, images: Images) -> Record:
    """On the balanced test set: accuracies of the whole, the larger and the smaller half, and calibration."""
    K = len(images.class_counts)
    right = logits.argmax(1) == images.test_labels
    per_class = [float(right[images.test_labels == k].float().mean()) for k in range(K)]
    confidence = logits.softmax(1).max(1).values
    bins = torch.clamp((confidence * BINS).long(), max=BINS - 1)
    gaps = [
        float((bins == i).float().mean() * (confidence[bins == i].mean() - right[bins == i].float().mean()).abs())
        for i in range(BINS)
        if bool((bins == i).any())
    ]
    return {
        "balanced": float(np.mean(per_class)),
        "majority": float(np.mean(per_class[: K // 2])),
        "minority": float(np.mean(per_class[K // 2 :])),
        "calibration_error": sum(gaps),
        "classes": per_class,
    }


def with_price(recipe: Recipe, lambda_z: float) -> Recipe:
    """The recipe at another price, head and features sharing the change."""
    assert recipe.penalties is not None
    factor = lambda_z / recipe.penalties.lambda_z
    return replace(
        recipe, problem=recipe.problem.replace(lambda_z=lambda_z), penalties=scaled(recipe.penalties, factor)
    )
