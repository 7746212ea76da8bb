"""Class counts: from numbers, from a short specification, from labels, or from a file of either."""

from __future__ import annotations

import os
import re
import reprlib
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from collapsar.core.label_files import is_number, labels_of_array, read_label_file, whole_numbers

CountsLike = str | os.PathLike[str] | Sequence[int] | NDArray[np.integer] | Mapping[Any, int]

_SPEC_HELP = (
    'write COUNTxCLASSES groups such as "500x5,100x5", a profile "exp:5000:100:10" or "step:5000:100:10" '
    "(largest : smallest : classes), or the path of a file with one label per line"
)
_GROUP = re.compile(r"([^x]+)(?:x([^x]+))?")
_MOST = 1e15  # float64, in which counts are read, holds all whole numbers up to here
_MISSING = {"", "nan", "na", "n/a", "<na>", "none", "null"}


@dataclass(frozen=True)
class LabelCounts:
    """Samples per class with the names of the classes.

    Attributes:
        counts: int64, shape (K,), every entry >= 1.
        names: K names; None where the source gives none.
        note: How a file was read, in one line for the user; empty if there is nothing to say.
    """

    counts: NDArray[np.int64]
    names: tuple[str, ...] | None = None
    note: str = ""


class CheckedCounts(NamedTuple):
    """Counts that a problem has already checked: without class names, many small counts would look like labels."""

    counts: NDArray[np.int64]


def class_counts(
    spec: CountsLike | ArrayLike | CheckedCounts, *, column: str | int | None = None, ignore_index: int | None = None
) -> NDArray[np.int64]:
    """Samples per class, as a checked array of shape (K,).

    Args:
        spec: One of

            * numbers: ``[500, 500, 100]``;
            * counts by class: a dict, a ``Counter`` or a pandas Series such as ``labels.value_counts()``; classes
              that are numbers are put in numeric order, others of a Counter or a Series in order of name;
            * groups ``"COUNTxCLASSES"`` joined by commas: ``"500x5,100x5"`` is five classes of 500 samples and
              five of 100; a bare ``"500"`` is one class;
            * ``"exp:LARGEST:SMALLEST:CLASSES"``: a geometric profile;
            * ``"step:LARGEST:SMALLEST:CLASSES"``: the first half of the classes large, the rest small;
            * the path of a file of labels or counts or of a folder of images: see :func:`label_counts`.
        column: In a table with several columns, the one with the labels, as for :func:`label_counts`.
        ignore_index: A label that marks samples without one, as for :func:`label_counts`.

    Returns:
        int64 array of shape (K,), K >= 2, every entry >= 1.

    Raises:
        ValueError: The counts are empty, unparsable, not whole, not positive, or fewer than two; or they are labels.

    Example:
        >>> class_counts("500x2,100")
        array([500, 500, 100])
        >>> class_counts("exp:100:1:3")
        array([100,  10,   1])
        >>> class_counts({2: 10, 0: 60, 1: 30})
        array([60, 30, 10])
    """
    if isinstance(spec, CheckedCounts):
        return spec.counts
    return label_counts(spec, column=column, ignore_index=ignore_index).counts


def label_counts(
    spec: CountsLike | ArrayLike, *, column: str | int | None = None, ignore_index: int | None = None
) -> LabelCounts:
    """Samples per class and the classes' names: :func:`class_counts` with names, and a note on how a file was read.

    A file may hold one label or one count per line, ``path label`` or ``class count`` lines, CSV or TSV with or
    without a header, LIBSVM lines, JSON (an array, an object of counts, an object for each sample, LVIS or COCO
    categories), JSON lines or a ``.npy`` array, all of these also gzipped; a folder must hold one folder of images
    per class. A file that can be read in several ways is refused.

    Args:
        spec: As for :func:`class_counts`.
        column: In a table with several columns, the name or number (from 1) of the column with the labels; for LVIS
            categories, the field with the counts.
        ignore_index: A label that marks samples without one, such as -1, -100 or 255; they are left out.

    Raises:
        ValueError: As for :func:`class_counts`, or a file can be read in no way or in several.

    Example:
        >>> label_counts({"cat": 60, "dog": 30}).names
        ('cat', 'dog')
    """
    if isinstance(spec, str | os.PathLike):
        text = os.fspath(spec).strip()
        if text and _exists(Path(text)):
            return _from_file(Path(text), column, ignore_index)
        if column is not None or ignore_index is not None:
            raise ValueError(f"`column` and `ignore_index` are for files of labels; {text!r} is not one")
        return LabelCounts(_checked(_from_text(text)))
    if isinstance(spec, Mapping) or (hasattr(spec, "items") and hasattr(spec, "index") and not hasattr(spec, "append")):
        pairs: Any = spec
        counted = isinstance(spec, Mapping)
        return _from_pairs(dict(pairs.items()), by_name=isinstance(spec, Counter) or not counted, counted=counted)
    return LabelCounts(_checked(spec))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long for a file name: a list of counts
        return False


