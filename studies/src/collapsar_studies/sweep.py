"""A sweep of training runs: in parallel, resumable, no run trained twice, and no damaged record trusted.

A sweep is a list of cells. A cell's record is one small file, named by a hash of everything that decides it and sealed
with a checksum of its content. Runs in progress keep their checkpoints in a scratch folder; a sweep that was killed
resumes from them and ends in the same records.
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
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from collapsar.core.files import write_atomically
from collapsar.core.types import Record
from collapsar.training import (
    DivergedError,
    ImageData,
    TrainConfig,
    TrainingInterrupted,
    load_run,
    train,
)
from collapsar.training.graphs import taking_turns
from collapsar.training.loop import exact_products, one_thread
from collapsar_studies.imbalanced_data import data_of, digest
from collapsar_studies.run_record import DETAILS, Detail, finished_record
from collapsar_studies.time_left import Live, Note, Progress, TimeLeft

# Not the configuration's fault, as divergence is, but perhaps the machine's: tried again the next time.
_BROKEN_OFF = "broke off"


@dataclass(frozen=True)
class Cell:
    """One training run of a sweep.

    Attributes:
        config: The run.
        start: The cell whose final weights this one begins from; None: fresh weights.
        detail: What the record holds besides the final state: a key of ``DETAILS``.
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
    """A configuration as JSON values, without fields at their defaults."""
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
        data_dir: Folder of the data set, if it is not in a standard place.
        jobs: Processes; -1: one per core.
        dask_scheduler: Address of a dask cluster to run on, "tcp://host:8786"; it must see ``folder`` and ``scratch``.
        at_once: Runs side by side in this process, on CUDA streams of their own: a single network of the paper does not
            fill a GPU. On the CPU they run one after another all the same.
        stop: Called after every epoch of every run; once it is True the runs are saved and the sweep ends. If there are
            several processes, it must be possible to send it to them.

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

    A run whose loss became infinite is a record too: "error" says so and "result" is None. So is one that broke off
    for want of memory, say; it is trained again when the sweep is started again.

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
            Nothing has been written then.
        OSError: A file cannot be written, the dask cluster cannot be reached, or a process died.
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
    for config in {(c.config.dataset, c.config.class_counts): c.config for c in cells}.values():
        data_of(config, settings.data_dir)  # what the data set cannot give is found now, not after hours
    settings.folder.mkdir(parents=True, exist_ok=True)
    records = _found(cells, settings, note)
    missing = [chain for chain in chains if any(cell.key not in records for cell in chain)]
    by_key = {cell.key: cell for cell in cells}
    images = {cell.key: cell.config.epochs * sum(cell.config.class_counts) for cell in cells}
    left = TimeLeft(images, records, progress)
    for keys, notes in _computed(missing, settings, frozenset(records), Live(left.tick, note)):
        for sentence in notes:
            note(sentence)
        for key in keys:
            found = load_cell(settings.folder, by_key[key], settings.data_dir, note)
            if found is None:
                raise OSError(f"{_record_file(settings.folder, by_key[key])} is missing although its run has finished")
            records[key] = found
        left.ended(keys)
    return records


def _found(cells: Sequence[Cell], settings: SweepSettings, note: Note) -> dict[str, Record]:
    """Records of earlier sweeps by key."""
    records: dict[str, Record] = {}
    for cell in cells:
        found = load_cell(settings.folder, cell, settings.data_dir, note)
        if found is not None and found["error"].startswith(_BROKEN_OFF):
            note(f"{_record_file(settings.folder, cell)} is of a run that {found['error']}; the run is trained again")
        elif found is not None:
            records[cell.key] = found
    return records


def _silent(sentence: str) -> None:
    pass


# --- running


def _computed(
    chains: Sequence[Chain], settings: SweepSettings, done: frozenset[str], live: Live
) -> Iterator[tuple[list[str], list[str]]]:
    """Keys of new records and notes, as chains end, in any order."""
    if not chains:
        return
    if settings.jobs == 1 and settings.dask_scheduler is None:
        if settings.at_once > 1:
            yield from _in_threads(chains, settings, done, live)
        else:
            yield from (_run_chain(chain, settings, done, live) for chain in chains)
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
        try:
            yield from results
        except BrokenProcessPool:
            raise OSError(
                "a process of the sweep was killed, perhaps for lack of memory; run the same command again to go on "
                "from the finished runs, and use fewer `jobs` to need less memory"
            ) from None


def _in_threads(
    chains: Sequence[Chain], settings: SweepSettings, done: frozenset[str], live: Live
) -> Iterator[tuple[list[str], list[str]]]:
    """Chains that share this process and its GPU by turns."""
    halt, asked = threading.Event(), settings.stop
    settings = replace(settings, stop=lambda: halt.is_set() or (asked is not None and asked()))

    def run(chain: Chain) -> tuple[list[str], list[str]]:
        with taking_turns():
            return _run_chain(chain, settings, done, live)

    # Settings of the process: the first run to leave would take them from the others.
    with exact_products(), one_thread(), ThreadPoolExecutor(settings.at_once) as pool:
        futures = [pool.submit(run, chain) for chain in chains]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            halt.set()  # the others save what they have
            raise


