#!/bin/sh
# pytorch-toolbelt 0.8.0, losses.CrossEntropyFocalLoss(reduced_threshold=...), torch 2.13.0.
# Expected: the reduced focal loss of arxiv.org/abs/1903.01347, which its functional form names: a sample whose chance p is
#   below the threshold t counts in full, one above it by ((1 - p) / t)^gamma, so that the easy ones fade.
# Seen: the other way round. Every sample with p above .5, however easy, counts in full, and the others by (1 - p)^2 / t^2, up
#   to four times: the argument that is to spare the hard samples keeps every easy one of a frequent class, which at
#   p = .99 weighs 1 where the focal loss has 1e-4. BinaryFocalLoss of the same package has it right. No error, no warning.
# In Collapsar: a criterion is read by its values, and this one is told to be no cross-entropy.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps pytorch-toolbelt==0.8.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import importlib.util
import sys
import types

import torch

place = importlib.util.find_spec("pytorch_toolbelt").submodule_search_locations[0]
for name, path in (("pytorch_toolbelt", place), ("pytorch_toolbelt.losses", f"{place}/losses")):
    sys.modules[name] = types.ModuleType(name)  # its focal losses, without what needs torchvision and OpenCV
    sys.modules[name].__path__ = [path]
sys.modules["pytorch_toolbelt.utils"] = types.ModuleType("pytorch_toolbelt.utils")
sys.modules["pytorch_toolbelt.utils"].pytorch_toolbelt_deprecated = lambda text: lambda function: function
from pytorch_toolbelt.losses.focal import BinaryFocalLoss, CrossEntropyFocalLoss  # noqa: E402


def factor(chance, multiclass, **settings):
    """By what the loss of a sample with this chance for its class is multiplied."""
    z = torch.tensor(chance, dtype=torch.float64).logit().float()
    if multiclass:
        scores, target = torch.stack([-z / 2, z / 2])[None], torch.tensor([1])
        return float(CrossEntropyFocalLoss(**settings)(scores, target) / CrossEntropyFocalLoss(gamma=0.0)(scores, target))
    scores, target = z.reshape(1, 1), torch.ones(1, 1)
    return float(BinaryFocalLoss(**settings)(scores, target) / BinaryFocalLoss(gamma=0.0)(scores, target))


seen = {}
for chance in (0.01, 0.3, 0.7, 0.9, 0.99, 0.999):
    plain, reduced = factor(chance, True, gamma=2.0), factor(chance, True, gamma=2.0, reduced_threshold=0.5)
    binary = factor(chance, False, gamma=2.0, reduced_threshold=0.5)
    seen[chance] = plain, reduced, binary
    paper = 1.0 if chance < 0.5 else ((1 - chance) / 0.5) ** 2
    print(f"p = {chance}: focal {plain:.2g}, reduced {reduced:.2g} ({binary:.2g} in BinaryFocalLoss, {paper:.2g} in the paper)")
    assert abs(plain - (1 - chance) ** 2) < 1e-3 * (1 - chance) ** 2 + 1e-9
    assert abs(binary - paper) < 1e-3 * paper
assert all(abs(reduced - 1) < 1e-4 for chance, (_, reduced, _) in seen.items() if chance > 0.5), "easy samples fade now"
assert seen[0.01][1] > 3.9, "this finding is out of date"
PY
