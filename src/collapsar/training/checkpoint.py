"""A run's folder: ``records.jsonl`` and ``checkpoint.safetensors``, intact at every moment, without pickle."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from collapsar.core.files import write_atomically
from collapsar.core.json_lines import JsonLines, read_json_lines
from collapsar.core.records import from_json

_FORMAT = "collapsar-run-1"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run at the end of an epoch: everything that its future depends on.

    Attributes:
        tensors: Under "model." the network's state, under "momentum." the optimiser's buffers, "generator"
            the state of the shuffling.
        config: The configuration's JSON.
        data_digest: Hash of the training images and labels.
        epoch: Finished epochs.
        seconds: Spent in training so far.
        records_bytes: Length of ``records.jsonl`` when the checkpoint was made; anything beyond belongs to epochs
            that will be repeated.
        finished: Empty while epochs remain, otherwise why the run ended: "epochs" or "stationary".
        image_shape: (C, H, W).
        num_classes: K.
        start_digest: Hash of the weights the run was started from, empty for fresh ones.
    """

    tensors: Mapping[str, Tensor]
    config: str
    data_digest: str
    epoch: int
    seconds: float
    records_bytes: int
    finished: str
    image_shape: tuple[int, int, int]
    num_classes: int
    start_digest: str = ""


class RunFolder:
    """The files of one run.

    Creating it makes the folder and checks that it can be written.

    Raises:
        ValueError: The folder cannot be made or written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.records_path = self.path / "records.jsonl"
        self.checkpoint_path = self.path / "checkpoint.safetensors"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise ValueError(
                f"`run_dir` must be a folder that can be written, got {self.path}: "
                f"{error.strerror or error}; choose another"
            ) from None

    def clear(self) -> None:
        """Delete the run's files: a new one begins."""
        self.checkpoint_path.unlink(missing_ok=True)
        self.records_path.unlink(missing_ok=True)

    def append_record(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        JsonLines(self.records_path).append(record)

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint; after a crash at any point either the old or the new one is there, intact."""
        about = {**vars(checkpoint), "format": _FORMAT}
        del about["tensors"]
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
        content = to_bytes(tensors, metadata={"collapsar": json.dumps(about)})
        write_atomically(self.checkpoint_path, content)

    def rewind(self, records_bytes: int) -> list[Any]:
        """Drop the records after a checkpoint and return those before it.

        Raises:
            ValueError: The records are shorter than the checkpoint remembers, or unreadable.
        """
        size = self.records_path.stat().st_size if self.records_path.exists() else 0
        if size < records_bytes:
            raise ValueError(
                f"{self.records_path} has {size} bytes, but its checkpoint was made at {records_bytes}: records "
                "are missing; train again with resume=False"
            )
        os.truncate(self.records_path, records_bytes)
        return load_records(self.path)

    @property
    def records_bytes(self) -> int:
        """Present length of the records."""
        return self.records_path.stat().st_size


def load_records(run_dir: str | Path) -> list[Any]:
    """The records of a run: first the header, then one for each evaluation.

    Undefined numbers, null in the file, come back as NaN.

    Args:
        run_dir: The run's folder.

    Raises:
        ValueError: There are no records, or a line is not a JSON object. A last line cut short by a kill is
            left out.
    """
    path = Path(run_dir) / "records.jsonl"
    try:
        records = read_json_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the records {path}: {error}") from None
    return [record if record.get("kind") == "header" else from_json(record) for record in records]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint file.

    Raises:
        ValueError: The file is missing, damaged or not a checkpoint of this library.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("collapsar", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"the checkpoint {path} is missing or damaged ({error}); train again with resume=False"
        ) from None
    if about.pop("format", None) != _FORMAT:
        raise ValueError(f"{path} is not a checkpoint of a training run of this version; train again with resume=False")
    about["image_shape"] = tuple(about["image_shape"])
    return Checkpoint(tensors=tensors, **about)
