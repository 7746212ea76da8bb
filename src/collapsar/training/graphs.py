"""Many small steps on one GPU: a step launched as a whole, and several runs that take turns on the card."""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# How many steps of each kind are made before one is recorded: they create momentum, workspaces and plans, which a
# recording must find in place.
_PLAIN_STEPS = 3

Step = Callable[[Tensor, Hashable], None]
Recorder = Callable[[Callable[[], None]], Callable[[], object]]
"""Records what a call does on the device without doing it; calling the result does it."""


class RecordedSteps:
    """A training step that is recorded once and then replayed with one launch.

    A recording holds the addresses and numbers of its step. The rows are copied to a fixed place before each replay;
    another setting, or another number of rows, needs another recording. Those of earlier settings are dropped. If
    recording fails, a warning says so and steps are made without it.

    Args:
        step: Makes one step on the images numbered ``rows``, shape (B,), at a setting.
        record: See ``Recorder``.
    """

    def __init__(self, step: Step, record: Recorder) -> None:
        self._step, self._record = step, record
        self._setting: Hashable = None
        self._made: dict[int, int] = {}
        self._recorded: dict[int, tuple[Tensor, Callable[[], object]]] = {}

    def __call__(self, rows: Tensor, setting: Hashable) -> None:
        """Make one step; the rows are on the device, and equal settings mean that only the rows have changed."""
        if setting != self._setting:
            self._forget(rows.device)
            self._setting = setting
        size = len(rows)
        if self._made.get(size, 0) < _PLAIN_STEPS:
            self._made[size] = self._made.get(size, 0) + 1
            self._step(rows, setting)
            return
        if size not in self._recorded:
            self._recorded[size] = self._recording(rows.clone(), setting)
        place, replay = self._recorded[size]
        place.copy_(rows)
        replay()

    def _recording(self, place: Tensor, setting: Hashable) -> tuple[Tensor, Callable[[], object]]:
        def call() -> None:
            self._step(place, setting)

        try:
            return place, self._record(call)
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            warnings.warn(
                f"the training step cannot be recorded and is launched piece by piece: {reason}", stacklevel=4
            )
            return place, call

    def _forget(self, device: torch.device) -> None:
        if self._recorded and device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # a recording must outlive its replays
        self._recorded.clear()
        self._made.clear()


def recorder(device: torch.device) -> Recorder | None:
    """The recorder of steps for a device; None if there is none."""
    return _recorded_on_cuda if device.type == "cuda" else None


def _recorded_on_cuda(call: Callable[[], None]) -> Callable[[], object]:
    graph = torch.cuda.CUDAGraph()
    # Other threads do not interfere: they use streams of their own.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        call()
    return graph.replay


@contextmanager
def own_stream(device: torch.device) -> Iterator[Callable[[], None]]:
    """Send what the block computes to a CUDA stream of its own; on other devices nothing changes.

    Yields:
        A function to call after each epoch. It waits until the device has finished the epoch before: one epoch stays in
        the queue, so that the device never waits. Meanwhile other threads take their turn.
    """
    if device.type != "cuda":
        yield lambda: _without_turn(lambda: None)
        return
    outer, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    marks: deque[torch.cuda.Event] = deque()

    def pace() -> None:
        marks.append(torch.cuda.Event(blocking=True))
        marks[-1].record(stream)
        if len(marks) > 1:
            _without_turn(marks.popleft().synchronize)

    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield pace
    finally:
        outer.wait_stream(stream)


_turn = threading.Lock()
_mine = threading.local()


@contextmanager
def taking_turns() -> Iterator[None]:
    """Run the block while no other thread is inside such a block, except during the waits of ``own_stream``.

    Recording a step, allocating and evaluating from several threads at once would depend on how well torch and CUDA
    keep them apart; only what is already queued on the device overlaps.
    """
    with _turn:
        _mine.held = True
        try:
            yield
        finally:
            _mine.held = False


def _without_turn(wait: Callable[[], None]) -> None:
    if not getattr(_mine, "held", False):
        wait()
        return
    _turn.release()
    try:
        wait()
    finally:
        _turn.acquire()
