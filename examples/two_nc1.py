"""The same features, two published definitions of NC1: with 5 classes of 500 and 5 of 20 they disagree."""

import torch

from collapsar.metrics import class_moments, nc1

torch.manual_seed(0)
labels = torch.repeat_interleave(torch.arange(10), torch.tensor([500] * 5 + [20] * 5))
features = 10 * torch.eye(10, 64)[labels] + torch.randn(len(labels), 64)

moments = class_moments(features, labels, num_classes=10)
uniform, weighted = nc1(moments, "uniform").value, nc1(moments, "weighted").value
print(f"uniform {uniform:.4f}, weighted {weighted:.4f}: {weighted / uniform:.1f} times as much")
