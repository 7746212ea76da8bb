"""A sweep of training runs: in parallel, resumable, no run trained twice, none trusted that is damaged.

A sweep is a list of cells. A cell's record is one small file, named by a hash of everything that decides it and sealed
with a checksum of its content. Runs in progress keep their checkpoints in a scratch folder; a sweep that was killed
goes on from them and ends in the same records.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from collapsar.experiments.cells import DETAILS, Detail, finished_record
from collapsar.files import write_atomically
from collapsar.training import (
    DivergedError,
    ImageData,
    TrainConfig,
    TrainingInterrupted,
    imbalanced,
    load_data,
    load_run,
    train,
)
from collapsar.training.graphs import taking_turns
from collapsar.training.loop import exact_products

__all__ = ["Cell", "Chain", "SweepSettings", "load_cell", "run_sweep"]

Record = dict[str, Any]
Progress = Callable[[int, int, float], None]
"""Called with (cells done, cells in all, estimated seconds left; NaN before the first cell has ended)."""
Note = Callable[[str], None]
"""Called with one sentence about a file that is damaged and what is done about it."""


@dataclass(frozen=True)
class Cell:
    """One training run of a sweep.

    Attributes:
        config: The run.
        start: The cell whose final weights this one begins from; None: fresh weights.
        detail: What the record holds besides the end: a key of ``DETAILS``.
    """

    config: TrainConfig
    start: Cell | None = None
    detail: Detail = "end"

    def __post_init__(self) -> None:
        if self.detail not in DETAILS:
            raise ValueError(f"`detail` must be one of {', '.join(DETAILS)}, got {self.detail!r}")

    @cached_property
    def key(self) -> str:
        """A hash of the whole configuration, the cells it starts from included.

        Fields at their defaults are left out of it: a field that is added later, with a default that changes nothing,
        leaves the records of earlier runs valid. A default that is changed does not: the records hold every value.
        """
        start = self.start.key if self.start is not None else ""
        told = json.dumps([_told(self.config), start, self.detail], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()


def _told(value: Any) -> Any:
    """A configuration as JSON values without what is at its default."""
    if not is_dataclass(value) or isinstance(value, type):
        return str(value) if value == math.inf else value
    given = {
        field.name: getattr(value, field.name) for field in fields(value) if getattr(value, field.name) != field.default
    }
    return {name: _told(item) for name, item in given.items()}


Chain = tuple[Cell, ...]
"""Cells that one process runs in order, because each may start from the one before."""


@dataclass(frozen=True)
class SweepSettings:
    """Where and how a sweep runs; nothing here changes a record.

    Attributes:
        folder: For the records, KEY.json; made if it does not exist.
        scratch: For the checkpoints of runs in progress; emptied as they end.
        data_dir: Where the data set lies, if not in a standard place.
        jobs: Processes; -1: one per core.
        dask_scheduler: Address of a dask cluster to run on, "tcp://host:8786"; it must see ``folder`` and ``scratch``.
        at_once: Runs side by side in this process, on CUDA streams of their own: one network of the paper's does not
            fill a GPU. On the CPU they run one after another all the same.
        stop: Asked after every epoch of every run; once it says True the runs are saved and the sweep ends. It must be
            one that other processes can be sent where there are several.

    Raises:
        ValueError: ``jobs`` is 0, ``at_once`` less than 1, or both ask for more than one.
    """

    folder: Path
    scratch: Path
    data_dir: Path | None = None
    jobs: int = 1
    dask_scheduler: str | None = None
    at_once: int = 1
    stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        if self.jobs == 0:
            raise ValueError("`jobs` must be a number of processes or -1 (one per core), got 0")
        if not (self.at_once == 1 or (self.at_once > 1 and self.jobs == 1 and self.dask_scheduler is None)):
            raise ValueError(
                f"`at_once` must be a number of runs >= 1, and 1 where there are several processes, got {self.at_once}"
            )


def run_sweep(
    chains: Sequence[Chain],
    settings: SweepSettings,
    progress: Progress | None = None,
    note: Note | None = None,
) -> dict[str, Record]:
    """Train what is missing and return every cell's record.

    A run whose loss became infinite is a record too: "error" says so and "result" is None.

    Args:
        chains: The cells. Chains run side by side in the order given, the cells of one chain one after another.
        settings: See ``SweepSettings``.
        progress: See ``Progress``.
        note: See ``Note``.

    Returns:
        Records by cell key: "config", "start" (a key or ""), "data_digest", "environment",
        "cpu_seconds" (of this process; for a run that was resumed, of its last part), "error", "result". Where ``stop``
        ended the sweep, those of the runs that had ended.

    Raises:
        ValueError: The data set cannot be found or does not suffice, or a start is no earlier cell of its chain.
        OSError: A file cannot be written, or the dask cluster cannot be reached.
        TrainingInterrupted: Ctrl-C; the runs in progress are saved.
        ModuleNotFoundError: joblib or dask are not installed and needed.
    """
    note = _silent if note is None else note
    for chain in chains:
        for i, cell in enumerate(chain):
            if cell.start is not None and cell.start not in chain[:i]:
                raise ValueError("`chains` must hold the start of a cell before it in the same chain, got one without")
    cells = [cell for chain in chains for cell in chain]
    if len(set(cells)) < len(cells):
        raise ValueError("`chains` must hold each cell once: two processes would train it at the same time")
    settings.folder.mkdir(parents=True, exist_ok=True)
    records: dict[str, Record] = {}
    for cell in cells:
        found = load_cell(settings.folder, cell, settings.data_dir, note)
        if found is not None:
            records[cell.key] = found
    missing = [chain for chain in chains if any(cell.key not in records for cell in chain)]
    clock = _Clock({cell.key for cell in cells}, records, progress)
    for keys, notes in _computed(missing, settings, frozenset(records)):
        for sentence in notes:
            note(sentence)
        for key in keys:
            cell = next(cell for cell in cells if cell.key == key)
            found = load_cell(settings.folder, cell, settings.data_dir, note)
            if found is None:
                raise OSError(f"the record {_record_file(settings.folder, cell)} is not there although its run ended")
            records[key] = found
        clock.advance(len(records))
    return records


def _silent(sentence: str) -> None:
    pass


class _Clock:
    """Says how much is done, and how long the rest will take at the pace so far."""

    def __init__(self, keys: set[str], records: Mapping[str, Record], progress: Progress | None) -> None:
        self.total, self.before, self.progress = len(keys), len(records), progress
        self.begun = time.monotonic()
        self.advance(self.before)

    def advance(self, done: int) -> None:
        if self.progress is not None:
            new = done - self.before
            pace = (time.monotonic() - self.begun) / new if new else float("nan")
            self.progress(done, self.total, pace * (self.total - done))


# --- running


def _computed(
    chains: Sequence[Chain], settings: SweepSettings, done: frozenset[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """Keys of new records and notes, as chains end, in any order."""
    if not chains:
        return
    if settings.jobs == 1 and settings.dask_scheduler is None:
        if settings.at_once > 1:
            yield from _in_threads(chains, settings, done)
        else:
            yield from (_run_chain(chain, settings, done) for chain in chains)
        return
    import joblib

    with ExitStack() as stack:
        jobs = settings.jobs
        if settings.dask_scheduler is not None:
            from dask.distributed import Client

            stack.enter_context(Client(settings.dask_scheduler))
            stack.enter_context(joblib.parallel_config(backend="dask"))
            jobs = -1
        tasks = (joblib.delayed(_run_chain)(chain, settings, done) for chain in chains)
        results: Any = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
        yield from results


def _in_threads(
    chains: Sequence[Chain], settings: SweepSettings, done: frozenset[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """Chains that share this process and its GPU by turns."""
    halt, asked = threading.Event(), settings.stop
    settings = replace(settings, stop=lambda: halt.is_set() or (asked is not None and asked()))

    def run(chain: Chain) -> tuple[list[str], list[str]]:
        with taking_turns():
            return _run_chain(chain, settings, done)

    # Exact products here as well: the first thread to leave would take the setting from the others.
    with exact_products(), ThreadPoolExecutor(settings.at_once) as pool:
        futures = [pool.submit(run, chain) for chain in chains]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            halt.set()  # the others save what they have
            raise


def _run_chain(chain: Chain, settings: SweepSettings, done: frozenset[str]) -> tuple[list[str], list[str]]:
    """Train the cells of a chain whose records are missing, and those they start from where their weights are gone.

    Returns:
        Keys of the new records, and notes.
    """
    notes: list[str] = []
    new = [cell for cell in chain if cell.key not in done]
    ended: list[str] = []
    # On the CPU a result depends on the number of threads: one, whatever the machine, so that records can be compared.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for cell in new:
            if settings.stop is not None and settings.stop():
                return ended, notes
            content = _trained(cell, settings, notes)
            write_atomically(_record_file(settings.folder, cell), _sealed(content))
            ended.append(cell.key)
    except TrainingInterrupted:
        if settings.stop is None or not settings.stop():
            raise
        return ended, notes
    finally:
        torch.set_num_threads(threads)
    for cell in chain:
        shutil.rmtree(settings.scratch / cell.key, ignore_errors=True)
    return ended, notes


def _trained(cell: Cell, settings: SweepSettings, notes: list[str]) -> Record:
    """The record of one run."""
    data = _cut(cell.config, settings.data_dir)
    begun = time.process_time()
    content: Record = {
        "config": json.loads(cell.config.to_json()),
        "start": cell.start.key if cell.start is not None else "",
        "detail": cell.detail,
        "data_digest": _digest(cell.config, settings.data_dir),
    }
    try:
        weights = None if cell.start is None else _final_weights(cell.start, settings, notes)
        with exact_products():
            result = _train(cell, data, weights, settings, notes)
            measured = finished_record(result, data, cell.detail)
    except DivergedError as error:
        return content | {"environment": {}, "cpu_seconds": None, "error": str(error), "result": None}
    header = result.header
    environment = {name: header.get(name) for name in ("versions", "commit", "device", "threads")}
    return content | {
        "environment": environment,
        "cpu_seconds": round(time.process_time() - begun, 2),
        "error": "",
        "result": measured,
    }


def _train(cell: Cell, data: ImageData, weights: Any, settings: SweepSettings, notes: list[str]) -> Any:
    """Train, or go on; a scratch folder that cannot be gone on from is named and begun anew."""
    folder = settings.scratch / cell.key
    run = partial(train, cell.config, data, folder, measure=DETAILS[cell.detail], start=weights, stop=settings.stop)
    if not folder.exists():
        return run()
    try:
        return run()
    except ValueError as error:
        notes.append(f"{folder} cannot be gone on from ({error}); this run is trained again")
        return run(resume=False)


def _final_weights(cell: Cell, settings: SweepSettings, notes: list[str]) -> Mapping[str, torch.Tensor]:
    """The weights a cell ended in, from its checkpoint or by training it again."""
    folder = settings.scratch / cell.key
    if (folder / "checkpoint.safetensors").exists():
        try:
            result = load_run(folder)
            if result.finished and result.config == cell.config:
                return result.model.state_dict()
        except ValueError as error:
            notes.append(f"{folder} is damaged ({error}); this run is trained again")
    weights = None if cell.start is None else _final_weights(cell.start, settings, notes)
    return _train(cell, _cut(cell.config, settings.data_dir), weights, settings, notes).model.state_dict()


@lru_cache(maxsize=2)
def _whole(name: str, data_dir: Path | None) -> ImageData:
    return load_data(name, data_dir)


@lru_cache(maxsize=4)
def _cut_to(name: str, class_counts: tuple[int, ...], data_dir: Path | None) -> tuple[ImageData, str]:
    from collapsar.training.provenance import data_digest

    data = imbalanced(_whole(name, data_dir), class_counts)
    return data, data_digest(data)


def _cut(config: TrainConfig, data_dir: Path | None) -> ImageData:
    return _cut_to(config.dataset, config.class_counts, data_dir)[0]


def _digest(config: TrainConfig, data_dir: Path | None) -> str:
    return _cut_to(config.dataset, config.class_counts, data_dir)[1]


# --- files


def _record_file(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.key[:16]}.json"


def _sealed(content: Record) -> str:
    """A record with a checksum of its content, one key to a line."""
    check = hashlib.sha256(json.dumps(content, allow_nan=False, sort_keys=True).encode()).hexdigest()
    return json.dumps({"check": check, **content}, allow_nan=False, indent=None) + "\n"


def load_cell(folder: Path, cell: Cell, data_dir: Path | None = None, note: Note | None = None) -> Record | None:
    """The record of a cell, or None where it is not there or cannot be trusted.

    Args:
        folder: Where the records lie.
        cell: The cell.
        data_dir: Where its data set lies; the record must be of the same training images.
        note: See ``Note``.
    """
    path = _record_file(folder, cell)
    if not path.exists():
        return None
    note = _silent if note is None else note
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        check = content.pop("check")
        if hashlib.sha256(json.dumps(content, allow_nan=False, sort_keys=True).encode()).hexdigest() != check:
            raise ValueError("its checksum does not fit")  # noqa: TRY301 - one place for every way to be damaged
        start = cell.start.key if cell.start is not None else ""
        if TrainConfig.from_json(json.dumps(content["config"])) != cell.config or content["start"] != start:
            raise ValueError("it belongs to another run")  # noqa: TRY301
        if content["data_digest"] != _digest(cell.config, data_dir):
            raise ValueError("it was made with other training images")  # noqa: TRY301
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        note(f"{path} cannot be trusted ({error}); this run is trained again")
        return None
    return content
