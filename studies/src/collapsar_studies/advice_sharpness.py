"""Is the least oversampling factor sharp? Networks trained at 0.9 and at 1.1 times it.

Penalised training on real images, feature penalty repeated with every copy. The penalty is chosen so that theory's
least factor is a given number; below it the optimum has no predictions of the minority's own; above, it
does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collapsar import Problem
from collapsar.advise.families import FAMILIES, least_treatment
from collapsar.advise.mitigations import oversampling
from collapsar.core.files import write_atomically
from collapsar.core.types import Record
from collapsar.solver import solve
from collapsar.theory import thresholds
from collapsar.training import penalties_for
from collapsar.training.loop import one_thread
from collapsar_studies.advice_runs import Recipe, Schedule, subset, train_and_measure

LAMBDA_B = 0.02


@dataclass(frozen=True)
class Sharpness:
    """One experiment.

    Attributes:
        data: name of the data set.
        class_counts: large classes, then small ones.
        least_factor: copies per minority sample at which theory puts the threshold.
        positions: multiples of it to train at.
        schedule: network and epochs.
    """

    data: str
    class_counts: tuple[int, ...]
    least_factor: float
    positions: tuple[float, ...]
    schedule: Schedule

    @property
    def problem(self) -> Problem:
        """Training without a mitigation, at the penalty whose least factor is ``least_factor``."""
        plain = Problem(self.class_counts, 1.0, LAMBDA_B, features="nonnegative")
        edge = thresholds(self.at(self.least_factor, plain)).vanish[-1]
        return plain.replace(lambda_z=float(edge))

    def at(self, factor: float, problem: Problem | None = None) -> Problem:
        """The problem with the minority oversampled ``factor`` times, the penalty repeated."""
        counts = np.array(self.class_counts)
        return oversampling(counts, np.where(counts < counts.max(), factor, 1.0))(problem or self.problem)


SHARPNESS: dict[str, Sharpness] = {
    "cpu": Sharpness("fashion-mnist", (400,) * 5 + (8,) * 5, 3.0, (0.9, 1.1), Schedule(400, (128, 128), 2)),
    "tiny": Sharpness("digits", (60,) * 5 + (3,) * 5, 3.0, (0.9, 1.1), Schedule(30, (32, 32), 1)),
}


def sharpness(
    preset: str = "cpu",
    *,
    out: Path | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Train at every position with every seed.

    Args:
        preset: a key of ``SHARPNESS``.
        out: folder for ``sharpness.json``; None: nothing is written.
        seeds: of images, weights and order.
        progress: called with (finished runs, all runs).

    Returns:
        A dict of JSON values: the experiment, "lambda_z", "least_factor" as theory and as the advice find it, and
        "runs": per position and seed the factor, the minority's norm relative to the longest column, in the optimum
        and in the network, and "alive": whether it is nearer to the optimum above than to nothing.

    Raises:
        ValueError: the preset is unknown or the data set cannot be found.
    """
    if preset not in SHARPNESS:
        raise ValueError(f"`preset` must be one of {', '.join(SHARPNESS)}, got {preset!r}")
    experiment = SHARPNESS[preset]
    problem, counts = experiment.problem, np.array(experiment.class_counts)
    found = least_treatment(FAMILIES["oversampling"], problem, 0.0, slack=0.0)
    small = counts < counts.max()
    level = _relative_norm(solve(experiment.at(max(experiment.positions) * experiment.least_factor)).Z, small) / 2
    runs = []
    with one_thread():
        for seed in seeds:
            images = subset(experiment.data, experiment.class_counts, experiment.schedule.pool, seed)
            for position in experiment.positions:
                runs.append(_run(experiment, position, images, seed, level))
                if progress is not None:
                    progress(len(runs), len(seeds) * len(experiment.positions))
    record = {
        "kind": "advice-sharpness",
        "preset": preset,
        **asdict(experiment),
        "lambda_z": problem.lambda_z,
        "lambda_b": LAMBDA_B,
        "least_factor_by_advice": None if found is None else float(found.factors.max()),
        "alive_above": level,
        "runs": runs,
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "sharpness.json", json.dumps(record, allow_nan=False, indent=1) + "\n")
    return record


def _run(experiment: Sharpness, position: float, images: Any, seed: int, level: float) -> Record:
    factor = position * experiment.least_factor
    problem = experiment.at(factor)
    counts = np.array(experiment.class_counts)
    small = counts < counts.max()
    multipliers = np.where(small, factor, 1.0)
    recipe = Recipe(
        problem=problem,
        penalties=penalties_for(problem.lambda_z, LAMBDA_B),
        multipliers=tuple(float(s) for s in multipliers),
        penalised_samples=float(multipliers @ counts),  # every copy pays
    )
    found = train_and_measure(images, recipe, experiment.schedule, seed)
    measured = float(np.mean(np.array(found["relative_norms"])[small]))
    return {
        "position": position,
        "factor": factor,
        "seed": seed,
        "predicted_norm": _relative_norm(solve(problem).Z, small),
        "measured_norm": measured,
        "alive": measured > level,
        "states": [state for state, minority in zip(found["states"], small, strict=True) if minority],
        "minority_accuracy": found["raw"]["minority"],
        "minority_accuracy_corrected": found["corrected"]["minority"],
        "distance_Z": found["distance_Z"],
        "cpu_seconds": found["cpu_seconds"],
    }


def _relative_norm(Z: np.ndarray, small: np.ndarray) -> float:
    norms = np.linalg.norm(Z, axis=0)
    return float(norms[small].mean() / norms.max())
