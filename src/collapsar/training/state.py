"""The changing part of a run: made fresh, read from a checkpoint, written to one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collapsar.training.checkpoint import Checkpoint, RunFolder, load_records, read_checkpoint
from collapsar.training.config import PRECISIONS, TrainConfig
from collapsar.training.groups import param_groups
from collapsar.training.measure import EvaluationRecord
from collapsar.training.models import FeatureNetwork, build_model
from collapsar.training.provenance import RunHeader

_BUFFERS = {"momentum": "momentum_buffer", "first": "exp_avg", "second": "exp_avg_sq", "steps": "step"}
"""What the optimizers keep for each parameter, by its prefix in a checkpoint."""

_SAME_PENALTY = 1e-6  # relative: no one could tell the two networks apart


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained network and how it got there.

    Attributes:
        config: The configuration.
        model: The network, on its device, in training mode.
        records: One for each evaluation, in order.
        header: Configuration, seed, commit, versions, device.
        epoch: Finished epochs.
        finished: "epochs", "stationary", or "" for a run that was loaded before its end.
        seconds: Time spent in training and evaluation, resumed parts included.
        optimizer: The optimizer with its state after training.
    """

    config: TrainConfig
    model: FeatureNetwork
    records: list[EvaluationRecord]
    header: RunHeader
    epoch: int
    finished: str
    seconds: float
    optimizer: torch.optim.Optimizer | None = None


@dataclass
class RunState:
    """What changes while training."""

    model: FeatureNetwork
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    epoch: int = 0
    seconds: float = 0.0
    finished: str = ""
    header: RunHeader | None = None
    records: list[EvaluationRecord] = field(default_factory=list)


def fresh_state(
    config: TrainConfig, image_shape: tuple[int, int, int], num_classes: int, device: torch.device
) -> RunState:
    """A run before its first epoch."""
    # One generator on the CPU, for the weights and then for the order, so that all devices see the same.
    generator = torch.Generator().manual_seed(config.seed)
    head_bias = math.isfinite(config.penalties.lambda_b)
    model = build_model(config.model, image_shape, num_classes, head_bias=head_bias, generator=generator).to(device)
    model.body_dtype = PRECISIONS[config.precision]
    return RunState(model, _optimizer(config, model), generator)


def _optimizer(config: TrainConfig, model: FeatureNetwork) -> torch.optim.Optimizer:
    fused = model.head.weight.device.type in ("cpu", "cuda")  # one kernel instead of several for each tensor
    common: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=config.momentum, **common)
    head_decay = config.weight_decay + config.head_decay
    groups = param_groups(model, weight_decay=config.weight_decay, head_weight_decay=head_decay, head=model.head)
    return torch.optim.AdamW(groups, **common)


def begin_from(state: RunState, start: Mapping[str, Tensor]) -> None:
    """Replace the weights of a fresh state.

    Raises:
        ValueError: They belong to another network.
    """
    with _fitting("`start` must be a state_dict of the configuration's network, got another ({})"):
        state.model.load_state_dict(start)


@contextmanager
def _fitting(sentence: str) -> Iterator[None]:
    """Raise ``sentence``, with the reason filled in, if tensors belong to another network."""
    try:
        yield
    except (RuntimeError, KeyError) as error:
        raise ValueError(sentence.format(" ".join(str(error).split())[:200])) from None


def result_of(state: RunState, config: TrainConfig) -> TrainResult:
    """The state as a result."""
    return TrainResult(config, **{name: value for name, value in vars(state).items() if name != "generator"})


def checkpoint_of(
    state: RunState, config: TrainConfig, image_shape: tuple[int, int, int], records_bytes: int
) -> Checkpoint:
    """The state as a checkpoint; its hashes of data and start are the header's."""
    header = state.header
    assert header is not None
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for name, parameter in state.model.named_parameters():
        for prefix, buffer in _BUFFERS.items():
            value = state.optimizer.state[parameter].get(buffer)
            if value is not None:
                tensors[f"{prefix}.{name}"] = value
    tensors["generator"] = state.generator.get_state()
    return Checkpoint(
        tensors=tensors,
        config=config.to_json(),
        data_digest=header["data_digest"],
        start_digest=header.get("start_digest", ""),
        epoch=state.epoch,
        seconds=state.seconds,
        records_bytes=records_bytes,
        finished=state.finished,
        image_shape=image_shape,
        num_classes=state.model.head.out_features,
    )


