"""Does the theory of standard training hold? Networks with a norm and a decayed head beside their certified optimum."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np

import collapsar as cs
from collapsar.advise.forecast import forecast_rows
from collapsar.advise.recipe import Recipe
from collapsar.advise.standard import advise_standard
from collapsar.core.types import Matrix, Record
from collapsar.diagnose import distance
from collapsar.metrics import class_separation
from collapsar.training import TrainConfig
from collapsar_studies.against_theory import contrasts, environment
from collapsar_studies.presets import Job
from collapsar_studies.standard_runs import Standard, length_of, merge_of, over_of, problem_of

# Contrast of the small classes, of that of the large ones, below which a network counts as having merged them. At .9 of
# the threshold the optimum has .040 (per sample) or .137 (per batch).
MERGED = 0.03
# A fine-tuning and its twin without decay are the same if their mean predictions differ by less than this share.
SAME = 0.05


def standard_record(grid: Standard, jobs: Sequence[Job], cells: Mapping[str, Record]) -> Record:
    """Every run beside the models, and the tables of the page.

    Args:
        grid: The study.
        jobs: Its runs that have ended.
        cells: Their records by key.
    """
    done = [job for job in jobs if cells[job.cell.key]["result"] is not None]
    parts: dict[str, list[Job]] = {}
    for job in done:
        parts.setdefault(job.labels["part"], []).append(job)
    sweep = [beside(job, cells[job.cell.key]) for job in parts.get("sweep", ())]
    return {
        "figure": "standard",
        "title": "one network, three models: a norm before the head and decay on it",
        "preset": grid.preset,
        "data": grid.dataset,
        "class_counts": list(grid.class_counts),
        "widths": list(grid.widths),
        "seeds": list(grid.seeds),
        "merge": {over: merge_of(grid.class_counts, over) for over in ("sample", "batch")},
        "runs": sweep,
        "table": _table(grid, sweep),
        "merged": _merged(grid, sweep),
        "others": [beside(job, cells[job.cell.key]) for job in parts.get("others", ())],
        "adamw": [_adamw(job, cells[job.cell.key]) for job in parts.get("adamw", ())],
        "everywhere": [_everywhere(job, cells[job.cell.key]) for job in parts.get("everywhere", ())],
        "tuned": _tuned(parts.get("tuned", ()), cells),
        "environment": environment([cells[job.cell.key] for job in jobs]),
    }


@lru_cache(maxsize=512)
def _optimum(
    counts: tuple[int, ...], lambda_w: tuple[float, ...], length: float, over: str, lambda_b: float = 0.0
) -> cs.Solution:
    price = lambda_w[0] if len(lambda_w) == 1 else np.array(lambda_w)
    return cs.solve(problem_of(counts, price, length, over, lambda_b), 1e-8, throw=False)


def _measured(cell: Record) -> tuple[Matrix, Matrix]:
    return np.array(cell["result"]["Z"], dtype=float), np.array(cell["result"]["b"], dtype=float)


def _away(solution: cs.Solution, Z: Matrix, b: Matrix) -> Record:
    found = distance(solution, Z, b)
    return {"Z": found.Z, "b": found.b}


def beside(job: Job, cell: Record) -> Record:
    """Distances to the model per sample, per batch, and with penalised features at the penalties the norms imply.

    Without a norm the length is the root mean square that the network ended with.
    """
    config, result = job.cell.config, cell["result"]
    Z, b = _measured(cell)
    lambda_w = config.penalties.lambda_w + config.weight_decay
    length = length_of(config.model) if config.model.feature_norm else float(np.sqrt(result["square_length"]))
    implied = lambda_w * float(np.sqrt(result["head_norm"] / result["feature_mass"]))
    prices = config.class_counts, (lambda_w,), length
    # SGD's decay of all parameters is a penalty of the bias as well
    models = {over: _optimum(*prices, over, config.weight_decay) for over in ("sample", "batch")}
    models["penalised"] = cs.solve(cs.Problem(config.class_counts, implied, config.weight_decay), 1e-8, throw=False)
    own = models[over_of(config.model)]
    return {
        **job.labels,
        "lambda_w": lambda_w,
        "length": length,
        "distance": {name: _away(solution, Z, b) for name, solution in models.items()},
        "states": result["states"],
        "predicted": list(own.class_states),
        "contrasts": contrasts(Z, _large(config)),
        "predicted_contrasts": contrasts(own.Z, _large(config)),
        "stationarity": result["stationarity"],
    }


def _large(config: TrainConfig) -> int:
    return sum(n == max(config.class_counts) for n in config.class_counts)


def _table(grid: Standard, runs: Sequence[Record]) -> list[Record]:
    """A row per norm and decay: the largest distance over the seeds to each model."""
    rows = []
    for norm in grid.norms:
        for factor in grid.factors:
            mine = [r for r in runs if (r["norm"], r["factor"]) == (norm or "none", factor)]
            if not mine:
                continue
            own = "batch" if norm == "batchnorm" else "sample"
            rows.append(
                {
                    "norm": norm or "none",
                    "factor": factor,
                    "runs": len(mine),
                    "merged": sum(has_merged(r) for r in mine),
                    **{m: _worst(r["distance"][m]["Z"] for r in mine) for m in ("sample", "batch", "penalised")},
                    "b": _worst(r["distance"][own]["b"] for r in mine),
                }
            )
    return rows


def _worst(values: Iterable[float]) -> float | None:
    """The largest, None where one is undefined: distances to an optimum that is zero."""
    known = list(values)
    return max(known) if known and np.isfinite(known).all() else None


def has_merged(run: Record) -> bool:
    """Whether the contrast inside the small classes is below 3 % of that inside the large ones."""
    return bool(run["contrasts"][1] < MERGED * run["contrasts"][0])


def _merged(grid: Standard, runs: Sequence[Record]) -> list[Record]:
    """Between which factors of the predicted threshold each network merged its small classes."""
    found = []
    for seed in grid.seeds:
        for norm in grid.norms:
            mine = sorted((r for r in runs if (r["norm"], r["seed"]) == (norm or "none", seed)), key=_factor)
            if not (norm and mine):
                continue
            merged = [has_merged(r) for r in mine]
            first = merged.index(True) if True in merged else len(mine)
            low = mine[first - 1]["factor"] if first else None
            high = mine[first]["factor"] if first < len(mine) else None
            found.append({"norm": norm, "seed": seed, "bracket": [low, high]})
    return found


def _factor(run: Record) -> float:
    return run["factor"]


# --- AdamW


def _recipe(config: TrainConfig) -> Recipe:
    steps = config.epochs * -(-sum(config.class_counts) // config.batch_size)
    return Recipe(
        "adamw",
        config.weight_decay + config.head_decay,
        config.learning_rate,
        steps,
        config.batch_size,
        "layernorm",
        config.model.widths[-1],
        schedule="constant",
    )


def _clock(config: TrainConfig) -> float:
    """The sum of lr * decay of the head over all steps."""
    steps = -(-sum(config.class_counts) // config.batch_size)
    rates = sum(config.learning_rate_at(epoch) for epoch in range(config.epochs))
    return (config.weight_decay + config.head_decay) * steps * rates


def _adamw(job: Job, cell: Record) -> Record:
    """What the optimizer's state says, and the distances to the optimum with it, its mean and the forecast."""
    config, result = job.cell.config, cell["result"]
    Z, b = _measured(cell)
    rows, length, large = np.array(result["rows"]), length_of(config.model), _large(config)
    # classes of one size have one row: what is left between them is noise of the state
    even = np.repeat([rows[:large].mean(), rows[large:].mean()], [large, rows.size - large])
    forecast = forecast_rows(config.class_counts, _recipe(config))

    def away(prices: np.ndarray) -> Record:
        return _away(_optimum(config.class_counts, tuple(float(v) for v in prices), length, "sample"), Z, b)

    return {
        **job.labels,
        "clock": _clock(config),
        "rows": [float(even[0]), float(even[-1])],
        "slope": result["slope"],
        "correlation": result["correlation"],
        "at_rest": result["at_rest"],
        "distance": {"rows": away(even), "mean": away(np.array([rows.mean()]))},
        "forecast": {
            "settled": forecast.settled,
            "rows": [float(forecast.rows[0]), float(forecast.rows[-1])],
            "distance": _away(forecast.solution, Z, b),
        },
        "contrasts": contrasts(Z, large),
    }


