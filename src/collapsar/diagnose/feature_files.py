"""Features, labels and a head from one .npz or .safetensors file or a folder of .npy files, without pickle or torch.

Names: ``features`` (N, d), ``labels`` (N,), ``weight`` (K, d) and, for a head with one, ``bias`` (K,); the head's may
be called ``head_weight``, ``head.weight`` and so on. Optional: scalars ``lambda_w``, ``lambda_h``, ``lambda_b``,
``weight_decay``, and in an .npz ``class_names`` (K strings). Labels may be names: those of ``class_names``, or in
alphabetical order. In a folder each array is a file of its name: ``features.npy``, ``labels.npy``, ``weight.npy``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from collapsar.core.label_files import labels_of_array
from collapsar.diagnose.array_files import ArrayEntry, Refused, numpy_arrays, safetensors_arrays, said_plainly

MAX_BYTES = 8 * 2**30
"""Largest array that is read whole. A compressed file of a few kilobytes may announce terabytes."""

T = TypeVar("T")
_SCALARS = ("lambda_w", "lambda_h", "lambda_b", "weight_decay")
_NUMBERS = "fiu"


@dataclass(frozen=True)
class FeatureFile:
    """The contents of a file.

    Attributes:
        features: shape (N, d).
        labels: shape (N,).
        weight: shape (K, d).
        bias: shape (K,) or None.
        scalars: the penalties in the file.
        class_names: K names, or None.
    """

    features: NDArray
    labels: NDArray
    weight: NDArray
    bias: NDArray | None
    scalars: Mapping[str, float]
    class_names: tuple[str, ...] | None


def read_features(path: str | os.PathLike[str]) -> FeatureFile:
    """Read such a file.

    Raises:
        ValueError: the file is damaged or of another kind, or an array is missing, of another type, or too large.
        OSError: the file cannot be opened.
    """
    return _opened(path, _read)


def read_samples(
    path: str | os.PathLike[str], num_classes: int, class_names: Sequence[str] | None = None
) -> tuple[NDArray, NDArray]:
    """Features (N, d) and labels (N,) of such a file, for a head of K classes from elsewhere.

    Args:
        path: the file or folder; a head in it is ignored.
        num_classes: K.
        class_names: K names, for labels that are names, if the file has no ``class_names``.

    Raises:
        ValueError: as for `read_features`.
        OSError: the file cannot be opened.
    """

    def samples(file: Path, entries: Mapping[str, ArrayEntry]) -> tuple[NDArray, NDArray]:
        return _samples(file, entries, _class_names(file, entries) or class_names, num_classes)[:2]

    return _opened(path, samples)


def _opened(path: str | os.PathLike[str], read: Callable[[Path, Mapping[str, ArrayEntry]], T]) -> T:
    file = Path(path)
    file = file.parent if file.suffix.lower() == ".npy" else file
    ending = "" if file.is_dir() else file.suffix.lower()
    if ending in (".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(
            f"features are read from an .npz or .safetensors file, got {file}, which has weights but no features: "
            "`collapsar audit` reads a head alone; for a diagnosis build the module, load the weights, and call "
            "collapsar.diagnose(model, loader)"
        )
    if ending not in ("", ".npz", ".safetensors"):
        raise ValueError(
            f"features are read from an .npz or .safetensors file, a folder with features.npy or of a run, got {file}"
            + ("; the output of `collapsar diagnose --json` is for `collapsar report`" if ending == ".json" else "")
        )
    with said_plainly(file, "not a feature file"):
        return read(file, safetensors_arrays(file) if ending == ".safetensors" else numpy_arrays(file))


def _read(file: Path, entries: Mapping[str, ArrayEntry]) -> FeatureFile:
    # missing arrays are reported before anything is read
    _, _, head, offset = (_stored(file, name, entries) for name in ("features", "labels", "weight", "bias"))
    weight = _array(file, head, entries)
    bias = _array(file, offset, entries) if offset else None
    features, labels, names = _samples(file, entries, _class_names(file, entries), len(weight))
    scalars = {}
    for name in _SCALARS:
        if name in entries:
            value = _array(file, name, entries)
            if value.size != 1:
                raise Refused(f"`{name}` in {file} must be one number, got shape {value.shape}")
            scalars[name] = float(value.reshape(()))
    return FeatureFile(features, labels, weight, bias, scalars, names)


def _class_names(file: Path, entries: Mapping[str, ArrayEntry]) -> tuple[str, ...] | None:
    if "class_names" not in entries or entries["class_names"].kind != "U":
        return None
    return tuple(str(name) for name in np.ravel(_array(file, "class_names", entries, "U")))


def _samples(
    file: Path, entries: Mapping[str, ArrayEntry], names: Sequence[str] | None, num_classes: int
) -> tuple[NDArray, NDArray, tuple[str, ...] | None]:
    """Features, labels as numbers, and the names of the classes if there are any."""
    places = [_stored(file, name, entries) for name in ("features", "labels")]
    features, labels = _array(file, places[0], entries), _array(file, places[1], entries, _NUMBERS + "bU")
    labels, _ = labels_of_array(labels)
    if labels.dtype.kind in "fb" and bool((labels == np.floor(labels)).all()):  # as stored by pandas and MATLAB
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "U":
        labels, names = _numbered(file, labels, names, num_classes)
    return features, labels, None if names is None else tuple(names)


def _stored(file: Path, name: str, entries: Mapping[str, ArrayEntry]) -> str:
    """Which of its possible names an array has here; "" for a head without bias."""
    aliases = (name, f"head_{name}", f"head.{name}") if name in ("weight", "bias") else (name,)
    found = [alias for alias in aliases if alias in entries]
    if len(found) > 1:
        raise Refused(f"{file} has the same array twice: {' and '.join(found)}; keep one")
    if found or name == "bias":
        return found[0] if found else ""
    held = ", ".join(sorted(entries)[:10]) or "nothing"
    raise Refused(
        f"{file} has no `{name}`; it needs features (N, d), labels (N,), for a diagnosis weight (K, d) and, if the "
        f"head has one, bias (K,); it has {held}. Without a head, collapsar.metrics.NeuralCollapse measures "
        "features and labels"
    )


def _numbered(
    file: Path, labels: NDArray, names: Sequence[str] | None, num_classes: int
) -> tuple[NDArray, tuple[str, ...]]:
    """Labels that are names as numbers: positions among the class names, or in alphabetical order."""
    found, places = np.unique(labels, return_inverse=True)
    if names is None:
        names = tuple(str(name) for name in found)
        if len(names) != num_classes:
            raise Refused(
                f"`labels` in {file} are {len(names)} different names, but `weight` has {num_classes} rows: add "
                "`class_names`, a name for each row"
            )
    strange = sorted(set(found.tolist()) - set(names))
    if strange:
        raise Refused(f"`labels` in {file} has names that are not in `class_names`: {', '.join(strange[:5])}")
    if twice := sorted({name for name in found.tolist() if names.count(name) > 1}):
        raise Refused(
            f"`labels` in {file} has names shared by several classes: {', '.join(twice[:5])}; store the labels as "
            "numbers, or give each class its own name"
        )
    return np.array([names.index(name) for name in found.tolist()])[places.reshape(labels.shape)], tuple(names)


def _array(file: Path, name: str, entries: Mapping[str, ArrayEntry], kinds: str = _NUMBERS) -> NDArray:
    entry = entries[name]
    if entry.kind not in kinds:
        raise Refused(
            f"`{name}` in {file} must hold real numbers, got another kind ({entry.kind!r}); objects are never unpickled"
        )
    if entry.num_bytes > MAX_BYTES:
        raise Refused(
            f"`{name}` in {file} has shape {entry.shape}, {entry.num_bytes / 2**30:.0f} GiB, more than the limit of "
            f"{MAX_BYTES / 2**30:.0f} GiB; write a sample of each class, or diagnose the module with a loader in "
            "Python"
        )
    whole = entry.read()
    return np.array(whole[:] if entry.shape else whole)
