"""The sweep behind a phase diagram: in parallel, resumable, never computed twice.

The work is cut into parts; each finished part is one file, written atomically and named by a hash of the whole
configuration. A sweep that was killed continues with the missing parts, and one whose record is complete computes
nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from collapsar.core.files import write_atomically
from collapsar.phase.diagram import PhaseDiagram, assemble
from collapsar.phase.grid import PhaseConfig
from collapsar.phase.grid_states import FEATURES, GridStates, Part, phase_chunk

Progress = Callable[[int, int], None]
"""Called with (parts done, parts in all)."""
Note = Callable[[str], None]
"""Called with one sentence about a damaged file and what is done about it."""


def sweep(
    config: PhaseConfig,
    out: Path | None = None,
    *,
    jobs: int | None = None,
    dask_scheduler: str | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> PhaseDiagram:
    """Compute a phase diagram, or the missing parts of it.

    Args:
        config: what to compute.
        out: file for the record, JSON. The parts are kept beside it in OUT.parts until all are there. None: nothing is
            written.
        jobs: processes; -1: one per core. None: as set by ``joblib.parallel_config``, which may be a dask cluster, or
            this process alone.
        dask_scheduler: address of a dask cluster to compute on, "tcp://host:8786".
        progress: see ``Progress``.
        note: see ``Note``.

    Returns:
        The diagram.

    Raises:
        ValueError: ``jobs`` is 0, or the folder of ``out`` does not exist.
        OSError: a file cannot be written, or the dask cluster cannot be reached.
        ModuleNotFoundError: joblib or dask is needed and not installed.
    """
    if jobs == 0:
        raise ValueError("`jobs` must be a number of processes or -1 (one per core), got 0")
    tell = progress or _silent
    folder, found, all_parts = None, {}, config.num_chunks
    if out is not None:
        if not out.parent.is_dir():
            raise ValueError(f"`out` must be in an existing folder, got {out}; create {out.parent} first")
        if finished := _finished(out, config, note or _silent):
            tell(all_parts, all_parts)
            return finished
        folder = parts_folder(out)
        found = _found(folder, config, note or _silent)
        folder.mkdir(exist_ok=True)
    tell(len(found), all_parts)
    missing = [i for i in range(all_parts) if i not in found]
    for i, part in _computed(config, missing, jobs, dask_scheduler):
        found[i] = part
        if folder is not None:
            write_atomically(_part_file(folder, config, i), _packed(config, i, part))
        tell(len(found), all_parts)
    diagram = assemble(config, [found[i] for i in range(all_parts)])
    if out is not None and folder is not None:
        write_atomically(out, json.dumps(diagram.to_dict(), allow_nan=False))
        _remove_parts(folder, config)
    return diagram


def parts_folder(out: Path) -> Path:
    """The folder with the finished parts of an unfinished record.

    Example:
        >>> parts_folder(Path("phase.json")).name
        'phase.json.parts'
    """
    return out.with_name(f"{out.name}.parts")


def _silent(*told: object) -> None:
    pass


# --- computing


def _computed(
    config: PhaseConfig, missing: Sequence[int], jobs: int | None, dask_scheduler: str | None
) -> Iterator[tuple[int, Part]]:
    """Parts as they are finished, in any order."""
    if not missing:
        return
    try:
        import joblib
    except ModuleNotFoundError:
        if jobs not in (None, 1) or dask_scheduler is not None:
            raise
        yield from (_numbered(config, i) for i in missing)
        return
    with ExitStack() as stack:
        if dask_scheduler is not None:
            from dask.distributed import Client

            stack.enter_context(Client(dask_scheduler))
            stack.enter_context(joblib.parallel_config(backend="dask"))
            jobs = -1
        if len(missing) == 1 and dask_scheduler is None:
            jobs = 1 if jobs is not None else None
        tasks = (joblib.delayed(_numbered)(config, i) for i in missing)
        results: Any = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(tasks)
        yield from results


def _numbered(config: PhaseConfig, chunk: int) -> tuple[int, Part]:
    return chunk, phase_chunk(config, chunk)


# --- files


def _part_file(folder: Path, config: PhaseConfig, chunk: int) -> Path:
    return folder / f"{config.digest[:16]}-{chunk:05d}-of-{config.num_chunks:05d}.npz"


def _packed(config: PhaseConfig, chunk: int, part: Part) -> bytes:
    """A part as an archive of arrays, whose checksums reveal damage, with the sweep that it belongs to."""
    arrays = {f"{model}_{name}": array for model, cells in part.items() for name, array in cells._asdict().items()}
    buffer = io.BytesIO()
    np.savez(buffer, config_digest=config.digest, chunk=chunk, **arrays)
    return buffer.getvalue()


def _found(folder: Path, config: PhaseConfig, note: Note) -> dict[int, Part]:
    """The parts that are there and intact; files of other configurations are left alone."""
    parts: dict[int, Part] = {}
    for i in range(config.num_chunks):
        path = _part_file(folder, config, i)
        if not path.exists():
            continue
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                if str(file["config_digest"]) != config.digest or int(file["chunk"]) != i:
                    raise ValueError("it belongs to another sweep")  # noqa: TRY301 - one place for everything wrong
                parts[i] = {
                    model: GridStates(*(file[f"{model}_{name}"] for name in GridStates._fields)) for model in FEATURES
                }
        except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on a damaged file
            note(f"{path} is damaged ({error}); this part is computed again")
    return parts


def _finished(out: Path, config: PhaseConfig, note: Note) -> PhaseDiagram | None:
    """The record, if it is there, intact, and of this configuration."""
    if not out.exists():
        return None
    try:
        diagram = PhaseDiagram.from_dict(json.loads(out.read_text(encoding="utf-8")))
    except ValueError as error:
        note(f"{out} is damaged ({error}); it is computed again")
        return None
    return diagram if diagram.config.digest == config.digest else None


def _remove_parts(folder: Path, config: PhaseConfig) -> None:
    """Remove the parts, which are now in the record; parts of another configuration and other files stay."""
    for i in range(config.num_chunks):
        _part_file(folder, config, i).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
