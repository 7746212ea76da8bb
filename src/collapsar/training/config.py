"""A training run as a value: what is trained, on what, how; its schedules; its JSON; its hash."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise

import torch

from collapsar.core.penalties import Penalties
from collapsar.core.records import from_json, to_json
from collapsar.training.data import whole_counts
from collapsar.training.models import ModelSpec
from collapsar.training.penalties import scaled

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes.

    Defaults are those of JMLR Sec. 4, Figs 5-8, if the paper gives one.

    Attributes:
        dataset: Name of the data set; must match the data handed to ``train``.
        class_counts: n_k, training images of each class.
        penalties: λ_W, λ_H, λ_b; λ_b = inf means a head without bias.
        epochs: Passes over the training set, >= 1.
        model: The network.
        batch_size: Images per step, >= 1.
        learning_rate: The optimizer's, > 0.
        learning_rate_steps: (fraction of the epochs, factor on ``learning_rate``) pairs, beginning at
            fraction 0, increasing.
        momentum: SGD's, in [0, 1).
        weight_decay: The optimizer's decay of *all* parameters, >= 0. SGD's is an L2 penalty that adds to λ_W and λ_b;
            AdamW's is decoupled.
        optimizer: "sgd" or "adamw" (torch's other defaults).
        head_decay: AdamW's decoupled decay of the head's weight, on top of ``weight_decay``, >= 0; 0 for "sgd", where
            λ_W is the same thing.
        warm_fraction: For this fraction of the epochs, in [0, 1], λ_W and λ_H are multiplied by
            ``warm_factor``: strong penalties from the first step can kill ReLU features for good.
        warm_factor: >= 0.
        clip_norm: Largest norm of the whole gradient of one step, > 0; inf never clips. The steep first steps
            of an unnormalised network at learning rate 0.1 can push all ReLUs into their dead half; clipping
            prevents that and does nothing near a minimum.
        stop_at: Stop early once the head's relative gradient (see ``head_gradient``) falls below this at
            an evaluation in the last learning-rate stage; 0: never. A head at rest is necessary for a minimum,
            not sufficient.
        eval_every: Epochs between evaluations, >= 1; the last epoch is always evaluated.
        seed: Of the initial weights and of the order of the images.
        device: "auto" (a CUDA device if there is one, else the CPU) or any name torch knows.
        devices: Processes, >= 1, each with a share of every batch: one GPU each, or on the CPU one core's worth of
            work each. The result is that of one process to rounding.
        precision: "float32": every product in float32. "bf16": the body's products in bfloat16 while training; the
            weights, the head, the loss with its penalties and every evaluation stay float32.
        compile: Run the network through ``torch.compile``; compiling takes about a minute.
        cuda_graphs: Record the whole step and replay it with one launch: launching the kernels of small batches one
            by one takes longer than running them. On the CPU, and with several processes, steps are not recorded.

    Raises:
        ValueError: A value is outside the range above.

    Example:
        >>> config = TrainConfig("digits", (100,) * 5 + (20,) * 5, Penalties(0.04, 0.0004, 0.02), epochs=300)
        >>> [round(config.learning_rate_at(epoch), 6) for epoch in (0, 99, 100, 200)]
        [0.1, 0.1, 0.01, 0.001]
        >>> TrainConfig.from_json(config.to_json()) == config
        True
    """

    dataset: str
    class_counts: tuple[int, ...]
    penalties: Penalties
    epochs: int
    model: ModelSpec = field(default_factory=ModelSpec)
    batch_size: int = 128
    learning_rate: float = 0.1
    learning_rate_steps: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1 / 3, 0.1), (2 / 3, 0.01))
    momentum: float = 0.9
    weight_decay: float = 0.0
    warm_fraction: float = 1 / 6
    warm_factor: float = 0.1
    clip_norm: float = math.inf
    stop_at: float = 0.0
    eval_every: int = 10
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    precision: str = "float32"
    compile: bool = False
    cuda_graphs: bool = False
    optimizer: str = "sgd"
    head_decay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_counts", whole_counts(self.class_counts))
        object.__setattr__(self, "learning_rate_steps", tuple((f, x) for f, x in self.learning_rate_steps))
        ranges = {
            "epochs": ("a whole number >= 1", isinstance(self.epochs, int) and self.epochs >= 1),
            "batch_size": ("a whole number >= 1", isinstance(self.batch_size, int) and self.batch_size >= 1),
            "learning_rate": ("positive and finite", 0 < self.learning_rate < math.inf),
            "momentum": ("in [0, 1)", 0 <= self.momentum < 1),
            "weight_decay": ("finite and >= 0", 0 <= self.weight_decay < math.inf),
            "optimizer": ('"sgd" or "adamw"', self.optimizer in ("sgd", "adamw")),
            "head_decay": (
                'finite and >= 0, and 0 with "sgd", where `penalties` has it as lambda_w',
                0 <= self.head_decay < math.inf and (self.head_decay == 0 or self.optimizer == "adamw"),
            ),
            "warm_fraction": ("in [0, 1]", 0 <= self.warm_fraction <= 1),
            "warm_factor": ("finite and >= 0", 0 <= self.warm_factor < math.inf),
            "clip_norm": ("> 0 (inf: no clipping)", self.clip_norm > 0),
            "stop_at": ("finite and >= 0 (0: never)", 0 <= self.stop_at < math.inf),
            "eval_every": ("a whole number >= 1", isinstance(self.eval_every, int) and self.eval_every >= 1),
            "seed": ("a whole number in [0, 2^63)", isinstance(self.seed, int) and 0 <= self.seed < 2**63),
            "devices": ("a whole number >= 1", isinstance(self.devices, int) and self.devices >= 1),
            "compile": ("True or False", isinstance(self.compile, bool)),
            "cuda_graphs": ("True or False", isinstance(self.cuda_graphs, bool)),
            "precision": (f"one of {', '.join(PRECISIONS)}", self.precision in PRECISIONS),
            "learning_rate_steps": (
                "(fraction, factor) pairs, fractions from 0 increasing below 1, factors positive and finite",
                _are_steps(self.learning_rate_steps),
            ),
        }
        for name, (must_be, holds) in ranges.items():
            if not holds:
                raise ValueError(f"`{name}` must be {must_be}, got {getattr(self, name)!r}")

    def learning_rate_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.learning_rate * self._stage(epoch)[1]

    def penalties_at(self, epoch: int) -> Penalties:
        """The penalties of an epoch, counted from 0: weaker λ_W and λ_H during the warm start."""
        warm = epoch / self.epochs < self.warm_fraction
        return scaled(self.penalties, self.warm_factor) if warm else self.penalties

    def settled(self, epoch: int) -> bool:
        """Whether an epoch has the full penalties and the last learning rate: only then may a run stop."""
        return self._stage(epoch) == self.learning_rate_steps[-1] and self.penalties_at(epoch) == self.penalties

    def _stage(self, epoch: int) -> tuple[float, float]:
        # Exact at the borders: epoch/epochs and a fraction written as 1/3 round to the same number.
        return next(step for step in reversed(self.learning_rate_steps) if epoch / self.epochs >= step[0])

    def to_json(self) -> str:
        """One line of standard JSON; infinity is written as the string "inf"."""
        return json.dumps(to_json(asdict(self)), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """The inverse of ``to_json``.

        Raises:
            ValueError: The text is not JSON, names an unknown field, lacks one, or a value is out of range.
        """
        try:
            values = from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"`text` must be JSON as written by to_json; it is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(  # noqa: TRY004 -- about the content of a text
                f"`text` must be a JSON object as written by to_json, got {type(values).__name__}"
            )
        unknown = values.keys() - {known.name for known in fields(cls)}
        if unknown:
            raise ValueError(f"`text` has unknown fields {', '.join(sorted(unknown))}; known: those of TrainConfig")
        try:
            for name, kind in (("model", ModelSpec), ("penalties", Penalties)):
                if name in values:
                    values[name] = kind(**values[name])
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"`text` does not describe a run: {error}") from None

    @property
    def digest(self) -> str:
        """A hash of every field: equal exactly for equal configurations."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _are_steps(steps: tuple[tuple[float, float], ...]) -> bool:
    fractions = [fraction for fraction, _ in steps]
    increasing = all(a < b for a, b in pairwise(fractions))
    inside = bool(steps) and fractions[0] == 0 and fractions[-1] < 1
    return inside and increasing and all(0 < factor < math.inf for _, factor in steps)
