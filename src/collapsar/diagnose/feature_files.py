"""Features, labels and a head from one .npz or .safetensors file or a folder of .npy files, without pickle or torch.

Names: ``features`` (N, d), ``labels`` (N,), ``weight`` (K, d) and, for a head with one, ``bias`` (K,); the head's may
be called ``head_weight``, ``head.weight`` and so on. Optional: scalars ``lambda_w``, ``lambda_h``, ``lambda_b``,
``weight_decay``, and in an .npz ``class_names`` (K strings). Labels may be names: then of ``class_names``, or in
alphabetical order. In a folder each array is a file of its name: ``features.npy``, ``labels.npy``, ``weight.npy``.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

__all__ = ["MAX_BYTES", "FeatureFile", "read_features"]

MAX_BYTES = 8 * 2**30
"""Largest array that is read whole. A compressed file of a few kilobytes may announce terabytes."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "features": ("features",),
    "labels": ("labels",),
    "weight": ("weight", "head_weight", "head.weight"),
    "bias": ("bias", "head_bias", "head.bias"),
}
_OPTIONAL = ("bias",)
_SCALARS = ("lambda_w", "lambda_h", "lambda_b", "weight_decay")
_NUMBERS = "fiu"


@dataclass(frozen=True)
class FeatureFile:
    """What a file holds.

    Attributes:
        features: shape (N, d).
        labels: shape (N,).
        weight: shape (K, d).
        bias: shape (K,) or None.
        scalars: the penalties that the file names.
        class_names: K names, or None.
    """

    features: NDArray
    labels: NDArray
    weight: NDArray
    bias: NDArray | None
    scalars: Mapping[str, float]
    class_names: tuple[str, ...] | None


class _Refused(ValueError):  # noqa: N818 - never seen outside
    """What the file holds is whole, but not what is needed."""


@dataclass(frozen=True)
class _Entry:
    """What a file announces of one array before it is read."""

    kind: str
    shape: tuple[int, ...]
    itemsize: int


def read_features(path: str | os.PathLike[str]) -> FeatureFile:
    """Read such a file.

    Raises:
        ValueError: the file is damaged or no such file, an array is missing, of another kind, or too large.
        OSError: the file cannot be opened.
        ModuleNotFoundError: safetensors is not installed, or torch, for numbers that numpy has not (bfloat16).
    """
    file = Path(path)
    file = file.parent if file.suffix.lower() == ".npy" else file
    endings = {".npz": _open_npz, ".safetensors": _open_safetensors}
    opened = _open_folder if file.is_dir() else endings.get(file.suffix.lower())
    if file.suffix.lower() in (".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(
            f"`source` must be an .npz or .safetensors file, got {file}, which holds weights and no features: "
            "`collapsar audit` reads a head alone; for a diagnosis build the module, load them, and call "
            "collapsar.diagnose.readers.diagnose(model, loader)"
        )
    if opened is None:
        raise ValueError(
            f"`source` must be an .npz or .safetensors file, a folder with features.npy or of a run, got {file}"
        )
    try:
        with opened(file) as (entries, load):
            return _read(file, entries, load)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except (OSError, ModuleNotFoundError):  # an extra that is not installed is no damage
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds on a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file} is damaged or not a feature file ({reason}); write it again") from None


def _read(file: Path, entries: Mapping[str, _Entry], load: Any) -> FeatureFile:
    arrays: dict[str, NDArray | None] = {}
    for name, aliases in _ALIASES.items():
        found = [alias for alias in aliases if alias in entries]
        if len(found) > 1:
            raise _Refused(f"{file} names the same array twice: {' and '.join(found)}; keep one")
        if not found and name not in _OPTIONAL:
            held = ", ".join(sorted(entries)[:10]) or "nothing"
            raise _Refused(
                f"{file} has no `{name}`; a diagnosis needs features (N, d), labels (N,), weight (K, d) and, where the "
                f"head has one, bias (K,); it holds {held}. Without a head, collapsar.metrics.NeuralCollapse measures "
                "features and labels"
            )
        if name == "labels" and entries[found[0]].kind == "U":
            _check_size(file, name, entries[found[0]])
            arrays[name] = load(found[0])
        else:
            arrays[name] = _number_array(file, found[0], entries, load) if found else None
    scalars = {}
    for name in _SCALARS:
        if name in entries:
            value = _number_array(file, name, entries, load)
            if value.size != 1:
                raise _Refused(f"`{name}` in {file} must be one number, got shape {value.shape}")
            scalars[name] = float(value.reshape(()))
    names = None
    if "class_names" in entries and entries["class_names"].kind == "U":
        _check_size(file, "class_names", entries["class_names"])
        names = tuple(str(name) for name in np.ravel(load("class_names")))
    features, labels, weight = arrays["features"], arrays["labels"], arrays["weight"]
    assert features is not None  # what is missing was refused above
    assert labels is not None
    assert weight is not None
    if labels.dtype.kind == "U":
        labels, names = _numbered(file, labels, names, len(weight))
    return FeatureFile(features, labels, weight, arrays["bias"], scalars, names)


