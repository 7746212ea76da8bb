"""Is it worth adjusting the head penalty during training, from monitored penalties, instead of setting it once?

Three recipes from the same weights: nothing; the advised factor from the first epoch; and a trainer that begins with
nothing done, every few epochs reads off the balance of norms the penalty that acts on its head, and lowers the head's
penalty whenever that exceeds the advised level.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collapsar import Penalties
from collapsar.core.files import write_atomically
from collapsar.core.types import Record
from collapsar.metrics.balance import balance_penalties
from collapsar.training.loop import one_thread
from collapsar.training.models import FeatureNetwork
from collapsar_studies.advice_plans import PRESETS, Setting, base_recipe, recipes
from collapsar_studies.advice_runs import Images, subset, train_and_measure

EVERY = 5  # epochs between two readings
RATIOS = (10, 50)


def adjusting(
    out: Path | None = None, seeds: Sequence[int] = (0, 1, 2), progress: Callable[[int, int], None] | None = None
) -> Record:
    """Train and compare, at the size of the study.

    Args:
        out: folder for ``adjusting.json``; None: nothing is written.
        seeds: of images, weights and order.
        progress: called with (finished runs, all runs).

    Returns:
        A dict of JSON values; per setting, seed and recipe the accuracies, merged classes and, for the adjusting
        trainer, the head's factor at the end.

    Raises:
        ValueError: the data set cannot be found.
    """
    schedule = PRESETS["cpu"]().schedule
    settings = [Setting("fashion-mnist", "step", ratio, 500, "merging") for ratio in RATIOS]
    runs: list[Record] = []
    with one_thread():
        for setting in settings:
            base, advised = base_recipe(setting), recipes(setting)["advice"]
            for seed in seeds:
                images = subset(setting.data, setting.class_counts, schedule.pool, seed)
                trainer = _Trainer(images, advised.problem.lambda_z)
                for name, recipe, adjust in (
                    ("nothing", base, None),
                    ("advice", advised, None),
                    ("adjusting", replace(base, problem=advised.problem), trainer),
                ):
                    found = train_and_measure(images, recipe, schedule, seed, adjust)
                    runs.append(
                        {
                            "setting": setting.name,
                            "seed": seed,
                            "recipe": name,
                            "head_factor": trainer.factor if adjust else None,
                            **{key: found["corrected"][key] for key in ("balanced", "minority", "calibration_error")},
                            **{key: found[key] for key in ("merged_classes", "distance_Z", "cpu_seconds")},
                        }
                    )
                    if progress is not None:
                        progress(len(runs), 3 * len(settings) * len(seeds))
    record = {"kind": "advice-adjusting", "every": EVERY, "seeds": list(seeds), "runs": runs}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "adjusting.json", json.dumps(record, allow_nan=False, indent=1) + "\n")
    return record


class _Trainer:
    """Lowers the head's penalty when the monitored lambda_z exceeds a level."""

    def __init__(self, images: Images, level: float) -> None:
        self.images, self.level, self.factor = images, level, 1.0

    def __call__(self, epoch: int, model: FeatureNetwork, penalties: Penalties) -> Penalties:
        """The penalties of the next epoch."""
        adjusted = replace(penalties, lambda_w=self.factor * penalties.lambda_w)
        if epoch and epoch % EVERY == 0:
            _, lambda_z = balance_penalties(
                model.head.weight.detach().numpy(),
                _class_means(model, self.images).numpy(),
                np.array(self.images.class_counts),
                adjusted.lambda_w,
            )
            if lambda_z > self.level:
                self.factor *= (self.level / lambda_z) ** 2
                adjusted = replace(penalties, lambda_w=self.factor * penalties.lambda_w)
        return adjusted


def _class_means(model: FeatureNetwork, images: Images) -> Tensor:
    model.eval()
    with torch.no_grad():
        features = model.body(images.train)
    model.train()
    return torch.stack([features[images.train_labels == k].mean(dim=0) for k in range(len(images.class_counts))])
