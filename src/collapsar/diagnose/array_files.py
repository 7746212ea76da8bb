"""Arrays in files, described before anything is read, without pickle: .npz, .npy and .safetensors, by numpy alone.

Example:
    >>> halves = np.array([[0x3F80, 0x4000]], dtype=np.uint16)  # 1 and 2 in bfloat16
    >>> WidenedRows(halves, "BF16")[0:1].tolist()
    [[1.0, 2.0]]
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

# How safetensors stores each type of number; types that numpy lacks are widened when read.
_STORAGE: dict[str, Any] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "I8": "i1", "U8": "u1",
    "I16": "<i2", "I32": "<i4", "I64": "<i8", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
}  # fmt: skip
_WIDENED = ("BF16", "F8_E4M3", "F8_E5M2")


class Refused(ValueError):  # noqa: N818 - a ValueError to the caller
    """The file is intact, but not what is needed: the message goes to the user unchanged."""


@dataclass(frozen=True)
class ArrayEntry:
    """One array of a file before it is read.

    Attributes:
        kind: numpy's letter for the type of its numbers: "f", "i", "u", "b"; "U" for text, "O" for objects.
        shape: of the array.
        num_bytes: its size.
        read: returns the array; or, for numbers of a type that numpy lacks, an object that returns its rows.
    """

    kind: str
    shape: tuple[int, ...]
    num_bytes: int
    read: Callable[[], Any]


@contextmanager
def said_plainly(file: Path, instead: str) -> Iterator[None]:
    """Turn whatever zipfile, json, pickle, numpy or onnx raise on a damaged file into one ValueError.

    Args:
        file: the file.
        instead: what it may be if it is not damaged.
    """
    try:
        yield
    except Refused as error:
        raise ValueError(str(error)) from None
    except (OSError, ModuleNotFoundError):  # a missing extra does not mean damage
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{file} is damaged or {instead} ({reason}); write it again") from None


def numpy_arrays(path: Path) -> dict[str, ArrayEntry]:
    """The arrays of an .npz, or of the .npy files of a folder, by name."""
    if path.is_dir():
        return {file.stem: npy_array(file) for file in sorted(path.glob("*.npy"))}
    found = {}
    with zipfile.ZipFile(path) as archive:
        for member in (member for member in archive.namelist() if member.endswith(".npy")):
            name = member.removesuffix(".npy")
            with archive.open(member) as stream:
                found[name] = _announced(stream, lambda name=name: np.load(path, allow_pickle=False)[name])
    return found


def npy_array(path: Path) -> ArrayEntry:
    """The array of an .npy file, which is mapped."""
    with path.open("rb") as stream:
        return _announced(stream, partial(np.load, path, mmap_mode="r", allow_pickle=False))


def _announced(stream: Any, read: Callable[[], Any]) -> ArrayEntry:
    version = npy.read_magic(stream)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = header(stream)
    kind = "O" if dtype.hasobject else dtype.kind
    # torch takes numbers in the machine's own byte order only
    return ArrayEntry(
        kind, shape, math.prod(shape) * dtype.itemsize, read if dtype.isnative else lambda: _native(read())
    )


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("="))


def safetensors_arrays(path: Path) -> dict[str, ArrayEntry]:
    """The tensors of a .safetensors file by name; large ones are mapped, not read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise Refused(f"{path} is damaged, truncated or not a .safetensors file: its header does not fit in it")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        (begin, end), kind, shape = entry["data_offsets"], entry["dtype"], tuple(entry["shape"])
        if 8 + length + end > size:
            raise Refused(f"{path} is truncated: {name!r} ends at byte {8 + length + end}, but the file at {size}")
        letter = "f" if kind in _WIDENED else np.dtype(_STORAGE[kind]).kind if kind in _STORAGE else "?"
        found[name] = ArrayEntry(letter, shape, end - begin, partial(_mapped, path, kind, shape, 8 + length + begin))
    return found


def _mapped(path: Path, kind: str, shape: tuple[int, ...], offset: int) -> Any:
    if not math.prod(shape):  # nothing can be mapped
        return np.zeros(shape, _STORAGE[kind])
    stored = np.memmap(path, dtype=_STORAGE[kind], mode="r", offset=offset, shape=shape)
    if kind not in _WIDENED:
        return stored
    return WidenedRows(stored, kind) if len(shape) == 2 else widened(stored, kind)


@dataclass(frozen=True, eq=False)
class WidenedRows:
    """A matrix of numbers of a type that numpy lacks, maybe mapped from disk, whose rows are returned as float32.

    Attributes:
        stored: shape (K, d), the bits.
        kind: the name of its numbers in safetensors.
    """

    stored: NDArray
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, d)."""
        return self.stored.shape

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, key: Any) -> NDArray:
        return widened(self.stored[key], self.kind)


def widened(bits: NDArray, kind: str) -> NDArray[np.float32]:
    """Numbers in bfloat16 or an 8-bit float as float32."""
    if kind == "BF16":
        return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)
    return _eights(kind)[np.asarray(bits)]


@cache
def _eights(kind: str) -> NDArray[np.float32]:
    """The value of each of the 256 codes of an 8-bit float (Micikevicius et al., "FP8 formats", 2022)."""
    exponent_bits, bias = (4, 7) if kind == "F8_E4M3" else (5, 15)
    mantissa_bits = 7 - exponent_bits
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    values = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - bias), fraction * 2.0 ** (1 - bias))
    if kind == "F8_E4M3":  # no infinity, one NaN of each sign
        values[(codes & 0x7F) == 0x7F] = np.nan
    else:
        top = exponent == 31
        values[top] = np.where(fraction[top] == 0, np.inf, np.nan)
    return (sign * values).astype(np.float32)
