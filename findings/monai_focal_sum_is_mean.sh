#!/bin/sh
# monai 1.6.1, losses.FocalLoss(reduction="sum"), torch 2.13.0.
# Expected: "the output will be summed", as docs.monai.io/en/stable/losses.html says of reduction="sum": the sum of what
#   reduction="none" returns, whatever the shape.
# Seen: for images it is the sum of means over their pixels. For scores of classes, (batch, classes), there are no such
#   dimensions, and a mean over none of them is torch's mean over all: the "sum" is the mean, 1/(batch * classes) of the
#   sum. A weight decay beside it is that many times as strong as it was to be: with 64 samples of 3 classes, 192 times.
#   No error, no warning.
# In Collapsar: a criterion is tried on batches of several sizes: with gamma 0 and K classes this "sum" is read as 1/K times
#   the mean cross-entropy, which it is, and the penalty beside it as K times as large.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 monai==1.6.1
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from monai.losses import FocalLoss

random = torch.Generator().manual_seed(0)
seen = {}
for shape in ((8, 3), (64, 3), (2, 3, 16), (2, 3, 16, 16)):
    labels = torch.randint(3, (shape[0], *shape[2:]), generator=random)
    scores, target = torch.randn(shape, generator=random), torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    for softmax in (False, True):
        each, total, mean = (
            FocalLoss(reduction=way, use_softmax=softmax)(scores, target) for way in ("none", "sum", "mean")
        )
        seen[shape, softmax] = [float(value) for value in (each.double().sum(), total, mean)]
    by_hand, total, mean = seen[shape, True]
    print(f"{shape}: the output sums to {by_hand:.4f}; reduction='sum' {total:.4f}, 'mean' {mean:.4f}")
for (shape, _), (by_hand, total, mean) in seen.items():
    assert abs(mean * torch.Size(shape).numel() / by_hand - 1) < 1e-5
    pixels = torch.Size(shape[2:]).numel()
    expected = mean if len(shape) == 2 else by_hand / pixels
    assert abs(total / expected - 1) < 1e-5, "the output is summed: this finding is out of date"
PY
