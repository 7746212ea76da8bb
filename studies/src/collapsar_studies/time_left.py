"""The time left in a sweep, counted in training images: runs of one sweep may differ tenfold in length."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Progress = Callable[[int, int, float], None]
"""Called with (cells done, cells in all, estimated seconds left; NaN before anything has been trained)."""
Note = Callable[[str], None]
"""Called with one sentence about a file that is damaged or a run that broke off, and what is done about it."""


@dataclass(frozen=True)
class Live:
    """What a run reports while it trains, if it runs in the process that started the sweep.

    Attributes:
        tick: Called after each epoch with the key of the run, its finished epochs and all of its epochs.
        note: See ``Note``.
    """

    tick: Callable[[str, int, int], None] | None
    note: Note


class TimeLeft:
    """Reports how much is done, and how long the rest will take at the pace so far.

    Args:
        images: What each run shows to its network, by key.
        records: Keys of the runs that are there already.
        progress: See ``Progress``.
    """

    def __init__(self, images: Mapping[str, int], records: Iterable[str], progress: Progress | None) -> None:
        self.images = images
        self.done, self.progress, self.begun = set(records), progress, time.monotonic()
        self.gone: dict[str, float] = {key: self.images[key] for key in self.done}  # images that are no longer to do
        self.first: dict[str, float] = dict(self.gone)  # of these, what was done before this began
        self._tell()

    def tick(self, key: str, epoch: int, epochs: int) -> None:
        """An epoch of a run has ended, the first one seen perhaps not its first."""
        self.first.setdefault(key, self.images[key] * (epoch - 1) / epochs)
        self.gone[key] = self.images[key] * epoch / epochs
        self._tell()

    def ended(self, keys: Iterable[str]) -> None:
        """Runs have ended and are recorded."""
        for key in keys:
            self.first.setdefault(key, 0.0)
            self.gone[key] = self.images[key]
            self.done.add(key)
        self._tell()

    def _tell(self) -> None:
        if self.progress is None:
            return
        gone = sum(self.gone.values())
        here = gone - sum(self.first.values())
        pace = (time.monotonic() - self.begun) / here if here else math.nan
        self.progress(len(self.done), len(self.images), pace * (sum(self.images.values()) - gone))
