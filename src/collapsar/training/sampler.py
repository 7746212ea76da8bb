"""A sampler that shows every class a given number of times: exact in expectation, resumable, distributed.

It can tell the :class:`collapsar.Problem` that a network fed by it is trained on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from numbers import Integral
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Sampler

from collapsar.core.loss import Loss
from collapsar.core.problem import FeatureModel, Problem
from collapsar.core.types import Vector

# How many calls above a sampler one that wraps it is sought.
_CALLS = 12


class SamplerState(TypedDict):
    """The state of a sampler, for a checkpoint: ``done`` indices of ``epoch``, over all ranks."""

    epoch: int
    done: int
    seed: int
    multipliers: Tensor
    class_counts: Tensor


class ClassAwareSampler(Sampler[int]):
    """Indices in which class k appears in proportion to s_k n_k in expectation, s_k any positive number.

    An epoch has N' = floor(sum s_k n_k) samples, the same number every time. Class k gets t_k = s_k n_k N' / sum(s n)
    of them, rounded at random to one of its two neighbours so that the mean is exact and the sum is N': each of its
    samples floor(t_k / n_k) times, and a random subset once more. The order is shuffled over the whole epoch. Nothing
    else varies: the epoch is a function of (seed, epoch).

    With several ranks the epoch's order is dealt out like cards, and at most ``world_size - 1`` cards of a shuffled
    deck are left undealt so that all ranks have equally many. Nothing is padded: over all ranks no index appears more
    often than its multiplier says, and class *shares* stay exact in expectation. Lightning (unless told
    ``use_distributed_sampler=False``), Accelerate and Hugging Face's ``Trainer`` deal out batches themselves: with
    them leave out ``rank`` and ``world_size``; dealing twice is refused.

    Each iteration is an epoch: after one that ended or was broken off comes the next, or the one set by ``set_epoch``.
    Only ``load_state_dict`` makes the next iteration continue within an epoch; it then yields fewer than ``len``.

    Args:
        labels: class of each sample, shape (N,), whole numbers 0..K-1.
        multipliers: s, shape (K,), positive: what ``collapsar advise`` calls copies per sample.
        seed: of the order and of the subsets, a whole number >= 0.
        rank: this process, 0..world_size-1.
        world_size: number of processes.

    Raises:
        ValueError: the labels are not whole numbers 0..K-1 with every class present, a multiplier is not positive and
            finite, ``seed`` is negative, or ``rank`` is not in 0..world_size-1. In iteration: another sampler also
            deals out the indices.

    Example:
        >>> labels = [0] * 6 + [1] * 2
        >>> sampler = ClassAwareSampler(labels, [1.0, 2.5])
        >>> sorted(sampler)[:6], len(sampler), sampler.effective_counts.tolist()
        ([0, 1, 2, 3, 4, 5], 11, [6.0, 5.0])
    """

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        multipliers: ArrayLike | Tensor,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        y = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        s = np.array(multipliers.tolist() if isinstance(multipliers, Tensor) else multipliers, dtype=np.float64)
        if s.ndim != 1 or s.size < 2 or not (np.isfinite(s) & (s > 0)).all():
            raise ValueError(f"`multipliers` must be finite numbers > 0, one for each class, got {multipliers!r}")
        _check_labels(y, s.size)
        if not (isinstance(seed, Integral) and seed >= 0):
            raise ValueError(f"`seed` must be a whole number >= 0, got {seed!r}")
        if not (
            isinstance(world_size, Integral)
            and world_size >= 1
            and isinstance(rank, Integral)
            and 0 <= rank < world_size
        ):
            raise ValueError(f"`rank` must be in 0..world_size-1, got {rank!r} of {world_size!r}")
        self.multipliers, self.seed, self.rank, self.world_size = s, int(seed), int(rank), int(world_size)
        self.class_counts = np.bincount(y, minlength=s.size)
        self.epoch = 0
        expected = s * self.class_counts
        self._length = int(np.floor(expected.sum() + 1e-9 * s.size))
        self._targets = expected * (self._length / expected.sum())
        self._members = [np.flatnonzero(y == k) for k in range(s.size)]
        self._done = 0  # indices dealt out in this epoch, over all ranks
        self._resumed = False  # whether the next iteration goes on after them
        self._begun = False  # whether an iteration of this epoch has begun
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __iter__(self) -> Iterator[int]:
        if self.world_size > 1 and (dealer := _dealer()):
            raise ValueError(
                f"`world_size` {self.world_size} deals each process its share, and {dealer} deals out that share once "
                "more, so that most samples are never shown; leave out `rank` and `world_size`, as it deals by itself"
            )
        if self._begun and not self._resumed:
            self.epoch += 1
        self._done = self._done if self._resumed else 0
        self._begun, self._resumed, epoch = True, False, self.epoch
        rest = self._epoch_order()[self._done :]
        for index in rest[: rest.size - rest.size % self.world_size][self.rank :: self.world_size].tolist():
            self._done += self.world_size
            yield index
        if self.epoch == epoch:  # nobody named another meanwhile
            self.epoch, self._done, self._begun = epoch + 1, 0, False

    def __len__(self) -> int:
        """How many indices a whole epoch has on this rank."""
        return self._length // self.world_size

    def _epoch_order(self) -> NDArray[np.int64]:
        """The whole epoch's indices, over all ranks, before the few undealt ones are left out."""
        if self._order is None or self._order[0] != self.epoch:
            random = np.random.default_rng((self.seed, self.epoch))
            ends = np.floor(np.cumsum(self._targets) + random.random())  # systematic rounding: the sum is fixed
            ends[-1] = self._length
            parts = []
            for size, members in zip(np.diff(ends, prepend=0).astype(int), self._members, strict=True):
                times, more = divmod(size, members.size)
                parts += [np.repeat(members, times), random.choice(members, more, replace=False)]
            self._order = (self.epoch, random.permutation(np.concatenate(parts)))
        return self._order[1]

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be ``epoch``, from its start, or from the position of a loaded state.

        Raises:
            ValueError: ``epoch`` is not a whole number >= 0.
        """
        if not (isinstance(epoch, Integral) and epoch >= 0):
            raise ValueError(f"`epoch` must be a whole number >= 0, got {epoch!r}")
        if epoch != self.epoch:
            self.epoch, self._done, self._resumed = int(epoch), 0, False
        self._begun = False

    def state_dict(self, consumed: int | None = None) -> SamplerState:
        """The sampler's state, for a checkpoint; the same on every rank.

        Args:
            consumed: samples of this epoch that this rank has trained on. Needed with a data loader that has worker
                processes, which fetches indices ahead of time; by default the indices returned so far.
        """
        epoch, done = self.epoch, self._done
        if consumed is not None:
            if consumed and not self._begun and not self._resumed:  # a loader that fetches ahead has emptied the epoch
                epoch -= 1
            done = consumed * self.world_size
            if consumed >= len(self):
                epoch, done = epoch + 1, 0
        return {
            "epoch": epoch,
            "done": done,
            "seed": self.seed,
            "multipliers": torch.from_numpy(self.multipliers.copy()),
            "class_counts": torch.from_numpy(self.class_counts.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; the number of ranks may differ.

        Raises:
            ValueError: the state belongs to other labels, multipliers or another seed.
        """
        for name in ("seed", "multipliers", "class_counts"):
            ours, theirs = np.asarray(getattr(self, name)), np.asarray(state[name])
            if not np.array_equal(ours, theirs):
                raise ValueError(f"`state` belongs to a sampler with other {name}: {theirs} there, {ours} here")
        self.epoch, self._done = int(state["epoch"]), int(state["done"])
        self._resumed, self._begun = self._done > 0, False

    # --- bookkeeping

    @property
    def effective_counts(self) -> Vector:
        """s_k n_k, shape (K,): expected samples of each class in an epoch, up to less than one in all."""
        return self.multipliers * self.class_counts

    @property
    def loss_share(self) -> Vector:
        """q, shape (K,): the share of the loss that each class has."""
        return self.effective_counts / self.effective_counts.sum()

    def problem(
        self,
        lambda_z: float,
        lambda_b: float = float("inf"),
        *,
        penalty: Literal["repeated", "held"] = "repeated",
        features: FeatureModel = "nonnegative",
    ) -> Problem:
        """The convex program whose optimum a network fed by this sampler approaches.

        Args:
            lambda_z: penalty of the mean predictions; features penalised over the N samples.
            lambda_b: penalty of the bias.
            penalty: "repeated": the feature penalty is summed over an epoch's samples, copies included, m = s n;
                "held": it is that of N samples in all, m = N q, as for a mean over the batch times lambda_h N / 2.
            features: the feature model.

        Example:
            >>> sampler = ClassAwareSampler([0] * 6 + [1] * 2, [1.0, 3.0])
            >>> p = sampler.problem(0.01)
            >>> p.loss_share.tolist(), p.mass.tolist(), sampler.problem(0.01, penalty="held").mass.tolist()
            ([0.5, 0.5], [6.0, 6.0], [4.0, 4.0])
        """
        if penalty not in ("repeated", "held"):
            raise ValueError(f'`penalty` must be "repeated" or "held", got {penalty!r}')
        mass = self.effective_counts if penalty == "repeated" else self.class_counts.sum() * self.loss_share
        loss = Loss(class_weights=self.multipliers)
        return Problem(self.class_counts, lambda_z, lambda_b, features=features, loss=loss, feature_mass=mass)