def counts_from_labels(labels: ArrayLike, *, ignore_index: int | None = None) -> tuple[list[str], NDArray[np.int64]]:
    """Class names and samples per class of a list of labels.

    Args:
        labels: shape (N,), whole numbers, also as floats, truth values or strings, or (N, K), one-hot: a list, an
            array, a tensor or a pandas Series.
        ignore_index: A label that marks samples without one, such as -1, -100 or 255; they are left out. Without it
            -100, and a -1 beside classes 0, 1, 2, ..., are taken to be such a mark, with a warning.

    Returns:
        The names, sorted (numbers by value), and the counts of shape (K,) in the same order.

    Raises:
        ValueError: There are no labels, some are negative, or they are neither whole numbers nor strings.

    Example:
        >>> counts_from_labels(["cat", "dog", "cat"])
        (['cat', 'dog'], array([2, 1]))
        >>> counts_from_labels([0, 1, -100, 1], ignore_index=-100)
        (['0', '1'], array([1, 2]))
    """
    array, _ = labels_of_array(np.asarray(labels))
    if array.dtype.kind == "O" and all(isinstance(label, str) for label in array.flat):
        array = array.astype(str)
    whole = array.dtype.kind in "iubU" or (array.dtype.kind == "f" and bool((array == np.floor(array)).all()))
    if array.ndim == 1 and array.dtype.kind in "fO":
        missing = sum(label is None or label != label for label in array.tolist())
        if missing:
            raise ValueError(f"`labels`: {missing} of {array.size} are missing (NaN or None); leave those samples out")
    if array.ndim != 1 or array.size == 0 or not whole:
        raise ValueError(
            f"`labels` must be a non-empty list of whole numbers or strings, got shape {array.shape} of {array.dtype}; "
            "soft labels and regression targets have no classes to count"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.int64)
    names, counts, assumed = _counted(array, ignore_index, "`labels`")
    if assumed:
        warnings.warn(f"`labels`: {assumed}", stacklevel=2)
    return names, counts


def _counted(labels: NDArray[Any], ignore_index: int | None, where: str) -> tuple[list[str], NDArray[np.int64], str]:
    """Names and counts of the labels, and which label was assumed to mark samples without one."""
    if ignore_index is not None:
        labels = labels[labels != (str(ignore_index) if labels.dtype.kind == "U" else ignore_index)]
    found, counts = np.unique(labels, return_counts=True)
    counts, assumed = counts.astype(np.int64), ""
    if found.dtype.kind == "i" and found.size and found[0] < 0 and found.tolist() != [-1, 1]:  # two classes by sign
        mark = int(found[0])
        # -100 is torch's mark. A -1 beside 0 and 1 may be a class of its own.
        marks = found.size > 1 and found[1] >= 0 and (mark == -100 or (mark == -1 and found[1] == 0 and found.size > 3))
        if not marks:
            raise ValueError(_negative(where, mark, int(counts[0])))
        assumed = f"the label {mark} is taken to mark samples without a label (`ignore_index={mark}`)"
        found, counts = found[1:], counts[1:]
    return [str(name) for name in found], counts, assumed


