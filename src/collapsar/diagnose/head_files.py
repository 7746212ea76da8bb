"""The head of a model on disk: which tensor it is, and why.

Read without unpickling and, except ``.pt`` and ``.onnx``, with numpy alone; large tensors are mapped, not read.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from collapsar.core.checks import flat_bias
from collapsar.core.sentences import listed
from collapsar.diagnose.array_files import (
    ArrayEntry,
    Refused,
    WidenedRows,
    npy_array,
    numpy_arrays,
    safetensors_arrays,
    said_plainly,
)

# Usual names of heads, the most common first.
_HEAD_NAMES = re.compile(
    r"(^|[./])(lm_head|embed_out|classifier|classification_head|cls_head|score|head|heads\.head|fc|linear|out_proj|output"
    r"|output_layer|logits|last_linear|proj|classif)(\.\d+)?(\.base_layer|\.modules_to_save\.\w+)?$"
)
_EMBEDDING_NAMES = re.compile(r"(^|[./])(embed_tokens|wte|word_embeddings|tok_embeddings|shared|embed_in)$")
_LAYER = re.compile(r"[./](weight|kernel|embedding)$")  # a layer's matrix, with torch, Keras and flax
# The names of direction and length of a weight under torch's weight normalisation, new and old.
_WEIGHT_NORM = (("parametrizations.weight.original1", "parametrizations.weight.original0"), ("weight_v", "weight_g"))
_KINDS = ".npz, .npy, .safetensors, .pt, .pth, .bin or .onnx, or a folder of a model"


@dataclass(frozen=True, eq=False)
class HeadFile:
    """The head that was found.

    Attributes:
        weight: shape (K, d), maybe mapped from disk.
        bias: shape (K,), or None.
        name: of the tensor.
        reason: why it was chosen.
        class_names: K names, if the source has them.
        class_counts: shape (K,), if the source has them.
    """

    weight: Any
    bias: NDArray | None
    name: str
    reason: str
    class_names: tuple[str, ...] | None = None
    class_counts: NDArray | None = None


def read_head(source: str | os.PathLike[str], head: str | None = None, num_classes: int | None = None) -> HeadFile:
    """Find and open the head of a model.

    Args:
        source: an .npz, .npy (with its bias beside it, ``bias.npy``, if there is one), .safetensors, .pt, .pth, .bin or
            .onnx file, the index of a sharded .safetensors, or a folder that holds one of these.
        head: the name of the head's weight, or of its layer; by default it is found if unambiguous.
        num_classes: K, where known; tells the head in a file whose layers have no names, as a ``Sequential``'s.

    Raises:
        ValueError: no head or several candidates, or the source is damaged; the message says what to do.
        OSError: a file cannot be opened.
        ModuleNotFoundError: onnx or torch is not installed.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(f"`source` {path} does not exist; give {_KINDS}")
    if path.is_dir():
        path = _in_folder(path)
    kind = ".index.json" if path.name.endswith(".safetensors.index.json") else path.suffix.lower()
    readers: Mapping[str, Callable[[Path], dict[str, ArrayEntry]]] = {
        ".npz": _npz, ".npy": _npy, ".safetensors": safetensors_arrays, ".index.json": _sharded,
        ".pt": _torch, ".pth": _torch, ".bin": _torch,
    }  # fmt: skip
    if kind != ".onnx" and kind not in readers:
        raise ValueError(
            f"`source` must be {_KINDS}; got {path}: load it with the library that wrote it, and save the last layer's "
            "weight (K, d) and bias (K,) with numpy.savez('head.npz', weight=weight, bias=bias)"
        )
    with said_plainly(path, "encrypted, or not of the kind that its name says"):
        if kind == ".onnx":
            from collapsar.diagnose.head_onnx import read_onnx

            return read_onnx(path, head)
        return _chosen(path, readers[kind](path), head, num_classes)


