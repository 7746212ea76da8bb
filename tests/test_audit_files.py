"""Heads read from files of every kind: ONNX against its reference evaluator, numbers against torch, faults."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import softmax
from typer.testing import CliRunner

from audit_heads import planted
from collapsar.cli.app import app
from collapsar.diagnose.array_files import widened
from collapsar.diagnose.head_files import read_head

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402 - only where onnx is there
from onnx.reference import ReferenceEvaluator  # noqa: E402

K, D = 7, 5
RNG = np.random.default_rng(0)
W = RNG.standard_normal((K, D)).astype(np.float32)
B = RNG.standard_normal(K).astype(np.float32)
H = RNG.standard_normal((3, D)).astype(np.float32)


def model(nodes: list, constants: dict[str, np.ndarray], output: str = "y", shape: tuple = (None, D), opset: int = 21):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("h", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def node(kind: str, inputs: str, outputs: str, **given):
    return helper.make_node(kind, inputs.split(), outputs.split(), **given)


CODES = np.clip(np.round(W.T / 0.02), -128, 127).astype(np.int8)
VARIANTS = {
    "Gemm": ([node("Gemm", "h W b", "y")], {"W": W.T.copy(), "b": B}),
    "Gemm, transposed": ([node("Gemm", "h W b", "y", transB=1)], {"W": W, "b": B}),
    "Gemm, alpha and beta": ([node("Gemm", "h W b", "y", transB=1, alpha=2.0, beta=0.5)], {"W": W, "b": B}),
    "Gemm, no bias": ([node("Gemm", "h W", "y", transB=1)], {"W": W}),
    "MatMul and Add": ([node("MatMul", "h W", "u"), node("Add", "u b", "y")], {"W": W.T.copy(), "b": B}),
    "Add, bias first": ([node("MatMul", "h W", "u"), node("Add", "b u", "y")], {"W": W.T.copy(), "b": B}),
    "MatMul, Transpose of the weight": (
        [node("Transpose", "W", "V", perm=[1, 0]), node("MatMul", "h V", "u"), node("Add", "u b", "v"),
         node("Identity", "v", "y")],
        {"W": W, "b": B},
    ),
    "weight in a Constant node": (
        [helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(W.T.copy(), "c")),
         node("MatMul", "h W", "u"), node("Add", "u b", "y")],
        {"b": B},
    ),
    "temperature": (
        [node("MatMul", "h W", "u"), node("Add", "u b", "v"), node("Mul", "v s", "w"), node("Div", "w t", "y")],
        {"W": W.T.copy(), "b": B, "s": np.float32(3), "t": np.float32(2)},
    ),
    "MatMulInteger": (
        [node("DynamicQuantizeLinear", "h", "q s z"), node("MatMulInteger", "q W z wz", "i"),
         node("Cast", "i", "f", to=TensorProto.FLOAT), node("Mul", "s ws", "t"), node("Mul", "f t", "u"),
         node("Add", "u b", "y")],
        {"W": CODES, "wz": np.int8(3), "ws": np.float32(0.02), "b": B},
    ),
    "MatMulInteger, a scale per class": (
        [node("DynamicQuantizeLinear", "h", "q s z"), node("MatMulInteger", "q W z", "i"),
         node("Cast", "i", "f", to=TensorProto.FLOAT), node("Mul", "s ws", "t"), node("Mul", "f t", "u"),
         node("Add", "u b", "y")],
        {"W": CODES, "ws": np.linspace(0.01, 0.03, K).astype(np.float32), "b": B},
    ),
    "DequantizeLinear": (
        [node("DequantizeLinear", "W ws wz", "V", axis=1), node("MatMul", "h V", "u"), node("Add", "u b", "y")],
        {"W": CODES, "ws": np.linspace(0.01, 0.03, K).astype(np.float32), "wz": np.arange(K).astype(np.int8), "b": B},
    ),
    "DequantizeLinear, a scale per block": (
        [node("DequantizeLinear", "W ws wz", "V", axis=0, block_size=2), node("MatMul", "h V", "u"),
         node("Add", "u b", "y")],
        {"W": CODES, "ws": np.linspace(0.01, 0.03, 3 * K).astype(np.float32).reshape(3, K),
         "wz": np.arange(3 * K).astype(np.int8).reshape(3, K), "b": B},
    ),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_head_of_an_onnx_model_makes_its_logits(variant: str, tmp_path: Path) -> None:
    made = model(*VARIANTS[variant])
    onnx.save(made, tmp_path / "m.onnx")
    found = read_head(tmp_path / "m.onnx")
    (expected,) = ReferenceEvaluator(made).run(None, {"h": H})
    logits = H @ found.weight.T + (0 if found.bias is None else found.bias)
    # features are quantised too where the model does so: a step of 1/255 of their range
    assert logits == pytest.approx(np.asarray(expected), abs=0.2 if "Integer" in variant else 1e-5)
    behind = model([*VARIANTS[variant][0], node("Softmax", "y", "p")], VARIANTS[variant][1], output="p")
    onnx.save(behind, tmp_path / "s.onnx")
    assert np.array_equal(read_head(tmp_path / "s.onnx").weight, found.weight)


def linear_classifier(rows: np.ndarray, bias: np.ndarray, names: list, way: str):
    """A model as skl2onnx writes a logistic regression, up to its probabilities."""
    labels = {"classlabels_strings" if isinstance(names[0], str) else "classlabels_ints": names}
    numbers = {"coefficients": np.ravel(rows).tolist(), "intercepts": bias.tolist(), "post_transform": way}
    ml = {"domain": "ai.onnx.ml"}
    made = model(
        [
            node("LinearClassifier", "h", "label q", **labels, **numbers, **ml),
            node("Normalizer", "q", "y", norm="L1", **ml),
        ],
        {},
    )
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    return made


@pytest.mark.parametrize(("picked", "whole"), [(range(K), True), ([1], True), (range(1, 4), False), ([2, 1, 0], False)])
def test_classes_cut_out_of_a_linear_classifier_are_not_taken_for_all(picked, whole: bool, tmp_path: Path) -> None:
    made = linear_classifier(W, B, list(range(K)), "SOFTMAX")
    made.graph.node.append(node("Gather", "y i", "z", axis=1))
    made.graph.initializer.append(numpy_helper.from_array(np.array(picked), "i"))
    made.graph.output[0].name = "z"
    onnx.save(made, tmp_path / "m.onnx")
    if whole:
        assert np.array_equal(read_head(tmp_path / "m.onnx").weight, W)
    else:
        with pytest.raises(ValueError, match="no linear head whose classes"):
            read_head(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("rows", "bias", "names", "way"),
    [
        (W, B, list(range(K)), "SOFTMAX"),
        (W, B, [f"kind {k}" for k in range(K)], "SOFTMAX"),
        (np.stack([-W[0], W[0]]), np.array([-B[0], B[0]]), [3, 7], "LOGISTIC"),
    ],
    ids=["numbers", "names", "two classes"],
)
def test_the_linear_classifier_of_scikit_learn_exports_is_a_head(rows, bias, names, way: str, tmp_path: Path) -> None:
    made = linear_classifier(rows, bias, names, way)
    (expected,) = ReferenceEvaluator(made).run(["y"], {"h": H})
    made.graph.node.append(node("ZipMap", "y", "z", domain="ai.onnx.ml"))  # the evaluator has no ZipMap
    made.graph.output[0].name = "z"
    onnx.save(made, tmp_path / "m.onnx")
    found = read_head(tmp_path / "m.onnx")
    assert softmax(H @ found.weight.T + found.bias, axis=1) == pytest.approx(np.asarray(expected), abs=1e-6)
    assert found.class_names == (None if names == list(range(K)) else tuple(str(name) for name in names))


@pytest.mark.parametrize(("width", "read"), [(4, True), (8, False), (None, False)])
def test_one_row_of_a_linear_classifier_is_not_taken_for_two(width: int | None, read: bool, tmp_path: Path) -> None:
    rows = RNG.standard_normal((2, 4)).astype(np.float32)
    numbers = {"coefficients": np.ravel(rows).tolist(), "classlabels_ints": [0, 1], "post_transform": "NONE"}
    made = model([node("LinearClassifier", "h", "label y", domain="ai.onnx.ml", **numbers)], {}, shape=(None, width))
    onnx.save(made, tmp_path / "m.onnx")
    if read:
        np.testing.assert_array_equal(read_head(tmp_path / "m.onnx").weight, rows)
    else:
        with pytest.raises(ValueError, match="no linear head whose classes"):
            read_head(tmp_path / "m.onnx")


def constant(value: Any, kind: type = np.int64) -> np.ndarray:
    return np.array(value, dtype=kind)


SCALES = np.linspace(0.2, 3, K).astype(np.float32)
# What may follow the logits "u", shape (B, 7), and the constants of it.
FOLLOWED = {
    "percentages": ([node("Softmax", "u", "p"), node("Mul", "p c", "y")], {"c": constant(100, np.float32)}),
    "divided by the prior": ([node("Softmax", "u", "p"), node("Div", "p c", "y")], {"c": SCALES}),
    "log of the prior subtracted": ([node("LogSoftmax", "u", "p"), node("Sub", "p c", "y")], {"c": np.log(SCALES)}),
    "reordered": ([node("Gather", "u i", "y", axis=1)], {"i": constant([3, 1, 0, 2, -1, 5, 4])}),
    "padding cut": ([node("Slice", "u s e a", "y")], {"s": constant([0]), "e": constant([4]), "a": constant([1])}),
    "reversed, then scaled": (
        [node("Slice", "u s e a t", "v"), node("Mul", "v c", "y")],
        {"s": constant([-1]), "e": constant([-(2**62)]), "a": constant([-1]), "t": constant([-1]), "c": SCALES},
    ),
    "scaled, then some picked": (
        [node("Mul", "u c", "v"), node("Gather", "v i", "w", axis=1), node("Softmax", "w", "y")],
        {"c": SCALES, "i": constant([5, 2, 6])},
    ),
    "an axis put in and taken out": (
        [node("Unsqueeze", "u a", "v"), node("Transpose", "v", "w", perm=[1, 2, 0]), node("Softmax", "w", "p", axis=1),
         node("Squeeze", "p z", "y")],
        {"a": constant([0]), "z": constant([2])},
    ),
    "the last of several answers": (
        [node("Unsqueeze", "u a", "v"), node("Gather", "v i", "y", axis=1)], {"a": constant([1]), "i": constant(-1)},
    ),
    "one of two heads in one layer": (
        [node("Slice", "u s e a", "t"), node("Reshape", "t f", "v"), node("Gather", "v i", "y", axis=1)],
        {"s": constant([1]), "e": constant([7]), "a": constant([1]), "f": constant([0, 2, 3]), "i": constant(1)},
    ),
    "quantised as it comes out": (
        [node("QuantizeLinear", "u s z", "q"), node("DequantizeLinear", "q s z", "y")],
        {"s": constant(1e-3, np.float32), "z": constant(0, np.int16)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_classes_of_a_head_are_those_of_the_output(name: str, tmp_path: Path) -> None:
    nodes, constants = FOLLOWED[name]
    made = model([node("Gemm", "h W b", "u", transB=1), *nodes], {"W": W, "b": B, **constants})
    onnx.save(made, tmp_path / "m.onnx")
    found = read_head(tmp_path / "m.onnx")
    features = RNG.standard_normal((200, D)).astype(np.float32)
    (expected,) = ReferenceEvaluator(made).run(None, {"h": features})
    assert found.bias is not None
    answers = (features @ found.weight.T + found.bias).argmax(axis=1)
    np.testing.assert_array_equal(answers, np.asarray(expected).argmax(axis=1))


LOST = {
    "negated probabilities": ([node("Softmax", "u", "p"), node("Mul", "p c", "y")], {"c": constant(-1, np.float32)}),
    "sigmoids scaled by class": ([node("Sigmoid", "u", "p"), node("Mul", "p c", "y")], {"c": SCALES}),
    "a number per class added to probabilities": ([node("Softmax", "u", "p"), node("Add", "p c", "y")], {"c": SCALES}),
    "two answers of three classes": (
        [node("Slice", "u s e a", "t"), node("Reshape", "t f", "y")],
        {"s": constant([1]), "e": constant([7]), "a": constant([1]), "f": constant([0, 2, 3])},
    ),
    "picked by what came in": ([node("Gather", "u i", "y", axis=1)], {}),
    "cut logits": ([node("Clip", "u c d", "y")], {"c": constant(-1, np.float32), "d": constant(1, np.float32)}),
    "softmax over the samples": ([node("Softmax", "u", "y", axis=0)], {}),
    "classes averaged": ([node("ReduceMean", "u", "y", axes=[1])], {}),
}


@pytest.mark.parametrize("name", LOST)
def test_classes_that_cannot_be_followed_to_an_output_are_no_head(name: str, tmp_path: Path) -> None:
    nodes, constants = LOST[name]
    onnx.save(model([node("Gemm", "h W b", "u", transB=1), *nodes], {"W": W, "b": B, **constants}), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="no linear head whose classes"):
        read_head(tmp_path / "m.onnx")


def test_places_of_an_image_are_no_classes(tmp_path: Path) -> None:
    nodes = [node("Conv", "h W b", "u"), node("Flatten", "u", "y")]
    for places in (2, "n"):
        made = model(nodes, {"W": W[:, :, None, None].copy(), "b": B}, shape=(None, D, places, places))
        onnx.save(made, tmp_path / "m.onnx")
        with pytest.raises(ValueError, match="no linear head whose classes"):
            read_head(tmp_path / "m.onnx")


@pytest.mark.parametrize("labels", [["c", "a", "x"], [7, 2, 5], [0, 1, 2]])
def test_the_names_of_classes_are_those_that_an_output_gives(labels: list, tmp_path: Path) -> None:
    text = isinstance(labels[0], str)
    names = helper.make_tensor("names", TensorProto.STRING if text else TensorProto.INT64, [3], labels)
    nodes = [node("MatMul", "h W", "u"), node("ArgMax", "u", "i", axis=1),
             node("ArrayFeatureExtractor", "names i", "y", domain="ai.onnx.ml")]  # fmt: skip
    by_index = model(nodes, {"W": W[:3].T.copy()})
    by_index.graph.initializer.append(names)
    kind = "classlabels_strings" if text else "classlabels_int64s"
    zipped = model([nodes[0], node("ZipMap", "u", "y", domain="ai.onnx.ml", **{kind: labels})], {"W": W[:3].T.copy()})
    for made in (by_index, zipped):
        onnx.save(made, tmp_path / "m.onnx")
        found = read_head(tmp_path / "m.onnx")
        assert np.array_equal(found.weight, W[:3])
        assert found.class_names == (None if labels == [0, 1, 2] else tuple(str(label) for label in labels))


def test_a_convolution_of_one_by_one_is_a_head(tmp_path: Path) -> None:
    nodes = [node("Conv", "h W b", "u"), node("GlobalAveragePool", "u", "v"), node("Flatten", "v", "y")]
    made = model(nodes, {"W": W[:, :, None, None].copy(), "b": B}, shape=(None, D, 2, 2))
    onnx.save(made, tmp_path / "m.onnx")
    found = read_head(tmp_path / "m.onnx")
    image = RNG.standard_normal((3, D, 2, 2)).astype(np.float32)
    (expected,) = ReferenceEvaluator(made).run(None, {"h": image})
    assert image.mean(axis=(2, 3)) @ found.weight.T + found.bias == pytest.approx(np.asarray(expected), abs=1e-5)


def test_a_stored_convolution_of_one_by_one_is_a_head_where_it_is_called_one(tmp_path: Path) -> None:
    stored = {"classifier.weight": W[:, :, None, None], "classifier.bias": B, "neck.weight": W[:5, :, None, None]}
    save_file({name: torch.from_numpy(value.copy()) for name, value in stored.items()}, tmp_path / "m.safetensors")
    for head in (None, "classifier"):
        found = read_head(tmp_path / "m.safetensors", head)
        np.testing.assert_array_equal(found.weight, W)
        np.testing.assert_array_equal(found.bias, B)
    assert read_head(tmp_path / "m.safetensors", "neck").weight.shape == (5, D)


def test_weights_beside_an_onnx_file_are_read(tmp_path: Path) -> None:
    made = model(*VARIANTS["Gemm"])
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert np.array_equal(read_head(tmp_path / "m.onnx").weight, W)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ValueError, match="weights in another file"):
        read_head(tmp_path / "m.onnx")


def test_two_heads_of_an_onnx_model_are_a_question(tmp_path: Path) -> None:
    made = model(
        [node("Gemm", "h V", "x"), node("Gemm", "h W b", "y")], {"W": W.T.copy(), "V": W.T[:, :3].copy(), "b": B}
    )
    made.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, None))
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"2 heads; name one with --head: V \(3, 5\), W \(7, 5\)"):
        read_head(tmp_path / "m.onnx")
    assert read_head(tmp_path / "m.onnx", "V").weight.shape == (3, 5)
    assert read_head(tmp_path / "m.onnx", "y").weight.shape == (K, D)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_numbers_of_every_kind_are_those_of_torch(kind: torch.dtype, ending: str, tmp_path: Path) -> None:
    state = {"model.embed.weight": torch.randn(50, D), "lm_head.weight": torch.from_numpy(W.copy()).to(kind)}
    path = tmp_path / f"m.{ending}"
    if ending == "pt":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    found = read_head(path)
    assert found.name == "lm_head.weight"
    assert np.array_equal(found.weight[:], state["lm_head.weight"].float().numpy())
    assert np.array_equal(found.weight[np.array([3, 1])], state["lm_head.weight"].float().numpy()[[3, 1]])


@pytest.mark.parametrize(("name", "kind"), [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)])
def test_all_codes_of_eight_bits(name: str, kind: torch.dtype) -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(codes).view(kind).float().numpy()
    assert np.array_equal(widened(codes, name), expected, equal_nan=True)


def test_a_sharded_language_model_is_read_from_its_shards(tmp_path: Path) -> None:
    save_file({"model.embed_tokens.weight": torch.randn(K, D)}, tmp_path / "a.safetensors")
    save_file({"lm_head.weight": torch.from_numpy(W.copy()).bfloat16()}, tmp_path / "b.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for source in (tmp_path, tmp_path / "model.safetensors.index.json"):
        found = read_head(source)
        assert found.name == "lm_head.weight"
        assert isinstance(found.weight.stored, np.memmap)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names the shard b\.safetensors, which is not beside it"):
        read_head(tmp_path)


def test_the_embedding_is_the_head_where_they_are_tied(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": torch.randn(K, D), "model.layers.0.mlp.up_proj.weight": torch.randn(9, D)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = read_head(tmp_path)
    assert found.name == "model.embed_tokens.weight"
    assert "shares with its head" in found.reason


def test_several_candidates_are_a_question(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", first=W, second=W)
    with pytest.raises(ValueError, match=r"2 matrices that could be .* with --head: first \(7, 5\), second"):
        read_head(tmp_path / "m.npz")
    assert read_head(tmp_path / "m.npz", "second").name == "second"
    with pytest.raises(ValueError, match="no matrix 'third'"):
        read_head(tmp_path / "m.npz", "third")


def test_a_npy_has_its_bias_beside_it(tmp_path: Path) -> None:
    np.save(tmp_path / "weight.npy", W)
    np.save(tmp_path / "bias.npy", B)
    found = read_head(tmp_path / "weight.npy")
    assert np.array_equal(found.weight, W)
    assert found.bias == pytest.approx(B)


PLAIN = {
    "body.weight": torch.zeros(9, 9),
    "fc.weight": torch.from_numpy(W.copy()),
    "fc.bias": torch.from_numpy(B.copy()),
}
OTHER = {name: 2 * value for name, value in PLAIN.items()}


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"epoch": 3, "net": PLAIN},
        {"model_ema": PLAIN, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        {"algorithm": {"ema_state_dict": PLAIN}},
        {"state_dict": PLAIN, "ema": OTHER},  # the training's own
        PLAIN | {"fc.weight": PLAIN["fc.weight"].to_sparse()},
        {"module." + name: value for name, value in PLAIN.items()},
    ],
)
def test_a_checkpoint_is_opened_down_to_its_head(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    torch.save(checkpoint, tmp_path / "c.pt")
    found = read_head(tmp_path / "c.pt")
    assert np.array_equal(found.weight, W)
    assert found.bias == pytest.approx(B)


def test_two_models_of_a_checkpoint_are_a_question(tmp_path: Path) -> None:
    torch.save({"student": PLAIN, "teacher": OTHER}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"2 matrices.*student/fc.weight.*teacher/fc.weight"):
        read_head(tmp_path / "c.pt")
    assert np.array_equal(read_head(tmp_path / "c.pt", head="teacher/fc").weight, 2 * W)


@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("old", [True, False])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_normalised_weight_is_the_one_that_acts(dim: int | None, old: bool, tmp_path: Path) -> None:
    head = torch.nn.Linear(W.shape[1], W.shape[0])
    normalise = torch.nn.utils.weight_norm if old else torch.nn.utils.parametrizations.weight_norm
    model = torch.nn.Sequential(torch.nn.Linear(3, W.shape[1]), normalise(head, dim=dim))  # pyright: ignore[reportArgumentType]
    with torch.no_grad():  # away from where g is the length of v
        for name, parameter in head.named_parameters():
            if name != "bias":
                parameter.copy_(torch.rand_like(parameter) + 0.1)
    acting = model(torch.zeros(1, 3)) is not None and head.weight.detach().numpy()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    assert read_head(tmp_path / "c.pt", head="1").weight == pytest.approx(acting, rel=1e-6)


def test_peft_s_trained_copy_is_the_head_and_adapters_are_to_be_merged(tmp_path: Path) -> None:
    stem, w = "base_model.model.classifier", PLAIN["fc.weight"]
    copies = {f"{stem}.original_module.weight": 0 * w, f"{stem}.modules_to_save.default.weight": w}
    torch.save(copies | {f"{stem}.modules_to_save.default.bias": PLAIN["fc.bias"]}, tmp_path / "c.pt")
    found = read_head(tmp_path / "c.pt")
    assert np.array_equal(found.weight, W)
    assert found.bias == pytest.approx(B)
    adapted = {f"{stem}.base_layer.weight": w, f"{stem}.lora_A.default.weight": w[:4]}
    torch.save(PLAIN | adapted | {f"{stem}.lora_B.default.weight": w[:, :4]}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="merge_and_unload"):
        read_head(tmp_path / "c.pt", head=f"{stem}.base_layer")


@pytest.mark.parametrize(
    ("stored", "head"),
    [
        ({"kernel": W.T, "bias": B}, None),
        ({"params/Dense_1/kernel": W.T, "params/Dense_1/bias": B, "params/Dense_0/kernel": H.T}, "params/Dense_1"),
        ({"classifier.kernel": W.T, "classifier.bias": B, "encoder.kernel": H.T, "wte.embedding": H}, None),
    ],
)
def test_a_kernel_of_keras_or_flax_has_a_column_per_class(stored: dict, head: str | None, tmp_path: Path) -> None:
    save_file({name: torch.from_numpy(value.copy()) for name, value in stored.items()}, tmp_path / "m.safetensors")
    found = read_head(tmp_path / "m.safetensors", head)
    assert found.bias is not None
    np.testing.assert_array_equal(found.weight, W)
    np.testing.assert_array_equal(found.bias, B.astype(float))
    assert "a kernel (d, K), transposed" in found.reason


@pytest.mark.parametrize("name", ["W", "loss.W"])
def test_a_matrix_that_may_have_a_column_per_class_needs_the_number_of_classes(name: str, tmp_path: Path) -> None:
    # ArcFaceLoss(num_classes=K, embedding_size=D).state_dict() of pytorch-metric-learning 2.9.0 is {"W": (D, K)}.
    torch.save({name: torch.from_numpy(W.T.copy())}, tmp_path / "arcface.pt")
    torch.save({name: torch.from_numpy(W)}, tmp_path / "own.pt")
    for num_classes in (None, K + D):
        with pytest.raises(
            ValueError, match=rf"'{name}' \({D}, {K}\) are its rows or.*, or save it as 'weight' with a row"
        ):
            read_head(tmp_path / "arcface.pt", name, num_classes)
    for file in ("arcface.pt", "own.pt"):
        np.testing.assert_array_equal(read_head(tmp_path / file, name, K).weight, W)


def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(D, K), torch.zeros(1, D)), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"a TorchScript program.*torch\.jit\.load\('m\.pt'\)\.state_dict\(\)"):
        read_head(tmp_path / "m.pt")


def test_what_torch_has_packed_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save({"fc.scale": torch.ones(()), "fc._packed_params._packed_params": (W.tolist(), None)}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="quantised and packed"):
        read_head(tmp_path / "c.pt")


class Unsafe:
    def __reduce__(self):
        return print, ("this must not run",)


def faults(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no heads, and what is said of them."""
    save_file({"fc.weight": torch.from_numpy(W.copy())}, tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-20])
    (tmp_path / "short.safetensors").write_bytes(whole[:12])
    (tmp_path / "noise.safetensors").write_bytes(bytes(RNG.integers(0, 256, 200, dtype=np.uint8)))
    onnx.save(model(*VARIANTS["Gemm"]), tmp_path / "whole.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "whole.onnx").read_bytes()[:-30])
    (tmp_path / "empty.onnx").write_bytes(b"")
    onnx.save(model([node("Relu", "h", "y")], {}), tmp_path / "relu.onnx")
    np.savez(tmp_path / "vectors.npz", bias=B)
    np.savez(tmp_path / "nan.npz", weight=np.where(W > 1, np.nan, W))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "nan.npz").read_bytes()[:100])
    np.savez(tmp_path / "bias.npz", weight=W, bias=B[:-1])
    np.savez(tmp_path / "columns.npz", weight=W.T, bias=B)
    locked = bytearray((tmp_path / "nan.npz").read_bytes())
    for sign, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the bit that says encrypted
        locked[locked.index(sign) + flag] |= 1
    (tmp_path / "locked.npz").write_bytes(locked)
    torch.save({"weight": torch.from_numpy(W.copy()), "more": Unsafe()}, tmp_path / "unsafe.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "model.txt").write_text("text")
    (tmp_path / "folder").mkdir()
    return {
        "cut.safetensors": (tmp_path / "cut.safetensors", "truncated"),
        "short.safetensors": (tmp_path / "short.safetensors", "truncated"),
        "noise.safetensors": (tmp_path / "noise.safetensors", "truncated or not a .safetensors file"),
        "cut.onnx": (tmp_path / "cut.onnx", "truncated"),
        "empty.onnx": (tmp_path / "empty.onnx", "has no graph"),
        "relu.onnx": (tmp_path / "relu.onnx", "those of an output: its outputs come from Relu"),
        "vectors.npz": (tmp_path / "vectors.npz", "it has no matrix (K, d), only bias"),
        "nan.npz": (tmp_path / "nan.npz", "`weight` must be finite; row"),
        "cut.npz": (tmp_path / "cut.npz", "damaged"),
        "bias.npz": (tmp_path / "bias.npz", "'bias' (6,) does not fit 'weight' (7, 5), a number for each row"),
        "columns.npz": (tmp_path / "columns.npz", "store the weight with a row per class"),
        "locked.npz": (tmp_path / "locked.npz", "encrypted"),
        "unsafe.pt": (
            tmp_path / "unsafe.pt",
            "holds Python objects, which are not loaded; save only model.state_dict()",
        ),
        "list.pt": (tmp_path / "list.pt", "holds a list, not a state dict"),
        "model.txt": (tmp_path / "model.txt", "`source` must be"),
        "folder": (tmp_path / "folder", "has no model"),
        "nothing": (tmp_path / "nothing", "does not exist"),
    }


def test_a_fault_is_one_line_and_exit_code_two(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    from collapsar.cli import main

    for name, (path, words) in faults(tmp_path).items():
        monkeypatch.setattr("sys.argv", ["collapsar", "audit", str(path)])
        with pytest.raises(SystemExit) as stopped:
            main()
        said = capsys.readouterr()
        assert stopped.value.code == 2, name
        assert said.out == "", name
        assert words in said.err, (name, said.err)
        assert said.err.count("\n") == 1, name


def test_the_command_says_the_sentence_and_gates(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    rows = np.vstack([W, W[3:4]])
    np.savez(tmp_path / "m.npz", weight=rows)
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in "abc defg"), encoding="utf-8")
    (tmp_path / "counts.txt").write_text("9 9 9 1 9 9 9 1".replace(" ", "\n"))
    np.savez(tmp_path / "f.npz", features=H, labels=np.array([3, 7, 0]))
    arguments = ["audit", str(tmp_path / "m.npz"), "--classes", str(tmp_path / "names.txt"), "--counts",
                 str(tmp_path / "counts.txt"), "--features", str(tmp_path / "f.npz")]  # fmt: skip
    said = CliRunner().invoke(app, [*arguments, "--json"])
    record = json.loads(said.stdout)
    assert said.exit_code == 0
    assert record["dead"] == [3, 7]
    assert record["class_names"][3] == " "
    assert record["counts"]["dies_below"] == 9
    assert [row["class"] for row in record["recalls"]["dead"]] == [3, 7]
    written = ["9x3,1,9x3,1" if part.endswith("counts.txt") else part for part in arguments]
    assert json.loads(CliRunner().invoke(app, [*written, "--json"]).stdout)["counts"] == record["counts"]
    nowhere = CliRunner().invoke(app, [*arguments, "--html", str(tmp_path / "no" / "audit.html")])
    assert f"there is no folder {tmp_path / 'no'}" in str(nowhere.exception)
    told = CliRunner().invoke(app, [*arguments, "--max-dead", "1"])
    assert told.exit_code == 1
    assert told.stdout.startswith("2 of 8 classes are dead")
    page = tmp_path / "audit.html"
    assert CliRunner().invoke(app, [*arguments, "--max-dead", "2", "--html", str(page)]).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "2 of 8 classes are dead" in text
    assert "<svg" in text
    assert "shares a row" in text


def test_features_for_an_audit_are_read_as_for_a_diagnosis(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    rows, names = np.vstack([W, W[3:4]]), [f"kind {k}" for k in range(8)]
    np.savez(tmp_path / "m.npz", weight=rows)
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names))
    labels = np.array([3, 7, 0])
    folder = tmp_path / "samples"
    folder.mkdir()
    np.save(folder / "features.npy", H)
    np.save(folder / "labels.npy", np.array(names)[labels])
    save_file({"features": torch.from_numpy(H), "labels": torch.from_numpy(labels)}, tmp_path / "f.safetensors")
    np.savez(tmp_path / "f.npz", features=H, labels=np.eye(8)[labels])
    told = []
    for samples in (folder, tmp_path / "f.safetensors", tmp_path / "f.npz"):
        arguments = ["audit", str(tmp_path / "m.npz"), "--classes", str(tmp_path / "names.txt"), "--json"]
        said = CliRunner().invoke(app, [*arguments, "--features", str(samples)])
        told.append(json.loads(said.stdout)["recalls"])
    assert [row["class"] for row in told[0]["dead"]] == [3, 7]
    assert told == [told[0]] * 3


