"""A small text transformer, long-tailed classes, decay on the head alone: is it on its certified optimum?"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import collapsar as cs
from collapsar.core.files import write_atomically
from collapsar.core.types import Record
from collapsar.diagnose import distance
from collapsar.training.provenance import checkout_commit
from collapsar_studies.against_theory import contrasts
from collapsar_studies.standard_runs import merge_of, problem_of
from collapsar_studies.text_runs import PACKAGES, TextRun, train_text
from collapsar_studies.time_left import Progress

RATE = 1e-3


@dataclass(frozen=True)
class Text:
    """The grid.

    Attributes:
        preset: "paper", "cpu" or "tiny".
        class_counts: Pieces of text per package.
        width: Features.
        factors: SGD's decays, as multiples of the merge threshold.
        decays: AdamW's.
        epochs: Of a run.
        seeds: Of the weights, the order and the pieces.
    """

    preset: str
    class_counts: tuple[int, ...]
    width: int
    factors: tuple[float, ...]
    decays: tuple[float, ...]
    epochs: int
    seeds: tuple[int, ...]

    def runs(self) -> list[TextRun]:
        """Those of the first seed first."""
        merge = self.width * merge_of(self.class_counts, "sample")
        prices = [("sgd", float(f"{factor * merge:.4g}")) for factor in self.factors]
        prices += [("adamw", wd) for wd in self.decays]
        return [
            TextRun(self.class_counts, self.width, optimizer, decay, RATE, 50, self.epochs, 1 / 3, seed)
            for seed in self.seeds
            for optimizer, decay in prices
        ]


_COUNTS = (50,) * 5 + (10,) * 5
TEXT = {
    "paper": Text("paper", (200,) * 5 + (40,) * 5, 64, (0.3, 0.6, 0.9, 1.1, 1.4), (10.0, 20.0), 3000, (0, 1, 2)),
    "cpu": Text("cpu", _COUNTS, 32, (0.4, 0.8, 1.3), (10.0,), 360, (0,)),
    "tiny": Text("tiny", (8,) * 5 + (2,) * 5, 8, (0.5,), (10.0,), 2, (0,)),
}


def text_record(grid: Text, cells: Path, progress: Progress | None = None) -> Record:
    """Train what is missing, and put every run beside its optimum.

    Args:
        grid: The study.
        cells: Folder with a record per run.
        progress: See ``Progress``.
    """
    cells.mkdir(parents=True, exist_ok=True)
    runs, found = grid.runs(), list[Record]()
    torch.set_num_threads(1)
    for done, run in enumerate(runs):
        found.append(_cell(run, cells))
        if progress is not None:
            progress(done + 1, len(runs), float("nan"))
    merge = grid.width * merge_of(grid.class_counts, "sample")
    return {
        "figure": "text",
        "title": "a small text transformer: decay of the head alone",
        "preset": grid.preset,
        "data": "source of Python's library, " + ", ".join(PACKAGES),
        "class_counts": list(grid.class_counts),
        "width": grid.width,
        "merge": merge,
        "runs": [_beside(run, cell, merge) for run, cell in zip(runs, found, strict=True)],
        "environment": _environment(found),
    }


def _cell(run: TextRun, folder: Path) -> Record:
    path = folder / f"{run.key[:16]}.json"
    if path.exists():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["run"] == json.loads(json.dumps(asdict(run))):
            return old
    made = {"run": asdict(run), "made_with": _versions(), **train_text(run)}
    write_atomically(path, json.dumps(made, allow_nan=False) + "\n")
    return made


def _versions() -> Record:
    import transformers

    return {
        "versions": {
            "collapsar": cs.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        "commit": checkout_commit(),
    }


def _environment(found: Sequence[Record]) -> Record:
    versions = {str(cell["made_with"]["versions"]): cell["made_with"]["versions"] for cell in found}
    return {
        "versions": list(versions.values()),
        "commits": sorted({str(cell["made_with"]["commit"]) for cell in found}),
        "devices": [f"cpu ({platform.machine()})"],
        "threads": [1],
        "runs": len(found),
        "failed": [],
        "cpu_minutes": round(sum(cell["cpu_seconds"] for cell in found) / 60, 2),
        "texts": sorted({cell["digest"] for cell in found}),
    }


def _beside(run: TextRun, cell: Record, merge: float) -> Record:
    """Distances to the optimum of features of one length, at the decay given or at the rows of AdamW's state."""
    Z, b, counts = np.array(cell["Z"]), np.array(cell["b"]), np.array(run.class_counts)
    num_large = int(np.sum(counts == counts.max()))
    rows: Any = run.decay
    if cell["rows"] is not None:
        rows = np.array([np.array(cell["rows"])[counts == n].mean() for n in counts])
    best = cs.solve(problem_of(run.class_counts, rows, float(np.sqrt(run.width)), "sample"), 1e-8, throw=False)
    away = distance(best, Z, b)
    return {
        "optimizer": run.optimizer,
        "decay": run.decay,
        "factor": run.decay / merge if run.optimizer == "sgd" else None,
        "seed": run.seed,
        "rows": None if cell["rows"] is None else [float(rows[0]), float(rows[-1])],
        "distance": {"Z": away.Z, "b": away.b},
        "contrasts": contrasts(Z, num_large),
        "predicted_contrasts": contrasts(best.Z, num_large),
        "accuracy": cell["accuracy"],
        "square_length": cell["square_length"],
        "residual": cell["residual"],
    }