def _in_folder(path: Path) -> Path:
    """The file of a folder that holds the head."""
    for pattern in ("*.safetensors.index.json", "model.safetensors", "*.safetensors", "*.onnx", "pytorch_model.bin",
                    "*.pt", "*.pth", "*.npz"):  # fmt: skip
        found = sorted(path.glob(pattern))
        if len(found) == 1 or (found and pattern.startswith("model")):
            return found[0]
        if found:
            raise ValueError(f"{path} has {len(found)} files {pattern}; name one: {listed((p.name for p in found), 6)}")
    raise ValueError(f"`source` {path} has no model; it must hold {_KINDS.rpartition(',')[0]}")


def _chosen(path: Path, tensors: dict[str, ArrayEntry], head: str | None, num_classes: int | None) -> HeadFile:
    adapters = {name for name in tensors if ".lora_" in name}
    tensors = {name: entry for name, entry in _acting(tensors).items() if name not in adapters}
    name, reason = _weight_name(path, tensors, head, num_classes)
    layer = _layer(name).removesuffix(".base_layer")
    if any(other.startswith(f"{layer}.lora_") for other in adapters):
        raise Refused(
            f"{path} has LoRA adapters on {layer!r}, which change its weight by a scale that is not in the file; merge "
            "them (model.merge_and_unload() of peft) and save the model again"
        )
    weight = tensors[name].read()
    if len(weight.shape) > 2:  # a convolution of one pixel
        weight = np.reshape(weight, weight.shape[:2])
    if name.endswith("kernel"):  # (d, K) with Keras and flax
        weight, reason = weight[:].T, f"{reason}, a kernel (d, K), transposed"
    bias = _beside(path, tensors, name, weight.shape)
    if bias is None and re.search(r"(^|[./])W$", name) and not path.name.endswith((".npz", ".npy")):
        # The losses of pytorch-metric-learning (ArcFaceLoss, NormalizedSoftmaxLoss) store theirs (d, K).
        rows, columns = (side == num_classes for side in weight.shape)
        if rows == columns:
            raise Refused(
                f"{path}: it is not known whether the classes of {name!r} {weight.shape} are its rows or, as in the "
                "losses of pytorch-metric-learning, its columns; give --counts or --class-names, or save it as "
                "'weight' with a row per class"
            )
        if columns:
            weight, reason = weight[:].T, f"{reason}, (d, K) turned"
    extra = {key: tensors[key].read() for key in ("class_names", "class_counts") if key in tensors}
    names = extra.get("class_names")
    return HeadFile(
        weight=weight,
        bias=None if bias is None else flat_bias(np.asarray(tensors[bias].read()[:], dtype=np.float64)),
        name=name,
        reason=reason + ("" if bias is None else f"; its bias is {bias!r}"),
        class_names=None if names is None else tuple(str(entry) for entry in np.ravel(names)),
        class_counts=extra.get("class_counts"),
    )


def _acting(tensors: Mapping[str, ArrayEntry]) -> dict[str, ArrayEntry]:
    """The effective weights: g v / ||v|| for weight normalisation, and PEFT's trained copies, not the originals."""
    found = dict(tensors)
    for name in tensors:
        if name.endswith(".original_module.weight"):
            stem = name.removesuffix(".original_module.weight")
            copies = [other for other in tensors if other.startswith(f"{stem}.modules_to_save.")]
            for old in (name, f"{stem}.original_module.bias") if copies else ():
                found.pop(old, None)
        for v_name, g_name in _WEIGHT_NORM:
            stem = name.removesuffix(v_name)
            if stem != name and (g := tensors.get(stem + g_name)) is not None:
                v = found.pop(name)
                found.pop(stem + g_name, None)
                found[f"{stem}weight"] = ArrayEntry("f", v.shape, v.num_bytes, partial(_normalised, g, v))
    return found


