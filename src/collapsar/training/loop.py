"""A plain loop: data on the device, penalties in the loss, records, a resume that changes nothing."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from collapsar.training.checkpoint import RunFolder, as_read_back
from collapsar.training.config import TrainConfig
from collapsar.training.data import ImageData, imbalanced
from collapsar.training.measure import evaluate
from collapsar.training.models import FeatureNetwork
from collapsar.training.penalties import penalised_loss, with_weight_decay
from collapsar.training.provenance import choose_device, data_digest, run_header
from collapsar.training.state import (
    Record,
    RunState,
    TrainResult,
    bring_back,
    checkpoint_of,
    fresh_state,
    result_of,
)

__all__ = ["DivergedError", "Measure", "Progress", "TrainingInterrupted", "train"]

Progress = Callable[[int, int, Record | None], object]
Measure = Callable[[FeatureNetwork, ImageData], Mapping[str, Any]]

# Training images are kept as float32 up to this size, ready for the network; larger sets stay bytes and are
# normalised batch by batch.
_FLOAT_BYTES = 1 << 29
# A checkpoint at least this many seconds after the last, and no more than 2% of the time spent on writing
# them.
_CHECKPOINT_SECONDS = 10.0
_CHECKPOINT_SHARE = 0.02


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C: the epoch was finished and, with a ``run_dir``, saved. The text says how to go on."""


@dataclass(frozen=True)
class _Job:
    """What stays the same while training."""

    config: TrainConfig
    data: ImageData
    folder: RunFolder | None
    progress: Progress | None
    measure: Measure | None


def train(
    config: TrainConfig,
    data: ImageData,
    run_dir: str | Path | None = None,
    *,
    progress: Progress | None = None,
    measure: Measure | None = None,
    resume: bool = True,
) -> TrainResult:
    """Train a network as ``config`` says.

    On the CPU the result depends on the configuration, the data, the torch build and its number of threads
    alone: a run that was killed and resumed ends in the same bits as one that was not. The first Ctrl-C ends
        the run after the
    present epoch, the second at once.

    Args:
        config: The run.
        data: The data set it names, whole or already cut to ``config.class_counts``.
        run_dir: Folder for ``records.jsonl`` and ``checkpoint.safetensors``; nothing is written where None.
        progress: Called after every epoch with (finished epochs, all epochs, the new record or None).
        measure: Called at every evaluation with the network and the data on the device; what it returns
            (numbers, lists, arrays) joins the record. Use ``features_and_logits`` in it.
        resume: Go on from the checkpoint in ``run_dir``; a finished run is returned at once. False: begin
            anew, replacing what is there.

    Returns:
        The network and the records.

    Raises:
        ValueError: The data do not fit the configuration, the device does not exist, or ``run_dir`` cannot be
            written, holds another configuration's run or a damaged one.
        DivergedError: The loss became infinite or NaN.
        TrainingInterrupted: Ctrl-C.

    Example:
        >>> from collapsar.training import ModelSpec, Penalties, TrainConfig, load_data, train
        >>> model = ModelSpec("mlp", widths=(32,))
        >>> config = TrainConfig("digits", (20,) * 10, Penalties(0.02, 0.0002, 0.02), epochs=3, model=model)
        >>> result = train(config, load_data("digits"))
        >>> result.epoch, result.finished, [record["epoch"] for record in result.records]
        (3, 'epochs', [3])
    """
    data = _training_data(config, data)
    device = choose_device(config.device)
    folder = None if run_dir is None else RunFolder(run_dir)
    digest = data_digest(data)
    state = fresh_state(config, data.image_shape, data.num_classes, device)
    if folder is not None and resume:
        bring_back(folder, state, config, digest)
    if not state.header:
        state.header = run_header(config, digest, device)
        if folder is not None:
            folder.clear()
            folder.append_record(state.header)
    _run_epochs(state, _Job(config, data.to(device), folder, progress, measure))
    return result_of(state, config)


