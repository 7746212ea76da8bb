"""What other processes do in the tests: two ranks that share metrics, monitors and samplers, a training to be killed.

The processes are forked from a server that has imported torch once. What they run must lie in a module of its own,
because they import it by name.
"""

from __future__ import annotations

import datetime as dt
import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from collapsar.metrics import NeuralCollapse
from collapsar.monitor import CollapseMonitor, MonitorOptions
from collapsar.training import ClassAwareSampler, TrainConfig, load_data, loop, train


def forked() -> ForkServerContext:
    """Where processes are made that have torch and the library without importing them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["collapsar.monitor.bare_loop", "collapsar.training"])
    return context


def on_two_ranks(work: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """What ``work(rank, *arguments)`` gives on each rank of a gloo group of two; warnings are errors there, too."""
    context = forked()
    ranks = [context.Process(target=_rank, args=(rank, folder, work, arguments)) for rank in range(2)]
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=90)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _rank(rank: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")
    limit = dt.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    torch.save(work(rank, *arguments), folder / f"{rank}.pt")
    dist.destroy_process_group()


def dealt(_rank: int, labels: list[int], multipliers: list[float]) -> list[int]:
    """A sampler's indices of one epoch, as the group's rank and not an argument says."""
    return list(ClassAwareSampler(labels, multipliers, rank=dist.get_rank(), world_size=dist.get_world_size()))


def streamed(rank: int, features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> list[Any]:
    """Uneven: rank 0 sees batches of 31, 1 and 9, rank 1 one of 3 and one of none; the classes differ as well."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight
    metric = NeuralCollapse(head=layer, centers=torch.zeros_like(weight).fill_diagonal_(1.0))
    for rows in ((range(31), range(31, 32), range(32, 41)), (range(41, 44), range(0)))[rank]:
        metric.update(features[list(rows)], labels[list(rows)])
    first = metric.compute()
    metric.update(features[44 + rank :: 2], labels[44 + rank :: 2])
    return [[r.scalars(), r.class_means.tolist()] for r in (first, metric.compute())]


def monitored(rank: int, images: torch.Tensor, labels: torch.Tensor, path: str) -> list[Any]:
    """Uneven: rank 0 has 4 batches of 9, rank 1 one of 7; with a loader rank 1 has none at all."""
    torch.manual_seed(0)
    said: list[str] = []
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    model = DistributedDataParallel(net)
    options = MonitorOptions(path=path, within_scatter=True, say=said.append)
    mine = [slice(a, a + 9) for a in range(0, 36, 9)] if rank == 0 else [slice(36, 43)]
    with CollapseMonitor(model, head="2", options=options) as monitor:
        with model.join():
            for rows in mine:
                nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
                monitor.step(labels[rows])
        first: Any = monitor.end_epoch()
    loader = [(images[rows], labels[rows]) for rows in mine] if rank == 0 else []
    with CollapseMonitor(model, head="2", loader=loader, options=options) as monitor:
        second: Any = monitor.end_epoch()
    found = [[r.report.scalars(), r.report.Z.tolist(), r.recalls.tolist()] for r in (first, second)]
    return [found, said]


def trained(config: str, folder: str, line: Connection) -> None:
    """A run that saves after every epoch, tells its number, and is killed."""
    loop._CHECKPOINT_SECONDS, loop._CHECKPOINT_SHARE = 0.0, 1e9
    train(TrainConfig.from_json(config), load_data("digits"), folder, progress=lambda epoch, *_: line.send(epoch))
