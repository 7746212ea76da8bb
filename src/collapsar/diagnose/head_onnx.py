"""The head of an ONNX model: the last linear step before an output, in any of the forms that exporters write it.

Gemm with either transpose, MatMul and Add, a 1 × 1 Conv, MatMulInteger behind DynamicQuantizeLinear, and the
LinearClassifier of scikit-learn's exports; weights in initializers or Constant nodes, in the file or beside it,
quantised ones brought back to numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.diagnose.array_files import Refused
from collapsar.diagnose.head_files import HeadFile

# Between the head and an output these keep the logits, or change only the place of the axes.
_PASSED = frozenset(
    {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Dropout", "Gather", "Slice"}
    | {"GlobalAveragePool", "AveragePool", "ReduceMean"}
)
# These keep the order of the classes alone: what scales their output scales no logit.
_ORDER_KEPT = frozenset(
    {"Softmax", "LogSoftmax", "Sigmoid", "Clip", "ArgMax", "TopK", "Normalizer", "ZipMap", "ArrayFeatureExtractor"}
)
_LINEAR = frozenset({"Gemm", "MatMul", "Conv", "MatMulInteger", "DynamicQuantizeMatMul", "FusedMatMul"})


class _Graph:
    """The model's nodes by what they make, and its constants."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.folder = folder
        self.outputs = [output.name for output in model.graph.output]
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}

    def constant(self, name: str) -> NDArray | None:
        """The value of a tensor that no input changes."""
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
            return _dequantised(first, parts[1], parts[2] if len(parts) > 2 else None, given.get("axis", 1))
        if node.op_type == "Reshape" and parts[1] is not None:
            return first.reshape([first.shape[i] if n == 0 else n for i, n in enumerate(parts[1].tolist())])
        return np.squeeze(first) if node.op_type == "Squeeze" else first

    def _array(self, tensor: Any) -> NDArray:
        from onnx import numpy_helper

        array = numpy_helper.to_array(tensor, str(self.folder))
        plain = array.dtype.kind in "iub" or array.dtype in (np.float32, np.float64)
        return array if plain else array.astype(np.float32)  # float16, bfloat16 and 8-bit floats


