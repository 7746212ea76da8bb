#!/bin/sh
# torchmetrics 1.9.0, metrics that take logits or probabilities (BinaryAccuracy, BinaryAUROC, MulticlassAUROC, ...), torch
#   2.13.0.
# Expected: the value over all samples does not depend on how they are cut into batches, as update and compute promise.
# Seen: every update decides anew: logits of a batch that all lie in [0, 1] are taken for probabilities, those of the
#   next batch pass a sigmoid or softmax, and both are ranked together and held against one threshold. With logits as
#   small as those of a nearly collapsed head the same 2000 samples have an accuracy of .36 in one batch and .65 in
#   batches of one, and the areas under the curves move too. No error, no warning.
# In Collapsar: recall is counted from the largest logit, which needs no probabilities.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, MulticlassAUROC

torch.manual_seed(0)
labels = (torch.rand(2000) < 0.2).long()
logits = torch.stack([torch.randn(2000) * 0.3 + 0.8, torch.randn(2000) * 0.3 + 0.3 + 0.2 * labels], dim=1)
one = logits[:, 1] - logits[:, 0] + 0.8
values = {}
for make, given in ((BinaryAccuracy, one), (BinaryAUROC, one), (lambda: MulticlassAUROC(num_classes=2), logits)):
    found = []
    for size in (2000, 4, 1):
        metric = make()
        for batch, own in zip(given.split(size), labels.split(size), strict=True):
            metric.update(batch, own)
        found.append(round(float(metric.compute()), 3))
    values[type(metric).__name__] = found
    print(f"{type(metric).__name__:16s} in one batch {found[0]}, in batches of 4 {found[1]}, of 1 {found[2]}")
for name, found in values.items():
    assert max(found) - min(found) > 0.01, f"{name} no longer depends on the batches: this finding is out of date"
PY
