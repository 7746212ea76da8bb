"""Values to standard JSON and back: the one way in which every record is written and read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from collapsar.core.types import Record


class JsonValue:
    """A frozen dataclass that is compared by its JSON, because fields that hold arrays cannot be compared by ``==``."""

    def to_dict(self) -> Record:
        """The fields as JSON-able values."""
        return to_json(self)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(repr(self.to_dict()))


def to_json(value: Any) -> Any:
    """The value in a form that standard JSON can hold.

    Arrays, tensors and tuples become lists, numpy numbers Python numbers, dataclasses objects; NaN (not defined) is
    null, infinity the string "inf", as in ``lambda_b`` without a bias.

    Example:
        >>> import numpy as np
        >>> to_json({"Z": np.array([[1.0, np.nan]]), "lambda_b": np.inf, "n": np.int64(3)})
        {'Z': [[1.0, None]], 'lambda_b': 'inf', 'n': 3}
    """
    if type(value) is float:  # first, for lists of thousands; numpy's float64 is a float, too, and becomes one below
        return value if math.isfinite(value) else None if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if hasattr(value, "tolist") and not isinstance(value, type):  # numpy's arrays and numbers, torch's tensors
        kind = getattr(getattr(value, "dtype", None), "kind", "O")  # torch's types have none
        standard = kind in "biuU" or (kind == "f" and bool((abs(value) < math.inf).all()))
        return value.tolist() if standard else to_json(value.tolist())
    return value


def from_json(value: Any) -> Any:
    """Read back what :func:`to_json` wrote: null is NaN, "inf" is infinity. For records of numbers.

    Example:
        >>> from_json({"gap": None, "lambda_b": "inf", "name": "net"})
        {'gap': nan, 'lambda_b': inf, 'name': 'net'}
    """
    if isinstance(value, Mapping):
        return {key: from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if value is None:
        return math.nan
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value
