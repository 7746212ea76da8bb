"""Class counts: from numbers, from a short specification, or from a file of labels."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["CountsLike", "class_counts", "counts_from_labels"]

CountsLike = str | os.PathLike[str] | Sequence[int] | NDArray[np.integer]

_SPEC_HELP = (
    'write COUNTxCLASSES groups such as "500x5,100x5", a profile "exp:5000:100:10" or "step:5000:100:10" '
    "(largest : smallest : classes), or the path of a file with one label per line"
)
_GROUP = re.compile(r"([^x]+)(?:x([^x]+))?")


def class_counts(spec: CountsLike | ArrayLike) -> NDArray[np.int64]:
    """Samples per class, as a checked array of shape (K,).

    Args:
        spec: One of

            * numbers: ``[500, 500, 100]``;
            * groups ``"COUNTxCLASSES"`` joined by commas: ``"500x5,100x5"`` is five classes of 500 samples and
              five of 100; a bare ``"500"`` is one class;
            * ``"exp:LARGEST:SMALLEST:CLASSES"``: a geometric profile;
            * ``"step:LARGEST:SMALLEST:CLASSES"``: the first half of the classes large, the rest small;
            * the path of a file of labels: text with one label per line, or a ``.npy`` array.

    Returns:
        int64 array of shape (K,), K >= 2, every entry >= 1.

    Raises:
        ValueError: The counts are empty, unparsable, not whole, not positive, or fewer than two.

    Example:
        >>> class_counts("500x2,100")
        array([500, 500, 100])
        >>> class_counts("exp:100:1:3")
        array([100,  10,   1])
    """
    if isinstance(spec, str | os.PathLike):
        return _checked(_from_text(os.fspath(spec)))
    return _checked(spec)


def counts_from_labels(labels: ArrayLike) -> tuple[list[str], NDArray[np.int64]]:
    """Class names and samples per class of a list of labels.

    Args:
        labels: shape (N,), whole numbers or strings.

    Returns:
        The names, sorted (numbers by value), and the counts of shape (K,) in the same order.

    Raises:
        ValueError: There are no labels, or they are not one-dimensional whole numbers or strings.

    Example:
        >>> counts_from_labels(["cat", "dog", "cat"])
        (['cat', 'dog'], array([2, 1]))
    """
    array = np.asarray(labels)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iubU":
        raise ValueError(
            f"`labels` must be a non-empty list of whole numbers or strings, got shape {array.shape} of {array.dtype}"
        )
    names, counts = np.unique(array, return_counts=True)
    return [str(name) for name in names], counts.astype(np.int64)


def _from_text(text: str) -> ArrayLike:
    text = text.strip()
    if not text:
        raise ValueError(f"`class_counts` is empty; {_SPEC_HELP}")
    if Path(text).is_file():
        return counts_from_labels(_read_labels(Path(text)))[1]
    kind, _, rest = text.partition(":")
    if kind in ("exp", "step") and rest:
        return _profile(kind, rest, text)
    counts: list[int] = []
    for group in text.split(","):
        match = _GROUP.fullmatch(group.strip())
        count = _whole(match[1]) if match else None
        repeat = 1 if not match or match[2] is None else _whole(match[2])
        if count is None or repeat is None or repeat < 1:
            raise ValueError(f"`class_counts` cannot be read from {text!r} (at {group.strip()!r}); {_SPEC_HELP}")
        counts += [count] * repeat
    return counts


def _profile(kind: str, rest: str, text: str) -> ArrayLike:
    numbers = [_whole(part) for part in rest.split(":")]
    if len(numbers) != 3 or any(n is None or n < 1 for n in numbers):
        raise ValueError(f"`class_counts` cannot be read from {text!r}; {_SPEC_HELP}")
    largest, smallest, classes = (n for n in numbers if n is not None)
    if kind == "step":
        return [largest] * (classes // 2) + [smallest] * (classes - classes // 2)
    return np.rint(np.geomspace(largest, smallest, classes)).astype(np.int64)


def _whole(text: str) -> int | None:
    try:
        return int(text.strip())
    except ValueError:
        return None


def _read_labels(path: Path) -> ArrayLike:
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"`class_counts`: {path} is not a readable .npy array of labels ({error})") from error
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(
            f"`class_counts`: {path} is not a readable text file of labels; give one label per line, or a .npy array"
        ) from error
    labels = [line.strip() for line in lines if line.strip()]
    if not labels:
        raise ValueError(f"`class_counts`: {path} holds no labels; give one label per line")
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        return [int(label) for label in labels]
    return labels


def _checked(values: ArrayLike) -> NDArray[np.int64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"`class_counts` must be whole numbers, got {values!r}; {_SPEC_HELP}") from None
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"`class_counts` must be a non-empty list, got shape {array.shape}; {_SPEC_HELP}")
    good = np.isfinite(array) & (array >= 1) & (array == np.floor(array))
    if not good.all():
        k = int(np.argmin(good))
        raise ValueError(
            f"`class_counts` must be whole numbers >= 1, got {array[k]:g} for class {k}; "
            "leave classes without samples out"
        )
    if array.size < 2:
        raise ValueError(f"`class_counts` must name at least two classes, got {array.size}")
    return array.astype(np.int64)