def _negative(where: str, label: int, rows: int) -> str:
    return (
        f"{where}: {rows} labels are {label}; if that means no label, leave these samples out with "
        f"`ignore_index={label}` (on the command line --ignore-index {label}); if it is a class, give names to classes"
    )


# --- files


def _from_file(path: Path, column: str | int | None, ignore_index: int | None) -> LabelCounts:
    found, assumed = read_label_file(path, column)
    if isinstance(found, dict):
        read = _from_pairs(found, by_name=False)
        note = f"{path.name} read as counts: {read.counts.size} classes, {read.counts.sum()} samples"
        note += f"; {assumed}" if assumed else ""
        return LabelCounts(read.counts, read.names, note)
    labels = [label for label in found if str(label).strip().lower() not in _MISSING]
    whole = whole_numbers(labels)
    if whole is None and labels and all(map(is_number, labels)):
        raise ValueError(f"`class_counts`: {path} holds numbers that are not whole, which cannot be labels of classes")
    known = _known(labels if whole is None else whole, ignore_index, path)
    names, counts, unlabelled = _counted(known, None, f"`class_counts`: {path}")
    _check_file(path, names, counts, whole is not None)
    without = len(found) - int(counts.sum())
    note = f"{path.name} read as labels: {len(names)} classes, {counts.sum()} samples"
    note += f"; {without} without a label left out" if without else ""
    note += "".join(f"; {each}" for each in (unlabelled, assumed) if each)
    alone = [name for name, count in zip(names, counts, strict=True) if count == 1]
    if whole is None and column is None and alone == [labels[0]]:
        note += f"; {alone[0]}, on the first line, has one sample: if that line is a header, name it with `column`"
    if whole is not None and names[0] == "0" and int(names[-1]) >= len(names):
        missing = sorted(set(range(int(names[-1]))) - {int(name) for name in names})
        shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        note += f"; no sample has label {shown}: classes are counted without them"
    return LabelCounts(_checked(counts), tuple(names), note)


def _known(labels: list[Any], ignore_index: int | None, path: Path) -> NDArray[Any]:
    kept = [label for label in labels if ignore_index is None or str(label) != str(ignore_index)]
    if not kept:
        raise ValueError(f"`class_counts`: {path} holds no labels; give one label per line")
    return np.asarray(kept, dtype=np.int64 if isinstance(kept[0], int) else str)


def _check_file(path: Path, names: list[str], counts: NDArray[np.int64], whole: bool) -> None:
    """Refuse values that are probably not labels."""
    K, N = len(names), int(counts.sum())
    if K == N > 2 or (2 * K > N >= 10):
        raise ValueError(
            f"`class_counts`: {path} has {K} different labels in {N} samples, so these are probably not labels; give "
            "one label per line or one class and its count, or name the column with `column` (--column)"
        )
    if whole and [int(name) for name in names] == list(range(1, K + 1)) and K > 1:
        raise ValueError(
            f"`class_counts`: {path} has labels 1 to {K} and no 0. If they count from 1, subtract 1 or give the "
            f"counts themselves: {_spec(counts)}; if class 0 has no samples, leave it out in the same way"
        )
    if whole and int(names[-1]) == 255 and [int(name) for name in names[:-1]] == list(range(K - 1)) and K < 256:
        raise ValueError(
            f"`class_counts`: {path} has labels 0 to {K - 2} and {counts[-1]} that are 255; if that means no label, "
            "leave these samples out with `ignore_index=255` (on the command line --ignore-index 255)"
        )


def _spec(counts: NDArray[np.int64]) -> str:
    """Counts as a specification, if it is short enough to show."""
    starts = np.flatnonzero(np.r_[True, counts[1:] != counts[:-1]])
    if starts.size > 40:
        return "as a JSON array"
    runs = np.diff(np.r_[starts, counts.size])
    return ",".join(f"{counts[i]}x{n}" if n > 1 else str(counts[i]) for i, n in zip(starts, runs, strict=True))


