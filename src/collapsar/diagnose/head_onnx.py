"""The head of an ONNX model: the last linear step before an output, in any form that exporters write.

The steps between the two are followed (``onnx_tail``): the rows are those of the output's classes, in its order.

Gemm with either transpose, MatMul and Add, a 1 × 1 Conv, MatMulInteger behind DynamicQuantizeLinear, and the
LinearClassifier of scikit-learn's exports; weights in initializers or Constant nodes, in the file or beside it,
dequantised if necessary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.diagnose.array_files import Refused
from collapsar.diagnose.head_files import HeadFile
from collapsar.diagnose.onnx_tail import ORDER_KEPT, PASSED, SHAPED, Step, Tail, follow, label_names

_LINEAR = frozenset({"Gemm", "MatMul", "Conv", "MatMulInteger", "DynamicQuantizeMatMul", "FusedMatMul"})


class _Graph:
    """The model's nodes by their outputs, and its constants."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.folder = folder
        self.outputs = [output.name for output in model.graph.output]
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        self.model = model

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of outputs, if they follow from the model; axes of free length count as 1 (the first) or 2."""
        from onnx import shape_inference

        with contextlib.suppress(shape_inference.InferenceError, ValueError):  # an unknown operator, or too large
            found = shape_inference.infer_shapes(self.model, data_prop=True).graph
            return {
                value.name: tuple(
                    axis.dim_value or min(i + 1, 2) for i, axis in enumerate(value.type.tensor_type.shape.dim)
                )
                for value in (*found.value_info, *found.output)
                if value.type.tensor_type.HasField("shape")
            }
        return {}

    def width(self, name: str) -> int:
        """The length of a tensor's last axis, if the model gives it; otherwise 0."""
        named = (value for value in (*self.model.graph.input, *self.model.graph.value_info) if value.name == name)
        axes = [axis.dim_value for value in named for axis in value.type.tensor_type.shape.dim]
        return axes[-1] if axes else 0

    def constant(self, name: str) -> NDArray | None:
        """The value of a tensor that does not depend on inputs."""
        if name in self.stored:
            return self._array(self.stored[name])
        node = self.maker.get(name)
        if node is None:
            return None
        given = attributes(node)
        if node.op_type == "Constant":
            if "value" in given:
                return self._array(given["value"])
            value = next((v for key, v in given.items() if key.startswith("value_")), None)
            return None if value is None else np.asarray(value)
        if node.op_type not in ("Identity", "Cast", "Transpose", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze"):
            return None
        parts = [self.constant(part) for part in node.input if part]
        first = parts[0] if parts else None
        if first is None or any(part is None for part in parts):
            return None
        if node.op_type == "Transpose":
            return np.transpose(first, given.get("perm"))
        if node.op_type == "DequantizeLinear":
            zero = parts[2] if len(parts) > 2 else None
            return _dequantised(first, parts[1], zero, given.get("axis", 1), given.get("block_size", 0))
        if node.op_type == "Reshape" and parts[1] is not None:
            return first.reshape([first.shape[i] if n == 0 else n for i, n in enumerate(parts[1].tolist())])
        return np.squeeze(first) if node.op_type == "Squeeze" else first

    def _array(self, tensor: Any) -> NDArray:
        from onnx import numpy_helper

        array = numpy_helper.to_array(tensor, str(self.folder))
        plain = array.dtype.kind in "iubO" or array.dtype in (np.float32, np.float64)
        return array if plain else array.astype(np.float32)  # float16, bfloat16 and 8-bit floats


def read_onnx(path: Path, head: str | None) -> HeadFile:
    """Open the head of an ONNX model; if it is ambiguous, by the name of its weight, its node or an output.

    Raises:
        ValueError: no head, several, or a damaged file.
        ModuleNotFoundError: onnx is not installed.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError:
        raise Refused(f"{path} is truncated, encrypted or not an ONNX model; export it again") from None
    if not model.graph.node:
        raise Refused(f"{path} is truncated or not an ONNX model: it has no graph; export it again")
    graph = _Graph(model, path.parent)
    try:
        found = {output: item for output in graph.outputs if (item := _head_of(graph, output)) is not None}
    except (onnx.checker.ValidationError, FileNotFoundError) as error:
        raise Refused(f"{path} keeps its weights in another file, which cannot be read: {error}") from None
    asked = [
        item
        for output, item in found.items()
        if head is None or head in (item.name, item.name.removesuffix(".weight"), output)
    ]
    # of several outputs of one head, the one that names the classes
    unique = {item.name: item for item in sorted(asked, key=lambda item: item.class_names is not None)}
    if head is not None and not unique:
        raise Refused(f"{path} has no head {head!r}; it has {_shown(found.values()) or 'none that is linear'}")
    if not unique:
        makers = sorted({graph.maker[o].op_type for o in graph.outputs if o in graph.maker})
        raise Refused(
            f"{path} has no linear head whose classes are those of an output: its outputs come from "
            f"{', '.join(makers) or 'inputs'}"
        )
    if len(unique) > 1:
        raise Refused(f"{path} has {len(unique)} heads; name one with --head: {_shown(found.values())}")
    (item,) = unique.values()
    return item


def _shown(found: Iterable[HeadFile]) -> str:
    return ", ".join(sorted({f"{item.name} {item.weight.shape}" for item in found})[:6])


def _head_of(graph: _Graph, output: str) -> HeadFile | None:
    """The linear step that an output comes from, walking back from it; None if there is none or classes are lost."""
    name = output
    path: list[tuple[Any, tuple[NDArray | None, ...]]] = []
    while name in graph.maker:
        node = graph.maker[name]
        if node.op_type in _LINEAR:
            return _linear(graph, node, output, path)
        if node.op_type == "LinearClassifier":
            return _linear_classifier(graph, node, output, path if name != node.output[0] else [])
        rounded = graph.maker.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if rounded is not None and rounded.op_type == "QuantizeLinear":  # static quantisation rounds the output
            name = rounded.input[0]
            continue
        constants = tuple(graph.constant(part) if part else None for part in node.input)
        if node.op_type in ("Add", "Sub", "Mul", "Div") and len(node.input) == 2:
            place = 1 if constants[1] is not None else 0
            value = constants[place]
            if value is None and node.op_type == "Mul":  # the scale that quantisation removes again
                place = 1 if _scale(graph, node.input[1]) is not None else 0
                value = _scale(graph, node.input[place])
            if value is None or (place == 0 and node.op_type in ("Sub", "Div")):
                return None
            path.append((node, (value,)))
            name = node.input[1 - place]
        elif node.op_type in PASSED or node.op_type in ORDER_KEPT:
            path.append((node, constants))
            name = node.input[-1 if node.op_type == "ArrayFeatureExtractor" else 0]
        else:
            return None
    return None


def _tail(graph: _Graph, shape: tuple[int, ...], axis: int, made: str, path: list[Any]) -> Tail | None:
    """What the path does to the classes along an axis of ``made``, which has this shape unless another is known."""
    number = shape[axis]
    shaped = any(node.op_type in SHAPED for node, _ in path)
    known = graph.shapes.get(made, shape) if shaped else shape
    known = shape if len(known) < len(shape) else known
    full = tuple(number if i == axis % len(known) else n for i, n in enumerate(known))
    along = tuple(number if i == axis % len(known) else 1 for i in range(len(known)))
    steps = [
        Step(node.op_type, attributes(node), constants, graph.shapes.get(node.output[0]) if shaped else None)
        for node, constants in reversed(path)
    ]
    return follow(np.broadcast_to(np.arange(number).reshape(along), full), steps, graph.opset)


def _scale(graph: _Graph, name: str) -> NDArray | None:
    """The part of a dynamic scale that belongs to the weight; the other part is removed from the features again."""
    node = graph.maker.get(name)
    if node is None or node.op_type != "Mul":
        return None
    values = [graph.constant(part) for part in node.input]
    for value, other in ((values[0], node.input[1]), (values[1], node.input[0])):
        if value is not None and getattr(graph.maker.get(other), "op_type", "") == "DynamicQuantizeLinear":
            return value
    return None


def _linear(graph: _Graph, node: Any, output: str, path: list[Any]) -> HeadFile | None:
    given, kind = attributes(node), node.op_type
    constants = [graph.constant(part) if part else None for part in node.input]
    second = constants[1] if len(constants) > 1 else None
    bias, W, name, last = None, None, node.input[1] if len(node.input) > 1 else "", 0
    if kind in ("Gemm", "Conv") and len(node.input) > 2 and node.input[2] and constants[2] is None:
        return None  # what is added depends on the input
    if kind == "Gemm" and second is not None:
        W = (second if given.get("transB") else second.T) * given.get("alpha", 1.0)
        bias = None if len(constants) < 3 or constants[2] is None else given.get("beta", 1.0) * constants[2]
    elif kind == "Conv" and second is not None and second.shape[2:] == (1,) * (second.ndim - 2):
        if given.get("group", 1) != 1:
            return None
        W, bias, last = second.reshape(second.shape[:2]), constants[2] if len(constants) > 2 else None, second.ndim - 2
    elif kind == "MatMulInteger" and second is not None:
        W = _dequantised(second, np.float32(1), constants[3] if len(constants) > 3 else None, 1).T
    elif kind == "DynamicQuantizeMatMul" and second is not None:
        W = _dequantised(second, constants[2], constants[3] if len(constants) > 3 else None, 1).T
        bias = constants[4] if len(constants) > 4 else None
    elif kind in ("MatMul", "FusedMatMul"):
        if second is not None:
            W = second.T if not given.get("transB") else second
        elif constants and constants[0] is not None:
            W, name, last = constants[0], node.input[0], 1
        W = None if W is None else W * given.get("alpha", 1.0)
    if W is None or W.ndim != 2 or min(W.shape) < 1:
        return None
    K = len(W)
    shape = (K, 1) if kind in ("MatMul", "FusedMatMul") and last else (1, K, *(2,) * last)
    tail = _tail(graph, shape, -1 - last, node.output[0], path)
    if tail is None:
        return None
    W = np.asarray(W, dtype=np.float32)[tail.rows] * tail.factor.astype(np.float32)[:, None]
    total: Any = None if bias is None else np.broadcast_to(np.ravel(bias), K)[tail.rows] * tail.factor
    if tail.added is not None:
        total = tail.added if total is None else total + tail.added
    form = {"MatMul": "MatMul and Add", "Conv": "a 1 × 1 Conv"}.get(kind, kind) if tail.added is not None else kind
    reason = f"{form}, the last linear step before the output {output!r}"
    if not np.array_equal(tail.rows, np.arange(K)):
        reason += f", which has {len(tail.rows)} of its {K} rows" if len(tail.rows) < K else ", in the output's order"
    if tail.sigmoid:
        reason += "; each class has a sigmoid of its own: the answer is taken to be the highest"
    return HeadFile(W, total, name, reason, tail.names)


def _linear_classifier(graph: _Graph, node: Any, output: str, path: list[Any]) -> HeadFile | None:
    """The rows of ai.onnx.ml's LinearClassifier, which carries its numbers and the names of its classes itself."""
    given = attributes(node)
    labels = given.get("classlabels_strings") or given.get("classlabels_ints") or []
    K = len(labels)
    numbers = np.asarray(given.get("coefficients", ()), dtype=np.float32)
    if K < 2 or not numbers.size or numbers.size % K or len(given.get("intercepts", ())) not in (0, K):
        return None
    if K == 2 and not given.get("intercepts") and numbers.size != K * graph.width(node.input[0]):
        return None  # one row of a score whose sign decides, or possibly that
    tail = _tail(graph, (1, K), -1, node.output[1], path) if path else None
    if path and (tail is None or np.ptp(tail.factor) or tail.added is not None):
        return None
    if tail is not None and len(tail.rows) > 1 and not np.array_equal(tail.rows, np.arange(K)):
        return None  # a single class, such as the probability of the second of two, is an answer of the whole head
    W, bias = numbers.reshape(K, -1), np.asarray(given.get("intercepts") or np.zeros(K), dtype=np.float64)
    # Two classes with a sigmoid each, of s and of -s: the odds are those of a softmax over half the scores.
    if K == 2 and given.get("post_transform") == b"LOGISTIC" and np.array_equal(W[0], -W[1]):
        W, bias = W / 2, bias / 2
    reason = f"LinearClassifier, the last linear step before the output {output!r}"
    return HeadFile(W, bias, node.name or "LinearClassifier", reason, label_names(labels))


def _dequantised(values: NDArray, scale: Any, zero: NDArray | None, axis: int, block: int = 0) -> NDArray:
    """(values − zero) · scale, each per tensor, along an axis, or for blocks of this length along it."""

    def placed(part: Any) -> NDArray:
        part = np.asarray(part, dtype=np.float32)
        if block and part.ndim == values.ndim:
            return np.take(np.repeat(part, block, axis=axis), np.arange(values.shape[axis]), axis=axis)
        along = [-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]
        return part.reshape(along) if part.size > 1 else part

    numbers = values.astype(np.float32)
    return (numbers if zero is None else numbers - placed(zero)) * placed(scale)


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes as Python values."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
