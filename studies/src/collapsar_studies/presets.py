"""The paper's experiments as lists of training runs, at three sizes: ``paper``, ``cpu`` and ``tiny``.

Hong & Ling, JMLR 25(192), 2024, Sec. 4, in this project's convention: every penalty carries a half, and what SGD's
weight decay adds to the head is counted. Dividing all counts by s and multiplying lambda_z by sqrt(s) leaves
N lambda_z / sqrt(n_k) and with it the optimum Z* as they are: the smaller sizes are the paper's problems exactly, on
fewer images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from collapsar import Penalties
from collapsar.training import ModelSpec, TrainConfig, penalties_for
from collapsar.training.models import BODIES
from collapsar_studies.sweep import Cell

DATASETS = {"Dataset1": (5000,) * 4 + (4000,) * 3 + (3000,) * 3, "Dataset2": (5000,) * 4 + (3000,) * 2 + (1000,) * 4}

# The code behind the paper has no halves: 2 * 1e-3, 2 * 1e-6, 2 * 1e-2; its SGD decays every parameter by 5e-4 on top.
DECAY = 5e-4
NOMINAL = Penalties(2e-3, 2e-6, 2e-2)
LAMBDA_B = 0.02

# Batches of 128 small images leave a GPU waiting for its next kernel; weights, head and evaluation stay float32.
ON_A_GPU: Mapping[str, Any] = {"precision": "bf16", "cuda_graphs": True}

LAMBDAS = {
    5: (0.0027, 0.0030, 0.0033, 0.0039, 0.0045, 0.0051, 0.0057, 0.0063, 0.0069, 0.0075),
    6: (0.0037, 0.0041, 0.0045, 0.0053, 0.0062, 0.0070, 0.0078, 0.0086, 0.0094, 0.0102),
}
MAJORITIES = {
    7: (100, 200, 300, 400, 600, 800, 1000, 1100, 1200, 1400),
    8: (100, 400, 450, 500, 700, 1000, 1600, 2200, 2500, 2800),
}
CLASSES = {5: (5, 5), 6: (3, 7), 7: (5, 5), 8: (3, 7), 9: (5, 5)}


@dataclass(frozen=True)
class Preset:
    """One size of all experiments.

    Attributes:
        name: "paper", "cpu" or "tiny".
        dataset: Name of the data set.
        networks: The three networks of Figs. 1 and 2.
        curves: The networks of Figs. 3 and 4 on Dataset1 and Dataset2, and of Figs. 5 to 9.
        shrink: By what the counts of each figure are divided; 1 where none is given.
        seeds: Of the weights and the order of samples.
        steps: SGD steps of a run; 0: the paper's epochs, learning rates and weight decay on every parameter. Else the
            decay that the head feels is part of its penalties and the rest of the network is not decayed.
        clip_norm: Of ``TrainConfig``.
        values: Take only every n-th value of a figure's axis.
    """

    name: str
    dataset: str
    networks: Mapping[str, ModelSpec]
    curves: tuple[str, str, str]
    shrink: Mapping[int, int]
    seeds: tuple[int, ...]
    steps: int
    clip_norm: float = 1.0
    values: int = 1


def _perceptrons(width: int) -> dict[str, ModelSpec]:
    return {f"{depth}-layer perceptron": ModelSpec("mlp", widths=(width,) * (depth - 1)) for depth in (3, 4, 5)}


def _paper() -> Preset:
    networks = {name: ModelSpec(name) for name in ("resnet18", "vgg11", "vgg13")}
    return Preset("paper", "fashion-mnist", networks, ("vgg13", "vgg11", "resnet18"), {}, (0,), 0, math.inf)


def _cpu() -> Preset:
    one = "4-layer perceptron"
    shrink: dict[int, int] = dict.fromkeys((1, 9), 10)
    return Preset("cpu", "fashion-mnist", _perceptrons(128), (one, one, one), shrink, (0, 1, 2), 6000)


def _tiny() -> Preset:
    one = "3-layer perceptron"
    shrink = {1: 50, 5: 5, 6: 5, 7: 20, 8: 25, 9: 50}
    return Preset("tiny", "digits", _perceptrons(32), (one, one, one), shrink, (0,), 40, values=3)


PRESETS: dict[str, Callable[[], Preset]] = {"paper": _paper, "cpu": _cpu, "tiny": _tiny}


@dataclass(frozen=True)
class Job:
    """A cell and its place in the figure.

    Attributes:
        labels: "seed" and what else tells it apart: "network" and "counts" (Figs. 1 to 4), "value" (Figs. 5 to 9), the
            paper's number on the figure's axis.
        cell: The run.
    """

    labels: Mapping[str, Any]
    cell: Cell


@dataclass(frozen=True)
class FigurePlan:
    """What must be trained for a figure.

    Attributes:
        figure: 1 to 9.
        preset: The size.
        home: Name of the folder with its cells: Figs. 1 to 4 are drawn from the same runs.
        jobs: The cells, those of the first seed first, so that a sweep that is cut off leaves a whole figure.
    """

    figure: int
    preset: Preset
    home: str
    jobs: tuple[Job, ...]


def figure_plan(
    figure: int, preset: str, dataset: str | None = None, network: str | None = None, seeds: Sequence[int] = ()
) -> FigurePlan:
    """The runs behind one of the paper's figures.

    Args:
        figure: 1 to 9.
        preset: A key of ``PRESETS``.
        dataset: A data set other than the preset's.
        network: A network other than the preset's, a key of ``collapsar.training``'s registry; in Figs. 1 and 2 it
            stands alone.
        seeds: To use instead of the preset's.

    Raises:
        ValueError: An argument is not one of these.

    Example:
        >>> plan = figure_plan(5, "cpu")
        >>> len(plan.jobs), plan.jobs[0].labels, plan.jobs[0].cell.config.penalties.lambda_z
        (30, {'seed': 0, 'value': 0.0027}, 0.0027)
    """
    if figure not in FIGURES:
        raise ValueError(f"`figure` must be one of 1 to 9, got {figure!r}")
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {preset!r}")
    size = PRESETS[preset]()
    if dataset is not None:
        size = replace(size, dataset=dataset)
    if network is not None:
        if network not in BODIES:
            raise ValueError(f"`network` must be one of {', '.join(sorted(BODIES))}, got {network!r}")
        size = replace(size, networks={network: ModelSpec(network)}, curves=(network,) * 3)
    if seeds:
        size = replace(size, seeds=tuple(seeds))
    jobs = tuple(job for seed in size.seeds for job in FIGURES[figure](size, figure, seed))
    return FigurePlan(figure, size, "fig1" if figure <= 4 else f"fig{figure}", jobs)


def _fig_1_to_4(size: Preset, figure: int, seed: int) -> list[Job]:
    """Three networks on two profiles; Figs. 3 and 4 need one network on each."""
    wanted = [(network, name) for network in size.networks for name in DATASETS]
    if figure >= 3:
        wanted = [(size.curves[0], "Dataset1"), (size.curves[1], "Dataset2")]
    s = size.shrink.get(1, 1)
    jobs = []
    for network, name in wanted:
        counts = tuple(n // s for n in DATASETS[name])
        if size.steps:
            root = math.sqrt(s)
            penalties = Penalties(root * (NOMINAL.lambda_w + DECAY), root * NOMINAL.lambda_h, NOMINAL.lambda_b + DECAY)
            config = _small(size, counts, penalties, size.networks[network], seed)
            config = replace(config, eval_every=max(1, config.epochs // 24))
        else:
            config = TrainConfig(
                dataset=size.dataset,
                class_counts=counts,
                penalties=NOMINAL,
                epochs=1000,
                model=size.networks[network],
                learning_rate_steps=((0.0, 1.0), (1 / 6, 0.1), (1 / 3, 0.01)),
                weight_decay=DECAY,
                warm_fraction=0.0,
                # At rate .1 the features of the VGGs, which no normalisation keeps in place, die within six steps.
                clip_norm=1.0 if network.startswith("vgg") else math.inf,
                eval_every=20,
                seed=seed,
                **ON_A_GPU,
            )
        jobs.append(Job({"seed": seed, "network": network, "counts": name}, Cell(config, detail="curve")))
    return jobs


def _fig_5_to_8(size: Preset, figure: int, seed: int) -> list[Job]:
    """lambda_z (Figs. 5 and 6) or n_A (Figs. 7 and 8) varies."""
    k_a, k_b = CLASSES[figure]
    values: Sequence[float] = LAMBDAS[figure] if figure in LAMBDAS else MAJORITIES[figure]
    jobs = []
    for value in values[:: size.values]:
        lambda_z, n_a = (value, 500) if figure in LAMBDAS else (0.005, int(value))
        jobs.append(_two_clusters(size, figure, (k_a, k_b, n_a, 100), lambda_z, seed, value))
    return jobs


def _fig_9(size: Preset, figure: int, seed: int) -> list[Job]:
    """More and more images at N lambda_z = .1; the decay of 5e-4 is most of lambda_W."""
    return [
        _two_clusters(size, figure, (*CLASSES[9], n_a, n_a // 2), 0.1 / (5 * n_a + 5 * (n_a // 2)), seed, n_a)
        for n_a in range(500, 5501, 1000 if size.steps else 500)[:: size.values]
    ]


def _two_clusters(
    size: Preset, figure: int, setting: tuple[int, int, int, int], lambda_z: float, seed: int, value: float
) -> Job:
    k_a, k_b, n_a, n_b = setting
    s = size.shrink.get(figure, 1)
    counts = (n_a // s,) * k_a + (n_b // s,) * k_b
    decay = DECAY if figure == 9 else 0.0
    if size.steps:
        root = math.sqrt(s)
        penalties = penalties_for(lambda_z, LAMBDA_B)
        # Only sqrt(lambda_w lambda_h) matters to the optimum. Far below the thresholds the head comes to rest sooner
        # when it carries more of the two.
        effective = math.sqrt((penalties.lambda_w + decay) * penalties.lambda_h)
        penalties = penalties_for(root * effective, LAMBDA_B + decay, head_ratio=100.0 if figure == 9 else 10.0)
        # The weakest penalties of all, hence the slowest runs: three times the steps for half of the values.
        longer = replace(size, steps=3 * size.steps) if figure == 9 else size
        config = _small(longer, counts, penalties, size.networks[size.curves[2]], seed)
    else:
        config = TrainConfig(
            dataset=size.dataset,
            class_counts=counts,
            penalties=penalties_for(lambda_z, LAMBDA_B),
            epochs=2000,
            model=size.networks[size.curves[2]],
            weight_decay=decay,
            eval_every=100,
            seed=seed,
            **ON_A_GPU,
        )
    return Job({"seed": seed, "value": value}, Cell(config))


def _small(size: Preset, counts: tuple[int, ...], penalties: Penalties, model: ModelSpec, seed: int) -> TrainConfig:
    config = perceptron_run(size.dataset, counts, penalties, model, size.steps, seed)
    return replace(config, clip_norm=size.clip_norm)


def perceptron_run(
    dataset: str, class_counts: tuple[int, ...], penalties: Penalties, model: ModelSpec, steps: int, seed: int
) -> TrainConfig:
    """A run of so many steps, whatever the counts, on the CPU: steps, not epochs, bring a network to rest.

    The schedule and the warm start are those of the paper's Figs. 5 to 8; gradients are clipped at norm 1 (see
    ``collapsar.training.recipes``).
    """
    epochs = max(2, round(steps / math.ceil(sum(class_counts) / 128)))
    return TrainConfig(
        dataset=dataset,
        class_counts=class_counts,
        penalties=penalties,
        epochs=epochs,
        model=model,
        clip_norm=1.0,
        eval_every=epochs,
        seed=seed,
        device="cpu",
    )


_Jobs = Callable[[Preset, int, int], list[Job]]
FIGURES: dict[int, _Jobs] = {
    **dict.fromkeys((1, 2, 3, 4), _fig_1_to_4),
    **dict.fromkeys((5, 6, 7, 8), _fig_5_to_8),
    9: _fig_9,
}