def _dealer() -> str | None:
    """A sampler that is currently dealing out these indices to several processes; None if there is none.

    Accelerate's and Lightning's wrap the sampler invisibly, so that only the calls in progress show them.
    """
    frame = sys._getframe(2)
    for _ in range(_CALLS):
        owner = frame.f_locals.get("self")
        if isinstance(owner, Sampler):
            processes = getattr(owner, "num_processes", getattr(owner, "num_replicas", 1))
            if isinstance(processes, int) and processes > 1:
                return f"{type(owner).__module__.partition('.')[0]}'s {type(owner).__name__}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def _check_labels(y: NDArray[Any], num_classes: int) -> None:
    """Whole numbers 0..K-1, every class present."""
    K = num_classes
    if y.ndim != 1 or y.dtype.kind not in "iu" or not y.size:
        raise ValueError(
            f"`labels` must be whole numbers 0..{K - 1}, one for each sample, got shape {y.shape} of {y.dtype}; for "
            "names pass `numpy.unique(labels, return_inverse=True)[1]`"
        )
    outside = np.unique(y[(y < 0) | (y >= K)])
    if outside.size:
        raise ValueError(
            f"`labels` must be in 0..{K - 1}, as there are {K} multipliers, got {outside[:5].tolist()}: "
            + ("subtract 1" if y.min() == 1 and y.max() == K else "leave samples without a label out of the data set")
        )
    missing = np.setdiff1d(np.arange(K), y)
    if missing.size:
        raise ValueError(
            f"`labels` has no sample of class {', '.join(map(str, missing[:5]))}: number the classes with samples "
            "0..K-1 and give one multiplier for each"
        )
