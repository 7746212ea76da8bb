#!/bin/sh
# segmentation-models-pytorch 0.6.0, losses.SoftCrossEntropyLoss(smooth_factor=..., ignore_index=...), torch 2.13.0.
# Expected: the loss that torch.nn.CrossEntropyLoss has with label_smoothing and ignore_index, for which it is a drop-in
#   replacement by its description: the mean over the pixels that have a label.
# Seen: the mean over all pixels, those to be ignored as zeros: where a tenth of an image is labelled, a tenth of the loss
#   and of its gradient. Without ignored pixels the two are equal. A sparsely labelled image counts less than a full
#   one, and beside a weight decay of SGD the penalty is ten times as strong, so that more unlabelled pixels alone can
#   make small classes collapse. No warning.
# In Collapsar: labels that are ignored are left out of counts, of means and of the loss (MatchedCrossEntropy) alike.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps segmentation-models-pytorch==0.6.0
"$folder/venv/bin/python" -W ignore - <<'PY'
import importlib.util
import sys
import types

import torch

place = importlib.util.find_spec("segmentation_models_pytorch")
package = types.ModuleType("segmentation_models_pytorch")  # its losses, without its encoders, which need torchvision
package.__path__ = list(place.submodule_search_locations)
sys.modules[package.__name__] = package
from segmentation_models_pytorch.losses import SoftCrossEntropyLoss  # noqa: E402

random = torch.Generator().manual_seed(0)
logits = torch.randn(4, 3, 32, 32, generator=random)
labels = torch.randint(3, (4, 32, 32), generator=random)
place = torch.rand(labels.shape, generator=random)
ratios = {}
for share in (1.0, 0.5, 0.1):
    target = labels.masked_fill(place > share, 255)
    labelled = float((target != 255).float().mean())
    for smoothing in (0.0, 0.1):
        pair = [
            SoftCrossEntropyLoss(smooth_factor=smoothing, ignore_index=255),
            torch.nn.CrossEntropyLoss(label_smoothing=smoothing, ignore_index=255),
        ]
        found = []
        for criterion in pair:
            x = logits.clone().requires_grad_()
            criterion(x, target).backward()
            found.append((criterion(logits, target), x.grad.norm()))
        ratios[share, smoothing] = [float(a / b) for a, b in zip(*found)]
        loss, pull = ratios[share, smoothing]
        print(f"{labelled:.2f} labelled, smoothing {smoothing}: {loss:.3f} of torch's loss, {pull:.3f} of its gradient")
    assert share < 1 or all(abs(r - 1) < 1e-5 for pair in ratios.values() for r in pair)
    assert all(abs(r / labelled - 1) < 1e-3 for s in (0.0, 0.1) for r in ratios[share, s]), "out of date"
PY