def _normalised(g: ArrayEntry, v: ArrayEntry) -> NDArray[np.float32]:
    lengths, rows = (np.asarray(entry.read()[:] if entry.shape else entry.read(), dtype=np.float32) for entry in (g, v))
    shared = tuple(i for i in range(rows.ndim) if not lengths.ndim or lengths.shape[i] == 1)
    return lengths * rows / np.sqrt(np.sum(rows**2, axis=shared, keepdims=True))


def _beside(path: Path, tensors: Mapping[str, ArrayEntry], name: str, shape: tuple[int, ...]) -> str | None:
    """The bias that goes with a weight."""
    own = re.sub(r"(weight|kernel)$", "bias", name) if name.endswith(("weight", "kernel")) else f"{name}_bias"
    for candidate in (own, "bias"):
        if candidate in tensors and tensors[candidate].shape in (shape[:1], (shape[0], 1), (1, shape[0])):
            return candidate
    if own in tensors:
        length = tensors[own].shape
        hint = "; store the weight with a row per class" if length == shape[1:] else ""
        raise Refused(f"{path}: {own!r} {length} does not fit {name!r} {shape}, a number for each row{hint}")
    return None


def _weight_name(
    path: Path, tensors: Mapping[str, ArrayEntry], head: str | None, num_classes: int | None
) -> tuple[str, str]:
    """The tensor to take, and why."""
    matrices = {
        name: t.shape for name, t in tensors.items() if min(t.shape, default=0) >= 1 and _is_head(name, t, head)
    }
    if head is not None:
        for candidate in (name for name in matrices if head in (name, _layer(name))):
            return candidate, "it was named"
        raise Refused(f"{path} has no matrix {head!r} or '{head}.weight'; it has {listed(sorted(matrices), 6)}")
    if not matrices:
        raise Refused(f"{path} has no head: it has no matrix (K, d), only {listed(sorted(tensors), 6) or 'nothing'}")
    for exact in ("weight", "head_weight", "head.weight"):
        if exact in matrices:
            return exact, f"it is called {exact!r}"
    if len(matrices) == 1:
        return next(iter(matrices)), "it is the only matrix"
    named = [n for n in matrices if _LAYER.search(n) and _HEAD_NAMES.search(_layer(n))]
    if len(named) > 1:  # the layer nearest to the model's surface
        depth = min(len(re.findall("[./]", n)) for n in named)
        named = [n for n in named if len(re.findall("[./]", n)) == depth]
        by_name = [n for n in named if re.search(r"(^|[./])(lm_head|classifier|score)$", _layer(n))]
        named = by_name if len(by_name) == 1 else named
    if len(named) == 1:
        return named[0], f"of {len(matrices)} matrices it is the one with a usual name of a head"
    embeddings = [n for n in matrices if _EMBEDDING_NAMES.search(_layer(n))]
    if not named and len(embeddings) == 1:
        return embeddings[0], "there is no separate head: it is the embedding that the model shares with its head"
    asked = sorted(named or matrices)
    fitting = [n for n in asked if matrices[n][n.endswith("kernel")] == num_classes]
    if len(fitting) == 1:
        return fitting[0], f"of {len(asked)} matrices it alone has as many rows as there are classes, {num_classes}"
    shown = listed([f"{n} {matrices[n]}" for n in asked], 6)
    raise Refused(f"{path} has {len(asked)} matrices that could be the head; name it with --head: {shown}")


def _layer(name: str) -> str:
    """The name of a matrix's layer."""
    return _LAYER.sub("", name)


def _is_head(name: str, tensor: ArrayEntry, head: str | None) -> bool:
    """Whether it can be a head: a matrix, or a convolution of one pixel with a usual name of a head, which is rare."""
    if len(tensor.shape) <= 2:
        return len(tensor.shape) == 2 and tensor.kind in "fiub"
    called = head in (name, _layer(name)) or _HEAD_NAMES.search(_layer(name)) is not None
    return called and set(tensor.shape[2:]) == {1}


