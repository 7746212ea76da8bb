"""What follows the last linear step of an ONNX model: which of its rows the output's classes are, and what is added.

An array of the classes' numbers stands for them, shaped like the linear step's output: operators that move, pick
or fold axes do the same to it, and factors or summands apply to the classes whose numbers are there.

Example:
    >>> picked = np.take(np.arange(5)[None], [4, 0, 2], axis=1)  # as Gather has it
    >>> rows_of(picked).tolist()
    [4, 0, 2]
    >>> rows_of(np.arange(6).reshape(1, 2, 3)) is None  # two answers of three classes each
    True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.types import Vector

# Ends of the path: behind them classes have no axis of their own.
_ANSWERS = frozenset({"ArgMax", "TopK"})
# These keep only the order of the classes: scaling their output does not scale logits.
ORDER_KEPT = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Clip", "Normalizer", "ZipMap", "ArrayFeatureExtractor"} | _ANSWERS
)
_NAMED = ("ZipMap", "ArrayFeatureExtractor")
_UNTOUCHED = frozenset({"Identity", "Cast", "Dropout"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})


@dataclass(frozen=True)
class Step:
    """A node behind the linear step.

    Attributes:
        kind: the operator.
        given: its attributes.
        constants: of its inputs, None for those that are not constant; for arithmetic ones the single constant.
        shape: of its output, None if unknown, with 1 (the first axis) or 2 for free lengths.
    """

    kind: str
    given: dict[str, Any]
    constants: tuple[NDArray | None, ...]
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Tail:
    """The output's classes in terms of the linear step: factor · (W h + b)[rows] + added.

    Attributes:
        rows: shape (K,).
        factor: shape (K,).
        added: shape (K,), or None if nothing is added.
        names: K names, or None.
        sigmoid: whether each class has a sigmoid of its own.
    """

    rows: NDArray[np.int64]
    factor: Vector
    added: Vector | None
    names: tuple[str, ...] | None
    sigmoid: bool


def follow(classes: NDArray[np.int64], steps: Sequence[Step], opset: int) -> Tail | None:
    """What the steps do to the classes; None if these are mixed, reversed or no longer recognisable.

    Args:
        classes: numbers from 0, in the shape of the linear step's output.
        steps: from the linear step to the output.
        opset: of the model.
    """
    number = int(classes.max()) + 1
    logits, scores = _Affine.identity(number), None  # scores: behind a step that keeps only the order
    rows, names, order = None, None, ""
    for step in steps:
        if rows is not None and step.kind not in _NAMED:  # one answer: its shape says nothing about classes
            if step.kind in _ARITHMETIC:
                return None
            continue
        if step.kind in _ARITHMETIC:
            value = _per_class(classes, step.constants[0], number)
            if value is None:
                return None
            if scores is None:
                logits = logits.then(step.kind, value)
            else:
                scores = scores.then(step.kind, value)
        elif step.kind in ORDER_KEPT:
            folded = logits if scores is None else _folded(logits, scores, order)
            if folded is None or (rows is None and not _along_classes(step, classes, opset)):
                return None
            if step.kind == "Clip" and scores is None:  # clipped logits may become equal
                return None
            logits, scores, order = folded, _Affine.identity(number), step.kind
            names = _names(step) if step.kind in _NAMED else names
            rows = rows_of(classes) if step.kind in _ANSWERS else rows
        elif step.kind not in _UNTOUCHED:
            try:
                moved = _MOVES[step.kind](classes, step)
            except (ValueError, IndexError, TypeError):  # axes that this shape does not have
                return None
            if moved is None:
                return None
            classes = moved
    rows = rows_of(classes) if rows is None else rows
    folded = logits if scores is None else _folded(logits, scores, order)
    if rows is None or folded is None:
        return None
    return Tail(
        rows=rows,
        factor=folded.factor[rows],
        added=folded.added[rows] if folded.added.any() else None,
        names=names if names is not None and len(names) == len(rows) else None,
        sigmoid=any(step.kind == "Sigmoid" for step in steps),
    )


def rows_of(classes: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The classes in the order of the one axis along which they vary; None if they vary along several or repeat."""
    axes = [axis for axis in range(classes.ndim) if _varies(classes, axis)]
    if len(axes) > 1 or not classes.size:
        return None
    places = tuple(slice(None) if axis in axes else 0 for axis in range(classes.ndim))
    rows = np.atleast_1d(classes[places])
    return rows if len(np.unique(rows)) == len(rows) else None


@dataclass(frozen=True)
class _Affine:
    factor: Vector
    added: Vector

    @staticmethod
    def identity(number: int) -> _Affine:
        return _Affine(np.ones(number), np.zeros(number))

    def then(self, kind: str, value: Vector) -> _Affine:
        if kind in ("Mul", "Div"):
            value = value if kind == "Mul" else 1 / value
            return _Affine(self.factor * value, self.added * value)
        return _Affine(self.factor, self.added + (value if kind == "Add" else -value))


def _folded(logits: _Affine, scores: _Affine, order: str) -> _Affine | None:
    """The logits whose order is that of the scores, which are affine in the result of ``order`` on the logits."""
    factor, added = scores.factor, scores.added
    if factor.min() <= 0:  # the order is reversed
        return None
    if np.ptp(added) == 0:
        if np.ptp(factor) == 0:
            return logits
        return _Affine(logits.factor, logits.added + np.log(factor)) if order == "Softmax" else None
    return (
        _Affine(logits.factor, logits.added + added / factor) if order == "LogSoftmax" and not np.ptp(factor) else None
    )