def _run_chain(
    chain: Chain, settings: SweepSettings, done: frozenset[str], live: Live | None = None
) -> tuple[list[str], list[str]]:
    """Train the cells of a chain whose records are missing, and those they start from where their weights are gone.

    Returns:
        Keys of the new records, and notes where they could not be told ``live``.
    """
    notes: list[str] = []
    live = Live(None, notes.append) if live is None else live
    new = [cell for cell in chain if cell.key not in done]
    ended, whole = list[str](), True
    try:
        # Side by side, the first run to leave would take the setting from the others: there it is made outside.
        with one_thread() if settings.at_once == 1 else nullcontext():
            for cell in new:
                if settings.stop is not None and settings.stop():
                    return ended, notes
                content = _trained(cell, settings, live)
                write_atomically(_record_file(settings.folder, cell), _sealed(content))
                ended.append(cell.key)
                whole = whole and not content["error"].startswith(_BROKEN_OFF)
    except TrainingInterrupted:
        if settings.stop is None or not settings.stop():
            raise
        return ended, notes
    for cell in chain if whole else ():  # a run that broke off goes on from its checkpoint
        shutil.rmtree(settings.scratch / cell.key, ignore_errors=True)
    return ended, notes


def _trained(cell: Cell, settings: SweepSettings, live: Live) -> Record:
    """The record of one run."""
    data = data_of(cell.config, settings.data_dir)
    clock = time.process_time if settings.at_once == 1 else time.thread_time
    begun = clock()
    content: Record = {
        "config": json.loads(cell.config.to_json()),
        "start": cell.start.key if cell.start is not None else "",
        "detail": cell.detail,
        "data_digest": digest(cell.config, settings.data_dir),
    }
    try:
        weights = None if cell.start is None else _final_weights(cell.start, settings, live.note)
        with exact_products():
            result = _train(cell, data, weights, settings, live)
            measured = finished_record(result, data, cell.detail)
    except (DivergedError, RuntimeError, MemoryError) as error:
        reason = str(error)
        if not isinstance(error, DivergedError):
            reason = f"{_BROKEN_OFF}: {type(error).__name__}, {' '.join(reason.split())[:200]}"
            live.note(f"the run {cell.key[:16]} {reason}")
        return content | {"environment": {}, "cpu_seconds": None, "error": reason, "result": None}
    header = result.header
    environment = {name: header.get(name) for name in ("versions", "commit", "device", "threads")}
    return content | {
        "environment": environment,
        "cpu_seconds": round(clock() - begun, 2),
        "error": "",
        "result": measured,
    }


def _train(cell: Cell, data: ImageData, weights: Any, settings: SweepSettings, live: Live) -> Any:
    """Train or resume; a scratch folder that cannot be resumed from is reported and started afresh."""
    folder = settings.scratch / cell.key
    tick = live.tick
    told = None if tick is None else lambda epoch, epochs, _record: tick(cell.key, epoch, epochs)
    how = {"progress": told, "measure": DETAILS[cell.detail], "start": weights, "stop": settings.stop}
    run = partial(train, cell.config, data, folder, **how)
    if not folder.exists():
        return run()
    try:
        return run()
    except ValueError as error:
        live.note(f"{folder} cannot be resumed from ({error}); this run is trained again")
        return run(resume=False)


def _final_weights(cell: Cell, settings: SweepSettings, note: Note) -> Mapping[str, torch.Tensor]:
    """The weights a cell ended in, from its checkpoint or by training it again."""
    folder = settings.scratch / cell.key
    if (folder / "checkpoint.safetensors").exists():
        try:
            result = load_run(folder)
            if result.finished and result.config == cell.config:
                return result.model.state_dict()
        except ValueError as error:
            note(f"{folder} is damaged ({error}); this run is trained again")
    weights = None if cell.start is None else _final_weights(cell.start, settings, note)
    return _train(cell, data_of(cell.config, settings.data_dir), weights, settings, Live(None, note)).model.state_dict()


# --- files


def _record_file(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.key[:16]}.json"


def _sealed(content: Record) -> str:
    """A record with a checksum of its content, one key to a line."""
    check = hashlib.sha256(json.dumps(content, allow_nan=False, sort_keys=True).encode()).hexdigest()
    return json.dumps({"check": check, **content}, allow_nan=False, indent=None) + "\n"


def load_cell(folder: Path, cell: Cell, data_dir: Path | None = None, note: Note | None = None) -> Record | None:
    """The record of a cell, or None where it is missing or cannot be trusted.

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
        if content["data_digest"] != digest(cell.config, data_dir):
            raise ValueError("it was made with other training images")  # noqa: TRY301
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        note(f"{path} cannot be trusted ({error}); this run is trained again")
        return None
    return content