def _everywhere(job: Job, cell: Record) -> Record:
    """Decay of every layer: how far the features' length and Z have gone from the model of a decayed head."""
    config = job.cell.config
    length = length_of(config.model)
    more = beside(job, cell) if config.optimizer == "sgd" else _adamw(job, cell)
    return {**more, "shortened": float(np.sqrt(cell["result"]["square_length"]) / length)}


# --- the decay clock


def _tuned(jobs: Sequence[Job], cells: Mapping[str, Record]) -> list[Record]:
    """Short fine-tunings: what the clock says, and whether the twin without decay ended the same."""
    plain = {_twin(job.cell.config): job for job in jobs if not job.labels["decayed"]}
    found = []
    for job in (job for job in jobs if job.labels["decayed"]):
        config, other = job.cell.config, plain[_twin(job.cell.config)]
        Z, without = _measured(cells[job.cell.key])[0], _measured(cells[other.cell.key])[0]
        apart = float(np.linalg.norm(Z - without) / np.linalg.norm(without))
        alike = [class_separation(m).states for m in (Z, without)]
        advice = advise_standard(config.class_counts, _recipe(config))
        acted = apart > SAME or alike[0] != alike[1]
        found.append(
            {
                "number": job.labels["number"],
                "learning_rate": config.learning_rate,
                "weight_decay": config.weight_decay,
                "clock": _clock(config),
                "verdict": advice.verdict,
                "apart": apart,
                "states": [sum(state != "separated" for state in states) for states in alike],
                "right": (advice.verdict != "not acted") == acted,
            }
        )
    return found


def _twin(config: TrainConfig) -> str:
    told = json.loads(config.to_json())
    return json.dumps({**told, "weight_decay": 0.0}, sort_keys=True)