def _npz(path: Path) -> dict[str, ArrayEntry]:
    arrays = {name: entry for name, entry in numpy_arrays(path).items() if name not in ("features", "labels")}
    return {n: e for n, e in arrays.items() if e.kind in "fiu" or (n, e.kind) == ("class_names", "U")}


def _npy(path: Path) -> dict[str, ArrayEntry]:
    """The file as a weight, and the bias beside it if there is one."""
    found = {"weight": npy_array(path)}
    for beside in (path.with_name("bias.npy"), path.with_name(path.stem.replace("weight", "bias") + ".npy")):
        if "bias" not in found and beside != path and beside.is_file():
            found["bias"] = npy_array(beside)
    return found


def _sharded(path: Path) -> dict[str, ArrayEntry]:
    index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    shards: dict[str, dict[str, ArrayEntry]] = {}
    found = {}
    for name, shard in index.items():
        if Path(shard).name != shard:
            raise Refused(f"{path} names a shard outside its folder: {shard!r}")
        if shard not in shards:
            file = path.with_name(shard)
            if not file.is_file():
                raise Refused(f"{path} names the shard {shard}, which is not beside it")
            shards[shard] = safetensors_arrays(file)
        if name not in shards[shard]:
            raise Refused(f"{path} says that {name!r} is in {shard}, but it is not there")
        found[name] = shards[shard][name]
    return found


def _torch(path: Path) -> dict[str, ArrayEntry]:
    import torch

    archive = zipfile.is_zipfile(path)
    if archive and any("/code/" in member for member in zipfile.ZipFile(path).namelist()):
        raise Refused(
            f"{path} is a TorchScript program, which is not run; save only its tensors: "
            f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'state.pt')"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        if "Unsupported" not in str(error) and "global" not in str(error).lower():
            raise
        raise Refused(f"{path} holds Python objects, which are not loaded; save only model.state_dict()") from None
    if isinstance(state, torch.Tensor):
        state = {"weight": state}
    if not isinstance(state, Mapping):
        raise Refused(f"{path} holds a {type(state).__name__}, not a state dict; save model.state_dict()")
    tensors = _tensors_of(state)
    packed = any("_packed_params" in str(name) for name in state)
    if packed and not any(len(value.shape) == 2 for value in tensors.values()):
        raise Refused(f"{path} holds layers that torch has quantised and packed; audit the model before that step")
    return {name: _of_torch(value) for name, value in tensors.items()}


def _tensors_of(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The tensors of a state dict, or of those that a checkpoint holds; several keep the checkpoint's names."""
    import torch

    flat = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if any(value.ndim == 2 for value in flat.values()):
        return flat
    parts = {str(key): _tensors_of(part) for key, part in state.items() if isinstance(part, Mapping)}
    parts = {key: part for key, part in parts.items() if any(value.ndim == 2 for value in part.values())}
    for key in ("state_dict", "model_state_dict", "model"):
        if key in parts:
            return parts[key]
    if len(parts) == 1:
        return next(iter(parts.values()))
    return flat | {f"{key}/{name}": value for key, part in parts.items() for name, value in part.items()}


def _of_torch(tensor: Any) -> ArrayEntry:
    import torch

    plain = tensor.detach()
    if plain.is_meta:
        raise Refused("a tensor of the file has no numbers (device meta); save the model after loading its weights")
    plain = plain if plain.layout == torch.strided else plain.to_dense()
    widened = {torch.bfloat16: ("BF16", torch.uint16), torch.float8_e4m3fn: ("F8_E4M3", torch.uint8),
               torch.float8_e5m2: ("F8_E5M2", torch.uint8)}  # fmt: skip

    def read() -> Any:
        if plain.dtype in widened and plain.ndim == 2:
            kind, bits = widened[plain.dtype]
            return WidenedRows(plain.contiguous().view(bits).numpy(), kind)
        return plain.float().numpy() if plain.dtype in widened else plain.numpy()

    return ArrayEntry("f", tuple(plain.shape), plain.nbytes, read)
