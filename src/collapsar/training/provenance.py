"""Where a run's numbers come from: configuration, data, commit, versions, device."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor

from collapsar.training.config import TrainConfig
from collapsar.training.data import ImageData

RunHeader = TypedDict("RunHeader", {  # noqa: UP013 - a line for each key
    "kind": Literal["header"], "config": dict[str, Any], "config_digest": str, "data_digest": str,
    "start_digest": NotRequired[str], "seed": int, "commit": str | None, "versions": dict[str, str | None],
    "device": str, "threads": int, "begun": str})  # fmt: skip


def choose_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is a CUDA device if there is one, otherwise the CPU.

    Raises:
        ValueError: Torch does not know the name, or this machine has no such device.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a torch without CUDA asserts
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise ValueError(
            f'`device` must be one that this machine has, got {name!r} ({reason}); use "auto" to choose one'
        ) from None
    return device


def data_digest(data: ImageData) -> str:
    """A hash of the training images, their labels and their normalisation."""
    digest = hashlib.sha256(repr((tuple(data.train_images.shape), data.mean, data.std)).encode())
    for tensor in (data.train_images, data.train_labels):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """A hash of named tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def run_header(config: TrainConfig, digests: Mapping[str, str], device: torch.device) -> RunHeader:
    """The first record of a run.

    Args:
        config: The run.
        digests: "data_digest" and "start_digest", the latter empty for fresh weights.
        device: Where it trains.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "kind": "header",
        "config": json.loads(config.to_json()),
        "config_digest": config.digest,
        "data_digest": digests["data_digest"],
        "start_digest": digests["start_digest"],
        "seed": config.seed,
        "commit": checkout_commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "collapsar": _version("collapsar"),
        },
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def checkout_commit() -> str | None:
    """The commit of the checkout that contains this code, with "-dirty" if it was changed.

    If the files were copied without their repository, the value of the variable COLLAPSAR_COMMIT, otherwise None.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "src" / "collapsar").is_dir():
        # never the commit of some other repository that happens to contain the environment
        return os.environ.get("COLLAPSAR_COMMIT")
    return _described(root)


@cache
def _described(root: Path) -> str | None:
    """What git says of a checkout, asked once: the code of a process is the one that it began with."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
