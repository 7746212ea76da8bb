#!/bin/sh
# torcheval 0.0.7, MulticlassBinnedAUROC and multiclass_binned_auroc, torch 2.13.0.
# Expected: the area under the ROC curve of each class (average=None), or their unweighted mean (average="macro"), but for
#   the width of the bins, as docs.pytorch.org/torcheval says of both; MulticlassAUROC gives these values.
# Seen: one value for each sample, 2000 where there are three classes: the share of the other classes that its own class
#   is scored above. The "macro" average is the mean of these over the samples, in which a class counts by its size: a
#   class of one sample in a hundred, scored at random, takes the macro average of MulticlassAUROC from 1.00 to .85 and
#   leaves this one at .99. No error, no warning; the docstring's own example has five values for three classes.
# In Collapsar: states, distances and recall are told for each class; no average over samples stands for them.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torcheval==0.0.7 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from torcheval.metrics import BinaryBinnedAUROC, MulticlassAUROC, MulticlassBinnedAUROC

labels = torch.repeat_interleave(torch.arange(3), torch.tensor([1400, 580, 20]))
random = torch.Generator().manual_seed(0)
noise = 0.05 * torch.rand(2000, 3, generator=random)


def values(metric, scores):
    found = metric.update(scores, labels).compute()
    return found[0] if isinstance(found, tuple) else found  # with the thresholds


seen = {}
for case in ("all classes told apart", "the rare class at random"):
    scores = noise + 0.9 * torch.nn.functional.one_hot(labels, 3)
    if "random" in case:  # the rare column says nothing, and its samples look like those of the first class
        scores[:, 2] = noise[:, 2]
        scores[labels == 2, 0] += 0.9
    exact, binned = (values(kind(num_classes=3, average=None), scores) for kind in (MulticlassAUROC, MulticlassBinnedAUROC))
    macro = [float(values(kind(num_classes=3), scores)) for kind in (MulticlassAUROC, MulticlassBinnedAUROC)]
    one_by_one = [BinaryBinnedAUROC().update(scores[:, k], (labels == k).long()).compute()[0].item() for k in range(3)]
    print(f"{case}: MulticlassAUROC {[round(v, 2) for v in exact.tolist()]}, macro {macro[0]:.2f}; each column binned "
          f"{[round(v, 2) for v in one_by_one]}; MulticlassBinnedAUROC {len(binned)} values, macro {macro[1]:.3f}")
    assert exact.shape == (3,)
    assert all(abs(a - b) < 0.06 for a, b in zip(exact.tolist(), one_by_one))
    assert binned.shape == (2000,), "one value for each class: this finding is out of date"
    assert abs(binned.double().mean() - macro[1]) < 1e-4
    seen[case] = macro
assert seen["all classes told apart"][0] > 0.99
assert seen["the rare class at random"][0] < 0.87
assert seen["the rare class at random"][1] > 0.97, "the rare class counts: this finding is out of date"
PY
