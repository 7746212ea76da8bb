#!/bin/sh
# torchsampler 0.1.2 (the ImbalancedDatasetSampler of imbalanced-dataset-sampler) with indices=, torch 2.13.0, pandas
#   3.1.1.
# Expected: of the samples named by indices, with one label given for each, every class is drawn equally often, in
#   whatever order they are named.
# Seen: the weights are sorted by index and the indices are not. Named in order, nine tenths and one tenth are drawn
#   half and half; named as random_split or StratifiedShuffleSplit return them, nine to one as if nothing balanced
#   them. A loader that says it is balanced then trains on the imbalance, without an error or a warning.
# In Collapsar: what a sampler says of itself plays no part; what it draws in an epoch is counted.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 pandas==3.1.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps torchsampler==0.1.2
"$folder/venv/bin/python" - <<'PY'
import sys
import types

import torch

sys.modules["torchvision"] = types.ModuleType("torchvision")  # imported at the top, of no use where labels are given
from torchsampler import ImbalancedDatasetSampler

torch.manual_seed(0)
labels = torch.arange(2000) % 10 == 0  # a tenth is of the rare class
data = torch.utils.data.TensorDataset(torch.zeros(2000, 1), labels.long())
part = torch.utils.data.random_split(data, (1500, 500))[0].indices
share = {}
for order, indices in (("sorted", sorted(part)), ("as split", list(part))):
    own = [int(labels[i]) for i in indices]
    sampler = ImbalancedDatasetSampler(data, labels=own, indices=indices, num_samples=20_000)
    share[order] = float(labels[torch.tensor(list(sampler))].float().mean())
    print(f"{order:9s} {len(indices)} samples, {sum(own) / len(own):.1%} rare; drawn {share[order]:.1%} rare")
assert abs(share["sorted"] - 0.5) < 0.03
assert share["as split"] < 0.2, "the weights follow the indices: this finding is out of date"
PY
