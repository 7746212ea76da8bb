"""A plain loop: data on the device, penalties in the loss, records, a resume that changes nothing."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from collapsar.core.penalties import Penalties
from collapsar.core.records import from_json, to_json
from collapsar.training.checkpoint import Checkpoint, RunFolder
from collapsar.training.config import TrainConfig
from collapsar.training.data import ImageData, imbalanced
from collapsar.training.distributed import Team, leading
from collapsar.training.graphs import RecordedSteps, own_stream, recorder
from collapsar.training.measure import EvaluationRecord, evaluate
from collapsar.training.models import FeatureNetwork
from collapsar.training.penalties import penalised_backward, with_weight_decay
from collapsar.training.provenance import choose_device, data_digest, run_header, weights_digest
from collapsar.training.state import (
    RunState,
    TrainResult,
    begin_from,
    bring_back,
    checkpoint_of,
    fresh_state,
    restore,
    result_of,
)

Progress = Callable[[int, int, EvaluationRecord | None], object]
Measure = Callable[[FeatureNetwork, ImageData], Mapping[str, Any]]
Setting = tuple[float, Penalties]
Step = Callable[[Tensor, Setting], None]

# Training images are kept as float32 up to this size, ready for the network; larger sets stay bytes and are
# normalised batch by batch.
_FLOAT_BYTES = 1 << 29
# Checkpoints are at least this many seconds apart, and writing them takes no more than 2% of the time.
_CHECKPOINT_SECONDS = 10.0
_CHECKPOINT_SHARE = 0.02


class DivergedError(ArithmeticError):
    """The loss is no longer a number."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or ``stop``: the epoch was finished and, with a ``run_dir``, saved. The message says how to continue."""


@dataclass(frozen=True)
class _Job:
    """What stays the same while training."""

    config: TrainConfig
    data: ImageData
    team: Team
    folder: RunFolder | None = None
    progress: Progress | None = None
    measure: Measure | None = None
    stop: Callable[[], bool] | None = None


