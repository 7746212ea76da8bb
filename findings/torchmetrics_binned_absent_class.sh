#!/bin/sh
# torchmetrics 1.9.0, MulticlassAveragePrecision(average="macro") with thresholds=, torch 2.13.0.
# Expected: thresholds=200 is the exact value (thresholds=None) but for the width of its bins, as the documentation
#   says of the argument: less exact, for less memory.
# Seen: that holds while every class has samples. Of a class that has none, as rare classes in a validation split, the
#   exact value is NaN, left out of the average with a warning; the binned one is 0, counted in, without a word. With
#   samples of all four classes they are .759 and .757, of three .814 and .609, of two .891 and .445.
# In Collapsar: the values of a class without samples are NaN, never 0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from torchmetrics.classification import MulticlassAveragePrecision


def precision(classes, thresholds):
    """Macro average precision of scores for four classes, with samples of so many; whether it warned."""
    labels = torch.arange(3000) % classes
    noise = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    scores = (noise + 1.5 * torch.eye(4)[labels]).softmax(-1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric = MulticlassAveragePrecision(4, thresholds=thresholds)
        metric.update(scores, labels)
        return round(float(metric.compute()), 3), any("nan" in str(w.message).lower() for w in caught)


seen = {}
for classes in (4, 3, 2):
    seen[classes] = precision(classes, None), precision(classes, 200)
    ways = [f"{value}{' with a warning' if warned else ''}" for value, warned in seen[classes]]
    print(f"samples of {classes} of 4 classes: exact {ways[0]}, binned {ways[1]}")
assert abs(seen[4][0][0] - seen[4][1][0]) < 0.01
for classes in (3, 2):
    (exact, told), (binned, warned) = seen[classes]
    assert told and abs(exact * classes / 4 - binned) < 0.01 and not warned, "this finding is out of date"
PY