def _training_data(config: TrainConfig, data: ImageData) -> ImageData:
    """The images that the configuration names, checked against it."""
    if config.dataset != data.name:
        raise ValueError(f"`data` must be the configuration's data set {config.dataset!r}, got {data.name!r}")
    data = imbalanced(data, config.class_counts)
    if config.model.batch_norm and len(data.train_labels) % config.batch_size == 1:
        raise ValueError(
            f"`batch_size` {config.batch_size} leaves one of the {len(data.train_labels)} images alone in "
            "the last batch, where batch normalisation is undefined; change it by one"
        )
    return data


def _run_epochs(state: RunState, job: _Job) -> None:
    config, data = job.config, job.data
    inputs = data.train_images
    if inputs.numel() * 4 <= _FLOAT_BYTES:
        inputs = data.normalised(inputs)
    last_save, save_pause = time.monotonic(), _CHECKPOINT_SECONDS
    with _deferred_interrupt() as interrupted:
        while not state.finished:
            begin = time.monotonic()
            _train_epoch(state, job, inputs)
            record = _evaluation(state, job, begin)
            if state.epoch == config.epochs:
                state.finished = "epochs"
            if record is not None and config.settled(state.epoch - 1) and record["stationarity"] < config.stop_at:
                state.finished = "stationary"
            now = time.monotonic()
            state.seconds += now - begin
            if job.folder is not None and (state.finished or interrupted() or now - last_save >= save_pause):
                job.folder.save(checkpoint_of(state, config, data.image_shape, job.folder.records_bytes))
                last_save = time.monotonic()
                save_pause = max(_CHECKPOINT_SECONDS, (last_save - now) / _CHECKPOINT_SHARE)
            if job.progress is not None:
                job.progress(state.epoch, config.epochs, record)
            if interrupted() and not state.finished:
                raise TrainingInterrupted(_how_to_go_on(state, job))


def _train_epoch(state: RunState, job: _Job, inputs: Tensor) -> None:
    """One pass over the training images in a fresh order."""
    config, labels = job.config, job.data.train_labels
    penalties = config.penalties_at(state.epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate_at(state.epoch)
    parameters = list(state.model.parameters())
    num_samples = len(labels)
    order = torch.randperm(num_samples, generator=state.generator).to(labels.device)
    for batch in order.split(config.batch_size):
        images = inputs.index_select(0, batch)
        if images.dtype == torch.uint8:
            images = job.data.normalised(images)
        logits, features = state.model(images)
        targets = labels.index_select(0, batch)
        loss = penalised_loss(logits, features, targets, state.model.head, penalties, num_samples)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm < math.inf:
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        state.optimizer.step()
    state.epoch += 1


def _evaluation(state: RunState, job: _Job, begin: float) -> Record | None:
    """The record of the epoch that has just ended, where one is due."""
    config = job.config
    if state.epoch % config.eval_every != 0 and state.epoch != config.epochs:
        return None
    penalties = config.penalties_at(state.epoch - 1)
    numbers = evaluate(state.model, job.data, with_weight_decay(config.penalties, config.weight_decay))
    if not math.isfinite(numbers["train_loss"]):
        raise DivergedError(
            f"the loss is {numbers['train_loss']} after epoch {state.epoch}: training diverged; lower "
            f"`learning_rate` (now {config.learning_rate:g}) or set `clip_norm` (now {config.clip_norm:g}), "
            "to 1 say"
        )
    record = {
        "kind": "evaluation",
        "epoch": state.epoch,
        "learning_rate": config.learning_rate_at(state.epoch - 1),
        "lambda_w": penalties.lambda_w,
        "lambda_h": penalties.lambda_h,
        **numbers,
        **(job.measure(state.model, job.data) if job.measure is not None else {}),
    }
    record["seconds"] = round(state.seconds + time.monotonic() - begin, 3)
    record = as_read_back(record)
    if job.folder is not None:
        job.folder.append_record(record)
    state.records.append(record)
    return record


def _how_to_go_on(state: RunState, job: _Job) -> str:
    done = f"stopped after epoch {state.epoch} of {job.config.epochs}"
    if job.folder is None:
        return f"{done}; nothing is saved, because there is no run_dir"
    return f"{done}; the same call with the same run_dir {job.folder.path} goes on from there"


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back until the caller asks; the second one acts at once.

    An interrupt in the middle of a step would leave weights and momentum half updated, a state that no
    uninterrupted run passes through.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield pressed.is_set
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
