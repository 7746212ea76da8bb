"""Every figure of the paper and most studies from one call: train what is missing, compare with theory, draw."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from collapsar.core.files import write_atomically
from collapsar.core.types import Record
from collapsar.training import TrainingInterrupted
from collapsar_studies.continued_runs import continued, continued_record
from collapsar_studies.effective import EFFECTIVE, effective_chains, effective_record, reaches
from collapsar_studies.names import NAMES
from collapsar_studies.noise_study import NOISE, noise_chains, noise_record
from collapsar_studies.paper_figures import figure_record
from collapsar_studies.presets import PRESETS, Job, figure_plan
from collapsar_studies.rest_study import REST, rest_chains, rest_record
from collapsar_studies.standard_runs import STANDARD, standard_chains
from collapsar_studies.standard_study import standard_record
from collapsar_studies.starts_study import STARTS, starts_chains, starts_record
from collapsar_studies.sweep import SweepSettings, run_sweep
from collapsar_studies.text_study import TEXT, text_record
from collapsar_studies.time_left import Note, Progress
from collapsar_studies.which_model import WHICH_MODEL, which_model_jobs, which_model_record


@dataclass(frozen=True)
class Request:
    """What to reproduce.

    Attributes:
        name: One of ``NAMES``.
        preset: "paper", "cpu" or "tiny".
        dataset: A data set other than the preset's.
        network: A network other than the preset's; figures only.
        seeds: To use instead of the preset's; not for effective.
        beyond: At most so many epochs more for each run, until its head is stationary; where the record says "beyond".
            Figures and which-model only. Runs that ended without it would have to be trained again.

    Raises:
        ValueError: A value is unknown, or means nothing for this name.
    """

    name: str
    preset: str = "cpu"
    dataset: str | None = None
    network: str | None = None
    seeds: tuple[int, ...] = ()
    beyond: int = 0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"`name` must be one of {', '.join(NAMES)}, got {self.name!r}")
        if self.preset not in PRESETS:
            raise ValueError(f"`preset` must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        if self.network is not None and not self.name.startswith("fig"):
            raise ValueError(f"`network` is for the figures; {self.name} has networks of its own: leave it out")
        if self.seeds and self.name == "effective":
            raise ValueError("`seeds` are fixed for effective, sweep by sweep; leave them out")
        if self.beyond < 0 or (self.beyond and not self.name.startswith("fig") and self.name != "which-model"):
            raise ValueError(f"`beyond` must be a number of epochs >= 0, and 0 for {self.name}, got {self.beyond}")
        if self.dataset is not None and self.name in ("noise", "rest", "starts", "text"):
            raise ValueError(f"`dataset` of {self.name} is fixed by its preset, got {self.dataset!r}; leave it out")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` must differ, got {', '.join(map(str, self.seeds))}")


@dataclass(frozen=True)
class Place:
    """Where and how.

    Attributes:
        out: Folder of all results; each name gets its own inside.
        scratch: For the checkpoints of runs in progress.
        data_dir: Folder of the data set, if it is not in a standard place.
        jobs: Processes; -1: one per core.
        dask_scheduler: Address of a dask cluster to run on.
        at_once: Runs side by side on one GPU, in this process.
        stop: Ends the runs once it returns True, see ``SweepSettings``; finished runs are drawn.
    """

    out: Path
    scratch: Path
    data_dir: Path | None = None
    jobs: int = 1
    dask_scheduler: str | None = None
    at_once: int = 1
    stop: Callable[[], bool] | None = None

    def settings(self, home: str) -> SweepSettings:
        """Of the sweep whose cells lie in ``home``."""
        folders = self.out / home / "cells", self.scratch / home
        return SweepSettings(*folders, self.data_dir, self.jobs, self.dask_scheduler, self.at_once, self.stop)


def needs_a_gpu(request: Request) -> str:
    """One sentence if the runs need a GPU and this machine has none, else an empty string.

    Example:
        >>> needs_a_gpu(Request("fig5", "tiny"))
        ''
    """
    if request.name == "text":
        return ""
    configs = [job.cell.config for chain in _plan(request)[0] for job in chain]
    if torch.cuda.is_available() or not any(config.cuda_graphs for config in configs):
        return ""
    images = sum(config.epochs * sum(config.class_counts) for config in configs)
    names = ", ".join(sorted({config.model.name for config in configs}))
    return (
        f"{request.name} at the preset {request.preset} shows {images:.1e} images to {names}: hours on a GPU, weeks on "
        "the CPU, which this machine will use"
    )


def reproduce(request: Request, place: Place, *, progress: Progress | None = None, note: Note | None = None) -> Record:
    """Run what is missing, write NAME.json, NAME.png and NAME.svg, and return the record.

    Args:
        request: What.
        place: Where.
        progress: Called with cells done, cells in all and the estimated seconds left.
        note: Called with one sentence about a file that is damaged.

    Raises:
        ValueError: The data cannot be found, or no run of a figure has a result.
        OSError: A file cannot be written.
        TrainingInterrupted: Ctrl-C, or ``place.stop`` before there was anything to draw.
    """
    if request.name == "text":  # its runs are no image runs, and have files of their own
        text = TEXT[request.preset]
        text = replace(text, seeds=request.seeds or text.seeds)
        return _written(place.out / "text", "text", text_record(text, place.out / "text" / "cells", progress))
    chains, home, finish = _plan(request, place.data_dir)
    longer = [continued(chain[-1], request.beyond) for chain in chains] if request.beyond else []
    chains = [(*chain, job) for chain, job in zip(chains, longer, strict=True)] if longer else chains
    cells = run_sweep([tuple(job.cell for job in chain) for chain in chains], place.settings(home), progress, note)
    missing = {job.cell.key for chain in chains for job in chain} - cells.keys()
    if missing and (not cells or request.name == "effective"):
        raise TrainingInterrupted(f"{len(missing)} runs of {request.name} are not finished yet; call again to resume")
    record = finish(cells)
    if longer:
        went_on = [job for job in _ended(longer, cells) if cells[job.cell.key]["result"] is not None]
        record["beyond"] = [continued_record(job, cells[job.cell.key]) for job in went_on]
    return _written(place.out / request.name, request.name, record)


# Studies alike in form: their grids, the runs of a grid, and the record of those that have ended.
_STUDIES: Mapping[str, tuple[Mapping[str, Any], Callable[[Any], Sequence[Sequence[Job]]], Callable[..., Record]]] = {
    "standard": (STANDARD, standard_chains, standard_record),
    "noise": (NOISE, noise_chains, noise_record),
    "rest": (REST, rest_chains, rest_record),
    "starts": (STARTS, starts_chains, starts_record),
}
_Finish = Callable[[Mapping[str, Record]], Record]


def _plan(request: Request, data_dir: Path | None = None) -> tuple[Sequence[Sequence[Job]], str, _Finish]:
    """The runs, the folder of their cells, and the function that makes the record of the finished ones."""
    if request.name == "which-model":
        grid = WHICH_MODEL[request.preset]
        grid = replace(grid, dataset=request.dataset or grid.dataset, seeds=request.seeds or grid.seeds)
        jobs = which_model_jobs(grid)
        home = request.name if grid.steps else "fig5"
        return [(job,) for job in jobs], home, lambda cells: which_model_record(grid, _ended(jobs, cells), cells)
    if request.name == "effective":
        study = EFFECTIVE[request.preset]
        study = replace(study, dataset=request.dataset or study.dataset)
        chains = effective_chains(study)
        return (
            chains,
            request.name,
            lambda cells: effective_record(study, chains, cells, reaches(study, data_dir)),
        )
    if request.name in _STUDIES:
        grids, chains_of, record_of = _STUDIES[request.name]
        grid = grids[request.preset]
        grid = replace(grid, seeds=request.seeds or grid.seeds)
        if request.dataset is not None:
            grid = replace(grid, dataset=request.dataset)
        chains = chains_of(grid)
        jobs = [job for chain in chains for job in chain]
        return chains, request.name, lambda cells: record_of(grid, _ended(jobs, cells), cells)
    plan = figure_plan(int(request.name[3:]), request.preset, request.dataset, request.network, request.seeds)
    return (
        [(job,) for job in plan.jobs],
        plan.home,
        lambda cells: figure_record(replace(plan, jobs=_ended(plan.jobs, cells)), cells),
    )


def _ended(jobs: Sequence[Job], cells: Mapping[str, Record]) -> tuple[Job, ...]:
    return tuple(job for job in jobs if job.cell.key in cells)


def _written(folder: Path, name: str, data: Record) -> Record:
    """The record with its picture beside it; matplotlib is imported here, not before."""
    from collapsar.core.records import to_json
    from collapsar_studies.paper_plots import paper_figure
    from collapsar_studies.picture_files import write_pictures
    from collapsar_studies.study_plots import study_figure

    record = to_json(_short(data))
    figure = (paper_figure if "number" in record else study_figure)(record)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps(record, allow_nan=False) + "\n")
    write_pictures(folder, name, figure, record["title"])
    return record


def _short(value: Any) -> Any:
    """Floats with six digits: the seventh of a trained network's numbers depends on the machine."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value
