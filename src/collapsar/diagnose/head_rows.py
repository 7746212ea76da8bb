"""Rows of a head as they lie on disk: numbers that numpy has not are widened as they are read.

Example:
    >>> halves = np.array([[0x3F80, 0x4000]], dtype=np.uint16)  # 1 and 2 in bfloat16
    >>> StoredRows(halves, "BF16")[0:1].tolist()
    [[1.0, 2.0]]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["STORAGE", "StoredRows", "widened"]

# How each kind of number of safetensors is stored.
STORAGE: dict[str, Any] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"), "I8": np.dtype("i1"), "U8": np.dtype("u1"),
    "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"), "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"), "U64": np.dtype("<u8"), "BOOL": np.dtype("?"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class StoredRows:
    """A matrix, maybe mapped from disk, whose rows are handed out as float32 (float64 as it is).

    Attributes:
        stored: shape (K, d), or (d, K) if ``columns``.
        kind: the name of its numbers in safetensors.
        columns: whether a class is a column of what is stored.
        factor: shape (K,) or (), what the rows are multiplied by: scales of quantised numbers.
        zero: shape (K,) or (), what is subtracted before.
    """

    stored: NDArray
    kind: str
    columns: bool = False
    factor: Any = None
    zero: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """(K, d)."""
        rows, columns = self.stored.shape
        return (columns, rows) if self.columns else (rows, columns)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray:
        rows = widened(self.stored[:, key].T if self.columns else self.stored[key], self.kind)
        if self.zero is not None:
            rows = rows - _column(self.zero, key)
        return rows if self.factor is None else rows * _column(self.factor, key)


def _column(values: Any, key: Any) -> NDArray:
    array = np.asarray(values, dtype=np.float32)
    return array if array.ndim == 0 else array[key][:, None]


def widened(numbers: NDArray, kind: str) -> NDArray:
    """The numbers as float32, or float64 where they are that."""
    if kind == "F64":
        return np.asarray(numbers, dtype=np.float64)
    if kind == "BF16":
        return (np.asarray(numbers).astype(np.uint32) << 16).view(np.float32)
    if kind.startswith("F8"):
        return _eights(kind)[np.asarray(numbers)]
    return np.asarray(numbers, dtype=np.float32)


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