def test_counts_of_an_audit_are_read_from_labels_by_name_or_number(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from collapsar.cli.app import app

    names, n = ["owl", "ant", "eel", "bee"], [3, 9, 0, 12]  # no sample shows an eel
    np.savez(tmp_path / "m.npz", weight=np.eye(4), class_names=names)
    (tmp_path / "names.txt").write_text("\n".join(names))
    labels = np.repeat(np.arange(4), n)
    (tmp_path / "words.txt").write_text("\n".join(names[k] for k in labels))
    np.save(tmp_path / "numbers.npy", labels)
    (tmp_path / "floats.txt").write_text("\n".join(f"{count}.0" for count in n))  # a number for each class
    np.savetxt(tmp_path / "digits.txt", n)
    common = ["audit", str(tmp_path / "m.npz"), "--class-names", str(tmp_path / "names.txt"), "--json", "--counts"]
    for file in ("words.txt", "numbers.npy", "floats.txt", "digits.txt"):
        assert json.loads(CliRunner().invoke(app, [*common, str(tmp_path / file)]).stdout)["class_counts"] == n
    (tmp_path / "words.txt").write_text("\n".join(["owl"] * 5 + ["cow"] * 5))
    with pytest.raises(ValueError, match="'cow' is not the name of one of the 4 classes"):
        CliRunner().invoke(app, [*common, str(tmp_path / "words.txt")], catch_exceptions=False)


def test_the_picture_marks_every_dead_class_once() -> None:
    import collapsar as cs
    from collapsar.report import audit_figure
    from collapsar.report.audit import row_lengths
    from collapsar.report.style import styled

    W, b, where = planted(np.random.default_rng(3), 600, 48, 8)
    record = cs.audit(W, b, class_counts=np.arange(600)).to_dict()
    figure = audit_figure(record)
    with styled():
        drawn = row_lengths(record, figure.add_subplot())
    assert drawn["alive"] == 600 - len(record["dead"])
    assert sum(drawn.values()) == 600
    assert drawn["shares a row"] == 3 * 8  # identical, near, and the shrunk ones lie together
    assert drawn["as initialised"] == 8
    assert len(where["inside"]) <= drawn["never the answer"]
    few = cs.audit(np.eye(5), class_names=["ant", "bee", "cat", "dog", "eel"]).to_dict()
    (ax,) = audit_figure(few).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == few["class_names"]


def test_the_number_of_classes_tells_the_head_of_a_sequential(tmp_path: Path) -> None:
    """Layers called 0, 2 and 4: the one with a row for each class is the head, where another has not as many."""
    nn = torch.nn
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    path, labels = tmp_path / "model.pt", tmp_path / "labels.txt"
    torch.save(model.state_dict(), path)
    labels.write_text("\n".join(str(k) for k in [0] * 20 + [1] * 9 + [2] * 5))
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\n")
    for more in (["--counts", labels], ["--class-names", tmp_path / "names.txt"]):
        out = CliRunner().invoke(app, ["audit", str(path), *map(str, more)])
        assert out.exit_code == 0
        assert "4.weight (3, 8): of 3 matrices it alone has as many rows as there are classes, 3" in out.output
    assert read_head(path, num_classes=3).weight.shape == (3, 8)
    assert read_head(path, num_classes=8).name == "2.weight"
    for K in (None, 5):
        with pytest.raises(ValueError, match="3 matrices that could be the head"):
            read_head(path, num_classes=K)