def _from_pairs(pairs: dict[Any, Any], *, by_name: bool, counted: bool = False) -> LabelCounts:
    whole = whole_numbers(list(pairs))
    keys = list(pairs)
    if whole is not None:
        keys = [key for _, key in sorted(zip(whole, keys, strict=True), key=lambda pair: pair[0])]
        names = tuple(map(str, sorted(whole)))
    else:
        keys = sorted(keys, key=str) if by_name else keys
        names = tuple(map(str, keys))
    if whole is not None and min(whole) < 0:
        raise ValueError(_negative("`class_counts`", min(whole), int(pairs[keys[0]])))
    return LabelCounts(_checked([pairs[key] for key in keys], names, counted=counted), names)


# --- specifications and numbers


def _from_text(text: str) -> ArrayLike:
    if not text:
        raise ValueError(f"`class_counts` is empty; {_SPEC_HELP}")
    kind, _, rest = text.partition(":")
    if kind in ("exp", "step") and rest:
        return _profile(kind, rest, text)
    counts: list[int] = []
    for group in text.split(","):
        match = _GROUP.fullmatch(group.strip())
        count = _whole(match[1]) if match else None
        repeat = 1 if not match or match[2] is None else _whole(match[2])
        if count is None or repeat is None or repeat < 1:
            where = (
                "which names no file"
                if group.strip() == text
                else f"at {_quoted(group.strip())}, and no file has that name"
            )
            raise ValueError(f"`class_counts` cannot be read from {_quoted(text)}, {where}; {_SPEC_HELP}")
        counts += [count] * repeat
    return counts


def _profile(kind: str, rest: str, text: str) -> ArrayLike:
    numbers = [_whole(part) for part in rest.split(":")]
    if len(numbers) != 3 or any(n is None or n < 1 for n in numbers):
        raise ValueError(f"`class_counts` cannot be read from {_quoted(text)}; {_SPEC_HELP}")
    largest, smallest, classes = (n for n in numbers if n is not None)
    if kind == "step":
        return [largest] * (classes // 2) + [smallest] * (classes - classes // 2)
    return np.rint(np.geomspace(largest, smallest, classes)).astype(np.int64)


def _quoted(text: str) -> str:
    """The text in quotes: all of a path; only both ends of a list of thousands of counts."""
    short = reprlib.Repr()
    short.maxstring = 300
    return short.repr(text)


def _whole(text: str) -> int | None:
    try:
        return int(text.strip())
    except ValueError:
        return None


def _checked(values: ArrayLike, names: Sequence[str] | None = None, *, counted: bool = False) -> NDArray[np.int64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"`class_counts` must be whole numbers, got {str(values)[:200]!r}; {_SPEC_HELP}; to count labels, call "
            "`counts_from_labels(labels)`"
        ) from None
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"`class_counts` must be a non-empty list, got shape {array.shape}; {_SPEC_HELP}")
    # A pandas Series of labels has row numbers where one of counts has names.
    numbered = names is None or tuple(names) == tuple(map(str, range(len(names))))
    if numbered and not counted and _are_labels(array):
        raise ValueError(
            f"`class_counts` looks like {array.size} labels, classes {array.min():g} to {array.max():g}: count them "
            "with `names, counts = counts_from_labels(labels)`; if they are counts, give a dict from class to count"
        )
    good = (array >= 1) & (array <= _MOST) & (array == np.floor(array))
    if not good.all():
        k = int(np.argmin(good))
        name = k if names is None else names[k]
        raise ValueError(
            f"`class_counts` must be whole numbers from 1 to {_MOST:g}, got {array[k]:g} for class {name}; "
            "leave out classes without samples"
        )
    if array.size < 2:
        raise ValueError(f"`class_counts` must name at least two classes, got {array.size}")
    return array.astype(np.int64)


def _are_labels(array: NDArray[np.float64]) -> bool:
    """Whether numbers look like labels: every class from 0 on, or every class from 1 on many times, not sorted."""
    if not bool((np.isfinite(array) & (array == np.floor(array)) & (array >= 0)).all()):
        return False
    values = np.unique(array)
    if not np.array_equal(values, np.arange(values.size) + values[0]) or values.size < 2:
        return False
    many = array.size >= max(100, 20 * values.size) and bool((np.diff(array) > 0).any())
    return (values[0] == 0 and array.size >= 2 * values.size) or (values[0] == 1 and many)