def _numbered(
    file: Path, labels: NDArray, names: tuple[str, ...] | None, num_classes: int
) -> tuple[NDArray, tuple[str, ...]]:
    """Labels that are names as numbers: places among the class names, or alphabetical."""
    found, places = np.unique(labels, return_inverse=True)
    if names is None:
        names = tuple(found.tolist())
        if len(names) != num_classes:
            raise _Refused(
                f"`labels` in {file} are {len(names)} different names, `weight` has {num_classes} rows: add "
                "`class_names`, a name for each row"
            )
    strange = sorted(set(found.tolist()) - set(names))
    if strange:
        raise _Refused(f"`labels` in {file} has names that `class_names` has not: {', '.join(strange[:5])}")
    return np.array([names.index(name) for name in found.tolist()])[places.reshape(labels.shape)], names


def _number_array(file: Path, name: str, entries: Mapping[str, _Entry], load: Any) -> NDArray:
    entry = entries[name]
    if entry.kind not in _NUMBERS:
        raise _Refused(
            f"`{name}` in {file} must hold real numbers, got another kind ({entry.kind!r}); objects are never unpickled"
        )
    _check_size(file, name, entry)
    return load(name)


def _check_size(file: Path, name: str, entry: _Entry) -> None:
    size = math.prod(entry.shape) * entry.itemsize
    if size > MAX_BYTES:
        raise _Refused(
            f"`{name}` in {file} has shape {entry.shape}, {size / 2**30:.0f} GiB, more than the "
            f"{MAX_BYTES / 2**30:.0f} GiB that are read at once; write a sample of each class, or "
            "diagnose the module with a loader in Python"
        )


@contextmanager
def _open_folder(folder: Path) -> Iterator[tuple[dict[str, _Entry], Any]]:
    entries = {}
    for path in sorted(folder.glob("*.npy")):
        with path.open("rb") as stream:
            entries[path.stem] = _npy_entry(stream)
    yield entries, lambda name: np.load(folder / f"{name}.npy", allow_pickle=False)


@contextmanager
def _open_npz(file: Path) -> Iterator[tuple[dict[str, _Entry], Any]]:
    entries = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            if member.endswith(".npy"):
                with archive.open(member) as stream:
                    entries[member.removesuffix(".npy")] = _npy_entry(stream)
    with np.load(file, allow_pickle=False) as arrays:
        yield entries, arrays.__getitem__


def _npy_entry(stream: Any) -> _Entry:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    return _Entry("O" if dtype.hasobject else dtype.kind, shape, dtype.itemsize)


@contextmanager
def _open_safetensors(file: Path) -> Iterator[tuple[dict[str, _Entry], Any]]:
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as tensors:
        entries = {}
        for name in tensors.keys():  # noqa: SIM118 -- not a dict
            part = tensors.get_slice(name)
            kind = {"F": "f", "B": "f", "I": "i", "U": "u"}.get(part.get_dtype()[0], "?")
            entries[name] = _Entry("b" if part.get_dtype() == "BOOL" else kind, tuple(part.get_shape()), 8)
        yield entries, lambda name: _tensor(file, tensors, name)


def _tensor(file: Path, tensors: Any, name: str) -> NDArray:
    if tensors.get_slice(name).get_dtype().startswith(("BF16", "F8")):  # numpy has no such numbers
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name).float().numpy()
    return tensors.get_tensor(name)
