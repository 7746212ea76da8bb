"""Runs that go on past their last epoch: a distance to an optimum means little before the head has come to rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from collapsar.diagnose import distance
from collapsar.training import TrainConfig
from collapsar.training.penalties import with_weight_decay
from collapsar_studies.against_theory import MODELS, optimum
from collapsar_studies.presets import Job
from collapsar_studies.sweep import Cell

STATIONARY = 0.01  # relative gradient of the head
LOOKS = 4


def continued(job: Job, epochs: int) -> Job:
    """The run that goes on from the end of a job's, at its last learning rate.

    Args:
        job: The run before.
        epochs: How many more at most; fewer if the head's relative gradient, checked four times, falls below .01.

    Example:
        >>> from collapsar_studies.presets import figure_plan
        >>> config = continued(figure_plan(5, "paper").jobs[0], 200).cell.config
        >>> round(config.learning_rate_at(0), 6), config.penalties_at(0).lambda_z, config.eval_every
        (0.001, 0.0027, 50)
    """
    config = job.cell.config
    longer = replace(
        config,
        epochs=epochs,
        learning_rate=config.learning_rate_at(config.epochs - 1),
        learning_rate_steps=((0.0, 1.0),),
        warm_fraction=0.0,
        stop_at=STATIONARY,
        eval_every=max(1, epochs // LOOKS),
    )
    return Job(job.labels, Cell(longer, start=job.cell))


def continued_record(job: Job, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Where a continued run ended, with its distance to both optima at the penalties that its head feels.

    Args:
        job: The run, as ``continued`` gives it.
        cell: Its record, with a result.
    """
    result, config = cell["result"], TrainConfig.from_json(json.dumps(cell["config"]))
    penalties = with_weight_decay(config.penalties, config.weight_decay)
    Z, b = (np.array(result[name], dtype=float) for name in ("Z", "b"))
    distances = {}
    for features in MODELS:
        best = optimum(config.class_counts, penalties.lambda_z, penalties.lambda_b, features)
        distances[features] = asdict(distance(best, Z, b))
    kept = {name: result[name] for name in ("epochs", "finished", "stationarity", "nc1_uniform", "states")}
    return {**job.labels, **kept, "distance": distances}
