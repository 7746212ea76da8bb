"""Measure collapse in one pass over features and labels; find out which classes have merged."""

import torch

from collapsar.metrics import NeuralCollapse

generator = torch.Generator().manual_seed(0)
K, d = 4, 8
head = torch.nn.Linear(d, K)
means = 5 * torch.eye(K, d)
means[3] = means[2]  # classes 2 and 3 share one mean: they have merged
with torch.no_grad():
    head.weight.copy_(means - means.mean(dim=0))

metric = NeuralCollapse(head=head)
for _ in range(10):  # your loop over batches
    labels = torch.randint(K, (64,), generator=generator)
    features = means[labels] + 0.01 * torch.randn(64, d, generator=generator)
    metric.update(features, labels)

report = metric.compute()
print("counts:", report.class_counts.tolist())
print("within-class variation is small:", report.nc1_trace_ratio < 1e-3)
print("merged groups:", report.separation().groups)
