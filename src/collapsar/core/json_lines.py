"""Records as lines of JSON: one complete line each, appended at once, readable after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collapsar.core.records import to_json
from collapsar.core.types import Record


class JsonLines:
    """Appends records to a file, which may already hold the records of an interrupted run.

    A line that a crash left unfinished is cut off before the first record is added. The values are written as by
    ``core.records.to_json``: NaN is null, infinity "inf".

    Args:
        path: The file; it and its folder are created when the first record is written.

    Example:
        >>> log = JsonLines("records/log.jsonl")
        >>> log.append({"epoch": 1, "loss": float("nan")})
        >>> read_json_lines("records/log.jsonl")
        [{'epoch': 1, 'loss': None}]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._checked = False

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record as one line, in a single write."""
        if not self._checked:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._cut_unfinished_line()
            self._checked = True
        line = json.dumps(to_json(record), ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab", buffering=0) as file:
            file.write(line.encode())

    def _cut_unfinished_line(self) -> None:
        if self.path.exists():
            content = self.path.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self.path, content.rfind(b"\n") + 1)


def read_json_lines(path: str | os.PathLike[str]) -> list[Record]:
    """Return the complete records of a file that ``JsonLines`` wrote; a last line cut short by a kill is left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is not a JSON object, or the file is not text.
    """
    *lines, _ = Path(path).read_text(encoding="utf-8").split("\n")  # what follows the last newline is unfinished
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(  # noqa: TRY004 - about a file, not an argument
                f"line {number} of {path} is not a JSON object; the file is damaged"
            )
        records.append(record)
    return records
