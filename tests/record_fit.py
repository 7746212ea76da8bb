"""Whether a record is what its type in ``core.record_types`` says: the keys, at any depth, and the kinds of values."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from collapsar.core import record_types as rt

# The JSON of dataclasses, of which the types name the keys that other rooms read.
OPEN = {
    *(rt.LossRecord, rt.SeparationRecord, rt.StandingsRecord, rt.KnownRecord, rt.ForcesRecord, rt.EffectiveRecord),
    *(rt.DistanceRecord, rt.ModelFitRecord, rt.FitRecord, rt.SharedRecord, rt.CountEffectRecord),
    *(rt.PhaseConfigRecord, rt.ModelPhaseRecord, rt.CurveRecord),
}


def misfits(value: Any, kind: Any, name: str = "record", *, more: bool = False) -> Iterator[str]:
    """What does not fit, with its place; ``more`` allows other keys in the record itself."""
    inner = get_args(kind)
    if kind is Any:
        return
    if get_origin(kind) in (Union, UnionType):
        found = [list(misfits(value, one, name)) for one in inner]
        yield from [] if [] in found else max(found, key=lambda those: max(map(len, those)))  # the deepest is meant
    elif get_origin(kind) is Literal:
        yield from [] if value in inner else [f"{name} is {value!r}"]
    elif get_origin(kind) is list and isinstance(value, list):
        for i, item in enumerate(value):
            yield from misfits(item, inner[0], f"{name}[{i}]")
    elif get_origin(kind) is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from misfits(item, inner[1], f"{name}.{key}")
    elif is_typeddict(kind) and isinstance(value, dict):
        hints = get_type_hints(kind)
        yield from (f"{name} lacks {key}" for key in kind.__required_keys__ - value.keys())
        yield from (f"{name} has {key}" for key in value.keys() - hints.keys() if not (more or kind in OPEN))
        for key in value.keys() & hints.keys():
            yield from misfits(value[key], hints[key], f"{name}.{key}")
    elif kind is float:
        yield from [] if type(value) in (int, float) or value == "inf" else [f"{name} is {value!r}"]
    elif type(value) is not (get_origin(kind) or kind) or is_typeddict(kind):
        yield f"{name} is {value!r}"
