"""A sampler that shows every class as often as it is told to: exact in expectation, resumable, distributed.

It knows which :class:`collapsar.Problem` the network that it feeds is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Sampler

from collapsar.core.problem import FeatureModel, Loss, Problem

__all__ = ["ClassAwareSampler"]

Vector = NDArray[np.float64]


class ClassAwareSampler(Sampler[int]):
    """Indices in which class k appears s_k n_k times per epoch in expectation, s_k any positive number.

    In each epoch every sample of class k appears floor(s_k) times, and a random subset of the class once more, whose
    size is the rest of s_k n_k, rounded at random to one of its two neighbours so that the mean is exact. The order is
    shuffled over the whole epoch. Nothing else varies: the epoch is a function of (seed, epoch).

    With several ranks the epoch's order is dealt out like cards, and at most ``world_size - 1`` cards of a shuffled
    deck are left undealt so that all ranks have equally many. Nothing is padded: no index appears more often over all
    ranks than its multiplier says, and class *shares* stay exact in expectation.

    An iteration that was broken off goes on where it stopped when the sampler is iterated again; ``set_epoch`` with
    another epoch, or the end of the epoch, starts afresh.

    Args:
        labels: class of each sample, shape (N,), whole numbers 0..K-1.
        multipliers: s, shape (K,), positive: what ``collapsar advise`` calls copies per sample.
        seed: of the order and of the subsets, a whole number >= 0.
        rank: this process, 0..world_size-1.
        world_size: number of processes.

    Raises:
        ValueError: the labels are not whole numbers 0..K-1 with every class present, a multiplier is not positive and
            finite, ``seed`` is negative, or ``rank`` is not in 0..world_size-1.

    Example:
        >>> labels = [0] * 6 + [1] * 2
        >>> sampler = ClassAwareSampler(labels, [1.0, 2.5])
        >>> sorted(sampler)[:6], len(sampler), sampler.effective_counts.tolist()
        ([0, 1, 2, 3, 4, 5], 11, [6.0, 5.0])
    """

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        multipliers: ArrayLike,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        y = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        s = np.array(multipliers, dtype=np.float64)
        if s.ndim != 1 or s.size < 2 or not (np.isfinite(s) & (s > 0)).all():
            raise ValueError(f"`multipliers` must be finite numbers > 0, one for each class, got {multipliers!r}")
        whole = y.ndim == 1 and y.dtype.kind in "iu" and y.size > 0
        if not (whole and y.min() >= 0 and y.max() < s.size and np.unique(y).size == s.size):
            raise ValueError(
                f"`labels` must be whole numbers 0..{s.size - 1}, every class present, one for each sample"
            )
        if not (isinstance(seed, int) and seed >= 0):
            raise ValueError(f"`seed` must be a whole number >= 0, got {seed!r}")
        if not (isinstance(world_size, int) and world_size >= 1 and isinstance(rank, int) and 0 <= rank < world_size):
            raise ValueError(f"`rank` must be in 0..world_size-1, got {rank!r} of {world_size!r}")
        self.multipliers, self.seed, self.rank, self.world_size = s, seed, rank, world_size
        self.class_counts = np.bincount(y, minlength=s.size)
        self.epoch = 0
        self._members = [np.flatnonzero(y == k) for k in range(s.size)]
        self._done = 0  # indices dealt out in this epoch, over all ranks
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def __iter__(self) -> Iterator[int]:
        for index in self._hand().tolist():
            self._done += self.world_size
            yield index
        self.epoch, self._done = self.epoch + 1, 0

    def __len__(self) -> int:
        """How many indices the next iteration yields on this rank."""
        return len(self._hand())

    def _hand(self) -> NDArray[np.int64]:
        rest = self._epoch_order()[self._done :]
        return rest[: rest.size - rest.size % self.world_size][self.rank :: self.world_size]

    def _epoch_order(self) -> NDArray[np.int64]:
        """The whole epoch's indices, over all ranks, before the few undealt ones are left out."""
        if self._order is None or self._order[0] != self.epoch:
            random = np.random.default_rng((self.seed, self.epoch))
            parts = []
            for s, members in zip(self.multipliers, self._members, strict=True):
                times = int(s)
                more = (s - times) * members.size
                size = int(more) + int(random.random() < more - int(more))
                parts += [np.repeat(members, times), random.choice(members, size, replace=False)]
            self._order = (self.epoch, random.permutation(np.concatenate(parts)))
        return self._order[1]

    def set_epoch(self, epoch: int) -> None:
        """Begin ``epoch``; naming the present one changes nothing, so that a resumed epoch goes on.

        Raises:
            ValueError: ``epoch`` is not a whole number >= 0.
        """
        if not (isinstance(epoch, int) and epoch >= 0):
            raise ValueError(f"`epoch` must be a whole number >= 0, got {epoch!r}")
        if epoch != self.epoch:
            self.epoch, self._done = epoch, 0

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where the sampler stands, for a checkpoint; the same on every rank.

        Args:
            consumed: samples of this epoch that this rank has trained on. Needed with a data loader that has worker
                processes, which asks for indices ahead of time; by default the indices handed out so far.
        """
        done = self._done if consumed is None else consumed * self.world_size
        return {
            "epoch": self.epoch,
            "done": done,
            "seed": self.seed,
            "multipliers": torch.from_numpy(self.multipliers.copy()),
            "class_counts": torch.from_numpy(self.class_counts.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; the number of ranks may differ from then.

        Raises:
            ValueError: the state belongs to other labels, multipliers or another seed.
        """
        for name in ("seed", "multipliers", "class_counts"):
            ours, theirs = np.asarray(getattr(self, name)), np.asarray(state[name])
            if not np.array_equal(ours, theirs):
                raise ValueError(f"`state` belongs to a sampler with other {name}: {theirs} there, {ours} here")
        self.epoch, self._done = int(state["epoch"]), int(state["done"])

    # --- bookkeeping

    @property
    def effective_counts(self) -> Vector:
        """s_k n_k, shape (K,): expected samples of each class in an epoch."""
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
            lambda_z: price of the predictions; features penalised over the N samples.
            lambda_b: price of the bias.
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
