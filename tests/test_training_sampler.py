"""The class-aware sampler: frequencies in expectation, the same order after a resume, ranks that share one deck."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import collapsar as cs
from collapsar.training.sampler import ClassAwareSampler
from ranks import dealt, on_two_ranks

COUNTS = (40, 12, 7)
LABELS = np.random.default_rng(5).permutation(np.repeat(np.arange(3), COUNTS))
MULTIPLIERS = (1.0, 2.3, 4.75)


def sampler(**changes) -> ClassAwareSampler:
    return ClassAwareSampler(LABELS, MULTIPLIERS, **changes)


def epochs(s: ClassAwareSampler, count: int) -> list[list[int]]:
    return [list(s) for _ in range(count)]


def expected_counts() -> np.ndarray:
    """s n = (40, 27.6, 33.25), 100.85 in all, of which an epoch has 100."""
    return np.array(MULTIPLIERS) * COUNTS * 100 / 100.85


def test_every_epoch_is_within_one_of_the_expectation_and_the_mean_is_exact() -> None:
    """Counts differ from s n 100 / 100.85 by less than 1; their mean over 2000 epochs by at most 4 standard errors."""
    counts = np.array([np.bincount(LABELS[e], minlength=3) for e in epochs(sampler(), 2000)])
    assert set(counts.sum(axis=1)) == {100}
    assert np.all(np.abs(counts - expected_counts()) < 1)
    error = np.sqrt(0.25 / 2000)  # a rounding's variance is at most 1/4
    np.testing.assert_allclose(counts.mean(axis=0), expected_counts(), atol=4 * error)
    assert len(set(counts[:, 1])) == 2  # 27.4 is rounded both ways


def test_each_sample_appears_floor_or_ceil_of_its_share() -> None:
    share = expected_counts() / COUNTS
    for epoch in epochs(sampler(), 20):
        seen = Counter(epoch)
        for index, label in enumerate(LABELS):
            assert np.floor(share[label]) <= seen[index] <= np.ceil(share[label]) <= np.ceil(MULTIPLIERS[label])


def test_all_samples_of_a_class_are_equally_frequent() -> None:
    """A further copy falls on each of the 12 samples of class 1 with probability 0.28: 4 standard errors."""
    seen = Counter(i for e in epochs(sampler(seed=3), 1500) for i in e)
    rates = [seen[int(i)] / 1500 for i in np.flatnonzero(LABELS == 1)]
    np.testing.assert_allclose(rates, expected_counts()[1] / 12, atol=4 * np.sqrt(0.21 / 1500))


def test_undersampling_takes_a_part_without_repeats() -> None:
    s = ClassAwareSampler(LABELS, [0.25, 1.0, 1.0])
    for epoch in epochs(s, 5):
        assert np.bincount(LABELS[epoch], minlength=3).tolist() == [10, 12, 7]
        assert max(Counter(epoch).values()) == 1


def test_epochs_differ_seeds_differ_and_the_same_pair_repeats() -> None:
    first, second = epochs(sampler(), 2)
    assert first != second
    again = sampler()
    again.set_epoch(1)
    assert list(again) == second
    assert list(sampler(seed=1)) != first
    assert first != sorted(first)


def test_a_resumed_epoch_goes_on_in_the_same_order() -> None:
    s = sampler()
    list(s)
    whole = sampler()
    whole.set_epoch(1)
    expected = list(whole)
    run = iter(s)
    begun = [next(run) for _ in range(17)]
    other = sampler()
    other.load_state_dict(s.state_dict())
    other.set_epoch(1)  # as a training loop does after a resume
    assert len(other) == len(expected)  # of an epoch; that the loaded state leaves fewer is no other length
    assert begun + list(other) == expected
    assert list(other) == epochs(sampler(), 3)[2]


def test_a_resume_with_another_number_of_ranks_covers_the_rest_once() -> None:
    whole = list(sampler())
    one = sampler()
    run = iter(one)
    begun = [next(run) for _ in range(30)]
    rest = []
    for rank in range(2):
        s = sampler(rank=rank, world_size=2)
        s.load_state_dict(one.state_dict())
        rest.append(list(s))
    dealt = begun + [i for pair in zip(*rest, strict=True) for i in pair]
    assert dealt == whole[: len(dealt)]
    assert len(whole) - len(dealt) <= 1


def test_a_loader_with_workers_needs_what_was_consumed() -> None:
    data = TensorDataset(torch.arange(len(LABELS)))
    s = sampler()
    expected = list(sampler())
    loader = DataLoader(data, batch_size=8, sampler=s)
    batches = iter(loader)
    seen = [int(i) for _ in range(3) for i in next(batches)[0]]
    other = sampler()
    other.load_state_dict(s.state_dict(consumed=len(seen)))
    rest = [int(i) for (batch,) in DataLoader(data, batch_size=8, sampler=other) for i in batch]
    assert seen + rest == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_sees_one_length_and_every_epoch_is_whole(workers: int) -> None:
    """What frameworks ask in the middle of an epoch: ``(i + 1) == len(loader)``, accumulation, breaking off."""
    s = ClassAwareSampler(LABELS, [1, 2, 3])
    loader = DataLoader(TensorDataset(torch.arange(len(LABELS))), batch_size=10, sampler=s, num_workers=workers)
    seen = [[(len(loader), i, len(batch)) for i, (batch,) in enumerate(loader)] for _ in range(2)]
    assert seen == [[(9, i, 10 if i < 8 else 5) for i in range(9)]] * 2
    for _ in range(2):
        next(iter(loader))  # broken off
    assert sum(len(batch) for (batch,) in loader) == 85
    s.set_epoch(0)  # as a second fit does
    assert [int(i) for (batch,) in loader for i in batch] == list(ClassAwareSampler(LABELS, [1, 2, 3]))


def test_an_epoch_that_was_broken_off_is_followed_by_the_next() -> None:
    s = sampler()
    next(iter(s))
    assert list(s) == epochs(sampler(), 2)[1]
    assert s.epoch == 2


def test_a_state_taken_when_the_loader_has_emptied_the_sampler_is_of_its_epoch() -> None:
    s = sampler()
    whole = list(s)  # asked for ahead of time; the loop has trained on 60
    other = sampler()
    other.load_state_dict(s.state_dict(consumed=60))
    assert list(other) == whole[60:]
    other.load_state_dict(s.state_dict(consumed=100))
    assert list(other) == epochs(sampler(), 2)[1]


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_lightning_trains_on_every_sample_in_every_fit(workers: int, tmp_path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(1, 3), []

        def on_train_epoch_start(self) -> None:
            self.seen.append(0)

        def training_step(self, batch):
            self.seen[-1] += len(batch[0])
            return torch.nn.functional.cross_entropy(self.layer(batch[0][:, None].float()), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-9)

    data = TensorDataset(torch.arange(len(LABELS)), torch.from_numpy(LABELS))
    loader = DataLoader(data, 10, sampler=ClassAwareSampler(LABELS, [1, 2, 3]), num_workers=workers)
    for epochs_of_fit in (2, 1):
        module = Module()
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = lightning.Trainer(
            max_epochs=epochs_of_fit,
            accelerator="cpu",
            default_root_dir=tmp_path,
            use_distributed_sampler=False,
            **quiet,
        )
        trainer.fit(module, loader)
        assert (module.seen, trainer.global_step) == ([85] * epochs_of_fit, 9 * epochs_of_fit)


def test_accelerate_deals_out_the_batches_itself() -> None:
    prepare = pytest.importorskip("accelerate.data_loader").prepare_data_loader
    data = TensorDataset(torch.arange(len(LABELS)))
    seen = []
    for rank in range(2):
        loader = DataLoader(data, 10, sampler=ClassAwareSampler(LABELS, [1, 2, 3]))
        ours = prepare(
            loader, num_processes=2, process_index=rank, put_on_device=False, even_batches=False,
            rng_types=[], use_seedable_sampler=False,
        )  # fmt: skip
        seen += [int(i) for (batch,) in ours.base_dataloader for i in batch]
    assert sorted(seen) == sorted(ClassAwareSampler(LABELS, [1, 2, 3]))


def test_samples_that_are_dealt_out_twice_are_refused() -> None:
    prepare = pytest.importorskip("accelerate.data_loader").prepare_data_loader
    wrapper = pytest.importorskip("lightning.fabric.utilities.distributed").DistributedSamplerWrapper
    data = TensorDataset(torch.arange(len(LABELS)))
    for workers in (0, 1):
        loader = DataLoader(data, 10, sampler=sampler(rank=1, world_size=2), num_workers=workers)
        ours = prepare(loader, num_processes=2, process_index=1, put_on_device=False, rng_types=[])
        with pytest.raises(ValueError, match=r"accelerate's BatchSamplerShard deals out .* leave out `rank`"):
            next(iter(ours.base_dataloader))
    twice = wrapper(sampler(rank=1, world_size=2), num_replicas=2, rank=1)
    with pytest.raises(ValueError, match="lightning's DistributedSamplerWrapper deals out"):
        list(twice)
    assert len(list(DataLoader(data, 10, sampler=sampler(rank=1, world_size=2)))) > 0
    once = wrapper(sampler(), num_replicas=2, rank=1)
    assert len(list(once)) == -(-len(sampler()) // 2)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_one_deck_without_padding(world_size: int) -> None:
    whole = sampler()
    for epoch in range(4):
        whole.set_epoch(epoch)
        deck = list(whole)
        hands = []
        for rank in range(world_size):
            s = sampler(rank=rank, world_size=world_size)
            s.set_epoch(epoch)
            hands.append(list(s))
        assert len({len(h) for h in hands}) == 1
        dealt = Counter(i for h in hands for i in h)
        assert not dealt - Counter(deck)  # nothing that is not in the epoch, nothing twice
        assert len(deck) - sum(dealt.values()) < world_size


def test_class_shares_stay_exact_over_ranks() -> None:
    """What stays undealt is the end of a shuffled deck: shares over 3000 epochs within 4 standard errors."""
    hands = [sampler(rank=r, world_size=7) for r in range(7)]
    total = np.sum([np.bincount(LABELS[e], minlength=3) for s in hands for e in epochs(s, 400)], axis=0)
    share = np.array(MULTIPLIERS) * COUNTS
    np.testing.assert_allclose(total / total.sum(), share / share.sum(), atol=4 * 0.5 / np.sqrt(400 * 100))


def test_two_gloo_processes_deal_out_one_epoch(tmp_path) -> None:
    hands = torch.tensor(on_two_ranks(dealt, tmp_path, LABELS.tolist(), MULTIPLIERS))
    deck = list(sampler())
    assert hands.T.flatten().tolist() == deck[: hands.numel()]
    assert len(deck) - hands.numel() <= 1


@pytest.mark.parametrize("penalty", ["repeated", "held"])
def test_bookkeeping_is_the_problem_of_repeated_samples(penalty) -> None:
    """Whole multipliers: with the penalty repeated, the program of a data set that holds the copies."""
    s = ClassAwareSampler(LABELS, [1, 2, 3])
    problem = s.problem(0.05, 0.02, penalty=penalty)
    copies = cs.Problem([40, 24, 21], 0.05, 0.02, features="nonnegative")
    np.testing.assert_allclose(problem.loss_share, copies.loss_share)
    expected = copies.mass if penalty == "repeated" else copies.mass * 59 / 85
    np.testing.assert_allclose(problem.mass, expected)
    np.testing.assert_allclose(s.effective_counts, [40, 24, 21])
    if penalty == "repeated":
        np.testing.assert_allclose(cs.solve(problem).Z, cs.solve(copies).Z, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "arguments", "words"),
    [
        (LABELS, {"multipliers": [1, 2]}, "`labels`"),
        (LABELS, {"multipliers": [1, 2, 0]}, "`multipliers`"),
        (LABELS, {"multipliers": [1, 2, float("nan")]}, "`multipliers`"),
        ([0, 1, 3], {"multipliers": [1, 1, 1, 1]}, "`labels`"),
        ([0.0, 1.0], {"multipliers": [1, 1]}, "`labels`"),
        (["a", "b"], {"multipliers": [1, 1]}, "return_inverse"),
        ([1, 2, 1], {"multipliers": [1, 1]}, "subtract 1"),
        ([0, 1, -1], {"multipliers": [1, 1]}, "without a label"),
        ([0, 2, 0], {"multipliers": [1, 1, 1]}, "no sample of class 1"),
        (LABELS, {"multipliers": MULTIPLIERS, "rank": 2, "world_size": 2}, "`rank`"),
        (LABELS, {"multipliers": MULTIPLIERS, "seed": -1}, "`seed`"),
    ],
)
def test_bad_arguments_are_named(labels, arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassAwareSampler(labels, **arguments)


def test_numbers_of_numpy_and_torch_are_taken() -> None:
    multipliers = torch.tensor(MULTIPLIERS, dtype=torch.float64, requires_grad=True)
    one: Any = np.int64(1)
    ours = ClassAwareSampler(torch.tensor(LABELS), multipliers, seed=one)
    ours.set_epoch(3 * one)
    theirs = sampler(seed=1)
    theirs.set_epoch(3)
    assert list(ours) == list(theirs)
    theirs.load_state_dict(torch.load(saved(ours.state_dict()), weights_only=True))


def saved(state: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_a_state_of_another_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match="other seed"):
        sampler().load_state_dict(sampler(seed=1).state_dict())
    with pytest.raises(ValueError, match="other multipliers"):
        sampler().load_state_dict(ClassAwareSampler(LABELS, [1, 1, 1]).state_dict())
    with pytest.raises(ValueError, match="`epoch`"):
        sampler().set_epoch(-1)