def bring_back(folder: RunFolder, state: RunState, config: TrainConfig, digests: Mapping[str, str]) -> TrainConfig:
    """Bring a fresh state to the state of the folder's run; without a checkpoint it stays fresh.

    Returns:
        The configuration to continue with: the folder's, whose penalties may differ from ours by rounding.

    Raises:
        ValueError: The folder's run has another configuration, other training images or another start, or is
            damaged.
    """
    if folder.checkpoint_path.exists():
        checkpoint = read_checkpoint(folder.checkpoint_path)
        _refuse_other_run(folder, checkpoint.config, vars(checkpoint), config, digests)
        restore(state, checkpoint, str(folder.checkpoint_path))
        state.header, *state.records = folder.rewind(checkpoint.records_bytes)
        return TrainConfig.from_json(checkpoint.config)
    if folder.records_path.exists():
        for header in load_records(folder.path)[:1]:  # killed before its first checkpoint: only the header matters
            _refuse_other_run(folder, json.dumps(header.get("config")), header, config, digests)
    return config


def load_run(run_dir: str | Path) -> TrainResult:
    """A run from its folder, finished or not, without its data; the network is on the CPU.

    Raises:
        ValueError: The folder has no checkpoint, or a damaged one.
    """
    path = Path(run_dir) / "checkpoint.safetensors"
    checkpoint = read_checkpoint(path)
    config = TrainConfig.from_json(checkpoint.config)
    state = fresh_state(config, checkpoint.image_shape, checkpoint.num_classes, torch.device("cpu"))
    restore(state, checkpoint, str(path))
    header, *records = load_records(run_dir)
    state.header, state.records = header, [record for record in records if record["epoch"] <= state.epoch]
    return result_of(state, config)


def restore(state: RunState, checkpoint: Checkpoint, where: str) -> None:
    """Put a checkpoint into a fresh state.

    Raises:
        ValueError: It is not one of the state's network.
    """
    tensors = checkpoint.tensors
    with _fitting(f"the checkpoint {where} does not fit its own configuration ({{}}); train again with resume=False"):
        state.model.load_state_dict(_named(tensors, "model."))
        for prefix, buffer in _BUFFERS.items():
            saved = _named(tensors, f"{prefix}.")
            for name, parameter in state.model.named_parameters():
                if name in saved:  # in the layout of the parameter; a count of steps is one number
                    fresh = torch.empty_like(parameter) if saved[name].ndim else torch.zeros(())
                    state.optimizer.state[parameter][buffer] = fresh.copy_(saved[name])
        state.generator.set_state(tensors["generator"])
    state.epoch, state.seconds, state.finished = checkpoint.epoch, checkpoint.seconds, checkpoint.finished


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _refuse_other_run(
    folder: RunFolder, other_json: str, theirs: Mapping[str, Any], config: TrainConfig, ours: Mapping[str, str]
) -> None:
    """Compare a configuration and the hashes of data and start with ours; name what differs, in one line."""
    try:
        other = TrainConfig.from_json(other_json)
        names = [name for name in vars(config) if getattr(other, name) != getattr(config, name)]
        # Penalties may come from a threshold, whose last digits depend on machine and release.
        if np.allclose(astuple(other.penalties), astuple(config.penalties), rtol=_SAME_PENALTY, atol=0.0):
            names = [name for name in names if name != "penalties"]
        differ = ", ".join(f"{name} {getattr(other, name)!r} there, {getattr(config, name)!r} here" for name in names)
    except ValueError:
        differ = "unreadable there"
    if not differ:
        what = {"data_digest": "other training images", "start_digest": "another `start`"}
        differ = ", ".join(what[name] for name in ours if theirs.get(name, "") != ours[name])
    if differ:
        raise ValueError(
            f"`run_dir` {folder.path} holds a run of another configuration ({differ}); name another folder, "
            "or train with resume=False (--fresh) to replace it"
        )
