"""What the two commands share: the option --json and what it prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from collapsar.core.records import to_json

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]


def print_json(record: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps(to_json(record), allow_nan=False))
