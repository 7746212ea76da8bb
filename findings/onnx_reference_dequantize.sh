#!/bin/sh
# onnx 1.23.2, onnx.reference.ReferenceEvaluator.
# Expected: it runs DequantizeLinear in a valid model of opset 17, whose definition of that operator is version 13
#   (the operator exists since opset 10), as it does in a model of opset 19.
# Seen: opset 17 is refused with a RuntimeError; versions before 19 are not implemented.
# In Collapsar: `collapsar audit` dequantises heads itself.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.2
"$folder/venv/bin/python" - <<'PY'
import numpy as np
from onnx import TensorProto, checker, helper
from onnx.reference import ReferenceEvaluator

node = helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["y"])
values = [
    helper.make_tensor_value_info("x", TensorProto.INT8, [3]),
    helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
    helper.make_tensor_value_info("zero", TensorProto.INT8, []),
]
graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])])
inputs = {"x": np.array([1, 2, 3], np.int8), "scale": np.float32(0.5), "zero": np.int8(1)}
seen = {}
for opset in (17, 19):
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model, full_check=True)
    try:
        seen[opset] = ReferenceEvaluator(model).run(None, inputs)[0].tolist()
    except Exception as error:
        seen[opset] = type(error).__name__ + ": " + str(error)[:120]
    print(opset, seen[opset])
assert seen[19] == [0.0, 0.5, 1.0]
assert isinstance(seen[17], str), "opset 17 now runs: this finding is out of date"
PY