def train(
    config: TrainConfig,
    data: ImageData,
    run_dir: str | Path | None = None,
    *,
    progress: Progress | None = None,
    measure: Measure | None = None,
    resume: bool = True,
    start: Mapping[str, Tensor] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a network as ``config`` says.

    On the CPU the result depends only on the configuration, the data, the torch build and its number of threads: a
    run that was killed and resumed ends in the same bits as one that was not. The first Ctrl-C ends the run after the
    present epoch, the second at once.

    Args:
        config: The run.
        data: The data set it names, whole or already cut to ``config.class_counts``.
        run_dir: Folder for ``records.jsonl`` and ``checkpoint.safetensors``; None: nothing is written.
        progress: Called after every epoch with (finished epochs, all epochs, the new record or None).
        measure: Called at every evaluation with the network and the data on the device; what it returns
            (numbers, lists, arrays) is added to the record. Use ``features_and_logits`` in it.
        resume: Continue from the checkpoint in ``run_dir`` under its own configuration, whose penalties may differ from
            those of ``config`` by a millionth; a finished run is returned at once. False: start again, replacing what
            is there.
        start: Weights to start from, a ``state_dict()`` of the same network; the momentum starts at zero and
            the order of the images is that of a fresh start. A resumed run must be given the same.
        stop: Called after every epoch; True ends the run there like Ctrl-C, to be resumed later.

    Returns:
        The network and the records.

    Raises:
        ValueError: The data or ``start`` do not fit the configuration, the device does not exist, or
            ``run_dir`` cannot be written, holds a run of another configuration, data or start, or a damaged one.
        DivergedError: The loss became infinite or NaN.
        TrainingInterrupted: Ctrl-C was pressed, or ``stop`` returned True.

    Example:
        >>> from collapsar import Penalties
        >>> from collapsar.training import ModelSpec, TrainConfig, load_data, train
        >>> model = ModelSpec("mlp", widths=(32,))
        >>> config = TrainConfig("digits", (20,) * 10, Penalties(0.02, 0.0002, 0.02), epochs=3, model=model)
        >>> result = train(config, load_data("digits"))
        >>> result.epoch, result.finished, [record["epoch"] for record in result.records]
        (3, 'epochs', [3])
    """
    data = _training_data(config, data)
    device = _device(config)
    folder = None if run_dir is None else RunFolder(run_dir)
    digests = {"data_digest": data_digest(data), "start_digest": "" if start is None else weights_digest(start)}
    state = fresh_state(config, data.image_shape, data.num_classes, device)
    if start is not None:
        begin_from(state, start)
    if folder is not None and resume:
        config = bring_back(folder, state, config, digests)
    if not state.header:
        state.header = run_header(config, digests, device)
        if folder is not None:
            folder.clear()
            folder.append_record(state.header)
    if state.finished:
        return result_of(state, config)
    with nullcontext(Team(device)) if config.devices == 1 else leading(device, config.devices, _follow) as team:
        team.told((data, checkpoint_of(state, config, data.image_shape, 0)))
        _run_epochs(state, _Job(config, data.to(team.device), team, folder, progress, measure, stop))
    return result_of(state, config)


def _follow(team: Team, told: tuple[ImageData, Checkpoint]) -> None:
    """The part of every process but the calling one."""
    data, checkpoint = told
    config = TrainConfig.from_json(checkpoint.config)
    state = fresh_state(config, data.image_shape, data.num_classes, team.device)
    restore(state, checkpoint, "of the leading process")
    job, stop = _Job(config, data.to(team.device), team), False
    step = _step(state, job)
    with exact_products():
        while not (state.finished or stop):
            _train_epoch(state, job, step)
            state.finished, stop = team.told((state.finished, stop))


def _device(config: TrainConfig) -> torch.device:
    """The configuration's device, checked against the number of processes."""
    device = choose_device(config.device)
    if config.devices == 1:
        return device
    if device.type == "cuda" and config.devices > torch.cuda.device_count():
        raise ValueError(
            f"`devices` must not exceed the {torch.cuda.device_count()} GPUs of this machine, got {config.devices}"
        )
    if device.type == "cpu" and config.model.normalises:
        raise ValueError(
            f"`devices` must be 1 on the CPU for a network with batch normalisation, got {config.devices}: each "
            "process would normalise by its own share of the batch; leave out the normalisation, or use GPUs"
        )
    return device


def _training_data(config: TrainConfig, data: ImageData) -> ImageData:
    """The images that the configuration names, checked against it."""
    if config.dataset != data.name:
        raise ValueError(f"`data` must be the data set of the configuration, {config.dataset!r}, got {data.name!r}")
    data = imbalanced(data, config.class_counts)
    if config.model.normalises and len(data.train_labels) % config.batch_size == 1:
        raise ValueError(
            f"`batch_size` {config.batch_size} leaves one of the {len(data.train_labels)} images alone in "
            "the last batch, where batch normalisation is undefined; change it by one"
        )
    return data


def _run_epochs(state: RunState, job: _Job) -> None:
    config = job.config
    last_save, save_pause = time.monotonic(), _CHECKPOINT_SECONDS
    with _deferred_interrupt(job.stop) as interrupted, exact_products(), own_stream(job.team.device) as pace:
        step = _step(state, job)
        while not state.finished:
            begin = time.monotonic()
            _train_epoch(state, job, step)
            pace()
            record = _evaluation(state, job, begin)
            if state.epoch == config.epochs:
                state.finished = "epochs"
            if record is not None and config.settled(state.epoch - 1) and record["stationarity"] < config.stop_at:
                state.finished = "stationary"
            stop = interrupted() and not state.finished  # asked once: all that follows must agree
            job.team.told((state.finished, stop))
            now = time.monotonic()
            state.seconds += now - begin
            if job.folder is not None and (state.finished or stop or now - last_save >= save_pause):
                job.folder.save(checkpoint_of(state, config, job.data.image_shape, job.folder.records_bytes))
                last_save = time.monotonic()
                save_pause = max(_CHECKPOINT_SECONDS, (last_save - now) / _CHECKPOINT_SHARE)
            if job.progress is not None:
                job.progress(state.epoch, config.epochs, record)
            if stop:
                raise TrainingInterrupted(_how_to_go_on(state, job))


def _inputs(data: ImageData) -> Tensor:
    """The training images in the form kept on the device."""
    images = data.train_images
    return data.normalised(images) if images.numel() * 4 <= _FLOAT_BYTES else images


def _network(model: FeatureNetwork, job: _Job) -> nn.Module:
    """The model as training calls it: compiled if configured, synchronised over the team."""
    network: nn.Module = model
    if job.team.size > 1 and job.config.model.normalises:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if job.config.compile:
        network = torch.compile(network, dynamic=False)  # pyright: ignore[reportAssignmentType]
    return job.team.wrapped(network)


def _step(state: RunState, job: _Job) -> Step:
    """A function that makes one SGD step on the images numbered ``rows``, at a learning rate and penalties."""
    config, data, team, head = job.config, job.data, job.team, state.model.head
    network, inputs = _network(state.model, job), _inputs(data)
    parameters = list(state.model.parameters())
    num_samples = len(data.train_labels)

    def step(rows: Tensor, setting: Setting) -> None:
        learning_rate, penalties = setting
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        state.optimizer.zero_grad(set_to_none=True)  # before the network runs: a recorded step owns its gradients
        share = team.share(rows)
        images = inputs.index_select(0, share)
        if images.dtype == torch.uint8:
            images = data.normalised(images)
        outputs, targets = network(images), data.train_labels.index_select(0, share)
        penalised_backward(outputs, targets, head, penalties, num_samples, team.size / len(rows))
        if config.clip_norm < math.inf:
            _clip(parameters, config.clip_norm)
        state.optimizer.step()

    record = recorder(team.device) if config.cuda_graphs and team.size == 1 else None
    return step if record is None else RecordedSteps(step, record)  # pyright: ignore[reportArgumentType]


def _train_epoch(state: RunState, job: _Job, step: Step) -> None:
    """One pass over the training images in a fresh order."""
    config, device = job.config, job.data.train_labels.device
    setting = config.learning_rate_at(state.epoch), config.penalties_at(state.epoch)
    order = torch.randperm(len(job.data.train_labels), generator=state.generator)
    if device.type == "cuda":  # from pinned memory, otherwise the copy would wait for the epoch before
        order = order.pin_memory().to(device, non_blocking=True)
    for rows in order.split(config.batch_size):
        step(rows, setting)
    state.epoch += 1


def _clip(parameters: list[nn.Parameter], clip_norm: float) -> None:
    """``nn.utils.clip_grad_norm_``, except that on the CPU short gradients are not multiplied by 1."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if norm.device.type != "cpu" or not norm <= clip_norm:  # on other devices, reading the norm would mean waiting
        nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)


def _evaluation(state: RunState, job: _Job, begin: float) -> EvaluationRecord | None:
    """The record of the epoch that has just ended, if one is due."""
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
        "lambda_b": penalties.lambda_b,
        "lambda_z": penalties.lambda_z,
        **numbers,
        **(job.measure(state.model, job.data) if job.measure is not None else {}),
    }
    record["seconds"] = round(state.seconds + time.monotonic() - begin, 3)
    record = from_json(to_json(record))  # as ``load_records`` will return it
    if job.folder is not None:
        job.folder.append_record(record)
    state.records.append(record)
    return record


@contextmanager
def exact_products() -> Iterator[None]:
    """Products of float32 in float32: CUDA's convolutions would take TF32 with its 10 bits of mantissa."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # pyright: ignore[reportAttributeAccessIssue]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread: on the CPU results depend on their number, and records must be comparable."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _how_to_go_on(state: RunState, job: _Job) -> str:
    done = f"stopped after epoch {state.epoch} of {job.config.epochs}"
    if job.folder is None:
        return f"{done}; nothing is saved, because there is no run_dir"
    return f"{done}; the same call with the same run_dir {job.folder.path} resumes from there"


@contextmanager
def _deferred_interrupt(stop: Callable[[], bool] | None) -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C until the caller asks, and call ``stop`` then; the second Ctrl-C acts at once.

    An interrupt in the middle of a step would leave weights and momentum half updated, a state that no
    uninterrupted run passes through.
    """
    pressed = threading.Event()

    def asked() -> bool:
        return pressed.is_set() or (stop is not None and stop())

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield asked
        return

    def note(_signal: int, _frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