def _per_class(classes: NDArray[np.int64], value: NDArray | None, number: int) -> Vector | None:
    """The value of a constant for each class; None if it differs within one."""
    if value is None:
        return None
    try:
        spread = np.broadcast_to(np.asarray(value, dtype=np.float64), classes.shape)
    except ValueError:
        return None
    found = np.ones(number)
    found[classes] = spread
    return found if np.array_equal(found[classes], spread) else None


def _along_classes(step: Step, classes: NDArray[np.int64], opset: int) -> bool:
    """Whether an operator with an axis works along that of the classes."""
    flattens = "Softmax" in step.kind and opset < 13  # everything from its axis on
    default = {"ArgMax": 0, "TopK": -1}.get(step.kind, 1 if flattens else -1)
    if "Softmax" not in step.kind and step.kind not in _ANSWERS:
        return True
    axis = int(step.given.get("axis", default)) % classes.ndim
    return not any(_varies(classes, other) for other in range(axis if flattens else classes.ndim) if other != axis)


def _varies(classes: NDArray[np.int64], axis: int) -> bool:
    return classes.shape[axis] > 1 and classes.strides[axis] != 0 and bool((np.diff(classes, axis=axis) != 0).any())


def _names(step: Step) -> tuple[str, ...] | None:
    labels: Any = step.given.get("classlabels_strings") or step.given.get("classlabels_int64s")
    if step.kind == "ArrayFeatureExtractor":
        labels = None if step.constants[0] is None else np.ravel(np.asarray(step.constants[0])).tolist()
    return None if not labels else label_names(labels)


def label_names(labels: Sequence[Any]) -> tuple[str, ...] | None:
    """Labels of a model as names; None if they are the numbers of the rows."""
    names = tuple(label.decode() if isinstance(label, bytes) else str(label) for label in labels)
    return None if names == tuple(str(k) for k in range(len(names))) else names


def _axes(step: Step) -> tuple[int, ...] | None:
    """The axes of Squeeze, Unsqueeze or ReduceMean: an attribute once, an input since opset 13 or 18."""
    value = step.given.get("axes", step.constants[1] if len(step.constants) > 1 else None)
    return None if value is None else tuple(int(axis) for axis in np.ravel(np.asarray(value)))


def _reshaped(classes: NDArray[np.int64], step: Step) -> NDArray[np.int64] | None:
    target = step.constants[1]
    if target is None:  # computed from the input's shape
        return None if step.shape is None else classes.reshape(-1, *step.shape[1:])
    return classes.reshape([classes.shape[i] if n == 0 else n for i, n in enumerate(np.ravel(target).tolist())])


def _flattened(classes: NDArray[np.int64], step: Step) -> NDArray[np.int64]:
    axis = int(step.given.get("axis", 1))
    return classes.reshape(int(np.prod(classes.shape[: axis if axis >= 0 else axis + classes.ndim], dtype=int)), -1)


def _gathered(classes: NDArray[np.int64], step: Step) -> NDArray[np.int64] | None:
    axis, indices = int(step.given.get("axis", 0)), step.constants[1]
    if not _varies(classes, axis):  # whatever is picked there
        return np.take(classes, np.zeros_like(indices if indices is not None else [0], dtype=int), axis=axis)
    return None if indices is None else np.take(classes, indices, axis=axis)


def _sliced(classes: NDArray[np.int64], step: Step) -> NDArray[np.int64] | None:
    names = ("starts", "ends", "axes", "steps")
    old = [step.given.get(name) for name in names]
    given = old if old[0] is not None else [*step.constants[1:], None, None][:4]
    starts, ends, axes, steps = (None if part is None else np.ravel(np.asarray(part)).tolist() for part in given)
    axes = list(range(classes.ndim if starts is None else len(starts))) if axes is None else axes
    for i, axis in enumerate(axes):
        if not _varies(classes, axis):  # whatever is picked there
            continue
        if starts is None or ends is None:
            return None
        place = slice(starts[i], ends[i], 1 if steps is None else steps[i])
        classes = np.take(classes, np.arange(classes.shape[axis])[place], axis=axis)
    return classes


def _averaged(classes: NDArray[np.int64], axes: Sequence[int]) -> NDArray[np.int64] | None:
    if any(_varies(classes, axis) for axis in axes):
        return None
    for axis in axes:
        classes = np.take(classes, [0], axis=axis)
    return classes


def _reduced(classes: NDArray[np.int64], step: Step) -> NDArray[np.int64] | None:
    axes = _axes(step)
    axes = tuple(range(classes.ndim)) if axes is None else axes
    found = _averaged(classes, axes)
    return found if found is None or step.given.get("keepdims", 1) else np.squeeze(found, axis=axes)


_MOVES: dict[str, Callable[[NDArray[np.int64], Step], NDArray[np.int64] | None]] = {
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Transpose": lambda classes, step: np.transpose(classes, step.given.get("perm")),
    "Squeeze": lambda classes, step: np.squeeze(classes, axis=_axes(step)),
    "Unsqueeze": lambda classes, step: np.expand_dims(classes, _axes(step) or ()),
    "Gather": _gathered,
    "Slice": _sliced,
    "ReduceMean": _reduced,
    "GlobalAveragePool": lambda classes, step: _averaged(classes, range(2, classes.ndim)),
    "AveragePool": lambda classes, step: _averaged(classes, range(2, classes.ndim)),
}
PASSED = frozenset(_MOVES) | _UNTOUCHED
# Of these the shape of what enters matters.
SHAPED = frozenset(_MOVES) | {"Softmax", "LogSoftmax"} | _ANSWERS
