#!/bin/sh
# pytorch-ignite 0.5.5, torch 2.13.0: DistributedProxySampler, in which idist.auto_dataloader wraps a sampler such as
#   WeightedRandomSampler as soon as there are several processes.
# Expected: the loop draws as it does in one process: anew in every epoch, and otherwise with another seed; what is random
#   elsewhere in the process, dropout for one, is left alone.
# Seen: every iteration begins with torch.manual_seed(epoch). With set_epoch, runs of different seeds draw the same samples
#   and have the same dropout, so that their spread is too small. Without it, which auto_dataloader does not mention, every
#   epoch draws the same samples: with replacement 37 % of the data are never shown, the rare classes' among them, in a
#   hundred epochs as in one, and dropout repeats as well. No warning.
# In Collapsar: ClassAwareSampler is a function of its seed and the epoch, which it counts itself, and uses a generator of
#   its own.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 pytorch-ignite==0.5.5
"$folder/venv/bin/python" - <<'PY'
import torch
from ignite.distributed import DistributedProxySampler
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

size, epochs = 1000, 20
data = TensorDataset(torch.arange(size))


def run(seed, ranks, named):
    """What each epoch shows, over all ranks, and a number that is drawn for dropout after it."""
    torch.manual_seed(seed)
    sampler = WeightedRandomSampler(torch.ones(size), size)
    parts = [DistributedProxySampler(sampler, num_replicas=ranks, rank=r) for r in range(ranks)] if ranks > 1 else [sampler]
    shown, noise = [], []
    for epoch in range(epochs):
        drawn = []
        for part in parts:
            if named:
                part.set_epoch(epoch)
            for (batch,) in DataLoader(data, batch_size=50, sampler=part):
                drawn += batch.tolist()
        shown.append(drawn)
        noise.append(float(torch.rand(())))
    return shown, noise


def used(shown):
    return len({index for epoch in shown for index in epoch}) / size


one, other = run(1, 1, named=False), run(2, 1, named=False)
named, again = run(1, 2, named=True), run(2, 2, named=True)
plain = run(1, 2, named=False)
print(f"one process: {used(one[0]):.0%} of the data shown in {epochs} epochs; seeds 1 and 2 differ: {one != other}")
print(f"two, with set_epoch: {used(named[0]):.0%} shown; seeds 1 and 2 differ: {named != again}")
print(f"two, without: {used(plain[0]):.0%} shown, {len(set(plain[1]))} different numbers for dropout in {epochs} epochs")
assert used(one[0]) == 1
assert one != other
assert named == again, "seeds matter now: this finding is out of date"
assert used(plain[0]) < 0.65, "epochs differ now: this finding is out of date"
assert len(set(plain[1])) == 1, "the random state is left alone now: this finding is out of date"
PY
