#!/bin/sh
# torchmetrics 1.9.0, MetricCollection with its default compute_groups=True.
# Expected: metrics with different settings are accumulated each by its own rule: top-2 accuracy counts second guesses,
#   a metric with ignore_index leaves that label out, whatever the first batch held.
# Seen: metrics whose states are equal after the first batch share one state from then on. If the first batch has only
#   right first guesses, top-2 accuracy is top-1 accuracy for the rest of the epoch; if it has no sample of the rare
#   class, the metric that ignores that class counts it. With compute_groups=False both are right.
# In Collapsar: what makes two NeuralCollapse metrics differ (centres, head, ignore_index) is part of their state.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy


def results(groups):
    metrics = MetricCollection(
        {
            "top 1": MulticlassAccuracy(3, average="macro"),
            "top 2": MulticlassAccuracy(3, average="macro", top_k=2),
            "without class 2": MulticlassAccuracy(3, average="macro", ignore_index=2),
        },
        compute_groups=groups,
    )
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.3, 0.6, 0.1]])
    metrics.update(scores, torch.tensor([0, 1]))  # right, and no sample of class 2
    metrics.update(scores, torch.tensor([1, 2]))  # a right second guess, and one of class 2
    return {name: round(float(value), 3) for name, value in metrics.compute().items()}


apart, grouped = results(False), results(True)
print("apart:  ", apart)
print("grouped:", grouped)
assert apart == {"top 1": 0.5, "top 2": 0.667, "without class 2": 0.75}
assert set(grouped.values()) == {0.5}, "the groups no longer hide the settings: this finding is out of date"
PY