def read_onnx(path: Path, head: str | None) -> HeadFile:
    """Open the head of an ONNX model, by the name of its weight, of its node or of an output where it is not clear.

    Raises:
        ValueError: no head, several, or a damaged file.
        ModuleNotFoundError: onnx is not installed.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError:
        raise Refused(f"{path} is truncated, encrypted or no ONNX model; export it again") from None
    if not model.graph.node:
        raise Refused(f"{path} is truncated or no ONNX model: it holds no graph; export it again")
    graph = _Graph(model, path.parent)
    try:
        found = {output: item for output in graph.outputs if (item := _head_of(graph, output)) is not None}
    except (onnx.checker.ValidationError, FileNotFoundError) as error:
        raise Refused(f"{path} keeps its weights in another file, which cannot be read: {error}") from None
    unique = {
        item.name: item
        for output, item in found.items()
        if head is None or head in (item.name, item.name.removesuffix(".weight"), output)
    }
    if head is not None and not unique:
        raise Refused(f"{path} has no head {head!r}; it has {_shown(found.values()) or 'none that is linear'}")
    if not unique:
        makers = sorted({graph.maker[o].op_type for o in graph.outputs if o in graph.maker})
        raise Refused(f"{path} has no linear head: its outputs come from {', '.join(makers) or 'inputs'}")
    if len(unique) > 1:
        raise Refused(f"{path} has {len(unique)} heads; name one with --head: {_shown(found.values())}")
    (item,) = unique.values()
    return item


def _shown(found: Iterable[HeadFile]) -> str:
    return ", ".join(sorted({f"{item.name} {item.weight.shape}" for item in found})[:6])


def _head_of(graph: _Graph, output: str) -> HeadFile | None:
    """The linear step that an output comes from, walking back from it: logits = factor · (W h + b) + added."""
    name, factor, added = output, np.float32(1), None
    while name in graph.maker:
        node = graph.maker[name]
        if node.op_type in _LINEAR:
            return _linear(graph, node, output, factor, added)
        if node.op_type == "LinearClassifier":
            return _linear_classifier(node, output)
        if node.op_type in ("Add", "Sub", "Mul", "Div") and len(node.input) == 2:
            constants = [graph.constant(part) for part in node.input]
            place = 1 if constants[1] is not None else 0
            value = constants[place]
            if value is None and node.op_type == "Mul":  # the scale that quantisation takes out again
                place = 1 if _scale(graph, node.input[1]) is not None else 0
                value = _scale(graph, node.input[place])
            if value is None or (place == 0 and node.op_type in ("Sub", "Div")):
                return None
            if node.op_type in ("Mul", "Div"):
                factor = factor * (value if node.op_type == "Mul" else 1 / value)
            else:
                more = factor * (value if node.op_type == "Add" else -value)
                added = more if added is None else added + more
            name = node.input[1 - place]
        elif node.op_type in _PASSED:
            name = node.input[0]
        elif node.op_type in _ORDER_KEPT:
            if np.min(factor) <= 0:  # the order is turned round after it
                return None
            name, factor, added = node.input[-1 if node.op_type == "ArrayFeatureExtractor" else 0], np.float32(1), None
        else:
            return None
    return None


def _scale(graph: _Graph, name: str) -> NDArray | None:
    """The part of a dynamic scale that belongs to the weight: the other is taken out of the features again."""
    node = graph.maker.get(name)
    if node is None or node.op_type != "Mul":
        return None
    values = [graph.constant(part) for part in node.input]
    for value, other in ((values[0], node.input[1]), (values[1], node.input[0])):
        if value is not None and getattr(graph.maker.get(other), "op_type", "") == "DynamicQuantizeLinear":
            return value
    return None


def _linear(graph: _Graph, node: Any, output: str, factor: Any, added: NDArray | None) -> HeadFile | None:
    given, kind = attributes(node), node.op_type
    constants = [graph.constant(part) if part else None for part in node.input]
    second = constants[1] if len(constants) > 1 else None
    bias, W, name = None, None, node.input[1] if len(node.input) > 1 else ""
    if kind == "Gemm" and second is not None:
        W = (second if given.get("transB") else second.T) * given.get("alpha", 1.0)
        bias = None if len(constants) < 3 or constants[2] is None else given.get("beta", 1.0) * constants[2]
    elif kind == "Conv" and second is not None and second.shape[2:] == (1,) * (second.ndim - 2):
        if given.get("group", 1) != 1:
            return None
        W, bias = second.reshape(second.shape[:2]), constants[2] if len(constants) > 2 else None
    elif kind == "MatMulInteger" and second is not None:
        W = _dequantised(second, np.float32(1), constants[3] if len(constants) > 3 else None, 1).T
    elif kind == "DynamicQuantizeMatMul" and second is not None:
        W = _dequantised(second, constants[2], constants[3] if len(constants) > 3 else None, 1).T
        bias = constants[4] if len(constants) > 4 else None
    elif kind in ("MatMul", "FusedMatMul"):
        if second is not None:
            W = second.T if not given.get("transB") else second
        elif constants and constants[0] is not None:
            W, name = constants[0], node.input[0]
    if W is None or W.ndim != 2 or min(W.shape) < 1:
        return None
    K = len(W)
    factors: NDArray[Any] = np.ravel(factor)
    W = np.asarray(W, dtype=np.float32) * (factors[:, None] if factors.size == K else factors)
    total = np.zeros(K)
    for part in (None if bias is None else np.ravel(bias) * factors, None if added is None else np.ravel(added)):
        if part is not None:
            total = total + part
    form = {"MatMul": "MatMul and Add", "Conv": "a 1 × 1 Conv"}.get(kind, kind) if added is not None else kind
    reason = f"{form}, the last linear step before the output {output!r}"
    return HeadFile(W, None if bias is None and added is None else total, name, reason)


def _linear_classifier(node: Any, output: str) -> HeadFile | None:
    """The rows of ai.onnx.ml's LinearClassifier, which carries its numbers and the names of its classes itself."""
    given = attributes(node)
    labels = given.get("classlabels_strings") or given.get("classlabels_ints") or []
    K = len(labels)
    numbers = np.asarray(given.get("coefficients", ()), dtype=np.float32)
    if K < 2 or not numbers.size or numbers.size % K or len(given.get("intercepts", ())) not in (0, K):
        return None
    W, bias = numbers.reshape(K, -1), np.asarray(given.get("intercepts") or np.zeros(K), dtype=np.float64)
    # Two classes with a sigmoid each, of s and of -s: the odds are those of a softmax over half the scores.
    if K == 2 and given.get("post_transform") == b"LOGISTIC" and np.array_equal(W[0], -W[1]):
        W, bias = W / 2, bias / 2
    names = tuple(label.decode() if isinstance(label, bytes) else str(label) for label in labels)
    plain = names == tuple(str(k) for k in range(K))
    reason = f"LinearClassifier, the last linear step before the output {output!r}"
    return HeadFile(W, bias, node.name or "LinearClassifier", reason, None if plain else names)


def _dequantised(values: NDArray, scale: Any, zero: NDArray | None, axis: int) -> NDArray:
    """(values − zero) · scale, each per tensor or along an axis."""

    def placed(part: Any) -> NDArray:
        part = np.asarray(part, dtype=np.float32)
        return (
            part.reshape([-1 if i == axis % values.ndim else 1 for i in range(values.ndim)]) if part.size > 1 else part
        )

    numbers = values.astype(np.float32)
    return (numbers if zero is None else numbers - placed(zero)) * placed(scale)


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes as Python values."""
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
