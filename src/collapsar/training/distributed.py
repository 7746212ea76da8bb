"""Processes on this machine that share each batch, through Lightning Fabric's distributed data parallelism.

The calling process leads: it alone reads and writes files, evaluates, reports and decides. The others are started by
it, receive data and state from it, compute their share of each batch, and end with it.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")

_NO_FOLLOWER = (
    "a second process could not start; a script that trains on several devices must keep its own work behind "
    '`if __name__ == "__main__":`, because each process imports it'
)


@dataclass(frozen=True)
class Team:
    """All processes as seen by one of them.

    Attributes:
        device: Where this process computes.
        rank: Of this process, 0 leads.
        size: Number of processes.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    fabric: Fabric | None = None

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch; the parts differ in length by at most one and can be empty."""
        return batch if self.size == 1 else batch.tensor_split(self.size)[self.rank]

    def told(self, value: T) -> T:
        """The leader's value, on every process."""
        return value if self.fabric is None else self.fabric.broadcast(value)

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network to call in training: its gradients are averages over the team."""
        if self.fabric is None:
            return network
        return self.fabric.setup_module(network, move_to_device=False)


Follow = Callable[[Team, Any], None]
"""What a follower does: a top-level function of a module, called with its team and the leader's first value."""


@contextmanager
def leading(device: torch.device, size: int, follow: Follow) -> Iterator[Team]:
    """Start followers and lead them; when the context ends, so do they.

    The followers begin by waiting for the leader's first call of ``told``.

    Args:
        device: "cpu" or "cuda"; on CUDA process r computes on device r.
        size: Number of processes, >= 2.
        follow: What each follower does.

    Raises:
        RuntimeError: A follower could not start. It imports the calling script, which must keep its own work behind
            ``if __name__ == "__main__":``.
    """
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    share, followers = max(1, threads // size), []
    try:
        for rank in range(1, size):
            line, their_line = context.Pipe()
            arguments = (rank, size, device.type, share, follow, their_line)
            process = context.Process(target=_follower, args=arguments, daemon=True)
            process.start()
            their_line.close()
            followers.append((process, line))
        # Imported only now: it takes seconds, during which the followers start.
        from lightning_fabric.plugins.environments.lightning import find_free_network_port

        port = find_free_network_port()
        for _, line in followers:
            try:
                line.recv()
            except EOFError:
                raise RuntimeError(_NO_FOLLOWER) from None
            line.send(port)
        torch.set_num_threads(share)  # the cores are shared, too
        yield _joined(0, size, port, device.type)
        for process, _ in followers:
            process.join(timeout=60)
    finally:
        for process, line in followers:
            process.kill()  # harmless if it has ended
            process.join()
            line.close()
        torch.set_num_threads(threads)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _follower(rank: int, size: int, kind: str, threads: int, follow: Follow, line: Connection) -> None:
    """The life of a follower."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the leader decides what it means
    torch.set_num_threads(threads)
    line.send(True)
    team = _joined(rank, size, line.recv(), kind)
    follow(team, team.told(None))
    torch.distributed.destroy_process_group()


def _joined(rank: int, size: int, port: int, kind: str) -> Team:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    class ByRank(LightningEnvironment):
        """Rank and port as arguments: no variables of the environment, and nothing to launch."""

        @property
        def creates_processes_externally(self) -> bool:
            return True

        @property
        def main_port(self) -> int:
            return port

        def local_rank(self) -> int:
            return rank

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # no banner for each process
    fabric = Fabric(accelerator=kind, devices=size, strategy="ddp", plugins=[ByRank()])
    fabric.launch()
    return Team(fabric.device, rank, size, fabric)
